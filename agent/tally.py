"""What the runs on a channel have done together, since the agent started."""

from __future__ import annotations

from collections import Counter

from agent.run import Run

_DELIVERY = ("acknowledged", "sent", "repeated", "resent", "refused")
COUNTS = (*_DELIVERY, "dropped", "not_stored")


class Tally:
    """Counts of records by name; ``not_stored`` counts readings. Goes on over a reload with what was ``before``."""

    def __init__(self, before: Tally | None) -> None:
        self._runs: list[Run] = [] if before is None else before._runs.copy()
        self._past: Counter[str] = Counter[str]() if before is None else before._past.copy()
        self._failures: Counter[str] = Counter[str]() if before is None else before._failures.copy()

    def add(self, run: Run) -> None:
        """This run counts, too, as long as it lives."""
        self._runs.append(run)

    def fold(self, current: Run) -> None:
        """Keep only the counts of runs that have closed."""
        for run in [each for each in self._runs if each.closed.is_set() and each is not current]:
            self._runs.remove(run)
            self._past += _counts(run)
            self._failures += run.publisher.failures

    @property
    def counts(self) -> Counter[str]:
        """By name."""
        return sum(map(_counts, self._runs), self._past.copy())

    @property
    def failures(self) -> Counter[str]:
        """Of delivery, by reason."""
        return sum((run.publisher.failures for run in self._runs), self._failures.copy())


def _counts(run: Run) -> Counter[str]:
    counts = Counter({name: getattr(run.publisher, name) for name in _DELIVERY})
    counts.update(dropped=run.batcher.dropped, not_stored=run.batcher.not_stored)
    return counts
