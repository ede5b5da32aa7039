"""A small ext4 of its own for the agent's outboxes, in a file behind a loop device; for a mount namespace of its own.

What a power cut leaves is what the file system wrote down as durable: EXT4_IOC_SHUTDOWN without flushing its log. Or
what is on the device at any moment, in the middle of whatever the file system does: a copy of the file behind it, made
at once where that lies on a file system that can (``cp --reflink``).
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import provision

_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN
SIZE = 48 << 20
_HOST_SIZE = 512 << 20  # a sparse file


def _run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise OSError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Reflinks:
    """A folder ``place`` on a btrfs, whose files are copied at once."""

    def __init__(self, image: Path, place: Path) -> None:
        found = provision.program("btrfs-progs")
        assert found is not None, "python3 provision.py debian makes it ready"
        program, environment = found
        with image.open("wb") as file:
            file.truncate(_HOST_SIZE)
        _run(program, "--quiet", image, environment=environment)
        self.place = place
        place.mkdir()
        _run("mount", "-o", "loop,nodatacow", image, place)

    def unmount(self) -> None:
        """Nothing of it may be in use any more."""
        _run("umount", self.place)


class SmallDisk:
    """Mounted at ``place`` from the beginning."""

    def __init__(self, image: Path, place: Path) -> None:
        self.place = place
        self._image = image
        self._snapshot = image.with_suffix(".snapshot")
        self._filler = place / "filler"
        with image.open("wb") as file:
            file.truncate(SIZE)
        _run("mkfs.ext4", "-q", "-F", "-b", "4096", image)  # as on a large disk; a small one gets smaller blocks
        place.mkdir()
        self.mount()

    def mount(self) -> None:
        """Nobody may have a file open on it."""
        _run("mount", "-o", "loop,errors=remount-ro", self._image, self.place)

    def unmount(self) -> None:
        """As before; what is written is written back, unless the power was cut."""
        _run("umount", self.place)

    def sync(self) -> None:
        """All that was written so far is durable."""
        _run("sync", "--file-system", self.place)

    def cut_power(self) -> None:
        """From now on nothing reaches it, and what was not synced is gone. To be unmounted and mounted again."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def snapshot(self) -> None:
        """Keep what is on the device now. The file behind it must be on a file system that copies at once."""
        _run("cp", "--reflink=always", self._image, self._snapshot)

    def go_back(self) -> None:
        """To be what was kept. Nobody may have a file open on it."""
        self.unmount()
        self._snapshot.rename(self._image)
        self.mount()

    def break_down(self) -> None:
        """The kernel finds it broken and makes it read-only. To be unmounted and mounted again."""
        device = _run("findmnt", "--noheadings", "--output", "SOURCE", self.place).strip()
        (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("1")

    def freeze(self) -> None:
        """Whoever writes waits until ``thaw``, and cannot be killed meanwhile."""
        _run("fsfreeze", "--freeze", self.place)

    def thaw(self) -> None:
        """End that."""
        _run("fsfreeze", "--unfreeze", self.place)

    def fill(self) -> None:
        """To the last byte."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def clear(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)
