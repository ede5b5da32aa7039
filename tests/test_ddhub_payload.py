"""A message's text: literal both ways, its size before it is written, and what anybody may send instead."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence.envelope import MAX_ENVELOPE
from agent.transports.ddhub.content.cipher import encrypt
from agent.transports.ddhub.content.payload import (
    MOST_TEXT,
    Payload,
    clear_size,
    decode,
    encode,
    encrypted_size,
    envelope_share,
    largest_clear,
)

KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("envelopes", "records", "text"),
    [
        ([b"\x00"], None, '{"envelopes":["AA"]}'),
        ([b"\xfb\xff", b"abc"], None, '{"envelopes":["-_8","YWJj"]}'),
        ([b"abcd"], [], '{"envelopes":["YWJjZA"],"records":[]}'),
        ([b"abcd"], ['{"n":"a","v":1.50}', '{"vb":true}'],
         '{"envelopes":["YWJjZA"],"records":[{"n":"a","v":1.50},{"vb":true}]}'),
    ],
)  # fmt: skip
def test_a_text_both_ways(envelopes: list[bytes], records: list[str] | None, text: str) -> None:
    assert encode(envelopes, records) == text
    assert clear_size(map(len, envelopes), None if records is None else map(len, records)) == len(text)
    found = decode(text)
    assert found.envelopes == tuple(envelopes)
    assert (found.records is None) is (records is None)
    assert not found.altered
    assert not found.refused


def test_numbers_stay_as_they_were_written() -> None:
    found = decode('{"envelopes":["AA"],"records":[{"bt":1764000000.123456,"v":1.50,"n":"a","vb":true}]}')
    assert found.records is not None
    (record,) = found.records
    assert isinstance(record, dict)
    assert [str(value) for value in record.values()] == ["1764000000.123456", "1.50", "a", "True"]


@settings(max_examples=200, deadline=None)
@given(
    envelopes=st.lists(st.binary(min_size=1, max_size=70), min_size=1, max_size=8),
    records=st.none() | st.lists(st.dictionaries(st.sampled_from("nuv"), st.text() | st.integers()), max_size=4),
)
def test_sizes_are_known_beforehand(envelopes: list[bytes], records: list[dict[str, Any]] | None) -> None:
    objects = None if records is None else [json.dumps(each) for each in records]
    text = encode(envelopes, objects)
    assert decode(text) == Payload(tuple(envelopes), None if records is None else decode(text).records)
    size = clear_size(map(len, envelopes), None if objects is None else map(len, objects))
    assert size == len(text) == len(text.encode())
    sealed = len(encrypt(text, KEY))
    assert encrypted_size(size) == sealed
    assert size <= largest_clear(sealed)
    assert largest_clear(sealed - 1) < size
    more = clear_size([*map(len, envelopes), 33], None if objects is None else map(len, objects))
    assert more == size + envelope_share(33)


@pytest.mark.parametrize("limit", [65, 96, 97, 128, 129, 450 * 1024, 450_001])
def test_the_largest_text_is_the_largest(limit: int) -> None:
    most = largest_clear(limit)
    assert len(encrypt("{" * most, KEY)) <= limit < len(encrypt("{" * (most + 1), KEY))


def test_nothing_fits_a_tiny_limit() -> None:
    assert largest_clear(64) < 0
    assert largest_clear(0) < 0


# ---- what happens on the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dash", ["&#45;", "&#x2d;", "&#x2D;", "&#X2d;", "&#045;"])
def test_an_escaped_dash_is_undone_and_told(dash: str) -> None:
    text = encode([b"\xfb\xef\xbe", b"abc"])
    assert "----" in text.replace('"', "-")
    found = decode(text.replace("--", dash * 2).replace('"-', f'"{dash}'))
    assert found == Payload((b"\xfb\xef\xbe", b"abc"), altered=True)


@pytest.mark.parametrize("item", ["AA&amp;#45;", "AA&#46;", "AA&#45", "&#45;&#45;&#45;&#45;&#45;", "AA&lt;"])
def test_it_is_undone_once_and_nothing_else_is(item: str) -> None:
    found = decode(json.dumps({"envelopes": [item, "AA"]}))
    assert found.envelopes == (b"\x00",)
    assert not found.altered
    assert [str(each) for each in found.refused] == ["payload: envelope 1 of 2 is no base64url, or too large"]


@pytest.mark.parametrize(
    "item",
    ["", "A", "AAAAA", "AB", "AAB", "AA==", "A A", "AA\n", "A+/A", "A.A", "\uff21\uff21", "\ud800", 1, None, [], {}],
)  # fmt: skip
def test_one_bad_envelope_loses_no_other(item: object) -> None:
    found = decode(json.dumps({"envelopes": ["YWJj", item, "AA"]}))
    assert found.envelopes == (b"abc", b"\x00")
    assert [str(each) for each in found.refused] == ["payload: envelope 2 of 3 is no base64url, or too large"]


def test_the_largest_envelope_passes_and_no_larger() -> None:
    found = decode(encode([bytes(MAX_ENVELOPE), bytes(MAX_ENVELOPE + 3)]))
    assert [len(each) for each in found.envelopes] == [MAX_ENVELOPE]
    assert len(found.refused) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "begins with {"),
        ("[]", "begins with {"),
        (' {"envelopes":["AA"]}', "begins with {"),
        ('\ufeff{"envelopes":["AA"]}', "begins with {"),
        ("{", "not JSON at character 1"),
        ('{"envelopes":["AA"]}x', "not JSON at character 20"),
        ("{}", "a list that is not empty"),
        ('{"envelopes":[]}', "a list that is not empty"),
        ('{"envelopes":"AA"}', "a list that is not empty"),
        ('{"envelopes":["AA"],"envelopes":["AA"]}', "there twice"),
        ('{"envelopes":["AA"],"records":[{"v":1,"v":2}]}', "there twice"),
        ('{"envelopes":["AA"],"a":NaN}', "NaN is no JSON"),
        ('{"envelopes":["AA"],"a":-Infinity}', "-Infinity is no JSON"),
        ('{"envelopes":["AA"],"a":1' + "0" * 100 + "}", "more than 100 digits"),
        ('{"envelopes":["AA"],"a":1e9999999999999999999}', "beyond what a decimal can be"),
        ('{"envelopes":["AA"],"a":' + "[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"envelopes":[' + "0," * 700_000, "more than 600000 values"),
        ("{" + " " * MOST_TEXT, "larger than"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_no_payload_is_told(text: str, why: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        decode(text)
    assert why in str(caught.value)


def test_what_a_newer_version_adds_is_passed_over() -> None:
    assert decode('{"envelopes":["AA"],"more":{"x":[1]}}') == Payload((b"\x00",))


@pytest.mark.parametrize("records", ["null", "7", '"x"', "{}", "[[1]]", "[null]"])
def test_strange_records_lose_no_envelope(records: str) -> None:
    found = decode('{"envelopes":["AA"],"records":' + records + "}")
    assert found.envelopes == (b"\x00",)
    assert found.records is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["envelopes", "records", "v"]) | st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(text=st.text().map(lambda rest: "{" + rest) | JSON.map(json.dumps))
def test_nothing_that_anybody_sends_crashes(text: str) -> None:
    try:
        found = decode(text)
    except EvidenceError:
        return
    assert found.envelopes or found.refused


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_text_gives_envelopes_or_an_error(data: st.DataObject) -> None:
    text = encode([b"some envelope", b"another one"], ['{"n":"a","v":1.5}'])
    at = data.draw(st.integers(0, len(text) - 1))
    spoilt = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 5)) :]
    with suppress(EvidenceError):
        decode(spoilt)


def test_a_decimal_is_no_float() -> None:
    found = decode('{"envelopes":["AA"],"records":[{"v":0.1}]}')
    assert found.records == ({"v": Decimal("0.1")},)
