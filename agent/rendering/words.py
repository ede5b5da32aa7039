"""Values, codes and times in words: what all renderings share. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal

from agent.evidence.coverage import group_key
from agent.model import Cause, EventCode, Kind, Plan, Point, Quality, Value
from agent.printable import printable

_LAST_MOMENT = 253_402_300_799_999_999_999  # ns: the end of the year 9999
_MOST_ZEROS = 60
_EXACT = 10**15  # a float's shortest text has the same digits as a decimal of up to 15

Wanted = Callable[[str], bool]
"""Whether ``device/group/point`` is to be shown."""


def scaled(point: Point, value: Value) -> Value:
    """The value in the point's unit. Integers become exact decimals: an int, a float with the same digits, or text if
    neither can.
    """
    if point.exponent == 0 or type(value) is not int:
        return value.hex() if isinstance(value, bytes) else value
    if abs(value) < _EXACT and abs(point.exponent) < 300:
        number = Decimal(value).scaleb(point.exponent)
        return float(number) if point.exponent < 0 else int(number)
    return exact(point, value)


def exact(point: Point, value: float) -> str:
    """A number in the point's unit as the decimal that was sent, in digits."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if abs(point.exponent) > _MOST_ZEROS:  # nobody's, but a plan may say it
        return f"{value}e{point.exponent}"
    return format(Decimal(value).scaleb(point.exponent), "f")


def scaled_text(point: Point, value: Value) -> str:
    """The value in the point's unit for a table: numbers exact, bytes in hex, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return value.hex() if isinstance(value, bytes) else exact(point, value)


def value_text(point: Point, value: Value) -> str:
    """The scaled value for people, with the name of an enumerated one; ``-`` for null."""
    label = f" ({point.labels[value]})" if type(value) is int and value in point.labels else ""
    return "-" if value is None else printable(f"{scaled(point, value)!s}{label}")


def moment(wall: int) -> str:
    """RFC 3339, UTC, ms; ``wall`` in ns."""
    if wall > _LAST_MOMENT:
        return f"{wall} ns"  # beyond what a date can say
    when = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=wall // 1000)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def quality_name(code: int) -> str:
    """The quality's name in lower case, or its number."""
    return Quality(code).name.lower() if code in Quality._value2member_map_ else f"quality {code}"


def event_name(code: int) -> str:
    """The event's name in lower case, or its number."""
    return EventCode(code).name.lower() if code in EventCode._value2member_map_ else str(code)


def kind_name(kind: int) -> str | int:
    """``plan``, ``data``, ``event``, or the number of a kind that is not known."""
    return Kind(kind).name.lower() if kind in Kind._value2member_map_ else kind


def cause_name(cause: int) -> str:
    """The cause's name in lower case, or its number."""
    return Cause(cause).name.lower() if cause in Cause._value2member_map_ else f"cause {cause}"


def any_wanted(plan: Plan, index: int, wanted: Wanted) -> bool:
    """Whether any point of a group is to be shown."""
    group = plan.groups[index]
    name = "/".join(group_key(plan, group))
    return any(wanted(f"{name}/{point.name}") for point in group.points)
