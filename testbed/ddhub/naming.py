"""How the broker names streams, subjects, consumers and message ids in NATS. Pure.

The specification of the Data Hub, 1.5, 1.8 and 1.10; tests/vectors/ddhub.json, f_brokerNaming.
"""

from __future__ import annotations

import hashlib
import re
import uuid

INTERNAL = "internal"  # the last token of a key's subject
_SINCE = ":#:"


def stream_name(fqcn: str) -> str:
    """The stream of a DID, an anonymous key, or ``<did>.keys``."""
    return "_".join(reversed(fqcn.split(".")))


def keys_fqcn(did: str) -> str:
    """The mailbox of a participant's keys."""
    return f"{did}.keys"


def stream_subject(fqcn: str) -> str:
    """The one subject that a stream takes."""
    return f"{stream_name(fqcn)}.>"


def message_subject(fqcn: str, topic_id: str) -> str:
    """Where a message of a topic goes."""
    return f"{stream_name(fqcn)}.{topic_id}"


def dedupe_id(transaction_id: str, sender: str, fqcn: str, topic_id: str) -> str:
    """The header Nats-Msg-Id: Java's UUID.nameUUIDFromBytes, which has no namespace."""
    digest = hashlib.md5((transaction_id + sender + fqcn + topic_id).encode(), usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=digest, version=3))


def consumer_name(client_id: str, since_s: int | None = None) -> str:
    """The durable of a search; with ``since_s`` (whole seconds since 1970) it has one of its own."""
    name = ":".join(part for part in re.split(r"[.>*]", client_id) if part)
    return name if since_s is None else f"{name}{_SINCE}{since_s:x}"


def client_id_of(consumer: str) -> str:
    """The durable's name without its time."""
    return consumer.partition(_SINCE)[0]


def since_part(consumer: str) -> str:
    """The time in a durable's name; empty if it has none."""
    return consumer.partition(_SINCE)[2]


def key_consumer_name(client_id: str, stream: str, since_s: int | None = None) -> str:
    """The durable of a search for keys."""
    return f"{client_id}internal-ddhub" if since_s is None else f"{client_id}{since_s}internal-ddhub{stream}"
