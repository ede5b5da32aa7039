"""The text that a message carries: ``{"envelopes":["<base64url>",...],"records":[...]}`` (docs/evidence.md, section 7).

Pure, both ways. ``records`` (SenML, for readers without a verifier) is only there if the topic's schema asks for it;
what it is worth says records.py. Sizes are known beforehand: ``clear_size`` is the length of what ``encode`` will
write, which is ASCII throughout, and ``encrypted_size`` what becomes of that, so a message is filled to a limit exactly
and written once. Who sends may be anybody: ``decode`` is bounded, and one envelope that is none loses no other.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from agent.errors import EvidenceError
from agent.evidence.envelope import MAX_ENVELOPE

MOST_TEXT = 8 << 20  # characters: what the broker's streams hold at most
_BLOCK = 16  # of AES
_HEAD = 2 * _BLOCK + 1  # the initialisation vector in hex and a colon
_START, _END, _RECORDS = '{"envelopes":[', "]}", '],"records":['
_ENVELOPE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED_DASH = re.compile(r"&#(?:0*45|[xX]0*2[dD]);")
_MOST_CHARACTERS = -(-MAX_ENVELOPE * 4 // 3)  # of an envelope in base64url
_MOST_DIGITS = 100  # of a number in records; what senml.py writes has 80 at most
_MOST_VALUES = 600_000  # in a text: some 70 MB of memory; a full one of readings has half as many


@dataclass(frozen=True, slots=True)
class Payload:
    """What a message's text holds.

    ``envelopes`` are not verified. ``refused``: what stood among them and is none, told by its place. ``records``: as
    they stand, of whatever shape, numbers as Decimal; None if there are none. ``altered``: on the way ``-`` was written
    as an entity, which has been undone; then the signature over the text is not the sender's any more, those of the
    records are.
    """

    envelopes: tuple[bytes, ...]
    records: tuple[object, ...] | None = None
    altered: bool = False
    refused: tuple[EvidenceError, ...] = ()


def encode(envelopes: Sequence[bytes], records: Iterable[str] | None = None) -> str:
    """The text of a message. ``records``: SenML objects as ASCII JSON, of ``records.rendered``, or several of them with
    commas between.
    """
    items = ",".join(f'"{urlsafe_b64encode(each).decode().rstrip("=")}"' for each in envelopes)
    more = "" if records is None else _RECORDS + ",".join(records)
    return f"{_START}{items}{more}{_END}"


def envelope_share(size: int) -> int:
    """By how many characters a text grows with an envelope of ``size`` bytes behind another one."""
    return -(-size * 4 // 3) + 3  # quotes and a comma


def clear_size(envelopes: Iterable[int], records: Iterable[int] | None = None) -> int:
    """The length of the text of envelopes of these sizes (bytes) and SenML objects of these (characters).

    Behind the first envelope each adds its ``envelope_share``, behind the first object each its size and a comma.
    """
    size = len(_START) + len(_END) + max(0, sum(map(envelope_share, envelopes)) - 1)
    if records is not None:
        size += len(_RECORDS) + max(0, sum(each + 1 for each in records) - 1)
    return size


def encrypted_size(clear: int) -> int:
    """The length of a text of ``clear`` bytes once encrypted: initialisation vector, colon, padded blocks, in hex."""
    return _HEAD + 2 * _BLOCK * (clear // _BLOCK + 1)


def largest_clear(encrypted: int) -> int:
    """How long a text may be so that it has at most ``encrypted`` characters once encrypted; negative: none fits."""
    return (encrypted - _HEAD) // (2 * _BLOCK) * _BLOCK - 1


def largest_envelope(encrypted: int) -> int:
    """Bytes of the largest envelope whose text alone, with an empty list of records, has at most ``encrypted``
    characters once encrypted.
    """
    clear = largest_clear(encrypted)
    size = max(0, (clear - clear_size([0], [])) * 3 // 4)
    while size and clear_size([size], []) > clear:
        size -= 1
    return size


def decode(text: str) -> Payload:
    """What is in a text. Raises EvidenceError if it is no such text at all."""
    if not text.startswith("{"):
        raise EvidenceError("payload: expected a text that begins with {")
    if len(text) > MOST_TEXT:
        raise EvidenceError(f"payload: larger than {MOST_TEXT} characters")
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise EvidenceError(f"payload: more than {_MOST_VALUES} values")
    members = _parsed(text)
    listed = members.get("envelopes")
    if not isinstance(listed, list) or not listed:
        raise EvidenceError('payload: expected "envelopes", a list that is not empty')
    envelopes: list[bytes] = []
    refused: list[EvidenceError] = []
    altered = False
    for place, item in enumerate(listed, start=1):
        plain = item
        if isinstance(item, str) and "&" in item and len(item) <= 6 * _MOST_CHARACTERS:
            plain = _ESCAPED_DASH.sub("-", item)
        envelope = _from_base64url(plain)
        if envelope is None:
            refused.append(EvidenceError(f"payload: envelope {place} of {len(listed)} is no base64url, or too large"))
        else:
            envelopes.append(envelope)
            altered |= plain is not item
    return Payload(tuple(envelopes), _records(members), altered, tuple(refused))


def _records(members: Mapping[str, Any]) -> tuple[object, ...] | None:
    if "records" not in members:
        return None
    listed = members["records"]
    return tuple(listed) if isinstance(listed, list) else (listed,)


def _from_base64url(item: object) -> bytes | None:
    """Without padding, and only as ``encode`` writes it (RFC 4648, sections 3.2, 3.5)."""
    if not isinstance(item, str) or len(item) > _MOST_CHARACTERS or not _ENVELOPE.fullmatch(item):
        return None
    try:
        content = urlsafe_b64decode(item + "=" * (-len(item) % 4))
    except ValueError:
        return None
    end = urlsafe_b64encode(content[-(len(content) % 3 or 3) :]).decode().rstrip("=")
    return content if item.endswith(end) else None


def _parsed(text: str) -> dict[str, Any]:
    try:
        members = json.loads(
            text, object_pairs_hook=_once, parse_int=_number, parse_float=_number, parse_constant=_no_number
        )
    except RecursionError:
        raise EvidenceError("payload: nested too deeply") from None
    except ValueError as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise EvidenceError(f"payload: not JSON{where}") from None
    assert isinstance(members, dict), "it begins with {"
    return members


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # who reads the first and who reads the last would see different things
        raise EvidenceError("payload: a member of an object is there twice")
    return members


def _number(digits: str) -> Decimal:
    if len(digits) > _MOST_DIGITS:
        raise EvidenceError(f"payload: a number of more than {_MOST_DIGITS} digits")
    try:
        return Decimal(digits)
    except InvalidOperation:  # of the exponent
        raise EvidenceError("payload: a number beyond what a decimal can be") from None


def _no_number(word: str) -> NoReturn:
    raise EvidenceError(f"payload: {word} is no JSON")
