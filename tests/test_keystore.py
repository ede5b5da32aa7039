"""Keystores: what is one, what opening it may cost, and that eth-account is asked in a process of its own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.custody import Custody
from agent.errors import SignerError, Verdict
from agent.signer import keystore, open_signer, unlock
from agent.signer.keystore import TO_IMPORT, TO_RUN
from tests.keystores import (
    CHEAP,
    PASSPHRASE,
    PUBLISHED_PASSPHRASE,
    PUBLISHED_PBKDF2,
    PUBLISHED_SCRYPT,
    PUBLISHED_SECRET,
    cheap,
    passphrase_in,
    written,
)
from tests.leaks import holds, told
from tests.runs import DID, SECRET

MIB = 1 << 20


def read(table: Any) -> keystore.Keystore:
    return keystore.read(json.dumps(table).encode())


# ---- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [PUBLISHED_PBKDF2, PUBLISHED_SCRYPT], ids=["pbkdf2", "scrypt"])
def test_the_published_keystores_open(published: dict[str, Any]) -> None:
    judged = read(published)
    assert judged.exceeds(TO_RUN) is None
    assert unlock.unlock(judged, PUBLISHED_PASSPHRASE, what="keystore") == PUBLISHED_SECRET


def test_a_keystore_gives_a_signer_and_leaves_nothing_of_eth_account(tmp_path: Path) -> None:
    written(tmp_path / "k", json.dumps(cheap()))
    program = (
        "import sys\n"
        "from agent.custody import parse\n"
        "from agent.secret import Secret\n"
        "from agent.signer import open_signer\n"
        "print(open_signer(parse(sys.argv[1]), passphrase=Secret(file=sys.argv[2]), network='volta').did)\n"
        "print('eth_account' in sys.modules)\n"
    )
    passphrase = passphrase_in(tmp_path).path
    command = (sys.executable, "-c", program, f"keystore:{tmp_path}/k", str(passphrase))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [DID, "False"]
    assert done.stderr == ""


def test_what_is_asked_is_on_no_command_line_and_in_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(command: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, json.dumps({"secret": SECRET.hex()}).encode())

    monkeypatch.setattr(subprocess, "run", run)
    assert unlock.unlock(read(PUBLISHED_PBKDF2), PASSPHRASE, what="keystore") == SECRET
    question = json.loads(asked.pop("input"))
    assert question["passphrase"] == PASSPHRASE
    assert PASSPHRASE not in repr(asked)
    assert "env" not in asked
    assert asked["stderr"] == subprocess.DEVNULL


class Ended:
    """Stands in for the process: how it can end without an answer."""

    def __init__(self, how: object) -> None:
        self.how = how

    def __call__(self, command: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[bytes]:
        if isinstance(self.how, BaseException):
            raise self.how
        if isinstance(self.how, bytes):
            return subprocess.CompletedProcess(command, 0, self.how)
        assert isinstance(self.how, int)
        return subprocess.CompletedProcess(command, self.how, b"")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (-9, "ended with -9"),
        (1, "ended with 1"),
        (OSError(12, "Cannot allocate memory"), "ended before it began: Cannot allocate memory"),
        (subprocess.TimeoutExpired("command", 120, output=SECRET), "ended after 120 s"),
        (SECRET.hex().encode(), "ended with JSONDecodeError"),
        (b'{"secret": "%b"' % SECRET.hex().encode(), "ended with JSONDecodeError"),
        (b'{"secret": "%bz"}' % SECRET.hex().encode(), "ended with ValueError"),
        (b"[]", "ended with TypeError"),
    ],
)
def test_a_process_that_gives_no_answer_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, how: object, words: str
) -> None:
    monkeypatch.setattr(subprocess, "run", Ended(how))
    with pytest.raises(SignerError) as caught:
        unlock.unlock(read(PUBLISHED_PBKDF2), PASSPHRASE, what="keystore /k")
    assert str(caught.value) == f"the process that opens the keystore /k {words}"
    assert caught.value.verdict is Verdict.RETRY
    assert not holds(told(caught.value), SECRET)
    assert PASSPHRASE.encode() not in told(caught.value)


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlock, "_CHILD", "import time; time.sleep(1000)")
    with pytest.raises(SignerError, match=r"ended after 0\.2 s"):
        unlock.unlock(read(PUBLISHED_PBKDF2), PASSPHRASE, what="keystore", within=0.2)


def test_a_wrong_passphrase_is_said(tmp_path: Path) -> None:
    written(tmp_path / "k", json.dumps(cheap()))
    with pytest.raises(SignerError) as caught:
        open_signer(Custody("keystore", f"{tmp_path}/k"), passphrase=passphrase_in(tmp_path, "wrong"))
    assert str(caught.value) == f"the passphrase does not open the keystore {tmp_path}/k"
    assert caught.value.verdict is Verdict.FATAL


# ---- what is one --------------------------------------------------------------------------------------------------


def changed(path: str, value: Any) -> dict[str, Any]:
    """The published scrypt keystore with another value at a place; None: without it."""
    table = copy.deepcopy(PUBLISHED_SCRYPT)
    *folders, name = path.split(".")
    inner = table
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    if value is None:
        del inner[name]
    return table


WRONG = [
    ("version", 4, "version is not 3"),
    ("version", "3", "version is not 3"),
    ("version", True, "version is not 3"),
    ("version", None, "version is not 3"),
    ("crypto", None, "crypto is no object"),
    ("crypto", [], "crypto is no object"),
    ("crypto.cipher", "aes-256-ctr", "cipher is not aes-128-ctr"),
    ("crypto.cipherparams", 1, "cipherparams is no object"),
    ("crypto.cipherparams.iv", "00" * 15, "iv is not 16 bytes in hex digits"),
    ("crypto.ciphertext", "00" * 33, "ciphertext is not 32 bytes in hex digits"),
    ("crypto.ciphertext", " 0" * 32, "ciphertext is not 32 bytes in hex digits"),
    ("crypto.ciphertext", "\u0660\u0660" * 32, "ciphertext is not 32 bytes in hex digits"),
    ("crypto.mac", None, "mac is not 32 bytes in hex digits"),
    ("crypto.mac", 5, "mac is not 32 bytes in hex digits"),
    ("crypto.kdf", "argon2", "kdf is neither scrypt nor pbkdf2"),
    ("crypto.kdf", ["scrypt"], "kdf is neither scrypt nor pbkdf2"),
    ("crypto.kdfparams", None, "kdfparams is no object"),
    ("crypto.kdfparams.dklen", 64, "dklen is not 32"),
    ("crypto.kdfparams.dklen", 32.0, "dklen is not 32"),
    ("crypto.kdfparams.dklen", None, "dklen is not 32"),
    ("crypto.kdfparams.salt", "", "salt is not in hex digits"),
    ("crypto.kdfparams.salt", "00" * 257, "salt is not in hex digits"),
    ("crypto.kdfparams.n", 262143, "n is no power of 2"),
    ("crypto.kdfparams.n", 1, "n is no power of 2"),
    ("crypto.kdfparams.n", 0, "n is no whole number from 1 to 1073741824"),
    ("crypto.kdfparams.n", 2**62, "n is no whole number from 1 to 1073741824"),
    ("crypto.kdfparams.n", 2.0**18, "n is no whole number from 1 to 1073741824"),
    ("crypto.kdfparams.n", True, "n is no whole number from 1 to 1073741824"),
    ("crypto.kdfparams.n", None, "n is no whole number from 1 to 1073741824"),
    ("crypto.kdfparams.r", 65, "r is no whole number from 1 to 64"),
    ("crypto.kdfparams.p", 2**20, "p is no whole number from 1 to 64"),
    ("address", "0x12", "address is not 20 bytes in hex digits"),
    ("VERSION", 3, "a field stands twice"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG)
def test_what_is_no_keystore_says_which_field_is_wrong(path: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(changed(path, value))
    assert str(caught.value) == words


def test_pbkdf2_with_another_hash_is_none() -> None:
    table = copy.deepcopy(PUBLISHED_PBKDF2)
    table["crypto"]["kdfparams"]["prf"] = "hmac-md5"
    with pytest.raises(ValueError, match="prf is not hmac-sha256"):
        read(table)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"version":' + b"1" * 5000 + b"}", SECRET.hex().encode()],
)
def test_bytes_that_are_none(content: bytes) -> None:
    with pytest.raises(ValueError):
        keystore.read(content)


def test_names_in_other_case_and_digits_with_0x_are_read() -> None:
    table = copy.deepcopy(PUBLISHED_SCRYPT)
    table["Crypto"] = table.pop("crypto")
    table["Crypto"]["MAC"] = "0x" + table["Crypto"].pop("mac").upper()
    assert read(table) == read(PUBLISHED_SCRYPT)


def test_only_what_was_judged_is_handed_on() -> None:
    table = changed("crypto.kdfparams.cost", 2**40)
    table["crypto"]["more"] = {"n": 2**40}
    assert read(table).crypto == PUBLISHED_SCRYPT["crypto"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
PLACES = [path for path, *_ in WRONG if path != "VERSION"]


@settings(deadline=None)
@given(path=st.sampled_from(PLACES), value=JSON)
def test_whatever_stands_in_a_field_nothing_costly_gets_through(path: str, value: Any) -> None:
    try:
        judged = read(changed(path, value))
    except ValueError as error:
        assert len(str(error)) < 80  # noqa: PT017 - it need not raise
        return
    if judged.exceeds(TO_RUN) is None:
        params = judged.crypto["kdfparams"]
        assert 128 * params["n"] * params["r"] <= 128 * MIB
        assert params["n"] * params["r"] * params["p"] <= 4 * MIB


# ---- what it costs ------------------------------------------------------------------------------------------------


def scrypt(n: int, r: int, p: int) -> keystore.Keystore:
    table = changed("crypto.kdfparams.n", n)
    table["crypto"]["kdfparams"] |= {"r": r, "p": p}
    return read(table)


@pytest.mark.parametrize(
    ("n", "r", "p", "run", "taken"),
    [
        (1 << 12, 8, 6, True, True),  # geth, light
        (1 << 13, 8, 1, True, True),  # web3.js
        (1 << 17, 8, 1, True, True),  # ethers
        (1 << 18, 1, 8, True, True),  # the format's own example
        (1 << 18, 8, 1, False, True),  # geth and eth-account unless told otherwise
        (1 << 19, 8, 1, False, False),
        (1 << 17, 8, 4, True, True),
        (1 << 17, 8, 5, False, False),
        (1 << 30, 64, 64, False, False),
    ],
)
def test_the_cost_of_scrypt(n: int, r: int, p: int, *, run: bool, taken: bool) -> None:
    judged = scrypt(n, r, p)
    assert (judged.exceeds(TO_RUN) is None, judged.exceeds(TO_IMPORT) is None) == (run, taken)


@pytest.mark.parametrize(("count", "allowed"), [(1, True), (2_000_000, True), (2_000_001, False), (2**60, False)])
def test_the_cost_of_pbkdf2(count: int, *, allowed: bool) -> None:
    table = copy.deepcopy(PUBLISHED_PBKDF2)
    table["crypto"]["kdfparams"]["c"] = count
    assert (read(table).exceeds(TO_RUN) is None) == allowed


def test_a_keystore_that_costs_too_much_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Ended(AssertionError("asked")))
    written(tmp_path / "k", json.dumps(changed("crypto.kdfparams.r", 8)))
    with pytest.raises(SignerError) as caught:
        open_signer(Custody("keystore", f"{tmp_path}/k"), passphrase=passphrase_in(tmp_path))
    words = "takes 256 MiB of memory, at most 128 MiB are allowed"
    assert str(caught.value) == f"opening the keystore {tmp_path}/k {words}"
    assert "edge-agent identity import" in caught.value.hint


# ---- making one ---------------------------------------------------------------------------------------------------


def test_what_is_made_is_what_others_read_and_costs_64_mib() -> None:
    from eth_account import Account

    made = json.loads(unlock.encrypt(SECRET, PASSPHRASE, what="keystore"))
    judged = read(made)
    assert (judged.memory, judged.exceeds(TO_RUN)) == (64 * MIB, None)
    assert judged.address == bytes.fromhex(DID.rpartition("0x")[2])
    assert bytes(Account.decrypt(made, PASSPHRASE)) == SECRET


@pytest.mark.parametrize("text", ["é ß 密码", " leading and trailing ", "x" * 5000])
def test_passphrases_are_taken_as_they_are(text: str) -> None:
    made = json.loads(unlock.encrypt(SECRET, text, what="keystore", work_factor=CHEAP))
    assert unlock._decrypt(made["crypto"], text) == (SECRET, "")


def test_one_that_does_not_open_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlock, "_decrypt", lambda *_: (bytes(32), ""))
    with pytest.raises(SignerError, match="does not open again"):
        unlock.encrypt(SECRET, PASSPHRASE, what="keystore", work_factor=CHEAP)


@pytest.mark.parametrize("method", ["encrypt", "decrypt"])
def test_what_eth_account_says_of_an_error_gets_nowhere(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from eth_account import Account

    class Talkative(Exception):
        pass

    def fail(*given: Any, **_: Any) -> None:
        raise Talkative(SECRET.hex(), *given)

    monkeypatch.setattr(Account, method, fail)
    with pytest.raises(SignerError) as caught:
        unlock.encrypt(SECRET, PASSPHRASE, what="keystore", work_factor=CHEAP)
    assert not holds(told(caught.value), SECRET)
    assert PASSPHRASE.encode() not in told(caught.value)
    if method == "encrypt":
        assert str(caught.value) == "eth-account could not handle the keystore: Talkative"
    else:
        assert unlock._decrypt(PUBLISHED_SCRYPT["crypto"], PASSPHRASE) == (None, "Talkative")
