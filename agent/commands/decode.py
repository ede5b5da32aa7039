"""``edge-agent decode``: print the records of files with their verdicts."""

from __future__ import annotations

from agent.commands.verify import decode as main

__all__ = ["main"]
