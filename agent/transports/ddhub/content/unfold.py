"""A schema as Ajv's strict mode reads it, with all references put in place; what it would not take, and what cannot be
judged here. Pure.

After this nothing is left to look up, so nothing can be fetched, and a schema that refers to itself, or doubles with
each reference, has met a limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from agent.printable import printable
from agent.transports.ddhub.content.pattern import NotJudged, Pattern, read

_MOST_NODES = 2_000  # schemas within the schema
_DEEPEST = 40
_MOST_TOLD = 20
_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")
_DRAFT_7 = ("http://json-schema.org/draft-07/schema", "http://json-schema.org/draft-07/schema#")
_ONE = {"not", "if", "then", "else", "contains", "propertyNames", "additionalProperties", "additionalItems"}
_LISTS = {"allOf", "anyOf", "oneOf"}
_FOLDED = {"$ref", "definitions", "$defs", "$schema", "$id"}
_PLAIN = {
    *("type", "nullable", "const", "enum", "format", "pattern", "default", "examples"),
    *("title", "description", "$comment", "deprecated", "readOnly", "writeOnly"),
    *("contentMediaType", "contentEncoding", "contentSchema", "$vocabulary"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "required"),
    *("formatMinimum", "formatMaximum", "formatExclusiveMinimum", "formatExclusiveMaximum"),
    *("uiSchema", "enumNames"),  # the gateway adds them
}
_FORMATS = {
    *("date", "date-time", "duration", "uri", "uri-reference", "uri-template", "email", "hostname", "ipv4", "ipv6"),
    *("uuid", "json-pointer", "byte", "float", "double", "local-date-time"),
}


@dataclass(slots=True)
class Unfolded:
    """``schema``: without references. ``problems``: why Ajv would not take it; with any, ``schema`` is not complete.
    ``unjudged``: where something passes that cannot be judged. ``patterns``: as they are written, those that can.
    """

    schema: Any = None
    problems: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    patterns: dict[str, Pattern] = field(default_factory=dict)


def unfold(schema: Mapping[str, Any]) -> Unfolded:
    """Read a schema, parsed from JSON, whatever it holds."""
    walk = _Walk(schema)
    if schema.get("$schema", _DRAFT_7[0]) not in _DRAFT_7:
        walk.found.problems.append("$schema is not draft-07")
    walk.found.schema = walk.schema(schema, "", 0)
    return walk.found


class _Walk:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.nodes = 0
        self.too_far = False
        self.found = Unfolded()

    def passes(self, place: str) -> None:
        if len(self.found.unjudged) < _MOST_TOLD and place not in self.found.unjudged:
            self.found.unjudged.append(printable(place))

    def problem(self, place: str, what: str) -> None:
        if len(self.found.problems) < _MOST_TOLD:
            self.found.problems.append(printable(f"{place or '/'}: {what}"))

    def schema(self, node: object, place: str, depth: int) -> Any:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self.problem(place, "no schema")
            return True
        self.nodes += 1
        if self.too_far or self.nodes > _MOST_NODES or depth > _DEEPEST:
            if not self.too_far:
                self.problem(place[:100], "it refers to itself, or unfolds too far")
            self.too_far = True
            return True
        self.misuse(node, place)
        written = {key: self.value(node, key, place, depth) for key in node if key not in _FOLDED}
        written = {key: value for key, value in written.items() if value is not _LEFT_OUT}
        if "patternProperties" in node:
            written.pop("additionalProperties", None)
        if "$ref" not in node:
            return written
        target = self.target(node["$ref"], place, depth)
        return {"allOf": [target, written]} if written else target

    def value(self, node: Mapping[str, Any], key: str, place: str, depth: int) -> Any:
        """What stands under a keyword, unfolded."""
        value, here = node[key], f"{place}/{key}"
        if key in _ONE or (key == "items" and not isinstance(value, list)):
            return self.schema(value, here, depth + 1)
        if key in _LISTS or key == "items":
            parts = value if isinstance(value, list) else [value]
            return [self.schema(each, f"{here}/{i}", depth + 1) for i, each in enumerate(parts)]
        if key in ("properties", "dependencies"):
            return self.mapping(value, here, depth)
        if key == "patternProperties":
            self.passes(here)
            self.mapping(value, here, depth)
            return _LEFT_OUT
        if key not in _PLAIN:
            self.problem(place, f'unknown keyword "{key[:40]}"')
        elif key == "pattern":
            self.pattern(value, here)
        elif key == "format" and not (isinstance(value, str) and value in _FORMATS):
            self.problem(place, f'unknown format "{str(value)[:40]}"')
        return _exact(value)

    def mapping(self, value: object, here: str, depth: int) -> Any:
        if not isinstance(value, dict):
            self.problem(here, "no object")
            return {}
        return {
            name: each
            if isinstance(each, list) and here.endswith("/dependencies")
            else self.schema(each, f"{here}/{name}", depth + 1)
            for name, each in value.items()
        }

    def pattern(self, value: object, here: str) -> None:
        if not isinstance(value, str) or value in self.found.patterns:
            return
        try:
            self.found.patterns[value] = read(value)
        except NotJudged as error:
            self.passes(f"{here}: {error}")

    def misuse(self, node: Mapping[str, Any], place: str) -> None:
        """What strict mode calls ignored or ambiguous."""
        if place and "$id" in node:
            self.problem(place, '"$id" below the root is not understood here')
        if "additionalItems" in node and not isinstance(node.get("items"), list):
            self.problem(place, '"additionalItems" without a list of "items"')
        if "if" in node and not node.keys() & {"then", "else"}:
            self.problem(place, '"if" without "then" and "else"')
        if "if" not in node and node.keys() & {"then", "else"}:
            self.problem(place, '"then" or "else" without "if"')
        if "nullable" in node and "type" not in node:
            self.problem(place, '"nullable" without "type"')

    def target(self, reference: object, place: str, depth: int) -> Any:
        node: Any = self.root
        parts = reference.split("/") if isinstance(reference, str) else [""]
        if parts[0] != "#":
            self.problem(place, "a reference to another document")
            return True
        for part in parts[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and _INDEX.fullmatch(name) and int(name) < len(node):
                node = node[int(name)]
            else:
                self.problem(place, "a reference to nothing")
                return True
        return self.schema(node, place, depth + 1)


_LEFT_OUT = object()


def _exact(value: Any) -> Any:
    """A value with its floats as the decimals that they were written as."""
    if isinstance(value, float):
        return Decimal(str(value))
    if isinstance(value, list):
        return [_exact(each) for each in value]
    return {name: _exact(each) for name, each in value.items()} if isinstance(value, dict) else value
