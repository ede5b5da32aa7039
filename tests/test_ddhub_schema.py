"""What a gateway and the broker would say of a topic's schema and of a payload."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import Verdict
from agent.transports.ddhub.content.payload import encode
from agent.transports.ddhub.content.schema import SchemaError, TopicSchema, telemetry_schema

ROOT = Path(__file__).resolve().parent.parent
OURS = json.loads(telemetry_schema())
TEXT = {"type": "string"}
LOOP = {
    "$ref": "#/definitions/a",
    "definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"items": {"$ref": "#/definitions/a"}}},
}
Json = dict[str, Any]


def of(name: str = "a", /, **rest: Any) -> TopicSchema:
    """A schema of an object with one property."""
    return TopicSchema({"type": "object", "properties": {name: rest}})


def said(schema: TopicSchema, value: Any, *, encrypted: bool = True) -> tuple[str, ...]:
    return schema.problems(json.dumps({"a": value}), encrypted=encrypted)


# ---- our own --------------------------------------------------------------------------------------------------------


def test_what_is_published_is_what_is_registered() -> None:
    assert (ROOT / "docs" / "ddhub" / "telemetry.schema.json").read_text() == telemetry_schema()


def test_it_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["package-data"]["agent.transports.ddhub.content"] == ["telemetry.schema.json"]


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize(
    "records", [None, [], ['{"bn":"did:ethr:volta:0x00/","bt":1.5,"n":"a/b.c-d","v":1,"u":"m/s"}']]
)
def test_our_payloads_fit_also_in_clear(records: list[str] | None, encrypted: bool) -> None:
    schema = TopicSchema(OURS)
    assert schema.unjudged == ()
    assert schema.problems(encode([b"\xfb\xff", b"a"], records), encrypted=encrypted) == ()


def test_every_text_in_it_has_a_pattern() -> None:
    def texts(node: Any) -> list[Json]:
        below = [each for value in node.values() if isinstance(value, dict) for each in texts(value)]
        return [node, *below] if node.get("type") == "string" else below

    assert len(texts(OURS)) == 7
    assert all("pattern" in each for each in texts(OURS))


def test_records_are_taken_and_where_they_are_wanted_demanded() -> None:
    assert TopicSchema(OURS).takes_records
    assert not TopicSchema(OURS).needs_records
    wanted = TopicSchema(json.loads(telemetry_schema(readable=True)))
    assert wanted.needs_records
    assert wanted.problems(encode([b"a"]), encrypted=True) == ("/: required",)
    assert not TopicSchema({"type": "object"}).takes_records


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ("{}", "/: required"),
        ("[]", "/: type"),
        ('{"envelopes":[]}', "/envelopes: minItems"),
        ('{"envelopes":["AA","A&#45;"]}', "/envelopes/1: pattern"),
        ('{"envelopes":["AA\\n"]}', "/envelopes/0: pattern"),
        ('{"envelopes":["AA"],"records":[{"v":"1"}]}', "/records/0/v: type"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"envelopes":["AA"],"records":[{"v":1e9999999999999999999}]}', "not JSON"),
    ],
)
def test_what_does_not_fit_is_told_without_what_it_says(payload: str, problem: str) -> None:
    assert TopicSchema(OURS).problems(payload, encrypted=True) == (problem,)
    with pytest.raises(SchemaError, match="does not fit the topic's schema") as caught:
        TopicSchema(OURS).check(payload, encrypted=True)
    assert caught.value.verdict is Verdict.REJECT
    assert "ddhub topic" in caught.value.hint


def test_only_the_first_problems_are_told() -> None:
    payload = json.dumps({"envelopes": ["&"] * 1000})
    assert TopicSchema(OURS).problems(payload, encrypted=True) == tuple(f"/envelopes/{i}: pattern" for i in range(5))


# ---- schemas that a gateway refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ([], "it is no object"),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema"}, "$schema is not draft-07"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema is not draft-07"),
        ({"$schema": "https://json-schema.org/draft-07/schema#"}, "$schema is not draft-07"),
        ({"$schema": 7}, "$schema is not draft-07"),
        ({"colour": "red"}, '/: unknown keyword "colour"'),
        ({"properties": {"a": {"dependentRequired": {}}}}, '/properties/a: unknown keyword "dependentRequired"'),
        ({"items": [{"minContains": 1}]}, '/items/0: unknown keyword "minContains"'),
        ({"id": "x"}, 'unknown keyword "id"'),
        *[({"properties": {"a": {"format": name}}}, f'/properties/a: unknown format "{name}"')
          for name in ("time", "int32", "int64", "password", "binary", "regex", "iri", 7)],
        ({"properties": {"a": {"format": []}}}, '/properties/a: unknown format "[]"'),
        ({"\x1b[2J": 1}, "/: unknown keyword"),
        ({"properties": {"a": {"$ref": "#/items/" + "9" * 5000}}, "items": [{}]}, "a reference to nothing"),
        ({"properties": {"a": {"$ref": "#/items/1"}}, "items": [{}]}, "a reference to nothing"),
        ({"type": "text"}, "/type: not by draft-07"),
        ({"required": "a"}, "/required: not by draft-07"),
        ({"properties": []}, "/properties: no object"),
        ({"properties": {"a": 1}}, "/properties/a: no schema"),
        ({"minItems": -1}, "/minItems: not by draft-07"),
        ({"$ref": "#"}, "it refers to itself"),
        (LOOP, "it refers to itself"),
        ({"$ref": "http://example.com/schema"}, "a reference to another document"),
        ({"$ref": "file:///etc/passwd"}, "a reference to another document"),
        ({"$ref": "#anchor"}, "a reference to another document"),
        ({"$ref": 5}, "a reference to another document"),
        ({"$ref": "#/definitions/a"}, "a reference to nothing"),
        ({"properties": {"a": {"$id": "http://example.com/a"}}}, '"$id" below the root'),
        ({"additionalItems": False}, '"additionalItems" without'),
        ({"if": {}}, '"if" without'),
        ({"then": {}}, 'without "if"'),
        ({"nullable": True}, '"nullable" without "type"'),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_that_no_gateway_takes_is_told(schema: Any, problem: str) -> None:
    with pytest.raises(SchemaError, match="cannot be used") as caught:
        TopicSchema(schema)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()
    assert "register another version" in caught.value.hint


@pytest.mark.parametrize("depth", [300, 5000])
def test_a_schema_that_is_nested_deeply_is_taken_or_told(depth: int) -> None:
    value: Any = 0
    schema: Any = {}
    for _ in range(depth):
        value, schema = [value], {"not": schema}
    with suppress(SchemaError):
        TopicSchema({"const": value})
    with pytest.raises(SchemaError, match="unfolds too far"):
        TopicSchema(schema)


def test_a_schema_that_doubles_with_each_reference_is_told() -> None:
    definitions: Json = {f"d{i}": {"allOf": [{"$ref": f"#/definitions/d{i + 1}"}] * 2} for i in range(30)}
    definitions["d30"] = TEXT
    with pytest.raises(SchemaError, match="unfolds too far"):
        TopicSchema({"$ref": "#/definitions/d0", "definitions": definitions})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "http://json-schema.org/draft-07/schema"},
        {"$id": "http://example.com/x", "title": "t", "$comment": "c", "examples": [1], "default": {}},
        {"uiSchema": {"any": 1}, "enumNames": ["a"], "properties": {"uiSchema": True, "colour": {}}},
        {"definitions": {"unused": {"colour": 1}}},
        {"properties": {"$ref": TEXT, "$id": TEXT, "definitions": TEXT}},
        {"type": "string", "nullable": True, "format": "date", "formatMinimum": "2026-01-01"},
        {"if": {}, "then": False, "items": [{}], "additionalItems": False, "not": False, "contains": {}},
        {"dependencies": {"a": ["b"], "c": {}}, "propertyNames": {"pattern": "^a"}, "additionalProperties": False},
        *[{"format": name} for name in ("uri", "duration", "json-pointer", "float", "double", "local-date-time")],
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_that_a_gateway_takes_is_taken(schema: Json) -> None:
    assert TopicSchema(schema).unjudged == ()


# ---- payloads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value", "good"),
    [
        ({"type": "number", "multipleOf": 0.1}, 0.3, True),
        ({"type": "number", "multipleOf": 0.1}, 0.35, False),
        ({"type": "number", "multipleOf": 0.01}, 1e300, False),
        ({"type": "number", "minimum": 0.1, "maximum": 0.3}, 0.1, True),
        ({"type": "number", "minimum": 0.1}, 0.09, False),
        ({"type": "integer"}, 2.0, True),
        ({"type": "integer"}, 2.5, False),
        ({"type": "integer"}, True, False),
        ({"enum": [0.1, "x"]}, 0.1, True),
        ({"const": {"a": [0.1]}}, {"a": [0.1]}, True),
        ({"const": 0.1}, 0.2, False),
        ({"uniqueItems": True}, [{"a": 1}, {"a": 2}], True),
        ({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ({"uniqueItems": False}, [1, 1], True),
        ({"format": "date"}, "2026-11-30", True),
        ({"format": "date"}, "30.11.2026", False),
        ({"format": "date-time"}, "2026-11-30T00:00:00.5Z", True),
        ({"format": "date-time"}, "2026-11-30T00:00:00+01:00", True),
        ({"format": "date-time"}, "2026-11-30", False),
        ({"format": "byte"}, "YWI=", True),
        ({"format": "byte"}, "YW-_", False),
        ({"format": "uuid"}, "0b271eb8-1e21-4817-95af-7951649360ed", True),
        ({"format": "uuid"}, "0b271eb8", False),
        ({"format": "ipv4"}, "192.168.0.255", True),
        ({"format": "ipv4"}, "192.168.0.256", False),
        ({"format": "ipv4"}, "192.168.0", False),
        ({"format": "date"}, 5, True),
        ({"format": "uri"}, "not judged", True),
        ({"pattern": "^\\d+$"}, "12\n", False),
        ({"pattern": "^\\d+$"}, 12, True),
        ({"items": {"maxLength": 2}}, ["abc"], False),
    ],
)  # fmt: skip
def test_a_value_fits_or_not(schema: Json, value: object, good: bool) -> None:
    assert (said(of(**schema), value) == ()) is good


def test_what_a_reference_names_holds_beside_what_stands_there() -> None:
    definitions = {"a/b": {"type": "string"}, "list": [{"maxLength": 1}]}
    schema = TopicSchema(
        {"properties": {"a": {"$ref": "#/definitions/a~1b", "minLength": 2}}, "definitions": definitions}
    )
    assert said(schema, "ab") == ()
    assert said(schema, "a") == ("/a: minLength",)  # as Ajv 8; draft-07 itself would pass it
    assert said(schema, 1) == ("/a: type",)
    listed = TopicSchema({"properties": {"a": {"$ref": "#/definitions/list/0"}}, "definitions": definitions})
    assert said(listed, "ab") == ("/a: maxLength",)


@pytest.mark.parametrize("pattern", ["(a+)+$", "\\p{L}", "(?<=a)b"])
def test_what_cannot_be_judged_passes_and_is_told(pattern: str) -> None:
    schema = of(type="string", pattern=pattern)
    assert len(schema.unjudged) == 1
    assert schema.unjudged[0].startswith("/properties/a/pattern: ")
    assert said(schema, "a" * 5000 + "b") == ()


def test_properties_named_by_a_pattern_are_not_judged() -> None:
    schema = TopicSchema({"patternProperties": {"^x": TEXT, "^a": {"type": "null"}}, "additionalProperties": False})
    assert schema.unjudged == ("/patternProperties",)
    assert said(schema, 1) == ()


def test_patterns_take_a_bounded_time_in_all() -> None:
    schema = of(items={"pattern": "a*a*b"})
    assert said(schema, ["a" * 80] * 3) == ("/a/0: pattern", "/a/1: pattern", "/a/2: pattern")
    good = ["a" * 80 + "b"] * 100
    assert said(schema, [*good, "a" * 80]) == ()  # by then it has taken too many steps


@pytest.mark.parametrize(
    ("node", "value", "good"),
    [
        (TEXT, "plain text", True),
        *[(TEXT, f"a{sign}b", False) for sign in "&<>\"'/-.\\\b\f\n\r\t"],
        ({**TEXT, "maxLength": 9, "description": "x"}, "a.b", False),
        ({**TEXT, "pattern": "^.*$"}, "a.b", True),
        ({**TEXT, "format": "uri"}, "a.b", True),
        ({**TEXT, "enum": ["a.b"]}, "a.b", True),
        ({"type": ["string"]}, "a.b", True),
        ({}, "a.b", True),
        ({"type": "array", "items": TEXT}, ["a.b"], True),
        ({"type": "object", "properties": {"b": TEXT}}, {"b": "a.b"}, False),
        ({"type": "object", "properties": {"b": TEXT}}, {"c": "a.b"}, True),
    ],
)  # fmt: skip
def test_in_clear_the_broker_looks_at_plain_texts(node: Json, value: object, good: bool) -> None:
    schema = of(**node)
    assert said(schema, value) == ()
    assert (said(schema, value, encrypted=False) == ()) is good


@pytest.mark.parametrize("payload", ["[]", '"x"', "1"])
def test_in_clear_the_broker_takes_objects_only(payload: str) -> None:
    assert TopicSchema({}).problems(payload, encrypted=True) == ()
    assert TopicSchema({}).problems(payload, encrypted=False) == ("in clear the broker takes objects only",)


# ---- anything -----------------------------------------------------------------------------------------------------

SMALL = st.sampled_from(["string", "number", "object", "array", "null"])
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.fixed_dictionaries({}, optional={"type": SMALL, "minimum": st.integers(), "minLength": st.just(2)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            "items": inner | st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "additionalProperties": inner,
            "required": st.just(["a"]),
        },
    ),
    max_leaves=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(schema=SCHEMAS, value=JSON)
def test_where_the_dialects_agree_we_say_what_jsonschema_says(schema: Any, value: Any) -> None:
    if isinstance(schema, dict):
        theirs = jsonschema.Draft7Validator(schema).is_valid(value)
        assert (TopicSchema(schema).problems(json.dumps(value), encrypted=True) == ()) is theirs


@settings(max_examples=100, deadline=None)
@given(
    schema=st.dictionaries(
        st.sampled_from(["properties", "items", "$ref", "allOf", "type", "pattern", "format", "enum"]), JSON
    ),
    value=JSON,
)
def test_no_schema_crashes(schema: Any, value: Any) -> None:
    try:
        found = TopicSchema(schema)
    except SchemaError:
        return
    found.problems(json.dumps(value), encrypted=False)
