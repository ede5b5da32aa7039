"""How the verifier tells that runs join, that the store forgot, and that two agents use one key (docs/evidence.md
section 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from agent.evidence.envelope import seal
from agent.model import Cause, ClockQuality, ClockState, EventCode
from agent.signer import KeySigner
from agent.verifier import Join, Level, Outcome, Report, Signer, Verifier
from tests.runs import DID, OTHER_SECRET, SECRET, FakeClock, Run, S, frame, group, simple_run

OTHER_DID = KeySigner(OTHER_SECRET).did
KEY = ("pv-1", "ac")
BOOTS = [bytes([n]) * 16 for n in range(4)]


def verified(*parts: Sequence[bytes], accept: Iterable[Signer | str] = (DID,), complete: bool = True) -> Report:
    verifier = Verifier(accept)
    for part in parts:
        for envelope in part:
            verifier.feed(envelope)
    verifier.finish(complete=complete)
    return verifier.report


def run_at(
    boot: int, cycles: int = 3, *, after: Run | None = None, last: int | None = None, boot_id: bytes | None = None
) -> Run:
    """A run that begins ``boot`` s after the machine did, with a cycle a second. It follows record ``last`` of
    ``after``, which is all that the store still has.
    """
    store = after
    if after is not None and last is not None:
        store = Run()
        store.sent, store.links = after.sent[:last], after.links[:last]
    run = Run(after=store, clock=FakeClock(boot=boot * S))
    if boot_id is not None:
        run.sealer.facts = replace(run.sealer.facts, boot_id=boot_id)
    run.begin([group(boot - 900, anchor=boot * S)])
    for cycle in range(cycles):
        run.clock.now = (boot + cycle) * S
        run.data([frame(boot - 900 + cycle)])
    return run


def joins(report: Report) -> list[str]:
    return [run.joins for run in report.runs]


# ---- the store forgot -------------------------------------------------------------------------------------------


def test_a_store_that_forgot_what_was_published_is_rolled_back() -> None:
    first = run_at(1000, 5)
    second = run_at(1010, after=first, last=3)  # records 4 to 6 are not known there
    report = verified(first.sent, second.sent)
    assert joins(report) == ["first", "rolled back 3"]
    assert report.good
    assert report.groups[KEY].gaps == {Cause.AGENT_DOWN: 5}, "data wins over a gap"
    assert report.cycles() == (13, 8, 5)


def test_what_the_store_forgot_may_come_behind_the_new_run() -> None:
    first = run_at(1000, 5)
    second = run_at(1010, after=first, last=3)
    report = verified(first.sent[:3], second.sent, first.sent[3:])
    assert joins(report) == ["first", "rolled back 3"]
    assert report.good


def test_a_restored_backup_forgets_whole_runs() -> None:
    first = run_at(1000)
    second = run_at(1010, after=first)
    third = run_at(1020, after=second)
    restored = run_at(1030, after=first, last=2)
    report = verified(*(run.sent for run in (first, second, third, restored)))
    assert joins(report) == ["first", "continuous", "continuous", "rolled back 10"]
    assert report.good
    assert report.groups[KEY].gaps == {Cause.AGENT_DOWN: 7 * 3}


def test_a_card_that_is_put_back_is_no_fork() -> None:
    first = run_at(1000)
    spare = run_at(1010, after=first, last=2, boot_id=BOOTS[1])
    back = run_at(1020, after=first, boot_id=BOOTS[2])
    report = verified(first.sent, spare.sent, back.sent)
    assert joins(report) == ["first", "rolled back 2", "rolled back 4"]
    assert report.good


# ---- two agents -------------------------------------------------------------------------------------------------


def interleaved(one: Run, other: Run) -> list[bytes]:
    return [envelope for pair in zip(one.sent, other.sent, strict=True) for envelope in pair]


def test_two_children_at_the_same_time_are_a_fork() -> None:
    parent = run_at(1000)
    one, other = run_at(1010, 5, after=parent), run_at(1012, 5, after=parent)
    report = verified(parent.sent, interleaved(one, other))
    assert joins(report)[1:] == [
        "continuous",
        f"fork: at the same time as run {one.sealer.stream.hex()[:8]}: two agents use this key",
    ]
    assert report.outcome(Level.CONTINUITY) is Outcome.FAILED
    assert report.failures == {Level.CONTINUITY: 1}, "it is said once"


def test_the_elder_may_come_after_the_younger() -> None:
    parent = run_at(1000)
    one, other = run_at(1010, 5, after=parent), run_at(1012, 5, after=parent)
    report = verified(parent.sent, other.sent, one.sent)
    assert [run.join for run in report.runs if run.stream == other.sealer.stream] == [Join.FORK]


def test_a_run_that_goes_on_while_another_follows_it_is_a_fork() -> None:
    parent = run_at(1000, 20)
    clone = run_at(1010, after=parent, last=5)
    report = verified(parent.sent[:12], clone.sent, parent.sent[12:])
    assert [run.join for run in report.runs] == [Join.FIRST, Join.FORK]
    assert not report.good


def of_two_boots(*, apart: int, error_us: int | None, clock: int) -> tuple[Run, Run, Run]:
    """A run, and two that follow it, each in a boot of its own; the second begins ``apart`` s behind the first one's
    beginning, each lasts for 10 s.
    """
    runs: list[Run] = []
    for boot_id, begin in zip(BOOTS, (1000, 2000, 2000 + apart), strict=False):
        run = Run(after=runs[0] if runs else None, clock=FakeClock(boot=5 * S, offset=begin * S))
        run.sealer.facts = replace(run.sealer.facts, boot_id=boot_id)
        run.clock.good = ClockQuality(ClockState(clock), error_us)
        run.begin([group(begin + 5, anchor=5 * S)])
        for cycle in range(10):
            run.clock.now = (5 + cycle) * S
            run.data([frame(begin + 5 + cycle)])
        runs.append(run)
    return runs[0], runs[1], runs[2]


@pytest.mark.parametrize(
    ("apart", "error_us", "clock", "fork"),
    [
        (5, 1000, ClockState.SYNCHRONISED, True),
        (20, 1000, ClockState.SYNCHRONISED, False),
        (5, 4_000_000, ClockState.SYNCHRONISED, False),
        (8, 500_000, ClockState.SYNCHRONISED, False),
        (5, None, ClockState.SYNCHRONISED, False),
        (5, 1000, ClockState.NOT_SYNCHRONISED, False),
        (5, 1000, ClockState.UNKNOWN, False),
    ],
)
def test_across_boots_only_synchronised_clocks_tell_a_fork(
    apart: int, error_us: int | None, clock: int, fork: bool
) -> None:
    parent, one, other = of_two_boots(apart=apart, error_us=error_us, clock=clock)
    report = verified(parent.sent, interleaved(one, other))
    assert (Join.FORK in {run.join for run in report.runs}) is fork
    assert report.good is not fork


def test_one_key_in_two_devices_with_outboxes_of_their_own_is_a_fork() -> None:
    _, one, other = of_two_boots(apart=3, error_us=100, clock=ClockState.SYNCHRONISED)
    for run in (one, other):
        run.sealer._follows = run.sealer._resumes = None
    report = verified(interleaved(one, other))
    assert Join.FORK in {run.join for run in report.runs}


# ---- kept in memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_run_kept_in_memory_is_neither_parent_nor_child_and_its_data_wins(late: bool) -> None:
    first = run_at(1000)  # cycles 100 to 102
    memory = Run(clock=FakeClock(boot=1005 * S))
    original = memory.sealer.begin_term

    def begin_volatile(**arguments: object) -> None:
        original(**arguments)  # type: ignore[arg-type]
        assert memory.sealer.coverage is not None
        memory.sealer.coverage.plan = replace(memory.sealer.coverage.plan, volatile=True)

    memory.sealer.begin_term = begin_volatile  # type: ignore[method-assign]
    memory.begin([group(105, anchor=1005 * S)])
    memory.data([frame(105), frame(106)])
    second = run_at(1010, after=first)
    report = verified(first.sent, *([second.sent, memory.sent] if late else [memory.sent, second.sent]))
    assert {run.join for run in report.runs} == {Join.FIRST, Join.VOLATILE, Join.CONTINUOUS}
    assert report.good
    assert report.groups[KEY].gaps == {Cause.AGENT_DOWN: 5}, "cycles 103, 104, 107, 108, 109"
    assert report.cycles() == (13, 8, 5)


# ---- late -------------------------------------------------------------------------------------------------------


def test_a_run_that_comes_after_the_one_that_follows_it_is_joined_in_the_end() -> None:
    first, verifier = run_at(1000), Verifier([DID])
    second = run_at(1010, after=first)
    third = run_at(1020, after=second)
    for envelope in first.sent + third.sent:
        verifier.feed(envelope)
    verifier.settle()
    for envelope in second.sent:
        verifier.feed(envelope)
    verifier.finish(complete=True)
    report = verifier.report
    assert report.good
    assert {run.joins for run in report.runs} == {"first", "continuous"}
    assert report.holes == []
    assert report.cycles() == (23, 9, 14)


# ---- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("silent", "overdue"), [(299, None), (400, 400 * S)])
def test_a_channel_that_is_silent_for_too_long_is_overdue(silent: int, overdue: int | None) -> None:
    run, verifier = run_at(1000), Verifier([DID])
    for envelope in run.sent:
        verifier.feed(envelope)
    verifier.finish(now=run.clock.wall() + silent * S)
    assert [channel.overdue_ns for channel in verifier.report.channels if channel.channel] == [overdue]
    assert verifier.report.good


def test_an_agent_that_was_stopped_is_not_overdue() -> None:
    run, verifier = run_at(1000), Verifier([DID])
    run.event(EventCode.STOP, "SIGTERM")
    for envelope in run.sent:
        verifier.feed(envelope)
    verifier.finish(now=run.clock.wall() + 10**9 * S)
    assert [channel.overdue_ns for channel in verifier.report.channels if channel.channel] == [None]
    assert verifier.report.runs[0].stopped == "SIGTERM"


# ---- several signers --------------------------------------------------------------------------------------------


def test_agents_and_channels_are_accounted_for_apart() -> None:
    mine, other = simple_run(4), Run(secret=OTHER_SECRET)
    market = Run()
    market.sealer.facts = replace(market.sealer.facts, channel="market")
    for run in (other, market):
        run.begin([group(100)])
        run.data([frame(100)])
    report = verified(mine.sent, other.sent, market.sent, accept=[DID, OTHER_DID])
    assert report.good
    assert {(c.signer, c.channel): c.records for c in report.told()} == {
        (DID, "dso"): 3,
        (OTHER_DID, "dso"): 2,
        (DID, "market"): 2,
    }


def test_nobody_withdraws_or_stands_in_the_way_of_anothers_records() -> None:
    mine, other = simple_run(10), Run(secret=OTHER_SECRET)
    other.sealer.stream = mine.sealer.stream
    other.begin([group(100)])
    other.withdraw(3, 4, Cause.OVERFLOW)
    other.plan()
    report = verified(other.sent, mine.sent[:2], mine.sent[4:], accept=[DID, OTHER_DID])
    assert [(hole.first, hole.last, hole.state) for hole in report.holes] == [(3, 4, "failed")]
    assert report.failures[Level.SIGNATURE] == 0


def test_a_signer_may_write_only_the_channels_of_the_allow_list() -> None:
    run = simple_run(4)
    report = verified(run.sent, accept=[Signer(DID, "Solar park 7", frozenset({"dso"}))])
    assert report.good
    assert [channel.name for channel in report.told()] == ["Solar park 7"]
    report = verified(run.sent, accept=[Signer(DID, "Solar park 7", frozenset({"market"}))])
    assert report.failures == {Level.IDENTITY: 3}
    report = verified(run.sent[1:], accept=[Signer(DID, "Solar park 7", frozenset({"market"}))], complete=False)
    assert report.outcome(Level.IDENTITY) is Outcome.UNKNOWN, "its channel is not known before a plan is at hand"


def test_the_same_key_signed_text_is_never_evidence() -> None:
    signer = KeySigner(SECRET, did=DID)
    verifier = Verifier([DID])
    judged = verifier.feed(seal(b"text from outside", protected=Run().sealer._protected, signer=signer))
    assert [each.verdict for each in judged] == ["structure failed"]


@pytest.mark.parametrize(
    ("clock", "error_us", "known"),
    [
        (ClockState.SYNCHRONISED, 1000, True),
        (ClockState.NOT_SYNCHRONISED, None, False),
        (ClockState.UNKNOWN, None, False),
    ],
)
def test_across_boots_the_length_of_a_pause_is_as_good_as_both_clocks(
    clock: int, error_us: int | None, known: bool
) -> None:
    first, second, _ = of_two_boots(apart=20, error_us=error_us, clock=clock)
    report = verified(first.sent, second.sent)
    assert [run.length_known for run in report.runs] == [True, known]


# ---- the run before it comes later ------------------------------------------------------------------------------


def test_a_run_that_comes_after_the_one_that_follows_it_is_joined() -> None:
    first = run_at(1000)
    second = run_at(1010, 80, after=first)  # more than may wait
    report = verified(second.sent, first.sent)
    assert [run.joins for run in report.runs] == ["continuous", "first"]
    assert all(report.outcome(level) is Outcome.OK for level in Level)
    assert report.groups[KEY].gaps == {Cause.AGENT_DOWN: 7}


def test_a_run_that_comes_after_the_one_that_follows_it_is_held_against_its_prev() -> None:
    first = run_at(1000)
    store = Run()
    store.sent, store.links = first.sent, [*first.links[:-1], first.links[-1]._replace(digest=bytes(32))]
    report = verified(run_at(1010, 80, after=store).sent, first.sent)
    assert [run.joins for run in report.runs] == ["broken", "first"]
    assert report.outcome(Level.CONTINUITY) is Outcome.FAILED


def test_what_a_store_forgot_is_in_no_gap_though_it_comes_later() -> None:
    first = run_at(1000, 4)
    forgot = run_at(1010, after=first, last=3)
    report = verified(first.sent[:3], forgot.sent, first.sent[3:])
    assert [run.joins for run in report.runs] == ["first", "rolled back 2"]
    assert report.groups[KEY].present == 7
    assert report.groups[KEY].gaps == {Cause.AGENT_DOWN: 6}


def test_runs_that_wait_for_the_same_one_begin_in_order() -> None:
    first = run_at(1000)
    second, backup = run_at(1010, after=first), run_at(1020, after=first)
    report = verified(first.sent[:-1], second.sent, backup.sent, first.sent[-1:])
    assert [(run.stream, run.joins) for run in report.runs[1:]] == [
        (second.sealer.stream, "continuous"),
        (backup.sealer.stream, "rolled back 4"),
    ]
