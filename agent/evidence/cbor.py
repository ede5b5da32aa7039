"""Deterministic CBOR as the evidence format allows it (docs/evidence.md section 3; RFC 8949 section 4.2).

Allowed: integers of major types 0 and 1, finite floats in their shortest form, text, bytes, arrays, maps with integer
keys, false, true, null. Heads that the format does not have are refused before anything is decoded: tags are never
interpreted, so no bomb behind one is ever opened. cbor2 alone is not enough: it takes duplicate keys, trailing bytes,
longer-than-needed integers and ``True`` as a key, and its canonical order of keys is that of RFC 7049.

A regular expression steps over the heads: most of a verifier's time would else be spent here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import cbor2

from agent.errors import EvidenceError

MAX_DEPTH = 8  # arrays and maps; the outermost is 1

# What items are made of: heads of integers, arrays and maps, each in its shortest form; false, true, null; strings of
# less than 24 bytes, and of 32, as digests are. Possessive: nothing is remembered of what was stepped over. Their order
# is that of least time: the engine sees by one byte that an alternative cannot begin here, unless that is a repetition.
_SHORT_STRINGS = b"|".join(rb"[\x%02x\x%02x].{%d}" % (0x40 + size, 0x60 + size, size) for size in range(1, 24))
_HEADS = (
    rb"[\x19\x39\x99\xb9][\x01-\xff].",
    rb"[\x00-\x17\x20-\x37\x40\x60\x80-\x97\xa0-\xb7\xf4-\xf6]++",
    rb"[\x18\x38\x98\xb8][\x18-\xff]",
    rb"[\x1a\x3a\x9a\xba](?!\x00\x00).{4}",
    rb"[\x1b\x3b\x9b\xbb](?!\x00{4}).{8}",
    rb"[\x58\x78]\x20.{32}",
    rb"(?=[\x41-\x57\x61-\x77])(?:%b)" % _SHORT_STRINGS,
)
# No -0.0, infinity, NaN. And no lookahead: where one fails in the last alternative that is tried, Python before 3.11.5
# (Debian 12 has 3.11.2) takes what it looked at for matched (https://github.com/python/cpython/issues/100061).
_FLOATS = (rb"\xf9[\x00-\x7b\x81-\xfb].", rb"\xf9\x80[\x01-\xff]", rb"\xfa.{4}", rb"\xfb.{8}")
_WITHOUT_FLOATS = re.compile(rb"(?:%b)*+" % b"|".join(_HEADS), re.DOTALL)
_WITH_FLOATS = re.compile(rb"(?:%b)*+" % b"|".join(_HEADS + _FLOATS), re.DOTALL)
_LONG_STRING = re.compile(rb"[\x58\x78]([\x18-\xff])|[\x59\x79]((?!\x00)..)|[\x5a\x7a]((?!\x00\x00).{4})", re.DOTALL)


# ---- encode -----------------------------------------------------------------------------------------------------


def encode(item: Any) -> bytes:
    """The one encoding of ``item``, which must hold nothing but what the format allows; the keys of each map must all
    have the same sign.
    """
    return cbor2.dumps(item, canonical=True)


def encode_any_keys(item: Any) -> bytes:
    """``encode`` for maps whose keys may be of both signs: the encoded keys in the order of their bytes (RFC 8949
    section 4.2.1), where cbor2 would put the shorter ones first.
    """
    return cbor2.dumps(item, canonical=True, encoders={dict: _encode_map})


def encode_integers(arrays: Sequence[Sequence[int]]) -> bytes:
    """An array of arrays of integers of up to 40 bits, all of one length. As ``encode``, which takes three times as
    long: cbor2 is slow with negative integers. Raises OverflowError for larger ones, TypeError for what is no number.
    """
    head = _head(4, len(arrays[0])) if arrays else b""
    return join([head + b"".join(map(_INTEGERS.__getitem__, each)) for each in arrays])


def encode_steps(firsts: Sequence[int], steps: bytes) -> bytes | None:
    """The same where all but the first integer of each array are signed bytes that CBOR writes as one byte, -24 to 23;
    else None. ``steps`` has the second of each array, then the third of each, and so on. Twice as fast.
    """
    if steps.translate(None, _SMALL):
        return None
    width = len(firsts)
    head, rest = _head(4, 1 + len(steps) // width), steps.translate(_FROM_SIGNED)
    return join([head + _INTEGERS[first] + rest[place::width] for place, first in enumerate(firsts)])


def join(items: Sequence[bytes]) -> bytes:
    """An array of items that are encoded."""
    return _head(4, len(items)) + b"".join(items)


def join_map(items: Mapping[int, bytes]) -> bytes:
    """A map of items that are encoded; its keys are in order."""
    return _head(5, len(items)) + b"".join([encode(key) + item for key, item in items.items()])


def _head(major: int, argument: int) -> bytes:
    encoded = encode(argument)
    return bytes((major << 5 | encoded[0],)) + encoded[1:]


class _Encodings(dict[int, bytes]):
    """Encodings of integers, those of small ones at hand."""

    def __missing__(self, number: int) -> bytes:
        major, argument = (0, number) if number >= 0 else (0x20, ~number)
        if argument < 1 << 16:
            return _PACK_16(major | 25, argument)
        if argument < 1 << 32:
            return _PACK_32(major | 26, argument)
        if argument < 1 << 40:
            return _PACK_64(major | 27, argument)
        raise OverflowError(f"{number} has more than 40 bits")


_PACK_16, _PACK_32, _PACK_64 = (struct.Struct(f">B{letter}").pack for letter in "HIQ")
_INTEGERS = _Encodings({number: encode(number) for number in range(-256, 256)})
_SMALL = bytes([*range(24), *range(232, 256)])  # -24 to 23 as signed bytes
_FROM_SIGNED = bytes.maketrans(_SMALL, bytes([*range(24), *range(0x37, 0x1F, -1)]))


def _encode_map(encoder: cbor2.CBOREncoder, item: dict[int, Any]) -> None:
    encoder.encode_length(5, len(item))
    for key in sorted(item, key=_order):
        encoder.encode(key)
        encoder.encode(item[key])


def _order(key: int) -> tuple[bool, int]:
    """Sorts keys as their encodings sort: major type 0 before 1, each by its argument."""
    return key < 0, ~key if key < 0 else key


# ---- decode -----------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Any:
    """The item that ``data`` is the one allowed encoding of: int, float, str, bytes, bool, None, list, dict with int
    keys.

    Raises EvidenceError for anything else, trailing bytes included. The caller bounds the length.
    """
    floats = _scan(data)
    try:
        # In an array with something that it cannot hold itself: what follows the item would take that one's place.
        item, end = _load(b"\x82%b\xf7" % data)
    except (cbor2.CBORError, ValueError, RecursionError, OverflowError) as error:
        raise EvidenceError(f"not deterministic CBOR: {error.__cause__ or error}") from None
    if end is not cbor2.undefined:
        raise EvidenceError("not deterministic CBOR: followed by other bytes")
    if floats and encode_any_keys(item) != data:
        raise EvidenceError("not deterministic CBOR: a float that is not in its shortest form")
    return item


def _with_good_keys(item: Mapping[Any, Any], _: bool) -> Mapping[Any, Any]:
    """The map, if its keys are integers in order. Raises ValueError."""
    last, ascending = -1, True
    for key in item:
        if type(key) is not int:  # True == 1 == 1.0
            raise ValueError("a map key that is not an integer")
        ascending = ascending and key > last
        last = key
    if not ascending and list(item) != sorted(item, key=_order):
        raise ValueError("map keys are not in order")
    return item


def _loads(data: bytes, depth: int) -> Any:
    return cbor2.loads(
        data, object_hook=_with_good_keys, max_depth=depth, allow_indefinite=False, allow_duplicate_keys=False
    )


def _load(data: bytes) -> Any:
    """cbor2 lets an empty array or map be one level too deep: only what is not that deep needs no look at its depth.
    Of ``data`` the outermost level does not count.
    """
    try:
        return _loads(data, MAX_DEPTH)
    except cbor2.CBORDecodeError:
        item = _loads(data, MAX_DEPTH + 1)
    level, depth = item, 0
    while inner := [each.values() if type(each) is dict else each for each in level if type(each) in (dict, list)]:
        level, depth = list(chain.from_iterable(inner)), depth + 1
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return item


def _scan(data: bytes) -> bool:
    """Step over the heads, wherever they stand, and strings. Raises EvidenceError at one that is not allowed. Whether
    there are floats; that they are the shortest is not told.
    """
    heads, at = _WITHOUT_FLOATS, 0
    while (at := heads.match(data, at).end()) < len(data):  # type: ignore[union-attr]  # it matches nothing, too
        string = _LONG_STRING.match(data, at)
        if string is not None:
            at = string.end() + int.from_bytes(string[string.lastindex or 0], "big")
        elif data[at] in b"\xf9\xfa\xfb" and heads is _WITHOUT_FLOATS:
            heads = _WITH_FLOATS
        else:
            raise EvidenceError(f"not deterministic CBOR: {_fault(data[at])}")
    return heads is _WITH_FLOATS


def _fault(lead: int) -> str:
    """What is wrong with a head that begins with this byte."""
    if lead >> 5 == 6:
        return "tags are not allowed"
    if lead in b"\xf9\xfa\xfb":
        return "NaN, infinity, -0.0 or a float cut short"
    if lead >> 5 == 7:
        return "undefined and simple values are not allowed"
    return "a head that is not the shortest form, of indefinite length or cut short"
