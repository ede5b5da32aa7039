"""Fakes of what lies around the policy: virtual time, a polled device, an outbox in memory, a broker.

They keep the promises of agent/ports.py. What goes wrong is scripted by the test: a function is asked for each
acquisition and each message.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from agent.delivery.flight import WINDOW
from agent.errors import AcquisitionError, OutboxError, TransportError
from agent.evidence.envelope import Link, unpack
from agent.evidence.record import decode_head
from agent.model import Cause, DeviceInfo, Kind, Point, Quality, Sample, Value, Withdrawn
from agent.outbox.backlog import Pending
from agent.ports import Ack, Last, Message, Recipient
from tests.runs import POINTS, FakeClock

MS = 1_000_000
S = 1_000_000_000

# ---- time -------------------------------------------------------------------------------------------------------


class _Waiting(selectors.DefaultSelector):
    """Where the event loop waits: instead of waiting it moves the clock, unless a worker thread is at work."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; else time passes."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if to_thread.current_default_thread_limiter().borrowed_tokens:
            ready = super().select(10)
            assert ready, "a worker thread hangs"
            return ready
        assert timeout is not None, "every task waits for something that nobody will do"
        self.clock.now += max(1, round(timeout * S))  # the event loop counts in floats
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: when every task sleeps and no worker thread is at work, time goes on to the first
    that wakes. ``clock`` shows it; all of anyio's sleeps and time-outs follow it too.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(_Waiting(self.clock))

    def time(self) -> float:
        """Seconds, for the event loop."""
        return self.clock.now / S


BACKEND = ("asyncio", {"loop_factory": VirtualLoop})  # for a test module's ``anyio_backend`` fixture


def virtual_clock() -> FakeClock:
    """The clock of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.clock


async def turns(count: int = 20) -> None:
    """Let all tasks go on as far as they can without time passing."""
    for _ in range(count):
        await checkpoint()


async def until(condition: Callable[[], object], *, within: int = 600 * S, every: int = MS) -> None:
    """Let virtual time pass until the condition holds."""
    clock = virtual_clock()
    deadline = clock.now + within
    while not condition():
        assert clock.now < deadline, "it never came to that"
        await anyio.sleep(every / S)


# ---- device -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Acquisition:
    """How one acquisition goes: takes ``took`` ns, fails with ``cause``, or leaves the device with other ``points``."""

    took: int = 0
    cause: Cause | None = None
    new_points: tuple[Point, ...] | None = None


class FakeDevice:
    """A polled device. ``script`` gives the next acquisition of a group; without one it takes no time and is good."""

    def __init__(
        self,
        clock: FakeClock,
        name: str = "pv-1",
        *,
        script: Callable[[str], Acquisition] = lambda group: Acquisition(),
        points: tuple[Point, ...] = POINTS,
    ) -> None:
        self.clock = clock
        self.script = script
        self.revision = 0
        self.acquired: list[tuple[int, str]] = []  # boot time at which each began
        self.preparing: Callable[[], float] | None = None  # s that ``prepare`` takes; may raise
        self._info = DeviceInfo(name, "fake")
        self._points = points

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

    def points(self, group: str) -> tuple[Point, ...]:
        """The same for all groups."""
        return self._points

    def change(self, points: tuple[Point, ...]) -> None:
        """From now on it has other points."""
        self._points = points
        self.revision += 1

    def become(self, info: DeviceInfo) -> None:
        """From now on it says this of itself."""
        self._info = info
        self.revision += 1

    async def prepare(self) -> None:
        """Takes as long as told."""
        if self.preparing is not None:
            await anyio.sleep(self.preparing())

    async def acquire(self, group: str) -> Sample:
        """A sample of the points as they were when it began; its first value counts the acquisitions."""
        started, points = self.clock.boot(), self._points
        self.acquired.append((started, group))
        step = self.script(group)
        if step.took:
            await self.clock.sleep_until(started + step.took)
        if self._points is not points and step.new_points is None:
            raise AcquisitionError(Cause.DECODE_ERROR, "the points changed meanwhile")
        if step.cause is not None:
            raise AcquisitionError(step.cause, f"scripted {step.cause.name.lower()}")
        values: tuple[Value, ...] = (len(self.acquired), 2304, 21.5)
        if step.new_points is not None:
            self.change(step.new_points)
            return Sample(started, self.clock.boot(), (None, *values[1:]), ((0, Quality.NO_VALUE),))
        return Sample(started, self.clock.boot(), values)


# ---- outbox -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """An evidence record in the fake outbox."""

    pos: int
    envelope: bytes
    link: Link


@dataclass(slots=True)
class _Segment:
    first_pos: int
    used: int = 0
    records: list[Held] = field(default_factory=list)


class FakeStore:
    """An outbox in memory: ``segments`` of ``segment_size`` bytes, the oldest overwritten when all are full.

    As with the real one: a segment begins with a plan, positions count marks too, and after an error every call
    raises. ``failures`` is consumed by append: "failed" (nothing is written) or "applied" (all is, but it raises).
    ``reopened`` is what a new start finds.
    """

    def __init__(self, *, segment_size: int = 1 << 20, segments: int = 4) -> None:
        self.max_envelope = segment_size // 4
        self.segment_size = segment_size
        self.max_segments = segments
        self.segments: list[_Segment] = []
        self.written: list[Held] = []  # all that was ever put on disk
        self.commits: list[tuple[int, bool]] = []  # records, new segment
        self.failures: list[str] = []
        self.lost: tuple[Withdrawn, ...] = ()
        self.before_append: Callable[[], object] = lambda: None  # called in the worker thread
        self._next = 1
        self._acked = self._acked_written = 0
        self._broken = False
        self._lock = threading.Lock()

    @property
    def acked(self) -> int:
        """Highest contiguous acknowledged position."""
        return self._acked

    @property
    def next_pos(self) -> int:
        """Position of the next record."""
        return self._next

    @property
    def pending(self) -> Pending:
        """What waits."""
        waiting = [len(held.envelope) for held in self.held() if held.pos > self._acked]
        return Pending(len(waiting), sum(waiting))

    @property
    def last(self) -> Link | None:
        """Of the last record."""
        return self.written[-1].link if self.written else None

    def held(self) -> list[Held]:
        """All that is not overwritten."""
        return [held for segment in self.segments for held in segment.records]

    def recovered(self) -> list[bytes]:
        """The newest segment's envelopes."""
        return [held.envelope for held in self.segments[-1].records] if self.segments else []

    def fits(self, size: int, records: int) -> bool:
        """Whether that much goes into the newest segment."""
        self._check()
        return bool(self.segments) and self.segments[-1].used + size + 48 * records <= self.segment_size

    def overwritten(self) -> list[Withdrawn]:
        """What the next segment would drop unacknowledged, one entry per stream."""
        self._check()
        if len(self.segments) < self.max_segments:
            return []
        ranges: dict[bytes, tuple[int, int]] = {}
        for held in self.segments[0].records:
            if held.pos > self._acked:
                first, _ = ranges.get(held.link.stream, (held.link.seq, 0))
                ranges[held.link.stream] = (first, held.link.seq)
        return [Withdrawn(stream, first, last, Cause.OVERFLOW) for stream, (first, last) in ranges.items()]

    def append(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> range:
        """Write the records."""
        self.before_append()
        self._check()
        failure = self.failures.pop(0) if self.failures else ""
        if failure != "failed":
            self._write(records, new_segment=new_segment)
        if failure:
            self._broken = True
            raise OutboxError("the disk failed")
        return range(self._next - len(records), self._next)

    def _write(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> None:
        size = sum(len(envelope) + 48 for envelope, _ in records)
        prev = self.last.digest if self.last else bytes(32)
        for envelope, link in records:
            assert link.prev == prev, "a record does not follow the one before"
            assert len(envelope) <= self.max_envelope
            prev = link.digest
        with self._lock:
            if new_segment:
                assert _is_plan(records[0][0]), "a segment begins with a plan"
                self.segments = [*self.segments, _Segment(self._next)][-self.max_segments :]
            segment = self.segments[-1]
            segment.used += size
            assert segment.used <= self.segment_size, "more than goes into a segment"
            positions = range(self._next, self._next + len(records))
            for pos, (envelope, link) in zip(positions, records, strict=True):
                held = Held(pos, envelope, link)
                segment.records.append(held)
                self.written.append(held)
            self._next = positions.stop
            self._acked_written = self._acked
            self.commits.append((len(records), new_segment))

    def mark(self) -> bool:
        """Write down what is acknowledged; takes a position."""
        moved = self._acked != self._acked_written
        if moved:
            self._next, self._acked_written = self._next + 1, self._acked
        return moved

    def fresh(self, after: int) -> list[Held]:
        """Records behind a position, if all are of the last commit."""
        self._check()
        with self._lock:
            batch = self.written[len(self.written) - self.commits[-1][0] :] if self.commits else []
            before = self.written[-len(batch) - 1].pos if len(self.written) > len(batch) else 0
            return [held for held in batch if held.pos > after] if before <= after else []

    def read(self, after: int, *, max_bytes: int) -> list[Held]:
        """Records behind a position."""
        self._check()
        found: list[Held] = []
        size = 0
        with self._lock:
            for held in self.held():
                if held.pos > after and size < max_bytes:
                    found.append(held)
                    size += len(held.envelope)
        return found

    def find(self, stream: bytes, seq: int) -> int | None:
        """The position of a record that is held."""
        self._check()
        places = [held.pos for held in self.held() if (held.link.stream, held.link.seq) == (stream, seq)]
        return places[-1] if places else None

    def settle(self, pos: int) -> None:
        """Acknowledged up to here."""
        self._check()
        assert 0 <= pos < self._next
        self._acked = pos

    def reopened(self) -> FakeStore:
        """What a new start finds: the same records, and what was acknowledged when the last was written."""
        again = FakeStore(segment_size=self.segment_size, segments=self.max_segments)
        again.segments, again.written = self.segments, self.written
        again._next = self._next
        again._acked = again._acked_written = self._acked_written
        return again

    def _check(self) -> None:
        if self._broken:
            raise OutboxError("the outbox cannot be used")


def _is_plan(envelope: bytes) -> bool:
    return bool(decode_head(unpack(envelope).payload).fields[6] == Kind.PLAN)


# ---- broker -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fate:
    """What becomes of one message. ``stored``: the broker keeps it. ``answers``: when an answer comes, in ns after it,
    and with which error; none: the answer is lost. ``lost``: the connection breaks before it, and it is not stored.
    """

    stored: bool = True
    answers: Sequence[tuple[int, TransportError | None]] = ((0, None),)
    lost: bool = False


class FakeBroker:
    """A broker and the way to it; implements the ``Transport`` port.

    ``fate`` decides about each message; ``down`` refuses connections and breaks those that stand. ``messages`` is what
    it holds in its order: one id once, as long as it is among ``remembered``.
    """

    def __init__(self, clock: FakeClock, fate: Callable[[Message], Fate] = lambda message: Fate()) -> None:
        self.max_envelope: int | None = None
        self.window = WINDOW
        self.ack_within: int | None = 5 * S
        self.reads_back = True
        self.recipients: Sequence[Recipient] = ()
        self.delivers = False  # what a session says of itself as soon as it is open
        self.clock = clock
        self.fate = fate
        self.messages: list[bytes] = []
        self.remembered: set[str] = set()
        self.last_resent = False  # the last of them was sent by order
        self.sent: list[list[Message]] = []  # by connection
        self.last_error: TransportError | None = None  # what asking for the last message answers with
        self.leaves_in = 0  # ns that a message takes to leave: a slow line
        self._down = False
        self.sessions: list[FakeSession] = []

    def down(self) -> None:
        """Go away."""
        self._down = True
        self.drop()

    def up(self) -> None:
        """Come back with all that was stored."""
        self._down = False

    def drop(self) -> None:
        """Break the connections; answers on their way are lost."""
        for session in self.sessions:
            session.lose()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[FakeSession]:
        """Connect."""
        await anyio.sleep(0.001)
        if self._down:
            raise TransportError("nobody listens")
        session = FakeSession(self)
        self.sessions.append(session)
        self.sent.append(session.sent)
        try:
            yield session
        finally:
            self.sessions.remove(session)

    def take(self, message: Message) -> None:
        """Store a message unless it is there."""
        if message.id not in self.remembered:
            self.remembered.add(message.id)
            self.messages.append(message.envelope)
            self.last_resent = message.resent


class FakeSession:
    """One connection to the fake broker."""

    def __init__(self, broker: FakeBroker) -> None:
        self.sent: list[Message] = []
        self.hastened: list[int] = []  # how many messages had been handed over when it was told to hurry
        self._broker = broker
        self._lost = False
        self._answers: list[tuple[int, int, Ack]] = []  # due, in order of sending
        self._count = 0
        self._more = anyio.Event()

    @property
    def delivers(self) -> bool:
        """As the broker was told."""
        return self._broker.delivers

    def hasten(self) -> None:
        """Nothing waits here; only noted."""
        self.hastened.append(len(self.sent))

    async def last(self) -> Last | None:
        """The last message."""
        await checkpoint()
        broker = self._broker
        if broker.last_error is not None:
            raise broker.last_error
        return Last(broker.messages[-1], resent=broker.last_resent) if broker.messages else None

    async def send(self, message: Message) -> None:
        """Hand over a message; its fate is decided now."""
        await checkpoint()
        fate = self._broker.fate(message)
        if fate.lost:
            self.lose()
        if self._lost:
            raise TransportError("connection lost while sending")
        self.sent.append(message)
        duplicate = message.id in self._broker.remembered
        if fate.stored:
            self._broker.take(message)
        for after, error in fate.answers:
            self.answer(message.token, after=after, error=error, duplicate=duplicate)
        await turns(3)  # an answer may overtake the end of sending

    async def room(self) -> None:
        """Return once what was sent has left: on a slow line not at once."""
        if self._broker.leaves_in:
            await self._broker.clock.sleep_until(self._broker.clock.now + self._broker.leaves_in)

    def answer(
        self, token: int, *, after: int = 0, error: TransportError | None = None, duplicate: bool = False
    ) -> None:
        """Have an answer come."""
        self._count += 1
        self._answers.append((self._broker.clock.now + after, self._count, Ack(token, error, duplicate)))
        self._wake()

    def lose(self) -> None:
        """The connection breaks."""
        self._lost = True
        self._wake()

    async def acks(self) -> AsyncIterator[Ack]:
        """The answers when they are due."""
        while True:
            if self._lost:
                raise TransportError("connection lost")
            self._more = anyio.Event()
            due = min(self._answers, key=lambda answer: answer[:2], default=None)
            if due is not None and due[0] <= self._broker.clock.now:
                self._answers.remove(due)
                yield due[2]
                continue
            with anyio.move_on_after(None if due is None else (due[0] - self._broker.clock.now) / S):
                await self._more.wait()

    def _wake(self) -> None:
        self._more.set()
