"""Two adapters as a third party would write them; docs/adapters.md shows this file and explains it.

Their devices speak lines of text over TCP. ``Counter`` asks: ``hello DEVICE`` is answered with the device's model,
``read DEVICE POINT`` with a number. ``Ticker`` is told: behind ``subscribe`` come lines ``NUMBER DEVICE POINT VALUE``,
each of which is acknowledged with ``ack NUMBER``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated

import anyio
from pydantic import BaseModel, ConfigDict, Field

from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Quality, Sample, Value, ValueType
from agent.ports import Arrival, Clock, DeviceSelection
from agent.units import Duration, S, duration_range

# ---- configuration ----------------------------------------------------------------------------------------------


class Table(BaseModel):
    """A table: unknown keys are errors, nothing is converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Connection(Table):
    """Where the other end is, and how long, in ns, it may take to answer."""

    host: str
    port: Annotated[int, Field(ge=1, le=65_535)]
    timeout: Annotated[Duration, duration_range("10ms", "60s")] = S


Points = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class CounterGroup(Table):
    """Points that are read together, every ``every`` ns."""

    every: Annotated[Duration, duration_range("1ms", "365d")]
    points: Points


class CounterTable(Table):
    """A device that is asked."""

    id: str
    connection: str
    groups: Annotated[dict[str, CounterGroup], Field(min_length=1)]

    def point_names(self, group: str) -> tuple[str, ...]:
        """The names of a group's points."""
        return self.groups[group].points


class TickerGroup(Table):
    """Points that a message tells: an event-driven group, which has no ``every``."""

    points: Points


class TickerTable(Table):
    """A device that tells."""

    id: str
    connection: str
    groups: Annotated[dict[str, TickerGroup], Field(min_length=1)]

    def point_names(self, group: str) -> tuple[str, ...]:
        """The names of a group's points."""
        return self.groups[group].points


# ---- the wire ---------------------------------------------------------------------------------------------------


class Line:
    """A TCP connection on which lines travel. Raises AcquisitionError with LINK_DOWN once it is lost or closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connection: Connection) -> Line:
        """Connect once, within the time-out."""
        try:
            with anyio.fail_after(connection.timeout / S):
                return cls(*await asyncio.open_connection(connection.host, connection.port))
        except OSError as error:  # TimeoutError is one, too
            hint = f"is {connection.host} port {connection.port} reachable from here?"
            raise AcquisitionError(Cause.LINK_DOWN, "cannot connect", hint=hint) from error

    def send(self, line: str) -> None:
        """Send a line; what does not arrive is missed when the next one is received."""
        self._writer.write(line.encode() + b"\n")

    async def receive(self) -> bytes:
        """The next line, without its end. Cancelling it loses nothing."""
        try:
            return (await self._reader.readuntil(b"\n"))[:-1]
        except asyncio.LimitOverrunError as error:
            self.close()  # where the next line would begin is unknown
            raise AcquisitionError(Cause.DECODE_ERROR, "a line has no end") from error
        except (OSError, EOFError) as error:
            self.close()
            raise AcquisitionError(Cause.LINK_DOWN, "the connection was lost") from error

    def close(self) -> None:
        """Let go of the connection at once; who waits for a line learns it."""
        self._writer.transport.abort()


# ---- asking: a PolledAdapter ------------------------------------------------------------------------------------


class Counter:
    """One connection, and the devices behind it that are asked for their values."""

    connection_model = Connection
    device_model = CounterTable

    def __init__(self, name: str, connection: Connection, devices: Sequence[DeviceSelection], clock: Clock) -> None:
        self.devices = tuple(CounterDevice(self, each, clock) for each in devices)
        self.made = 0  # how many connections were made
        self._connection = connection
        self._wire = anyio.Lock()  # one question at a time
        self._line: Line | None = None
        self._closed = False

    async def connect(self) -> int:
        """Which connection there is now, counted from 1. Raises AcquisitionError."""
        async with self._wire:
            await self._open()
            return self.made

    async def ask(self, question: str, *, over: int) -> str:
        """The answer to a question over that connection and no other. Raises AcquisitionError."""
        async with self._wire:
            line = await self._open()
            if self.made != over:
                raise AcquisitionError(Cause.LINK_DOWN, "the connection was lost and made anew")
            answered = False
            try:
                line.send(question)
                with anyio.fail_after(self._connection.timeout / S):
                    answer = await line.receive()
                answered = True
            except TimeoutError as error:
                raise AcquisitionError(Cause.DEVICE_TIMEOUT, "no answer") from error
            finally:
                if not answered:  # also when it was cancelled: a late answer must not be taken for the next one
                    line.close()
                    self._line = None
        try:
            return answer.decode("ascii")
        except UnicodeDecodeError as error:
            raise AcquisitionError(Cause.DECODE_ERROR, "the answer is not text") from error

    async def _open(self) -> Line:
        if not self._closed and self._line is None:
            self._line = await Line.open(self._connection)
            self.made += 1
        if self._closed or self._line is None:
            await self.close()
            raise AcquisitionError(Cause.LINK_DOWN, "closed by the agent")
        return self._line

    async def close(self) -> None:
        """Let go of the connection; who waits for an answer gets LINK_DOWN."""
        self._closed = True
        if self._line is not None:
            self._line.close()
            self._line = None


class CounterDevice:
    """A device that is asked; behind each new connection there may be another one, so it is asked anew what it is."""

    def __init__(self, adapter: Counter, selection: DeviceSelection, clock: Clock) -> None:
        self.revision = 0
        self._adapter = adapter
        self._clock = clock
        self._info = DeviceInfo(selection.config.id, "counter")
        self._points = {
            group: tuple(Point(name, None, ValueType.INTEGER) for name in names)
            for group, names in selection.groups.items()
        }
        self._known_over = 0

    @property
    def info(self) -> DeviceInfo:
        """Id, and the model once it was asked."""
        return self._info

    def points(self, group: str) -> tuple[Point, ...]:
        """Whole numbers without a unit."""
        return self._points[group]

    async def prepare(self) -> None:
        """Ask the device what it is."""
        over = await self._adapter.connect()
        model = await self._adapter.ask(f"hello {self._info.id}", over=over)
        info = replace(self._info, model="".join(filter(str.isprintable, model))[:64] or None)
        if info != self._info:
            self._info = info
            self.revision += 1
        self._known_over = over

    async def acquire(self, group: str) -> Sample:
        """Ask for each point; what is no number is null, with a quality code."""
        before = self.revision
        if await self._adapter.connect() != self._known_over:
            await self.prepare()
        if self.revision != before:
            raise AcquisitionError(Cause.LINK_DOWN, "the device was just identified; values follow with the next cycle")
        started = self._clock.boot()
        values: list[Value] = []
        for point in self._points[group]:
            answer = await self._adapter.ask(f"read {self._info.id} {point.name}", over=self._known_over)
            values.append(number(answer))
        return Sample(started, self._clock.boot(), tuple(values), quality(values))


def number(text: str) -> int | None:
    """A whole number of at most 18 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def quality(values: Sequence[Value]) -> tuple[tuple[int, Quality], ...]:
    """Every null says why it is one."""
    return tuple((index, Quality.BAD_ENCODING) for index, value in enumerate(values) if value is None)


# ---- being told: an EventAdapter --------------------------------------------------------------------------------


class Ticker:
    """One connection, and the devices behind it that tell their values when they like."""

    connection_model = Connection
    device_model = TickerTable

    def __init__(self, name: str, connection: Connection, devices: Sequence[DeviceSelection], clock: Clock) -> None:
        self.devices = tuple(TickerDevice(each) for each in devices)
        self._connection = connection
        self._clock = clock
        self._lines: set[Line] = set()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Ticks]:
        """Connect and subscribe; ``welcome`` is the answer, ``welcome back`` if the source kept what came meanwhile."""
        line = await Line.open(self._connection)
        self._lines.add(line)
        try:
            line.send("subscribe")
            try:
                with anyio.fail_after(self._connection.timeout / S):
                    answer = await line.receive()
            except TimeoutError as error:
                raise AcquisitionError(Cause.LINK_DOWN, "the source does not answer") from error
            concerns = {
                (device.info.id, point.name): (index, group)
                for index, device in enumerate(self.devices)
                for group, points in device.groups.items()
                for point in points
            }
            yield Ticks(line, concerns, self._clock, resumed=answer == b"welcome back")
        finally:
            line.close()
            self._lines.discard(line)

    async def close(self) -> None:
        """Let go of everything."""
        for line in self._lines:
            line.close()


class Ticks:
    """A subscription, from connected to lost."""

    window = None  # the source waits for no acknowledgement

    def __init__(
        self, line: Line, concerns: Mapping[tuple[str, str], tuple[int, str]], clock: Clock, *, resumed: bool
    ) -> None:
        self.resumed = resumed
        self.since = self.heard = clock.boot()
        self._line = line
        self._concerns = concerns
        self._clock = clock

    async def receive(self) -> Sequence[Arrival]:
        """The next line."""
        line = await self._line.receive()
        self.heard = self._clock.boot()
        words = line.decode("ascii", "replace").split(" ")
        found = self._concerns.get((words[1], words[2])) if len(words) == 4 else None
        return [Arrival(words, self.heard, () if found is None else (found,))]

    def acknowledge(self, arrival: Arrival) -> None:
        """It is on disk. asyncio drops what is written to a connection that is gone."""
        self._line.send(f"ack {arrival.message[0]}")


class TickerDevice:
    """A device that tells; each message is about one point, and its other points have no value in that cycle."""

    silent_after = 60 * S

    def __init__(self, selection: DeviceSelection) -> None:
        self.revision = 0
        self.info = DeviceInfo(selection.config.id, "ticker")
        self.groups = {
            group: tuple(Point(name, None, ValueType.INTEGER) for name in names)
            for group, names in selection.groups.items()
        }

    def points(self, group: str) -> tuple[Point, ...]:
        """Whole numbers without a unit."""
        return self.groups[group]

    def decode(self, group: str, arrival: Arrival) -> Sample:
        """The value of the point that the message is about. Anybody may have sent anything."""
        _, _, name, text = arrival.message
        value = number(text)
        if value is None:
            raise AcquisitionError(Cause.DECODE_ERROR, "the value is no whole number")
        values = [value if point.name == name else None for point in self.groups[group]]
        missing = [(index, Quality.NO_VALUE) for index, each in enumerate(values) if each is None]
        return Sample(arrival.received, arrival.received, tuple(values), tuple(missing))
