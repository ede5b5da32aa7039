"""``edge-agent outbox export``: copy what the outbox holds, beside a running agent or without one."""

from __future__ import annotations

import argparse
import os
import sys

from agent.commands import GOOD, say
from agent.config import load
from agent.outbox import retained
from agent.record import link_of


def main(options: argparse.Namespace) -> int:
    """Write the retained envelopes, oldest first, as a CBOR sequence (RFC 8742). Raises ConfigError, OutboxError."""
    config = load(options.config)
    path = config.agent.state / f"{config.channel.id}.ring"
    count = 0
    to_stdout = str(options.file) == "-"
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") if to_stdout else options.file.open("wb") as out:
        for stored in retained(path, inspect=link_of):
            out.write(stored.envelope)
            count += 1
    say(f"{count} records exported")
    return GOOD
