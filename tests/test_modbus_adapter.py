"""The adapter against pymodbus's own server, and against servers that misbehave, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from pymodbus.simulator.simdevice import SimAction

from adapters.modbus import ModbusAdapter, ModbusConnection, ModbusDevice
from adapters.modbus.client import Connection
from adapters.modbus.device import Device
from adapters.modbus.requests import Registers
from agent.errors import AcquisitionError
from agent.model import Cause, ClockQuality, Quality, Sample, ValueType
from agent.ports import DeviceSelection, PolledAdapter

pytestmark = pytest.mark.anyio

S = 1_000_000_000
MS = 1_000_000


class FakeClock:
    """Time that passes only when a test or a pause lets it."""

    def __init__(self) -> None:
        self.now = 1_000 * S
        self.slept: list[int] = []

    def wall(self) -> int:
        return self.now

    def boot(self) -> int:
        return self.now

    def quality(self) -> ClockQuality:
        return ClockQuality()

    async def sleep_until(self, boot: int) -> None:
        self.slept.append(boot - self.now)
        self.now = max(self.now, boot)


class Plant:
    """Units behind one pymodbus server: registers by unit and address. Other addresses are illegal."""

    def __init__(self, units: Mapping[int, dict[int, int]]) -> None:
        self.units = units
        self.asked: list[tuple[int, int, int, int]] = []  # unit, function, address, count
        self.refusals: dict[int, ExcCodes] = {}  # by address
        self.silent: set[int] = set()  # units whose answers are lost
        self.port = 0
        self._server: ModbusTcpServer | None = None

    async def start(self) -> None:
        devices = [
            SimDevice(
                id=unit, simdata=[SimData(0, count=65536, datatype=DataType.REGISTERS)], action=self._action(unit)
            )
            for unit in self.units
        ]
        server = ModbusTcpServer(devices, address=("127.0.0.1", self.port), trace_packet=self._packet)
        await server.serve_forever(background=True)
        assert isinstance(server.transport, asyncio.Server)
        self.port = server.transport.sockets[0].getsockname()[1]
        self._server = server

    def _packet(self, sending: bool, data: bytes) -> bytes:
        return b"" if sending and data[6] in self.silent else data

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None
            await anyio.lowlevel.checkpoint()

    def _action(self, unit: int) -> SimAction:
        async def action(
            function: int, start: int, address: int, count: int, registers: list[int], _: list[int] | list[bool] | None
        ) -> ExcCodes | None:
            self.asked.append((unit, function, address, count))
            for place in range(address, address + count):
                if place in self.refusals:
                    return self.refusals[place]
                if place not in self.units[unit]:
                    return ExcCodes.ILLEGAL_ADDRESS
                registers[place - start] = self.units[unit][place]
            return None

        return action


@asynccontextmanager
async def plant(units: Mapping[int, dict[int, int]]) -> AsyncIterator[Plant]:
    running = Plant(units)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    """A TCP server that does as the handler says."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with running:
        yield running.sockets[0].getsockname()[1]


@asynccontextmanager
async def adapter(
    port: int, *devices: ModbusDevice, clock: FakeClock, deadline: str = "2s", **more: str
) -> AsyncIterator[ModbusAdapter]:
    connection = ModbusConnection.model_validate({"url": f"modbus+tcp://127.0.0.1:{port}", "timeout": deadline} | more)
    chosen = [DeviceSelection(each, {group: each.point_names(group) for group in each.groups}) for each in devices]
    running = ModbusAdapter("hall", connection, chosen, clock)
    try:
        yield running
    finally:
        await running.close()


def device(points: Sequence[Mapping[str, Any] | str], unit: int = 1, **more: Any) -> ModbusDevice:
    groups = {"g": {"every": "1s", "points": list(points)}}
    quiet = {} if "sunspec" in more else {"identification": "off"}  # tests/test_modbus_identification.py has it on
    return ModbusDevice.model_validate(
        {"id": f"unit-{unit}", "connection": "hall", "unit": unit, "groups": groups} | quiet | more
    )


def at(name: str, place: str, kind: str = "int16", **more: Any) -> dict[str, Any]:
    return {"name": name, "at": place, "type": kind} | more


async def refused(running: ModbusAdapter, index: int = 0, group: str = "g") -> AcquisitionError:
    with pytest.raises(AcquisitionError) as caught:
        await running.devices[index].acquire(group)
    return caught.value


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# ---- devices by hand -----------------------------------------------------------------------------------------


async def test_a_device_by_hand(clock: FakeClock) -> None:
    points = [
        at("V", "holding:0", "uint16", scale=0.1, unit="V"),
        at("W", "40003", "int32", word_order="little", range=[-10, 10]),
        at("F", "30013", "float32", scale=2),
        at("State", "holding:9", "enum16", values={"1": "run"}),
    ]
    # The simulator has one image for both kinds of registers; 12 and 13 are 1.5.
    registers = dict.fromkeys(range(10), 0) | {0: 2304, 2: 0xFFFE, 3: 0xFFFF, 9: 1, 12: 0x3FC0, 13: 0}
    async with plant({1: registers}) as units, adapter(units.port, device(points, asset="a"), clock=clock) as running:
        whole: PolledAdapter = running
        meter = running.devices[0]
        assert isinstance(meter, Device)
        meter.keep_raw = True
        await meter.prepare()
        sample = await whole.devices[0].acquire("g")
        assert sample == Sample(clock.now, clock.now, (2304, -2, 3.0, 1))
        assert units.asked == [(1, 3, 0, 10), (1, 4, 12, 2)]
        assert meter.raw == [("holding", 0, [*registers.values()][:10]), ("input", 12, [0x3FC0, 0])]
        described = meter.points("g")
        assert [(each.name, each.unit, each.type, each.exponent) for each in described] == [
            ("V", "V", ValueType.INTEGER, -1),
            ("W", None, ValueType.INTEGER, 0),
            ("F", None, ValueType.FLOAT, 0),
            ("State", None, ValueType.INTEGER, 0),
        ]
        assert [each.source for each in described] == [
            "holding:0 uint16",
            "holding:2 int32 little words",
            "input:12 float32",
            "holding:9 enum16",
        ]
        assert described[3].labels == {1: "run"}
        assert (meter.info.id, meter.info.adapter, meter.info.asset, meter.revision) == ("unit-1", "modbus", "a", 0)


async def test_only_the_chosen_points_are_read(clock: FakeClock) -> None:
    config = device([at("A", "holding:0"), at("B", "holding:50"), at("C", "holding:1")])
    async with plant({1: {0: 5, 1: 7}}) as units:
        connection = ModbusConnection.model_validate({"url": f"modbus+tcp://127.0.0.1:{units.port}"})
        running = ModbusAdapter("hall", connection, [DeviceSelection(config, {"g": ["C", "A"]})], clock)
        assert (await running.devices[0].acquire("g")).values == (7, 5)
        assert units.asked == [(1, 3, 0, 2)]
        await running.close()


async def test_bounds_follow_the_scale(clock: FakeClock) -> None:
    points = [at("V", "holding:0", scale=0.1, range=[-5, 230.4]), at("Wh", "holding:1", scale=10, counter=True)]
    image = {0: 2304, 1: 8}
    async with plant({1: image}) as units, adapter(units.port, device(points), clock=clock) as running:
        assert (await running.devices[0].acquire("g")).quality == ()
        image |= {0: 2305, 1: 7}
        expected = ((0, Quality.OUT_OF_RANGE), (1, Quality.SUSPECT))
        assert (await running.devices[0].acquire("g")).quality == expected


async def test_an_exception_response_costs_only_the_points_of_its_request(clock: FakeClock) -> None:
    config = device([at("A", "holding:0"), at("B", "holding:100")])
    async with plant({1: {100: 7}}) as units, adapter(units.port, config, clock=clock) as running:
        sample = await running.devices[0].acquire("g")
        assert (sample.values, sample.quality) == ((None, 7), ((0, Quality.DEVICE_EXCEPTION),))
        units.units[1].clear()
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.DEVICE_EXCEPTION, "exception 2 illegal data address")
        assert error.hint == "compare addresses with the manual; lower max_gap and max_registers"


async def test_no_answer_costs_only_the_points_not_read_yet(clock: FakeClock) -> None:
    config = device([at(name, f"holding:{place}") for name, place in (("C", 200), ("A", 0), ("B", 100))])
    asked: list[int] = []

    def answer(request: bytes) -> bytes:
        place = int.from_bytes(request[8:10], "big")
        asked.append(place)
        return request[:2] + b"\0\0\0\x05\x01\x03\x02\0\x07" if place == 0 and len(asked) < 3 else b""

    async with server(respond(answer)) as port, adapter(port, config, clock=clock, deadline="100ms") as running:
        sample = await running.devices[0].acquire("g")
        assert (sample.values, sample.quality) == ((None, 7, None), ((0, Quality.NO_VALUE), (2, Quality.NO_VALUE)))
        assert asked == [0, 100]  # a dead unit costs one time-out
        assert (await refused(running)).cause is Cause.DEVICE_TIMEOUT
        assert asked == [0, 100, 0]


async def test_a_gateway_that_lost_the_unit_is_not_asked_on(clock: FakeClock) -> None:
    config = device([at("A", "holding:0"), at("B", "holding:100")])
    async with plant({1: {0: 5, 100: 7}}) as units, adapter(units.port, config, clock=clock) as running:
        units.refusals[0] = ExcCodes.GATEWAY_NO_RESPONSE
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.DEVICE_EXCEPTION, "exception 11 gateway target did not respond")
        assert error.hint == "is unit right, and the device on and wired to its gateway?"
        assert len(units.asked) == 1


async def test_requests_are_a_pause_apart_and_the_pause_is_not_part_of_the_sample(clock: FakeClock) -> None:
    config = device([at("A", "holding:0"), at("B", "holding:100")])
    async with (
        plant({1: {0: 5, 100: 7}}) as units,
        adapter(units.port, config, clock=clock, request_pause="25ms") as running,
    ):
        await running.devices[0].acquire("g")
        before = clock.now
        sample = await running.devices[0].acquire("g")
        assert (sample.started - before, sample.ended - sample.started) == (25 * MS, 25 * MS)


async def test_devices_share_the_wire_one_acquisition_at_a_time(clock: FakeClock) -> None:
    points = [at("A", "holding:0"), at("B", "holding:100")]
    image = {0: 5, 100: 7}
    async with (
        plant({1: image, 2: image}) as units,
        adapter(units.port, device(points), device(points, unit=2), clock=clock) as running,
        anyio.create_task_group() as tasks,
    ):
        for each in (*running.devices, *running.devices):
            tasks.start_soon(each.acquire, "g")
    assert [unit for unit, *_ in units.asked] == [1, 1, 2, 2, 1, 1, 2, 2]


# ---- trouble -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_nobody_listens_then_somebody_does(clock: FakeClock) -> None:
    units = Plant({1: {0: 5}})
    units.port = free_port()
    async with adapter(units.port, device([at("A", "holding:0")]), clock=clock) as running:
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.LINK_DOWN, "cannot connect: Connection refused")
        assert "127.0.0.1" in error.hint
        await units.start()
        clock.now += 199 * MS
        assert (await refused(running)).detail == "cannot connect: Connection refused"
        assert units.asked == []
        clock.now += 1 * MS
        assert (await running.devices[0].acquire("g")).values == (5,)
        await units.stop()


async def test_the_pause_between_tries_doubles_up_to_30_s_and_ends_with_an_answer(clock: FakeClock) -> None:
    tries = 0

    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await reader.readexactly(12)

    pauses = []
    async with server(hang_up) as port, adapter(port, device([at("A", "holding:0")]), clock=clock) as running:
        for _ in range(10):
            assert (await refused(running)).detail == "the connection was lost"
            started, known = clock.now, tries
            while tries == known:
                clock.now += 100 * MS
                await refused(running)
            pauses.append((clock.now - started) // (100 * MS))
            clock.now += 31 * S
            if len(pauses) == 1:
                assert pauses == [2]
    assert pauses[-1] == 300
    assert pauses == sorted(pauses)


async def test_a_server_that_restarts(clock: FakeClock) -> None:
    async with plant({1: {0: 5}}) as units, adapter(units.port, device([at("A", "holding:0")]), clock=clock) as running:
        await running.devices[0].acquire("g")
        await units.stop()
        assert (await refused(running)).cause is Cause.LINK_DOWN
        clock.now += S
        assert (await refused(running)).detail == "cannot connect: Connection refused"
        await units.start()
        clock.now += S
        assert (await running.devices[0].acquire("g")).values == (5,)


async def test_a_connection_lost_in_the_middle_of_a_request_fails_at_once(clock: FakeClock) -> None:
    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)

    async with (
        server(hang_up) as port,
        adapter(port, device([at("A", "holding:0")]), clock=clock, deadline="60s") as running,
    ):
        with anyio.fail_after(5):
            error = await refused(running)
        assert (error.cause, error.detail) == (Cause.LINK_DOWN, "the connection was lost")


async def test_a_server_that_never_answers(clock: FakeClock) -> None:
    connections = 0

    async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()

    async with (
        server(swallow) as port,
        adapter(port, device([at("A", "holding:0")]), clock=clock, deadline="100ms") as running,
    ):
        for _ in range(3):
            error = await refused(running)
            assert (error.cause, error.detail) == (Cause.DEVICE_TIMEOUT, "no answer within 0.1 s")
        assert connections == 1
        assert (await refused(running)).detail == "not tried after repeated time-outs"
        clock.now += S
        assert (await refused(running)).detail == "no answer within 0.1 s"
        assert connections == 2  # the old one may have been half open
        clock.now += S
        assert (await refused(running)).detail == "not tried after repeated time-outs"
        clock.now += S
        assert (await refused(running)).detail == "no answer within 0.1 s"


async def test_a_dead_unit_beside_a_live_one(clock: FakeClock) -> None:
    points = [at("A", "holding:0")]
    async with (
        plant({1: {0: 5}}) as units,
        adapter(units.port, device(points), device(points, unit=2), clock=clock, deadline="150ms") as running,
    ):
        units.silent.add(2)
        details = []
        for _ in range(5):
            details.append((await refused(running, 1)).detail)
            assert (await running.devices[0].acquire("g")).values == (5,)
        assert details == ["no answer within 0.15 s"] * 3 + ["not tried after repeated time-outs"] * 2


async def test_a_unit_that_answers_is_forgiven_its_time_outs(clock: FakeClock) -> None:
    config = device([at("A", "holding:0")])
    async with (
        plant({1: {0: 5}}) as units,
        adapter(units.port, config, clock=clock, deadline="100ms") as running,
    ):
        for _ in range(3):
            units.silent.add(1)
            for _ in range(2):
                assert (await refused(running)).detail == "no answer within 0.1 s"
            units.silent.clear()
            assert (await running.devices[0].acquire("g")).values == (5,)


@pytest.mark.parametrize("host", ["inverter..lan", "a" * 70 + ".lan", "a\0b"])
async def test_a_host_that_cannot_be_asked_for(clock: FakeClock, host: str) -> None:
    wire = Connection(host=host, port=502, timeout=S, pause=0, clock=clock)
    with pytest.raises(AcquisitionError, match="cannot connect: ") as caught:
        await wire.read(1, [Registers("holding", 0, 1)])
    assert caught.value.cause is Cause.LINK_DOWN


async def test_a_connection_made_anew_is_not_taken_for_the_one_asked_for(clock: FakeClock) -> None:
    async with plant({1: {0: 5}}) as units:
        wire = Connection(host="127.0.0.1", port=units.port, timeout=S, pause=0, clock=clock)
        asked = [Registers("holding", 0, 1)]
        assert wire.number == 1
        assert (await wire.read(1, asked, over=1)).blocks == [b"\0\5"]
        assert wire.number == 1
        await restart(units, wire)
        assert wire.number == 2
        with pytest.raises(AcquisitionError, match="made anew") as caught:
            await wire.read(1, asked, over=1)
        assert caught.value.cause is Cause.LINK_DOWN
        assert (await wire.read(1, asked, over=2)).blocks == [b"\0\5"]
        await wire.close()


async def restart(units: Plant, wire: Connection) -> None:
    """Another connection follows, without an acquisition that failed."""
    number = wire.number
    await units.stop()
    with anyio.fail_after(5):
        while wire.number == number:
            await anyio.lowlevel.checkpoint()
    await units.start()


def respond(make: Callable[[bytes], bytes]) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(make(await reader.readexactly(12)))

    return handler


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not Modbus"),
        (b"\0\x01\0\0\0\x05\x01\x03\x09\0\x05", "the answer is not Modbus"),  # more bytes announced than there are
        (b"\0\x01\0\0\0\x07\x01\x03\x04\0\x05\0\x06", "2 registers instead of 1 in the answer"),
        (b"\0\x01\0\0\0\x03\x01\x03\x00", "0 registers instead of 1 in the answer"),
        (b"\0\x01\0\0\0\x05\x01\x04\x02\0\x05", "function 4 in the answer"),
        (b"\0\0\0\0\0\x05\x01\x03\x02\0\x05", "the answer has no transaction id"),
    ],
)
async def test_junk(clock: FakeClock, caplog: pytest.LogCaptureFixture, answer: bytes, detail: str) -> None:
    async with (
        server(respond(lambda _: answer)) as port,
        adapter(port, device([at("A", "holding:0")]), clock=clock) as running,
    ):
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.DECODE_ERROR, detail)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_an_answer_that_comes_late_is_not_taken_for_the_next_one(clock: FakeClock) -> None:
    late: list[bytes] = []

    def answer(request: bytes) -> bytes:
        value = request[1:2]  # the transaction id says which answer it is
        late.append(request[:2] + b"\0\0\0\x05\x01\x03\x02\0" + value)
        return b"" if len(late) == 1 else b"".join(late)

    async with (
        server(respond(answer)) as port,
        adapter(port, device([at("A", "holding:0")]), clock=clock, deadline="150ms") as running,
    ):
        assert (await refused(running)).cause is Cause.DEVICE_TIMEOUT
        assert (await running.devices[0].acquire("g")).values == (2,)


async def test_a_cancelled_acquisition_leaves_the_wire_in_order(clock: FakeClock) -> None:
    held: list[bytes] = []

    def answer(request: bytes) -> bytes:
        held.append(request[:2] + b"\0\0\0\x05\x01\x03\x02\0" + request[1:2])
        return b"" if len(held) == 1 else b"".join(held)

    async with server(respond(answer)) as port, adapter(port, device([at("A", "holding:0")]), clock=clock) as running:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.devices[0].acquire, "g")
            with anyio.fail_after(5):
                while not held:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert (await running.devices[0].acquire("g")).values == (2,)


async def test_close_ends_what_is_under_way(clock: FakeClock) -> None:
    asked = anyio.Event()

    async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        asked.set()
        await reader.read()

    errors: list[AcquisitionError] = []
    async with (
        server(swallow) as port,
        adapter(port, device([at("A", "holding:0")]), clock=clock, deadline="60s") as running,
    ):

        async def acquire() -> None:
            errors.append(await refused(running))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(acquire)
                await asked.wait()
                tasks.start_soon(acquire)  # waits for the wire
                await anyio.lowlevel.checkpoint()
                await running.close()
        await running.close()
        errors.append(await refused(running))
    assert [each.cause for each in errors] == [Cause.LINK_DOWN] * 3
    assert {each.detail for each in errors} == {"the connection was closed by the agent"}


# ---- SunSpec -------------------------------------------------------------------------------------------------


def text(value: bytes, registers: int) -> list[int]:
    padded = value.ljust(2 * registers, b"\0")
    return [int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2)]


INVERTER, METER = 40070, 40122


def sunspec_image() -> dict[int, int]:
    """Common model, an inverter (103) with W, WH, Hz and St, and a meter (203) with W; the rest is not implemented."""
    common = [*text(b"Sonnenbau", 16), *text(b"SB-5", 16), *[0] * 8, *text(b"1.2", 8), *text(b"SN-1", 16), 1, 0x8000]
    words = [0x5375, 0x6E53, 1, 66, *common, 103, 50, *[0xFFFF] * 50, 203, 105, *[0x8000] * 105, 0xFFFF, 0]
    image = dict(enumerate(words, 40000))
    # Offsets from the model's id, after the definitions 103 and 203.
    image |= {INVERTER + 14: 2304, INVERTER + 15: 0xFFFF, INVERTER + 16: 5001, INVERTER + 17: 0xFFFE}
    image |= {INVERTER + 24: 1, INVERTER + 25: 2, INVERTER + 26: 0, INVERTER + 38: 4}
    image |= {METER + 18: 0xFF38, METER + 22: 1}
    return image


PV = ["103.W", "103.WH", "103.Hz", "103.St", "103.VA"]


def pv(points: Sequence[str] = PV, **more: Any) -> ModbusDevice:
    return device(points, unit=126, sunspec={}, **more)


async def test_a_sunspec_device(clock: FakeClock) -> None:
    async with plant({126: sunspec_image()}) as units, adapter(units.port, pv(), clock=clock) as running:
        inverter = running.devices[0]
        before = inverter.points("g")
        assert [(each.name, each.unit, each.exponent, each.source) for each in before] == [
            ("W", "W", 0, "103.W int16"),
            ("WH", "Wh", 0, "103.WH acc32"),
            ("Hz", "Hz", 0, "103.Hz uint16"),
            ("St", None, 0, "103.St enum16"),
            ("VA", "VA", 0, "103.VA int16"),
        ]
        await inverter.prepare()
        assert inverter.revision == 1
        info = inverter.info
        assert (info.manufacturer, info.model, info.serial, info.firmware) == ("Sonnenbau", "SB-5", "SN-1", "1.2")
        after = inverter.points("g")
        assert [each.exponent for each in after] == [-1, 0, -2, 0, -1]
        assert after[0].source == "103.W holding:40084 int16 sf holding:40085"
        assert after[3].source == "103.St holding:40108 enum16"
        assert after[3].labels[4] == "MPPT"
        units.asked.clear()
        sample = await inverter.acquire("g")
        assert sample.values == (2304, 65538, 5001, 4, -1)
        assert sample.quality == ()
        assert units.asked == [(126, 3, 40084, 25)]
        assert inverter.revision == 1


async def test_a_sunspec_device_that_was_down_at_the_start(clock: FakeClock) -> None:
    config = pv(["103.W"])
    units = Plant({126: sunspec_image()})
    units.port = free_port()
    async with adapter(units.port, config, clock=clock) as running:
        inverter = running.devices[0]
        with pytest.raises(AcquisitionError):
            await inverter.prepare()
        assert inverter.revision == 0
        await units.start()
        clock.now += S
        error = await refused(running)
        assert error.cause is Cause.LINK_DOWN
        assert error.detail == "the device's models were just read; values follow with the next cycle"
        assert inverter.revision == 1
        assert (await inverter.acquire("g")).values == (2304,)
        await units.stop()


async def test_a_group_that_waited_for_the_discovery_of_another_ends_there_too(clock: FakeClock) -> None:
    groups = {name: {"every": "1s", "points": ["103.W"]} for name in ("a", "b")}
    async with plant({126: sunspec_image()}) as units, adapter(units.port, pv(groups=groups), clock=clock) as running:
        errors = []

        async def acquire(group: str) -> None:
            errors.append((await refused(running, group=group)).cause)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(acquire, "a")
            tasks.start_soon(acquire, "b")
        assert errors == [Cause.LINK_DOWN] * 2
        assert running.devices[0].revision == 1


async def test_points_that_the_device_lacks(clock: FakeClock) -> None:
    image = sunspec_image()
    image[INVERTER + 1] = 34  # the device says that its model ends before the states
    image |= {INVERTER + 36: 203, INVERTER + 37: 0}
    config = pv(["103.W", "103.St", "802.SoC", "103.DCA"])
    async with plant({126: image}) as units, adapter(units.port, config, clock=clock) as running:
        image |= {INVERTER + 38: 0xFFFF, INVERTER + 39: 0}
        await running.devices[0].prepare()
        sample = await running.devices[0].acquire("g")
        assert sample.values == (2304, None, None, None)
        assert sample.quality == tuple((index, Quality.NOT_IMPLEMENTED) for index in (1, 2, 3))
        assert max(address + count for _, _, address, count in units.asked) == INVERTER + 40


async def test_a_scale_factor_that_moves(clock: FakeClock) -> None:
    image = sunspec_image()
    groups = {"a": {"every": "1s", "points": ["103.W", "103.St"]}, "b": {"every": "1s", "points": ["103.W"]}}
    async with plant({126: image}) as units, adapter(units.port, pv(groups=groups), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        image |= {INVERTER + 14: 230, INVERTER + 15: 0}
        assert (await inverter.acquire("a")).values == (2300, 4)
        assert (inverter.revision, inverter.points("a")[0].exponent) == (1, -1)
        image |= {INVERTER + 14: 23041, INVERTER + 15: 0xFFFE}
        sample = await inverter.acquire("a")
        assert (sample.values, sample.quality) == ((None, 4), ((0, Quality.BAD_ENCODING),))
        assert inverter.revision == 2
        assert [inverter.points(group)[0].exponent for group in ("a", "b")] == [-2, -2]
        assert (await inverter.acquire("a")).values == (23041, 4)
        assert (await inverter.acquire("b")).values == (23041,)
        image[INVERTER + 15] = 0x8000
        assert (await inverter.acquire("b")).quality == ((0, Quality.NOT_IMPLEMENTED),)
        assert inverter.revision == 2


async def test_a_scale_factor_that_goes_to_and_fro_costs_one_plan(clock: FakeClock) -> None:
    image = sunspec_image()
    async with plant({126: image}) as units, adapter(units.port, pv(["103.W"]), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        seen = []
        for value, factor in [(2304, -1), (23041, -2), (2304, -1), (23041, -2), (1, 10), (1, -10), (1, 10), (1, -10)]:
            image |= {INVERTER + 14: value, INVERTER + 15: factor & 0xFFFF}
            sample = await inverter.acquire("g")
            seen.append((sample.values[0], inverter.revision))
        assert seen == [(2304, 1), (None, 2), (23040, 2), (23041, 2), (10**12, 2), (None, 3), (None, 3), (1, 3)]


async def test_the_same_device_over_a_new_connection_loses_nothing(clock: FakeClock) -> None:
    image = sunspec_image()
    async with plant({126: image}) as units, adapter(units.port, pv(["103.W"]), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        units.asked.clear()
        await inverter.acquire("g")
        assert len(units.asked) == 1
        await restart(units, running._connection)
        image |= {INVERTER + 14: 230, INVERTER + 15: 0}
        assert (await inverter.acquire("g")).values == (2300,)
        assert (126, 3, 40000, 2) in units.asked  # the marker was looked for
        assert (inverter.revision, inverter.points("g")[0].exponent) == (1, -1)


async def test_another_map_behind_the_same_address(clock: FakeClock) -> None:
    image = sunspec_image()
    async with plant({126: image}) as units, adapter(units.port, pv(["203.W"]), clock=clock) as running:
        meter = running.devices[0]
        await meter.prepare()
        assert (await meter.acquire("g")).values == (-200,)
        # A firmware with a longer inverter model: the meter begins 10 registers later.
        moved = {place: image[place - 10] for place in range(METER + 10, max(image) + 11)}
        image |= {INVERTER + 1: 60} | dict.fromkeys(range(METER, METER + 10), 7) | moved
        await restart(units, running._connection)
        error = await refused(running)
        assert (error.cause, error.detail) == (
            Cause.LINK_DOWN,
            "the device's models were just read; values follow with the next cycle",
        )
        assert (meter.revision, meter.points("g")[0].source) == (2, "203.W holding:40150 int16 sf holding:40154")
        assert (await meter.acquire("g")).values == (-200,)


@pytest.mark.parametrize("registers", [(40004, b"Mondbau"), (40020, b"SB-6"), (40044, b"1.3"), (40052, b"SN-2")])
async def test_what_a_sunspec_device_says_of_itself_changes_alone(
    clock: FakeClock, registers: tuple[int, bytes]
) -> None:
    image = sunspec_image()
    async with plant({126: image}) as units, adapter(units.port, pv(), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        info, points = inverter.info, inverter.points("g")
        await inverter.prepare()
        assert (inverter.revision, inverter.info) == (1, info)
        place, words = registers
        image |= dict(enumerate(text(words, 8), place))
        await inverter.prepare()
        assert inverter.revision == 2
        assert inverter.info != info
        assert words.decode() in (
            inverter.info.manufacturer,
            inverter.info.model,
            inverter.info.firmware,
            inverter.info.serial,
        )
        assert inverter.points("g") == points


async def test_a_sunspec_device_that_cannot_be_asked_again_stays_known(clock: FakeClock) -> None:
    async with (
        plant({126: sunspec_image()}) as units,
        adapter(units.port, pv(), clock=clock, deadline="250ms") as running,
    ):
        inverter = running.devices[0]
        await inverter.prepare()
        info = inverter.info
        units.silent.add(126)
        with pytest.raises(AcquisitionError, match="no answer within"):
            await inverter.prepare()
        assert (inverter.revision, inverter.info) == (1, info)
        assert info.serial == "SN-1"


async def test_another_device_of_the_same_kind(clock: FakeClock) -> None:
    image = sunspec_image()
    groups = {name: {"every": "1s", "points": [f"103.{name}"]} for name in ("WH", "W")}
    async with plant({126: image}) as units, adapter(units.port, pv(groups=groups), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        await inverter.acquire("WH")
        serial = dict(enumerate(text(b"SN-2", 16), 40052))
        image |= serial | {INVERTER + 24: 0, INVERTER + 15: 1}  # its counter is lower, its scale factor higher
        await restart(units, running._connection)
        assert (await refused(running, group="WH")).cause is Cause.LINK_DOWN
        assert (inverter.revision, inverter.info.serial, inverter.points("W")[0].exponent) == (2, "SN-2", 1)
        sample = await inverter.acquire("WH")
        assert (sample.values, sample.quality) == ((2,), ())


async def test_a_sample_that_was_under_way_while_the_exponents_changed_is_given_up(clock: FakeClock) -> None:
    image = sunspec_image()
    groups = {name: {"every": "1s", "points": ["103.W"]} for name in ("a", "b")}
    async with plant({126: image}) as units, adapter(units.port, pv(groups=groups), clock=clock) as running:
        inverter = running.devices[0]
        await inverter.prepare()
        image |= {INVERTER + 14: 23041, INVERTER + 15: 0xFFFE}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(inverter.acquire, "a")
            await anyio.lowlevel.checkpoint()
            error = await refused(running, group="b")
        assert (error.cause, error.detail) == (
            Cause.DECODE_ERROR,
            "the points changed meanwhile; values follow with the next cycle",
        )
        assert (await inverter.acquire("b")).values == (23041,)


async def test_a_meter_and_an_inverter_in_one_map(clock: FakeClock) -> None:
    groups = {"pv": {"every": "1s", "points": ["103.W"]}, "grid": {"every": "1s", "points": ["203.W", "203.PhV"]}}
    async with plant({126: sunspec_image()}) as units, adapter(units.port, pv(groups=groups), clock=clock) as running:
        meter = running.devices[0]
        await meter.prepare()
        sample = await meter.acquire("grid")
        assert (sample.values, sample.quality) == ((-200, None), ((1, Quality.NOT_IMPLEMENTED),))
        assert meter.points("grid")[0].exponent == 1
        assert (await meter.acquire("pv")).values == (2304,)


async def test_no_sunspec_at_all(clock: FakeClock) -> None:
    async with plant({126: {0: 1}}) as units, adapter(units.port, pv(), clock=clock) as running:
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.DECODE_ERROR, "no SunSpec marker at 40000, 50000, 0")
        assert "base" in error.hint


async def test_a_busy_device_is_not_taken_for_a_broken_one(clock: FakeClock) -> None:
    async with plant({126: sunspec_image()}) as units, adapter(units.port, pv(), clock=clock) as running:
        units.refusals[INVERTER] = ExcCodes.DEVICE_BUSY
        error = await refused(running)
        assert (error.cause, error.detail) == (Cause.DEVICE_EXCEPTION, "exception 6 device busy")
        assert "request_pause" in error.hint
