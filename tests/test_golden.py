"""What a release left on disk is opened, continued and verified by this code with the same results; and what a newer
version left is refused with a word and stays as it is, byte for byte.

The files of a release are never written anew (tests/golden_release.py): if a test fails here the code has to change.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import cbor2
import pytest

from adapters.mqtt.kept import KeptFilters
from agent.cli import main
from agent.config import load
from agent.config.shown import as_file
from agent.errors import CheckpointError, OutboxError
from agent.evidence import cbor
from agent.evidence.history import replay
from agent.evidence.record import link_of
from agent.outbox import Outbox, ring
from agent.outbox.look import look
from agent.signer import open_signer
from agent.verifier import Verifier
from tests import golden_release
from tests.golden_release import GOLDEN, SEGMENT
from tests.runs import DID, FakeClock, Run, S, frame, group

RELEASES = sorted(path for path in GOLDEN.iterdir() if (path / "outboxes.json").exists())
VERSION_IN_RING = slice(6, 8)


@pytest.fixture(params=RELEASES, ids=lambda path: str(path.name))
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The files of a release, to be written to."""
    folder = tmp_path / "release"
    shutil.copytree(request.param, folder)
    (folder / "dso.ring").write_bytes(gzip.decompress((folder / "dso.ring.gz").read_bytes()))
    (folder / "key").chmod(0o600)
    return folder


def known(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def holds(now: Any, then: Any) -> bool:
    """Whether all that was said then is said now; later versions may say more."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(key in now and holds(now[key], then[key]) for key in then)
    if isinstance(then, list):
        return isinstance(now, list) and len(now) == len(then) and all(map(holds, now, then))
    return bool(now == then)


def test_the_first_release_is_there() -> None:
    assert GOLDEN / "0.1.0" in RELEASES


def test_a_release_is_not_written_twice() -> None:
    for folder in RELEASES:
        with pytest.raises(FileExistsError):
            golden_release.write(folder)


# ---- what a release left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "segment"), [("small", golden_release.SMALL, SEGMENT), ("dso", 5 << 20, 1 << 20)]
)
def test_an_outbox_is_opened_and_continued(release: Path, name: str, size: int, segment: int) -> None:
    path, then = release / f"{name}.ring", known(release, "outboxes.json")[f"{name}.ring"]
    before = path.read_bytes()
    assert holds(look(path, channel="dso").as_json(), then["standing"])
    assert path.read_bytes() == before
    box = Outbox.open(path, channel="dso", size=size, inspect=link_of, segment_size=segment)
    try:
        held = [(stored.pos, stored.envelope) for stored in box.read(0, max_bytes=1 << 30)]
        assert [[pos, hashlib.sha256(each).hexdigest()] for pos, each in held] == then["records"]
        standing = then["standing"]
        assert (box.acked, box.next_pos, box.lost) == (standing["acked"], standing["next_pos"], ())
        assert box.pending.records == standing["pending_records"]
        assert box.last is not None
        run = Run(clock=FakeClock(offset=1_900_000_000 * S), last=box.last, history=replay(box.recovered()))
        run.begin([group(500)])
        run.data([frame(500), frame(501)])
        positions = box.append(list(zip(run.sent, run.links, strict=True)), new_segment=not box.fits(4096, 2))
        assert positions[0] in (standing["next_pos"], standing["next_pos"] + 1)  # behind an end of segment
        verifier = Verifier([DID])
        for each in (*(envelope for _, envelope in held), *run.sent):
            verifier.feed(each)
        verifier.finish(complete=False)
        assert verifier.report.failed == 0
        assert [each["joins"] for each in _runs(verifier)][-1] == "continuous"
    finally:
        box.close()


def _runs(verifier: Verifier) -> list[dict[str, Any]]:
    from agent.rendering import account

    [channel] = account.as_json(verifier.report)["channels"]
    return list(channel["runs"])


def test_the_commands_verify_an_outbox(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring_file = str(release / "dso.ring")
    assert main(["outbox", "verify", ring_file, "--json", "--did", DID]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == len(known(release, "outboxes.json")["dso.ring"]["records"])
    assert main(["outbox", "verify", str(release / "small.ring"), "--did", DID]) == 0


def test_a_configuration_means_the_same(release: Path) -> None:
    config = load(release / "agent.toml")
    told = json.dumps(as_file(config)).replace(str(release), "/golden")
    assert holds(json.loads(told), known(release, "configuration.json"))


def test_evidence_has_the_same_report_at_once_and_behind_a_checkpoint(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(release / f"evidence-{number}.cbor") for number in (1, 2))
    then, allow = known(release, "report.json"), ["--allow", str(release / "allow.toml"), "--json"]
    assert main(["verify", first, second, "--did", DID, "--json"]) == 0
    assert holds(json.loads(capsys.readouterr().out), then)
    assert main(["verify", second, "--did", DID, "--json", "--checkpoint", str(release / "checkpoint.cbor")]) == 0
    assert holds(json.loads(capsys.readouterr().out), then)
    assert main(["verify", first, second, *allow]) == 0
    assert json.loads(capsys.readouterr().out)["channels"][0]["name"] == "Solar park 7"


def test_a_key_and_what_an_adapter_remembered(release: Path) -> None:
    assert open_signer(load(release / "agent.toml").identity.key, did=DID, any_owner=True).did == DID
    kept = KeptFilters()
    kept.path = release / "bms.filters"
    anyio.run(kept.read)
    assert kept.known == {"site/+/alarms", "site/battery/state"}


# ---- what a newer version left ----------------------------------------------------------------------------------


def newer_ring(path: Path) -> bytes:
    """Of version 02, in both headers; their checksums do not cover it."""
    content = bytearray(path.read_bytes())
    for header in (0, ring.START // 2):
        assert content[header : header + 8] == b"EVRING01"
        content[header + 6 : header + 8] = b"02"
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize(
    "command",
    [
        ["outbox", "status"],
        ["outbox", "list"],
        ["outbox", "export", "EXPORT"],
        ["outbox", "verify"],
        ["outbox", "repair"],
        ["outbox", "repair", "--dry-run"],
        ["outbox", "resize", "--to", "16MiB"],
        ["check"],
    ],
    ids=" ".join,
)
def test_an_outbox_of_a_newer_version_is_refused_by_every_command(
    release: Path, command: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = release / "state"
    state.mkdir()
    path = state / "dso.ring"
    shutil.copy(release / "small.ring", path)
    content = newer_ring(path)
    arguments = [str(release / "export") if each == "EXPORT" else each for each in command]
    where = [str(release / "agent.toml")] if command == ["check"] else ["--config", str(release / "agent.toml")]
    chosen = [] if command == ["check"] else ["--channel", "dso"]
    assert main([*arguments, *where, *chosen]) in (1, 78)
    assert "has version b'02', which is not known here" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert [each.name for each in state.iterdir()] == ["dso.ring"]
    assert not (release / "export").exists()


def test_a_start_refuses_an_outbox_of_a_newer_version(release: Path) -> None:
    content = newer_ring(release / "dso.ring")
    with pytest.raises(OutboxError, match="has version b'02'") as refused:
        Outbox.open(release / "dso.ring", channel="dso", size=5 << 20, inspect=link_of)
    assert "run the version of the agent that wrote it" in refused.value.hint
    assert (release / "dso.ring").read_bytes() == content


def test_a_checkpoint_of_a_newer_version_is_refused_and_kept(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = release / "checkpoint.cbor"
    source, place, state = cbor.decode(path.read_bytes())
    _, digest, book = cbor2.loads(bytes(state))
    with pytest.raises(CheckpointError, match="format 2 of the checkpoint is not known here"):
        Verifier([DID], saved=cbor2.dumps([2, digest, book]))
    content = cbor.encode([source, place, cbor2.dumps([2, digest, book])])
    path.write_bytes(content)
    second = str(release / "evidence-2.cbor")
    assert main(["verify", second, "--did", DID, "--checkpoint", str(path)]) == 1
    assert "format 2 of the checkpoint is not known here; move the file away" in capsys.readouterr().err
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "words", "command", "code"),
    [
        ("agent.toml", "this agent reads version 1, not 2", ["check", "FILE"], 78),
        ("allow.toml", "version: expected 1", ["verify", "EVIDENCE", "--allow", "FILE"], 2),
    ],
)
def test_a_file_of_a_newer_version_that_somebody_wrote_is_refused(
    release: Path, name: str, words: str, command: Sequence[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / name
    path.write_text(path.read_text().replace("version = 1", "version = 2"))
    content = path.read_bytes()
    places = {"FILE": str(path), "EVIDENCE": str(release / "evidence-1.cbor")}
    assert main([places.get(each, each) for each in command]) == code
    assert words in capsys.readouterr().err
    assert path.read_bytes() == content


def test_evidence_of_a_newer_version_is_told_and_never_called_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = json.loads((GOLDEN / "evidence" / "valid.json").read_text())
    newer = [each for each in vectors if each["verdict"] == "structure unknown"]
    assert newer
    for each in newer:
        path = tmp_path / "newer.cbor"
        content = bytes.fromhex(each["envelope"])
        path.write_bytes(content)
        main(["verify", str(path), "--did", DID, "--json"])
        told = json.loads(capsys.readouterr().out)["levels"]
        assert (told["structure"], told["signature"], told["completeness"]) == ("unknown", "ok", "unknown")
        assert path.read_bytes() == content
