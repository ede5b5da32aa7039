"""What a benchmark yields, and how CPU time of a running process is read."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value beside its reference; the target is a bound on their ratio (value / reference)."""

    name: str
    value: float
    unit: str
    reference: float
    reference_name: str
    target: float  # the ratio is to be at most this

    @property
    def ratio(self) -> float:
        """How many times the reference."""
        return self.value / self.reference

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio <= self.target

    def line(self) -> str:
        """For people."""
        verdict = "met" if self.met else "MISSED"
        return (
            f"{self.name}: {self.value:.3f} {self.unit}, {self.reference_name}: {self.reference:.3f}, "
            f"ratio {self.ratio:.2f}, target at most {self.target:g}: {verdict}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
        }


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all threads (proc(5), stat fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interleaved(measures: Sequence[Callable[[], float]], *, rounds: int = 3) -> list[float]:
    """The median of each measure over some rounds, taken in turn so that a drift of the machine meets all alike."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, values in zip(measures, taken, strict=True):
            values.append(measure())
    return [statistics.median(values) for values in taken]
