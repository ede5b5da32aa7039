"""Shapes of decoded CBOR: each function returns the item if it has the shape and raises EvidenceError naming the
place if not.

``type(x) is`` and never isinstance: True is no integer here.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from operator import countOf
from typing import Any, TypeVar

from agent.errors import EvidenceError

T = TypeVar("T")


def integer(item: Any, place: str) -> int:
    """An integer of either sign."""
    if type(item) is not int:
        raise EvidenceError(f"{place}: expected an integer")
    return item


def uint(item: Any, place: str) -> int:
    """An integer from 0."""
    if type(item) is not int or item < 0:
        raise EvidenceError(f"{place}: expected an unsigned integer")
    return item


def positive(item: Any, place: str) -> int:
    """An integer from 1."""
    if type(item) is not int or item < 1:
        raise EvidenceError(f"{place}: expected an integer from 1")
    return item


def text(item: Any, place: str) -> str:
    """Text."""
    if type(item) is not str:
        raise EvidenceError(f"{place}: expected text")
    return item


def digest(item: Any, size: int, place: str) -> bytes:
    """Bytes of this length."""
    if type(item) is not bytes or len(item) != size:
        raise EvidenceError(f"{place}: expected {size} bytes")
    return item


def array(item: Any, place: str, size: int | None = None) -> list[Any]:
    """An array, of this length if one is given."""
    if type(item) is not list or (size is not None and len(item) != size):
        raise EvidenceError(f"{place}: expected an array" + (f" of {size}" if size is not None else ""))
    return item


def maybe(shape: Callable[[Any, str], T], item: Any, place: str) -> T | None:
    """Null, or the shape."""
    return None if item is None else shape(item, place)


def uints(item: Any, size: int, place: str) -> list[int]:
    """An array of unsigned integers, of this length; checked at C speed."""
    if type(item) is not list or len(item) != size or countOf(map(type, item), int) != size or (size and min(item) < 0):
        raise EvidenceError(f"{place}: expected {size} unsigned integers")
    return item


def known_keys(item: dict[int, Any], known: Set[int], place: str, unknown: list[str]) -> None:
    """Refuse unlisted keys below 16; name those from 16 in ``unknown``."""
    if item.keys() <= known:
        return
    for key in item.keys() - known:
        if key < 16:
            raise EvidenceError(f"{place}: key {key} is not allowed")
        unknown.append(f"{place}: key {key}")
