"""Keeps a process that holds a key out of core files, and out of reach of other processes of its user.

RLIMIT_CORE alone does not do: the kernel ignores it when cores go to a program (core(5), "Piping core dumps"), and any
process of the same user could read the memory (ptrace(2)). PR_SET_DUMPABLE covers both. Root can still look, and what
the kernel swaps out is on disk: use encrypted swap, or none.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_PR_SET_DUMPABLE = 4  # prctl(2)


def keep_to_ourselves() -> None:
    """Of this process, from now on; a program that it starts decides for itself."""
    with suppress(OSError, ValueError):  # a sandbox may forbid it, and has then done it itself
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ImportError, OSError, AttributeError, MemoryError):  # not Linux, or no memory that is W and X
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
