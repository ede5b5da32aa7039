"""Registers to values and qualities, in tables of literal registers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.modbus.decode import Counters, Decoded, GroupDecoder, Source
from adapters.modbus.registers import NUMBER_TYPES, Block, Field
from adapters.modbus.requests import Limits, Registers
from agent.model import Quality, Value


def sent(registers: Sequence[int]) -> bytes:
    """Registers as they travel."""
    return b"".join(each.to_bytes(2, "big") for each in registers)


def source(address: int, kind: str = "int16", **more: Any) -> Source:
    return Source(registers=Registers("holding", address, NUMBER_TYPES[kind].count), type=kind, **more)


def scaled(address: int, scale: int, **more: Any) -> Source:
    return source(address, sentinel=-0x8000, scale=Registers("holding", scale, 1), **more)


@pytest.mark.parametrize(
    ("kind", "registers", "value"),
    [
        ("int16", [0xFFFE], -2),
        ("uint16", [0xFFFE], 65534),
        ("enum16", [7], 7),
        ("int32", [0xFFFF, 0xFFFE], -2),
        ("uint32", [0x0001, 0x0002], 65538),
        ("int64", [0xFFFF, 0xFFFF, 0xFFFF, 0xFFFE], -2),
        ("uint64", [0x8000, 0, 0, 1], 0x8000_0000_0000_0001),
        ("float32", [0x4366, 0x8000], 230.5),
        ("float64", [0x406C, 0xD000, 0, 0], 230.5),
    ],
)
def test_every_type_in_every_order(kind: str, registers: list[int], value: float) -> None:
    swapped = [(word & 0xFF) << 8 | word >> 8 for word in registers]
    orders = {
        (False, False): registers,
        (True, False): registers[::-1],
        (False, True): swapped,
        (True, True): swapped[::-1],
    }
    for (words, swap), image in orders.items():
        decoder = GroupDecoder([source(1, kind, little_words=words, little_bytes=swap)], Limits())
        assert decoder.decode([sent(image)]) == Decoded((value,))


def test_a_block_with_holes_orders_and_overlaps() -> None:
    fields = [Field(0, "uint32"), Field(1, "uint16"), Field(3, "uint16", little_bytes=True)]
    assert Block(5, fields).values(sent([0x0001, 0x0002, 0xAAAA, 0x1234, 0xBBBB])) == (65538, 2, 0x3412)
    assert Block(5, [Field(1, "int16"), Field(3, "uint16")]).values(sent([9, 0xFFFF, 9, 5, 9])) == (-1, 5)


codes = st.sampled_from(sorted(NUMBER_TYPES))


@given(st.data())
def test_packed_numbers_come_back_in_the_order_of_the_points(data: st.DataObject) -> None:
    sources: list[Source] = []
    image: dict[int, int] = {}
    values: list[int | float] = []
    address = 0
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(codes)
        number = NUMBER_TYPES[kind]
        address += data.draw(st.integers(0, 12))
        raw = data.draw(st.binary(min_size=2 * number.count, max_size=2 * number.count))
        value = struct.unpack(">" + number.code, raw)[0]
        if not math.isfinite(value) or value == 0:
            continue
        little_words, little_bytes = data.draw(st.booleans()), data.draw(st.booleans())
        words = [raw[i : i + 2] for i in range(0, len(raw), 2)]
        for offset, word in enumerate(reversed(words) if little_words else words):
            image[address + offset] = int.from_bytes(word, "little" if little_bytes else "big")
        sources.append(source(address, kind, little_words=little_words, little_bytes=little_bytes))
        values.append(value)
        address += number.count
    order = data.draw(st.permutations(range(len(sources))))
    decoder = GroupDecoder([sources[i] for i in order], Limits(max_registers=data.draw(st.integers(4, 125))))
    answers = [sent([image.get(i, 0xDEAD) for i in range(each.address, each.end)]) for each in decoder.requests]
    assert decoder.decode(answers) == Decoded(tuple(values[i] for i in order))


@pytest.mark.parametrize(
    ("point", "registers", "value", "quality"),
    [
        (source(0, sentinel=-0x8000), [0x8000], None, Quality.NOT_IMPLEMENTED),
        (source(0), [0x8000], -32768, None),  # by hand there is no sentinel
        (source(0, "uint32", sentinel=0), [0, 0], None, Quality.NOT_IMPLEMENTED),
        (source(0, "float32"), [0x7FC0, 0], None, Quality.NOT_IMPLEMENTED),
        (source(0, "float32"), [0x7F80, 0], None, Quality.BAD_ENCODING),
        (source(0, "float32", multiplier=0.5), [0x4040, 0], 1.5, None),
        (source(0, "float64", multiplier=1e300), [0x7FE0, 0, 0, 0], None, Quality.BAD_ENCODING),
        (source(0, multiplier=5), [3], 15, None),
        (source(0, multiplier=-1), [3], -3, None),
        (source(0, "uint64", multiplier=5), [0xFFFF] * 4, None, Quality.BAD_ENCODING),
        (source(0, "uint64"), [0xFFFF] * 4, (1 << 64) - 1, None),
        (source(0, low=-5, high=5), [5], 5, None),
        (source(0, low=-5, high=5), [6], 6, Quality.OUT_OF_RANGE),
        (source(0, low=-5, high=5), [0xFFFA], -6, Quality.OUT_OF_RANGE),
        (source(0, "float32", high=1.0), [0x4040, 0], 3.0, Quality.OUT_OF_RANGE),
    ],
)
def test_values_that_are_not_plain(point: Source, registers: list[int], value: Value, quality: Quality | None) -> None:
    expected = Decoded((value,), () if quality is None else ((0, quality),))
    assert GroupDecoder([point], Limits()).decode([sent(registers)]) == expected


def test_one_bad_value_leaves_the_others_as_they_are() -> None:
    sources = [source(0, "float32", multiplier=2), source(2, multiplier=5), source(3, sentinel=-1)]
    decoder = GroupDecoder(sources, Limits())
    assert decoder.decode([sent([0x3F80, 0, 3, 7])]) == Decoded((2.0, 15, 7))
    assert decoder.decode([sent([0x3F80, 0, 3, 0xFFFF])]) == Decoded((2.0, 15, None), ((2, Quality.NOT_IMPLEMENTED),))


def test_minus_zero_becomes_zero() -> None:
    for image in ([0x8000, 0, 1], [0x8000, 0, 0x8000]):  # the good case, and with a sentinel beside it
        value = (
            GroupDecoder([source(0, "float32"), source(2, sentinel=-0x8000)], Limits()).decode([sent(image)]).values[0]
        )
        assert isinstance(value, float)
        assert math.copysign(1, value) == 1


@pytest.mark.parametrize(
    ("exponent", "value", "scale", "expected", "quality", "moved"),
    [
        (-1, 2304, 0xFFFF, 2304, None, {}),
        (-1, 230, 0, 2300, None, {}),
        (0, 2300, 0xFFFF, 230, None, {}),
        (0, 2304, 0xFFFF, None, Quality.BAD_ENCODING, {1: -1}),
        (0, 0xFFF6, 0xFFFF, -1, None, {}),
        (0, 2304, 0x8000, None, Quality.NOT_IMPLEMENTED, {}),
        (0, 2304, 11, None, Quality.BAD_ENCODING, {}),
        (0, 2304, 0xFFF5, None, Quality.BAD_ENCODING, {}),
        (0, 0x8000, 11, None, Quality.NOT_IMPLEMENTED, {}),
        (-10, 1, 10, None, Quality.BAD_ENCODING, {}),  # 10^20: too large, and exponents only fall
    ],
)
def test_a_scale_factor_that_moved(
    *, exponent: int, value: int, scale: int, expected: int | None, quality: Quality | None, moved: dict[int, int]
) -> None:
    decoder = GroupDecoder([scaled(0, 1, exponent=exponent)], Limits())
    decoded = decoder.decode([sent([value, scale])])
    assert decoded == Decoded((expected,), () if quality is None else ((0, quality),), moved)


def test_all_points_of_a_scale_factor_that_needs_a_new_plan_are_null_once() -> None:
    decoder = GroupDecoder([scaled(0, 2), scaled(1, 2), source(3)], Limits())
    decoded = decoder.decode([sent([2300, 2304, 0xFFFF, 7])])
    assert decoded == Decoded((None, None, 7), ((0, Quality.BAD_ENCODING), (1, Quality.BAD_ENCODING)), {2: -1})


def test_a_scale_factor_is_read_with_its_point_if_one_request_holds_both() -> None:
    together = GroupDecoder([scaled(0, 60)], Limits(max_registers=61))
    assert together.requests == (Registers("holding", 0, 61),)
    apart = GroupDecoder([scaled(0, 60)], Limits(max_registers=60))
    assert apart.requests == (Registers("holding", 0, 1), Registers("holding", 60, 1))
    assert apart.decode([sent([23]), sent([0])]) == Decoded((23,))
    assert apart.decode([sent([23]), sent([1])]) == Decoded((230,), ((0, Quality.SUSPECT),))


def test_an_exception_response_costs_only_its_points() -> None:
    decoder = GroupDecoder([source(100), source(0), None], Limits())
    assert decoder.decode([sent([5]), 2]) == Decoded(
        (None, 5, None), ((0, Quality.DEVICE_EXCEPTION), (2, Quality.NOT_IMPLEMENTED))
    )


def test_no_answer_costs_only_its_points() -> None:
    decoder = GroupDecoder([source(100), source(0), scaled(200, 400)], Limits())
    assert [each.address for each in decoder.requests] == [0, 100, 200, 400]
    assert decoder.decode([sent([4]), None, sent([3]), None]) == Decoded(
        (None, 4, None), ((0, Quality.NO_VALUE), (2, Quality.NO_VALUE))
    )


def test_counters_that_fall_are_suspect() -> None:
    sources = [source(0, counter=True, high=100), source(1), source(2, counter=True)]
    decoder, counters = GroupDecoder(sources, Limits()), Counters(sources)
    seen = [
        counters.judge(decoder.decode([sent(image)])).quality
        for image in ([10, 9, 10], [10, 1, 9], [11, 0, 9], [200, 0, 8])
    ]
    assert seen == [(), ((2, Quality.SUSPECT),), (), ((0, Quality.OUT_OF_RANGE), (2, Quality.SUSPECT))]


def test_a_counter_is_compared_with_its_last_good_value() -> None:
    sources = [source(0, counter=True, sentinel=-1)]
    decoder, counters = GroupDecoder(sources, Limits()), Counters(sources)
    seen = [counters.judge(decoder.decode([sent([word])])).quality for word in (10, 0xFFFF, 9)]
    assert seen == [(), ((0, Quality.NOT_IMPLEMENTED),), ((0, Quality.SUSPECT),)]
