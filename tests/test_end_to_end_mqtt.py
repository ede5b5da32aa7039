"""MQTT the whole way, with real brokers: what the broker took from the battery arrives, exactly, once or marked, or is
stated. The oracle decides; what a killed broker itself loses is not counted.

Random moments come from a seed that is printed; EDGE_AGENT_SEED=N runs them again.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.battery_device import MqttBroker
from testbed.mosquitto import Mosquitto
from testbed.processes import NatsServer, wait_for
from testbed.rig import Rig, command, told

Json = dict[str, Any]
Make = Callable[..., Rig]
OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}
BROKERS = ("nats 3.1.1", "mosquitto 3.1.1", "mosquitto 5")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    rigs: list[Rig] = []

    def made(broker: str, *, options: dict[str, Any] | None = None, **more: Any) -> Rig:
        kind, version = broker.split()
        mqtt: MqttBroker
        if kind == "nats":
            mqtt = NatsServer(tmp_path, mqtt=True, name="mqtt", **(options or {}))
        else:
            mqtt = Mosquitto(tmp_path, **(options or {}))
        rigs.append(Rig(tmp_path, mqtt=mqtt, mqtt_version=version, **more))
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.close()


def brokers(*fast: str) -> pytest.MarkDecorator:
    """All of them, ``fast`` on each run of the tests and the others in the long campaigns."""
    return pytest.mark.parametrize(
        "broker", [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in BROKERS]
    )


def listening(rig: Rig) -> None:
    """Return when the agent is connected to the battery's broker."""

    def connected() -> bool:
        status = json.loads(command("status", "--json", "--config", rig.config))
        return any(each.get("state") == "connected" for each in status["connections"])

    wait_for(connected, timeout=40, what="the agent to listen")


def begin(rig: Rig) -> None:
    """Start the agent; from its subscription on the broker owes it every message."""
    rig.agent.start().wait_ready()
    listening(rig)
    if isinstance(rig.mqtt, Mosquitto):
        rig.mqtt.save()  # a broker that is killed may forget what came since, but not that there is a session
    rig.listening()


def pause(seconds: float) -> None:
    """Let them work: what happens in that time is what the test is about."""
    time.sleep(seconds)


def conclude(rig: Rig) -> tuple[list[Json], Any]:
    """Have all delivered, stop the agent in order, and see that nothing is wrong."""
    rig.settle_battery(timeout=60)
    rig.wait_for_state(timeout=40, failing=None)  # the battery is silenced, and may count as silent
    rig.stop()
    lines = rig.consumed()
    account = rig.judge(lines)
    print(account)
    assert account.problems == []
    assert account.messages_lost == 0
    assert account.messages_delivered > 0
    assert lines[-1]["report"]["levels"] == OK
    return lines, account


def qualities(lines: list[Json]) -> set[str]:
    frames = [frame for line in lines for frame in line.get("frames", []) if frame["device"] == "battery"]
    return {code for frame in frames for code in frame.get("quality", {}).values()}


# ---- what messages say ----------------------------------------------------------------------------------------------


@brokers("nats 3.1.1", "mosquitto 3.1.1", "mosquitto 5")
def test_every_message_is_there_with_its_values_or_as_a_gap(make: Make, broker: str) -> None:
    rig = make(broker)
    begin(rig)
    for word in ("garbage words", "missing soc", "garbage cut", "null power/w", "garbage bytes", "garbage deep"):
        rig.battery.command(word)
    rig.battery.command("burst 5")
    rig.battery.command("garbage latin")
    rig.battery.command("garbage empty")
    pause(1.0)
    lines, account = conclude(rig)
    assert account.messages_in_gaps == 6
    assert account.messages_doubled == 0
    assert "no_value" in qualities(lines)
    assert "message not understood" in rig.agent.log()


@brokers("mosquitto 5")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_any_quality_of_service_arrives_once(make: Make, broker: str, qos: int) -> None:
    rig = make(broker, battery={"qos": qos, "rate": 10.0})
    begin(rig)
    pause(1.5)
    if qos == 0:
        rig.battery.command("qos 1")  # so that there is something that is owed
        pause(0.5)
    _, account = conclude(rig)
    assert account.messages_doubled == 0


@brokers("mosquitto 5")
def test_a_retained_message_is_old_data(make: Make, broker: str) -> None:
    rig = make(broker)
    rig.battery.command("retain")
    begin(rig)
    pause(1.0)
    lines, account = conclude(rig)
    assert "old_data" in qualities(lines)
    assert account.messages_retained >= 1


@brokers("mosquitto 3.1.1")
def test_half_a_window_that_waits_is_not_kept_waiting(make: Make, broker: str) -> None:
    """20 messages on the way and a window of 10 s would make 2 messages a second: 600 would take five minutes."""
    rig = make(broker, seal_within="10s", battery={"rate": 0.5})
    begin(rig)
    rig.battery.command("burst 600", timeout=20)
    rig.settle_battery(timeout=30)
    conclude(rig)


def test_over_tls_with_a_password_that_nobody_sees(make: Make, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse\n")
    authority = tmp_path / "mosquitto.tls"
    rig = make(
        "mosquitto 5",
        options={"tls": True, "users": {"agent": "correct horse"}},
        bms='username = "agent"\npassword = { file = "password" }\ntls = { ca = "mosquitto.tls/ca.pem" }',
        battery={
            "options": ["--ca", authority / "ca.pem", "--username", "agent", "--password-file", tmp_path / "password"]
        },
    )
    begin(rig)
    pause(1.0)
    assert "correct horse" not in command("config", "show", "--config", rig.config)
    conclude(rig)
    assert "correct" not in rig.agent.log()


# ---- what comes and goes --------------------------------------------------------------------------------------------


@brokers("nats 3.1.1", "mosquitto 5")
def test_the_broker_is_restarted_and_killed(make: Make, broker: str, chance: random.Random) -> None:
    rig = make(broker, battery={"rate": 20.0})
    assert rig.mqtt is not None
    begin(rig)
    for turn in range(4):
        pause(chance.uniform(0.2, 1.2))
        if turn % 2:
            rig.mqtt.kill()
        else:
            rig.mqtt.stop()
        pause(chance.uniform(0.0, 0.5))
        rig.mqtt.start()
        listening(rig)
    pause(0.5)
    lines, _ = conclude(rig)
    silent = {g["device"]: g["silent_ns"] for g in told(lines, "groups") if g["group"] == "state"}
    assert silent["battery"]["link_down"] > 0


@brokers("mosquitto 3.1.1", "nats 3.1.1")
def test_an_agent_that_is_killed_loses_no_message(make: Make, broker: str, chance: random.Random) -> None:
    rig = make(broker, battery={"rate": 20.0})
    begin(rig)
    for _ in range(4):
        pause(chance.uniform(0.1, 1.0))
        rig.agent.kill()
        pause(chance.uniform(0.0, 0.5))
        rig.agent.start().wait_ready()
        listening(rig)
    pause(0.5)
    conclude(rig)


@brokers("mosquitto 5")
def test_both_are_killed_while_the_other_side_is_away_too(make: Make, broker: str, chance: random.Random) -> None:
    rig = make(broker, battery={"rate": 20.0})
    assert rig.mqtt is not None
    begin(rig)
    rig.broker.kill()
    pause(chance.uniform(0.3, 0.8))
    rig.mqtt.kill()
    rig.agent.kill()
    rig.mqtt.start()
    rig.agent.start().wait_ready()
    listening(rig)
    pause(chance.uniform(0.3, 0.8))
    rig.broker.start()
    conclude(rig)


@brokers("mosquitto 3.1.1")
def test_a_slow_consumer_gets_all_of_it_in_the_end(make: Make, broker: str) -> None:
    rig = make(broker, battery={"rate": 5.0})
    begin(rig)
    rig.agent.signal(signal.SIGSTOP)
    rig.battery.command("burst 400", timeout=20)
    pause(2.0)
    rig.agent.signal(signal.SIGCONT)
    conclude(rig)


@brokers("mosquitto 5")
def test_a_reload_loses_no_message(make: Make, broker: str) -> None:
    rig = make(broker, battery={"rate": 30.0})
    begin(rig)
    old, new = 'name = "V", at = "/v", unit = "V", decimals = 2', 'name = "V", at = "/v", unit = "V", decimals = 3'
    for turn in range(4):
        text = rig.config.read_text()
        assert (old, new)[turn % 2] in text
        rig.config.write_text(text.replace(*((old, new) if turn % 2 == 0 else (new, old))))
        assert command("reload", "--config", rig.config).splitlines() == ["connection bms: changed, restarted"]
        listening(rig)
        pause(0.3)
    lines, _ = conclude(rig)
    assert len({line["stream"] for line in lines if "stream" in line}) == 1


@brokers("nats 3.1.1", "mosquitto 3.1.1", "mosquitto 5")
def test_another_topic_for_the_same_messages_loses_none_and_marks_what_comes_twice(make: Make, broker: str) -> None:
    """By a reload, and by a restart: the broker keeps the session, and for a while what was subscribed before."""
    rig = make(broker, battery={"rate": 30.0})
    begin(rig)
    before = f'topic = "{rig.battery.topic}"'
    for after in ('topic = "site/+/state"', 'topic = "site/#"', before):
        pause(0.3)
        rig.config.write_text(rig.config.read_text().replace(before, after))
        if after == 'topic = "site/#"':
            rig.stop()
            rig.agent.start().wait_ready()
        else:
            command("reload", "--config", rig.config)
        listening(rig)
        before = after
    pause(0.3)
    conclude(rig)


def test_stops_in_the_middle_of_reloads_lose_no_message(make: Make, chance: random.Random) -> None:
    channels = {"dso": ["*"], "market": ["battery/*"]}
    rig = make("mosquitto 5", battery={"rate": 50.0}, channels=channels)
    begin(rig)
    for turn in range(3):
        text = rig.config.read_text()
        for one, other in (
            ('"200ms"', '"300ms"'),
            ('"250ms"', '"350ms"'),
        ):  # of the channels, of the Modbus connections
            old, new = (one, other) if turn % 2 == 0 else (other, one)
            assert old in text
            text = text.replace(old, new)
        rig.config.write_text(text)
        pause(0.4)
        rig.agent.signal(signal.SIGHUP)
        pause(chance.uniform(0.0, 0.3))
        rig.stop()
        rig.agent.start().wait_ready()
        listening(rig)
    rig.settle_battery(timeout=60)
    rig.wait_for_state(timeout=40, failing=None)  # the battery is silenced, and may count as silent
    rig.stop()
    for channel in channels:
        lines = rig.consumed(channel=channel)
        assert lines[-1]["report"]["levels"] == OK
        account = rig.judge(lines)
        assert [each for each in account.problems if "battery" in each] == []
        assert account.messages_lost == 0


def test_a_source_that_falls_silent_is_stated(make: Make) -> None:
    rig = make("mosquitto 3.1.1")
    begin(rig)
    pause(0.8)
    rig.battery.command("silence")
    wait_for(lambda: "cause=source_silent" in rig.agent.log(), timeout=20, what="the agent to notice")
    rig.battery.command("resume")
    rig.wait_for_state()
    lines, _ = conclude(rig)
    (silent,) = [g["silent_ns"] for g in told(lines, "groups") if g["device"] == "battery"]
    assert silent["source_silent"] > 4e9
