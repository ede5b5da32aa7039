"""``edge-agent outbox export``: copy what the outbox of a channel holds, through the running agent or from its files.

The copy appears whole or not at all: it is written to ``FILE.new`` and then takes the name. What ends the command
before leaves an earlier copy as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from agent.commands import GOOD, USAGE, say
from agent.commands.target import held
from agent.commands.whole_file import replacing

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
            with replacing(options.file) as out:
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
