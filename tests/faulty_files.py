"""A file layer that fails on demand, over a real file: what a disk and a page cache may do to an outbox.

The real file is what the page cache shows. ``fdatasync`` is the commit point; of every 512-byte sector written since,
the layer keeps what it held before, so that ``cut`` can leave any subset of them on the disk. One object stands for
one disk: it lives on when the outbox is opened again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from agent.outbox.files import OsFiles

SECTOR = 512


def _name(fd: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{fd}")).name


class PowerCut(BaseException):
    """Nothing runs on after this."""


class FaultyFiles(OsFiles):
    """See the module. ``fail`` names what happens to the next call of a kind."""

    def __init__(self) -> None:
        self.unsynced: dict[int, list[bytes]] = {}  # by sector: what the disk may hold, oldest first
        self.forgotten: dict[int, bytes] = {}  # by sector: what the disk holds although the cache counts as clean
        self.calls: list[tuple[str, int, int]] = []  # name, offset, length
        self.away: set[str] = set()  # ring files of which every call fails
        self.refused: list[str] = []  # the file of each call that failed because of that
        self._only = ""
        self._faults: dict[str, tuple[str, int]] = {}

    def fail(self, call: str, how: str, *, after: int = 0, ring: str = "") -> None:
        """Let the next ``call`` but ``after`` ("pwrite", "fdatasync", "pread") end as "failed", "applied" (failed but
        applied), "cut", or, of fdatasync, "lied" (it does nothing and says nothing); of all files, or of the one whose
        name ends so.
        """
        self._faults[call] = (how, after)
        self._only = ring

    def heal(self) -> None:
        """The disk is good from now on."""
        self.away.clear()
        self._faults.clear()

    def cut(self, path: Path, keep: Callable[[int], int]) -> None:
        """The power goes: each unsynced sector becomes one of the versions it had; ``keep(n)`` chooses one of n, the
        last is the newest.
        """
        with open(path, "r+b") as file:
            for sector, versions in self.unsynced.items():
                file.seek(sector * SECTOR)
                now = file.read(SECTOR)
                file.seek(sector * SECTOR)
                file.write([*versions, now][keep(len(versions) + 1)])
            for sector, held in self.forgotten.items():
                file.seek(sector * SECTOR)
                file.write(held)
        self.unsynced.clear()
        self.forgotten.clear()
        self._faults.clear()

    def _fault(self, call: str, fd: int) -> str:
        how, after = self._faults.get(call, ("", 0))
        if self._only and not _name(fd).endswith(self._only):
            return ""
        if not how or after:
            if how:
                self._faults[call] = (how, after - 1)
            return ""
        del self._faults[call]
        return how

    def _reach(self, fd: int) -> None:
        if self.away and _name(fd) in self.away:
            self.refused.append(_name(fd))
            raise OSError(errno.EIO, "the disk is away")

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._reach(fd)
        self.calls.append(("pread", offset, length))
        if self._fault("pread", fd):
            raise OSError(errno.EIO, "injected")
        return super().pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self._reach(fd)
        self.calls.append(("pwrite", offset, len(data)))
        how = self._fault("pwrite", fd)
        if how != "failed":
            for sector in range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1):
                held = os.pread(fd, SECTOR, sector * SECTOR)
                if sector in self.forgotten:
                    self.unsynced[sector] = [self.forgotten.pop(sector)]
                self.unsynced.setdefault(sector, []).append(held)
            super().pwrite(fd, data, offset)
        if how:
            raise PowerCut if how == "cut" else OSError(errno.EIO, "injected")

    def fdatasync(self, fd: int) -> None:
        self._reach(fd)
        self.calls.append(("fdatasync", 0, 0))
        how = self._fault("fdatasync", fd)
        if how == "cut":
            raise PowerCut
        if how == "lied":
            return
        if how == "failed":  # Linux: the pages are clean afterwards, and the next sync will not write them
            self.forgotten |= {sector: versions[0] for sector, versions in self.unsynced.items()}
        self.unsynced.clear()
        if how:
            raise OSError(errno.EIO, "injected")
