"""Settling: what the broker's last message on our subject tells of the outbox (docs/outbox.md, rule 5).

The broker may lack records before its last one: it refused or dropped them, and they were to be sent again. But when
the last was sent, all that lie ``WINDOW`` records before it were settled. Nothing is kept on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from anyio import to_thread

from agent.delivery.flight import WINDOW
from agent.errors import EvidenceError, TransportError, Verdict
from agent.evidence.envelope import Keys, message_id, unpack
from agent.evidence.record import link_of, plan_of
from agent.model import Link
from agent.ports import Last, Store, Stored, TransportSession

_READ = 256 * 1024  # bytes read from the outbox at a time

log = logging.getLogger(__name__)


class Settling:
    """Holds the outbox of a channel against the broker. ``topic``: where the channel writes, as its plans state it."""

    def __init__(self, *, channel: str, store: Store, did: str, topic: str, elsewhere: Callable[[bytes], bool]) -> None:
        """``elsewhere``: whether a stream of ours is one that the outbox never held."""
        self._elsewhere = elsewhere
        self._channel = channel
        self._store = store
        self._did = did
        self._topic = topic
        self._keys = Keys()
        self._told_unreadable = self._told_empty = False

    async def position(self, session: TransportSession) -> int | None:
        """The position up to which all is settled, higher or lower than the store has it; None: as the store has it.

        Raises TransportError, OutboxError.
        """
        try:
            last = await session.last()
        except TransportError as error:
            if error.verdict is not Verdict.REJECT:
                raise
            if not self._told_unreadable:
                self._told_unreadable = True
                log.warning(
                    "broker does not let us read back, message ids alone tell repeats channel=%s error=%s",
                    self._channel,
                    error,
                )
            return None
        if last is None:
            await self._empty()
            return None
        self._told_empty = False
        link = self._ours(last)
        return None if link is None else await self._held_against(last, link)

    async def _empty(self) -> None:
        """Nothing is there. What was acknowledged has expired or was removed on purpose, as far as anybody can tell:
        it is not sent again unasked.
        """
        acked = self._store.acked
        if not acked or self._told_empty:
            return
        self._told_empty = True
        if await to_thread.run_sync(self._topic_at, acked) == self._topic:
            log.warning(
                "broker holds nothing of what it acknowledged, which is not sent again channel=%s hint=%s",
                self._channel,
                "it expired, was removed, or the stream is a new one; `edge-agent outbox resend` sends what is held",
            )

    def _ours(self, last: Last) -> Link | None:
        """The last message as a record of ours; None, and a line in the log, if it is none."""
        try:
            opened, link = unpack(last.envelope), link_of(last.envelope)
            self._keys.check(opened)
        except EvidenceError as error:
            log.error("last message on our subject is no evidence channel=%s error=%s", self._channel, error)
            return None
        if opened.did != self._did:
            log.error(
                "last message on our subject is of another signer channel=%s signer=%s", self._channel, opened.did
            )
            return None
        return link

    async def _held_against(self, last: Last, link: Link) -> int | None:
        if self._elsewhere(link.stream):
            return None
        position, sure = await to_thread.run_sync(self._place, link)
        record = message_id(link)
        if position is None and await to_thread.run_sync(self._was_overwritten, link):
            log.info(
                "broker's last record was overwritten here, going on behind it channel=%s record=%s",
                self._channel,
                record,
            )
            return None
        if position is None:
            log.error(
                "broker holds a record that this outbox does not: it was overwritten here, the outbox was rolled back, "
                "or the key has two users channel=%s record=%s",
                self._channel,
                record,
            )
            return None
        if position >= self._store.acked:
            return max(sure, self._store.acked)
        if last.resent:  # it says nothing of how far delivery had come
            return None
        if await to_thread.run_sync(self._is_near, position):
            log.info(
                "broker's last record is an earlier one, sending again from there channel=%s from=%s",
                self._channel,
                record,
            )
            return sure
        if await to_thread.run_sync(self._moved_since, position):
            log.info(
                "channel wrote elsewhere meanwhile, what was acknowledged there is not sent again channel=%s from=%s",
                self._channel,
                record,
            )
            return None
        log.error(
            "broker lost acknowledged records, sending them again channel=%s from=%s",
            self._channel,
            record,
        )
        return sure

    # ---- what the outbox holds; blocks ---------------------------------------------------------------------------

    def _between(self, after: int, up_to: int) -> Iterator[Stored]:
        while after < up_to and (stored := self._store.read(after, max_bytes=_READ)):
            yield from (record for record in stored if record.pos <= up_to)
            after = stored[-1].pos

    def _was_overwritten(self, link: Link) -> bool:
        """Whether the oldest record held is a later one of the same run."""
        oldest = self._store.read(0, max_bytes=1)[:1]
        return any(held.link.stream == link.stream and held.link.seq > link.seq for held in oldest)

    def _place(self, link: Link) -> tuple[int | None, int]:
        """Where the outbox holds this very record (None: nowhere, or another one with its number), and the position of
        the record ``WINDOW`` before it (0: not held).
        """
        position = self._store.find(link.stream, link.seq)
        if position is None:
            return None, 0
        back = 2 * WINDOW
        while True:
            after = max(0, position - back)
            found = list(self._between(after, position))
            if not found or found[-1].link.digest != link.digest:
                return None, 0
            if len(found) > WINDOW:
                return position, found[-WINDOW - 1].pos
            if after == 0:
                return position, 0
            back *= 4  # marks lie between

    def _is_near(self, position: int) -> bool:
        """Whether fewer than ``WINDOW`` records lie behind a position up to the acknowledged one: the record there may
        have been sent again, and stored, after all of them.
        """
        return all(count < WINDOW for count, _ in enumerate(self._between(position, self._store.acked), 1))

    def _moved_since(self, position: int) -> bool:
        """Whether any plan behind a position names another topic: then records may have been acknowledged there."""
        plans = (plan_of(record.envelope) for record in self._between(position, self._store.next_pos - 1))
        return any(plan is not None and plan.topic != self._topic for plan in plans)

    def _topic_at(self, position: int) -> str | None:
        """The topic of the last plan up to a position."""
        back = 2 * WINDOW
        while True:
            after = max(0, position - back)
            plans = [plan for record in self._between(after, position) if (plan := plan_of(record.envelope))]
            if plans or after == 0:
                return plans[-1].topic if plans else None
            back *= 4
