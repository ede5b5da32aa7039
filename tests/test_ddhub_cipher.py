"""The Data Hub's encryption: known answers of a gateway's own libraries, `cryptography` as a second judge, refusals."""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Any

import pytest
from Crypto.Cipher import PKCS1_OAEP, PKCS1_v1_5
from Crypto.Hash import SHA1, SHA256
from Crypto.PublicKey import RSA
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import Verdict
from agent.transports.ddhub.content.cipher import CipherError, Padding, decrypt, encrypt, new_key, unwrap, wrap
from agent.transports.ddhub.content.signature import is_signed_by
from tests.ddhub_keys import MINE, PUBLIC, SMALL, SMALL_PUBLIC, VECTORS
from tests.leaks import holds, told

AES, RSA_KEYS = VECTORS["b_aes"], VECTORS["c_rsa"]
OTHER = RSA.construct((MINE.n, 3), consistency_check=False)
KEY = bytes(range(32))


def theirs() -> RSAPrivateKey:
    key = serialization.load_pem_private_key(RSA_KEYS["privateKeyPemPkcs8"].encode(), None)
    assert isinstance(key, RSAPrivateKey)
    return key


# ---- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", AES["cases"], ids=lambda case: case["name"])
def test_texts_are_those_of_a_gateway(case: dict[str, str]) -> None:
    key, iv = bytes.fromhex(case["keyHex"]), bytes.fromhex(case["ivHex"])
    assert encrypt(case["plaintext"], key, iv=iv) == case["payload"]
    assert decrypt(case["payload"], key) == case["plaintext"]
    assert decrypt(case["payload"].upper(), key) == case["plaintext"]


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), key=st.binary(min_size=32, max_size=32))
def test_another_library_reads_and_writes_the_same(text: str, key: bytes) -> None:
    iv, _, sealed = encrypt(text, key).partition(":")
    cipher = Cipher(algorithms.AES256(key), modes.CBC(bytes.fromhex(iv)))
    pad, unpad = padding.PKCS7(128).padder(), padding.PKCS7(128).unpadder()
    content = pad.update(text.encode()) + pad.finalize()
    encryptor, decryptor = cipher.encryptor(), cipher.decryptor()
    assert encryptor.update(content) + encryptor.finalize() == bytes.fromhex(sealed)
    opened = decryptor.update(bytes.fromhex(sealed)) + decryptor.finalize()
    assert unpad.update(opened) + unpad.finalize() == text.encode()
    assert decrypt(f"{iv}:{sealed}", key) == text


def test_key_and_vector_are_fresh() -> None:
    assert new_key() != new_key()
    assert len(new_key()) == 32
    assert encrypt("{", KEY) != encrypt("{", KEY)


IV, BLOCK = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "f0a86c1581774f30c328c1356a8a728c"


@pytest.mark.parametrize(
    "payload",
    [
        "",
        ":",
        IV,
        f"{IV}:",
        f":{BLOCK}",
        f"{IV}{BLOCK}",
        f"{IV}:{BLOCK[:-2]}",
        f"{IV}:{BLOCK[:-1]}",
        f"{IV}:{BLOCK}00",
        f"{IV[:-2]}:{BLOCK}",
        f"{IV}00:{BLOCK}",
        f"{IV}:{BLOCK}:",
        f"{IV}:{IV}:{BLOCK}",
        f" {IV}:{BLOCK}",
        f"{IV}:{BLOCK}\n",
        f"{IV}:{BLOCK[:16]} {BLOCK[16:]}",
        f"{IV}:0x{BLOCK[:-2]}",
        f"{IV}:{BLOCK[:-1]}g",
        f"{IV}:{BLOCK[:-1]}\uff10",
        f"{IV}:{BLOCK[:-1]}\ud800",
    ],
)
def test_what_is_malformed_is_refused(payload: str) -> None:
    with pytest.raises(CipherError, match="not an encrypted text") as caught:
        decrypt(payload, KEY)
    assert caught.value.verdict is Verdict.REJECT


def test_bad_padding_and_bad_utf_8_are_one_error_that_tells_nothing() -> None:
    cipher = Cipher(algorithms.AES256(KEY), modes.CBC(bytes.fromhex(IV))).encryptor()
    secret = b"\xff" + b"what it says" + b"\x03\x03\x03"
    no_text = f"{IV}:{cipher.update(secret).hex()}"
    told_of = []
    for payload, key in [(no_text, KEY), (f"{IV}:{BLOCK}", bytes(32))]:
        with pytest.raises(CipherError) as caught:
            decrypt(payload, key)
        assert not holds(told(caught.value), KEY)
        assert b"what it says" not in told(caught.value)
        told_of.append(str(caught.value))
    assert told_of == ["the text does not decrypt with its key"] * 2


@settings(max_examples=100, deadline=None)
@given(payload=st.text() | st.text("0123456789abcdefABCDEF:", max_size=200))
def test_whatever_is_sent_is_a_text_or_an_error(payload: str) -> None:
    with suppress(CipherError):
        decrypt(payload, KEY)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_keys_have_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        encrypt("{", bytes(length))
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        decrypt(f"{IV}:{BLOCK}", bytes(length))


def test_half_a_character_is_not_sent() -> None:
    with pytest.raises(CipherError, match="half a character"):
        encrypt('{"a":"\ud800"}', KEY)


# ---- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [RSA_KEYS, RSA_KEYS["legacy"]], ids=["oaep", "pkcs1v15"])
def test_a_gateways_keys_are_unwrapped(vector: dict[str, str]) -> None:
    assert unwrap(vector["wrappedKeyBase64"], [MINE]).hex() == vector["unwrapsToAscii"]


def test_another_library_unwraps_ours() -> None:
    oaep = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    wrapped = wrap(KEY, PUBLIC)
    assert len(wrapped) == 684
    assert theirs().decrypt(b64decode(wrapped), oaep).decode() == KEY.hex()
    legacy = wrap(KEY, PUBLIC, padding="pkcs1v15")
    assert theirs().decrypt(b64decode(legacy), rsa_padding.PKCS1v15()).decode() == KEY.hex()


@pytest.mark.parametrize("form", ["pkcs1", "spki", "crlf", "blanks"])
@pytest.mark.parametrize("how", ["oaep", "pkcs1v15"])
def test_what_is_wrapped_is_unwrapped(form: str, how: Padding) -> None:
    spki = MINE.public_key().export_key().decode()
    pem = {"pkcs1": PUBLIC, "spki": spki, "crlf": PUBLIC.replace("\n", "\r\n"), "blanks": f"\n {PUBLIC}\n\n"}[form]
    assert unwrap(wrap(KEY, pem, padding=how), [MINE]) == KEY


def test_an_old_key_is_tried_too() -> None:
    wrapped = wrap(KEY, PUBLIC)
    assert unwrap(wrapped, [SMALL, MINE]) == KEY
    assert unwrap(wrap(KEY, SMALL_PUBLIC), [MINE, SMALL]) == KEY


@pytest.mark.parametrize(
    "content",
    [
        KEY,
        KEY.hex().upper().encode(),
        KEY.hex().encode() + b"\n",
        KEY.hex().encode()[:-1] + b"\n",
        KEY.hex().encode()[:-2],
        b"0x" + KEY.hex().encode()[2:],
        b"",
    ],
)
def test_only_64_lower_case_digits_are_a_key(content: bytes) -> None:
    for wrapped in (PKCS1_OAEP.new(SMALL, hashAlgo=SHA1).encrypt(content), PKCS1_v1_5.new(SMALL).encrypt(content)):
        with pytest.raises(CipherError, match="cannot be unwrapped") as caught:
            unwrap(b64encode(wrapped).decode(), [SMALL])
        assert not holds(told(caught.value), KEY)


def _small(digits: bytes = KEY.hex().encode()) -> str:
    return b64encode(PKCS1_OAEP.new(SMALL, hashAlgo=SHA1).encrypt(digits)).decode()


@pytest.mark.parametrize(
    "wrapped",
    [
        "",
        "AAAA",
        "A" * 4096,
        "!" * 344,
        "\ud800",
        b64encode(bytes(256)).decode(),
        b64encode(b"\xff" * 256).decode(),
        b64encode(PKCS1_OAEP.new(OTHER, hashAlgo=SHA1).encrypt(KEY.hex().encode())).decode(),
    ],
)
def test_a_forged_key_is_refused_in_one_way(wrapped: str) -> None:
    with pytest.raises(CipherError, match=r"^the key of a message cannot be unwrapped$") as caught:
        unwrap(wrapped, [SMALL, MINE])
    assert caught.value.verdict is Verdict.REJECT


@pytest.mark.parametrize("spoil", [lambda s: f" {s}", lambda s: f"{s}\n", lambda s: s[:-2], lambda s: s + "A"])
def test_base64_is_taken_as_it_is_written(spoil: Any) -> None:
    assert unwrap(_small(), [SMALL]) == KEY
    with pytest.raises(CipherError):
        unwrap(spoil(_small()), [SMALL])


def test_other_hashes_than_sha_1_are_not_unwrapped() -> None:
    wrapped = PKCS1_OAEP.new(SMALL, hashAlgo=SHA256).encrypt(KEY.hex().encode())
    with pytest.raises(CipherError):
        unwrap(b64encode(wrapped).decode(), [SMALL])


def test_a_message_without_our_keys_is_refused() -> None:
    with pytest.raises(CipherError):
        unwrap(RSA_KEYS["wrappedKeyBase64"], [])


def test_the_example_message_opens_from_end_to_end() -> None:
    example, alice = VECTORS["h_exampleSend"], VECTORS["identities"]["alice"]
    body = example["step2_message"]["body"]
    assert is_signed_by(body["payload"], body["signature"], alice["publicKeyUncompressed"])
    assert decrypt(body["payload"], unwrap(example["step1_internal"]["body"]["payload"], [MINE])) == '{"data":49}'


# ---- public keys of anybody -----------------------------------------------------------------------------------------

ED25519 = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


def _pem(n: int, e: int) -> str:
    return RSA.construct((n, e), consistency_check=False).export_key().decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x04" + "ab" * 64,
        RSA_KEYS["privateKeyPemPkcs8"],
        RSA_KEYS["privateKeyPemPkcs1Encrypted"],
        PUBLIC.replace("RSA PUBLIC", "RSA PRIVATE"),
        PUBLIC.replace("BEGIN RSA PUBLIC", "BEGIN PUBLIC"),
        PUBLIC[:-40],
        PUBLIC.replace("MIIC", "MIID"),
        PUBLIC + PUBLIC,
        PUBLIC.replace("\n", ""),
        ED25519,
        PUBLIC + " " * 20_000,
        "\ud800",
    ],
)
def test_what_is_no_public_key_is_told(text: str) -> None:
    with pytest.raises(CipherError, match="no RSA public key") as caught:
        wrap(KEY, text)
    assert caught.value.hint
    assert caught.value.verdict is Verdict.REJECT


@pytest.mark.parametrize(
    ("bits", "exponent"), [(1024, 65537), (2047, 65537), (8200, 65537), (2048, 1), (2048, 65536), (2048, (1 << 64) + 1)]
)
def test_a_key_that_protects_nothing_or_costs_too_much_is_refused(bits: int, exponent: int) -> None:
    with pytest.raises(CipherError):
        wrap(KEY, _pem((1 << (bits - 1)) + 1, exponent))


@settings(max_examples=100, deadline=None)
@given(der=st.binary(max_size=80), pkcs1=st.booleans())
def test_whatever_is_published_is_a_key_or_an_error(der: bytes, pkcs1: bool) -> None:
    kind = "RSA PUBLIC" if pkcs1 else "PUBLIC"
    with pytest.raises(CipherError):
        wrap(KEY, f"-----BEGIN {kind} KEY-----\n{b64encode(der).decode()}\n-----END {kind} KEY-----\n")
