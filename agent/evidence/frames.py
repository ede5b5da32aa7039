"""Frames of a decoded record: checked when it is decoded, made when somebody looks at them. A verifier only counts
them, and making them takes about as long as checking them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple, overload

from agent.model import Frame


class Cycles(NamedTuple):
    """The cycles of a group's frames in a record: how many, and from which to which they run without a gap. And the
    codes of those of their values that are not good.
    """

    group: int
    number: int
    runs: list[tuple[int, int]]
    codes: Sequence[int]


class Block(NamedTuple):
    """A group's frames in a record. ``make`` cannot fail: what is wrong with a frame is wrong with its block."""

    cycles: Cycles
    make: Callable[[], Iterable[Frame]]


class Frames(Sequence[Frame]):
    """The frames of some blocks, one behind the other; equal to a tuple of the same."""

    __slots__ = ("_blocks", "_made")

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._made: tuple[Frame, ...] | None = None

    def cycles(self) -> list[Cycles]:
        """As ``cycles_of``, without making a frame."""
        return [block.cycles for block in self._blocks]

    def _frames(self) -> tuple[Frame, ...]:
        if self._made is None:
            self._made = tuple(chain.from_iterable([block.make() for block in self._blocks]))
        return self._made

    def __len__(self) -> int:
        return sum([block.cycles.number for block in self._blocks])

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Frame, ...]: ...

    def __getitem__(self, index: int | slice) -> Frame | tuple[Frame, ...]:
        return self._frames()[index]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._frames() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._frames())

    def __repr__(self) -> str:
        return repr(self._frames())


def cycles_of(frames: Sequence[Frame]) -> list[Cycles]:
    """The cycles of ``frames``, which are by group, then by cycle."""
    if isinstance(frames, Frames):
        return frames.cycles()
    found = []
    for group, rows in groupby(frames, key=attrgetter("group")):
        mine = list(rows)
        codes = [code for frame in mine for _, code in frame.quality]
        found.append(Cycles(group, len(mine), runs_of(frame.cycle for frame in mine), codes))
    return found


def runs_of(cycles: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive cycles, each from its first to its last."""
    found: list[tuple[int, int]] = []
    for cycle in cycles:
        if found and cycle == found[-1][1] + 1:
            found[-1] = (found[-1][0], cycle)
        else:
            found.append((cycle, cycle))
    return found
