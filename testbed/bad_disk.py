"""The agent on a disk that fails on demand: ``bad_disk.py ORDERS run --config FILE``, the real command whose files have
faults. Nothing else of it is touched.

ORDERS is a file; what it says holds from the next call of the agent on. Empty or not there: the disk is good. Otherwise
JSON, written by ``Disk.fail``.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Disk:
    """What the disk of an agent is to do; ``orders`` is the file."""

    def __init__(self, orders: Path) -> None:
        self.orders = orders
        self._number = 0

    def command(self, *arguments: str | Path) -> list[str]:
        """What runs the agent on it."""
        return [sys.executable, str(Path(__file__)), str(self.orders), *map(str, arguments)]

    def fail(
        self, *calls: str, how: str = "failed", ring: str = "", times: int = 1 << 30, error: int = errno.EIO
    ) -> None:
        """From now on the next ``times`` of these calls ("pread", "pwrite", "fdatasync") on ring files whose name
        contains ``ring`` end with an error, and are carried out nevertheless if ``how`` is "applied".
        """
        self._number += 1
        order = {"number": self._number, "calls": calls, "how": how, "ring": ring, "times": times, "errno": error}
        fresh = self.orders.with_suffix(".new")
        fresh.write_text(json.dumps(order))
        fresh.rename(self.orders)

    def heal(self) -> None:
        """It is good again."""
        self.orders.unlink(missing_ok=True)


class _Faults:
    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._done: dict[int, int] = {}  # by number of the order

    def next(self, call: str, fd: int) -> dict[str, Any] | None:
        """The order that this call is to follow."""
        try:
            order: dict[str, Any] = json.loads(self._orders.read_text())
        except FileNotFoundError:
            return None
        name = os.readlink(f"/proc/self/fd/{fd}")
        done = self._done.get(order["number"], 0)
        if call not in order["calls"] or not name.endswith(".ring") or order["ring"] not in name:
            return None
        if done >= order["times"]:
            return None
        self._done[order["number"]] = done + 1
        return order


def main(orders: Path, arguments: list[str]) -> int:
    """Be the agent."""
    sys.path.insert(0, str(ROOT))
    from agent import cli
    from agent.outbox.files import OsFiles

    faults = _Faults(orders)

    def faulty(call: str) -> None:
        real = getattr(OsFiles, call)

        def wrapped(self: OsFiles, fd: int, *rest: Any) -> Any:
            order = faults.next(call, fd)
            if order is None:
                return real(self, fd, *rest)
            if order["how"] == "applied":
                real(self, fd, *rest)
            raise OSError(order["errno"], os.strerror(order["errno"]))

        setattr(OsFiles, call, wrapped)

    for call in ("pread", "pwrite", "fdatasync"):
        faulty(call)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
