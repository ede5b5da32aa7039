"""The keys of a participant: in a DID document, in the operator's file, and what is said of one that is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from Crypto.IO import PEM as pem  # noqa: N811 - a module in spite of its name
from Crypto.Util.asn1 import DerSequence
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from agent.errors import Verdict
from agent.transports.ddhub.content.cipher import CipherError, wrap
from agent.transports.ddhub.keys.network import canonical, participant
from agent.transports.ddhub.keys.participant import (
    ENCRYPTION_TAG,
    SIGNATURE_TAG,
    ParticipantError,
    ParticipantKeys,
    judged,
    read_document,
    short,
)
from agent.transports.ddhub.keys.participants_file import ParticipantsFileError, parse
from tests.ddhub_keys import MINE
from tests.ddhub_registry import ALICE, BOB, DDHUB, DID, KEY, PEM, VECTORS

ENTRIES = [attribute["resultingPublicKeyEntry"] for attribute in DDHUB["e_didAttributes"]]
SPKI = load_pem_public_key(PEM.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # too small on purpose, and quick to make
SMALL_PEM = SMALL.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
PRIVATE_PEM = SMALL.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


def document(*entries: Any, name: str = "publicKey", **more: Any) -> dict[str, Any]:
    return {"id": DID, name: list(entries)} | more


def pair(keys: ParticipantKeys) -> tuple[str | None, str | None]:
    return keys.signature, keys.encryption


# ---- DIDs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "did", [DID, DID.lower(), DID.replace("volta", "0x12047"), f"{DID}#owner", DID[:18] + DID[18:].upper()]
)
def test_a_did_is_emitted_in_one_form(did: str) -> None:
    assert canonical(did) == DID
    assert participant(did).address.hex() == BOB["address"][2:].lower()


@pytest.mark.parametrize(
    "did", [f"did:ethr:{BOB['address']}", DID.replace("volta", "sepolia"), DID[:-1], "", "did:web:x"]
)
def test_what_is_no_participant(did: str) -> None:
    with pytest.raises(ValueError, match="did:ethr:<"):
        canonical(did)


# ---- documents ------------------------------------------------------------------------------------------------------


def test_the_entries_of_the_vectors() -> None:
    assert pair(read_document(document(*ENTRIES), DID)) == (KEY, PEM)
    assert read_document(document(*ENTRIES), DID).remarks == ()


def test_the_document_of_a_real_resolver() -> None:
    resolution = VECTORS["erc1056_resolution"]
    keys = read_document(resolution["ew_did_document"], resolution["did"])
    assert pair(keys) == (VECTORS["did_ethr"]["public_key_uncompressed"], None)


def test_other_ways_to_write_it() -> None:
    short_ids = [{**entry, "id": f"#{entry['id'].partition('#')[2]}"} for entry in ENTRIES]
    assert pair(read_document(document(*short_ids, name="verificationMethod"), DID.lower())) == (KEY, PEM)
    lower = [{**entry, "id": entry["id"].replace(BOB["address"], BOB["address"].lower())} for entry in ENTRIES]
    assert pair(read_document(document(*lower) | {"id": DID.lower()}, DID)) == (KEY, PEM)
    as_pem = {"id": f"{DID}#{ENCRYPTION_TAG}", "publicKeyPem": SPKI}
    assert pair(read_document(document(as_pem), DID)) == (None, SPKI)


@pytest.mark.parametrize(
    "entry",
    [
        {"id": f"{ALICE['did']}#{SIGNATURE_TAG}", "publicKeyHex": KEY},
        {"id": f"{DID}#x#{SIGNATURE_TAG}", "publicKeyHex": KEY},
        {"id": f"{DID}#{SIGNATURE_TAG}-2", "publicKeyHex": KEY},
        {"id": 7},
        {"publicKeyHex": KEY},
        [],
        None,
        "text",
    ],
)
def test_an_entry_of_something_else_is_passed_over(entry: Any) -> None:
    assert pair(read_document(document(entry, ENTRIES[1]), DID)) == (None, PEM)


def test_of_two_entries_the_first_is_used_and_it_is_told() -> None:
    other = {**ENTRIES[0], "publicKeyHex": ALICE["publicKeyUncompressed"]}
    keys = read_document(document(ENTRIES[0], other, {"id": f"#{ENCRYPTION_TAG}"}), DID)
    assert pair(keys) == (KEY, None)
    assert [(remark.tag, remark.what) for remark in keys.remarks] == [
        (SIGNATURE_TAG, "the DID document holds two of them, and the first is used"),
        (ENCRYPTION_TAG, "the entry in the DID document holds no key"),
    ]


@pytest.mark.parametrize("content", [None, [], "x", {}, {"id": ALICE["did"]}, {"id": 5}, {"id": "x"}])
def test_what_is_no_document_of_the_did(content: Any) -> None:
    with pytest.raises(ValueError, match="DID document"):
        read_document(content, DID)


def test_a_document_without_keys() -> None:
    for content in (document(), {"id": DID}, {"id": DID, "publicKey": "x"}):
        assert pair(read_document(content, DID)) == (None, None)


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [KEY.upper().replace("0X", "0x"), KEY[2:], f"{KEY} ", "0x02" + KEY[4:68]],
    ids=["case", "bare", "blank", "short"],
)
def test_a_key_that_gateways_do_not_take_is_taken_and_told(text: str) -> None:
    keys = judged({SIGNATURE_TAG: text})
    assert keys.signature == KEY
    (remark,) = keys.remarks
    assert remark.what == "client gateways compare it as text, and take no message that it proves"


@pytest.mark.parametrize("text", [PEM, SPKI, f"\n{PEM}\n", PEM.replace("\n", "\r\n"), PEM.strip()])
def test_an_rsa_key_in_all_its_forms(text: str) -> None:
    keys = judged({ENCRYPTION_TAG: text})
    assert keys.remarks == ()
    assert load_pem_public_key((keys.encryption or "").encode()) == load_pem_public_key(PEM.encode())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the text is no RSA public key"),
        (KEY, "the text is no RSA public key"),
        (PEM[:-60], "the text is no RSA public key"),
        (PEM.replace("MIIC", "MIID"), "the text is no RSA public key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "the text is no RSA public key"),
        (PEM.replace("MIIC", "MIIC!"), "the text is no RSA public key"),
        (PEM + " " * 20_000, "the text is no RSA public key"),
        (f"é{PEM}", "the text is no RSA public key"),
        (SMALL_PEM, "an RSA key of 1024 bits, or its exponent, is not fit for use"),
        (PRIVATE_PEM, "a PRIVATE key stands there, which everybody can read now"),
    ],
)
def test_an_rsa_key_that_cannot_be_used_is_none(text: str, what: str) -> None:
    keys = judged({ENCRYPTION_TAG: text})
    assert keys.encryption is None
    assert [remark.what for remark in keys.remarks] == [what]


@pytest.mark.parametrize("exponent", [1, 2, 2**40 + 1], ids=["hides nothing", "even", "takes long"])
def test_a_key_that_nothing_would_be_wrapped_for_is_none(exponent: int) -> None:
    weak = pem.encode(DerSequence([MINE.n, exponent]).encode(), "RSA PUBLIC KEY")
    assert judged({ENCRYPTION_TAG: weak}).encryption is None
    with pytest.raises(CipherError):
        wrap(bytes(32), weak)


def test_a_key_as_a_line() -> None:
    assert short(PEM) == "MIICCgKCAgEAr56s...UpcYBUkCAwEAAQ=="
    assert short(KEY) == "0x04466d7fcae563...f33e407797e1278a"
    assert short("x\x1b[2J") == "x\\u001b[2J"


# ---- what is missing ------------------------------------------------------------------------------------------------


def test_a_recipient_without_an_rsa_key() -> None:
    keys = ParticipantKeys(KEY, None)
    assert keys.of(DID) is keys
    assert keys.to_verify(DID) == KEY
    with pytest.raises(ParticipantError, match=f"{DID} has no RSA key: nothing can be encrypted for it") as raised:
        keys.to_encrypt(DID)
    assert raised.value.verdict is Verdict.RETRY
    assert "its owner has to publish it in the DID document" in raised.value.hint


def test_a_sender_without_a_signature_key_and_why() -> None:
    keys = judged({SIGNATURE_TAG: "x", ENCRYPTION_TAG: PEM})
    assert keys.to_encrypt(DID) == PEM
    with pytest.raises(ParticipantError, match="has no signature key: what it sends proves nothing") as raised:
        keys.to_verify(DID)
    assert raised.value.hint == "dsb-signature-key: this is no secp256k1 key; its owner has to publish it again"


def test_a_participant_without_any_key() -> None:
    with pytest.raises(ParticipantError, match="has published no key for the Data Hub"):
        ParticipantKeys(None, None).of(DID)


# ---- the operator's file --------------------------------------------------------------------------------------------


def file(table: Any) -> Any:
    return parse(json.dumps(table, indent=1).encode(), file="p.json")


def test_the_file() -> None:
    table = file({DID.lower(): {"signature": KEY, "encryption": PEM}, ALICE["did"]: {"encryption": SPKI}})
    assert {key[1].hex(): pair(keys) for key, keys in table.items()} == {
        BOB["address"][2:].lower(): (KEY, PEM),
        ALICE["address"][2:].lower(): (None, SPKI),
    }
    assert parse(b"{}", file="p.json") == {}


def test_what_is_wrong_a_thousand_times_is_told_in_a_few_lines() -> None:
    with pytest.raises(ParticipantsFileError) as raised:
        file({f"did:web:{number}": {} for number in range(1000)})
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-1], len(raised.value.problems)) == (21, "and 980 more", 1000)


def test_all_problems_at_once_each_with_its_line() -> None:
    table = {
        "did:web:x": {},
        DID: {"signature": "0x04", "encryption": 7, "sign": "x"},
        DID.lower(): {"signature": KEY},
        ALICE["did"]: [],
    }
    with pytest.raises(ParticipantsFileError) as raised:
        file(table)
    remedy = 'write {"signature": "0x04...", "encryption": "-----BEGIN ..."}'
    assert raised.value.verdict is Verdict.RETRY
    assert [str(problem).replace(DID, "BOB") for problem in raised.value.problems] == [
        "p.json:2: did:web:x: this is no DID of a participant; write did:ethr:ewc:0x... or did:ethr:volta:0x...",
        "p.json:3: BOB: encryption is no text; write the key in quotes; a line end within it is \\n",
        'p.json:3: BOB: "sign" is no key; write signature and encryption',
        "p.json:3: BOB: signature: this is no secp256k1 key; copy it from the DID document of the participant",
        f"p.json:8: {DID.lower()}: the DID is there twice; leave one of the two out",
        f"p.json:11: {ALICE['did']}: expected an object with its keys; {remedy}",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "p.json: this is not text; write it as UTF-8"),
        (b"{\n\n'a'", "p.json:3: this is no JSON: expecting property name enclosed in double quotes; correct it there"),
        (b"[]", "p.json:1: this is no JSON object; write it like"),
        (b"[" * 100_000, "p.json: this is no JSON of ours: it is too deep"),
        (b'{"a": {}, "a": {}}', "p.json:1: a: this is no DID of a participant"),
        (
            json.dumps({DID: {"signature": KEY}}).replace('"signature"', f'"signature": "{KEY}", "signature"').encode(),
            "signature is there twice; leave one of the two out",
        ),
        (
            b'{"%b": {"signature": "%b"}, "%b": {}}' % (DID.encode(), KEY.encode(), DID.encode()),
            "the DID is there twice",
        ),
    ],
)
def test_a_file_that_cannot_be_used(content: bytes, words: str) -> None:
    with pytest.raises(ParticipantsFileError) as raised:
        parse(content, file="p.json")
    assert words in str(raised.value)
