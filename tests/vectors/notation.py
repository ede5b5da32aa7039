"""CBOR's diagnostic notation (RFC 8949 section 8) of any bytes, also of those that evidence refuses.

A number is followed by _0 to _3 where its head is longer than it need be; what cannot be read stands as ``cut``.
"""

from __future__ import annotations

import json
import struct

SHORT = 12  # bytes that are text are shown so if there are more of them
LONG = 48  # a string of more bytes is told by its length if they are alike,
VERY_LONG = 4096  # and of more than these in any case


class Cut(ValueError):
    """No whole item stands here."""


def notation(data: bytes) -> str:
    """One item; what stands behind it is shown as bytes."""
    try:
        text, end = _item(data, 0, 0)
    except Cut:
        return f"cut h'{data.hex()}'" if len(data) <= LONG else f"cut ({len(data)} bytes)"
    return text + (f" and h'{data[end:].hex()}' behind it" if end < len(data) else "")


def _take(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise Cut
    return data[at : at + size]


def _item(data: bytes, at: int, depth: int) -> tuple[str, int]:
    if at >= len(data) or depth > 40:
        raise Cut
    major, info = data[at] >> 5, data[at] & 31
    if 28 <= info <= 30 or (info == 31 and major not in {2, 3, 4, 5}):
        raise Cut
    size = 0 if info < 24 or info == 31 else 1 << info - 24
    argument = int.from_bytes(_take(data, at + 1, size), "big") if size else info
    longer = f"_{info - 24}" if size and argument < (24 if size == 1 else 1 << 4 * size) else ""
    content = data[at + 1 : at + 1 + size]
    at += 1 + size
    if info == 31:
        return _open_ended(data, at, major, depth)
    if major in {0, 1}:
        return f"{argument if major == 0 else -1 - argument}{longer}", at
    if major in {2, 3}:
        return _string(_take(data, at, argument), major) + longer, at + argument
    if major == 4:
        items, at = _items(data, at, argument, depth)
        return f"[{longer + ' ' if longer else ''}{', '.join(items)}]", at
    if major == 5:
        items, at = _items(data, at, 2 * argument, depth)
        return f"{{{longer + ' ' if longer else ''}{_paired(items)}}}", at
    if major == 6:
        inner, at = _item(data, at, depth + 1)
        return f"{argument}{longer}({inner})", at
    if size > 1:
        return _float(content), at
    return {20: "false", 21: "true", 22: "null", 23: "undefined"}.get(argument, f"simple({argument})") + longer, at


def _items(data: bytes, at: int, count: int, depth: int) -> tuple[list[str], int]:
    items = []
    for _ in range(count):
        text, at = _item(data, at, depth + 1)
        items.append(text)
    return items, at


def _paired(items: list[str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in zip(items[::2], items[1::2], strict=True))


def _open_ended(data: bytes, at: int, major: int, depth: int) -> tuple[str, int]:
    items = []
    while _take(data, at, 1) != b"\xff":
        text, at = _item(data, at, depth + 1)
        items.append(text)
    if major == 5 and len(items) % 2:
        raise Cut
    inside = _paired(items) if major == 5 else ", ".join(items)
    around = {2: "(_ {})", 3: "(_ {})", 4: "[_ {}]", 5: "{{_ {}}}"}[major]
    return around.format(inside), at + 1


def _string(content: bytes, major: int) -> str:
    if len(content) > VERY_LONG or (len(content) > LONG and len(set(content)) == 1):
        return f"{'text' if major == 3 else 'bytes'}({len(content)})"
    if major == 2:
        plain = len(content) > SHORT and all(32 <= byte < 127 and byte not in b"'\\" for byte in content)
        return f"'{content.decode()}'" if plain else f"h'{content.hex()}'"
    try:
        return json.dumps(content.decode(), ensure_ascii=False)
    except UnicodeDecodeError:
        return f"not UTF-8 h'{content.hex()}'"


def _float(content: bytes) -> str:
    form = {2: ">e", 4: ">f", 8: ">d"}[len(content)]
    number = struct.unpack(form, content)[0]
    text = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(number), str(number))
    return text + (f"_{len(content) // 4 + 1}" if _fits(number, {4: ">e", 8: ">f"}.get(len(content))) else "")


def _fits(number: float, form: str | None) -> bool:
    """Whether a shorter form holds the number."""
    try:
        return form is not None and bool(struct.unpack(form, struct.pack(form, number))[0] == number)
    except OverflowError:
        return False
