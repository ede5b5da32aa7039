"""The verifier: true histories verify without an alarm, everything else is found at the right level (docs/evidence.md
section 6).
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.evidence import cbor
from agent.evidence import envelope as envelope_module
from agent.evidence.envelope import envelopes, protected_header, seal
from agent.evidence.history import History, replay
from agent.model import Cause, EventCode, Gap, GroupPlan
from agent.rendering.account import summary
from agent.rendering.objects import as_json
from agent.rendering.text import text_lines
from agent.signer import KeySigner
from agent.verifier import WINDOW, Judged, Level, Outcome, Report, Verifier
from tests.runs import DEVICE, DID, OTHER_SECRET, POINTS, SECRET, FakeClock, Run, S, frame, group, renamed, simple_run


def verified(sent: list[bytes], *, complete: bool = True) -> tuple[Report, list[Judged]]:
    verifier = Verifier([DID])
    judged = [each for envelope in sent for each in verifier.feed(envelope)]
    judged += verifier.finish(complete=complete)
    return verifier.report, judged


def findings(judged: list[Judged]) -> str:
    return "\n".join(str(finding) for each in judged for finding in each.findings)


def assert_all_ok(report: Report, judged: list[Judged]) -> None:
    assert findings(judged) == ""
    assert [report.outcome(level) for level in Level] == [Outcome.OK] * 5
    assert report.good


# ---- true histories ---------------------------------------------------------------------------------------------


def test_a_clean_run_is_ok_at_every_level() -> None:
    report, judged = verified(simple_run(10).sent)
    assert_all_ok(report, judged)
    assert (report.records, report.frames, report.cycles()) == (6, 10, (10, 10, 0))
    assert summary(report) == (
        "verified 6 records, 10 frames, 0 failed: signature ok, continuity ok, completeness ok "
        "(10 of 10 cycles, 0 in gaps)"
    )


def test_gaps_count_by_cause() -> None:
    run = Run()
    run.begin([group(5)])
    run.data([frame(5), frame(8)], [Gap(0, 6, 7, Cause.DEVICE_TIMEOUT)])
    run.data([], [Gap(0, 9, 20, Cause.LINK_DOWN, "refused")])
    report, judged = verified(run.sent)
    assert_all_ok(report, judged)
    assert report.groups["pv-1", "ac"].gaps == {Cause.DEVICE_TIMEOUT: 2, Cause.LINK_DOWN: 12}
    assert report.cycles() == (16, 2, 14)


def test_repeated_plans_events_and_a_new_term_are_in_order() -> None:
    run = Run()
    run.begin([group(100)])
    run.event(EventCode.START, "0.1.0", False)
    run.data([frame(100), frame(101)])
    run.plan()
    run.clock.now = 1002 * S + S // 2
    run.data([frame(102)])
    run.begin(
        [group(103, anchor=1003 * S)], [replace(DEVICE, serial="SN2")]
    )  # cycle 102 was the last due before 1003 s
    run.data([frame(103)])
    report, judged = verified(run.sent)
    assert_all_ok(report, judged)
    assert report.cycles() == (4, 4, 0)


def test_a_restart_is_continuous_and_its_time_is_agent_down() -> None:
    first = simple_run(10)  # cycles 100 to 109, due at 1000 to 1009 s
    second = Run(after=first, clock=FakeClock(boot=1020 * S))
    second.begin([group(120, anchor=1020 * S)])
    second.data([frame(120)])
    report, judged = verified(first.sent + second.sent)
    assert_all_ok(report, judged)
    assert [run.joins for run in report.runs] == ["first", "continuous"]
    assert report.groups["pv-1", "ac"].gaps == {Cause.AGENT_DOWN: 10}
    assert report.cycles() == (21, 11, 10)


def test_withdrawn_records_are_accounted_for() -> None:
    run = Run()
    run.begin([group(100)])
    for cycle in range(100, 110):
        run.data([frame(cycle)])
    run.withdraw(3, 5, Cause.OVERFLOW)
    run.plan()  # record 12
    lost = [envelope for i, envelope in enumerate(run.sent, start=1) if i not in (3, 4, 5)]
    report, judged = verified(lost)
    assert report.outcome(Level.CONTINUITY) is Outcome.OK
    assert [hole.state for hole in report.holes] == ["accounted"]
    assert not report.failed
    assert findings(judged) == ""
    assert report.groups["pv-1", "ac"].gaps == {Cause.OVERFLOW: 3}
    assert report.cycles() == (10, 7, 3)


def test_cycles_behind_an_accounted_hole_count_with_its_cause() -> None:
    run = Run()
    run.begin([group(100)])
    for cycle in range(100, 104):
        run.data([frame(cycle)])
    run.plan()  # record 6 heads the next surviving segment
    run.data([frame(104)])
    run.withdraw(2, 5, Cause.OVERFLOW)
    run.plan()
    report, judged = verified([run.sent[0], *run.sent[5:]])
    assert_all_ok(report, judged)
    assert report.cycles() == (5, 1, 4)
    assert report.groups["pv-1", "ac"].gaps == {Cause.OVERFLOW: 4}


def test_late_joiners_start_anywhere() -> None:
    run = Run()
    run.begin([group(100)])
    for cycle in range(100, 110):
        run.data([frame(cycle)])
    run.plan()
    run.data([frame(110)])
    report, _ = verified(run.sent[5:])
    assert not report.failed
    assert report.before_plan == 6
    assert report.cycles() == (1, 1, 0)


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_order_within_the_window_and_repeats_do_not_matter(seed: int) -> None:
    first = simple_run(60)
    second = Run(after=first, clock=FakeClock(boot=1100 * S))
    second.begin([group(200, anchor=1100 * S)])
    for cycle in range(200, 230):
        second.data([frame(cycle)])
    chance = random.Random(seed)
    sent = first.sent + second.sent
    sent += [chance.choice(sent) for _ in range(20)]
    shuffled = [envelope for _, envelope in sorted((i + chance.random() * 60, e) for i, e in enumerate(sent))]
    report, judged = verified(shuffled)
    assert_all_ok(report, [each for each in judged if not each.repeat])
    assert report.records == len(first.sent) + len(second.sent)
    assert report.repeats == 20


# ---- attacks and faults -----------------------------------------------------------------------------------------


def test_every_flipped_bit_of_an_envelope_is_found() -> None:
    run = simple_run(2)
    plan, data = run.sent
    for position in range(len(data) * 8):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        report, judged = verified([plan, bytes(broken)], complete=False)
        bad = [each for each in judged if each.verdict != "ok"]
        assert bad or report.foreign, f"bit {position} of the envelope"
        assert report.frames == 0


def test_every_truncation_is_found() -> None:
    run = simple_run(2)
    for length in range(len(run.sent[1])):
        report, _ = verified([run.sent[0], run.sent[1][:length]], complete=False)
        assert report.failures[Level.STRUCTURE] == 1


def test_cutting_the_middle_fails_continuity_when_the_input_is_complete() -> None:
    sent = simple_run(10).sent
    report, _ = verified(sent[:3] + sent[4:])
    assert report.outcome(Level.CONTINUITY) is Outcome.FAILED
    assert [(hole.first, hole.last, hole.state) for hole in report.holes] == [(4, 4, "failed")]
    report, _ = verified(sent[:3] + sent[4:], complete=False)
    assert report.outcome(Level.CONTINUITY) is Outcome.UNKNOWN
    assert not report.failed


def test_a_hole_is_given_up_when_more_than_the_window_waits() -> None:
    sent = simple_run(2 * WINDOW + 10, per_record=1).sent
    verifier = Verifier([DID])
    judged = [each for envelope in sent[:5] + sent[6:] for each in verifier.feed(envelope)]
    assert len(judged) > WINDOW
    assert verifier.report.holes


def test_another_record_with_the_same_number_is_equivocation() -> None:
    run = simple_run(4)
    twin = Run(clock=FakeClock())
    twin.sealer.stream = run.sealer.stream
    twin.begin([group(100)])
    _, judged = verified([*run.sent, twin.data([frame(100, w=999)])])
    assert "equivocation" in findings(judged)


def test_a_broken_chain_is_found() -> None:
    run = simple_run(4)
    other = Run(clock=FakeClock())
    other.sealer.stream = run.sealer.stream
    other.begin([group(100)])
    other.data([frame(100), frame(101, w=7)])
    _, judged = verified([*run.sent[:2], other.data([frame(102)])])
    assert "the chain is broken" in findings(judged)


def test_other_signers_are_foreign_and_not_judged() -> None:
    stranger = Run(secret=OTHER_SECRET)
    report, judged = verified([stranger.begin([group(1)])])
    assert report.foreign == 1
    assert report.records == 0
    assert judged[0].record is None
    assert not report.good


def test_high_s_is_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    envelope = simple_run(2).sent[0]
    s = int.from_bytes(envelope[-32:], "big")
    report, judged = verified([envelope[:-32] + (order - s).to_bytes(32, "big")])
    assert "high s" in findings(judged)
    assert report.failures == {Level.SIGNATURE: 1}


def test_hidden_cycles_fail_completeness() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100), frame(102)])
    report, judged = verified(run.sent)
    assert "cycles 101 to 101 are neither present nor in a gap" in findings(judged)
    assert report.groups["pv-1", "ac"].missing == 1
    assert report.outcome(Level.COMPLETENESS) is Outcome.FAILED


def test_a_cycle_covered_twice_fails_completeness() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100), frame(101)])
    run.data([], [Gap(0, 101, 102, Cause.OVERRUN)])
    _, judged = verified(run.sent)
    assert "cycle 101 is covered twice" in findings(judged)


def test_a_term_that_ends_too_early_fails_completeness() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    run.clock.now = 1005 * S
    run.begin([group(105, anchor=1005 * S)])  # cycles 101 to 104 were due
    report, judged = verified(run.sent)
    assert "the old term was closed at cycle 101, 105 was due" in findings(judged)
    assert report.groups["pv-1", "ac"].missing == 4


def test_a_group_that_goes_is_closed_at_the_new_terms_opening() -> None:
    run = Run()
    run.begin([group(100), renamed(group(100), "energy")])
    run.data([frame(100), frame(100, group=1)])
    run.clock.now = 1001 * S
    run.begin([group(101, anchor=1001 * S)])
    run.data([frame(101)])
    report, judged = verified(run.sent)
    assert_all_ok(report, judged)


def test_a_repeated_plan_that_counts_otherwise_fails() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    assert run.sealer.coverage is not None
    run.sealer.coverage.next[0] = 105
    run.plan()
    run.sealer.coverage.next[0] = 103  # and back: nothing is missing then
    run.plan()
    report, judged = verified(run.sent)
    assert "the plan says next cycle 105, the records say 101" in findings(judged)
    assert "the plan says next cycle 103, the records say 105" in findings(judged)
    assert report.groups["pv-1", "ac"].missing == 4


def test_messages_that_are_not_counted_from_0_fail() -> None:
    run = Run()
    run.begin([GroupPlan("state", 0, None, 5, POINTS)])
    report, judged = verified(run.sent)
    assert "messages are counted from 5, not 0" in findings(judged)
    assert report.outcome(Level.COMPLETENESS) is Outcome.FAILED


def test_data_of_a_term_not_in_force_fails() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)], term=2)
    report, _ = verified(run.sent)
    assert report.failures[Level.COMPLETENESS] == 1


def test_unknown_causes_and_kinds_are_reported_and_never_fail() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)], [Gap(0, 101, 101, 99)])
    run.event(77, "from the future")
    report, judged = verified(run.sent)
    assert_all_ok(report, judged)
    assert report.news == {"cause 99": 1, "event 77": 1}


@given(st.binary(max_size=400))
def test_any_bytes_are_judged(data: bytes) -> None:
    report, judged = verified([data, b"\xd2\x84" + data])
    assert report.failed == 2
    assert {each.verdict for each in judged} == {"structure failed"}


@pytest.mark.parametrize("did", ["", "did:ethr:volta:0x12", "did:web:example.org", f"{DID}#key-2"])
def test_what_is_no_did_is_not_accepted(did: str) -> None:
    with pytest.raises(ValueError, match="did:ethr"):
        Verifier([did])


def test_dids_are_compared_by_chain_and_address() -> None:
    run = simple_run(2)
    for same in (DID.lower(), "did:ethr:0x12047:" + DID[-42:]):
        verifier = Verifier([same])
        for envelope in run.sent:
            verifier.feed(envelope)
        verifier.finish()
        assert verifier.report.foreign == 0


# ---- runs -----------------------------------------------------------------------------------------------------------


def three_runs() -> list[Run]:
    """Each with three cycles and a pause of two behind it."""
    runs: list[Run] = []
    for number in range(3):
        begin = 100 + 5 * number
        run = Run(after=runs[-1] if runs else None, clock=FakeClock(boot=(900 + begin) * S))
        run.begin([group(begin, anchor=(900 + begin) * S)])
        run.data([frame(begin), frame(begin + 1), frame(begin + 2)])
        runs.append(run)
    return runs


def test_three_runs_are_complete() -> None:
    report, judged = verified([envelope for run in three_runs() for envelope in run.sent])
    assert_all_ok(report, judged)
    assert report.cycles() == (13, 9, 4)


def test_a_run_that_is_missing_as_a_whole_is_a_hole() -> None:
    first, second, third = three_runs()
    report, _ = verified(first.sent + third.sent)
    assert [(hole.stream, hole.first, hole.last, hole.state) for hole in report.holes] == [
        (second.sealer.stream, 1, len(second.sent), "failed")
    ]
    assert report.outcome(Level.CONTINUITY) is Outcome.FAILED
    assert not report.good
    assert report.cycles() == (13, 6, 0)
    report, _ = verified(first.sent + third.sent, complete=False)
    assert report.outcome(Level.CONTINUITY) is Outcome.UNKNOWN


def test_a_run_of_which_the_beginning_is_missing_is_a_hole() -> None:
    first, second, _ = three_runs()
    second.plan()
    report, _ = verified(first.sent + second.sent[2:], complete=True)
    assert [(hole.stream, hole.first, hole.last) for hole in report.holes] == [(second.sealer.stream, 1, 2)]
    assert not report.good


def test_a_run_that_was_dropped_as_a_whole_is_accounted_for() -> None:
    first, second, third = three_runs()
    third.withdraw(1, len(second.sent), Cause.OVERFLOW, stream=second.sealer.stream)
    third.plan()
    report, judged = verified(first.sent + third.sent)
    assert_all_ok(report, judged)
    assert report.cycles() == (13, 6, 7)


def test_the_first_run_at_hand_may_follow_one_that_is_not() -> None:
    _, second, third = three_runs()
    report, judged = verified(second.sent + third.sent)
    assert_all_ok(report, judged)
    assert report.runs[0].joins.startswith("unknown")


@pytest.mark.parametrize("cut", [1, 2])
def test_a_beheaded_run_without_any_plan_is_a_hole(cut: int) -> None:
    first, second, third = three_runs()
    second.data([frame(108)])
    report, _ = verified(first.sent + second.sent[cut:] + third.sent)
    assert (second.sealer.stream, 1, cut) in {(hole.stream, hole.first, hole.last) for hole in report.holes}
    assert any(run.stream == second.sealer.stream for run in report.runs)
    assert not report.good
    report, _ = verified(first.sent + second.sent + third.sent[1:])
    assert not report.good


def test_a_new_outbox_is_told_and_its_join_unknown() -> None:
    first, again = three_runs()[0], Run(clock=FakeClock(boot=1005 * S))
    again.begin([group(105, anchor=1005 * S)])
    report, _ = verified(first.sent + again.sent)
    assert [run.joins for run in report.runs] == ["first", "unknown: a new outbox, it follows none"]
    assert report.outcome(Level.CONTINUITY) is Outcome.UNKNOWN
    assert not report.failed


def test_what_was_dropped_before_the_first_record_at_hand_is_accounted_for() -> None:
    run = Run()
    run.begin([group(100)])
    for cycle in range(100, 105):
        run.data([frame(cycle)])
    run.plan()
    run.data([frame(105)])
    run.withdraw(1, 6, Cause.OVERFLOW)
    run.plan()
    report, judged = verified(run.sent[6:])
    assert_all_ok(report, judged)
    assert [(hole.first, hole.last, hole.state) for hole in report.holes] == [(1, 6, "accounted")]
    assert report.cycles() == (6, 1, 5)


def test_runs_of_other_channels_are_not_missed() -> None:
    first, second, _ = three_runs()
    other = Run(clock=FakeClock(boot=2000 * S))
    other.sealer.facts = replace(other.sealer.facts, channel="market")
    other.begin([group(7)])
    report, judged = verified(other.sent + second.sent)
    assert_all_ok(report, judged)
    assert first.sealer.stream not in {hole.stream for hole in report.holes}


@pytest.mark.parametrize("cycle", [102, 104, None])
def test_resumes_that_says_something_else_than_the_records_fails(cycle: int | None) -> None:
    first = three_runs()[0]
    history = replay(first.sent)
    resumes = tuple(replace(each, cycle=cycle) for each in history.resumes) if cycle else ()
    second = Run(clock=FakeClock(boot=1005 * S), last=first.links[-1], history=replace(history, resumes=resumes))
    second.begin([group(105, anchor=1005 * S)])
    report, judged = verified(first.sent + second.sent)
    assert "resumes elsewhere" in findings(judged)
    assert report.outcome(Level.COMPLETENESS) is Outcome.FAILED
    assert report.cycles() == (5, 3, 2), "counted by the records"


def test_cycles_in_a_hole_at_a_runs_end_are_missing() -> None:
    first = three_runs()[0]
    first.data([frame(103)])
    second = Run(after=first, clock=FakeClock(boot=1006 * S))
    second.begin([group(106, anchor=1006 * S)])
    report, _ = verified(first.sent[:-1] + second.sent)
    assert report.groups["pv-1", "ac"].missing == 1
    assert report.groups["pv-1", "ac"].gaps == {Cause.AGENT_DOWN: 2}


def test_the_order_within_the_window_does_not_change_the_count() -> None:
    first, second, _ = three_runs()
    sent = [second.sent[0], *first.sent, *second.sent[1:]]
    report, judged = verified(sent)
    assert_all_ok(report, judged)
    assert report.cycles() == (8, 6, 2)


def test_thousands_of_runs_may_wait_for_each_other() -> None:
    sent, last, history = [], None, History()
    for number in range(1500):
        run = Run(clock=FakeClock(boot=(1000 + number) * S), last=last, history=history)
        run.begin([group(100 + number, anchor=(1000 + number) * S)])
        sent.append(run.sent[0])
        last, history = run.links[-1]._replace(seq=2), replay(run.sent)  # each follows a record that never comes
    report, _ = verified(sent, complete=False)
    assert report.records == 1500


def test_a_plan_must_not_change_what_belongs_to_the_run() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)])
    run.clock.now = 1001 * S
    run.sealer.facts = replace(run.sealer.facts, boot_id=bytes(16))
    run.begin([group(101, anchor=1001 * S)])
    _, judged = verified(run.sent)
    assert "differs in what a run never changes: boot_id" in findings(judged)


def test_a_term_whose_plan_begins_later_than_it_says_fails() -> None:
    run = Run()
    run.begin([group(100)])
    run.clock.now = 1000 * S
    run.begin([replace(group(100), next=103)])
    _, judged = verified(run.sent)
    assert "the term begins at cycle 100, its plan at 103" in findings(judged)


# ---- what cannot be known -------------------------------------------------------------------------------------------


def test_a_record_of_another_version_is_unknown_and_the_chain_goes_on() -> None:
    run = Run()
    link = None
    for seq in (1, 2):
        record = cbor.encode({1: 2, 2: run.sealer.stream, 3: seq, 4: link or bytes(32), 5: "whatever"})
        link = hashlib.sha256(record).digest()
        run.sent.append(seal(record, protected=protected_header(DID), signer=KeySigner(SECRET, did=DID)))
    report, judged = verified(run.sent)
    assert report.failed == 0
    assert [each.verdict for each in judged] == ["structure unknown"] * 2
    assert report.outcome(Level.STRUCTURE) is Outcome.UNKNOWN
    assert report.outcome(Level.CONTINUITY) is Outcome.OK


def test_without_a_plan_completeness_is_unknown() -> None:
    report, _ = verified(simple_run(10).sent[1:])
    assert report.outcome(Level.COMPLETENESS) is Outcome.UNKNOWN
    assert report.before_plan == 5


def test_signed_nonsense_is_judged_and_can_be_shown() -> None:
    run = Run()
    run.begin([group(100), renamed(group(2**63), "far")])
    run.data([frame(2**63, group=1)])
    run.data([], [Gap(9, 1, 2, Cause.OVERRUN)], term=2)
    _, judged = verified(run.sent)
    for each in judged:
        assert list(text_lines(each))
        assert json.dumps(as_json(each))


def test_each_start_in_a_hostile_file_costs_a_bounded_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, head = 0, envelope_module._head

    def counted(data: bytes, at: int, end: int) -> tuple[int, int, int]:
        nonlocal steps
        steps += 1
        return head(data, at, end)

    monkeypatch.setattr(envelope_module, "_head", counted)
    piece = b"\x4c\xd2\x84\x40\xbb" + b"\xff" * 8  # a start, and a map that claims to hold all that follows
    assert not [each for _, each in envelopes(piece * 1000) if isinstance(each, bytes)]
    assert 1000 <= steps <= 1000 * 80


# ---- what it needs ----------------------------------------------------------------------------------------------


def test_the_verifier_runs_with_cbor2_and_coincurve_alone(tmp_path: Path) -> None:
    """In an environment that has nothing else: no pydantic, no anyio, no agent installed."""
    import importlib.metadata

    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python3*")) / "site-packages"
    for name in ("cbor2", "coincurve"):
        for file in importlib.metadata.files(name) or []:
            source = Path(str(file.locate()))
            if ".." in file.parts or not source.is_file():
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "evidence.cbor").write_bytes(b"".join(simple_run(10).sent))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agent.evidence.envelope import envelopes\nfrom agent.verifier import Verifier\n"
        "from agent.rendering.account import summary\n"
        "verifier = Verifier([sys.argv[3]])\n"
        "for _, envelope in envelopes(open(sys.argv[2], 'rb').read()): verifier.feed(envelope)\n"
        "verifier.finish(complete=True)\nprint(summary(verifier.report))\n"
    )
    command = [str(home / "bin" / "python"), "-I", "-c", program, str(root), str(tmp_path / "evidence.cbor"), DID]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("verified 6 records, 10 frames, 0 failed: signature ok")
    assert SECRET.hex() not in done.stdout
    assert sys.version_info >= (3, 11)
