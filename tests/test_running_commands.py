"""The commands that look at an agent, against the real server with channels on real ring files, and against the files
of an agent that is down: what they print, where, and their exit codes.
"""

from __future__ import annotations

import asyncio
import grp
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.control import client
from agent.control.answers import TAP_RECORDS
from agent.control.status_text import age, aligned, lines, size
from agent.delivery.resending import Selection
from agent.errors import Problem
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Cause, EventCode, Gap
from agent.printable import printable
from testbed.child import wait_for
from tests.runs import Run, frame, group
from tests.served_agent import FakeChannel, FakeRunning, Ring, Served, serving

CONFIG = """\
version = 1
[site]
id = "site-1"
[identity]
key = "file:key"
[connection.wire]
url = "modbus+tcp://127.0.0.1:1"
[[device]]
id = "pv-1"
connection = "wire"
unit = 1
[device.groups.ac]
every = "1s"
points = [{ name = "W", at = "holding:1", type = "int16" }]
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
subject = "dx.dso"
send = ["*"]
[agent]
state = "state"
socket = "agent.sock"
"""
SECOND = (
    '[[channel]]\nid = "nmi"\ntransport = "nats"\nservers = ["nats://127.0.0.1:1"]\nsubject = "dx.nmi"\nsend = ["*"]\n'
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one channel, "dso"."""
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    """Its outbox: 21 records, of which 5 are acknowledged."""
    made = Ring(tmp_path / "state" / "dso.ring")
    for _ in range(18):
        made.data(2)
    made.data(0, [Gap(0, 136, 140, Cause.DEVICE_TIMEOUT, "no answer")])
    made.data()
    made.box.settle(made.held[4][0])
    made.box.mark()
    return made


@pytest.fixture
def second(config: Path, tmp_path: Path) -> Ring:
    """A second channel, "nmi", with two records."""
    config.write_text(CONFIG.replace("[agent]", SECOND + "[agent]"))
    made = Ring(tmp_path / "state" / "nmi.ring", channel="nmi")
    made.data()
    return made


def running(*rings: Ring) -> FakeRunning:
    """The agent that these are the outboxes of."""
    agent = FakeRunning({made.path.stem: FakeChannel(made.path.stem, made.path, made.run.sent[0]) for made in rings})
    agent.told = status_of(agent)
    return agent


def status_of(agent: FakeRunning) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "did": "did:ethr:volta:0x1",
        "site": "site-1",
        "pid": 4711,
        "uptime_s": 7500.0,
        "process": {"memory_bytes": 34 << 20, "cpu_s": 12.5},
        "config": "/etc/edge-agent/agent.toml",
        "channels": [
            {"id": name, "connected": False, "state": "no route to host", "pending_records": 7, "pending_bytes": 2048,
             "hint": "open the way", "oldest_s": 725.0, "rate": 0.25, "acknowledged": 12, "dropped": 3,
             "latency": {"bounds": [0.05, 0.5, 5], "counts": [3, 30, 1, 0], "sum": 9.5}, "outbox": {"acked": 3}}
            for name in agent.channels
        ],
        "devices": [
            {"id": "pv-1", "groups": [{"name": "ac", "state": "ok", "since_s": 7000, "last_s": 0.4, "frames": 90,
                                       "failures": {"device_timeout": 2, "device_exception": 1, "link_down": 4}},
                                      {"name": "dc", "state": "device_timeout", "since_s": 90, "detail": "no answer"}]},
        ],
        "connections": [
            {"name": "broker", "state": "away"},
            {"name": "wire", "busy": 0.121, "late": {"bounds": [0.1, 60], "counts": [1, 0, 1], "sum": 99}},
        ],
    }  # fmt: skip


def sealed(envelope: bytes) -> int:
    """When, ns."""
    return decode_record(decode_head(unpack(envelope).payload), None).sealed.wall


class Shell:
    """Runs commands with this configuration."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = config
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Its output and its words."""
        self._capsys.readouterr()
        assert main([*arguments, "--config", str(self.config)]) == code, self._capsys.readouterr()
        said = self._capsys.readouterr()
        return said.out, said.err

    def json(self, *arguments: str, code: int = 0) -> list[Any]:
        """Its output, a JSON value each line."""
        return [json.loads(line) for line in self(*arguments, "--json", code=code)[0].splitlines()]


@pytest.fixture
def shell(config: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(config, capsys)


@contextmanager
def agent_of(shell: Shell, *rings: Ring) -> Iterator[tuple[FakeRunning, Served]]:
    agent = running(*rings)
    with serving(agent, shell.config.parent / "agent.sock") as served:
        yield agent, served


# ---- who is asked ---------------------------------------------------------------------------------------------------

ASKING = (["status"], ["top"], ["tap"], ["reload"])
LOOKING = (["outbox", "status"], ["outbox", "list"], ["outbox", "export", "/dev/null"])


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_an_agent_that_is_down_is_69(command: list[str], shell: Shell) -> None:
    out, words = shell(*command, code=69)
    assert out == ""
    assert re.fullmatch(r"edge-agent: no agent answers at .*agent\.sock; start it .*\n", words)


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_an_agent_without_a_socket_is_69(command: list[str], shell: Shell) -> None:
    shell.config.write_text(CONFIG.replace('"agent.sock"', '""'))
    assert "no socket" in shell(*command, code=69)[1]


@pytest.mark.parametrize("command", [*ASKING, *LOOKING], ids=" ".join)
def test_a_configuration_whose_socket_is_wrong_is_78(command: list[str], shell: Shell) -> None:
    shell.config.write_text(CONFIG.replace('"agent.sock"', "5"))
    assert "agent.toml:" in shell(*command, code=78)[1]


@pytest.mark.parametrize("broken", ["[[[", "[agent]\nlog_level = 5\n"])
def test_while_the_file_is_broken_the_agent_can_still_be_asked(broken: str, shell: Shell, ring: Ring) -> None:
    shell.config.write_text(broken)
    if "agent" in broken:
        shell.config.write_text(CONFIG.replace("socket =", 'log_level = "loud", socket ='))
    with agent_of(shell, ring):
        shell("status")
        shell("reload")


@pytest.mark.parametrize("command", [["status"], ["reload"], *LOOKING], ids=" ".join)
def test_a_configuration_wrong_elsewhere_is_no_obstacle(command: list[str], shell: Shell, ring: Ring) -> None:
    shell.config.write_text(CONFIG.replace("holding:1", "holding:x"))
    with agent_of(shell, ring):
        shell(*command)


@pytest.mark.parametrize("command", [["status"], ["reload"], ["tap", "--count", "1"], *LOOKING], ids=" ".join)
def test_a_socket_that_is_named_needs_no_configuration(command: list[str], shell: Shell, ring: Ring) -> None:
    shell.config.unlink()
    shell.config = shell.config.parent / "none.toml"
    with agent_of(shell, ring) as (agent, served):
        if command[0] == "tap":
            served.call(sealing(agent.channels["dso"], ring.run.sent[-1:]))
        shell(*command, "--socket", str(served.path))


def sealing(channel: FakeChannel, envelopes: Sequence[bytes]) -> Callable[[], None]:
    """Seals once somebody watches."""
    return when_watched(channel, lambda: channel.seal(*envelopes))


def when_watched(channel: FakeChannel, act: Callable[[], object]) -> Callable[[], None]:
    """Does it once somebody watches the channel; to be called in the event loop."""

    def look() -> None:
        if channel.watchers:
            act()
        else:
            asyncio.get_running_loop().call_later(0.005, look)

    return look


@contextmanager
def as_nobody(refused: Path) -> Iterator[None]:
    """Without the rights of root and of the group."""
    if os.geteuid():
        refused.chmod(0)
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65_534)
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize("command", [*ASKING, *LOOKING], ids=" ".join)
def test_no_permission_for_the_socket_is_77(command: list[str], shell: Shell, ring: Ring) -> None:
    importlib.import_module("agent.commands.top")  # its modules may lie where nobody cannot read them
    with agent_of(shell, ring) as (_, served), as_nobody(served.path):
        words = shell(*command, "--socket", str(served.path), code=77)[1]
    assert f"no permission for the socket {served.path}; run it as root" in words, "nobody joins the group of root"


def test_who_may_not_ask_is_told_which_group_may(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bool:
        raise PermissionError

    monkeypatch.setattr(client, "_taken_on", refused)
    monkeypatch.setattr(grp, "getgrgid", {4242: grp.struct_group(("edge-agent", "x", 4242, []))}.__getitem__)
    path = tmp_path / "agent.sock"
    path.touch()
    for gid, words in (
        (4242, "become a member of the group 'edge-agent' (usermod -aG, then"),
        (0, "; run it as root\n"),
    ):
        monkeypatch.setattr(Path, "stat", lambda path, gid=gid: os.stat_result((0o660, 0, 0, 1, 0, gid, 0, 0, 0, 0)))
        assert words in shell("status", "--socket", str(path), code=77)[1]


# ---- status and reload ----------------------------------------------------------------------------------------------


def test_status_for_programs_and_for_people(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, _):
        [told] = shell.json("status")
        assert told == agent.told
        out, words = shell("status")
    assert words == ""
    assert out.splitlines() == [
        "edge-agent 0.1.0 at site-1, up 2 h 5 min",
        "  identity  did:ethr:volta:0x1",
        "  process   4711, 34 MiB, configuration /etc/edge-agent/agent.toml",
        "",
        "! dso: no route to host",
        "    open the way",
        "! dso: 3 records overwritten before the broker had them",
        "    they are stated in the data; enlarge outbox.size",
        "! broker: no connection yet",
        "    is its broker up, and the way to it open?",
        "! pv-1/dc: device_timeout: no answer",
        "    is unit right, and timeout long enough?",
        "",
        "  channel  broker  waiting    oldest  delivered  a second  95% within  dropped",
        "! dso      away    7 (2 KiB)  12 min  12         0.25      500 ms      3",
        "",
        "  connection  state  busy  95% late by",
        "! broker      away   -     -",
        "  wire        -      12%   > 1 min",
        "",
        "  group    state           since       last value  ok  timeouts  exceptions  other",
        "  pv-1/ac  ok              1 h 56 min  0.4 s ago   90  2         1           4",
        "! pv-1/dc  device_timeout  1 min       -           -   -         -           -",
    ]


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"channels": None, "devices": 3, "connections": "x"},
        {"channels": [{}, 1], "devices": [{}, {"groups": [{}]}], "connections": [{}]},
        {"uptime_s": "x", "channels": [{"pending_bytes": "x", "oldest_s": -1}]},
        {"site": "a\x1b[31m\nb"},
        {"clock": 3},
        {"clock": {"state": "\x1b\n", "waiting_s": -1, "error_us": -1}},
        {"stuck": 3, "process": 4, "connections": [{"late": {"bounds": 1}, "busy": "x"}]},
        {"stuck": ["a\x1b"], "channels": [{"latency": {"bounds": [1], "counts": ["x", 1]}, "rate": "x"}]},
        {"devices": [{"groups": [{"name": "x", "frames": "y", "failures": {"link_down": "z"}}]}]},
    ],
)
def test_a_status_with_anything_missing_is_shown(status: dict[str, Any]) -> None:
    shown = list(lines(status))
    assert shown[0].startswith("edge-agent ")
    assert all(line.isprintable() for line in shown)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (
            {"outbox": {"state": "failed", "trouble": "the disk reported EIO"}, "not_stored": 12},
            ["its outbox failed, nothing is stored: the disk reported EIO", "12 readings not stored"],
        ),
        ({"outbox": {"state": "memory", "trouble": ""}}, ["its outbox failed, records are kept in memory only"]),
        ({"outbox": {"state": "blocked"}}, ["its outbox is full, readings wait for the broker"]),
        (
            {"outbox": {"state": "removed"}},
            ["the file of its outbox was removed, and what it holds ends with the agent"],
        ),
        ({"outbox": {"state": "ok", "trouble": ""}, "not_stored": 0}, []),
        ({"outbox": 3, "not_stored": "x"}, []),
    ],
)
def test_what_is_wrong_with_an_outbox_in_a_status(channel: dict[str, Any], words: list[str]) -> None:
    told = list(lines({"channels": [{"id": "dso", "connected": True, **channel}]}))
    state = channel["outbox"]["state"] if isinstance(channel["outbox"], dict) else "ok"
    assert told[-1].startswith("! dso" if state != "ok" else "  dso")
    assert [line for line in told[:-1] if line.startswith("!")] == [f"! dso: {each}" for each in words]


@pytest.mark.parametrize(
    ("clock", "line"),
    [
        (
            {"state": "synchronised", "error_us": 1234, "waiting_s": None},
            "  clock     synchronised, off by 1.2 ms at most",
        ),
        ({"state": "synchronised", "error_us": 40}, "  clock     synchronised, off by 40 us at most"),
        ({"state": "synchronised", "error_us": 1_500_000}, "  clock     synchronised, off by 1.5 s at most"),
        ({"state": "not_synchronised", "error_us": None, "waiting_s": None}, "! clock     not synchronised"),
        (
            {"state": "not_synchronised", "error_us": None, "waiting_s": 41.7},
            "! clock     not synchronised; no reading yet, it is waited for, 41 s more at most",
        ),
        ({"state": "unknown", "error_us": None, "waiting_s": None}, "! clock     its state cannot be read"),
        ({}, "! clock     -"),
        ({"state": "synchronised", "error_us": "x", "waiting_s": "y"}, "  clock     synchronised"),
    ],
)
def test_the_clock_in_a_status(clock: dict[str, Any], line: str) -> None:
    assert list(lines({"clock": clock}))[3] == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.42, "0.4 s"), (9, "9 s"), (59.9, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (86_400, "1 d"),
     (90_061, "1 d 1 h"), (None, "-"), (-1, "-"), (float("nan"), "-"), (float("inf"), "-"), (True, "-")],
)  # fmt: skip
def test_ages(seconds: Any, text: str) -> None:
    assert age(seconds) == text


def test_sizes_tables_and_odd_characters() -> None:
    assert [size(each) for each in (0, 1023, 1024, 1536, 5 << 30, None)] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "5 GiB", "-"
    ]  # fmt: skip
    assert list(aligned([("a", "b"), ("ccc", "")])) == ["a    b", "ccc"]
    assert printable("a\x1b[0m\tä") == "a\\u001b[0m\\u0009ä"


def test_reload_prints_what_changed(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, _):
        assert shell("reload") == ("", "nothing changed\n")
        agent.changes = ["channel dso: sends other points", "site: changed"]
        assert shell("reload") == ("channel dso: sends other points\nsite: changed\n", "")
        assert agent.reloads == 2


def test_reload_prints_every_problem_and_ends_with_78(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, _):
        agent.problems = [Problem("agent.toml", line, "site.id", "wrong", "mend it") for line in (3, 4)]
        out, words = shell("reload", code=78)
    assert out == ""
    assert words.splitlines()[:2] == [f"agent.toml:{line}: site.id: wrong; mend it" for line in (3, 4)]
    assert "goes on with the configuration that it has" in words.splitlines()[2]


# ---- tap ------------------------------------------------------------------------------------------------------------


def lively() -> Run:
    """A plan, an event, data with a gap, and the plan of another term."""
    run = Run()
    run.begin([group(100)])
    run.event(EventCode.START, "0.1.0", True)
    run.data([frame(100)], [Gap(0, 101, 102, Cause.DEVICE_TIMEOUT, "no answer")])
    run.begin([group(200)])
    run.data([frame(200)])
    return run


def tapped(shell: Shell, ring: Ring, envelopes: Sequence[bytes], *arguments: str) -> tuple[str, str]:
    with agent_of(shell, ring) as (agent, served):
        agent.channels["dso"].plan = envelopes[0]
        served.call(sealing(agent.channels["dso"], envelopes[1:]))
        return shell("tap", *arguments)


def test_tap_shows_records_as_they_are_sealed(shell: Shell, ring: Ring) -> None:
    out, words = tapped(shell, ring, lively().sent, "--count", "4")
    shown = [re.sub(r"^(dso )?[0-9a-f]{8}/(\d) sealed \S+Z", r"\1\2", line) for line in out.splitlines()]
    assert shown[0] == "dso 2 event start 0.1.0 True"
    assert shown[1] == "dso 3 data, 1 frames, 1 gaps"
    assert [line.split() for line in shown[2:5]] == [
        ["pv-1/ac", "W", "100", "W", "good"],
        ["pv-1/ac", "PhVphA", "230.4", "V", "good"],
        ["pv-1/ac", "Temp", "21.5", "Cel", "good"],
    ]
    assert shown[5].split(maxsplit=1) == ["pv-1/ac", "gap: cycles 101 to 102: device_timeout (no answer)"]
    assert shown[6] == "dso 4 plan of term 2, 1 devices, 1 groups, site site-1"
    assert shown[7] == "dso 5 data, 1 frames"
    assert words == ""


def test_tap_of_what_a_filter_names(shell: Shell, ring: Ring) -> None:
    out, _ = tapped(shell, ring, lively().sent, "pv-1/*/W", "--count", "2")
    assert len([line for line in out.splitlines() if line.startswith("dso ")]) == 2
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  ")] == ["W", "gap:", "W"]


def test_tap_of_a_device_by_its_name_alone(shell: Shell, ring: Ring) -> None:
    out, words = tapped(shell, ring, lively().sent, "pv-1", "--count", "1")
    assert "W" in out
    assert words == ""


def test_tap_of_a_name_that_is_not_sent_says_so(shell: Shell, ring: Ring) -> None:
    _, words = tapped(shell, ring, [*lively().sent, b"junk"], "nosuch/*", "--count", "1")
    assert words.startswith('nothing that is sent is named "nosuch/*"; ')


def test_tap_as_json(shell: Shell, ring: Ring) -> None:
    out, _ = tapped(shell, ring, lively().sent, "--json", "--count", "4")
    event, data, plan, more = map(json.loads, out.splitlines())
    assert (event["kind"], event["seq"], event["channel"]) == ("event", 2, "dso")
    assert data["frames"][0]["values"] == {"W": 100, "PhVphA": 230.4, "Temp": 21.5}
    assert (plan["plan"]["term"], more["term"]) == (2, 2)
    [line] = tapped(shell, ring, lively().sent, "*/W", "--json", "--count", "1")[0].splitlines()
    assert json.loads(line)["frames"][0]["values"] == {"W": 100}


def test_tap_of_records_that_cannot_be_read_or_whose_plan_is_not_known(shell: Shell, ring: Ring) -> None:
    run = lively()
    out, _ = tapped(shell, ring, [b"no plan", b"junk", run.sent[2]], "--count", "2")
    assert out.startswith("dso ? ")
    assert out.endswith(" data, 1 frames, 1 gaps\n")
    out, _ = tapped(shell, ring, [run.sent[0], run.sent[4]], "--count", "1")
    assert out.endswith(" data, 1 frames\n"), "the plan of another term says nothing of it"
    [line] = tapped(shell, ring, [run.sent[0], run.sent[4]], "--count", "1", "--json")[0].splitlines()
    assert "frames" not in json.loads(line)


def test_tap_of_one_channel(shell: Shell, ring: Ring, second: Ring) -> None:
    with agent_of(shell, ring, second) as (agent, served):
        served.call(sealing(agent.channels["nmi"], [second.run.sent[-1]]))
        out, _ = shell("tap", "--count", "1", "--channel", "nmi")
        assert out.startswith("nmi ")
        assert "there are: dso, nmi" in shell("tap", "--channel", "none", code=2)[1]


def test_tap_follows_a_channel_that_a_reload_made_anew(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, served):
        old, new = agent.channels["dso"], FakeChannel("dso", ring.path)

        def replace() -> None:
            agent.replace(new)
            old.seal(*ring.run.sent[1:3])  # what it seals while it ends
            new.seal(*ring.run.sent[3:5])

        served.call(when_watched(old, replace))
        out, words = shell("tap", "--count", "4")
        shown = [line.split()[1].split("/")[1] for line in out.splitlines() if line.startswith("dso")]
        assert shown == ["2", "3", "4", "5"]
        assert words == ""


def test_what_a_slow_tap_misses_is_told_and_the_plan_is_told_again(shell: Shell, ring: Ring) -> None:
    run = lively()
    more = Run(after=run)
    with agent_of(shell, ring) as (agent, served):
        channel = agent.channels["dso"]
        channel.plan = run.sent[0]

        def flood() -> None:
            """More at once than is held, then a record of a run whose plan was among what was left out."""
            channel.seal(*[run.sent[2]] * (TAP_RECORDS + 50))
            channel.plan = more.begin([group(300)])
            channel.seal(channel.plan)
            again(more.data([frame(300, w=4711)]))

        def again(envelope: bytes) -> None:
            channel.seal(envelope)
            if channel.watchers:
                asyncio.get_running_loop().call_later(0.005, again, envelope)

        served.call(when_watched(channel, flood))
        out, words = shell("tap", "*/W", "--count", str(TAP_RECORDS + 1))
    dropped = re.fullmatch(r"(\d+) records left out here: this reader is too slow\n", words)
    assert dropped is not None
    assert int(dropped[1]) >= 51
    assert out.splitlines()[-1].split() == ["pv-1/ac", "W", "4711", "W", "good"]


def test_ctrl_c_ends_tap_with_0(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, served):
        command = [sys.executable, "-m", "agent.cli", "tap", "--socket", str(served.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tap:
            served.seal(agent.channels["dso"], ring.run.sent[1])
            assert tap.stdout is not None
            assert tap.stdout.readline().startswith("dso ")
            tap.send_signal(signal.SIGINT)
            try:
                assert tap.communicate(timeout=10)[1] == ""
            finally:
                tap.kill()  # where SIGINT is ignored, as in a shell's background job, it would be waited for for ever
            assert tap.returncode == 0
        wait_for(lambda: not agent.channels["dso"].watchers, timeout=10, what="the end of the tap")


def test_whoever_reads_a_tap_may_stop(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring) as (agent, served):
        command = f"{sys.executable} -m agent.cli tap --socket {served.path}"
        with subprocess.Popen(
            f"{command} | head -1", shell=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        ) as tap:
            for _ in count():
                if agent.channels["dso"].watchers:
                    served.call(agent.channels["dso"].seal, ring.run.sent[1])
                if tap.poll() is not None:
                    break
            assert tap.stderr is not None
            assert tap.stderr.read() == b""


def test_counts_that_make_no_sense(shell: Shell) -> None:
    assert "at least 1" in shell("tap", "--count", "0", code=2)[1]
    assert "at least 1" in shell("outbox", "list", "--limit", "0", code=2)[1]


# ---- outbox ---------------------------------------------------------------------------------------------------------


def test_outbox_status_of_a_running_agent_has_its_figures(shell: Shell, ring: Ring) -> None:
    with agent_of(shell, ring):
        [found] = shell.json("outbox", "status")
        assert (found["channel"], found["pending_records"], found["pending_bytes"], found["acked"]) == (
            "dso",
            7,
            2048,
            3,
        )
        out, words = shell("outbox", "status")
    assert words == ""
    assert re.fullmatch(r"dso +7 \(2 KiB\) +\d+ d.* to position 3 +position 22 +1 MiB +4 MiB", out.splitlines()[1])


def test_outbox_status_of_files(shell: Shell, ring: Ring) -> None:
    ring.box.close()
    [found] = shell.json("outbox", "status")
    assert (found["channel"], found["pending_records"], found["acked"], found["next_pos"]) == ("dso", 16, 5, 23)
    out, words = shell("outbox", "status")
    assert words == "the agent is not running: as its files say\n"
    assert re.fullmatch(r"dso +16 \(\d.*KiB\) +\d+ d.* to position 5 +position 22 .*", out.splitlines()[1])


def test_outbox_status_of_an_agent_without_a_socket(shell: Shell, ring: Ring) -> None:
    shell.config.write_text(CONFIG.replace('"agent.sock"', '""'))
    out, words = shell("outbox", "status")
    assert words == "the agent has no socket to be asked at, running or not: as its files say\n"
    assert out.splitlines()[1].startswith("dso ")


@pytest.mark.parametrize("alive", [True, False])
def test_outbox_status_of_several_channels_of_which_one_is_spoilt(
    shell: Shell, ring: Ring, second: Ring, alive: bool
) -> None:
    ring.path.write_bytes(b"no ring")
    if alive:
        with agent_of(shell, ring, second):
            out, words = shell("outbox", "status", code=1)
    else:
        out, words = shell("outbox", "status", code=1)
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1].startswith("nmi ")
    assert "dso.ring: this file is no ring file; it is left as it is" in words
    assert [each["channel"] for each in shell.json("outbox", "status", "--channel", "nmi")] == ["nmi"]


@contextmanager
def alive_or_not(shell: Shell, alive: bool, *rings: Ring) -> Iterator[None]:
    if not alive:
        yield
        return
    with agent_of(shell, *rings) as (agent, _):
        for channel in agent.told["channels"]:
            channel["outbox"] = {"acked": 5}
        yield


@pytest.mark.parametrize("alive", [True, False])
def test_outbox_list(shell: Shell, ring: Ring, alive: bool) -> None:
    with alive_or_not(shell, alive, ring):
        rows = shell.json("outbox", "list")
        text = shell("outbox", "list")[0].splitlines()
        last = shell.json("outbox", "list", "--limit", "2")
    assert [(row["pos"], row["size"]) for row in rows] == [(pos, len(envelope)) for pos, envelope in ring.held]
    assert [row["state"] for row in rows] == ["acknowledged"] * 5 + ["pending"] * 16
    assert [row["kind"] for row in rows] == ["plan"] + ["data"] * 20
    assert (rows[-2]["frames"], rows[-2]["gaps"], rows[5]["frames"]) == (0, 1, 2)
    assert rows[3]["sealed"].startswith("2025-11-24T")
    assert rows[3]["id"].startswith(f"{ring.run.sealer.stream.hex()}-4-")
    assert last == rows[-2:]
    assert len(text) == len(rows) + 1
    assert re.fullmatch(r" +2  2025\S+Z +data +\d+  acknowledged  2 frames, 0 gaps +\S+", text[2])


@pytest.mark.parametrize("alive", [True, False])
def test_outbox_export_is_what_is_held(shell: Shell, ring: Ring, tmp_path: Path, alive: bool) -> None:
    with alive_or_not(shell, alive, ring):
        _, words = shell("outbox", "export", str(tmp_path / "all.cbor"))
    assert (tmp_path / "all.cbor").read_bytes() == b"".join(envelope for _, envelope in ring.held)
    assert words == "21 records exported\n"


def test_an_export_larger_than_a_line_of_the_socket(shell: Shell, tmp_path: Path) -> None:
    big = Ring(tmp_path / "state" / "dso.ring")
    for _ in range(400):
        big.data(60)
    assert sum(len(envelope) for _, envelope in big.held) > 150_000, "more than one line"
    with agent_of(shell, big):
        shell("outbox", "export", str(tmp_path / "all.cbor"))
    assert (tmp_path / "all.cbor").read_bytes() == b"".join(envelope for _, envelope in big.held)


@pytest.mark.parametrize("alive", [True, False])
def test_with_several_channels_one_is_to_be_named(
    shell: Shell, ring: Ring, second: Ring, tmp_path: Path, alive: bool
) -> None:
    with alive_or_not(shell, alive, ring, second):
        for command in (["outbox", "list"], ["outbox", "export", str(tmp_path / "x")]):
            assert "name one with --channel: dso, nmi" in shell(*command, code=2)[1]
            assert "there are: dso, nmi" in shell(*command, "--channel", "none", code=2)[1]
        assert "there are: dso, nmi" in shell("outbox", "status", "--channel", "none", code=2)[1]
        assert not (tmp_path / "x").exists()
        assert len(shell.json("outbox", "list", "--channel", "nmi")) == 2


@pytest.mark.parametrize("alive", [True, False])
def test_an_export_onto_any_outbox_is_refused(
    shell: Shell, ring: Ring, second: Ring, tmp_path: Path, alive: bool
) -> None:
    before = [made.path.read_bytes() for made in (ring, second)]
    (tmp_path / "link").symlink_to(second.path)
    (tmp_path / "hard").hardlink_to(ring.path)
    with alive_or_not(shell, alive, ring, second):
        for target in (ring.path, second.path, tmp_path / "link", tmp_path / "hard"):
            assert "is an outbox itself" in shell("outbox", "export", str(target), "--channel", "dso", code=2)[1]
    assert [made.path.read_bytes() for made in (ring, second)] == before


def test_an_export_whose_agent_goes_leaves_the_earlier_copy(shell: Shell, tmp_path: Path) -> None:
    target, path = tmp_path / "all.cbor", tmp_path / "agent.sock"
    target.write_bytes(b"earlier")
    said = [{"channel": "dso", "ring": "/x", "acked": 0}, {"records": [[1, "AAAA"]]}, {"records": [[2, "AAAA"]]}]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        command = [sys.executable, "-m", "agent.cli", "outbox", "export", str(target), "--socket", str(path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as export:
            peer, _ = listening.accept()
            with peer:
                peer.sendall("".join(json.dumps(line) + "\n" for line in said).encode())
            assert "went away before it had answered" in export.communicate(timeout=10)[1]
            assert export.returncode == 69
    assert target.read_bytes() == b"earlier"
    assert not (tmp_path / "all.cbor.new").exists()


def test_the_files_of_an_agent_that_is_down_stay_as_they_are(shell: Shell, ring: Ring, tmp_path: Path) -> None:
    ring.box.close()
    os.utime(ring.path, ns=(1, 1))
    before = ring.path.read_bytes()
    shell("outbox", "status")
    shell("outbox", "list")
    shell("outbox", "export", str(tmp_path / "copy"))
    assert ring.path.stat().st_mtime_ns == 1
    assert ring.path.read_bytes() == before
    assert [each.name for each in ring.path.parent.iterdir()] == ["dso.ring"]


OUTCOME = {"stored": 3, "duplicates": 1, "refused": 0, "in_turn": 0, "position": 9, "up_to": 21, "done": True,
           "missing": 0, "ranges": [], "held_since": None}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--run", "ab" * 16, "--from", "3", "--to", "9"], Selection(run="ab" * 16, first=3, last=9)),
        (["--run", "abababab"], Selection(run="abababab")),
        (["--refused"], Selection(refused=True)),
        (
            ["--since", "2026-01-31T09:00:00Z", "--until", "2026-01-31T10:00:00.5+01:00"],
            Selection(since=1_769_850_000 * 10**9, until=1_769_850_000 * 10**9 + 500_000_000),
        ),
    ],
)
def test_outbox_resend_asks_the_agent(shell: Shell, ring: Ring, arguments: list[str], asked: Selection) -> None:
    agent = running(ring)
    channel = agent.channels["dso"]
    channel.resent = [{"stored": 0, "duplicates": 0, "refused": 0, "in_turn": 0, "position": 1, "up_to": 21,
                       "waits": "no route"}, OUTCOME]  # fmt: skip
    with serving(agent, shell.config.parent / "agent.sock"):
        out, err = shell("outbox", "resend", *arguments)
        assert out == "4 records resent, 1 of them the broker says it has already\n"
        assert err == "position 1 of 21: 0 records resent; waits: no route\n"
        assert shell.json("outbox", "resend", *arguments) == [
            {"stored": 3, "duplicates": 1, "refused": 0, "in_turn": 0, "missing": 0, "ranges": [], "held_since": None}
        ]
    assert channel.resends == [asked, asked]


def test_outbox_resend_of_so_long_ago(shell: Shell, ring: Ring) -> None:
    agent = running(ring)
    agent.channels["dso"].resent = [OUTCOME]
    with serving(agent, shell.config.parent / "agent.sock"):
        before = time.time_ns()
        shell("outbox", "resend", "--since", "2h")
    [asked] = agent.channels["dso"].resends
    assert 0 <= asked.since - (before - 7200 * 10**9) <= 60 * 10**9


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"missing": 4, "ranges": [["ab" * 16, 3, 6]]}, "4 records are not held here: 3 to 6 of run abababab"),
        ({"held_since": 0}, "what was sealed before 1970-01-01T00:00:00.000Z is not held here any more"),
        ({"refused": 2}, "the broker refuses 2 records still"),
        ({"stored": 0, "duplicates": 0}, "no such record of run abababab is held here"),
    ],
)
def test_outbox_resend_says_what_could_not_be(shell: Shell, ring: Ring, outcome: dict[str, Any], words: str) -> None:
    agent = running(ring)
    agent.channels["dso"].resent = [{**OUTCOME, **outcome}]
    with serving(agent, shell.config.parent / "agent.sock"):
        assert words in shell("outbox", "resend", "--run", "ab" * 16, code=1)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--refused", "--from", "3"], "--from and --to belong to --run"),
        (["--refused", "--until", "3s"], "--until belongs to --since"),
        (["--since", "yesterday"], '"yesterday" is no time'),
        (["--since", "2026-01-31T09:00:00"], "is no time"),
        (["--run", "ab"], "first 8 hex digits"),
        (["--run", "ab" * 16, "--from", "5", "--to", "4"], "begins behind its end"),
    ],
)
def test_outbox_resend_refuses_what_makes_no_sense(shell: Shell, ring: Ring, arguments: list[str], words: str) -> None:
    with serving(running(ring), shell.config.parent / "agent.sock"):
        assert words in shell("outbox", "resend", *arguments, code=2)[1]


def test_outbox_resend_needs_the_agent_and_one_channel(shell: Shell, ring: Ring, second: Ring) -> None:
    assert "no agent answers" in shell("outbox", "resend", "--refused", code=69)[1]
    agent = running(ring, second)
    with serving(agent, shell.config.parent / "agent.sock"):
        assert "there are several channels" in shell("outbox", "resend", "--refused", code=2)[1]
        agent.channels["nmi"].refuses = "another resend of this channel is under way"
        assert "under way; a hint" in shell("outbox", "resend", "--refused", "--channel", "nmi", code=1)[1]


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_no_outbox_yet_is_a_finding(shell: Shell, command: list[str]) -> None:
    assert "the agent makes it at its first start" in shell(*command, code=1)[1]
