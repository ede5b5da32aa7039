"""``edge-agent outbox resize``: make the local store of a channel larger or smaller, and keep what waits in it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agent.commands import GOOD, say
from agent.commands.target import only, ring_of
from agent.config import load
from agent.evidence.record import link_of
from agent.outbox.rebuild import resize
from agent.units import size_text


def main(options: argparse.Namespace) -> int:
    """The agent must be stopped. Raises ConfigError, ControlError, OutboxError: see ``agent.outbox.rebuild.resize``."""
    config = load(options.config)
    channel = only(config, options.channel)
    size = options.to or channel.outbox.size
    path = Path(os.path.realpath(ring_of(config, channel)))
    done = resize(path, channel=channel.id, size=size, inspect=link_of)
    if done.before == done.after:
        print(f"{path}: has {done.after} segments already; nothing was changed")
    else:
        gone = f", {done.dropped} acknowledged ones left behind" if done.dropped else ""
        print(f"{path}: {done.after} segments instead of {done.before}; {done.kept} with records kept{gone}")
    if size != channel.outbox.size:
        said = size_text(channel.outbox.size)
        say(f"now set outbox.size of channel {channel.id} to {size_text(size)}: the configuration says {said}")
    return GOOD
