"""CPU per reading, Modbus to PubAck, durable and signed, beside pymodbus's client that reads the same registers and
drops them.

Ten units of 100 holding registers at 5 Hz on one connection; agent, device and broker are real processes. Only the
steady state counts: start-up is over before the first look at the process's CPU time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.figure import Figure, cpu_seconds, interleaved
from testbed.broker import create_stream
from testbed.child import Process, wait_for
from testbed.processes import Agent, NatsServer, Site, edge_agent

UNITS, REGISTERS, HERTZ = 10, 100, 5
SECONDS = 10.0
TARGET = 3.0


def figure() -> Figure:
    """Measure in three interleaved rounds."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        site = stack.enter_context(Site(folder, plain=UNITS, plain_registers=REGISTERS, journal=False))
        broker = stack.enter_context(NatsServer(folder))
        asyncio.run(create_stream(broker.url, "BENCH", ["dx.>"]))
        config = configure(folder, site, broker)
        agent, reference = interleaved([lambda: _agent(folder, config), lambda: _reference(folder, site)])
        _nothing_missing(folder, config)
    return Figure("cpu_per_reading", agent, "us", reference, "pymodbus's client, read and dropped", TARGET)


def configure(folder: Path, site: Site, broker: NatsServer) -> Path:
    """The agent's configuration: every register of every plain unit."""
    subprocess.run([*edge_agent(), "init", str(folder), "--network", "volta"], check=True, capture_output=True)
    points = ", ".join(f'{{ name = "R{i}", at = "holding:{i}", type = "uint16" }}' for i in range(REGISTERS))
    devices = "".join(
        f'[[device]]\nid = "d{unit}"\nconnection = "site"\nunit = {10 + unit}\n'
        f'[device.groups.all]\nevery = "{1000 // HERTZ}ms"\npoints = [{points}]\n'
        for unit in range(UNITS)
    )
    config = folder / "agent.toml"
    config.write_text(
        'version = 1\n[site]\nid = "bench"\n[clock]\nwait = "0s"\n[identity]\nkey = "file:key"\n'
        f'[connection.site]\nurl = "modbus+tcp://127.0.0.1:{site.port}"\n{devices}'
        f'[[channel]]\nid = "bench"\ntransport = "nats"\nservers = ["{broker.url}"]\nsend = ["*"]\n'
        '[agent]\nstate = "state"\nlog_level = "warning"\n'
    )
    return config


def _per_reading(process: Process) -> float:
    """Microseconds of CPU per reading over the measured span."""
    began, used = time.monotonic(), cpu_seconds(process.pid)
    wait_for(lambda: time.monotonic() - began >= SECONDS or None, timeout=SECONDS + 10, what="the measured span")
    return (cpu_seconds(process.pid) - used) * 1e6 / ((time.monotonic() - began) * UNITS * REGISTERS * HERTZ)


def _agent(folder: Path, config: Path) -> float:
    with Agent(folder, config) as agent:
        agent.wait_ready()
        wait_for(
            lambda: ("0 waiting, broker connected" in agent.status and " 0 delivered" not in agent.status) or None,
            timeout=20,
            what="the agent to deliver",
        )
        return _per_reading(agent)


def _reference(folder: Path, site: Site) -> float:
    command = [sys.executable, "-m", "bench.read_and_drop", str(site.port), str(UNITS), str(REGISTERS), str(HERTZ)]
    with Process(command, name="reference", folder=folder) as reference:
        wait_for(lambda: "ready" in reference.log() or None, timeout=20, what="the reference to read")
        return _per_reading(reference)


def _nothing_missing(folder: Path, config: Path) -> None:
    """The figure holds only if the agent delivered every cycle while it was measured."""
    done = subprocess.run(
        [*edge_agent(), "tail", "--config", str(config), "--until-idle", "--jsonl"],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])["report"]
    groups = [group for channel in report["channels"] for group in channel["groups"]]
    lost = {cause: n for group in groups for cause, n in group["gaps"].items() if cause != "agent_down"}
    if lost or report["failed"] or not report["frames"]:
        raise RuntimeError(f"the agent did not deliver everything: {lost}, {report['failed']} failed")
