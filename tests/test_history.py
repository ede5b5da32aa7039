"""What the last run left behind: a new run's plan says from where on nothing was stored (docs/evidence.md section 4,
resumes).
"""

from __future__ import annotations

import pytest

from agent.evidence.history import History, replay
from agent.model import Cause, EventCode, Gap, Resume, Withdrawn
from tests.runs import Run, S, frame, group, renamed


def a_run() -> Run:
    """Two groups, at cycles 103 and 102."""
    run = Run()
    run.begin([group(100), renamed(group(100), "energy")])
    run.event(EventCode.START, "0.1.0", True)
    run.data([frame(100), frame(101), frame(100, group=1)], [Gap(1, 101, 101, Cause.DEVICE_TIMEOUT)])
    run.data([frame(102)])
    return run


AT = (Resume("pv-1", "ac", 1, 103), Resume("pv-1", "energy", 1, 102))


def test_nothing_at_all() -> None:
    assert replay([]) == History()


def test_the_first_uncovered_cycles() -> None:
    assert replay(a_run().sent) == History(AT, (), clean=False, sealed=1000 * S)


def test_a_stop_is_clean_only_as_the_last_record() -> None:
    run = a_run()
    run.event(EventCode.STOP, "SIGTERM")
    assert replay(run.sent).clean
    run.data([frame(103)])
    assert not replay(run.sent).clean


def test_a_segment_that_begins_with_a_repeated_plan() -> None:
    run = a_run()
    run.plan()
    assert replay(run.sent[-1:]) == History(AT, sealed=1000 * S)
    run.data([frame(103)])
    assert replay(run.sent[-2:]).resumes[0] == Resume("pv-1", "ac", 1, 104)


def test_a_new_term() -> None:
    run = a_run()
    run.clock.now = 1003 * S
    run.begin([group(500, anchor=1003 * S), renamed(group(500, anchor=1003 * S), "energy")])
    run.data([frame(500)])
    assert replay(run.sent).resumes == (Resume("pv-1", "ac", 2, 501), Resume("pv-1", "energy", 2, 500))


def test_a_new_run_in_the_same_segment() -> None:
    first = a_run()
    second = Run(after=first)
    second.begin([group(200)])
    second.data([frame(200)])
    assert replay(first.sent + second.sent).resumes == (Resume("pv-1", "ac", 1, 201),)


def test_what_the_last_plan_withdrew() -> None:
    run = a_run()
    run.withdraw(2, 3, Cause.OVERFLOW)
    run.plan()
    stated = (Withdrawn(run.sealer.stream, 2, 3, Cause.OVERFLOW),)
    assert replay(run.sent).withdrawn == stated
    run.sealer.forget_withdrawn()
    assert replay(run.sent).withdrawn == stated
    run.plan()
    assert replay(run.sent).withdrawn == ()


def test_a_plan_behind_unreadable_records_knows_better() -> None:
    run = a_run()
    sent = run.sent[:2]
    run.plan()
    assert replay([*sent, run.sent[-1]]) == History(AT, sealed=1000 * S), "the data between them is rot"


@pytest.mark.parametrize("rot", [b"", b"\xd2\x84garbage", bytes(100)])
def test_what_cannot_be_read_is_passed_over(rot: bytes) -> None:
    run = a_run()
    assert replay([run.sent[0], rot, *run.sent[1:], rot]).resumes == AT
    assert replay([rot]) == History()


def test_data_without_its_plan_says_nothing() -> None:
    run = a_run()
    assert replay(run.sent[1:]) == History(sealed=1000 * S)
    assert replay([run.sent[0], run.data([frame(900)], term=7)]).resumes[0].cycle == 100
