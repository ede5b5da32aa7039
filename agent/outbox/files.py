"""The file layer under the outbox: four calls on a descriptor, so that a test can put a failing one in their place; a
ring file on it.

Opening, locking and creating go to the system directly. Creating and replacing are atomic: a crash leaves either the
ring file that was there, or none if there was none, or the whole new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from agent.errors import OutboxError
from agent.outbox.ring import SEGMENT_HEADER, START, FileHeader, SegmentHeader, unpack_segment_header


class Files(Protocol):
    """Positioned reads and writes; each may raise OSError, and nothing is durable before ``fdatasync`` returned."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only at the end of the file."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of ``data``."""

    def fdatasync(self, fd: int) -> None:
        """Return once what was written is on the device."""

    def fallocate(self, fd: int, size: int) -> None:
        """Make the file ``size`` bytes long and reserve the room for them."""


class OsFiles:
    """The operating system's."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        while data and len(data) < length:  # Linux gives at most 2 GiB at once and may be interrupted
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    def fdatasync(self, fd: int) -> None:
        """Return once what was written is on the device."""
        os.fdatasync(fd)

    def fallocate(self, fd: int, size: int) -> None:
        """Make the file ``size`` bytes long and reserve the room for them."""
        os.posix_fallocate(fd, 0, size)


OS_FILES = OsFiles()


def open_regular(path: Path, flags: int) -> int:
    """Open a file that must be a regular one: a pipe would wait for its other end. Raises OSError."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return fd


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A ring file open for reading. What goes wrong in the block becomes an OutboxError that names the file."""
    try:
        fd = open_regular(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        hint = "the agent makes it at its first start; see agent.state" if missing else "look at the disk"
        raise OutboxError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except OutboxError as error:
        raise OutboxError(f"{path}: {error}", hint=error.hint) from error


def open_locked(path: Path) -> int:
    """Open an existing file and lock it for as long as the descriptor lives; FileNotFoundError, BlockingIOError
    (locked), OSError.
    """
    while True:
        fd = open_regular(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same(fd, path):
                _sync_directory(path)  # who created it may have died before doing so
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # renamed over meanwhile: the lock is on the file that was there before


_MODE = 0o640  # evidence is for the service's group, too: it looks at the file when the agent is down


def create_locked(path: Path, fill: Callable[[int], None]) -> int:
    """Create a file that holds what ``fill`` wrote and synced, locked as by ``open_locked``; FileExistsError,
    BlockingIOError, OSError.

    Steps: open and lock ``<name>.new``, fill it, rename it, sync the directory. A crash before the rename leaves
    ``<name>.new``, which the next creation takes over; a crash before the last sync leaves one or the other.
    """
    return _create(path, fill, None, None)


def open_or_create(path: Path, fill: Callable[[int], None], *, new: bool) -> int:
    """``open_locked``; with ``new``, if there is no file, ``create_locked``. Raises as they do, and OutboxError: there
    is none, and none is to be made, or a link leads to none.
    """
    try:
        return open_locked(path)
    except FileNotFoundError as error:
        if path.is_symlink():  # a file in the place of the link would lie on the wrong disk, and hold nothing
            hint = "is its disk mounted? remove the link to begin a new outbox"
            raise OutboxError(f"it is a link to {path.readlink()}, which is not there", hint=hint) from error
        if not new:
            hint = "is its disk mounted? a new one is made at start only"
            raise OutboxError("it is not there", hint=hint) from error
    return create_locked(path, fill)


def replace_locked(fd: int, path: Path, fill: Callable[[int], None], *, aside: Path | None = None) -> None:
    """Put a file that holds what ``fill`` wrote and synced in the place of the one that ``fd`` has open and locked;
    FileExistsError (``aside``), OSError. Owner and rights stay.

    Steps as in ``create_locked``; before the rename the old file gets the name ``aside`` as its second, if that is
    given. A crash before the rename leaves it in its place, perhaps with both names.
    """
    os.close(_create(path, fill, os.fstat(fd), aside))


def _create(path: Path, fill: Callable[[int], None], old: os.stat_result | None, aside: Path | None) -> int:
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (old is None and path.exists()) or not same(fd, temporary):
            raise FileExistsError(path)  # another process was faster, and may have renamed this very file
        try:
            os.ftruncate(fd, 0)
            if old is not None and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, _MODE if old is None else stat.S_IMODE(old.st_mode))
            fill(fd)
            if aside is not None:
                os.link(path, aside)
                _sync_directory(path)
            os.rename(temporary, path)
        except (OSError, KeyboardInterrupt):  # as large as an outbox
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path)
        return fd
    except BaseException:
        os.close(fd)
        raise


def same(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the file that ``fd`` has open."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_directory(path: Path) -> None:
    """Return once the name of ``path`` is on the device."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class RingFile:
    """An open ring file, by segments: offsets count from a segment's start, ``number`` is the segment's. Methods
    raise OSError.
    """

    def __init__(self, fd: int, header: FileHeader, files: Files = OS_FILES) -> None:
        self.fd, self.header, self._files = fd, header, files

    def _offset(self, number: int) -> int:
        return START + number % self.header.segments * self.header.segment_size

    def read(self, number: int, at: int = 0, length: int | None = None) -> bytes:
        """Bytes of a segment, to its end if ``length`` is None."""
        length = self.header.segment_size - at if length is None else length
        data = self._files.pread(self.fd, length, self._offset(number) + at)
        if len(data) < length:
            raise OSError(errno.EIO, "the file is shorter than it was made")
        return data

    def write(self, number: int, at: int, data: bytes) -> None:
        """Not durable before ``sync``."""
        self._files.pwrite(self.fd, data, self._offset(number) + at)

    def sync(self) -> None:
        """All that was written is on the device when this returns."""
        self._files.fdatasync(self.fd)

    def heads(self) -> list[tuple[int, SegmentHeader]]:
        """Number and header of each segment in use, least first position first."""
        found = []
        for slot in range(self.header.segments):
            head = unpack_segment_header(self.read(slot, 0, SEGMENT_HEADER), self.header.ring_id)
            if head is not None:
                found.append((head.lap * self.header.segments + slot, head))
        return sorted(found, key=lambda item: item[1].first_pos)
