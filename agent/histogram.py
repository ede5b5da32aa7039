"""Counts by size and rates over time, as status and metrics show them. No clock, no lock: each has one writer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

_SPAN = 60e9  # ns
_LEAST = 1e9  # ns: what came in less time says little


class Histogram:
    """How many values there were up to each of a few bounds (with ``le``, less or equal, as Prometheus means it)."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: rising; what is larger than the last is counted, too."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def as_json(self) -> dict[str, Any]:
        """``bounds``; ``counts`` of values up to each, and above the one before, one more for the rest; ``sum``."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Rate:
    """How much came per second, over about the last minute, or since the first that came: what is older counts less and
    less.
    """

    __slots__ = ("_at", "_began", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = 0
        self._began: int | None = None

    def add(self, amount: float, now: int) -> None:
        """So much came; ``now`` in ns, never falling."""
        if self._began is None:
            self._began = now
        self._value = self._decayed(now) + amount * 1e9 / _SPAN
        self._at = now

    def per_second(self, now: int) -> float:
        """As it is now."""
        if self._began is None:
            return 0.0
        seen = 1 - math.exp((self._began - max(now, self._began + _LEAST)) / _SPAN)  # of the minute
        return self._decayed(now) / seen

    def _decayed(self, now: int) -> float:
        return self._value * math.exp((self._at - now) / _SPAN)
