"""Verified records as plain JSON values for programs; docs/consuming.md lists the keys. Pure."""

from __future__ import annotations

from typing import Any

from agent.evidence.coverage import group_key
from agent.evidence.envelope import message_id
from agent.model import Data, Event, Frame, Gap, GroupPlan, Link, Plan, Record, Sealed, Value
from agent.rendering.words import Wanted, any_wanted, cause_name, event_name, kind_name, moment, quality_name, scaled
from agent.verifier import Judged


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
        "sealed": {
            "time": moment(sealed.wall),
            "wall": sealed.wall,
            "boot": sealed.boot,
            "clock": sealed.clock,
            "error_us": sealed.error_us,
        },
        "kind": kind_name(record.kind),
    }
    if isinstance(record.body, Data) and plan is not None:
        frames = [_frame(frame, plan, sealed, wanted) for frame in record.body.frames]
        found["term"] = record.body.term
        found["frames"] = [frame for frame in frames if frame["values"]]
        found["gaps"] = [_gap(gap, plan) for gap in record.body.gaps if any_wanted(plan, gap.group, wanted)]
    elif isinstance(record.body, Plan):
        found["plan"] = _plan(record.body)
    elif isinstance(record.body, Event):
        found["event"] = {"code": event_name(record.body.code), "details": [_plain(d) for d in record.body.details]}
    return found


def link_json(link: Link) -> dict[str, Any]:
    """Which record it is."""
    return {"id": message_id(link), "stream": link.stream.hex(), "seq": link.seq}


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
        **({"volatile": True} if plan.volatile else {}),
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
