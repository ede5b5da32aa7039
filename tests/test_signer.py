"""The key in custody: who may read the file, what it must hold, and that the secret stays out of every message."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from coincurve import PrivateKey
from eth_account import Account

from agent.errors import SignerError
from agent.signer import KeySigner, create_key_file, open_key_file
from tests.runs import DID, SECRET

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def written(folder: Path, text: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", [SECRET.hex(), SECRET.hex() + "\n", "0x" + SECRET.hex(), SECRET.hex().upper()])
def test_a_key_file_opens(tmp_path: Path, text: str) -> None:
    assert open_key_file(written(tmp_path, text.encode()), did=DID).did == DID


def test_signatures_are_those_of_eth_account_and_verify() -> None:
    signer = KeySigner(SECRET, did=DID)
    for number in range(20):
        digest = hashlib.sha256(bytes([number])).digest()
        signature = signer.sign(digest)
        theirs = Account.unsafe_sign_hash(digest, SECRET)
        assert signature == theirs.r.to_bytes(32, "big") + theirs.s.to_bytes(32, "big")
        assert int.from_bytes(signature[32:], "big") <= ORDER // 2


@pytest.mark.parametrize("bit", [0, 255, 256, 511])
def test_a_signature_that_does_not_verify_is_not_handed_out(bit: int) -> None:
    signer = KeySigner(SECRET, did=DID)

    class Faulty:
        def sign_recoverable(self, digest: bytes, hasher: None) -> bytes:
            signature = bytearray(PrivateKey(SECRET).sign_recoverable(digest, hasher=hasher))
            signature[bit // 8] ^= 1 << bit % 8
            return bytes(signature)

    signer._key = Faulty()  # type: ignore[assignment]
    with pytest.raises(SignerError, match="does not verify"):
        signer.sign(bytes(32))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SignerError, match="open to others") as caught:
        open_key_file(written(tmp_path, SECRET.hex().encode(), mode))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"hello", SECRET, SECRET.hex()[:-1].encode(), SECRET.hex().encode() * 2, b"\xff" * 64, b"z" * 64]
)
def test_what_is_no_key_is_refused_without_being_repeated(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(SignerError, match="does not hold a key") as caught:
        open_key_file(written(tmp_path, text))
    assert SECRET.hex()[:16] not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("number", [0, ORDER, 2**256 - 1])
def test_numbers_that_the_curve_does_not_allow_are_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(SignerError, match="secp256k1"):
        open_key_file(written(tmp_path, f"{number:064x}".encode()))


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="cannot read") as caught:
        open_key_file(tmp_path / "key")
    assert "init" in caught.value.hint


def test_a_key_out_of_reach_is_not_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SignerError, match="cannot read") as caught:
        open_key_file(tmp_path / "file" / "key")
    assert "init" not in caught.value.hint


def test_a_key_of_another_user_is_refused_and_says_who_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SECRET.hex().encode())
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        values = list(real(fd))
        values[stat.ST_UID] = 4_000_000
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", of_another)
    with pytest.raises(SignerError, match="belongs to another user") as caught:
        open_key_file(path)
    assert f"/{os.geteuid()}" in caught.value.hint
    assert "chown" not in caught.value.hint


def test_a_key_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        create_key_file(tmp_path / "key")
    assert caught.value.filename == str(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(SignerError):
        open_key_file(tmp_path)


def test_the_key_of_another_did_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="not of did:ethr:volta:0x1"):
        open_key_file(written(tmp_path, SECRET.hex().encode()), did="did:ethr:volta:0x" + "1" * 40)


def test_another_network_of_the_same_key_is_taken_as_configured(tmp_path: Path) -> None:
    path = written(tmp_path, SECRET.hex().encode())
    assert open_key_file(path, did=DID.replace("volta", "ewc")).did == DID.replace("volta", "ewc")
    assert open_key_file(path, did=DID.lower()).did == DID  # EIP-55 whatever was configured


def test_a_new_key_is_the_owners_alone_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "key"
    signer = create_key_file(path, network="volta")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_key_file(path, did=signer.did).did == signer.did
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    before = path.read_bytes()
    with pytest.raises(SignerError, match="cannot write"):
        create_key_file(path)
    assert path.read_bytes() == before
    assert create_key_file(tmp_path / "other").did != signer.did


def test_a_secret_shows_in_no_representation() -> None:
    signer = KeySigner(SECRET)
    assert SECRET.hex() not in repr(signer) + str(vars(signer))
