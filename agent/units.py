"""Durations and sizes as text in a configuration: ``"500ms"``, ``"5s"``, ``"64KiB"``, ``"2GiB"``.

In memory a duration is whole nanoseconds and a size whole bytes; both fit into 63 bits. Shown, and in a JSON Schema,
they are text again. A number without a unit is refused, because nobody can see whether it meant milliseconds or
seconds. Errors are ValueError with the text "what is wrong; what to do", which agent/config/problems.py splits at the
last semicolon.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

MS = 1_000_000
S = 1_000 * MS
_DURATIONS = {"ms": MS, "s": S, "m": 60 * S, "h": 3_600 * S, "d": 86_400 * S}
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_REMEDY = 'write a whole number and one of ms, s, m, h, d, such as "500ms", "5s" or "1m"'
_SIZE_REMEDY = 'write a whole number and one of B, KiB, MiB, GiB, TiB (steps of 1024), such as "64KiB" or "2GiB"'
_RATE_REMEDY = 'write a whole number, one of B, KiB, MiB, GiB, and /s, such as "64KiB/s"'
_MOST = (1 << 63) - 1
_NUMBER_UNIT = re.compile(r"([0-9]{1,19})([A-Za-z]+)")


def duration_ns(text: str) -> int:
    """Nanoseconds of a duration such as ``500ms``, ``5s``, ``1m``, ``2h``, ``1d``. Raises ValueError."""
    return _parse(text, _DURATIONS, "duration", _DURATION_REMEDY)


def size_bytes(text: str) -> int:
    """Bytes of a size such as ``4096B``, ``64KiB``, ``1MiB``, ``2GiB``. Raises ValueError."""
    return _parse(text, _SIZES, "size", _SIZE_REMEDY)


def duration_text(ns: int) -> str:
    """The shortest text whose ``duration_ns`` is ``ns``. Raises ValueError if that is not a whole number of ms."""
    return _format(ns, _DURATIONS)


def size_text(count: int) -> str:
    """The shortest text whose ``size_bytes`` is ``count``."""
    return _format(count, _SIZES)


def duration_range(least: str, most: str) -> AfterValidator:
    """For ``Annotated[Duration, duration_range("100ms", "60s")]``: both ends are allowed."""
    low, high = duration_ns(least), duration_ns(most)

    def check(ns: int) -> int:
        if not low <= ns <= high:
            raise ValueError(f"{duration_text(ns)} is out of range; choose {least} to {most}")
        return ns

    return AfterValidator(check)


def size_range(least: str, most: str) -> AfterValidator:
    """For ``Annotated[Size, size_range("4MiB", "1TiB")]``: both ends are allowed."""
    low, high = size_bytes(least), size_bytes(most)

    def check(count: int) -> int:
        if not low <= count <= high:
            raise ValueError(f"{size_text(count)} is out of range; choose {least} to {most}")
        return count

    return AfterValidator(check)


def _parse(text: str, units: dict[str, int], noun: str, remedy: str) -> int:
    match = _NUMBER_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f'expected a {noun}, found "{text[:40]}"; {remedy}')
    value = int(match[1]) * units[match[2]]
    if value > _MOST:
        raise ValueError(f'the {noun} "{text}" is too large; {remedy}')
    return value


def _format(value: int, units: dict[str, int]) -> str:
    if value == 0:
        return "0s" if units is _DURATIONS else "0B"
    for name, factor in reversed(units.items()):
        if value % factor == 0:
            return f"{value // factor}{name}"
    raise ValueError(f"{value} ns is no whole number of milliseconds; use whole milliseconds")


def _duration(value: Any) -> int:
    if isinstance(value, str):
        return duration_ns(value)
    raise ValueError(f"expected a duration in quotes; {_DURATION_REMEDY}")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return size_bytes(value)
    raise ValueError(f"expected a size in quotes; {_SIZE_REMEDY}")


def _phase(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        return _duration(value)
    except ValueError:
        raise ValueError('expected a duration in quotes, or "auto"; write it like "500ms"') from None


def _less_than_every(phase: int | str, info: ValidationInfo) -> int | str:
    every = (info.data or {}).get("every")  # None if it was refused
    if every is not None and isinstance(phase, int) and phase >= every:
        raise ValueError(
            f'{duration_text(phase)} is not less than every; choose less than {duration_text(every)}, or "auto"'
        )
    return phase


def _phase_text(value: int | str) -> str:
    return value if isinstance(value, str) else duration_text(value)


def _rate(value: Any) -> int:
    if isinstance(value, str) and value.endswith("/s"):
        count = size_bytes(value.removesuffix("/s"))
        if count:
            return count
        raise ValueError("at no bytes a second nothing is ever sent; leave it out for no limit")
    raise ValueError(f"expected a size a second in quotes; {_RATE_REMEDY}")


def _rate_text(count: int) -> str:
    return f"{size_text(count)}/s"


DURATION_SCHEMA = {"type": "string", "pattern": f"^[0-9]{{1,19}}({'|'.join(_DURATIONS)})$"}
SIZE_SCHEMA = {"type": "string", "pattern": f"^[0-9]{{1,19}}({'|'.join(_SIZES)})$"}

Duration = Annotated[
    int,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
    WithJsonSchema(DURATION_SCHEMA),
]
"""A pydantic field that is text in the file and nanoseconds in the model; a default is given in nanoseconds."""

Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(size_text, return_type=str, when_used="json"),
    WithJsonSchema(SIZE_SCHEMA),
]
"""A pydantic field that is text in the file and bytes in the model; a default is given in bytes."""

Rate = Annotated[
    int,
    BeforeValidator(_rate),
    PlainSerializer(_rate_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": SIZE_SCHEMA["pattern"].removesuffix("$") + "/s$"}),
]
"""A pydantic field that is text in the file, such as ``"64KiB/s"``, and bytes a second in the model; more than 0."""

Phase = Annotated[
    int | Literal["auto"],
    BeforeValidator(_phase),
    AfterValidator(_less_than_every),
    PlainSerializer(_phase_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^auto$|" + DURATION_SCHEMA["pattern"]}),
]
"""How far behind its marks a group is read: ns, or ``auto``, which differs by site, device and group. It is less than
``every`` if the model has that before it."""
