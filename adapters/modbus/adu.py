"""Modbus TCP as bytes: what is asked and what is answered, functions 3, 4 and 43/14.

Pure: bytes in, values out; no clock, no socket, no state but the beginning of an answer that is not all there yet.
On the wire a message (PDU) has a header in front of it (MBAP), together they are an ADU. Sources: Modbus Messaging on
TCP/IP V1.0b, 3.1.3 (header) and 4.2 (one stream, any segments); Modbus Application Protocol V1.1b3, sections 6.3, 6.4
and 6.21 (functions) and 7 (exception responses). What an answer may not be is one of two errors: ``NotModbus`` where
nothing that follows can be trusted, ``NotAsked`` for a good message that answers something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from adapters.modbus.identification import Objects, Question
from adapters.modbus.requests import Registers

_READ = {"holding": 3, "input": 4}
_IDENTIFICATION = 0x2B, 0x0E
"""Function, and the type of what it transports (6.19 and 6.21)."""
_EXCEPTION = 0x80
"""What an exception response adds to the function; it is followed by one byte, the code."""
_MORE_FOLLOWS = 0xFF
_MOST_TRANSACTIONS = 0xFFFF

_HEADER = Struct(">HHHB")  # transaction, protocol, bytes that follow, unit: the last is one of those
_COUNTED = 6  # bytes before those that the header counts
_LEAST, _MOST = 2, 254  # what it counts: unit and function; unit and the longest PDU (4.1 of V1.1b3)
_EXCEPTION_END = 9  # bytes of an exception response with its header

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target did not respond",
}
"""Modbus Application Protocol V1.1b3, section 7."""

_BUSY, _GATEWAY = "ask it less often, set request_pause", "is unit right, and the device on and wired to its gateway?"
_REMEDIES = {5: _BUSY, 6: _BUSY, 10: _GATEWAY, 11: _GATEWAY}


class NotModbus(ValueError):
    """Bytes that no answer can have; where the next one would begin is unknown."""


class NotAsked(ValueError):
    """A message that is whole, and not the answer to what was asked."""


class Adu(NamedTuple):
    """A message with the header's transaction and unit; ``pdu`` begins with the function."""

    transaction: int
    unit: int
    pdu: bytes


def exception_text(code: int) -> str:
    """``exception 2 illegal data address``."""
    return f"exception {code} {_EXCEPTIONS.get(code, '')}".rstrip()


def exception_hint(code: int) -> str:
    """What to do about it."""
    return _REMEDIES.get(code, "compare addresses with the manual; lower max_gap and max_registers")


# ---- what is asked -----------------------------------------------------------------------------------------------


def encode(transaction: int, unit: int, pdu: bytes) -> bytes:
    """The bytes of a message."""
    return _HEADER.pack(transaction, 0, len(pdu) + 1, unit) + pdu


def after(transaction: int) -> int:
    """The transaction id that follows: from 1 on, since 0 is what devices answer that do not know any."""
    return transaction % _MOST_TRANSACTIONS + 1


def age(transaction: int, now: int) -> int:
    """How many requests before ``now`` had this transaction id, modulo 65535."""
    return (now - transaction) % _MOST_TRANSACTIONS


_read = Struct(">BHH").pack


def ask_registers(registers: Registers) -> bytes:
    """The PDU that asks for registers (6.3, 6.4). Raises ValueError for what no request can name."""
    if not 1 <= registers.count <= 125 or not 0 <= registers.address <= 0x10000 - registers.count:
        raise ValueError(f"no request can ask for {registers.count} registers from {registers}")
    return _read(_READ[registers.kind], registers.address, registers.count)


def ask_objects(question: Question) -> bytes:
    """The PDU that asks a device what it is (6.21)."""
    return bytes((*_IDENTIFICATION, question.category, question.first))


# ---- what is answered --------------------------------------------------------------------------------------------


class Splitter:
    """Messages from a stream, in whatever pieces it comes. After an error it is of no use any more."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Adu]:
        """The messages that are whole now; the bytes behind them are kept, 259 at most. Raises NotModbus as soon as
        there can be no header, but yields what is good before it.

        An exception response ends behind its code, whatever length its header states: devices state one byte less
        (pymodbus#2151) or more (wlcrs/tmodbus#146) than they send.
        """
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        while end - start > _HEADER.size:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, start)
            if protocol or not _LEAST <= length <= _MOST:
                raise NotModbus(f"protocol {protocol} and length {length} in the header")
            behind = start + (_EXCEPTION_END if data[start + _HEADER.size] & _EXCEPTION else _COUNTED + length)
            if behind > end:
                break
            yield Adu(transaction, unit, data[start + _HEADER.size : behind])
            start = behind
        self._rest = data[start:]
        if any(self._rest[2:5]):  # protocol, and the high byte of a length below 256: said before the header is whole
            raise NotModbus("a header that begins with no protocol and length")


def registers(asked: Registers, pdu: bytes) -> bytes | int:
    """The contents of the registers as they travel, high byte first, or the code of an exception response. Raises
    NotModbus, NotAsked.
    """
    if pdu[0] != _READ[asked.kind]:
        return _exception(pdu, _READ[asked.kind])
    length = len(pdu) - 2  # -1 if there is no byte count: odd, too
    if length % 2 or pdu[1] != length:
        raise NotModbus(f"a byte count that does not fit into {len(pdu)} bytes")
    if length != 2 * asked.count:
        raise NotAsked(f"{length // 2} registers instead of {asked.count} in the answer")
    return pdu[2:]


def objects(pdu: bytes) -> Objects | int:
    """What a device says of itself, or the code of an exception response. Raises NotModbus, NotAsked.

    How many objects there are is told by the bytes; the count before them adds nothing. An object that comes twice
    counts as it came first.
    """
    if pdu[0] != _IDENTIFICATION[0]:
        return _exception(pdu, _IDENTIFICATION[0])
    if len(pdu) < 7:
        raise NotModbus(f"an identification of {len(pdu)} bytes")
    if pdu[1] != _IDENTIFICATION[1]:
        raise NotAsked(f"type {pdu[1]} of function {pdu[0]} in the answer")
    conformity, more, following = pdu[3:6]
    texts: dict[int, bytes] = {}
    place = 7
    while place < len(pdu):
        text = place + 2
        if text > len(pdu) or text + pdu[place + 1] > len(pdu):
            raise NotModbus(f"an object that ends behind the answer of {len(pdu)} bytes")
        texts.setdefault(pdu[place], pdu[text : text + pdu[place + 1]])
        place = text + pdu[place + 1]
    return Objects(texts, conformity, following if more == _MORE_FOLLOWS else None)


def _exception(pdu: bytes, function: int) -> int:
    """The code of an exception response to this function; anything else is not what was asked."""
    if pdu[0] != function | _EXCEPTION:
        raise NotAsked(f"function {pdu[0]} in the answer")
    return pdu[1]
