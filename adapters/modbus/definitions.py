"""SunSpec's model definitions: what lies where in a model, as the package pysunspec2 ships them (JSON, one file per
model).

Only its data files are read, when a model is first named; none of its code runs. Types and their "not implemented"
values: SunSpec Device Information Model Specification, table of point types. Units become those of the SenML registry
(RFC 8428, RFC 8798), else UCUM.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

HEADER = 2
"""Registers of a model's id and length; the offsets of points count from there."""

COMMON = 1
"""The model that says who made the device; every SunSpec device begins with it."""


@dataclass(frozen=True, slots=True)
class SunSpecType:
    """A numeric point type: how it lies in registers, and the value that means "not implemented" (floats: NaN)."""

    number: str
    sentinel: int | None
    counter: bool = False
    labelled: bool = False


SUNSPEC_TYPES = {
    "int16": SunSpecType("int16", -0x8000),
    "uint16": SunSpecType("uint16", 0xFFFF),
    "acc16": SunSpecType("uint16", 0, counter=True),
    "enum16": SunSpecType("uint16", 0xFFFF, labelled=True),
    "bitfield16": SunSpecType("uint16", 0xFFFF),
    "int32": SunSpecType("int32", -0x8000_0000),
    "uint32": SunSpecType("uint32", 0xFFFF_FFFF),
    "acc32": SunSpecType("uint32", 0, counter=True),
    "enum32": SunSpecType("uint32", 0xFFFF_FFFF, labelled=True),
    "bitfield32": SunSpecType("uint32", 0xFFFF_FFFF),
    "int64": SunSpecType("int64", -(1 << 63)),
    "uint64": SunSpecType("uint64", (1 << 64) - 1),
    "acc64": SunSpecType("uint64", 0, counter=True),
    "float32": SunSpecType("float32", None),
    "float64": SunSpecType("float64", None),
}

# The definitions write units in several ways; what is not here has none that a consumer could rely on.
_UNITS = {
    "A": "A", "V": "V", "W": "W", "Hz": "Hz", "VA": "VA", "var": "var", "Var": "var", "S": "S", "ohms": "Ohm",
    "Wh": "Wh", "WH": "Wh", "kWh": "kWh", "varh": "varh", "Varh": "varh", "Ah": "Ah", "AH": "Ah",
    "C": "Cel", "Secs": "s", "Sec": "s", "mSecs": "ms", "Degrees": "deg", "deg": "deg",
    "meters": "m", "mm": "mm", "HPa": "hPa", "mps": "m/s", "m/s": "m/s", "W/m2": "W/m2", "W/m^2": "W/m2",
    "bps": "bit/s", "Mbps": "Mbit/s", "cos()": "/", "PF": "/",
    "Pct": "%", "%WHRtg": "%", "WMaxPct": "%", "VNomPct": "%", "VarPct": "%",
    # UCUM: the SenML registry has none for these.
    "VAh": "V.A.h", "kAH": "kA.h", "Vm": "V/m", "kO": "kOhm", "V/s": "V/s", "A/s": "A/s", "W/s": "W/s", "Hz/s": "Hz/s",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PointDefinition:
    """A point of a model: ``offset`` registers from the model's id; ``scale`` names its scale factor or is a fixed
    exponent.
    """

    name: str
    offset: int
    count: int
    type: str
    unit: str | None
    scale: str | int | None
    labels: Mapping[int, str]


@cache
def model(number: int) -> Mapping[str, PointDefinition]:
    """The points that stand once in a model, by name, without those of repeating groups. Raises ValueError."""
    points: dict[str, PointDefinition] = {}
    offset = 0
    for raw in _raw(number)["group"]["points"]:
        points[raw["name"]] = PointDefinition(
            name=raw["name"],
            offset=offset,
            count=raw["size"],
            type=raw["type"],
            unit=senml_unit(raw.get("units")),
            scale=raw.get("sf"),
            labels=_labels(raw),
        )
        offset += raw["size"]
    return points


def point(number: int, name: str) -> PointDefinition:
    """A point of a model that can be read as a number. Raises ValueError with "what is wrong; what to do"."""
    points = model(number)
    if name not in points:
        if name in _repeated(_raw(number)["group"]):
            raise ValueError(
                f"{number}.{name} is in a repeating group, which is not supported yet by this version; remove it"
            )
        near = difflib.get_close_matches(name, points, n=1, cutoff=0.4)
        guess = f'did you mean "{number}.{near[0]}"?' if near else "correct the name behind the dot"
        raise ValueError(f"model {number} has no point {name}; {guess}")
    found = points[name]
    if found.type == "sunssf":
        raise ValueError(f"{number}.{name} is a scale factor, which is applied to its points; name one of them instead")
    if found.type not in SUNSPEC_TYPES:
        raise ValueError(
            f"{number}.{name} is of type {found.type}, which is not supported yet by this version; remove it"
        )
    return found


def senml_unit(text: str | None) -> str | None:
    """The SenML or UCUM unit for a unit of the definitions, None if there is none that says the same."""
    text = (text or "").strip()
    if text.startswith("%") and text not in _UNITS:
        # "% WMax", "% VRef/min": of what is in the definition; the unit says how much.
        _, slash, per = text.partition("/")
        return {"": "%", "min": "%/min", "sec": "%/s"}.get(per.lower()) if slash else "%"
    return _UNITS.get(text)


def _raw(number: int) -> Any:
    try:
        folder = importlib.resources.files("sunspec2")
        text = (folder / "models" / "json" / f"model_{number}.json").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise ValueError("SunSpec's model definitions are not installed; install the package pysunspec2") from None
    except FileNotFoundError:
        raise ValueError(f"SunSpec defines no model {number}; correct the number before the dot") from None
    return json.loads(text)


def _repeated(group: Mapping[str, Any]) -> Iterator[str]:
    """The names of the points within a group's groups."""
    for inner in group.get("groups", ()):
        yield from (each["name"] for each in inner.get("points", ()))
        yield from _repeated(inner)


def _labels(raw: Mapping[str, Any]) -> Mapping[int, str]:
    """The names of an enumeration's values; a bitfield's symbols name bits, not values."""
    kind = SUNSPEC_TYPES.get(raw["type"])
    if kind is None or not kind.labelled:
        return {}
    return {symbol["value"]: symbol["name"] for symbol in raw.get("symbols", ())}
