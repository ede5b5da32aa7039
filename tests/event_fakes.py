"""A fake source of messages and the way to it; keeps the promises of ``EventAdapter`` and its parts.

It delivers at least once: what was not acknowledged when a connection broke comes again, marked, before anything new.
Numbers are sent as they are; a device's only group has the points ``n`` and ``x``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
from anyio.lowlevel import checkpoint

from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Quality, Sample, ValueType
from agent.ports import Arrival, EventDevice
from tests.runs import FakeClock

EVENT_POINTS = (Point("n", None, ValueType.INTEGER), Point("x", "W", ValueType.INTEGER, -1))


@dataclass(slots=True)
class Sent:
    """A message of the source: ``n`` counts them; ``x`` None: it is junk; ``device`` None: it is for nobody."""

    n: int
    x: int | None
    device: int | None = 0
    again: bool = False


@dataclass(slots=True)
class FakeEventDevice:
    """Decodes what the source sent; ``exponents`` by message number: from there on the plan must have it."""

    id: str = "battery"
    silent_after: int | None = None
    exponents: dict[int, int] = field(default_factory=dict)
    revision: int = 0
    decoded: list[int] = field(default_factory=list)
    _points: tuple[Point, ...] = EVENT_POINTS

    @property
    def info(self) -> DeviceInfo:
        """Who it is."""
        return DeviceInfo(self.id, "fake")

    def points(self, group: str) -> tuple[Point, ...]:
        """As they are now."""
        return self._points

    def decode(self, group: str, arrival: Arrival) -> Sample:
        """The values of a message."""
        sent: Sent = arrival.message
        self.decoded.append(sent.n)
        if sent.x is None:
            raise AcquisitionError(Cause.DECODE_ERROR, f"message {sent.n} is junk")
        exponent = self.exponents.get(sent.n)
        if exponent is not None and self._points[1].exponent != exponent:
            self._points = (self._points[0], replace(self._points[1], exponent=exponent))
            self.revision += 1
        quality = ((0, Quality.POSSIBLE_DUPLICATE), (1, Quality.POSSIBLE_DUPLICATE)) if sent.again else ()
        return Sample(arrival.received, arrival.received, (sent.n, sent.x), quality, source_time=sent.n * 1000)


class FakeSource:
    """A connection to the source and what is on its way; implements the ``EventAdapter`` port."""

    def __init__(
        self,
        clock: FakeClock,
        *devices: FakeEventDevice,
        window: int | None = None,
        keeps: bool = True,
        owed: bool = True,
    ) -> None:
        self.clock = clock
        self.devices: Sequence[EventDevice] = devices or (FakeEventDevice(),)
        self.window = window
        self.keeps = keeps  # what comes while nobody listens
        self.owed = owed  # whether it waits for acknowledgements
        self.sent: list[Sent] = []
        self.acknowledged: list[int] = []
        self.unheard: list[int] = []  # nobody listened, and they were not kept
        self.down = False
        self.tries = 0
        self.closed = False
        self._queue: deque[Sent] = deque()
        self._session: FakeSubscription | None = None
        self._known = False

    def send(self, x: int | None = 0, *, device: int | None = 0) -> Sent:
        """A message comes."""
        message = Sent(len(self.sent), x, device)
        self.sent.append(message)
        if self._session is not None or (self.keeps and self._known):
            self._queue.append(message)
            self._deliver()
        else:
            self.unheard.append(message.n)
        return message

    def crowd(self) -> None:
        """The connection is about to take no more until something is acknowledged."""
        if self._session is not None:
            self._session.window = 1

    def drop(self) -> None:
        """The connection breaks."""
        session, self._session = self._session, None
        if session is not None:
            again = [replace(message, again=True) for message in session.unacknowledged.values()]
            self._queue.extendleft(reversed(again))
            session.lose()

    def _deliver(self) -> None:
        session = self._session
        while session is not None and self._queue:
            if self.window is not None and len(session.unacknowledged) >= self.window:
                return
            session.take(self._queue.popleft())

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[FakeSubscription]:
        """Connect."""
        self.tries += 1
        await anyio.sleep(0.001)
        if self.down:
            raise AcquisitionError(Cause.LINK_DOWN, "nobody listens")
        resumed, self._known = self._known and self.keeps, True
        session = self._session = FakeSubscription(self, resumed=resumed)
        self._deliver()
        try:
            yield session
        finally:
            if self._session is session:
                self.drop()

    def settled(self, message: Sent) -> None:
        """It was acknowledged."""
        self.acknowledged.append(message.n)
        self._deliver()

    async def close(self) -> None:
        """Let go."""
        self.closed = True
        await checkpoint()


class FakeSubscription:
    """One connection."""

    def __init__(self, source: FakeSource, *, resumed: bool) -> None:
        self.window = source.window
        self.resumed = resumed
        self.since = source.clock.boot()
        self.heard = source.clock.boot()
        self.unacknowledged: dict[int, Sent] = {}
        self._source = source
        self._arrived: list[Arrival] = []
        self._lost = False
        self._news = anyio.Event()

    def take(self, message: Sent) -> None:
        """A message comes over this connection."""
        if self._source.owed:
            self.unacknowledged[message.n] = message
        self.heard = self._source.clock.boot()
        concerns = () if message.device is None else ((message.device, "state"),)
        self._arrived.append(Arrival(message, self.heard, concerns, self._source.owed))
        self._news.set()

    def lose(self) -> None:
        """It breaks."""
        self._lost = True
        self._news.set()

    async def receive(self) -> Sequence[Arrival]:
        """What came."""
        while True:
            if self._arrived:
                arrived, self._arrived = self._arrived, []
                await checkpoint()
                return arrived
            if self._lost:
                raise AcquisitionError(Cause.LINK_DOWN, "connection lost")
            self._news = anyio.Event()
            await self._news.wait()

    def acknowledge(self, arrival: Arrival) -> None:
        """It is on disk."""
        message: Sent = arrival.message
        if not self._lost:
            assert next(iter(self.unacknowledged)) == message.n, "not in the order of arrival"
            del self.unacknowledged[message.n]
            self._source.settled(message)
