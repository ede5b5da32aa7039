"""What a benchmark yields, and how CPU time and memory of a running process are read."""

from __future__ import annotations

import re
import statistics
import time
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
    note: str = ""  # what else was seen

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
        ) + (f" ({self.note})" if self.note else "")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
            "note": self.note,
        }


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all threads: its CPU-time clock, as clock_getcpuclockid(3) makes
    the id of. (The ticks of proc(5) are too coarse for a process that is rarely busy.)
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident_mib(pid: int) -> float:
    """Resident set of a process (proc(5), VmRSS)."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, "it runs"
    return int(found[1]) / 1024


def interleaved(measures: Sequence[Callable[[], float]], *, rounds: int = 3) -> list[float]:
    """The median of each measure over some rounds, taken in turn so that a drift of the machine meets all alike."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, values in zip(measures, taken, strict=True):
            values.append(measure())
    return [statistics.median(values) for values in taken]
