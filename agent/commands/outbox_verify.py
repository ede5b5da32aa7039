"""``edge-agent outbox verify``: prove what the local store of a channel holds, beside a running agent or without one.

Read-only: the whole file is read, one segment at a time. What is held is a part of what was sealed, and is verified as
one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.accepting import accepted
from agent.commands.target import only, ring_of
from agent.commands.verify import MOST_NAMED
from agent.config import load
from agent.control.status_text import size
from agent.evidence.envelope import unpack
from agent.evidence.record import link_of
from agent.evidence.withdrawn import merged
from agent.model import Plan, Withdrawn
from agent.outbox.files import reading
from agent.outbox.survey import Damage, Survey, survey
from agent.rendering import account
from agent.rendering.words import cause_name
from agent.verifier import Judged, Report, Signer, Verifier

_REPAIR = "stop the agent, then edge-agent outbox repair"


def ring_named(options: argparse.Namespace) -> Path:
    """The ring file that is meant: FILE, or that of the channel. Raises ConfigError, ControlError, PermissionError."""
    if options.file is not None:
        return Path(options.file)
    config = load(options.config)
    return ring_of(config, only(config, options.channel))


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if anything is damaged or did not verify. Raises ConfigError, ControlError, OutboxError, OSError."""
    path = ring_named(options)
    with reading(path) as fd:
        found = survey(fd, link_of)
        try:
            verifier = Verifier(accepted(options) or _signers(found))
        except ValueError as error:
            say(f"edge-agent outbox verify: {error}")
            return USAGE
        records, withdrawn = 0, tuple[Withdrawn, ...]()
        for envelope in _envelopes(found):
            records += 1
            withdrawn = _told(verifier.feed(envelope), withdrawn)
        withdrawn = _told(verifier.finish(), withdrawn)
        used = size(found.file.header.segment_size * len(found.places))
    report = verifier.report
    good = not found.troubles and not found.damage and (report.good or not records)
    if options.json:
        print(json.dumps(_as_json(path, found, records, withdrawn, report) | {"good": good}))
        return GOOD if good else FINDING
    header = found.file.header
    what = f"{header.segments} segments of {size(header.segment_size)}, of which {used} hold records"
    print(f"{path}: outbox of channel {header.channel or 'unknown'}, {what}")
    print("\n".join(_lines(found, records, withdrawn)))
    print("\n".join(account.lines(report)))
    return GOOD if good else FINDING


def _envelopes(found: Survey) -> Iterator[bytes]:
    """What was there when the file was surveyed; a running agent goes on writing."""
    for part in found.parts():
        yield from (entry.payload for entry in part.entries if entry.link and entry.pos < found.next_pos)


def _signers(found: Survey) -> list[Signer | str]:
    """Whom the records name. Raises ValueError: they are too many to be true."""
    named: dict[str, None] = {}
    for envelope in _envelopes(found):
        named[unpack(envelope).did] = None
        if len(named) > MOST_NAMED:
            raise ValueError(f"it names more than {MOST_NAMED} signers; give --did for each that you accept")
    return list(named)


def _told(judged: Iterable[Judged], withdrawn: tuple[Withdrawn, ...]) -> tuple[Withdrawn, ...]:
    """Say what was found; returns what plans withdrew so far."""
    for each in judged:
        for finding in each.findings:
            say(finding)
        if each.record is not None and isinstance(each.record.body, Plan) and each.record.body.withdrawn:
            withdrawn = merged((*withdrawn, *each.record.body.withdrawn))
    return withdrawn


def _lines(found: Survey, records: int, withdrawn: Iterable[Withdrawn]) -> Iterator[str]:
    if records:
        first = found.places[0].first_pos
        yield f"  holds {records} records at positions {first} to {found.next_pos - 1}, acknowledged to {found.acked}"
        if first > 1:
            yield f"  positions 1 to {first - 1} were overwritten"
    else:
        yield "  holds no record"
    for span in withdrawn:
        yield f"  stated as withdrawn, {cause_name(span.cause)}: {_range(span)}"
    if found.overtaken:
        yield f"  {found.overtaken} segments were overwritten while they were read"
    for trouble in found.troubles:
        yield f"  DAMAGED: {trouble}; {_REPAIR}"
    for damage in found.damage:
        yield f"  DAMAGED: {damage_in_words(damage, found.acked)}"
    if found.undescribed:
        yield f"  DAMAGED: {found.undescribed} more places"


def damage_in_words(damage: Damage, acked: int) -> str:
    """Where, and what it took."""
    places = f"position {damage.first_pos}"
    if damage.last_pos > damage.first_pos:
        places = f"positions {damage.first_pos} to {damage.last_pos}"
    held = f" (records {', '.join(map(_range, damage.spans))})" if damage.spans else ""
    state = "acknowledged" if damage.last_pos <= acked else "waiting"
    return f"{places}{held} cannot be read, at byte {damage.offset}; {state}"


def _range(span: Withdrawn) -> str:
    return f"{span.stream.hex()[:8]}/{span.first}" + (f" to {span.last}" if span.last > span.first else "")


def _as_json(path: Path, found: Survey, records: int, withdrawn: Iterable[Withdrawn], report: Report) -> dict[str, Any]:
    header = found.file.header
    return {
        "ring": str(path),
        "channel": header.channel or None,
        "ring_id": header.ring_id.hex(),
        "segment_size": header.segment_size,
        "segments": header.segments,
        "segments_used": len(found.places),
        "records": records,
        "first_pos": found.places[0].first_pos if found.places else 0,
        "next_pos": found.next_pos,
        "acked": found.acked,
        "withdrawn": [{**_span_json(span), "cause": cause_name(span.cause)} for span in withdrawn],
        "overtaken": found.overtaken,
        "troubles": found.troubles,
        "damage": [
            {
                "offset": damage.offset,
                "first_pos": damage.first_pos,
                "last_pos": damage.last_pos,
                "records": [_span_json(span) for span in damage.spans],
            }
            for damage in found.damage
        ],
        "more_damage": found.undescribed,
        "evidence": account.as_json(report),
    }


def _span_json(span: Withdrawn) -> dict[str, Any]:
    return {"stream": span.stream.hex(), "first": span.first, "last": span.last}
