"""A topic's JSON schema: whether a client gateway would take it at all, and what is wrong with a payload.

Judges as Ajv 8 does in the gateway (draft-07, its strict mode, its formats) and, for what is sent in clear, as the
broker does. Pure. Anybody may own a topic, so nothing is fetched, a schema that unfolds without end is refused, and
patterns are judged in bounded time (pattern.py). What cannot be judged is told in ``unjudged``
and passes. Numbers are compared as decimals. No message repeats a payload.

Of formats, ``date``, ``date-time``, ``byte``, ``uuid`` and ``ipv4`` are held against texts; the others pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, DecimalException
from importlib import resources
from typing import Any

import jsonschema
from jsonschema import Draft7Validator, FormatChecker
from jsonschema.validators import extend

from agent.errors import AgentError, Verdict
from agent.transports.ddhub.content import pattern
from agent.transports.ddhub.content.unfold import unfold

_MOST_PROBLEMS = 5  # told of one payload
_MOST_STEPS = 20 * pattern.MOST_STEPS  # of patterns, for one payload
_NOT_PLAIN = re.compile(r"[&<>\"'/.\\\-\x08\x0c\x0a\x0d\x09]")  # what the broker refuses in plain strings
_DATE = r"\d{4}-[01]\d-[0-3]\d"
_TIME = r"(?:[0-2]\d:[0-5]\d:[0-5]\d|23:59:60)(?:\.\d+)?(?:[zZ]|[+-]\d\d(?::?\d\d)?)"
_FORMATS = {
    "date": _DATE,
    "date-time": rf"{_DATE}[tT\s]{_TIME}",
    "byte": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "uuid": r"(?i)(?:urn:uuid:)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}",
    "ipv4": r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!\Z)|\Z)){4}",
}


class SchemaError(AgentError):
    """A schema that no gateway would take, or a payload that does not fit."""

    verdict = Verdict.REJECT


class TopicSchema:
    """The schema of a topic's version. ``takes_records``: it has a property ``records``; ``needs_records``: it demands
    it. ``unjudged``: what of it cannot be judged here, and where. Not for several threads at once.
    """

    def __init__(self, schema: object) -> None:
        """``schema``: as parsed from JSON. Raises SchemaError."""
        if not isinstance(schema, dict):
            raise _refused(["it is no object"])
        try:
            unfolded = unfold(schema)
        except RecursionError:
            raise _refused(["nested too deeply"]) from None
        problems = list(unfolded.problems)
        try:
            Draft7Validator.check_schema(unfolded.schema, format_checker=FormatChecker(formats=()))
        except jsonschema.SchemaError as error:
            problems.append(f"{_place(error.absolute_path)}: not by draft-07")
        except RecursionError:
            problems.append("nested too deeply")
        if problems:
            raise _refused(problems)
        self._schema = schema
        self._patterns = unfolded.patterns
        self._steps = 0
        self._validator = _strict(self._found)(unfolded.schema, format_checker=_formats())
        self.unjudged = tuple(unfolded.unjudged)
        properties = schema.get("properties", {})
        self.takes_records = "records" in properties
        self.needs_records = "records" in schema.get("required", ())

    def problems(self, payload: str, *, encrypted: bool) -> tuple[str, ...]:
        """What is wrong with a payload, a few at most; empty if it may be sent. ``encrypted``: the broker cannot look.

        Takes some milliseconds for each 100 kB: call it in a worker thread.
        """
        try:
            found = json.loads(payload, parse_float=_decimal)
        except (ValueError, RecursionError):
            return ("not JSON",)
        self._steps = _MOST_STEPS
        told = []
        if not encrypted:
            told += [] if isinstance(found, dict) else ["in clear the broker takes objects only"]
            told += [f"{place}: {why}" for place, why in _not_plain(found, self._schema, "")]
        for error in self._validator.iter_errors(found):
            told.append(f"{_place(error.absolute_path)}: {error.validator}")
            if len(told) >= _MOST_PROBLEMS:
                break
        return tuple(dict.fromkeys(told))[:_MOST_PROBLEMS]

    def check(self, payload: str, *, encrypted: bool) -> None:
        """Raises SchemaError if there are problems."""
        if problems := self.problems(payload, encrypted=encrypted):
            hint = "the topic's schema must be the one that `edge-agent ddhub topic` prints, or take its payloads"
            raise SchemaError(f"the payload does not fit the topic's schema: {'; '.join(problems)}", hint=hint)

    def _found(self, text: str, written: str) -> bool:
        """Whether a pattern is found in a text, or cannot be judged."""
        known = self._patterns.get(written)
        if known is None:
            return True
        self._steps -= known.steps(text)
        return self._steps < 0 or known.found_in(text) is not False


def telemetry_schema(*, readable: bool = False) -> str:
    """Our own topics' schema, as it is published (docs/ddhub/telemetry.schema.json); ``readable``: for a topic that
    demands ``records`` too.
    """
    text = resources.files("agent.transports.ddhub.content").joinpath("telemetry.schema.json").read_text("utf-8")
    return text.replace('["envelopes"]', '["envelopes", "records"]') if readable else text


def is_ours(schema: object) -> bool:
    """Whether a topic's schema, as parsed from JSON, is our own, with or without readable records."""
    return schema in [json.loads(telemetry_schema(readable=each)) for each in (False, True)]


def _strict(found: Callable[[str, str], bool]) -> type[Draft7Validator]:
    def judge_pattern(_: Any, written: str, instance: object, __: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(instance, str) and not found(instance, written):
            yield jsonschema.ValidationError("")

    def judge_multiple(_: Any, of: Any, instance: object, __: Any) -> Iterator[jsonschema.ValidationError]:
        if (
            isinstance(instance, int | float | Decimal)
            and not isinstance(instance, bool)
            and not _multiple(instance, of)
        ):
            yield jsonschema.ValidationError("")

    checker = Draft7Validator.TYPE_CHECKER.redefine("integer", _is_integer)

    def judge_unique(_: Any, wanted: object, instance: object, __: Any) -> Iterator[jsonschema.ValidationError]:
        if wanted is True and isinstance(instance, list) and not _unique(instance):
            yield jsonschema.ValidationError("")

    rules = {"pattern": judge_pattern, "multipleOf": judge_multiple, "uniqueItems": judge_unique}
    strict: type[Draft7Validator] = extend(  # type: ignore[no-untyped-call]
        Draft7Validator, rules, type_checker=checker
    )
    return strict


def _is_integer(_: object, instance: object) -> bool:
    if isinstance(instance, bool):
        return False
    return isinstance(instance, int) or (isinstance(instance, Decimal) and instance == instance.to_integral_value())


def _unique(values: list[object]) -> bool:
    """In the time of a sort; jsonschema's own may take the square of it."""
    return len({json.dumps(each, sort_keys=True, default=str) for each in values}) == len(values)


def _multiple(number: float | Decimal, of: float) -> bool:
    try:
        return not Decimal(str(number)) % Decimal(str(of))
    except DecimalException:
        return False


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except DecimalException:
        raise ValueError("no number") from None


def _formats() -> FormatChecker:
    checker = FormatChecker(formats=())
    checker.checkers = {name: (_fits(re.compile(shape, re.ASCII)), ()) for name, shape in _FORMATS.items()}
    return checker


def _fits(shape: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: not isinstance(value, str) or shape.fullmatch(value) is not None


def _not_plain(value: object, node: object, place: str) -> Iterator[tuple[str, str]]:
    """Where the broker finds a character that it does not want: in texts whose schema is a plain string. What is in a
    list it holds against the list's own schema, so that nothing is found there.
    """
    of: Mapping[str, Any] = node if isinstance(node, dict) else {}
    if isinstance(value, dict):
        properties = of.get("properties", {})
        for name, each in value.items():
            yield from _not_plain(each, properties.get(name), f"{place}/{name}")
    elif isinstance(value, list):
        for each in value:
            yield from _not_plain(each, node, place)
    elif isinstance(value, str) and _plain(of) and _NOT_PLAIN.search(value):
        yield place, "in clear the broker takes no punctuation in a string without a pattern"


def _plain(node: Mapping[str, Any]) -> bool:
    return node.get("type") == "string" and not node.keys() & {"format", "pattern", "enum"}


def _place(path: Any) -> str:
    return "/" + "/".join(str(part) for part in path)


def _refused(problems: list[str]) -> SchemaError:
    hint = "register another version of the topic, of the schema that `edge-agent ddhub topic` prints"
    return SchemaError(f"the topic's schema cannot be used: {'; '.join(problems[:_MOST_PROBLEMS])}", hint=hint)
