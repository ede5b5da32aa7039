"""The configuration as a file again, and its format as a JSON Schema."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from agent.commands import config_schema, config_show
from agent.config import Config, load
from agent.config.schema import schema
from agent.config.shown import NOT_SHOWN, as_file
from agent.config.template import agent_toml
from agent.config.toml_text import toml_text
from agent.units import Duration
from testbed.rig import _CHANNEL, _CONFIG, PV_AND_METER
from tests.test_config import DID, GOOD, KIND, ROOT, FakeConnection, FakeDevice
from tests.test_config_refusals import GOOD as MODBUS_AND_MQTT

CANARY = "hunter2-canary"
PLAIN = f"{__name__}:PlainAdapter"


PARTICULAR = '{ name = "Mode", at = "/m", values = { 0 = "off" } }, { name = "Unit", topic_level = 1 }'
PV = """\
[[device]]
id = "pv"
connection = "wire"
sunspec = {}
groups = { ac = { every = "5s", points = ["103.W"] } }
"""


class PlainConnection(FakeConnection):
    password: str = ""
    login: dict[str, str] | None = None
    users: tuple[dict[str, str], ...] = Field(default=(), strict=False)
    tokens: dict[str, str] = Field(default={})
    pin: int = 0
    pause: Duration | None = None


class PlainDevice(FakeDevice):
    password: str = ""
    keys: dict[str, str] = Field(default={})


class PlainAdapter:
    """A third party's adapter that takes a secret in plain text."""

    connection_model = PlainConnection
    device_model = PlainDevice


def configurations() -> Iterator[str]:
    yield (ROOT / "config" / "agent.toml").read_text()
    yield agent_toml(did=DID)
    yield GOOD
    yield GOOD.replace("[agent]", '[agent]\nsocket = ""')
    yield GOOD.replace(f'kind = "{KIND}"', f'kind = "{PLAIN}"\npause = "90s"')
    yield MODBUS_AND_MQTT
    mqtt = MODBUS_AND_MQTT.replace("mqtt://192.0.2.2", "mqtts://192.0.2.2?version=5")
    bms = 'username = "u"\npassword = { env = "P" }\ntls = { cert = "c.pem", key = { credential = "k" } }\n'
    yield mqtt.replace("[[device]]", f"{bms}[[device]]", 1)
    yield MODBUS_AND_MQTT.replace('at = "/soc" }', f'at = "/soc" }}, {PARTICULAR}').replace(
        "[[channel]]", f"{PV}[[channel]]"
    )
    yield MODBUS_AND_MQTT.replace('"int16"', '"int16", range = [-9e99, 5], values = { -1 = "a \\" b" }')


def loaded(folder: Path, text: str, name: str = "agent.toml") -> Config:
    (folder / name).write_text(text)
    return load(folder / name)


# ---- show -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*configurations()], ids=range(9))
def test_what_is_shown_is_the_same_configuration(tmp_path: Path, text: str) -> None:
    config = loaded(tmp_path, text)
    shown = toml_text(as_file(config))
    (tmp_path / "elsewhere").mkdir()
    again = loaded(tmp_path / "elsewhere", shown)
    assert again.digest_text() == config.digest_text()
    assert again.devices == config.devices
    assert [channel.selection for channel in again.channels] == [channel.selection for channel in config.channels]
    assert toml_text(as_file(again)) == shown


def test_defaults_are_filled_in_and_units_are_text(tmp_path: Path) -> None:
    shown = as_file(loaded(tmp_path, GOOD))
    assert shown["agent"] == {
        "state": "/var/lib/edge-agent",
        "socket": "/run/edge-agent/agent.sock",
        "http": "",
        "log_level": "info",
    }
    assert shown["identity"] == {"key": f"file:{tmp_path}/key"}
    assert shown["connection"] == {"wire": {"kind": KIND, "url": "fake://", "timeout": "1s"}}
    assert shown["device"][0]["groups"]["power"]["every"] == "1s"
    (channel,) = shown["channel"]
    assert channel["seal_within"] == "1s"
    assert channel["outbox"] == {"size": "8MiB", "when_full": "drop-oldest", "on_disk_failure": "drop"}
    assert channel["subject"] == "dx.{site}.{channel}"


@pytest.mark.parametrize("where", ['file = "p"', 'credential = "p"', 'env = "P"'])
def test_a_passphrase_is_shown_as_what_refers_to_it(tmp_path: Path, where: str) -> None:
    keystore = f'key = "keystore:k"\npassphrase = {{ {where} }}'
    config = loaded(tmp_path, GOOD.replace('key = "file:key"', keystore))
    shown = as_file(config)["identity"]
    name, _, value = where.replace('"', "").partition(" = ")
    assert shown == {
        "key": f"keystore:{tmp_path}/k",
        "passphrase": {name: f"{tmp_path}/p" if name == "file" else value},
    }
    (tmp_path / "elsewhere").mkdir()
    again = loaded(tmp_path / "elsewhere", toml_text(as_file(config)))
    assert again.identity == config.identity


def test_only_defaults_that_have_no_effect_are_left_out(tmp_path: Path) -> None:
    shown = as_file(loaded(tmp_path, [*configurations()][7]))
    assert shown["connection"]["bms"] == {
        "url": "mqtt://192.0.2.2",
        "keepalive": "30s",
        "timeout": "5s",
        "session": "keep",
    }
    _, battery, pv = shown["device"]
    assert battery["qos"] == 1
    assert battery["groups"]["state"]["points"] == [
        {"name": "SoC", "at": "/soc", "type": "number", "decimals": 0, "values": {}},
        {"name": "Mode", "at": "/m", "type": "number", "values": {"0": "off"}},
        {"name": "Unit", "topic_level": 1, "values": {}},
    ]
    assert {key: pv[key] for key in pv.keys() - {"id", "connection", "groups"}} == {
        "unit": 1,
        "max_registers": 125,
        "max_gap": 124,
        "sunspec": {"base": [40000, 50000, 0]},
    }
    assert pv["groups"]["ac"] == {"every": "5s", "points": ["103.W"], "phase": "0s"}


def test_included_files_are_in_it(tmp_path: Path) -> None:
    head, meter, rest = GOOD.split("[[device]]")
    pv, _, channel = rest.partition("[[channel]]")
    (tmp_path / "pv.toml").write_text(f"[[device]]{pv}")
    config = loaded(tmp_path, f'include = ["pv.toml"]\n{head}[[device]]{meter}[[channel]]{channel}')
    shown = as_file(config)
    assert "include" not in shown
    assert [device["id"] for device in shown["device"]] == ["meter", "pv"]


def test_secrets_are_shown_as_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text(CANARY)
    (tmp_path / "key").write_text(CANARY)
    monkeypatch.setenv("P", CANARY)
    login = 'username = "u"\npassword = { file = "p" }\ntls.cert = "c"\ntls.key = { credential = "k" }'
    bms = f'url = "mqtts://192.0.2.2"\n{login}'
    loaded(tmp_path, MODBUS_AND_MQTT.replace('url = "mqtt://192.0.2.2"', bms))
    for as_json in (False, True):
        assert config_show.main(argparse.Namespace(config=tmp_path / "agent.toml", json=as_json)) == 0
        shown = capsys.readouterr().out
        assert CANARY not in shown
        table = json.loads(shown) if as_json else tomllib.loads(shown)
        assert table["connection"]["bms"]["password"] == {"file": f"{tmp_path}/p"}
        assert table["connection"]["bms"]["tls"]["key"] == {"credential": "k"}


def test_what_a_third_party_keeps_in_plain_text_is_not_shown(tmp_path: Path) -> None:
    plain = f"""kind = "{PLAIN}"
password = "{CANARY}"
login = {{ user = "u", token = "{CANARY}" }}
users = [{{ name = "u", password = "{CANARY}" }}]
tokens = {{ a = "{CANARY}", b = "{CANARY}" }}
pin = 1234"""
    text = GOOD.replace(f'kind = "{KIND}"', plain).replace(
        'id = "pv"', f'id = "pv"\npassword = "{CANARY}"\nkeys = {{ open = "o", secret = "{CANARY}" }}'
    )
    table = as_file(
        loaded(tmp_path, text.replace("groups = { ac ", "groups = { bypass ").replace("pv/ac", "pv/bypass"))
    )
    shown = toml_text(table)
    assert CANARY not in shown
    assert "1234" not in shown
    wire, pv = table["connection"]["wire"], table["device"][1]
    assert wire["password"] == NOT_SHOWN
    assert wire["login"] == {"user": "u", "token": NOT_SHOWN}
    assert wire["users"] == [{"name": "u", "password": NOT_SHOWN}]
    assert pv["keys"] == {"open": "o", "secret": NOT_SHOWN}
    assert pv["groups"]["bypass"]["every"] == "5s"


# ---- TOML -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_as_toml_is_read_as_it_was(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_toml_reads_well() -> None:
    table = {"a": 1, "t": {"b": "x", "c": None, "u": {"v": {"w": [1, 2]}}}, "d": [{"e": 1, "f": [{"g": True}]}, {}]}
    assert toml_text(table) == (
        'a = 1\n\n[t]\nb = "x"\n\n[t.u.v]\nw = [1, 2]\n\n[[d]]\ne = 1\nf = [\n  { g = true },\n]\n\n[[d]]\n'
    )


# ---- schema -----------------------------------------------------------------------------------------------------


def wrong(value: Any, rule: Mapping[str, Any], defs: Mapping[str, Any], at: str = "") -> list[str]:
    """What a JSON Schema says against a value; knows the words that ours uses, and no others."""
    found: list[str] = []
    for word, is_for in rule.items():
        match word:
            case "$ref":
                found += wrong(value, defs[is_for.removeprefix("#/$defs/")], defs, at)
            case "anyOf" | "oneOf":
                each = [wrong(value, other, defs, at) for other in is_for]
                found += [] if any(not one for one in each) else [f"{at}: {min(each, key=len)}"]
            case "type":
                types: dict[str, Any] = {
                    "object": dict,
                    "boolean": bool,
                    "array": list,
                    "string": str,
                    "integer": int,
                    "number": (int, float),
                }
                right = isinstance(value, types[is_for]) and (is_for == "boolean") == isinstance(value, bool)
                found += [] if right else [f"{at}: no {is_for}"]
            case "const":
                found += [] if value == is_for else [f"{at}: not {is_for}"]
            case "enum":
                found += [] if value in is_for else [f"{at}: not one of {is_for}"]
            case "pattern":
                found += [] if not isinstance(value, str) or re.search(is_for, value) else [f"{at}: not {is_for}"]
            case "minimum" | "maximum":
                outside = isinstance(value, int) and (value < is_for if word == "minimum" else value > is_for)
                found += [f"{at}: {word}"] if outside else []
            case "minLength" | "minItems" | "minProperties":
                found += [f"{at}: too few"] if isinstance(value, str | list | dict) and len(value) < is_for else []
            case "maxLength" | "maxItems" | "maxProperties":
                found += [f"{at}: too many"] if isinstance(value, str | list | dict) and len(value) > is_for else []
            case "items":
                for index, inner in enumerate(value if isinstance(value, list) else ()):
                    found += wrong(inner, is_for, defs, f"{at}[{index}]")
            case "prefixItems":
                for inner, other in zip(value if isinstance(value, list) else (), is_for, strict=False):
                    found += wrong(inner, other, defs, at)
            case "required":
                found += [f"{at}: {key} missing" for key in is_for if isinstance(value, dict) and key not in value]
            case "properties":
                for key in is_for.keys() & (value.keys() if isinstance(value, dict) else ()):
                    found += wrong(value[key], is_for[key], defs, f"{at}.{key}")
            case "additionalProperties":
                for key in (value.keys() if isinstance(value, dict) else set()) - rule.get("properties", {}).keys():
                    other = (
                        [f"{at}.{key}: unknown"] if is_for is False else wrong(value[key], is_for, defs, f"{at}.{key}")
                    )
                    found += other
            case "propertyNames":
                for key in value if isinstance(value, dict) else ():
                    found += wrong(key, is_for, defs, f"{at}.{key}")
            case "$schema" | "$defs" | "title" | "default" | "format":
                pass
            case _:
                raise AssertionError(f"the test does not know {word}")
    return found


def judged(text: str) -> list[str]:
    whole = schema()
    return wrong(tomllib.loads(text), whole, whole["$defs"])


@pytest.mark.parametrize("text", [*configurations()][:2] + [*configurations()][5:], ids=range(6))
def test_the_schema_accepts_what_check_accepts(tmp_path: Path, text: str) -> None:
    assert judged(text) == []
    assert judged(toml_text(as_file(loaded(tmp_path, text)))) == []


def test_the_schema_accepts_what_the_tests_rig_writes() -> None:
    text = _CONFIG.format(site="s", did=DID, port=5, devices=PV_AND_METER, clock_wait="0s")
    text += _CHANNEL.format(channel="c", servers='["nats://h"]', send='["*"]', seal_within="1s", outbox='size = "8MiB"')
    assert judged(text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1\n", ""),
        ("[agent]", "[agents]"),
        ("log_level", "loglevel"),
        ('"info"', '"loud"'),
        ("[site]", "[site]\nname = 'x'"),
        ('"park-7"', '"park 7"'),
        ('"file:key"', '"key"'),
        ('every = "1s"', "every = 5"),
        ('every = "1s"', 'every = "5 s"'),
        ('every = "1s"', 'evry = "1s"'),
        ('"int16"', '"int17"'),
        ('type = "int16"', 'type = "int16", typ = 1'),
        ('at = "/soc"', 'at = "/soc", decimals = 99'),
        ('connection = "bms"', 'connection = "bms"\nqos = 3'),
        ('"mqtt://192.0.2.2"', '"mqtt://192.0.2.2"\npassword = "x"'),
        ('"mqtt://192.0.2.2"', '"mqtt://192.0.2.2"\npassword = { file = "x", env = "X" }'),
        ('"nats"', '"ddhub"'),
        ('"8MiB"', '"8MB"'),
        ('"8MiB"', '"8MiB", on_disk_failure = "ram"'),
        ("send =", "sent ="),
        ('every = "1s"', 'every = "1s"\nsample = "1s"'),
    ],
)
def test_the_schema_refuses_what_check_refuses(old: str, new: str) -> None:
    assert MODBUS_AND_MQTT.count(old) == 1
    assert judged(MODBUS_AND_MQTT.replace(old, new))


def test_a_third_partys_connection_is_accepted_as_it_is() -> None:
    assert judged(MODBUS_AND_MQTT.replace("[[channel]]", '[connection.x]\nkind = "a.b:C"\nfoo = 1\n[[channel]]')) == []


def test_the_schema_speaks_toml(capsys: pytest.CaptureFixture[str]) -> None:
    """No null, no numbers for durations and sizes; every reference leads somewhere."""
    assert config_schema.main(argparse.Namespace()) == 0
    text = capsys.readouterr().out
    whole = json.loads(text)
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "null" not in text
    channel = whole["$defs"]["Channel_nats"]["properties"]
    assert channel["seal_within"]["default"] == "1s"
    assert whole["$defs"]["Outbox"]["properties"]["size"]["default"] == "64MiB"
    assert {ref.partition("$defs/")[2] for ref in re.findall(r'"\$ref": "([^"]*)"', text)} <= whole["$defs"].keys()


def test_a_rate_is_shown_as_it_is_written(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD.replace('id = "dso"', 'id = "dso"\ndrain = { rate = "256KiB/s" }'))
    assert config.channels[0].drain.rate == 256 * 1024
    assert as_file(config)["channel"][0]["drain"] == {"rate": "256KiB/s", "spread": "1m"}
