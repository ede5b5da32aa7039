"""What is on its way in one session of the publisher. Memory only: a new session begins with a new flight.

Positions are those of the outbox, in the order in which they were read. They are not consecutive: marks lie between
them, and what is overwritten is skipped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import anyio

from agent.model import Link

WINDOW = 64  # records from the oldest unacknowledged one on, of a broker that takes them one by one


@dataclass(slots=True)
class _Taken:
    """A record that is not settled: ``overdue`` is the boot time when its answer is; None: it has not left yet."""

    link: Link
    overdue: int | None = None


class Flight:
    """Records from the acknowledged one on: taken up, answered, settled in order.

    A record that was refused for good holds its place until ``set_aside`` says that a plan on disk states it, so that
    a crash before that has it sent, and refused, again.
    """

    def __init__(self, acked: int, *, window: int = WINDOW) -> None:
        self.acked = acked
        self.window = window
        self.cursor = acked  # last position taken up
        self.turn = 0  # rises with each going back
        self.answers = 0
        self.reserved = 0  # places for records that are sent again by order
        self.told = False  # that the broker refuses records for good
        self.moved = anyio.Event()  # set, and replaced, whenever there may be room
        self._latest = acked  # position ever taken up
        self._order: dict[int, _Taken] = {}
        self._answered: set[int] = set()  # ahead of the oldest that is not
        self._refused: set[int] = set()
        self._aside: set[int] = set()

    @property
    def full(self) -> bool:
        """Whether the next record would be too far ahead of the oldest."""
        return len(self._order) + self.reserved >= self.window

    @property
    def room(self) -> int:
        """Places for records sent again by order that are free of others."""
        return self.window - len(self._order)

    @property
    def waiting(self) -> int:
        """Records without an answer."""
        return sum(1 for position in self._order if self._unanswered(position))

    @property
    def overdue(self) -> int | None:
        """When the answer to the oldest is overdue, None if none is waited for or it has not left yet."""
        return next((taken.overdue for position, taken in self._order.items() if self._unanswered(position)), None)

    def take(self, position: int, link: Link) -> bool:
        """Take up the next record; returns whether it must be sent, or was answered before going back."""
        self.cursor = position
        self._latest = max(self._latest, position)
        self._order[position] = _Taken(link)
        return self._unanswered(position)

    def left(self, position: int, *, overdue: int) -> None:
        """It is on its way, and its answer due by then; nothing if it was answered, or went back, meanwhile."""
        if position in self._order:
            self._order[position].overdue = overdue

    def knows(self, position: int) -> bool:
        """Whether an answer for this position is one for a record of this flight that is not settled."""
        return self.acked < position <= self._latest

    def answer(self, position: int) -> None:
        """The broker has it; also one that came too late, or a second time."""
        if self.knows(position) and position not in self._answered:
            self._answered.add(position)
            self.answers += 1

    def refuse(self, position: int) -> Link | None:
        """The broker will never take it; returns what it is, None if that changes nothing."""
        taken = self._order.get(position)
        if taken is None or not self._unanswered(position):
            return None  # an answer from before going back: it is sent, and refused, again
        self.answers += 1
        self._refused.add(position)
        return taken.link

    def set_aside(self, positions: Collection[int]) -> None:
        """A plan on disk states that these were refused: they hold up nothing any more."""
        self._aside |= {position for position in positions if position > self.acked}

    def advance(self) -> tuple[int, int]:
        """Move ``acked`` over all that follows it and is answered or set aside; returns how many records were
        acknowledged, and how many set aside.
        """
        acknowledged = aside = 0
        while self._order:
            position = next(iter(self._order))
            if position in self._answered:
                acknowledged += 1
            elif position in self._aside:
                aside += 1
            else:
                break
            del self._order[position]
            self.acked = position
        if acknowledged or aside:
            self._answered = {position for position in self._answered if position > self.acked}
            self._aside = {position for position in self._aside if position > self.acked}
            self._refused = {position for position in self._refused if position > self.acked}
            self.wake()
        return acknowledged, aside

    def go_back(self) -> None:
        """Take up again all that is not settled."""
        self.cursor = self.acked
        self.turn += 1
        self._order.clear()
        self.wake()

    def wake(self) -> None:
        """Have who waits for ``moved`` look again."""
        self.moved.set()
        self.moved = anyio.Event()

    def _unanswered(self, position: int) -> bool:
        return not (position in self._answered or position in self._refused or position in self._aside)
