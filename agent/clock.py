"""The machine's clocks (CLOCK_REALTIME, CLOCK_BOOTTIME), and the boot id that says to which boot a time belongs."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import anyio

_LONGEST_SLEEP = 60.0  # s; the event loop's clock stands still in suspend, CLOCK_BOOTTIME does not


class SystemClock:
    """Implements the ``Clock`` port."""

    def wall(self) -> int:
        """Ns since 1970-01-01 UTC."""
        return time.time_ns()

    def boot(self) -> int:
        """Ns of CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def sleep_until(self, boot: int) -> None:
        """Return once CLOCK_BOOTTIME is not before ``boot``."""
        while (left := boot - self.boot()) > 0:  # noqa: ASYNC110 - nobody sets an event for a clock
            await anyio.sleep(min(left / 1e9, _LONGEST_SLEEP))


def boot_id() -> bytes:
    """16 bytes that differ at every boot (Linux: /proc/sys/kernel/random/boot_id)."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
