"""What a received message comes to, case by case, without a broker."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from agent.signer import KeySigner
from agent.transports.ddhub.answers import ReceivedMessage
from agent.transports.ddhub.content import cipher, payload, signature
from agent.transports.ddhub.receiving.delivery import Delivery, Parked, Refused, Why, is_encrypted, opened
from tests.ddhub_keys import SMALL, SMALL_PUBLIC
from tests.runs import OTHER_SECRET, SECRET

SENDER = KeySigner(SECRET, network="volta")
PUBLIC = signature.public_key_of(SENDER)
KEY = bytes(range(32))
CLEAR = payload.encode([b"record 1", b"record 2"])
SEALED = cipher.encrypt(CLEAR, KEY)
WRAPPED = cipher.wrap(KEY, SMALL_PUBLIC)
OLD = cipher.wrap(KEY, SMALL_PUBLIC, padding="pkcs1v15")
OTHER = cipher.wrap(bytes(32), SMALL_PUBLIC)


def message(text: str, **changes: Any) -> ReceivedMessage:
    made = ReceivedMessage(
        id="6254555",
        topic_id="62545547fe37f174d7715ff3",
        topic_version="1.0.0",
        payload=text,
        encrypted=is_encrypted_text(text),
        sender=SENDER.did,
        signature=signature.sign_text(text, SENDER) if text[:1] in "{0123456789abcdef" else "0x00",
        nanos=1,
        gateway_id="0b271eb8-1e21-4817-95af-7951649360ed",
        transaction_id="",
        is_file=False,
    )
    return replace(made, **changes)


def is_encrypted_text(text: str) -> bool:
    return not text.startswith("{")


def judged(found: ReceivedMessage, *wrapped: str, key: str | None = PUBLIC) -> Delivery | Parked | Refused:
    return opened(found, signature_key=key, wrapped=wrapped, private_keys=[SMALL], unknown="nobody can be asked")


@pytest.mark.parametrize("wrapped", [(WRAPPED,), (OLD,), (OTHER, WRAPPED), ("junk", OLD)])
def test_any_of_the_keys_that_came_opens_it_in_either_padding(wrapped: tuple[str, ...]) -> None:
    found = judged(message(SEALED), *wrapped)
    assert isinstance(found, Delivery)
    assert found.envelopes == (b"record 1", b"record 2")
    assert (found.sender, found.nanos, found.doubts) == (SENDER.did, 1, ())


@pytest.mark.parametrize(
    ("changes", "wrapped", "key", "why", "words"),
    [
        ({}, (), PUBLIC, Why.KEY, "its key has not come"),
        ({}, ("junk",), PUBLIC, Why.KEY, "cannot be unwrapped"),
        ({}, (b64encode(bytes(256)).decode(),), PUBLIC, Why.KEY, "cannot be unwrapped"),
        ({}, (OTHER,), PUBLIC, Why.KEY, "does not decrypt with its key"),
        ({}, (WRAPPED,), None, Why.SENDER, "nobody can be asked"),
        ({"signature": "0x" + "00" * 65}, (WRAPPED,), PUBLIC, Why.SIGNATURE, "not by the key in the sender's"),
        ({"signature": "junk"}, (WRAPPED,), PUBLIC, Why.SIGNATURE, "not by the key in the sender's"),
        ({"payload": SEALED[:-1] + ("0" if SEALED[-1] != "0" else "1")}, (WRAPPED,), PUBLIC, Why.SIGNATURE, "not by"),
        ({"encrypted": False}, (), PUBLIC, Why.KEY, "its key has not come"),
    ],
)
def test_what_may_be_opened_later(
    changes: dict[str, Any], wrapped: tuple[str, ...], key: str | None, why: Why, words: str
) -> None:
    found = judged(replace(message(SEALED), **changes), *wrapped, key=key)
    assert isinstance(found, Parked)
    assert found.why is why
    assert words in found.words


def test_by_somebody_elses_key_nothing_is_decrypted() -> None:
    forged = message(SEALED, signature=signature.sign_text(SEALED, KeySigner(OTHER_SECRET, network="volta")))
    found = judged(forged, WRAPPED)
    assert isinstance(found, Parked)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (message(SEALED, is_file=True), "it is a file"),
        (message(SEALED, signature=""), "it has no signature"),
        (message(cipher.encrypt("[1]", KEY)), "begins with {"),
        (message('{"envelopes":[]}'), 'expected "envelopes"'),
        (message('{"envelopes":["AA"],"envelopes":["AA"]}'), "there twice"),
        (message("{"), "not JSON"),
    ],
)
def test_what_will_never_be_opened(found: ReceivedMessage, words: str) -> None:
    come = judged(found, WRAPPED)
    assert isinstance(come, Refused)
    assert words in come.words


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, None),
        ({"encrypted": True}, None),
        ({"signature": ""}, "not signed by its sender"),
        ({"signature": "0x" + "00" * 65}, "altered in transport, or not sent by whom the broker names"),
    ],
)
def test_a_text_in_clear_is_handed_over_with_what_is_wrong_around_it(
    changes: dict[str, Any], doubt: str | None
) -> None:
    found = judged(replace(message(CLEAR), **changes))
    assert isinstance(found, Delivery)
    assert found.envelopes == (b"record 1", b"record 2")
    assert len(found.doubts) == (doubt is not None)
    assert all(each.startswith(str(doubt)) for each in found.doubts)


def test_a_text_in_clear_of_a_sender_that_is_not_known_waits() -> None:
    assert isinstance(judged(message(CLEAR), key=None), Parked)


def test_a_dash_that_was_escaped_is_undone_and_told() -> None:
    text = payload.encode([b"\xfb\xef\xbe"])
    changed = message(text, payload=text.replace("-", "&#45;"))
    found = judged(changed)
    assert isinstance(found, Delivery)
    assert found.envelopes == (b"\xfb\xef\xbe",)
    assert found.doubts == ("altered in transport: a text in clear was rewritten; the records were not touched",)


def test_what_is_no_envelope_among_others_is_told_and_loses_none() -> None:
    found = judged(message('{"envelopes":["AAA=","AAAA",7]}'))
    assert isinstance(found, Delivery)
    assert found.envelopes == (bytes(3),)
    assert [each.partition(" is")[0] for each in found.doubts] == [
        "payload: envelope 1 of 3",
        "payload: envelope 3 of 3",
    ]


def test_whether_it_is_encrypted_is_seen_from_the_text() -> None:
    assert is_encrypted(message(SEALED, encrypted=False))
    assert not is_encrypted(message(CLEAR, encrypted=True))
