"""CPU per reading, Modbus to PubAck, durable and signed, at 5,000 readings a second, beside three others that read the
same registers at the same rate:

- pymodbus's client that drops them (bench/read_and_drop.py): the least that reading costs;
- an agent with an object, a signature, a row and a message per reading (bench/row_per_reading.py);
- ThingsBoard Gateway (bench/thingsboard.py), which signs nothing and keeps what it holds in memory; of it, CPU per
  value that arrived counts.

Ten units of 100 holding registers at 5 Hz on one connection; all are real processes, one at a time. Only the steady
state counts: start-up is over before the first look at a process's CPU time. The NATS server syncs its files when it
sees fit, as it is installed: if it did for every message, it would hold the second of them back.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import nats

from bench import load
from bench.figure import Figure, Others, cpu_seconds, interleaved, resident_mib
from bench.modbus_device import ModbusDevice
from bench.row_per_reading import STREAM, RowPerReading
from bench.thingsboard import Server, ThingsBoard, files
from testbed.child import Process, wait_for
from testbed.mosquitto import Mosquitto
from testbed.processes import Agent, NatsServer

UNITS, REGISTERS, HERTZ = 10, 100, 5
RATE = UNITS * REGISTERS * HERTZ
WARM_UP, SECONDS = 2.0, 10.0
KEPT_UP = 0.9  # of the readings a reference must deliver, or its figure would be unfair


class Rig:
    """The servers that all need, in a folder, within its stack; and how each is measured there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.notes: dict[str, str] = {}  # by method; of the last round
        self._folder = folder
        self._stack = stack
        self._device = stack.enter_context(ModbusDevice(folder, units=UNITS, registers=REGISTERS))
        self._broker = stack.enter_context(NatsServer(folder, sync="2m"))
        self._config = load.prepare(folder, self._broker.url, configuration(self._device.port, self._broker.url))
        self._mosquitto: Mosquitto | None = None

    def agent(self) -> float:
        """What this is about."""
        with Agent(self._folder, self._config) as agent:
            load.wait_delivering(agent)
            return self._measure("agent", agent)

    def reading_alone(self) -> float:
        """Read and dropped."""
        options = map(str, (self._device.port, UNITS, REGISTERS, HERTZ))
        command = [sys.executable, "-m", "bench.read_and_drop", *options]
        with Process(command, name="reading-alone", folder=self._folder) as process:
            wait_for(lambda: "ready" in process.log(), timeout=20, what="the reference to read")
            return self._measure("reading_alone", process)

    def rows(self) -> float:
        """A row per reading. Raises RuntimeError if a reading is missing or doubled in its stream."""
        port, url = self._device.port, self._broker.url
        with RowPerReading(self._folder, port, url, units=UNITS, registers=REGISTERS, hertz=HERTZ) as process:
            wait_for(lambda: "ready" in process.log(), timeout=20, what="the reference to read")
            value = self._measure("rows", process, lambda: messages(url, STREAM))
            if process.stop(30) or f"sent {messages(url, STREAM)}\n" not in process.log():
                raise RuntimeError(f"the stream holds {messages(url, STREAM)} messages, but {process.log()[-500:]}")
        return value

    def thingsboard(self, *, blocks: bool = False) -> float:
        """ThingsBoard Gateway."""
        if self._mosquitto is None:
            self._mosquitto = self._stack.enter_context(Mosquitto(self._folder))
        ports = self._device.port, self._mosquitto.port
        period_ms = 1000 // HERTZ
        configuration = files(*ports, units=UNITS, registers=REGISTERS, period_ms=period_ms, blocks=blocks)
        with Server(self._mosquitto.port) as server, ThingsBoard(self._folder / "tb", configuration) as gateway:
            server.wait_values(RATE, timeout=60)
            return self._measure("thingsboard_blocks" if blocks else "thingsboard", gateway, lambda: server.values)

    def thingsboard_blocks(self) -> float:
        """ThingsBoard Gateway, set up to read as few times as it can."""
        return self.thingsboard(blocks=True)

    def nothing_missing(self) -> None:
        """The figure holds only if the agent delivered every cycle while it was measured. Raises RuntimeError."""
        found = load.report(self._config)
        lost = load.lost(found)
        if lost or found["failed"] or not found["frames"]:
            raise RuntimeError(f"the agent did not deliver everything: {lost}, {found['failed']} failed")

    def _measure(self, name: str, process: Process, count: Callable[[], int] | None = None) -> float:
        """Microseconds of CPU per reading over the measured span; ``count``: readings so far, else by the schedule.

        A process that could not keep up is noted.
        """
        time.sleep(WARM_UP)
        others, began, used, had = Others(), time.monotonic(), cpu_seconds(process.pid), count() if count else 0
        time.sleep(SECONDS)
        used, span = cpu_seconds(process.pid) - used, time.monotonic() - began
        readings = count() - had if count else span * RATE
        busy = f"other programs took {others.share():.0%} of the machine"
        if readings < KEPT_UP * span * RATE:
            busy = f"DELIVERED ONLY {readings / span:,.0f} of {RATE:,} readings/s, {busy}"
        self.notes[name] = f"{name}: {used / span:.1%} of a core, {resident_mib(process.pid):.0f} MiB, {busy}"
        return used * 1e6 / readings


# Each figure: how its reference is measured, what that is, the target.
_FIGURES: Mapping[str, tuple[Callable[[Rig], float], str, float | None]] = {
    "cpu_per_reading": (Rig.reading_alone, "pymodbus's client, read and dropped", 2.5),
    "cpu_per_reading_vs_rows": (Rig.rows, "object, signature, row and message each", 1 / 50),
    "cpu_per_reading_vs_thingsboard": (Rig.thingsboard, "ThingsBoard Gateway", 1 / 30),
    "cpu_per_reading_vs_thingsboard_blocks": (Rig.thingsboard_blocks, "ThingsBoard Gateway, read in blocks", None),
}


def figures(names: Sequence[str]) -> list[Figure]:
    """Measure the agent and the references of these figures in three interleaved rounds."""
    chosen = [_FIGURES[name] for name in names]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rig = Rig(Path(folder), stack)
        value, *references = interleaved([rig.agent, *(partial(measure, rig) for measure, _, _ in chosen)])
        rig.nothing_missing()
    found = []
    for name, reference, (measure, words, target) in zip(names, references, chosen, strict=True):
        note = f"last round: {rig.notes['agent']}; {rig.notes[measure.__name__]}"
        absolute = name == "cpu_per_reading"
        found.append(Figure(name, value, "us", reference, words, target, note, absolute=absolute))
    return found


def configuration(device: int, broker: str) -> str:
    """The agent's."""
    return load.configuration(device, broker, units=UNITS, registers=REGISTERS, every=f"{1000 // HERTZ}ms")


def messages(url: str, stream: str) -> int:
    """How many a JetStream stream holds."""

    async def ask() -> int:
        client = await nats.connect(url, allow_reconnect=False, connect_timeout=5)
        try:
            return int((await client.jetstream().stream_info(stream)).state.messages)
        finally:
            await client.close()

    return asyncio.run(ask())
