"""How long records take from the disk to the broker's acknowledgement, and since when the oldest has waited.

One mark is kept for each commit that is not acknowledged, ``MARKS`` at most: while more wait the newest marks stand for
several commits, with the age of the first of them. So nothing here grows in an outage, and a count is never wrong.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agent.histogram import Histogram, Rate

MARKS = 256
LATENCY = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300)  # s
_S = 1e9


class Pace:
    """What a channel's runs have in common: the latency of its commits, and records acknowledged per second."""

    def __init__(self) -> None:
        self.latency = Histogram(LATENCY)
        self.rate = Rate()


@dataclass(slots=True)
class _Mark:
    """Commits up to a position, and the number of the last record then."""

    pos: int
    seq: int
    durable: int  # boot time
    commits: int = 1


class Latency:
    """Of one run. ``acked_seq``: all of its records up to here are acknowledged, 0 before the first."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._marks: deque[_Mark] = deque()
        self._counted = 0
        self.acked_seq = 0
        self.backlog = 0
        """Position of the last record that was there when the run began."""
        self.backlog_wall: int | None = None
        """When the oldest record of these that waits was sealed, ns; None: not known."""

    def stored(self, pos: int, *, seq: int, now: int) -> None:
        """Records up to a position and a number are on disk."""
        if len(self._marks) < MARKS:
            self._marks.append(_Mark(pos, seq, now))
        else:
            last = self._marks[-1]
            last.pos, last.seq, last.commits = pos, seq, last.commits + 1

    def settled(self, pos: int, *, acknowledged: int, now: int) -> None:
        """All up to a position is settled, and so many records in all were acknowledged."""
        while self._marks and self._marks[0].pos <= pos:
            mark = self._marks.popleft()
            self.acked_seq = mark.seq
            self._pace.latency.observe((now - mark.durable) / _S, mark.commits)
        if acknowledged > self._counted:
            self._pace.rate.add(acknowledged - self._counted, now)
            self._counted = acknowledged

    def oldest(self, acked: int, *, wall: int, boot: int) -> float | None:
        """For how long the oldest record behind a position has waited, in s; None if that is not known."""
        if acked < self.backlog:
            return None if self.backlog_wall is None else max(0.0, (wall - self.backlog_wall) / _S)
        return max(0.0, (boot - self._marks[0].durable) / _S) if self._marks else None
