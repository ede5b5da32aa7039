"""Become another program on a machine that seems to have booted just now: CLOCK_BOOTTIME and CLOCK_MONOTONIC begin near
zero, and the boot id is another one.

Usage: ``reboot.py UPTIME BOOT_ID PROGRAM [ARGUMENT...]``: ``UPTIME`` in s, what the clocks show now; ``BOOT_ID`` a file
that holds one. Run as a script. Namespaces of this process alone: a time namespace (time_namespaces(7)), a mount
namespace in which the file lies over the kernel's, and without root a user namespace. The process id stays the same.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWUSER = 0x80, 0x20000, 0x10000000  # unshare(2)
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # mount(2)
BOOT_ID = b"/proc/sys/kernel/random/boot_id"


def main() -> None:
    """Change the clocks and the boot id, then execute the program. Exits 125 if the kernel does not allow it."""
    uptime, boot_id, command = float(sys.argv[1]), os.fsencode(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result:
            print(f"{what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            sys.exit(125)

    user, group = os.geteuid(), os.getegid()
    must(libc.unshare(CLONE_NEWTIME | CLONE_NEWNS | (CLONE_NEWUSER if user else 0)), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    must(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    must(libc.mount(boot_id, BOOT_ID, None, MS_BIND, None), "mount boot_id")
    offsets = ""
    for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)):
        seconds, ns = divmod(int(uptime * 1e9) - time.clock_gettime_ns(clock), 1_000_000_000)
        offsets += f"{name} {seconds} {ns}\n"
    Path("/proc/self/timens_offsets").write_text(offsets)
    with open("/proc/self/ns/time_for_children") as namespace:
        must(libc.setns(namespace.fileno(), CLONE_NEWTIME), "setns")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
