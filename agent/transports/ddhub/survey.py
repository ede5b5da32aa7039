"""What can be found out about a channel to a Data Hub without sending anything: whether we are let in, what our roles
allow, what the broker takes, the topic, and each recipient.

Changes nothing there, not even our channel is opened. Whether a recipient has a mailbox is said by no call of the
broker, only by its answer to a message; but logging in makes the mailbox and notes the roles, and who holds a role can
be asked. So who is found has one, and of who is not found nothing is known: it may hold other roles than we do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx

from agent.errors import AgentError, Reason, TransportError
from agent.ports import Clock, Signer
from agent.transports.ddhub import roles as rules
from agent.transports.ddhub.answers import Limits
from agent.transports.ddhub.broker import Broker, broker
from agent.transports.ddhub.config import DdhubConfig, DdhubRecipient
from agent.transports.ddhub.content.schema import is_ours
from agent.transports.ddhub.keys.key_source import KeySource
from agent.transports.ddhub.recipients import Recipients
from agent.transports.ddhub.requests import Timeouts
from agent.transports.ddhub.topics import Topics
from agent.transports.ddhub.transport import AROUND, LEAST_MESSAGE

_TIMEOUTS = Timeouts(connect=5, answer=20, slow=20)  # somebody waits
_AT_ONCE = 4  # recipients whose keys are asked for
_AWAY = (Reason.UNREACHABLE, Reason.TIMEOUT, Reason.LOST, Reason.TLS)
_ENROL = "enrol this DID for a role of the hub, and wait until it is approved"


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that was looked at. ``good`` None: it is not known. ``facts``: for programs."""

    what: str
    words: str
    good: bool | None = True
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.words}; {self.remedy}" if self.remedy else self.words


@dataclass(frozen=True, slots=True)
class Survey:
    """``is_away``: the Data Hub could not be reached. ``recipients``: what is known of each, by DID."""

    seen: Sequence[Seen]
    recipients: Mapping[str, Seen]
    is_away: bool = False


async def survey(
    config: DdhubConfig,
    *,
    signer: Signer,
    clock: Clock,
    keys: KeySource,
    over: httpx.AsyncBaseTransport | None = None,
) -> Survey:
    """Look at everything. Raises nothing for what it finds. ``keys``: of recipients; ``over``: in place of the
    network.
    """
    look = _Look(config, signer=signer, clock=clock, keys=keys)
    try:
        async with broker(config, signer=signer, clock=clock, opens=False, timeouts=_TIMEOUTS, over=over) as api:
            await look.at_the_hub(api)
    except TransportError as error:
        look.note("login", error)
    await look.at_recipients()
    return Survey(look.seen, look.recipients, look.is_away)


class _Look:
    def __init__(self, config: DdhubConfig, *, signer: Signer, clock: Clock, keys: KeySource) -> None:
        self.seen: list[Seen] = []
        self.recipients: dict[str, Seen] = {}
        self.is_away = False
        self._config = config
        self._signer = signer
        self._clock = clock
        self._keys = keys
        self._wanted: Sequence[DdhubRecipient] = config.recipients or ()
        self._entered = set[str]()  # DIDs that logged in once, as far as anybody tells

    def note(self, what: str, error: AgentError, **facts: Any) -> None:
        """It is not as it should be."""
        self.is_away |= isinstance(error, TransportError) and error.reason in _AWAY
        self.seen.append(Seen(what, str(error), good=False, remedy=error.hint, facts=facts))

    # ---- the hub --------------------------------------------------------------------------------------------------

    async def at_the_hub(self, api: Broker) -> None:
        """Raises TransportError: we are not let in."""
        said = await api.enter()
        found = said.get("roles")
        roles = [role for role in found if isinstance(role, str)] if isinstance(found, list) else []
        self.seen.append(Seen("login", f"let in as {self._signer.did}"))
        await self._limits(api, roles)
        await self._topic(api)
        await self._recipients(api, roles)

    async def _limits(self, api: Broker, roles: Sequence[str]) -> None:
        """What is the first call that needs a role also tells whether ours are enough."""
        try:
            limits = await api.limits()
        except TransportError as error:
            if error.reason is Reason.PERMISSION:
                self._roles(roles, is_user=False)
            else:
                self._roles(roles, is_user=None)
                self.note("limits", error)
            return
        self._roles(roles, is_user=True)
        self.seen.append(self._judged(limits))

    def _roles(self, roles: Sequence[str], *, is_user: bool | None) -> None:
        """``is_user``: what the broker itself says; None: it said nothing."""
        lacks, lacks_to_create = rules.USER.missing(roles), rules.TOPIC_CREATOR.missing(roles)
        creates = not lacks_to_create and rules.belongs_to(self._config.topic.owner, roles)
        words = ", ".join(roles) or "none"
        remedy = ""
        if is_user is None:
            is_user = not lacks
        if not is_user:
            words += "; the broker wants another one"
            wanted = lacks[0] if lacks else rules.USER_PATTERN
            remedy = f"{_ENROL}; as the broker is shipped it is one like {wanted}, its operator knows"
        else:
            words += "; enough to send and receive"
            words += ", and to register topics" if creates else ", not to register topics (none is needed to send)"
        facts = {
            "roles": [*roles],
            "may_send_and_receive": is_user,
            "may_register_topics": creates,
            "missing_to_register_topics": lacks_to_create,
        }
        self.seen.append(Seen("roles", words, good=is_user, remedy=remedy, facts=facts))

    def _judged(self, limits: Limits) -> Seen:
        ours, theirs = self._config.max_message, limits.message
        facts = {"max_message": ours, "broker_message": theirs, "kept_ms": limits.kept}
        kept = "" if limits.kept is None else f", kept for {limits.kept / 3_600_000:g} h"
        if theirs is None:
            words = f"the broker does not say what it takes{kept}; ours are {ours} bytes at most"
            return Seen("limits", words, good=None, facts=facts)
        words = f"messages of {theirs} bytes at most{kept}; ours have {ours} at most"
        fits = max(LEAST_MESSAGE, theirs - AROUND)
        if fits < ours:
            remedy = f"lower max_message to {fits // 1024}KiB; until then the agent keeps to that by itself"
            return Seen("limits", words, good=False, remedy=remedy, facts=facts)
        return Seen("limits", words, facts=facts)

    # ---- the topic ------------------------------------------------------------------------------------------------

    async def _topic(self, api: Broker) -> None:
        wanted = self._config.topic
        facts = dict[str, Any](owner=wanted.owner, name=wanted.name, version=wanted.version)
        try:
            known = await Topics(wanted, clock=self._clock).get(api)
            found = await api.topic_version(known.id, known.version)
        except TransportError as error:
            there = ""
            if error.reason is Reason.NO_TOPIC:
                facts["there"] = await self._what_is_there(api)
                there = f" (there are: {', '.join(facts['there'][:20])})" if facts["there"] else ""
            hint = error.hint + there if error.hint else there.strip()
            self.note("topic", TransportError(str(error), hint=hint, reason=error.reason), **facts)
            return
        same = is_ours(found.schema)
        words = f"{wanted} is there ({known.id}), with our schema" if same else f"{wanted} is there ({known.id})"
        if not same:
            words += ", with a schema that is not ours and takes what we send"
        if known.schema.needs_records:
            words += "; it demands readable values"
        if known.schema.unjudged:
            words += f"; of its schema we cannot judge: {', '.join(known.schema.unjudged[:5])}"
        facts |= {"id": known.id, "schema_is_ours": same}
        self.seen.append(Seen("topic", words, facts=facts))

    async def _what_is_there(self, api: Broker) -> list[str]:
        """Versions of the topic, or names of its owner's topics: what may have been meant."""
        wanted = self._config.topic
        try:
            if found := await api.topics(owner=wanted.owner, name=wanted.name):
                return sorted(await api.versions(found[0].id))
            return await api.names(wanted.owner)
        except TransportError:
            return []

    # ---- recipients -----------------------------------------------------------------------------------------------

    async def _recipients(self, api: Broker, roles: Sequence[str]) -> None:
        listed = Recipients(self._config, own=self._signer.did, clock=self._clock)
        try:
            self._wanted = await listed.get(api)
        except TransportError as error:
            self.note("recipients", error)
            return
        self._entered = set(listed.holders)
        users = rules.of_users(roles) or roles
        if users and any(each.did not in self._entered for each in self._wanted):
            with suppress(TransportError):
                self._entered.update(await api.dids_with_roles(users))

    async def at_recipients(self) -> None:
        """Raises nothing."""
        limit = anyio.CapacityLimiter(_AT_ONCE)
        found = dict[str, Seen]()

        async def look(recipient: DdhubRecipient) -> None:
            async with limit:
                found[recipient.did] = await self._recipient(recipient)

        async with anyio.create_task_group() as tasks:
            for each in self._wanted:
                tasks.start_soon(look, each)
        self.recipients = {each.did: found[each.did] for each in self._wanted}

    async def _recipient(self, recipient: DdhubRecipient) -> Seen:
        did = recipient.did
        entered = True if did in self._entered else None
        facts = {"did": did, "padding": recipient.padding, "has_key": True, "logged_in": entered}
        try:
            (await self._keys.keys(did)).to_encrypt(did)
        except TransportError as error:
            facts["has_key"] = None
            words = f"whether it has an RSA key is not known: {error}"
            return Seen(did, words, good=False, remedy=error.hint, facts=facts)
        except AgentError as error:
            return Seen(did, str(error), good=False, remedy=error.hint, facts=facts | {"has_key": False})
        words = f"its RSA key is there ({_PADDINGS[recipient.padding]})"
        if entered:
            return Seen(did, f"{words}, and it has logged in", facts=facts)
        words += ", whether it has ever logged in is not known"
        return Seen(did, words, good=None, remedy="it must, once, or it has no mailbox", facts=facts)


_PADDINGS = {"oaep": "OAEP", "pkcs1v15": "PKCS#1 v1.5, for client gateways up to 1.9.1"}
