"""The shape of header, record and bodies: docs/evidence.cddl, rule by rule, as Python.

A rule is called with a decoded value, the place it stands at and a list; it raises Refused, or adds to the list what a
verifier has to report without failing it: unknown codes, and unlisted keys from 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.independent.cbor import Refused

Rule = Callable[[Any, str, list[str]], None]
TOP = 2**64 - 1
CONTENT_TYPE = "application/vnd.edge-agent.evidence+cbor"


def integer(least: int = -(2**64), most: int = TOP) -> Rule:
    """An integer from ``least`` to ``most``; true and false are none."""

    def rule(value: Any, at: str, _: list[str]) -> None:
        if type(value) is not int or not least <= value <= most:
            raise Refused(f"{at}: not an integer from {least} to {most}")

    return rule


def code(known: int, name: str) -> Rule:
    """A code from 1: reported if it is above ``known``."""

    def rule(value: Any, at: str, notes: list[str]) -> None:
        integer(1)(value, at, notes)
        if value > known:
            notes.append(f"{name} {value}")

    return rule


def kind_of(*kinds: type) -> Rule:
    """A value of exactly one of these Python types."""

    def rule(value: Any, at: str, _: list[str]) -> None:
        if type(value) not in kinds:
            raise Refused(f"{at}: not {' or '.join(kind.__name__ for kind in kinds)}")

    return rule


def octets(size: int) -> Rule:
    """A byte string of that size."""

    def rule(value: Any, at: str, _: list[str]) -> None:
        if type(value) is not bytes or len(value) != size:
            raise Refused(f"{at}: not {size} bytes")

    return rule


def exactly(constant: int | str) -> Rule:
    """That integer or text and nothing else."""

    def rule(value: Any, at: str, _: list[str]) -> None:
        if type(value) is not type(constant) or value != constant:
            raise Refused(f"{at}: not {constant}")

    return rule


def optional(inner: Rule) -> Rule:
    """Null, or as ``inner`` says."""

    def rule(value: Any, at: str, notes: list[str]) -> None:
        if value is not None:
            inner(value, at, notes)

    return rule


def every(inner: Rule, least: int = 0, most: int = TOP) -> Rule:
    """An array of ``least`` to ``most`` items of one rule."""

    def rule(value: Any, at: str, notes: list[str]) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            raise Refused(f"{at}: not an array of at least {least} items" + f", at most {most}" * (most < TOP))
        for index, item in enumerate(value):
            inner(item, f"{at}[{index}]", notes)

    return rule


def row(*rules: Rule) -> Rule:
    """An array with one item for each rule."""

    def rule(value: Any, at: str, notes: list[str]) -> None:
        if type(value) is not list or len(value) != len(rules):
            raise Refused(f"{at}: not an array of {len(rules)} items")
        for index, (inner, item) in enumerate(zip(rules, value, strict=True)):
            inner(item, f"{at}[{index}]", notes)

    return rule


def fields(name: str, needed: dict[int, Rule], may: dict[int, Rule] | None = None) -> Rule:
    """A map: all of ``needed``, any of ``may``, nothing else below 16."""
    listed = needed | (may or {})

    def rule(value: Any, at: str, notes: list[str]) -> None:
        if type(value) is not dict:
            raise Refused(f"{at}: not a map")
        if missing := needed.keys() - value.keys():
            raise Refused(f"{at}: {min(missing)} is missing")
        for key, item in value.items():
            if key in listed:
                listed[key](item, f"{at}.{key}", notes)
            elif key < 16:
                raise Refused(f"{at}: {key} is not listed")
            else:
                notes.append(f"{name}: key {key}")

    return rule


def names(value: Any, at: str, notes: list[str]) -> None:
    """The labels of a point's values: integers and texts."""
    if type(value) is not dict:
        raise Refused(f"{at}: not a map")
    every(TEXT)(list(value.values()), at, notes)


UINT, POSITIVE, TEXT, DIGEST, BYTES16 = integer(0), integer(1), kind_of(str), octets(32), octets(16)
CAUSE = code(13, "cause")
LABEL = row(TEXT, TEXT)
POINT = row(TEXT, optional(TEXT), integer(0, 4), integer(), optional(TEXT), names)
SCHEDULE = row(integer(1_000_000), UINT, UINT, UINT)
GROUP = fields("group", {1: TEXT, 2: UINT, 4: UINT, 5: every(POINT, 1)}, {3: SCHEDULE})
PLAN = fields(
    "plan",
    {
        1: POSITIVE,
        2: row(UINT, UINT),
        3: BYTES16,
        4: TEXT,
        5: row(TEXT, every(LABEL)),
        6: row(TEXT, TEXT),
        7: DIGEST,
        8: every(row(TEXT, TEXT, *[optional(TEXT)] * 5)),
        9: every(GROUP),
        12: every(row(BYTES16, POSITIVE, POSITIVE, CAUSE), most=16),
        13: kind_of(bool),
        14: UINT,
    },
    {10: row(BYTES16, POSITIVE), 11: row(CAUSE, every(row(TEXT, TEXT, POSITIVE, UINT)))},
)
BLOCK = fields(
    "block",
    {
        1: UINT,
        2: every(UINT, 1),
        3: every(UINT, 1),
        5: every(every(kind_of(int, float, bool, str, bytes, type(None)), 1), 1),
    },
    {
        4: every(UINT, 1),
        6: every(row(UINT, UINT, code(9, "quality")), 1),
        7: every(optional(integer()), 1),
        8: every(optional(kind_of(bytes)), 1),
    },
)
GAP = row(UINT, optional(UINT), optional(UINT), CAUSE, optional(TEXT), optional(UINT), optional(UINT))
DATA = row(POSITIVE, every(BLOCK), every(GAP))
EVENT = row(code(6, "event"), UINT, kind_of(list))
BODIES = {1: PLAN, 2: DATA, 3: EVENT}
HEADER = fields("header", {1: exactly(-47), 3: exactly(CONTENT_TYPE), 4: kind_of(bytes)})
HEAD = fields("record", {1: UINT, 2: BYTES16, 3: POSITIVE, 4: DIGEST})  # what records of all versions have
RECORD = fields(
    "record",
    {
        1: exactly(1),
        2: BYTES16,
        3: POSITIVE,
        4: DIGEST,
        5: row(UINT, UINT, integer(0, 2), optional(UINT)),
        6: code(3, "kind"),
    },
    {7: lambda *_: None, 8: kind_of(bytes)},
)
