"""Values: what a payload holds for the points of a group, with the type that the plan states for each.

Pure; knows neither time nor wire. What does not suit a point's type is null with bad_encoding, what is missing or null
with no_value; nothing here raises.

Points of type ``number`` learn, in memory only, how many decimals the source sends: their values are integers with an
exponent, and the exponent falls to -15 at most as long as the value at hand fits into 64 bits signed with it. When
none fits, the point is a float from then on and stays one; what a float then does not carry exactly is suspect. What
``read`` returns belongs to ``points`` as they are
when it returns; ``revision`` rises with each change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, Literal

from adapters.mqtt.payload import Pointer, find
from agent.model import Point, Quality, Value, ValueType

Kind = Literal["number", "integer", "float", "boolean", "text"]
Bounds = tuple[Decimal, Decimal]

LEAST_EXPONENT = -15
LONGEST_TEXT = 1024  # bytes; what is longer is a document, not a value
_LOW, _HIGH = -(1 << 63), 1 << 63
_HIGH_UNSIGNED = 1 << 64
_DIGITS = 19  # of the largest integer of 64 bits; more cannot fit, and some would fill the memory
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])

VALUE_TYPES = {
    "number": ValueType.INTEGER,
    "integer": ValueType.INTEGER,
    "float": ValueType.FLOAT,
    "boolean": ValueType.BOOLEAN,
    "text": ValueType.TEXT,
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a point's value is and what it is: at ``pointer`` in the payload, or if that is None the text of the
    topic's level ``level``, counted from 1. ``bounds``: outside them it is out_of_range.
    """

    pointer: Pointer | None
    level: int
    kind: Kind
    bounds: Bounds | None = None


def _whole(raw: Any) -> int | None:
    """The integer, None for what is none within 64 bits."""
    if type(raw) is Decimal and raw.adjusted() < 2 * _DIGITS:
        raw = number if (number := int(raw)) == raw else None
    return raw if type(raw) is int and _LOW <= raw < _HIGH_UNSIGNED else None


def _float(raw: Any) -> float | None:
    """The nearest double, None for what is beyond them."""
    if type(raw) is int or type(raw) is Decimal:
        try:
            number = float(raw)
        except OverflowError:
            return None
        return number if -1.8e308 < number < 1.8e308 else None
    return None


def _boolean(raw: Any) -> bool | None:
    return raw if raw is True or raw is False else None


def _text(raw: Any) -> str | None:
    if type(raw) is not str or len(raw) > LONGEST_TEXT:
        return None
    try:
        return raw if raw.isascii() or len(raw.encode()) <= LONGEST_TEXT else None
    except UnicodeEncodeError:  # a lone surrogate, which CBOR cannot hold either
        return None


class _Number:
    """A value of type number: an integer of a learned exponent, or a float."""

    def __init__(self, decimals: int, changed: Callable[[], None]) -> None:
        self.decimals: int | None = decimals  # None: a float from now on
        self.inexact = False  # the last value is not quite what was sent
        self._factor = 10**decimals
        self._changed = changed

    def __call__(self, raw: Any) -> int | float | None:
        decimals = self.decimals
        if decimals is None:
            return self._nearest(raw)
        if type(raw) is int:
            number: int = raw * self._factor
            if _LOW <= number < _HIGH:
                return number
        elif type(raw) is Decimal:
            if raw.adjusted() + decimals < _DIGITS:
                scaled = raw.scaleb(decimals, _EXACT)
                number = int(scaled)
                if number == scaled and _LOW <= number < _HIGH:
                    return number
        else:
            return None
        return self._learn(raw, decimals)

    def _nearest(self, raw: Any) -> float | None:
        number = _float(raw)
        self.inexact = number is not None and Decimal(repr(number)) != raw
        return number

    def _learn(self, raw: int | Decimal, decimals: int) -> int | float | None:
        """The value after the change that it needs, None without a change if not even a double holds it."""
        number = _float(raw)
        if not raw:
            return 0  # with an exponent of its own, such as 0e30
        if number is None:
            return None
        exact = Decimal(raw).normalize(_EXACT)
        if exact.adjusted() < _DIGITS and exact.adjusted() >= LEAST_EXPONENT:
            needed = max(decimals, -int(exact.as_tuple().exponent))
            scaled = exact.scaleb(needed, _EXACT)
            if needed <= -LEAST_EXPONENT and _LOW <= scaled < _HIGH:
                self.decimals, self._factor = needed, 10**needed
                self._changed()
                return int(scaled)
        self.decimals = None
        self._changed()
        return self._nearest(raw)


class GroupReader:
    """The points of a group and how their values are read."""

    def __init__(self, points: Sequence[Point], sources: Sequence[Source]) -> None:
        self.points = tuple(points)
        self.revision = 0
        self._sources = tuple(sources)
        self._numbers: dict[int, _Number] = {}
        self._stale = False
        plan: list[tuple[Source, Pointer, str | None, Callable[[Any], Value], Bounds | None]] = []
        for index, (point, source) in enumerate(zip(points, sources, strict=True)):
            tokens = source.pointer if source.pointer is not None else ()
            # The usual pointer has one token, which is looked up without a call.
            key = tokens[0] if len(tokens) == 1 else None
            plan.append((source, tokens, key, self._reader(index, point, source), source.bounds))
        self._plan = tuple(plan)

    def read(
        self, document: Any, topic: str, mark: Quality | None
    ) -> tuple[tuple[Value, ...], tuple[tuple[int, Quality], ...]]:
        """Values, and the codes of those that are not good. ``mark``: the code of values that would be good."""
        values: list[Value] = []
        quality: list[tuple[int, Quality]] = []
        table = document if type(document) is dict else None
        for index, (source, tokens, key, reader, bounds) in enumerate(self._plan):
            raw: Any
            if table is not None and key is not None:
                raw = table.get(key)
            elif source.pointer is not None:
                raw = find(document, tokens)
            else:
                raw = _level(topic, source.level)
            if raw is None:
                values.append(None)
                quality.append((index, Quality.NO_VALUE))
                continue
            value = reader(raw)
            values.append(value)
            if value is None:
                quality.append((index, Quality.BAD_ENCODING))
            elif bounds is not None and not bounds[0] <= raw <= bounds[1]:
                quality.append((index, Quality.OUT_OF_RANGE))
            elif type(reader) is _Number and reader.inexact:
                quality.append((index, Quality.SUSPECT))
            elif mark is not None:
                quality.append((index, mark))
        if self._stale:
            self._adopt()
        return tuple(values), tuple(quality)

    def _reader(self, index: int, point: Point, source: Source) -> Callable[[Any], Value]:
        if source.kind == "number" and not point.labels:  # labels name whole numbers, whose exponent stays 0
            self._numbers[index] = _Number(-point.exponent, self._learned)
            return self._numbers[index]
        if source.kind == "float":
            return _float
        if source.kind == "boolean":
            return _boolean
        return _text if source.kind == "text" else _whole

    def _learned(self) -> None:
        self._stale = True

    def _adopt(self) -> None:
        """State what the points are now."""
        points = list(self.points)
        for index, number in self._numbers.items():
            if number.decimals is None:
                points[index] = replace(points[index], type=ValueType.FLOAT, exponent=0)
            else:
                points[index] = replace(points[index], exponent=-number.decimals)
        self.points = tuple(points)
        self.revision += 1
        self._stale = False


def _level(topic: str, level: int) -> str | None:
    levels = topic.split("/", level)
    return levels[level - 1] if len(levels) >= level else None
