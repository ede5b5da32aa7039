"""Our RSA keys on disk: sealed with the key in custody, never overwritten, the old ones kept for 25 h by any clock."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from Crypto.PublicKey import RSA
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from agent.errors import SignerError
from agent.model import ClockQuality, ClockState
from agent.signer import KeySigner
from agent.transports.ddhub.content.cipher import unwrap, wrap
from agent.transports.ddhub.keys import rsa_key
from agent.transports.ddhub.keys.key_folder import KEEP, MOST_KEYS, KeyFolder, Moment
from agent.transports.ddhub.keys.rsa_key import OurKey, from_gateway, public_pem, read, works, write
from tests.ddhub_keys import MINE, PUBLIC, SMALL, SMALL_PUBLIC, VECTORS
from tests.keystores import written
from tests.leaks import files_with, holds, told
from tests.runs import DID, OTHER_SECRET, SECRET, FakeClock, S

HOUR = 3600 * S
SIGNER = KeySigner(SECRET, did=DID)
SEALED = write(SMALL, made=7, signer=SIGNER)
GATEWAY = VECTORS["c_rsa"]
PEM: str = GATEWAY["privateKeyPemPkcs1Encrypted"]
ROOT: str = GATEWAY["rootPrivateKeyString"]


def opened(content: bytes, signer: KeySigner = SIGNER) -> OurKey:
    return read(content, signer=signer, what="RSA key file x")


# ---- one key ------------------------------------------------------------------------------------------------------


def test_our_public_key_is_published_as_a_gateway_does_it() -> None:
    assert public_pem(MINE) == PUBLIC
    assert len(public_pem(MINE)) == 775


def test_a_new_key_has_4096_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RSA, "generate", {4096: SMALL}.__getitem__)  # the real one takes seconds
    assert rsa_key.generate() is SMALL


def test_what_is_sealed_opens_again() -> None:
    assert opened(SEALED) == OurKey(7, public_pem(SMALL), SMALL)
    assert "made=7" in repr(opened(SEALED))
    assert str(SMALL.d) not in repr(opened(SEALED))


def test_another_library_opens_it_with_the_passphrase_of_the_signature() -> None:
    text = b"edge-agent: the passphrase of the RSA key for the Data Hub, 1"
    passphrase = hashlib.sha256(text + SIGNER.sign(hashlib.sha256(text).digest())).hexdigest().encode()
    key = serialization.load_pem_private_key(SEALED.partition(b"-----")[1] + SEALED.partition(b"-----")[2], passphrase)
    assert isinstance(key, RSAPrivateKey)
    assert key.private_numbers().d == SMALL.d


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sealed: b"",
        lambda sealed: b"\n" + sealed,
        lambda sealed: sealed[:-1],
        lambda sealed: sealed[:-200],
        lambda sealed: sealed + b"x",
        lambda sealed: sealed.replace(b"made: 7", b"made: x"),
        lambda sealed: sealed.replace(b"BEGIN ENCRYPTED", b"BEGIN"),
        lambda sealed: sealed.replace(b"\nMII", b"\nMIJ"),
        lambda sealed: sealed[:900] + bytes([sealed[900] ^ 1]) + sealed[901:],
        lambda sealed: os.urandom(3000),
        lambda sealed: sealed.partition(b"\n")[0] + b"\n",
        lambda sealed: SMALL.export_key(),
    ],
)
def test_a_damaged_file_is_told(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SignerError, match="the RSA key file x is damaged") as caught:
        opened(spoil(SEALED))
    assert "move it away" in caught.value.hint
    assert not holds(told(caught.value), SECRET)


def test_a_file_of_a_newer_version_is_told() -> None:
    with pytest.raises(SignerError, match="is of version 2, this agent knows 1") as caught:
        opened(b"edge-agent-rsa-key: 2\nwhatever it holds then")
    assert "newer agent" in caught.value.hint


@pytest.mark.parametrize("did", ["did:ethr:ewc:0x2c7536E3605D9C16a7a3D7b1898e529396a65c23", "did:web:example.com"])
def test_another_identitys_file_is_told(did: str) -> None:
    with pytest.raises(SignerError, match="was made for did:"):
        opened(SEALED.replace(DID.encode(), did.encode()))
    with pytest.raises(SignerError, match="not for did:ethr:ewc:0x7E5F"):
        opened(SEALED, KeySigner(OTHER_SECRET))


def test_the_key_in_custody_is_needed() -> None:
    other = KeySigner(OTHER_SECRET)
    forged = SEALED.replace(DID.encode(), other.did.encode())
    with pytest.raises(SignerError, match="damaged"):
        opened(forged, other)


def test_a_signer_that_signs_differently_each_time_keeps_no_key() -> None:
    numbers = itertools.count()

    class Random:
        did = DID

        def sign(self, digest: bytes) -> bytes:
            return next(numbers).to_bytes(64, "big")

    with pytest.raises(SignerError, match="signs differently each time"):
        write(SMALL, made=0, signer=Random())


def test_a_key_that_does_not_fit_itself_does_not_work() -> None:
    assert works(SMALL)
    assert not works(RSA.construct((SMALL.n, SMALL.e, SMALL.d + 2, SMALL.p, SMALL.q), consistency_check=False))


# ---- from a gateway -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [ROOT, ROOT.removeprefix("0x"), f" {ROOT}\n"])
def test_a_gateways_key_is_taken_over(root: str) -> None:
    assert from_gateway(PEM, root) == MINE
    assert public_pem(from_gateway(PEM, root)) == PUBLIC


@pytest.mark.parametrize(
    ("pem", "root", "why"),
    [
        (PEM, "0x" + "11" * 32, "does not open with this root key"),
        (PEM, "", "does not open with this root key"),
        (PEM.replace("\n7x", "\n8x"), ROOT, "does not open"),
        (PEM[:2000], ROOT, "no RSA key of a client gateway"),
        (PUBLIC, ROOT, "no RSA key of a client gateway"),
        ("", ROOT, "no RSA key of a client gateway"),
        (PEM + " " * 20_000, ROOT, "no RSA key of a client gateway"),
    ],
)
def test_what_is_no_gateways_key_is_told(pem: str, root: str, why: str) -> None:
    with pytest.raises(SignerError, match=why) as caught:
        from_gateway(pem, root)
    assert caught.value.hint
    assert not holds(told(caught.value), bytes.fromhex(ROOT[2:]))


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "state" / "ddhub", SIGNER)


def at(wall: int, *, boot: int | None = None, boot_id: str = "aa", synchronised: bool = True) -> Moment:
    return Moment(wall, wall if boot is None else boot, boot_id, synchronised)


def fill(folder: Path, count: int) -> None:
    """As after so many rotations."""
    (folder / "state/ddhub").mkdir(parents=True)
    for number in range(1, count + 1):
        written(folder / f"state/ddhub/rsa-{number}.pem", SEALED, 0o600)


def test_an_empty_folder_has_no_key(keys: KeyFolder, tmp_path: Path) -> None:
    assert keys.read().newest is None
    assert keys.read().private == ()
    assert keys.settle(newest_published=True, now=at(0)) == 0
    assert not list(tmp_path.iterdir())


def test_a_key_is_kept_to_ourselves(keys: KeyFolder, tmp_path: Path) -> None:
    assert keys.add(SMALL, made=7).public == public_pem(SMALL)
    folder = tmp_path / "state" / "ddhub"
    assert [(each.name, each.stat().st_mode & 0o777) for each in folder.iterdir()] == [("rsa-1.pem", 0o600)]
    assert folder.stat().st_mode & 0o077 == 0
    for number in (SMALL.d, SMALL.p, SMALL.q):
        assert not files_with(tmp_path, int(number).to_bytes(256, "big").lstrip(b"\0"))
    newest = keys.read().newest
    assert newest == OurKey(7, public_pem(SMALL), SMALL)


def test_after_a_rotation_both_unwrap_and_the_new_one_is_published(keys: KeyFolder) -> None:
    keys.add(SMALL, made=1)
    keys.add(MINE, made=2)
    ours = keys.read()
    assert ours.newest is not None
    assert ours.newest.public == PUBLIC
    for public in (PUBLIC, SMALL_PUBLIC):
        assert unwrap(wrap(bytes(32), public), ours.private) == bytes(32)


def test_a_key_file_is_never_overwritten(keys: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1)
    before = (tmp_path / "state/ddhub/rsa-1.pem").read_bytes()
    monkeypatch.setattr(keys, "_numbers", list)  # another command was faster
    with pytest.raises(SignerError, match="File exists"):
        keys.add(SMALL, made=2)
    assert (tmp_path / "state/ddhub/rsa-1.pem").read_bytes() == before


def test_a_newest_key_that_cannot_be_read_gets_no_successor_in_silence(keys: KeyFolder, tmp_path: Path) -> None:
    fill(tmp_path, 1)
    file = tmp_path / "state/ddhub/rsa-1.pem"
    file.chmod(0o640)
    with pytest.raises(SignerError, match="open to others"):
        keys.read()
    file.chmod(0o600)
    file.write_bytes(b"")
    with pytest.raises(SignerError, match="damaged"):
        keys.read()
    assert file.read_bytes() == b""


def test_an_old_key_that_cannot_be_read_is_told_and_disturbs_no_other(keys: KeyFolder, tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "state/ddhub/rsa-1.pem").write_bytes(b"\0")
    (tmp_path / "state/ddhub/rsa-0.pem").write_bytes(b"none of ours")
    with pytest.raises(SignerError):
        keys.read()
    keys.add(MINE, made=2)
    ours = keys.read()
    assert [each.public for each in ours.keys] == [PUBLIC]
    assert len(ours.refused) == 1
    assert "rsa-1.pem is damaged" in str(ours.refused[0])


def test_keys_that_are_never_published_do_not_pile_up(keys: KeyFolder, tmp_path: Path) -> None:
    fill(tmp_path, MOST_KEYS)
    with pytest.raises(SignerError, match="there are 8 RSA keys") as caught:
        keys.add(SMALL, made=9)
    assert "publish the newest" in caught.value.hint


def test_what_the_system_says_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    keys = KeyFolder(tmp_path / "file", SIGNER)
    for call in (keys.read, lambda: keys.add(SMALL, made=1)):
        with pytest.raises(SignerError, match="Not a directory") as caught:
            call()
        assert "the agent's own" in caught.value.hint


# ---- how long an old key stays --------------------------------------------------------------------------------------


@pytest.fixture
def rotated(keys: KeyFolder, tmp_path: Path) -> KeyFolder:
    fill(tmp_path, 2)
    return keys


def kept(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder / "state/ddhub").glob("*.pem"))


def test_an_old_key_goes_25_hours_after_the_new_one_was_seen(rotated: KeyFolder, tmp_path: Path) -> None:
    start = at(1000 * HOUR)
    assert rotated.settle(newest_published=True, now=start) == 0
    assert rotated.settle(newest_published=True, now=at(start.wall + KEEP - 1)) == 0
    assert kept(tmp_path) == ["rsa-1.pem", "rsa-2.pem"]
    assert rotated.settle(newest_published=True, now=at(start.wall + KEEP)) == 1
    assert kept(tmp_path) == ["rsa-2.pem"]
    assert rotated.settle(newest_published=True, now=at(start.wall + 9 * KEEP)) == 0
    assert kept(tmp_path) == ["rsa-2.pem"]


def test_it_stays_while_the_new_one_is_not_published(rotated: KeyFolder, tmp_path: Path) -> None:
    for hour in range(0, 200, 20):
        assert rotated.settle(newest_published=False, now=at(hour * HOUR)) == 0
    assert kept(tmp_path) == ["rsa-1.pem", "rsa-2.pem"]


def test_a_document_that_goes_back_to_the_old_key_begins_the_time_anew(rotated: KeyFolder) -> None:
    rotated.settle(newest_published=True, now=at(0))
    rotated.settle(newest_published=False, now=at(20 * HOUR))
    assert rotated.settle(newest_published=True, now=at(26 * HOUR)) == 0
    assert rotated.settle(newest_published=True, now=at(26 * HOUR + KEEP)) == 1


def test_a_key_that_came_back_into_force_is_kept_as_long_as_any(rotated: KeyFolder, tmp_path: Path) -> None:
    rotated.settle(newest_published=True, now=at(0))
    (tmp_path / "state/ddhub/rsa-2.pem").unlink()  # damaged, and moved away: the first is published again
    rotated.add(SMALL, made=3)
    assert rotated.settle(newest_published=True, now=at(2 * KEEP)) == 0
    assert rotated.settle(newest_published=True, now=at(3 * KEEP)) == 1
    assert kept(tmp_path) == ["rsa-2.pem"]


def test_a_note_of_days_gone_by_is_not_taken_for_a_new_keys(keys: KeyFolder, tmp_path: Path) -> None:
    fill(tmp_path, 2)
    keys.settle(newest_published=True, now=at(0))
    for number in (1, 2):
        (tmp_path / f"state/ddhub/rsa-{number}.pem").unlink()
    keys.add(SMALL, made=3)
    written(tmp_path / "state/ddhub/rsa-2.pem", SEALED, 0o600)
    assert keys.settle(newest_published=True, now=at(2 * KEEP)) == 0


SOON = 2 * HOUR


@pytest.mark.parametrize(
    ("first", "later", "removed"),
    [
        (at(0, boot=0), at(900 * HOUR, boot=SOON), 0),  # the wall clock stepped within a boot
        (at(0, boot=0), at(-900 * HOUR, boot=KEEP), 1),
        (at(0, synchronised=False), at(900 * HOUR, boot_id="bb"), 0),  # from 1970 to now, across a boot
        (at(0), at(900 * HOUR, boot_id="bb", synchronised=False), 0),
        (at(0), at(KEEP, boot=5, boot_id="bb"), 1),
        (at(0), at(KEEP - 1, boot=5, boot_id="bb"), 0),
        (at(900 * HOUR), at(800 * HOUR, boot_id="bb"), 0),
    ],
)
def test_a_clock_that_steps_removes_nothing_early(
    rotated: KeyFolder, first: Moment, later: Moment, removed: int
) -> None:
    rotated.settle(newest_published=True, now=first)
    assert rotated.settle(newest_published=True, now=later) == removed
    if not removed:  # what could not be told is counted from then on
        last = replace(later, wall=later.wall + KEEP, boot=later.boot + KEEP)
        assert rotated.settle(newest_published=True, now=last) == 1


@pytest.mark.parametrize("note", [b"", b"{}", b"[1]", b"\xff", b'{"wall":1}', b"[" * 2000, b'"x"'])
def test_a_damaged_note_keeps_the_key_longer(rotated: KeyFolder, tmp_path: Path, note: bytes) -> None:
    (tmp_path / "state/ddhub/rsa-1.replaced").write_bytes(note)
    assert rotated.settle(newest_published=True, now=at(KEEP)) == 0
    assert rotated.settle(newest_published=True, now=at(2 * KEEP)) == 1


def test_a_note_with_other_types_counts_as_none(rotated: KeyFolder, tmp_path: Path) -> None:
    note = b'{"wall": true, "boot": 0, "boot_id": "aa", "synchronised": true}'
    (tmp_path / "state/ddhub/rsa-1.replaced").write_bytes(note)
    assert rotated.settle(newest_published=True, now=at(KEEP)) == 0


def test_a_draft_that_a_crash_left_is_in_nobodys_way(rotated: KeyFolder, tmp_path: Path) -> None:
    (tmp_path / "state/ddhub/rsa-1.new").write_bytes(b"half")
    rotated.settle(newest_published=True, now=at(0))
    assert rotated.settle(newest_published=True, now=at(KEEP)) == 1
    assert [each.name for each in (tmp_path / "state/ddhub").iterdir()] == ["rsa-2.pem"]


def test_now_is_what_the_clocks_say() -> None:
    clock = FakeClock()
    clock.good = ClockQuality(ClockState.SYNCHRONISED)
    assert Moment.now(clock, b"\xaa") == Moment(clock.wall(), clock.boot(), "aa", True)
    clock.good = ClockQuality(ClockState.NOT_SYNCHRONISED)
    assert not Moment.now(clock, b"\xaa").synchronised
