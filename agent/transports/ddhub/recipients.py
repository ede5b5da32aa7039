"""Who gets what a channel sends: named DIDs, and whoever holds one of its roles; a name says more, such as the padding.

The broker's list of who holds a role never forgets: who lost it stands there all the same. What it said last is used
for a day when it cannot say it anew. We ourselves are never among them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agent.errors import Reason, TransportError
from agent.evidence.did import did_key
from agent.ports import Clock
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.config import DdhubConfig, DdhubRecipient
from agent.transports.ddhub.keys.network import participant

S = 1_000_000_000
TTL = 600 * S
LONGEST_STALE = 86_400 * S
_NAMED = 10  # in a line of the log

log = logging.getLogger(__name__)


class Recipients:
    """Of one channel. ``own``: our DID."""

    def __init__(self, config: DdhubConfig, *, own: str, clock: Clock) -> None:
        self._config = config
        self._own = own
        self._clock = clock
        self._holders: tuple[str, ...] | None = None
        self._asked_at = 0  # boot time
        self._said_at = 0
        self._odd = 0  # DIDs of the list that cannot be written to
        self._is_stale = False

    async def get(self, api: Broker) -> tuple[DdhubRecipient, ...]:
        """At least one. Raises TransportError: there is none, or the broker cannot be asked."""
        roles, named = self._config.roles, self._config.recipients or ()
        found = {each.did: each for each in named if self._is_other(each.did)}
        for did in await self._with_roles(api, roles) if roles is not None else ():
            found.setdefault(did, DdhubRecipient(did=did))
        if found:
            return tuple(found.values())
        if roles is None:
            what, hint = "the only recipient is this agent itself", "name the DIDs of others in recipients"
        else:
            what = f"nobody but us holds a role of the channel: {', '.join(roles)}"
            hint = "correct roles, or have a participant enrol for one; it counts once he has logged in"
        raise TransportError(what, hint=hint, reason=Reason.RECIPIENT)

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds one of the roles, as the broker said last."""
        return self._holders or ()

    async def _with_roles(self, api: Broker, roles: Sequence[str]) -> tuple[str, ...]:
        now = self._clock.boot()
        if self._holders and now - self._asked_at < TTL:
            return self._holders
        try:
            said = await api.dids_with_roles(roles)
        except TransportError as error:
            if self._holders and error.reason == Reason.STORE and now - self._said_at < LONGEST_STALE:
                if not self._is_stale:
                    self._is_stale = True
                    log.warning(
                        "broker does not say who holds the roles, its last list is used topic=%s error=%s hint=%s",
                        self._config.topic,
                        error,
                        error.hint,
                    )
                self._asked_at = now
                return self._holders
            raise
        found = dict.fromkeys(did for did in said if self._is_other(did))
        odd = sum(1 for did in said if _key(did) is None)
        if odd > self._odd:
            log.warning(
                "who holds a role cannot be written to and is left out topic=%s count=%d", self._config.topic, odd
            )
        self._odd, self._is_stale = odd, False
        holders = tuple(sorted(found))
        if holders != self._holders:
            self._note(holders)
        self._holders, self._asked_at, self._said_at = holders, now, now
        return holders

    def _is_other(self, did: str) -> bool:
        key = _key(did)
        return key is not None and key != did_key(self._own)

    def _note(self, holders: tuple[str, ...]) -> None:
        before = set(self._holders or ())
        joined, left = [did for did in holders if did not in before], sorted(before - set(holders))
        log.info(
            "recipients by roles changed topic=%s count=%d new=%s gone=%s",
            self._config.topic,
            len(holders),
            " ".join(joined[:_NAMED]) or "none",
            " ".join(left[:_NAMED]) or "none",
        )


def _key(did: str) -> object | None:
    """What a DID is compared by; None if it is none that can be written to, as the broker has it."""
    try:
        found = participant(did)
    except ValueError:
        return None
    return did_key(did) if found.did == did else None
