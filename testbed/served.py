"""What a site served: its journal (testbed/site.py writes it), and the values that the registers in it stand for.

Decodes on its own, sharing nothing with the adapters, so that it can judge them. Numbers are exact: a decimal for
integers with their scale factor, a float for floats.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from testbed.journal import Json as Json
from testbed.journal import json_lines

# Format and, of SunSpec points, the value that says "not implemented" (SunSpec Device Information Model, 4.2).
_TYPES: dict[str, tuple[str, int | None]] = {
    "int16": (">h", -0x8000),
    "uint16": (">H", 0xFFFF),
    "enum16": (">H", 0xFFFF),
    "bitfield16": (">H", 0xFFFF),
    "acc16": (">H", 0),
    "int32": (">i", -0x80000000),
    "uint32": (">I", 0xFFFFFFFF),
    "enum32": (">I", 0xFFFFFFFF),
    "bitfield32": (">I", 0xFFFFFFFF),
    "acc32": (">I", 0),
    "int64": (">q", -0x8000000000000000),
    "uint64": (">Q", 0xFFFFFFFFFFFFFFFF),
    "acc64": (">Q", 0),
    "float32": (">f", None),
    "float64": (">d", None),
}
_SCALE_NOT_IMPLEMENTED = -0x8000
_SCALES = range(-10, 11)
_LONGEST = 125  # registers in a request


@dataclass(frozen=True, slots=True)
class Read:
    """One answered request: registers from protocol address ``address`` on, made at ``boot`` (ns of CLOCK_BOOTTIME)."""

    boot: int
    address: int
    registers: bytes

    @property
    def end(self) -> int:
        """The address behind the last register."""
        return self.address + len(self.registers) // 2

    def holds(self, address: int, size: int) -> bytes | None:
        """``size`` registers from ``address`` on; None if the request did not span them."""
        start = 2 * (address - self.address)
        return self.registers[start : start + 2 * size] if 0 <= start <= len(self.registers) - 2 * size else None


@dataclass(frozen=True, slots=True)
class Footprint:
    """How requests for a group's points look: they begin and end where one of its points (with its scale factor) does.

    What a SunSpec device is asked when its models are looked for does not.
    """

    firsts: frozenset[int]
    ends: frozenset[int]

    def fits(self, read: Read) -> bool:
        """Whether a request could be one for the group."""
        return read.address in self.firsts and read.end in self.ends

    def __or__(self, other: Footprint) -> Footprint:
        return Footprint(self.firsts | other.firsts, self.ends | other.ends)


@dataclass(slots=True)
class Unit:
    """A Modbus unit: its points by name, and the requests that it answered, in order of time."""

    points: dict[str, Json] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)

    def between(self, first: int, last: int) -> Sequence[Read]:
        """The requests answered from ``first`` to ``last`` (boot times, both included)."""
        begin = bisect_left(self.reads, first, key=_boot)
        return self.reads[begin : bisect_right(self.reads, last, lo=begin, key=_boot)]

    def judge(self, name: str, value: object, *, quality: str | None, exponent: int, reads: Iterable[Read]) -> str:
        """What is wrong with a delivered value, given the requests of its acquisition; "" if it is right.

        ``exponent`` is the plan's: a value read with another scale factor may be null.
        """
        point = self.points.get(name)
        if point is None:
            return "" if value is None and quality == "not_implemented" else "the device has no such point"
        shown = _shown(point, list(reads))
        if not shown:
            missing = value is None and quality == "device_exception"
            return "" if missing else "no request of this acquisition was answered with its registers"
        for number, scale in shown:
            if number is None:
                right = value is None and quality == "not_implemented"
            elif value is None:
                odd = scale is not None and (scale not in _SCALES or scale != exponent)
                right = quality == "bad_encoding" and (odd or (isinstance(number, float) and math.isinf(number)))
            elif isinstance(value, bool) or not isinstance(value, (int, float, str)):
                right = False
            else:
                right = (float(value) if isinstance(number, float) else Decimal(str(value))) == number
            if right:
                return ""
        return "served was " + ", ".join("not implemented" if number is None else str(number) for number, _ in shown)

    def footprint(self, names: Iterable[str]) -> Footprint:
        """How requests for these points look."""
        spans = [span for name in names if name in self.points for span in _spans(self.points[name])]
        return Footprint(frozenset(first for first, _ in spans), frozenset(end for _, end in spans))


def _boot(read: Read) -> int:
    return read.boot


def _spans(point: Json) -> list[tuple[int, int]]:
    """What is read whole: the value with its scale factor, or each alone if no request can hold both."""
    own = (point["address"], point["address"] + point["size"])
    if point["sf_address"] is None:
        return [own]
    scale = (point["sf_address"], point["sf_address"] + 1)
    both = (min(own[0], scale[0]), max(own[1], scale[1]))
    return [both] if both[1] - both[0] <= _LONGEST else [own, scale]


def _shown(point: Json, reads: Sequence[Read]) -> list[tuple[Decimal | float | None, int | None]]:
    """What the reads that span a point say: its number, None for not implemented; and its scale factor."""
    if point["type"] not in _TYPES:
        raise ValueError(f"{point['name']}: values of type {point['type']} cannot be judged yet")
    form, missing = _TYPES[point["type"]]
    shown: list[tuple[Decimal | float | None, int | None]] = []
    for read in reads:
        raw = read.holds(point["address"], point["size"])
        if raw is None:
            continue
        (number,) = struct.unpack(form, raw)
        if isinstance(number, float):
            shown.append((None if math.isnan(number) else number, None))
            continue
        nothing = point["model"] is not None and number == missing  # plain registers have no such value
        if point["sf_address"] is None:
            shown.append((None if nothing else Decimal(number), None))
            continue
        for other in (read, *reads):  # a scale factor far away comes with another request
            raw = other.holds(point["sf_address"], 1)
            if raw is not None:
                (scale,) = struct.unpack(">h", raw)
                nothing = nothing or scale == _SCALE_NOT_IMPLEMENTED
                shown.append((None if nothing else Decimal(number).scaleb(scale), scale))
                if other is read:
                    break
    return shown


class Journal:
    """A site's journal: the units by number."""

    def __init__(self, lines: Iterable[Json]) -> None:
        self.units: dict[int, Unit] = {}
        for line in lines:
            if "map" in line:
                unit = self.units.setdefault(line["map"]["unit"], Unit())
                unit.points = {point["name"]: point for point in line["map"]["points"]}
            elif "registers" in line:
                read = Read(line["t_boot"], line["address"], bytes.fromhex(line["registers"]))
                self.units.setdefault(line["unit"], Unit()).reads.append(read)
        for unit in self.units.values():
            unit.reads.sort(key=_boot)

    @classmethod
    def read(cls, *paths: Path) -> Journal:
        """Read the journal of one site, which may have been started several times."""
        return cls(line for path in paths for line in json_lines(path))
