"""How many readings a second one core takes from Modbus to the broker, signed and durable, and what is left of that
when three times as many are due.

Devices of 125 registers, each on a connection of its own; the agent may use one core, device and broker the others.
More and more is asked for, and the most that is delivered counts: what the broker had when the time was up. The agent
is killed then.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.figure import Figure, resident_mib
from bench.modbus_device import ModbusDevice
from testbed.processes import Agent, NatsServer

REGISTERS = 125
STEPS = ((10, 4), (10, 3), (10, 2), (10, 1))  # devices, and ms between two reads of each
FLOODS = ((10, 1), (20, 1), (40, 1))
WARM_UP, SECONDS = 3.0, 15.0
TARGET, TARGET_SHARE = 400_000, 0.9
S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Run:
    due: float  # readings/s
    delivered: float
    memory: tuple[float, float]  # MiB, at the beginning of the measured span and at its end


def figures(names: object) -> list[Figure]:
    """Both are of one run of the whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [_run(folder / f"{units}-{every}", units, every) for units, every in STEPS]
        best = max(runs, key=lambda run: run.delivered)
        asked = next(each for each in FLOODS if _due(*each) >= 3 * best.delivered)
        flood = _run(folder / "flood", *asked)
    share = flood.delivered / best.delivered
    steps = ", ".join(f"{run.delivered / 1000:.0f} of {run.due / 1000:.0f}" for run in runs)
    return [
        Figure(
            "flat_out",
            1e6 / best.delivered,
            "us of a core per reading",
            None,
            "",
            1e6 / TARGET,
            f"{best.delivered:,.0f} readings/s; thousands a second delivered of due: {steps}",
        ),
        Figure(
            "overload",
            1 / share,
            "times less than flat out",
            None,
            "",
            1 / TARGET_SHARE,
            f"{flood.delivered:,.0f} readings/s of {flood.due:,.0f}, a share of {share:.2f}; "
            f"memory {flood.memory[0]:.0f} MiB, {SECONDS:.0f} s later {flood.memory[1]:.0f} MiB",
        ),
    ]


def _due(units: int, every: int) -> float:
    return units * REGISTERS * 1000 / every


def _run(folder: Path, units: int, every: int) -> _Run:
    folder.mkdir()
    others = os.sched_getaffinity(0) - {0} or {0}
    os.sched_setaffinity(0, others)  # of all that is started from here
    with ModbusDevice(folder, units=units, registers=REGISTERS) as device, NatsServer(folder, sync="2m") as broker:
        text = load.configuration(
            device.port, broker.url, units=units, registers=REGISTERS, every=f"{every}ms", connections=units
        )
        config = load.prepare(folder, broker.url, text)
        agent = Agent(folder, config)
        agent.command_line = ["taskset", "-c", "0", *agent.command_line]
        with agent:
            agent.wait_ready()
            time.sleep(WARM_UP)
            began, before = time.time_ns(), resident_mib(agent.pid)
            time.sleep(SECONDS)
            after, ended = resident_mib(agent.pid), time.time_ns()
            agent.kill()
        cycles = asyncio.run(load.cycles_stored(broker.url, began, ended))
    return _Run(_due(units, every), cycles * REGISTERS * S / (ended - began), (before, after))
