"""Looking at a ring file from outside says what the outbox itself says, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import OutboxError
from agent.evidence.record import link_of
from agent.outbox import Outbox, ring
from agent.outbox.look import look, records
from tests.runs import START, S
from tests.served_agent import Ring

SEGMENT, SEGMENTS = 16_384, 5
SIZE = ring.START + SEGMENTS * SEGMENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dso.ring"


def make(path: Path, count: int) -> Ring:
    made = Ring(path, size=SIZE, segment_size=SEGMENT)
    for _ in range(count):
        made.data()
    return made


def reopened(path: Path) -> Outbox:
    return Outbox.open(path, channel="dso", size=SIZE, inspect=link_of, segment_size=SEGMENT)


@pytest.mark.parametrize("count", [0, 3, 60, 150, 400])
@pytest.mark.parametrize("acked", [0.0, 0.3, 0.9, 1.0])
def test_it_says_what_the_outbox_says_at_its_start(path: Path, count: int, acked: float) -> None:
    made = make(path, count)
    made.box.settle(int(acked * made.held[-1][0]))
    made.box.mark()
    made.box.close()
    seen = look(path, channel="dso")
    box = reopened(path)
    assert (seen.acked, seen.next_pos) == (box.acked, box.next_pos)
    assert (seen.pending_records, seen.pending_bytes) == (box.pending.records, box.pending.bytes)
    assert (seen.ring_id, seen.size, seen.segments) == (box.ring_id.hex(), SIZE, SEGMENTS)
    held = [pos for pos, _ in made.held if pos >= seen.first_pos]
    assert seen.pending_exact <= (seen.pending_records == sum(pos > seen.acked for pos in held))
    assert seen.newest_wall == made.run.clock.wall() == START + 1000 * S
    assert (seen.oldest_wall is None) == (acked == 1.0)
    box.close()


def test_the_oldest_that_waits(path: Path) -> None:
    made = Ring(path, size=SIZE, segment_size=SEGMENT)
    walls = [made.run.clock.wall()]
    for _ in range(100):
        made.run.clock.now += S
        made.data()
        walls += [made.run.clock.wall()] * (len(made.held) - len(walls))  # a plan may come before it
    for index in (0, 10, 50, 98):
        made.box.settle(made.held[index][0])
        made.box.mark()
        assert look(path, channel="dso").oldest_wall == walls[index + 1]


def test_what_the_running_agent_knows_better(path: Path) -> None:
    made = make(path, 20)
    assert look(path, channel="dso", acked=made.held[9][0]).pending_records == 11
    assert look(path, channel="dso").pending_records == 21
    assert look(path, channel="dso", acked=10**6).acked == 0, "a position that is not there"


@pytest.mark.parametrize("count", [0, 3, 60, 150, 400])
def test_all_records_and_the_last_ones(path: Path, count: int) -> None:
    made = make(path, count)
    everything = [(stored.pos, stored.envelope) for stored in made.box.read(0, max_bytes=1 << 30)]
    assert everything == made.held[-len(everything) :]
    assert [(stored.pos, stored.envelope) for stored in records(path, channel="dso")] == everything
    for newest in (1, 2, 40, 10_000):
        found = [(stored.pos, stored.envelope) for stored in records(path, channel="dso", newest=newest)]
        assert found == everything[-newest:]


def test_records_that_are_overwritten_while_they_are_read(path: Path) -> None:
    made = make(path, 150)
    reading = records(path, channel="dso")
    found = [next(reading).pos]
    for _ in range(400):
        made.data()
    found += [stored.pos for stored in reading]
    held = dict(made.held)
    assert found == sorted(set(found))
    assert set(found) <= held.keys()
    assert found[-1] == made.held[-1][0]


# ---- files that are not as they should be ---------------------------------------------------------------------------


def damaged(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def zeros(first: int, last: int) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        content[first:last] = bytes(last - first)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.clear(), "no ring file"),
        (zeros(0, 2 * ring.BLOCK), "no ring file"),
        (lambda content: content.__setitem__(slice(0, 8), b"EVRING99"), "version"),
        (lambda content: content.__delitem__(slice(-10, None)), "bytes and not"),
        (lambda content: content.extend(b"more"), "bytes and not"),
    ],
    ids=["empty", "zeros", "version", "cut", "longer"],
)
def test_what_is_no_ring_of_ours_is_a_clear_error(
    path: Path, change: Callable[[bytearray], object], words: str
) -> None:
    make(path, 60).box.close()
    damaged(path, change)
    for attempt in (lambda: look(path, channel="dso"), lambda: list(records(path, channel="dso"))):
        with pytest.raises(OutboxError, match=words) as raised:
            attempt()
        assert str(path) in str(raised.value)
        assert raised.value.hint


def test_records_that_cannot_be_read_at_all(path: Path) -> None:
    make(path, 60).box.close()

    def blank(content: bytearray) -> None:
        for number in range(SEGMENTS):
            at = ring.START + number * SEGMENT + ring.SEGMENT_HEADER
            content[at : ring.START + (number + 1) * SEGMENT] = bytes(SEGMENT - ring.SEGMENT_HEADER)

    damaged(path, blank)
    with pytest.raises(OutboxError, match="damaged"):
        look(path, channel="dso")
    assert list(records(path, channel="dso")) == []


def test_a_segment_whose_opening_never_became_whole_does_not_count(path: Path) -> None:
    made = make(path, 0)
    while len(made.held) < 60 or made.box.fits(4096, 2):
        made.data()
    held = made.held[-1][0]
    made.data()
    made.box.close()
    newest = max(range(SEGMENTS), key=lambda number: first_pos(path, number))
    at = ring.START + newest * SEGMENT + ring.SEGMENT_HEADER
    damaged(path, zeros(at, ring.START + (newest + 1) * SEGMENT))
    seen = look(path, channel="dso")
    box = reopened(path)
    assert (seen.next_pos, seen.pending_records) == (box.next_pos, box.pending.records)
    assert [stored.pos for stored in records(path, channel="dso")][-1] == held
    box.close()


def first_pos(path: Path, number: int) -> int:
    head = path.read_bytes()[ring.START + number * SEGMENT :][: ring.SEGMENT_HEADER]
    found = ring.unpack_segment_header(head, ring.unpack_file_header(path.read_bytes()[: ring.START]).ring_id)
    return found.first_pos if found else 0


def test_rot_costs_what_it_hit(path: Path) -> None:
    made = make(path, 60)
    made.box.close()
    damaged(path, lambda content: content.__setitem__(ring.START + 96 + 2000, content[ring.START + 96 + 2000] ^ 1))
    found = [stored.pos for stored in records(path, channel="dso")]
    assert len(found) == len(made.held) - 1
    assert look(path, channel="dso").next_pos == made.held[-1][0] + 1


def test_of_another_channel_and_not_there(path: Path) -> None:
    make(path, 1)
    with pytest.raises(OutboxError, match="of channel 'dso', not of 'nmi'"):
        look(path, channel="nmi")
    with pytest.raises(OutboxError, match="No such file") as raised:
        list(records(path.with_name("nmi.ring"), channel="nmi"))
    assert "first start" in raised.value.hint


def test_nothing_is_written(path: Path) -> None:
    made = make(path, 150)
    made.box.close()
    os.utime(path, ns=(1, 1))
    path.chmod(0o400)
    before = path.read_bytes()
    look(path, channel="dso")
    list(records(path, channel="dso"))
    list(records(path, channel="dso", newest=3))
    assert path.stat().st_mtime_ns == 1
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]
