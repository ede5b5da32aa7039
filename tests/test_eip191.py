"""Personal messages and login tokens are, byte for byte, those of ethers and of Energy Web's own libraries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import eip191
from agent.eip191 import identity_token, personal_message_digest, sign_personal_message
from agent.errors import SignerError
from agent.evidence.envelope import seal
from agent.evidence.keccak import keccak256
from agent.signer import KeySigner
from tests.runs import DID, OTHER_SECRET, SECRET

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "identity.json").read_text())
SIGNER = KeySigner(SECRET, did=DID)
SECRETS = st.integers(1, 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364140).map(
    lambda number: number.to_bytes(32, "big")
)


def test_the_vectors_are_of_the_test_key() -> None:
    assert VECTORS["did_ethr"]["private_key"] == f"0x{SECRET.hex()}"
    assert VECTORS["did_ethr"]["did_volta"] == SIGNER.did
    assert VECTORS["did_ethr"]["address"] == SIGNER.address
    assert VECTORS["did_ethr"]["public_key_compressed"] == f"0x{SIGNER.public_key.hex()}"
    assert VECTORS["did_ethr"]["did_ewc"] == KeySigner(SECRET).did


# ---- EIP-191 ------------------------------------------------------------------------------------------------------


def test_hello() -> None:
    vector = VECTORS["eip191_hello"]
    assert personal_message_digest(b"hello").hex() == vector["digest"][2:]
    assert sign_personal_message(b"hello", signer=SIGNER).hex() == vector["signature"][2:]


def test_a_login_with_ethereum() -> None:
    vector = VECTORS["siwe"]
    assert sign_personal_message(vector["message"].encode(), signer=SIGNER).hex() == vector["signature"][2:]


@settings(max_examples=60, deadline=None)
@given(secret=SECRETS, message=st.binary(max_size=300))
def test_personal_messages_are_those_of_eth_account(secret: bytes, message: bytes) -> None:
    signer = KeySigner(secret)
    theirs = Account.sign_message(encode_defunct(primitive=message), secret)
    assert sign_personal_message(message, signer=signer) == bytes(theirs.signature)
    assert Account.from_key(secret).address == signer.address


@settings(max_examples=60, deadline=None)
@given(secret=SECRETS, digest=st.binary(min_size=32, max_size=32))
def test_signatures_are_those_of_eth_account(secret: bytes, digest: bytes) -> None:
    theirs = Account.unsafe_sign_hash(digest, secret)
    assert KeySigner(secret).sign(digest) == bytes(theirs.signature)[:64]


def test_a_signature_of_another_key_is_not_handed_out() -> None:
    class Swapped:
        did = DID

        def sign(self, digest: bytes) -> bytes:
            return KeySigner(OTHER_SECRET).sign(digest)

    with pytest.raises(SignerError, match="not that of our address"):
        sign_personal_message(b"hello", signer=Swapped())


# ---- tokens -------------------------------------------------------------------------------------------------------


def test_a_login_at_the_data_hub() -> None:
    vector = VECTORS["identity_token_ddhub_gateway"]
    assert identity_token(issued=vector["payload"]["iat"], signer=SIGNER) == vector["token"]
    header, payload, _ = vector["token"].split(".")
    assert keccak256(f"{header}.{payload}".encode()).hex() == vector["keccak256_signing_input"][2:]


def test_its_life_is_as_short_as_asked() -> None:
    with_its_time = identity_token(issued=1_700_000_000, lifetime=300, signer=SIGNER)
    assert with_its_time == VECTORS["identity_token_ddhub_gateway"]["token"]
    assert identity_token(issued=1_700_000_000, lifetime=60, signer=SIGNER) != with_its_time


@pytest.mark.parametrize(
    ("name", "header", "payload"),
    [
        ("identity_token_iam_client_lib", "header", "payload"),
        ("ew_claim_token", "decoded_header", "decoded_payload"),
    ],
)
def test_other_tokens_are_signed_alike(name: str, header: str, payload: str) -> None:
    vector = VECTORS[name]
    assert eip191._signed(vector[header], vector[payload], signer=SIGNER) == vector["token"]


# ---- COSE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS["cose"])
def test_cose_messages_are_those_of_other_libraries(name: str) -> None:
    vector = {key: bytes.fromhex(value) for key, value in VECTORS["cose"][name].items()}
    sealed = seal(vector["payload_hex"], protected=vector["protected_hex"], signer=SIGNER)
    assert sealed == vector["cose_sign1_tagged_hex"]
    assert SIGNER.sign(vector["sig_structure_sha256"]) == vector["signature_hex"]


def test_a_record_and_a_login_never_sign_the_same_digest() -> None:
    """The one is a SHA-256, the other a Keccak-256 of a text with a prefix of its own."""
    message = b"\x84jSignature1"
    assert personal_message_digest(message) != hashlib.sha256(message).digest()
    assert personal_message_digest(message) == keccak256(b"\x19Ethereum Signed Message:\n12" + message)
