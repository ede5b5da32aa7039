"""What the format already has words for and this version does not do: each is refused by name, none is ignored.

With the adapters as they are shipped; nothing is imported that reads or listens.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError

LATER = "not supported yet by this version"

GOOD = """\
version = 1
[site]
id = "park-7"
[identity]
key = "file:key"
[connection.wire]
url = "modbus+tcp://192.0.2.1"
[connection.bms]
url = "mqtt://192.0.2.2"
[[device]]
id = "meter"
connection = "wire"
[device.groups.power]
every = "1s"
points = [{ name = "W", at = "40001", type = "int16" }]
[[device]]
id = "battery"
connection = "bms"
topic = "t"
[device.groups.state]
points = [{ name = "SoC", at = "/soc" }]
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:4222"]
send = ["*"]
outbox = { size = "8MiB" }
[agent]
log_level = "info"
"""

REFUSED = {
    "aggregates": ('every = "1s"', 'every = "1s"\nsample = "1s"\naggregate = ["mean"]', [15, 16], [LATER, LATER]),
    "deadband": ('type = "int16"', 'type = "int16", report = { deadband = 5 }', [15], [LATER]),
    "deadband of messages": ('at = "/soc"', 'at = "/soc", report = { deadband = 5 }', [21], [LATER]),
    "register profiles": ('id = "meter"', 'id = "meter"\nprofile = "eastron/sdm630"', [12], [LATER]),
    "PKCS#11": ('"file:key"', '"pkcs11:token=t;object=k"', [5], [f'"pkcs11:" is {LATER}; write "file:PATH"']),
    "Modbus ASCII": ("modbus+tcp://192.0.2.1", "modbus+ascii:///dev/ttyS0", [7], [f'"modbus+ascii" is {LATER}']),
    "Modbus over UDP": ("modbus+tcp:", "modbus+udp:", [7], [f'"modbus+udp" is {LATER}']),
    "MQTT over WebSocket": ("mqtt://", "mqtt+ws://", [9], [f'"mqtt+ws" is {LATER}']),
    "MQTT over secure WebSocket": ("mqtt://", "mqtt+wss://", [9], [f'"mqtt+wss" is {LATER}']),
    "the Data Hub's gateway": (
        '"nats"',
        '"ddhub-gateway"',
        [24],
        [f'"ddhub-gateway" is {LATER}; choose one of: nats, ddhub'],
    ),
    "idle_close": ('"modbus+tcp://192.0.2.1"', '"modbus+tcp://192.0.2.1"\nidle_close = "5s"', [8], [LATER]),
}


def refusals(folder: Path, text: str) -> list[tuple[int, str]]:
    """The lines and texts of all problems."""
    path = folder / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [(problem.line, f"{problem.what}; {problem.remedy}") for problem in caught.value.problems]


def test_what_the_refusals_begin_from_is_good(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(GOOD)
    assert len(load(tmp_path / "agent.toml").adapters()) == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_comes_later_is_refused(tmp_path: Path, name: str) -> None:
    old, new, lines, texts = REFUSED[name]
    assert GOOD.count(old) == 1
    found = refusals(tmp_path, GOOD.replace(old, new))
    assert [line for line, _ in found] == lines
    for (_, said), text in zip(found, texts, strict=True):
        assert text in said


def test_aggregates_of_messages_are_refused(tmp_path: Path) -> None:
    found = refusals(tmp_path, GOOD.replace("[device.groups.state]", '[device.groups.state]\naggregate = ["mean"]'))
    assert found == [(21, f"{LATER}; remove it")]


def test_what_several_keys_say_is_judged_beside_what_is_wrong_with_others(tmp_path: Path) -> None:
    text = GOOD
    for old, new in [
        (
            'points = [{ name = "W", at = "40001", type = "int16" }]',
            """points = [
  { name = "A", at = "40001", type = "int17" },
  { name = "W", at = "40002", type = "int16" },
  { name = "B", at = "40003", type = "int16", scael = 2 },
  { name = "W", at = "40004", type = "int16" },
  { name = "V", at = "40011", type = "int16" },
]
[device.groups.late]
evry = "1s"
points = [{ name = "W", at = "40001", type = "int16" }]""",
        ),
        ('id = "meter"', 'id = "meter"\nforbidden = ["hölding:4", "holding:10"]\ncolour = 3'),
        ('"mqtt://192.0.2.2"', '"mqtt://192.0.2.2"\ntopc = 1\npassword = { env = "P" }'),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert [(line, said.partition(";")[0]) for line, said in refusals(tmp_path, text)] == [
        (8, "a password needs a username"),
        (10, "unknown key"),
        (14, '"hölding:4" is no register'),
        (15, "unknown key"),
        (20, '"int17" is not possible'),
        (22, "unknown key"),
        (23, 'two points of the group are named "W"'),
        (24, "the point lies in a forbidden range"),
        (26, "missing"),
        (27, "unknown key"),
    ]


POINTS = """points = [
  { name = "A", at = "/a" },
  { name = "A", at = "/b" },
  { name = "C", at = "/c", topic_level = 1 },
  { name = "D" },
]"""
TOPIC, AT = 'topic = "t"', 'points = [{ name = "SoC", at = "/soc" }]'
MODBUS = 'points = [{ name = "W", at = "40001", type = "int16" }]'
SECOND = '{ name = "B", at = "40002", type = "int17" }'


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({TOPIC: 'topic = "t"\nqos = 5', AT: POINTS}, [20, 24, 25, 26]),
        ({TOPIC: 'topic = "a/#/b"', AT: POINTS}, [19, 23, 24, 25]),
        ({TOPIC: 'topc = "t"', AT: POINTS}, [19, 23, 24, 25]),
        ({TOPIC: 'topic = "t"', AT: f'every = "1s"\n{POINTS}'}, [21, 24, 25, 26]),
        ({TOPIC: "qos = 5", AT: AT}, [19, 20]),
        ({TOPIC: 'qso = 1\ntimestamp = { at = "/ts", fromat = "unix" }', AT: AT}, [19, 20, 20, 21]),
        ({MODBUS: 'phase = "2s"\n' + MODBUS, 'id = "meter"': 'id = "meter"\nforbidden = ["nowhere"]'}, [12, 16]),
        ({MODBUS: 'phase = "2s"\n' + MODBUS.replace("}]", f"}}, {SECOND}]")}, [15, 16]),
        ({MODBUS: 'phase = "2s"\n' + MODBUS.replace("40001", "40010"), 'id = "meter"': "id = 5"}, [11, 15]),
        ({MODBUS: MODBUS.replace("40001", "50001"), 'id = "meter"': 'id = "me ter"\nforbidden = ["x"]'}, [11, 12, 16]),
        ({MODBUS: MODBUS.replace('"40001"', '"holding:9"'), 'id = "meter"': 'forbidden = ["holding:9"]'}, [10, 15]),
        ({MODBUS: MODBUS.replace('"40001"', '"holding:9"'), '"wire"': '"wier"\nforbidden = ["holding:9"]'}, [12, 16]),
        (
            {MODBUS: MODBUS.replace("}]", f", values = {{ 0 = 'a' }} }}, {SECOND}]").replace("int16", "float32")},
            [15, 15],
        ),
    ],
)
def test_one_problem_hides_no_other(tmp_path: Path, changes: dict[str, str], lines: list[int]) -> None:
    text = GOOD
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert [line for line, _ in refusals(tmp_path, text)] == lines


def test_nothing_is_said_to_be_missing_that_was_only_refused(tmp_path: Path) -> None:
    found = refusals(tmp_path, GOOD.replace('topic = "t"', 'topic = "a/#/b"').replace('at = "/soc"', "at = 5"))
    assert [line for line, _ in found] == [19, 21]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('topic = "t"', 'topc = "t"', 19),
        ('"mqtt://192.0.2.2"', '"mqtt://192.0.2.2"\nusernme = "x"\npassword = { env = "P" }', 10),
        ('id = "meter"', 'id = "meter"\nadresses = "0-based"\nforbidden = ["holding:1-holding:2"]', 12),
    ],
)
def test_what_depends_on_a_misspelt_key_is_not_judged(tmp_path: Path, old: str, new: str, line: int) -> None:
    assert GOOD.count(old) == 1
    assert [at for at, _ in refusals(tmp_path, GOOD.replace(old, new))] == [line]
