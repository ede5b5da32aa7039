"""A Modbus TCP device that journals what it served: ``python -m testbed.site --port 0 --journal FILE``.

Unit 1 is a three-phase PV inverter (SunSpec 1, 103), unit 2 the grid meter (1, 203), both at 40000, functions 3 and 4;
with ``--plain N`` units 10 to 10+N-1 are plain registers for load. An image is made for every request and is consistent
in itself.

stdout: ``ready 127.0.0.1:PORT`` once, then a line per command. stdin: commands, one a line: ``silence UNIT`` (no
answers), ``exception UNIT CODE``, ``resume UNIT``, ``drop`` (close all connections); each is answered with ``done
COMMAND`` or ``refused COMMAND: REASON`` when it is in force. Ends on SIGTERM, SIGINT, and when stdin ends: it does not
outlive the program that holds the other side of the pipe.

Journal, JSON lines, appended: ``{"map": {"unit", "points": [{"model", "name", "address", "type", "size",
"sf_address"}]}}`` per unit at every start, then per served read ``{"t_boot", "t_wall", "unit", "fc", "address",
"count", "registers"}`` with ns of CLOCK_BOOTTIME and since 1970, protocol addresses and the registers in hex, and
``{"t_boot", "t_wall", "command"}`` per command. A line is with the kernel before its answer is sent: whatever a client
has read stands in the journal, also after SIGKILL. Reads that were silenced or refused are not written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import cast

from pymodbus.constants import ExcCodes
from pymodbus.exceptions import NoSuchIdException
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from pymodbus.simulator.simcore import SimCore

from testbed.journal import JournalFile, boot_time
from testbed.plant import Plant
from testbed.registers import INVERTER_103, METER_203, PlainUnit, SunSpecUnit, Unit

FIRST_PLAIN = 10
_READS = (3, 4)  # holding and input registers show the same


class Site(SimCore):
    """The units behind the server: pymodbus asks this once per request, which is what makes an image atomic.

    It takes the place of pymodbus's own store, whose registers are kept and not made.
    """

    def __init__(self, units: Mapping[int, Unit], journal: JournalFile, *, since: int) -> None:
        super().__init__([])
        self.units = units
        self._journal = journal
        self._since = since
        self._faults: dict[int, ExcCodes | None] = {}  # None: silent
        for unit, what in units.items():
            journal.line(json.dumps({"map": {"unit": unit, "points": [asdict(point) for point in what.points]}}))

    async def async_getValues(  # noqa: N802  # pymodbus calls it so
        self, device_id: int, func_code: int, address: int, count: int = 1
    ) -> list[int] | list[bool] | ExcCodes:
        """Registers for one request, journalled, or the exception to answer with."""
        if device_id in self._faults:
            fault = self._faults[device_id]
            if fault is None:
                raise NoSuchIdException  # with ignore_missing_devices the server then stays silent
            return fault
        unit = self.units.get(device_id)
        if unit is None:
            return ExcCodes.GATEWAY_NO_RESPONSE
        if func_code not in _READS:
            return ExcCodes.ILLEGAL_FUNCTION
        boot, wall = boot_time(), time.time_ns()
        registers = unit.read((boot - self._since) / 1e9, address, count)
        if registers is None:
            return ExcCodes.ILLEGAL_ADDRESS
        if self._journal:
            image = struct.pack(f">{count}H", *registers).hex()
            self._journal.line(
                f'{{"t_boot": {boot}, "t_wall": {wall}, "unit": {device_id}, "fc": {func_code}, '
                f'"address": {address}, "count": {count}, "registers": "{image}"}}'
            )
        return registers

    async def async_setValues(  # noqa: N802
        self, device_id: int, func_code: int, address: int, values: list[int] | list[bool]
    ) -> ExcCodes | None:
        """Nothing can be written."""
        if device_id in self._faults:
            return self._faults[device_id] or await self._silent()
        return ExcCodes.ILLEGAL_FUNCTION if device_id in self.units else ExcCodes.GATEWAY_NO_RESPONSE

    @staticmethod
    async def _silent() -> ExcCodes:
        raise NoSuchIdException

    def command(self, text: str, server: ModbusTcpServer) -> str:
        """Do what one line of stdin says; returns the line to answer with."""
        try:
            match text.split():
                case ["silence", unit]:
                    self._faults[int(unit)] = None
                case ["exception", unit, code]:
                    self._faults[int(unit)] = ExcCodes(int(code))
                case ["resume", unit]:
                    self._faults.pop(int(unit), None)
                case ["drop"]:
                    for connection in list(server.active_connections.values()):
                        connection.close()
                case _:
                    return f"refused {text}: unknown command"
        except ValueError as error:
            return f"refused {text}: {error}"
        self._journal.now({"command": text})
        return f"done {text}"


def _units(plant: Plant, options: argparse.Namespace) -> dict[int, Unit]:
    serial = f"SIM-{options.seed:06d}"
    units: dict[int, Unit] = {
        1: SunSpecUnit(103, INVERTER_103, plant.inverter, name="PV-25K", serial=f"{serial}-1", address=1),
        2: SunSpecUnit(203, METER_203, plant.meter, name="METER-3P", serial=f"{serial}-2", address=2),
    }
    for number in range(options.plain):
        units[FIRST_PLAIN + number] = PlainUnit(options.plain_registers, seed=options.seed * 1000 + number)
    return units


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    since = options.since if options.since is not None else boot_time()
    plant = Plant(seed=options.seed, day_length=options.day_length, hour=options.hour)
    site = Site(_units(plant, options), JournalFile(options.journal), since=since)
    # The server wants a device of its own store; it is replaced at once.
    unused = SimDevice(1, SimData(0, datatype=DataType.REGISTERS))
    server = ModbusTcpServer(unused, address=("127.0.0.1", options.port), ignore_missing_devices=True)
    server.context = site
    await server.serve_forever(background=True)
    port = cast(asyncio.Server, server.transport).sockets[0].getsockname()[1]

    waiting = b""

    def listen() -> None:
        nonlocal waiting
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            loop.remove_reader(sys.stdin.fileno())
            stop.set()
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            print(site.command(line.decode("ascii", "replace"), server), flush=True)

    def tick() -> None:
        plant.advance((boot_time() - since) / 1e9)
        loop.call_later(1.0, tick)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), listen)
    tick()
    print(f"ready 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.shutdown()  # type: ignore[no-untyped-call]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Use uvloop if it is there: a third less CPU, and the device must not take the core from what is measured."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="testbed.site", description="A Modbus device that journals what it served")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    journal = parser.add_mutually_exclusive_group(required=True)
    journal.add_argument("--journal", metavar="FILE")
    journal.add_argument("--no-journal", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--day-length", type=float, default=600.0, metavar="S", help="real seconds of a simulated day")
    parser.add_argument("--hour", type=float, default=9.5, help="hour of the simulated day at the start")
    parser.add_argument("--since", type=int, metavar="NS", help="CLOCK_BOOTTIME of the first start, for a restart")
    parser.add_argument("--plain", type=int, default=0, metavar="N", help=f"plain units, from {FIRST_PLAIN} on")
    parser.add_argument("--plain-registers", type=int, default=100, metavar="N")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
