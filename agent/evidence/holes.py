"""Holes: records that are not at hand, the cycles that went with them, and what plans say about them
(docs/evidence.md section 6).

A hole is open until plans withdraw all of it (accounted); at the end it has failed or is unknown. Only then are its
cycles counted, as gaps with the stated cause or as missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.evidence.coverage import GroupKey
from agent.evidence.report import Hole, Level, Report
from agent.model import Withdrawn


class Holes:
    """The holes of all streams; they stand in ``report.holes``."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._withdrawn: list[Withdrawn] = []

    def permit(self, ranges: Iterable[Withdrawn]) -> None:
        """A plan says that these may be missing; plans restate their ranges as these grow."""
        for new in ranges:
            if not any(_within(new, known) for known in self._withdrawn):
                self._withdrawn = [known for known in self._withdrawn if not _within(known, new)] + [new]

    def withdrawn(self, stream: bytes, last: int) -> bool:
        """Whether plans withdraw the records of a stream from its first to ``last``."""
        probe = Hole(stream, 1, last)
        self._account(probe)
        return probe.state == "accounted"

    def open(self, stream: bytes, first: int, last: int) -> Hole:
        """Records ``first`` to ``last`` of a stream did not come."""
        hole = Hole(stream, first, last)
        self._report.holes.append(hole)
        return hole

    def found(self, stream: bytes) -> None:
        """A run that was taken for missing as a whole has come after all; what it holds is judged by itself."""
        self._report.holes = [hole for hole in self._report.holes if not (hole.stream == stream and hole.whole_run)]

    def settle(self, *, complete: bool) -> None:
        """Decide every hole and count its cycles. ``complete``: nothing more will come."""
        for hole in self._report.holes:
            self._account(hole)
            if hole.state == "open":
                hole.state = "failed" if complete else "unknown"
                counts = self._report.failures if complete else self._report.unknowns
                counts.update((Level.CONTINUITY, Level.COMPLETENESS))
                self._report.failed += complete
            for key, count in (hole.cycles or {}).items():
                self._count(hole, key, count)
            hole.cycles = None

    def _account(self, hole: Hole) -> None:
        """A hole that plans withdraw, in one range or several, is accounted for."""
        at = hole.first
        for withdrawn in sorted((w for w in self._withdrawn if w.stream == hole.stream), key=lambda w: w.first):
            if withdrawn.first <= at <= withdrawn.last:
                at, hole.cause = withdrawn.last + 1, withdrawn.cause
        if at > hole.last:
            hole.state = "accounted"
        else:
            hole.cause = None

    def _count(self, hole: Hole, key: GroupKey, count: int) -> None:
        if hole.state == "accounted" and hole.cause is not None:
            self._report.tally(key).gaps[hole.cause] += count
        else:
            self._report.tally(key).missing += count


def _within(one: Withdrawn, other: Withdrawn) -> bool:
    """Whether a range says nothing that the other does not."""
    same = (one.stream, one.cause) == (other.stream, other.cause)
    return same and other.first <= one.first and one.last <= other.last
