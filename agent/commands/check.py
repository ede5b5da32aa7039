"""``edge-agent check``: prove a configuration offline."""

from __future__ import annotations

import argparse

from agent.commands import GOOD
from agent.config import load


def main(options: argparse.Namespace) -> int:
    """Raises ConfigError with all problems."""
    config = load(options.file)
    print(f"{options.file}: good")
    for plan in config.adapters():
        for device in plan.devices:
            for group, points in device.groups.items():
                print(f"  {device.config.id}/{group}: {', '.join(points)}")
    print(f"  channel {config.channel.id}: to {config.channel.topic}, outbox {config.channel.outbox.size >> 20} MiB")
    return GOOD
