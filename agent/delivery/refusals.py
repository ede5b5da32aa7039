"""Records that the broker refused for good, until a plan on disk states them.

The publisher adds them, the batcher states them as withdrawn and says so once the plan is on disk; only then does the
publisher go on behind them. Memory only: what a crash takes was not settled either, and is sent and refused again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from agent.model import Cause, Link, Withdrawn


class Refusals:
    """By position in the outbox; not more than the publisher has in flight."""

    def __init__(self) -> None:
        self.on_new: Callable[[], None] = lambda: None
        self.on_stated: Callable[[Collection[int]], None] = lambda positions: None
        self._unstated: dict[int, Withdrawn] = {}

    def __bool__(self) -> bool:
        return bool(self._unstated)

    def add(self, position: int, link: Link) -> None:
        """This record was refused."""
        self._unstated[position] = Withdrawn(link.stream, link.seq, link.seq, Cause.REFUSED)
        self.on_new()

    def unstated(self) -> Mapping[int, Withdrawn]:
        """What the next plan must state."""
        return dict(self._unstated)

    def stated(self, positions: Collection[int]) -> None:
        """A plan that states these is on disk."""
        for position in positions:
            self._unstated.pop(position, None)
        if positions:
            self.on_stated(positions)
