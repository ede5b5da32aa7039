"""Signatures over messages are those of ethers, byte for byte, and are judged as a gateway judges them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SignerError
from agent.evidence.keccak import keccak256
from agent.signer import KeySigner
from agent.transports.ddhub.content.signature import digest_of, is_signed_by, public_key_of, sign_text
from tests.ddhub_keys import VECTORS
from tests.runs import DID, OTHER_SECRET, SECRET

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ALICE = VECTORS["identities"]["alice"]
SIGNER = KeySigner(bytes.fromhex(ALICE["privateKey"][2:]), did=ALICE["did"])
CASES = [*VECTORS["a_signature"]["cases"], VECTORS["b_aes"]["file"]["signatureOverChecksumText"]]
TEXT: str = CASES[0]["text"]
GOOD: str = CASES[0]["signature"]
PUBLIC: str = CASES[0]["recoveredPublicKey"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:8])
def test_signatures_are_those_of_ethers(case: dict[str, Any]) -> None:
    assert f"0x{digest_of(case['text']).hex()}" == case["digestKeccak256"]
    assert sign_text(case["text"], SIGNER) == case["signature"]
    assert is_signed_by(case["text"], case["signature"], case["recoveredPublicKey"])


def test_the_example_message_is_signed_like_that() -> None:
    body = VECTORS["h_exampleSend"]["step2_message"]["body"]
    assert sign_text(body["payload"], SIGNER) == body["signature"]


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_our_public_key_is_told_as_a_did_document_has_it(who: str) -> None:
    identity = VECTORS["identities"][who]
    signer = KeySigner(bytes.fromhex(identity["privateKey"][2:]), did=identity["did"])
    assert public_key_of(signer) == identity["publicKeyUncompressed"]


def _last(text: str, v: str) -> str:
    return text[:-2] + v


def _twin(signature: str) -> str:
    s, v = int(signature[66:130], 16), signature[130:]
    return f"{signature[:66]}{ORDER - s:064x}{'1c' if v == '1b' else '1b'}"


@pytest.mark.parametrize(
    ("signature", "good"),
    [
        (GOOD, True),
        (_last(GOOD, "00"), True),
        (_last(GOOD, "1B"), True),
        ("0x" + GOOD[2:].upper(), True),
        (_twin(GOOD), True),
        (_last(_twin(GOOD), "01"), True),
        (_last(GOOD, "1c"), False),
        (_last(GOOD, "01"), False),
        (_last(GOOD, "02"), False),
        (_last(GOOD, "1d"), False),
        (_last(GOOD, "25"), False),
        (GOOD[2:], False),
        ("0X" + GOOD[2:], False),
        (GOOD[:-2], False),
        (GOOD + "00", False),
        (GOOD + "\n", False),
        (" " + GOOD, False),
        (GOOD[:-3] + "g" + GOOD[-2:], False),
        ("0x" + "00" * 64 + "1b", False),
        ("0x" + "ff" * 64 + "1b", False),
        ("", False),
        ("\ud800", False),
    ],
)
def test_what_counts_as_a_signature(signature: str, good: bool) -> None:
    assert is_signed_by(TEXT, signature, PUBLIC) is good


@pytest.mark.parametrize(
    "key",
    [
        "",
        PUBLIC[2:],
        "0x" + PUBLIC[2:].upper(),
        "0x02" + PUBLIC[4:68],
        PUBLIC + "\n",
        VECTORS["identities"]["bob"]["publicKeyUncompressed"],
        VECTORS["c_rsa"]["publicKeyPemPkcs1"],
    ],
)
def test_keys_are_compared_as_texts(key: str) -> None:
    assert not is_signed_by(TEXT, GOOD, key)


@pytest.mark.parametrize("text", [TEXT + " ", TEXT.replace("4", "5"), "", '{"a":"\ud800"}'])
def test_another_text_is_not_signed(text: str) -> None:
    assert not is_signed_by(text, GOOD, PUBLIC)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])).map(lambda rest: "{" + rest))
def test_another_library_signs_the_same(text: str) -> None:
    assert digest_of(text) == keccak256(text.encode())
    theirs = Account.unsafe_sign_hash(digest_of(text), ALICE["privateKey"])
    assert sign_text(text, SIGNER) == f"0x{theirs.signature.hex()}"


@settings(max_examples=100, deadline=None)
@given(text=st.text(), signature=st.text() | st.binary(min_size=65, max_size=65).map(lambda s: "0x" + s.hex()))
def test_no_signature_crashes(text: str, signature: str) -> None:
    assert not is_signed_by(text, signature, PUBLIC)


@pytest.mark.parametrize("text", ["", "[]", " {}", "\x19Ethereum Signed Message:\n5hello", "\x02\xc0", "Hello", "ABCD"])
def test_only_what_we_write_is_signed(text: str) -> None:
    with pytest.raises(ValueError, match="only JSON objects and hex digits"):
        sign_text(text, SIGNER)


class Swapped:
    """Says that it is one and signs as another."""

    def __init__(self, did: str) -> None:
        self.did = did

    def sign(self, digest: bytes) -> bytes:
        return KeySigner(OTHER_SECRET).sign(digest)


def test_a_signature_of_another_key_is_not_handed_out() -> None:
    with pytest.raises(SignerError, match="not that of our address"):
        public_key_of(Swapped("did:ethr:volta:0x" + "11" * 20))
    assert public_key_of(KeySigner(SECRET, did=DID)).startswith("0x04")
    with pytest.raises(SignerError, match="not that of our address"):  # also of a key that is known
        sign_text(TEXT, Swapped(DID))


def test_a_record_is_not_signed_over_the_same_digest() -> None:
    assert digest_of(TEXT) != hashlib.sha256(TEXT.encode()).digest()
