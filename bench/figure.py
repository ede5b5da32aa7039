"""What a benchmark yields, and how CPU time and memory of a running process are read."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, beside a reference measured in the same run where there is one.

    ``target`` is what the ratio (value / reference) may be at most; with ``absolute``, or without a reference, what the
    value itself may be. None: there is none, and the figure is told for comparison.
    """

    name: str
    value: float
    unit: str
    reference: float | None
    reference_name: str
    target: float | None
    note: str = ""  # what else was seen
    absolute: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times the reference."""
        return None if self.reference is None else self.value / self.reference

    @property
    def met(self) -> bool:
        """Whether the target is met; without one it is."""
        bounded = self.value if self.absolute or self.ratio is None else self.ratio
        return self.target is None or bounded <= self.target

    def line(self) -> str:
        """For people: the target stands behind what it bounds."""
        own, beside = f"{self.value:.3f} {self.unit}", ""
        if self.reference is not None and self.ratio is not None:
            beside = f"{self.reference_name}: {self.reference:.3f} {self.unit}, ratio {_times(self.ratio)}"
        if self.target is not None:
            verdict = "met" if self.met else "MISSED"
            if self.absolute or not beside:
                own += f", at most {self.target:g} {self.unit}: {verdict}"
            else:
                beside += f", at most {_times(self.target)}: {verdict}"
        return f"{self.name}: {'; '.join(filter(None, (own, beside)))}" + (f" ({self.note})" if self.note else "")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "reference_name": self.reference_name,
            "ratio": self.ratio,
            "target": self.target,
            "target_of": "value" if self.absolute or self.reference is None else "ratio",
            "met": self.met,
            "note": self.note,
        }


def _times(ratio: float) -> str:
    """A ratio as it is read most easily: 2.10, or 1/30.0 if it is small."""
    return f"1/{1 / ratio:.1f}" if 0 < ratio < 0.5 else f"{ratio:.2f}"


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all threads: its CPU-time clock, as clock_getcpuclockid(3) makes
    the id of. (The ticks of proc(5) are too coarse for a process that is rarely busy.)
    """
    return time.clock_gettime(~pid << 3 | 2)


class Others:
    """What other programs take of the machine from here on: the figures of a busy machine are worth little."""

    def __init__(self) -> None:
        self._taken = _taken()

    def share(self) -> float:
        """Of all cores' time, from 0 to 1. Ours and our children's is not in it, if none of these has ended."""
        busy, whole = (now - then for now, then in zip(_taken(), self._taken, strict=True))
        return max(0.0, busy / whole)


def _taken() -> tuple[float, float]:
    """Seconds of CPU that others took since the machine was started, and that there were (proc(5), /proc/stat)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    children = [
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    ours = time.process_time() + sum(cpu_seconds(pid) for pid in children)
    second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / second - ours, sum(ticks) / second  # 3 and 4: idle


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
