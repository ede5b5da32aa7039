"""What the runs on a channel have done together, since the agent started."""

from __future__ import annotations

from collections import Counter

from agent.model import Cause
from agent.run import Run

_DELIVERY = ("acknowledged", "sent", "repeated", "resent", "refused")
_SEALING = ("records", "frames", "dropped", "unreadable")
COUNTS = (*_DELIVERY, *_SEALING, "given_up", "not_stored")


class Tally:
    """Counts by name, of records; ``frames`` and ``not_stored`` count readings. Goes on over a reload with what was
    ``before``.
    """

    def __init__(self, before: Tally | None) -> None:
        self._runs: list[Run] = [] if before is None else before._runs.copy()
        self._past: Counter[str] = Counter[str]() if before is None else before._past.copy()
        self._failures: Counter[str] = Counter[str]() if before is None else before._failures.copy()
        self._gaps: Counter[int] = Counter[int]() if before is None else before._gaps.copy()

    def add(self, run: Run) -> None:
        """This run counts, too, as long as it lives."""
        self._runs.append(run)

    def fold(self, current: Run) -> None:
        """Keep only the counts of runs that have closed."""
        for run in [each for each in self._runs if each.closed.is_set() and each is not current]:
            self._runs.remove(run)
            self._past += _counts(run)
            self._failures += run.publisher.failures
            self._gaps += run.batcher.committer.gaps

    @property
    def counts(self) -> Counter[str]:
        """By name."""
        return sum(map(_counts, self._runs), self._past.copy())

    @property
    def failures(self) -> Counter[str]:
        """Of delivery, by reason."""
        return sum((run.publisher.failures for run in self._runs), self._failures.copy())

    @property
    def gaps(self) -> dict[str, int]:
        """Cycles that are stated as missing, by cause."""
        gaps = sum((run.batcher.committer.gaps for run in self._runs), self._gaps.copy())
        return {Cause(cause).name.lower(): count for cause, count in sorted(gaps.items())}


def _counts(run: Run) -> Counter[str]:
    counts = Counter({name: getattr(run.publisher, name) for name in _DELIVERY})
    counts.update({name: getattr(run.batcher.committer, name) for name in _SEALING})
    counts.update(given_up=run.given_up, not_stored=run.batcher.not_stored)
    return counts
