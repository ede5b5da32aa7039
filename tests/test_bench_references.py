"""What the agent is measured beside: the load device, the row-per-reading agent, ThingsBoard Gateway's set-up.

The gateway itself is neither installed nor run here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import cbor2
import coincurve
import nats
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

import provision
from agent.config import load
from bench import cpu_per_reading, idle, row_per_reading
from bench.figure import cpu_seconds
from bench.modbus_device import Device, ModbusDevice
from bench.thingsboard import Server, files, values_of
from testbed.child import Process, wait_for
from testbed.mosquitto import Mosquitto
from testbed.processes import NatsServer
from testbed.registers import PlainUnit

# ---- the device -----------------------------------------------------------------------------------------------------


class Sent:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True


def device(registers: int = 100) -> tuple[Device, Sent]:
    served, sent = Device({10: PlainUnit(registers, seed=1), 11: PlainUnit(registers, seed=2)}), Sent()
    served.connection_made(cast(asyncio.Transport, sent))
    return served, sent


def request(transaction: int, *, unit: int = 10, function: int = 3, address: int = 0, count: int = 2) -> bytes:
    return struct.pack(">HHHBBHH", transaction, 0, 6, unit, function, address, count)


def heads(answers: bytes) -> list[tuple[int, int, int, int]]:
    """Transaction, unit, function and the byte behind it of each answer."""
    found = []
    while answers:
        transaction, protocol, length, unit, function, size = struct.unpack_from(">HHHBBB", answers)
        assert protocol == 0
        found.append((transaction, unit, function, size))
        answers = answers[6 + length :]
    return found


@pytest.mark.parametrize("cuts", [(), (1,), (12,), (5, 7, 19, 30), (24,), tuple(range(1, 36))])
def test_requests_that_come_together_or_in_pieces_are_all_answered_in_order(cuts: Sequence[int]) -> None:
    served, sent = device()
    stream = request(7) + request(8, unit=11, function=4) + request(9, count=100)
    for first, last in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        served.data_received(stream[first:last])
    assert heads(b"".join(sent.writes)) == [(7, 10, 3, 4), (8, 11, 4, 4), (9, 10, 3, 200)]
    assert len(sent.writes) <= len(cuts) + 1  # those that come together are answered together


def test_register_0_counts_the_reads_and_the_others_take_a_small_step_each() -> None:
    served, sent = device(125)
    for _ in range(50):
        served.data_received(request(1, count=125))
    images = [struct.unpack(">125H", answer[9:]) for answer in sent.writes]
    assert [image[0] for image in images] == list(range(1, 51))
    steps = {b - a for one, other in pairwise(images) for a, b in zip(one, other, strict=True)}
    assert steps == {-3, -2, -1, 1, 2, 3}


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (request(1, function=6), 1),
        (request(1, address=99), 2),
        (request(1, count=0), 3),
        (request(1, count=126), 3),
        (struct.pack(">HHHBB", 1, 0, 2, 10, 3), 3),
        (request(1, unit=12), 11),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_exception_code(asked: bytes, code: int) -> None:
    served, sent = device()
    served.data_received(asked + request(2))
    assert heads(sent.writes[0]) == [(1, asked[6], asked[7] | 0x80, code), (2, 10, 3, 4)]


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\0\1\0\0\0\1\n"])
def test_what_is_not_modbus_closes_the_connection(garbage: bytes) -> None:
    served, sent = device()
    served.data_received(garbage)
    assert sent.closed


# ---- a row per reading ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(units: int, registers: int) -> AsyncIterator[int]:
    """The port of a device with these units."""
    images = {10 + unit: PlainUnit(registers, seed=unit) for unit in range(units)}
    server = await asyncio.get_running_loop().create_server(lambda: Device(images), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.anyio
async def test_the_row_reference_delivers_every_reading_once(server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "rows.sqlite"
    client = await nats.connect(server.url)
    jetstream = client.jetstream()

    async def run(port: int, more: int) -> int:
        """Until so many more messages are in the stream, or some beyond."""
        ended, seen = asyncio.Event(), 0

        async def count(message: Any) -> None:
            nonlocal seen
            seen += 1
            if seen >= more:
                ended.set()

        listening = await client.subscribe("ROWS.>", cb=count)
        sent = await row_per_reading.read(
            port=port, units=2, registers=3, hertz=50, url=server.url, stream="ROWS", file=file, ended=ended
        )
        await listening.unsubscribe()
        return sent

    async with serving(2, 3) as port, asyncio.timeout(20):
        first = await run(port, 12)
        sent = await run(port, 6)  # goes on where it was
        assert sent > first >= 12
        assert (await jetstream.stream_info("ROWS")).state.messages == sent
        messages = [(await jetstream.get_msg("ROWS", number)).data for number in range(1, sent + 1)]
    await client.close()
    numbers: list[int] = []
    values: list[tuple[str, str, int]] = []
    for message in messages:
        payload, signature = cbor2.loads(message or b"")
        digest = hashlib.sha256(payload).digest()
        coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
        reading = cbor2.loads(payload)
        numbers.append(reading["n"])
        values.append((reading["d"], reading["p"], reading["v"]))
    assert sorted(numbers) == list(range(1, sent + 1))
    for unit in ("d0", "d1"):  # register 0 counts the reads of its unit
        counted = sorted(value for device, point, value in values if (device, point) == (unit, "R0"))
        assert counted == list(range(1, len(counted) + 1))
        assert len(counted) > 1
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT count(*), sum(sent) FROM reading").fetchone() == (sent, sent)
    database.close()


# ---- configurations -------------------------------------------------------------------------------------------------


def test_the_agents_configurations_are_good_and_read_what_the_references_read(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(cpu_per_reading.configuration(502, "nats://127.0.0.1:4222"))
    config = load(file)
    assert [len(device.groups["all"].points) for device in config.devices] == [100] * 10
    file.write_text(idle.configuration(502, "mqtt://127.0.0.1:1883", "nats://127.0.0.1:4222"))
    assert len(load(file).devices) == 2


def test_thingsboard_is_asked_for_the_same_registers_at_the_same_rate() -> None:
    found = json.loads(json.dumps(files(5020, 1883, units=3, registers=4, period_ms=200)))
    slaves = found["modbus.json"]["master"]["slaves"]
    assert [(each["unitId"], each["deviceName"], each["port"], each["pollPeriod"]) for each in slaves] == [
        (10, "d0", 5020, 200),
        (11, "d1", 5020, 200),
        (12, "d2", 5020, 200),
    ]
    for each in slaves:
        assert [(tag["tag"], tag["address"], tag["functionCode"]) for tag in each["timeseries"]] == [
            (f"t{at}", at, 3) for at in range(4)
        ]
    (block,) = files(5020, 1883, units=1, registers=100, period_ms=1, blocks=True)["modbus.json"]["master"]["slaves"]
    assert [tag["address"] for tag in block["timeseries"]] == ["0-99"]
    gateway = found["tb_gateway.json"]
    assert (gateway["thingsboard"]["host"], gateway["thingsboard"]["port"]) == ("127.0.0.1", 1883)
    assert gateway["thingsboard"]["remoteConfiguration"] is False
    assert gateway["connectors"][0]["configuration"] == "modbus.json"
    assert {logger["level"] for logger in found["logs.json"]["loggers"].values()} == {"ERROR"}


def test_the_values_of_a_telemetry_message_are_counted() -> None:
    message = {
        "d0": [{"ts": 1, "values": {"a": 1, "b": 2}}, {"ts": 2, "values": {"a": 3}}],
        "d1": [{"values": {"a": 4}}],
    }
    assert values_of(json.dumps(message).encode()) == 4


@pytest.mark.skipif(provision.program("mosquitto") is None, reason="no mosquitto: python3 provision.py debian")
def test_the_stand_in_for_the_thingsboard_server_tells_the_limits_and_counts(tmp_path: Path) -> None:
    answers: list[Any] = []
    with Mosquitto(tmp_path) as broker, Server(broker.port) as server:
        gateway = paho.Client(CallbackAPIVersion.VERSION2, "gateway")
        gateway.on_message = lambda client, data, message: answers.append((message.topic, json.loads(message.payload)))
        gateway.on_subscribe = lambda *_: answers.append("subscribed")
        gateway.connect("127.0.0.1", broker.port)
        gateway.loop_start()
        gateway.subscribe("v1/devices/me/rpc/response/+", 1)
        wait_for(lambda: answers == ["subscribed"], timeout=10, what="the subscription")
        gateway.publish("v1/devices/me/rpc/request/1", json.dumps({"method": "getSessionLimits", "params": {}}), qos=1)
        wait_for(lambda: len(answers) == 2, timeout=10, what="an answer")
        gateway.publish("v1/gateway/telemetry", json.dumps({"d0": [{"ts": 1, "values": {"a": 1}}]}), qos=1)
        server.wait_values(1 - server.values, timeout=10)
        gateway.disconnect()
        gateway.loop_stop()
    topic, limits = answers[1]
    assert topic == "v1/devices/me/rpc/response/1"
    assert {"rateLimits", "gatewayRateLimits", "maxInflightMessages", "maxPayloadSize"} == set(limits)


# ---- processes ------------------------------------------------------------------------------------------------------


def test_the_device_is_a_process_that_ends_with_its_input_and_its_leash_is_not_counted(tmp_path: Path) -> None:
    with ModbusDevice(tmp_path, units=1, registers=2) as process:
        assert idle.at_exec(process) == 0  # it is the program already
        assert process.port
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
    with Process([sys.executable, "-S", "-c", "input()"], name="waits", folder=tmp_path, piped=True) as other:
        before = idle.at_exec(other)
        assert before > 0
        wait_for(lambda: cpu_seconds(other.pid) > before, timeout=10, what="the program to run")
