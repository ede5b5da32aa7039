"""What the agent takes when next to nothing is to do: memory, and CPU to start, beside ThingsBoard Gateway.

The agent has a Modbus device of ten points each second, an MQTT device that is silent, and a NATS channel; the gateway
has the Modbus device alone, as its MQTT server is its channel.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import load
from bench.figure import Figure, Others, cpu_seconds, interleaved, resident_mib
from bench.modbus_device import ModbusDevice
from bench.thingsboard import Server, ThingsBoard, files
from testbed.child import Process
from testbed.mosquitto import Mosquitto
from testbed.processes import Agent, NatsServer

POINTS = 10
SETTLED = 20.0  # s behind the first delivery


class Rig:
    """The servers, and each of the two started in turn."""

    def __init__(self, folder: Path, device: ModbusDevice, nats: NatsServer, mosquitto: Mosquitto) -> None:
        self.notes: dict[str, str] = {}  # of the last round
        self._folder = folder
        self._device = device
        self._mosquitto = mosquitto
        self._config = load.prepare(folder, nats.url, configuration(device.port, mosquitto.url, nats.url))

    @contextmanager
    def agent(self) -> Iterator[tuple[Agent, float]]:
        """The agent when it has delivered, and the CPU seconds that it took until it said READY=1."""
        others, began = Others(), time.monotonic()
        with Agent(self._folder, self._config) as agent:
            before = at_exec(agent)
            agent.wait_ready()
            ready, seconds = cpu_seconds(agent.pid) - before, time.monotonic() - began
            busy = f"other programs took {others.share():.0%} of the machine"
            load.wait_delivering(agent)
            self.notes["agent"] = f"ready in {seconds:.2f} s, CPU until it has delivered "
            self.notes["agent"] += f"{cpu_seconds(agent.pid) - before:.2f} s, {busy}"
            yield agent, ready

    @contextmanager
    def thingsboard(self) -> Iterator[tuple[ThingsBoard, float]]:
        """The gateway when it has delivered, and the CPU seconds that it took until then."""
        port = self._mosquitto.port
        configuration = files(self._device.port, port, units=1, registers=POINTS, period_ms=1000)
        with Server(port) as server:
            others, began = Others(), time.monotonic()
            with ThingsBoard(self._folder / "tb", configuration) as gateway:
                before = at_exec(gateway)
                server.wait_values(1, timeout=60)
                used = cpu_seconds(gateway.pid) - before
                busy = f"other programs took {others.share():.0%} of the machine"
                self.notes["thingsboard"] = f"first value after {time.monotonic() - began:.2f} s, {busy}"
                yield gateway, used


def idle_memory() -> Figure:
    """The resident set some time after the first delivery."""
    with rig() as here:

        def settled(process: Process, name: str) -> float:
            time.sleep(SETTLED / 2)
            used = cpu_seconds(process.pid)
            time.sleep(SETTLED / 2)
            here.notes[name] = f"{(cpu_seconds(process.pid) - used) / (SETTLED / 2):.1%} of a core"
            return resident_mib(process.pid)

        def agent() -> float:
            with here.agent() as (process, _):
                return settled(process, "agent")

        def thingsboard() -> float:
            with here.thingsboard() as (process, _):
                return settled(process, "thingsboard")

        return _figure("idle_memory", "MiB", 40, here, agent, thingsboard)


def start_cpu() -> Figure:
    """CPU until the agent is ready; until the gateway's first value arrived, for it does not say when it is ready."""
    with rig() as here:

        def agent() -> float:
            with here.agent() as (_, seconds):
                return seconds

        def thingsboard() -> float:
            with here.thingsboard() as (_, seconds):
                return seconds

        return _figure("start_cpu", "s", 0.35, here, agent, thingsboard)


def _figure(
    name: str, unit: str, target: float, here: Rig, agent: Callable[[], float], thingsboard: Callable[[], float]
) -> Figure:
    value, reference = interleaved([agent, thingsboard])
    note = f"last round: agent: {here.notes['agent']}; thingsboard: {here.notes['thingsboard']}"
    return Figure(name, value, unit, reference, "ThingsBoard Gateway", target, note, absolute=True)


@contextmanager
def rig() -> Iterator[Rig]:
    """The servers run within the ``with`` block."""
    with (
        tempfile.TemporaryDirectory() as name,
        ModbusDevice(Path(name), units=1, registers=POINTS) as device,
        NatsServer(Path(name), sync="2m") as nats,
        Mosquitto(Path(name)) as mosquitto,
    ):
        yield Rig(Path(name), device, nats, mosquitto)


def at_exec(process: Process) -> float:
    """CPU seconds that a process just started had used before it became the program: those of testbed/leash.py."""
    used, command = 0.0, Path(f"/proc/{process.pid}/cmdline")
    while not (words := command.read_bytes()) or b"leash.py" in words:  # none for a moment within execve(2)
        used = cpu_seconds(process.pid)
        time.sleep(0.0005)
    return used


def configuration(device: int, mqtt: str, nats: str) -> str:
    """The agent's: the device's port, and the URLs of the two brokers."""
    return load.configuration(device, nats, units=1, registers=POINTS, every="1s") + (
        f'[connection.bms]\nurl = "{mqtt}"\n'
        '[[device]]\nid = "battery"\nconnection = "bms"\ntopic = "bench/battery"\nqos = 1\n'
        '[device.groups.state]\npoints = [{ name = "W", at = "/power", unit = "W", decimals = 1 }]\n'
    )
