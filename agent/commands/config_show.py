"""``edge-agent config show``: the configuration in force, as the agent understands it."""

from __future__ import annotations

import argparse
import json

from agent.commands import GOOD
from agent.config import load
from agent.config.shown import as_file
from agent.config.toml_text import toml_text


def main(options: argparse.Namespace) -> int:
    """One file with all defaults; secrets only as references. Raises ConfigError, PermissionError."""
    table = as_file(load(options.config))
    print(json.dumps(table, ensure_ascii=False, indent=2) if options.json else toml_text(table), end="")
    return GOOD
