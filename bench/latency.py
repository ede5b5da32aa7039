"""How long from a capture to the broker's acknowledgement, beside the three things that no agent can do without: the
device's answer, an fdatasync and the broker's answer, each measured alone before and after.

100 registers at 5 Hz, ``seal_within = "0s"``: each reading is a record of its own, on disk before it is sent. The
broker has one that listens to the agent's reply subjects, too: what it hears is the acknowledgement that the agent
gets, at the same time. A capture begins where the record says so: when the registers were asked for.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import nats
from nats.aio.msg import Msg

from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Data, Plan
from bench import load
from bench.figure import Figure
from bench.modbus_device import FIRST_UNIT, ModbusDevice
from testbed.processes import Agent, NatsServer

REGISTERS, EVERY = 100, "200ms"
SKIPPED, RECORDS = 10, 400
ALONE, PAUSE = 100, 0.05  # times each of the three, s between
MS = 1e6  # ns


def figure() -> Figure:
    """The 99th percentile, beside the sum of the three medians."""
    with (
        tempfile.TemporaryDirectory() as name,
        ModbusDevice(Path(name), units=1, registers=REGISTERS) as device,
        NatsServer(Path(name)) as broker,
    ):
        folder = Path(name)
        text = load.configuration(
            device.port,
            broker.url,
            units=1,
            registers=REGISTERS,
            every=EVERY,
            channel='seal_within = "0s"',
        )
        config = load.prepare(folder, broker.url, text)
        alone = asyncio.run(_alone(folder, device.port, broker.url))
        took = sorted(asyncio.run(_observe(folder, config, broker.url)))
        alone += asyncio.run(_alone(folder, device.port, broker.url))
    parts = [statistics.median(each) for each in zip(*alone, strict=True)]
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    note = f"median {p50:.2f} ms; alone: device {parts[0]:.2f}, fdatasync {parts[1]:.2f}, broker {parts[2]:.2f} ms"
    return Figure("latency_p99", p99, "ms", sum(parts), "device, fdatasync and broker alone", 4, note)


async def _observe(folder: Path, config: Path, url: str) -> list[float]:
    """Of so many records the ms from the beginning of the capture to the acknowledgement."""
    client = await nats.connect(url)
    records = dict[str, bytes]()  # by reply subject, in order
    acknowledged = dict[str, int]()  # by reply subject: boot time
    done = asyncio.Event()

    async def sent(message: Msg) -> None:
        records[message.reply] = message.data

    async def answered(message: Msg) -> None:
        acknowledged[message.subject] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if len(acknowledged) >= SKIPPED + RECORDS:
            done.set()

    await client.subscribe("dx.>", cb=sent)
    await client.subscribe("_INBOX.>", cb=answered)
    await client.flush()
    with Agent(folder, config):
        await asyncio.wait_for(done.wait(), 300)
    await client.close()
    return _latencies(records, acknowledged)


def _latencies(records: Mapping[str, bytes], acknowledged: Mapping[str, int]) -> list[float]:
    plan: Plan | None = None
    took = []
    for reply, envelope in records.items():
        body = decode_record(decode_head(unpack(envelope).payload), plan).body
        if isinstance(body, Plan):
            plan = body
        elif isinstance(body, Data) and reply in acknowledged:
            assert plan is not None, "it comes first"
            (reading,) = body.frames
            schedule = plan.groups[0].schedule
            assert schedule is not None, "it is polled"
            captured = schedule.due(reading.cycle) + reading.late_us * 1000
            took.append((acknowledged[reply] - captured) / MS)
    return took[-RECORDS:]


async def _alone(folder: Path, device: int, url: str) -> list[tuple[float, float, float]]:
    """Ms that a request to the device takes, an fdatasync of a block that is there already, and an acknowledgement of
    1 KiB by the broker; one after the other at the same pace as the agent's.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", device)
    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(name="ALONE", subjects=["alone"])
    file = os.open(folder / "alone", os.O_RDWR | os.O_CREAT)
    os.pwrite(file, bytes(ALONE * 4096), 0)
    os.fsync(file)
    found = []
    for number in range(ALONE):
        at = [time.perf_counter()]
        writer.write(struct.pack(">HHHBBHH", number, 0, 6, FIRST_UNIT, 3, 0, REGISTERS))
        await reader.readexactly(9 + 2 * REGISTERS)
        at.append(time.perf_counter())
        os.pwrite(file, os.urandom(4096), number * 4096)
        os.fdatasync(file)
        at.append(time.perf_counter())
        await stream.publish("alone", bytes(1024))
        at.append(time.perf_counter())
        device_ms, disk_ms, broker_ms = ((after - before) * 1000 for before, after in pairwise(at))
        found.append((device_ms, disk_ms, broker_ms))
        await asyncio.sleep(PAUSE)
    os.close(file)
    writer.close()
    await client.close()
    return found
