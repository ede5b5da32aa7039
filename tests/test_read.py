"""``edge-agent read`` against devices that are asked and devices that tell, both over real connections."""

from __future__ import annotations

import json
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import provision
from adapters.mqtt import MqttAdapter
from agent.cli import main
from agent.clock import SystemClock
from agent.config import load
from agent.ports import Subscription
from testbed.battery_device import broker_url
from testbed.mosquitto import Mosquitto
from tests.test_mqtt_brokers import publishing
from tests.thirdparty_adapter import Connection, Ticker

ADAPTERS = "tests.thirdparty_adapter"


class Source(socketserver.ThreadingTCPServer):
    """The other end of both adapters. ``ticks``: what is told behind a subscription; ``values``: what is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.ticks: list[str] = []
        self.values = ["17", "18"]
        self.said: list[str] = []
        self.over = threading.Event()


class Talk(socketserver.StreamRequestHandler):
    """One connection."""

    server: Source

    def handle(self) -> None:
        for line in self.rfile:
            words = line.decode().split()
            self.server.said.append(" ".join(words))
            if words[0] == "subscribe":
                self.wfile.write("".join(f"{line}\n" for line in ["welcome", *self.server.ticks]).encode())
            elif words[0] != "ack":
                answers = self.server.values if words[0] == "read" else ["m1"]
                self.wfile.write(answers[len(self.server.said) % len(answers)].encode() + b"\n")


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def configured(folder: Path, port: int, *, ticker: str = f"{ADAPTERS}:Ticker") -> Path:
    """A device that is asked, "meter", and one that tells, "battery", with two groups."""
    path = folder / "agent.toml"
    path.write_text(f"""\
version = 1
[site]
id = "site-1"
[identity]
key = "file:key"
[connection.asked]
kind = "{ADAPTERS}:Counter"
host = "127.0.0.1"
port = {port}
[connection.told]
kind = "{ticker}"
host = "127.0.0.1"
port = {port}
[[device]]
id = "meter"
connection = "asked"
groups = {{ power = {{ every = "1s", points = ["W"] }} }}
[[device]]
id = "battery"
connection = "told"
groups = {{ state = {{ points = ["soc"] }}, other = {{ points = ["soh"] }} }}
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
subject = "dx.dso"
send = ["*"]
""")
    return path


def read(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> dict[str, Any]:
    """What it prints, by device and group."""
    capsys.readouterr()
    assert main(["read", "--json", "--config", str(config), *arguments]) == code
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({(each["device"], each["group"]) for each in found}) == len(found), "each group once"
    return {f"{each['device']}/{each['group']}": each for each in found}


def values(found: dict[str, Any]) -> dict[str, Any]:
    return {each["point"]: each["value"] for each in found["values"]}


def test_what_is_asked_and_the_first_message_of_what_tells(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.ticks = ["1 battery soc 55", "2 battery soc 56", "3 other soc 1", "4 battery soh 99"]
    found = read(configured(tmp_path, source.server_address[1]), capsys, code=0)
    assert found.keys() == {"meter/power", "battery/state", "battery/other"}
    assert values(found["meter/power"]) in ({"W": 17}, {"W": 18})
    assert (values(found["battery/state"]), values(found["battery/other"])) == ({"soc": 55}, {"soh": 99})
    assert not any(line.startswith("ack") for line in source.said), "the agent is owed these messages"


def test_as_text(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.ticks, source.values = ["1 battery soc 55", "2 battery soh 99"], ["17"]
    assert main(["read", "--config", str(configured(tmp_path, source.server_address[1]))]) == 0
    said = capsys.readouterr()
    shown = [line.split() for line in said.out.splitlines()]
    assert ["soc", "55", "good"] in shown
    assert ["battery/state"] in shown
    assert said.err == ""


def test_what_was_not_heard_in_time_is_a_finding(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.ticks = ["1 battery soc 55"]
    config = configured(tmp_path, source.server_address[1])
    found = read(config, capsys, "battery", "--wait", "50ms", code=1)
    assert values(found["battery/state"]) == {"soc": 55}
    assert found["battery/other"]["cause"] == "source_silent"
    assert "nothing heard within 0.05 s" in found["battery/other"]["error"]
    assert "meter/power" not in found


def test_a_message_that_means_nothing_is_a_finding(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.ticks = ["1 battery soc x", "2 battery soh 99"]
    found = read(configured(tmp_path, source.server_address[1]), capsys, "battery", code=1)
    assert found["battery/state"]["cause"] == "decode_error"
    assert values(found["battery/other"]) == {"soh": 99}


def test_nobody_there_is_a_finding_for_every_group(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.server_close()
    found = read(configured(tmp_path, 1), capsys, code=1)
    assert [each["cause"] for each in found.values()] == ["link_down"] * 3
    assert main(["read", "--config", str(tmp_path / "agent.toml"), "meter"]) == 1
    remedy = "is 127.0.0.1 port 1 reachable from here?"
    assert capsys.readouterr().err == f"meter/power: link_down: cannot connect; {remedy}\n"


class Visited(Connection):
    """A connection that can have a visitor."""

    visiting: bool = False

    def visitor(self) -> Visited:
        return self.model_copy(update={"visiting": True})


class VisitedTicker(Ticker):
    connection_model = Visited

    def __init__(self, name: str, connection: Visited, *rest: Any) -> None:
        assert connection.visiting
        super().__init__(name, connection, *rest)


def test_a_visitor_acknowledges_nothing(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.ticks = ["1 battery soc 55", "2 battery soh 99"]
    config = configured(tmp_path, source.server_address[1], ticker="tests.test_read:VisitedTicker")
    assert read(config, capsys, "battery", code=0).keys() == {"battery/state", "battery/other"}
    assert source.said == ["subscribe"]


# ---- beside an agent, at a real broker --------------------------------------------------------------------------


MQTT = """\
version = 1
[site]
id = "site-1"
[identity]
key = "file:key"
[connection.bms]
url = "{url}"
[[device]]
id = "battery"
connection = "bms"
topic = "site/+/state"
qos = 2
groups = {{ state = {{ points = [{{ name = "W", at = "/w" }}] }} }}
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
subject = "dx.dso"
send = ["*"]
"""


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_it_leaves_the_session_of_an_agent_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    if provision.program("mosquitto") is None:
        pytest.skip("no mosquitto: python3 provision.py debian makes it ready")
    config = tmp_path / "agent.toml"

    async def read_state() -> int:
        found = await to_thread.run_sync(lambda: read(config, capsys, code=0))
        return int(values(found["battery/state"])["W"])

    with Mosquitto(tmp_path, max_inflight=20) as broker:
        config.write_text(MQTT.format(url=broker_url(broker, version)))
        (plan,) = load(config).adapters()
        agent = MqttAdapter("bms", plan.connection, plan.devices, SystemClock())
        async with publishing(broker.port) as publisher:

            async def publish(*numbers: int) -> None:
                for number in numbers:
                    await publisher.publish("site/battery/state", b'{"w":%d}' % number, qos=2)

            await publisher.publish("site/other/state", b'{"w":1}', retain=True)  # what read hears
            async with agent.subscribe() as subscription:
                await publish(*range(2, 25))  # more than the broker sends ahead
                assert await read_state() == 1
                assert "already connected" not in broker.log()
                assert await received(subscription, 23) == list(range(2, 25)), "the running agent goes on"
            await publish(25)
            assert await read_state() == 1, "with nobody connected"
            async with agent.subscribe() as subscription:
                assert subscription.resumed
                assert await received(subscription, 1) == [25], "and all that the agent acknowledged is gone"
            assert broker.log().count("New client connected") - 3 == 2, "two readers beside the agent and the publisher"


async def received(subscription: Subscription, count: int) -> list[int]:
    """What the next messages say, acknowledged; retained ones are left out, which come again with each SUBSCRIBE."""
    found: list[int] = []
    with anyio.fail_after(10):
        while len(found) < count:
            for arrival in await subscription.receive():
                if not arrival.message.retain:
                    found.append(arrival.message.document()["w"])
                subscription.acknowledge(arrival)
    return found


# ---- again and again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_again_and_again_until_it_is_told_to_stop(source: Source, tmp_path: Path, number: signal.Signals) -> None:
    source.ticks, source.values = [f"{n} battery soc {n}" for n in (1, 2, 3)], ["17"]
    config = configured(tmp_path, source.server_address[1])
    command = [sys.executable, "-m", "agent.cli", "read", "--json", "--every", "100ms", "--config", str(config)]
    with subprocess.Popen([*command, "--wait", "1h"], stdout=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        seen: list[str] = []
        while seen.count("meter") < 3 or seen.count("battery") < 3:
            seen.append(json.loads(reading.stdout.readline())["device"])
        reading.send_signal(number)
        reading.communicate(timeout=10)
        assert reading.returncode == 0


def test_a_reader_that_goes_away_is_no_error(source: Source, tmp_path: Path) -> None:
    source.ticks, source.values = ["1 battery soc 55", "2 battery soh 99"], ["17"]
    config = configured(tmp_path, source.server_address[1])
    program = f"{sys.executable} -m agent.cli read --every 100ms --config {config}; echo code $? >&2"
    done = subprocess.run(["bash", "-c", f"({program}) | head -1"], capture_output=True, text=True, timeout=20)
    assert done.stderr == "code 0\n"


@pytest.mark.parametrize(
    "arguments", [("--every", "1"), ("--every", "5ms"), ("--every", "soon"), ("--wait", "10"), ("--wait", "x")]
)
def test_what_is_no_duration_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    assert main(["read", "--config", str(configured(tmp_path, 1)), *arguments]) == 2
    assert "edge-agent read: " in capsys.readouterr().err
