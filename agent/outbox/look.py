"""Looking at a ring file from outside, beside a running agent or without one: how it stands, and what it holds.

Read-only and without a lock: nothing is ever written. The writer never waits; what it
overwrites meanwhile is left out. A file that is missing, damaged or not of the channel is an OutboxError, which leaves
it as it is.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.errors import EvidenceError, OutboxError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record, link_of
from agent.outbox import ring
from agent.outbox.backlog import Backlog, Pending
from agent.outbox.files import OS_FILES, Files, RingFile, reading
from agent.outbox.outbox import SEGMENT_SIZE
from agent.outbox.reader import Stored
from agent.outbox.ring import Entry, Inspect, SegmentHeader

__all__ = ["Standing", "Stored", "agrees", "look", "records", "sealed_at"]

_TRIES = 5  # to look at a file whose writer keeps overtaking us

Heads = Sequence[tuple[int, SegmentHeader]]


@dataclass(frozen=True, slots=True)
class Standing:
    """How an outbox stands. Sizes in bytes; ``oldest_wall`` and ``newest_wall``: when the oldest waiting and the last
    record were sealed, ns, None if there is none.

    ``pending_exact``: all that waits lies in the newest segment; else its counts are a little high
    (agent/outbox/backlog.py).
    """

    ring: str
    ring_id: str
    size: int
    segment_size: int
    segments: int
    segments_used: int
    first_pos: int
    next_pos: int
    acked: int
    pending_records: int
    pending_bytes: int
    pending_exact: bool
    oldest_wall: int | None
    newest_wall: int | None

    def as_json(self) -> dict[str, Any]:
        """Plain values, by the names above."""
        return asdict(self)


def look(path: Path, *, channel: str, acked: int | None = None) -> Standing:
    """How the outbox of a channel stands. ``acked``: as the running agent knows it; None: as the newest record says.

    Reads the segments' headers, the newest segment, and the one that holds the oldest record that waits. Raises
    OutboxError.
    """
    with _opened(path, channel) as file:
        for _ in range(_TRIES):
            found = _look(file, path, acked)
            if found is not None:
                return found
        raise OutboxError("it is written faster than it can be looked at", hint="try again")


def agrees(path: Path, *, channel: str, size: int, segment_size: int = SEGMENT_SIZE) -> None:
    """Raise OutboxError if a start would refuse this file for its header: it is not of this channel, or was not made
    with ``size`` bytes. By the system's word (``__cause__``) if it cannot be read.
    """
    with reading(path) as fd:
        header = ring.unpack_file_header(OS_FILES.pread(fd, ring.START, 0))
        segments = (size - ring.START) // segment_size
        ring.agree(
            header,
            replace(header, channel=channel, segment_size=segment_size, segments=segments),
            os.fstat(fd).st_size,
        )


def records(
    path: Path,
    *,
    channel: str | None = None,
    newest: int | None = None,
    inspect: Inspect = link_of,
    files: Files = OS_FILES,
) -> Generator[Stored]:
    """What an outbox holds, oldest first; with ``newest`` (1 or more) only the last so many. Close it.

    ``channel`` None: whichever it is of. Holds one segment in memory. Raises OutboxError.
    """
    with _opened(path, channel, files) as file:
        after = 0 if newest is None else _before_newest(file, newest)
        yield from _records(file, after, inspect)


@contextmanager
def _opened(path: Path, channel: str | None, files: Files = OS_FILES) -> Iterator[RingFile]:
    with reading(path) as fd:
        header = ring.unpack_file_header(files.pread(fd, ring.START, 0))
        wanted = header if channel is None else replace(header, channel=channel)
        ring.agree(header, wanted, os.fstat(fd).st_size)
        yield RingFile(fd, header, files)


def _look(file: RingFile, path: Path, acked: int | None) -> Standing | None:
    """None: the writer was faster."""
    heads = file.heads()
    entries = _entries(file, heads, len(heads) - 1)
    if heads and not entries:  # the batch that opened it is not whole (yet): the one before is the newest
        heads = heads[:-1]
        entries = _entries(file, heads, len(heads) - 1)
        if heads and not entries:
            raise _damaged("its two newest segments hold no record that can be read")
    numbers = [number for number, _ in heads]
    if numbers != sorted(numbers):
        raise _damaged("its segments are out of order")
    next_pos = entries[-1].pos + 1 if entries else 1
    if acked is None or acked >= next_pos:
        acked = min(entries[-1].acked, next_pos - 1) if entries else 0
    at = max(0, bisect_right(heads, acked + 1, key=lambda head: head[1].first_pos) - 1)
    waiting = next((e for e in _entries(file, heads, at) if e.link and e.pos > acked), None)
    if waiting is None and at + 1 < len(heads):  # only an end of segment came behind what is acknowledged
        waiting = next((e for e in _entries(file, heads, at + 1) if e.link), None)
    if heads and any(_overtaken(file, heads[index]) for index in {at, len(heads) - 1}):
        return None
    pending = _pending(file, heads, entries, acked)
    last = next((entry for entry in reversed(entries) if entry.link), None)
    return Standing(
        ring=str(path),
        ring_id=file.header.ring_id.hex(),
        size=file.header.size,
        segment_size=file.header.segment_size,
        segments=file.header.segments,
        segments_used=len(heads),
        first_pos=heads[0][1].first_pos if heads else 0,
        next_pos=next_pos,
        acked=acked,
        pending_records=pending.records,
        pending_bytes=pending.bytes,
        pending_exact=not heads or acked + 1 >= heads[-1][1].first_pos,
        oldest_wall=None if waiting is None else sealed_at(waiting.payload),
        newest_wall=None if last is None else sealed_at(last.payload),
    )


def _pending(file: RingFile, heads: Heads, entries: Sequence[Entry], acked: int) -> Pending:
    """What waits, counted as the agent does at its start."""
    backlog = Backlog()
    backlog.acked = acked
    room = file.header.segment_size - ring.SEGMENT_HEADER
    for (_, head), (_, after) in pairwise(heads):
        backlog.estimate(head.first_pos, after.first_pos, room=room, header=ring.RECORD_HEADER)
    if heads:
        backlog.begin(heads[-1][1].first_pos)
        for entry in entries:
            backlog.add(entry.pos, len(entry.payload) if entry.link else 0)
    backlog.recount()
    return backlog.pending


def _before_newest(file: RingFile, count: int) -> int:
    """The position behind which the last ``count`` evidence records lie, 0 if there are not more."""
    heads, left = file.heads(), count
    for index in reversed(range(len(heads))):
        found = [entry.pos for entry in _entries(file, heads, index) if entry.link]
        if len(found) >= left:
            return found[-left] - 1
        left -= len(found)
    return 0


def _records(file: RingFile, done: int, inspect: Inspect) -> Iterator[Stored]:
    """The evidence behind position ``done``."""
    heads = _behind(file, done)
    while heads:
        entries = _entries(file, heads, 0, inspect)
        if len(heads) == 1:
            file.sync()  # only what is on disk may leave: the writer may not have come to that yet
        if _overtaken(file, heads[0]):
            heads = _behind(file, done)  # go on with what is oldest now
            continue
        for entry in entries:
            if entry.link and entry.pos > done:
                yield Stored(entry.pos, entry.payload, entry.link)
        done = max(done, heads[0][1].first_pos, *(entry.pos for entry in entries))
        heads = heads[1:]


def _behind(file: RingFile, pos: int) -> Heads:
    """The segments that hold anything behind a position."""
    heads = file.heads()
    return heads[max(0, bisect_right(heads, pos + 1, key=lambda head: head[1].first_pos) - 1) :]


def _entries(file: RingFile, heads: Heads, index: int, inspect: Inspect = link_of) -> list[Entry]:
    """The records of one of the segments; the last one's end is found, the others' is known."""
    if not 0 <= index < len(heads):
        return []
    number, head = heads[index]
    stop = heads[index + 1][1].first_pos if index + 1 < len(heads) else None
    return ring.scan(file.read(number), head, inspect=inspect, stop=stop)


def _overtaken(file: RingFile, head: tuple[int, SegmentHeader]) -> bool:
    """Whether a segment was overwritten since its header was read."""
    return file.read(head[0], 0, ring.SEGMENT_HEADER) != head[1].pack()


def sealed_at(envelope: bytes) -> int | None:
    """When a record was sealed, ns; None if that cannot be read."""
    try:
        return decode_record(decode_head(unpack(envelope).payload), None).sealed.wall
    except EvidenceError:
        return None


def _damaged(what: str) -> OutboxError:
    return OutboxError(f"the ring file is damaged: {what}", hint="keep a copy of it; a start of the agent says more")
