"""Values as instruments show them, for a forecast: of each point a walk that moves about 1 % per reading.

Pure and seeded: the same points make the same values. Names of states and texts change once in a hundred readings.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from agent.model import Point, Value, ValueType

_SPREAD = 0.01 * 12**0.5  # of a uniform step whose standard deviation is 1 %
_LETTERS = "abcdefghijklmnopqrstuvwxyz -0123456789"
_TEXT, _BYTES = 12, 16  # length


class Walk:
    """The values of a group, reading by reading."""

    def __init__(self, points: Sequence[Point], *, seed: str) -> None:
        draw = random.Random(seed)
        self._steps = [_step(point, draw) for point in points]

    def next(self) -> tuple[Value, ...]:
        """One reading."""
        return tuple([step() for step in self._steps])


def _step(point: Point, draw: random.Random) -> Callable[[], Value]:
    if point.type is ValueType.BOOLEAN:
        return lambda: draw.random() < 0.5
    if point.type is ValueType.TEXT:
        return _seldom(draw, lambda: "".join(draw.choices(_LETTERS, k=_TEXT)))
    if point.type is ValueType.BYTES:
        return _seldom(draw, lambda: draw.randbytes(_BYTES))
    if point.labels:
        names = tuple(point.labels)
        return _seldom(draw, lambda: draw.choice(names))
    # From 30 to 300,000 in the digits that are sent: volts and degrees to counters of energy.
    value = 10 ** draw.uniform(1.5, 5.5)
    if point.type is ValueType.INTEGER:
        return _walk(value, draw, round)
    if "float32" in (point.source or ""):
        return _walk(value / 100, draw, _single)
    return _walk(value / 100, draw, lambda number: round(number, 2))


def _walk(value: float, draw: random.Random, shown: Callable[[float], Value]) -> Callable[[], Value]:
    chance = draw.random

    def step() -> Value:
        nonlocal value
        value *= 1 + _SPREAD * (chance() - 0.5)
        return shown(value)

    return step


def _seldom(draw: random.Random, new: Callable[[], Value]) -> Callable[[], Value]:
    value = new()

    def step() -> Value:
        nonlocal value
        if draw.random() < 0.01:
            value = new()
        return value

    return step


def _single(number: float) -> float:
    """As single precision holds it, which is shorter in a record."""
    held: float = struct.unpack("f", struct.pack("f", number))[0]
    return held
