"""A Modbus TCP server for load: units of plain registers, served as cheaply as Python can, with no journal.

``python -m bench.modbus_device UNITS REGISTERS`` prints ``ready 127.0.0.1:PORT`` and ends when its standard input ends.
Units are numbered from 10 on; functions 3 and 4 read the same registers, which move as testbed/registers.py's PlainUnit
says: register 0 counts the reads, each other takes a step of 1 to 3 up or down. Requests may come several in a segment,
or in pieces; they are answered in their order, together.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self, cast

from bench.on_uvloop import run
from testbed.processes import Simulator
from testbed.registers import PlainUnit

_HEAD = struct.Struct(">HHHB")  # transaction, protocol, length behind it, unit (MODBUS Messaging on TCP/IP, 3.1.3)
_READ = struct.Struct(">BHH")  # function, address, count (MODBUS Application Protocol, 6.3 and 6.4)
_ANSWER = struct.Struct(">HHHBBB")
_IMAGES = [struct.Struct(f">{count}H") for count in range(126)]  # by the number of registers
FIRST_UNIT = 10
_READS = (3, 4)
_LONGEST = 254  # the length of a whole frame's unit and request
_NO_FUNCTION, _NO_ADDRESS, _NO_VALUE, _NO_UNIT = 1, 2, 3, 11


class Device(asyncio.Protocol):
    """One connection."""

    def __init__(self, units: Mapping[int, PlainUnit]) -> None:
        self._units = units
        self._waiting = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answers go there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer all requests that are whole; a frame that is not Modbus closes the connection."""
        assert self._transport is not None
        data = self._waiting + data
        answers, at = [], 0
        while len(data) - at >= _HEAD.size:
            transaction, protocol, length, unit = _HEAD.unpack_from(data, at)
            if protocol or not 2 <= length <= _LONGEST:
                self._transport.close()
                return
            end = at + 6 + length
            if end > len(data):
                break
            answers.append(self._answer(transaction, unit, data[at + _HEAD.size : end]))
            at = end
        self._waiting = data[at:]
        if answers:
            self._transport.write(b"".join(answers))

    def _answer(self, transaction: int, number: int, request: bytes) -> bytes:
        function = request[0]
        unit = self._units.get(number)
        if unit is None:
            code = _NO_UNIT
        elif function not in _READS:
            code = _NO_FUNCTION
        elif len(request) != _READ.size:
            code = _NO_VALUE
        else:
            _, address, count = _READ.unpack(request)
            if not 1 <= count <= 125:
                code = _NO_VALUE
            elif (registers := unit.read(0.0, address, count)) is None:
                code = _NO_ADDRESS
            else:
                size = 2 * count
                image: bytes = _IMAGES[count].pack(*registers)
                return _ANSWER.pack(transaction, 0, 3 + size, number, function, size) + image
        return _ANSWER.pack(transaction, 0, 3, number, function | 0x80, code)


class ModbusDevice(Simulator):
    """The server as a process of its own; ``port`` is set when it runs."""

    def __init__(self, folder: Path, *, units: int, registers: int, name: str = "device") -> None:
        self.port = 0
        command = [sys.executable, "-m", "bench.modbus_device", str(units), str(registers)]
        super().__init__(command, name=name, folder=folder, piped=True)

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it takes connections."""
        super().start()
        self.port = self._ready_port(timeout)
        return self


async def serve(units: int, registers: int) -> None:
    """Until the end of the standard input."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    images = {FIRST_UNIT + number: PlainUnit(registers, seed=number) for number in range(units)}
    server = await loop.create_server(lambda: Device(images), "127.0.0.1", 0)

    def listen() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            ended.set()

    loop.add_reader(sys.stdin.fileno(), listen)
    print(f"ready 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    run(serve(*map(int, sys.argv[1:])))
