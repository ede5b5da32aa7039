"""What waits, counted step by step, is what counting anew gives; an acknowledgement costs the same for any backlog."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from agent.outbox.backlog import Backlog, Pending

PER_SEGMENT = 10


class Counted(list[Any]):
    """A list that counts how many of its items were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.looks += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.looks += 1
            yield item

    def __reversed__(self) -> Iterator[Any]:
        for item in super().__reversed__():
            self.looks += 1
            yield item


def behind(segments: int) -> Backlog:
    """A backlog of full segments of an earlier run, and a new one."""
    backlog = Backlog()
    for number in range(segments):
        first = 1 + number * PER_SEGMENT
        backlog.estimate(first, first + PER_SEGMENT, room=4096, header=48)
    backlog.begin(1 + segments * PER_SEGMENT)
    backlog.recount()
    return backlog


def test_every_step_gives_what_counting_anew_gives() -> None:
    chance = random.Random(7)
    backlog, segments = behind(20), 20
    next_pos = 1 + segments * PER_SEGMENT
    for _ in range(3000):
        step = chance.random()
        if step < 0.4:
            next_pos += chance.choice([0, 0, 0, 2])
            backlog.add(next_pos, chance.choice([0, 300, 700]))
            next_pos += 1
        elif step < 0.45:
            backlog.begin(next_pos)
            segments += 1
        elif step < 0.5 and segments > 4:
            backlog.drop()
            segments -= 1
        elif step < 0.55:
            backlog.settle(chance.randrange(next_pos))
        else:
            backlog.settle(min(next_pos - 1, backlog.acked + chance.choice([0, 1, 2, 5, 30])))
        found = backlog.pending
        backlog.recount()
        assert found == backlog.pending
    backlog.settle(next_pos - 1)
    assert backlog.pending == Pending(0, 0)


@pytest.mark.parametrize("segments", [64, 4096])
def test_an_acknowledgement_looks_at_a_few_segments_only(segments: int) -> None:
    backlog = behind(segments)
    backlog._shares = counted = Counted(backlog._shares)
    for pos in range(1, 1 + 20 * PER_SEGMENT):
        counted.looks = 0
        backlog.settle(pos)
        assert counted.looks < 40
    assert backlog.pending.records > 0
