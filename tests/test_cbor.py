"""What the evidence format's CBOR lets through, and what it does not (docs/evidence.md section 3)."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence import cbor

GOOD = {
    "00": 0,
    "3bffffffffffffffff": -(2**64),
    "1bffffffffffffffff": 2**64 - 1,
    "f93e00": 1.5,
    "f90000": 0.0,
    "fa47c35000": 100000.0,
    "fb3fb999999999999a": 0.1,
    "4101": b"\x01",
    "63e282ac": "€",
    "5818" + "00" * 24: bytes(24),
    "790100" + "61" * 256: "a" * 256,
    "835820" + "1c" * 32 + "7820" + "61" * 32 + "19ffff": [b"\x1c" * 32, "a" * 32, 65535],
    "82f93e0003": [1.5, 3],
    "80": [],
    "8301f6f5": [1, None, True],
    "a20102030a": {1: 2, 3: 10},
    "8181818181818101": [[[[[[[1]]]]]]],
    "8181818181818180": [[[[[[[[]]]]]]]],
    "818181818181818101": [[[[[[[[1]]]]]]]],
    "a4000118180220032104": {0: 1, 24: 2, -1: 3, -2: 4},  # RFC 7049 would have 24 behind -2
}
BAD = {
    "longer integer": "1801",
    "longer bytes": "580101",
    "longer long bytes": "590018" + "00" * 24,
    "longer text": "790001" + "61",
    "digest cut short": "825820" + "00" * 31,
    "behind a digest": "825820" + "00" * 32 + "1c",
    "bytes with a length of 64 bits": "5b0000000000000001" + "00",
    "longer array": "980101",
    "longer map": "b90001" + "0101",
    "reserved head": "1c",
    "longer float": "fb3ff8000000000000",
    "longer float of 32 bits": "fa3fc00000",
    "longer float behind a short one": "82f93e00fa3fc00000",
    "-0.0": "f98000",
    "-0.0 of 32 bits": "fa80000000",
    "NaN": "f97e00",
    "NaN with payload": "fb7ff8000000000001",
    "infinity": "f97c00",
    "infinity of 64 bits": "fb7ff0000000000000",
    "bignum": "c249010000000000000000",
    "small bignum": "c24101",
    "date": "c11a514b67b0",
    "date text": "c074323031332d30332d32315432303a30343a30305a",
    "decimal fraction": "c4820119ffff",
    "bigfloat bomb": "c5821b00000000000fffff01",
    "shared reference": "d81c8101",
    "cyclic reference": "d81c81d81d00",
    "string reference": "d90100820102",
    "set": "d9010281 01".replace(" ", ""),
    "self-described": "d9d9f701",
    "MIME": "d82401",
    "unknown tag": "d9999901",
    "undefined": "f7",
    "simple value 0": "e0",
    "simple value 32": "f820",
    "longer false": "f814",
    "break": "ff",
    "duplicate key": "a201020103",
    "keys out of order": "a203020102",
    "keys in the order of RFC 7049": "a22001181801",
    "negative keys out of order": "a221012001",
    "key true": "a1f500",
    "key float": "a1f93c0001",
    "key text": "a1616101",
    "key bytes": "a1410101",
    "indefinite array": "9f01ff",
    "indefinite bytes": "5f4101ff",
    "bad UTF-8": "62c328",
    "followed by more": "0102",
    "cut short": "8201",
    "empty": "",
    "length bomb": "9b000000ffffffffff",
    "nested nine deep": "81" * 9 + "01",
    "nested nine deep, empty": "81" * 8 + "80",
    "nested nine deep, empty map": "8201" + "81" * 7 + "a0",
    "maps nested nine deep": "a101" * 9 + "00",
    "thousands deep": "81" * 100_000,
}


@pytest.mark.parametrize(("hexed", "item"), GOOD.items())
def test_allowed_items_run_both_ways(hexed: str, item: Any) -> None:
    assert cbor.decode(bytes.fromhex(hexed)) == item
    assert cbor.encode_any_keys(item).hex() == hexed


@pytest.mark.parametrize("hexed", BAD.values(), ids=BAD)
def test_everything_else_is_refused(hexed: str) -> None:
    with pytest.raises(EvidenceError):
        cbor.decode(bytes.fromhex(hexed))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        item = cbor.decode(data)
    except EvidenceError:
        return
    assert cbor.encode_any_keys(item) == data


@pytest.mark.parametrize("hexed", ["0102", "c101", "9f01ff", "f7"])
def test_what_was_refused_leaves_nothing_behind(hexed: str) -> None:
    with pytest.raises(EvidenceError):
        cbor.decode(bytes.fromhex(hexed))
    assert cbor.decode(b"\x03") == 3


numbers = st.sampled_from([edge + step for edge in (0, 23, 24, 255, 256, 65535, 65536, 2**32) for step in (-1, 0, 1)])


@given(st.lists(st.tuples(numbers, st.sampled_from([0, 1, 2, 4, 8]), st.booleans()), min_size=1, max_size=5))
def test_only_the_shortest_head_of_an_integer_is_taken(items: list[tuple[int, int, bool]]) -> None:
    data, shortest = bytes([0x80 + len(items)]), True
    for number, more, negative in items:
        argument, fitting = max(0, number), 8 if number >= 2**32 else 4
        least = 0 if argument < 24 else 1 if argument < 256 else 2 if argument < 65536 else fitting
        size = max(more, least)
        shortest &= size == least
        head = (0x20 if negative else 0) + (argument if not size else 23 + size.bit_length())
        data += bytes([head]) + (argument.to_bytes(size, "big") if size else b"")
    if shortest:
        assert cbor.encode(cbor.decode(data)) == data
    else:
        with pytest.raises(EvidenceError, match="shortest"):
            cbor.decode(data)


scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary()
scalars |= st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)  # -0.0 becomes 0.0


@given(
    st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.integers(-(2**32), 2**32), inner), max_leaves=20
    )
)
def test_what_is_allowed_comes_back_as_it_went(item: Any) -> None:
    if _depth(item) > cbor.MAX_DEPTH:
        with pytest.raises(EvidenceError, match="nest"):
            cbor.decode(cbor.encode_any_keys(item))
    else:
        assert cbor.decode(cbor.encode_any_keys(item)) == item


@given(
    st.integers(0, 30).flatmap(
        lambda size: st.lists(st.lists(st.integers(-(2**40), 2**40 - 1) | numbers, min_size=size, max_size=size))
    )
)
def test_integers_are_encoded_as_all_items_are(arrays: list[list[int]]) -> None:
    assert cbor.encode_integers(arrays) == cbor.encode(arrays)


@pytest.mark.parametrize(
    ("number", "error"), [(2**40, OverflowError), (-(2**40) - 1, OverflowError), (None, TypeError)]
)
def test_what_is_no_integer_of_40_bits_is_not_encoded_as_one(number: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cbor.encode_integers([[1], [number]])


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_integers_have_their_shortest_form(bits: int) -> None:
    edges = [sign * 2**bits + step for sign in (1, -1) for step in (-2, -1, 0, 1)]
    assert cbor.encode_integers([edges]) == cbor.encode([edges])


@given(st.integers(1, 4), st.data())
def test_small_steps_are_encoded_as_all_integers_are(width: int, draw: st.DataObject) -> None:
    firsts = draw.draw(st.lists(st.integers(-(2**40), 2**40 - 1), min_size=width, max_size=width))
    rows = draw.draw(st.lists(st.lists(st.integers(-24, 23), min_size=width, max_size=width), max_size=30))
    steps = b"".join(struct.pack(f"{width}b", *row) for row in rows)
    assert cbor.encode_steps(firsts, steps) == cbor.encode(list(zip(firsts, *rows, strict=True)))


@pytest.mark.parametrize("step", [-128, -25, 24, 127])
def test_a_step_of_more_than_a_byte_is_left_to_others(step: int) -> None:
    assert cbor.encode_steps([5, 6], struct.pack("4b", 1, 2, 3, step)) is None


@given(st.lists(scalars), st.dictionaries(st.integers(0, 300), scalars))
def test_encoded_items_are_joined(items: list[Any], pairs: dict[int, Any]) -> None:
    assert cbor.join([cbor.encode(item) for item in items]) == cbor.encode(items)
    encoded = {key: cbor.encode(pairs[key]) for key in sorted(pairs)}
    assert cbor.join_map(encoded) == cbor.encode(pairs)


@given(scalars | st.lists(scalars) | st.dictionaries(st.integers(0, 30), scalars), st.data())
def test_of_changed_bytes_only_the_one_encoding_is_taken(item: Any, draw: st.DataObject) -> None:
    data = bytearray(cbor.encode_any_keys(item))
    data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found = cbor.decode(bytes(data))
    except EvidenceError:
        return
    assert cbor.encode_any_keys(found) == data


def _depth(item: Any) -> int:
    inner = item if isinstance(item, list) else item.values() if isinstance(item, dict) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)
