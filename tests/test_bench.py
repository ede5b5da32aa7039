"""The benchmarks' figures: what they print and when they count as met. What they measure is run by bench/run alone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

import provision
from adapters.mqtt.packets import Packets
from agent.config import load as load_config
from agent.evidence.record import link_of
from agent.outbox import Outbox
from agent.sealing.sealer import Facts
from agent.signer import KeySigner
from agent.verifier import Verifier
from bench import backlog, load
from bench.__main__ import FIGURES, LONG, chosen, measured
from bench.figure import Figure, cpu_seconds, interleaved, resident_mib
from bench.line import Line
from bench.modbus_device import ModbusDevice
from bench.mqtt_memory import highest
from bench.mqtt_rig import Publisher, missing, said
from bench.publish import Publisher as Lean
from bench.publish import payload, publish
from testbed.child import Process, ProcessError, wait_for
from testbed.mosquitto import Mosquitto
from testbed.processes import Agent, NatsServer

Json = dict[str, Any]


@pytest.mark.parametrize(("value", "met"), [(2.9, True), (3.0, True), (3.1, False)])
def test_a_figure_is_met_when_its_ratio_is_within_the_target(value: float, met: bool) -> None:
    figure = Figure("cpu", value, "us", 1.0, "the reference", 3.0)
    assert figure.met is met
    assert figure.as_json() == {
        "value": value,
        "unit": "us",
        "reference": 1.0,
        "reference_name": "the reference",
        "ratio": value,
        "target": 3.0,
        "target_of": "ratio",
        "met": met,
        "note": "",
    }


@pytest.mark.parametrize(("value", "met"), [(2.5, True), (2.6, False)])
def test_an_absolute_target_bounds_the_value_whatever_the_ratio_is(value: float, met: bool) -> None:
    for reference, absolute in ((0.1, True), (100.0, True), (None, True), (None, False)):
        figure = Figure("cpu", value, "us", reference, "the reference", 2.5, absolute=absolute)
        assert figure.met is met
        assert figure.as_json()["target_of"] == "value"


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (Figure("a", 5, "us", 2, "alone", 2.5), "a: 5.000 us; alone: 2.000 us, ratio 2.50, at most 2.50: met"),
        (Figure("a", 5, "us", 100, "b", 1 / 30), "a: 5.000 us; b: 100.000 us, ratio 1/20.0, at most 1/30.0: MISSED"),
        (
            Figure("a", 5, "us", 2, "alone", 2.5, "seen", absolute=True),
            "a: 5.000 us, at most 2.5 us: MISSED; alone: 2.000 us, ratio 2.50 (seen)",
        ),
        (Figure("a", 5, "us", None, "", 9, absolute=True), "a: 5.000 us, at most 9 us: met"),
        (Figure("a", 5, "us", 4, "other", None), "a: 5.000 us; other: 4.000 us, ratio 1.25"),
    ],
)
def test_the_target_stands_behind_what_it_bounds(figure: Figure, line: str) -> None:
    assert figure.line() == line


def test_figures_of_one_place_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def figures(names: Sequence[str]) -> list[Figure]:
        asked.append(list(names))
        return [Figure(name, 1, "us", None, "", None) for name in names]

    place = types.SimpleNamespace(figures=figures, alone=lambda: Figure("b", 1, "us", None, "", None))
    monkeypatch.setitem(sys.modules, "bench.place", cast(types.ModuleType, place))
    for name, function in {"a": "figures", "b": "alone", "c": "figures"}.items():
        monkeypatch.setitem(FIGURES, name, f"bench.place:{function}")
    assert [figure.name for figure in measured(["c", "b", "a"])] == ["c", "a", "b"]
    assert asked == [["c", "a"]]


def test_measures_are_taken_in_turn_and_their_medians_count() -> None:
    order: list[str] = []
    values = {"a": iter([5.0, 1.0, 3.0]), "b": iter([10.0, 30.0, 20.0])}

    def measure(name: str) -> float:
        order.append(name)
        return next(values[name])

    assert interleaved([lambda: measure("a"), lambda: measure("b")]) == [3.0, 20.0]
    assert order == ["a", "b"] * 3


def test_an_unknown_figure_is_refused_with_the_names_that_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cpu_per_reading" in done.stderr


def test_without_a_name_all_figures_run_but_the_long_ones() -> None:
    assert set(chosen([])) == set(FIGURES) - set(LONG)
    assert chosen(["mqtt_memory"]) == ["mqtt_memory"]


def test_the_cpu_time_and_memory_of_a_process_are_read() -> None:
    before, end = cpu_seconds(os.getpid()), time.process_time() + 0.02
    while time.process_time() < end:
        pass
    assert 0.02 <= cpu_seconds(os.getpid()) - before < 1
    small = resident_mib(os.getpid())
    held = b"x" * (64 << 20)
    assert 60 < resident_mib(os.getpid()) - small < 70
    del held


# ---- MQTT -----------------------------------------------------------------------------------------------------------


def test_a_message_has_about_100_bytes_and_four_numbers_with_the_same_decimals() -> None:
    for number in (1, 999, 1_000_000):
        content = payload(number)
        assert 95 <= len(content) <= 115
        numbers = [value for value in json.loads(content).values() if isinstance(value, (int, float))]
        assert len(numbers) == 4
        assert [len(part.split(b",")[0].partition(b".")[2]) for part in content.split(b":")[1:5]] == [0, 1, 2, 2]


@pytest.mark.parametrize(("qos", "mid", "size"), [(0, 7, 10), (1, 7, 10), (1, 65_535, 200), (1, 1, 20_000)])
def test_what_is_published_is_mqtt(qos: int, mid: int, size: int) -> None:
    packets = Packets(version5=False)
    packets.feed(b"\x20\2\0\0" + publish(b"a/b", b"x" * size, qos=qos, mid=mid))
    (message,) = packets.messages
    assert (message.topic, message.payload, message.qos) == ("a/b", b"x" * size, qos)
    assert message.mid == (mid if qos else 0)


@pytest.mark.parametrize("rate", [0, 1000])
def test_no_more_is_published_than_is_allowed_and_the_broker_must_have_taken_it(rate: float) -> None:
    ours, theirs = socket.socketpair()
    limits, parent = os.pipe()
    with ThreadPoolExecutor(1) as threads, ours, theirs, theirs.makefile("rb") as sent:
        theirs.settimeout(10)
        publisher = Lean(ours, b"a/b", qos=1, rate=rate, first=41)
        running = threads.submit(publisher.run, limits)
        packets = [publish(b"a/b", payload(41 + at), qos=1, mid=1 + at) for at in range(5)]
        for line, expected in ((b"3\n", packets[:3]), (b"4\n5\n", packets[3:])):
            os.write(parent, line)
            assert sent.read(sum(map(len, expected))) == b"".join(expected)
        os.close(parent)
        assert sent.read(2) == b"\xc0\0"
        theirs.sendall(b"\xd0\0" + 4 * b"\x40\2\0\1")
        with pytest.raises(TimeoutError):
            running.result(0.05)
        theirs.sendall(b"\x40\2\0\5")
        running.result(10)
        assert publisher.sent == 5
    os.close(limits)


@pytest.mark.skipif(provision.program("mosquitto") is None, reason="no mosquitto: python3 provision.py debian")
@pytest.mark.parametrize(("qos", "version", "rate"), [(0, "3.1.1", 1000), (1, "3.1.1", 0), (1, "5", 1000)])
def test_the_reference_receives_all_that_the_publisher_says_it_sent(
    tmp_path: Path, qos: int, version: str, rate: float
) -> None:
    def connected(process: Process) -> None:
        wait_for(lambda: "ready" in process.log() or None, timeout=20, what=f"{process.name} to connect")

    with Mosquitto(tmp_path) as broker:
        command = [sys.executable, "-m", "bench.receive_and_drop", str(broker.port), "a/b", str(qos), version]
        with (
            Process(command, name="reference", folder=tmp_path) as reference,
            Publisher(tmp_path, broker.port, "a/b", qos=qos, rate=rate) as publisher,
        ):
            connected(reference)
            connected(publisher)
            publisher.allow(250)
            sent = publisher.end()
            assert 0 < sent <= 250
            assert reference.stop() == 0
            assert said(reference, "received") == sent


@pytest.mark.skipif(provision.program("mosquitto") is None, reason="no mosquitto: python3 provision.py debian")
def test_a_publisher_whose_broker_goes_away_says_so(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Publisher(tmp_path, broker.port, "a/b", qos=1, rate=10) as publisher:
        wait_for(lambda: "ready" in publisher.log() or None, timeout=20, what="the publisher to connect")
        publisher.allow(1000)
        broker.kill()
        with pytest.raises(ProcessError, match="the broker closed the connection"):
            publisher.end()


def _frames(*numbers: int) -> Json:
    return {"frames": [{"values": {"N": number}} for number in numbers]}


def _report(present: int, *, gaps: Mapping[str, int] | None = None, missing: int = 0, failed: int = 0) -> Json:
    groups = [{"present": present, "gaps": dict(gaps or {})}]
    return {"report": {"groups": groups, "cycles_missing": missing, "failed": failed}}


def test_nothing_is_missing_when_every_message_is_there_once() -> None:
    assert missing([{"plan": {}}, _frames(1, 2), _frames(3), _report(3)], sent=3) == ""


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [_frames(1, 2, 3)],
        [_frames(1, 2), _report(2)],
        [_frames(1, 2, 2), _report(3)],
        [_frames(1, 2, 3, 3), _report(4)],
        [_frames(1, 2, 3), _report(2)],
        [_frames(1, 2, 3), _report(3, gaps={"decode_error": 1})],
        [_frames(1, 2, 3), _report(3, missing=1)],
        [_frames(1, 2, 3), _report(3, failed=1)],
    ],
)
def test_whatever_is_missing_doubled_or_failed_is_told(lines: list[Json]) -> None:
    assert missing(lines, sent=3)


def test_the_highest_of_the_last_messages_counts() -> None:
    samples = [(10_000, 90.0), (60_000, 40.0), (99_000, 42.0), (100_500, 50.0), (960_000, 43.0), (1_000_000, 41.0)]
    assert highest(samples, 100_000) == 42.0
    assert highest(samples, 1_000_000) == 43.0


# ---- a day's backlog, over a long line ------------------------------------------------------------------------------


def test_a_backlog_is_what_an_agent_would_hold(tmp_path: Path) -> None:
    signer = KeySigner(bytes(31) + b"\x01")
    facts = Facts(bytes(16), "0.1.0", load.SITE, (), load.CHANNEL, load.TOPIC, bytes(32), 1000)
    backlog.write(tmp_path / "ring", size=5 << 20, records=1000, points=3, signer=signer, facts=facts)
    outbox = Outbox.open(tmp_path / "ring", channel=load.CHANNEL, size=5 << 20, inspect=link_of)
    verifier = Verifier([signer.did])
    stored = outbox.read(0, max_bytes=5 << 20)
    for each in stored:
        verifier.feed(each.envelope)
    verifier.finish(complete=True)
    outbox.close()
    assert verifier.report.good
    assert verifier.report.cycles() == (1000, 1000, 0)
    assert outbox.pending.records == len(stored)


def test_what_is_said_over_a_line_arrives_late_and_is_counted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        with (
            Line(tmp_path, server.getsockname()[1], round_trip=0.1) as line,
            socket.create_connection(("127.0.0.1", line.port), timeout=10) as near,
        ):
            far, _ = server.accept()
            with far, far.makefile("rb") as there, near.makefile("rb") as here:
                far.settimeout(10)
                began = time.monotonic()
                near.sendall(b"question\n")
                assert there.readline() == b"question\n"
                far.sendall(b"answer\n")
                assert here.readline() == b"answer\n"
                assert time.monotonic() - began >= 0.1
                assert line.bytes_sent() == len(b"question\n")
                near.close()


def test_the_load_is_a_configuration_that_the_agent_takes(tmp_path: Path) -> None:
    text = load.configuration(
        1502, "nats://127.0.0.1:4222", units=3, registers=125, every="5ms", connections=2, channel='seal_within = "0s"'
    )
    (tmp_path / "agent.toml").write_text(text)
    config = load_config(tmp_path / "agent.toml")
    assert [len(device.groups["all"].points) for device in config.devices] == [125] * 3


def test_cycles_are_counted_by_when_the_broker_took_them(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as broker, ModbusDevice(tmp_path, units=1, registers=2) as device:
        text = load.configuration(
            device.port, broker.url, units=1, registers=2, every="50ms", channel='seal_within = "0s"'
        )
        config, began = load.prepare(tmp_path, broker.url, text), time.time_ns()
        with Agent(tmp_path, config) as agent:
            load.wait_delivering(agent)
        report = load.report(config)
        assert load.lost(report) == {}
        assert asyncio.run(load.cycles_stored(broker.url, began, time.time_ns())) == report["cycles_present"] > 0
        assert asyncio.run(load.cycles_stored(broker.url, 0, began)) == 0
