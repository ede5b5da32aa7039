"""Fields that the tables of a configuration share, as pydantic types: names, texts, what is not supported yet.

Pure. Errors are ValueError with the text "what is wrong; what to do". Adapters use them, too, also those of third
parties.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from math import isfinite
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

NOT_YET = "not supported yet by this version"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID_REMEDY = "write a letter or digit, then letters, digits, dot, _ and -, 64 at most"


def judge_id(value: str) -> str:
    """The id of a site, connection, device, group or channel. Raises ValueError."""
    if not _ID.fullmatch(value):
        raise ValueError(f'"{value[:80]}" is no id; {_ID_REMEDY}')
    return value


def judge_host(host: str) -> str:
    """A host's name or address that can be looked up. Raises ValueError."""
    try:
        host.encode("idna")  # as the look-up will; it raises what nobody there expects
    except UnicodeError:
        remedy = "each part between two dots has 1 to 63 characters"
        raise ValueError(f'"{host[:80]}" is no host name; {remedy}') from None
    return host


def _point_name(value: str) -> str:
    if not 1 <= len(value) <= 64 or not value.isprintable() or set(value) & set("/*?[]") or value != value.strip():
        remedy = "write 1 to 64 characters, none of them / * ? [ or ], without blanks around"
        raise ValueError(f'"{value[:80]}" cannot be the name of a point; {remedy}')
    return value


def _text(value: str) -> str:
    if not 1 <= len(value) <= 256 or not value.isprintable():
        raise ValueError("the text is empty, too long or not printable; write 1 to 256 characters on one line")
    return value


def _range(value: Any) -> Any:
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or any(type(each) not in (int, float) for each in value):
        raise ValueError("expected two numbers; write the lowest and the highest good value, such as [0, 500e3]")
    if any(isinstance(each, float) and not isfinite(each) for each in value):
        remedy = "for a side without a limit write a number that is never reached, such as 1e12"
        raise ValueError(f"the ends of a range are finite numbers; {remedy}")
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
        if int(number) in labels:
            raise ValueError(f'"{number}" is there twice; leave one of the two out')
        labels[int(number)] = _text(label)
    return labels


def _refuse(_: Any) -> None:
    raise ValueError(f"{NOT_YET}; remove it")


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("the list is empty; name at least one")
    return values


class Problems:
    """What several keys say together, for a validator: each problem at the key that must change."""

    def __init__(self) -> None:
        self._found: list[InitErrorDetails] = []

    def add(self, text: str, *loc: str | int) -> None:
        """Note "what is wrong; what to do" at a key within what is judged."""
        # The type and context are those of a ValueError, which readers of the errors already know.
        error = PydanticCustomError("value_error", "{error}", {"error": text})
        self._found.append(InitErrorDetails(type=error, loc=loc, input=None))

    def raise_any(self, title: str) -> None:
        """Raises ValidationError if anything was noted."""
        if self._found:
            raise ValidationError.from_exception_data(title, self._found)


def distinct(name: Callable[[Any], str]) -> AfterValidator:
    """For the points of a group: no two have the same name."""

    def judge(points: tuple[Any, ...]) -> tuple[Any, ...]:
        problems, seen = Problems(), set[str]()
        for index, point in enumerate(points):
            if name(point) in seen:
                problems.add(f'two points of the group are named "{name(point)}"; leave one out or rename it', index)
            seen.add(name(point))
        problems.raise_any("points")
        return points

    return AfterValidator(judge)


IdKey = Annotated[str, AfterValidator(judge_id)]
"""An id that is the key of a table."""

Id = Annotated[IdKey, Field(json_schema_extra={"pattern": f"^{_ID.pattern}$"})]
"""The id of a device, group, connection or channel."""

Text = Annotated[str, AfterValidator(_text)]
"""1 to 256 printable characters."""

PointName = Annotated[str, AfterValidator(_point_name)]
"""The name of a point: what patterns over device/group/point can name."""

Range = Annotated[tuple[int | float, int | float], BeforeValidator(_range)]
"""The lowest and the highest good value."""

Labels = Annotated[dict[int, str], BeforeValidator(_labels)]
"""Names of an enumeration's values."""

NotYet = Annotated[None, BeforeValidator(_refuse)]
"""A key that a later version understands; a default of None."""

SOME = AfterValidator(_some)
"""At least one. Not Field(min_length=1): that also complains when all there is was refused."""


class Table(BaseModel):
    """A table: unknown keys are errors, nothing is converted, nothing changes.

    ``judged_together``: the keys that its own validators look at; None: they may look at any. When another one is
    refused, these are judged all the same.
    """

    judged_together: ClassVar[Collection[str] | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
