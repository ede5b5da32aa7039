"""``edge-agent doctor``: find what is wrong on this box and say the remedy."""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

from agent import __version__
from agent.commands import FINDING, GOOD
from agent.doctor.case import take
from agent.doctor.examination import examine
from agent.doctor.finding import Finding, Level, lines, worst
from agent.doctor.looks import looks
from agent.signer.memory import keep_to_ourselves


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if there is a warning or a fault. Raises nothing for what it found."""
    keep_to_ourselves()
    logging.getLogger("agent").addHandler(logging.NullHandler())  # all that matters is a finding
    found = examine(looks(take(options.config), offline=options.offline))
    if options.json:
        print(json.dumps(as_json(found)))
    else:
        print("\n".join(lines(found)))
    return FINDING if worst(found) >= Level.WARNING else GOOD


def as_json(found: list[Finding]) -> dict[str, Any]:
    """For programs (docs/operating.md, when it fails)."""
    return {
        "version": __version__,
        "worst": worst(found).name.lower(),
        "findings": [each.as_json() for each in found],
    }
