"""The commands as an operator runs them: what they print, where, and their exit codes. In this process, without a
daemon.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import __version__
from agent.cli import _parser, main
from agent.commands import tail_nats
from agent.commands import target as target_module
from agent.commands.whole_file import replacing
from agent.config import load
from agent.config.template import agent_toml
from agent.evidence.record import link_of
from agent.outbox import Outbox
from agent.outbox.look import records
from agent.outbox.reader import Stored
from tests.keystores import passphrase_in
from tests.runs import DID, simple_run


def test_the_first_process_of_a_container_can_be_ended_while_it_loads() -> None:
    """The kernel ends it by no signal that has no handler."""
    code = "import os, signal; own = os.getpid(); os.getpid = lambda: 1; import agent.cli; os.kill(own, signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 143


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("init", "check", "run", "reload", "read", "status", "tap", "tail", "verify", "config", "outbox"):
        assert f"\n    {command} " in shown
        with pytest.raises(SystemExit):
            main([command, "--help"])


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"edge-agent {__version__}\n"


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert ended.value.code == 2


# ---- init and check -------------------------------------------------------------------------------------------------


def test_init_makes_a_key_and_a_configuration_that_check_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "agent"
    assert main(["init", str(folder), "--network", "volta"]) == 0
    did = capsys.readouterr().out.strip()
    assert did.startswith("did:ethr:volta:0x")
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert did in (folder / "agent.toml").read_text()
    assert main(["check", str(folder / "agent.toml")]) == 0
    assert "good" in capsys.readouterr().out


def test_init_a_second_time_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path)])
    did = capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out == did
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_init_makes_no_second_key_for_a_did_that_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path)])
    (tmp_path / "key").rename(tmp_path / "key.bak")
    capsys.readouterr()
    assert main(["init", str(tmp_path)]) == 78
    assert "put the key back" in capsys.readouterr().err
    assert not (tmp_path / "key").exists()


def test_init_writes_the_network_that_it_is_told_for_a_key_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", str(tmp_path)])
    (tmp_path / "agent.toml").unlink()
    did = capsys.readouterr().out.strip().replace(":ewc:", ":volta:")
    assert main(["init", str(tmp_path), "--network", "volta"]) == 0
    assert capsys.readouterr().out.strip() == did
    assert f'"{did}"' in (tmp_path / "agent.toml").read_text()


def test_init_takes_the_key_that_the_configuration_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while another part of it is not good yet; and a lost key gets no successor then either."""
    main(["init", str(tmp_path)])
    did = capsys.readouterr().out
    config, moved = tmp_path / "agent.toml", tmp_path / "moved"
    (tmp_path / "key").rename(moved)
    config.write_text(config.read_text().replace("file:key", f"file:{moved}").replace("unit ", "unitt "))
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out == did
    moved.unlink()
    assert main(["init", str(tmp_path)]) == 78
    assert f"its key {moved} is not there; put the key back" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]


def test_init_makes_no_key_beside_a_configuration_that_does_not_tell_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "agent.toml"
    for text in ("[identity]\nkey = ", '[identity]\nkey = "elsewhere"', "identity = 3"):
        config.write_text(text)
        assert main(["init", str(tmp_path)]) == 78
        assert f"{config}:" in capsys.readouterr().err
    config.unlink()
    makes: list[Callable[[], None]] = [
        config.mkdir,
        lambda: os.mkfifo(config),
        lambda: config.symlink_to(tmp_path / "not-mounted"),
    ]
    for number, make in enumerate(makes):
        make()
        assert main(["init", str(tmp_path)]) == 78
        assert capsys.readouterr().err == f"{config}: it is there, and is no file; move it away\n"
        assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]
        config.rename(tmp_path.parent / f"{tmp_path.name}-{number}")
    config.write_text("[site]\n")
    assert main(["init", str(tmp_path)]) == 0, "it names no key: this one is the first"
    assert 'it names no key: write key = "file:key" below [identity]' in capsys.readouterr().err


def test_init_that_was_broken_off_is_finished_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(file: int, content: bytes) -> int:
        if b"[identity]" in content:
            real(file, content[:10])
            raise KeyboardInterrupt
        return real(file, content)

    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", broken_off)
        assert main(["init", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["key"], "no half configuration"
    assert main(["init", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path / "agent.toml")]) == 0


def with_identity(config: Path, identity: str) -> None:
    head, _, rest = config.read_text().partition("[identity]\n")
    config.write_text(f"{head}[identity]\n{identity}\n\n[connection{rest.partition('[connection')[2]}")


def test_init_takes_the_key_where_the_configuration_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "agent.toml"
    main(["init", str(tmp_path)])
    (tmp_path / "key").rename(tmp_path / "other")
    with_identity(config, 'key = "file:other"')
    did = capsys.readouterr().out
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out == did
    with_identity(config, 'key = "file:third"')
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out != did
    assert {path.name for path in tmp_path.iterdir()} == {"agent.toml", "other", "third"}


def test_init_makes_and_keeps_a_keystore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(agent_toml(did=DID))
    with_identity(config, 'key = "keystore:ks"\npassphrase = { file = "passphrase" }')
    passphrase_in(tmp_path)
    assert main(["init", str(tmp_path)]) == 0
    did = capsys.readouterr().out
    assert json.loads((tmp_path / "ks").read_text())["address"] in did
    before = (tmp_path / "ks").read_bytes()
    with_identity(config, f'key = "keystore:ks"\npassphrase = {{ file = "passphrase" }}\ndid = "{did.strip()}"')
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out == did
    assert (tmp_path / "ks").read_bytes() == before
    assert not (tmp_path / "key").exists()


def test_init_leaves_a_credential_to_systemd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(agent_toml(did=DID))
    with_identity(config, f'key = "credential:k"\ndid = "{DID}"')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert main(["init", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{DID}\n"
    assert "systemd gives it" in said.err
    with_identity(config, 'key = "credential:k"')
    assert main(["init", str(tmp_path)]) == 78
    assert "LoadCredential=" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]


def test_check_prints_every_problem_and_ends_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('version = 1\n[site]\nid = ""\n[identity]\nkee = "file:key"\n')
    assert main(["check", str(path)]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{path}:3: site.id:" in said.err
    assert f"{path}:5: identity.kee:" in said.err


def test_a_missing_configuration_ends_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["check"], ["run", "--config"], ["read", "--config"], ["outbox", "export", "-", "--config"]):
        assert main([*command, str(tmp_path / "none.toml")]) == 78
        assert "none.toml" in capsys.readouterr().err


def test_every_command_of_a_noun_takes_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = capsys.readouterr().out
    assert main(["config", "schema", "--config", str(tmp_path / "none.toml")]) == 0
    assert capsys.readouterr().out == schema


def test_run_without_its_key_ends_with_78_and_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path)])
    (tmp_path / "key").unlink()
    capsys.readouterr()
    assert main(["run", "--config", str(tmp_path / "agent.toml")]) == 78
    assert "edge-agent init" in capsys.readouterr().err


def test_read_names_the_devices_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path)])
    assert main(["read", "no-such", "--config", str(tmp_path / "agent.toml")]) == 2
    assert "pv-1" in capsys.readouterr().err


# ---- verify ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.cbor"
    path.write_bytes(b"".join(simple_run(10).sent))
    return path


def test_verify_says_what_is_there(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(evidence), "--did", DID]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "verified 6 records, 10 frames, 0 failed: signature ok, continuity ok, completeness ok "
        "(10 of 10 cycles, 0 in gaps)"
    )


def test_verify_tells_which_signer_it_took_when_none_was_named(
    evidence: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(evidence)]) == 0
    assert DID in capsys.readouterr().err


def test_verify_reports_as_json(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(evidence), "--did", DID]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["records"], report["failed"], report["damaged"]) == (6, 0, 0)


def test_verify_of_a_damaged_file_goes_on_behind_the_damage(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = simple_run(10).sent
    evidence.write_bytes(b"".join([*sent[:2], sent[2][:50], *sent[3:]]))
    assert main(["verify", str(evidence), "--did", DID]) == 1
    said = capsys.readouterr()
    assert "evidence.cbor: at byte" in said.err


def test_verify_of_a_part_does_not_fail_what_is_not_there(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = simple_run(10).sent
    evidence.write_bytes(b"".join([*sent[:2], *sent[3:]]))
    assert main(["verify", str(evidence), "--did", DID]) == 1
    assert main(["verify", "--part", str(evidence), "--did", DID]) == 0
    assert "continuity unknown" in capsys.readouterr().out


def test_verify_of_nothing_and_of_no_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert main(["verify", str(tmp_path / "empty")]) == 2
    assert main(["verify", str(tmp_path / "missing"), "--did", DID]) == 2
    assert main(["verify", str(tmp_path / "empty"), "--did", DID]) == 1
    assert main(["verify", str(tmp_path / "empty"), "--did", "nobody"]) == 2


# ---- outbox export --------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A configuration whose outbox holds the records of a run."""
    folder = tmp_path / "agent"
    main(["init", str(folder)])
    capsys.readouterr()
    with_own_socket(folder / "agent.toml")
    loaded = load(folder / "agent.toml")
    loaded.agent.state.mkdir()
    [channel] = loaded.channels
    store = Outbox.open(ring_of(folder / "agent.toml"), channel=channel.id, size=channel.outbox.size, inspect=link_of)
    run = simple_run(10)
    (tmp_path / "agent" / "sent").write_bytes(b"".join(run.sent))
    store.append(list(zip(run.sent, run.links, strict=True)), new_segment=True)
    store.close()
    return folder / "agent.toml"


def with_own_socket(config: Path) -> None:
    """An agent that runs on this machine is not asked."""
    lines = [line for line in config.read_text().splitlines() if not line.startswith("socket")]
    lines.insert(lines.index("[agent]") + 1, 'socket = "agent.sock"')
    config.write_text("\n".join(lines) + "\n")


def ring_of(config: Path) -> Path:
    loaded = load(config)
    return loaded.agent.state / f"{loaded.channels[0].id}.ring"


def stored(config: Path) -> bytes:
    """What the outbox holds."""
    return (config.parent / "sent").read_bytes()


def export(config: Path, target: Path) -> int:
    return main(["outbox", "export", str(target), "--config", str(config)])


def test_an_export_takes_the_place_of_an_earlier_one(config: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.cbor"
    (tmp_path / "all.cbor.new").write_text("of an export that was killed")
    for _ in range(2):
        assert export(config, target) == 0
        assert target.read_bytes() == stored(config)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["agent", "all.cbor"]


def test_of_two_exports_to_one_file_the_second_is_told_and_the_first_stays_whole(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "all.cbor"
    target.write_bytes(b"earlier")
    with replacing(target) as out:
        out.write(b"the ")
        assert export(config, target) == 2
        assert f"{target}: another command is writing it; wait" in capsys.readouterr().err
        assert target.read_bytes() == b"earlier"
        out.write(b"first")
    assert target.read_bytes() == b"the first"
    assert export(config, target) == 0


def test_an_export_to_stdout_and_to_what_is_no_file(config: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "outbox", "export", "--config", str(config)]
    for target in ("-", "/dev/stdout"):
        done = subprocess.run([*command, target], capture_output=True, check=True)
        assert done.stdout == stored(config)
    assert export(config, Path("/dev/null")) == 0
    assert not Path("/dev/null").is_file()


def test_an_export_onto_the_outbox_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = ring_of(config)
    before = ring.read_bytes()
    (tmp_path / "link").symlink_to(ring)
    (tmp_path / "hard").hardlink_to(ring)
    for target in (ring, tmp_path / "link", tmp_path / "hard"):
        assert export(config, target) == 2
        assert "is an outbox itself" in capsys.readouterr().err
    assert ring.read_bytes() == before


def test_an_export_that_fails_leaves_the_earlier_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "all.cbor"
    target.write_bytes(b"earlier")

    def full(*arguments: object, **options: object) -> Iterator[Stored]:
        yield from list(records(ring_of(config)))[:3]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target_module, "records", full)
    assert export(config, target) == 2
    assert f"edge-agent: {target}: No space left on device; make room" in capsys.readouterr().err
    monkeypatch.undo()
    ring_of(config).write_bytes(b"no ring")
    assert export(config, target) == 1
    ring_of(config).unlink()
    capsys.readouterr()
    assert export(config, target) == 1
    assert "first start" in capsys.readouterr().err
    assert target.read_bytes() == b"earlier"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["agent", "all.cbor"]


# ---- errors that are to be expected ---------------------------------------------------------------------------------


def test_a_path_that_cannot_be_ends_with_2_and_a_remedy(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    cases = [
        ["init", str(file)],
        ["init", str(file / "below")],
        ["init", "/proc/agent"],
        ["init", "/proc"],
        ["outbox", "export", "/nonexistent/x", "--config", str(config)],
        ["outbox", "export", str(tmp_path), "--config", str(config)],
        ["verify", str(tmp_path), "--did", DID],
    ]
    for case in cases:
        assert main(case) == 2, case
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert said.err.startswith("edge-agent: /")
        assert said.err.count("; ") == 1, "a remedy"


def test_what_a_terminal_cannot_show_is_escaped(config: Path) -> None:
    config.write_text(config.read_text().replace("[identity]", 'labels = { name = "\u03a9" }\n[identity]'))
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "config", "show", "--config", str(config)],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'name = "\\u03a9"\n' in done.stdout


def test_output_that_cannot_be_written_is_one_line(config: Path, evidence: Path) -> None:
    commands = f"check {config}", f"outbox export - --config {config}", f"verify {evidence} --did {DID}"
    for command in commands:
        program = f"{sys.executable} -m agent.cli {command}"
        full = subprocess.run(f"{program} >/dev/full", shell=True, capture_output=True, text=True)
        assert full.returncode == 2
        assert full.stderr == "edge-agent: output: No space left on device; make room on this disk\n"
        for redirection in (">&-", "2>&-", ">&- 2>&-", "2>/dev/full"):
            closed = subprocess.run(
                f"{program} {redirection}", shell=True, capture_output=True, text=True, errors="replace"
            )
            assert closed.returncode == 0, (command, redirection)
            assert "Traceback" not in closed.stderr
            assert "exported" not in closed.stdout, "words are no data"


def test_a_reader_that_goes_away_is_no_error(evidence: Path) -> None:
    program = f"{sys.executable} -m agent.cli verify {evidence} --did {DID}; echo code $? >&2"
    done = subprocess.run(["bash", "-c", f"({program}) | true"], capture_output=True, text=True)
    assert done.stderr == "code 0\n"


def test_ctrl_c_while_it_loads_ends_with_130() -> None:
    """As if it came at the worst moments: while modules load, and before a command began."""
    for where in ("argparse", "agent.errors", "agent.commands.check"):
        program = (
            "import sys, importlib.abc\n"
            "class Interrupt(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name == {where!r}: raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Interrupt())\n"
            "from agent.cli import main\n"
            "sys.exit(main(['check']))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (130, ""), where


# ---- permissions ----------------------------------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, refused: Path) -> None:
    """Opening this path is not permitted, whoever runs the tests."""
    opened, made = os.open, Path.mkdir

    def denied(path: object) -> None:
        if str(path) == str(refused):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def os_open(path: str, *arguments: int, **options: int) -> int:
        denied(path)
        return opened(path, *arguments, **options)

    def path_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> object:
        denied(path)
        return open(path, mode, *arguments, **options)

    def mkdir(path: Path, *arguments: int, **options: bool) -> None:
        denied(path)
        made(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", os_open)
    monkeypatch.setattr(Path, "open", path_open)
    monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("key", ["run"]),
        ("key", ["tail"]),
        ("state", ["run"]),
        ("ring", ["run"]),
        ("ring", ["outbox", "export", "-"]),
    ],
)
def test_no_permission_is_77_everywhere(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, command: list[str]
) -> None:
    loaded = load(config)
    if command == ["tail"]:
        without_did(config)
    paths = {"key": loaded.identity.key.path, "state": loaded.agent.state, "ring": ring_of(config)}
    with monkeypatch.context() as patched:
        refuse(patched, paths[what])
        assert main([*command, "--config", str(config)]) == 77
    said = capsys.readouterr().err
    assert "Permission denied; run it as the agent's user or as root" in said
    assert "init" not in said


def without_did(config: Path) -> None:
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("did =")))
    assert load(config).identity.did is None


def test_tail_asks_for_a_did_and_not_for_another_mode(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_did(config)
    load(config).identity.key.path.chmod(0o644)
    assert main(["tail", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "give --did" in said
    assert "chmod" not in said


def test_tail_takes_the_did_of_the_agents_key_also_as_root(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did = load(config).identity.did
    without_did(config)
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        values = list(real(fd))
        values[stat.ST_UID] = 4_000_000
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", of_another)
    options = _parser().parse_args(["tail", "--config", str(config)])
    loaded = load(config)
    assert tail_nats._source(options, (loaded, loaded.channels[0]))[1] == [did]


def test_tail_without_the_key_asks_for_a_did(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_did(config)
    load(config).identity.key.path.unlink()
    assert main(["tail", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "give --did" in said
    assert "init" not in said


# ---- a configuration that asks for too much -------------------------------------------------------------------------


def test_a_plan_larger_than_the_outbox_takes_is_refused_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", str(tmp_path)])
    config = tmp_path / "agent.toml"
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(12_000)]  # do not pack well
    points = ",".join(f'{{name = "{name}", at = "holding:{at}", type = "int16"}}' for at, name in enumerate(names))
    lines = [line for line in config.read_text().splitlines() if not line.startswith(("sunspec ", "groups "))]
    at = lines.index("[[channel]]")
    lines[at:at] = ["[device.groups.all]", 'every = "1s"', f"points = [{points}]"]
    config.write_text("\n".join(lines).replace('wait = "60s"', 'wait = "0s"'))
    capsys.readouterr()
    assert main(["run", "--config", str(config)]) == 78  # `check` has a test of its own
    assert "spread the points" in capsys.readouterr().err


def test_the_running_agent_loads_nothing_that_it_does_not_need() -> None:
    """Memory is scarce on a gateway: the libraries of what is not configured stay out (docs/adr/0004, 0006)."""
    program = "import agent.daemon, agent.commands.run, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"eth_account", "paho", "pymodbus", "nats", "sunspec2", "adapters", "testbed", "aiohttp"}
    assert not loaded & {"Crypto", "h11", "httpx", "jsonschema", "prometheus_client", "rlp", "sqlite3"}


_ASKED_WHILE_IT_STARTS = """
import os, signal, sys
import anyio
import agent.config, agent.daemon
from agent.cli import _parser, main

load = agent.config.load

def load_and_be_told(path):
    os.kill(os.getpid(), signal.SIGHUP)
    return load(path)

async def run(config, signals):
    with anyio.fail_after(10):
        print((await anext(signals)).name)

agent.config.load, agent.daemon.run = load_and_be_told, run
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


def test_a_reload_that_is_asked_for_while_the_agent_starts_is_carried_out_then(config: Path) -> None:
    # In a process of its own: a signal may go to any thread that has not blocked it, and earlier tests left some.
    command = [sys.executable, "-c", _ASKED_WHILE_IT_STARTS, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGHUP\n", "")
