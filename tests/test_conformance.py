"""The adapter conformance suite over the adapters there are, over two of a third party, and over broken ones.

A new adapter gets its subject and class here.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
from pydantic import ConfigDict
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

import provision
from adapters.conformance import (
    CONNECTION,
    EventAdapterConformance,
    EventSubject,
    PolledAdapterConformance,
    PolledSubject,
)
from adapters.modbus import ModbusAdapter
from adapters.mqtt import MqttAdapter
from agent import kinds
from agent.config import load
from agent.errors import AcquisitionError, ConfigError
from agent.model import Cause, Quality, Sample
from agent.ports import Arrival
from testbed.battery_device import broker_url
from testbed.mosquitto import Mosquitto
from tests.test_mqtt_brokers import Publisher
from tests.thirdparty_adapter import (
    Connection,
    Counter,
    CounterDevice,
    CounterTable,
    Line,
    Ticker,
    TickerDevice,
    Ticks,
)

ROOT = Path(__file__).resolve().parent.parent

# ---- Modbus, against pymodbus's server ---------------------------------------------------------------------------


class ModbusSubject(PolledSubject):
    """Units 1 and 2 behind a pymodbus server: an address answers with what the unit's image holds, else with 0."""

    adapter = ModbusAdapter

    def __init__(self) -> None:
        self.images: dict[int, dict[int, int]] = {1: {}, 2: {}}
        self._mode = "answers"
        self._port = 0
        self._server: ModbusTcpServer | None = None

    def connection(self) -> dict[str, Any]:
        return {"url": f"modbus+tcp://127.0.0.1:{self._port}", "timeout": "150ms"}

    async def start(self) -> None:
        self._mode = "answers"
        if self._server is not None:
            return
        devices = [
            SimDevice(id=unit, simdata=[SimData(0, count=65536, datatype=DataType.REGISTERS)], action=self._act(unit))
            for unit in self.images
        ]
        server = ModbusTcpServer(devices, address=("127.0.0.1", self._port), trace_packet=self._packet)
        await server.serve_forever(background=True)
        assert isinstance(server.transport, asyncio.Server)
        self._port = server.transport.sockets[0].getsockname()[1]
        self._server = server

    def _packet(self, sending: bool, data: bytes) -> bytes:
        if not sending or self._mode == "answers":
            return data
        return b"" if self._mode == "silent" else b"HTTP/1.1 400 Bad Request\r\n\r\n"

    def _act(self, unit: int) -> Any:
        async def act(
            function: int, start: int, address: int, count: int, registers: list[int], _: list[int] | list[bool] | None
        ) -> ExcCodes | None:
            for place in range(address, address + count):
                registers[place - start] = self.images[unit].get(place, 0)
            return None

        return act

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.shutdown()  # type: ignore[no-untyped-call]
            await anyio.lowlevel.checkpoint()

    async def silence(self) -> None:
        await self.start()
        self._mode = "silent"

    async def junk(self) -> None:
        await self.start()
        self._mode = "junk"


class RegisterSubject(ModbusSubject):
    """Registers by hand."""

    def __init__(self) -> None:
        super().__init__()
        for unit, image in self.images.items():
            image |= {0: 2304 + unit, 10: 0xFFFF, 11: 0xFFFF - unit, 300: 0x3FC0 + unit, 301: 0}

    def devices(self) -> Sequence[dict[str, Any]]:
        points = [
            {"name": "V", "at": "holding:0", "type": "uint16", "scale": 0.1},
            {"name": "W", "at": "holding:10", "type": "int32"},
            {"name": "Hz", "at": "holding:300", "type": "float32"},
        ]
        groups = {"fast": {"every": "1s", "points": points}, "slow": {"every": "1m", "points": points[1:]}}
        return [{"id": f"d{unit}", "connection": CONNECTION, "unit": unit, "groups": groups} for unit in self.images]

    def refused(self) -> Sequence[dict[str, Any]]:
        first = self.devices()[0]
        groups = first["groups"]
        bad = groups["slow"] | {"phase": "1m", "points": [{"name": "a/b", "at": "5", "type": "int16", "scale": 0}]}
        return [first | {"groups": {"slow": bad}}, first | {"profile": "x", "forbidden": ["40001"]}]

    def expected(self, device: str, group: str) -> Mapping[str, Any]:
        unit = int(device[1])
        values = {"V": 2304 + unit, "W": -1 - unit, "Hz": {1: 1.5078125, 2: 1.515625}[unit]}
        return values if group == "fast" else {"W": values["W"], "Hz": values["Hz"]}


class TestModbusRegisters(PolledAdapterConformance):
    subject_type = RegisterSubject


INVERTER = 40070


class SunSpecSubject(ModbusSubject):
    """SunSpec: the common model and an inverter, model 103."""

    def __init__(self) -> None:
        super().__init__()
        for unit, image in self.images.items():
            common = _words(b"Maker", 16) + _words(b"SB", 16) + [0] * 8 + _words(b"1.0", 8) + _words(b"SN-1", 16)
            words = [0x5375, 0x6E53, 1, 66, *common, unit, 0x8000, 103, 50, *[0xFFFF] * 50, 0xFFFF, 0]
            image |= dict(enumerate(words, 40000))
            image |= {INVERTER + 14: 2300 + unit, INVERTER + 15: 0xFFFF, INVERTER + 16: 5000, INVERTER + 17: 0xFFFE}

    def devices(self) -> Sequence[dict[str, Any]]:
        groups = {
            "ac": {"every": "1s", "points": ["103.W", "103.Hz", "103.DCA"]},
            "hz": {"every": "5s", "points": ["103.Hz", "103.W"]},
        }
        table = {"connection": CONNECTION, "sunspec": {}, "groups": groups}
        return [{"id": f"d{unit}", "unit": unit} | table for unit in self.images]

    def refused(self) -> Sequence[dict[str, Any]]:
        first = self.devices()[0]
        groups = {"ac": {"every": "1s", "points": ["103.Watt", "W", "9999.W"]}}
        return [first | {"identification": "off", "word_order": "big"}, first | {"groups": groups}]

    def expected(self, device: str, group: str) -> Mapping[str, Any]:
        return {"W": self.images[int(device[1])][INVERTER + 14], "Hz": 5000}

    async def change(self) -> None:
        await self.stop()
        self.images[2] |= dict(enumerate(_words(b"SN-2", 16), 40052))
        self.images[1] |= {INVERTER + 14: 230, INVERTER + 15: 0}
        self.images[1] |= dict(enumerate(_words(b"1.1", 8), 40044))
        await self.start()


def _words(text: bytes, count: int) -> list[int]:
    padded = text.ljust(2 * count, b"\0")
    return [int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2)]


class TestModbusSunSpec(PolledAdapterConformance):
    subject_type = SunSpecSubject


# ---- a third party's, against a server of lines ------------------------------------------------------------------


class Lines:
    """A server of lines of text: each connection is served by ``serve`` until it ends."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self.port = 0
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            del self._tasks[task]
            writer.transport.abort()

    async def drop(self) -> None:
        for writer in self._tasks.values():
            writer.transport.abort()
        while self._tasks:
            await anyio.lowlevel.checkpoint()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop()


def lines_table(port: int) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "timeout": "150ms"}


class CounterSubject(PolledSubject):
    """``hello`` and ``read``, as tests/thirdparty_adapter.py describes them."""

    adapter: ClassVar[Any] = Counter

    def __init__(self) -> None:
        self.values = {("a", "apples"): 1, ("a", "pears"): 2, ("b", "apples"): 3}
        self.model = "Counter 1"
        self._mode = "answers"
        self._lines = Lines(self._serve)

    def connection(self) -> dict[str, Any]:
        return lines_table(self._lines.port)

    def devices(self) -> Sequence[dict[str, Any]]:
        one, both = {"every": "1s", "points": ["apples"]}, {"every": "5s", "points": ["pears", "apples"]}
        return [
            {"id": "a", "connection": CONNECTION, "groups": {"one": one, "both": both}},
            {"id": "b", "connection": CONNECTION, "groups": {"one": one}},
        ]

    def refused(self) -> Sequence[dict[str, Any]]:
        return [self.devices()[1] | {"groups": {"one": {"every": "5 s", "points": ["apples"]}}}]

    def expected(self, device: str, group: str) -> Mapping[str, Any]:
        return {point: value for (name, point), value in self.values.items() if name == device}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            words = (await reader.readuntil(b"\n")).decode().split()
            answer = self.model if words[0] == "hello" else str(self.values[words[1], words[2]])
            if self._mode != "silent":
                writer.write(b"\xff\xfe\n" if self._mode == "junk" else f"{answer}\n".encode())

    async def start(self) -> None:
        self._mode = "answers"
        await self._lines.start()

    async def stop(self) -> None:
        await self._lines.stop()

    async def silence(self) -> None:
        await self.start()
        self._mode = "silent"

    async def junk(self) -> None:
        await self.start()
        self._mode = "junk"

    async def change(self) -> None:
        self.model = "Counter 2"
        self.values |= {("a", "apples"): 100}
        await self._lines.drop()


class TestCounter(PolledAdapterConformance):
    subject_type = CounterSubject


class TickerSubject(EventSubject):
    """``subscribe`` and ``ack``, as tests/thirdparty_adapter.py describes them; keeps what is not acknowledged."""

    adapter: ClassVar[Any] = Ticker
    keeps = True

    def __init__(self) -> None:
        self._silent = False
        self._known = False
        self._held: list[bytes] = []  # neither acknowledged nor dropped
        self._acked: list[int] = []
        self._open: list[asyncio.StreamWriter] = []
        self._lines = Lines(self._serve)

    def connection(self) -> dict[str, Any]:
        return lines_table(self._lines.port)

    def devices(self) -> Sequence[dict[str, Any]]:
        groups = {"fruit": {"points": ["apples", "pears"]}, "other": {"points": ["stones"]}}
        return [{"id": name, "connection": CONNECTION, "groups": groups} for name in ("a", "b")]

    def expected(self, number: int) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        device, group, point = _PLACES[number % len(_PLACES)]
        return {(device, group): {point: number * 10}}

    async def send(self, number: int) -> None:
        device, _, point = _PLACES[number % len(_PLACES)]
        self._say(f"{number} {device} {point} {number * 10}".encode())

    async def send_junk(self) -> int:
        junk = [
            b"",
            b" ",
            b"1",
            b"1 a apples",
            b"1 a apples x",
            b"1 a apples -1",
            b"1 a apples 1e3",
            b"\xff\xfe \xff \0",
        ]
        junk += [
            b"1 a apples " + b"9" * 40_000,
            b"x x x x",
            b"1 a apples 1 1",
            "1 a apples \N{SUPERSCRIPT TWO}".encode(),
        ]
        for line in junk:
            self._say(line)
        return len(junk)

    def _say(self, line: bytes) -> None:
        self._held.append(line)
        for writer in self._open:
            writer.write(line + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"\n") == b"subscribe\n"
        if self._silent:
            await reader.read()
            return
        writer.write(b"welcome back\n" if self._known else b"welcome\n")
        writer.write(b"".join(line + b"\n" for line in self._held))
        self._known = True
        self._open.append(writer)
        try:
            while True:
                word, number = (await reader.readuntil(b"\n")).split(b" ")[:2]
                assert word == b"ack"
                self._held = [line for line in self._held if line.split(b" ")[0] != number.strip()]
                if number.strip().isdigit():
                    self._acked.append(int(number))
        finally:
            self._open.remove(writer)

    def acknowledged(self) -> Sequence[int]:
        return self._acked

    async def start(self) -> None:
        self._silent = False
        await self._lines.start()

    async def stop(self) -> None:
        await self._lines.stop()

    async def silence(self) -> None:
        await self.start()
        self._silent = True

    async def drop(self) -> None:
        await self._lines.drop()


_PLACES = [("a", "fruit", "apples"), ("a", "fruit", "pears"), ("b", "other", "stones"), ("b", "fruit", "apples")]


class TestTicker(EventAdapterConformance):
    subject_type = TickerSubject


class DozensSubject(TickerSubject):
    """From ``change`` on apples are told with a zero in front, which says that they are dozens."""

    def __init__(self) -> None:
        super().__init__()
        self._zero = ""

    async def change(self) -> None:
        self._zero = "0"

    def _say(self, line: bytes) -> None:
        head, _, value = line.rpartition(b" ")
        super()._say(head + b" " + self._zero.encode() + value)

    class Adapter(Ticker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for device in self.devices:
                device.__class__ = DozensDevice

    adapter = Adapter


class DozensDevice(TickerDevice):
    def decode(self, group: str, arrival: Arrival) -> Sample:
        if arrival.message[3].startswith("0") and self.groups[group][0].unit is None:
            self.groups[group] = tuple(replace(point, unit="{dozen}") for point in self.groups[group])
            self.revision += 1
        return super().decode(group, arrival)


class TestTickerThatChanges(EventAdapterConformance):
    subject_type = DozensSubject


# ---- MQTT, against Mosquitto ---------------------------------------------------------------------------------------


class MqttSubject(EventSubject):
    """A Mosquitto whose log tells which messages were acknowledged: the number is the last level of the topic.

    Its silence is SIGSTOP: the system goes on taking connections for it.
    """

    adapter = MqttAdapter
    keeps = True
    version: ClassVar[str]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        self._decimals = ""
        self._broker = Mosquitto(self.folder, settings="log_type all")
        self._broker.start()
        self._publisher: Publisher | None = None

    def connection(self) -> dict[str, Any]:
        return {"url": broker_url(self._broker, self.version), "timeout": "400ms"}

    def devices(self) -> Sequence[dict[str, Any]]:
        def group(name: str, *points: str) -> dict[str, Any]:
            return {"topic": f"+/{name}/+", "points": [{"name": each, "at": f"/{each}"} for each in points]}

        both = {"fruit": group("fruit", "apples", "pears"), "stones": group("stones", "weight")}
        return [
            {"id": "a", "connection": CONNECTION, "groups": both, "silent_after": "1m"},
            {"id": "b", "connection": CONNECTION, "groups": {"fruit": both["fruit"]}, "qos": 2},
        ]

    def refused(self) -> Sequence[dict[str, Any]]:
        first = self.devices()[0]
        points = [{"name": "a/b", "at": "x"}, {"name": "c"}, {"name": "c", "topic_level": 9}]
        return [first | {"groups": {"g": {"every": "1s", "topic": "a/#/b", "points": points}}}, first | {"qos": 3}]

    def expected(self, number: int) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        if number % 3 == 0:
            return {("a", "stones"): {"weight": self._value(number)}}
        fruit = {"apples": self._value(number), "pears": self._value(-number)}
        return {("a", "fruit"): fruit, ("b", "fruit"): fruit}

    def _value(self, number: int) -> int:
        return int(f"{number}{self._decimals}")

    async def send(self, number: int) -> None:
        tail = self._decimals and f".{self._decimals}"
        if number % 3 == 0:
            await self._publish(f"x/stones/{number}", f'{{"weight":{number}{tail}}}'.encode())
        else:
            await self._publish(f"x/fruit/{number}", f'{{"apples":{number}{tail},"pears":-{number}{tail}}}'.encode())

    async def send_junk(self) -> int:
        junk = [
            b"",
            b"\0",
            b"\xff\xfe",
            b"{",
            b"[]",
            b"null",
            b"7",
            b"{}{}",
            b'{"apples":{"apples":1}}',
            b"[" * 100_000,
        ]
        junk += [b'{"apples":1e999999999}', b'{"apples":NaN}', b'{"apples":true,"pears":"1"}', b"9" * 100_000]
        for payload in junk:
            await self._publish("x/fruit/0", payload)
        await self._publish("\N{ZERO WIDTH SPACE}/fruit/\N{LINE SEPARATOR}", b"{}")
        await self._publish("x/fruit/0", b"x" * (2 << 20))  # over MQTT 5 we say that we do not take it
        return len(junk) + (1 if self.version == "5" else 2)

    async def change(self) -> None:
        self._decimals = "25"

    async def _publish(self, topic: str, payload: bytes) -> None:
        assert self._publisher is not None
        await self._publisher.publish(topic, payload, qos=2)

    def acknowledged(self) -> Sequence[int]:
        numbers: dict[str, int] = {}
        found = []
        for line in self._broker.log_path.read_text().split("\n"):
            if sent := re.search(r"Sending PUBLISH to edge-agent-wire \(d\d, q[12], r0, m(\d+), '.*/(\d+)'", line):
                numbers[sent[1]] = int(sent[2])
            elif answered := re.search(r"Received (?:PUBACK|PUBREC) from edge-agent-wire \(Mid: (\d+)", line):
                found.append(numbers[answered[1]])
        return found

    async def start(self) -> None:
        if not self._broker.alive:
            self._broker.start()
        if self._publisher is None:
            self._publisher = await Publisher.connect(self._broker.port)

    async def stop(self) -> None:
        await self._hang_up()
        if self._broker.alive:
            self._broker.kill()

    async def _hang_up(self) -> None:
        if self._publisher is not None:
            await self._publisher.close()
            self._publisher = None

    async def silence(self) -> None:
        await self.start()
        self._broker.signal(signal.SIGSTOP)

    async def drop(self) -> None:
        await self._hang_up()
        self._broker.stop()  # not killed: what it is to send again is in its file
        await self.start()


class Mqtt311Subject(MqttSubject):
    version = "3.1.1"


class Mqtt5Subject(MqttSubject):
    version = "5"


class MqttConformance(EventAdapterConformance):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the broker's files are."""
        if provision.program("mosquitto") is None:
            pytest.skip("no mosquitto: python3 provision.py debian makes it ready")
        monkeypatch.setattr(MqttSubject, "folder", tmp_path, raising=False)


class TestMqtt311(MqttConformance):
    subject_type = Mqtt311Subject


class TestMqtt5(MqttConformance):
    subject_type = Mqtt5Subject


# ---- the suite finds what is broken ------------------------------------------------------------------------------


def counter(**of_device: Any) -> type[Counter]:
    """The example, with devices that differ in these methods."""
    kind = type("BrokenDevice", (CounterDevice,), of_device)

    class Broken(Counter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for device in self.devices:
                device.__class__ = kind

    return Broken


def sampling(**changes: Any) -> type[Counter]:
    """The example, with samples that differ; a change is a value or a function of the good sample."""

    async def acquire(self: CounterDevice, group: str) -> Sample:
        sample = await CounterDevice.acquire(self, group)
        return replace(sample, **{name: each(sample) if callable(each) else each for name, each in changes.items()})

    return counter(acquire=acquire)


async def forgets_what_it_is(self: CounterDevice) -> None:
    before = self.revision
    await CounterDevice.prepare(self)
    self.revision = before


async def is_always_new(self: CounterDevice, group: str) -> Sample:
    self.revision += 1
    return await CounterDevice.acquire(self, group)


async def lets_errors_through(self: CounterDevice, group: str) -> Sample:
    try:
        return await CounterDevice.acquire(self, group)
    except AcquisitionError as error:
        raise OSError(error.detail) from error


async def blames_the_engine(self: CounterDevice, group: str) -> Sample:
    try:
        return await CounterDevice.acquire(self, group)
    except AcquisitionError as error:
        raise AcquisitionError(Cause.OVERRUN, error.detail) from error


async def blocks(self: CounterDevice, group: str) -> Sample:
    time.sleep(0.2)  # noqa: ASYNC251 - that is what is wrong with it
    raise AcquisitionError(Cause.DEVICE_TIMEOUT, "no answer")


class Sorted(Counter):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for device in self.devices:
            device._points = {
                group: tuple(sorted(points, key=lambda point: point.name)) for group, points in device._points.items()
            }


class ConnectsAtOnce(Counter):
    def __init__(self, name: str, connection: Connection, *arguments: Any) -> None:
        super().__init__(name, connection, *arguments)
        socket.create_connection((connection.host, connection.port)).close()


class Lenient(Counter):
    class Table(CounterTable):
        model_config = ConfigDict(extra="ignore")

    device_model = Table


class Impatient(Counter):
    async def close(self) -> None:
        if self._closed:
            raise RuntimeError("closed twice")
        await super().close()


class NeverCloses(Counter):
    async def close(self) -> None:
        self._closed = True
        if self._line is not None:
            KEPT.append(self._line)


KEPT: list[Line] = []


class Patient(Counter):
    """Waits for ever."""

    async def ask(self, question: str, *, over: int) -> str:
        async with self._wire:
            line = await self._open()
            line.send(question)
            return (await line.receive()).decode()


class TakesLateAnswers(Counter):
    """Keeps the connection on which an answer is still on its way."""

    async def ask(self, question: str, *, over: int) -> str:
        line = await self._open()
        line.send(question)
        return (await line.receive()).decode()


class Interleaved(Counter):
    """Lets two questions share the wire, and one overtake the other."""

    async def ask(self, question: str, *, over: int) -> str:
        line = await self._open()
        line.send(question)
        if question.endswith("apples"):
            await anyio.sleep(0.005)
        return (await line.receive()).decode()


BROKEN_COUNTERS: list[tuple[str, dict[str, Any], type[Counter]]] = [
    ("test_samples", {}, sampling(values=lambda sample: tuple(map(bool, sample.values)))),
    ("test_samples", {}, sampling(values=lambda sample: tuple(map(float, sample.values)))),
    ("test_samples", {}, sampling(values=lambda sample: (*sample.values, 1))),
    ("test_samples", {}, sampling(values=lambda sample: [*sample.values])),
    ("test_samples", {}, sampling(values=lambda sample: (None, *sample.values[1:]))),
    ("test_samples", {}, sampling(values=lambda sample: (1 << 64, *sample.values[1:]))),
    ("test_samples", {}, sampling(values=lambda sample: tuple(value + 1 for value in sample.values))),
    ("test_samples", {}, sampling(quality=((0, Quality.NO_VALUE),))),
    ("test_samples", {}, sampling(quality=((0, Quality.SUSPECT), (0, Quality.OUT_OF_RANGE)))),
    ("test_samples", {}, sampling(quality=((0, 6),))),
    ("test_samples", {}, sampling(quality=((9, Quality.SUSPECT),))),
    ("test_samples", {}, sampling(started=lambda sample: sample.started - 10**9)),
    ("test_samples", {}, sampling(ended=lambda sample: sample.ended + 10**9)),
    ("test_samples", {}, sampling(started=lambda sample: sample.ended + 1)),
    ("test_samples", {}, counter(acquire=lets_errors_through)),
    ("test_another_device_is_noticed", {}, counter(prepare=forgets_what_it_is)),
    ("test_a_device_that_stays_the_same_makes_no_new_plans", {}, counter(acquire=is_always_new)),
    ("test_nobody_listens", {}, counter(acquire=lets_errors_through)),
    ("test_nobody_listens", {}, counter(acquire=blames_the_engine)),
    ("test_a_silent_other_end_is_an_error_in_time", {"known": False}, counter(acquire=blocks)),
    ("test_a_silent_other_end_is_an_error_in_time", {"known": True}, Patient),
    ("test_devices_and_points_are_those_selected", {}, Sorted),
    ("test_construction_touches_no_network", {}, ConnectsAtOnce),
    ("test_unknown_keys_are_refused_where_they_are", {}, Lenient),
    ("test_all_problems_are_found_at_once", {}, Lenient),
    ("test_closing_twice_does_no_harm", {}, Impatient),
    ("test_close_leaves_nothing", {}, NeverCloses),
    ("test_close_ends_acquisitions_under_way", {"known": True}, NeverCloses),
    ("test_cancelled_at_any_wait_it_goes_on", {}, TakesLateAnswers),
    ("test_groups_and_devices_at_the_same_time", {}, Interleaved),
]


class AcknowledgesAtOnce(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        arrivals = await super().receive()
        for each in arrivals:
            super().acknowledge(each)
        return arrivals


class LosesWhatIsCancelled(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        arrivals = await super().receive()
        await anyio.lowlevel.checkpoint()
        return arrivals


class SaysNothing(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        await super().receive()
        return []


class TakesItsTime(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        return [replace(each, received=1) for each in await super().receive()]


class KnowsNobody(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        return [replace(each, concerns=((7, "fruit"),)) for each in await super().receive()]


class Breaks(Ticks):
    def acknowledge(self, arrival: Arrival) -> None:
        if self._line._writer.transport.is_closing():
            raise RuntimeError("the connection is lost")
        super().acknowledge(arrival)


class SinceAlways(Ticks):
    def __getattribute__(self, name: str) -> Any:
        return 0 if name == "since" else super().__getattribute__(name)


class SinceTheFirst(Ticks):
    async def receive(self) -> Sequence[Arrival]:
        arrivals = await super().receive()
        self.since = arrivals[0].received + 1
        return arrivals


def ticker(kind: type[Ticks] = Ticks, **of_device: Any) -> type[Ticker]:
    """The example, with a subscription and devices that differ."""
    device_kind = type("BrokenDevice", (TickerDevice,), of_device)

    class Broken(Ticker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for device in self.devices:
                device.__class__ = device_kind

        @asynccontextmanager
        async def subscribe(self) -> AsyncIterator[Ticks]:
            async with super().subscribe() as subscription:
                subscription.__class__ = kind
                yield subscription

    return Broken


class StaysConnected(Ticker):
    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Ticks]:
        async with super().subscribe() as subscription:
            yield subscription
        KEPT.append(await Line.open(self._connection))


class Deaf(Ticker):
    """Waits for ever for the welcome."""

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Ticks]:
        line = await Line.open(self._connection)
        try:
            line.send("subscribe")
            await line.receive()
            yield Ticks(line, {}, self._clock, resumed=False)
        finally:
            line.close()


def raises_what_it_likes(self: TickerDevice, group: str, arrival: Arrival) -> Sample:
    return replace(
        TickerDevice.decode(self, group, arrival), values=(int(arrival.message[3]),) * len(self.groups[group])
    )


def believes_anything(self: TickerDevice, group: str, arrival: Arrival) -> Sample:
    int(arrival.message[3])
    return TickerDevice.decode(self, group, arrival)


def tells_another_time(self: TickerDevice, group: str, arrival: Arrival) -> Sample:
    return replace(TickerDevice.decode(self, group, arrival), started=arrival.received - 1)


BROKEN_TICKERS: list[tuple[str, dict[str, Any], type[Ticker]]] = [
    ("test_nothing_is_acknowledged_before_it_is_on_disk", {}, ticker(AcknowledgesAtOnce)),
    ("test_receiving_cancelled_at_any_wait_loses_nothing", {}, ticker(LosesWhatIsCancelled)),
    ("test_messages_come_in_order", {}, ticker(SaysNothing)),
    ("test_messages_come_in_order", {}, ticker(TakesItsTime)),
    ("test_messages_come_in_order", {}, ticker(KnowsNobody)),
    ("test_messages_come_in_order", {}, ticker(SinceAlways)),
    ("test_messages_come_in_order", {}, ticker(SinceTheFirst)),
    ("test_messages_come_in_order", {}, ticker(decode=tells_another_time)),
    ("test_messages_come_in_order", {}, ticker(decode=raises_what_it_likes)),
    ("test_junk_costs_nothing_but_itself", {}, ticker(decode=believes_anything)),
    ("test_acknowledging_over_a_lost_connection_does_nothing", {}, ticker(Breaks)),
    ("test_leaving_closes_the_connection", {}, StaysConnected),
    ("test_who_cannot_be_reached", {"trouble": "silence"}, Deaf),
    ("test_silence_has_a_length", {}, ticker(silent_after=1.5)),
]

FOUND = (AssertionError, pytest.fail.Exception, TimeoutError, OSError, ValueError, RuntimeError, BaseExceptionGroup)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("test", "more", "broken"),
    [*BROKEN_COUNTERS, *BROKEN_TICKERS],
    ids=[
        f"{number}-{each[0].removeprefix('test_')}" for number, each in enumerate([*BROKEN_COUNTERS, *BROKEN_TICKERS])
    ],
)
async def test_a_broken_adapter_is_found(test: str, more: dict[str, Any], broken: type[Any]) -> None:
    polled = issubclass(broken, Counter)
    subject = type("Subject", (CounterSubject if polled else TickerSubject,), {"adapter": broken, "within": 0.5})
    suite: Any = type("Suite", (TestCounter if polled else TestTicker,), {"subject_type": subject})()
    try:
        with pytest.raises(FOUND):
            await getattr(suite, test)(**more)
    finally:
        while KEPT:
            KEPT.pop().close()
        await anyio.lowlevel.checkpoint()


# ---- as a third party names it -----------------------------------------------------------------------------------

CONFIGURATION = """
version = 1
site = {{ id = "s" }}
identity = {{ key = "file:key" }}

[connection.fruit]
kind = "tests.thirdparty_adapter:{name}"
host = "192.0.2.1"
port = 7000

[[device]]
id = "basket"
connection = "fruit"

[device.groups.all]
{every}
points = ["apples", "pears"]

[[channel]]
id = "c"
transport = "nats"
servers = ["nats://192.0.2.2"]
send = ["basket/all/apples"]
"""


@pytest.mark.parametrize(("name", "every"), [("Counter", 'every = "5s"'), ("Ticker", "")])
def test_a_configuration_names_it(tmp_path: Path, name: str, every: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(CONFIGURATION.format(name=name, every=every))
    (plan,) = load(file).adapters()
    assert kinds.load(plan.class_path) is {"Counter": Counter, "Ticker": Ticker}[name]
    assert plan.connection == Connection(host="192.0.2.1", port=7000)
    (selection,) = plan.devices
    assert selection.groups == {"all": ("apples",)}


def test_its_problems_are_the_files(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(CONFIGURATION.format(name="Counter", every='every = "5 s"').replace("port = 7000", "prot = 7000"))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [problem.key for problem in caught.value.problems] == [
        "connection.fruit.port",
        "connection.fruit.prot",
        "device[0].groups.all.every",
    ]


def test_what_a_subject_cannot_do_is_not_tested() -> None:
    def tests(suite: type[Any]) -> set[str]:
        return {name for name in dir(suite) if name.startswith("test_") and getattr(suite, name)}

    assert tests(TestCounter) - tests(TestModbusRegisters) == {"test_another_device_is_noticed"}
    assert tests(TestTickerThatChanges) - tests(TestTicker) == {"test_points_change_with_the_revision"}
    assert len(tests(TestCounter)) > 15
    assert len(tests(TestTicker)) > 15


def test_the_documentation_shows_the_example_and_how_it_is_tested() -> None:
    page = (ROOT / "docs" / "adapters.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    example = (ROOT / "tests" / "thirdparty_adapter.py").read_text()
    tests = Path(__file__).read_text()
    shown = [block for block in blocks if block not in tests]
    assert "".join(shown).replace("\n", "") == example.replace("\n", "")
    assert [block for block in blocks if block in tests and block.startswith("class CounterSubject")]
