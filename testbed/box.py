"""A box with Debian on it, booted with its own systemd: systemd-nspawn on a root that mmdebstrap makes. Needs root.

What happens in a box is forgotten when it stops: it runs on an overlay in memory. It shares the network of the machine,
so that brokers and devices of a test are on its own loopback address. Limits of memory and processes do not hold in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import provision
from testbed.child import Process

_ARCHIVE = "deb [signed-by={keyring}] http://deb.debian.org/debian {suite} main"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BOX = ("systemd", "systemd-sysv", "dbus", "python3", "ca-certificates")  # what a small Debian has, and the package asks
_LONGEST = 200  # characters of a folder's name
# A hook of mmdebstrap; $1 is the folder.
_KNOWN = """\
mkdir -p "$1"/var/lib/dpkg
for package in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$package"
    echo "Status: install ok installed"
    echo
done > "$1"/var/lib/dpkg/status
"""
# Its own control group, and nothing of the machine's others in sight: systemd wants the second version alone.
_SCRIPT = """\
set -e
echo $$ > {group}/cgroup.procs
umount -R /sys/fs/cgroup 2>/dev/null || umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec {nspawn}
"""


class BoxError(Exception):
    """A command in a box, or what makes one, failed; the message holds its output."""


def debian(
    suite: str,
    *,
    packages: Sequence[str] = BOX,
    variant: str = "minbase",
    machine: str = "",
    by: Callable[..., object] | None = None,
) -> Path:
    """The folder of a Debian, made at the first call; it is not changed afterwards. Raises BoxError.

    ``variant``: of mmdebstrap; "extract" only unpacks, which is faster and does for programs that need no set-up; dpkg
    takes the packages for installed.
    ``machine``: another than ours, by Debian's name. ``by``: runs a command (testbed/engine.py, where programs of that
    machine run).
    """
    found = provision.program("mmdebstrap")
    if found is None:
        raise BoxError("no mmdebstrap: python3 provision.py debian makes it ready")
    name = "-".join(filter(None, (suite, machine, variant, *packages)))
    if len(name) > _LONGEST:
        name = f"{suite}-{machine}-{variant}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    home = provision.debian_folder().parent / "roots"
    home.mkdir(parents=True, exist_ok=True)
    root = home / name
    with provision.alone(home / f"{suite}{machine}.lock"):
        if not root.exists():
            with tempfile.TemporaryDirectory(prefix="new-", dir=home) as scratch:
                made = Path(scratch, "root")
                archive = _ARCHIVE.format(keyring=_KEYRING, suite=suite)
                options = ["--mode=root", f"--variant={variant}", "--quiet"]
                options += [f"--include={','.join(packages)}"] if packages else []
                if variant == "extract":
                    merged = found[0].parents[1] / "share/mmdebstrap/hooks/merged-usr/setup00.sh"
                    options += [f"--setup-hook={merged}", f"--extract-hook={_KNOWN}"]
                if machine:
                    options += [f"--architectures={machine}", "--skip=check/qemu"]
                command: list[str | Path] = [found[0], *options, suite, made, archive]
                if by is None:
                    run(command, environment=os.environ | found[1])
                else:
                    by(*command)
                made.rename(root)
    return root


class Box(Process):
    """A booted Debian. ``binds``: folders of the machine, by where they are to be seen, read-only."""

    def __init__(self, root: Path, *, folder: Path, binds: Mapping[str, Path]) -> None:
        found = provision.program("systemd-container")
        if found is None:
            raise BoxError("no systemd-nspawn: python3 provision.py debian makes it ready")
        self._group = cgroup2() / f"edge-agent-box.{os.getpid()}.{folder.name}"
        self._leader: int | None = None
        nspawn = [
            *(str(found[0]), f"--directory={root}", "--boot", "--volatile=overlay", "--register=no", "--keep-unit"),
            *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            f"--machine=edge-agent-box-{os.getpid()}-{folder.name}",
            # as on a machine of its own; whether the clock may be set is another question
            "--system-call-filter=adjtimex clock_adjtime",
            *(f"--bind-ro={path}:{place}" for place, path in binds.items()),
        ]
        script = _SCRIPT.format(group=shlex.quote(str(self._group)), nspawn=shlex.join(nspawn))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        super().__init__(command, name="box", folder=folder, environment=found[1])

    def start(self, timeout: float = 60.0) -> Self:
        """Boot it; returns when its systemd has done what it does at a start."""
        self._group.mkdir(exist_ok=True)
        super().start()
        self._leader = self._await(self._first_process, timeout=timeout, what="its first process")
        self._await(
            lambda: self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"),
            timeout=timeout,
            what="the end of its start",
        )
        return self

    def run(self, *command: str, check: bool = True, given: str = "", timeout: float = 120.0) -> str:
        """What a command in the box, as its root, writes to stdout. Raises BoxError if its exit status is not 0."""
        inside = ["nsenter", "--target", str(self._leader), *("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return run([*inside, *command], environment=environment, check=check, given=given, timeout=timeout)

    def close(self) -> None:
        """Shut it down, and take its control group away."""
        super().close()
        for path in sorted(self._group.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):
                    path.rmdir()
        with suppress(OSError):
            self._group.rmdir()

    def _first_process(self) -> int | None:
        """The process that is number 1 in there, once it is systemd."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    status = (entry / "status").read_text()
                    first = re.search(rf"^PPid:\t{self.pid}\n(?s:.*)^NSpid:.*\t1$", status, re.MULTILINE)
                    if first and status.startswith("Name:\tsystemd\n"):
                        return int(entry.name)
        return None


def cgroup2() -> Path:
    """Where the second version of control groups is mounted. Raises BoxError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise BoxError("no cgroup2 is mounted here")


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    check: bool = True,
    given: str = "",
    timeout: float = 600.0,
) -> str:
    """What a command writes to stdout. Raises BoxError, with all that it said, if its exit status is not 0 or it takes
    more than ``timeout`` s.
    """
    words = " ".join(map(str, command))
    try:
        done = subprocess.run(
            command, env=environment, input=given, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        so_far = b"".join(said for said in (error.stdout, error.stderr) if isinstance(said, bytes))
        raise BoxError(f"not ended after {timeout:g} s: {words}\n{so_far.decode('utf-8', 'replace')}") from error
    if check and done.returncode:
        raise BoxError(f"exit status {done.returncode} of: {words}\n{done.stdout}{done.stderr}")
    return done.stdout
