"""The outbox keeps what it promised through crashes, cuts, errors of the disk and rot (docs/outbox.md, by rule)."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.errors import EvidenceError, OutboxError
from agent.evidence.envelope import Link
from agent.evidence.history import replay
from agent.evidence.record import link_of
from agent.model import Cause, Withdrawn
from agent.outbox import Outbox, Pending, Stored, ring
from agent.outbox.files import OS_FILES, Files
from agent.outbox.look import records
from agent.outbox.ring import SegmentHeader
from agent.verifier import Verifier
from agent.verifier.report import Join
from tests.faulty_files import FaultyFiles, PowerCut
from tests.runs import DID, FakeClock, Run, S, frame, group

SEGMENT, SEGMENTS = 4096, 5
SIZE = ring.START + SEGMENTS * SEGMENT + 100
HEAD = struct.Struct("<4s16sQ32s")
Sealed = tuple[bytes, Link]


def inspect(envelope: bytes) -> Link:
    """The link of a test's envelope: magic, stream, seq, prev, and anything behind."""
    if len(envelope) < HEAD.size or envelope[:4] != b"ENV:":
        raise EvidenceError("no envelope")
    _, stream, seq, prev = HEAD.unpack_from(envelope)
    return Link(stream, seq, prev, hashlib.sha256(envelope).digest())


class Sealer:
    """Seals records of a stream behind those before it."""

    def __init__(self, stream: int, last: Link | None = None) -> None:
        self.stream, self.seq = stream.to_bytes(16, "big"), 0
        self.prev = last.digest if last else ring.NO_DIGEST

    def seal(self, *lengths: int) -> list[Sealed]:
        """A record for each length of filler."""
        sealed = []
        for length in lengths:
            self.seq += 1
            envelope = HEAD.pack(b"ENV:", self.stream, self.seq, self.prev) + bytes([self.seq % 251]) * length
            link = inspect(envelope)
            self.prev = link.digest
            sealed.append((envelope, link))
        return sealed


def open_outbox(path: Path, files: Files = OS_FILES, *, size: int = SIZE, channel: str = "dso") -> Outbox:
    return Outbox.open(path, channel=channel, size=size, inspect=inspect, files=files, segment_size=SEGMENT)


def put(outbox: Outbox, sealed: list[Sealed]) -> tuple[range, tuple[Withdrawn, ...]]:
    """Append as the daemon does: where it fits, else in a new segment; returns also what that overwrote."""
    new = not outbox.fits(sum(len(envelope) for envelope, _ in sealed), len(sealed))
    gone = outbox.overwritten() if new else ()
    return outbox.append(sealed, new_segment=new), gone


def everything(outbox: Outbox) -> list[Stored]:
    return outbox.read(0, max_bytes=1 << 30)


def segment(number: int) -> int:
    """File offset of a segment."""
    return ring.START + number % SEGMENTS * SEGMENT


def spoil(path: Path, offset: int, count: int = 1) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        held = file.read(count)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in held))


def fill(outbox: Outbox, sealer: Sealer, records: int, length: int = 300) -> list[tuple[int, bytes]]:
    """Append records one by one; returns positions and envelopes."""
    held = []
    for _ in range(records):
        sealed = sealer.seal(length)
        positions, _ = put(outbox, sealed)
        held.append((positions[0], sealed[0][0]))
    return held


def brief(stored: list[Stored]) -> list[tuple[int, bytes]]:
    return [(item.pos, item.envelope) for item in stored]


# ---- rule 1 and 2: durable, then and only then; an error is unknown state -------------------------------------------


def test_a_batch_is_one_write_and_one_sync(tmp_path: Path) -> None:
    files = FaultyFiles()
    box, sealer = open_outbox(tmp_path / "ring", files), Sealer(1)
    box.append(sealer.seal(10), new_segment=True)
    files.calls.clear()
    assert box.append(sealer.seal(10, 20, 30), new_segment=False) == range(2, 5)
    assert [call[0] for call in files.calls] == ["pwrite", "fdatasync"]


def test_nothing_can_be_read_before_its_sync_returned(tmp_path: Path) -> None:
    seen: list[int] = []

    class Peeking(FaultyFiles):
        def fdatasync(self, fd: int) -> None:
            if box:
                seen.append(len(everything(box)))
            super().fdatasync(fd)

    box: Outbox | None = None
    box = open_outbox(tmp_path / "ring", Peeking())
    sealer = Sealer(1)
    box.append(sealer.seal(10, 10), new_segment=True)
    box.append(sealer.seal(10), new_segment=False)
    box.append(sealer.seal(10), new_segment=True)
    assert seen == [0, 2, 3]
    assert len(everything(box)) == 4


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("how", ["failed", "applied"])
def test_after_an_error_every_call_raises_until_it_is_opened_again(tmp_path: Path, call: str, how: str) -> None:
    files = FaultyFiles()
    box, sealer = open_outbox(tmp_path / "ring", files), Sealer(1)
    box.append(sealer.seal(10), new_segment=True)
    files.fail(call, how)
    with pytest.raises(OutboxError):
        box.append(sealer.seal(10), new_segment=False)
    files.calls.clear()
    calls: list[Callable[[], object]] = [
        lambda: box.append(sealer.seal(10), new_segment=True),
        lambda: box.mark(),
        lambda: box.settle(1),
        lambda: box.fits(1, 1),
        lambda: box.overwritten(),
        lambda: box.read(0, max_bytes=1),
        lambda: box.find(b"", 1),
        lambda: list(box.recovered()),
    ]
    for one in calls:
        with pytest.raises(OutboxError, match="cannot be used"):
            one()
    assert files.calls == [], "nothing is tried again"
    box.close()
    again = open_outbox(tmp_path / "ring", files)
    assert len(everything(again)) == 1 + (how == "applied" or call == "fdatasync")


def test_a_torn_header_of_a_new_segment_does_not_count(tmp_path: Path) -> None:
    for whole in (False, True):
        path, files = tmp_path / f"ring-{whole}", FaultyFiles()
        box, sealer = open_outbox(path, files), Sealer(1)
        held = fill(box, sealer, 5)
        opened = box.next_pos
        files.fail("fdatasync", "cut")
        with pytest.raises(PowerCut):
            box.append(sealer.seal(900, 600), new_segment=True)
        box.close()
        header = segment(1) // 512
        files.unsynced = {} if whole else {header: files.unsynced[header]}
        files.cut(path, lambda versions: 0)
        box = open_outbox(path, files)
        assert brief(everything(box))[: len(held)] == held
        assert len(everything(box)) == len(held) + 2 * whole
        assert box.next_pos >= opened
        box.close()


def test_a_flush_that_lied_gives_no_two_contents_to_one_record(tmp_path: Path) -> None:
    """What was sent is gone after the cut, and the next run is another stream: the store was rolled back, no more."""
    path, files = tmp_path / "ring", FaultyFiles()
    first = Run()
    first.begin([group(100)])
    with closing(Outbox.open(path, channel="dso", size=SIZE, inspect=link_of, files=files, segment_size=4096)) as box:
        box.append(list(zip(first.sent, first.links, strict=True)), new_segment=True)
        files.fail("fdatasync", "lied")
        first.data([frame(100)])
        box.append([(first.sent[-1], first.links[-1])], new_segment=False)
    files.cut(path, lambda versions: 0)
    with closing(Outbox.open(path, channel="dso", size=SIZE, inspect=link_of, files=files, segment_size=4096)) as box:
        assert box.last == first.links[0]
        first.clock.now += 5 * S
        second = Run(clock=first.clock, last=box.last, history=replay(box.recovered()))
    second.begin([group(103, anchor=1005 * S)])
    second.data([frame(103)])
    verifier = Verifier([DID])
    outcomes = [j.findings for envelope in [*first.sent, *second.sent] for j in verifier.feed(envelope)]
    verifier.finish(complete=True)
    assert not any(outcomes)
    assert [run.join for run in verifier.report.runs] == [Join.FIRST, Join.ROLLED_BACK]


def test_two_clones_of_one_ring_are_told_apart(tmp_path: Path) -> None:
    """Both go on with one key: no (stream, seq) has two contents, and that there are two is told as a fork."""
    path, clone = tmp_path / "ring", tmp_path / "clone"
    first = Run()
    first.begin([group(100)])
    with closing(Outbox.open(path, channel="dso", size=SIZE, inspect=link_of, segment_size=4096)) as box:
        box.append(list(zip(first.sent, first.links, strict=True)), new_segment=True)
    shutil.copy(path, clone)
    sent = list(first.sent)
    runs = []
    for each in (path, clone):
        with closing(Outbox.open(each, channel="dso", size=SIZE, inspect=link_of, segment_size=4096)) as box:
            run = Run(clock=FakeClock(1010 * S), last=box.last, history=replay(box.recovered()))
        run.begin([group(110, anchor=1010 * S)])
        run.data([frame(110)])
        runs.append(run)
    for run in runs:
        run.clock.now += 5 * S
        run.data([frame(cycle) for cycle in range(111, 115)])
        sent += run.sent
    verifier = Verifier([DID])
    judged = [each for envelope in sent for each in verifier.feed(envelope)]
    judged += verifier.finish(complete=True)
    assert len({(link.stream, link.seq) for run in (first, *runs) for link in run.links}) == len(sent)
    assert any("two agents use this key" in finding.text for each in judged for finding in each.findings)


def test_an_error_of_mark_breaks_it_too(tmp_path: Path) -> None:
    files = FaultyFiles()
    box = open_outbox(tmp_path / "ring", files)
    box.append(Sealer(1).seal(10), new_segment=True)
    box.settle(1)
    files.fail("fdatasync", "failed")
    with pytest.raises(OutboxError):
        box.mark()
    with pytest.raises(OutboxError):
        box.mark()


def test_what_does_not_follow_or_does_not_fit_is_refused_and_nothing_happens(tmp_path: Path) -> None:
    files = FaultyFiles()
    box, sealer = open_outbox(tmp_path / "ring", files), Sealer(1)
    with pytest.raises(ValueError):
        box.append(sealer.seal(10), new_segment=False)  # a new outbox has no segment
    sealer = Sealer(1)
    box.append(sealer.seal(10), new_segment=True)
    for wrong in (Sealer(2).seal(10), [], Sealer(3, box.last).seal(1000), Sealer(4, box.last).seal(*[900] * 4)):
        with pytest.raises(ValueError):
            box.append(wrong, new_segment=False)
    assert len(everything(box)) == 1
    box.append(sealer.seal(10), new_segment=False)


# ---- rule 3 and 4: recovery -----------------------------------------------------------------------------------------


def test_a_stale_record_behind_a_torn_one_does_not_come_back(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    box = open_outbox(path, files)
    box.append(Sealer(1).seal(10), new_segment=True)
    at = segment(0) + box._view.at
    sealer = Sealer(1, box.last)
    files.fail("fdatasync", "cut")
    with pytest.raises(PowerCut):
        box.append(sealer.seal(600, 600), new_segment=False)
    box.close()
    spoil(path, at + 100)  # of the two, the first is torn
    box = open_outbox(path, files)
    assert len(everything(box)) == 1
    box.append(Sealer(2, box.last).seal(600), new_segment=False)  # the same length: the second stands right behind it
    box.close()
    box = open_outbox(path, files)
    assert [stored.link.stream[-1] for stored in everything(box)] == [1, 2]


def test_rot_before_a_record_that_knew_it_durable_is_skipped_and_stated(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    held = fill(box, sealer, 6)
    box.close()
    spoil(path, segment(0) + 96 + 2 * 400 + 60, 500)  # records 3 and 4
    box = open_outbox(path)
    assert box.lost == (Withdrawn(sealer.stream, 3, 4, Cause.DISK_ERROR),)
    assert brief(everything(box)) == [held[0], held[1], held[4], held[5]]
    assert list(box.recovered()) == [envelope for _, envelope in (held[0], held[1], held[4], held[5])]
    held += fill(box, sealer, 1)
    box.close()
    assert brief(everything(open_outbox(path)))[-1] == held[-1]


def test_rot_of_what_is_acknowledged_is_not_stated(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    fill(box, sealer, 5)
    box.settle(4)
    fill(box, sealer, 1)
    box.close()
    spoil(path, segment(0) + 96 + 400 + 60)
    assert open_outbox(path).lost == ()


def test_the_last_record_torn_is_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box = open_outbox(path)
    held = fill(box, Sealer(1), 4)
    box.close()
    spoil(path, segment(0) + 96 + 3 * 400 + 60)
    box = open_outbox(path)
    assert (brief(everything(box)), box.lost, box.next_pos) == (held[:3], (), 4)


def test_rot_in_an_older_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    held = fill(box, sealer, 12)
    assert box._view.segments[1].number == 1
    box.close()
    spoil(path, segment(0) + 96 + 3 * 400 + 60)
    box = open_outbox(path)
    found = [box.lost, brief(everything(box)), box.lost, brief(everything(box)), box.lost]
    stated = (Withdrawn(sealer.stream, 4, 4, Cause.DISK_ERROR),)
    assert found == [(), held[:3] + held[4:], stated, held[:3] + held[4:], stated], "found once, when it is read"


def test_rot_of_what_is_acknowledged_is_not_stated_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    held = fill(box, sealer, 12)
    box.settle(held[3][0])
    fill(box, sealer, 1)
    box.close()
    for index in (1, 4):  # record 2 is acknowledged, record 5 is not
        spoil(path, segment(0) + 96 + index * 400 + 60)
    box = open_outbox(path)
    assert len(everything(box)) == 11
    assert box.lost == (Withdrawn(sealer.stream, 5, 5, Cause.DISK_ERROR),)


def test_a_plan_that_rotted_does_not_hide_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    held = fill(box, sealer, 12)
    start = box._view.segments[-1].first_pos
    box.close()
    spoil(path, segment(1) + 96 + 60)
    box = open_outbox(path)
    assert list(box.recovered()) == [envelope for pos, envelope in held if pos != start]
    assert [(span.first, span.cause) for span in box.lost] == [(9, Cause.DISK_ERROR)]


@pytest.mark.parametrize("newest", [0, 1])
def test_a_newest_segment_whose_header_rotted_is_not_overwritten(tmp_path: Path, newest: int) -> None:
    path = tmp_path / "ring"
    box = open_outbox(path)
    fill(box, Sealer(1), 6 + newest * 6)
    assert box._view.segments[-1].number == newest
    box.close()
    spoil(path, segment(newest) + 20)
    before = path.read_bytes()
    with pytest.raises(OutboxError, match="header of its newest segment is broken"):
        open_outbox(path)
    assert path.read_bytes() == before


def test_a_header_that_rotted_in_between_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    held = dict(fill(box, sealer, 30))
    firsts = [one.first_pos for one in box._view.segments]
    assert len(firsts) == 4
    box.close()
    spoil(path, segment(1) + 20)
    box = open_outbox(path)
    gone = [pos for pos in held if firsts[1] <= pos < firsts[2]]
    links = [inspect(held[pos]) for pos in gone]
    assert box.lost == (Withdrawn(sealer.stream, links[0].seq, links[-1].seq, Cause.DISK_ERROR),)
    assert [stored.pos for stored in everything(box)] == [pos for pos in held if pos not in gone]


def test_what_the_page_cache_held_is_written_again_before_it_counts(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    box, sealer = open_outbox(path, files), Sealer(1)
    box.append(sealer.seal(10), new_segment=True)
    files.fail("fdatasync", "failed")  # the pages count as clean now, and the disk does not have them
    with pytest.raises(OutboxError):
        box.append(sealer.seal(900), new_segment=False)
    box.close()
    box = open_outbox(path, files)
    held = brief(everything(box))
    assert len(held) == 2
    box.close()
    files.cut(path, lambda versions: 0)
    assert brief(everything(open_outbox(path, files))) == held


def test_what_stands_behind_the_tail_is_wiped_before_the_outbox_is_used(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    box = open_outbox(path, files)
    held = fill(box, Sealer(1), 9)
    at = box._view.at
    assert box._view.segments[-1].number == 1
    files.fail("fdatasync", "cut")
    with pytest.raises(PowerCut):
        box.append(Sealer(2, box.last).seal(10), new_segment=False)
    box.close()
    spoil(path, segment(1) + at + 60)
    box = open_outbox(path, files)
    assert path.read_bytes()[segment(1) + at :][:40] == bytes(40)
    files.fail("fdatasync", "cut")
    with pytest.raises(PowerCut):
        box.append(Sealer(3, box.last).seal(10), new_segment=True)
    box.close()
    spoil(path, segment(2) + 96 + 60)
    box = open_outbox(path, files)
    assert path.read_bytes()[segment(2) :][:96] == bytes(96), (
        "a segment whose first record is not whole was never opened"
    )
    assert brief(everything(box)) == held


# ---- rule 5: acknowledged -------------------------------------------------------------------------------------------


def test_acknowledged_is_carried_by_the_next_record_or_a_mark_and_may_go_down(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    fill(box, sealer, 4)
    assert not box.mark()
    box.settle(3)
    assert box.mark()
    assert not box.mark()
    box.close()
    box = open_outbox(path)
    assert (box.acked, box.pending, box.next_pos) == (3, Pending(1, 360), 6)
    box.settle(1)
    assert box.pending == Pending(3, 1080)
    box.append(Sealer(2, box.last).seal(10), new_segment=False)
    box.close()
    box = open_outbox(path)
    assert (box.acked, box.pending) == (1, Pending(4, 1150))
    with pytest.raises(ValueError):
        box.settle(box.next_pos)


def test_a_new_segment_says_who_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(7)
    fill(box, sealer, 5)
    box.settle(3)
    box.append(sealer.seal(10), new_segment=True)
    head = ring.unpack_segment_header(path.read_bytes()[segment(1) :], box.ring_id)
    assert head
    assert (head.acked, head.acked_stream, head.acked_seq) == (3, sealer.stream, 3)


# ---- rule 6: overwriting --------------------------------------------------------------------------------------------


def full_ring(path: Path, files: Files = OS_FILES) -> tuple[Outbox, Sealer]:
    """A ring of which the next segment goes over the first: a stream that ends in the first segment, and one that
    goes on.
    """
    box, first = open_outbox(path, files), Sealer(1)
    fill(box, first, 4)
    second = Sealer(2, box.last)
    while len(box._view.segments) < SEGMENTS or box.fits(360, 1):
        fill(box, second, 1)
    return box, second


def test_what_is_overwritten_is_told_by_stream_from_the_record_after_the_acknowledged_one(tmp_path: Path) -> None:
    box, second = full_ring(tmp_path / "ring")
    one, two = (1).to_bytes(16, "big"), second.stream
    assert box.overwritten() == (Withdrawn(one, 1, 4, Cause.OVERFLOW), Withdrawn(two, 1, 4, Cause.OVERFLOW))
    box.settle(3)
    assert box.overwritten() == (Withdrawn(one, 4, 4, Cause.OVERFLOW), Withdrawn(two, 1, 4, Cause.OVERFLOW))
    box.settle(5)
    assert box.overwritten() == (Withdrawn(two, 2, 4, Cause.OVERFLOW),)
    box.settle(8)
    assert box.overwritten() == ()
    box.settle(3)
    before = box.pending
    box.append(second.seal(10), new_segment=True)
    assert box.pending == Pending(before.records - 5 + 1, before.bytes - 5 * 360 + 70)
    assert everything(box)[0].link.seq == 5
    assert box.read(2, max_bytes=1)[0].link.seq == 5, "after what was overwritten it goes on with the oldest held"
    assert box.find(one, 4) is None
    assert box.find(two, 5) == 10
    assert box.find(two, second.seq) == box.next_pos - 1


@pytest.mark.parametrize("torn", [0, 600, 1040, 1600, 2000])
@pytest.mark.parametrize("stream_changes_at_start", [False, True])
def test_a_crash_while_overwriting_leaves_a_hole_that_start_states(
    tmp_path: Path, torn: int, stream_changes_at_start: bool
) -> None:
    """``torn``: where the new segment did not reach the disk; the plan that stated the loss is not whole."""
    path, files = tmp_path / "ring", FaultyFiles()
    box, second = full_ring(path, files)
    if stream_changes_at_start:
        box.settle(3)
    stated, oldest = box.overwritten(), box._view.segments[1].first_pos
    files.fail("fdatasync", "cut", after=1)  # the first one makes the announcement durable
    with pytest.raises(PowerCut):
        box.append(second.seal(900, 900), new_segment=True)
    box.close()
    lost = segment(0) + torn - torn % 512
    before = {sector: versions[0] for sector, versions in files.unsynced.items()}
    files.cut(path, lambda versions: versions - 1)
    with open(path, "r+b") as file:
        file.seek(lost)
        file.write(before[lost // 512])
    for _ in range(2):  # also when nothing was written in between
        box = open_outbox(path, files)
        if torn < 1096:  # segment header, record header, 960 bytes of the plan
            assert box.lost == stated
            assert everything(box)[0].pos == oldest
            assert not box.fits(1, 1)
        else:  # the plan is whole: it states the loss itself
            assert box.lost == ()
            assert box.last
            assert box.last.seq == second.seq - 1
        box.close()


def test_a_crash_before_overwriting_loses_nothing(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    box, second = full_ring(path, files)
    held = brief(everything(box))
    files.fail("fdatasync", "cut", after=1)
    with pytest.raises(PowerCut):
        box.append(second.seal(900), new_segment=True)
    box.close()
    files.cut(path, lambda versions: 0)
    box = open_outbox(path, files)
    assert (brief(everything(box)), box.lost) == (held, ())
    assert box.overwritten()


def test_no_extra_sync_while_nothing_unacknowledged_is_overwritten(tmp_path: Path) -> None:
    files = FaultyFiles()
    box, second = full_ring(tmp_path / "ring", files)
    box.settle(box.next_pos - 1)
    box.append(second.seal(10), new_segment=False)
    files.calls.clear()
    box.append(second.seal(10), new_segment=True)
    assert [call[0] for call in files.calls if call[0] != "pread"] == ["pwrite", "pwrite", "fdatasync"]


# ---- rule 7: one writer, readers beside it --------------------------------------------------------------------------


def test_a_second_process_is_told_that_the_outbox_is_in_use(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from agent.errors import OutboxError
from agent.outbox import Outbox
try:
    Outbox.open(Path(sys.argv[1]), channel="dso", size=int(sys.argv[2]), inspect=lambda e: None, segment_size=4096)
except OutboxError as error:
    print(error, "|", error.hint)
else:
    print("opened")
"""

    def second() -> str:
        command = [sys.executable, "-c", program, str(path), str(SIZE)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
        ).stdout

    path = tmp_path / "ring"
    box = open_outbox(path)
    answer = second()
    assert "in use by another process" in answer
    assert "stop the other agent" in answer
    box.close()
    assert second() == "opened\n"


def test_a_reader_that_is_overtaken_goes_on_with_what_is_held(tmp_path: Path) -> None:
    """The writer goes over the reader's segment between the reader's read and its look at what came of it."""

    class Overtaking(FaultyFiles):
        armed = False

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            data = super().pread(fd, length, offset)
            if self.armed:
                self.armed = False
                box.append(second.seal(10), new_segment=True)
            return data

    files = Overtaking()
    box, second = full_ring(tmp_path / "ring", files)
    oldest = box._view.segments[1].first_pos
    files.armed = True
    assert everything(box)[0].pos == oldest
    assert box.lost == ()


def test_export_beside_a_writer_sees_each_record_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    fill(box, sealer, 20)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            fill(box, sealer, 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            found = list(records(path, inspect=inspect))
            positions = [stored.pos for stored in found]
            assert found
            assert positions == sorted(set(positions))
            for before, after in pairwise(found):
                if after.link.seq == before.link.seq + 1:
                    assert after.link.prev == before.link.digest
    finally:
        stop.set()
        writer.join()
    found = list(records(path, inspect=inspect))
    assert found == everything(box)
    assert len({after.link.seq - before.link.seq for before, after in pairwise(found)}) == 1


def test_export_that_is_overtaken_goes_on_with_what_is_held(tmp_path: Path) -> None:
    class Overtaking(FaultyFiles):
        armed = True

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            if self.armed and length == SEGMENT:
                self.armed = False
                while box._view.segments[0].number < SEGMENTS + 1:
                    fill(box, second, 1)
            return super().pread(fd, length, offset)

    box, second = full_ring(tmp_path / "ring")
    assert list(records(tmp_path / "ring", inspect=inspect, files=Overtaking())) == everything(box)


def test_reading_beside_a_writer_follows_it(tmp_path: Path) -> None:
    box, sealer = open_outbox(tmp_path / "ring"), Sealer(1)
    writer = threading.Thread(target=fill, args=(box, sealer, 300))
    after, seqs = 0, list[int]()
    writer.start()
    while len(seqs) == 0 or seqs[-1] < 300:
        for stored in box.read(after, max_bytes=2000):
            assert stored.pos > after
            after = stored.pos
            seqs.append(stored.link.seq)
    writer.join()
    assert seqs == sorted(set(seqs))
    assert box.lost == ()


# ---- rule 8: room, creation, and what is refused --------------------------------------------------------------------


def test_room_is_reserved_and_a_segment_is_written_with_zeros_before_its_first_use_only(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    open_outbox(path).close()
    assert path.stat().st_size == ring.START + SEGMENTS * SEGMENT <= SIZE
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    box, second = full_ring(path, files)
    whole = [offset for name, offset, length in files.calls if name == "pwrite" and length == SEGMENT]
    assert whole == [segment(number) for number in range(SEGMENTS)]
    files.calls.clear()
    box.append(second.seal(10), new_segment=True)
    assert not [call for call in files.calls if call[0] == "pwrite" and call[2] == SEGMENT]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("how", ["failed", "applied", "cut"])
def test_creation_leaves_a_whole_file_or_none(tmp_path: Path, call: str, how: str) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    files.fail(call, how)
    with pytest.raises((OutboxError, PowerCut)):
        open_outbox(path, files)
    assert not path.exists()
    box = open_outbox(path)  # what was left behind is taken over
    assert (box.last, box.next_pos, box.pending, everything(box), box.fits(1, 1)) == (None, 1, Pending(0, 0), [], False)
    assert os.listdir(tmp_path) == ["ring"]


def test_a_link_to_a_disk_that_is_not_there_is_not_replaced_by_an_outbox(tmp_path: Path) -> None:
    path, there = tmp_path / "ring", tmp_path / "disk" / "ring"
    path.symlink_to(there)
    with pytest.raises(OutboxError, match=r"it is a link to .*disk/ring, which is not there") as error:
        open_outbox(path)
    assert error.value.hint.startswith("is its disk mounted?")
    assert os.listdir(tmp_path) == ["ring"]
    there.parent.mkdir()
    open_outbox(there).close()
    open_outbox(path).close()
    assert path.is_symlink()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="No such file"):
        open_outbox(tmp_path / "state" / "ring")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no ring file"),
        (bytes(30000), "no ring file"),
        (b"EVRING02" + bytes(30000), "version b'02'"),
        (bytes(4096) + b"EVRING99" + bytes(30000), "version b'99'"),
        (b"SQLite format 3", "no ring file"),
    ],
)
def test_what_is_not_understood_is_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ring"
    path.write_bytes(content)
    with pytest.raises(OutboxError, match=message) as error:
        open_outbox(path)
    assert error.value.hint
    assert path.read_bytes() == content


def test_either_copy_of_the_file_header_serves(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    open_outbox(path).close()
    spoil(path, 30)
    box = open_outbox(path)
    salt = box.salt
    box.close()
    spoil(path, 30)
    spoil(path, 4096 + 30)
    assert open_outbox(path).salt == salt


def test_another_size_or_channel_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    open_outbox(path).close()
    with pytest.raises(OutboxError) as error:
        open_outbox(path, size=SIZE + SEGMENT)
    assert error.value.hint == (
        f"put size back to {ring.START + SEGMENTS * SEGMENT} bytes, or stop the agent and run "
        "`edge-agent outbox resize --channel dso`"
    )
    with pytest.raises(OutboxError, match="'dso', not of 'market'"):
        open_outbox(path, channel="market")
    with pytest.raises(OutboxError, match="too small"):
        open_outbox(path, size=ring.START + 4 * SEGMENT - 1)
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(OutboxError, match="bytes and not"):
        open_outbox(path)


def test_the_remedy_is_in_the_words_of_the_configuration(tmp_path: Path) -> None:
    def opened(mib: int) -> Outbox:
        return Outbox.open(tmp_path / "ring", channel="dso", size=mib << 20, inspect=inspect)

    opened(6).close()
    with pytest.raises(OutboxError) as error:
        opened(7)
    assert error.value.hint.startswith('put size back to "6MiB", or ')
    opened(6).close()


# ---- cost -----------------------------------------------------------------------------------------------------------


def test_start_does_not_read_the_whole_file(tmp_path: Path) -> None:
    path, files, count = tmp_path / "ring", FaultyFiles(), 64
    size = ring.START + count * SEGMENT
    box, sealer = open_outbox(path, size=size), Sealer(1)
    while len(box._view.segments) < count:
        fill(box, sealer, 1, length=20)
    box.close()
    open_outbox(path, files, size=size)
    assert sum(length for name, _, length in files.calls if name == "pread") < 6 * SEGMENT + count * 96


def test_reading_on_looks_at_each_record_once(tmp_path: Path) -> None:
    looked = 0

    def counting(envelope: bytes) -> Link:
        nonlocal looked
        looked += 1
        return inspect(envelope)

    box = Outbox.open(tmp_path / "ring", channel="dso", size=SIZE, inspect=counting, segment_size=SEGMENT)
    sealer, after, found = Sealer(1), 0, list[int]()
    for _ in range(30):  # in step with the writer, as the publisher reads
        fill(box, sealer, 2, length=20)
        while batch := box.read(after, max_bytes=100):
            after = batch[-1].pos
            found += [stored.link.seq for stored in batch]
    assert found == list(range(1, 61))
    assert looked == 60


def test_pending_of_an_earlier_run_is_estimated_and_ends_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box, sealer = open_outbox(path), Sealer(1)
    fill(box, sealer, 20)
    exact = box.pending
    assert exact == Pending(20, 20 * 360)
    box.close()
    box = open_outbox(path)
    assert box.pending.records == 20
    assert exact.bytes <= box.pending.bytes <= exact.bytes + 2 * SEGMENT
    last = everything(box)[-1].pos
    box.settle(last)
    assert box.pending == Pending(0, 0)


def test_find_looks_into_every_stream_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    box = open_outbox(path)
    held: list[tuple[int, Link]] = []
    for stream in range(1, 12):
        held += [(pos, inspect(envelope)) for pos, envelope in fill(box, Sealer(stream, box.last), 2)]
    assert len(box._view.segments) > 2
    for pos, link in held:
        assert box.find(link.stream, link.seq) == pos
        assert box.find(link.stream, 3) is None


def test_the_last_batch_is_at_hand_until_it_is_acknowledged(tmp_path: Path) -> None:
    box, sealer = open_outbox(tmp_path / "ring", FaultyFiles()), Sealer(1)
    box.append(sealer.seal(1), new_segment=True)
    batch = box.append(sealer.seal(1, 1), new_segment=False)
    assert [record.pos for record in box.fresh(batch.start - 1)] == list(batch)
    box.settle(batch.start)
    assert [record.pos for record in box.fresh(batch.start)] == [batch.start + 1]
    assert not box.fresh(0)
    box.settle(batch.start + 1)
    assert not box.fresh(batch.start)
    box.close()


# ---- the model: random lives ----------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Random legal actions against a plain list, through crashes of every kind.

    ``held``: what is durable, by position. ``stated``: what plans on disk withdraw. Conservation, always: what was
    sealed and became durable is readable, or acknowledged, or stated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "ring"
        self.files = FaultyFiles()
        self.held: dict[int, Sealed] = {}
        self.maybe: list[Sealed] = []  # of a batch that was under way at a crash
        self.stated: set[tuple[bytes, int]] = set()
        self.maybe_stated: set[tuple[bytes, int]] = set()
        self.torn: dict[int, Sealed] = {}  # durable once, and spoilt by a cut while their segment was being overwritten
        self.settled = {0}  # every value that acked may come back with
        self.streams = 0
        self.box = open_outbox(self.path, self.files)
        self.sealer = Sealer(0)
        self._new_run()

    def teardown(self) -> None:
        self.box.close()
        self.folder.cleanup()

    def _new_run(self) -> None:
        self.streams += 1
        self.sealer = Sealer(self.streams, self.box.last)

    def _prepare(self, lengths: list[int]) -> tuple[list[Sealed], bool]:
        sealed = self.sealer.seal(*lengths)
        new = not self.box.fits(sum(len(envelope) for envelope, _ in sealed), len(sealed))
        self.maybe_stated = {
            (span.stream, seq)
            for span in (self.box.overwritten() if new else ())
            for seq in range(span.first, span.last + 1)
        }
        unacked = {(s[1].stream, s[1].seq) for pos, s in (self.held | self.torn).items() if pos > self.box.acked}
        assert self.maybe_stated <= unacked, "only what is held and not acknowledged is stated"
        self.maybe = sealed
        return sealed, new

    @rule(lengths=st.lists(st.integers(0, 900), min_size=1, max_size=4))
    def append(self, lengths: list[int]) -> None:
        sealed, new = self._prepare([min(length, 900) for length in lengths][: 3 if sum(lengths) > 2500 else 4])
        before = max(self.held, default=0)
        positions = self.box.append(sealed, new_segment=new)
        assert [(record.pos, (record.envelope, record.link)) for record in self.box.fresh(before)] == list(
            zip(positions, sealed, strict=True)
        )
        self._durable(positions)

    def _durable(self, positions: range) -> None:
        self.held |= dict(zip(positions, self.maybe, strict=True))
        self.stated |= self.maybe_stated
        self.maybe, self.maybe_stated = [], set()

    @rule(share=st.floats(0, 1))
    def settle(self, share: float) -> None:
        waiting = [pos for pos in self.held if pos > self.box.acked]
        if waiting:
            pos = waiting[int(share * (len(waiting) - 1))]
            self.box.settle(pos)
            self.settled.add(pos)

    @rule(share=st.floats(0, 1))
    def server_lost_data(self, share: float) -> None:
        done = [pos for pos in self.held if pos <= self.box.acked]
        oldest = min((stored.pos for stored in everything(self.box)), default=0)
        done = [pos for pos in done if pos >= oldest]
        if done:
            pos = done[int(share * (len(done) - 1))]
            self.box.settle(pos)
            self.settled.add(pos)

    @rule()
    def mark(self) -> None:
        before = self.box.next_pos
        assert self.box.mark() == (self.box.next_pos == before + 1)

    @rule(after=st.integers(0, 200), most=st.integers(1, 4000))
    def read(self, after: int, most: int) -> None:
        expected = [(pos, s[0]) for pos, s in sorted(self.held.items()) if pos > after and pos >= self._oldest()]
        found = brief(self.box.read(after, max_bytes=most))
        assert found == expected[: len(found)]
        assert bool(found) == bool(expected)

    @rule(share=st.floats(0, 1))
    def find(self, share: float) -> None:
        if self.held:
            pos = sorted(self.held)[int(share * (len(self.held) - 1))]
            link = self.held[pos][1]
            assert self.box.find(link.stream, link.seq) == (pos if pos >= self._oldest() else None)
            assert self.box.find(link.stream, 10_000) is None
            assert self.box.find(b"?" * 16, 1) is None

    def _oldest(self) -> int:
        return self.box._view.segments[0].first_pos if self.box._view.segments else 1

    # ---- ways to end a life

    @rule()
    def stop(self) -> None:
        self.box.mark()
        self._reopen()

    @rule()
    def kill(self) -> None:
        self._reopen()

    @rule(seed=st.integers(0, 1 << 32))
    def cut_while_idle(self, seed: int) -> None:
        self._reopen(cut=seed)

    @rule(
        lengths=st.lists(st.integers(0, 900), min_size=1, max_size=3),
        call=st.sampled_from(["pwrite", "fdatasync"]),
        how=st.sampled_from(["failed", "applied", "cut"]),
        after=st.integers(0, 1),
        seed=st.one_of(st.none(), st.integers(0, 1 << 32)),
    )
    def append_fails(self, lengths: list[int], call: str, how: str, after: int, seed: int | None) -> None:
        sealed, new = self._prepare(lengths)
        self.files.fail(call, how, after=after if call == "pwrite" else 0)
        try:
            positions = self.box.append(sealed, new_segment=new)
        except (OutboxError, PowerCut):
            with pytest.raises(OutboxError):
                self.box.read(0, max_bytes=1)
            with pytest.raises(OutboxError):
                self.box.fresh(0)
        else:
            self._durable(positions)
        self._reopen(cut=seed)

    @rule(seed=st.integers(0, 1 << 32), call=st.sampled_from(["pwrite", "fdatasync"]))
    def cut_in_recovery(self, seed: int, call: str) -> None:
        if self.held:
            self.box.close()
            self.files.fail(call, "cut")
            with pytest.raises(PowerCut):
                open_outbox(self.path, self.files)
            self._reopen(cut=seed)

    def _reopen(self, cut: int | None = None) -> None:
        self.box.close()
        if cut is not None:
            self.files.cut(self.path, random.Random(cut).randrange)
        self.files._faults.clear()
        self.box = box = open_outbox(self.path, self.files)
        got = dict(brief(everything(box)))
        batch = {sealed[0]: sealed for sealed in self.maybe}
        kept = {pos: batch[envelope] for pos, envelope in got.items() if envelope in batch}
        assert list(kept.values()) == self.maybe[: len(kept)], "a batch counts up to its first record that is not whole"
        if kept:
            self.stated |= self.maybe_stated
        self.held |= kept
        torn = {pos: sealed for pos, sealed in self.held.items() if pos >= self._oldest() and pos not in got}
        assert not torn or max(torn) < box._view.segments[1].first_pos, (
            "only what was about to be overwritten may be torn"
        )
        assert not torn or self.maybe
        self.held = {pos: sealed for pos, sealed in self.held.items() if pos not in torn}
        self.torn |= torn
        self.maybe, self.maybe_stated = [], set()
        spoilt = {
            (sealed[1].stream, sealed[1].seq) for sealed in self.torn.values()
        }  # acknowledged, and then not any more
        for span in box.lost:
            assert (
                span.cause == Cause.OVERFLOW or {(span.stream, n) for n in range(span.first, span.last + 1)} <= spoilt
            )
        for pos, envelope in got.items():
            assert self.held[pos][0] == envelope, "accepted, and was never written"
            link = self.held[pos][1]
            assert not any(s.stream == link.stream and s.first <= link.seq <= s.last for s in box.lost), "lost and held"
        assert box.acked in self.settled
        assert box.last == (max(self.held.items())[1][1] if self.held else None)
        newest = list(box.recovered())
        assert newest == [got[pos] for pos in sorted(got)][len(got) - len(newest) :]
        assert not got or newest
        self._new_run()

    # ---- what always holds

    @invariant()
    def conserved(self) -> None:
        got = everything(self.box)
        acked, oldest = self.box.acked, self._oldest()
        assert brief(got) == [(pos, s[0]) for pos, s in sorted(self.held.items()) if pos >= oldest]
        for pos in {0, acked, *(stored.pos for stored in got)}:
            assert self.box.fresh(pos) in ((), [], [stored for stored in got if stored.pos > pos])
        for before, after in pairwise(got):
            assert after.link.prev == before.link.digest or any(before.pos < pos < after.pos for pos in self.torn)
        self.stated |= {(s.stream, seq) for s in self.box.lost for seq in range(s.first, s.last + 1)}
        gone = {(s[1].stream, s[1].seq) for pos, s in self.held.items() if pos < oldest and pos > acked}
        assert gone | {(s[1].stream, s[1].seq) for pos, s in self.torn.items() if pos > acked} <= self.stated
        waiting = [len(stored.envelope) for stored in got if stored.pos > acked]
        if self.box.pending != Pending(
            len(waiting), sum(waiting)
        ):  # an estimate after a start, until all is acknowledged
            assert waiting
            assert any(share.lengths is None for share in self.box._backlog._shares)

    @precondition(lambda self: bool(self.held))
    @rule()
    def export(self) -> None:
        assert [s for s in records(self.path, inspect=inspect) if s.pos < self.box.next_pos] == everything(self.box)

    def a_random_step(self, draw: random.Random) -> None:
        """Mostly appending and dying, which hypothesis does not do often enough to go round the ring."""
        lengths = [draw.choice([0, 40, 300, 900]) for _ in range(draw.choice([1, 1, 2, 3]))]
        step = draw.choices(
            [self.append, self.append_fails, self.settle, self.server_lost_data, self.mark, self.read, self.find,
            self.stop,
             self.kill, self.cut_in_recovery, self.export],
            [40, 12, 5, 1, 2, 2, 2, 1, 1, 1, 1],
        )[0]  # fmt: skip
        seed = draw.randrange(1 << 32)
        arguments: dict[object, dict[str, object]] = {
            self.append: {"lengths": lengths},
            self.append_fails: {
                "lengths": lengths,
                "call": draw.choice(["pwrite", "fdatasync"]),
                "how": draw.choice(["failed", "applied", "cut", "cut"]),
                "after": draw.choice([0, 1]),
                "seed": draw.choice([None, seed, seed]),
            },
            self.settle: {"share": draw.random() ** 3},
            self.server_lost_data: {"share": draw.random()},
            self.read: {"after": draw.randrange(self.box.next_pos), "most": draw.randrange(1, 4000)},
            self.find: {"share": draw.random()},
            self.cut_in_recovery: {"seed": seed, "call": draw.choice(["pwrite", "fdatasync"])},
        }
        step(**arguments.get(step, {}))
        self.conserved()


def live(seeds: range) -> None:
    """Random lives by seed; the seed of one that fails is in the message."""
    for seed in seeds:
        draw, lives = random.Random(seed), Lives()
        try:
            for _ in range(60):
                lives.a_random_step(draw)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            lives.teardown()


def test_random_lives_lose_nothing_unstated() -> None:
    live(range(80))


@pytest.mark.slow
def test_many_random_lives_lose_nothing_unstated() -> None:
    live(range(80, 2000))


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_two_writers_take_turns(tmp_path: Path) -> None:
    outbox, sealer = open_outbox(tmp_path / "dso.ring"), Sealer(1)
    fill(outbox, sealer, 3)
    outbox.settle(2)
    sync, entered, go = outbox._file.sync, threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        go.wait(10)
        sync()

    outbox._file.sync = slow  # type: ignore[method-assign]
    append = threading.Thread(target=lambda: fill(outbox, sealer, 1))
    append.start()
    assert entered.wait(10)
    mark = threading.Thread(target=outbox.mark)
    mark.start()
    go.set()
    append.join()
    mark.join()
    outbox.close()
    again = open_outbox(tmp_path / "dso.ring")
    assert len(everything(again)) == 4
    again.close()


def pile(path: Path, records: int, length: int) -> int:
    """A ring file of 1 MiB segments with so many records that wait, written straight; returns its size."""
    size, each = 1 << 20, ring.size_of(HEAD.size + length)
    fitting = (size - ring.SEGMENT_HEADER - ring.END_ROOM) // each
    segments = -(-records // fitting) + 1
    header = ring.FileHeader(size, segments, bytes(range(16)), bytes(16), "dso")
    prev, pos, left = ring.NO_DIGEST, 1, records
    with path.open("wb") as file:
        file.write(header.pack() * 2)
        for number in range(segments - 1):
            parts = [SegmentHeader(header.ring_id[:8], 0, pos, 0, prev).pack()]
            for seq in range(records - left + 1, records - left + 1 + min(left, fitting)):
                envelope = HEAD.pack(b"ENV:", bytes(16), seq, prev) + bytes(length)
                prev = hashlib.sha256(envelope).digest()
                parts.append(ring.pack_record(ring.EVIDENCE, envelope, pos=pos, acked=0, synced=pos))
                left, pos = left - 1, pos + 1
            if left:
                parts.append(ring.pack_record(ring.END, pos=pos, acked=0, synced=pos))
                pos += 1
            file.seek(ring.START + number * size)
            file.write(b"".join(parts))
        file.truncate(header.size)
    return header.size


@pytest.mark.slow
def test_start_with_a_million_records_waiting_reads_little_and_holds_little(tmp_path: Path) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    size = pile(path, 1_000_000, 200)
    assert size > 200 << 20
    tracemalloc.start()
    box = Outbox.open(path, channel="dso", size=size, inspect=inspect, files=files)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1_000_000 <= box.pending.records <= 1_000_400, "of full segments it is an estimate"
    assert sum(length for name, _, length in files.calls if name == "pread") < 4 << 20
    assert most < 16 << 20
    assert box.read(0, max_bytes=1)[0].link.seq == 1
    assert box.last is not None
    assert box.last.seq == 1_000_000
    box.close()
