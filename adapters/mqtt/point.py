"""A point of a message: where its value is and what it is.

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, Field

from adapters.mqtt.payload import pointer
from adapters.mqtt.values import LEAST_EXPONENT, Bounds, Kind
from agent.fields import Labels, NotYet, PointName, Range, Table, Text


def _at(text: str) -> str:
    if len(text) > 256 or (text and not text.isprintable()):
        raise ValueError("the pointer is too long or not printable; write at most 256 characters on one line")
    pointer(text)
    return text


Pointer = Annotated[str, AfterValidator(_at)]


class MqttPoint(Table):
    """A point: the value at ``at`` in the payload, or the text of the topic's level ``topic_level``, from 1.

    ``type`` number keeps the decimals that the source sends (adapters/mqtt/values.py), at least ``decimals``; with
    ``values`` it is a whole number. A text has 1024 bytes at most.
    """

    name: PointName
    at: Pointer | None = None
    topic_level: Annotated[int, Field(ge=1, le=512)] | None = None
    type: Kind = "number"
    unit: Text | None = None
    decimals: Annotated[int, Field(ge=0, le=-LEAST_EXPONENT)] = 0
    range: Range | None = None
    values: Labels = Field(default={})
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
