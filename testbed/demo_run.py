"""What both demos do: devices, the agent, an outage of the broker, what a person sees meanwhile, and the verdict.

The other side is a ``FarEnd``: the broker, and the consumer behind it (testbed/demo_nats.py, testbed/demo_ddhub.py).
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from testbed import battery_device
from testbed.account import Account
from testbed.child import Process, ProcessError, wait_for
from testbed.oracle import Oracle
from testbed.processes import Agent, Battery, NatsServer, Site, Tail, edge_agent
from testbed.published import Topic
from testbed.served import Journal, Json, Unit

SITE = "demo-park"
SENT = '["pv-1/*", "grid-meter/*", "battery/*"]'
_UNITS = {"pv-1": 1, "grid-meter": 2}
# Seconds. An agent that lost the broker tries at growing distances: after 3 s it is back within 3 s more.
_OUTAGE, _FIRST_OUTAGE, _OUTAGE_EVERY = 3.0, 10.0, 60.0
_RECORD_EVERY = 10.0
_CONCLUDING = 1.0  # what stopping and judging takes
_DRAIN_WITHIN = 15.0
_LONGEST_SOCKET = 107  # bytes of the path, unix(7); in a folder too deep the agent does without
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
{channel}
[clock]
wait = "0s"

[agent]
state = "state"
socket = "{socket}"
"""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. A KeyboardInterrupt, so that an event loop lets it through."""


class FarEnd(Protocol):
    """Where the agent delivers to, and the consumer there; made with the demo, and used in this order."""

    in_company: int
    """Records that wait in the outbox although the broker is there: more are to travel with them."""

    def open(self, did: str) -> None:
        """Start the servers, and begin what takes long. ``did``: the agent's, whose key is there."""

    def channel(self) -> str:
        """The channel in the agent's configuration."""

    def admit(self, config: Path) -> None:
        """Do what must be done before an agent with this configuration can deliver."""

    def consume(self) -> None:
        """Start the consumer, if it is not there yet."""

    @property
    def broker(self) -> Process:
        """What is killed, and started again."""

    @property
    def tail(self) -> Tail:
        """The consumer, that prints JSON lines."""

    @property
    def processes(self) -> Sequence[Process]:
        """Consumers that must not end."""

    def newest_record(self) -> list[str]:
        """What came since this was asked last, for people: the lines of one record, the longest."""


class Stage(Protocol):
    """The demo, as a far end needs it."""

    folder: Path

    def start(self, process: P) -> P:
        """Start a process, which ends with the demo."""

    def say(self, text: str) -> None:
        """A line for people."""

    def command(self, *arguments: str) -> str:
        """What a command of the agent prints. Raises ProcessError if it does not end well."""


class Demo:
    """One demo, a ``Stage``, in a folder. ``seconds``: how long it is shown; None: until it is interrupted."""

    def __init__(self, folder: Path, far_end: Callable[[Stage], FarEnd], *, seconds: float | None) -> None:
        self.processes: list[Process] = []
        self.folder = folder
        self._far = far_end(self)
        self._seconds = seconds
        self._began = time.monotonic()

    def run(self) -> tuple[Account, Json]:
        """Set up, watch, conclude: the oracle's account, and the report of the verifier. Raises Interrupted if that
        comes to nothing.
        """
        self.say("setting up")
        did = self.command("init", str(self.folder), "--network", "volta").strip()
        self._far.open(did)
        site = self.start(Site(self.folder))
        self.say(f"device   Modbus TCP on port {site.port}: unit 1 PV inverter (SunSpec 103), unit 2 grid meter (203)")
        mqtt = self.start(NatsServer(self.folder, mqtt=True, name="mqtt-broker"))
        battery = self.start(Battery(self.folder, mqtt.mqtt_url))
        self.say(f"device   MQTT battery: 2 messages a second to a nats-server on port {mqtt.mqtt_port}")
        config = self._configure(did, site, battery, mqtt)
        self._far.admit(config)
        agent = self.start(Agent(self.folder, config))
        agent.wait_ready()
        self.say(f"agent    edge-agent run, signs as {did}")
        self._far.consume()
        self.say("consumer edge-agent tail: verifies every record with nothing but that DID\n")
        self._began = time.monotonic()
        screen = _Screen(self._began, agent=agent, far=self._far)
        try:
            self._watch(screen)
        except Interrupted:
            self.say("stopping; Ctrl-C again ends at once")
        if not self._far.broker.alive:
            self._far.broker.start()
            self.say("broker   started again; waiting for the agent to find it")
        wait_for(screen.delivered, timeout=_DRAIN_WITHIN, what=f"the outbox to drain: {agent.status}")
        return self._conclude(site, battery, agent)

    def start(self, process: P) -> P:
        """Start a process, which ends with the demo."""
        self.processes.append(process)
        process.start()
        return process

    def say(self, text: str) -> None:
        """A line for people."""
        say(self._began, text)

    def command(self, *arguments: str) -> str:
        """What a command of the agent prints. Raises ProcessError if it does not end well."""
        done = subprocess.run([*edge_agent(), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProcessError(f"edge-agent {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _configure(self, did: str, site: Site, battery: Battery, mqtt: NatsServer) -> Path:
        """As an operator would: `init` was for the key, then comes the configuration, then `check`."""
        config = self.folder / "agent.toml"
        short = len(os.fsencode(self.folder / "agent.sock")) <= _LONGEST_SOCKET
        where = {"site": SITE, "port": site.port, "did": did, "socket": "agent.sock" if short else ""}
        where |= {"battery": battery_device.tables(mqtt.mqtt_url, battery.topic), "channel": self._far.channel()}
        config.write_text(_CONFIG.format(**where))
        self.command("check", str(config))
        return config

    def _watch(self, screen: _Screen) -> None:
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
                self._far.broker.start()
                self.say("broker   started again on the same port")
                back = float("inf")
                screen.show_next_record()
            elif now >= start:
                self.say("broker   KILLED (SIGKILL); the agent goes on and keeps what it seals in its outbox")
                self._far.broker.kill()
                back = now + length
                start = now + _OUTAGE_EVERY if self._seconds is None else float("inf")
            screen.tick(now)
            if now >= ends and back == float("inf") and (screen.delivered() or now >= ends + _DRAIN_WITHIN):
                return

    def _conclude(self, site: Site, battery: Battery, agent: Agent) -> tuple[Account, Json]:
        """Stop the agent in order, let the consumer have all, and ask the oracle."""
        tail = self._far.tail
        code = agent.stop()

        def complete() -> bool:
            return not tail.alive or any(line.get("event", {}).get("code") == "stop" for line in tail.lines())

        wait_for(complete, timeout=20, what="the consumer to have the agent's last record")
        tail.stop()
        report: Json = next(line["report"] for line in reversed(tail.lines()) if "report" in line)
        journal = Journal.read(site.journal)
        devices: dict[str, Unit | Topic] = {device: journal.units[unit] for device, unit in _UNITS.items()}
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

    def __init__(self, began: float, *, agent: Agent, far: FarEnd) -> None:
        self._began = began
        self._agent = agent
        self._far = far
        self._record_due = 0.0
        self._waited = 0

    def show_next_record(self) -> None:
        """The next record that comes in is shown whole."""
        self._record_due = 0.0

    def delivered(self) -> bool:
        """Whether the broker is there and the outbox all but empty: the record of this second may be on its way."""
        waiting, broker = self._state()
        return broker == "connected" and waiting <= self._far.in_company + 1

    def outbox_waits(self) -> bool:
        """Whether records wait for the broker: what an outage is to show."""
        return self._state()[0] > self._far.in_company

    def _state(self) -> tuple[int, str]:
        """Of the agent: records that wait, and how the broker is."""
        found = re.search(r"(\d+) waiting, broker (\w+)", self._agent.status)
        return (int(found[1]), found[2]) if found else (0, "unknown")

    def tick(self, now: float) -> None:
        """Show the state, and a record if it is time for one."""
        block = self._far.newest_record()
        if block and now >= self._record_due:
            self._record_due = now + _RECORD_EVERY
            for line in block:
                say(self._began, f"         {line}")
        for process in (self._agent, *self._far.processes):
            if not process.alive:
                raise ProcessError(f"{process.name} ended:\n{process.log()[-2000:]}")
        verdicts = [line["verdict"] for line in self._far.tail.lines() if "verdict" in line]
        good = verdicts.count("ok")
        failed = len(verdicts) - good - verdicts.count("repeat")
        waiting, broker = self._state()
        text = f"outbox {waiting:>3} waiting   broker {broker:9}   consumer {good:>4} records ok"
        say(self._began, text if not failed else f"{text}, {failed} FAILED")
        if broker != "connected" or (self._waited and waiting > self._far.in_company):
            self._waited = max(waiting, self._waited)
        elif self._waited:
            say(self._began, f"agent    found the broker again and delivered the {self._waited} records that waited")
            self._waited = 0


def say(began: float, text: str) -> None:
    """A line with the seconds since ``began``."""
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)
