"""What this process takes: memory and CPU, as the kernel counts them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def usage() -> dict[str, Any]:
    """``memory_bytes``: the resident set; ``cpu_s``: user and system time since it began. What the kernel does not say
    is None.
    """
    memory = None
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        memory = int(file.read().split()[1]) * _PAGE  # made up in memory: no disk is waited for
    return {"memory_bytes": memory, "cpu_s": time.process_time()}
