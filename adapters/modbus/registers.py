"""Registers as numbers: the types, and one precompiled struct per request.

Pure. A register is 16 bits, its high byte first on the wire; a value of several registers has its high word first
unless ``little_words``, and ``little_bytes`` swaps the two bytes within each register (CDAB, BADC and DCBA of the
vendors' manuals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from struct import Struct, unpack
from typing import Any

from agent.model import ValueType


@dataclass(frozen=True, slots=True)
class NumberType:
    """How a number lies in registers: its code in struct's language, and how many registers it fills."""

    code: str
    count: int
    value_type: ValueType = ValueType.INTEGER


NUMBER_TYPES = {
    "int16": NumberType("h", 1),
    "uint16": NumberType("H", 1),
    "enum16": NumberType("H", 1),
    "int32": NumberType("i", 2),
    "uint32": NumberType("I", 2),
    "int64": NumberType("q", 4),
    "uint64": NumberType("Q", 4),
    "float32": NumberType("f", 2, ValueType.FLOAT),
    "float64": NumberType("d", 4, ValueType.FLOAT),
}


@dataclass(frozen=True, slots=True, order=True)
class Field:
    """A number within a block of registers, ``offset`` registers from its start."""

    offset: int
    type: str
    little_words: bool = False
    little_bytes: bool = False

    @property
    def end(self) -> int:
        """The offset behind the last register."""
        return self.offset + NUMBER_TYPES[self.type].count


class Block:
    """The fields of one request's answer, unpacked together.

    Fields in rising order, apart from each other and high byte first need one struct with holes. Others are brought
    into that form by one permutation of the block's bytes, made once: it can also repeat bytes, for fields that
    overlap.
    """

    __slots__ = ("_permute", "_unpack", "count", "width")

    def __init__(self, count: int, fields: Sequence[Field]) -> None:
        self.count = count
        self.width = len(fields)
        self._permute: Callable[[bytes], tuple[int, ...]] | None = None
        code = ">"
        end = 0
        plain = True
        for field in fields:
            plain = plain and field.offset >= end and not field.little_bytes
            plain = plain and not (field.little_words and NUMBER_TYPES[field.type].count > 1)
            code += f"{(field.offset - end) * 2}x" * (field.offset > end) + NUMBER_TYPES[field.type].code
            end = field.end
        if plain:
            code += f"{(count - end) * 2}x" * (count > end)
        else:
            code = ">" + "".join(NUMBER_TYPES[field.type].code for field in fields)
            self._permute = itemgetter(*(byte for field in fields for byte in _bytes_of(field)))
        self._unpack = Struct(code).unpack

    def values(self, data: bytes) -> tuple[Any, ...]:
        """The numbers, in the order of the fields; ``data`` is the block's registers as they travelled."""
        return self._unpack(data if self._permute is None else bytes(self._permute(data)))


def words(data: bytes) -> list[int]:
    """Registers as they travelled, each as the number that its two bytes are."""
    return list(unpack(f">{len(data) // 2}H", data))


def _bytes_of(field: Field) -> list[int]:
    """The places of a field's bytes in the block, most significant first."""
    words = range(field.offset, field.end)
    swapped = int(field.little_bytes)
    ordered = reversed(words) if field.little_words else words
    return [2 * word + place for word in ordered for place in (swapped, 1 - swapped)]
