"""Verified records as text lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.evidence.coverage import group_key
from agent.model import Data, Event, Frame, Link, Plan, Record
from agent.printable import printable
from agent.rendering.words import Wanted, any_wanted, cause_name, event_name, moment, quality_name, value_text
from agent.verifier import Judged


def text_lines(judged: Judged) -> Iterator[str]:
    """A line for the record with its verdict, then what it holds: device, point, value, unit, quality of each group's
    last frame.
    """
    if judged.head is None:
        yield f"?  {judged.verdict}"
    else:
        yield f"{record_line(judged.head.link, judged.record)}: {judged.verdict.upper()}"
        if judged.record is not None and judged.plan is not None and isinstance(judged.record.body, Data):
            yield from data_lines(judged.record.body, judged.plan)
    for finding in judged.findings:
        yield f"  {finding}"


def record_line(link: Link, record: Record | None) -> str:
    """Which record it is, when it was sealed, and what is in it."""
    sealed = f" sealed {moment(record.sealed.wall)}" if record else ""
    return f"{link.stream.hex()[:8]}/{link.seq}{sealed} {_what(record)}"


def _what(record: Record | None) -> str:
    body = record.body if record else None
    if isinstance(body, Data):
        gaps = f", {len(body.gaps)} gaps" if body.gaps else ""
        return f"data, {len(body.frames)} frames{gaps}"
    if isinstance(body, Plan):
        return f"plan of term {body.term}, {len(body.devices)} devices, {len(body.groups)} groups, site {body.site}"
    if isinstance(body, Event):
        return printable(f"event {event_name(body.code)} {' '.join(map(str, body.details))}")
    return "record"


def data_lines(data: Data, plan: Plan, wanted: Wanted = lambda path: True) -> Iterator[str]:
    """Of each group's last frame the points that are wanted, and the gaps of groups of which any is."""
    last: dict[int, Frame] = {frame.group: frame for frame in data.frames}
    for index, frame in last.items():
        group = plan.groups[index]
        name = "/".join(group_key(plan, group))
        codes = dict(frame.quality)
        for i, (point, value) in enumerate(zip(group.points, frame.values, strict=True)):
            if not wanted(f"{name}/{point.name}"):
                continue
            quality = quality_name(codes[i]) if i in codes else "good"
            yield f"  {name:24} {point.name:10} {value_text(point, value):>12} {point.unit or '':4} {quality}"
    for gap in data.gaps:
        if not any_wanted(plan, gap.group, wanted):
            continue
        detail = f" ({printable(gap.detail)})" if gap.detail else ""
        where = f"cycles {gap.first} to {gap.last}"
        if gap.from_boot is not None and gap.to_boot is not None:
            where = f"no messages for {(gap.to_boot - gap.from_boot) / 1e9:.3g} s"
        yield f"  {'/'.join(group_key(plan, plan.groups[gap.group])):24} gap: {where}: {cause_name(gap.cause)}{detail}"
