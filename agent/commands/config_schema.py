"""``edge-agent config schema``: a JSON Schema of the configuration, for editors."""

from __future__ import annotations

import argparse
import json

from agent.commands import GOOD
from agent.config.schema import schema


def main(options: argparse.Namespace) -> int:
    """On stdout, for a file beside the configuration."""
    print(json.dumps(schema(), indent=2))
    return GOOD
