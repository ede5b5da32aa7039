"""Hold namespaces of users, mounts and processes in which root does as it likes, and nothing of it reaches the machine.

Usage: ``apart.py CGROUP2 [MACHINE EMULATOR]``, as root, run as a script and without site packages. It prints ``ready
PID`` with the process whose namespaces they are (nsenter(1) enters them), and holds them until it is ended: then all
that runs in there is killed and all that is mounted there is gone.

In there /sys/fs/cgroup is the second version of control groups (mounted at ``CGROUP2`` outside), which crun insists on.
Programs of ``MACHINE`` are run by ``EMULATOR``, a static program: binfmt_misc belongs to a user namespace since Linux
6.7. An older kernel has one for the whole machine; there it fails and changes nothing, for only the namespace's own
can be mounted in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

NEWNS, NEWUSER, NEWPID = 0x00020000, 0x10000000, 0x20000000  # unshare(2)
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # mount(2)
PR_SET_PDEATHSIG = 1  # prctl(2)
IDS = "0 0 65536"  # users and groups: the same inside as outside
MACHINES = {"arm64": 0xB7}  # e_machine of ELF: AArch64
BINFMT = "/proc/sys/fs/binfmt_misc"

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raises OSError if a call to the system failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    """mount(2). Raises OSError."""
    checked(_libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None), f"mount at {target}")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def rule(machine: str, emulator: str) -> bytes:
    """The line for binfmt_misc that has ``emulator`` run 64-bit little-endian ELF programs of a machine.

    ``O``: it gets the program opened; ``C``: with the program's own rights; ``F``: it is opened now, so that it need
    not be there in another root.
    """
    magic = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0" + MACHINES[machine].to_bytes(2, "little")
    # any padding of e_ident, and ET_EXEC as well as ET_DYN
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe" + b"\xff" * 3
    quoted = [b"".join(b"\\x%02x" % byte for byte in each) for each in (magic, mask)]
    return b":%s:M::%s:%s:%s:OCF" % (machine.encode(), *quoted, emulator.encode())


def first_process(cgroup2: str, emulation: list[str]) -> None:
    """Set up what is seen in there, say so, and collect what ends, until killed."""
    outside = os.readlink("/proc/self")  # of the /proc that does not know our namespace
    mount("proc", "/proc", "proc")
    mount(cgroup2, "/sys/fs/cgroup", flags=MS_BIND)
    mount("tmpfs", "/dev/shm", "tmpfs")
    if emulation:
        mount("binfmt_misc", BINFMT, "binfmt_misc")
        Path(BINFMT, "register").write_bytes(rule(*emulation))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print(f"ready {outside}", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def inside(cgroup2: str, emulation: list[str], mapped: int, unshared: int) -> None:
    """In the new namespaces, once users and groups are mapped: start the first process, and end with it."""
    die_with_parent()
    checked(_libc.unshare(NEWUSER | NEWNS | NEWPID), "unshare")
    os.close(unshared)
    os.read(mapped, 1)
    os.setgid(0)
    os.setuid(0)
    die_with_parent()  # which a change of users takes back
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    if (first := os.fork()) == 0:
        die_with_parent()
        first_process(cgroup2, emulation)
    os.waitpid(first, 0)


def main() -> None:
    """Exits with 1 and words if it cannot be done."""
    cgroup2, *emulation = sys.argv[1:]
    unshared, unshared_end = os.pipe()
    mapped_end, mapped = os.pipe()
    if (child := os.fork()) == 0:
        os.close(unshared)
        os.close(mapped)
        try:
            inside(cgroup2, emulation, mapped_end, unshared_end)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os.close(unshared_end)
    os.close(mapped_end)
    os.read(unshared, 1)
    with contextlib.suppress(OSError):  # the child has said what failed
        for what in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{what}").write_text(IDS)
        os.close(mapped)
    os.waitpid(child, 0)
    sys.exit(1)


if __name__ == "__main__":
    main()
