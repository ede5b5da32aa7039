"""``edge-agent outbox export``: copy what the outbox of a channel holds, through the running agent or from its files.

The copy appears whole or not at all: it is written to ``FILE.new`` and then takes the name. What ends the command
before leaves an earlier copy as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from agent.commands import GOOD, USAGE, say
from agent.commands.target import held

_RING = b"EVRING"  # what a ring file of any version begins with


def main(options: argparse.Namespace) -> int:
    """Write the retained envelopes, oldest first, as a CBOR sequence (RFC 8742). Raises ControlError, ConfigError,
    OutboxError, OSError.
    """
    with held(options) as found:
        records = chain(list(islice(found.records, 1)), found.records)  # no target is touched before one could be read
        if str(options.file) == "-":
            with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
                count = _copy(records, out)
        elif _is_outbox(options.file, found.ring):
            say(f"edge-agent outbox export: {options.file} is an outbox itself; name another file")
            return USAGE
        else:
            with _replacing(options.file) as out:
                count = _copy(records, out)
    say(f"{count} records exported")
    return GOOD


def _is_outbox(file: Path, ring: Path) -> bool:
    """Whether a file is this outbox or that of another channel."""
    if not file.is_file():
        return False
    with suppress(OSError):  # the agent's folder may not be looked into
        if file.samefile(ring):
            return True
    with suppress(OSError), file.open("rb") as found:
        return found.read(len(_RING)) == _RING
    return False


def _copy(records: Iterable[tuple[int, bytes]], out: BinaryIO) -> int:
    count = 0
    for _, envelope in records:
        out.write(envelope)
        count += 1
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all is on disk. Raises OSError."""
    if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
        with path.open("wb") as out:
            yield out
        return
    path = Path(os.path.realpath(path))
    draft = path.with_name(f"{path.name}.new")
    try:
        draft.unlink(missing_ok=True)  # of a command that was killed
        with draft.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
