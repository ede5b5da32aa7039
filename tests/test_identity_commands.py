"""``edge-agent identity``: show, create, import; nothing that they write holds the key, but the one file that is to."""

from __future__ import annotations

import getpass
import io
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coincurve
import pytest
from eth_account import Account

from agent.cli import main
from agent.commands import identity_import, which_key
from agent.config import load
from agent.config.template import agent_toml
from agent.custody import Custody
from agent.signer import KeySigner, open_signer, places, unlock
from agent.signer.key import secret_from_hex
from tests.keystores import PASSPHRASE, cheap, passphrase_in, unlocked_here, written
from tests.leaks import files_with, holds
from tests.runs import DID, OTHER_SECRET, SECRET

HEX = SECRET.hex()
EWC = DID.replace("volta", "ewc")
PUBLIC = "024e3b81af9c2234cad09d679ce6035ed1392347ce64ce405f5dcd36228a25de6e"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command of the noun in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "unlock", unlocked_here)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(["identity", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def configured(folder: Path, identity: str) -> Path:
    """A good configuration with this [identity]."""
    config = folder / "agent.toml"
    written, rest = agent_toml(did=DID).split("[identity]\n")
    config.write_text(f"{written}[identity]\n{identity}\n\n[connection{rest.partition('[connection')[2]}")
    return config


# ---- show -----------------------------------------------------------------------------------------------------------


def test_show_says_who_and_where(tmp_path: Path, run: Run) -> None:
    written(tmp_path / "key", HEX)
    config = configured(tmp_path, f'key = "file:key"\ndid = "{DID}"')
    shown = [
        f"DID         {DID}",
        f"address     {DID.rpartition(':')[2]}",
        f"public key  {PUBLIC}",
        f"custody     file:{tmp_path}/key",
    ]
    assert run("show", "--config", str(config)) == (0, "\n".join(shown) + "\n", "")
    code, out, _ = run("show", "--json", "--config", str(config))
    assert (code, json.loads(out)) == (
        0,
        {
            "did": DID,
            "address": DID.rpartition(":")[2],
            "public_key": PUBLIC,
            "custody": {"kind": "file", "where": f"{tmp_path}/key"},
        },
    )


def test_show_takes_a_keystore_of_the_configuration(tmp_path: Path, run: Run) -> None:
    written(tmp_path / "ks", json.dumps(cheap()))
    passphrase_in(tmp_path)
    config = configured(tmp_path, 'key = "keystore:ks"\npassphrase = { file = "passphrase" }')
    assert main(["check", str(config)]) == 0
    code, out, _ = run("show", "--config", str(config))
    assert code == 0
    assert f"custody     keystore:{tmp_path}/ks, passphrase from file {tmp_path}/passphrase\n" in out
    _, out, _ = run("show", "--json", "--config", str(config))
    assert json.loads(out)["custody"]["passphrase"] == f"file {tmp_path}/passphrase"


def test_show_takes_a_key_that_is_in_no_configuration(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "key", HEX)
    written(tmp_path / "ks", json.dumps(cheap()))
    passphrase_in(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("KS_PASSPHRASE", PASSPHRASE)
    for key in (
        ["file:key"],
        ["credential:key"],
        ["keystore:ks", "--passphrase", "file:passphrase"],
        ["keystore:ks", "--passphrase", "credential:passphrase"],
        ["keystore:ks", "--passphrase", "env:KS_PASSPHRASE"],
    ):
        code, out, said = run("show", "--key", *key, "--network", "volta")
        assert (code, said) == (0, ""), key
        assert out.startswith(f"DID         {DID}\n")
        assert f"custody     {key[0]}" in out
    assert EWC in run("show", "--key", "file:key")[1]


def test_root_may_look_at_the_agents_key(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "key", HEX)
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        values = list(real(fd))
        values[stat.ST_UID] = 4_000_000
        return os.stat_result(values)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", of_another)
        code, out, _ = run("show", "--key", "file:key")
    assert (code, out.split()[1]) == (0, EWC)


def test_show_says_what_the_agent_would_say(tmp_path: Path, run: Run) -> None:
    written(tmp_path / "key", OTHER_SECRET.hex())
    config = configured(tmp_path, f'key = "file:key"\ndid = "{DID}"')
    code, out, said = run("show", "--config", str(config))
    assert (code, out) == (78, "")
    assert f"not of {DID}" in said
    assert run("show", "--key", "file:none")[0] == 78
    assert run("show", "--config", "none.toml")[0] == 78


def test_a_keystore_that_could_not_be_opened_for_now_is_1_and_tried_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(places, "unlock", unlock.unlock)
    monkeypatch.setattr(subprocess, "run", short_of_memory)
    written(tmp_path / "ks", json.dumps(cheap()))
    passphrase_in(tmp_path)
    code, _, said = run("show", "--key", "keystore:ks", "--passphrase", "file:passphrase")
    assert code == 1
    assert "ended before it began: Cannot allocate memory; is there enough free memory?" in said


# ---- create ---------------------------------------------------------------------------------------------------------


def test_create_makes_a_key_file(tmp_path: Path, run: Run) -> None:
    code, out, said = run("create", "--key", "file:key", "--network", "volta")
    assert code == 0
    assert open_signer(Custody("file", f"{tmp_path}/key"), did=out.strip()).did == out.strip()
    assert out.startswith("did:ethr:volta:0x")
    assert "keep it, there is no copy" in said
    before = (tmp_path / "key").read_bytes()
    code, out, said = run("create", "--key", "file:key")
    assert (code, out) == (78, "")
    assert "never overwritten" in said
    assert (tmp_path / "key").read_bytes() == before


def test_create_makes_the_key_of_the_configuration(tmp_path: Path, run: Run) -> None:
    passphrase_in(tmp_path)
    config = configured(tmp_path, 'key = "keystore:ks"\npassphrase = { file = "passphrase" }')
    code, out, _ = run("create", "--config", str(config))
    assert code == 0
    identity = load(config).identity
    assert open_signer(identity.key, passphrase=identity.passphrase).did == out.strip()
    made = json.loads((tmp_path / "ks").read_text())
    assert made["version"] == 3
    assert stat.S_IMODE((tmp_path / "ks").stat().st_mode) == 0o600


def test_create_makes_no_second_key_for_a_did_that_has_one(tmp_path: Path, run: Run) -> None:
    config = configured(tmp_path, f'key = "file:key"\ndid = "{DID}"')
    code, _, said = run("create", "--config", str(config))
    assert code == 78
    assert "remove identity.did" in said
    assert not (tmp_path / "key").exists()


def test_root_is_told_whose_the_new_key_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    real = Path.stat

    def of_another(path: Path, **options: Any) -> os.stat_result:
        values = list(real(path, **options))
        values[stat.ST_UID] = 4_000_000
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", of_another)
    which_key.say_whose(tmp_path / "key")
    assert f"`chown 4000000 {tmp_path}/key`" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    which_key.say_whose(tmp_path / "key")
    assert capsys.readouterr().err == ""


# ---- import ---------------------------------------------------------------------------------------------------------


def test_import_takes_a_file_a_keystore_and_stdin(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "old", f"0x{HEX}\n", 0o644)
    written(tmp_path / "ks", json.dumps(cheap()))
    passphrase_in(tmp_path)
    code, out, said = run("import", "file:old", "--key", "file:a", "--network", "volta")
    assert (code, out) == (0, f"{DID}\n")
    assert "old is open to others: whoever could read it may have the key" in said
    assert "still holds the key" in said
    code, out, said = run("import", "keystore:ks", "--source-passphrase", "file:passphrase", "--key", "file:b")
    assert (code, out) == (0, f"{EWC}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{HEX}\n".encode())))
    config = configured(tmp_path, f'key = "file:c"\ndid = "{DID}"')
    code, out, said = run("import", "-", "--config", str(config))
    assert (code, out) == (0, f"{DID}\n")
    assert said.startswith(f"file:{tmp_path}/c made\n")
    assert {(tmp_path / name).read_text() for name in "abc"} == {f"{HEX}\n"}


def test_import_makes_a_keystore(tmp_path: Path, run: Run) -> None:
    written(tmp_path / "old", HEX)
    passphrase_in(tmp_path)
    assert run("import", "file:old", "--key", "keystore:ks", "--passphrase", "file:passphrase")[:2] == (0, f"{EWC}\n")
    assert bytes(Account.decrypt((tmp_path / "ks").read_text(), PASSPHRASE)) == SECRET


def test_a_key_typed_at_a_terminal_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", lambda prompt: HEX if "not shown" in prompt else "")
    assert secret_from_hex(identity_import._typed()) == SECRET


def test_without_an_input_there_is_no_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    code, _, said = run("import", "-", "--key", "file:key")
    sys.stdin.close()
    assert (code, said) == (78, "edge-agent: the input does not hold a key; it must be 64 hex digits on one line\n")


def test_import_refuses_the_key_of_another_did(tmp_path: Path, run: Run) -> None:
    written(tmp_path / "old", OTHER_SECRET.hex())
    config = configured(tmp_path, f'key = "file:key"\ndid = "{DID}"')
    code, out, said = run("import", "file:old", "--config", str(config))
    assert (code, out) == (78, "")
    assert f"not of {DID}" in said
    assert not (tmp_path / "key").exists()


# ---- wrong usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "--key", "key"], "--key: expected the place of the key; write file:PATH"),
        (["show", "--key", "pkcs11:token=a"], "pkcs11: is not supported yet by this version"),
        (["show", "--key", "keystore:k"], "a keystore needs a passphrase; give --passphrase file:PATH"),
        (["show", "--key", "file:k", "--passphrase", "env:P"], "--passphrase is for a keystore only"),
        (["show", "--passphrase", "env:P"], "go with --key"),
        (["create", "--network", "volta"], "go with --key"),
        (["create", "--key", "keystore:k", "--passphrase", "hunter2"], "a secret does not stand on a command line"),
        (["create", "--key", "keystore:k", "--passphrase", "env:hunter 2"], "expected where the passphrase is"),
        (["create", "--key", "keystore:k", "--passphrase", "file:"], "expected where the passphrase is"),
        (["import", "old", "--key", "file:k"], "SOURCE: expected the place of the key"),
        (["import", HEX, "--key", "file:k"], "SOURCE: this looks like the key itself"),
        (["import", "file:old", "--key", f"file:{HEX}"], "--key: this looks like the key itself"),
        (["import", "keystore:o", "--key", "file:k"], "give --source-passphrase file:PATH"),
        (["import", "-", "--source-passphrase", "env:P", "--key", "file:k"], "--source-passphrase is for a keystore"),
        (["import", "--key", "file:k"], "SOURCE is missing"),
        (["create", HEX], "unrecognized arguments: (hex digits)"),
        (["show", f"0x{HEX.upper()}"], "unrecognized arguments: 0x(hex digits)"),
        (["create", f"--network={HEX}"], "invalid choice: '(hex digits)'"),
    ],
)
def test_wrong_usage_is_2_and_repeats_no_secret(tmp_path: Path, run: Run, arguments: list[str], words: str) -> None:
    code, out, said = run(*arguments)
    assert (code, out) == (2, "")
    assert words in said
    assert "hunter" not in said
    assert not holds(said.encode(), SECRET)
    assert list(tmp_path.iterdir()) == []


def test_a_credential_is_made_by_systemd(run: Run) -> None:
    code, _, said = run("create", "--key", "credential:k")
    assert code == 78
    assert "given by systemd" in said


# ---- nothing holds the key but what is to ---------------------------------------------------------------------------


@pytest.fixture
def all_of_it(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, bytes]]:
    """Run a command with everything logged and its temporary files in the folder: exit code, and all it let out."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run_all(*arguments: str) -> tuple[int, bytes]:
        caplog.clear()
        code, out, said = run(*arguments)
        return code, f"{out}{said}{caplog.text}{dict(os.environ)}".encode()

    return run_all


FROM_FILE = ["import", "file:old"]
FROM_KEYSTORE = ["import", "keystore:old-ks", "--source-passphrase", "file:passphrase"]
TO_FILE = ["--key", "file:new"]
TO_KEYSTORE = ["--key", "keystore:new", "--passphrase", "file:passphrase"]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    written(tmp_path / "old", HEX)
    written(tmp_path / "old-ks", json.dumps(cheap()))
    passphrase_in(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ([*FROM_FILE, *TO_FILE], {"new"}),
        ([*FROM_FILE, *TO_KEYSTORE], set()),
        ([*FROM_KEYSTORE, *TO_FILE], {"new"}),
        ([*FROM_KEYSTORE, *TO_KEYSTORE], set()),
        (["show", "--key", "file:old"], set()),
        (["show", "--json", "--key", "keystore:old-ks", "--passphrase", "file:passphrase"], set()),
    ],
)
def test_only_the_key_file_holds_the_key(
    sources: Path, all_of_it: Callable[..., tuple[int, bytes]], arguments: list[str], made: set[str]
) -> None:
    code, told = all_of_it(*arguments)
    assert code == 0
    assert not holds(told, SECRET)
    assert PASSPHRASE.encode() not in told
    assert files_with(sources, SECRET) == {"old", *made}


def test_a_new_key_is_nowhere_but_in_its_file(tmp_path: Path, all_of_it: Callable[..., tuple[int, bytes]]) -> None:
    code, told = all_of_it("create", *TO_FILE)
    secret = secret_from_hex((tmp_path / "new").read_bytes())
    assert secret is not None
    assert (code, holds(told, secret), files_with(tmp_path, secret)) == (0, False, {"new"})


class Talkative(Exception):
    pass


@pytest.mark.parametrize("arguments", [[*FROM_FILE, *TO_KEYSTORE], [*FROM_KEYSTORE, *TO_FILE]])
@pytest.mark.parametrize("failing", ["encrypt", "decrypt", "PrivateKey"])
def test_libraries_that_fail_and_say_all_they_know(
    sources: Path,
    all_of_it: Callable[..., tuple[int, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    failing: str,
) -> None:
    def fail(*given: Any, **_: Any) -> None:
        raise Talkative(HEX, SECRET, *given)

    if failing == "PrivateKey":
        monkeypatch.setattr(coincurve, "PrivateKey", fail)
    else:
        monkeypatch.setattr(Account, failing, fail)
    code, told = all_of_it(*arguments)
    needed = failing != "encrypt" or arguments[1] == "file:old"
    assert code == (78 if needed else 0)
    assert not holds(told, SECRET)
    assert PASSPHRASE.encode() not in told
    assert files_with(sources, SECRET) == ({"old"} if needed else {"old", "new"})


def test_a_real_process_that_fails_shows_nothing(sources: Path) -> None:
    """With a defect inside, so that Python prints a traceback, and with its own process for the keystore."""
    program = (
        "import sys\n"
        "from agent.signer import files, places\n"
        "def broken(*given, **more): raise RuntimeError('a defect')\n"
        "places.write_private = broken\n"
        "from agent.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-X", "dev", "-c", program, "identity", *FROM_KEYSTORE, *TO_FILE]
    environment = os.environ | {"TMPDIR": str(sources), "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, cwd=sources, env=environment)
    assert done.returncode == 1
    assert b"RuntimeError: a defect" in done.stderr
    assert not holds(done.stdout + done.stderr, SECRET)
    assert files_with(sources, SECRET) == {"old"}


@pytest.mark.parametrize("part", [SECRET, SECRET[5:13], SECRET[::-1][3:20]])
def test_the_scan_finds_pieces_of_a_key(tmp_path: Path, part: bytes) -> None:
    for content in (part, part.hex().encode(), part.hex().upper().encode()):
        assert holds(b"before " + content + b" after", SECRET)
    assert not holds(KeySigner(SECRET).did.encode() + PUBLIC.encode(), SECRET)
