"""The demo: a Modbus device, the agent, a NATS server and a consumer, as separate processes; an outage; and a
verdict.

Half-way the NATS server is killed with SIGKILL and started again. At the end the oracle holds what the consumer
verified against what the device served. The exit code is 0 only if nothing failed, every cycle is present or in a
stated gap, and every value is right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed.broker import create_stream
from testbed.child import ROOT, Process, ProcessError, wait_for
from testbed.oracle import Account, Journal, Oracle
from testbed.processes import Agent, NatsServer, Site, Tail, edge_agent

SITE, CHANNEL, STREAM = "demo-park", "dso", "TELEMETRY"
SUBJECT = f"dx.{SITE}.{CHANNEL}"
UNITS = {"pv-1": 1, "grid-meter": 2}
_FIRST_OUTAGE, _OUTAGE_EVERY, _OUTAGE = 10.0, 60.0, 5.0  # s, when the demo runs without end

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

[[channel]]
id = "{channel}"
transport = "nats"
servers = ["{url}"]
send = ["pv-1/*", "grid-meter/*"]
outbox = {{ size = "16MiB" }}

[agent]
state = "state"
"""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: finish in order."""


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="./demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--for", dest="seconds", type=float, metavar="S", help="end after S seconds (without: at Ctrl-C)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on the last line")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, journal, outbox and evidence")
    options = parser.parse_args()
    if options.seconds is not None and options.seconds < 5:
        parser.error("--for needs at least 5 seconds: there is an outage to show")

    def interrupt(*_: object) -> None:
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    folder = ROOT / ".demo" / str(os.getpid())
    folder.mkdir(parents=True)
    try:
        return _Demo(folder, options).run()
    except ProcessError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.began = time.monotonic()
        self.shown = 0

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def run(self) -> int:
        with ExitStack() as stack:
            site = stack.enter_context(Site(self.folder))
            self.say(
                f"device   Modbus TCP on port {site.port}: unit 1 PV inverter (SunSpec 103), unit 2 grid meter (203)"
            )
            broker = stack.enter_context(NatsServer(self.folder))
            asyncio.run(create_stream(broker.url, STREAM, ["dx.>"]))
            self.say(f"broker   nats-server with JetStream on port {broker.port}, stream {STREAM}")
            config, did = self._configure(site, broker)
            agent = stack.enter_context(Agent(self.folder, config))
            agent.wait_ready()
            self.say(f"agent    edge-agent run, signs as {did}")
            source = f"{broker.url}/{STREAM}?subject={SUBJECT}"
            tail = stack.enter_context(Tail(self.folder, source, "--did", did))
            watched = stack.enter_context(
                Process([*edge_agent(), "tail", source, "--did", did], name="watched", folder=self.folder)
            )
            try:
                self._watch(broker, agent, watched)
            except Interrupted:
                self.say("stopping")
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the end is near and bounded
            return self._conclude(site, agent, tail)

    def _configure(self, site: Site, broker: NatsServer) -> tuple[Path, str]:
        """As an operator would: init for the key, then the configuration, then check."""
        config = self.folder / "agent.toml"
        init = [*edge_agent(), "init", str(self.folder), "--network", "volta"]
        did = subprocess.run(init, capture_output=True, text=True, check=True).stdout.strip()
        config.write_text(_CONFIG.format(site=SITE, channel=CHANNEL, did=did, port=site.port, url=broker.url))
        subprocess.run([*edge_agent(), "check", str(config)], check=True, stdout=subprocess.DEVNULL)
        return config, did

    def _watch(self, broker: NatsServer, agent: Agent, watched: Process) -> None:
        """Show what the consumer prints, a record a second, and the outbox's state; kill the broker when it is time."""
        seconds = self.options.seconds
        length = min(_OUTAGE, seconds / 4) if seconds else _OUTAGE
        outage = seconds / 2 - length / 2 if seconds else _FIRST_OUTAGE
        ends = self.began + seconds if seconds else None
        blocks = _blocks(watched)
        tick = time.monotonic()
        start, back = self.began + outage, None
        while ends is None or tick < ends:
            wait_for(lambda due=tick: time.monotonic() >= due or None, timeout=60, what="the next second")  # type: ignore[misc]
            now = time.monotonic()
            if back is None and now >= start:
                broker.kill()
                back, start = now + length, start + _OUTAGE_EVERY
                self.say("broker   KILLED (SIGKILL)")
            elif back is not None and now >= back:
                broker.start()
                back = None
                self.say("broker   started again")
                if ends is not None:
                    start = ends
            for line in next(blocks):
                self.say(f"consumer {line}")
            self.say(f"agent    {agent.status}")
            tick += 1

    def _conclude(self, site: Site, agent: Agent, tail: Tail) -> int:
        """Stop the agent in order, let the consumer have all, and ask the oracle."""
        code = agent.stop()
        if code:
            self.say(f"agent    ended with {code}")

        def complete() -> bool:
            return any(line.get("event", {}).get("code") == "stop" for line in tail.lines())

        wait_for(complete, timeout=20, what="the consumer to have the agent's last record")
        tail.stop()
        account = Oracle(Journal.read([site.journal]), units=UNITS).judge(tail.lines())
        report = next(line["report"] for line in reversed(tail.lines()) if "report" in line)
        good = account.good and not code and _agree(account, report)
        self._summary(account, report)
        for problem in account.problems[:20]:
            self.say(f"PROBLEM  {problem}")
        if self.options.json:
            print(json.dumps({**asdict(account), "good": good, "levels": report["levels"]}))
        return 0 if good else 1

    def _summary(self, account: Account, report: dict[str, Any]) -> None:
        print()
        for group in report["groups"]:
            causes = ", ".join(f"{n} {cause}" for cause, n in group["gaps"].items()) or "no gaps"
            print(f"{group['device']}/{group['group']}: {group['present']} of {group['expected']} cycles, {causes}")
        print(
            f"device's journal: {account.values_checked} values held against what was served, "
            f"{account.values_wrong} wrong, {account.reads_lost} reads lost"
        )
        levels = ", ".join(f"{name} {report['levels'][name]}" for name in ("signature", "continuity", "completeness"))
        print(
            f"verified {account.records} records, {account.frames} frames, {account.failed} failed: {levels} "
            f"({account.cycles_present} of {account.cycles_expected} cycles, {account.cycles_in_gaps} in gaps)",
            flush=True,
        )


def _agree(account: Account, report: dict[str, Any]) -> bool:
    """Whether the verifier and the oracle, who count apart, came to the same."""
    mine = (account.records, account.frames, account.cycles_expected, account.cycles_present, account.cycles_in_gaps)
    theirs = tuple(
        report[name] for name in ("records", "frames", "cycles_expected", "cycles_present", "cycles_in_gaps")
    )
    if mine != theirs:
        account.problem(f"the verifier counts {theirs}, the oracle {mine}")
    return mine == theirs and all(level == "ok" for level in report["levels"].values())


def _blocks(watched: Process) -> Iterator[list[str]]:
    """Each time: the newest record with data that the consumer printed since, with all its lines; empty if there is
    none.
    """
    position = 0
    while True:
        with open(watched.log_path, "rb") as log:
            log.seek(position)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        position += len(whole)
        records: list[list[str]] = []
        for line in whole.decode().splitlines():
            if line.startswith(" ") and records:
                records[-1].append(line)
            else:
                records.append([line])
        yield max(records, key=len, default=[])


if __name__ == "__main__":
    sys.exit(main())
