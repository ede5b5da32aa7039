"""Durations and sizes as text."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.units import (
    DURATION_SCHEMA,
    SIZE_SCHEMA,
    Duration,
    Phase,
    Size,
    duration_ns,
    duration_range,
    duration_text,
    size_bytes,
    size_range,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0s", 0),
        ("1ms", 1_000_000),
        ("500ms", 500_000_000),
        ("5s", 5_000_000_000),
        ("1m", 60_000_000_000),
        ("2h", 7_200_000_000_000),
        ("1d", 86_400_000_000_000),
    ],
)
def test_duration(text: str, ns: int) -> None:
    assert duration_ns(text) == ns
    assert duration_text(ns) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0B", 0),
        ("4097B", 4097),
        ("64KiB", 65_536),
        ("1MiB", 1_048_576),
        ("2GiB", 2_147_483_648),
        ("1TiB", 1_099_511_627_776),
    ],
)
def test_size(text: str, count: int) -> None:
    assert size_bytes(text) == count
    assert size_text(count) == text


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", " 5s", "5s\n", "-5s", "0.5s", "5S", "1m30s", "1e3s", "५s"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        duration_ns(text)
    assert str(caught.value) == (
        f'expected a duration, found "{text}"; '
        'write a whole number and one of ms, s, m, h, d, such as "500ms", "5s" or "1m"'
    )


@pytest.mark.parametrize("text", ["", "64", "64K", "64kB", "64KB", "64kib", "1.5MiB", "-1MiB", "1 MiB"])
def test_size_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        size_bytes(text)
    assert str(caught.value) == (
        f'expected a size, found "{text}"; '
        'write a whole number and one of B, KiB, MiB, GiB, TiB (steps of 1024), such as "64KiB" or "2GiB"'
    )


def test_more_than_63_bits_is_refused() -> None:
    assert duration_ns("106751d") < 2**63
    with pytest.raises(ValueError, match='the duration "106752d" is too large; '):
        duration_ns("106752d")
    with pytest.raises(ValueError, match='the size "8388608TiB" is too large; '):
        size_bytes("8388608TiB")
    with pytest.raises(ValueError, match="expected a duration"):
        duration_ns("9" * 5000 + "s")


def test_no_text_for_a_part_of_a_millisecond() -> None:
    with pytest.raises(ValueError, match="no whole number of milliseconds"):
        duration_text(1_500_000)


@given(st.integers(0, 2**63 // 1_000_000 - 1))
def test_every_duration_survives_text(ms: int) -> None:
    assert duration_ns(duration_text(ms * 1_000_000)) == ms * 1_000_000


@given(st.integers(0, 2**63 - 1))
def test_every_size_survives_text(count: int) -> None:
    assert size_bytes(size_text(count)) == count


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    every: Annotated[Duration, duration_range("100ms", "60s")] = 1_000_000_000
    size: Annotated[Size, size_range("4MiB", "1GiB")] = 67_108_864
    phase: Phase = 0
    silent: Duration | None = None


@pytest.mark.parametrize("raw", [{}, {"every": "1500ms", "phase": "auto"}, {"phase": "500ms", "silent": "2m"}])
def test_fields_are_shown_as_text_that_they_take(raw: dict[str, object]) -> None:
    shown = Model.model_validate(raw).model_dump(mode="json", exclude_none=True)
    assert shown == {"every": "1s", "size": "64MiB", "phase": "0s"} | raw
    assert Model.model_validate(shown) == Model.model_validate(raw)


@pytest.mark.parametrize("text", ["1ms", "500ms", "5s", "1m", "2h", "1d"])
def test_a_schema_takes_what_a_field_takes(text: str) -> None:
    properties = Model.model_json_schema()["properties"]
    assert properties["every"]["pattern"] == DURATION_SCHEMA["pattern"]
    assert properties["size"]["pattern"] == SIZE_SCHEMA["pattern"]
    assert re.search(DURATION_SCHEMA["pattern"], text)
    assert re.search(properties["phase"]["pattern"], text)
    assert not re.search(properties["phase"]["pattern"], f"{text} ")
    assert not re.search(SIZE_SCHEMA["pattern"], text)
    assert re.search(SIZE_SCHEMA["pattern"], "64MiB")
    assert re.search(properties["phase"]["pattern"], "auto")


def test_fields_take_text_and_hold_numbers() -> None:
    assert Model.model_validate({"every": "100ms", "size": "1GiB"}) == Model.model_construct(
        every=100_000_000, size=1_073_741_824
    )
    assert Model() == Model.model_construct(every=1_000_000_000, size=67_108_864)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        ({"every": 5}, "expected a duration in quotes; write a whole number"),
        ({"every": True}, "expected a duration in quotes; write a whole number"),
        ({"every": "99ms"}, "99ms is out of range; choose 100ms to 60s"),
        ({"every": "61s"}, "61s is out of range; choose 100ms to 60s"),
        ({"size": 5.5}, "expected a size in quotes; write a whole number"),
        ({"size": "4095KiB"}, "4095KiB is out of range; choose 4MiB to 1GiB"),
        ({"phase": 5}, 'expected a duration in quotes, or "auto"; write it like "500ms"'),
        ({"phase": "Auto"}, 'expected a duration in quotes, or "auto"; write it like "500ms"'),
    ],
)
def test_fields_refuse_in_words(raw: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(raw)
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]).startswith(what)
