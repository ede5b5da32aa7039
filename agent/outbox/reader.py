"""Reading evidence out of a ring file while it is written: in the daemon behind the writer's back, and from another
process.

The writer never waits for a reader. What a reader read of a segment counts only if the segment is still there
afterwards.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.model import Cause, Withdrawn
from agent.outbox import ring
from agent.outbox.files import RingFile
from agent.outbox.ring import Entry, Inspect, View

if TYPE_CHECKING:
    from agent.evidence.envelope import Link


@dataclass(frozen=True, slots=True)
class Stored:
    """An evidence record of the outbox."""

    pos: int
    envelope: bytes
    link: Link


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where reading goes on. ``since``: position of the last evidence before it; ``absent``: positions that were
    missing since.
    """

    number: int
    at: int
    pos: int
    prev: bytes | None
    since: int
    link: Link | None = None
    absent: int = 0

    def past(self, entry: Entry, base: int) -> _Cursor:
        """The cursor behind an entry whose offsets count from ``base``."""
        prev = None if entry.pos > self.pos else self.prev
        if entry.link is None:
            absent = self.absent + entry.pos - self.pos
            return _Cursor(self.number, base + entry.end, entry.pos + 1, prev, self.since, self.link, absent)
        return _Cursor(self.number, base + entry.end, entry.pos + 1, entry.link.digest, entry.pos, entry.link)


class Reader:
    """Sequential reading with a cursor, and finding, in the process that writes; one thread at a time, ``view`` may
    change meanwhile.
    """

    def __init__(
        self, file: RingFile, *, inspect: Inspect, view: Callable[[], View], rot: Callable[[int, list[Withdrawn]], None]
    ) -> None:
        self._file, self._inspect, self._view, self._rot = file, inspect, view, rot
        self._cursor: _Cursor | None = None
        self._openers: dict[int, Link] = {}
        self.lock = threading.Lock()  # held while the descriptor is in use for reading

    def read(self, after: int, max_bytes: int) -> list[Stored]:
        """Evidence behind position ``after``, at least one record if there is one, then until ``max_bytes`` are
        reached. Raises OSError.
        """
        found: list[Stored] = []
        size, whole = 0, False
        while not found or size < max_bytes:
            view = self._view()
            if after + 1 >= view.next_pos:
                break
            after = max(after, view.segments[0].first_pos - 1)
            index, cursor = self._seek(view, after)
            newest = index == len(view.segments) - 1
            limit = view.at if newest else self._file.header.segment_size
            stop = view.next_pos if newest else view.segments[index + 1].first_pos
            if cursor.pos >= stop:
                if newest:
                    break
                self._cursor = self._next(cursor, view, index + 1)
                continue
            rest = limit - cursor.at
            length = rest if whole else min(rest, max(max_bytes - size, 0) + self._file.header.segment_size // 2)
            data = self._file.read(cursor.number, cursor.at, length)
            if cursor.number < self._view().segments[0].number:
                continue  # overtaken: these bytes may be of the next lap
            begun = cursor
            walk = ring.walk(
                data, 0, pos=begun.pos, prev=begun.prev, inspect=self._inspect, stop=stop, resync=length == rest
            )
            for entry in walk:
                self._note_rot(cursor, entry)
                cursor = cursor.past(entry, begun.at)
                if entry.link and entry.pos > after:
                    found.append(Stored(entry.pos, entry.payload, entry.link))
                    size, after = size + entry.end - entry.at, entry.pos
                    if size >= max_bytes:
                        break
            else:
                if length == rest and cursor.pos < stop:  # nothing more can be read of this segment
                    absent = cursor.absent + stop - cursor.pos
                    cursor = _Cursor(cursor.number, limit, stop, None, cursor.since, cursor.link, absent)
            whole = cursor is begun
            self._cursor = cursor
        return found

    def _seek(self, view: View, after: int) -> tuple[int, _Cursor]:
        """The cursor from which on to look for evidence behind ``after``, and the index of its segment: the old one
        if it serves.
        """
        wanted, cursor = view.holding(after + 1), self._cursor
        if cursor and cursor.number >= view.segments[0].number and cursor.since <= after:
            index = bisect_left(view.segments, cursor.number, key=lambda segment: segment.number)
            if after < cursor.pos or index == wanted:
                return index, cursor
        start = view.segments[wanted]
        cursor = _Cursor(start.number, ring.SEGMENT_HEADER, start.first_pos, start.prev, start.first_pos - 1)
        return wanted, cursor

    @staticmethod
    def _next(cursor: _Cursor, view: View, index: int) -> _Cursor:
        """The start of the next segment, remembering what came before it."""
        segment = view.segments[index]
        absent = cursor.absent + segment.first_pos - cursor.pos
        return _Cursor(
            segment.number, ring.SEGMENT_HEADER, segment.first_pos, segment.prev, cursor.since, cursor.link, absent
        )

    def _note_rot(self, cursor: _Cursor, entry: Entry) -> None:
        """Tell of evidence that should have come before this entry."""
        absent = cursor.absent + entry.pos - cursor.pos
        if entry.link and absent:
            spans = ring.between(cursor.link, entry.link, absent, Cause.DISK_ERROR)
            if spans:
                self._rot(entry.pos - 1, spans)

    def find(self, stream: bytes, seq: int, last: Link | None) -> int | None:
        """Position of a retained record. Raises OSError.

        Streams follow each other, so that a segment between two records of one stream holds only this stream: what is
        read is the first record of each segment, newest first, and all of those in which a stream ends or may hold the
        record.
        """
        view, newer = self._view(), last
        for index in reversed(range(len(view.segments))):
            opener = self._opener(view, index)
            here = opener is not None and opener.stream == stream
            if here and opener is not None and opener.seq > seq:
                newer = opener
                continue
            if here or opener is None or newer is None or newer.stream != opener.stream:
                for entry in self._entries(view, index):
                    if entry.link and (entry.link.stream, entry.link.seq) == (stream, seq):
                        return entry.pos
            if here:
                return None
            newer = opener
        return None

    def _opener(self, view: View, index: int) -> Link | None:
        """The first record of a segment, None if it is overwritten or cannot be read."""
        segment = view.segments[index]
        link = self._openers.get(segment.number)
        if link is None:
            first, size = None, self._file.header.segment_size
            for length in (min(ring.BLOCK, size // 2), size // 2):
                data = self._file.read(segment.number, ring.SEGMENT_HEADER, length)
                low = segment.first_pos
                first = ring.entry_at(data, 0, low=low, high=low + 1, inspect=self._inspect)
                if first:  # most plans are short
                    break
            if first is None or first.link is None or segment.number < self._view().segments[0].number:
                return None
            self._openers = {n: known for n, known in self._openers.items() if n >= view.segments[0].number}
            link = self._openers[segment.number] = first.link
        return link

    def _entries(self, view: View, index: int) -> list[Entry]:
        """All durable records of a segment, none if it is overwritten."""
        segment, newest = view.segments[index], index == len(view.segments) - 1
        data = self._file.read(segment.number, 0, view.at if newest else None)
        stop = view.next_pos if newest else view.segments[index + 1].first_pos
        if segment.number < self._view().segments[0].number:
            return []
        return ring.scan(data, segment, inspect=self._inspect, stop=stop)
