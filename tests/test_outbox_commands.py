"""``outbox verify``, ``repair`` and ``resize`` from the command line, on ring files with real evidence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.commands import outbox_verify
from agent.errors import OutboxError
from agent.evidence.record import link_of
from agent.model import Cause
from agent.outbox import Outbox, ring
from agent.outbox.files import OsFiles
from agent.outbox.look import look
from agent.outbox.rebuild import repair, resize
from agent.outbox.ring import Inspect
from agent.outbox.survey import Survey, survey
from tests.runs import DID
from tests.served_agent import Ring
from tests.test_running_commands import Shell, config, shell

__all__ = ["config", "shell"]  # fixtures
SIZE = 64 << 20  # as configured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "dso.ring"


@pytest.fixture
def made(path: Path) -> Iterator[Ring]:
    """20 records in an outbox of the size that is configured, of which 5 are acknowledged."""
    found = Ring(path, size=SIZE)
    for _ in range(19):
        found.data(2)
    found.box.settle(found.held[4][0])
    found.box.mark()
    yield found
    found.box.close()


def small(path: Path, count: int) -> Ring:
    """One that goes round, and is closed."""
    found = Ring(path, size=ring.START + 5 * 16_384, segment_size=16_384)
    for _ in range(count):
        found.data()
    found.box.close()
    return found


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def place(path: Path, envelope: bytes) -> int:
    return path.read_bytes().index(envelope)


# ---- verify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False])
def test_a_good_one(shell: Shell, made: Ring, alive: bool) -> None:
    if not alive:
        made.box.close()
    before = made.path.read_bytes()
    out, _ = shell("outbox", "verify")
    assert f"{made.path}: outbox of channel dso, 63 segments of 1 MiB, of which 1 MiB hold records" in out
    assert "holds 20 records at positions 1 to 21, acknowledged to 5" in out
    assert "verified 20 records, 38 frames, 0 failed" in out
    assert "DAMAGED" not in out
    assert made.path.read_bytes() == before
    (found,) = shell.json("outbox", "verify", str(made.path))
    assert (found["good"], found["records"], found["acked"], found["troubles"], found["damage"]) == (
        True,
        20,
        5,
        [],
        [],
    )
    assert found["evidence"]["cycles_missing"] == 0
    assert found["evidence"]["channels"][0]["signer"] == DID


def test_an_empty_one(shell: Shell, path: Path) -> None:
    path.parent.mkdir()
    Outbox.open(path, channel="dso", size=SIZE, inspect=link_of).close()
    assert "holds no record" in shell("outbox", "verify")[0]


def test_what_was_overwritten_and_stated(shell: Shell, path: Path) -> None:
    made = Ring(path, size=ring.START + 5 * 16_384, segment_size=16_384)
    for _ in range(400):
        if not made.box.fits(4096, 2):
            made.run.sealer.withdraw(made.box.overwritten())
        made.data()
    (found,) = shell.json("outbox", "verify")
    (span,) = found["withdrawn"]
    assert found["good"]
    assert found["first_pos"] > 1
    assert (span["stream"], span["first"], span["cause"]) == (made.run.sealer.stream.hex(), 1, "overflow")
    out, _ = shell("outbox", "verify")
    assert f"positions 1 to {found['first_pos'] - 1} were overwritten" in out
    assert f"stated as withdrawn, overflow: {span['stream'][:8]}/1 to {span['last']}" in out


def test_rot_is_found_and_named(shell: Shell, made: Ring) -> None:
    made.box.close()
    at = place(made.path, made.held[8][1]) - ring.RECORD_HEADER
    spoil(made.path, at + 110)
    (found,) = shell.json("outbox", "verify", code=1)
    (damage,) = found["damage"]
    assert (damage["first_pos"], damage["last_pos"], found["troubles"]) == (9, 9, [])
    assert damage["offset"] == at
    assert damage["records"] == [{"stream": made.run.sealer.stream.hex(), "first": 9, "last": 9}]
    assert "position 9 (records " in shell("outbox", "verify", code=1)[0]


def test_a_forged_record_is_found(shell: Shell, path: Path) -> None:
    made = Ring(path, size=SIZE)
    made.data()
    last = made.run.sent[-1]
    forged, link = last[:-1] + bytes([last[-1] ^ 1]), made.run.links[-1]
    made.run.sealer._digest = link.prev
    made.box.close()
    data = path.read_bytes()
    at = data.index(last) - ring.RECORD_HEADER
    packed = ring.pack_record(ring.EVIDENCE, forged, pos=2, acked=0, synced=2)
    path.write_bytes(data[:at] + packed + data[at + len(packed) :])
    (found,) = shell.json("outbox", "verify", code=1)
    assert (found["damage"], found["evidence"]["levels"]["signature"]) == ([], "failed")


def test_another_signer_is_a_finding(shell: Shell, made: Ring) -> None:
    other = "did:ethr:volta:0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
    (found,) = shell.json("outbox", "verify", "--did", other, code=1)
    assert found["evidence"]["foreign"] == 20
    assert "edge-agent outbox verify: " in shell("outbox", "verify", "--did", "x", code=2)[1]


def test_a_writer_that_overtakes_the_reader(path: Path) -> None:
    made = Ring(path, size=ring.START + 5 * 16_384, segment_size=16_384)
    for _ in range(200):
        made.data()
    fd = os.open(path, os.O_RDONLY)
    found = survey(fd, link_of)
    parts = found.parts()
    next(parts)
    for _ in range(200):
        made.data()
    assert sum(1 for _ in parts) < 4
    assert found.overtaken
    assert (found.troubles, found.damage) == ([], [])
    os.close(fd)
    made.box.close()


def test_what_is_written_after_it_began_is_left_out(shell: Shell, made: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    def and_more(fd: int, inspect: Inspect) -> Survey:
        found = survey(fd, inspect)
        made.data()
        return found

    monkeypatch.setattr(outbox_verify, "survey", and_more)
    (found,) = shell.json("outbox", "verify")
    assert (found["good"], found["records"], found["next_pos"]) == (True, 20, 22)
    assert found["evidence"]["records"] == 20


# ---- repair ---------------------------------------------------------------------------------------------------------


def test_a_damaged_one_is_refused_by_a_start_and_repaired(shell: Shell, made: Ring) -> None:
    made.box.close()
    spoil(made.path, ring.START + 20)
    spoil(made.path, place(made.path, made.held[8][1]) + 70)
    out, _ = shell("outbox", "verify", code=1)
    assert "the header of the segment at byte 8192 is broken; stop the agent, then edge-agent outbox repair" in out
    out, _ = shell("outbox", "repair", "--dry-run")
    assert f"{made.path}: 19 records of channel dso would be saved, of which 14 wait" in out
    assert os.listdir(made.path.parent) == ["dso.ring"]
    out, err = shell("outbox", "repair")
    assert "damaged: the header of the segment at byte 8192 is broken" in out
    assert f"{made.path}: 19 records of channel dso saved, of which 14 wait" in out
    (aside,) = made.path.parent.glob("dso.ring.damaged-*")
    assert str(aside) in err
    box = Outbox.open(made.path, channel="dso", size=SIZE, inspect=link_of)
    assert len(box.read(0, max_bytes=1 << 30)) == 19
    assert [(span.first, span.last, span.cause) for span in box.lost] == [(9, 9, Cause.DISK_ERROR)]
    box.close()
    (found,) = shell.json("outbox", "verify", code=1)
    assert found["troubles"] == []


def test_where_nothing_is_wrong_nothing_is_repaired(shell: Shell, made: Ring) -> None:
    assert "in use" in shell("outbox", "repair", code=1)[1]
    made.box.close()
    before = made.path.read_bytes()
    assert "nothing is wrong" in shell("outbox", "repair", code=1)[1]
    assert made.path.read_bytes() == before
    assert os.listdir(made.path.parent) == ["dso.ring"]


def test_without_file_headers_the_plan_says_whose_it_is(shell: Shell, made: Ring) -> None:
    made.box.close()
    content = made.path.read_bytes()
    made.path.write_bytes(bytes(ring.START) + content[ring.START :])
    assert "both of its file headers are broken" in shell("outbox", "verify", str(made.path), code=1)[0]
    assert "lost: the salt" in shell("outbox", "repair", str(made.path))[0]
    assert look(made.path, channel="dso").pending_records == 15


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"EVRING02" + bytes(30000), "version"),
        (bytes(30000), "nor what is left of one"),
        (b"", "nor what is left of one"),
    ],
)
def test_what_is_no_ring_of_this_version_is_left_alone(
    shell: Shell, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "x.ring"
    path.write_bytes(content)
    for command in ("verify", "repair"):
        assert words in shell("outbox", command, str(path), code=1)[1]
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("x.ring.*"))


class BadBlock(OsFiles):
    """A disk that does not give one block."""

    def __init__(self, at: int) -> None:
        self.at = at

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if offset < self.at + ring.BLOCK and self.at < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, length, offset)


def test_blocks_that_the_disk_does_not_give(path: Path) -> None:
    made = small(path, 30)
    at = ring.START + ring.BLOCK
    bad = BadBlock(at)
    with pytest.raises(OutboxError, match="Input/output error"):
        Outbox.open(path, channel="dso", size=path.stat().st_size, inspect=link_of, files=bad, segment_size=16_384)
    aside = path.with_name("aside")
    done = repair(path, channel=None, aside=aside, inspect=link_of, files=bad)
    assert done.troubles == (
        f"the disk does not give 1 blocks of 4096 bytes, the first at byte {at}: Input/output error",
    )
    content = aside.read_bytes()
    within = range(at, at + ring.BLOCK)
    hit = [e for _, e in made.held if content.index(e) < within.stop and content.index(e) + len(e) > within.start]
    box = Outbox.open(path, channel="dso", size=path.stat().st_size, inspect=link_of, segment_size=16_384)
    left = [stored.envelope for stored in box.read(0, max_bytes=1 << 30)]
    assert left == [envelope for _, envelope in made.held if envelope not in hit]
    assert sum(span.last - span.first + 1 for span in box.lost) == len(hit) > 0
    box.close()


# ---- resize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [False, True])
def test_what_the_disk_does_not_give_is_not_left_behind(path: Path, newest: bool) -> None:
    made = small(path, 100)
    slot = look(path, channel="dso").segments_used - 1 if newest else 0
    bad = BadBlock(ring.START + slot * 16_384 + ring.BLOCK)
    with pytest.raises(OutboxError, match="Input/output error") as error:
        resize(path, channel="dso", size=ring.START + 8 * 16_384, inspect=link_of, files=bad)
    assert "outbox repair" in error.value.hint
    assert os.listdir(path.parent) == ["dso.ring"]
    resize(path, channel="dso", size=ring.START + 8 * 16_384, inspect=link_of)  # it gives it again
    assert look(path, channel="dso").pending_records == len(made.held)


def test_a_new_size_in_the_configuration(shell: Shell, made: Ring) -> None:
    assert "in use: the agent runs; stop the agent first" in shell("outbox", "resize", code=1)[1]
    made.box.close()
    assert "has 63 segments already; nothing was changed" in shell("outbox", "resize")[0]
    out, err = shell("outbox", "resize", "--to", "8MiB")
    assert f"{made.path}: 7 segments instead of 63; 1 with records kept" in out
    assert err == "now set outbox.size of channel dso to 8MiB: the configuration says 64MiB\n"
    assert look(made.path, channel="dso").pending_records == 15
    assert "too small" in shell("outbox", "resize", "--to", "2MiB", code=1)[1]
    assert "63 segments instead of 7; 1 with records kept" in shell("outbox", "resize")[0]
    Outbox.open(made.path, channel="dso", size=SIZE, inspect=link_of).close()


def test_a_size_that_is_none_is_a_wrong_argument(shell: Shell, made: Ring) -> None:
    with pytest.raises(SystemExit) as ended:
        shell("outbox", "resize", "--to", "much")
    assert ended.value.code == 2


# ---- files that are not as they should be ---------------------------------------------------------------------------

ALL: list[list[Any]] = [
    ["outbox", "status"],
    ["outbox", "list"],
    ["outbox", "export", "copy"],
    ["outbox", "verify"],
    ["outbox", "resize"],
    ["outbox", "repair"],
]


@pytest.mark.parametrize("command", ALL, ids=lambda command: command[1])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "cut", "half"])
def test_whatever_lies_there_is_told(
    shell: Shell, path: Path, command: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    monkeypatch.chdir(path.parent.parent)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/null")
        case "loop":
            path.symlink_to(path)
        case "cut":
            path.write_bytes(b"EVRING01")
        case _:
            small(path, 30)
            os.truncate(path, ring.START + 20_000)
    code = 0 if kind == "half" and command[1] == "repair" else 1
    out, err = shell(*command, code=code)
    assert str(path) in out + err or "/dev/null" in err
    assert "Traceback" not in err
    assert not Path("copy").exists()


@pytest.mark.parametrize("command", ALL, ids=lambda command: command[1])
def test_a_ring_that_may_not_be_read_is_77(
    shell: Shell, path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(path, 3)
    real = os.open

    def refusing(name: Any, *arguments: Any, **named: Any) -> int:
        if str(name).endswith(".ring"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return real(name, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)
    assert str(path) in shell(*command, code=77)[1]
