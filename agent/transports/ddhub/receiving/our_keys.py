"""Our RSA keys while we receive: read again when something does not open, and held against the one that is published.

Others encrypt for the key in our DID document. If that is none of ours, nothing that they send can be read: it is told
once, and once more when it has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import anyio
from anyio import to_thread

from agent.errors import SignerError, TransportError
from agent.ports import Clock
from agent.transports.ddhub.content.cipher import RsaKey
from agent.transports.ddhub.keys.key_source import KeySource
from agent.transports.ddhub.keys.participant import ParticipantError, same_rsa, short
from agent.transports.ddhub.keys.rsa_key import public_pem

S = 1_000_000_000
_READ_EVERY = 60 * S  # at most
_LOOK_EVERY = 3600 * S  # as client gateways look at documents
_LOOK_AGAIN = 600 * S  # when nobody could be asked
_PATIENCE = 10.0  # s: a look holds up what comes
_PUBLISH = "publish ours with `edge-agent ddhub keys --send`"

log = logging.getLogger(__name__)


class OurKeys:
    """``private``: the keys, the newest first. ``version`` grows when they change."""

    def __init__(
        self,
        private: Sequence[RsaKey],
        *,
        read: Callable[[], Sequence[RsaKey]],
        did: str,
        document: KeySource,
        may_lack_us: bool,
        clock: Clock,
    ) -> None:
        """``read`` reads them again; it blocks, and may raise SignerError. ``document``: tells what is published for
        ``did``, which is ours; ``may_lack_us``: it need not know us, as an operator's file of the others.
        """
        self.private = private
        self.version = 0
        self._read = read
        self._did = did
        self._document = document
        self._may_lack_us = may_lack_us
        self._clock = clock
        self._read_at = clock.boot()
        self._look_at = clock.boot()
        self._failure = ""
        self._told: str | None = None  # the key that is published and none of ours; "": none is published

    async def renew(self) -> bool:
        """Read them again, at most once a minute; whether they are others than before."""
        if self._clock.boot() < self._read_at + _READ_EVERY:
            return False
        return await self._renew()

    async def _renew(self) -> bool:
        self._read_at = self._clock.boot()
        try:
            found = await to_thread.run_sync(self._read)
        except SignerError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning(
                    "our RSA keys cannot be read again, and those at hand are used error=%s hint=%s", error, error.hint
                )
            return False
        self._failure = ""
        if not found or [each.n for each in found] == [each.n for each in self.private]:
            return False
        self.private, self.version = found, self.version + 1
        return True

    async def look(self) -> None:
        """Tell if the key for which others encrypt is none of ours. Looks once an hour; raises nothing for what it
        finds.
        """
        now = self._clock.boot()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN
        with anyio.move_on_after(_PATIENCE):
            try:
                published = (await self._document.keys(self._did)).to_encrypt(self._did)
            except ParticipantError:
                published = ""
            except TransportError:
                return
            self._look_at = now + _LOOK_EVERY
            await self._judge(published)

    async def _judge(self, published: str) -> None:
        is_good = self._holds(published) if published else self._may_lack_us
        if not is_good and published and await self._renew():  # made and published meanwhile
            is_good = self._holds(published)
        if is_good:
            if self._told is not None:
                log.info("others encrypt for an RSA key of ours again")
            self._told = None
        elif published != self._told:
            self._told = published
            if published:
                log.warning(
                    "others encrypt for an RSA key that we do not hold, and nothing that they send can be read "
                    "did=%s published=%s hint=%s, or bring the file of that key into the folder of ours",
                    self._did,
                    short(published),
                    _PUBLISH,
                )
            else:
                log.warning(
                    "no RSA key is published for us, and nobody can encrypt for us did=%s hint=%s", self._did, _PUBLISH
                )

    def _holds(self, published: str) -> bool:
        return any(same_rsa(published, public_pem(each)) for each in self.private)
