"""The walk through SunSpec maps, also those of devices that lie; and what the definitions say."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.modbus import definitions
from adapters.modbus.requests import Registers
from adapters.modbus.sunspec import ModelAt, common_registers, describe, walk
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo

SUNS = [0x5375, 0x6E53]
ILLEGAL_ADDRESS = 2


class Map:
    """A device's holding registers, and what was asked of it."""

    def __init__(self, base: int, *words: int) -> None:
        self.registers = dict(enumerate(words, base))
        self.asked: list[Registers] = []

    def answer(self, request: Registers) -> list[int] | int:
        self.asked.append(request)
        wanted = range(request.address, request.end)
        return [self.registers[i] for i in wanted] if all(i in self.registers for i in wanted) else ILLEGAL_ADDRESS

    def walk(self, *wanted: int, bases: tuple[int, ...] = (40000, 50000, 0)) -> Mapping[int, ModelAt]:
        return drive(self, bases, wanted)


def drive(device: Map, bases: tuple[int, ...], wanted: Collection[int]) -> Mapping[int, ModelAt]:
    steps = walk(bases, wanted)
    request = next(steps)
    while True:
        try:
            request = steps.send(device.answer(request))
        except StopIteration as end:
            found: Mapping[int, ModelAt] = end.value
            return found


def model(number: int, length: int) -> list[int]:
    return [number, length, *[0] * length]


def test_models_are_found_and_the_walk_ends_with_the_last_wanted() -> None:
    device = Map(40000, *SUNS, *model(1, 66), *model(103, 50), *model(203, 105), 0xFFFF, 0)
    assert device.walk(1, 103) == {1: ModelAt(1, 40002, 66), 103: ModelAt(103, 40070, 50)}
    assert max(request.end for request in device.asked) == 40072
    assert set(device.walk(1, 203, 999)) == {1, 103, 203}


def test_bases_are_searched_in_their_order() -> None:
    device = Map(0, *SUNS, *model(1, 66), 0xFFFF, 0)
    assert device.walk(1) == {1: ModelAt(1, 2, 66)}
    assert [request.address for request in device.asked[:3]] == [40000, 50000, 0]


def test_the_first_of_two_models_of_one_number_counts() -> None:
    device = Map(40000, *SUNS, *model(1, 66), *model(160, 8), *model(160, 9), 0xFFFF, 0)
    assert device.walk(160, 5)[160].length == 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no SunSpec marker at 40000, 50000, 0"),
        ([0x5375, 0x6E54], "no SunSpec marker"),
        ([*SUNS], "exception 2 instead of a model or the end marker at holding:40002"),
        ([*SUNS, *model(1, 66)], "exception 2 instead of a model or the end marker at holding:40070"),
        ([*SUNS, *model(1, 66), 0, 0], "number 0"),
        ([*SUNS, *model(1, 66), 103, 0xFFFF], "length 65535"),
        ([*SUNS, *model(1, 66), *([7, 0] * 300)], "more than 256 models"),
    ],
)
def test_broken_maps_are_an_error(words: list[int], text: str) -> None:
    with pytest.raises(AcquisitionError, match=text) as caught:
        Map(40000, *words).walk(1, 103)
    assert caught.value.cause is Cause.DECODE_ERROR


def test_a_chain_up_to_the_last_address_has_no_end_marker() -> None:
    device = Map(65000, *SUNS, *model(1, 66), *model(2, 65536 - 65072))
    with pytest.raises(AcquisitionError, match="no end marker"):
        device.walk(103, bases=(65000,))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0, 1, 2, 7, 103, 0xFFFF]), max_size=60))
def test_any_map_ends_and_nothing_is_read_past_a_model(words: list[int]) -> None:
    device = Map(40000, *SUNS, *words)
    try:
        found = device.walk(1, 103)
    except AcquisitionError:
        found = {}
    assert all(each.end <= 0x10000 for each in found.values())
    assert len(device.asked) < 300


def words_of(text: bytes, registers: int) -> list[int]:
    padded = text.ljust(2 * registers, b"\0")
    return [int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2)]


def test_the_maker_is_read_without_padding() -> None:
    image = [
        1,
        66,
        *words_of(b"Sonnenbau \0junk", 16),
        *words_of("Größe 5".encode("latin-1"), 16),
        *words_of(b"", 8),
        *words_of(b"1.2\x07", 8),
        *words_of(b"SN-1", 16),
        1,
        0,
    ]
    info = describe(DeviceInfo("pv", "modbus", "asset"), image)
    assert info == DeviceInfo("pv", "modbus", "asset", "Sonnenbau", "Größe 5", "SN-1", "1.2")
    short = describe(DeviceInfo("pv", "modbus"), image[: 2 + 20])
    assert (short.manufacturer, short.serial) == ("Sonnenbau", None)


def test_the_common_model_is_read_within_the_limits_of_device_and_model() -> None:
    assert common_registers(ModelAt(1, 100, 66), 125) == (Registers("holding", 100, 66),)
    assert common_registers(ModelAt(1, 100, 20), 125) == (Registers("holding", 100, 22),)
    assert common_registers(ModelAt(1, 100, 66), 50) == (Registers("holding", 100, 50), Registers("holding", 150, 16))


def test_definitions() -> None:
    power = definitions.point(103, "W")
    assert (power.offset, power.count, power.type, power.unit, power.scale) == (14, 1, "int16", "W", "W_SF")
    assert definitions.point(103, "St").labels[4] == "MPPT"
    assert definitions.point(103, "Evt1").labels == {}
    assert definitions.point(203, "TotWhExp").offset == 38
    assert definitions.point(307, "TmpAmb").scale == -1


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("C", "Cel"),
        ("Pct", "%"),
        ("% WMax", "%"),
        (" % WChaMax", "%"),
        ("% WMax/min", "%/min"),
        ("%Max/Sec", "%/s"),
        ("%ARtg/%dV", None),
        ("Var", "var"),
        ("Varh", "varh"),
        ("VAh", "V.A.h"),
        ("cos()", "/"),
        ("SF", None),
        (None, None),
    ],
)
def test_units(text: str | None, unit: str | None) -> None:
    assert definitions.senml_unit(text) == unit
