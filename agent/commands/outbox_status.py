"""``edge-agent outbox status``: how the local store of each channel stands, running or not."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from agent.commands import FINDING, GOOD, NO_PERMISSION, say
from agent.commands.target import asked, channels_of, ring_of, socket_of
from agent.config import load
from agent.control.status_text import age, aligned, size
from agent.errors import OutboxError
from agent.outbox.look import look


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if an outbox cannot be read, 77 if it may not be. Raises ControlError, ConfigError,
    PermissionError.
    """
    with asked(options, "outbox status", channel=options.channel) as answer:
        if answer is not None:
            return _show(answer, as_json=options.json)
    has_socket = socket_of(options) is not None
    why = "the agent is not running" if has_socket else "the agent has no socket to be asked at, running or not"
    say(f"{why}: as its files say")
    return _show(_looked(options), as_json=options.json)


def _looked(options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    config = load(options.config)
    for channel in channels_of(config, options.channel):
        try:
            yield {"channel": channel.id, **look(ring_of(config, channel), channel=channel.id).as_json()}
        except OutboxError as error:
            denied = isinstance(error.__cause__, PermissionError)
            yield {"channel": channel.id, "error": str(error), "hint": error.hint, "denied": denied}


def _show(answer: Iterator[Mapping[str, Any]], *, as_json: bool) -> int:
    found = list(answer)
    good = [each for each in found if "error" not in each]
    if as_json:
        for each in found:
            print(json.dumps(each))
    elif good:
        heading = ("channel", "waiting", "oldest", "acknowledged", "last", "used", "of")
        print("\n".join(aligned([heading, *map(_row, good)])))
    for each in found:
        if "error" in each:
            say(f"{each['channel']}: {each['error']}" + (f"; {each['hint']}" if each.get("hint") else ""))
    if any(each.get("denied") for each in found):
        return NO_PERMISSION
    return GOOD if len(good) == len(found) else FINDING


def _row(standing: Mapping[str, Any]) -> tuple[str, ...]:
    about = "" if standing["pending_exact"] or not standing["pending_records"] else "about "
    waiting = f"{about}{standing['pending_records']} ({size(standing['pending_bytes'])})"
    oldest = standing["oldest_wall"]
    return (
        standing["channel"],
        waiting,
        age(max(0.0, (time.time_ns() - oldest) / 1e9)) if oldest is not None else "-",
        f"to position {standing['acked']}",
        f"position {standing['next_pos'] - 1}",
        size(standing["segments_used"] * standing["segment_size"]),
        size(standing["size"]),
    )
