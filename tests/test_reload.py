"""A changed configuration while the agent runs: judged whole, refused whole, and else carried out without losing what
did not change. Real processes; the oracle decides.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.config import load
from agent.errors import ConfigError
from agent.reload import changes, refused
from agent.running import Running
from agent.signer import KeySigner
from testbed.processes import Process, ProcessError, edge_agent, wait_for
from testbed.rig import Rig, command, told
from tests.runs import SECRET

Json = dict[str, Any]
ALL_OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}
SECOND = """
[[channel]]
id = "market"
transport = "nats"
servers = ["{url}"]
send = ["grid-meter/energy/*"]
seal_within = "300ms"
outbox = {{ size = "16MiB" }}
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, channels={"dso": ["pv-1/*", "grid-meter/*"]}) as running:
        running.agent.start().wait_ready()
        running.wait_for_state()
        yield running


def edit(rig: Rig, *changes: tuple[str, str], more: str = "") -> None:
    text = rig.config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    rig.config.write_text(text + more)


def reload(rig: Rig) -> list[str]:
    return command("reload", "--config", rig.config).splitlines()


def let_it_work(seconds: float) -> None:
    time.sleep(seconds)  # what the agent does in that time is what is judged


def concluded(rig: Rig, *channels: str) -> list[list[Json]]:
    """Stop the agent, and have each channel verified and held against what was served."""
    rig.wait_for_state()
    rig.stop()
    consumed = [rig.consumed(channel=channel) for channel in channels]
    for lines in consumed:
        assert lines[-1]["report"]["levels"] == ALL_OK
        account = rig.judge(lines)
        assert account.problems == []
    return consumed


def terms(lines: list[Json]) -> list[int]:
    return sorted({line["plan"]["term"] for line in lines if "plan" in line})


def gaps(lines: list[Json], device: str, group: str) -> dict[str, int]:
    """Cycles in gaps by cause."""
    found: dict[str, int] = {}
    for line in lines:
        for gap in line.get("gaps", []):
            if (gap["device"], gap["group"]) == (device, group):
                found[gap["cause"]] = found.get(gap["cause"], 0) + gap["to"] - gap["from"] + 1
    return found


def events(lines: list[Json], code: str) -> list[list[Any]]:
    return [line["event"]["details"] for line in lines if line.get("event", {}).get("code") == code]


# ---- carried out --------------------------------------------------------------------------------------------------


def test_only_what_changed_restarts_and_old_terms_close_exactly(rig: Rig) -> None:
    let_it_work(0.7)
    edit(rig, ('energy = { every = "500ms", points = ["203', 'energy = { every = "700ms", points = ["203'))
    assert reload(rig) == ["connection other: changed, restarted"]
    let_it_work(1.5)
    (lines,) = concluded(rig, "dso")
    assert len({line["stream"] for line in lines if "stream" in line}) == 1, "the channel goes on in its run"
    assert set(gaps(lines, "pv-1", "power")) <= {"overrun"}
    assert sum(gaps(lines, "pv-1", "power").values()) <= 2, "a machine under load may miss a mark or two"
    (first, *_, last) = [line["plan"] for line in lines if "plan" in line]
    periods = [
        group["schedule"]["period"]
        for plan in (first, last)
        for group in plan["groups"]
        if (group["device"], group["group"]) == ("grid-meter", "energy")
    ]
    assert periods == [500_000_000, 700_000_000]


def test_a_channel_that_comes_and_goes_leaves_the_other_as_it_is(rig: Rig) -> None:
    edit(rig, more=SECOND.format(url=rig.broker.url))
    assert reload(rig) == ["channel market: new"]
    rig.wait_for_state()
    let_it_work(1.2)
    edit(rig, (SECOND.format(url=rig.broker.url), ""))
    assert reload(rig) == ["channel market: removed"]
    wait_for(lambda: "market" not in rig.agent.status, timeout=5, what="the status to leave it out")
    dso, market = concluded_with_market_gone(rig)
    assert len({line["stream"] for line in dso if "stream" in line}) == 1
    assert {device["id"] for line in market if "plan" in line for device in line["plan"]["devices"]} == {"grid-meter"}
    assert {frame["group"] for line in market for frame in line.get("frames", [])} == {"energy"}
    assert events(market, "stop") == [["configuration"]]


def concluded_with_market_gone(rig: Rig) -> tuple[list[Json], list[Json]]:
    (dso,) = concluded(rig, "dso")
    market = rig.consumed(channel="market", until_idle=True)
    assert market[-1]["report"]["levels"] == ALL_OK
    return dso, market


def test_a_changed_channel_begins_a_new_run_behind_the_old_one(rig: Rig) -> None:
    let_it_work(0.5)
    edit(rig, ('seal_within = "200ms"', 'seal_within = "400ms"'))
    rig.agent.signal(signal.SIGHUP)
    wait_for(lambda: "channel dso: changed, restarted" in rig.agent.log(), timeout=10, what="the reload")
    let_it_work(1.0)
    (lines,) = concluded(rig, "dso")
    assert [run["joins"] for run in told(lines, "runs")] == ["first", "continuous"]
    assert [state for state in rig.agent.states if not state.startswith(("STATUS", "MONOTONIC"))] == [
        *("READY=1", "RELOADING=1", "READY=1", "STOPPING=1")
    ]


def test_a_subject_that_changes_and_changes_back_holds_whole_runs(rig: Rig) -> None:
    """Within JetStream's window for duplicates: a record that went to one subject is refused on another."""
    edit(rig, ('seal_within = "200ms"', 'seal_within = "100ms"'))
    reload(rig)
    rig.wait_for_state()
    rig.broker.signal(signal.SIGSTOP)
    let_it_work(7)  # more records wait than are sent without an acknowledgement
    edit(rig, (f'site = {{ id = "{rig.SITE}" }}', 'site = { id = "elsewhere" }'))
    rig.agent.signal(signal.SIGHUP)
    let_it_work(0.5)
    rig.broker.signal(signal.SIGCONT)
    wait_for(lambda: "reload=2" in rig.agent.log(), timeout=10, what="the reload")
    rig.wait_for_state()
    edit(rig, ('site = { id = "elsewhere" }', f'site = {{ id = "{rig.SITE}" }}'))
    reload(rig)
    rig.wait_for_state()
    rig.stop()

    def consumed(subject: str, code: int = 0) -> list[Json]:
        source = f"{rig.broker.url}/{rig.STREAM}?subject={subject}"
        found = command("tail", source, "--did", rig.did, "--jsonl", "--until-idle", code=code)
        return [json.loads(line) for line in found.splitlines()]

    assert consumed("dx.>")[-1]["report"]["levels"] == ALL_OK
    away = consumed("dx.elsewhere.dso")
    assert away[-1]["report"]["levels"] == ALL_OK
    assert events(away, "stop") == [["configuration"]]
    home = consumed(f"dx.{rig.SITE}.dso", code=1)
    assert events(home, "stop") == [["configuration"], ["configuration"], ["SIGTERM"]]
    (run,) = {line["stream"] for line in away if "stream" in line}
    assert [hole["stream"] for hole in told(home, "holes")] == [run], "which is elsewhere, and nothing else"


def test_a_channel_that_delivers_elsewhere_holds_up_nobody_else(rig: Rig) -> None:
    edit(rig, more=SECOND.format(url=rig.broker.url))
    reload(rig)
    rig.wait_for_state()
    rig.broker.signal(signal.SIGSTOP)
    edit(rig, ('id = "market"', 'id = "market"\nsubject = "dx.elsewhere"'))
    let_it_work(0.5)  # something waits, and nobody takes it
    assert reload(rig) == ["channel market: changed, restarted"]
    rig.broker.signal(signal.SIGCONT)
    (lines,) = concluded(rig, "dso")
    lost = sum(gaps(lines, "pv-1", "power").values())
    assert lost < 10, "of 30 marks in the time that it is tried to deliver"


def test_a_channel_that_is_put_back_while_it_still_delivers(rig: Rig) -> None:
    edit(rig, more=SECOND.format(url=rig.broker.url))
    reload(rig)
    rig.wait_for_state()
    with_market = rig.config.read_text()
    rig.broker.signal(signal.SIGSTOP)
    edit(rig, (SECOND.format(url=rig.broker.url), ""))
    assert reload(rig) == ["channel market: removed"]
    rig.config.write_text(with_market)
    assert reload(rig) == ["channel market: new"]
    rig.broker.signal(signal.SIGCONT)
    _, market = concluded(rig, "dso", "market")
    assert [run["joins"] for run in told(market, "runs")] == ["first", "continuous"]


def test_a_tap_shows_how_a_run_ends_and_the_next_begins(rig: Rig, tmp_path: Path) -> None:
    tapped = tmp_path / "tapped"
    command = [*edge_agent(), "tap", "--json", "--config", str(rig.config)]
    with Process(command, name="tap", folder=tmp_path, output=tapped) as tap:
        wait_for(lambda: tapped.stat().st_size > 0, timeout=10, what="the tap to show something")
        edit(rig, ('seal_within = "200ms"', 'seal_within = "400ms"'))
        reload(rig)
        wait_for(lambda: ' "plan": {' in tapped.read_text(), timeout=10, what="the next run's plan")
        tap.signal(signal.SIGINT)
        assert tap.wait(10) == 0
    shown = [json.loads(line) for line in tapped.read_text().splitlines()]
    runs: dict[str, list[int]] = {line["stream"]: [] for line in shown}
    for line in shown:
        runs[line["stream"]].append(line["seq"])
    old, new = runs.values()
    assert old == list(range(old[0], old[-1] + 1))
    assert new == list(range(1, new[-1] + 1))
    assert events([line for line in shown if line["stream"] == next(iter(runs))], "stop") == [["configuration"]]


def test_points_that_a_channel_no_longer_sends_leave_it_at_once(rig: Rig) -> None:
    let_it_work(0.4)
    edit(rig, ('["pv-1/*", "grid-meter/*"]', '["pv-1/power/W", "grid-meter/*"]'))
    assert reload(rig) == ["channel dso: sends other points", "connection plant: changed, restarted"]
    let_it_work(0.8)
    (lines,) = concluded(rig, "dso")
    last = [line["plan"] for line in lines if "plan" in line][-1]
    points = {
        group["group"]: [p["name"] for p in group["points"]] for group in last["groups"] if group["device"] == "pv-1"
    }
    assert points == {"power": ["W"]}


def test_many_reloads_under_load_lose_nothing(rig: Rig) -> None:
    fast, slow = 'energy = { every = "500ms", points = ["103', 'energy = { every = "300ms", points = ["103'
    for turn in range(8):
        edit(rig, (fast, slow) if turn % 2 == 0 else (slow, fast))
        reload(rig)
        let_it_work(0.15)
    (lines,) = concluded(rig, "dso")
    assert terms(lines)[-1] >= 9


def test_a_stop_in_the_middle_of_a_reload_ends_in_order(rig: Rig) -> None:
    edit(rig, ('seal_within = "200ms"', 'seal_within = "400ms"'), more=SECOND.format(url=rig.broker.url))
    rig.agent.signal(signal.SIGHUP)
    rig.stop()
    lines = rig.consumed(until_idle=True)
    assert lines[-1]["report"]["levels"] == ALL_OK


# ---- refused ------------------------------------------------------------------------------------------------------


def test_a_bad_file_is_refused_whole_said_and_stated(rig: Rig) -> None:
    good = rig.config.read_text()
    edit(rig, ('every = "100ms"', 'every = "100"'), ("[[channel]]", "nonsense = 1\n[[channel]]"))
    for _ in range(3):  # anybody in the socket's group may ask; it is stated once
        with pytest.raises(ProcessError, match=r"ended with 78.*agent\.toml:\d+.*every(?s:.*)nonsense"):
            reload(rig)
    rig.config.write_text(good)
    assert reload(rig) == []
    (lines,) = concluded(rig, "dso")
    assert events(lines, "configuration_refused") == [["2 problems"]]
    assert terms(lines) == [1]


def test_identity_and_outbox_cannot_change_under_a_running_agent(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes((tmp_path / "key").read_bytes())
    edit(
        rig,
        ("file:key", "file:other"),
        ('state = "state"', 'state = "elsewhere"'),
        ('"agent.sock"', '"other.sock"'),
        ('"16MiB"', '"32MiB"'),
    )
    with pytest.raises(ProcessError) as refusal:
        command("reload", "--config", rig.config, "--socket", tmp_path / "agent.sock")
    for key, text in {
        "identity.key": "the key of a running agent",
        "agent.state": "the outboxes of a running",
        "agent.socket": "the socket of a running",
        r"channel\[0\].outbox.size": "an outbox keeps the size .*16MiB",
    }.items():
        assert re.search(rf"agent\.toml:\d+: {key}: {text}", str(refusal.value)), key
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("identity", "refused_at"),
    [
        ('key = "keystore:other", passphrase = { env = "P" }', ["key"]),
        ('key = "keystore:key", passphrase = { env = "Q" }', ["passphrase"]),
        ('key = "credential:key"', ["key", "passphrase"]),
        ('key = "keystore:key", passphrase = { env = "P" }', []),
    ],
)
def test_the_custody_of_a_running_agents_key_does_not_change(
    tmp_path: Path, identity: str, refused_at: list[str]
) -> None:
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text(BASE.replace('key = "file:key"', 'key = "keystore:key", passphrase = { env = "P" }'))
    after.write_text(BASE.replace('key = "file:key"', identity))
    found = refused(load(before), load(after))
    assert [problem.key for problem in found] == [f"identity.{key}" for key in refused_at]
    assert all("does not change" in problem.what and problem.line for problem in found)


def test_a_channel_that_cannot_be_opened_is_a_reason_to_refuse(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "state" / "market.ring").write_bytes(b"something else")
    edit(rig, more=SECOND.format(url=rig.broker.url))
    with pytest.raises(ProcessError, match=r"ended with 78.*no ring file"):
        reload(rig)
    (lines,) = concluded(rig, "dso")
    assert terms(lines) == [1]


@pytest.mark.anyio
async def test_an_adapter_that_cannot_be_made_is_a_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET.hex())
    (tmp_path / "key").chmod(0o600)
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text(BASE)
    after.write_text(BASE.replace("127.0.0.1:2", "127.0.0.1:9"))
    old, new = load(before), load(after)
    running = Running(old, signer=KeySigner(SECRET), clock=SystemClock())
    change = changes(old, new)
    broken = [replace(plan, class_path="tests.test_reload:Refusing") for plan in change.sources_new]
    told = f"^{after}:4: connection.b: the adapter cannot be made: RuntimeError: no such wire; "
    with pytest.raises(ConfigError, match=told):
        running._new_sources(replace(change, sources_new=tuple(broken)), new)


class Refusing:
    def __init__(self, *arguments: Any) -> None:
        raise RuntimeError("no such wire")


# ---- what a change is ---------------------------------------------------------------------------------------------

BASE = """\
version = 1
site = { id = "park" }
identity = { key = "file:key" }
connection = { a = { url = "modbus+tcp://127.0.0.1:1" }, b = { url = "modbus+tcp://127.0.0.1:2" } }
[[device]]
id = "one"
connection = "a"
groups = { g = { every = "1s", points = [{ name = "W", at = "40001", type = "int16" }] } }
[[device]]
id = "two"
connection = "b"
groups = { g = { every = "1s", points = [{ name = "W", at = "40001", type = "int16" }] } }
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:4222"]
send = ["*"]
"""


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("# nothing", "# at all", []),
        ('send = ["*"]', 'send = ["one/*", "two/*"]', []),
        ('send = ["*"]', 'send = ["*", "*"]', []),
        (
            'b = { url = "modbus+tcp://127.0.0.1:2" }',
            'b = { url = "modbus+tcp://127.0.0.1:2" }, c = { url = "modbus+tcp://127.0.0.1:3" }',
            [],
        ),
        ('send = ["*"]', 'send = ["one/*"]', ["channel dso: sends other points", "connection b: removed"]),
        ("127.0.0.1:2", "127.0.0.1:9", ["connection b: changed, restarted"]),
        ("4222", "4223", ["channel dso: changed, restarted"]),
        ("version = 1", 'version = 1\nclock = { wait = "5s" }', ["clock: waited for 5s at start"]),
        ('id = "dso"', 'id = "tso"', ["channel dso: removed", "channel tso: new"]),
        (
            '"park"',
            '"yard"',
            [
                "channel dso: changed, restarted",
                *(f"connection {c}: changed, restarted" for c in "ab"),
                "site: changed",
            ],
        ),
    ],
)
def test_what_changed_is_told_in_words(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text(BASE)
    after.write_text(BASE.replace(old, new))
    change = changes(load(before), load(after))
    assert list(change.lines) == lines
    same = load(before).digest_text() == load(after).digest_text()
    assert same == (old in ("# nothing", 'b = { url = "modbus+tcp://127.0.0.1:2" }') or new == 'send = ["*", "*"]')
    assert refused(load(before), load(after)) == []
