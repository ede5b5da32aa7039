"""``edge-agent tap``: show the records of the running agent as they are sealed and on disk, delivered or not.

The agent's own copy, so nothing is verified here; ``tail`` and ``verify`` do that.
"""

from __future__ import annotations

import argparse
import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from agent.commands import GOOD, USAGE, say
from agent.commands.target import running
from agent.errors import EvidenceError
from agent.evidence.envelope import unpack
from agent.evidence.record import Head, decode_head, decode_record
from agent.model import Data, Plan, Record
from agent.rendering.objects import link_json, record_json
from agent.rendering.text import data_lines, record_line


def main(options: argparse.Namespace) -> int:
    """Ends on Ctrl-C or after ``--count`` records. Raises ControlError, ConfigError, PermissionError."""
    if options.count is not None and options.count < 1:
        say("edge-agent tap: --count is at least 1")
        return USAGE
    try:
        with running(options, "tap", within=None, channel=options.channel) as answer:
            _show(answer, options)
    except KeyboardInterrupt:
        pass
    return GOOD


def _show(answer: Iterator[Any], options: argparse.Namespace) -> None:
    view, shown = _View(options.filter, as_json=options.json), 0
    known = True
    for line in answer:
        if known and "plan" not in line and not view.names_anything:
            known = False  # said once; a reload may bring what it names
            say(f'nothing that is sent is named "{options.filter}"; write device/group/point, * is any text')
        if "dropped" in line:
            say(f"{line['dropped']} records left out here: this reader is too slow")
            continue
        envelope = b64decode(line.get("plan") or line["envelope"])
        if "plan" in line:
            view.learn(envelope)
        elif (text := view.text(envelope, str(line["channel"]))) is not None:
            print(text, flush=True)
            shown += 1
            if shown == options.count:
                return


class _View:
    """Records as text, by the last plan of each stream. ``pattern``: show only values of device/group/point that
    match it.
    """

    def __init__(self, pattern: str | None, *, as_json: bool) -> None:
        self._pattern = pattern
        self._as_json = as_json
        self._plans: dict[bytes, Plan] = {}

    @property
    def names_anything(self) -> bool:
        """Whether the pattern names a point of any plan."""
        return any(
            self._wanted(f"{plan.devices[group.device].id}/{group.name}/{point.name}")
            for plan in self._plans.values()
            for group in plan.groups
            for point in group.points
        )

    def learn(self, envelope: bytes) -> None:
        """Take note of a plan."""
        with suppress(EvidenceError):
            self._decoded(envelope)

    def text(self, envelope: bytes, channel: str) -> str | None:
        """What to print; None if nothing of it is wanted."""
        try:
            head, record = self._decoded(envelope)
        except EvidenceError as error:
            return json.dumps({"channel": channel, "error": str(error)}) if self._as_json else f"{channel} ? {error}"
        plan = self._plans.get(record.stream)
        if isinstance(record.body, Data) and plan is not None and plan.term != record.body.term:
            plan = None  # it was left out
        if self._as_json:
            found = record_json(record, plan, self._wanted)
            if self._pattern is not None and not (found.get("frames") or found.get("gaps")):
                return None
            return json.dumps({"channel": channel, **link_json(head.link), **found})
        values = list(data_lines(record.body, plan, self._wanted)) if isinstance(record.body, Data) and plan else []
        if self._pattern is not None and not values:
            return None
        return "\n".join([f"{channel} {record_line(head.link, record)}", *values])

    def _decoded(self, envelope: bytes) -> tuple[Head, Record]:
        head = decode_head(unpack(envelope).payload)
        record = decode_record(head, self._plans.get(head.link.stream))
        if isinstance(record.body, Plan):
            self._plans[record.stream] = record.body
        return head, record

    def _wanted(self, path: str) -> bool:
        pattern = self._pattern
        # Less than a whole name is all below it: the name of a device, say.
        return pattern is None or fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")
