"""``outbox resize`` and ``outbox repair``: nothing that can be read is lost, what cannot is stated by the next start,
and a crash at each step leaves the old file in its place.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import OutboxError
from agent.evidence.envelope import Link
from agent.model import Withdrawn
from agent.outbox import Outbox, Stored, ring
from agent.outbox.files import OS_FILES, Files, OsFiles
from agent.outbox.rebuild import Repaired, repair, resize
from tests.faulty_files import FaultyFiles, PowerCut
from tests.test_outbox import SEGMENT, SEGMENTS, SIZE, Sealer, everything, fill, inspect, open_outbox, segment, spoil


class Unsynced(OsFiles):
    """Nobody cuts the power here."""

    def fdatasync(self, fd: int) -> None:
        """At once."""


FAST = Unsynced()


def size_of(segments: int) -> int:
    return ring.START + segments * SEGMENT


def resized(path: Path, segments: int, files: Files = OS_FILES) -> Outbox:
    resize(path, channel="dso", size=size_of(segments), inspect=inspect, files=files)
    return open_outbox(path, size=size_of(segments))


def repaired(path: Path, *, channel: str | None = "dso", dry_run: bool = False, files: Files = OS_FILES) -> Repaired:
    aside = path.with_name("aside")
    return repair(path, channel=channel, aside=aside, inspect=inspect, dry_run=dry_run, files=files)


def make(path: Path, *, records: int, acked: float, runs: int = 1, length: int = 300) -> list[Stored]:
    """An outbox of some runs, closed; returns what it holds."""
    box = open_outbox(path, FAST)
    for run in range(runs):
        box.close()
        box = open_outbox(path, FAST)
        fill(box, Sealer(run + 1, box.last), -(-records // runs), length)
        held = everything(box)
        box.settle(held[int(acked * (len(held) - 1))].pos if acked and held else 0)
    box.mark()
    held = everything(box)
    box.close()
    return held


def waiting(box: Outbox) -> list[bytes]:
    return [stored.envelope for stored in everything(box) if stored.pos > box.acked]


# ---- resize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [4, 6, 9])
@pytest.mark.parametrize(("records", "acked"), [(0, 0.0), (3, 0.5), (22, 0.4), (22, 1.0), (70, 0.6), (70, 1.0)])
def test_all_that_waits_stays_and_what_fits_before_it(
    tmp_path: Path, segments: int, records: int, acked: float
) -> None:
    path = tmp_path / "ring"
    held = make(path, records=records, acked=acked, runs=2)
    before = open_outbox(path)
    state = before.acked, before.last, before.next_pos, before.salt
    unsent, ring_id = waiting(before), before.ring_id
    before.close()
    box = resized(path, segments)
    assert (box.acked, box.last, box.next_pos, box.salt) == state
    assert box.ring_id != ring_id
    assert waiting(box) == unsent
    now = everything(box)
    assert now == held[len(held) - len(now) :]
    assert len(now) == len(held) or len(box._view.segments) == segments
    assert box.lost == ()
    assert path.stat().st_size == size_of(segments)
    for _ in range(3 * SEGMENTS):  # it goes round
        fill(box, Sealer(9, box.last), 10)
        box.settle(box.next_pos - 1)
    box.close()
    open_outbox(path, size=size_of(segments)).close()


def test_the_next_run_knows_the_plan_of_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=22, acked=0.5)
    before = open_outbox(path)
    recovered = list(before.recovered())
    before.close()
    assert list(resized(path, 9).recovered()) == recovered


def test_too_small_for_what_waits_is_refused_with_the_size_needed(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=40, acked=0)
    before = path.read_bytes()
    with pytest.raises(OutboxError, match="too small: 5 segments hold records that wait") as error:
        resized(path, 4)
    assert error.value.hint == f"give it at least {size_of(5)} bytes"
    with pytest.raises(OutboxError, match="too small"):
        resize(path, channel="dso", size=1, inspect=inspect)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ring"]


def test_the_size_that_it_has_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=20, acked=0)
    before = path.read_bytes()
    assert resize(path, channel="dso", size=SIZE, inspect=inspect).dropped == 0
    assert path.read_bytes() == before


def test_owner_and_rights_stay(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=3, acked=0)
    path.chmod(0o604)
    resized(path, 6)
    assert path.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("segments", [6, 9])
def test_what_was_lost_before_is_still_stated(tmp_path: Path, segments: int) -> None:
    path = tmp_path / "ring"
    make(path, records=22, acked=0)
    zero(path, segment(0), SEGMENT)
    before = open_outbox(path)
    assert before.lost
    before.close()
    assert resized(path, segments).lost == before.lost


@pytest.mark.parametrize("torn", [False, True])
def test_what_an_end_of_segment_says_is_lost_is_still_stated(tmp_path: Path, torn: bool) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    box, sealer = open_outbox(path, files), Sealer(1)
    while len(box._view.segments) < SEGMENTS or box.fits(500, 1):
        fill(box, sealer, 1)
    held = everything(box)
    files.fail("pwrite", "cut", after=1)  # the end of segment is on disk
    with pytest.raises(PowerCut):
        fill(box, sealer, 1)
    box.close()
    files.cut(path, lambda versions: 0)
    if torn:
        spoil(path, segment(0) + 500, 300)
    before = open_outbox(path)
    lost, left = before.lost, [stored.envelope for stored in everything(before)]
    before.close()
    assert bool(lost) == torn
    box = resized(path, 9)
    assert [stored.envelope for stored in everything(box)] == left
    assert box.lost == lost
    assert torn or left == [stored.envelope for stored in held]


def test_a_running_agent_keeps_its_outbox(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=3, acked=0)
    box = open_outbox(path)
    with pytest.raises(OutboxError, match="in use") as error:
        resized(path, 6)
    assert error.value.hint == "stop the agent first"
    spoil(path, 30)
    with pytest.raises(OutboxError, match="in use"):
        repaired(path)
    box.close()


def test_another_channel_or_a_damaged_one_is_not_resized(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    make(path, records=12, acked=0)
    with pytest.raises(OutboxError, match="'dso', not of 'nmi'"):
        resize(path, channel="nmi", size=size_of(6), inspect=inspect)
    spoil(path, segment(1) + 20)
    with pytest.raises(OutboxError, match="damaged") as error:
        resized(path, 6)
    assert "outbox repair" in error.value.hint


@pytest.mark.parametrize("slot", [0, 1])
def test_what_a_repair_would_save_is_not_left_behind(tmp_path: Path, slot: int) -> None:
    path = tmp_path / "ring"
    held = make(path, records=22, acked=0)
    headers(path, slot)
    before = path.read_bytes()
    with pytest.raises(OutboxError, match="its records would stay behind") as error:
        resized(path, 9)
    assert "outbox repair" in error.value.hint
    assert path.read_bytes() == before
    repaired(path)
    assert everything(resized(path, 9)) == held


@pytest.mark.parametrize("how", ["failed", "applied", "cut"])
@pytest.mark.parametrize(("call", "after"), [("pwrite", 0), ("pwrite", 2), ("fdatasync", 0)])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_leaves_the_old_file_in_its_place(
    tmp_path: Path, call: str, after: int, how: str, damaged: bool
) -> None:
    path, files = tmp_path / "ring", FaultyFiles()
    held = make(path, records=22, acked=0)
    if damaged:
        spoil(path, 30)
    before = path.read_bytes()
    files.fail(call, how, after=after)

    def attempt(layer: Files) -> None:
        if damaged:
            repaired(path, files=layer)
        else:
            resize(path, channel="dso", size=size_of(9), inspect=inspect, files=layer)

    with pytest.raises((OutboxError, PowerCut)):
        attempt(files)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ring"] or how == "cut"
    attempt(OS_FILES)
    assert not (tmp_path / "ring.new").exists()
    assert everything(open_outbox(path, size=SIZE if damaged else size_of(9))) == held


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ring"
    make(path, records=3, acked=0)
    monkeypatch.setattr(OsFiles, "fallocate", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        resized(path, 9)
    assert os.listdir(tmp_path) == ["ring"]


# ---- repair ---------------------------------------------------------------------------------------------------------


def zero(path: Path, offset: int, count: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def newest(path: Path) -> int:
    """The slot of the newest segment."""
    data = path.read_bytes()
    ring_id = ring.unpack_file_header(data[: ring.START]).ring_id
    heads = [(ring.unpack_segment_header(data[segment(slot) :], ring_id), slot) for slot in range(SEGMENTS)]
    return max((head.first_pos, slot) for head, slot in heads if head)[1]


def headers(path: Path, *slots: int) -> None:
    for slot in slots:
        spoil(path, segment(slot) + 20)


def sectors(path: Path, *slots: int, at: int = 0, count: int = 512) -> None:
    for slot in slots:
        zero(path, segment(slot) + at, count)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "one file header": lambda path: spoil(path, 30),
    "both file headers": lambda path: zero(path, 0, ring.START),
    "header of the newest segment": lambda path: headers(path, newest(path)),
    "header of the one before": lambda path: headers(path, newest(path) - 1),
    "both of these": lambda path: headers(path, newest(path), newest(path) - 1),
    "all headers of segments": lambda path: headers(path, *range(SEGMENTS)),
    "longer": lambda path: os.truncate(path, size_of(SEGMENTS) + 10),
    "first sector of the newest": lambda path: sectors(path, newest(path)),
    "first sectors of all": lambda path: sectors(path, *range(SEGMENTS)),
    "cut": lambda path: os.truncate(path, segment(SEGMENTS - 1) + 700),
    "the two newest": lambda path: sectors(path, newest(path), newest(path) - 1, at=96, count=4000),
}


def unharmed(before: bytes, after: bytes, held: list[Stored]) -> set[int]:
    """Positions of which every byte is as it was."""
    found = set()
    for stored in held:
        at = before.index(stored.envelope) - ring.RECORD_HEADER
        end = at + ring.size_of(len(stored.envelope))
        if before[at:end] == after[at:end]:
            found.add(stored.pos)
    return found


def covered(link: Link, spans: tuple[Withdrawn, ...]) -> bool:
    return any(span.stream == link.stream and span.first <= link.seq <= span.last for span in spans)


def check_repaired(path: Path, before: bytes, held: list[Stored], acked: int, *, done: Repaired) -> None:
    """Every record whose bytes are unharmed is there, in order; what is not and waits is stated, unless nothing that
    follows it, or nothing of its stream, is left.
    """
    after = path.with_name("aside").read_bytes()
    whole = unharmed(before, after, held)
    box = open_outbox(path, FAST)
    now = everything(box)
    mine = [stored.pos for stored in now if stored.pos in whole]
    assert mine == [stored.pos for stored in held if stored.pos in whole]
    assert [stored.pos for stored in now] == sorted({stored.pos for stored in now})
    assert done.records >= len(now)  # what an end of segment gave up may be left and readable
    assert box.acked <= acked
    last = now[-1].pos
    gone = [stored for stored in held if box.acked < stored.pos < last and stored.pos not in whole]
    named = {stored.link.stream for stored in now}  # a stream of which nothing is left cannot be
    assert [each.link.seq for each in gone if each.link.stream in named and not covered(each.link, box.lost)] == []
    for run in range(2):
        fill(box, Sealer(100 + run, box.last), 30)
        box.settle(box.next_pos - 1)
        box.mark()
        box.close()
        box = open_outbox(path, FAST)
    box.close()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("records", "acked"), [(22, 0.0), (22, 0.7), (70, 0.0), (70, 0.9)])
def test_every_record_that_can_be_read_is_saved(tmp_path: Path, damage: str, records: int, acked: float) -> None:
    path = tmp_path / "ring"
    held = make(path, records=records, acked=acked, runs=2)
    box = open_outbox(path)
    position, old = box.acked, box.ring_id
    box.close()
    before = path.read_bytes()
    DAMAGES[damage](path)
    spoilt = path.read_bytes()
    planned = repaired(path, dry_run=True)
    assert path.read_bytes() == spoilt
    assert os.listdir(tmp_path) == ["ring"]
    done = repaired(path)
    assert done == planned
    assert done.troubles
    assert path.with_name("aside").read_bytes() == spoilt
    header = ring.unpack_file_header(path.read_bytes()[: ring.START])
    assert (header.segments, header.channel) == (SEGMENTS, "dso")
    assert header.ring_id != old
    assert (header.salt == box.salt) == (not done.new_salt) == (damage != "both file headers")
    check_repaired(path, before, held, position, done=done)


def random_damage(path: Path, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(5):
            case 0:
                spoil(path, segment(chance.randrange(SEGMENTS)) + chance.randrange(96))
            case 1:
                at = ring.START + chance.randrange(SEGMENTS * SEGMENT - 600)
                spoil(path, at, chance.choice([1, 60, 600]))
            case 2:
                zero(path, ring.START + 512 * chance.randrange(SEGMENTS * SEGMENT // 512), 512)
            case 3:
                zero(path, ring.BLOCK, ring.BLOCK)  # without the other, small segments could not be told
            case _:
                slot = chance.randrange(SEGMENTS)
                zero(path, segment(slot), SEGMENT)


def live(seed: int, folder: Path) -> bool:
    """One life and one damage; whether there was anything to repair."""
    chance = random.Random(seed)
    path = folder / "ring"
    runs = chance.randint(1, 3)
    held = make(
        path,
        records=chance.randint(1, 90),
        acked=chance.choice([0, 0.3, 0.8, 1]),
        runs=runs,
        length=chance.choice([60, 300]),
    )
    box = open_outbox(path, FAST)
    position = box.acked
    box.close()
    before = path.read_bytes()
    random_damage(path, chance)
    try:
        done = repaired(path, files=FAST)
    except OutboxError as error:
        if not any(words in str(error) for words in ("nothing is wrong", "no record", "nor what is left")):
            raise
        return False
    check_repaired(path, before, held, position, done=done)
    return True


def campaign(seeds: range, folder: Path) -> None:
    found = 0
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        try:
            found += live(seed, place)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert found > len(seeds) // 4


def test_random_damage_loses_nothing_unstated(tmp_path: Path) -> None:
    campaign(range(40), tmp_path)


@pytest.mark.slow
def test_much_random_damage_loses_nothing_unstated(tmp_path: Path) -> None:
    campaign(range(40, 1500), tmp_path)
