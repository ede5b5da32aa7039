"""A point of a message: where its value is and what it is; and the rules of text that MQTT's models share.

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adapters.mqtt.payload import pointer
from adapters.mqtt.values import LEAST_EXPONENT, Bounds, Kind

NOT_YET = "not supported yet by this version"


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


def _at(text: str) -> str:
    if len(text) > 256 or (text and not text.isprintable()):
        raise ValueError("the pointer is too long or not printable; write at most 256 characters on one line")
    pointer(text)
    return text


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
Pointer = Annotated[str, AfterValidator(_at)]
Text = Annotated[str, AfterValidator(_text)]


class Table(BaseModel):
    """A table: unknown keys are errors, nothing is converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MqttPoint(Table):
    """A point: the value at ``at`` in the payload, or the text of the topic's level ``topic_level``, from 1.

    ``type`` number keeps the decimals that the source sends (adapters/mqtt/values.py), at least ``decimals``; with
    ``values`` it is a whole number. A text has 1024 bytes at most.
    """

    name: Annotated[str, AfterValidator(_point_name)]
    at: Pointer | None = None
    topic_level: Annotated[int, Field(ge=1, le=512)] | None = None
    type: Kind = "number"
    unit: Text | None = None
    decimals: Annotated[int, Field(ge=0, le=-LEAST_EXPONENT)] = 0
    range: Annotated[tuple[int | float, int | float], BeforeValidator(_range)] | None = None
    values: Annotated[dict[int, str], BeforeValidator(_labels)] = Field(default={})
    report: NotYet = None

    @property
    def kind(self) -> Kind:
        """``type``, which is text for a level of the topic."""
        return self.type if self.topic_level is None else "text"

    @property
    def bounds(self) -> Bounds | None:
        """The range, exactly as it was written."""
        return None if self.range is None else (Decimal(str(self.range[0])), Decimal(str(self.range[1])))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What several keys say together: the key that must change ("": the point itself), and what is wrong."""
        given = self.model_fields_set
        if self.at is None and self.topic_level is None:
            yield "", 'it is not said where the value is; add at = "/power/w", or topic_level'
        elif self.at is not None and self.topic_level is not None:
            yield "topic_level", "the value is in one place; remove at or topic_level"
        elif self.topic_level is not None and "type" in given and self.type != "text":
            yield "type", 'the level of a topic is a text; write "text" or remove it'
        if "decimals" in given and (self.kind != "number" or self.values):
            yield "decimals", 'only a number without names of values has decimals; remove it or set type = "number"'
        if self.range is not None and self.kind in ("boolean", "text"):
            yield "range", f"a {self.kind} has no range; remove it"
        if self.values and self.kind not in ("number", "integer"):
            yield "values", f"the values of a {self.kind} have no names; remove it"
