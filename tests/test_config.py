"""A configuration is judged whole, and every problem names its line, its key and its remedy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent.config import Config, load, render
from agent.config.template import agent_toml
from agent.errors import ConfigError, Problem
from agent.units import Duration, Phase

ROOT = Path(__file__).parents[1]
DID = "did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FakeConnection(Table):
    url: str = "fake://"
    timeout: Duration = 1_000_000_000


class FakePoint(Table):
    name: str
    scale: float = 1.0
    count: Annotated[int, Field(ge=1, le=125)] = 1


class FakeGroup(Table):
    every: Duration
    phase: Phase = 0
    points: tuple[FakePoint, ...] = Field(min_length=1, strict=False)


class FakeDevice(Table):
    id: str
    connection: str
    groups: dict[str, FakeGroup] = {}
    sealed: bool = False

    def point_names(self, group: str) -> tuple[str, ...]:
        return tuple(point.name for point in self.groups[group].points)


class FakeAdapter:
    """A third party's adapter, as far as the configuration goes."""

    connection_model = FakeConnection
    device_model = FakeDevice


KIND = f"{__name__}:FakeAdapter"

# Line numbers in the tables below are of this text.
GOOD = f"""\
version = 1
[site]
id = "park-7"
labels = {{ dso = "westnet" }}
[identity]
key = "file:key"
[connection.wire]
kind = "{KIND}"
[[device]]
id = "meter"
connection = "wire"
[device.groups.power]
every = "1s"
points = [
  {{ name = "W" }},
  {{ name = "Hz" }},
]
[[device]]
id = "pv"
connection = "wire"
groups = {{ ac = {{ every = "5s", points = [{{ name = "W" }}, {{ name = "St" }}] }} }}
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:4222"]
send = ["meter/*", "pv/ac/W"]
[channel.outbox]
size = "8MiB"
[agent]
log_level = "info"
"""


def problems(folder: Path, text: str | bytes) -> list[str]:
    """What is wrong with a text, without the file's name."""
    path = folder / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = render(caught.value.problems).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def good(folder: Path, text: str = GOOD) -> Config:
    path = folder / "agent.toml"
    path.write_text(text)
    return load(path)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, "the change must be one change"
    return GOOD.replace(old, new)


def test_what_the_daemon_gets(tmp_path: Path) -> None:
    config = good(tmp_path)
    assert config.path == tmp_path / "agent.toml"
    assert (config.site.id, config.site.labels) == ("park-7", {"dso": "westnet"})
    assert (str(config.identity.key), config.identity.did) == (f"file:{tmp_path}/key", None)
    assert (config.agent.state, config.agent.log_level) == (Path("/var/lib/edge-agent"), {"default": "info"})
    assert (config.agent.http, config.agent.token) == (None, None)
    assert (config.channels[0].id, config.channels[0].topic) == ("dso", "dx.park-7.dso")
    assert config.channels[0].transport == "agent.transports.nats.transport:NatsTransport"
    assert config.channels[0].settings.servers == ("nats://127.0.0.1:4222",)
    assert config.channels[0].seal_within == 1_000_000_000
    assert (config.channels[0].drain.rate, config.channels[0].drain.spread) == (None, 60 * 1_000_000_000)
    assert (config.channels[0].outbox.size, config.channels[0].outbox.when_full) == (8_388_608, "drop-oldest")
    (plan,) = config.adapters()
    assert (plan.name, plan.class_path, plan.connection) == ("wire", KIND, FakeConnection())
    assert [(device.config.id, device.groups) for device in plan.devices] == [
        ("meter", {"power": ("W", "Hz")}),
        ("pv", {"ac": ("W",)}),
    ]


def test_each_channel_has_what_it_names(tmp_path: Path) -> None:
    config = good(tmp_path, changed("[agent]", f"{SECOND}id = 'market'\n[agent]"))
    assert [(channel.id, channel.topic, channel.selection) for channel in config.channels] == [
        ("dso", "dx.park-7.dso", {"meter": {"power": ("W", "Hz")}, "pv": {"ac": ("W",)}}),
        ("market", "dx.park-7.market", {"pv": {"ac": ("St",)}}),
    ]
    (plan,) = config.adapters()
    assert [(device.config.id, device.groups) for device in plan.devices] == [
        ("meter", {"power": ("W", "Hz")}),
        ("pv", {"ac": ("W", "St")}),
    ]
    assert [device.id for device in config.devices] == ["meter", "pv"]
    assert config.files == (tmp_path / "agent.toml",)


@pytest.mark.parametrize(("text", "phase"), [("auto", "auto"), ("999ms", 999_000_000), ("0s", 0)])
def test_a_phase_is_less_than_the_period(tmp_path: Path, text: str, phase: object) -> None:
    config = good(tmp_path, changed('every = "1s"', f'every = "1s"\nphase = "{text}"'))
    assert config.devices[0].groups["power"].phase == phase


def test_the_socket_may_be_off_or_elsewhere(tmp_path: Path) -> None:
    assert good(tmp_path).agent.socket == Path("/run/edge-agent/agent.sock")
    assert good(tmp_path, changed('log_level = "info"', 'socket = ""')).agent.socket is None
    assert good(tmp_path, changed('log_level = "info"', 'socket = "s"')).agent.socket == tmp_path / "s"


def test_what_no_pattern_names_is_not_read(tmp_path: Path) -> None:
    config = good(tmp_path, changed('send = ["meter/*", "pv/ac/W"]', 'send = ["pv/*/St"]'))
    (plan,) = config.adapters()
    assert [(device.config.id, device.groups) for device in plan.devices] == [("pv", {"ac": ("St",)})]


def test_a_connection_without_sent_devices_is_not_opened(tmp_path: Path) -> None:
    config = good(tmp_path, changed("[agent]\n", f'[connection.spare]\nkind = "{KIND}"\n[agent]\n'))
    assert [plan.name for plan in config.adapters()] == ["wire"]


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    Path("conf/agent.toml").write_text(changed('log_level = "info"', 'state = "../state"'))
    config = load(Path("conf/agent.toml"))
    assert config.identity.key.path == tmp_path / "conf" / "key"
    assert config.agent.state == tmp_path / "conf" / ".." / "state"


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path).site.id == "park-7"
    assert problems(tmp_path, changed('"park-7"', "7").replace("\n", "\r\n")) == [
        '3: site.id: expected text, found 7; write it in quotes, such as "text"'
    ]


# ---- the digest ------------------------------------------------------------------------------------------------


def test_digest_text_is_canonical(tmp_path: Path) -> None:
    text = good(tmp_path).digest_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    head, _, tail = GOOD.partition("[[device]]")
    meter, _, rest = tail.partition("[[device]]")
    pv, _, channel = rest.partition("[[channel]]")
    moved = f"# moved\n{head}[[device]]{pv}[[device]]{meter}[[channel]]{channel}"
    assert good(tmp_path, moved).digest_text() == text
    assert good(tmp_path, changed('id = "dso"', 'id = "dso"\nseal_within = "1s"')).digest_text() == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"park-7"', '"park-8"'),
        ('"westnet"', '"östnet"'),
        ('"1s"', '"2s"'),
        ('"file:key"', '"file:key2"'),
        ('"8MiB"', '"9MiB"'),
        ('"pv/ac/W"', '"pv/ac/St"'),
        (":4222", ":4223"),
        (f'kind = "{KIND}"', f'kind = "{KIND}"\ntimeout = "2s"'),
    ],
)
def test_digest_text_tells_configurations_apart(tmp_path: Path, old: str, new: str) -> None:
    assert good(tmp_path).digest_text() != good(tmp_path, changed(old, new)).digest_text()


# ---- what is wrong ---------------------------------------------------------------------------------------------

RATE = 'write a whole number, one of B, KiB, MiB, GiB, and /s, such as "64KiB/s"'
ADDRESS = 'write it like "127.0.0.1:9469", or "" for none'
TOKEN = 'add token = { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }'
PARTS = 'write "info", or { default = "info", "adapters.modbus" = "debug" }'
DURATION = 'write a whole number and one of ms, s, m, h, d, such as "500ms", "5s" or "1m"'
SIZE = 'write a whole number and one of B, KiB, MiB, GiB, TiB (steps of 1024), such as "64KiB" or "2GiB"'
ID = "write a letter or digit, then letters, digits, dot, _ and -, 64 at most"
WHOLE = "write digits without quotes or a fraction"
TOO_LARGE = "a whole number has 64 bits at most; write fewer digits, or a fraction such as 1e30"
SUBJECT = "is no subject to publish to; write words joined by dots, without blanks, * and >"
LATER = "not supported yet by this version"
SHOWN = "use username and password, where it is not shown"
SERVER = 'write "tls://host:4222", or "nats://host:4222" without TLS'
PLACES = 'write "file:PATH", "keystore:FILE" or "credential:NAME"'
PASSPHRASE = 'add passphrase = { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }'

SECOND = '[[channel]]\ntransport = "nats"\nservers = ["nats://h"]\nsend = ["pv/ac/St"]\n'

WRONG = [
    # the file's format
    (
        "version = 1",
        "version = 2",
        ["1: version: this agent reads version 1, not 2; install the agent that the file is for"],
    ),
    ("version = 1", 'version = "1"', ["1: version: expected a whole number; write version = 1"]),
    ("version = 1", "version = true", ["1: version: expected a whole number; write version = 1"]),
    ("version = 1\n", "", [" version: missing; add version = 1"]),
    # keys that nothing understands, or not yet
    ("[agent]", "[agents]", ["29: agents: unknown key; did you mean 'agent'?"]),
    ("version = 1", "version = 1\nfoo = 1", ["2: foo: unknown key; remove it"]),
    ("[agent]", "[agent]\nhttp = 1", [f"30: agent.http: expected an IP address and a port; {ADDRESS}"]),
    ("[agent]", '[agent]\nhttp = "::1:9469"', [f"30: agent.http: expected an IP address and a port; {ADDRESS}"]),
    (
        "[agent]",
        '[agent]\nhttp = "box:9469"',
        ['30: agent.http: "box" is no IP address; write it like "127.0.0.1:9469"'],
    ),
    ("[agent]", '[agent]\nhttp = "127.0.0.1:0"', ["30: agent.http: there is no port 0; choose 1 to 65535"]),
    (
        "[agent]",
        '[agent]\nhttp = "0.0.0.0:9469"',
        [f"30: agent.http: others than this machine reach 0.0.0.0:9469; {TOKEN}, or choose 127.0.0.1"],
    ),
    (
        "[agent]",
        '[agent]\nhttp = "[2001:db8::1]:9469"',
        [f"30: agent.http: others than this machine reach [2001:db8::1]:9469; {TOKEN}, or choose 127.0.0.1"],
    ),
    ("[agent]", '[agent]\ntoken = { env = "T" }', ["30: agent.token: it is for http, and there is none; remove it"]),
    ('log_level = "info"', "log_level = 5", [f"30: agent.log_level: expected a level, or levels by part; {PARTS}"]),
    (
        'log_level = "info"',
        'log_level = { default = "info", "adapters.modbus" = 1 }',
        ['30: agent.log_level: "1" is not possible; choose "debug", "info", "warning" or "error"'],
    ),
    *(
        (
            'log_level = "info"',
            f'log_level = {{ "{part}" = "debug" }}',
            [f'30: agent.log_level: the agent has no part "{part}"; name a folder or module, like "adapters.modbus"'],
        )
        for part in ("adapters.modbuz", "nats", "agent/..", "agent..clock")
    ),
    ("[agent]", "[clocks]\n[agent]", ["29: clocks: unknown key; did you mean 'clock'?"]),
    ("[agent]", "[clock]\nwai = 1\n[agent]", ["30: clock.wai: unknown key; did you mean 'wait'?"]),
    ("[agent]", "[clock]\nwait = 60\n[agent]", [f"30: clock.wait: expected a duration in quotes; {DURATION}"]),
    (
        "[agent]",
        '[clock]\nwait = "2d"\n[agent]',
        ["30: clock.wait: 2d is out of range; choose 0s to 1d"],
    ),
    ("[site]", 'clock = "60s"\n[site]', ["2: clock: expected a table; write it as [clock]"]),
    ("log_level", "loglevel", ["30: agent.loglevel: unknown key; did you mean 'log_level'?"]),
    (
        "log_level",
        "token",
        ["30: agent.token: a secret does not stand in the configuration; " + TOKEN.replace("add token =", "write")],
    ),
    (
        'log_level = "info"',
        f'socket = "/{"x" * 107}"',
        [
            "30: agent.socket: the path of a socket has at most 107 bytes, with its folder; choose a shorter one",
        ],
    ),
    (
        'log_level = "info"',
        "socket = 5",
        ['30: agent.socket: expected a path in quotes; write it like "/var/lib/edge-agent"'],
    ),
    ("size =", "sise =", ["28: channel[0].outbox.sise: unknown key; did you mean 'size'?"]),
    (
        "servers =",
        "server =",
        ["22: channel[0].servers: missing; add it", "25: channel[0].server: unknown key; did you mean 'servers'?"],
    ),
    (
        'id = "dso"',
        'id = "dso"\nseal_witin = "1s"',
        ["24: channel[0].seal_witin: unknown key; did you mean 'seal_within'?"],
    ),
    (f'"{KIND}"', f'"{KIND}"\ntimeuot = "1s"', ["9: connection.wire.timeuot: unknown key; did you mean 'timeout'?"]),
    (f'"{KIND}"', f'"{KIND}"\ntls = {{}}', [f"9: connection.wire.tls: {LATER}; remove it"]),
    ('id = "meter"', 'id = "meter"\nprofile = "x"', [f"11: device[0].profile: {LATER}; remove it"]),
    (
        '{ name = "Hz" }',
        '{ name = "Hz", scal = 2 }',
        ["16: device[0].groups.power.points[1].scal: unknown key; did you mean 'scale'?"],
    ),
    (
        '{ name = "Hz" }',
        '{ name = "Hz", report = {} }',
        [f"16: device[0].groups.power.points[1].report: {LATER}; remove it"],
    ),
    ('every = "1s"', 'every = "1s"\nsample = "1s"', [f"14: device[0].groups.power.sample: {LATER}; remove it"]),
    # values of a wrong kind
    ('"park-7"', "7", ['3: site.id: expected text, found 7; write it in quotes, such as "text"']),
    (
        '"park-7"',
        "2024-01-01",
        ['3: site.id: expected text, found the date or time 2024-01-01; write it in quotes, such as "text"'],
    ),
    ('"park-7"', '"park 7"', [f'3: site.id: "park 7" is no id; {ID}']),
    (
        '{ dso = "westnet" }',
        '"x"',
        ['4: site.labels: expected a table, found "x"; write { key = value } or a [table] of its own'],
    ),
    ('dso = "westnet"', "dso = 5", ['4: site.labels.dso: expected text, found 5; write it in quotes, such as "text"']),
    (
        'dso = "westnet"',
        'dso = ""',
        ["4: site.labels.dso: the text is empty, too long or not printable; write 1 to 256 characters on one line"],
    ),
    (
        'every = "1s"',
        "every = 5",
        [f"13: device[0].groups.power.every: expected a duration in quotes; {DURATION}"],
    ),
    (
        'every = "1s"',
        'every = "5 s"',
        [f'13: device[0].groups.power.every: expected a duration, found "5 s"; {DURATION}'],
    ),
    (
        'every = "1s"',
        'every = "1s"\nphase = "1s"',
        ['14: device[0].groups.power.phase: 1s is not less than every; choose less than 1s, or "auto"'],
    ),
    (
        'every = "1s"',
        'every = "1s"\nphase = "soon"',
        ['14: device[0].groups.power.phase: expected a duration in quotes, or "auto"; write it like "500ms"'],
    ),
    ('every = "1s"', 'every = "0s"', ["13: device[0].groups.power.every: 0s is too short; choose 1ms or more"]),
    ('every = "1s"\n', "", ["12: device[0].groups.power.every: missing; add it"]),
    ('{ name = "Hz" }', "{ }", ["16: device[0].groups.power.points[1].name: missing; add it"]),
    (
        '{ name = "Hz" }',
        '{ name = "Hz", scale = "2", count = 0 }',
        [
            '16: device[0].groups.power.points[1].scale: expected a number, found "2"; write digits without quotes',
            "16: device[0].groups.power.points[1].count: 0 is out of range; choose 1 or more",
        ],
    ),
    (
        '{ name = "Hz" }',
        '{ name = "Hz", count = 1.5 }',
        [f"16: device[0].groups.power.points[1].count: expected a whole number, found 1.5; {WHOLE}"],
    ),
    (
        'id = "meter"',
        'id = "meter"\nsealed = 1',
        ["11: device[0].sealed: expected true or false, found 1; write one of them without quotes"],
    ),
    ('"8MiB"', '"8MB"', [f'28: channel[0].outbox.size: expected a size, found "8MB"; {SIZE}']),
    ('"8MiB"', "8", [f"28: channel[0].outbox.size: expected a size in quotes; {SIZE}"]),
    ('"8MiB"', '"3MiB"', ["28: channel[0].outbox.size: 3MiB is out of range; choose 5MiB to 1TiB"]),
    ('"8MiB"', '"6000KiB"', ["28: channel[0].outbox.size: the ring has segments of 1 MiB; write whole MiB"]),
    (
        'size = "8MiB"',
        'on_disk_failure = "ram"',
        ['28: channel[0].outbox.on_disk_failure: "ram" is not possible; choose "drop" or "memory"'],
    ),
    (
        'id = "dso"',
        'id = "dso"\nseal_within = "5s"\nseal_within_away = "2s"',
        ["25: channel[0].seal_within_away: 2s is less than seal_within; choose 5s or more, or remove it"],
    ),
    (
        'size = "8MiB"',
        'when_full = "x"',
        ['28: channel[0].outbox.when_full: "x" is not possible; choose "drop-oldest" or "block"'],
    ),
    (
        '"info"',
        '"loud"',
        ['30: agent.log_level: "loud" is not possible; choose "debug", "info", "warning" or "error"'],
    ),
    (
        'log_level = "info"',
        'state = ""',
        ['30: agent.state: expected a path in quotes; write it like "/var/lib/edge-agent"'],
    ),
    (
        'id = "dso"',
        'id = "dso"\nseal_within = "61s"',
        ["24: channel[0].seal_within: 61s is out of range; choose 0s to 60s"],
    ),
    (
        'id = "dso"',
        'id = "dso"\ndrain = { rate = "64KiB" }',
        [f"24: channel[0].drain.rate: expected a size a second in quotes; {RATE}"],
    ),
    (
        'id = "dso"',
        'id = "dso"\ndrain = { rate = "0B/s" }',
        ["24: channel[0].drain.rate: at no bytes a second nothing is ever sent; leave it out for no limit"],
    ),
    (
        'id = "dso"',
        'id = "dso"\ndrain = { spread = "61m" }',
        ["24: channel[0].drain.spread: 61m is out of range; choose 0s to 1h"],
    ),
    # the identity
    ('"file:key"', '"pkcs11:token=a;object=b"', [f'6: identity.key: "pkcs11:" is {LATER}; {PLACES}']),
    ('"file:key"', '"0xdeadbeef"', [f"6: identity.key: expected the place of the key; {PLACES}"]),
    ('"file:key"', '"file:"', [f"6: identity.key: expected the place of the key; {PLACES}"]),
    ('"file:key"', "5", [f"6: identity.key: expected the place of the key; {PLACES}"]),
    (
        '"file:key"',
        '"credential:../k"',
        ["6: identity.key: this is no name of a credential; write letters, digits, _, . and -"],
    ),
    ('"file:key"', '"keystore:~/k"', ["6: identity.key: ~ stands for no folder here; write the whole path"]),
    ('"file:key"', '"keystore:k"', [f"6: identity.key: a keystore needs a passphrase; {PASSPHRASE}"]),
    (
        '"file:key"',
        '"file:key"\npassphrase = { env = "P" }',
        ['7: identity.passphrase: a key in "file:" has no passphrase; remove it'],
    ),
    (
        'key = "file:key"',
        'key = "file:key"\ndid = "did:web:x"',
        [
            (
                '7: identity.did: "did:web:x" is no DID of an agent; '
                'write "did:ethr:NETWORK:0x" and 40 hex digits, or remove it'
            )
        ],
    ),
    # tables that are missing or of a wrong shape
    ('[identity]\nkey = "file:key"\n', "", [" identity: missing; add [identity]"]),
    # references
    (
        'id = "pv"',
        'id = "meter"',
        [
            '19: device[1].id: "meter" is the id of device[0] too; choose another one',
            '26: channel[0].send[1]: "pv/ac/W" names nothing that is read; the devices are: meter',
        ],
    ),
    (
        'id = "pv"\nconnection = "wire"',
        'id = "pv"\nconnection = "wier"',
        ['20: device[1].connection: there is no connection "wier"; choose one of: wire'],
    ),
    (
        'id = "pv"\nconnection = "wire"',
        'id = "pv"',
        ["18: device[1].connection: missing; name the connection that it is read through"],
    ),
    (
        'id = "pv"\nconnection = "wire"',
        'id = "pv"\nconection = "wire"\ngrups = 1',
        [
            "18: device[1].connection: missing; name the connection that it is read through",
            "20: device[1].conection: unknown key; did you mean 'connection'?",
            "21: device[1].grups: unknown key; did you mean 'groups'?",
        ],
    ),
    (
        'id = "pv"\n',
        'id = "p/v"\n',
        [
            f'19: device[1].id: "p/v" is no id; {ID}',
            '26: channel[0].send[1]: "pv/ac/W" names nothing that is read; the devices are: meter, p/v',
        ],
    ),
    (
        'groups = { ac = { every = "5s", points = [{ name = "W" }, { name = "St" }] } }\n',
        "",
        [
            "18: device[1].groups: the device has no group; add at least one, or remove the device",
            '25: channel[0].send[1]: "pv/ac/W" names nothing that is read; write "pv/*" or name what the device has',
        ],
    ),
    (
        "{ ac =",
        '{ "a c" =',
        [
            f'21: device[1].groups."a c": "a c" is no id; {ID}',
            '26: channel[0].send[1]: "pv/ac/W" names nothing that is read; write "pv/*" or name what the device has',
        ],
    ),
    # connections
    (f'kind = "{KIND}"', "", ['7: connection.wire.url: a URL is needed; write it like "modbus+tcp://192.0.2.20:502"']),
    (
        f'kind = "{KIND}"',
        'urll = "mqtt://x"\ntimout = "1s"\nkeepalive = "30s"\ncolour = 1',
        [
            '7: connection.wire.url: a URL is needed; write it like "modbus+tcp://192.0.2.20:502"',
            "8: connection.wire.urll: unknown key; did you mean 'url'?",
            "9: connection.wire.timout: unknown key; did you mean 'timeout'?",
            "11: connection.wire.colour: unknown key; remove it",
        ],
    ),
    (
        f'kind = "{KIND}"',
        f'knd = "{KIND}"\ncolour = 1',
        [
            '7: connection.wire.url: a URL is needed; write it like "modbus+tcp://192.0.2.20:502"',
            "8: connection.wire.knd: unknown key; did you mean 'kind'?",
        ],
    ),
    (
        f'kind = "{KIND}"',
        'url = "ddhub-gateway://x"',
        [f"8: connection.wire.url: ddhub-gateway:// is {LATER}; remove the connection and its devices"],
    ),
    (
        f'kind = "{KIND}"',
        'url = "opc+tcp://x"',
        ["8: connection.wire.url: opc:// is no kind of connection; known are: modbus, mqtt, mqtts"],
    ),
    (
        KIND,
        "nowhere.to:Find",
        ["8: connection.wire.kind: the module nowhere is not installed; install it or correct the name"],
    ),
    (
        KIND,
        "agent.units:Find",
        ["8: connection.wire.kind: the module agent.units has no Find; correct the name of the class"],
    ),
    (
        KIND,
        "agent.units:S",
        ["8: connection.wire.kind: the class is no adapter; name a class with connection_model and device_model"],
    ),
    (KIND, "os.system", ['8: connection.wire.kind: "os.system" does not name a class; write "package.module:Class"']),
    (f'"{KIND}"', "5", ['8: connection.wire.kind: expected the name of a class; write "package.module:Class"']),
    (KIND, KIND + '"\ntimeout = "x', [f'9: connection.wire.timeout: expected a duration, found "x"; {DURATION}']),
    # the channel
    (
        "[agent]",
        '[[channel]]\nid = "b"\n[agent]',
        ["29: channel[1].transport: missing; add it", "29: channel[1].send: missing; add it"],
    ),
    (
        "[agent]",
        f"{SECOND}id = 'dso'\n[agent]",
        ['33: channel[1].id: "dso" is the id of channel[0] too; choose another one'],
    ),
    (
        "[agent]",
        f"{SECOND}id = 'b'\nsubject = 'dx.park-7.dso'\n[agent]",
        [
            (
                '34: channel[1].subject: "dx.park-7.dso" is where channel[0] writes; a subject has one writer; '
                "let the subject hold {channel}"
            )
        ],
    ),
    (
        "[agent]",
        f"{SECOND}id = 'b'\nsubject = 'dx.park-7.dso'\ncolour = 1\nservrs = []\nseal_within = 5\n[agent]",
        [
            (
                '34: channel[1].subject: "dx.park-7.dso" is where channel[0] writes; a subject has one writer; '
                "let the subject hold {channel}"
            ),
            "35: channel[1].colour: unknown key; remove it",
            "36: channel[1].servrs: unknown key; did you mean 'servers'?",
            f"37: channel[1].seal_within: expected a duration in quotes; {DURATION}",
        ],
    ),
    (
        "[agent]",
        f"{SECOND}id = 'b'\nsubjct = 'dx.{{channel}}'\n{SECOND}id = 'c'\nsubject = 'dx.park-7.b'\n[agent]",
        ["34: channel[1].subjct: unknown key; did you mean 'subject'?"],
    ),
    (
        '"nats"',
        '"ddhub-gateway"',
        [f'24: channel[0].transport: "ddhub-gateway" is {LATER}; choose one of: nats, ddhub'],
    ),
    ('"nats"', '"nat"', ['24: channel[0].transport: "nat" is no transport; choose one of: nats, ddhub']),
    ('transport = "nats"\n', "", ["22: channel[0].transport: missing; add it"]),
    (
        "transport =",
        "strem = 'x'\ntranspor =",
        [
            "22: channel[0].transport: missing; add it",
            "24: channel[0].strem: unknown key; did you mean 'stream'?",
            "25: channel[0].transpor: unknown key; did you mean 'transport'?",
        ],
    ),
    (
        '"nats"',
        '"ddhub-gateway"\nrecipients = []',
        [f'24: channel[0].transport: "ddhub-gateway" is {LATER}; choose one of: nats, ddhub'],
    ),
    ("nats://127", "wss://127", [f"25: channel[0].servers[0]: NATS over WebSocket is {LATER}; use tls:// or nats://"]),
    (
        "nats://127",
        "http://127",
        ['25: channel[0].servers[0]: "http://127.0.0.1:4222" is no URL of a NATS server; ' + SERVER],
    ),
    (
        "nats://127.0.0.1:4222",
        "nats://h:port",
        ['25: channel[0].servers[0]: "nats://h:port" is no URL of a server; ' + SERVER],
    ),
    (
        "nats://127",
        "nats://u:hunter2@127",
        [f"25: channel[0].servers[0]: a user or password stands in the address; {SHOWN}"],
    ),
    (
        "nats://127.0.0.1:4222",
        "nats://h:0",
        ['25: channel[0].servers[0]: "nats://h:0" names port 0, where nobody answers; ' + SERVER],
    ),
    (
        '["nats://127.0.0.1:4222"]',
        "[]",
        ["25: channel[0].servers: the list is empty; name at least one"],
    ),
    (
        '["nats://127.0.0.1:4222"]',
        '"nats://h"',
        ['25: channel[0].servers: expected a list, found "nats://h"; write it in brackets, [ ... ]'],
    ),
    (
        "servers =",
        'subject = "dx.{sit}"\nservers =',
        ["25: channel[0].subject: {sit} stands for nothing; use {site} and {channel}"],
    ),
    (
        "servers =",
        'subject = "dx.>"\nservers =',
        [f'25: channel[0].subject: "dx.>" {SUBJECT}'],
    ),
    (
        "servers =",
        'subject = "$JS.x"\nservers =',
        [
            (
                '25: channel[0].subject: "$JS.x" belongs to the server; '
                "choose a subject that does not begin with $ or _INBOX"
            )
        ],
    ),
    (
        "servers =",
        'stream = "a.b"\nservers =',
        ['25: channel[0].stream: "a.b" is no name of a stream; write it without blanks and . * > / \\'],
    ),
    (
        '"park-7"',
        '"park.."',
        [f'22: channel[0].subject: "dx.park...dso" {SUBJECT}'],
    ),
    ('["meter/*", "pv/ac/W"]', "[]", ["26: channel[0].send: too few entries; write at least 1"]),
    ('send = ["meter/*", "pv/ac/W"]\n', "", ["22: channel[0].send: missing; add it"]),
    (
        '"pv/ac/W"',
        '"pv"',
        ['26: channel[0].send[1]: "pv" names nothing that is read; write "pv/*" or name what the device has'],
    ),
    ('"pv/ac/W"', '"PV/*"', ['26: channel[0].send[1]: "PV/*" names nothing that is read; the devices are: meter, pv']),
    ('"pv/ac/W"', "5", ['26: channel[0].send[1]: expected text, found 5; write it in quotes, such as "text"']),
]


@pytest.mark.parametrize(("old", "new", "expected"), WRONG)
def test_wrong(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert problems(tmp_path, changed(old, new)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = \n", ["1: not TOML: invalid value; correct this line or the one before it"]),
        (
            "a = 1\nb\n",
            ["2: not TOML: expected '=' after a key in a key/value pair; correct this line or the one before it"],
        ),
        ("a = 1\n\na = 2\n", ["3: not TOML: cannot overwrite a value; correct this line or the one before it"]),
        ("a = [1,\n2,\n", ["2: not TOML: invalid value; correct this line or the one before it"]),
        (b"a = 1\n# gr\xfc\xdf\n", ["2: the file is not UTF-8; save it as UTF-8"]),
        ("a = 1\n".encode("utf-16"), ["1: the file is not UTF-8; save it as UTF-8"]),
        ("a = " + "[" * 100_000, [" arrays or tables are nested too deeply; write it flatter"]),
        ("a = " + 65 * "[" + 65 * "]", [" arrays or tables are nested too deeply; write it flatter"]),
        ("a = 1\nb = " + "9" * 5_000, [f"2: {TOO_LARGE}"]),
        (
            "",
            [
                " version: missing; add version = 1",
                " site: missing; add [site]",
                " identity: missing; add [identity]",
                " connection: missing; add [connection.NAME]",
                " device: missing; add [[device]]",
                " channel: missing; add [[channel]]",
            ],
        ),
        (
            "version = 1\nsite = 1\nidentity = []\nconnection = { a = 1 }\n\ndevice = {}\nchannel = []\nagent = true\n",
            [
                "2: site: expected a table; write it as [site]",
                "3: identity: expected a table; write it as [identity]",
                "4: connection: expected a table; write it as [connection.NAME]",
                "6: device: expected tables; write it as [[device]]",
                "7: channel: expected tables; write it as [[channel]]",
                "8: agent: expected a table; write it as [agent]",
            ],
        ),
    ],
    ids=range(11),
)
def test_wrong_file(tmp_path: Path, text: str | bytes, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_a_number_of_more_than_64_bits_hides_nothing(tmp_path: Path) -> None:
    point = '{ name = "W", count = 0x1' + 4_000 * "0" + ", scale = -9223372036854775809 }"
    expected = [
        f"15: device[0].groups.power.points[0].count: {TOO_LARGE}",
        f"15: device[0].groups.power.points[0].scale: {TOO_LARGE}",
        "16: device[0].groups.power.points[1].nam: unknown key; did you mean 'name'?",
    ]
    text = changed('{ name = "W" },\n', f"{point},\n").replace('{ name = "Hz" }', '{ nam = "Hz" }')
    assert [line for line in problems(tmp_path, text) if "missing" not in line] == expected


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("absent.toml", "No such file or directory; is the path right? `edge-agent init` makes a first one"),
        (".", "Is a directory; name a file that the agent's user may read"),
    ],
)
def test_unreadable_file(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: cannot be read: {what}"


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = GOOD
    for old, new in [
        ('"park-7"', "7"),
        ('"file:key"', '"pkcs11:x"'),
        (f'kind = "{KIND}"', f'kind = "{KIND}"\ntimeout = 3'),
        ('every = "1s"', 'evry = "1s"'),
        ('"8MiB"', '"1MiB"'),
        ("nats://127", "wss://127"),
        ("[agent]", "[agent]\nhttp = 1"),
        ('"pv/ac/W"', '"pv/ac/X"'),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    places = [int(line.partition(":")[0]) for line in problems(tmp_path, text)]
    assert places == [3, 6, 9, 13, 14, 26, 27, 29, 31]


def test_a_message_stays_on_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, changed('"park-7"', '"\\u001b[2J\\n"')) == [
        f'3: site.id: "\\u001b[2J\\u000a" is no id; {ID}'
    ]


def test_a_pattern_for_a_refused_device_is_no_problem_of_its_own(tmp_path: Path) -> None:
    assert problems(tmp_path, changed('{ name = "W" },\n', "{ name = 5 },\n")) == [
        '15: device[0].groups.power.points[0].name: expected text, found 5; write it in quotes, such as "text"'
    ]


@pytest.mark.parametrize(
    "line", ["creds = 'hunter2'", "password = 'hunter2'", "nkey = 'hunter2'", "servers = ['x@hunter2']"]
)
def test_no_secret_in_a_message(tmp_path: Path, line: str) -> None:
    text = changed('servers = ["nats://127.0.0.1:4222"]', line)
    assert "hunter2" not in "\n".join(problems(tmp_path, text))
    assert "hunter2" not in "\n".join(problems(tmp_path, changed('"file:key"', '"hunter2"')))


# ---- what is shipped -------------------------------------------------------------------------------------------


def test_shipped_configuration_is_good() -> None:
    config = load(ROOT / "config" / "agent.toml")
    assert config.identity.did == DID
    assert [(plan.name, [device.config.id for device in plan.devices]) for plan in config.adapters()] == [
        ("hall", ["grid-meter"]),
        ("pv", ["pv-1"]),
        ("bms", ["battery"]),
    ]


def test_defaults_in_the_manual_are_the_defaults(tmp_path: Path) -> None:
    """A default that the manual names for a key with a plain value is what the agent does without the key."""
    text = (ROOT / "config" / "agent.toml").read_text()
    defaults = (
        "seal_within|size|when_full|on_disk_failure|subject|state|socket|log_level|sunspec|idle_close|max_gap|addresses|"
        "identification|timeout|keepalive|session|session_expiry|qos|wait|first|storage|replicas|duplicate_window|discard|"
        "send_every|max_message|on_recipient_failure"
    )
    without = re.sub(rf"^({defaults}) .*\n", "", text, flags=re.MULTILINE)
    assert len(without.splitlines()) < len(text.splitlines()) - len(defaults.split("|"))
    without = without.replace("[channel.outbox]", "").replace("unit       = 126", "unit       = 126\nsunspec = {}")
    shorter, manual = tmp_path / "shorter.toml", tmp_path / "agent.toml"
    shorter.write_text(without)
    manual.write_text(text)
    assert load(shorter).digest_text() == load(manual).digest_text()


def test_every_key_of_the_manual_is_in_the_documentation() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text()
    keys = re.findall(r"^(\w+) +=", (ROOT / "config" / "agent.toml").read_text(), flags=re.MULTILINE)
    assert len(set(keys)) > 30
    assert [key for key in sorted(set(keys)) if f"`{key}`" not in documented] == []


def test_what_init_writes_is_good(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(agent_toml(did=DID))
    config = load(tmp_path / "agent.toml")
    assert (config.identity.key.path, config.identity.did) == (tmp_path / "key", DID)
    assert config.agent.state == tmp_path / "state"
    assert [device.groups for plan in config.adapters() for device in plan.devices] == [{"ac": ("W", "WH", "Hz", "St")}]


def test_init_quotes_what_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\ \x7f é'
    (tmp_path / "agent.toml").write_text(agent_toml(did=DID, site="s", key=f"{folder}/key", state=f"{folder}"))
    config = load(tmp_path / "agent.toml")
    assert (config.identity.key.path, config.agent.state) == (folder / "key", folder)


def test_judging_imports_no_client_library() -> None:
    """``check`` stays cheap, and works where a broker's library is broken."""
    code = "import sys; from agent import config, kinds; kinds.load(kinds.TRANSPORTS['nats'].config_model);"
    found = subprocess.run(
        [sys.executable, "-c", code + "print({'nats', 'pymodbus', 'eth_account', 'anyio'} & sys.modules.keys())"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "set()\n"


def test_a_third_party_module_that_fails_to_load_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_adapter.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problems(tmp_path, changed(KIND, "broken_adapter:X")) == [
        (
            "8: connection.wire.kind: the module broken_adapter cannot be imported "
            "(ZeroDivisionError: division by zero); repair or remove it"
        )
    ]


def broken(place: str, here: str) -> None:
    if place == here:
        raise KeyError("no; idea")


class BrokenConnection(FakeConnection):
    @field_validator("url")
    @classmethod
    def _judge(cls, url: str) -> str:
        broken("url", url)
        return url

    def exclusive(self, name: str) -> str | None:
        broken("exclusive", self.url)
        return None


class BrokenDevice(FakeDevice):
    def point_names(self, group: str) -> tuple[str, ...]:
        broken("points", self.id)
        return super().point_names(group)

    @classmethod
    def judge_together(cls, devices: Sequence[FakeDevice]) -> Iterator[tuple[int, tuple[str, ...], str]]:
        broken("together", devices[-1].id)
        yield from ()


class BrokenAdapter:
    connection_model = BrokenConnection
    device_model = BrokenDevice


@pytest.mark.parametrize(
    ("url", "device", "place"),
    [
        ("url", "pv", "7: connection.wire"),
        ("exclusive", "pv", "7: connection.wire"),
        ("x", "points", "19: device[1]"),
        ("x", "together", "7: connection.wire"),
    ],
)
def test_a_third_partys_model_may_raise_anything(tmp_path: Path, url: str, device: str, place: str) -> None:
    text = changed(KIND, f'{__name__}:BrokenAdapter"\nurl = "{url}').replace('"pv', f'"{device}')
    told = "the adapter cannot judge this (KeyError: 'no, idea'); see the adapter's own documentation"
    assert problems(tmp_path, text) == [f"{place}: {told}"]


@pytest.mark.parametrize("text", ["raise SystemExit(0)\n", "import sys\nsys.exit('usage: ...')\n"])
def test_a_program_that_ends_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    name = f"program_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = problems(tmp_path, changed(KIND, f"{name}:X"))
    assert problem.startswith(f"8: connection.wire.kind: the module {name} cannot be imported (SystemExit: ")


def test_class_paths_lead_to_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent import kinds

    loaded: list[Any] = [kinds.load(path) for path in kinds.ADAPTERS.values()]
    assert all(issubclass(each.connection_model, BaseModel) for each in loaded)
    for transport in kinds.TRANSPORTS.values():
        assert kinds.load(transport.transport).config_model is kinds.load(transport.config_model)


# ---- every value replaced --------------------------------------------------------------------------------------


def toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def replaced(value: Any, other: str) -> Iterator[str]:
    """Texts in which one value each, at any depth, is replaced."""
    yield other
    if isinstance(value, dict):
        for name, inner in value.items():
            for text in replaced(inner, other):
                rest = [f"{json.dumps(key)} = {toml(each)}" for key, each in value.items() if key != name]
                yield "{" + ", ".join([*rest, f"{json.dumps(name)} = {text}"]) + "}"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for text in replaced(inner, other):
                yield "[" + ", ".join([*map(toml, value[:index]), text, *map(toml, value[index + 1 :])]) + "]"


@pytest.mark.parametrize(
    "other",
    [
        *("-1", "0x1" + 4_000 * "0", "nan", '"\\u0000 é{"', "[]", "{}"),
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("1e999", "true", '""', "[[]]", "1979-05-27")),
    ],
    ids=lambda text: text[:9],
)
def test_any_value_anywhere_is_judged(tmp_path: Path, other: str) -> None:
    """Whatever stands in a place, the outcome is a configuration or problems, and each has a remedy."""
    whole = tomllib.loads((ROOT / "config" / "agent.toml").read_text())
    path = tmp_path / "agent.toml"
    for name, value in whole.items():
        for text in replaced(value, other):
            rest = "".join(f"{key} = {toml(each)}\n" for key, each in whole.items() if key != name)
            path.write_text(f"{rest}{name} = {text}\n")
            found: Sequence[Problem] | None = None
            try:
                load(path).digest_text()
            except ConfigError as error:
                found = error.problems
            assert found is None or (found and all(problem.what and problem.remedy for problem in found))


def test_where_metrics_are_and_levels_by_part(tmp_path: Path) -> None:
    config = good(
        tmp_path,
        changed(
            'log_level = "info"',
            'http = "[::]:9469"\ntoken = { env = "T" }\n'
            'log_level = { "adapters.mqtt" = "debug", "agent.clock" = "error" }',
        ),
    )
    assert config.agent.http is not None
    assert (config.agent.http.host, config.agent.http.port, config.agent.http.loopback) == ("::", 9469, False)
    assert str(config.agent.token) == "env T"
    assert config.agent.log_level == {"default": "info", "adapters.mqtt": "debug", "agent.clock": "error"}
    for written, host in (("localhost", "127.0.0.1"), ("127.0.0.53", "127.0.0.53"), ("[::1]", "::1")):
        http = good(tmp_path, changed('log_level = "info"', f'http = "{written}:1"')).agent.http
        assert http is not None
        assert (http.host, http.loopback) == (host, True)
