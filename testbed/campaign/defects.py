"""Defects that an agent is given on purpose: a campaign that does not find them is worth nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any


def _no_fsync() -> None:
    """What was written is taken for durable."""
    from agent.outbox.files import OsFiles

    OsFiles.fdatasync = lambda self, fd: None  # type: ignore[method-assign]


def _publish_before_persist() -> None:
    """A batch is written half a second after it was handed to the publisher."""
    from agent.outbox.files import RingFile

    read, write, sync = RingFile.read, RingFile.write, RingFile.sync
    waiting: list[Callable[[], None]] = []
    lock = threading.Lock()

    def do_all() -> None:
        with lock:
            while waiting:
                with suppress(OSError):
                    waiting.pop(0)()

    def write_later(self: RingFile, number: int, at: int, data: bytes) -> None:
        with lock:
            waiting.append(lambda: write(self, number, at, data))

    def sync_later(self: RingFile) -> None:
        with lock:
            waiting.append(lambda: sync(self))
        later = threading.Timer(0.5, do_all)
        later.daemon = True
        later.start()

    def read_all(self: RingFile, number: int, at: int = 0, length: int | None = None) -> bytes:
        do_all()
        return read(self, number, at, length)

    RingFile.read, RingFile.write, RingFile.sync = (  # type: ignore[method-assign]
        read_all,
        write_later,
        sync_later,
    )


def _no_prev_check() -> None:
    """A record counts at recovery whatever it follows."""
    from agent.outbox import ring

    real = ring.walk

    def walk(data: bytes, at: int, *, pos: int, prev: bytes | None, **rest: Any) -> Iterator[ring.Entry]:
        while (entry := next(real(data, at, pos=pos, prev=None, **rest), None)) is not None:
            yield entry
            at, pos = entry.end, entry.pos + 1

    ring.walk = walk


def _ack_before_durable() -> None:
    """A source is told that its message is kept when it was accepted."""
    from agent.sealing.batch import Receipt

    async def durable(self: Receipt) -> None:
        return

    Receipt.durable = durable  # type: ignore[method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "no-fsync": _no_fsync,
    "publish-before-persist": _publish_before_persist,
    "no-prev-check": _no_prev_check,
    "ack-before-durable": _ack_before_durable,
}


def give(name: str) -> None:
    """Give this process a defect."""
    DEFECTS[name]()
