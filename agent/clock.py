"""The machine's clocks (CLOCK_REALTIME, CLOCK_BOOTTIME), how good the wall clock is as the kernel knows it, and the
boot id that says to which boot a time belongs.

The kernel is only asked (adjtimex(2) with modes 0, which takes no right); nothing here sets a clock.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio

from agent.model import ClockQuality, ClockState

_LONGEST_SLEEP = 60.0  # s; the event loop's clock stands still in suspend, CLOCK_BOOTTIME does not
_STA_UNSYNC = 0x40  # status bit of struct timex
_TIME_ERROR = 5  # what adjtimex returns while nobody keeps the clock

log = logging.getLogger(__name__)


class SystemClock:
    """Implements the ``Clock`` port. ``read``: asks the kernel for the result, status and maxerror (us) of adjtimex;
    raises OSError. The log has a line each time the state is another one.
    """

    def __init__(self, read: Callable[[], tuple[int, int, int]] | None = None) -> None:
        self._read = read
        self._told: ClockState | None = None

    def wall(self) -> int:
        """Ns since 1970-01-01 UTC. Linux lets nobody set a time before it; what else says so (a faked clock) counts as
        its beginning, for a record cannot say more.
        """
        return max(0, time.time_ns())

    def boot(self) -> int:
        """Ns of CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def quality(self) -> ClockQuality:
        """What the kernel says of the wall clock, UNKNOWN if it does not say anything.

        ``error_us`` is its maxerror while the clock is synchronised. Without a daemon that keeps the clock that number
        is a constant, and no bound of anything.
        """
        try:
            if self._read is None:
                self._read = _adjtimex()
            result, status, maxerror = self._read()
        except (ImportError, AttributeError, OSError) as error:  # no ctypes, no adjtimex, or a sandbox forbids it
            self._tell(ClockState.UNKNOWN, error)
            return ClockQuality()
        if result == _TIME_ERROR or status & _STA_UNSYNC:
            self._tell(ClockState.NOT_SYNCHRONISED)
            return ClockQuality(ClockState.NOT_SYNCHRONISED)
        self._tell(ClockState.SYNCHRONISED)
        return ClockQuality(ClockState.SYNCHRONISED, max(0, maxerror))

    def _tell(self, state: ClockState, error: Exception | None = None) -> None:
        """In the log, if it is news."""
        if state is self._told:
            return
        self._told = state
        if state is ClockState.SYNCHRONISED:
            log.info("clock synchronised")
        elif state is ClockState.NOT_SYNCHRONISED:
            log.warning("clock not synchronised, and every record says so")
        else:
            log.warning("state of the clock cannot be read, and every record says so error=%s", error)

    async def sleep_until(self, boot: int) -> None:
        """Return once CLOCK_BOOTTIME is not before ``boot``."""
        while (left := boot - self.boot()) > 0:  # noqa: ASYNC110 - nobody sets an event for a clock
            await anyio.sleep(min(left / 1e9, _LONGEST_SLEEP))


def boot_id() -> bytes:
    """16 bytes that differ at every boot (Linux: /proc/sys/kernel/random/boot_id)."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


def _adjtimex() -> Callable[[], tuple[int, int, int]]:
    """What asks the kernel, by the C library. Raises ImportError, AttributeError, OSError where there is none."""
    import ctypes  # takes 10 ms, and only the agent itself asks

    class Timex(ctypes.Structure):
        """The beginning of struct timex (adjtimex(2)), which is 208 bytes long where a long has 64 bits."""

        _fields_ = (
            ("modes", ctypes.c_uint),  # 0: nothing is set
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_char * 256),
        )

    function = ctypes.CDLL(None, use_errno=True).adjtimex
    function.argtypes, function.restype = (ctypes.POINTER(Timex),), ctypes.c_int

    timex = Timex()

    def read() -> tuple[int, int, int]:
        timex.modes = 0
        result = function(timex)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result, timex.status, timex.maxerror

    return read
