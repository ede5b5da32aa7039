"""Frames of a decoded record are made when somebody looks, and are then what was sent."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence.block import decode_block
from agent.evidence.coverage import Coverage
from agent.evidence.frames import Block, Cycles, Frames, cycles_of, runs_of
from agent.model import Data, Frame, Quality
from tests.test_record import simple_plan

BLOCK = {1: 0, 2: [7, 1, 3], 3: [0, 1, 2], 4: [5, 5, 5], 5: [[10, -1, 2], [2**64 - 1, -(2**64), 0]]}
ROWS = ((10, 2**64 - 1), (9, -1), (11, -1))
FRAMES = tuple(Frame(0, cycle, late, 5, row) for late, (cycle, row) in enumerate(zip((7, 8, 10), ROWS, strict=True)))


def test_frames_are_those_of_the_block() -> None:
    block = decode_block(BLOCK, None, [])
    frames = Frames([block, block])
    assert len(frames) == 6
    assert frames == FRAMES * 2
    assert (hash(frames), repr(frames)) == (hash(FRAMES * 2), repr(FRAMES * 2))
    assert (frames[1], frames[-1:], list(frames)) == (FRAMES[1], FRAMES[-1:], list(FRAMES * 2))
    assert frames != FRAMES
    assert Frames([block]) == Frames([block])


def test_who_counts_frames_makes_none() -> None:
    def never() -> Iterable[Frame]:
        raise AssertionError("a frame was made")

    frames = Frames([Block(Cycles(0, 3, [(1, 2), (4, 4)], [Quality.SUSPECT]), never)])
    assert len(frames) == 3
    coverage = Coverage(simple_plan())
    problems, _ = coverage.add(Data(1, frames, ()))
    assert problems == ["d/g: cycles 3 to 3 are neither present nor in a gap"]
    assert (coverage.next, coverage.tallies[0].present, dict(coverage.tallies[0].quality)) == ([5], 3, {6: 1})


columns = st.integers(1, 4).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(-9, 9) | st.none(), min_size=count, max_size=count), min_size=1, max_size=3
    )
)


@given(columns, st.integers(0, 9), st.sets(st.integers(1, 5), min_size=3, max_size=3).map(sorted))
@settings(max_examples=50, deadline=None)
def test_what_a_block_covers_is_what_its_frames_cover(
    values: list[list[int | None]], first: int, ds: list[int]
) -> None:
    count = len(values[0])
    codes = [[i, p, 4] for i in range(count) for p, column in enumerate(values) if column[i] is None]
    block = {1: 3, 2: [first, *ds[: count - 1]], 3: [0] * count, 5: values, **({6: codes} if codes else {})}
    frames = Frames([decode_block(block, None, [])])
    assert [each._replace(codes=list(each.codes)) for each in frames.cycles()] == cycles_of(tuple(frames))
    assert len(frames) == len(tuple(frames))


@pytest.mark.parametrize(
    ("cycles", "runs"),
    [
        ([], []),
        ([5], [(5, 5)]),
        ([1, 2, 3], [(1, 3)]),
        ([1, 3, 4, 9], [(1, 1), (3, 4), (9, 9)]),
        ([2, 2], [(2, 2)] * 2),
    ],
)
def test_consecutive_cycles_are_a_run(cycles: list[int], runs: list[tuple[int, int]]) -> None:
    assert runs_of(cycles) == runs


LIMIT = 2**64


@pytest.mark.parametrize("column", [[LIMIT - 1, -1, 1], [-LIMIT, 1, -1], [LIMIT - 1, -LIMIT, -LIMIT + 1]])
def test_sums_may_reach_what_64_bits_hold(column: list[int]) -> None:
    decode_block({**BLOCK, 5: [[0, 0, 0], column]}, None, [])


@pytest.mark.parametrize("column", [[LIMIT - 1, 1, -1], [-LIMIT, -1, 1], [2**63, 2**62, 2**62], [0, -LIMIT, -1]])
def test_sums_beyond_64_bits_are_refused_though_nobody_looks(column: list[int]) -> None:
    with pytest.raises(EvidenceError, match="beyond 64 bits"):
        decode_block({**BLOCK, 5: [[0, 0, 0], column]}, None, [])


@pytest.mark.parametrize("cycles", [[7, 0, 1], [7, 1, 1], [7, 2, 1], [LIMIT - 2, 1, 2]])
def test_cycles_that_do_not_increase_or_end_are_refused(cycles: list[int]) -> None:
    with pytest.raises(EvidenceError):
        decode_block({**BLOCK, 2: cycles}, None, [])
    decode_block({**BLOCK, 2: [LIMIT - 3, 1, 2]}, None, [])


@pytest.mark.parametrize("column", [[0, True, 0], [0, 1.0, 0], [0, None, 0], [0, 0], "abc", b"abc", {1: 2}])
def test_a_column_of_anything_else_is_refused_though_nobody_looks(column: object) -> None:
    with pytest.raises(EvidenceError):
        decode_block({**BLOCK, 5: [[0, 0, 0], column]}, None, [])


@pytest.mark.parametrize("key", [2, 3, 4])
@pytest.mark.parametrize("wrong", [True, 1.0, -1, None, "1"], ids=repr)
def test_a_time_of_anything_else_is_refused_though_nobody_looks(key: int, wrong: object) -> None:
    with pytest.raises(EvidenceError):
        decode_block({**BLOCK, key: [7, wrong, 2]}, None, [])
    decode_block({**BLOCK, key: [7, 1, 2]}, None, [])
