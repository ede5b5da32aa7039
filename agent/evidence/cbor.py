"""Deterministic CBOR as the evidence format allows it (docs/evidence.md section 3; RFC 8949 section 4.2).

Allowed: integers of major types 0 and 1, finite floats in their shortest form, text, bytes, arrays, maps with integer
keys, false, true, null. Everything else is refused while it is being read: tags are never interpreted, so no bomb
behind one is ever opened. cbor2 alone is not enough: it takes duplicate keys, trailing bytes, longer-than-needed
integers and ``True`` as a key, and its canonical order of keys is that of RFC 7049.

Whether the bytes are the one allowed encoding of what they decode to is told by their number: a form that is not the
shortest is longer. That costs a third of encoding the item again, and most of a verifier's time is spent here.
"""

from __future__ import annotations

import io
import math
import threading
from bisect import bisect_left
from itertools import chain
from typing import Any, NoReturn

import cbor2

from agent.errors import EvidenceError

MAX_DEPTH = 8  # arrays and maps; the outermost is 1

# Every tag that cbor2 would turn into something else. The hooks run before what a tag encloses is read.
BUILT_IN_TAGS = (*range(6), *range(21, 38), 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_INTEGERS = frozenset({int})
_ARRAYS = frozenset({list})
_NESTING = frozenset({list, dict})
_SCALARS = frozenset({int, float, str, bytes, bool, type(None)})
_LONGER_FROM = ((24, 1), (1 << 8, 1), (1 << 16, 2), (1 << 32, 4))  # an argument of a head takes so many bytes more


def _refuse(*_: object) -> NoReturn:
    raise EvidenceError("tags are not allowed")


_NO_TAGS = dict.fromkeys(BUILT_IN_TAGS, _refuse)
_decoders = threading.local()  # making a decoder costs more than decoding a small record with it


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
    decoder: cbor2.CBORDecoder | None = getattr(_decoders, "decoder", None)
    if decoder is None:
        decoder = _decoders.decoder = _new_decoder()
    try:
        decoder.fp = io.BytesIO(data)
        item = decoder.decode()
        if _size(item) != len(data):
            raise EvidenceError("not deterministic CBOR: not the shortest form, or followed by other bytes")
    except BaseException as error:
        del _decoders.decoder  # it may still hold bytes of this item
        if isinstance(error, cbor2.CBORError | ValueError | RecursionError | OverflowError):
            raise EvidenceError(f"not deterministic CBOR: {error}") from None
        raise
    return item


def _new_decoder() -> cbor2.CBORDecoder:
    return cbor2.CBORDecoder(
        io.BytesIO(),
        tag_hook=_refuse,
        semantic_decoders=_NO_TAGS,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
    )


def _size(item: Any) -> int:
    """Bytes of the one allowed encoding of what was decoded. Raises EvidenceError for what the format does not allow:
    simple values, NaN, infinities, -0.0, other keys or another order of keys, one level too many.
    """
    heads: list[int] = []  # integers, and lengths: what a head's argument says
    size = _walk(item, 1, heads)
    heads.sort()
    for bound, more in _LONGER_FROM:
        if heads and heads[-1] >= bound:
            size += more * (len(heads) - bisect_left(heads, bound))
        if heads and heads[0] < -bound:
            size += more * bisect_left(heads, -bound)
    return size


def _walk(item: Any, depth: int, heads: list[int]) -> int:
    """Bytes of an item but for those of its heads' arguments, which are added to ``heads``.

    Columns of numbers, and arrays of such, pass at C speed.
    """
    kind = type(item)
    if kind is int:
        heads.append(item)
        return 1
    if kind is bytes:
        heads.append(len(item))
        return 1 + len(item)
    if kind is list:
        return _walk_array(item, depth, heads)
    if kind is dict:
        return _walk_map(item, depth, heads)
    return 1 + _behind_heads([item], {kind}, heads)


def _walk_array(item: list[Any], depth: int, heads: list[int]) -> int:
    if depth > MAX_DEPTH:
        raise EvidenceError(f"nested deeper than {MAX_DEPTH}")
    heads.append(len(item))
    kinds = set(map(type, item))
    if kinds == _INTEGERS:
        heads += item
        return 1 + len(item)
    if kinds == _ARRAYS and depth < MAX_DEPTH:
        inside = list(chain.from_iterable(item))
        if set(map(type, inside)) == _INTEGERS:
            heads += map(len, item)
            heads += inside
            return 1 + len(item) + len(inside)
    if kinds.isdisjoint(_NESTING):
        return 1 + len(item) + _behind_heads(item, kinds, heads)
    return 1 + sum([_walk(each, depth + 1, heads) for each in item])


def _walk_map(item: dict[Any, Any], depth: int, heads: list[int]) -> int:
    if depth > MAX_DEPTH:
        raise EvidenceError(f"nested deeper than {MAX_DEPTH}")
    keys = list(item)
    if keys and set(map(type, keys)) != _INTEGERS:  # True == 1 == 1.0
        raise EvidenceError("a map key that is not an integer")
    ascending = bool(keys) and keys[0] >= 0 and keys == sorted(keys)
    if not ascending and keys != sorted(keys, key=_order):
        raise EvidenceError("map keys are not in order")
    heads.append(len(keys))
    heads += keys
    return 1 + len(keys) + sum([_walk(each, depth + 1, heads) for each in item.values()])


def _behind_heads(items: list[Any], kinds: set[type], heads: list[int]) -> int:
    """Bytes behind the heads of items that are neither arrays nor maps."""
    if not kinds <= _SCALARS:
        raise EvidenceError("undefined and simple values are not allowed")
    size = 0
    if int in kinds:
        heads += [each for each in items if type(each) is int]
    if bytes in kinds:
        lengths = [len(each) for each in items if type(each) is bytes]
        size += sum(lengths)
        heads += lengths
    if str in kinds:
        lengths = [len(each.encode()) for each in items if type(each) is str]
        size += sum(lengths)
        heads += lengths
    if float in kinds:
        floats = [each for each in items if type(each) is float]
        if not all(map(math.isfinite, floats)):
            raise EvidenceError("NaN and infinities are not allowed")
        if any(math.copysign(1, each) < 0 for each in floats if each == 0):
            raise EvidenceError("-0.0 is not allowed")
        size += len(b"".join(cbor2.dumps(each, canonical=True) for each in floats)) - len(floats)
    return size
