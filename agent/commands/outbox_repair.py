"""``edge-agent outbox repair``: save what can be read of a damaged ring file into a new one in its place."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from agent.commands import GOOD, say
from agent.commands.outbox_verify import damage_in_words, ring_named
from agent.evidence.record import link_of
from agent.outbox.rebuild import repair


def main(options: argparse.Namespace) -> int:
    """The agent must be stopped. Raises ConfigError, ControlError, OutboxError: see ``agent.outbox.rebuild.repair``."""
    path = Path(os.path.realpath(ring_named(options)))
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    done = repair(path, channel=options.channel, aside=aside, inspect=link_of, dry_run=options.dry_run)
    for trouble in done.troubles:
        print(f"damaged: {trouble}")
    for damage in done.damage:
        print(f"lost: {damage_in_words(damage, done.acked)}")
    if done.undescribed:
        print(f"lost: {done.undescribed} more places")
    if done.new_salt:
        print("lost: the salt; plans name the same configuration by another value from now on")
    verb = "would be saved" if options.dry_run else "saved"
    print(f"{path}: {done.records} records of channel {done.channel} {verb}, of which {done.waiting} wait")
    if not options.dry_run:
        say(f"the damaged file is {done.aside}; what could not be read is stated by the agent")
    return GOOD
