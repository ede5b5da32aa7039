"""The arithmetic of cycles: tables of literal numbers, and what holds for all (docs/evidence.md sections 2 and 4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.timetable import anchor, ceil_div, clock_stepped, due_before, following, latest_due, spread
from agent.model import Schedule

MS = 1_000_000
S = 1_000_000_000


@pytest.mark.parametrize(
    ("a", "b", "up"), [(0, 5, 0), (1, 5, 1), (5, 5, 1), (6, 5, 2), (-1, 5, 0), (-5, 5, -1), (-6, 5, -1)]
)
def test_division_rounds_up(a: int, b: int, up: int) -> None:
    assert ceil_div(a, b) == up


@pytest.mark.parametrize(
    ("period", "phase", "wall", "boot", "first", "due"),
    [
        (1000, 0, 5000, 70, 5, 70),  # on a mark: that mark, now
        (1000, 0, 5001, 70, 6, 1069),
        (1000, 0, 5999, 70, 6, 71),
        (1000, 250, 5000, 70, 5, 320),
        (1000, 250, 5250, 70, 5, 70),
        (1000, 250, 5251, 70, 6, 1069),
        (300_000, 0, 1_000_000, 0, 4, 200_000),
    ],
)
def test_the_first_cycle_is_the_first_mark_not_before_now(
    period: int, phase: int, wall: int, boot: int, first: int, due: int
) -> None:
    assert anchor(period=period, phase=phase, wall=wall, boot=boot) == Schedule(period, phase, first, due)


@pytest.mark.parametrize(
    ("boot", "before", "latest"),
    [(0, 10, 9), (499, 10, 9), (500, 10, 10), (501, 11, 10), (1500, 11, 11), (1501, 12, 11), (4500, 14, 14)],
)
def test_what_is_due(boot: int, before: int, latest: int) -> None:
    schedule = Schedule(1000, 0, 10, 500)
    assert due_before(schedule, boot) == before
    assert latest_due(schedule, boot) == latest


@pytest.mark.parametrize(
    ("period", "off", "stepped"),
    [
        (20 * MS, 5 * MS, False),  # a twentieth would be 1 ms; 5 ms at least
        (20 * MS, 5 * MS + 1, True),
        (20 * MS, -5 * MS - 1, True),
        (S, 50 * MS, False),
        (S, -50 * MS, False),
        (S, 50 * MS + 1, True),
        (S, -50 * MS - 1, True),
        (3600 * S, S, False),  # a twentieth would be 3 min; 1 s at most
        (3600 * S, S + 1, True),
    ],
)
@pytest.mark.parametrize("late", [0, 300 * MS, 7200 * S])
def test_a_step_is_told_from_lateness(period: int, off: int, late: int, stepped: bool) -> None:
    schedule = Schedule(period, 7, 1000, 40 * S)
    assert clock_stepped(schedule, wall=schedule.nominal(1005) + late + off, boot=schedule.due(1005) + late) is stepped


OLD = Schedule(1000, 0, 10, 500)  # due at 500, 1500, 2500 ...


@pytest.mark.parametrize(
    ("covered", "boot", "drift", "first", "due"),
    [
        (10, 500, 0, 10, 500),  # nothing covered, on the mark
        (11, 500, 0, 11, 1500),  # this mark was just read
        (11, 700, 0, 11, 1500),
        (11, 700, 300, 11, 1500),  # the clocks drifted: the grid goes on
        (11, 500, -1, 11, 1500),
        (11, 3600, 0, 14, 4500),  # 11 to 13 fell due while others were waited for
    ],
)
def test_without_a_step_the_grid_goes_on(covered: int, boot: int, drift: int, first: int, due: int) -> None:
    wall = boot + 9500 + drift
    new = following(OLD, covered=covered, stepped=False, wall=wall, boot=boot, period=OLD.period, phase=OLD.phase)
    assert (new.first, new.anchor) == (first, due)


@pytest.mark.parametrize(
    ("covered", "wall", "boot", "first", "due"),
    [
        (11, 50_100, 700, 51, 1600),
        (11, 2_900, 700, 3, 800),
        (11, 50_000, 600, 50, 600),  # now is a mark of the new grid
        (11, 50_000, 500, 51, 1500),  # and of the old one, which was read: not twice at one instant
    ],
)
def test_after_a_step_the_anchors_are_new(covered: int, wall: int, boot: int, first: int, due: int) -> None:
    new = following(OLD, covered=covered, stepped=True, wall=wall, boot=boot, period=OLD.period, phase=OLD.phase)
    assert (new.first, new.anchor) == (first, due)


@given(
    st.integers(1, 50),
    st.integers(0, 10_000),
    st.integers(0, 2_000_000),
    st.integers(0, 5),
    st.booleans(),
)
def test_a_term_never_ends_before_what_it_covers(period: int, boot: int, wall: int, taken: int, stepped: bool) -> None:
    old = Schedule(period, 0, 10, 500)
    covered = min(10 + taken, max(10, latest_due(old, boot) + 1))
    new = following(old, covered=covered, stepped=stepped, wall=wall, boot=boot, period=old.period, phase=old.phase)
    closed = due_before(old, new.anchor)
    assert closed >= covered
    assert new.anchor >= min(boot, old.due(10))
    assert stepped or new.nominal(new.first) - new.anchor == old.nominal(10) - old.anchor


def test_a_spread_phase_is_fixed_by_its_names_and_anywhere_in_the_period() -> None:
    # SHA-256 of "meter-7/energy" as a number, modulo 60000 ms.
    assert spread(60_000_000_000, "meter-7", "energy") == 55_404_000_000
    places = {spread(1_000_000_000, f"park-{site}", "meter", group) for site in range(50) for group in "ab"}
    assert all(0 <= each < 1_000_000_000 and each % 1_000_000 == 0 for each in places)
    assert len(places) > 90
    assert len({each // 100_000_000 for each in places}) == 10
    assert spread(1_000_000, "park", "meter", "a") == 0
