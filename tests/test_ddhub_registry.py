"""The registry of DIDs: which keys its log leaves, and that each fault of Energy Web's resolver is not ours."""

from __future__ import annotations

from typing import Any

import pytest

from agent.transports.ddhub.keys.participant import ENCRYPTION_TAG, SIGNATURE_TAG
from agent.transports.ddhub.keys.registry import Identity, decode, gap, identity_at, quantity
from tests.ddhub_registry import (
    ADDRESS,
    ALICE,
    BOB,
    ENCRYPTION,
    KEY,
    NAME,
    NOW,
    PEM,
    REGISTRY,
    SIGNATURE,
    VECTORS,
    Ledger,
    value,
)

ALICES = value(SIGNATURE_TAG, ALICE["publicKeyUncompressed"])
RESOLUTION = VECTORS["erc1056_resolution"]


def identity(ledger: Ledger, now: float = NOW) -> Identity:
    events = [decode(log, registry=REGISTRY, address=ledger.address) for log in ledger.logs]
    assert None not in events
    found = [event for event in events if event is not None]
    assert gap(found, newest=ledger.changed) is None
    return identity_at(reversed(found), address=ledger.address, now=now)


def remarks(ledger: Ledger) -> list[tuple[str, str]]:
    return [(remark.tag, remark.what) for remark in identity(ledger).keys.remarks]


# ---- what the vectors say -------------------------------------------------------------------------------------------


def test_the_logs_of_the_vectors_give_the_keys_of_the_document() -> None:
    address = bytes.fromhex(VECTORS["did_ethr"]["address"][2:])
    events = [decode(log, registry=REGISTRY, address=address) for log in RESOLUTION["logs"]]
    assert [event.previous for event in events if event] == [0, 100, 200, 300]
    assert gap([event for event in events if event], newest=RESOLUTION["changed_block"]) is None
    found = identity_at([event for event in events if event], address=address, now=NOW)
    public = VECTORS["did_ethr"]["public_key_uncompressed"]
    assert (found.keys.signature, found.keys.encryption, found.owner) == (public, None, address)
    assert found.others == {public}  # key-owner, published compressed
    assert found.signs(public)
    late = identity_at([event for event in events if event], address=address, now=RESOLUTION["validTo_unix"])
    assert (late.keys.signature, late.others) == (None, frozenset())
    assert [str(remark) for remark in late.keys.remarks] == [
        "dsb-signature-key: it has expired: 2100-01-01; its owner has to publish it"
    ]


# ---- which entry counts ---------------------------------------------------------------------------------------------


def test_both_keys() -> None:
    found = identity(Ledger().published())
    assert (found.keys.signature, found.keys.encryption, found.keys.remarks) == (KEY, PEM, ())


def test_nothing_was_ever_published() -> None:
    found = identity_at([], address=ADDRESS, now=NOW)
    assert (found.keys.signature, found.keys.encryption, found.owner) == (None, None, ADDRESS)
    assert found.signs(KEY)  # by its address
    assert not found.signs(ALICE["publicKeyUncompressed"])


@pytest.mark.parametrize("name", [b"did/pub/Rsa/veriKey/hex", b"did/pub/RSA/veriKey/hex", b"did/pub/Secp256k1/veriKey"])
def test_whatever_algorithm_the_attribute_names(name: bytes) -> None:
    assert identity(Ledger().attribute(5, SIGNATURE, name=name)).keys.signature == KEY


def test_the_newest_of_a_tag_counts_under_whichever_name() -> None:
    ledger = Ledger().attribute(5, ALICES, name=b"did/pub/RSA/veriKey/hex").attribute(6, SIGNATURE)
    assert identity(ledger).keys.signature == KEY
    assert identity(ledger.attribute(7, ALICES)).keys.signature == ALICE["publicKeyUncompressed"]


def test_a_key_that_was_taken_back_is_none() -> None:
    ledger = Ledger().published().attribute(300, SIGNATURE, until=0)
    assert (identity(ledger).keys.signature, identity(ledger).keys.encryption) == (None, PEM)
    assert remarks(ledger) == [(SIGNATURE_TAG, "it was taken back in block 300")]


def test_a_key_counts_until_its_time_is_over() -> None:
    ledger = Ledger().attribute(5, SIGNATURE, until=NOW)
    assert identity(ledger, now=NOW - 1).keys.signature == KEY
    assert identity(ledger, now=NOW).keys.signature is None
    assert identity(Ledger().attribute(5, SIGNATURE, until=2**256 - 1)).keys.signature == KEY


def test_all_entries_of_a_block_count_and_gateways_are_told_of() -> None:  # R1
    ledger = Ledger().attribute(5, SIGNATURE).attribute(5, ENCRYPTION)
    found = identity(ledger)
    assert (found.keys.signature, found.keys.encryption) == (KEY, PEM)
    assert remarks(ledger) == [
        (ENCRYPTION_TAG, "block 5 has another change before it, and client gateways see only that")
    ]
    revoked = ledger.attribute(9, value("other", KEY)).attribute(9, SIGNATURE, until=0)
    assert identity(revoked).keys.signature is None


# ---- owners ---------------------------------------------------------------------------------------------------------


def test_the_key_of_a_former_owner_proves_nothing_until_the_new_one_publishes_it() -> None:  # R2
    ledger = Ledger().published().new_owner(300, ALICE["address"])
    found = identity(ledger)
    assert (found.owner.hex(), found.keys.signature) == (ALICE["address"][2:].lower(), None)
    assert found.keys.encryption == PEM
    assert (found.signs(KEY), found.signs(ALICE["publicKeyUncompressed"])) == (False, True)
    assert remarks(ledger) == [
        ("", f"the DID's owner changed in block 300, to {ALICE['address']}"),
        (SIGNATURE_TAG, "it is the key of a former owner, published before the owner changed"),
    ]
    assert identity(ledger.attribute(400, SIGNATURE)).keys.signature == KEY


def test_another_key_that_the_former_owner_published_stays() -> None:
    ledger = Ledger().attribute(5, ALICES).new_owner(6, "0x" + "77" * 20)
    assert identity(ledger).keys.signature == ALICE["publicKeyUncompressed"]


def test_an_owner_who_came_back_is_the_owner() -> None:
    ledger = Ledger().published().new_owner(300, ALICE["address"]).new_owner(301, BOB["address"])
    assert identity(ledger).keys.signature == KEY


def test_a_did_that_was_given_up_has_no_keys() -> None:
    ledger = Ledger().published().new_owner(300, "0x" + "00" * 20)
    found = identity(ledger)
    assert (found.keys.signature, found.keys.encryption) == (None, None)
    assert remarks(ledger) == [("", "the DID was given up in block 300")]


# ---- what cannot be read is lost alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"did/svc/undefined", b"{not json"),  # R3
        (b"did/svc/x", b"\xff\xfe"),
        (NAME, b"{not json"),
        (NAME, b"[" * 100_000),
        (NAME, b"\xff"),
        (NAME, b'{"tag": 7, "publicKey": "0x04"}'),
        (NAME, b'["tag"]'),
        (b"\xff" * 32, b""),
        (b"", b""),
    ],
)
def test_a_value_that_cannot_be_read_loses_nothing_else(name: bytes, content: bytes) -> None:
    found = identity(Ledger().published().attribute(300, content, name=name))
    assert (found.keys.signature, found.keys.encryption) == (KEY, PEM)


def test_it_is_remarked_if_it_may_have_been_a_key() -> None:
    ledger = Ledger()
    for block in range(5, 100):
        ledger.attribute(block, b"{")
    assert remarks(ledger) == [("", "the attribute did/pub/Rsa/veriKey/hex in block 99 cannot be read")]


@pytest.mark.parametrize(
    "text",
    [KEY[:-2], "0x05" + KEY[4:], "", "no key", "0x04" + "00" * 64],
    ids=["short", "tag", "none", "words", "point"],
)
def test_what_is_no_key_is_none(text: str) -> None:
    ledger = Ledger().attribute(5, value(SIGNATURE_TAG, text))
    assert identity(ledger).keys.signature is None
    assert remarks(ledger) == [(SIGNATURE_TAG, "this is no secp256k1 key")]


def test_delegates_give_no_key() -> None:  # R4
    found = identity(Ledger().delegate(5, ALICE["address"]))
    assert (found.keys.signature, found.others, found.signs(ALICE["publicKeyUncompressed"])) == (
        None,
        frozenset(),
        False,
    )


@pytest.mark.parametrize("raw", [False, True], ids=["JSON", "raw"])
def test_a_verification_key_signs_in_both_encodings(raw: bool) -> None:
    key = VECTORS["did_ethr"]["public_key_compressed"]
    content = bytes.fromhex(key[2:]) if raw else value("key-owner", key)
    ledger = Ledger().attribute(5, content, name=b"did/pub/Secp256k1/veriKey/hex")
    public = VECTORS["did_ethr"]["public_key_uncompressed"]
    assert (identity(ledger).signs(public), identity(ledger).keys.signature) == (True, None)
    ended = ledger.attribute(6, content, name=b"did/pub/Secp256k1/veriKey/hex", until=0)
    assert not identity(ended).signs(public)


# ---- entries that cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"address": "0x" + "11" * 20}, "of another contract"),
        ({"topics": ["0x00"]}, "about somebody else"),
        ({"topics": [None, "0x" + "0" * 64]}, "about somebody else"),
        ({"topics": "x"}, "of another contract"),
        ({"removed": True}, "taken back by a fork"),
        ({"blockNumber": 5}, "a number of the chain is none"),
        ({"blockNumber": "0x"}, "a number of the chain is none"),
        ({"logIndex": None}, "a number of the chain is none"),
        ({"data": "0x12"}, "too short"),
        ({"data": "12"}, "no hex digits"),
        ({"data": "0xzz"}, "no hex digits"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    (log,) = Ledger().attribute(5, SIGNATURE).logs
    with pytest.raises(ValueError, match=words):
        decode(log | change, registry=REGISTRY, address=ADDRESS)


@pytest.mark.parametrize("length", [2**255, 10_000, 2**64 - 1])
def test_a_value_longer_than_its_entry_is_refused(length: int) -> None:
    (log,) = Ledger().attribute(5, SIGNATURE).logs
    data = log["data"][: 2 + 64 * 4] + f"{length:064x}" + log["data"][2 + 64 * 5 :]
    with pytest.raises(ValueError, match="too short"):
        decode(log | {"data": data}, registry=REGISTRY, address=ADDRESS)


def test_an_entry_of_another_kind_is_passed_over() -> None:
    (log,) = Ledger().attribute(5, SIGNATURE).logs
    log["topics"][0] = "0x" + "ab" * 32
    assert decode(log, registry=REGISTRY, address=ADDRESS) is None
    with pytest.raises(ValueError, match="no object"):
        decode([], registry=REGISTRY, address=ADDRESS)


def test_a_missing_block_is_found_by_the_list() -> None:
    ledger = Ledger().attribute(5, SIGNATURE).attribute(5, ENCRYPTION).attribute(8, SIGNATURE).attribute(9, SIGNATURE)
    events = [event for log in ledger.logs if (event := decode(log, registry=REGISTRY, address=ADDRESS))]
    assert gap(events, newest=9) is None
    assert gap(events, newest=12) == 12
    assert gap([event for event in events if event.block != 8], newest=9) == 8
    assert gap([event for event in events if event.block != 5], newest=9) == 5
    assert gap([], newest=0) is None
    with pytest.raises(ValueError, match="does not lead back"):
        gap(events[1:], newest=9)  # of the first block with a change the first entry is missing


@pytest.mark.parametrize("text", ["", "0x", "12", "0xg", "0x" + "1" * 65, None, 5])
def test_what_is_no_number_of_the_chain(text: Any) -> None:
    with pytest.raises(ValueError, match="none"):
        quantity(text)
    assert (quantity("0x0"), quantity("0xfF")) == (0, 255)
