"""``edge-agent identity import --credential``, with a stand-in for systemd-creds, and for whom ``init`` makes files.

tests/test_package.py does both with the real systemd.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cli import main
from agent.commands import credential, init
from agent.config import load
from agent.config.identity_lines import with_credential
from agent.config.template import agent_toml
from agent.errors import ConfigError
from agent.signer import places
from agent.signer.key import secret_from_hex
from tests.keystores import cheap, passphrase_in, unlocked_here, written
from tests.leaks import files_with, holds
from tests.runs import DID, OTHER_SECRET, SECRET

# Masks each byte, and names the credential before it; refuses to open one under another name, as systemd does.
SYSTEMD_CREDS = """#!{python}
import sys
verb, name, source, target = sys.argv[1:]
given = sys.stdin.buffer.read()
assert (source, target) == ("-", "-") and name.startswith("--name=")
head = name.encode() + b"\\n"
if verb == "encrypt":
    sys.stdout.buffer.write(head + bytes(each ^ 0x5A for each in given))
elif given.startswith(head):
    sys.stdout.buffer.write(bytes(each ^ 0x5A for each in given[len(head):]))
else:
    sys.exit("Embedded credential name does not match")
"""

Import = Callable[..., tuple[int, str, str]]


class Machine:
    """A folder with a configuration and a key, the drop-in's place, and systemd-creds."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "etc" / "agent.toml"
        self.key = folder / "etc" / "key"
        self.sealed = folder / "etc" / "agent-key.cred"
        self.drop_in = folder / "system" / "edge-agent.service.d" / "credential.conf"
        self.programs = folder / "bin"
        self.config.parent.mkdir()
        self.programs.mkdir()
        self.config.write_text(agent_toml(did=DID))
        written(self.key, f"{SECRET.hex()}\n")
        self.does(SYSTEMD_CREDS.format(python=sys.executable))

    def does(self, script: str) -> None:
        program = self.programs / "systemd-creds"
        program.write_text(script)
        program.chmod(0o755)

    def opened(self, name: str = "agent-key") -> bytes | None:
        """The key that systemd would give the service."""
        command = [str(self.programs / "systemd-creds"), "decrypt", f"--name={name}", "-", "-"]
        done = subprocess.run(command, input=self.sealed.read_bytes(), capture_output=True, check=True)
        return secret_from_hex(done.stdout)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(credential, "DROP_IN", made.drop_in)
    monkeypatch.setattr(credential, "_RUNNING", tmp_path / "no-systemd")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(places, "unlock", unlocked_here)
    monkeypatch.setenv("PATH", str(made.programs))
    return made


@pytest.fixture
def take(machine: Machine, capfd: pytest.CaptureFixture[str]) -> Import:
    """Run the command: exit code, stdout, stderr."""

    def take(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["identity", "import", *arguments, "--credential", "--config", str(machine.config)])
        return code, *capfd.readouterr()

    return take


def test_the_key_of_the_configuration_becomes_a_credential(machine: Machine, take: Import, tmp_path: Path) -> None:
    before = machine.config.read_text()
    machine.config.chmod(0o640)
    code, out, said = take()
    assert (code, out) == (0, f"{DID}\n")
    assert machine.config.read_text() == before.replace('key = "file:key"', 'key = "credential:agent-key"')
    assert stat.S_IMODE(machine.config.stat().st_mode) == 0o640
    assert load(machine.config).identity.key.kind == "credential"
    assert machine.opened() == SECRET
    assert stat.S_IMODE(machine.sealed.stat().st_mode) == 0o600
    assert machine.drop_in.read_text().endswith(
        f"[Service]\nLoadCredentialEncrypted=agent-key:{machine.config.parent}/agent-key.cred\n"
    )
    assert stat.S_IMODE(machine.drop_in.stat().st_mode) == 0o644
    assert "systemctl restart edge-agent" in said
    assert f"file:{machine.key} still holds the key" in said
    assert files_with(tmp_path, SECRET) == {"etc/key"}
    assert not holds(said.encode(), SECRET)


def test_one_that_is_a_credential_already_says_so_and_may_be_encrypted_anew(machine: Machine, take: Import) -> None:
    take()
    code, _, said = take()
    assert code == 78
    assert "credential:agent-key already; name the SOURCE" in said
    machine.sealed.unlink()  # the machine was exchanged, say
    before = machine.config.read_text()
    assert take(f"file:{machine.key}")[:2] == (0, f"{DID}\n")
    assert machine.opened() == SECRET
    assert machine.config.read_text() == before


def test_a_call_that_was_interrupted_goes_on_and_another_key_is_not_overwritten(machine: Machine, take: Import) -> None:
    before = machine.config.read_text()
    take()
    machine.config.write_text(before)
    machine.drop_in.unlink()
    assert take()[0] == 0
    assert machine.drop_in.exists()

    machine.config.write_text(before.replace(DID, ""))
    other = machine.config.parent / "other"
    written(other, OTHER_SECRET.hex())
    machine.config.write_text(agent_toml(did=DID).replace("did =", "# did =").replace("file:key", "file:other"))
    code, _, said = take()
    assert code == 78
    assert "it is never overwritten; move it away first" in said
    assert machine.opened() == SECRET
    assert load(machine.config).identity.key.kind == "file"


def test_a_keystore_loses_its_passphrase_in_the_configuration(machine: Machine, take: Import) -> None:
    written(machine.config.parent / "ks", json.dumps(cheap()))
    passphrase_in(machine.config.parent)
    text = agent_toml(did=DID).replace(
        'key = "file:key"', 'key = "keystore:ks" # web3\npassphrase = { file = "passphrase" }\n#'
    )
    machine.config.write_text(text)
    assert take()[:2] == (0, f"{DID}\n")
    identity = load(machine.config).identity
    assert (str(identity.key), identity.passphrase, identity.did) == ("credential:agent-key", None, DID)
    assert 'key = "credential:agent-key" # web3\n' in machine.config.read_text()


def unchanged(machine: Machine, before: str) -> bool:
    made = [machine.sealed, machine.drop_in]
    return machine.config.read_text() == before and not any(path.exists() for path in made)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho 'No TPM2 and no host key' >&2; exit 1\n", "No TPM2 and no host key; run it as root"),
        ('#!/bin/sh\n[ "$1" = decrypt ] || echo sealed\n', "the encrypted credential does not open again"),
        (None, "it is not there; it comes with systemd 250"),
    ],
)
def test_without_systemd_s_help_nothing_changes(
    machine: Machine, take: Import, script: str | None, words: str, tmp_path: Path
) -> None:
    if script is None:
        (machine.programs / "systemd-creds").unlink()
    else:
        machine.does(script)
    before = machine.config.read_text()
    code, out, said = take()
    assert (code, out) == (78, "")
    assert words in said
    assert unchanged(machine, before)
    assert files_with(tmp_path, SECRET) == {"etc/key"}
    assert not holds(said.encode(), SECRET)


def test_a_drop_in_that_systemd_does_not_take_up_leaves_the_key_where_it_is(
    machine: Machine, take: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential, "_RUNNING", machine.programs)
    program, before = machine.programs / "systemctl", machine.config.read_text()
    for code, said in ((1, "did not take up"), (0, "still holds the key")):
        program.write_text(f'#!/bin/sh\ntest "$1" = daemon-reload && exit {code}\n')
        program.chmod(0o755)
        assert (78 * code, True) == ((found := take())[0], said in found[2])
        assert (machine.config.read_text() == before) == bool(code)


def test_only_root_can(machine: Machine, take: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = machine.config.read_text()
    code, _, said = take()
    assert code == 77
    assert "run it as root" in said
    assert unchanged(machine, before)


def test_the_key_of_another_did_is_refused(machine: Machine, take: Import) -> None:
    written(machine.config.parent / "other", OTHER_SECRET.hex())
    before = machine.config.read_text()
    code, _, said = take(f"file:{machine.config.parent}/other")
    assert code == 78
    assert f"not of {DID}" in said
    assert unchanged(machine, before)


@pytest.mark.parametrize("option", [["--key", "file:k"], ["--key", "file:k", "--network", "volta"]])
def test_it_is_a_place_by_itself(machine: Machine, take: Import, option: list[str]) -> None:
    code, _, said = take("-", *option)
    assert code == 2
    assert "--credential is a place by itself" in said


def test_a_configuration_that_is_not_written_line_by_line_is_left_alone(machine: Machine, take: Import) -> None:
    text = machine.config.read_text()
    head, _, rest = text.partition("[identity]\n")
    before = head.replace("version = 1", 'version = 1\nidentity = { key = "file:key" }') + rest.partition("\n\n")[2]
    machine.config.write_text(before)
    code, _, said = take()
    assert code == 78
    assert f"{machine.config}:5: identity.key: " in said
    assert "write below [identity] each key on a line of its own" in said
    assert unchanged(machine, before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '[identity]\r\nkey = "file:k"\r\ndid = "did:x"\r\n',
            '[identity]\r\nkey = "credential:n"\r\ndid = "did:x"\r\n',
        ),
        ('[identity]\nkey="file:k"', '[identity]\nkey="credential:n"\ndid = "did:x"'),
        ("[identity]\n  key = 'file:k' # why\n", '[identity]\n  key = "credential:n" # why\n  did = "did:x"\n'),
        ('[identity]\n  key = "file:k"\n\n[site]\n', '[identity]\n  key = "credential:n"\n  did = "did:x"\n\n[site]\n'),
        (
            '[identity]\ndid = "did:x"\npassphrase = { env = "P" } # here\nkey = "keystore:k"\n[a]\nkey = "file:k"\n',
            '[identity]\ndid = "did:x"\nkey = "credential:n"\n[a]\nkey = "file:k"\n',
        ),
        ('identity.key = "file:k"\n', None),
        ('[identity]\nkey = """file:k"""\n', None),
        ('identity = { key = "file:k" }\n', None),
    ],
)
def test_only_the_lines_of_the_identity_change(before: str, after: str | None) -> None:
    if after is not None:
        assert with_credential(before, file=Path("agent.toml"), name="n", did="did:x") == after
        return
    with pytest.raises(ConfigError, match="not written on a line of its own"):
        with_credential(before, file=Path("agent.toml"), name="n", did="did:x")


# ---- for whom init makes files --------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """To whom root gives files; the agent's places lie in a folder of the test."""
    monkeypatch.setattr(init, "DEFAULT_CONFIG", tmp_path / "etc" / "agent.toml")
    monkeypatch.setattr(init, "DEFAULT_STATE", tmp_path / "state")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda file, uid, gid: given.append((uid, gid)))
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((uid, gid)))
    return given


def test_root_s_init_makes_the_service_user_s_key_and_its_own_configuration(
    tmp_path: Path, given: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user = pwd.struct_passwd(("edge-agent", "x", 4242, 4343, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {"edge-agent": user}.__getitem__)
    previous = os.umask(0o077)
    try:
        assert main(["init", str(tmp_path / "etc")]) == 0
    finally:
        os.umask(previous)
    assert given == [(0, 4343), (4242, 4343), (4242, 4343), (0, 4343)]  # folder, state, key, configuration
    config = tmp_path / "etc" / "agent.toml"
    assert (stat.S_IMODE(config.stat().st_mode), stat.S_IMODE(config.parent.stat().st_mode)) == (0o640, 0o750)
    loaded = load(config)
    assert (str(loaded.identity.key), loaded.agent.state) == (f"file:{tmp_path}/state/key", tmp_path / "state")
    did = capsys.readouterr().out
    assert main(["init", str(tmp_path / "etc")]) == 0
    again = capsys.readouterr()
    assert again.out == did
    assert f"chown 4242 {tmp_path}/state/key" in again.err  # which the stand-in for chown did not do
    assert len(given) == 4


def test_without_a_service_user_all_is_root_s(tmp_path: Path, given: list[tuple[int, int]]) -> None:
    assert main(["init", str(tmp_path / "etc")]) == 0
    assert given == []
    assert (tmp_path / "state" / "key").exists()


def test_elsewhere_it_is_for_whom_the_folder_belongs_to(
    tmp_path: Path, given: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "_owner", lambda folder: (1000, 1000))
    assert main(["init", str(tmp_path / "home")]) == 0
    assert given == [(1000, 1000), (1000, 1000)]
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"key", "agent.toml"}
