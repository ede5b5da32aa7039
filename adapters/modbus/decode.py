"""Answers to values: all of a group's points at once, by a plan made beforehand.

Pure: registers in, values and qualities out. The good case costs no Python work per value: a struct unpacks a whole
request, then a few comparisons that run in C look for anything unusual (a scale factor that moved, a sentinel, a
number out of bounds). Only if one of them finds something is the sample gone through point by point. Quality codes:
docs/evidence.md, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import add, eq, gt, itemgetter, lt, mul
from types import MappingProxyType
from typing import Any, NamedTuple

from adapters.modbus.registers import NUMBER_TYPES, Block, Field
from adapters.modbus.requests import Limits, Registers, plan
from agent.model import Quality, Value, ValueType

SCALE_NOT_IMPLEMENTED = -0x8000
_SIGNED = (-(1 << 63), (1 << 63) - 1)
_UNSIGNED = (0, (1 << 64) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a point's value is read and how it becomes the plan's value.

    ``scale`` is the register of its SunSpec scale factor, ``exponent`` what it held when the plan was made. ``low``
    and ``high`` bound the value as it stands in the record (times ``multiplier``, without the exponent).
    """

    registers: Registers
    type: str
    little_words: bool = False
    little_bytes: bool = False
    sentinel: int | None = None
    multiplier: int | float = 1
    scale: Registers | None = None
    exponent: int = 0
    low: int | float | None = None
    high: int | float | None = None
    counter: bool = False


class Decoded(NamedTuple):
    """Values, what is not good about them, and the new exponents by the address of their scale factor.

    All points of a scale factor in ``moved`` are null: such a sample is right under the old plan and under the new one.
    Exponents only fall: a factor that goes to and fro costs one new plan and is exact from then on.
    """

    values: tuple[Value, ...]
    quality: tuple[tuple[int, Quality], ...] = ()
    moved: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Rule:
    """A point in terms of the places in the row of all numbers read."""

    source: Source
    place: int
    scale: int | None  # the place of its scale factor
    apart: bool  # the scale factor comes with another request than the value


class GroupDecoder:
    """The requests of a group and how their answers become the values of its points.

    A source None is a point that the device does not have.
    """

    def __init__(self, sources: Sequence[Source | None], limits: Limits) -> None:
        self.sources = tuple(sources)
        spans = [() if source is None else _spans(source, limits) for source in sources]
        self.requests, where = plan([span for each in spans for span in each], limits)
        # Per point the request and field of its value, and of its scale factor: one request if one span holds both.
        homes = iter(where)
        found: list[tuple[Source, list[tuple[int, Field]]] | None] = []
        for source, each in zip(sources, spans, strict=True):
            if source is None:
                found.append(None)
                continue
            own = [next(homes) for _ in each]
            fields = [(own[0], self._field(own[0], source.registers, source))]
            if source.scale is not None:
                fields.append((own[-1], self._field(own[-1], source.scale, None)))
            found.append((source, fields))
        # All numbers in a row: by request, then in rising order, each once.
        row = sorted({field for each in found if each is not None for field in each[1]})
        places = {field: place for place, field in enumerate(row)}
        self._blocks = tuple(
            Block(request.count, [field for home, field in row if home == index])
            for index, request in enumerate(self.requests)
        )
        self._rules = tuple(each and _rule(each[0], each[1], places) for each in found)
        self._compile(len(row))

    def _field(self, home: int, registers: Registers, source: Source | None) -> Field:
        offset = registers.address - self.requests[home].address
        return (
            Field(offset, source.type, source.little_words, source.little_bytes) if source else Field(offset, "int16")
        )

    def _compile(self, width: int) -> None:
        """What the good case needs: pickers, and rows to compare with in C."""
        rules = [rule for rule in self._rules if rule is not None]
        self._lacking = len(rules) < len(self._rules)
        order = [rule.place for rule in rules]
        self._order = None if order == list(range(width)) else _picker(order)
        scales = {rule.scale: rule.source.exponent for rule in rules if rule.scale is not None}
        self._scales = _picker(list(scales))
        self._exponents = tuple(scales.values())
        # None equals no number, so a point without a sentinel is never found.
        self._sentinels = _unless_all(None, [rule.source.sentinel for rule in rules])
        self._factors = _unless_all(1, [rule.source.multiplier for rule in rules])
        floats = [index for index, rule in enumerate(rules) if _is_float(rule.source)]
        self._floats = _picker(floats) if floats else None
        self._zeros = tuple(0.0 if _is_float(rule.source) else 0 for rule in rules)
        bounds = [(index, *each) for index, rule in enumerate(rules) if (each := _screen(rule.source)) is not None]
        self._bounded = _picker([index for index, _, _ in bounds]) if bounds else None
        self._lows = tuple(low for _, low, _ in bounds)
        self._highs = tuple(high for _, _, high in bounds)

    def decode(self, answers: Sequence[bytes | int | None]) -> Decoded:
        """The values of one acquisition; each request is answered by its registers as they travelled, by the
        code of an exception response, or not at all.
        """
        numbers: tuple[Any, ...] = ()
        unusual = self._lacking
        for block, answer in zip(self._blocks, answers, strict=True):
            if answer is None or isinstance(answer, int):
                numbers += (Quality.NO_VALUE if answer is None else Quality.DEVICE_EXCEPTION,) * block.width
                unusual = True
            else:
                numbers += block.values(answer)
        if unusual or self._scales(numbers) != self._exponents:
            return self._carefully(numbers)
        values = numbers if self._order is None else self._order(numbers)
        if self._sentinels is not None and any(map(eq, values, self._sentinels)):
            return self._carefully(numbers)
        if self._factors is not None:
            values = tuple(map(mul, values, self._factors))
        if self._floats is not None:
            if not all(map(isfinite, self._floats(values))):
                return self._carefully(numbers)
            values = tuple(map(add, values, self._zeros))  # -0.0 becomes 0.0
        if self._bounded is not None:
            bounded = self._bounded(values)
            if any(map(lt, bounded, self._lows)) or any(map(gt, bounded, self._highs)):
                return self._carefully(numbers)
        return Decoded(values)

    def _carefully(self, numbers: tuple[Any, ...]) -> Decoded:
        """The same point by point, for what is not usual."""
        moved: dict[int, int] = {}
        judged = [
            (None, Quality.NOT_IMPLEMENTED) if rule is None else _judge(rule, numbers, moved) for rule in self._rules
        ]
        for index, rule in enumerate(self._rules):
            scale = None if rule is None else rule.source.scale
            if scale is not None and scale.address in moved and judged[index][0] is not None:
                judged[index] = None, Quality.BAD_ENCODING
        quality = tuple((index, code) for index, (_, code) in enumerate(judged) if code is not None)
        return Decoded(tuple(value for value, _ in judged), quality, moved)


class Counters:
    """The last good values of a group's counters, to notice one that fell."""

    def __init__(self, sources: Sequence[Source | None]) -> None:
        self._last: dict[int, int | float | None] = {
            index: None for index, source in enumerate(sources) if source is not None and source.counter
        }

    def judge(self, decoded: Decoded) -> Decoded:
        """The same values, with SUSPECT where a counter is below its last value and nothing worse is known of it."""
        fell: list[int] = []
        for index, last in self._last.items():
            value = decoded.values[index]
            if isinstance(value, int | float):
                if last is not None and value < last:
                    fell.append(index)
                self._last[index] = value
        if not fell:
            return decoded
        known = dict(decoded.quality)
        quality = dict.fromkeys(fell, Quality.SUSPECT) | known
        return Decoded(decoded.values, tuple(sorted(quality.items())), decoded.moved)


def _spans(source: Source, limits: Limits) -> tuple[Registers, ...]:
    """What must be read whole: the value with its scale factor if one request can hold both."""
    if source.scale is None:
        return (source.registers,)
    both = source.registers.hull(source.scale)
    return (both,) if both.count <= limits.max_registers else (source.registers, source.scale)


def _rule(source: Source, fields: list[tuple[int, Field]], places: Mapping[tuple[int, Field], int]) -> _Rule:
    scale = fields[1] if len(fields) > 1 else None
    return _Rule(
        source,
        place=places[fields[0]],
        scale=None if scale is None else places[scale],
        apart=scale is not None and scale[0] != fields[0][0],
    )


def _picker(places: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """itemgetter that gives a tuple also for one place and for none."""
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1)) if places else itemgetter(slice(0, 0))


def _unless_all(usual: int | None, row: Sequence[Any]) -> tuple[Any, ...] | None:
    """The row, or None if there is nothing in it but what is usual."""
    return None if all(each == usual for each in row) else tuple(row)


def _is_float(source: Source) -> bool:
    return NUMBER_TYPES[source.type].value_type is ValueType.FLOAT


def _room(source: Source) -> tuple[int, int]:
    """The integers that a record can hold, in such a span that the difference of any two fits as well (evidence.md,
    section 3).
    """
    return _UNSIGNED if NUMBER_TYPES[source.type].code.isupper() and source.multiplier >= 0 else _SIGNED


def _screen(source: Source) -> tuple[float, float] | None:
    """Bounds outside which a value needs a closer look; None if it never does."""
    low, high = -inf if source.low is None else source.low, inf if source.high is None else source.high
    if NUMBER_TYPES[source.type].code in "qQ" and source.multiplier != 1:
        room = _room(source)
        low, high = max(low, room[0]), min(high, room[1])
    return None if (low, high) == (-inf, inf) else (low, high)


def _judge(rule: _Rule, numbers: tuple[Any, ...], moved: dict[int, int]) -> tuple[Value, Quality | None]:
    """One point: its value, and the lowest quality code that applies. Notes in ``moved`` a scale factor that needs a
    new exponent.
    """
    source = rule.source
    value = numbers[rule.place]
    scale = source.exponent if rule.scale is None else numbers[rule.scale]
    failed = [each for each in (value, scale) if isinstance(each, Quality)]  # what stands for a number not read
    if failed:
        return None, min(failed)
    if value == source.sentinel or value != value or scale == SCALE_NOT_IMPLEMENTED:
        return None, Quality.NOT_IMPLEMENTED
    value *= source.multiplier
    if _is_float(source):
        value += 0.0
        if not isfinite(value):
            return None, Quality.BAD_ENCODING
    else:
        if rule.scale is not None and not -10 <= scale <= 10:
            return None, Quality.BAD_ENCODING
        shift = scale - source.exponent
        value, rest = (value * 10**shift, 0) if shift >= 0 else divmod(value, 10**-shift)
        low, high = _room(source)
        if rest or not low <= value <= high:
            if rest and source.scale is not None:
                moved[source.scale.address] = scale
            return None, Quality.BAD_ENCODING
    if (source.low is not None and value < source.low) or (source.high is not None and value > source.high):
        return value, Quality.OUT_OF_RANGE
    if rule.apart and scale != source.exponent:
        return value, Quality.SUSPECT
    return value, None
