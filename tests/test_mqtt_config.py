"""The configuration's MQTT part: what is accepted, and that each problem is found at its key."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.mqtt import MqttAdapter, MqttConnection, MqttDevice
from adapters.mqtt.topics import Routes, judge_filter, matches

S = 1_000_000_000
BATTERY = """
id = "battery"
connection = "bms"
asset = "urn:battery:7"
topic = "site/+/state"
qos = 2
timestamp = { at = "/ts", format = "unix-ms" }
silent_after = "2m"

[groups.state]
points = [
  { name = "SoC", at = "/soc", unit = "%", decimals = 1, range = [0, 99.5] },
  { name = "Mode", at = "/mode", type = "integer", values = { 0 = "idle", 1 = "charging" } },
  { name = "On", at = "/on", type = "boolean" },
  { name = "Temp", at = "/t/0", type = "float", unit = "Cel" },
  { name = "Note", at = "", type = "text" },
  { name = "Unit", topic_level = 2 },
]

[groups.alarm]
topic = "alarm/#"
points = [{ name = "Code", at = "/code" }, { name = "Where", topic_level = 3, type = "text" }]
"""
BMS = """
url = "mqtts://192.0.2.2:8884?version=5"
username = "agent"
password = { file = "password" }
tls = { ca = "ca.pem", cert = "agent.pem", key = { file = "agent.key" }, server_name = "bms.lan" }
client_id = "agent-7"
keepalive = "10s"
timeout = "2s"
session = "keep"
session_expiry = "1d"
receive_maximum = 100
"""


def problems(model: type[MqttDevice | MqttConnection], raw: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(raw)
    return {
        ".".join(map(str, each["loc"])): each["msg"].removeprefix("Value error, ") for each in caught.value.errors()
    }


def point(**own: Any) -> dict[str, Any]:
    return {"id": "d", "connection": "c", "topic": "a/b", "groups": {"g": {"points": [{"name": "W", **own}]}}}


def test_a_device() -> None:
    battery = MqttDevice.model_validate(tomllib.loads(BATTERY))
    assert (battery.id, battery.connection, battery.qos, battery.silent_after) == ("battery", "bms", 2, 120 * S)
    assert list(battery.groups) == ["state", "alarm"]
    assert battery.point_names("state") == ("SoC", "Mode", "On", "Temp", "Note", "Unit")
    assert (battery.filter("state"), battery.filter("alarm")) == ("site/+/state", "alarm/#")
    charge, mode, *_, unit = battery.groups["state"].points
    assert charge.bounds == (Decimal(0), Decimal("99.5"))
    assert mode.values == {0: "idle", 1: "charging"}
    assert unit.kind == "text"


def test_the_defaults_of_a_device() -> None:
    device = MqttDevice.model_validate(point(at="/w"))
    assert (device.qos, device.timestamp, device.silent_after, device.asset) == (1, None, None, None)
    [only] = device.groups["g"].points
    assert (only.kind, only.decimals, only.bounds, only.unit, only.values) == ("number", 0, None, None, {})


def test_a_group_has_no_period_to_find() -> None:
    group = MqttDevice.model_validate(point(at="/w")).groups["g"]
    assert not hasattr(group, "every"), "agent.config would take it for the period of a polled group"


def test_a_connection(tmp_path: Path) -> None:
    bms = MqttConnection.model_validate(tomllib.loads(BMS), context={"folder": tmp_path})
    assert (bms.host, bms.port, bms.version, bms.secure, bms.window) == ("192.0.2.2", 8884, "5", True, 100)
    assert (bms.keepalive, bms.timeout, bms.session_expiry) == (10 * S, 2 * S, 86_400 * S)
    assert bms.tls is not None
    assert (bms.tls.ca, bms.tls.cert) == (tmp_path / "ca.pem", tmp_path / "agent.pem")
    assert bms.tls.key is not None
    assert bms.tls.key.path == tmp_path / "agent.key"
    assert bms.password is not None
    assert bms.password.path == tmp_path / "password"
    assert bms.model_dump_json(), "the effective configuration is shown and hashed"


def test_a_visitor_is_another_client_of_the_same_broker() -> None:
    own = MqttConnection.model_validate(tomllib.loads(BMS))
    visitors = [own.visitor(), own.visitor().visitor(), own.visitor()]
    for visitor in visitors:
        assert visitor.model_dump(exclude={"client_id", "session"}) == own.model_dump(exclude={"client_id", "session"})
        assert (visitor.session, visitor.most_qos, visitor.secure, visitor.host) == ("clean", 0, True, "192.0.2.2")
        assert visitor.client_id is not None
        assert re.fullmatch("[a-z0-9]{1,23}", visitor.client_id), "what MQTT 3.1.1 promises to take"
    assert len({each.client_id for each in visitors}) == 3
    assert (own.client_id, own.session, own.most_qos) == ("agent-7", "keep", 2)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("mqtt://broker", ("broker", 1883, "3.1.1", False)),
        ("mqtts://broker", ("broker", 8883, "3.1.1", True)),
        ("mqtt://broker:1884?version=3.1.1", ("broker", 1884, "3.1.1", False)),
        ("mqtt://[::1]:99/?version=5", ("::1", 99, "5", False)),
    ],
)
def test_urls(url: str, parts: tuple[str, int, str, bool]) -> None:
    found = MqttConnection.model_validate({"url": url})
    assert (found.host, found.port, found.version, found.secure) == parts
    assert found.window == (256 if parts[2] == "5" else 20)
    assert (found.keepalive, found.timeout, found.session) == (30 * S, 5 * S, "keep")


URL = {"url": "mqtt://b"}
TLS = {"url": "mqtts://b"}


@pytest.mark.parametrize(
    ("raw", "key", "text"),
    [
        ({"url": "mqtt+ws://b"}, "url", "not supported yet by this version"),
        ({"url": "mqtt+wss://b"}, "url", "not supported yet by this version"),
        ({"url": "http://b"}, "url", "no address of an MQTT broker"),
        ({"url": "mqtt://"}, "url", "no address of an MQTT broker"),
        ({"url": "mqtt://b:x"}, "url", "cannot be understood"),
        ({"url": "mqtt://b:0"}, "url", "more in the address"),
        ({"url": "mqtt://b/topic"}, "url", "more in the address"),
        ({"url": "mqtt://b#x"}, "url", "more in the address"),
        ({"url": "mqtt://b?version=4"}, "url", '"4" is no version'),
        ({"url": "mqtt://b?version="}, "url", '"" is no version'),
        ({"url": "mqtt://b?qos=1"}, "url", "only the version"),
        ({"url": "mqtt://b?version=5&version=5"}, "url", "only the version"),
        ({"url": "mqtt://a..b"}, "url", '"a..b" is no host name'),
        ({**URL, "tls": {}}, "tls", "not encrypted"),
        ({**TLS, "tls": {"cert": "a.pem"}}, "tls.key", "cert needs key"),
        ({**TLS, "tls": {"key": {"file": "a"}}}, "tls.cert", "key needs cert"),
        ({**TLS, "tls": {"cert": "a.pem", "key": {"env": "KEY"}}}, "tls.key", "read from a file"),
        ({**TLS, "tls": {"cert": "a.pem", "key": "a.key"}}, "tls.key", "a secret does not stand"),
        ({**TLS, "tls": {"ca": ""}}, "tls.ca", "expected a path"),
        ({**TLS, "tls": {"ca": 1}}, "tls.ca", "expected a path"),
        ({**TLS, "tls": {"server_name": ""}}, "tls.server_name", "no host name"),
        ({**TLS, "tls": {"server_name": "a..b"}}, "tls.server_name", "no host name"),
        ({**TLS, "tls": {"verify": False}}, "tls.verify", "Extra inputs"),
        ({**URL, "password": {"env": "P"}}, "username", "needs a username"),
        ({**URL, "username": ""}, "username", "empty"),
        ({**URL, "client_id": ""}, "client_id", "empty"),
        ({**URL, "keepalive": "1s"}, "keepalive", "out of range"),
        ({**URL, "keepalive": 30}, "keepalive", "in quotes"),
        ({**URL, "timeout": "2m"}, "timeout", "out of range"),
        ({**URL, "session": "new"}, "session", "'keep' or 'clean'"),
        ({**URL, "session_expiry": "1d"}, "session_expiry", "only works with"),
        ({"url": "mqtt://b?version=5", "session": "clean", "session_expiry": "1d"}, "session_expiry", "only works"),
        ({"url": "mqtt://b?version=5", "session_expiry": "400d"}, "session_expiry", "out of range"),
        ({**URL, "receive_maximum": 0}, "receive_maximum", "greater than or equal to 1"),
        ({**URL, "receive_maximum": 65_536}, "receive_maximum", "less than or equal to 1000"),
        ({**URL, "will": "x"}, "will", "Extra inputs"),
    ],
)
def test_problems_of_connections(raw: dict[str, Any], key: str, text: str) -> None:
    found = problems(MqttConnection, raw)
    assert list(found) == [key]
    assert text in found[key]


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"url": "mqtt://agent:hunter2@b"}, "url"),
        ({"url": "mqtt://hunter2@b:1883"}, "url"),
        ({"url": "mqtt+ws://agent:hunter2@b"}, "url"),
        ({"url": "mqtt://b", "username": "agent", "password": "hunter2"}, "password"),
    ],
)
def test_a_secret_is_not_repeated(raw: dict[str, Any], key: str) -> None:
    found = problems(MqttConnection, raw)
    assert list(found) == [key]
    assert "hunter2" not in found[key]


@pytest.mark.parametrize(
    ("raw", "key", "text"),
    [
        (point(at="w"), "at", "no JSON pointer"),
        (point(at="/a~2"), "at", "a ~ that escapes nothing"),
        (point(at="/" + "a" * 256), "at", "too long"),
        (point(at="/a\n"), "at", "not printable"),
        (point(), "", "not said where"),
        (point(at="/w", topic_level=1), "topic_level", "in one place"),
        (point(topic_level=0), "topic_level", "greater than or equal to 1"),
        (point(topic_level=3), "topic_level", "the topic has 2 levels"),
        (point(topic_level=1, type="number"), "type", "is a text"),
        (point(at="/w", type="int16"), "type", "'number'"),
        (point(at="/w", decimals=16), "decimals", "less than or equal to 15"),
        (point(at="/w", type="float", decimals=1), "decimals", "only a number"),
        (point(at="/w", values={"0": "off"}, decimals=1), "decimals", "only a number"),
        (point(at="/w", range=[1]), "range", "expected two numbers"),
        (point(at="/w", range=[2, 1]), "range", "write the lower number first"),
        (point(at="/w", range=[float("nan"), 1]), "range", "finite numbers"),
        (point(at="/w", range=[float("-inf"), 1]), "range", "finite numbers"),
        (point(at="/w", range=[0, float("inf")]), "range", "such as 1e12"),
        (point(at="/w", type="text", range=[0, 1]), "range", "a text has no range"),
        (point(at="/w", type="float", values={"0": "off"}), "values", "have no names"),
        (point(at="/w", values={"x": "off"}), "values", "does not name a value"),
        (point(at="/w", values={"0": ""}), "values", "empty"),
        (point(at="/w", unit=""), "unit", "empty"),
        (point(at="/w", report={"deadband": 1}), "report", "not supported yet by this version"),
        (point(at="/w", scale=10), "scale", "Extra inputs"),
        (point(name="a/b", at="/w"), "name", "cannot be the name"),
    ],
)
def test_problems_of_points(raw: dict[str, Any], key: str, text: str) -> None:
    found = problems(MqttDevice, raw)
    assert list(found) == ["groups.g.points.0" + (f".{key}" if key else "")]
    assert next(iter(found.values())).find(text) >= 0, found


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"id": "a b"}, "id", "is no id"),
        ({"qos": 3}, "qos", "less than or equal to 2"),
        ({"qos": True}, "qos", "valid integer"),
        ({"topic": "$share/g/a"}, "topic", "shared subscription"),
        ({"topic": "a/b+"}, "topic", "stands for a whole level"),
        ({"topic": "a/#/b"}, "topic", "not a level of its own at the end"),
        ({"topic": ""}, "topic", "empty"),
        ({"topic": "a\n"}, "topic", "not printable"),
        ({"topic": "ä" * 513}, "topic", "too long"),
        ({"topic": None}, "groups.g.topic", "the group has no topic"),
        ({"timestamp": {"at": "/ts"}}, "timestamp.format", "Field required"),
        ({"timestamp": {"at": "/ts", "format": "rfc"}}, "timestamp.format", "'iso8601'"),
        ({"timestamp": {"at": "ts", "format": "unix"}}, "timestamp.at", "no JSON pointer"),
        ({"silent_after": "500ms"}, "silent_after", "out of range"),
        ({"silent_after": "31d"}, "silent_after", "out of range"),
        ({"groups": {}}, "groups", "at least 1"),
        ({"groups": {"a b": {"points": [{"name": "W", "at": ""}]}}}, "groups.a b.[key]", "is no id"),
        ({"groups": {"g": {"points": []}}}, "groups.g.points", "the list is empty"),
        ({"profile": "x/y"}, "profile", "not supported yet by this version"),
        ({"unit": 1}, "unit", "Extra inputs"),
    ],
)
def test_problems_of_devices(change: dict[str, Any], key: str, text: str) -> None:
    found = problems(MqttDevice, point(at="/w") | change)
    assert list(found) == [key]
    assert text in found[key]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("every", "messages set the pace"),
        ("report", "not supported yet"),
        ("sample", "not supported yet"),
        ("aggregate", "not supported yet"),
        ("phase", "not supported yet"),
    ],
)
def test_problems_of_groups(key: str, text: str) -> None:
    raw = point(at="/w")
    raw["groups"]["g"][key] = "1s"
    found = problems(MqttDevice, raw)
    assert list(found) == [f"groups.g.{key}"]
    assert text in found[f"groups.g.{key}"]


def test_two_points_of_one_name() -> None:
    raw = point(at="/w")
    raw["groups"]["g"]["points"] *= 2
    assert list(problems(MqttDevice, raw)) == ["groups.g.points.1"]


@pytest.mark.parametrize(
    ("pattern", "topic", "taken"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "a", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("+/b/#", "a/b", True),
        ("+/b/#", "a/c", False),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("a+", "a+", False),
    ],
)
def test_filters(pattern: str, topic: str, taken: bool) -> None:
    if pattern == "a+":
        with pytest.raises(ValueError, match="whole level"):
            judge_filter(pattern)
    else:
        assert judge_filter(pattern) == pattern
        assert matches(pattern, topic) is taken


def test_whom_a_topic_concerns() -> None:
    routes = Routes({(0, "g"): "a/+", (1, "g"): "a/b", (1, "h"): "c"})
    assert routes.concerns("a/b") == ((0, "g"), (1, "g"))
    assert routes.concerns("c") == ((1, "h"),)
    for number in range(10_000):  # who invents topics fills no memory
        assert routes.concerns(f"x/{number}{'y' * (number % 2) * 2000}") == ()
    assert sum(map(len, routes._known)) <= 4096 * 1024
    assert routes.concerns("a/b") == ((0, "g"), (1, "g"))


def test_a_check_imports_no_client() -> None:
    assert MqttAdapter.connection_model is MqttConnection
    assert MqttAdapter.device_model is MqttDevice
    program = (
        "import sys, adapters.mqtt; "
        "print({name.split('.')[0] for name in sys.modules} & {'paho', 'anyio', 'asyncio', 'ssl'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
