"""Bytes that reach the device per byte of payload, with commits of 16 KiB: the outbox, beside SQLite with a row and a
transaction for each (``journal_mode = WAL``, ``synchronous = FULL``), on the same ext4. Both have gone round once
before: the outbox's first round writes each segment twice, so that no later commit has to tell the file system.

``python -m bench.device_bytes FOLDER`` measures where it may mount.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from agent.evidence.record import link_of
from agent.model import Link
from agent.outbox import Outbox
from bench.disk import MeasuredDisk, inside
from bench.figure import Figure, interleaved

COMMIT, WARM_UP, COMMITS = 16 << 10, 600, 1000
SIZE = 8 << 20  # of the outbox; SQLite's rows are removed so that it holds as much


def figure() -> Figure:
    """Both in three interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        outbox, sqlite = inside("bench.device_bytes", folder)
    note = f"target also of the outbox alone: 1.5 ({'met' if outbox <= 1.5 else 'MISSED'})"
    return Figure("device_bytes_per_payload_byte", outbox, "bytes", sqlite, "SQLite, WAL, FULL", 1 / 3, note)


def main(folder: Path) -> None:
    """Print both as JSON."""
    disk = MeasuredDisk(folder / "image", folder / "disk")

    def per_byte(opened: Callable[[Path], AbstractContextManager[Callable[[], None]]]) -> float:
        (place := disk.place / "work").mkdir()
        with opened(place) as commit:
            for _ in range(WARM_UP):
                commit()
            before = disk.written
            for _ in range(COMMITS):
                commit()
            written = disk.written - before
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        return written / (COMMIT * COMMITS)

    print(json.dumps(interleaved([lambda: per_byte(_outbox), lambda: per_byte(_sqlite)])))
    disk.unmount()


@contextmanager
def _outbox(folder: Path) -> Iterator[Callable[[], None]]:
    outbox = Outbox.open(folder / "ring", channel="bench", size=SIZE, inspect=link_of)
    link = Link(os.urandom(16), 0, bytes(32), bytes(32))

    def commit() -> None:
        nonlocal link
        link = Link(link.stream, link.seq + 1, link.digest, os.urandom(32))
        record = os.urandom(COMMIT), link
        outbox.settle(outbox.append([record], new_segment=not outbox.fits(COMMIT, 1))[-1])

    yield commit
    outbox.close()


@contextmanager
def _sqlite(folder: Path) -> Iterator[Callable[[], None]]:
    base = sqlite3.connect(folder / "base.sqlite", isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    base.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY, envelope BLOB NOT NULL)")

    def commit() -> None:
        row = base.execute("INSERT INTO outbox (envelope) VALUES (?)", (os.urandom(COMMIT),)).lastrowid or 0
        if row % 100 == 0:  # what was delivered goes, a hundred at a time
            base.execute("DELETE FROM outbox WHERE id <= ?", (row - SIZE // COMMIT,))

    yield commit
    base.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
