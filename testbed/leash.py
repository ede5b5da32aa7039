"""Become another program that the kernel kills when the thread that started us ends.

Usage: ``leash.py PARENT_PID PROGRAM [ARGUMENT...]``. Run as a script and without site packages. A program of its own
and not a ``preexec_fn``, which is not safe beside threads (and warns so from CPython 3.12 on). The process id stays the
same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); the setting survives execve of an ordinary program


def main() -> None:
    """Tie us to the parent, then execute the program. Exits 127 if it cannot be executed."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before prctl took hold
        sys.exit("the parent is gone")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by the interpreter, and that would outlast execve
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(127)


if __name__ == "__main__":
    main()
