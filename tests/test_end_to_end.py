"""The whole way, with real processes: what is killed, silenced or filled up loses nothing that is not stated.

Random moments come from a seed that is printed; EDGE_AGENT_SEED=N runs them again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest

from agent.verifier import WINDOW
from testbed.child import ROOT
from testbed.processes import Process, Site, wait_for
from testbed.rig import Rig, command, told

Json = dict[str, Any]
OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as running:
        yield running


def pause(seconds: float) -> None:
    """Let the agent work: what it does in that time is what the test is about."""
    time.sleep(seconds)


def report_of(lines: list[Json]) -> Json:
    report: Json = lines[-1]["report"]
    return report


def conclude(rig: Rig, *, until_idle: bool = False) -> list[Json]:
    """Have all delivered, stop the agent in order, and see that nothing is wrong; returns what the consumer printed."""
    if not rig.broker.alive:
        rig.broker.start()
    rig.wait_for_state(timeout=40)
    rig.stop()
    lines = rig.consumed(until_idle=until_idle)
    account = rig.judge(lines)
    assert account.problems == []
    assert account.good
    assert report_of(lines)["levels"] == OK
    print({name: getattr(account, name) for name in ("records", "runs", "cycles_present", "gaps", "values_checked")})
    return lines


def events(lines: list[Json], code: str) -> list[list[Any]]:
    return [line["event"]["details"] for line in lines if line.get("event", {}).get("code") == code]


def frames(lines: list[Json], device: str) -> list[Json]:
    return [frame for line in lines for frame in line.get("frames", []) if frame["device"] == device]


def causes(lines: list[Json], device: str) -> set[str]:
    return {gap["cause"] for line in lines for gap in line.get("gaps", []) if gap["device"] == device}


# ---- what comes and goes ------------------------------------------------------------------------------------------


def test_starts_without_broker_and_device_and_survives_both(rig: Rig) -> None:
    rig.site.kill()
    rig.broker.kill()
    rig.agent.start().wait_ready(timeout=10)  # nobody is there to be waited for
    pause(0.5)
    rig.site.start()
    wait_for(lambda: rig.state()[2] == 0, timeout=10, what="the devices to answer")
    rig.broker.start()
    rig.wait_for_state()
    pause(0.5)
    rig.site.kill()
    wait_for(lambda: rig.state()[2] == 2, timeout=10, what="the agent to notice")
    rig.site.start()
    lines = conclude(rig)
    assert causes(lines, "pv-1") == {"link_down"}
    assert len(frames(lines, "pv-1")) > 3


def test_a_silent_device_does_not_disturb_the_other(rig: Rig) -> None:
    rig.agent.start().wait_ready()
    rig.wait_for_state()
    rig.site.command("silence 2")
    wait_for(lambda: rig.state()[2] == 1, timeout=10, what="the agent to notice")
    pause(1.0)
    rig.site.command("resume 2")
    rig.wait_for_state()
    rig.site.command("exception 2 4")
    wait_for(lambda: rig.state()[2] == 1, timeout=10, what="the agent to notice")
    rig.site.command("resume 2")
    lines = conclude(rig)
    assert {"device_timeout", "device_exception"} <= causes(lines, "grid-meter") <= {
        "device_timeout", "device_exception", "overrun",
    }  # fmt: skip
    assert causes(lines, "pv-1") == set()
    late = sorted(frame["late_us"] for frame in frames(lines, "pv-1"))
    assert late[len(late) * 9 // 10] < 20_000
    assert late[-1] < 100_000  # no cycle waits for the other device, whose time-out is 250 ms


def test_the_broker_is_killed_with_records_in_flight(tmp_path: Path, chance: random.Random) -> None:
    with Rig(tmp_path, seal_within="100ms") as rig:
        rig.agent.start().wait_ready()
        for _ in range(6):
            pause(chance.uniform(0.1, 0.9))
            rig.broker.kill()
            rig.broker.start()
        lines = conclude(rig)
    assert len(events(lines, "start")) == 1
    assert causes(lines, "pv-1") | causes(lines, "grid-meter") <= {"overrun"}


# ---- kill -9, and stops in order ------------------------------------------------------------------------------------


def test_an_agent_that_is_killed_loses_nothing_unstated(rig: Rig, chance: random.Random) -> None:
    for _ in range(5):
        rig.agent.start()
        pause(chance.uniform(0.4, 1.8))
        rig.agent.kill()
    rig.agent.start().wait_ready()
    lines = conclude(rig)
    starts = events(lines, "start")
    assert [clean for _, clean in starts] == [False] * len(starts)
    assert [run["joins"] for run in told(lines, "runs")][1:] == ["continuous"] * (len(told(lines, "runs")) - 1)


def test_stops_in_order_while_the_broker_is_away_and_goes_on_where_it_was(rig: Rig) -> None:
    rig.agent.start().wait_ready()
    rig.wait_for_state()
    rig.broker.kill()
    pause(0.8)
    exported = rig.folder / "running.evidence"
    command("outbox", "export", exported, "--config", rig.config)
    assert json.loads(command("verify", exported, "--did", rig.did, "--json"))["levels"] == OK
    began = time.monotonic()
    rig.stop(timeout=10)
    assert time.monotonic() - began < 10

    exported = rig.folder / "stopped.evidence"
    command("outbox", "export", exported, "--config", rig.config)
    report = json.loads(command("verify", exported, "--did", rig.did, "--json"))
    assert report["levels"] == OK

    rig.agent.start().wait_ready()
    lines = conclude(rig)
    assert [clean for _, clean in events(lines, "start")] == [False, True]  # the first start follows nothing
    assert [run["joins"] for run in told(lines, "runs")] == ["first", "continuous"]
    before = [line for line in lines if line.get("stream") == told(lines, "runs")[0]["stream"]]
    assert len(before) == report["records"]
    assert before[-1]["event"]["code"] == "stop"


# ---- sent again by order ------------------------------------------------------------------------------------------


def at_broker(rig: Rig, change: Callable[[Any], Awaitable[Any]]) -> Any:
    """Do something to the stream, as its operator."""

    async def main() -> Any:
        client = await nats.connect(rig.broker.url)
        try:
            return await change(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(main())


def changed(rig: Rig, **settings: Any) -> None:
    """Change the stream's settings."""

    async def change(jetstream: Any) -> None:
        found = (await jetstream.stream_info(rig.STREAM)).config
        await jetstream.update_stream(found.evolve(**settings))

    at_broker(rig, change)


def read_to_the_end(rig: Rig, *, code: int) -> list[Json]:
    found = command("tail", *rig.source, "--until-idle", "--jsonl", code=code)
    return [json.loads(line) for line in found.splitlines()]


def test_what_a_stream_lost_is_sent_again_by_order(tmp_path: Path) -> None:
    with Rig(tmp_path, seal_within="100ms") as rig:
        _lose_and_resend(rig)


def _lose_and_resend(rig: Rig) -> None:
    changed(rig, duplicate_window=0.1)  # else it drops what it remembers, gone or not
    rig.agent.start().wait_ready()
    rig.wait_for_state()
    wait_for(lambda: _delivered(rig) > 12 + WINDOW, timeout=30, what="more records than a consumer waits with")

    async def delete(jetstream: Any) -> None:
        for number in (4, 5, 6, 9):
            await jetstream.delete_msg(rig.STREAM, number)

    at_broker(rig, delete)
    lines = read_to_the_end(rig, code=1)
    assert {hole["state"] for hole in told(lines, "holes")} == {"failed"}
    assert sum(hole["missing"] for hole in told(lines, "holes")) == 4
    run = told(lines, "runs")[0]["stream"]

    numbers = ["--run", run[:8], "--from", "4", "--to", "9"]
    arguments = ["outbox", "resend", "--channel", "dso", *numbers, "--json", "--config", str(rig.config)]
    stored = 0
    deadline = time.monotonic() + 20
    while stored < 4:  # until the stream has forgotten the ids
        assert time.monotonic() < deadline
        outcome = json.loads(command(*arguments))
        assert outcome["stored"] + outcome["duplicates"] == 6
        stored += outcome["stored"]
    lines = read_to_the_end(rig, code=0)
    assert {hole["state"] for hole in told(lines, "holes")} == {"filled"}

    missing = command(*arguments[:4], "--run", run, "--from", "1000000", "--to", "1000002", *arguments[-2:], code=1)
    assert missing == "0 records resent\n"
    conclude(rig)
    assert "broker lost" not in rig.agent.log()
    command(*arguments, code=69)  # the agent is down


def _delivered(rig: Rig) -> int:
    found = re.search(r"(\d+) delivered", rig.agent.status)
    return int(found[1]) if found else 0


def test_what_was_refused_for_good_is_stated_and_sent_again_once_the_limit_is_raised(rig: Rig) -> None:
    """Even while the server takes nothing at all, plans included."""
    rig.agent.start().wait_ready()
    rig.wait_for_state()
    changed(rig, max_msg_size=20)
    wait_for(lambda: re.search(r"([5-9]|\d\d) records refused", rig.agent.status), timeout=30, what="refusals")
    changed(rig, max_msg_size=-1)
    before = _delivered(rig)
    wait_for(lambda: _delivered(rig) > before + 3, timeout=30, what="delivery to go on")
    lines = read_to_the_end(rig, code=0)
    assert {(hole["state"], hole["cause"]) for hole in told(lines, "holes")} == {("accounted", "refused")}
    missing = sum(hole["missing"] for hole in told(lines, "holes"))
    assert missing >= 5

    words = command("outbox", "resend", "--refused", "--config", rig.config)
    assert int(words.split()[0]) >= missing
    lines = conclude(rig)
    assert {hole["state"] for hole in told(lines, "holes")} <= {"filled"}, "or they came within the window"
    assert rig.agent.log().count("broker refuses a record for good") <= 2


# ---- a full outbox ------------------------------------------------------------------------------------------------

_LOAD_UNITS = range(10, 18)
_LOAD_POINTS = [
    {"model": None, "name": f"Q{i}", "address": i, "type": "uint64", "size": 4, "sf_address": None} for i in range(117)
]


@pytest.mark.slow
def test_an_outbox_that_laps_states_what_it_dropped(tmp_path: Path) -> None:
    """Many numbers of 64 bits, which overlap in the 120 registers of a request, so that it is full soon; and a kill."""
    points = ", ".join(f'{{ name = "Q{i}", at = "holding:{i}", type = "uint64" }}' for i in range(len(_LOAD_POINTS)))
    devices = "".join(
        f'[[device]]\nid = "load-{unit}"\nconnection = "{"plant" if unit % 2 else "other"}"\nunit = {unit}\n'
        f'groups = {{ all = {{ every = "10ms", points = [{points}] }} }}\n'
        for unit in _LOAD_UNITS
    )
    units = {f"load-{unit}": unit for unit in _LOAD_UNITS}
    site = Site(tmp_path, plain=len(_LOAD_UNITS), plain_registers=120)
    options: Json = {"devices": devices, "units": units, "site": site, "seal_within": "100ms", "outbox": "5MiB"}
    with Rig(tmp_path, **options) as rig:
        rig.agent.start().wait_ready()
        rig.wait_for_state()
        rig.broker.kill()
        before, waiting = 0, rig.state()[0]
        deadline = time.monotonic() + 60
        while waiting >= before and time.monotonic() < deadline:  # until a segment is given up
            before = waiting
            pause(0.2)
            waiting = rig.state()[0]
        rig.agent.kill()
        rig.broker.start()
        rig.agent.start().wait_ready()
        rig.wait_for_state()
        rig.stop()
        lines = rig.consumed()
        account = rig.judge(lines, points={str(point["name"]): point for point in _LOAD_POINTS})
    print(account.records, account.records_withdrawn, account.gaps, account.cycles_present)
    assert account.problems == []
    assert account.records_withdrawn > 0
    assert account.gaps["overflow"] > 0
    assert {hole["state"] for hole in told(lines, "holes")} == {"accounted"}
    assert report_of(lines)["failed"] == 0


# ---- the demo -------------------------------------------------------------------------------------------------------


class Demo:
    """A demo under way; everything that it starts carries its mark."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = f"DEMO_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        command_line = [sys.executable, "-m", "testbed.demo", *arguments]
        self.output, self.words = folder / f"{value}.out", folder / f"{value}.err"
        with self.output.open("wb") as out, self.words.open("wb") as err:
            environment = {**os.environ, name: value}
            self.process = subprocess.Popen(command_line, cwd=ROOT, stdout=out, stderr=err, env=environment)

    def wait_for(self, pattern: str, timeout: float = 40) -> None:
        """Return once it printed this."""
        wait_for(
            lambda: bool(re.search(pattern, self.output.read_text())) or self.process.poll() is not None,
            timeout=timeout,
            what=f"{pattern!r} of a demo",
        )
        assert self.process.poll() is None, str(self)

    def wait(self, timeout: float = 40) -> int:
        """Its exit code; then nothing that it started is there any more."""
        code = self.process.wait(timeout)
        assert self.left() == {}
        return code

    def close(self) -> None:
        """End it if it still runs; what it started goes with it."""
        self.process.kill()
        self.process.wait()

    def left(self) -> dict[int, str]:
        """What runs with its mark: command lines by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line:  # not one that ended and is not reaped
                        found[int(folder.name)] = line
        return found

    def __str__(self) -> str:
        return self.output.read_text() + self.words.read_text()


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start(*arguments: str) -> Demo:
        demos.append(Demo(tmp_path, *arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.close()


def test_two_demos_at_once(start_demo: Callable[..., Demo]) -> None:
    demos = [start_demo("--for", "8", "--json") for _ in range(2)]
    for demo in demos:
        assert demo.wait() == 0, str(demo)
        *_, verdict, summary = demo.output.read_text().splitlines()
        found = json.loads(summary)
        assert found["failed"] == found["values_wrong"] == 0
        assert found["cycles_expected"] == found["cycles_present"] + found["cycles_in_gaps"] > 50
        assert found["values_checked"] > 200
        pattern = (
            f"verified {found['records']} records, {found['frames']} frames, 0 failed: signature ok, continuity ok, "
            f"completeness ok ({found['cycles_present']} of {found['cycles_expected']} cycles, "
            f"{found['cycles_in_gaps']} in gaps)"
        )
        assert verdict == pattern
        assert re.search(r"KILLED(.|\n)*outbox +[1-9]\d* waiting   broker away(.|\n)*outbox   0 waiting", str(demo))
        assert demo.words.read_text() == ""


@pytest.mark.slow  # two RSA keys of 4096 bits are made
def test_a_demo_over_a_data_hub(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo("--ddhub", "--for", "20", "--json")
    assert demo.wait(300) == 0, str(demo)
    found = json.loads(demo.output.read_text().splitlines()[-1])
    assert found["failed"] == found["values_wrong"] == found["records_missing"] == found["doubled"] == 0
    assert found["cycles_expected"] == found["cycles_present"] + found["cycles_in_gaps"] > 50
    assert found["values_checked"] > 200
    assert re.search(r"KILLED(.|\n)*outbox +[1-9]\d* waiting   broker away(.|\n)*found the broker again", str(demo))
    assert demo.words.read_text() == ""


def test_a_demo_that_ends_early_leaves_nothing_behind(start_demo: Callable[..., Demo]) -> None:
    interrupted, hurried, early, broken = demos = [start_demo() for _ in range(4)]
    early.wait_for("setting up")
    early.process.send_signal(signal.SIGTERM)
    for demo in (interrupted, hurried, broken):
        demo.wait_for(r"consumer +[3-9] records ok")

    interrupted.process.send_signal(signal.SIGTERM)
    hurried.process.send_signal(signal.SIGINT)
    hurried.wait_for("Ctrl-C again")
    hurried.process.send_signal(signal.SIGINT)
    agent = next(pid for pid, line in broken.left().items() if " run --config " in line)
    os.kill(agent, signal.SIGKILL)

    assert early.wait() == 130, str(early)
    assert hurried.wait() == 130, str(hurried)
    assert interrupted.wait() == 0, str(interrupted)
    assert "0 failed: signature ok, continuity ok, completeness ok" in interrupted.output.read_text().splitlines()[-1]
    assert broken.wait() == 1, str(broken)
    kept = re.search(r"logs, journal and evidence are in (.+)", broken.words.read_text())
    assert kept is not None
    assert (Path(kept[1]) / "agent.log").exists()
    shutil.rmtree(kept[1])
    assert not any("are in" in demo.words.read_text() for demo in demos if demo is not broken)


def test_a_demo_whose_reader_goes_away_ends_quietly() -> None:
    command = [sys.executable, "-m", "testbed.demo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == b""
        assert demo.wait(40) == 128 + signal.SIGPIPE
    assert not list((ROOT / ".demo").glob(f"*{demo.pid}.*"))


# ---- the long campaign ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_kills(rig: Rig, chance: random.Random) -> None:
    """Agent, broker and site are killed at random moments, for 4 minutes at most; nothing is lost unstated."""
    victims: list[Process] = [rig.agent, rig.broker, rig.site]
    rig.agent.start()
    deadline, kills = time.monotonic() + 200, 0
    while kills < 100 and time.monotonic() < deadline:
        pause(chance.choice((chance.uniform(0.0, 0.3), chance.uniform(0.3, 2.5))))
        victim = chance.choice(victims)
        victim.kill()
        kills += 1
        pause(chance.choice((0.0, chance.uniform(0.0, 0.8))))
        victim.start()
    lines = conclude(rig, until_idle=True)
    print(f"{kills} kills, {len(told(lines, 'runs'))} runs")
    assert kills == 100
