"""The testbed's MQTT side, for real: brokers that keep what they promise, a battery that journals what it published.

What the brokers do is written down here, for the agent and the oracle count on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import provision
from testbed.battery import GARBAGE
from testbed.battery_device import MqttBroker, broker_url
from testbed.certificates import Authority
from testbed.mosquitto import Mosquitto
from testbed.processes import Battery, NatsServer, ProcessError, free_port, wait_for, with_free_port
from testbed.published import Message, messages, read_messages

ROOT = Path(__file__).resolve().parent.parent
ANY_BROKER = pytest.mark.parametrize("kind", ["nats-server 3.1.1"], indirect=True)  # it makes no difference
TOPIC = "site/battery/state"


class Got(NamedTuple):
    """A message as a subscriber gets it."""

    payload: bytes
    qos: int
    retain: bool
    dup: bool


class Subscriber:
    """A client with a kept session, connected and subscribed within its ``with`` block."""

    def __init__(self, url: str, *, qos: int = 2, acknowledge: bool = True, client_id: str = "subscriber") -> None:
        self.got: list[Got] = []
        self._address = url.partition("//")[2].partition("?")[0].partition(":")
        self._qos = qos
        self._subscribed = threading.Event()
        self.five, self.present = url.endswith("version=5"), False
        version = MQTTProtocolVersion.MQTTv5 if self.five else MQTTProtocolVersion.MQTTv311
        session = None if self.five else False
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, session, protocol=version, manual_ack=not acknowledge
        )
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._message

    def _connected(self, client: mqtt.Client, user: Any, flags: mqtt.ConnectFlags, reason: Any, rest: Any) -> None:
        if not reason.is_failure:
            self.present = flags.session_present
            client.subscribe("site/#", self._qos)

    def _message(self, client: mqtt.Client, user: Any, message: mqtt.MQTTMessage) -> None:
        self.got.append(Got(bytes(message.payload), message.qos, message.retain, message.dup))

    def wait_for(self, count: int, timeout: float = 15) -> list[Got]:
        """What came, once there are so many."""
        wait_for(lambda: len(self.got) >= count, timeout=timeout, what=f"{count} messages")
        return self.got

    def __enter__(self) -> Self:
        more: dict[str, Any] = {}
        if self.five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 600
            more = {"clean_start": False, "properties": properties}
        self.client.connect(self._address[0], int(self._address[2]), **more)
        self.client.loop_start()
        assert self._subscribed.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def mosquitto(folder: Path, **options: Any) -> Mosquitto:
    if provision.program("mosquitto") is None:
        pytest.skip("no mosquitto: python3 provision.py debian makes it ready")
    return Mosquitto(folder, **options)


@pytest.fixture(params=["mosquitto 3.1.1", "mosquitto 5", "nats-server 3.1.1"])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, _, version = str(request.param).partition(" ")
    return name, version


@pytest.fixture
def broker(kind: tuple[str, str], tmp_path: Path) -> Iterator[MqttBroker]:
    chosen: MqttBroker = mosquitto(tmp_path) if kind[0] == "mosquitto" else NatsServer(tmp_path, mqtt=True)
    with chosen as running:
        yield running


@pytest.fixture
def url(broker: MqttBroker, kind: tuple[str, str]) -> str:
    return broker_url(broker, kind[1])


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Battery]]:
    """Starts a battery that says nothing by itself."""
    started: list[Battery] = []

    def start(**options: Any) -> Battery:
        started.append(Battery(tmp_path, url, **{"silent": True, "rate": 20.0} | options).start())
        started[-1].wait_connected()
        return started[-1]

    yield start
    for battery in started:
        battery.close()


# ---- the battery's journal --------------------------------------------------------------------------------------


def test_the_journal_is_what_a_subscriber_gets(url: str, start: Callable[..., Battery]) -> None:
    battery = start()
    with Subscriber(url) as subscriber:
        began = time.time_ns()
        battery.command("resume")
        subscriber.wait_for(5)
        battery.command("silence")
        for kind in ("retain", "missing soc", "null power/w", "garbage", "qos 2", "burst 3", "qos 0", "burst 2"):
            battery.command(kind)
        battery.command("qos 1")
        for kind in GARBAGE:
            battery.command(f"garbage {kind}")
        battery.wait_acknowledged()
        sent = read_messages(battery.journal)
        got = subscriber.wait_for(len(sent))

    assert [each.n for each in sent] == [*range(1, len(sent) + 1)]
    assert sorted(each.payload for each in got) == sorted(each.payload for each in sent)
    assert {(each.retain, each.dup) for each in got} == {(False, False)}
    by_payload = {each.payload: each.qos for each in got}
    assert all(by_payload[each.payload] == each.qos for each in sent)
    assert [each.acked is not None for each in sent] == [each.qos > 0 for each in sent]
    assert all(each.acked > each.boot for each in sent if each.acked is not None)
    assert [each.topic for each in sent] == [TOPIC] * len(sent)
    assert not any(each.again for each in sent)

    states = [each for each in sent if each.document is not None]
    assert len(sent) - len(states) == 1 + len(GARBAGE)
    assert [each.at("/n") for each in states] == [each.n for each in states]
    assert all(before.at("/ts") < after.at("/ts") for before, after in pairwise(states))
    assert states[0].at("/ts") >= began // 1_000_000
    _, missing, null = [each for each in states if each.qos == 1][-3:]
    assert "soc" not in missing.document
    assert null.document["power"] == {"w": None}
    assert [each.retain for each in states].count(True) == 1
    for each in states[:5]:
        assert 10 <= each.at("/soc") <= 90
        assert 45 < each.at("/v") < 60
        assert each.at("/state") in ("charging", "discharging", "idle")
        assert each.at("/on") is True
        assert len(each.at("/temp")) == 4


@ANY_BROKER
def test_the_battery_publishes_at_its_rate(url: str, start: Callable[..., Battery]) -> None:
    battery = start(rate=1.0)
    battery.command("resume")
    battery.command("rate 100")
    wait_for(lambda: len(read_messages(battery.journal)) >= 40, timeout=10, what="forty messages")
    battery.command("silence")
    sent = read_messages(battery.journal)
    between = sorted(after.boot - before.boot for before, after in pairwise(sent))
    assert 8e6 < between[len(between) // 2] < 20e6


@ANY_BROKER
def test_what_the_battery_does_not_know_it_refuses(start: Callable[..., Battery]) -> None:
    battery = start()
    for text in ("dance", "rate 0", "qos 3", "missing rank", "null soc/w", "garbage x", "burst many"):
        with pytest.raises(ProcessError, match=f"refused {text}"):
            battery.command(text)


def test_a_battery_goes_on_while_its_broker_is_away(
    broker: MqttBroker, url: str, start: Callable[..., Battery]
) -> None:
    battery = start()
    with Subscriber(url) as subscriber:
        battery.command("burst 3")
        battery.wait_acknowledged()
        if isinstance(broker, Mosquitto):
            broker.save()
        broker.kill()
        wait_for(lambda: "disconnected" in battery.log(), timeout=10, what="the battery to notice")
        battery.command("burst 40")
        battery.command("qos 0")
        battery.command("burst 1")
        broker.start()
        battery.wait_acknowledged()
        sent = read_messages(battery.journal)
        wait_for(
            lambda: {each.payload for each in subscriber.got} >= {each.payload for each in sent if each.qos},
            timeout=15,
            what="all that was acknowledged",
        )
    assert len(broker.kills) == 1
    assert [each.acked is not None for each in sent] == [True] * 43 + [False]
    assert not sent[-1].online


@ANY_BROKER
def test_a_battery_that_is_killed_goes_on_with_its_numbers(url: str, start: Callable[..., Battery]) -> None:
    battery = start()
    battery.command("burst 4")
    battery.kill()
    battery.start()
    battery.wait_connected()
    battery.command("burst 2")
    battery.wait_acknowledged()
    assert [each.n for each in read_messages(battery.journal)] == [1, 2, 3, 4, 5, 6]


def test_a_journal_tells_which_messages_may_come_twice() -> None:
    def line(n: int) -> dict[str, Any]:
        return {"t_boot": n, "t_wall": n, "n": n, "topic": TOPIC, "qos": 1, "retain": False, "payload": "{}"}

    def told(*lines: dict[str, Any]) -> list[tuple[int, int | None, bool]]:
        return [(each.n, each.acked, each.again) for each in messages(lines)]

    up, down = {"connected": True, "t_boot": 0}, {"connected": False, "t_boot": 5}
    first, second = {"acked": 1, "t_boot": 7}, {"acked": 2, "t_boot": 8}
    assert told(up, line(1), first, down, line(2), up, second) == [(1, 7, False), (2, 8, False)]
    assert told(up, line(1), line(2), first, down, up, second) == [(1, 7, False), (2, 8, True)]
    assert told(up, line(1), down) == [(1, None, True)]
    killed = {"started": 2, "t_boot": 6}
    assert told(up, line(1), killed, down, up) == [(1, None, False)]  # whoever starts anew sends nothing again


def test_the_detail_of_a_gap_names_a_message() -> None:
    message = Message(1, 0, TOPIC, 1, retain=False, payload=b"nonsense")
    assert message.fits(f"{TOPIC} 8 bytes sha256 {message.digest[:16]}: not JSON")
    assert not message.fits(f"{TOPIC} 9 bytes sha256 {message.digest[:16]}: not JSON")
    assert not message.fits(f"{TOPIC} 8 bytes sha256 {message.digest[1:17]}: not JSON")
    assert not message.fits(f"site/other 8 bytes sha256 {message.digest[:16]}: not JSON")


# ---- what brokers promise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_kept_session_outlives_its_broker(
    broker: MqttBroker, url: str, start: Callable[..., Battery], end: str
) -> None:
    with Subscriber(url) as subscriber:
        assert not subscriber.present
    battery = start()
    battery.command("burst 30")
    battery.wait_acknowledged()
    if isinstance(broker, Mosquitto) and end == "kill":
        broker.save()
    address = url
    if end == "kill":
        broker.kill()
    else:
        assert broker.stop() == 0
    broker.start()
    assert broker_url(broker, "5" if subscriber.five else "3.1.1") == address
    with Subscriber(url) as subscriber:
        assert subscriber.present
        got = subscriber.wait_for(30)
    sent = [each.payload for each in read_messages(battery.journal)]
    assert [each.payload for each in got] == sent
    assert {each.retain for each in got} == {False}


def test_what_was_not_acknowledged_comes_again_and_is_marked(url: str, start: Callable[..., Battery]) -> None:
    battery = start()
    with Subscriber(url, qos=1, acknowledge=False) as subscriber:
        battery.command("burst 5")
        assert not any(each.dup for each in subscriber.wait_for(5)[:5])
    with Subscriber(url, qos=1) as subscriber:
        assert {each.dup for each in subscriber.wait_for(5)} == {True}
    sent = {each.payload for each in read_messages(battery.journal)}
    assert {each.payload for each in subscriber.got} == sent


def test_a_retained_message_is_marked_when_it_comes_late(url: str, start: Callable[..., Battery]) -> None:
    battery = start()
    battery.command("retain")
    battery.wait_acknowledged()
    with Subscriber(url) as subscriber:
        (got,) = subscriber.wait_for(1)
        assert got.retain
        battery.command("retain")
        assert not subscriber.wait_for(2)[1].retain


# ---- Mosquitto --------------------------------------------------------------------------------------------------


def test_mosquitto_asks_for_a_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    options: list[str | Path] = ["--username", "agent", "--password-file", password]
    with mosquitto(tmp_path, users={"agent": "open sesame"}) as broker:
        with Battery(tmp_path, broker.url, silent=True, options=options) as battery:
            battery.wait_connected()
        with Battery(tmp_path, broker.url, silent=True, name="stranger"):
            wait_for(lambda: "not authorised" in broker.log(), timeout=10, what="the refusal")


def test_mosquitto_speaks_tls(tmp_path: Path) -> None:
    with mosquitto(tmp_path, tls=True) as broker:
        assert broker.url.startswith("mqtts://")
        assert broker.authority is not None
        with Battery(tmp_path, broker.url, silent=True, options=["--ca", broker.authority.path]) as battery:
            battery.wait_connected()
            battery.command("burst 2")
            battery.wait_acknowledged()
        other = Authority(tmp_path / "other")
        with Battery(tmp_path, broker.url, silent=True, options=["--ca", other.path], name="stranger"):
            wait_for(lambda: "alert unknown ca" in broker.log(), timeout=10, what="the refusal")


def test_mosquitto_drops_what_is_queued_beyond_its_limit(tmp_path: Path) -> None:
    with mosquitto(tmp_path, max_queued=10, max_inflight=5) as broker, Subscriber(broker.url):
        pass
    with broker, Battery(tmp_path, broker.url, silent=True) as battery:
        battery.wait_connected()
        battery.command("burst 40")
        battery.wait_acknowledged()
        with Subscriber(broker.url) as subscriber:
            battery.command("burst 1")
            last = read_messages(battery.journal)[-1].payload
            wait_for(lambda: any(each.payload == last for each in subscriber.got), timeout=10, what="the last")
        assert 10 <= len(subscriber.got) <= 20


def test_a_server_gets_another_port_if_the_free_one_was_taken() -> None:
    ports: list[int] = []

    def begin(port: int) -> None:
        ports.append(port)
        if len(ports) < 3:
            raise ProcessError("bind: address already in use")

    assert with_free_port(begin) == ports[2]

    def broken(port: int) -> None:
        raise ProcessError("no such file")

    with pytest.raises(ProcessError, match="no such file"):
        with_free_port(broken)


def test_mosquitto_is_not_mistaken_for_who_holds_its_port(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, pytest.raises(ProcessError, match="Address already in use"):
        mosquitto(tmp_path / "second", port=broker.port).start()
    assert free_port() != 0


# ---- how Debian's programs come here ----------------------------------------------------------------------------


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


def test_what_is_ready_is_not_fetched_again(tmp_path: Path) -> None:
    if any(provision.program(name) is None for name in provision.DEBIAN):
        pytest.skip("python3 provision.py debian makes them ready")
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\nexit 1\n")
    apt.chmod(0o755)
    done = run(ROOT / "provision.py", "debian", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stderr == ""
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["mosquitto", "openssl", "libfaketime.so.1", "mkfs.btrfs", *BOXES]
    assert all(os.access(path, os.X_OK if path.suffix != ".1" else os.R_OK) for path in paths)


def checkout(folder: Path) -> Path:
    """A checkout of which only provision.py is there."""
    folder.mkdir()
    script = folder / "provision.py"
    text = (ROOT / "provision.py").read_text()
    script.write_text(text.replace('"/usr/sbin", "/sbin"', '"/nowhere"').replace('Path("/")', 'Path("/nowhere")'))
    return script


BOXES = ["mmdebstrap", "systemd-nspawn", "buildah", "podman", "conmon", "crun"]
APT = """#!{python}
import json, pathlib, subprocess, sys
options = dict(word[2:].split("=", 1) for word in sys.argv if word.startswith("-o"))
print("apt says hello to", sys.argv[-1])
{does}
"""
FAILS = """sys.exit(100)"""
FETCHES = """
if "install" in sys.argv:
    pathlib.Path(options["Dir::Cache::Archives"], "all.deb").touch()
else:
    sys.exit(100)  # one archive of several is away
"""


def fake_debian(folder: Path, does: str) -> str:
    """A PATH with an apt-get that does this, and a dpkg-deb whose packages hold all programs and the library."""
    folder.mkdir()
    programs = {"apt-get": APT.format(python=sys.executable, does=does)}
    programs["dpkg-deb"] = (
        '#!/bin/sh\nmkdir -p "$3/sbin" "$3/usr/sbin" "$3/usr/bin" "$3/usr/lib/any-linux-gnu"\n'
        'mkdir -p "$3/usr/lib/any-linux-gnu/faketime"\n'
        'touch "$3/usr/sbin/mosquitto" "$3/usr/bin/openssl" "$3/usr/lib/any-linux-gnu/faketime/libfaketime.so.1"\n'
        'touch "$3/sbin/mkfs.btrfs" "$3/usr/bin/mmdebstrap" "$3/usr/bin/systemd-nspawn"\n'
        'touch "$3/usr/bin/buildah" "$3/usr/bin/podman" "$3/usr/bin/conmon" "$3/usr/bin/crun"\n'
    )
    for name, text in programs.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    for name in ("mkdir", "touch", "sh"):
        (folder / name).symlink_to(f"/bin/{name}")
    return str(folder)


def test_what_is_missing_is_unpacked_into_the_checkout(tmp_path: Path) -> None:
    script = checkout(tmp_path / "checkout")
    path = fake_debian(tmp_path / "bin", FETCHES)
    done = run(script, "debian", PATH=path)
    assert done.returncode == 0, done.stderr
    mosquitto_path, openssl_path, library, btrfs, *boxes = map(Path, done.stdout.splitlines())
    home = mosquitto_path.parents[2]
    assert (home.parent, openssl_path) == (script.parent / ".debian", home / "usr" / "bin" / "openssl")
    assert library == home / "usr" / "lib" / "any-linux-gnu" / "faketime" / "libfaketime.so.1"
    assert btrfs == home / "sbin" / "mkfs.btrfs"
    assert [path.name for path in boxes] == BOXES
    assert {each.name for each in home.parent.iterdir()} == {home.name, ".gitignore", "lock"}
    assert run(script, "debian", PATH="/nowhere").stdout == done.stdout


def test_a_failure_to_fetch_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    script = checkout(tmp_path / "checkout")
    done = run(script, "debian", PATH=fake_debian(tmp_path / "bin", FAILS))
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt says hello to update" in done.stderr
    assert f"{', '.join(provision.DEBIAN)}: not to be had from the Debian archive" in done.stderr
    assert {each.name for each in (tmp_path / "checkout" / ".debian").iterdir()} == {".gitignore", "lock"}
    done = run(script, "debian", PATH="/nowhere")
    assert done.returncode == 1
    assert f"no apt here: install {', '.join(provision.DEBIAN)} with your distribution's means" in done.stderr
