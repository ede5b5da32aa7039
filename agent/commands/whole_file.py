"""Files that a command writes: whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agent.outbox.files import same


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all is on disk: a crash leaves the old one or the new one,
    and perhaps ``<name>.new``. Raises OSError, BlockingIOError if another command is writing it.
    """
    if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
        with path.open("wb") as out:
            yield out
        return
    path = Path(os.path.realpath(path))
    draft = path.with_name(f"{path.name}.new")
    try:
        _clear(draft)
        with draft.open("xb") as out:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not same(out.fileno(), draft):
                raise BlockingIOError  # another command took it for one that was left
            try:
                yield out
                out.flush()
                os.fsync(out.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (BlockingIOError, FileExistsError) as error:
        raise BlockingIOError(errno.EBUSY, "another command is writing it", str(path)) from error
    except OSError as error:
        if error.filename is None:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _clear(draft: Path) -> None:
    """Take away what a command left that was killed. Raises BlockingIOError: its command is at work."""
    try:
        fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:  # a link, or what we may not read: none of ours
        draft.unlink(missing_ok=True)
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.unlink(missing_ok=True)
    finally:
        os.close(fd)
