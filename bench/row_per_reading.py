"""The reference: an agent that handles every reading on its own, as gateways commonly do, and loses none.

It reads the agent's registers on the agent's schedule with pymodbus's client. Then each reading is one object, one CBOR
map, one secp256k1 signature, one row of SQLite (WAL, synchronous FULL; the rows of a scan share a transaction), and one
JetStream message, published with nats-py and acknowledged; then the row is marked as sent, again one transaction a
scan. What can be had more cheaply is: libsecp256k1 signs a SHA-256 through coincurve, statements are prepared, no
thread is used.

``python -m bench.row_per_reading DEVICE_PORT UNITS REGISTERS HERTZ NATS_URL STREAM FILE``; the stream is made if it is
missing and takes ``STREAM.>``. On SIGTERM the scans that have begun are finished; then it prints ``sent N`` and ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cbor2
import coincurve
import nats
from nats.js import JetStreamContext
from pymodbus.client import AsyncModbusTcpClient

from bench.modbus_device import FIRST_UNIT
from bench.on_uvloop import run
from testbed.processes import Process

STREAM = "ROWS"


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one point."""

    number: int
    device: str
    point: str
    at_ns: int
    value: int

    def signed(self, key: coincurve.PrivateKey) -> bytes:
        """A CBOR array of the reading's map and its signature."""
        content = {"n": self.number, "d": self.device, "p": self.point, "t": self.at_ns, "v": self.value}
        payload = cbor2.dumps(content)
        return cbor2.dumps([payload, key.sign_recoverable(hashlib.sha256(payload).digest(), hasher=None)])


class Rows:
    """The table of what was read."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        for setting in ("journal_mode = WAL", "synchronous = FULL"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS reading (number INTEGER PRIMARY KEY, message BLOB, sent INTEGER DEFAULT 0)"
        )

    def last(self) -> int:
        """The highest number so far."""
        return int(self._database.execute("SELECT coalesce(max(number), 0) FROM reading").fetchone()[0])

    def add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """On disk when it returns."""
        with self:
            self._database.executemany("INSERT INTO reading (number, message) VALUES (?, ?)", rows)

    def mark(self, numbers: Iterable[int]) -> None:
        """These are sent; on disk when it returns."""
        with self:
            self._database.executemany("UPDATE reading SET sent = 1 WHERE number = ?", ((n,) for n in numbers))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def count(self, *, sent: bool) -> int:
        """How many are sent, or are not."""
        return int(self._database.execute("SELECT count(*) FROM reading WHERE sent = ?", (sent,)).fetchone()[0])

    def __enter__(self) -> Self:
        self._database.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.execute("ROLLBACK" if error else "COMMIT")


class RowAgent:
    """Reads, keeps and sends."""

    def __init__(self, rows: Rows, stream: JetStreamContext, subject: str) -> None:
        self._rows = rows
        self._stream = stream
        self._subject = subject
        self._key = coincurve.PrivateKey()
        self._number = rows.last()

    async def take(self, device: str, at_ns: int, values: Iterable[int]) -> None:
        """One scan of a device; when it returns the broker has all of it, and the table says so."""
        readings = []
        for register, value in enumerate(values):
            self._number += 1
            readings.append(Reading(self._number, device, f"R{register}", at_ns, value))
        messages = [(reading.number, reading.signed(self._key)) for reading in readings]
        self._rows.add(messages)
        subject = f"{self._subject}.{device}"
        acknowledged = [
            await self._stream.publish_async(subject, message, headers={"Nats-Msg-Id": str(number)})
            for number, message in messages
        ]
        for ack in acknowledged:
            await ack
        self._rows.mark(number for number, _ in messages)


class RowPerReading(Process):
    """The reference as a process of its own. Each start goes on in the same file and stream."""

    def __init__(
        self, folder: Path, port: int, url: str, *, units: int, registers: int, hertz: float, stream: str = STREAM
    ) -> None:
        options = [port, units, registers, hertz, url, stream, folder / "rows.sqlite"]
        command = [sys.executable, "-m", "bench.row_per_reading", *map(str, options)]
        super().__init__(command, name="row-per-reading", folder=folder)


async def read(
    *, port: int, units: int, registers: int, hertz: float, url: str, stream: str, file: Path, ended: asyncio.Event
) -> int:
    """Until ``ended``; returns how many readings are sent. Raises RuntimeError if some are not."""
    client = AsyncModbusTcpClient("127.0.0.1", port=port, retries=0)
    await client.connect()
    broker = await nats.connect(url)
    jetstream = broker.jetstream()
    await jetstream.add_stream(name=stream, subjects=[f"{stream}.>"])
    rows = Rows(file)
    agent = RowAgent(rows, jetstream, stream)
    loop = asyncio.get_running_loop()

    async def poll(number: int) -> None:
        due = loop.time()
        while not ended.is_set():
            answer = await client.read_holding_registers(0, count=registers, device_id=FIRST_UNIT + number)
            if len(answer.registers) != registers:
                raise RuntimeError(f"d{number} answered {answer}")
            await agent.take(f"d{number}", time.time_ns(), answer.registers)
            due = max(due + 1 / hertz, loop.time() - 1 / hertz)  # a scan that is missed is not made up for
            await asyncio.sleep(due - loop.time())

    print("ready", flush=True)
    async with asyncio.TaskGroup() as polls:
        for number in range(units):
            polls.create_task(poll(number))
    client.close()
    await broker.close()
    sent, waiting = rows.count(sent=True), rows.count(sent=False)
    rows.close()
    if waiting:
        raise RuntimeError(f"{waiting} readings were not sent")
    return sent


async def main(port: str, units: str, registers: str, hertz: str, url: str, stream: str, file: str) -> None:
    """The command line."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sent = await read(
        port=int(port),
        units=int(units),
        registers=int(registers),
        hertz=float(hertz),
        url=url,
        stream=stream,
        file=Path(file),
        ended=ended,
    )
    print(f"sent {sent}", flush=True)


if __name__ == "__main__":
    run(main(*sys.argv[1:]))
