"""The machine below the agent: kernel, Python, memory, swap, and whether its log outlives a restart."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.control.status_text import size
from agent.doctor.finding import Finding, fault, note, ok, warning

_KERNEL, _PYTHON = (5, 10), (3, 11)  # the oldest that the agent is tried on
_LITTLE = 48 << 20  # bytes


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """``available``: bytes of memory, None if not known; ``swaps``: what is swapped to; ``keeps_log``: None if there is
    no journal.
    """

    kernel: str
    python: tuple[int, int]
    available: int | None
    swaps: tuple[str, ...]
    keeps_log: bool | None


def look(*, proc: Path = Path("/proc"), log: Path = Path("/var/log/journal")) -> SystemFacts:
    """Blocks."""
    available, swaps = None, list[str]()
    with suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError):
        swaps = [line.split()[0] for line in (proc / "swaps").read_text().splitlines()[1:] if line.split()]
    keeps_log = log.is_dir() if Path("/run/systemd/system").is_dir() else None
    return SystemFacts(os.uname().release, sys.version_info[:2], available, tuple(swaps), keeps_log)


def judge(facts: SystemFacts) -> Iterator[Finding]:
    """What is to be said of it."""
    numbers = re.match(r"(\d+)\.(\d+)", facts.kernel)
    python = ".".join(map(str, facts.python))
    if numbers and (int(numbers[1]), int(numbers[2])) < _KERNEL:
        why = "the agent is not tried on it, and it gets no fixes any more"
        found, remedy = f"Linux {facts.kernel} is old", "Debian 12 or newer"
        yield warning("system", found, why=why, remedy=remedy, looked_at="uname")
    if facts.python < _PYTHON:
        why, remedy = "the agent needs 3.11", "install it as docs/operating.md says"
        yield fault("system", f"Python {python} is too old", why=why, remedy=remedy)
    if facts.available is not None and facts.available < _LITTLE:
        found = f"{size(facts.available)} of memory are left"
        why = "the kernel ends a process when none is left, perhaps the agent"
        remedy = "ps aux --sort=-rss | head: what else needs to run here?"
        yield warning("system", found, why=why, remedy=remedy, looked_at="/proc/meminfo")
    else:
        room = "" if facts.available is None else f", {size(facts.available)} of memory left"
        yield ok("system", f"Linux {facts.kernel}, Python {python}{room}")
    disks = [each for each in facts.swaps if "zram" not in each]
    if disks:
        why = "what the agent has in memory, its key too, may be found on that disk later, and it wears a card"
        remedy = "swapoff and take it out of /etc/fstab, or encrypt it"
        yield note("system", f"swaps to {', '.join(disks)}", why=why, remedy=remedy, looked_at="/proc/swaps")
    if facts.keeps_log is False:
        why = "after a restart nothing tells what went wrong before"
        remedy = "mkdir /var/log/journal; systemctl restart systemd-journald (it writes to the disk then)"
        found = "the log is in memory only"
        yield note("system", found, why=why, remedy=remedy, looked_at="/var/log/journal")
