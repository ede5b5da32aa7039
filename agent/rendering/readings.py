"""The values of verified records one by one, as tables and SenML have them. Pure.

Only of records that are genuine: structure, signature and identity good, and not seen before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.evidence.coverage import group_key
from agent.model import Data, Frame, Gap, Plan, Point, Sealed, Value
from agent.verifier import Judged, Level, Outcome

_GENUINE = (Level.STRUCTURE, Level.SIGNATURE, Level.IDENTITY)


@dataclass(frozen=True, slots=True)
class Reading:
    """A value as sent (an integer means value x 10^exponent of the point's unit). ``wall``: the moment that it stands
    for, ns; ``cycle`` its frame's; ``quality`` a code, None if it is good.
    """

    wall: int
    device: str
    group: str
    point: Point
    value: Value
    quality: int | None
    cycle: int


@dataclass(frozen=True, slots=True)
class Absence:
    """No values of a group from ``wall`` to ``until`` (both ns; the first and the last moment that a gap stands for, or
    from when to when no messages came). ``first``, ``last``: cycles, None for messages.
    """

    wall: int
    until: int
    device: str
    group: str
    cause: int
    detail: str | None
    first: int | None
    last: int | None


def genuine(judged: Judged) -> bool:
    """Whether what a record says is what its signer sealed, and new."""
    return (
        not judged.repeat
        and not judged.foreign
        and judged.record is not None
        and all(judged.outcomes.get(level) is Outcome.OK for level in _GENUINE)
    )


def readings(judged: Judged) -> Iterator[Reading]:
    """The values of a record, frame by frame."""
    data, plan = _data(judged)
    if data is None or plan is None or judged.record is None:
        return
    for frame in data.frames:
        group = plan.groups[frame.group]
        device, name = group_key(plan, group)
        wall, codes = moment_of(frame, plan, judged.record.sealed), dict(frame.quality)
        for i, (point, value) in enumerate(zip(group.points, frame.values, strict=True)):
            yield Reading(wall, device, name, point, value, codes.get(i), frame.cycle)


def absences(judged: Judged) -> Iterator[Absence]:
    """The gaps that a record states."""
    data, plan = _data(judged)
    if data is None or plan is None or judged.record is None:
        return
    for gap in data.gaps:
        device, name = group_key(plan, plan.groups[gap.group])
        wall, until = _span(gap, plan, judged.record.sealed)
        yield Absence(wall, until, device, name, gap.cause, gap.detail, gap.first, gap.last)


def moment_of(frame: Frame, plan: Plan, sealed: Sealed) -> int:
    """Wall time, ns, that a frame stands for: the source's own if it gave one, the cycle's nominal time, or when the
    message was received.
    """
    if frame.source_time is not None:
        return frame.source_time
    schedule = plan.groups[frame.group].schedule
    return sealed.wall - frame.late_us * 1000 if schedule is None else schedule.nominal(frame.cycle)


def _span(gap: Gap, plan: Plan, sealed: Sealed) -> tuple[int, int]:
    schedule = plan.groups[gap.group].schedule
    if gap.first is not None and gap.last is not None and schedule is not None:
        return schedule.nominal(gap.first), schedule.nominal(gap.last)
    if gap.from_boot is not None and gap.to_boot is not None:
        return sealed.wall - (sealed.boot - gap.from_boot), sealed.wall - (sealed.boot - gap.to_boot)
    return sealed.wall, sealed.wall


def _data(judged: Judged) -> tuple[Data | None, Plan | None]:
    record = judged.record
    if not genuine(judged) or record is None or not isinstance(record.body, Data) or judged.plan is None:
        return None, None
    return record.body, judged.plan
