"""The arithmetic of cycles: grid numbers, anchors and due times (docs/evidence.md sections 2 and 4). Pure integers,
ns.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from agent.model import Schedule


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def anchor(*, period: int, phase: int, wall: int, boot: int) -> Schedule:
    """The schedule of a group at the instant (wall, boot): ``first`` is the first grid number not before now."""
    first = ceil_div(wall - phase, period)
    return Schedule(period, phase, first, boot + phase + first * period - wall)


def spread(period: int, *names: str) -> int:
    """A phase less than ``period`` in whole ms, always the same for the same names and another one for others: so that
    a fleet does not do everything at once.
    """
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return int.from_bytes(digest, "big") % (period // 1_000_000) * 1_000_000


def due_before(schedule: Schedule, boot: int) -> int:
    """The first cycle that is not due before ``boot``; a term that ends there has covered all cycles below it."""
    return schedule.first + max(0, ceil_div(boot - schedule.anchor, schedule.period))


def latest_due(schedule: Schedule, boot: int) -> int:
    """The last cycle whose due time has come at ``boot``; below ``first`` if none has."""
    return schedule.first + (boot - schedule.anchor) // schedule.period


def clock_stepped(schedule: Schedule, *, wall: int, boot: int) -> bool:
    """Whether the wall clock has left the term: off by more than a twentieth of the period, held between 5 ms and 1
    s.
    """
    tolerance = min(max(schedule.period // 20, 5_000_000), 1_000_000_000)
    return abs(wall - boot - offset(schedule)) > tolerance


def offset(schedule: Schedule) -> int:
    """Wall minus boot time as the schedule's anchor has it."""
    return schedule.nominal(schedule.first) - schedule.anchor


def following(old: Schedule, *, covered: int, stepped: bool, wall: int, boot: int, period: int, phase: int) -> Schedule:
    """The schedule of a group in the term after ``old``, which covers all cycles below ``covered``.

    As long as neither the wall clock stepped nor the group's marks changed the grid goes on: anchors read anew would
    differ by how far the clocks drifted and by how long it takes to read both, and make or lose a cycle. The new
    anchor is never so early that a cycle which ``old`` has already covered falls due at it (a mark read at this very
    instant).
    """
    if not stepped and (period, phase) == (old.period, old.phase):
        first = max(covered, due_before(old, boot))
        return replace(old, first=first, anchor=old.due(first))
    new = anchor(period=period, phase=phase, wall=wall, boot=boot)
    if due_before(old, new.anchor) < covered:
        new = replace(new, first=new.first + 1, anchor=new.anchor + new.period)
    return new
