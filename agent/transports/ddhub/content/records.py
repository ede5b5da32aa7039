"""Whether the readable values of a message say what its signed records say.

``records`` beside the envelopes is a copy for readers without a verifier. Nothing signs it for longer than the message
lives, so it counts only as far as it agrees with the envelopes. Pure.

Compared as values: names and times resolved (RFC 8428, section 4.6), numbers as decimals, in any order. So a re-written
JSON text still agrees, also one that went through doubles, as long as each number survived.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Context, Decimal, DecimalException, Inexact

from agent.model import Data
from agent.rendering import senml
from agent.rendering.readings import genuine
from agent.verifier import Judged

_EXACT = Context(prec=200, traps=[Inexact])  # numbers have 100 digits at most; what is not exact is not ours
_MOST_FRACTION = 6  # digits of a time
_FIELDS = {"bn", "bt", "n", "u", "t", "v", "vb", "vs", "vd", "quality"}  # what senml.py writes; others change values

Resolved = tuple[str, Decimal, frozenset[tuple[str, str | bool | Decimal, type]]]


class Agreement(enum.StrEnum):
    """What a message's ``records`` are worth."""

    AGREE = "agree"
    DIFFER = "differ"  # the envelopes count
    UNKNOWN = "unknown"  # a record did not verify, came before, or its plan is not at hand; or there is no copy


def rendered(judged: Iterable[Judged]) -> tuple[str, ...]:
    """The ``records`` of a message with these records, in their order: JSON objects, for ``payload.encode``."""
    return tuple(text for each in judged for text in senml.records(each))


def agreement(records: Sequence[object], judged: Sequence[Judged]) -> Agreement:
    """How ``records`` stand beside all records of the same message."""
    for each in judged:
        of_data = each.record is not None and isinstance(each.record.body, Data)
        if not genuine(each) or (of_data and each.plan is None):
            return Agreement.UNKNOWN
    texts = rendered(judged)
    if not records and texts:
        return Agreement.UNKNOWN  # the sender made none
    ours = (json.loads(text, parse_int=Decimal, parse_float=Decimal) for text in texts)
    try:
        same = Counter(_resolved(ours)) == Counter(_resolved(records))
    except (ValueError, DecimalException):
        return Agreement.DIFFER
    return Agreement.AGREE if same else Agreement.DIFFER


def _resolved(records: Iterable[object]) -> Iterator[Resolved]:
    """Each with its whole name and time. Raises ValueError or DecimalException for what senml.py never writes."""
    name, base = "", Decimal(0)
    for each in records:
        if not isinstance(each, dict) or not each.keys() <= _FIELDS:
            raise ValueError("no object, or a field that is not ours")
        if not all(isinstance(value, str | bool | Decimal) for value in each.values()):
            raise ValueError("neither text nor number nor truth value")
        name = _text(each.get("bn", name))
        base = _time(each.get("bt", base))
        time = _EXACT.add(base, _time(each.get("t", Decimal(0))))
        rest = frozenset((key, each[key], type(each[key])) for key in each.keys() - {"bn", "bt", "n", "t"})
        yield name + _text(each.get("n", "")), time, rest


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a name that is no text")
    return value


def _time(value: object) -> Decimal:
    if not isinstance(value, Decimal):
        raise ValueError("a time that is no number")
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or not -_MOST_FRACTION <= exponent <= 2 * _MOST_FRACTION:
        raise ValueError("a time with more than 6 fraction digits")
    return value
