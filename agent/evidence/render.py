"""Verified records for people and programs: text lines and plain JSON values. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from agent.evidence.coverage import group_key
from agent.evidence.envelope import message_id
from agent.evidence.report import cause_name
from agent.evidence.verify import Judged
from agent.model import (
    Data,
    Event,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Kind,
    Link,
    Plan,
    Point,
    Quality,
    Record,
    Sealed,
    Value,
)
from agent.printable import printable

_LAST_MOMENT = 253_402_300_799_999_999_999  # ns: the end of the year 9999
_EXACT = 10**15  # a float's shortest text has the same digits as a decimal of up to 15

Wanted = Callable[[str], bool]
"""Whether ``device/group/point`` is to be shown."""


def scaled(point: Point, value: Value) -> Value:
    """The value in the point's unit. Integers become exact decimals: an int, a float with the same digits, or text if
    neither can.
    """
    if point.exponent == 0 or type(value) is not int:
        return value.hex() if isinstance(value, bytes) else value
    exact = Decimal(value).scaleb(point.exponent)
    if abs(value) < _EXACT and abs(point.exponent) < 300:
        return float(exact) if point.exponent < 0 else int(exact)
    return format(exact, "f")


def value_text(point: Point, value: Value) -> str:
    """The scaled value for people, with the name of an enumerated one; ``-`` for null."""
    label = f" ({point.labels[value]})" if type(value) is int and value in point.labels else ""
    return "-" if value is None else printable(f"{scaled(point, value)!s}{label}")


def moment(wall: int) -> str:
    """RFC 3339, UTC, ms; ``wall`` in ns."""
    if wall > _LAST_MOMENT:
        return f"{wall} ns"  # beyond what a date can say
    when = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=wall // 1000)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def quality_name(code: int) -> str:
    """The quality's name in lower case, or its number."""
    return Quality(code).name.lower() if code in Quality._value2member_map_ else f"quality {code}"


# ---- text -------------------------------------------------------------------------------------------------------


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
        return printable(f"event {_event_name(body.code)} {' '.join(map(str, body.details))}")
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
        if not _any_wanted(plan, gap.group, wanted):
            continue
        detail = f" ({printable(gap.detail)})" if gap.detail else ""
        where = f"cycles {gap.first} to {gap.last}"
        if gap.from_boot is not None and gap.to_boot is not None:
            where = f"no messages for {(gap.to_boot - gap.from_boot) / 1e9:.3g} s"
        yield f"  {'/'.join(group_key(plan, plan.groups[gap.group])):24} gap: {where}: {cause_name(gap.cause)}{detail}"


def _event_name(code: int) -> str:
    return EventCode(code).name.lower() if code in EventCode._value2member_map_ else str(code)


# ---- JSON -------------------------------------------------------------------------------------------------------


def as_json(judged: Judged) -> dict[str, Any]:
    """The record as plain JSON values; docs/consuming.md lists the keys."""
    found: dict[str, Any] = {
        "verdict": judged.verdict,
        "levels": {str(level): str(outcome) for level, outcome in judged.outcomes.items()},
        "findings": [str(finding) for finding in judged.findings],
    }
    if judged.head is None:
        return found
    found |= link_json(judged.head.link)
    return found if judged.record is None else found | record_json(judged.record, judged.plan)


def record_json(record: Record, plan: Plan | None, wanted: Wanted = lambda path: True) -> dict[str, Any]:
    """What is in a record, of data the points that are wanted; ``plan``: the one in force, if it is known."""
    sealed = record.sealed
    found: dict[str, Any] = {
        "sealed": {"time": moment(sealed.wall), "wall": sealed.wall, "boot": sealed.boot, "clock": sealed.clock},
        "kind": kind_name(record.kind),
    }
    if isinstance(record.body, Data) and plan is not None:
        frames = [_frame(frame, plan, sealed, wanted) for frame in record.body.frames]
        found["term"] = record.body.term
        found["frames"] = [frame for frame in frames if frame["values"]]
        found["gaps"] = [_gap(gap, plan) for gap in record.body.gaps if _any_wanted(plan, gap.group, wanted)]
    elif isinstance(record.body, Plan):
        found["plan"] = _plan(record.body)
    elif isinstance(record.body, Event):
        found["event"] = {"code": _event_name(record.body.code), "details": [_plain(d) for d in record.body.details]}
    return found


def link_json(link: Link) -> dict[str, Any]:
    """Which record it is."""
    return {"id": message_id(link), "stream": link.stream.hex(), "seq": link.seq}


def kind_name(kind: int) -> str | int:
    """``plan``, ``data``, ``event``, or the number of a kind that is not known."""
    return Kind(kind).name.lower() if kind in Kind._value2member_map_ else kind


def _any_wanted(plan: Plan, index: int, wanted: Wanted) -> bool:
    group = plan.groups[index]
    name = "/".join(group_key(plan, group))
    return any(wanted(f"{name}/{point.name}") for point in group.points)


def _plain(value: Value) -> Value:
    return value.hex() if isinstance(value, bytes) else value


def _frame(frame: Frame, plan: Plan, sealed: Sealed, wanted: Wanted) -> dict[str, Any]:
    group = plan.groups[frame.group]
    device, name = group_key(plan, group)
    found: dict[str, Any] = {"device": device, "group": name, "cycle": frame.cycle}
    late = frame.late_us * 1000
    if group.schedule is not None:
        found["time"] = moment(group.schedule.nominal(frame.cycle))
        found["started_boot"] = group.schedule.due(frame.cycle) + late
    else:
        found["time"] = moment(sealed.wall - late)
        found["started_boot"] = sealed.boot - late
    if frame.source_time is not None:
        found["source_time"] = frame.source_time
    found |= {"late_us": frame.late_us, "took_us": frame.took_us}
    points = [(i, p) for i, p in enumerate(group.points) if wanted(f"{device}/{name}/{p.name}")]
    found["values"] = {p.name: scaled(p, frame.values[i]) for i, p in points}
    codes = dict(frame.quality)
    if quality := {p.name: quality_name(codes[i]) for i, p in points if i in codes}:
        found["quality"] = quality
    return found


def _gap(gap: Gap, plan: Plan) -> dict[str, Any]:
    device, name = group_key(plan, plan.groups[gap.group])
    found = {"device": device, "group": name, "from": gap.first, "to": gap.last, "cause": cause_name(gap.cause)}
    return found | {"detail": gap.detail, "from_boot": gap.from_boot, "to_boot": gap.to_boot}


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "term": plan.term,
        "opened": list(plan.opened),
        "boot_id": plan.boot_id.hex(),
        "version": plan.version,
        "site": plan.site,
        "labels": dict(plan.labels),
        "channel": plan.channel,
        "topic": plan.topic,
        "window_ms": plan.window_ms,
        "follows": [plan.follows[0].hex(), plan.follows[1]] if plan.follows else None,
        "resumes": _resumes(plan),
        "withdrawn": [[w.stream.hex(), w.first, w.last, cause_name(w.cause)] for w in plan.withdrawn],
        "devices": [
            {
                name: getattr(d, name)
                for name in ("id", "adapter", "asset", "manufacturer", "model", "serial", "firmware")
            }
            for d in plan.devices
        ],
        "groups": [_group(group, plan) for group in plan.groups],
    }


def _resumes(plan: Plan) -> dict[str, Any] | None:
    if plan.resumes is None:
        return None
    cause, resumes = plan.resumes
    return {"cause": cause_name(cause), "groups": [[r.device, r.group, r.term, r.cycle] for r in resumes]}


def _group(group: GroupPlan, plan: Plan) -> dict[str, Any]:
    schedule = group.schedule
    return {
        "device": group_key(plan, group)[0],
        "group": group.name,
        "next": group.next,
        "schedule": None
        if schedule is None
        else {"period": schedule.period, "phase": schedule.phase, "first": schedule.first, "anchor": schedule.anchor},
        "points": [
            {"name": p.name, "unit": p.unit, "type": p.type.name.lower(), "exponent": p.exponent, "source": p.source}
            for p in group.points
        ],
    }
