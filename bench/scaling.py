"""Whether a reading costs the same with one device or a hundred, and with nothing or a million records waiting in the
outbox; 5,000 readings a second throughout, 100 registers a read.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import load, outbox_start
from bench.figure import Figure, cpu_seconds, interleaved
from bench.modbus_device import ModbusDevice
from testbed.child import wait_for
from testbed.processes import Agent, NatsServer

REGISTERS, RATE = 100, 5000
DEVICES = (1, 10, 100)
WARM_UP, SECONDS = 3.0, 20.0
TARGET = 1.3


def devices() -> Figure:
    """The dearest beside the cheapest of 1, 10 and 100 devices."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(NatsServer(folder, sync="2m"))
        device = stack.enter_context(ModbusDevice(folder, units=max(DEVICES), registers=REGISTERS))
        measures = []
        for units in DEVICES:
            (place := folder / str(units)).mkdir()
            every = f"{units * REGISTERS * 1000 // RATE}ms"
            text = load.configuration(device.port, broker.url, units=units, registers=REGISTERS, every=every)
            measures.append(partial(_per_reading, place, load.prepare(place, broker.url, text), away=False))
        costs = interleaved(measures)
    note = ", ".join(f"{units}: {cost:.2f} us" for units, cost in zip(DEVICES, costs, strict=True))
    return Figure("scaling_devices", max(costs), "us", min(costs), "the cheapest of 1, 10, 100 devices", TARGET, note)


def pending() -> Figure:
    """While the broker is away: with a million records waiting, beside none."""
    with (
        tempfile.TemporaryDirectory() as name,
        NatsServer(Path(name)) as broker,
        ModbusDevice(Path(name), units=10, registers=REGISTERS) as device,
    ):
        measures = []
        for waiting in (True, False):
            (folder := Path(name) / f"{'full' if waiting else 'empty'}").mkdir()
            (folder / "state").mkdir()
            ring = folder / "state" / f"{load.CHANNEL}.ring"
            size = -(-outbox_start.write(ring) >> 20) if waiting else 64
            text = load.configuration(
                device.port,
                "nats://127.0.0.1:9",  # discard (RFC 863): nobody listens there
                units=10,
                registers=REGISTERS,
                every="200ms",
                channel=f'outbox = {{ size = "{size}MiB" }}',
            )
            measures.append(partial(_per_reading, folder, load.prepare(folder, broker.url, text), away=True))
        full, empty = interleaved(measures)
    return Figure("scaling_pending", full, "us", empty, "nothing waiting", TARGET)


def _per_reading(folder: Path, config: Path, *, away: bool) -> float:
    """Microseconds of CPU in the steady state."""
    with Agent(folder, config) as agent:
        if away:
            agent.wait_ready()
            wait_for(lambda: "broker away" in agent.status, timeout=30, what="the broker to be missed")
        else:
            load.wait_delivering(agent)
        time.sleep(WARM_UP)
        began, used = time.monotonic(), cpu_seconds(agent.pid)
        time.sleep(SECONDS)
        return (cpu_seconds(agent.pid) - used) * 1e6 / ((time.monotonic() - began) * RATE)
