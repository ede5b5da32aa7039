"""A whole ARM64 machine with Debian on it, emulated by QEMU: its own kernel, systemd, disk, network card. Needs root.

Unlike in a box (testbed/box.py) limits of memory hold, what happens stays on the disk, and the power can be cut: then
all is gone that the kernel in there had not written yet. (What a real disk keeps in a cache of its own is not lost.)

Debian's packages are unpacked and not set up, for that would have to be emulated; what setting up would have done, as
far as the machine needs it, is done here. The machine takes commands on a port of its own, as root, and reaches servers
on the loopback address of this machine at ``HOST``. Its seconds are real ones, in which it does five to ten times less.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import provision
from testbed.box import debian
from testbed.child import Process, ProcessError
from testbed.processes import with_free_port

HOST = "10.0.2.2"  # this machine, as QEMU's user network shows it
SUITE = "bookworm"
PACKAGES = (
    *("apt", "base-files", "base-passwd", "bash", "busybox-static", "ca-certificates", "coreutils", "dash", "dbus"),
    *("debconf", "debianutils", "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers"),
    *("iproute2", "kmod", "libc-bin", "linux-image-cloud-arm64", "login", "mawk", "mount", "passwd", "perl-base"),
    *("procps", "python3", "sed", "systemd", "systemd-sysv", "tar", "tzdata", "usr-is-merged", "util-linux"),
)
NEEDS = ("qemu-system-arm", "busybox-static", "e2fsprogs", "kmod", "mmdebstrap")

_UP = "edge-agent-vm: up"
_COMMANDS = 7000  # port
_VIRTIO = (  # in this order
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_mmio"),
    "virtio_blk",
)
_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
for module in {modules}; do insmod /modules/$module.ko; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
mount -t ext4 /dev/vda /disk || poweroff -f
for place in dev proc sys; do mount --move /$place /disk/$place; done
exec switch_root /disk /sbin/init
"""
# What comes up to a NUL is the script; the answer is what it wrote, its exit status, and its errors.
_OBEY = """\
#!/bin/bash
IFS= read -r -d '' script
errors=$(mktemp)
bash -c "$script" </dev/null 2>"$errors"
printf '\\0%d\\0' $?
cat "$errors"
rm "$errors"
"""
_FILES = {
    "etc/hostname": "edge\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 edge\n",
    "etc/machine-id": "",
    "etc/modules-load.d/network.conf": "virtio_net\n",
    "usr/local/sbin/obey": _OBEY,
    "etc/systemd/system/network-card.service": f"""\
[Unit]
Description=The network card, with its address
After=systemd-modules-load.service
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
StandardError=journal+console
ExecStart=/bin/ip address add 10.0.2.15/24 dev eth0
ExecStart=/bin/ip link set eth0 up
ExecStart=/bin/ip route add default via {HOST}
""",
    "etc/systemd/system/obey.socket": f"[Socket]\nListenStream={_COMMANDS}\nAccept=yes\n",
    "etc/systemd/system/obey@.service": """\
[Service]
ExecStart=/bin/bash /usr/local/sbin/obey
StandardInput=socket
StandardError=journal
Environment=LC_ALL=C.UTF-8
""",
    "etc/systemd/system/up.service": f"""\
[Unit]
Description=Says that all has been started
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo {_UP} >/dev/console'
""",
}
_LINKS = {
    "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
    "etc/systemd/system/multi-user.target.wants/network-card.service": "../network-card.service",
    "etc/systemd/system/multi-user.target.wants/up.service": "../up.service",
    "etc/systemd/system/sockets.target.wants/obey.socket": "../obey.socket",
    "etc/systemd/system/serial-getty@ttyAMA0.service": "/dev/null",
    "usr/bin/awk": "mawk",
}


class VmError(Exception):
    """A command in the machine, or what makes one, failed; the message holds its output."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots: its disk, which it writes to, and from outside it kernel and first files."""

    disk: Path
    kernel: Path
    initrd: Path


@contextmanager
def debian_files() -> Iterator[Path]:
    """A folder with Debian's files for ARM64, and what setting them up would make; gone afterwards. Files are links to
    those that others use: none may be changed, only replaced. Raises VmError, BoxError.
    """
    root = debian(SUITE, packages=PACKAGES, variant="extract", machine="arm64")
    with tempfile.TemporaryDirectory(prefix="new-", dir=root.parent) as scratch:
        copied = Path(scratch, "root")
        _run(["cp", "--archive", "--link", root, copied])
        _set_up(copied)
        yield copied


def image(folder: Path, *, size: str = "1G") -> Image:
    """A new disk with Debian on it, and what boots it, below ``folder``. Raises VmError, BoxError."""
    made = Image(folder / "disk", folder / "vmlinuz", folder / "initrd.gz")
    with debian_files() as root, tempfile.TemporaryDirectory(dir=folder) as scratch:
        [kernel] = (root / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, made.kernel)
        _as("kmod", "depmod", "-b", root, kernel.name.removeprefix("vmlinuz-"))
        first = Path(scratch)
        _first_files(first, root)
        names = "".join(f"{path.relative_to(first)}\n" for path in sorted(first.rglob("*")))
        packed = _as("busybox-static", "cpio", "-o", "-H", "newc", given=names.encode(), folder=first)
        made.initrd.write_bytes(gzip.compress(packed, 1))
        file_system(made.disk, root, size=size)
    return made


def file_system(path: Path, content: Path, *, size: str) -> None:
    """An ext4 with what is in a folder, in a file that takes no more room than that. Raises VmError."""
    mke2fs, environment = _program("e2fsprogs")
    path.unlink(missing_ok=True)
    _run([mke2fs, "-q", "-t", "ext4", "-d", content, path, size], environment=environment)


def _set_up(root: Path) -> None:
    """What the packages' own scripts would do, and what makes this machine ours."""
    users = {name: (root / f"usr/share/base-passwd/{name}.master").read_text() for name in ("passwd", "group")}
    shadow = "".join(f"{line.partition(':')[0]}:*:19000:0:99999:7:::\n" for line in users["passwd"].splitlines())
    for name, text in {**_FILES, "etc/passwd": users["passwd"], "etc/group": users["group"]}.items():
        _write(root / name, text)
    _write(root / "etc/shadow", shadow, mode=0o640)
    for name, target in _LINKS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)  # so that the journal outlives a power cut


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _first_files(folder: Path, root: Path) -> None:
    """What the kernel starts with: enough to mount the disk."""
    for name in ("bin", "dev", "proc", "sys", "disk", "modules"):
        (folder / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", folder / "bin/busybox")
    for module in _VIRTIO:
        for path in (root / "lib/modules").rglob(f"{module}.ko"):
            shutil.copyfile(path, folder / "modules" / path.name)
    there = [name for name in _VIRTIO if (folder / "modules" / f"{name}.ko").exists()]  # the rest is in the kernel
    _write(folder / "init", _INIT.format(modules=" ".join(there)), mode=0o755)


class Vm(Process):
    """The machine. ``stick``: a folder that it has, read-only, at /stick. Started again it boots the same disk.

    ``kill`` cuts its power, and so do ``stop`` and ``close``.
    """

    def __init__(self, image: Image, *, folder: Path, stick: Path, memory: str = "1G") -> None:
        self._image = image
        self._stick = folder / "stick"
        self._port = 0
        self._memory = memory
        qemu, environment = _program("qemu-system-arm")
        self._qemu = [str(qemu), "-L", str(qemu.parents[1] / "share" / "qemu")]
        super().__init__([], name="vm", folder=folder, environment=environment)
        file_system(self._stick, stick, size="128M")

    def start(self, timeout: float = 300.0) -> Self:
        """Boot it; returns when its systemd has done what it does at a start. Raises ProcessError."""
        self._port = with_free_port(lambda port: self._boot(port, timeout))
        state = self.run("systemctl", "is-system-running", "--wait", check=False).strip()
        if state not in ("running", "degraded"):
            raise ProcessError(f"{self.name} is {state}")
        self.run("sh", "-c", "mkdir -p /stick && mount -o ro /dev/vdb /stick")
        return self

    def run(self, *command: str, check: bool = True, timeout: float = 300.0) -> str:
        """What a command in the machine, as its root, writes to stdout. Raises VmError if its exit status is not 0, and
        if it has not ended after ``timeout`` s.
        """
        words = shlex.join(command)
        deadline = time.monotonic() + timeout
        answer = bytearray()
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=timeout) as connection:
                connection.sendall(words.encode() + b"\0")
                while received := connection.recv(65536):
                    answer += received
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            raise VmError(f"{error!r} within {timeout:g} s: {words}{self._tail()}") from error
        parts = bytes(answer).rsplit(b"\0", 2)
        if len(parts) < 3:
            raise VmError(f"half an answer: {words}\n{answer!r}{self._tail()}")
        out, status, errors = (part.decode("utf-8", "replace") for part in parts)
        if check and int(status):
            raise VmError(f"exit status {status} of: {words}\n{out}{errors}")
        return out

    def close(self) -> None:
        """Cut its power: nothing of it is kept."""
        self.kill()

    def _boot(self, port: int, timeout: float) -> None:
        self.command_line = [
            *(*self._qemu, "-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi"),
            *("-smp", "2", "-m", self._memory, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-append", "console=ttyAMA0 net.ifnames=0 quiet panic=-1"),
            *("-drive", f"file={self._image.disk},if=virtio,format=raw,cache=writeback"),  # a flush is a flush
            *("-drive", f"file={self._stick},if=virtio,format=raw,readonly=on"),
            *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{_COMMANDS}"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        super().start()
        try:
            self._await(lambda: _UP in self.log(), timeout=timeout, what="the end of its start")
        except ProcessError as error:
            if "Could not set up host forwarding rule" in str(error):
                raise ProcessError(f"port {port} is already in use") from error
            raise


def _program(name: str) -> tuple[Path, dict[str, str]]:
    found = provision.program(name)
    if found is None:
        raise VmError(f"no {name}: python3 provision.py emulators makes it ready")
    return found


def _as(package: str, *arguments: str | Path, given: bytes = b"", folder: Path | None = None) -> bytes:
    """Run a package's program under the name that is the first argument, which tells it what to be."""
    path, environment = _program(package)
    return _run(arguments, program=path, environment=environment, given=given, folder=folder)


def _run(
    command: Sequence[str | Path],
    *,
    program: Path | None = None,
    environment: dict[str, str] | None = None,
    given: bytes = b"",
    folder: Path | None = None,
) -> bytes:
    done = subprocess.run(
        command,
        executable=program,
        env=os.environ | (environment or {}),
        input=given,
        cwd=folder,
        capture_output=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        words, said = " ".join(map(str, command)), (done.stdout + done.stderr).decode("utf-8", "replace")
        raise VmError(f"exit status {done.returncode} of: {words}\n{said}")
    return done.stdout
