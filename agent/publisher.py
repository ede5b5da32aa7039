"""The publisher: delivers what the outbox holds, in order, until the broker has acknowledged it.

At least once: up to ``WINDOW`` records are in flight; on a time-out it goes back to the oldest that is not
acknowledged, on a lost connection it connects again with back-off and first settles against the last record that the
broker holds. It never touches a record's bytes. A crash loses nothing: what was not known to be acknowledged is sent
again under the same id.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Callable

import anyio
from anyio import to_thread

from agent.envelope import message_id, unpack
from agent.errors import EvidenceError, TransportError, Verdict
from agent.ports import Clock, Message, Store, Transport, TransportSession
from agent.record import link_of

WINDOW = 64  # records in flight
ACK_WITHIN = 5_000_000_000  # ns
_READ = 256 * 1024  # bytes read from the outbox at a time
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # s

log = logging.getLogger(__name__)


class Publisher:
    """Drains an outbox into a transport."""

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        did: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._transport = transport
        self._did = did
        self._clock = clock
        self.on_connected: Callable[[], None] = lambda: None
        self._news = anyio.Event()
        self._idle = anyio.Event()
        self._read_back_refused = False
        self.connected = False
        self.acknowledged = 0  # records since start

    def notify(self) -> None:
        """There are new records in the outbox."""
        self._news.set()

    async def drained(self) -> None:
        """Return once everything in the outbox is acknowledged."""
        while self._store.pending.records:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def run(self) -> None:
        """Deliver until cancelled; every failure of the broker or the way to it ends in another try."""
        pause, failed = _FIRST_PAUSE, ""
        while True:
            before = self.acknowledged
            try:
                await self._session()
                continue
            except (TransportError, BaseExceptionGroup) as raised:
                error = _transport_error(raised)
            if self.acknowledged > before:
                pause, failed = _FIRST_PAUSE, ""
            if str(error) != failed:  # one line per change of state, not one per try
                log.warning("broker away error=%s hint=%s", error, error.hint or "none")
                failed = str(error)
            await anyio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _session(self) -> None:
        async with self._transport.session() as session:
            await self._settle(session)
            self.connected = True
            log.info("broker connected waiting=%d", self._store.pending.records)
            self.on_connected()
            flight = _Flight(self._store.acked)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._receive, session, flight)
                    tasks.start_soon(self._watch, flight)
                    await self._send(session, flight)
            finally:
                self.connected = False

    async def _settle(self, session: TransportSession) -> None:
        """Hold the outbox against the broker's last record of ours (docs/outbox.md, rule 5)."""
        try:
            last = await session.last()
        except TransportError as error:
            if error.verdict is not Verdict.REJECT:
                raise
            if not self._read_back_refused:
                log.warning("broker does not let us read back, message ids alone tell repeats error=%s", error)
                self._read_back_refused = True
            return
        if last is None:
            return
        try:
            signer, link = unpack(last).did, link_of(last)
        except EvidenceError as error:
            log.error("last message on our subject is no evidence error=%s", error)
            return
        if signer != self._did:
            log.error("last message on our subject is of another signer signer=%s", signer)
            return
        position = await to_thread.run_sync(self._store.find, link.stream, link.seq)
        if position is None:
            log.error(
                "broker holds a record that this outbox does not: it was overwritten here, the outbox was rolled back, "
                "or the key has two users record=%s",
                message_id(link),
            )
        elif position != self._store.acked:
            if position < self._store.acked:
                log.error("broker lost acknowledged records, sending them again from=%s", message_id(link))
            self._store.settle(position)

    async def _send(self, session: TransportSession, flight: _Flight) -> None:
        while True:
            news = self._news = anyio.Event()
            stored = await to_thread.run_sync(lambda: self._store.read(flight.cursor, max_bytes=_READ))
            if not stored:
                await news.wait()
                continue
            turn = flight.turn
            for record in stored:
                while len(flight.deadlines) >= WINDOW:
                    flight.moved = anyio.Event()
                    await flight.moved.wait()
                if flight.turn != turn:
                    break  # went back meanwhile: what was read is not what comes next
                flight.cursor = record.pos
                if record.pos not in flight.ahead:
                    flight.deadlines[record.pos] = self._clock.boot() + ACK_WITHIN
                    await session.send(Message(record.pos, message_id(record.link), record.envelope))

    async def _receive(self, session: TransportSession, flight: _Flight) -> None:
        async for ack in session.acks():
            if ack.error is not None:
                raise ack.error
            contiguous = flight.acknowledge(ack.token)
            if contiguous is not None:
                self.acknowledged += 1
                self._store.settle(contiguous)
                if not self._store.pending.records:
                    self._idle.set()

    async def _watch(self, flight: _Flight) -> None:
        """Go back to the oldest record whose answer is overdue; twice in a row, and the connection is given up."""
        missed = 0
        while True:
            oldest = next(iter(flight.deadlines.items()), None)
            await self._clock.sleep_until(oldest[1] if oldest else self._clock.boot() + ACK_WITHIN)
            if oldest is None or oldest[0] not in flight.deadlines or flight.deadlines[oldest[0]] > self._clock.boot():
                missed = 0
                continue
            missed += 1
            if missed > 1:
                raise TransportError("the server does not acknowledge")
            log.warning("acknowledgement overdue, going back records=%d", len(flight.deadlines))
            flight.go_back()
            self._news.set()


def _transport_error(raised: BaseException) -> TransportError:
    """The transport's error in what a session raised; anything else goes on up."""
    if isinstance(raised, TransportError):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        found, others = raised.split(TransportError)
        if found is not None and others is None:
            return _transport_error(found.exceptions[0])
    raise raised


class _Flight:
    """What is in flight: positions sent and not answered, and answers ahead of the oldest of them."""

    def __init__(self, acked: int) -> None:
        self.acked = acked
        self.cursor = acked  # last position sent
        self.turn = 0
        self.deadlines: OrderedDict[int, int] = OrderedDict()
        self.ahead: set[int] = set()
        self.moved = anyio.Event()

    def acknowledge(self, position: int) -> int | None:
        """Note an answer; returns the highest position up to which all are answered, if that moved."""
        if self.deadlines.pop(position, None) is None:
            return None
        self.moved.set()
        self.ahead.add(position)
        floor = next(iter(self.deadlines), None)
        done = [p for p in self.ahead if floor is None or p < floor]
        if not done:
            return None
        self.acked = max(done)
        self.ahead.difference_update(done)
        return self.acked

    def go_back(self) -> None:
        """Send again all that is not answered."""
        self.cursor = self.acked
        self.turn += 1
        self.deadlines.clear()
        self.moved.set()
