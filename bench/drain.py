"""How long a day's backlog takes over a link with 80 ms to the broker and back: 86,400 records of 50 readings, one a
second, signed by the agent's key, which waited in the outbox. Afterwards a consumer verifies all of them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from agent.sealing.sealer import Facts
from agent.signer import KeySigner
from bench import backlog, load
from bench.figure import Figure
from bench.line import Line
from bench.modbus_device import ModbusDevice
from testbed.child import wait_for
from testbed.processes import Agent, NatsServer

RECORDS, POINTS, ROUND_TRIP = 86_400, 50, 0.08
WINDOW = 64  # records on their way at a time
_SIZE = 128 << 20


def figure() -> Figure:
    """From the first acknowledgement to the last."""
    with (
        tempfile.TemporaryDirectory() as name,
        ModbusDevice(Path(name), units=1, registers=POINTS) as device,
        NatsServer(Path(name), sync="2m") as broker,
        Line(Path(name), broker.port, round_trip=ROUND_TRIP) as line,
    ):
        folder = Path(name)
        text = load.configuration(
            device.port,
            f"nats://127.0.0.1:{line.port}",
            units=1,
            registers=POINTS,
            every="1s",
            channel=f'outbox = {{ size = "{_SIZE >> 20}MiB" }}\ndrain = {{ spread = "0s" }}',
        )
        config = load.prepare(folder, broker.url, text)
        (folder / "state").mkdir()
        facts = Facts(bytes(16), "0.1.0", load.SITE, (), load.CHANNEL, load.TOPIC, bytes(32), 1000)
        signer = KeySigner(bytes.fromhex((folder / "key").read_text().strip()))
        ring = folder / "state" / f"{load.CHANNEL}.ring"
        backlog.write(ring, size=_SIZE, records=RECORDS, points=POINTS, signer=signer, facts=facts)
        seconds, sent = _drain(folder, config, line)
        found = load.report(config)
        if load.lost(found) or found["failed"] or found["records"] < RECORDS:
            raise RuntimeError(f"{found['records']} records arrived: {load.lost(found)}, {found['failed']} failed")
    floor = RECORDS / WINDOW * ROUND_TRIP
    note = f"{RECORDS / seconds:,.0f} records/s, {sent / RECORDS:.0f} bytes sent a record"
    name = f"{WINDOW} of them each {ROUND_TRIP * 1000:.0f} ms"
    return Figure("drain", seconds, "s", floor, name, 180, note)


def _drain(folder: Path, config: Path, line: Line) -> tuple[float, int]:
    with Agent(folder, config) as agent:
        agent.wait_ready()
        wait_for(
            lambda: "broker connected" in agent.status,
            timeout=30,
            what="the agent to connect",
        )
        began, before = time.monotonic(), line.bytes_sent()
        wait_for(lambda: " 0 waiting, broker connected" in agent.status, timeout=600, what="the backlog to be sent")
        return time.monotonic() - began, line.bytes_sent() - before
