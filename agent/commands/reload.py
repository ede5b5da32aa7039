"""``edge-agent reload``: have the running agent read its configuration again."""

from __future__ import annotations

import argparse

from agent.commands import GOOD, say
from agent.commands.target import running

_WITHIN = 120.0  # s: channels that go may still deliver for a while


def main(options: argparse.Namespace) -> int:
    """Prints what changed; of a configuration that is refused every problem. Raises ControlError, ConfigError,
    PermissionError.
    """
    changed = False
    with running(options, "reload", within=_WITHIN) as answer:
        for line in answer:
            if "problem" in line:
                say(line["problem"])
            else:
                changed = True
                print(line.get("changed"))
    if not changed:
        say("nothing changed")
    return GOOD
