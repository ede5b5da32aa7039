"""``edge-agent outbox export``: copy what the outbox holds, beside a running agent or without one.

The copy appears whole or not at all: it is written to ``FILE.new`` and then takes the name. What ends the command
before leaves an earlier copy as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from agent.commands import GOOD, USAGE, say
from agent.config import load
from agent.outbox import retained
from agent.record import link_of
from agent.ring_reader import Stored


def main(options: argparse.Namespace) -> int:
    """Write the retained envelopes, oldest first, as a CBOR sequence (RFC 8742). Raises ConfigError, OutboxError,
    OSError.
    """
    config = load(options.config)
    ring = config.agent.state / f"{config.channel.id}.ring"
    records = retained(ring, inspect=link_of)
    found = chain(list(islice(records, 1)), records)  # no target is touched before the ring could be read
    if str(options.file) == "-":
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
            count = _copy(found, out)
    elif options.file.exists() and options.file.samefile(ring):
        say(f"edge-agent outbox export: {options.file} is the outbox itself; name another file")
        return USAGE
    else:
        with _replacing(options.file) as out:
            count = _copy(found, out)
    say(f"{count} records exported")
    return GOOD


def _copy(records: Iterable[Stored], out: BinaryIO) -> int:
    count = 0
    for stored in records:
        out.write(stored.envelope)
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
