"""Times that a source states, as ns since 1970-01-01 UTC, exactly.

Pure. A reader takes what stands in the document and raises ValueError for what is no time from 1970 to 2262
(0 to 2^63 - 1 ns). Fractions finer than a nanosecond are cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import MAX_EMAX, MIN_EMIN, ROUND_FLOOR, Context, Decimal
from functools import partial
from typing import Any

_S = 1_000_000_000
_END = 1 << 63
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_EXACT = Context(prec=60, rounding=ROUND_FLOOR, Emax=MAX_EMAX, Emin=MIN_EMIN)
_DIGITS = re.compile(r"[0-9]{1,19}(\.[0-9]+)?", re.ASCII)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(?:[Zz]|([+-])(\d\d):?(\d\d)?)", re.ASCII
)


def iso8601(value: Any) -> int:
    """``2026-01-31T12:00:00.123456789Z`` or with an offset such as ``+01:00``; without either it is no time of UTC. The
    seconds may be left out: ``2026-01-31T12:00Z``.

    Leap seconds (``:60``) have no place in POSIX time and are refused.
    """
    match = _ISO.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("no ISO 8601 time with zone")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.group(1, 2, 3, 4, 5, 6))
    time(hour, minute, second)  # these raise ValueError for what no clock or calendar shows
    seconds = (date(year, month, day).toordinal() - _EPOCH_DAY) * 86_400 + hour * 3600 + minute * 60 + second
    if match[8]:
        hours, minutes = int(match[9]), int(match[10] or 0)
        time(hours, minutes)
        offset = hours * 3600 + minutes * 60
        seconds -= offset if match[8] == "+" else -offset
    return _within(seconds * _S + int((match[7] or "0")[:9].ljust(9, "0")))


def epoch(value: Any, *, unit: int) -> int:
    """A number of units of ``unit`` ns since 1970, also as digits in a text."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = Decimal(value)
    if type(value) is int:
        return _within(value * unit)
    if type(value) is Decimal and value.adjusted() < 20:
        return _within(int(_EXACT.multiply(value, Decimal(unit)).to_integral_value(ROUND_FLOOR, _EXACT)))
    raise ValueError("no number of a time")


def _within(wall: int) -> int:
    if not 0 <= wall < _END:
        raise ValueError("no time from 1970 to 2262")
    return wall


FORMATS: Mapping[str, Callable[[Any], int]] = {
    "iso8601": iso8601,
    "unix": partial(epoch, unit=_S),
    "unix-ms": partial(epoch, unit=1_000_000),
    "unix-us": partial(epoch, unit=1000),
    "unix-ns": partial(epoch, unit=1),
}
"""Readers by the name of the format."""
