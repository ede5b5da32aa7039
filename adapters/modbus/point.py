"""A point that is described by hand: its register, type and scale.

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from adapters.modbus.addresses import AT_REMEDY, register
from adapters.modbus.registers import NUMBER_TYPES
from agent.fields import Labels, NotYet, PointName, Problems, Range, Table, Text
from agent.model import ValueType

_MOST_MULTIPLIER = 1 << 31  # so that 32-bit values stay within 64 bits


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


Order = Literal["big", "little"]


class ModbusPoint(Table):
    """A point that is described by hand."""

    name: PointName
    at: Annotated[str, BeforeValidator(_at)]
    type: Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "enum16"]
    scale: Annotated[int | float, BeforeValidator(_scale)] = 1
    unit: Text | None = None
    range: Range | None = None
    counter: bool = False
    values: Labels = Field(default={})
    word_order: Order | None = None
    byte_order: Order | None = None
    report: NotYet = None

    @model_validator(mode="after")
    def _judge(self) -> ModbusPoint:
        problems = Problems()
        if NUMBER_TYPES[self.type].value_type is ValueType.FLOAT and self.values:
            problems.add(f"the values of a {self.type} have no names; remove it", "values")
        problems.raise_any("ModbusPoint")
        return self

    @property
    def decimal_scale(self) -> tuple[int, int]:
        """The scale as multiplier x 10^exponent."""
        return _decimal(self.scale)
