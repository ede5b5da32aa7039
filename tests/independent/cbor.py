"""A strict reader of the CBOR that evidence allows, written by hand from RFC 8949 and docs/evidence.md section 3."""

from __future__ import annotations

import struct
from typing import Any

DEEPEST = 8  # arrays and maps within each other; the outermost is 1
FLOATS = {25: ("e", 2), 26: ("f", 4), 27: ("d", 8)}  # additional information: how struct calls it, its bytes


class Refused(ValueError):
    """These bytes are not evidence; the text says why and where."""


def read(data: bytes) -> Any:
    """The one item that ``data`` is, in deterministic encoding (RFC 8949 4.2.1). Raises Refused."""
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise Refused(f"byte {end}: {len(data) - end} bytes after the item")
    return value


def head(data: bytes, at: int, *, shortest: bool = True) -> tuple[int, int, int]:
    """Major type and argument of the head at ``at``, and where it ends. Raises Refused; ``shortest``: of longer forms,
    too.
    """
    if at >= len(data):
        raise Refused(f"byte {at}: cut off")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        return major, info, at
    if info > 27:
        raise Refused(f"byte {at - 1}: {'indefinite length or break' if info == 31 else 'reserved head'}")
    size = 1 << info - 24
    argument = int.from_bytes(take(data, at, size), "big")
    if shortest and major != 7 and argument < (24 if size == 1 else 1 << 4 * size):
        raise Refused(f"byte {at - 1}: a shorter head would do")
    return major, argument, at + size


def take(data: bytes, at: int, size: int) -> bytes:
    """The ``size`` bytes at ``at``. Raises Refused if there are fewer."""
    if size > len(data) - at:
        raise Refused(f"byte {at}: cut off")
    return data[at : at + size]


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The item at ``at`` inside ``depth`` arrays and maps, and where it ends."""
    start = at
    major, argument, at = head(data, at)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in {2, 3}:
        content = take(data, at, argument)
        return (content if major == 2 else _text(content, at)), at + argument
    if major in {4, 5}:
        if depth == DEEPEST:
            raise Refused(f"byte {start}: nested deeper than {DEEPEST}")
        return (_array if major == 4 else _map)(data, at, depth + 1, argument)
    if major == 6:
        raise Refused(f"byte {start}: a tag")
    return _simple(data, start), at


def _text(content: bytes, at: int) -> str:
    try:
        return content.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise Refused(f"byte {at + error.start}: not UTF-8") from None


def _array(data: bytes, at: int, depth: int, size: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(size):  # ends with the data, whatever size claims
        value, at = _item(data, at, depth)
        items.append(value)
    return items, at


def _map(data: bytes, at: int, depth: int, size: int) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    before = b""
    for _ in range(size):
        start = at
        if head(data, at)[0] > 1:
            raise Refused(f"byte {at}: a key that is not an integer")
        key, at = _item(data, at, depth)
        if data[start:at] <= before:
            raise Refused(f"byte {start}: keys twice or out of order")
        before = data[start:at]
        fields[key], at = _item(data, at, depth)
    return fields, at


def _simple(data: bytes, at: int) -> float | bool | None:
    """False, true, null or a float: the item of major type 7 at ``at``, whose head is known to be whole."""
    info = data[at] & 31
    if info in FLOATS:
        return _float(data, at, info)
    if info not in {20, 21, 22}:
        raise Refused(f"byte {at}: undefined or another simple value")
    return {20: False, 21: True, 22: None}[info]


def _float(data: bytes, at: int, info: int) -> float:
    form, size = FLOATS[info]
    content = data[at + 1 : at + 1 + size]
    number: float = struct.unpack(f">{form}", content)[0]
    if number - number != 0:
        raise Refused(f"byte {at}: not a finite number")
    if number == 0 and any(content):
        raise Refused(f"byte {at}: minus zero")
    if info > 25:
        shorter = ">e" if info == 26 else ">f"
        try:
            fits = struct.unpack(shorter, struct.pack(shorter, number))[0] == number
        except OverflowError:
            fits = False
        if fits:
            raise Refused(f"byte {at}: a shorter float would do")
    return number
