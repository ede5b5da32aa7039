"""A point that is described by hand: its register, type and scale; and the rules of text that Modbus's models share.

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adapters.modbus.addresses import AT_REMEDY, NOT_YET, register

_MOST_MULTIPLIER = 1 << 31  # so that 32-bit values stay within 64 bits


def _refuse(_: Any) -> None:
    raise ValueError(f"{NOT_YET}; remove it")


def _point_name(text: str) -> str:
    if not 1 <= len(text) <= 64 or not text.isprintable() or set(text) & set("/*?[]") or text != text.strip():
        remedy = "write 1 to 64 characters, none of them / * ? [ or ], without blanks around"
        raise ValueError(f'"{text[:80]}" cannot be the name of a point; {remedy}')
    return text


def _text(text: str) -> str:
    if not 1 <= len(text) <= 256 or not text.isprintable():
        raise ValueError("the text is empty, too long or not printable; write 1 to 256 characters on one line")
    return text


def _at(value: Any) -> Any:
    if isinstance(value, str):
        register(value, one_based=False)  # the form; which of the two counts holds is the device's to say
        return value
    raise ValueError(f"expected a register in quotes; {AT_REMEDY}")


def _scale(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number; write it like 0.1 or 10")
    multiplier, exponent = _decimal(value)
    if not multiplier or abs(multiplier) >= _MOST_MULTIPLIER or not -18 <= exponent <= 18:
        raise ValueError(f"{value} cannot be a scale; write a number with at most 9 digits, not 0, such as 0.1 or 10")
    return value


def _decimal(value: int | float) -> tuple[int, int]:
    """``value`` as multiplier x 10^exponent, exactly as it was written; (0, 0) for what is not finite."""
    number = Decimal(str(value))
    if not number.is_finite():
        return 0, 0
    sign, digits, exponent = number.normalize().as_tuple()
    multiplier = int("".join(map(str, digits)))
    return -multiplier if sign else multiplier, int(exponent)


def _range(value: Any) -> Any:
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or any(type(each) not in (int, float) or each != each for each in value):
        raise ValueError("expected two numbers; write the lowest and the highest good value, such as [0, 500e3]")
    if value[0] > value[1]:
        raise ValueError("the range is empty; write the lower number first")
    return tuple(value)


def _labels(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError('expected a table; write it like { 0 = "off", 1 = "run" }')
    labels: dict[int, str] = {}
    for number, label in value.items():
        if not re.fullmatch(r"-?[0-9]{1,19}", str(number), re.ASCII) or not isinstance(label, str):
            remedy = 'write whole numbers and their names, such as { 0 = "off" }'
            raise ValueError(f'"{str(number)[:40]}" does not name a value; {remedy}')
        labels[int(number)] = _text(label)
    return labels


NotYet = Annotated[None, BeforeValidator(_refuse)]
Order = Literal["big", "little"]
Text = Annotated[str, AfterValidator(_text)]


class Table(BaseModel):
    """A table: unknown keys are errors, nothing is converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModbusPoint(Table):
    """A point that is described by hand."""

    name: Annotated[str, AfterValidator(_point_name)]
    at: Annotated[str, BeforeValidator(_at)]
    type: Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "enum16"]
    scale: Annotated[int | float, BeforeValidator(_scale)] = 1
    unit: Text | None = None
    range: Annotated[tuple[int | float, int | float], BeforeValidator(_range)] | None = None
    counter: bool = False
    values: Annotated[dict[int, str], BeforeValidator(_labels)] = Field(default={})
    word_order: Order | None = None
    byte_order: Order | None = None
    report: NotYet = None

    @property
    def decimal_scale(self) -> tuple[int, int]:
        """The scale as multiplier x 10^exponent."""
        return _decimal(self.scale)
