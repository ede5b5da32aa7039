"""Bytes per reading on the wire and to the device, at 10,000 readings a second and ``seal_within = "1s"``: 10 devices
of 100 registers at 10 Hz, each register a random walk.

On the wire: all that the agent says to the broker, of TCP's payload. To the device: all that an ext4 which holds the
agent's state writes, journal and metadata too. ``python -m bench.bytes_per_reading FOLDER`` measures where it may
mount.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import load
from bench.disk import MeasuredDisk, inside
from bench.figure import Figure
from bench.line import Line
from bench.modbus_device import ModbusDevice
from testbed.processes import Agent, NatsServer

UNITS, REGISTERS, HERTZ = 10, 100, 10
WARM_UP, SECONDS = 3.0, 60.0
_TARGETS = {"wire_bytes_per_reading": 1.2, "device_bytes_per_reading": 2.0}


def figures(names: Sequence[str]) -> list[Figure]:
    """Both are measured in one run."""
    with tempfile.TemporaryDirectory() as folder:
        measured = inside("bench.bytes_per_reading", folder)
    return [
        Figure(name, measured[name], "bytes", None, "", _TARGETS[name], f"in {measured['records']} records")
        for name in names
    ]


def main(folder: Path) -> None:
    """Print both as JSON."""
    disk = MeasuredDisk(folder / "image", folder / "disk")
    with (
        ModbusDevice(folder, units=UNITS, registers=REGISTERS) as device,
        NatsServer(folder, sync="2m") as broker,
        Line(folder, broker.port) as line,
    ):
        text = load.configuration(
            device.port,
            f"nats://127.0.0.1:{line.port}",
            units=UNITS,
            registers=REGISTERS,
            every=f"{1000 // HERTZ}ms",
            channel='outbox = { size = "24MiB" }',
            state=disk.place / "state",
        )
        config = load.prepare(folder, broker.url, text)
        with Agent(folder, config) as agent:
            load.wait_delivering(agent)
            time.sleep(WARM_UP)
            began, sent, written = time.monotonic(), line.bytes_sent(), disk.written
            time.sleep(SECONDS)
            readings = UNITS * REGISTERS * HERTZ * (time.monotonic() - began)
            sent, written = line.bytes_sent() - sent, disk.written - written
        found = load.report(config)
    disk.unmount()
    if sum(load.lost(found).values()) > found["cycles_expected"] / 100 or found["failed"]:
        raise RuntimeError(f"not all arrived: {load.lost(found)}, {found['failed']} failed")
    wire, device_bytes = sent / readings, written / readings
    print(
        json.dumps(
            {
                "wire_bytes_per_reading": wire,
                "device_bytes_per_reading": device_bytes,
                "records": found["records"],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
