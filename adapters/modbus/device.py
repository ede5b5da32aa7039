"""Devices behind a Modbus connection: from a group's name to a sample.

``RegisterDevice`` is described by hand; ``SunSpecDevice`` says itself where its points are and with which scale
factors. Both read and decode by plans made beforehand. What is learned of a device lives in memory only and is
learned again after a restart.

A sample belongs to the points as they were when its acquisition began. If it shows that an exponent must change, its
points are null in this one sample, ``points`` says the new exponent and ``revision`` has risen when ``acquire``
returns.

A device described by hand is asked what it is (function 43/14) once over each connection, behind the first read that
it answers there: one that is off costs no second time-out, and if it falls silent, it is the question's doing. What it
said stays known until it says something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import anyio

from adapters.modbus.adu import exception_hint, exception_text
from adapters.modbus.client import GATEWAY_LOST_UNIT, Connection
from adapters.modbus.config import ModbusDevice
from adapters.modbus.decode import Counters, GroupDecoder, Source
from adapters.modbus.identification import describe, inquire
from adapters.modbus.point import ModbusPoint
from adapters.modbus.registers import NUMBER_TYPES, words
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Sample, ValueType

_MOST_BESIDE = 64  # requests: connecting, identification (9), or a walk over SunSpec models, some thirty and their data

Raw = tuple[str, int, list[int]]
"""Kind, protocol address and contents of registers that were read together."""


class Device:
    """What both kinds of device share: plans by group, and the reading."""

    def __init__(self, config: ModbusDevice, groups: Mapping[str, Sequence[str]], connection: Connection) -> None:
        self.revision = 0
        self.keep_raw = False
        self.raw: list[Raw] = []
        """The registers of the last acquisition, if ``keep_raw`` is set; requests that failed are not among them."""
        self._config = config
        self._limits = config.limits()
        self._connection = connection
        self._over: int | None = None  # the connection over which the device said where its points are
        self._silent = False  # the unit fell silent in the last acquisition
        self._info = DeviceInfo(config.id, "modbus", config.asset)
        self._chosen = {group: _chosen(config, group, names) for group, names in groups.items()}
        self._points: dict[str, tuple[Point, ...]] = {}
        self._decoders: dict[str, GroupDecoder] = {}
        self._counters: dict[str, Counters] = {}

    @property
    def info(self) -> DeviceInfo:
        """Id, asset, and what the device says of itself as far as it was read."""
        return self._info

    def points(self, group: str) -> tuple[Point, ...]:
        """The points of a group, in the order of a sample's values."""
        return self._points[group]

    @property
    def most_requests(self) -> int:
        """So many requests does one acquisition make at most; connecting counts as one."""
        return max((len(decoder.requests) for decoder in self._decoders.values()), default=0) + _MOST_BESIDE

    async def prepare(self) -> None:
        """Learn from the device what must be known to read it. Raises AcquisitionError."""

    async def acquire(self, group: str) -> Sample:
        """Read a group once. Raises AcquisitionError if no point yielded even a quality code."""
        decoder = self._decoders[group]
        answers = await self._connection.read(self._config.unit, decoder.requests, over=self._over)
        if self.keep_raw:
            pairs = zip(decoder.requests, answers.blocks, strict=True)
            self.raw = [(each.kind, each.address, words(block)) for each, block in pairs if isinstance(block, bytes)]
        if self._decoders[group] is not decoder:
            # Another group's sample changed the exponents: it would be unclear to which plan these values belong.
            raise AcquisitionError(
                Cause.DECODE_ERROR, "the points changed meanwhile; values follow with the next cycle"
            )
        blocks = answers.blocks
        self._silent = bool(blocks) and (blocks[-1] is None or blocks[-1] in GATEWAY_LOST_UNIT)
        if blocks and isinstance(blocks[0], int) and not any(isinstance(block, bytes) for block in blocks):
            hint = exception_hint(blocks[0])
            raise AcquisitionError(Cause.DEVICE_EXCEPTION, exception_text(blocks[0]), hint=hint)
        decoded = self._counters[group].judge(decoder.decode(blocks))
        if decoded.moved:
            self._adopt(decoded.moved)
        return Sample(answers.started, answers.ended, decoded.values, decoded.quality)

    def _adopt(self, moved: Mapping[int, int]) -> None:
        """Take over new exponents, by the address of their scale factor."""

    def _plan(self, group: str, points: tuple[Point, ...], sources: Sequence[Source | None]) -> None:
        """Put a group's plan in force unless it is the one that is."""
        known = self._decoders.get(group)
        if known is None or known.sources != tuple(sources):
            self._decoders[group] = GroupDecoder(sources, self._limits)
            self._counters[group] = Counters(sources)
        self._points[group] = points


class RegisterDevice(Device):
    """A device whose registers are described by hand."""

    def __init__(self, config: ModbusDevice, groups: Mapping[str, Sequence[str]], connection: Connection) -> None:
        super().__init__(config, groups, connection)
        for group, chosen in self._chosen.items():
            pairs = [self._describe(point) for point in chosen if isinstance(point, ModbusPoint)]
            self._plan(group, tuple(point for point, _ in pairs), [source for _, source in pairs])
        self._unknown = self._info
        self._asks = config.identification == "auto"
        self._asked: int | None = None  # over which connection
        self._asking = anyio.Lock()

    async def prepare(self) -> None:
        """Learn what the device says of itself, so that the first plan has it. Raises AcquisitionError."""
        if self._settled or not self._decoders:
            return
        request = next(iter(self._decoders.values())).requests[0]
        answer = (await self._connection.read(self._config.unit, [request])).blocks[0]
        if answer not in GATEWAY_LOST_UNIT:
            await self._identify()

    async def acquire(self, group: str) -> Sample:
        """Read a group once, and end there if another device than the known one answers."""
        before = self._info
        sample = await super().acquire(group)
        if not self._settled and not self._silent:
            await self._identify()
        if self._info is not before and before != self._unknown:
            text = "another device answers, or another firmware; values follow with the next cycle"
            raise AcquisitionError(Cause.LINK_DOWN, text)
        return sample

    @property
    def _settled(self) -> bool:
        """There is nothing to ask over this connection."""
        return not self._asks or self._asked == self._connection.number

    async def _identify(self) -> None:
        """Ask the device what it is. Raises AcquisitionError if it could not be asked."""
        async with self._asking:
            if self._settled:
                return
            over, steps = self._connection.number, inquire()
            texts: Mapping[int, bytes] | None = None
            try:
                question = next(steps)
                while True:
                    answer = await self._connection.identify(self._config.unit, question, over=over)
                    question = steps.send(answer)
            except StopIteration as end:
                texts = end.value
            self._asked = over
            info = self._info if texts is None else describe(self._unknown, texts)
            if info == self._info:
                return
            if self._info != self._unknown:  # another device's counters begin anew
                self._counters = {group: Counters(each.sources) for group, each in self._decoders.items()}
            self._info = info
            self.revision += 1

    def _describe(self, point: ModbusPoint) -> tuple[Point, Source]:
        registers = self._config.registers(point)
        word_order, byte_order = (
            point.word_order or self._config.word_order,
            point.byte_order or self._config.byte_order,
        )
        value_type = NUMBER_TYPES[point.type].value_type
        multiplier, exponent = point.decimal_scale
        low, high = point.range or (None, None)
        text = f"{registers} {point.type}"
        if word_order == "little" and registers.count > 1:
            text += " little words"
        if byte_order == "little":
            text += " little bytes"
        is_float = value_type is ValueType.FLOAT
        source = Source(
            registers=registers,
            type=point.type,
            little_words=word_order == "little",
            little_bytes=byte_order == "little",
            multiplier=point.scale if is_float else multiplier,
            low=low if is_float else _bound(low, exponent, up=True),
            high=high if is_float else _bound(high, exponent, up=False),
            counter=point.counter,
        )
        return Point(point.name, point.unit, value_type, 0 if is_float else exponent, text, dict(point.values)), source


def _chosen(config: ModbusDevice, group: str, names: Sequence[str]) -> list[str | ModbusPoint]:
    by_name = dict(zip(config.point_names(group), config.groups[group].points, strict=True))
    return [by_name[name] for name in names]


def _bound(value: float | None, exponent: int, *, up: bool) -> int | float | None:
    """A bound of the quantity as a bound of the integer that stands for it, exactly as the bound was written."""
    if value is None or math.isinf(value):
        return value
    exact = Fraction(str(value)) / Fraction(10) ** exponent
    return math.ceil(exact) if up else math.floor(exact)
