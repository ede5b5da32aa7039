"""The publisher: delivers what the outbox holds, in order, until the broker has acknowledged it.

At least once: nothing is sent further than ``WINDOW`` records ahead of the oldest that is not acknowledged, so that a
consumer never sees them further out of order. On a time-out it goes back to that one; on a lost connection it connects
again with back-off and first settles against the last record that the broker holds. It never touches a record's bytes.
A crash loses nothing: what was not known to be acknowledged is sent again under the same id.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import anyio
from anyio import to_thread

from agent.errors import EvidenceError, TransportError, Verdict, only
from agent.evidence.envelope import Keys, message_id, unpack
from agent.evidence.record import link_of
from agent.model import Link
from agent.ports import Clock, Message, Store, Stored, Transport, TransportSession

WINDOW = 64  # records from the oldest unacknowledged one on
ACK_WITHIN = 5_000_000_000  # ns
_READ = 256 * 1024  # bytes read from the outbox at a time
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # s

log = logging.getLogger(__name__)


class Publisher:
    """Drains an outbox into a transport."""

    def __init__(
        self,
        *,
        channel: str,
        store: Store,
        transport: Transport,
        did: str,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._store = store
        self._transport = transport
        self._did = did
        self._clock = clock
        self.on_connected: Callable[[], None] = lambda: None
        self._news = anyio.Event()
        self._moved = anyio.Event()  # what is acknowledged
        self._keys = Keys()
        self._read_back_refused = False
        self.connected = False  # and delivers
        self.trouble = ""  # why not, as it was last found
        self.acknowledged = 0  # records since start

    def notify(self) -> None:
        """There are new records in the outbox."""
        self._news.set()

    async def drained(self, *, up_to: int | None = None) -> None:
        """Return once everything in the outbox is acknowledged, or all up to a position."""
        while self._store.pending.records and (up_to is None or self._store.acked < up_to):
            if self._moved.is_set():
                self._moved = anyio.Event()
            await self._moved.wait()

    async def run(self) -> None:
        """Deliver until cancelled; every failure of the broker or the way to it ends in another try."""
        pause, failed = _FIRST_PAUSE, ""
        while True:
            try:
                await self._session()
                continue
            except (TransportError, BaseExceptionGroup) as raised:
                error = only(TransportError, raised)
            if self.connected:
                pause, failed, self.connected = _FIRST_PAUSE, "", False
            if str(error) != failed:  # one line per change of state, not one per try
                log.warning("broker away channel=%s error=%s hint=%s", self._channel, error, error.hint or "none")
                failed = self.trouble = str(error)
            await anyio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _session(self) -> None:
        async with self._transport.session() as session:
            await self._settle(session)
            if not self._store.pending.records:
                self._delivers()
            self.on_connected()
            flight = _Flight(self._store.acked)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, session, flight)
                tasks.start_soon(self._watch, flight)
                await self._send(session, flight)

    def _delivers(self) -> None:
        """A connection is worth its name once a record has come through, or none waits."""
        if not self.connected:
            self.connected, self.trouble = True, ""
            log.info("broker connected channel=%s waiting=%d", self._channel, self._store.pending.records)

    async def _settle(self, session: TransportSession) -> None:
        """Hold the outbox against the broker's last record of ours (docs/outbox.md, rule 5).

        The broker may lack records before its last one: it refused or dropped them, and they were to be sent again. But
        when the last was sent, all that lie ``WINDOW`` records before it were acknowledged: settled is up to there.
        """
        try:
            last = await session.last()
        except TransportError as error:
            if error.verdict is not Verdict.REJECT:
                raise
            if not self._read_back_refused:
                log.warning(
                    "broker does not let us read back, message ids alone tell repeats channel=%s error=%s",
                    self._channel,
                    error,
                )
                self._read_back_refused = True
            return
        if last is None:
            return
        try:
            opened, link = unpack(last), link_of(last)
            self._keys.check(opened)
        except EvidenceError as error:
            log.error("last message on our subject is no evidence channel=%s error=%s", self._channel, error)
            return
        if opened.did != self._did:
            log.error(
                "last message on our subject is of another signer channel=%s signer=%s", self._channel, opened.did
            )
            return
        position, sure = await to_thread.run_sync(self._place, link)
        if position is None and await to_thread.run_sync(self._was_overwritten, link):
            log.info(
                "broker's last record was overwritten here, going on behind it channel=%s record=%s",
                self._channel,
                message_id(link),
            )
        elif position is None:
            log.error(
                "broker holds a record that this outbox does not: it was overwritten here, the outbox was rolled back, "
                "or the key has two users channel=%s record=%s",
                self._channel,
                message_id(link),
            )
        elif position < self._store.acked:
            if await to_thread.run_sync(self._is_near, position):
                log.info(
                    "broker's last record is an earlier one, sending again from there channel=%s from=%s",
                    self._channel,
                    message_id(link),
                )
            else:
                log.error(
                    "broker lost acknowledged records, sending them again channel=%s from=%s",
                    self._channel,
                    message_id(link),
                )
            self._acknowledged_up_to(sure)
        elif sure > self._store.acked:
            self._acknowledged_up_to(sure)

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
            cursor = after = max(0, position - back)
            found: list[Stored] = []
            while cursor < position and (stored := self._store.read(cursor, max_bytes=_READ)):
                found += [record for record in stored if record.pos <= position]
                cursor = stored[-1].pos
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
        acked, count = self._store.acked, 0
        while position < acked and count < WINDOW and (stored := self._store.read(position, max_bytes=_READ)):
            count += sum(1 for record in stored if record.pos <= acked)
            position = stored[-1].pos
        return count < WINDOW

    async def _send(self, session: TransportSession, flight: _Flight) -> None:
        while True:
            news, turn = anyio.Event(), flight.turn
            self._news = news
            stored = self._store.fresh(flight.cursor)
            if not stored:
                stored = await to_thread.run_sync(lambda: self._store.read(flight.cursor, max_bytes=_READ))
            if not stored:
                await news.wait()
                continue
            for record in stored:
                while flight.full and flight.turn == turn:
                    flight.moved = anyio.Event()
                    await flight.moved.wait()
                if flight.turn != turn:
                    break  # went back meanwhile: what was read is not what comes next
                if flight.take(record.pos, overdue=self._clock.boot() + ACK_WITHIN):
                    await session.send(Message(record.pos, message_id(record.link), record.envelope))
                else:
                    self._advance(flight)
            if flight.turn == turn and sum(len(record.envelope) for record in stored) < _READ // 2:
                await news.wait()  # there was no more when this was read: do not ask the disk again

    async def _receive(self, session: TransportSession, flight: _Flight) -> None:
        async for ack in session.acks():
            if ack.error is not None:
                raise ack.error
            flight.answer(ack.token)
            self._advance(flight)
        raise TransportError("the connection ended")

    def _advance(self, flight: _Flight) -> None:
        """Settle what is acknowledged without a hole."""
        if count := flight.advance():
            self.acknowledged += count
            self._delivers()
            self._acknowledged_up_to(flight.acked)

    def _acknowledged_up_to(self, position: int) -> None:
        self._store.settle(position)
        self._moved.set()

    async def _watch(self, flight: _Flight) -> None:
        """Go back to the oldest record whose answer is overdue; twice without any answer, and the connection is given
        up.
        """
        missed = answers = 0
        while True:
            await self._clock.sleep_until(flight.overdue or self._clock.boot() + ACK_WITHIN)
            if flight.answers != answers:
                missed, answers = 0, flight.answers
            if flight.overdue is None or flight.overdue > self._clock.boot():
                continue
            missed += 1
            if missed > 1:
                raise TransportError("the server does not acknowledge")
            log.warning("acknowledgement overdue, going back channel=%s records=%d", self._channel, flight.waiting)
            flight.go_back()
            self._news.set()


class _Flight:
    """What is on its way in one session: positions behind the acknowledged one in the order in which they were read.

    Positions are not consecutive: marks lie between them, and what is overwritten is skipped.
    """

    def __init__(self, acked: int) -> None:
        self.acked = acked
        self.cursor = acked  # last position taken up
        self.turn = 0
        self.answers = 0
        self.answered: set[int] = set()  # ahead of the oldest that is not
        self.moved = anyio.Event()
        self._latest = acked  # position ever taken up
        self._order: dict[int, int] = {}  # boot time when the answer is overdue

    @property
    def full(self) -> bool:
        """Whether the next record would be too far ahead of the oldest."""
        return len(self._order) >= WINDOW

    @property
    def waiting(self) -> int:
        """Records without an answer."""
        return sum(1 for position in self._order if position not in self.answered)

    @property
    def overdue(self) -> int | None:
        """When the oldest answer is overdue; the oldest position never has one."""
        return next(iter(self._order.values()), None)

    def take(self, position: int, *, overdue: int) -> bool:
        """Take up the next record; returns whether it must be sent, or was answered before going back."""
        self.cursor = position
        self._latest = max(self._latest, position)
        self._order[position] = overdue
        return position not in self.answered

    def answer(self, position: int) -> None:
        """The broker has it; also one that came too late, or a second time."""
        if self.acked < position <= self._latest and position not in self.answered:
            self.answered.add(position)
            self.answers += 1

    def advance(self) -> int:
        """Move ``acked`` over all that follows it and is answered; returns how many records that were."""
        count = 0
        while (position := next(iter(self._order), 0)) in self.answered:
            del self._order[position]
            self.acked = position
            count += 1
        if count:
            self.answered = {position for position in self.answered if position > self.acked}
            self.moved.set()
        return count

    def go_back(self) -> None:
        """Take up again all that is not acknowledged."""
        self.cursor = self.acked
        self.turn += 1
        self._order.clear()
        self.moved.set()
