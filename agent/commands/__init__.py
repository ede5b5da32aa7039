"""The commands, one module each, loaded when called. Stdout is data, stderr is words; a command returns its exit
code.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/edge-agent/agent.toml")
DEFAULT_STATE = Path("/var/lib/edge-agent")  # StateDirectory= of systemd/edge-agent.service
SERVICE_USER = "edge-agent"  # systemd/edge-agent.sysusers.conf

GOOD = 0
FINDING = 1  # verify failed, a device was not read
USAGE = 2  # wrong arguments or input that cannot be read
UNAVAILABLE = 69  # agent or broker not reached
NO_PERMISSION = 77
CONFIGURATION = 78


def say(*words: object) -> None:
    """Words for people, on stderr; where nobody can read them they are not worth an error."""
    with suppress(OSError):
        print(*words, file=sys.stderr, flush=True)
