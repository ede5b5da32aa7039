"""The demo: a Modbus device, an MQTT battery with its broker, the agent, a NATS server and a consumer, as separate
processes; an outage; and a verdict.

Half-way the NATS server that takes the records is killed with SIGKILL and started again. At the end the oracle holds
what the consumer verified against what the devices served and published. The exit code is 0 only if nothing failed,
every cycle and message is present or in a stated gap, and every value is right. Ctrl-C ends it with the verdict, a
second one at once and without.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from testbed import battery_device
from testbed.account import Account
from testbed.broker import create_stream
from testbed.child import ROOT, Process, ProcessError, wait_for
from testbed.oracle import Oracle
from testbed.processes import Agent, Battery, NatsServer, Site, Tail, edge_agent
from testbed.published import Topic
from testbed.served import Journal, Json, Unit

SITE, CHANNEL, STREAM = "demo-park", "dso", "TELEMETRY"
SUBJECT = f"dx.{SITE}.{CHANNEL}"
UNITS = {"pv-1": 1, "grid-meter": 2}
# Seconds. An agent that lost the broker tries at growing distances: after 3 s it is back within 3 s more.
_OUTAGE, _FIRST_OUTAGE, _OUTAGE_EVERY = 3.0, 10.0, 60.0
_RECORD_EVERY = 10.0
_CONCLUDING = 1.0  # what stopping and judging takes
_DRAIN_WITHIN = 15.0
_SHORTEST = 5.0
_LONGEST_SOCKET = 107  # bytes of the path, unix(7); in a folder too deep the agent does without
_FOLDERS = ROOT / ".demo"
P = TypeVar("P", bound=Process)

_CONFIG = """\
version = 1

[site]
id = "{site}"

[identity]
key = "file:key"
did = "{did}"

[connection.plant]
url = "modbus+tcp://127.0.0.1:{port}"

[[device]]
id = "pv-1"
connection = "plant"
unit = 1
sunspec = {{}}
[device.groups]
power = {{ every = "200ms", points = ["103.W", "103.PhVphA", "103.PhVphB", "103.PhVphC", "103.A", "103.Hz"] }}
energy = {{ every = "1s", points = ["103.WH", "103.TmpCab", "103.St"] }}

[[device]]
id = "grid-meter"
connection = "plant"
unit = 2
sunspec = {{}}
[device.groups]
power = {{ every = "200ms", points = ["203.W", "203.WphA", "203.WphB", "203.WphC", "203.Hz"] }}
energy = {{ every = "1s", points = ["203.TotWhImp", "203.TotWhExp"] }}

{battery}
[[channel]]
id = "{channel}"
transport = "nats"
servers = ["{url}"]
send = ["pv-1/*", "grid-meter/*", "battery/*"]
outbox = {{ size = "16MiB" }}

[clock]
wait = "0s"

[agent]
state = "state"
socket = "{socket}"
"""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. A KeyboardInterrupt, so that an event loop lets it through."""


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="./demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--for", dest="seconds", type=float, metavar="S", help="end after S seconds (without: at Ctrl-C)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on the last line")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, journal, outbox and evidence")
    options = parser.parse_args()
    if options.seconds is not None and options.seconds < _SHORTEST:
        parser.error(f"--for needs at least {_SHORTEST:g} seconds: there is an outage to show")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    _FOLDERS.mkdir(exist_ok=True)
    sweep(_FOLDERS)
    folder = Path(tempfile.mkdtemp(dir=_FOLDERS, prefix=f"{os.getpid()}."))
    demo = _Demo(folder, seconds=options.seconds)
    code, keep = 130, options.keep
    try:
        account, report = demo.run()
        code = 0 if account.good else 1
        keep = keep or bool(code)
        _print_summary(account, report)
        if options.json:
            print(json.dumps({**asdict(account), "good": account.good, "levels": report["levels"]}), flush=True)
    except Interrupted:
        print("demo: ended before there was a verdict", file=sys.stderr)
    except BrokenPipeError:  # `./demo | head`
        code = 128 + signal.SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001  # whatever it is: say it, and where to look
        code, keep = 1, True
        print(f"demo: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # what is left takes no time
        for process in demo.processes:
            process.kill()
        if keep:
            folder = folder.rename(folder.with_name(f"kept-{folder.name}"))
            print(f"demo: logs, journal and evidence are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def sweep(folders: Path) -> None:
    """Remove what demos left that were killed: folders named by a process that is no more. What is kept has another
    name.
    """
    for folder in folders.iterdir():
        owner = re.fullmatch(r"([0-9]+)(\.\w+)?", folder.name)
        if owner and not Path("/proc", owner[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _interrupt(*_: object) -> None:
    raise Interrupted


class _Demo:
    def __init__(self, folder: Path, *, seconds: float | None) -> None:
        self.processes: list[Process] = []
        self._folder = folder
        self._seconds = seconds
        self._began = time.monotonic()

    def run(self) -> tuple[Account, Json]:
        """Set up, watch, conclude: the oracle's account, and the report of the verifier. Raises Interrupted if that
        comes to nothing.
        """
        self._say("setting up")
        site = self._start(Site(self._folder))
        self._say(f"device   Modbus TCP on port {site.port}: unit 1 PV inverter (SunSpec 103), unit 2 grid meter (203)")
        mqtt = self._start(NatsServer(self._folder, mqtt=True, name="mqtt-broker"))
        battery = self._start(Battery(self._folder, mqtt.mqtt_url))
        self._say(f"device   MQTT battery: 2 messages a second to a nats-server on port {mqtt.mqtt_port}")
        broker = self._start(NatsServer(self._folder))
        asyncio.run(create_stream(broker.url, STREAM, ["dx.>"]))
        self._say(f"broker   nats-server with JetStream on port {broker.port}, stream {STREAM}")
        config, did = self._configure(site, battery, mqtt, broker)
        agent = self._start(Agent(self._folder, config))
        agent.wait_ready()
        self._say(f"agent    edge-agent run, signs as {did}")
        source = [f"{broker.url}/{STREAM}?subject={SUBJECT}", "--did", did]
        tail = self._start(Tail(self._folder, *source))
        watched = self._start(Process([*edge_agent(), "tail", *source], name="watched", folder=self._folder))
        self._say("consumer edge-agent tail: verifies every record with nothing but that DID\n")
        self._began = time.monotonic()
        screen = _Screen(self._began, agent=agent, tail=tail, watched=watched)
        try:
            self._watch(screen, broker)
        except Interrupted:
            self._say("stopping; Ctrl-C again ends at once")
        if not broker.alive:
            broker.start()
            self._say("broker   started again; waiting for the agent to find it")
        wait_for(screen.delivered, timeout=_DRAIN_WITHIN, what=f"the outbox to drain: {agent.status}")
        return self._conclude(site, battery, agent, tail)

    def _start(self, process: P) -> P:
        self.processes.append(process)
        process.start()
        return process

    def _say(self, text: str) -> None:
        say(self._began, text)

    def _configure(self, site: Site, battery: Battery, mqtt: NatsServer, broker: NatsServer) -> tuple[Path, str]:
        """As an operator would: init for the key, then the configuration, then check."""
        config = self._folder / "agent.toml"
        did = self._command("init", str(self._folder), "--network", "volta").strip()
        where = {"site": SITE, "channel": CHANNEL, "port": site.port, "url": broker.url}
        short = len(os.fsencode(self._folder / "agent.sock")) <= _LONGEST_SOCKET
        where |= {"socket": "agent.sock" if short else ""}
        config.write_text(_CONFIG.format(did=did, battery=battery_device.tables(mqtt.mqtt_url, battery.topic), **where))
        self._command("check", str(config))
        return config, did

    @staticmethod
    def _command(*arguments: str) -> str:
        done = subprocess.run([*edge_agent(), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProcessError(f"edge-agent {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _watch(self, screen: _Screen, broker: NatsServer) -> None:
        """Show what happens, and kill the broker when it is time. Ends when the time is up and the outbox drained."""
        length, start, ends = _OUTAGE, self._began + _FIRST_OUTAGE, float("inf")
        if self._seconds is not None:
            length = min(_OUTAGE, self._seconds / 5)
            start, ends = self._began + self._seconds / 2 - length, self._began + self._seconds - _CONCLUDING
        back = float("inf")
        for tick in itertools.count():
            due = self._began + tick
            wait_for(lambda due=due: time.monotonic() >= due, timeout=60, what="the next second")  # type: ignore[misc]
            now = time.monotonic()
            if now >= back and (screen.outbox_waits() or now >= back + _DRAIN_WITHIN):
                broker.start()
                self._say("broker   started again on the same port")
                back = float("inf")
                screen.show_next_record()
            elif now >= start:
                self._say("broker   KILLED (SIGKILL); the agent goes on and keeps what it seals in its outbox")
                broker.kill()
                back = now + length
                start = now + _OUTAGE_EVERY if self._seconds is None else float("inf")
            screen.tick(now)
            if now >= ends and back == float("inf") and (screen.delivered() or now >= ends + _DRAIN_WITHIN):
                return

    def _conclude(self, site: Site, battery: Battery, agent: Agent, tail: Tail) -> tuple[Account, Json]:
        """Stop the agent in order, let the consumer have all, and ask the oracle."""
        code = agent.stop()

        def complete() -> bool:
            return not tail.alive or any(line.get("event", {}).get("code") == "stop" for line in tail.lines())

        wait_for(complete, timeout=20, what="the consumer to have the agent's last record")
        tail.stop()
        report: Json = next(line["report"] for line in reversed(tail.lines()) if "report" in line)
        journal = Journal.read(site.journal)
        devices: dict[str, Unit | Topic] = {device: journal.units[unit] for device, unit in UNITS.items()}
        devices[battery_device.DEVICE] = battery_device.judged(battery)
        account = Oracle(devices).judge(tail.lines())
        account.compare(report)
        for level, outcome in report["levels"].items():
            if outcome != "ok":
                account.problem(f"the verifier says {level} {outcome}")
        if code:
            account.problem(f"the agent ended with {code}")
        return account, report


class _Screen:
    """What a person sees: a line a second, and now and then the consumer's newest record with all its values."""

    def __init__(self, began: float, *, agent: Agent, tail: Tail, watched: Process) -> None:
        self._began = began
        self._agent = agent
        self._tail = tail
        self._watched = watched
        self._position = 0
        self._record_due = 0.0
        self._waited = 0

    def show_next_record(self) -> None:
        """The next record that comes in is shown whole."""
        self._record_due = 0.0

    def delivered(self) -> bool:
        """Whether the broker is there and the outbox all but empty: the record of this second may be on its way."""
        waiting, broker = self._state()
        return broker == "connected" and waiting <= 1

    def outbox_waits(self) -> bool:
        """Whether records wait for the broker: what an outage is to show."""
        return self._state()[0] > 0

    def _state(self) -> tuple[int, str]:
        """Of the agent: records that wait, and how the broker is."""
        found = re.search(r"(\d+) waiting, broker (\w+)", self._agent.status)
        return (int(found[1]), found[2]) if found else (0, "unknown")

    def tick(self, now: float) -> None:
        """Show the state, and a record if it is time for one."""
        block = self._newest_record()
        if block and now >= self._record_due:
            self._record_due = now + _RECORD_EVERY
            for line in block:
                say(self._began, f"         {line}")
        for process in (self._agent, self._tail, self._watched):
            if not process.alive:
                raise ProcessError(f"{process.name} ended:\n{process.log()[-2000:]}")
        verdicts = [line["verdict"] for line in self._tail.lines() if "verdict" in line]
        good = verdicts.count("ok")
        failed = len(verdicts) - good - verdicts.count("repeat")
        waiting, broker = self._state()
        text = f"outbox {waiting:>3} waiting   broker {broker:9}   consumer {good:>4} records ok"
        say(self._began, text if not failed else f"{text}, {failed} FAILED")
        if waiting:
            self._waited = max(waiting, self._waited)
        elif self._waited > 1 and broker == "connected":
            say(self._began, f"agent    found the broker again and delivered the {self._waited} records that waited")
            self._waited = 0

    def _newest_record(self) -> list[str]:
        """The record with most lines that the consumer printed since it was last asked."""
        with open(self._watched.log_path, "rb") as log:
            log.seek(self._position)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        records: list[list[str]] = [[]]
        for line in whole.decode("utf-8", "replace").splitlines():
            if line.startswith(" "):
                records[-1].append(line)
            else:
                records.append([line])
        return max(records, key=len) if any(len(record) > 1 for record in records) else []


def say(began: float, text: str) -> None:
    """A line with the seconds since ``began``."""
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def _print_summary(account: Account, report: Json) -> None:
    print()
    for problem in account.problems:
        print(f"PROBLEM {problem}")
    for group in (group for channel in report["channels"] for group in channel["groups"]):
        causes = ", ".join(f"{n} {cause}" for cause, n in group["gaps"].items()) or "no gaps"
        print(f"{group['device']}/{group['group']}: {group['present']} of {group['expected']} cycles, {causes}")
    print(
        f"devices' journals: {account.values_checked} values held against them, "
        f"{account.values_wrong} wrong, {account.reads_lost} reads lost"
    )
    delivered, doubled = account.messages_delivered, account.messages_doubled
    print(f"battery's journal: {delivered} messages delivered, {doubled} of them twice, {account.messages_lost} lost")
    levels = ", ".join(f"{name} {report['levels'][name]}" for name in ("signature", "continuity", "completeness"))
    print(
        f"verified {account.records} records, {account.frames} frames, {account.failed} failed: {levels} "
        f"({account.cycles_present} of {account.cycles_expected} cycles, {account.cycles_in_gaps} in gaps)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
