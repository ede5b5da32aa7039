"""What comes of records that did not come in their turn: they come late and fill the hole, plans withdraw them, or they
are missing (docs/evidence.md section 6). And that memory stays bounded meanwhile.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import Cause, Gap
from agent.verifier import WINDOW, HoleState, Level, Outcome, Verifier
from agent.verifier import book as book_module
from agent.verifier import report as report_module
from agent.verifier.holes import MOST
from tests.runs import DID, FakeClock, Run, S, frame, group, renamed, simple_run

KEY = ("pv-1", "ac")


def long_run(cycles: int = 300) -> Run:
    return simple_run(cycles, per_record=1)


def fed(*parts: list[bytes], complete: bool = True, finish: bool = True) -> Verifier:
    verifier = Verifier([DID])
    for part in parts:
        for envelope in part:
            verifier.feed(envelope)
    if finish:
        verifier.finish(complete=complete)
    return verifier


def states(verifier: Verifier) -> list[tuple[int, int, str]]:
    return [(hole.first, hole.last, hole.state) for hole in verifier.report.holes]


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_records_that_come_late_fill_the_hole(order: str) -> None:
    sent = long_run().sent
    late = sent[10:20]
    if order == "backward":
        late = late[::-1]
    elif order == "shuffled":
        random.Random(1).shuffle(late)
    verifier = fed(sent[:10], sent[20:], late)
    assert states(verifier) == [(11, 20, HoleState.FILLED)]
    report = verifier.report
    assert [report.outcome(level) for level in Level] == [Outcome.OK] * 5
    assert report.cycles() == (300, 300, 0)
    assert report.good


def test_a_hole_that_is_filled_in_part_tells_what_is_missing() -> None:
    sent = long_run().sent
    verifier = fed(sent[:10], sent[20:], sent[12:15])
    assert [(hole.missing, hole.state) for hole in verifier.report.holes] == [(7, "failed")]
    assert verifier.report.cycles() == (300, 293, 0)


def test_gaps_that_come_late_count_with_their_cause() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    run.data([frame(101)], [Gap(0, 102, 110, Cause.DEVICE_TIMEOUT)])
    for cycle in range(111, 200):
        run.data([frame(cycle)])
    verifier = fed(run.sent[:2], run.sent[3:], run.sent[2:3])
    assert verifier.report.cycles() == (100, 91, 9)
    assert verifier.report.groups[KEY].gaps == {Cause.DEVICE_TIMEOUT: 9}


def three_runs(chance: random.Random) -> tuple[list[bytes], list[bytes]]:
    """All that they sent, and of that the plans: gaps, new terms and repeated plans."""
    runs: list[Run] = []
    plans: list[bytes] = []
    for number in range(3):
        begin = 100 + 200 * number
        run = Run(after=runs[-1] if runs else None, clock=FakeClock(boot=(900 + begin) * S))
        plans.append(run.begin([group(begin, anchor=(900 + begin) * S)]))
        for cycle in range(begin, begin + 150):
            if chance.random() < 0.1:
                run.data([], [Gap(0, cycle, cycle, chance.choice([1, 2, 3]))])
            else:
                run.data([frame(cycle)])
            run.clock.now = (901 + cycle) * S
            if chance.random() < 0.05:
                plans.append(run.plan())
            elif chance.random() < 0.03:
                plans.append(run.begin([group(cycle + 1, anchor=(901 + cycle) * S)]))
        runs.append(run)
    return [envelope for run in runs for envelope in run.sent], plans


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_whatever_data_comes_late_the_account_is_that_of_all(seed: int) -> None:
    """Held back for as long as it pleases."""
    chance = random.Random(seed)
    sent, plans = three_runs(chance)
    expected = fed(sent).report
    held = [envelope for envelope in sent if envelope not in plans and chance.random() < 0.1]
    chance.shuffle(held)
    verifier = fed([envelope for envelope in sent if envelope not in held], held)
    report = verifier.report
    assert {state for _, _, state in states(verifier)} <= {HoleState.FILLED}
    assert (report.cycles(), report.groups) == (expected.cycles(), expected.groups)
    assert report.records == expected.records
    assert report.good


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_plans_that_come_late_leave_something_unknown_and_never_fail(seed: int) -> None:
    """What came before the plan that names its groups is not kept until that comes."""
    chance = random.Random(seed)
    sent, _ = three_runs(chance)
    held = [envelope for envelope in sent if chance.random() < 0.1]
    chance.shuffle(held)
    verifier = fed([envelope for envelope in sent if envelope not in held], held)
    assert not verifier.report.failures
    assert verifier.report.good


def test_data_before_the_first_plan_at_hand_leaves_something_unknown_if_an_earlier_plan_comes_late() -> None:
    first = long_run(3)
    run = Run(after=first, clock=FakeClock(boot=2000 * S))
    run.begin([group(1100, anchor=2000 * S)])
    for cycle in range(1100, 1200):
        run.data([frame(cycle)])
        if cycle == 1105:
            run.plan()
    verifier = fed(first.sent + run.sent[1:], run.sent[:1])
    assert not verifier.report.failures
    assert verifier.report.outcome(Level.COMPLETENESS) is Outcome.UNKNOWN


def test_runs_begin_in_their_order_though_the_end_of_one_and_the_beginning_of_another_are_missing() -> None:
    """What is missing is counted once."""
    first = long_run(10)
    second = run_behind(first, 1020)
    third = run_behind(second, 1040)
    third.plan()
    report = fed(first.sent[:-2] + second.sent + third.sent[2:]).report
    assert [run.joins for run in report.runs] == ["first", "continuous", "seen from its middle on"]
    assert report.cycles()[0] == 45, "100 to 144"


def run_behind(before: Run, boot: int) -> Run:
    """A run with a cycle a second for 5 s."""
    run = Run(after=before, clock=FakeClock(boot=boot * S))
    run.begin([group(boot - 900, anchor=boot * S)])
    for cycle in range(5):
        run.data([frame(boot - 900 + cycle)])
    return run


def test_a_run_is_not_cut_short_over_records_that_wait() -> None:
    """The run behind it is seen from its middle on, and says where this one ended."""
    first = long_run(80)
    second = Run(after=first, clock=FakeClock(boot=1100 * S))
    second.begin([group(200, anchor=1100 * S)])
    second.data([frame(200)])
    second.plan()
    for cycle in range(201, 201 + 2 * WINDOW):
        second.data([frame(cycle)])
    verifier = fed(first.sent[:40], first.sent[41:78], second.sent[1:], first.sent[40:41], second.sent[:1])
    assert [(hole.first, hole.last, hole.missing) for hole in verifier.report.holes if hole.missing] == [(79, 81, 3)]


def test_a_late_record_that_does_not_join_those_beside_it_is_found() -> None:
    run = long_run()
    other = Run()
    other.sealer.stream = run.sealer.stream
    other.begin([group(100)])
    for cycle in range(100, 110):
        other.data([frame(cycle, w=7)])
    verifier = fed(run.sent[:10], run.sent[11:], other.sent[10:11])
    assert verifier.report.failures[Level.CONTINUITY] == 1


def test_a_cycle_that_is_in_no_record_is_missing_also_when_all_records_came_late() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    run.data([frame(102)])  # 101 is nowhere
    for cycle in range(103, 200):
        run.data([frame(cycle)])
    verifier = fed(run.sent[:2], run.sent[3:], run.sent[2:3])
    assert states(verifier) == [(3, 3, HoleState.FILLED)]
    assert verifier.report.outcome(Level.COMPLETENESS) is Outcome.FAILED
    assert verifier.report.groups[KEY].missing == 1


def test_a_record_that_comes_again_very_late_is_not_counted() -> None:
    sent = long_run(600).sent
    verifier = fed(sent, sent[:3])
    assert (verifier.report.records, verifier.report.late) == (601, 3)
    assert verifier.report.good


def test_what_waits_behind_a_hole_is_judged_when_nothing_is_on_its_way_and_the_hole_is_filled_later() -> None:
    sent = long_run(20).sent
    verifier = Verifier([DID])
    early = [each for envelope in sent[:5] + sent[8:] for each in verifier.feed(envelope)]
    assert [each.head.link.seq for each in early if each.head] == [1, 2, 3, 4, 5]
    assert verifier.settle() == []
    judged = verifier.settle(behind_holes=True)
    assert [each.head.link.seq for each in judged if each.head] == [*range(9, len(sent) + 1)]
    assert verifier.settle(behind_holes=True) == []
    verifier = Verifier([DID], saved=verifier.save())
    late = [each for envelope in sent[5:8] for each in verifier.feed(envelope)]
    assert [each.head.link.seq for each in late if each.head] == [6, 7, 8]
    verifier.finish(complete=True)
    assert states(verifier) == [(6, 8, HoleState.FILLED)]
    assert verifier.report.good


def test_what_lies_before_the_first_record_at_hand_is_unknown() -> None:
    sent = long_run(300).sent
    verifier = Verifier([DID])
    for envelope in sent[100:]:
        verifier.feed(envelope)
    verifier.settle()
    [judged] = verifier.feed(sent[50])
    assert judged.verdict == "continuity unknown"


# ---- behind a hole ----------------------------------------------------------------------------------------------


def test_behind_a_hole_data_of_the_same_term_is_read_and_judged() -> None:
    run = long_run(100)
    verifier = Verifier([DID])
    judged = [each for envelope in run.sent[:10] + run.sent[11:] for each in verifier.feed(envelope)]
    judged += verifier.finish(complete=True)
    assert all(each.plan is not None for each in judged)
    assert verifier.report.before_plan == 0
    assert verifier.report.cycles() == (100, 99, 0)


def test_behind_a_hole_that_hid_a_new_term_data_waits_for_its_plan() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    run.clock.now = 1001 * S
    run.begin([group(101, anchor=1001 * S)])  # record 3
    run.data([frame(101)])
    run.data([frame(102)])
    run.plan()
    run.data([frame(103)])
    verifier = fed(run.sent[:2], run.sent[3:])
    assert verifier.report.before_plan == 2
    assert verifier.report.groups[KEY].missing == 2, "of what lies before the plan nothing is known"
    assert verifier.report.failures == {Level.CONTINUITY: 1, Level.COMPLETENESS: 1}
    assert not verifier.report.unknowns


@pytest.mark.parametrize("drift", [-60, -1, 0, 1, 60])
def test_what_a_hole_took_up_to_a_new_term_is_what_was_due_before_it(drift: int) -> None:
    """By the old anchor up to the new one, which slew moved by so many ms: not by the distance of the two grids."""
    run = Run()
    run.begin([group(100), renamed(group(100), "energy")])
    run.data([frame(100), frame(100, group=1)])
    run.data([frame(101), frame(101, group=1)])  # does not come
    run.data([frame(102)])
    anchor = 1103 * S + drift * 1_000_000
    due = 203 if drift <= 0 else 204
    run.data([frame(cycle) for cycle in range(103, due)], [Gap(1, 102, due - 1, Cause.LINK_DOWN)])  # nor does this
    run.clock.now = anchor - 1
    run.begin([group(203, anchor=anchor), renamed(group(203, anchor=anchor), "energy")])
    verifier = fed(run.sent[:2], run.sent[3:4], run.sent[5:])
    groups = verifier.report.groups
    assert (groups[KEY].missing, groups["pv-1", "energy"].missing) == (due - 101 - 1, due - 101)
    assert verifier.report.failures == {Level.CONTINUITY: 2, Level.COMPLETENESS: 2}


# ---- bounds -----------------------------------------------------------------------------------------------------


def test_too_many_holes_of_a_stream_become_one() -> None:
    sent = long_run(5 * (MOST + 20)).sent
    verifier = fed([envelope for i, envelope in enumerate(sent) if i % 5 != 3], finish=False)
    assert len(verifier.report.holes) <= MOST
    verifier.finish(complete=True)
    report = verifier.report
    expected, present, in_gaps = report.cycles()
    assert (expected, expected - present - in_gaps) == (5 * (MOST + 20), MOST + 20)


def test_memory_does_not_grow_with_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with runs: the state that is saved says all that is remembered."""
    monkeypatch.setattr(book_module, "MOST_STREAMS", 20)
    monkeypatch.setattr(report_module, "LISTED", 20)
    verifier, run, sizes = Verifier([DID]), None, []
    for number in range(120):
        run = Run(after=run, clock=FakeClock(boot=(1000 + 10 * number) * S))
        run.begin([group(100 + 10 * number, anchor=(1000 + 10 * number) * S)])
        for cycle in range(5):
            run.data([frame(100 + 10 * number + cycle)])
        for envelope in run.sent:
            verifier.feed(envelope)
        sizes.append(len(verifier.save()))
    assert max(sizes[60:]) < 1.05 * sizes[40]
    verifier.finish(complete=True)
    report = verifier.report
    assert report.good
    assert len(report.runs) == 20
    assert report.channels[-1].joins == {"first": 1, "continuous": 119}
    assert report.cycles() == (10 * 119 + 5, 600, 595)


def test_streams_that_never_begin_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MOST_STREAMS", 20)
    verifier = Verifier([DID])
    for _ in range(100):
        run = long_run(WINDOW // 2)
        verifier.feed(run.sent[5])
    assert len(verifier._book.streams) <= 20
    assert verifier.report.records == 80
