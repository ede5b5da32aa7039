"""Deterministic CBOR as the evidence format allows it (docs/evidence.md section 3; RFC 8949 section 4.2).

Allowed: integers of major types 0 and 1, finite floats in their shortest form, text, bytes, arrays, maps with integer
keys, false, true, null. Everything else is refused while it is being read: tags are never interpreted, so no bomb
behind one is ever opened. cbor2 alone is not enough: it takes duplicate keys, trailing bytes, longer-than-needed
integers and ``True`` as a key.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import cbor2

from agent.errors import EvidenceError

MAX_DEPTH = 8  # arrays and maps; the outermost is 1

# Every tag that cbor2 would turn into something else. The hooks run before what a tag encloses is read.
BUILT_IN_TAGS = (*range(6), *range(21, 38), 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_SCALARS = frozenset({int, str, bytes, bool, type(None)})


def _refuse(*_: object) -> NoReturn:
    raise EvidenceError("tags are not allowed")


_NO_TAGS = dict.fromkeys(BUILT_IN_TAGS, _refuse)


def encode(item: Any) -> bytes:
    """The one encoding of ``item``, which must hold nothing but what the format allows (maps: small non-negative
    keys).
    """
    return cbor2.dumps(item, canonical=True)


def decode(data: bytes) -> Any:
    """The item that ``data`` is the one allowed encoding of: int, float, str, bytes, bool, None, list, dict with int
    keys.

    Raises EvidenceError for anything else, trailing bytes included. The caller bounds the length.
    """
    try:
        item = cbor2.loads(
            data,
            tag_hook=_refuse,
            semantic_decoders=_NO_TAGS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
        _check(item, 1)
        same = encode(item) == data
    except (cbor2.CBORError, ValueError, RecursionError, OverflowError) as error:
        raise EvidenceError(f"not deterministic CBOR: {error}") from None
    if not same:
        raise EvidenceError("not deterministic CBOR: not the shortest or only form, or followed by other bytes")
    return item


def _check(item: Any, depth: int) -> None:
    """Refuse what the encoding itself cannot rule out: simple values, NaN, infinities, -0.0, other keys, one level
    too many.
    """
    kind = type(item)
    if kind is list:
        if depth > MAX_DEPTH:
            raise EvidenceError(f"nested deeper than {MAX_DEPTH}")
        if not _SCALARS.issuperset(map(type, item)):  # columns of integers pass here at C speed
            for each in item:
                _check(each, depth + 1)
    elif kind is dict:
        if depth > MAX_DEPTH:
            raise EvidenceError(f"nested deeper than {MAX_DEPTH}")
        for key, value in item.items():
            if type(key) is not int:  # True == 1 == 1.0
                raise EvidenceError("a map key that is not an integer")
            _check(value, depth + 1)
    elif kind is float:
        if not math.isfinite(item):
            raise EvidenceError("NaN and infinities are not allowed")
        if item == 0 and math.copysign(1, item) < 0:
            raise EvidenceError("-0.0 is not allowed")
    elif kind not in _SCALARS:
        raise EvidenceError("undefined and simple values are not allowed")
