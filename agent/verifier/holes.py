"""Holes: records that did not come in their turn, what comes of them, and the cycles that went with them
(docs/evidence.md section 10, steps 7 and 9).

A hole is open until its records have come late (filled) or plans withdraw what has not come (accounted); at the end it
has failed or is unknown. Only then are its cycles counted, as gaps with the stated cause or as missing. A stream has at
most ``MOST`` open holes of at most ``MOST`` parts: beyond that the oldest two are made one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.evidence.coverage import GroupKey, Lost
from agent.evidence.did import DidKey
from agent.model import Link, Withdrawn
from agent.verifier.report import LISTED, ChannelReport, Hole, HoleState, Part, Report
from agent.verifier.verdict import Level

BROKEN = "the chain is broken: prev is not the digest of the record before"
MOST = 64
_MOST_STREAMS = 1024  # of which withdrawn ranges are remembered,
_MOST_RANGES = 1024  # and so many of each


class Permissions:
    """What the plans of each signer have withdrawn: records that may be missing."""

    def __init__(self) -> None:
        self.signers: dict[DidKey, Withdrawals] = {}

    def of(self, signer: DidKey) -> Withdrawals:
        """What this signer's plans have withdrawn."""
        return self.signers.setdefault(signer, Withdrawals())


@dataclass(slots=True)
class Withdrawals:
    """What the plans of one signer have withdrawn, by stream."""

    ranges: dict[bytes, list[Withdrawn]] = field(default_factory=dict)

    def add(self, ranges: Iterable[Withdrawn]) -> None:
        """A plan says that these may be missing; plans restate their ranges as these grow."""
        for new in ranges:
            known = self.ranges.setdefault(new.stream, [])
            if not any(_within(new, each) for each in known):
                known[:] = [*(each for each in known[-_MOST_RANGES:] if not _within(each, new)), new]
                if len(self.ranges) > _MOST_STREAMS:
                    del self.ranges[next(iter(self.ranges))]

    def cause(self, stream: bytes, parts: Iterable[Part]) -> int | None:
        """Why all these records of a stream may be missing; None: not all of them may."""
        cause = None
        ranges = sorted(self.ranges.get(stream, ()), key=lambda each: each.first)
        for part in parts:
            at = part.first
            for each in ranges:
                if each.first <= at <= each.last:
                    at, cause = each.last + 1, each.cause
            if at <= part.last:
                return None
        return cause


def open_hole(account: ChannelReport, stream: bytes, part: Part) -> Hole:
    """These records did not come in their turn."""
    hole = Hole(stream, part.first, part.last, parts=[part])
    account.holes.append(hole)
    return hole


def bound(account: ChannelReport, holes: list[Hole]) -> None:
    """Make the oldest two holes of a stream one if it has too many. What lies between them counts as missing."""
    if len(holes) <= MOST:
        return
    done = [hole for hole in holes if hole.state is HoleState.FILLED and not any(hole.cycles.values())]
    for hole in done:
        holes.remove(hole)
    if len(holes) > MOST:
        older, newer = holes[0], holes.pop(1)
        parts = [*older.parts, *newer.parts] or [Part(older.first, newer.last)]
        older.last, older.state = newer.last, HoleState.OPEN
        older.parts = [Part(parts[0].first, parts[-1].last, parts[0].before, parts[-1].after, merged=True)]
        lose(older, newer.cycles)
        account.holes.remove(newer)


def lose(hole: Hole, cycles: Lost) -> None:
    """These cycles went with the hole."""
    for key, count in cycles.items():
        hole.cycles[key] = hole.cycles.get(key, 0) + count


def recover(holes: list[Hole], key: GroupKey, count: int) -> None:
    """So many cycles of a group came late, in a record of the first of these holes: they are missing no more.

    Which of several holes of a stream took a cycle is not known, and how many they took only once the group is seen
    behind them: a number may be negative until then.
    """
    for hole in holes:
        taken = min(count, max(0, hole.cycles.get(key, 0)))
        lose(hole, {key: -taken})
        count -= taken
    lose(holes[0], {key: -count})


def part_with(holes: Iterable[Hole], seq: int) -> tuple[Hole, Part] | None:
    """The hole to which a record belongs that came late."""
    for hole in holes:
        for part in hole.parts:
            if part.first <= seq <= part.last:
                return hole, part
    return None


def fill(hole: Hole, part: Part, link: Link) -> list[str]:
    """A record of the hole has come; returns how it does not join those beside it."""
    problems = []
    if link.seq == part.first and part.before is not None and link.prev != part.before:
        problems.append(BROKEN)
    if link.seq == part.last and part.after is not None and link.digest != part.after:
        problems.append("the chain is broken: the record behind it has another prev")
    rest = [
        Part(part.first, link.seq - 1, part.before, link.prev),
        Part(link.seq + 1, part.last, link.digest, part.after),
    ]
    where = hole.parts.index(part)
    hole.parts[where : where + 1] = [each for each in rest if each.first <= each.last]
    if not hole.parts:
        hole.state = HoleState.FILLED
    elif len(hole.parts) > MOST:
        first, second = hole.parts[0], hole.parts.pop(1)
        hole.parts[0] = Part(first.first, second.last, first.before, second.after, merged=True)
    return problems


def settle(report: Report, account: ChannelReport, permissions: Withdrawals, *, complete: bool) -> None:
    """Decide the holes of a channel and count their cycles. ``complete``: nothing more will come."""
    by_stream: dict[bytes, list[Hole]] = {}
    for hole in account.holes:
        by_stream.setdefault(hole.stream, []).append(hole)
    for holes in by_stream.values():
        _balance(holes)
    for hole in account.holes:
        decide(report, account, permissions, hole, complete=complete)


def _balance(holes: list[Hole]) -> None:
    """Cycles that seem to have gone with a hole whose records have all come went with another hole of its stream; and
    what could not be read may be counted with any.
    """
    unread = any(hole.unread for hole in holes)
    for hole in holes:
        hole.unread = unread
    others = [hole for hole in holes if hole.state is HoleState.OPEN]
    for hole in holes:
        if hole.state is HoleState.FILLED and others:
            lose(others[0], hole.cycles)
            hole.cycles = {}
    for hole in holes:
        for key, count in hole.cycles.items():
            for other in holes if count < 0 else ():
                taken = min(-hole.cycles[key], max(0, other.cycles.get(key, 0)))
                other.cycles[key] = other.cycles.get(key, 0) - taken
                hole.cycles[key] += taken


def decide(report: Report, account: ChannelReport, permissions: Withdrawals, hole: Hole, *, complete: bool) -> None:
    """Decide a hole and count its cycles."""
    if hole.state is HoleState.OPEN:
        hole.cause = permissions.cause(hole.stream, hole.parts)
        if hole.cause is not None:
            hole.state = HoleState.ACCOUNTED
        else:
            hole.state = HoleState.FAILED if complete else HoleState.UNKNOWN
            counts = report.failures if complete else report.unknowns
            counts.update((Level.CONTINUITY, Level.COMPLETENESS))
            report.failed += complete
    elif hole.state is HoleState.FILLED and any(count > 0 for count in hole.cycles.values()):
        if hole.unread:
            report.unknowns[Level.COMPLETENESS] += 1
        else:
            report.fail(Level.COMPLETENESS)  # all its records are at hand, and some cycles are in none
    for key, count in hole.cycles.items():
        if count > 0 and hole.state is HoleState.ACCOUNTED and hole.cause is not None:
            account.tally(key).gaps[hole.cause] += count
        elif count > 0:
            account.tally(key).missing += count
    hole.cycles = {}


def unlist(report: Report, account: ChannelReport, permissions: Withdrawals) -> Hole | None:
    """If a channel has more holes than are listed, decide one and list it no more: one whose records have all come,
    else the oldest.
    """
    if len(account.holes) <= LISTED:
        return None
    gone = next((hole for hole in account.holes if hole.state is HoleState.FILLED), account.holes[0])
    account.holes.remove(gone)
    decide(report, account, permissions, gone, complete=False)
    account.unlisted_holes[gone.state] += 1
    return gone


def _within(one: Withdrawn, other: Withdrawn) -> bool:
    """Whether a range says nothing that the other does not."""
    same = (one.stream, one.cause) == (other.stream, other.cause)
    return same and other.first <= one.first and one.last <= other.last
