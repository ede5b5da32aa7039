"""``edge-agent status``: what runs, what waits, what fails, as the running agent knows it."""

from __future__ import annotations

import argparse
import json

from agent.commands import GOOD
from agent.commands.target import running
from agent.control.status_text import lines


def main(options: argparse.Namespace) -> int:
    """Raises ControlError, ConfigError, PermissionError."""
    with running(options, "status") as answer:
        for status in answer:
            print(json.dumps(status) if options.json else "\n".join(lines(status)))
    return GOOD
