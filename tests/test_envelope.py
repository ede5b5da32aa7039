"""Envelopes: COSE_Sign1 with ES256K, taken apart without trust (RFC 9052, RFC 8812; docs/evidence.md section 3)."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import coincurve
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.envelope import (
    CONTENT_TYPE,
    MAX_ENVELOPE,
    Keys,
    envelopes,
    message_id,
    protected_header,
    seal,
    unpack,
)
from agent.evidence.record import link_of
from agent.signer import KeySigner
from tests.runs import DID, SECRET, simple_run

SIGNER = KeySigner(SECRET, did=DID)
HEADER = {1: -47, 3: CONTENT_TYPE, 4: f"{DID}#controller".encode()}


def sealed(payload: bytes = b"record", header: Any = None, *, raw: bytes | None = None) -> bytes:
    protected = raw if raw is not None else cbor.encode(HEADER if header is None else header)
    return seal(payload, protected=protected, signer=SIGNER)


def test_an_envelope_is_what_a_cose_library_would_make() -> None:
    envelope = sealed(b"\x01\x02")
    message = cbor2.loads(envelope)
    assert message.tag == 18
    protected, unprotected, payload, signature = message.value
    assert cbor2.loads(protected) == HEADER
    assert (unprotected, payload, len(signature)) == ({}, b"\x01\x02", 64)
    digest = hashlib.sha256(cbor2.dumps(["Signature1", protected, b"", payload])).digest()
    assert Account._sign_hash is not None  # eth-account signs the same digest to the same r and s
    theirs = Account.unsafe_sign_hash(digest, SECRET)
    assert signature == theirs.r.to_bytes(32, "big") + theirs.s.to_bytes(32, "big")


def test_an_envelope_comes_apart_and_its_signature_holds() -> None:
    opened = unpack(sealed(b"record"))
    assert (opened.did, opened.payload) == (DID, b"record")
    assert opened.address == bytes.fromhex(DID[-40:])
    keys = Keys()
    keys.check(opened)
    keys.check(opened)  # by the remembered key now


BAD_HEADERS: dict[str, Any] = {
    "other alg": {**HEADER, 1: -7},
    "alg missing": {3: CONTENT_TYPE, 4: HEADER[4]},
    "alg true": {**HEADER, 1: True},
    "other content type": {**HEADER, 3: "application/cbor"},
    "crit": {**HEADER, 2: [1]},
    "kid text": {**HEADER, 4: f"{DID}#controller"},
    "kid no UTF-8": {**HEADER, 4: b"\xff"},
    "kid without fragment": {**HEADER, 4: DID.encode()},
    "kid of another method": {**HEADER, 4: b"did:web:example.org#controller"},
    "kid with other fragment": {**HEADER, 4: f"{DID}#key-1".encode()},
    "kid with two networks": {**HEADER, 4: f"did:ethr:volta:{DID[9:]}#controller".encode()},
    "kid with more behind it": {**HEADER, 4: f"{DID}0#controller".encode()},
    "no map": [1],
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_other_headers_are_refused(header: Any) -> None:
    with pytest.raises(EvidenceError):
        unpack(sealed(header=header))


def test_owner_reads_as_controller() -> None:
    opened = unpack(sealed(header={**HEADER, 4: f"{DID}#owner".encode()}))
    assert opened.did == DID
    Keys().check(opened)


def with_unprotected(unprotected: bytes) -> bytes:
    envelope = sealed()
    at = 2 + len(cbor2.dumps(cbor2.loads(envelope).value[0]))
    assert envelope[at] == 0xA0
    return envelope[:at] + unprotected + envelope[at + 1 :]


@pytest.mark.parametrize(
    "unprotected",
    ["a0", "a10401", "a1616bc249010000000000000000", "a101c5821b00000000000fffff01", "a120d81c80", "a201010102"],
)
def test_the_unprotected_map_is_ignored_whatever_it_holds(unprotected: str) -> None:
    Keys().check(unpack(with_unprotected(bytes.fromhex(unprotected))))


@pytest.mark.parametrize(("arrays", "good"), [(6, True), (7, False)])
def test_the_unprotected_map_counts_for_the_nesting(arrays: int, good: bool) -> None:
    """The envelope's array is level 1, the map level 2; 8 are allowed, empty ones included."""
    envelope = with_unprotected(b"\xa1\x01" + b"\x81" * (arrays - 1) + b"\x80")
    if good:
        Keys().check(unpack(envelope))
    else:
        with pytest.raises(EvidenceError, match="nested"):
            unpack(envelope)


@pytest.mark.parametrize(
    ("mangle", "why"),
    [
        (lambda e: e[1:], "tag 18"),
        (lambda e: b"\xd8\x12" + e[1:], "tag 18"),
        (lambda e: b"\xd2\x83" + e[2:], "tag 18"),
        (lambda e: e + b"\0", "after the envelope"),
        (lambda e: e[:-1], "cut short"),
        (lambda e: b"", "tag 18"),
        (lambda e: e[:2] + b"\x00" * 4, "expected"),
        (lambda e: e[:2] + b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff" + e[2:], "cut short|expected"),
        (lambda e: e[:2] + b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff" + e[2:], "cut short"),
        (lambda e: e.replace(b"\x58\x40", b"\x58\x3f")[:-1], "signature of 63"),
    ],
)
def test_malformed_envelopes_are_refused(mangle: Any, why: str) -> None:
    with pytest.raises(EvidenceError, match=why):
        unpack(mangle(sealed()))


def test_an_envelope_may_be_256_kib_and_no_more() -> None:
    overhead = len(sealed(bytes(100_000))) - 100_000
    assert len(sealed(bytes(MAX_ENVELOPE - overhead))) == MAX_ENVELOPE
    unpack(sealed(bytes(MAX_ENVELOPE - overhead)))
    with pytest.raises(EvidenceError):
        unpack(sealed(bytes(MAX_ENVELOPE - overhead + 1)))


def test_only_the_key_of_kids_address_signs() -> None:
    other = coincurve.PrivateKey(bytes(31) + b"\x07")

    class Stranger:
        did = DID

        def sign(self, digest: bytes) -> bytes:
            return other.sign_recoverable(digest, hasher=None)[:64]

    forged = unpack(seal(b"record", protected=protected_header(DID), signer=Stranger()))
    with pytest.raises(EvidenceError, match="not made by the key"):
        Keys().check(forged)
    keys = Keys()
    keys.check(unpack(sealed()))
    with pytest.raises(EvidenceError, match="does not verify"):
        keys.check(forged)


def test_names_of_records_come_from_their_bytes() -> None:
    envelope = simple_run(2).sent[0]
    link = link_of(envelope)
    digest = hashlib.sha256(unpack(envelope).payload).hexdigest()
    assert message_id(link) == f"{link.stream.hex()}-1-{digest[:8]}"


@given(st.binary(max_size=40), st.integers(0, 5), st.binary(max_size=40))
def test_files_are_read_past_their_damage(before: bytes, cut: int, after: bytes) -> None:
    sent = simple_run(10).sent
    broken = before + sent[0] + sent[1][: len(sent[1]) - 1 - cut] + sent[2] + after + sent[3]
    found = [each for _, each in envelopes(broken) if isinstance(each, bytes)]
    assert sent[0] in found or before
    assert sent[3] in found
    assert b"".join(sent) == b"".join(each for _, each in envelopes(b"".join(sent)) if isinstance(each, bytes))
