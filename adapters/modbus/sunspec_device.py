"""A device that speaks SunSpec: finds its models, follows its scale factors.

What it said holds for one connection: behind the next there may be another device, or another firmware, so the models
are read again before the next values. If they and the maker's data are the same, nothing changes.

Until the device was reached, its points are those of the definitions with exponent 0, so that a plan can be made
without it. A point whose model, register or scale factor the device lacks is null (not implemented) in every sample.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import anyio

from adapters.modbus import definitions, sunspec
from adapters.modbus.adu import exception_hint, exception_text
from adapters.modbus.client import Connection
from adapters.modbus.config import ModbusDevice, sunspec_point
from adapters.modbus.decode import Source
from adapters.modbus.definitions import COMMON, SUNSPEC_TYPES, PointDefinition
from adapters.modbus.device import Device
from adapters.modbus.registers import NUMBER_TYPES, words
from adapters.modbus.requests import Registers, plan
from adapters.modbus.sunspec import ModelAt
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Sample

_NOTHING_THERE = (1, 2, 3)
"""Exceptions: illegal function, illegal data address, illegal data value."""


class SunSpecDevice(Device):
    """A device that says itself where its points are."""

    def __init__(self, config: ModbusDevice, groups: Mapping[str, Sequence[str]], connection: Connection) -> None:
        super().__init__(config, groups, connection)
        self._bases: tuple[int, ...] = config.sunspec.base if config.sunspec is not None else ()
        self._names = {
            group: [sunspec_point(text) for text in chosen if isinstance(text, str)]
            for group, chosen in self._chosen.items()
        }
        self._models: Mapping[int, ModelAt] | None = None
        self._exponents: dict[int, int] = {}  # by the address of the scale factor; 0 as long as it is not known
        self._discovery = anyio.Lock()
        self._describe()

    async def prepare(self) -> None:
        """Find the models and read the scale factors, anew each time. Raises AcquisitionError."""
        async with self._discovery:
            await self._discover()

    async def acquire(self, group: str) -> Sample:
        """Read a group once; the first time over a connection find the models, and end there if that changed what the
        points are.
        """
        if self._over != self._connection.number:
            before = self.revision
            async with self._discovery:
                if self._over != self._connection.number:
                    await self._discover()
            if self.revision != before:
                text = "the device's models were just read; values follow with the next cycle"
                raise AcquisitionError(Cause.LINK_DOWN, text)
        return await super().acquire(group)

    async def _discover(self) -> None:
        """Learn models, maker and scale factors; nothing is changed unless all of it could be read."""
        wanted = {COMMON} | {model for names in self._names.values() for model, _ in names}
        over = self._connection.number
        models = await self._walk(wanted, over)
        info = DeviceInfo(self._config.id, "modbus", self._config.asset)
        if COMMON in models:
            blocks = await self._ask(sunspec.common_registers(models[COMMON], self._limits.max_registers), over)
            if not any(isinstance(block, int) for block in blocks):
                info = sunspec.describe(info, [word for block in blocks if isinstance(block, list) for word in block])
        exponents = await self._read_exponents(models, over)
        if info != self._info:
            self._decoders.clear()  # another device's counters begin anew
        elif models == self._models:
            exponents = {scale: min(now, self._exponents[scale]) for scale, now in exponents.items()}
        self._over = over
        self._models = models
        self._exponents = exponents
        if models:
            base = min(model.address for model in models.values()) - sunspec.MARKER_LENGTH
            self._bases = (base, *(each for each in self._bases if each != base))
        if self._describe() or info != self._info:
            self.revision += 1
        self._info = info

    async def _walk(self, wanted: Collection[int], over: int) -> Mapping[int, ModelAt]:
        steps = sunspec.walk(self._bases, wanted)
        request = next(steps)
        while True:
            answer = (await self._ask([request], over))[0]
            try:
                request = steps.send(answer)
            except StopIteration as end:
                models: Mapping[int, ModelAt] = end.value
                return models

    async def _read_exponents(self, models: Mapping[int, ModelAt], over: int) -> dict[int, int]:
        """What the scale factors of all chosen points say now; 0 for one that says nothing."""
        located = [_locate(models, model, name) for names in self._names.values() for model, name in names]
        scales = sorted({place[1] for place in located if place is not None and place[1] is not None}, key=str)
        requests, where = plan(scales, self._limits)
        blocks = await self._ask(requests, over)
        exponents: dict[int, int] = {}
        for scale, home in zip(scales, where, strict=True):
            block = blocks[home]
            word = 0 if isinstance(block, int) else block[scale.address - requests[home].address]
            exponent = word - 0x10000 if word & 0x8000 else word
            exponents[scale.address] = exponent if -10 <= exponent <= 10 else 0
        return exponents

    async def _ask(self, requests: Sequence[Registers], over: int) -> list[list[int] | int]:
        """Answers; an exception that says no more than that there is nothing to read is one."""
        blocks: list[list[int] | int] = []
        answers = (await self._connection.read(self._config.unit, requests, over=over)).blocks if requests else []
        for block in answers:
            if block is None:
                raise AcquisitionError(Cause.DEVICE_TIMEOUT, "no answer while the device's models were read")
            if isinstance(block, int) and block not in _NOTHING_THERE:
                hint = exception_hint(block)
                raise AcquisitionError(Cause.DEVICE_EXCEPTION, exception_text(block), hint=hint)
            blocks.append(block if isinstance(block, int) else words(block))
        return blocks

    def _adopt(self, moved: Mapping[int, int]) -> None:
        self._exponents |= moved
        if self._describe():
            self.revision += 1

    def _describe(self) -> bool:
        """Make points and plans from what is known; whether points changed."""
        changed = False
        for group, names in self._names.items():
            pairs = [self._describe_point(model, name) for model, name in names]
            points = tuple(point for point, _ in pairs)
            changed = changed or points != self._points.get(group)
            self._plan(group, points, [source for _, source in pairs])
        return changed

    def _describe_point(self, model: int, name: str) -> tuple[Point, Source | None]:
        definition = definitions.point(model, name)
        kind = SUNSPEC_TYPES[definition.type]
        value_type = NUMBER_TYPES[kind.number].value_type
        exponent = definition.scale if isinstance(definition.scale, int) else 0
        text = f"{model}.{name} {definition.type}"
        source: Source | None = None
        place = None if self._models is None else _locate(self._models, model, name)
        if place is not None:
            registers, scale = place
            text = f"{model}.{name} {registers} {definition.type}"
            if scale is not None:
                text += f" sf {scale}"
                exponent = self._exponents.get(scale.address, 0)
            source = Source(
                registers=registers,
                type=kind.number,
                sentinel=kind.sentinel,
                scale=scale,
                exponent=exponent if scale is not None else 0,
                counter=kind.counter,
            )
        return Point(name, definition.unit, value_type, exponent, text, definition.labels), source


def _locate(models: Mapping[int, ModelAt], model: int, name: str) -> tuple[Registers, Registers | None] | None:
    """Where a point and its scale factor are, None if the device lacks one of them."""
    definition = definitions.point(model, name)
    found = models.get(model)
    if found is None:
        return None
    registers = _within(found, definition)
    if registers is None or not isinstance(definition.scale, str):
        return None if registers is None else (registers, None)
    scale = _within(found, definitions.model(model)[definition.scale])
    return None if scale is None else (registers, scale)


def _within(model: ModelAt, definition: PointDefinition) -> Registers | None:
    """A definition's registers in the device, None if they are behind the end that the device states."""
    registers = Registers("holding", model.address + definition.offset, definition.count)
    return registers if registers.end <= model.end else None
