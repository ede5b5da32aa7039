"""The key in custody: who may read the file, what it must hold, and that the secret stays out of every message."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import resource
import stat
from pathlib import Path
from typing import Any

import coincurve
import pytest
from coincurve import PrivateKey
from eth_account import Account

from agent.custody import Custody, parse
from agent.errors import SignerError
from agent.secret import Secret
from agent.signer import KeySigner, create_key, files, import_key, open_signer, places
from tests.keystores import cheap, passphrase_in, unlocked_here, written
from tests.leaks import holds, told
from tests.runs import DID, OTHER_SECRET, SECRET

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def keyed(folder: Path, text: bytes, mode: int = 0o600) -> Path:
    return written(folder / "key", text, mode)


def open_key_file(path: Path, *, did: str | None = None, any_owner: bool = False) -> KeySigner:
    return open_signer(Custody("file", str(path)), did=did, any_owner=any_owner)


def create_key_file(path: Path, *, network: str = "ewc") -> KeySigner:
    return create_key(Custody("file", str(path)), network=network)


# ---- in memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SECRET.hex(), SECRET.hex() + "\n", "0x" + SECRET.hex(), SECRET.hex().upper()])
def test_a_key_file_opens(tmp_path: Path, text: str) -> None:
    assert open_key_file(keyed(tmp_path, text.encode()), did=DID).did == DID


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
        open_key_file(keyed(tmp_path, SECRET.hex().encode(), mode))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"hello", SECRET, SECRET.hex()[:-1].encode(), SECRET.hex().encode() * 2, b"\xff" * 64, b"z" * 64]
)
def test_what_is_no_key_is_refused_without_being_repeated(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(SignerError, match="does not hold a key") as caught:
        open_key_file(keyed(tmp_path, text))
    assert SECRET.hex()[:16] not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("number", [0, ORDER, 2**256 - 1])
def test_numbers_that_the_curve_does_not_allow_are_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(SignerError, match="secp256k1"):
        open_key_file(keyed(tmp_path, f"{number:064x}".encode()))


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="cannot read") as caught:
        open_key_file(tmp_path / "key")
    assert "edge-agent init" in caught.value.hint


def test_a_key_out_of_reach_is_not_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SignerError, match="cannot read") as caught:
        open_key_file(tmp_path / "file" / "key")
    assert "init" not in caught.value.hint


def test_a_link_that_leads_nowhere_is_not_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "not-mounted" / "key")
    with pytest.raises(SignerError, match="cannot read") as caught:
        open_key_file(tmp_path / "key")
    assert caught.value.hint == "it is a link: is what it leads to there, is a disk to be mounted?"


def test_a_key_of_another_user_is_refused_and_says_who_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keyed(tmp_path, SECRET.hex().encode())
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
        open_key_file(keyed(tmp_path, SECRET.hex().encode()), did="did:ethr:volta:0x" + "1" * 40)


def test_another_network_of_the_same_key_is_taken_as_configured(tmp_path: Path) -> None:
    path = keyed(tmp_path, SECRET.hex().encode())
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
    assert not holds(f"{signer!r} {signer} {vars(signer)}".encode(), SECRET)


# ---- files --------------------------------------------------------------------------------------------------------


def test_root_may_look_at_anybodys_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keyed(tmp_path, SECRET.hex().encode())
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: with_fields(real(fd), uid=4_000_000))
    assert open_key_file(path, did=DID, any_owner=True).did == DID
    path.chmod(0o640)
    with pytest.raises(SignerError, match="open to others"):
        open_key_file(path, any_owner=True)


def with_fields(status: os.stat_result, *, uid: int | None = None, mode: int | None = None) -> os.stat_result:
    values = list(status)
    if uid is not None:
        values[stat.ST_UID] = uid
    if mode is not None:
        values[stat.ST_MODE] = stat.S_IFREG | mode
    return os.stat_result(values)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(SignerError, match="no regular file"):
        open_key_file(tmp_path / "key")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="larger than 1024 bytes"):
        open_key_file(keyed(tmp_path, SECRET.hex().encode() + b" " * 2000))


def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without O_TMPFILE."""
    real = os.open

    def opened(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("nameless", [True, False])
def test_a_key_is_made_alike_on_every_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, nameless: bool, umask: int
) -> None:
    if not nameless:
        without_nameless_files(monkeypatch)
    before = os.umask(umask)
    try:
        signer = create_key_file(tmp_path / "key")
    finally:
        os.umask(before)
    assert open_key_file(tmp_path / "key", did=signer.did).did == signer.did
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(SignerError, match="File exists"):
        files.write_private(tmp_path / "key", b"other", what="key file")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("fails", ["write", "fsync", "link", "fchmod"])
def test_a_key_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, nameless: bool, fails: str
) -> None:
    if not nameless:
        without_nameless_files(monkeypatch)

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, fails, failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        create_key_file(tmp_path / "key")
    assert caught.value.filename == str(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_half_of_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(OSError, match="No space left"):
        create_key_file(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_without_proc_a_key_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: str, *arguments: Any, **options: Any) -> None:
        real(source.replace("/proc/", "/no-proc/"), *arguments, **options)

    monkeypatch.setattr(os, "link", link)
    signer = create_key_file(tmp_path / "key")
    assert open_key_file(tmp_path / "key", did=signer.did).did == signer.did
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


# ---- credentials --------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_credential_opens(credentials: Path, mode: int) -> None:
    keyed(credentials, SECRET.hex().encode(), mode)
    assert open_signer(Custody("credential", "key"), did=DID).did == DID


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o404])
def test_a_credential_that_systemd_did_not_make_is_refused(credentials: Path, mode: int) -> None:
    keyed(credentials, SECRET.hex().encode(), mode)
    with pytest.raises(SignerError, match="credential key is open to others"):
        open_signer(Custody("credential", "key"))


def test_a_credential_of_another_user_is_refused(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed(credentials, SECRET.hex().encode())
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: with_fields(real(fd), uid=4_000_000))
    with pytest.raises(SignerError, match="of another user"):
        open_signer(Custody("credential", "key"))


def test_a_credential_that_is_not_there(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SignerError, match="cannot read the credential") as caught:
        open_signer(Custody("credential", "key"))
    assert "LoadCredential=key:PATH" in caught.value.hint
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(SignerError, match="the credential key is not there") as caught:
        open_signer(Custody("credential", "key"))
    assert "LoadCredential=" in caught.value.hint


def test_a_credential_that_holds_no_key(credentials: Path) -> None:
    keyed(credentials, b"hunter2")
    with pytest.raises(SignerError, match="the credential key does not hold a key"):
        open_signer(Custody("credential", "key"))


# ---- keystores ----------------------------------------------------------------------------------------------------


@pytest.fixture
def keystore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Custody:
    monkeypatch.setattr(places, "unlock", unlocked_here)
    written(tmp_path / "keystore", json.dumps(cheap()))
    return Custody("keystore", f"{tmp_path}/keystore")


def test_a_keystore_is_guarded_as_a_key_is(tmp_path: Path, keystore: Custody) -> None:
    keystore.path.chmod(0o644)
    with pytest.raises(SignerError, match=r"the keystore .* is open to others"):
        open_signer(keystore, passphrase=passphrase_in(tmp_path))


def test_a_missing_keystore_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="cannot read the keystore") as caught:
        open_signer(Custody("keystore", f"{tmp_path}/none"), passphrase=passphrase_in(tmp_path))
    assert "edge-agent identity create" in caught.value.hint


def test_a_keystore_of_another_key_than_it_says_is_refused(tmp_path: Path, keystore: Custody) -> None:
    table = cheap() | {"address": KeySigner(OTHER_SECRET).address}
    written(keystore.path, json.dumps(table))
    with pytest.raises(SignerError, match="does not hold the key of the address"):
        open_signer(keystore, passphrase=passphrase_in(tmp_path))
    del table["address"]
    written(keystore.path, json.dumps(table))
    assert open_signer(keystore, passphrase=passphrase_in(tmp_path), did=DID).did == DID


def test_what_is_no_keystore_is_refused_without_being_repeated(tmp_path: Path, keystore: Custody) -> None:
    written(keystore.path, SECRET.hex())
    with pytest.raises(SignerError, match="is no keystore: it is no JSON object") as caught:
        open_signer(keystore, passphrase=passphrase_in(tmp_path))
    assert not holds(told(caught.value), SECRET)


def test_a_passphrase_that_cannot_be_read_is_said(
    tmp_path: Path, keystore: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    for where, words in {
        Secret(env="NO_SUCH_SECRET"): "the passphrase: env NO_SUCH_SECRET is not set",
        Secret(file=f"{tmp_path}/none"): "the passphrase: file .* cannot be read: No such file",
        None: "a keystore needs a passphrase",
    }.items():
        with pytest.raises(SignerError, match=words) as caught:
            open_signer(keystore, passphrase=where)
        assert caught.value.hint


@pytest.mark.parametrize(("mode", "good"), [(0o600, True), (0o640, True), (0o644, False), (0o602, False)])
def test_a_passphrase_that_everybody_can_read_is_none(
    tmp_path: Path, keystore: Custody, mode: int, *, good: bool
) -> None:
    passphrase = passphrase_in(tmp_path)
    passphrase.path.chmod(mode)
    if good:
        assert open_signer(keystore, passphrase=passphrase, did=DID).did == DID
        return
    with pytest.raises(SignerError, match=r"passphrase's file .* is open to others") as caught:
        open_signer(keystore, passphrase=passphrase)
    assert caught.value.hint.startswith("chmod o-rwx")


# ---- taking over --------------------------------------------------------------------------------------------------


def test_a_key_goes_from_any_place_into_any_other(tmp_path: Path, keystore: Custody) -> None:
    passphrase = passphrase_in(tmp_path)
    exposed = Custody("file", str(keyed(tmp_path, SECRET.hex().encode(), 0o644)))
    sources: list[Custody | bytes] = [exposed, keystore, b" 0x" + SECRET.hex().encode() + b"\r\n"]
    for number, source in enumerate(sources):
        into = Custody("file", f"{tmp_path}/{number}")
        sealed = passphrase if source is keystore else None
        assert import_key(source, into, source_passphrase=sealed, did=DID).did == DID
        assert into.path.read_bytes() == SECRET.hex().encode() + b"\n"
        assert open_signer(into, did=DID).did == DID
    made = Custody("keystore", f"{tmp_path}/made")
    assert import_key(exposed, made, passphrase=passphrase, network="volta").did == DID
    assert open_signer(made, passphrase=passphrase, did=DID).did == DID


def test_nothing_is_written_if_the_key_is_not_the_one_that_is_meant(tmp_path: Path) -> None:
    into = Custody("file", f"{tmp_path}/new")
    with pytest.raises(SignerError, match="not of did:ethr:volta:0x1"):
        import_key(SECRET.hex().encode(), into, did="did:ethr:volta:0x" + "1" * 40)
    with pytest.raises(SignerError, match="the input does not hold a key"):
        import_key(b"hunter2", into)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    keyed(tmp_path, b"something")
    for name in ("key", "dangling"):
        for custody in (Custody("file", f"{tmp_path}/{name}"), Custody("keystore", f"{tmp_path}/{name}")):
            with pytest.raises(SignerError, match="File exists"):
                create_key(custody, passphrase=Secret(env="PATH"))
            with pytest.raises(SignerError, match="File exists"):
                import_key(SECRET.hex().encode(), custody, passphrase=Secret(env="PATH"))
    assert (tmp_path / "key").read_bytes() == b"something"
    assert not (tmp_path / "nowhere").exists()


def test_a_credential_is_not_written() -> None:
    with pytest.raises(SignerError, match="given by systemd"):
        create_key(Custody("credential", "key"))


# ---- names of places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:key", "file:/etc/x/key"),
        ("file:/k", "file:/k"),
        ("keystore:a/b", "keystore:/etc/x/a/b"),
        ("credential:a.b-c", "credential:a.b-c"),
    ],
)
def test_a_place_is_named(text: str, expected: str) -> None:
    assert str(parse(text, folder=Path("/etc/x"))) == expected
    assert parse(expected) == parse(text, folder=Path("/etc/x"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "file:",
            "keystore:",
            "credential:",
            "key",
            "FILE:k",
            "vault:k",
            "file:a\0b",
            "credential:..",
            "file:~/k",
        ),
        *(SECRET.hex(), f"file:{SECRET.hex()}", f"0x{SECRET.hex()}", f"keystore:/etc/{SECRET.hex().upper()}"),
        *(5, None, ["file:k"], {"file": "k"}),
    ],
)
def test_a_place_that_is_none_is_refused_without_being_repeated(text: object) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert "; " in str(caught.value)
    assert not holds(told(caught.value), SECRET)


# ---- nothing of it is shown ---------------------------------------------------------------------------------------


def test_a_process_with_a_key_is_in_no_core_file_and_readable_by_no_other(tmp_path: Path) -> None:
    prctl = ctypes.CDLL(None).prctl
    prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    open_key_file(keyed(tmp_path, SECRET.hex().encode()))
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
    assert prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE


def test_where_that_is_forbidden_the_key_is_opened_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(resource, "setrlimit", forbidden)
    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    assert open_key_file(keyed(tmp_path, SECRET.hex().encode()), did=DID).did == DID


class Talkative(Exception):
    pass


def test_what_the_library_says_of_an_error_gets_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keyed(tmp_path, SECRET.hex().encode())
    signer = open_key_file(path)

    class Failing:
        def __init__(self, secret: bytes) -> None:
            raise Talkative(secret.hex())

    class Signing:
        def sign_recoverable(self, digest: bytes, hasher: None) -> bytes:
            raise Talkative(SECRET.hex())

    signer._key = Signing()  # type: ignore[assignment]
    monkeypatch.setattr(coincurve, "PrivateKey", Failing)
    for act in (
        lambda: open_key_file(path),
        lambda: signer.sign(bytes(32)),
        lambda: import_key(path.read_bytes(), NEW),
    ):
        with pytest.raises(SignerError) as caught:
            act()
        assert not holds(told(caught.value), SECRET)
        assert b"Talkative" not in told(caught.value)


NEW = Custody("file", "/nowhere/key")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_what_is_no_digest_is_not_signed(size: int) -> None:
    with pytest.raises(ValueError, match=f"a digest has 32 bytes, not {size}"):
        KeySigner(SECRET).sign(bytes(size))
