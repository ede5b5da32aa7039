"""The Modbus part of a configuration, as models: all problems are found at once, each at the key where it is.

Imports neither the client nor, unless a device speaks SunSpec, its model definitions: checking a configuration stays
cheap. What later versions will understand is refused by name; nothing is accepted and ignored. Errors read "what is
wrong; what to do".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WrapValidator,
    model_validator,
)

from adapters.modbus.addresses import register, register_range
from adapters.modbus.point import ModbusPoint, Order
from adapters.modbus.registers import NUMBER_TYPES
from adapters.modbus.requests import Limits, Registers
from agent.fields import NOT_YET, SOME, Id, IdKey, NotYet, Problems, Table, Text, distinct, judge_host
from agent.units import Duration, Phase, S, duration_range

_SCHEME = "modbus+tcp"
_LATER_SCHEMES = ("modbus+tls", "modbus+rtu", "modbus+rtu+tcp", "modbus+ascii", "modbus+udp")
_MOST_GAP = 124  # with one register before it, as much as a request can span
_SUNSPEC_POINT = re.compile(r"([0-9]{1,5})\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)


def _url(text: str) -> str:
    _host_port(text)
    return text


def _host_port(text: str) -> tuple[str, int]:
    remedy = 'write "modbus+tcp://HOST" or "modbus+tcp://HOST:PORT"'
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"the address cannot be understood; {remedy}") from None
    if parts.scheme in _LATER_SCHEMES:
        raise ValueError(f'"{parts.scheme}" is {NOT_YET}; use "{_SCHEME}", through a gateway if need be')
    if parts.scheme != _SCHEME or not host:
        raise ValueError(f"this is no address of a Modbus device; {remedy}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None or port == 0:
        raise ValueError(f"there is more in the address than host and port; {remedy}")
    judge_host(host)
    return host, 502 if port is None else port


def _never(value: Any) -> Any:
    if value != "never":
        raise ValueError(f'any idle_close but "never" is {NOT_YET}; write "never" or remove it')
    return value


def _forbidden(value: Any) -> Any:
    if isinstance(value, str):
        register_range(value, one_based=False)
        return value
    raise ValueError('expected a range of registers in quotes; write "40100-40119" or "holding:99-118"')


def _point(value: Any, _: Any) -> Any:
    """A union of text and table whose errors are those of the table, without the union's own place in the path."""
    if isinstance(value, str | ModbusPoint):
        return value
    if isinstance(value, dict):
        return ModbusPoint.model_validate(value)
    remedy = 'write { name = "W", at = "40021", type = "int32" }, or "103.W" on a SunSpec device'
    raise ValueError(f"a point is a table, or a text on a SunSpec device; {remedy}")


def _name(point: str | ModbusPoint) -> str:
    return point.rpartition(".")[2] if isinstance(point, str) else point.name


class ModbusConnection(Table):
    """A connection: one wire, which its devices share. ``timeout`` and ``request_pause`` in ns."""

    url: Annotated[str, AfterValidator(_url)]
    timeout: Annotated[Duration, duration_range("10ms", "60s")] = S
    request_pause: Annotated[Duration, duration_range("0s", "10s")] = 0
    idle_close: Annotated[Literal["never"], BeforeValidator(_never)] = "never"

    @property
    def host(self) -> str:
        """Name or address of the device or gateway."""
        return _host_port(self.url)[0]

    @property
    def port(self) -> int:
        """TCP port."""
        return _host_port(self.url)[1]


AnyPoint = Annotated[str | ModbusPoint, WrapValidator(_point)]


class ModbusGroup(Table):
    """Points that are read together, every ``every`` ns, ``phase`` ns (or "auto") behind the marks of UTC."""

    every: Annotated[Duration, duration_range("1ms", "365d")]
    points: Annotated[tuple[AnyPoint, ...], Field(strict=False), SOME, distinct(_name)]
    phase: Phase = 0
    sample: NotYet = None
    aggregate: NotYet = None


class SunSpecSearch(Table):
    """Where the SunSpec marker is looked for, in this order."""

    base: Annotated[
        tuple[Annotated[int, Field(ge=0, le=65_530)], ...],
        Field(max_length=8, strict=False),
        SOME,
    ] = (40_000, 50_000, 0)


class ModbusDevice(Table):
    """A device: its registers by hand, or by SunSpec's models if there is ``sunspec``."""

    id: Id
    connection: Id
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    asset: Text | None = None
    addresses: Literal["1-based", "0-based"] = "1-based"
    word_order: Order = "big"
    byte_order: Order = "big"
    max_registers: Annotated[int, Field(ge=1, le=125)] = 125
    max_gap: Annotated[int, Field(ge=0, le=_MOST_GAP)] = 8
    forbidden: Annotated[tuple[Annotated[str, BeforeValidator(_forbidden)], ...], Field(strict=False)] = ()
    sunspec: SunSpecSearch | None = None
    identification: Literal["auto", "off"] = "auto"
    groups: Annotated[dict[IdKey, ModbusGroup], Field(min_length=1)]
    profile: NotYet = None

    judged_together: ClassVar = frozenset({"addresses", "max_registers", "forbidden", "sunspec", "groups"})

    def point_names(self, group: str) -> tuple[str, ...]:
        """The names of a group's points: ``103.W`` is named ``W``."""
        return tuple(_name(point) for point in self.groups[group].points)

    def limits(self) -> Limits:
        """How the device may be read."""
        forbidden = tuple(register_range(text, one_based=self.one_based) for text in self.forbidden)
        return Limits(self.max_registers, self.max_gap, forbidden)

    def registers(self, point: ModbusPoint) -> Registers:
        """Where a point is, in addresses of the protocol. Raises ValueError."""
        kind, address = register(point.at, one_based=self.one_based)
        found = Registers(kind, address, NUMBER_TYPES[point.type].count)
        if found.end > 0x10000:
            raise ValueError(
                f'a {point.type} at "{point.at}" ends behind the last register; correct the register or the type'
            )
        return found

    @property
    def one_based(self) -> bool:
        """Whether registers written with five or six digits count from 1."""
        return self.addresses == "1-based"

    @model_validator(mode="before")
    @classmethod
    def _span(cls, raw: Any) -> Any:
        """A SunSpec map is readable without holes, so unless ``max_gap`` is given a request spans whatever it can."""
        return {"max_gap": _MOST_GAP, **raw} if isinstance(raw, dict) and "sunspec" in raw else raw

    @model_validator(mode="after")
    def _judge(self) -> ModbusDevice:
        """What concerns several keys; each problem at the key that must change."""
        problems = Problems()
        if self.sunspec is not None:
            for key in ("addresses", "word_order", "byte_order", "forbidden", "identification"):
                if key in self.model_fields_set:
                    problems.add(f"{key} has no effect on a SunSpec device; remove it", key)
        forbidden: list[Registers] = []
        for index, text in enumerate(self.forbidden):
            try:
                forbidden.append(register_range(text, one_based=self.one_based))
            except ValueError as error:
                problems.add(str(error), "forbidden", index)
        for name, group in self.groups.items():
            for index, point in enumerate(group.points):
                for key, problem in self._point_problems(point, forbidden):
                    problems.add(problem, "groups", name, "points", index, *([key] if key else []))
        problems.raise_any("ModbusDevice")
        return self

    def _point_problems(self, point: str | ModbusPoint, forbidden: list[Registers]) -> Iterator[tuple[str, str]]:
        """Key within the point ("": the point itself) and text of each problem."""
        if isinstance(point, str):
            remedy = 'add sunspec = {} or write { name = "W", at = "40021", type = "int32" }'
            problem = f"the device has no sunspec; {remedy}" if self.sunspec is None else self._sunspec_problem(point)
            if problem:
                yield "", problem
            return
        if self.sunspec is not None:
            yield (
                "",
                'a register by hand on a SunSpec device; write model and point, such as "103.W", or remove sunspec',
            )
            return
        try:
            registers = self.registers(point)
        except ValueError as error:
            yield "at", str(error)
        else:
            if registers.count > self.max_registers:
                yield "type", f"{point.type} needs {registers.count} registers in one request; raise max_registers"
            if any(map(registers.overlaps, forbidden)):
                yield "at", "the point lies in a forbidden range; remove it or change the range"

    def _sunspec_problem(self, text: str) -> str | None:
        from adapters.modbus import definitions  # reads files, so only for a device that needs them

        try:
            model, name = sunspec_point(text)
            count = definitions.point(model, name).count
        except ValueError as error:
            return str(error)
        if count > self.max_registers:
            return f"{text} needs {count} registers in one request; raise max_registers"
        return None


def sunspec_point(text: str) -> tuple[int, str]:
    """Model and point of ``103.W``. Raises ValueError."""
    match = _SUNSPEC_POINT.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text[:40]}" is no SunSpec point; write model, dot and point, such as "103.W"')
    return int(match[1]), match[2]
