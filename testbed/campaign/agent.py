"""The agent of the campaign: ``python -m testbed.campaign.agent ORDERS KERNEL WRITES DEFECT run --config FILE``.

The real command; what lies between it and its machine obeys orders (testbed/bad_disk.py, testbed/wall_clock.py), and
WRITES is a file that holds what the next write of a batch is to suffer (``Writes``). DEFECT: one that it is given on
purpose (testbed/campaign/defects.py), "none".
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import sys
from pathlib import Path
from typing import Any

from testbed import bad_disk, wall_clock
from testbed.campaign import defects


class Writes:
    """What writes of an agent are to suffer; ``orders`` is the file."""

    def __init__(self, orders: Path) -> None:
        self.orders = orders

    def tear(self, seed: int, *, behind: int = 0, keep: str | None = None) -> None:
        """The one behind so many of the next ones reaches the disk in part, and then the power is cut. ``keep``: its
        "first" or its "last" records.
        """
        self._say({"torn": seed, "behind": behind, "keep": keep})

    def slow(self, seconds: float) -> None:
        """Each sync takes so long."""
        self._say({"slow": seconds})

    def heal(self) -> None:
        """None of that any more."""
        self.orders.unlink(missing_ok=True)

    def _say(self, order: dict[str, Any]) -> None:
        fresh = self.orders.with_suffix(".new")
        fresh.write_text(json.dumps(order))
        fresh.rename(self.orders)


def _obey(orders: Path) -> None:
    from agent.outbox.files import OsFiles

    write, sync = OsFiles.pwrite, OsFiles.fdatasync
    written = dict[int, int]()  # how many, by order

    def order() -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(orders.read_text())
        except FileNotFoundError:
            return {}
        return found

    def pwrite(self: OsFiles, fd: int, data: bytes, offset: int) -> None:
        now = order()
        seed, zeros = now.get("torn"), not data.strip(b"\0")
        if seed is not None and not zeros:
            written[seed] = written.get(seed, 0) + 1
        if seed is None or zeros or written[seed] <= now["behind"]:
            write(self, fd, data, offset)
            return
        chance = random.Random(seed)
        starts = [found.start() for found in re.finditer(b"REC1", data)][1:]
        between = starts and (chance.random() < 0.75 or now["keep"])
        cut = chance.choice(starts) if between else chance.randrange(len(data))
        beginning = chance.random() < 0.5 if now["keep"] is None else now["keep"] == "first"
        print(f"torn: {'up to' if beginning else 'from'} {cut} of {len(data)}, records at {starts}", file=sys.stderr)
        if beginning:
            write(self, fd, data[:cut], offset)
        else:
            write(self, fd, data[cut:], offset + cut)
        sync(self, fd)
        os.kill(os.getpid(), signal.SIGKILL)

    def fdatasync(self: OsFiles, fd: int) -> None:
        select.select([], [], [], order().get("slow", 0))  # time.sleep does not go with libfaketime
        sync(self, fd)

    OsFiles.pwrite, OsFiles.fdatasync = pwrite, fdatasync  # type: ignore[method-assign]


def main() -> int:
    """Be the agent."""
    orders, kernel, writes, defect = sys.argv[1:5]
    defects.give(defect)
    _obey(Path(writes))
    wall_clock.follow(Path(kernel))
    return bad_disk.main(Path(orders), sys.argv[5:])


if __name__ == "__main__":
    sys.exit(main())
