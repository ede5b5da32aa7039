"""The arithmetic of cycles: grid numbers, anchors and due times (docs/evidence.md sections 2 and 4). Pure integers,
ns.
"""

from __future__ import annotations

from agent.model import Schedule


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def anchor(*, period: int, phase: int, wall: int, boot: int) -> Schedule:
    """The schedule of a group at the instant (wall, boot): ``first`` is the first grid number not before now."""
    first = ceil_div(wall - phase, period)
    return Schedule(period, phase, first, boot + phase + first * period - wall)


def due_before(schedule: Schedule, boot: int) -> int:
    """The first cycle that is not due before ``boot``; a term that ends there has covered all cycles below it."""
    return schedule.first + max(0, ceil_div(boot - schedule.anchor, schedule.period))


def latest_due(schedule: Schedule, boot: int) -> int:
    """The last cycle whose due time has come at ``boot``; below ``first`` if none has."""
    return schedule.first + (boot - schedule.anchor) // schedule.period


def clock_stepped(schedule: Schedule, *, cycle: int, wall: int, boot: int) -> bool:
    """Whether the wall clock has left the term: off by more than a twentieth of the period, held between 5 ms and 1
    s.
    """
    tolerance = min(max(schedule.period // 20, 5_000_000), 1_000_000_000)
    lateness = boot - schedule.due(cycle)
    return abs(wall - (schedule.nominal(cycle) + lateness)) > tolerance
