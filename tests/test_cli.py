"""The commands as an operator runs them: what they print, where, and their exit codes. In this process, without a
daemon.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent import __version__
from agent.cli import main
from tests.runs import DID, simple_run


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("init", "check", "run", "read", "tail", "verify", "outbox"):
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


def test_the_running_agent_loads_nothing_that_it_does_not_need() -> None:
    """Memory is scarce on a gateway: the libraries of what is not configured stay out (docs/adr/0004, 0006)."""
    program = "import agent.daemon, agent.commands.run, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"eth_account", "paho", "pymodbus", "nats", "sunspec2", "adapters", "testbed", "aiohttp"}
