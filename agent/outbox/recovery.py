"""What start finds in a ring file (docs/outbox.md, rules 3 and 4): values out, and the disk made to hold what was read.

Reads all segment headers, the newest segment, and the one that the next segment will go over; others only where a
header is missing. A crash in here changes nothing: it writes only bytes that it read, zeros behind them, and zeros
over a header without records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from agent.errors import OutboxError
from agent.model import Cause, Withdrawn
from agent.outbox import ring
from agent.outbox.files import RingFile
from agent.outbox.ring import Entry, Inspect, Segment, SegmentHeader, View

if TYPE_CHECKING:
    from agent.evidence.envelope import Link

Head = tuple[int, SegmentHeader]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state of an outbox after a start."""

    view: View
    acked: int
    last: tuple[int, Link] | None  # position and link of the last evidence
    lengths: tuple[tuple[int, int], ...]  # position and envelope's length (0: no evidence) in the newest segment
    plan_pos: int  # first position of the newest segment of which the first record can be read
    lost: tuple[Withdrawn, ...]
    announced: tuple[Withdrawn, ...]  # what an end of segment at the tail says that the next segment takes away


def recover(file: RingFile, inspect: Inspect) -> Recovered:
    """Find out what counts, and write it again (rule 4). Raises OSError, and OutboxError where records would be
    overwritten unstated.
    """
    count = file.header.segments
    heads, dead = file.heads(), None
    entries = _scan(file, heads, len(heads) - 1, inspect)
    if heads and not entries:  # the batch that opened it never became whole: the one before is the newest
        dead = heads.pop()[0]
        entries = _scan(file, heads, len(heads) - 1, inspect)
        if not entries and (heads or dead != 0):
            raise _damaged("its two newest segments hold no record that can be read")
    numbers = [number for number, _ in heads]
    newest = numbers[-1] if heads else -1
    if numbers != sorted(numbers) or (heads and numbers[0] <= newest - count):
        raise _damaged("its segments are out of order")
    next_pos = entries[-1].pos + 1 if entries else 1
    following = file.read(newest + 1)
    if ring.after_rot(following, 0, pos=next_pos, stop=None, inspect=None):
        raise _damaged("the header of its newest segment is broken")

    acked = min(entries[-1].acked, next_pos - 1) if entries else 0
    blank = [] if dead is None else [dead]
    lost = _rotten(file, heads, entries, acked, inspect) if heads else []
    announced: tuple[Withdrawn, ...] = ()
    if (
        entries and entries[-1].type == ring.END
    ):  # a crash in the midst of going on: the segment after it may be half overwritten
        announced = ring.unpack_end(entries[-1].payload)
        if _torn(file, heads, inspect):
            blank.append(heads.pop(0)[0])
        if heads[0][0] > newest + 1 - count >= 0 and heads[0][1].first_pos > acked + 1:
            lost += announced
    start, found = len(heads) - 1, entries
    while start > 0 and not (
        found and found[0].pos == heads[start][1].first_pos
    ):  # its plan is rot: begin at an older one
        start -= 1
        found = _scan(file, heads, start, inspect)
    evidence = [(e.pos, e.link) for e in (found + entries if found is not entries else entries) if e.link]
    at = entries[-1].end if entries else 0
    _write_again(file, newest, at, blank)
    return Recovered(
        view=View(
            segments=tuple(Segment(number, head.first_pos, head.prev) for number, head in heads),
            at=at,
            closed=not entries or entries[-1].type == ring.END,
            next_pos=next_pos,
        ),
        acked=acked,
        last=evidence[-1] if evidence else None,
        lengths=tuple((e.pos, len(e.payload) if e.link else 0) for e in entries),
        plan_pos=heads[start][1].first_pos if heads else 1,
        lost=tuple(lost),
        announced=announced,
    )


def _write_again(file: RingFile, newest: int, at: int, blank: Sequence[int]) -> None:
    """Rule 4: the page cache may hold what the disk does not, and what follows the tail must not be taken for records
    later.

    ``blank``: segments whose headers go, because what they announce is not there.
    """
    if newest >= 0:
        zeros = bytes(min(ring.RECORD_HEADER, file.header.segment_size - at))
        file.write(newest, 0, file.read(newest, 0, at) + zeros)
    for number in blank:
        file.write(number, 0, bytes(ring.SEGMENT_HEADER))
    if newest >= 0 or blank:
        file.sync()


def _scan(file: RingFile, heads: Sequence[Head], index: int, inspect: Inspect) -> list[Entry]:
    """The records of one of the segments; the last one's end is found, the others' is known."""
    if not 0 <= index < len(heads):
        return []
    stop = heads[index + 1][1].first_pos if index + 1 < len(heads) else None
    return ring.scan(file.read(heads[index][0]), heads[index][1], inspect=inspect, stop=stop)


def _torn(file: RingFile, heads: Sequence[Head], inspect: Inspect) -> bool:
    """Whether the oldest segment is the next to be overwritten and cannot be read whole."""
    if len(heads) < 2 or heads[0][0] != heads[-1][0] + 1 - file.header.segments:
        return False
    entries = _scan(file, heads, 0, inspect)
    evidence = [entry.link for entry in entries if entry.link]
    unbroken = all(entry.pos == pos for pos, entry in enumerate(entries, heads[0][1].first_pos))
    return not unbroken or not evidence or evidence[-1].digest != heads[1][1].prev


def _rotten(
    file: RingFile, heads: Sequence[Head], entries: list[Entry], acked: int, inspect: Inspect
) -> list[Withdrawn]:
    """What should be held, is not acknowledged, and cannot be read: in the newest segment, and where a segment's
    header is gone.

    Other segments are not looked into (never scan the whole file); rot in them is found when they are read.
    """
    spans: list[Withdrawn] = []
    for index, ((number, head), (after, _)) in enumerate(pairwise(heads)):
        if after != number + 1:
            found = _scan(file, heads, index, inspect) + _scan(file, heads, index + 1, inspect)
            spans += ring.holes((head.first_pos - 1, None), found, above=acked, cause=Cause.DISK_ERROR)
    if heads[0][0] > max(0, heads[-1][0] + 1 - file.header.segments) and entries[-1].type != ring.END:
        spans += ring.holes((acked, None), _scan(file, heads, 0, inspect), above=acked, cause=Cause.DISK_ERROR)
    head = heads[-1][1]
    return spans + ring.holes((head.first_pos - 1, None), entries, above=acked, cause=Cause.DISK_ERROR)


def _damaged(what: str) -> OutboxError:
    return OutboxError(
        f"the ring file is damaged: {what}",
        hint="it is left as it is; `edge-agent outbox repair` saves what can be read of it",
    )
