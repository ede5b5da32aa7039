"""Modbus TCP as bytes: literal messages of the specification, agreement with pymodbus, and what must be refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.mei_message import ReadDeviceInformationRequest, ReadDeviceInformationResponse
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadInputRegistersRequest,
    ReadInputRegistersResponse,
)

from adapters.modbus import adu
from adapters.modbus.adu import Adu, NotAsked, NotModbus, Splitter
from adapters.modbus.identification import Objects, Question
from adapters.modbus.registers import words
from adapters.modbus.requests import RegisterKind, Registers

DEVICE = FramerSocket(DecodePDU(is_server=True))
CLIENT = FramerSocket(DecodePDU(is_server=False))

transactions = st.integers(1, 0xFFFF)
units = st.integers(0, 255)
kinds: st.SearchStrategy[RegisterKind] = st.sampled_from(("holding", "input"))
asked = st.builds(
    lambda kind, address, count: Registers(kind, min(address, 0x10000 - count), count),
    kinds,
    st.integers(0, 0xFFFF),
    st.integers(1, 125),
)
pdus = st.binary(min_size=1, max_size=253).filter(lambda pdu: pdu[0] < 0x80)
exceptions = st.builds(lambda function, code: bytes([function, code]), st.integers(0x80, 0xFF), st.integers(0, 255))
messages = st.builds(Adu, st.integers(0, 0xFFFF), units, pdus | exceptions)


def sent(message: Adu) -> bytes:
    return adu.encode(*message)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def split(pieces: Iterable[bytes]) -> list[Adu]:
    splitter = Splitter()
    return [message for piece in pieces for message in splitter.feed(piece)]


# ---- the specification's own examples ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pdu", "expected"),
    [
        (adu.ask_registers(Registers("holding", 107, 3)), "03 006B 0003"),  # V1.1b3, 6.3
        (adu.ask_registers(Registers("input", 8, 1)), "04 0008 0001"),  # 6.4
        (adu.ask_objects(Question(1, 0)), "2B 0E 01 00"),  # 6.21
        (adu.encode(0x1501, 0xFF, b"\x03\0\x04\0\1"), "1501 0000 0006 FF 03 0004 0001"),  # V1.0b, appendix
    ],
)
def test_what_is_asked(pdu: bytes, expected: str) -> None:
    assert pdu == bytes.fromhex(expected)


def test_what_is_answered() -> None:
    three = Registers("holding", 107, 3)
    assert adu.registers(three, bytes.fromhex("03 06 022B 0000 0064")) == bytes.fromhex("022B 0000 0064")
    assert adu.registers(three, b"\x83\x02") == 2
    assert adu.registers(Registers("input", 8, 1), b"\x04\x02\x00\x0a") == b"\x00\x0a"
    assert adu.registers(Registers("input", 8, 1), b"\x84\x0b") == 11
    texts = {0: b"Company identification", 1: b"Product code XX", 2: b"V2.11"}
    body = b"".join(bytes([key, len(text)]) + text for key, text in texts.items())
    assert adu.objects(b"\x2b\x0e\x01\x01\x00\x00\x03" + body) == Objects(texts, 1)
    assert adu.objects(b"\x2b\x0e\x01\x81\xff\x02\x01\x00\x01A") == Objects({0: b"A"}, 0x81, 2)
    assert adu.objects(b"\x2b\x0e\x01\x01\xff\x00\x00") == Objects({}, 1, 0)
    assert adu.objects(b"\x2b\x0e\x01\x01\x01\x02\x00") == Objects({}, 1)  # 0 and FF are the only words for it
    assert adu.objects(b"\x2b\x0e\x01\x01\x00\x00\x02\x00\x01A\x00\x01B") == Objects({0: b"A"}, 1)
    assert adu.objects(b"\x2b\x0e\x01\x01\x00\x00\x09\x00\x01A") == Objects({0: b"A"}, 1)  # the count is not trusted
    assert adu.objects(b"\xab\x01") == 1


@pytest.mark.parametrize(
    "registers",
    [
        Registers("holding", 0, 0),
        Registers("holding", 0, 126),
        Registers("holding", -1, 1),
        Registers("holding", 0xFFFF, 2),
        Registers("holding", 0x10000, 1),
    ],
)
def test_what_no_request_can_name(registers: Registers) -> None:
    with pytest.raises(ValueError, match="no request"):
        adu.ask_registers(registers)


def test_the_ends_of_what_a_request_can_name() -> None:
    assert adu.ask_registers(Registers("input", 0xFFFF, 1)) == b"\x04\xff\xff\0\1"
    assert adu.ask_registers(Registers("input", 0, 125)) == b"\x04\0\0\0\x7d"


# ---- pymodbus is of the same opinion -----------------------------------------------------------------------------


def understood(framer: FramerSocket, data: bytes) -> ModbusPDU:
    used, pdu = framer.handleFrame(data, 0, 0)
    assert used == len(data)
    assert pdu is not None
    return pdu


@given(transactions, units, asked)
def test_a_device_understands_a_read(transaction: int, unit: int, registers: Registers) -> None:
    there = understood(DEVICE, adu.encode(transaction, unit, adu.ask_registers(registers)))
    assert isinstance(there, ReadHoldingRegistersRequest if registers.kind == "holding" else ReadInputRegistersRequest)
    assert (there.transaction_id, there.dev_id) == (transaction, unit)
    assert (there.address, there.count) == (registers.address, registers.count)


@given(transactions, units, st.integers(1, 4), st.integers(0, 255))
def test_a_device_understands_a_question(transaction: int, unit: int, category: int, first: int) -> None:
    there = understood(DEVICE, adu.encode(transaction, unit, adu.ask_objects(Question(category, first))))
    assert isinstance(there, ReadDeviceInformationRequest)
    assert (there.transaction_id, there.dev_id, there.read_code, there.object_id) == (
        transaction,
        unit,
        category,
        first,
    )


def answered(pdu: ModbusPDU) -> Adu:
    """The message that a device makes of it."""
    (message,) = split([DEVICE.buildFrame(pdu)])
    assert (message.transaction, message.unit) == (pdu.transaction_id, pdu.dev_id)
    return message


@given(transactions, units, kinds, st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=125))
def test_registers_as_a_device_sends_them(transaction: int, unit: int, kind: RegisterKind, contents: list[int]) -> None:
    answer = ReadHoldingRegistersResponse if kind == "holding" else ReadInputRegistersResponse
    message = answered(answer(registers=contents, dev_id=unit, transaction_id=transaction))
    data = adu.registers(Registers(kind, 0, len(contents)), message.pdu)
    assert isinstance(data, bytes)
    assert words(data) == contents


@given(transactions, units, kinds, st.integers(0, 255))
def test_exceptions_as_a_device_sends_them(transaction: int, unit: int, kind: RegisterKind, code: int) -> None:
    function = 3 if kind == "holding" else 4
    message = answered(ExceptionResponse(function, code, device_id=unit, transaction=transaction))
    assert adu.registers(Registers(kind, 0, 1), message.pdu) == code
    message = answered(ExceptionResponse(0x2B, code, device_id=unit, transaction=transaction))
    assert adu.objects(message.pdu) == code


texts = st.dictionaries(st.integers(0, 255), st.binary(max_size=60), max_size=6)


@given(texts, st.integers(0, 255))
def test_objects_as_a_device_sends_them(said: dict[int, bytes], conformity: int) -> None:
    answer: Any = ReadDeviceInformationResponse(information=said)
    answer.conformity = conformity
    found = adu.objects(answered(answer).pdu)
    assert isinstance(found, Objects)
    assert found.conformity == conformity
    more = found.next is not None
    assert found.texts == {key: said[key] for key in list(said)[: answer.number_of_objects]}
    assert more == (answer.number_of_objects < len(said))
    if more:
        assert found.next == list(said)[answer.number_of_objects]


@given(kinds, st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=125))
def test_pymodbus_reads_the_same_registers(kind: RegisterKind, contents: list[int]) -> None:
    data = b"".join(word.to_bytes(2, "big") for word in contents)
    pdu = bytes([3 if kind == "holding" else 4, len(data)]) + data
    there: Any = understood(CLIENT, adu.encode(1, 1, pdu))
    assert adu.registers(Registers(kind, 0, len(contents)), pdu) == data
    assert there.registers == contents


@given(texts, st.integers(0, 255), st.sampled_from((0, 0xFF)), st.integers(0, 255))
def test_pymodbus_reads_the_same_objects(said: dict[int, bytes], conformity: int, more: int, following: int) -> None:
    body = b"".join(bytes([key, len(text)]) + text for key, text in said.items())[:240]
    pdu = bytes([0x2B, 0x0E, 1, conformity, more, following, len(said)]) + body
    try:
        found = adu.objects(pdu)
    except NotModbus:
        return  # cut off: pymodbus takes a part of a text for the whole
    there: Any = understood(CLIENT, adu.encode(1, 1, pdu))
    assert found == Objects(there.information, there.conformity, there.next_object_id if more else None)


# ---- a stream ----------------------------------------------------------------------------------------------------


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_messages_come_out_whole_however_they_are_cut(stream: list[Adu], places: list[int]) -> None:
    assert split(cut(b"".join(map(sent, stream)), places)) == stream


@given(messages)
def test_a_message_byte_by_byte_comes_with_its_last_byte(message: Adu) -> None:
    splitter, data = Splitter(), sent(message)
    for byte in data[:-1]:
        assert list(splitter.feed(bytes([byte]))) == []
    assert list(splitter.feed(data[-1:])) == [message]


@given(st.integers(0, 255), st.integers(2, 254))
def test_an_exception_response_ends_behind_its_code_whatever_its_header_states(code: int, length: int) -> None:
    data = b"\0\1\0\0\0" + bytes([length]) + b"\x01\x83" + bytes([code])
    following = Adu(2, 1, b"\x03\x02\0\x07")
    assert split([data + sent(following)]) == [Adu(1, 1, bytes([0x83, code])), following]
    assert split([data[:8], data[8:]]) == [Adu(1, 1, bytes([0x83, code]))]


GOOD = Adu(9, 1, b"\x03\x02\0\x07")


def before_it_was_refused(pieces: Iterable[bytes]) -> list[Adu]:
    splitter, found = Splitter(), list[Adu]()
    try:
        for piece in pieces:
            found.extend(splitter.feed(piece))  # takes what comes before the error
    except NotModbus:
        return found
    raise AssertionError("not refused")


@pytest.mark.parametrize(
    "header",
    [
        b"\0\1\1\0\0\5\1\3",
        b"\0\1\0\1\0\5\1\3",
        b"\0\1\0\0\1\0\1\3",  # 256
        b"\0\1\0\0\0\xff\1\3",
        b"\0\1\0\0\0\1\1\3",
        b"\0\1\0\0\0\0\1\3",
        b"HTTP/1.1",
    ],
)
def test_what_is_no_header(header: bytes) -> None:
    assert before_it_was_refused([header]) == []
    assert before_it_was_refused([header + bytes(600)]) == []
    assert before_it_was_refused(cut(header, range(8))) == []
    assert before_it_was_refused([sent(GOOD) + header]) == [GOOD]
    assert before_it_was_refused([sent(GOOD)[:5], sent(GOOD)[5:] + header]) == [GOOD]


@pytest.mark.parametrize("length", [2, 254])
def test_the_shortest_and_the_longest_message(length: int) -> None:
    message = Adu(1, 1, b"\x03" * (length - 1))
    assert split([sent(message)]) == [message]


@pytest.mark.parametrize("start", [b"HTT", b"\0\1\1", b"\0\1\0\1", b"\0\1\0\0\1"])
def test_what_can_be_no_header_is_refused_before_it_is_whole(start: bytes) -> None:
    with pytest.raises(NotModbus):
        split([start])


@given(st.lists(st.binary(max_size=400), max_size=8))
def test_junk_ends_and_is_not_kept(pieces: Sequence[bytes]) -> None:
    splitter, junk = Splitter(), [b"\0\1\0\0\0\xfe" + piece for piece in pieces]
    taken = 0
    try:
        for piece in junk:
            taken += sum(6 + len(message.pdu) + 1 for message in splitter.feed(piece))
            assert len(splitter._rest) < 260
    except NotModbus:
        pass
    assert taken <= sum(map(len, junk))


# ---- what is not an answer ---------------------------------------------------------------------------------------

NOT_MODBUS = {
    "03": "no byte count",
    "03 04 0001": "more announced than there is",
    "03 02 0001 0002": "more there than announced",
    "03 03 000102": "half a register",
    "03 01 00": "half a register",
}
NOT_ASKED = {
    "03 02 0001": "1 registers instead of 2 in the answer",
    "03 06 0001 0002 0003": "3 registers instead of 2 in the answer",
    "03 00": "0 registers instead of 2 in the answer",
    "04 04 0001 0002": "function 4 in the answer",
    "84 02": "function 132 in the answer",
    "AB 01": "function 171 in the answer",
    "00 04 0001 0002": "function 0 in the answer",
}


@pytest.mark.parametrize("pdu", NOT_MODBUS)
def test_registers_that_are_none(pdu: str) -> None:
    with pytest.raises(NotModbus):
        adu.registers(Registers("holding", 0, 2), bytes.fromhex(pdu))


@pytest.mark.parametrize(("pdu", "text"), NOT_ASKED.items())
def test_registers_that_were_not_asked_for(pdu: str, text: str) -> None:
    with pytest.raises(NotAsked, match=f"^{text}$"):
        adu.registers(Registers("holding", 0, 2), bytes.fromhex(pdu))


@pytest.mark.parametrize(
    ("pdu", "error"),
    [
        ("2B", NotModbus),
        ("2B 0E 01 01 00 00", NotModbus),  # no count
        ("2B 0E 01 01 00 00 01 00", NotModbus),  # no length
        ("2B 0E 01 01 00 00 01 00 02 41", NotModbus),  # half a text
        ("2B 0E 01 01 00 00 01 00 01 41 03", NotModbus),  # half an object behind
        ("2B 0D 01 01 00 00 00", NotAsked),
        ("03 02 0001", NotAsked),
        ("83 01", NotAsked),
    ],
)
def test_objects_that_are_none(pdu: str, error: type[ValueError]) -> None:
    with pytest.raises(error):
        adu.objects(bytes.fromhex(pdu))


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=125))
def test_registers_that_are_cut_off_anywhere(contents: list[int]) -> None:
    data = b"".join(word.to_bytes(2, "big") for word in contents)
    pdu = bytes([3, len(data)]) + data
    for end in range(1, len(pdu)):
        with pytest.raises(NotModbus):
            adu.registers(Registers("holding", 0, len(contents)), pdu[:end])


@given(st.binary(min_size=2, max_size=253), asked)
def test_any_message_is_registers_a_code_or_one_of_two_errors(pdu: bytes, registers: Registers) -> None:
    try:
        answer = adu.registers(registers, pdu)
    except (NotModbus, NotAsked):
        return
    assert isinstance(answer, int) or len(answer) == 2 * registers.count


@given(st.binary(min_size=2, max_size=246).map(lambda rest: b"\x2b\x0e" + rest) | st.binary(min_size=2, max_size=253))
def test_any_message_is_objects_a_code_or_one_of_two_errors(pdu: bytes) -> None:
    try:
        answer = adu.objects(pdu)
    except (NotModbus, NotAsked):
        return
    if isinstance(answer, Objects):
        assert sum(2 + len(text) for text in answer.texts.values()) <= len(pdu) - 7


# ---- transaction ids ---------------------------------------------------------------------------------------------


def test_ids_count_from_1_and_begin_again_behind_65535() -> None:
    assert [adu.after(each) for each in (0, 1, 0xFFFE, 0xFFFF)] == [1, 2, 0xFFFF, 1]


@given(transactions, st.integers(0, 0xFFFE))
def test_the_age_of_an_id_is_how_many_came_after_it(transaction: int, later: int) -> None:
    now = (transaction - 1 + later) % 0xFFFF + 1
    assert adu.age(transaction, now) == later
