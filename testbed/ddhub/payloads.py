"""What the broker accepts as an unencrypted payload, and as a schema (PayloadValidator.java; the specification, 1.13).

jsonschema stands in for everit and networknt.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from jsonschema import Draft7Validator, FormatChecker
from jsonschema.exceptions import SchemaError

from testbed.ddhub.fields import NO_SPECIAL
from testbed.ddhub.replies import Refused, invalid

_STRICT = r"""[^&<>"'/\\\-\.\u0008\u000C\u000A\u000D\u0009]*"""  # release v2.1.3: no entities
_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?")
_FORMATS = FormatChecker()


@_FORMATS.checks("local-date-time")
def _is_local_date_time(value: object) -> bool:
    return not isinstance(value, str) or _LOCAL.fullmatch(value) is not None


def judge_schema(schema_type: str, schema: str) -> None:
    """Raise Refused (13) unless the broker stores a topic with this schema."""
    if schema_type == "JSD7":
        try:
            Draft7Validator.check_schema(json.loads(schema))
        except (ValueError, SchemaError) as error:
            raise Refused(400, "13", f"Schema validation failed: {str(error).splitlines()[0]}") from None
    elif schema_type == "XSD6" and "http://www.w3.org/2001/XMLSchema" not in schema:
        raise Refused(400, "13", "Schema validation failed: not an XML Schema")


def judge_payload(payload: str, schema: str, *, entities: bool) -> None:
    """Raise Refused (60, 17) unless an unencrypted payload of a JSD7 topic passes; ``entities``: `&lt;` does, too.

    Items of arrays are held against the array's own node, hence never.
    """
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise Refused(400, "60", f"Payload validation failed: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "60", "Payload validation failed: a JSONObject is needed")
    parsed = json.loads(schema)
    problem = next(Draft7Validator(parsed, format_checker=_FORMATS).iter_errors(value), None)
    if problem is not None:
        raise invalid(f"Payload validation failed: {problem.json_path}: {problem.message}")
    for path, text in _plain_strings(value, parsed, "#"):
        if re.fullmatch(NO_SPECIAL if entities else _STRICT, text) is None:
            raise invalid(f"Payload validation failed: {path}: special characters are not allowed")


def escaped(payload: str, schema: str) -> str:
    """The payload as the unmerged branch fix/handle-encode stores it: plain strings with entities."""
    value = json.loads(payload)
    _rewrite(value, json.loads(schema))
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _entities(text: str) -> str:
    marked = html.escape(text)
    for sign in "/-.\\":
        marked = marked.replace(sign, f"&#{ord(sign)};")
    return marked


def _is_plain(node: Any) -> bool:
    return isinstance(node, dict) and node.get("type") == "string" and not {"format", "pattern", "enum"} & set(node)


def _node_of(node: Any, name: str) -> Any:
    properties = node.get("properties") if isinstance(node, dict) else None
    return properties.get(name) if isinstance(properties, dict) else None


def _plain_strings(value: dict[str, Any], node: Any, path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, each in value.items():
        below = _node_of(node, name)
        if isinstance(each, dict):
            found += _plain_strings(each, below, f"{path}/{name}")
        elif isinstance(each, str) and _is_plain(below):
            found.append((f"{path}/{name}", each))
    return found


def _rewrite(value: dict[str, Any], node: Any) -> None:
    for name, each in value.items():
        below = _node_of(node, name)
        if isinstance(each, dict):
            _rewrite(each, below)
        elif isinstance(each, str) and _is_plain(below):
            value[name] = _entities(each)
