"""``edge-agent outbox list``: every record that the local store of a channel holds, oldest first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from agent.commands import GOOD, USAGE, say
from agent.commands.target import held
from agent.errors import EvidenceError
from agent.evidence.envelope import message_id, unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Data
from agent.rendering.words import kind_name, moment


def main(options: argparse.Namespace) -> int:
    """Raises ControlError, ConfigError, OutboxError, PermissionError."""
    if options.limit is not None and options.limit < 1:
        say("edge-agent outbox list: --limit is at least 1")
        return USAGE
    with held(options, newest=options.limit) as found:
        _show(found.records, found.acked, as_json=options.json)
    return GOOD


def _show(records: Iterable[tuple[int, bytes]], acked: int, *, as_json: bool) -> None:
    if not as_json:
        print(f"{'pos':>8}  {'sealed':24}  {'kind':5}  {'bytes':>7}  {'state':12}  {'holds':22}  id")
    for pos, envelope in records:
        row = _row(pos, envelope, acked)
        if as_json:
            print(json.dumps(row))
            continue
        holds = f"{row['frames']} frames, {row['gaps']} gaps" if "frames" in row else row.get("error", "")
        print(
            f"{pos:8}  {row.get('sealed', '-'):24}  {row.get('kind', '?')!s:5}  {row['size']:7}  {row['state']:12}  "
            f"{holds:22}  {row.get('id', '-')}"
        )


def _row(pos: int, envelope: bytes, acked: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "pos": pos,
        "size": len(envelope),
        "state": "acknowledged" if pos <= acked else "pending",
    }
    try:
        head = decode_head(unpack(envelope).payload)
        row["id"] = message_id(head.link)
        record = decode_record(head, None)
    except EvidenceError as error:
        return row | {"error": str(error)}
    row |= {"kind": kind_name(record.kind), "sealed": moment(record.sealed.wall)}
    if isinstance(record.body, Data):
        row |= {"frames": len(record.body.frames), "gaps": len(record.body.gaps)}
    return row
