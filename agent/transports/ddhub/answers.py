"""What a Data Hub answers, read from its JSON: strict in what we need, blind to the rest.

Pure. Unknown members are ignored, as is their order; what is missing or of another type where we need it is a
TransportError (PROTOCOL). Numbers of nanoseconds are whole numbers throughout: they exceed what a double holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import Reason, TransportError
from agent.printable import printable

PEER = "the Data Hub"
Json = Mapping[str, Any]
_HEX = re.compile(r"[0-9A-Fa-f]{1,64}")
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login yields. ``expires_in`` in s; ``refresh`` None: there is none."""

    access: str
    refresh: str | None
    expires_in: int

    def __repr__(self) -> str:  # neither a log nor a traceback shows them
        return f"Tokens(expires_in={self.expires_in})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker takes, as it says. ``message``: bytes of a whole message; ``kept``: ms until one expires. None:
    it does not say.
    """

    message: int | None
    kept: int | None
    client_id: int | None


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, without its versions."""

    id: str
    owner: str
    name: str
    schema_type: str


@dataclass(frozen=True, slots=True)
class TopicVersion:
    """One version of a topic. ``schema``: of JSD7 the JSON Schema as an object."""

    schema_type: str
    schema: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a recipient did not get a message: the broker's code and words."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a message, by recipient: its id there, or why not. ``unnamed``: failures that name nobody."""

    sent: Mapping[str, str]
    failed: Mapping[str, Failure]
    unnamed: Sequence[Failure]


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that was searched for; ``nanos``: ns since 1970, to the millisecond."""

    id: str
    topic_id: str
    topic_version: str
    payload: str
    encrypted: bool
    sender: str
    signature: str
    nanos: int
    gateway_id: str  # clientGatewayMessageId
    transaction_id: str
    is_file: bool


@dataclass(frozen=True, slots=True)
class ReceivedKey:
    """The key of a message, still wrapped."""

    id: str
    sender: str
    gateway_id: str
    wrapped: str
    nanos: int


def malformed(what: str, *, peer: str = PEER) -> TransportError:
    """An answer that is none."""
    hint = "is url a Data Hub?" if peer == PEER else "is the address right?"
    return TransportError(f"the answer of {peer} cannot be read: {what}", hint=hint, reason=Reason.PROTOCOL)


def parsed(body: bytes) -> Any:
    """A body as JSON. Raises TransportError."""
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        begin = printable(body[:40].decode("ascii", "replace")) if body[:1] == b"<" else ""  # a page holds no token
        raise malformed(f'it is no JSON: "{begin}"' if begin else "it is no JSON") from error


def tokens(found: Any) -> Tokens:
    """Of a login or a refresh. Raises TransportError, which repeats nothing of it."""
    body = _object(found, "a login")
    access, refresh, expires_in = body.get("access_token"), body.get("refresh_token"), body.get("expires_in")
    if not isinstance(access, str) or not _is_token(access):
        raise malformed("a login has no access_token")
    if isinstance(expires_in, str) and expires_in.isascii() and expires_in.isdigit():
        expires_in = int(expires_in[:12])
    if type(expires_in) is not int or expires_in <= 0:
        raise malformed("a login does not say in how many seconds it expires")
    return Tokens(access, refresh if _is_token(refresh) else None, expires_in)


def limits(found: Any) -> Limits:
    """Of the broker's configuration. Raises TransportError."""
    body = _object(found, "the broker's configuration")
    message, kept, client_id = (
        _positive(body.get(name)) for name in ("msgMaxSize", "msgExpired", "natsMaxClientidSize")
    )
    return Limits(message, kept, client_id)


def topics(found: Any) -> list[Topic]:
    """A page of topics. Raises TransportError."""
    records = _object(found, "a page of topics").get("records")
    return [
        Topic(_id(each), _text(each, "owner"), _text(each, "name"), _optional(each, "schemaType"))
        for each in _objects(records, "a page of topics")
    ]


def topic_version(found: Any) -> TopicVersion:
    """A version of a topic. Raises TransportError."""
    body = _object(found, "a version of a topic")
    if body.get("schema") is None:
        raise malformed("schema is missing")
    return TopicVersion(_optional(body, "schemaType"), body["schema"])


def versions(found: Any) -> list[str]:
    """A page of versions of a topic. Raises TransportError."""
    records = _object(found, "a page of versions").get("records")
    return [_text(each, "version") for each in _objects(records, "a page of versions")]


def dids(found: Any) -> list[str]:
    """Who holds roles. Raises TransportError."""
    return _texts(_object(found, "a list of roles").get("dids"), "a list of roles")


def message_id(found: Any) -> str | None:
    """Of a key that was sent; None: the broker did not take it. Raises TransportError."""
    return _optional(_object(found, "the answer to a key"), "messageId") or None


def posted(found: Any) -> Posted:
    """What became of a message, for each recipient. Raises TransportError."""
    what = "the answer to a message"
    sent, failed, unnamed = dict[str, str](), dict[str, Failure](), list[Failure]()
    for status in _objects(_object(found, what).get("status") or [], what):
        name = _text(status, "name").upper()
        for detail in _objects(status.get("details") or [], what):
            did = _optional(detail, "did")
            if name == "SENT":
                sent[did] = _optional(detail, "messageId")
                continue
            reason = detail.get("err")
            reason = reason if isinstance(reason, dict) else {}
            words = " ".join(filter(None, (_optional(reason, "reason"), _optional(reason, "additionalInformation"))))
            failure = Failure(_optional(reason, "code"), printable(words[:300]))
            if did:
                failed[did] = failure
            else:
                unnamed.append(failure)
    return Posted(sent, failed, unnamed)


def messages(found: Any) -> tuple[list[ReceivedMessage], list[str]]:
    """What was searched for, in no order; and of messages that cannot be read why not. Raises TransportError."""
    good, bad = list[ReceivedMessage](), list[str]()
    for each in _objects(found, "a search"):
        try:
            good.append(
                ReceivedMessage(
                    _name(each, "messageId"),
                    _name(each, "topicId"),
                    _optional(each, "topicVersion"),
                    _text(each, "payload"),
                    each.get("payloadEncryption") in (True, "true"),
                    _name(each, "senderDid"),
                    _optional(each, "signature"),
                    _nanos(each),
                    _whole(_optional(each, "clientGatewayMessageId"), "clientGatewayMessageId"),
                    _optional(each, "transactionId"),
                    each.get("isFile") in (True, "true"),
                )
            )
        except TransportError as error:
            bad.append(str(error))
    return good, bad


def keys(found: Any) -> tuple[list[ReceivedKey], list[str]]:
    """Keys of messages; and of those that cannot be read why not. Raises TransportError."""
    good, bad = list[ReceivedKey](), list[str]()
    for each in _objects(found, "a search for keys"):
        try:
            good.append(
                ReceivedKey(
                    _optional(each, "messageId"),
                    _name(each, "senderDid"),
                    _name(each, "clientGatewayMessageId"),
                    _name(each, "payload"),
                    _nanos(each),
                )
            )
        except TransportError as error:
            bad.append(str(error))
    return good, bad


def acknowledged(found: Any) -> tuple[list[str], list[str]]:
    """Which messages were acknowledged, and which are not there. Raises TransportError."""
    what = "the answer to acknowledgements"
    body = _object(found, what)
    return _texts(body.get("acked", []), what), _texts(body.get("notFound", []), what)


def names(found: Any) -> list[str]:
    """A list of texts. Raises TransportError."""
    return _texts(found, "a list of names")


# ---- parts ------------------------------------------------------------------------------------------------------


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 65536 and _TOKEN.fullmatch(value) is not None


def _object(found: Any, what: str) -> Json:
    if not isinstance(found, dict):
        raise malformed(f"{what} is no object")
    return found


def _objects(found: Any, what: str) -> Sequence[Json]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise malformed(f"{what} is no list of objects")
    return found


def _texts(found: Any, what: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise malformed(f"{what} is no list of texts")
    return [_whole(each, what) for each in found]


def _text(found: Json, name: str) -> str:
    value = _optional(found, name)
    if not value:
        raise malformed(f"{name} is missing")
    return value


def _name(found: Json, name: str) -> str:
    """A text by which something is looked up. Whoever has a role may choose that of a key, to the letter."""
    return _whole(_text(found, name), name)


def _whole(text: str, name: str) -> str:
    """A text that can be stored. JSON's escapes can also say half a character (a lone surrogate), which nobody can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise malformed(f"{name} holds half a character") from None
    return text


def _id(found: Json) -> str:
    """Of a topic: it becomes part of an address."""
    value = _text(found, "id")
    if not _HEX.fullmatch(value):
        raise malformed("an id is no hex digits")
    return value


def _optional(found: Json, name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _nanos(found: Json) -> int:
    value = found.get("timestampNanos")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 30:
        return int(value)
    if type(value) is not int or value < 0:
        raise malformed("timestampNanos is no whole number")
    return value
