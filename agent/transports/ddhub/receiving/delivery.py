"""What a received message comes to: records to hand over, or why not yet, or why never. Pure.

The sender is whom the broker names. What proves a record is its own signature, so a text in clear is handed over also
if the message's signature is not good; what is encrypted is decrypted only behind a good one (CBC has no tag). Whether
a text is encrypted is seen from the text: nothing signs the broker's word for it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import EvidenceError
from agent.printable import printable
from agent.transports.ddhub.answers import ReceivedMessage
from agent.transports.ddhub.content.cipher import CipherError, RsaKey, decrypt, unwrap
from agent.transports.ddhub.content.payload import Payload, decode
from agent.transports.ddhub.content.signature import is_signed_by

ALTERED = "altered in transport"
_ENCRYPTED = re.compile(r"[0-9A-Fa-f]{32}:[0-9A-Fa-f]{32}")  # how it begins


class Why(enum.StrEnum):
    """Why a message waits."""

    KEY = "key"  # none that opens it has come
    SENDER = "sender"  # the sender's own key is not known
    SIGNATURE = "signature"  # not by the sender's key that we know


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that is handed over. ``sender``: as the broker says; ``nanos``: when it took it, ns since 1970.

    ``gateway_id``: the sender's own id of it. ``doubts``: what is wrong with the message around the records, in words.
    """

    id: str
    sender: str
    topic_id: str
    topic_version: str
    nanos: int
    gateway_id: str
    transaction_id: str
    payload: Payload
    doubts: tuple[str, ...] = ()

    @property
    def envelopes(self) -> tuple[bytes, ...]:
        """The records, not verified: for ``Verifier.feed``."""
        return self.payload.envelopes


@dataclass(frozen=True, slots=True)
class Parked:
    """It cannot be opened now, and may be later."""

    why: Why
    words: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be opened."""

    words: str


def is_encrypted(message: ReceivedMessage) -> bool:
    """Whether its text begins as an encrypted one, so that a key is needed."""
    return _ENCRYPTED.match(message.payload) is not None


def opened(
    message: ReceivedMessage,
    *,
    signature_key: str | None,
    wrapped: Sequence[str],
    private_keys: Sequence[RsaKey],
    unknown: str = "",
) -> Delivery | Parked | Refused:
    """``signature_key``: the sender's; None: it is not known, and ``unknown`` says why. ``wrapped``: what came as key
    of this message; any may be the right one.
    """
    if message.is_file:
        return Refused("it is a file; records come in messages")
    needs_key = is_encrypted(message)
    if not needs_key and not message.payload.startswith("{"):
        return Refused("it is neither encrypted nor a text of ours")
    if not message.signature and needs_key:
        return Refused("it has no signature")
    if signature_key is None and message.signature:
        return Parked(Why.SENDER, unknown or "the sender's key is not known")
    signed = signature_key is not None and is_signed_by(message.payload, message.signature, signature_key)
    if not needs_key:
        return _delivery(message, message.payload, signed=signed)
    if not signed:
        return Parked(Why.SIGNATURE, "its signature is not by the key in the sender's DID document")
    words, hint = "its key has not come", "the sender sends the key first; if it never comes, have the records resent"
    for each in wrapped:
        try:
            text = decrypt(message.payload, unwrap(each, private_keys))
        except CipherError as error:
            words, hint = str(error), error.hint
        else:
            return _delivery(message, text, signed=True)
    return Parked(Why.KEY, words, hint)


def _delivery(message: ReceivedMessage, text: str, *, signed: bool) -> Delivery | Refused:
    try:
        payload = decode(text)
    except EvidenceError as error:
        return Refused(printable(str(error)))
    doubts = [printable(str(each)) for each in payload.refused]
    if payload.altered:
        doubts.insert(0, f"{ALTERED}: a text in clear was rewritten; the records were not touched")
    elif not message.signature:
        doubts.insert(0, "not signed by its sender")
    elif not signed:
        doubts.insert(0, f"{ALTERED}, or not sent by whom the broker names: its signature is not good")
    return Delivery(
        message.id,
        message.sender,
        message.topic_id,
        message.topic_version,
        message.nanos,
        message.gateway_id,
        message.transaction_id,
        payload,
        tuple(doubts),
    )
