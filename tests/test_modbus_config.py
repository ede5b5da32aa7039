"""The configuration's Modbus part: what is accepted, and that each problem is found at its key."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.modbus import ModbusAdapter, ModbusConnection, ModbusDevice
from adapters.modbus.addresses import register, register_range
from adapters.modbus.requests import Limits, Registers

S = 1_000_000_000

CHP = """
id = "chp"
connection = "hall"
unit = 12
word_order = "little"
max_registers = 60
forbidden = ["40100-40119", "input:5"]

[groups.electrical]
every = "1s"
points = [
  { name = "W", at = "40021", type = "int32", scale = 0.1, unit = "W", range = [-500e3, 500e3] },
  { name = "Wh", at = "40031", type = "uint32", scale = 10, unit = "Wh", counter = true },
  { name = "State", at = "40050", type = "enum16", values = { 0 = "off", 1 = "run", 2 = "fault" } },
]
"""
PV = """
id = "pv-1"
connection = "pv"
unit = 126
sunspec = { base = [40000, 50000, 0] }
groups = { ac = { every = "5s", points = ["103.W", "103.WH", "103.St"] } }
"""


def problems(model: type[ModbusDevice | ModbusConnection], raw: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(raw)
    return {
        ".".join(map(str, each["loc"])): each["msg"].removeprefix("Value error, ") for each in caught.value.errors()
    }


def device(text: str, **more: Any) -> dict[str, Any]:
    return tomllib.loads(text) | more


def point(**more: Any) -> dict[str, Any]:
    own = {"name": "W", "at": "40001", "type": "int16"} | more
    return {"id": "d", "connection": "c", "groups": {"g": {"every": "1s", "points": [own]}}}


def test_a_device_by_hand() -> None:
    chp = ModbusDevice.model_validate(device(CHP))
    assert chp.point_names("electrical") == ("W", "Wh", "State")
    assert chp.limits() == Limits(60, 8, (Registers("holding", 99, 20), Registers("input", 5, 1)))
    group = chp.groups["electrical"]
    assert group.every == 1_000_000_000
    points = [each for each in group.points if not isinstance(each, str)]
    assert [chp.registers(each) for each in points] == [
        Registers("holding", 20, 2),
        Registers("holding", 30, 2),
        Registers("holding", 49, 1),
    ]
    assert [each.decimal_scale for each in points] == [(1, -1), (1, 1), (1, 0)]
    assert points[2].values == {0: "off", 1: "run", 2: "fault"}


def test_a_sunspec_device() -> None:
    pv = ModbusDevice.model_validate(device(PV))
    assert pv.point_names("ac") == ("W", "WH", "St")
    assert ModbusDevice.model_validate(device(PV, sunspec={})).sunspec is not None


def test_models_survive_json() -> None:
    for text in (CHP, PV):
        model = ModbusDevice.model_validate(device(text))
        assert model.model_dump(mode="json")["id"] == model.id


@pytest.mark.parametrize(
    ("text", "one_based", "expected"),
    [
        ("40001", True, ("holding", 0)),
        ("40001", False, ("holding", 1)),
        ("40000", False, ("holding", 0)),
        ("30021", True, ("input", 20)),
        ("400001", True, ("holding", 0)),
        ("465536", True, ("holding", 65535)),
        ("holding:20", True, ("holding", 20)),
        ("input:65535", False, ("input", 65535)),
    ],
)
def test_registers(text: str, one_based: bool, expected: tuple[str, int]) -> None:
    assert register(text, one_based=one_based) == expected


@pytest.mark.parametrize(
    "text",
    ["", "40000", "465537", "50001", "4001", "4000001", "00001", "10001", "coil:1", "x:1", "holding:65536", "0x10"],
)
def test_no_registers(text: str) -> None:
    with pytest.raises(ValueError, match="; "):
        register(text, one_based=True)


@pytest.mark.parametrize("text", ["40010-40009", "40010-30011", "40010-", "-40010", "holding:5-x", "40001-40002-40003"])
def test_no_ranges(text: str) -> None:
    with pytest.raises(ValueError, match="; "):
        register_range(text, one_based=True)


def test_ranges() -> None:
    assert register_range("holding:99-118", one_based=True) == Registers("holding", 99, 20)
    assert register_range("40100", one_based=True) == Registers("holding", 99, 1)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(0.1, (1, -1)), (10, (1, 1)), (0.5, (5, -1)), (1, (1, 0)), (1.0, (1, 0)), (-0.25, (-25, -2)), (1e-3, (1, -3))],
)
def test_scales(scale: float, expected: tuple[int, int]) -> None:
    chosen = ModbusDevice.model_validate(point(scale=scale)).groups["g"].points[0]
    assert not isinstance(chosen, str)
    assert chosen.decimal_scale == expected


@pytest.mark.parametrize(
    ("raw", "key", "text"),
    [
        (point(at="40000"), "groups.g.points.0.at", "40001"),
        (point(at=40001), "groups.g.points.0.at", "in quotes"),
        (point(at="00001"), "groups.g.points.0.at", "not supported yet by this version"),
        (point(at="holding:65535", type="int32"), "groups.g.points.0.at", "behind the last register"),
        (point(type="int24"), "groups.g.points.0.type", "int16"),
        (point(scale=0), "groups.g.points.0.scale", "not 0"),
        (point(scale=float("nan")), "groups.g.points.0.scale", "cannot be a scale"),
        (point(scale="0.1"), "groups.g.points.0.scale", "expected a number"),
        (point(range=[5, 1]), "groups.g.points.0.range", "lower number first"),
        (point(range=[1]), "groups.g.points.0.range", "two numbers"),
        (point(values={"off": "0"}), "groups.g.points.0.values", "does not name a value"),
        (point(values={"1": "on", "01": "off"}), "groups.g.points.0.values", '"01" is there twice'),
        (point(type="float32", values={"0": "off"}), "groups.g.points.0.values", "no names"),
        (point(name="a/b"), "groups.g.points.0.name", "cannot be the name"),
        (point(report={"deadband": 50}), "groups.g.points.0.report", "not supported yet by this version; remove it"),
        (point(zzz=1), "groups.g.points.0.zzz", "Extra inputs"),
        (point() | {"profile": "eastron/sdm630"}, "profile", "not supported yet by this version; remove it"),
        (point() | {"unit": 256}, "unit", "255"),
        (point() | {"max_registers": 126}, "max_registers", "125"),
        (point(type="int64") | {"max_registers": 3}, "groups.g.points.0.type", "raise max_registers"),
        (point() | {"forbidden": ["40001-40005"]}, "groups.g.points.0.at", "forbidden range"),
        (point() | {"forbidden": ["40000"]}, "forbidden.0", "before the first register"),
        (point() | {"sunspec": {}}, "groups.g.points.0", "by hand on a SunSpec device"),
        (point() | {"groups": {}}, "groups", "at least 1"),
        (device(PV, word_order="little"), "word_order", "no effect"),
        (device(PV, identification="off"), "identification", "no effect"),
        (device(PV, identification="auto"), "identification", "no effect"),
        (point() | {"identification": "on"}, "identification", "'auto' or 'off'"),
        (device(PV, sunspec={"base": []}), "sunspec.base", "at least one"),
    ],
)
def test_problems_are_found_at_their_key(raw: dict[str, Any], key: str, text: str) -> None:
    found = problems(ModbusDevice, raw)
    assert list(found) == [key]
    assert text in found[key]


@pytest.mark.parametrize("name", ["sample", "aggregate"])
def test_keys_of_groups_that_come_later(name: str) -> None:
    raw = point()
    raw["groups"]["g"][name] = "1s"
    assert problems(ModbusDevice, raw) == {f"groups.g.{name}": "not supported yet by this version; remove it"}


@pytest.mark.parametrize("every", ["500us", "0s", 5, "1"])
def test_periods(every: Any) -> None:
    raw = point()
    raw["groups"]["g"]["every"] = every
    assert "; " in problems(ModbusDevice, raw)["groups.g.every"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("103.Watt", "did you mean"),
        ("9999.W", "no model 9999"),
        ("103.W_SF", "scale factor"),
        ("1.SN", "type string, which is not supported yet"),
        ("160.DCW", "repeating group, which is not supported yet"),
        ("W", '"103.W"'),
    ],
)
def test_sunspec_points_that_are_none(name: str, text: str) -> None:
    found = problems(ModbusDevice, device(PV, groups={"ac": {"every": "5s", "points": ["103.Hz", name]}}))
    assert list(found) == ["groups.ac.points.1"]
    assert text in found["groups.ac.points.1"]
    assert "; " in found["groups.ac.points.1"]


def test_two_points_of_one_name() -> None:
    raw = device(PV, groups={"ac": {"every": "5s", "points": ["103.W", "203.W"]}})
    assert "two points" in problems(ModbusDevice, raw)["groups.ac.points.1"]


def test_a_sunspec_point_on_a_device_by_hand() -> None:
    raw = device(CHP, groups={"ac": {"every": "5s", "points": ["103.W"]}})
    assert "no sunspec" in problems(ModbusDevice, raw)["groups.ac.points.0"]


def test_all_problems_are_found_at_once() -> None:
    raw = point(at="x", scale=0) | {"unit": -1, "profile": "p"}
    assert set(problems(ModbusDevice, raw)) == {"unit", "profile", "groups.g.points.0.at", "groups.g.points.0.scale"}


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("modbus+tcp://192.0.2.20", "192.0.2.20", 502),
        ("modbus+tcp://plc:1502", "plc", 1502),
        ("modbus+tcp://plc.lan.", "plc.lan.", 502),
        ("modbus+tcp://[::1]:5020", "::1", 5020),
    ],
)
def test_connections(url: str, host: str, port: int) -> None:
    connection = ModbusConnection.model_validate(
        {"url": url, "timeout": "500ms", "request_pause": "25ms", "idle_close": "never"}
    )
    assert (connection.host, connection.port) == (host, port)
    assert (connection.timeout, connection.request_pause) == (500_000_000, 25_000_000)
    assert ModbusConnection.model_validate({"url": url}).timeout == 1_000_000_000


@pytest.mark.parametrize(
    ("raw", "key", "text"),
    [
        ({"url": "modbus+rtu:///dev/ttyUSB0?baud=9600"}, "url", "not supported yet by this version"),
        ({"url": "modbus+tls://plc"}, "url", "not supported yet by this version"),
        ({"url": "http://plc"}, "url", "no address"),
        ({"url": "modbus+tcp://"}, "url", "no address"),
        ({"url": "modbus+tcp://plc/unit1"}, "url", "more in the address"),
        ({"url": "modbus+tcp://inverter..lan"}, "url", '"inverter..lan" is no host name; '),
        ({"url": "modbus+tcp://" + "a" * 70 + ".lan"}, "url", "is no host name; "),
        ({"url": "modbus+tcp://plc:99999"}, "url", "cannot be understood"),
        ({"url": "modbus+tcp://plc", "idle_close": "5s"}, "idle_close", "not supported yet by this version"),
        ({"url": "modbus+tcp://plc", "timeout": "0s"}, "timeout", "out of range"),
        ({"url": "modbus+tcp://plc", "retries": 3}, "retries", "Extra inputs"),
    ],
)
def test_problems_of_connections(raw: dict[str, Any], key: str, text: str) -> None:
    found = problems(ModbusConnection, raw)
    assert list(found) == [key]
    assert text in found[key]


def test_a_check_imports_no_client() -> None:
    assert ModbusAdapter.connection_model is ModbusConnection
    assert ModbusAdapter.device_model is ModbusDevice
    program = (
        "import sys, adapters.modbus; "
        "print({name.split('.')[0] for name in sys.modules} & {'pymodbus', 'sunspec2', 'anyio', 'asyncio'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
