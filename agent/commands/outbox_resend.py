"""``edge-agent outbox resend``: have the running agent send retained records again, under the same ids.

Ctrl-C ends it; what was sent until then is sent. Live delivery goes on all the while.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from agent.commands import FINDING, GOOD, UNAVAILABLE, USAGE, say
from agent.commands.target import running
from agent.control.client import ControlError
from agent.rendering.words import moment
from agent.units import duration_ns

_TELL_EVERY = 5.0  # s


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if not all that was asked for is held, or the broker refuses some of it. Raises ControlError,
    ConfigError, PermissionError.
    """
    try:
        asked = _asked(options)
    except ValueError as error:
        say(f"edge-agent outbox resend: {error}")
        return USAGE
    with running(options, "outbox resend", channel=options.channel, **asked) as answer:
        outcome = _followed(answer)
    if options.json:
        print(json.dumps(outcome))
    else:
        print(_counts(outcome))
    sound = True
    for words in _findings(options, outcome):
        say(words)
        sound = False
    return GOOD if sound else FINDING


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The request. Raises ValueError."""
    if options.run is None and (options.first is not None or options.last is not None):
        raise ValueError("--from and --to belong to --run")
    if options.since is None and options.until is not None:
        raise ValueError("--until belongs to --since")
    return {
        "run": options.run,
        "first": options.first,
        "last": options.last,
        "since": None if options.since is None else _time(options.since),
        "until": None if options.until is None else _time(options.until),
        "refused": options.refused or None,
    }


def _time(text: str) -> int:
    """Wall time in ns: RFC 3339 with its offset, or so long ago. Raises ValueError."""
    try:
        return max(0, time.time_ns() - duration_ns(text))
    except ValueError:
        pass
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is None or given.tzinfo is None:
        raise ValueError(f'"{text[:40]}" is no time; write 2026-01-31T09:00:00Z, or 2h for two hours ago')
    since = given - datetime(1970, 1, 1, tzinfo=UTC)
    return max(0, (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000)


def _followed(answer: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """The last line; the others are told now and then."""
    told, waits = time.monotonic(), ""
    for line in answer:
        if line.get("done"):
            return {key: value for key, value in line.items() if key not in ("done", "position", "up_to")}
        now = time.monotonic()
        if now - told < _TELL_EVERY and line.get("waits", "") == waits:
            continue
        told, waits = now, line.get("waits", "")
        say(f"position {line['position']} of {line['up_to']}: {_counts(line)}" + (f"; waits: {waits}" if waits else ""))
    raise ControlError("the agent ended before it was done", code=UNAVAILABLE, hint="ask again")


def _counts(line: Mapping[str, Any]) -> str:
    words = [f"{line['stored'] + line['duplicates']} records resent"]
    if line["duplicates"]:
        words.append(f"{line['duplicates']} of them the broker says it has already")
    if line["refused"]:
        words.append(f"{line['refused']} refused")
    if line["in_turn"]:
        words.append(f"{line['in_turn']} not delivered yet come in their turn")
    return ", ".join(words)


def _findings(options: argparse.Namespace, outcome: Mapping[str, Any]) -> Iterator[str]:
    """What did not go as was asked."""
    if outcome["missing"]:
        ranges = [f"{first} to {last} of run {run[:8]}" for run, first, last in outcome["ranges"]]
        yield f"{outcome['missing']} records are not held here: {', '.join(ranges)}"
    elif options.run and not any(outcome[key] for key in ("stored", "duplicates", "refused", "in_turn")):
        yield f"no such record of run {options.run[:8]} is held here"
    if outcome["held_since"] is not None:
        yield f"what was sealed before {moment(outcome['held_since'])} is not held here any more"
    if outcome["refused"]:
        yield f"the broker refuses {outcome['refused']} records still; the agent's log and `edge-agent status` say why"
