"""The registry of DIDs (ERC-1056): what its log says about one identity.

The registry stores almost nothing; each change is an entry in the chain's log, and names the block of the change
before. ``gap`` proves by that list that no entry is missing. ``identity_at`` derives owner and keys:

- All entries of a block count, in their order. Energy Web's resolver reads the first of a block only: a key whose
  entry is another one is used here, and remarked on.
- The newest entry of a key's tag stands, also one that has expired or takes a value back.
- An owner change counts. What its former owner signs with proves nothing any more, unless the new owner publishes that
  key again. An identity without an owner has no keys.
- A value that cannot be read is lost alone. Delegates give no key, for they are addresses.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent.evidence.keccak import address_of, checksum_address
from agent.transports.ddhub.keys.participant import SIGNATURE_TAG, TAGS, ParticipantKeys, Remark, judged, public_key

OWNER_CHANGED = "0x38a5a6e68f30ed1ab45860a4afb34bcb2fc00f22ca462d249b8a8d40cda6f7a3"
DELEGATE_CHANGED = "0x5a5084339536bcab65f20799fcc58724588145ca054bd2be626174b27ba156f7"
ATTRIBUTE_CHANGED = "0x18ab6b2ae3d64306c00ce663125f2bd680e441a098de1635bd7ad8b0d44965e4"
_KEY_NAME = re.compile(r"did/pub/(\w+)/(\w+)(?:/\w+)?", re.ASCII)
_NOBODY = bytes(20)
_ALONE = "its owner has to publish it again, in a block of its own"


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of the log. ``index``: its place in the block; ``previous``: the block of the change before, 0: none."""

    block: int
    index: int
    previous: int

    @property
    def place(self) -> tuple[int, int]:
        """In the chain."""
        return self.block, self.index


@dataclass(frozen=True, slots=True)
class AttributeChanged(Event):
    """``valid_to``: s since 1970; 0: taken back."""

    name: str
    value: bytes
    valid_to: int


@dataclass(frozen=True, slots=True)
class OwnerChanged(Event):
    """``owner``: the address of the new one."""

    owner: bytes


@dataclass(frozen=True, slots=True)
class DelegateChanged(Event):
    """Somebody may act for the identity until ``valid_to``."""

    delegate: bytes
    valid_to: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What the registry says of an identity at one time. ``owner``: who may change it."""

    address: bytes
    owner: bytes
    keys: ParticipantKeys
    others: frozenset[str]  # further keys that sign for it (did/pub/Secp256k1/veriKey), as 0x04...

    @property
    def owner_by_contract(self) -> bytes:
        """What the contract's ``identityOwner`` must say: for it an identity that was given up is its own again."""
        return self.address if self.owner == _NOBODY else self.owner

    def signs(self, key: str) -> bool:
        """Whether what this key (``0x04...``) proves counts as said by the identity to the Data Hub: it is the owner's,
        or one that the owner published.
        """
        return (
            key in (self.keys.signature, *self.others)
            or address_of(bytes.fromhex(key.removeprefix("0x"))) == self.owner
        )


def decode(log: Any, *, registry: str, address: bytes) -> Event | None:
    """An entry as JSON-RPC gives it (``eth_getLogs``); None for one of another kind. Raises ValueError if it is no
    entry of this contract about this identity.
    """
    if not isinstance(log, dict):
        raise ValueError("an entry of the log is no object")
    topics = log.get("topics")
    if str(log.get("address")).lower() != registry.lower() or not isinstance(topics, list):
        raise ValueError("an entry of the log is of another contract")
    if len(topics) != 2 or _hex(topics[1]) != address.rjust(32, b"\0"):
        raise ValueError("an entry of the log is about somebody else")
    if log.get("removed"):
        raise ValueError("an entry of the log was taken back by a fork of the chain")
    block, index, data = quantity(log.get("blockNumber")), quantity(log.get("logIndex")), _hex(log.get("data"))
    topic = str(topics[0]).lower()
    if topic == OWNER_CHANGED:
        return OwnerChanged(block, index, _number(data, 1), owner=_word(data, 0)[12:])
    if topic == DELEGATE_CHANGED:
        return DelegateChanged(block, index, _number(data, 3), delegate=_word(data, 1)[12:], valid_to=_number(data, 2))
    if topic == ATTRIBUTE_CHANGED:
        name = _word(data, 0).rstrip(b"\0").decode("ascii", "backslashreplace")
        value = _bytes(data, _number(data, 1))
        return AttributeChanged(block, index, _number(data, 3), name=name, value=value, valid_to=_number(data, 2))
    return None


def gap(events: Iterable[Event], *, newest: int) -> int | None:
    """The highest block with a change of which no entry is there; None: there are all. ``newest``: the block of the
    last change as the contract knows it (``changed``), 0 if there was none.

    Raises ValueError if the list of changes does not lead back.
    """
    first = {event.block: event for event in _first_of_blocks(_ordered(events))}
    block = newest
    while block:
        if block not in first:
            return block
        if first[block].previous >= block:
            raise ValueError("the log's list of changes does not lead back")
        block = first[block].previous
    return None


def identity_at(events: Iterable[Event], *, address: bytes, now: float) -> Identity:
    """``events``: all of an identity, in any order; ``now``: s since 1970."""
    ordered = _ordered(events)
    remarks: list[Remark] = []
    changes = [event for event in ordered if isinstance(event, OwnerChanged)]
    owner = changes[-1].owner if changes else address
    if changes:
        remarks.append(_owner_remark(changes[-1]))
    newest, others = _published(ordered, now, remarks)
    if owner == _NOBODY:
        return Identity(address, owner, ParticipantKeys(None, None, tuple(remarks)), frozenset())
    seen = {event.place for event in _first_of_blocks(ordered)}
    texts = {}
    for tag, (event, text) in newest.items():
        if event.valid_to <= now:
            remarks.append(Remark(tag, _ended(event), "its owner has to publish it"))
            continue
        texts[tag] = text
        if event.place not in seen:
            what = f"block {event.block} has another change before it, and client gateways see only that"
            remarks.append(Remark(tag, what, _ALONE))
    keys = judged(texts, remarks)
    if keys.signature is not None and _is_of_former_owner(keys.signature, newest[SIGNATURE_TAG][0], changes, address):
        what = "it is the key of a former owner, published before the owner changed"
        remark = Remark(SIGNATURE_TAG, what, "the new owner has to publish a signature key")
        keys = ParticipantKeys(None, keys.encryption, (*keys.remarks, remark))
    return Identity(address, owner, keys, frozenset(others))


def _published(
    events: Sequence[Event], now: float, remarks: list[Remark]
) -> tuple[dict[str, tuple[AttributeChanged, str]], set[str]]:
    """The newest entry of each of our tags with its text, and the other keys that sign now."""
    newest: dict[str, tuple[AttributeChanged, str]] = {}
    others: dict[str, AttributeChanged] = {}
    unread: AttributeChanged | None = None  # the last one: an owner may write as many as he likes
    for event in events:
        if not isinstance(event, AttributeChanged) or (match := _KEY_NAME.fullmatch(event.name)) is None:
            continue
        tag, text = _named(event.value)
        if tag in TAGS:
            newest[tag] = event, text
            continue
        if match[1].lower() == "rsa" and tag is None and event.valid_to > now:
            unread = event
        if (match[1], match[2]) == ("Secp256k1", "veriKey"):
            key = public_key(text) or public_key(event.value)
            if key is not None:
                others[key] = event
    if unread is not None:
        what = f"the attribute {unread.name} in block {unread.block} cannot be read"
        remarks.append(Remark("", what, "if it was to be a key of the Data Hub, its owner has to publish it again"))
    return newest, {key for key, event in others.items() if event.valid_to > now}


def _named(value: bytes) -> tuple[str | None, str]:
    """Tag and key in a value as Energy Web writes it; (None, "") if it is something else, such as a key itself."""
    try:
        entry = json.loads(value.decode())
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(entry, dict):
        return None, ""
    tag, key = entry.get("tag"), entry.get("publicKey")
    return (tag, key) if isinstance(tag, str) and isinstance(key, str) else (None, "")


def _is_of_former_owner(key: str, published: AttributeChanged, changes: Sequence[OwnerChanged], address: bytes) -> bool:
    mine = address_of(bytes.fromhex(key.removeprefix("0x")))
    former = {address, *(change.owner for change in changes[:-1])}
    later = any(change.place > published.place for change in changes)
    return bool(changes) and later and mine in former and mine != changes[-1].owner


def _ordered(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.place)


def _first_of_blocks(ordered: Sequence[Event]) -> Iterator[Event]:
    block = None
    for event in ordered:
        if event.block != block:
            block = event.block
            yield event


def _ended(event: AttributeChanged) -> str:
    if event.valid_to == 0:
        return f"it was taken back in block {event.block}"
    return f"it has expired: {datetime.fromtimestamp(event.valid_to, UTC):%Y-%m-%d}"


def _owner_remark(change: OwnerChanged) -> Remark:
    if change.owner == _NOBODY:
        return Remark("", f"the DID was given up in block {change.block}", "its owner has to say which DID is used now")
    what = f"the DID's owner changed in block {change.block}, to {checksum_address(change.owner)}"
    return Remark("", what, "client gateways do not notice; is it what was meant?")


# ---- JSON-RPC and ABI -------------------------------------------------------------------------------------------


def quantity(value: Any) -> int:
    """A number as JSON-RPC writes it. Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"0x[0-9A-Fa-f]{1,64}", value):
        raise ValueError("a number of the chain is none")
    return int(value, 16)


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("bytes of the chain are no hex digits")
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        raise ValueError("bytes of the chain are no hex digits") from None


def _word(data: bytes, index: int) -> bytes:
    word = data[32 * index : 32 * index + 32]
    if len(word) < 32:
        raise ValueError("an entry of the log is too short")
    return word


def _number(data: bytes, index: int) -> int:
    return int.from_bytes(_word(data, index))


def _bytes(data: bytes, offset: int) -> bytes:
    length = int.from_bytes(data[offset : offset + 32])
    value = data[offset + 32 : offset + 32 + length]
    if offset + 32 > len(data) or len(value) < length:
        raise ValueError("an entry of the log is too short")
    return value
