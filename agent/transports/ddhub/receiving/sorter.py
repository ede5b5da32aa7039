"""Sorting what came from a Data Hub: handed over, parked, refused, given up (the table in consumer.py).

Keeps what it parks and refuses in the mailbox, and tells each message once in the log. What it hands over is in
nobody's books until the caller has it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from anyio import to_thread

from agent.errors import TransportError
from agent.ports import Clock
from agent.printable import printable
from agent.transports.ddhub.answers import ReceivedMessage
from agent.transports.ddhub.keys.key_source import RenewedKeySource
from agent.transports.ddhub.keys.participant import ParticipantError
from agent.transports.ddhub.receiving.delivery import Delivery, Parked, Refused, Why, is_encrypted, opened
from agent.transports.ddhub.receiving.mailbox import Mailbox, ParkedMessage
from agent.transports.ddhub.receiving.our_keys import OurKeys

S = 1_000_000_000
KEPT = 25 * 3600 * S  # ns; the broker keeps 24 h
_AGAIN = 60 * S  # until parked messages are tried again
_MOST_AT_ONCE = 32  # of those that were parked: a mailbox holds more than fits into memory
_DAY = 86_400 * S
_NO_ROOM = "there is no more room for messages that cannot be opened"
_TOO_LONG = "it could not be opened for 25 h; `outbox resend` of its sender brings the records"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A message and what it comes to; ``tried``: how many keys."""

    message: ReceivedMessage
    outcome: Delivery | Parked | Refused
    tried: int = 0

    def is_parked(self, why: Why | None) -> bool:
        return isinstance(self.outcome, Parked) and self.outcome.why is why


class Sorter:
    """Of one topic and set of senders. Raises MailboxError."""

    def __init__(
        self,
        *,
        mailbox: Mailbox,
        client_id: str,
        topic_id: str,
        senders: Collection[str],
        keys: RenewedKeySource,
        ours: OurKeys,
        clock: Clock,
        counts: Counter[str],
    ) -> None:
        self._mailbox = mailbox
        self._client_id = client_id
        self._topic_id = topic_id
        self._senders = senders
        self._keys = keys
        self._ours = ours
        self._clock = clock
        self._tried_with: int | None = None  # version of our keys with which all that was parked was tried
        self._tried_at: int | None = None
        self._latest: tuple[int, int] | None = None  # the broker's time, and ours of boot when it was seen
        self._counts = counts

    async def fresh(self, messages: Sequence[ReceivedMessage]) -> list[Delivery]:
        """What is to be handed over of messages that are new."""
        return await self._sort(messages)

    async def parked(self, *, without: Collection[str]) -> list[Delivery]:
        """What is to be handed over of messages that were parked, but for some that were already."""
        waiting = await to_thread.run_sync(self._mailbox.parked, self._topic_id, self._senders)
        if not waiting:
            return []
        now = self._clock.boot()
        due = self._tried_at is None or now >= self._tried_at + _AGAIN
        if due:
            self._tried_at = now
            if any(each.why is Why.KEY and each.tried for each in waiting):  # it takes a while to read them
                await self._ours.renew()
        others, self._tried_with = self._ours.version != self._tried_with, self._ours.version
        found: list[Delivery] = []
        for each in waiting:
            if each.id in without or not (each.has_new_key or (others and each.tried if each.why is Why.KEY else due)):
                continue
            message = await to_thread.run_sync(self._mailbox.parked_message, each.id)
            if message is not None:  # one at a time: they may be large
                found += await self._sort([message], before=each.why)
            if len(found) >= _MOST_AT_ONCE:
                self._tried_at = self._tried_with = None  # the next round goes on
                break
        return found

    def lack_keys(self, messages: Iterable[ReceivedMessage]) -> bool:
        """Whether no key has come for one of them. Blocks."""
        return any(
            is_encrypted(each) and not self._mailbox.wrapped(each.sender, each.gateway_id)
            for each in messages
            if each.sender in self._senders and each.topic_id == self._topic_id
        )

    def parked_lack_keys(self) -> bool:
        """The same of those that are parked."""
        waiting = self._mailbox.parked(self._topic_id, self._senders)
        return any(each.why is Why.KEY and not each.tried and not each.has_new_key for each in waiting)

    async def expire(self, seen: int) -> None:
        """Drop what the broker has forgotten, too. ``seen``: its latest time that was just seen, 0 if none was."""
        seen = min(seen, self._clock.wall() + _DAY)  # no nonsense may let everything expire
        if seen or self._latest is None:
            latest = await to_thread.run_sync(self._mailbox.latest, seen)
            if self._latest is None or latest > self._now():
                self._latest = latest, self._clock.boot()
        expired = await to_thread.run_sync(self._mailbox.expire, self._now() - KEPT)
        self._give_up(expired.parked, _TOO_LONG)
        for sender, count in expired.unused_keys.items():
            log.info("keys are dropped whose messages never came sender=%s keys=%d", sender, count)

    def _now(self) -> int:
        """Not later than the broker's time."""
        latest, at = self._latest or (0, self._clock.boot())
        return latest + self._clock.boot() - at

    # ---- judging --------------------------------------------------------------------------------------------------

    async def _sort(self, messages: Sequence[ReceivedMessage], *, before: Why | None = None) -> list[Delivery]:
        """``before``: why they waited so far."""
        keys = {sender: await self._signature_key(sender) for sender in {each.sender for each in messages}}
        judged = await to_thread.run_sync(lambda: [self._opened(each, keys) for each in messages])
        doubtful = {each.message.sender for each in judged if each.is_parked(Why.SIGNATURE)}
        if doubtful:
            keys |= {sender: await self._signature_key(sender, anew=True) for sender in doubtful}
            judged = await to_thread.run_sync(lambda: [self._opened(each, keys) for each in messages])
        if any(each.is_parked(Why.KEY) and each.tried for each in judged) and await self._ours.renew():
            judged = await to_thread.run_sync(lambda: [self._opened(each, keys) for each in messages])
        put_away = [each for each in judged if not each.is_parked(before) or before is Why.KEY]
        given_up = await to_thread.run_sync(self._put_away, put_away)
        for each in put_away:
            self._tell(each, is_new=before is None)
        self._give_up(given_up, _NO_ROOM)
        return [each.outcome for each in judged if isinstance(each.outcome, Delivery)]

    async def _signature_key(self, sender: str, *, anew: bool = False) -> tuple[str | None, str]:
        """A sender's key, or why there is none."""
        if sender not in self._senders:
            return None, ""
        try:
            found = await (self._keys.renewed(sender) if anew else self._keys.keys(sender))
            return found.to_verify(sender), ""
        except (ParticipantError, TransportError) as error:
            return None, f"{error}; {error.hint}" if error.hint else str(error)

    def _opened(self, message: ReceivedMessage, signature_keys: Mapping[str, tuple[str | None, str]]) -> _Judged:
        if message.sender not in self._senders:
            return _Judged(message, Refused("it is of another sender"))
        if message.topic_id != self._topic_id:
            return _Judged(message, Refused("it is of another topic"))
        key, unknown = signature_keys[message.sender]
        wrapped = self._mailbox.wrapped(message.sender, message.gateway_id) if is_encrypted(message) else []
        outcome = opened(message, signature_key=key, wrapped=wrapped, private_keys=self._ours.private, unknown=unknown)
        return _Judged(message, outcome, len(wrapped))

    # ---- what was judged ------------------------------------------------------------------------------------------

    def _put_away(self, judged: Sequence[_Judged]) -> list[ParkedMessage]:
        """Returns the messages that were given up for want of room."""
        refused = [each.message for each in judged if isinstance(each.outcome, Refused)]
        self.finish(refused)
        parked = [(each.message, each.outcome.why, each.tried) for each in judged if isinstance(each.outcome, Parked)]
        return self._mailbox.park(parked, client_id=self._client_id) if parked else []

    def finish(self, messages: Iterable[ReceivedMessage | Delivery]) -> None:
        """They are done with. Blocks."""
        rows = [(each.id, each.sender, each.gateway_id, each.nanos) for each in messages]
        if rows:
            self._mailbox.finish(rows, client_id=self._client_id)

    def _tell(self, judged: _Judged, *, is_new: bool) -> None:
        which, sender = _shown(judged.message.id), _shown(judged.message.sender)
        if isinstance(judged.outcome, Parked):
            self._counts["parked"] += is_new
            why = "; ".join(filter(None, (judged.outcome.words, judged.outcome.hint)))
            log.warning("message cannot be opened yet id=%s sender=%s what=%s", which, sender, why)
        elif isinstance(judged.outcome, Refused):
            self._counts["refused"] += 1
            log.warning("message is refused id=%s sender=%s what=%s", which, sender, judged.outcome.words)
        else:
            self._counts["delivered"] += 1
            self._counts["flawed"] += bool(judged.outcome.doubts)
            for words in judged.outcome.doubts:
                log.warning("message has a flaw id=%s sender=%s what=%s", which, sender, words)

    def _give_up(self, messages: Sequence[ParkedMessage], what: str) -> None:
        for each in messages:
            self._counts["given_up"] += 1
            log.error("message is given up id=%s sender=%s what=%s", _shown(each.id), _shown(each.sender), what)


def _shown(text: str) -> str:
    return printable(text[:100])
