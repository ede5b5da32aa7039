"""An outbox in memory, for a run while the disk is away (docs/outbox.md, rule 2). Bounded; all of it goes with the
process, which is why its plans say ``volatile``.

Keeps the promises of ``agent.ports.Store`` but the one of the disk. As in a ring, records lie in segments that begin
with a plan, and the oldest segment is dropped whole when there is no room. One lock; every method may be called by any
thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.model import Cause, Link, Withdrawn
from agent.outbox.backlog import Pending
from agent.outbox.reader import Stored

SEGMENT_SIZE = 1 << 20
SEGMENTS = 8


@dataclass(slots=True)
class _Segment:
    records: list[Stored] = field(default_factory=list)
    bytes: int = 0


class MemoryStore:
    """Empty at first. It has no ``lost`` records, and nothing in it fails. ``salt``: zeros, for what it holds is of no
    ring.
    """

    lost: Sequence[Withdrawn] = ()
    salt = bytes(16)

    def __init__(self, *, segments: int = SEGMENTS, segment_size: int = SEGMENT_SIZE) -> None:
        self.max_envelope = segment_size // 4
        self._size, self._most = segment_size, segments
        self._segments: deque[_Segment] = deque()
        self._fresh: Sequence[Stored] = ()
        self._lock = threading.Lock()
        self.next_pos = 1
        self.acked = 0

    @property
    def pending(self) -> Pending:
        """What waits."""
        with self._lock:
            waiting = [len(stored.envelope) for stored in self._behind(self.acked)]
        return Pending(len(waiting), sum(waiting))

    def fits(self, size: int, records: int) -> bool:
        """Whether that much goes into the newest segment."""
        return bool(self._segments) and self._segments[-1].bytes + size <= self._size

    def overwritten(self) -> tuple[Withdrawn, ...]:
        """What the next segment would drop that is not acknowledged; it is all of one stream."""
        with self._lock:
            if len(self._segments) < self._most:
                return ()
            gone = [stored.link for stored in self._segments[0].records if stored.pos > self.acked]
        return (Withdrawn(gone[0].stream, gone[0].seq, gone[-1].seq, Cause.OVERFLOW),) if gone else ()

    def append(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> range:
        """Take the records; returns their positions."""
        with self._lock:
            if new_segment:
                if len(self._segments) == self._most:
                    self._segments.popleft()
                self._segments.append(_Segment())
            positions = range(self.next_pos, self.next_pos + len(records))
            stored = [Stored(pos, *record) for pos, record in zip(positions, records, strict=True)]
            self._segments[-1].records += stored
            self._segments[-1].bytes += sum(len(envelope) for envelope, _ in records)
            self.next_pos, self._fresh = positions.stop, stored
        return positions

    def fresh(self, after: int) -> Sequence[Stored]:
        """What ``read`` would find behind a position, if it is all of the last batch."""
        stored = self._fresh
        return [each for each in stored if each.pos > after] if stored and stored[0].pos <= after + 1 else ()

    def read(self, after: int, *, max_bytes: int) -> list[Stored]:
        """The records behind a position, in order, until ``max_bytes`` are reached; at least one if there is one."""
        found: list[Stored] = []
        size = 0
        with self._lock:
            for stored in self._behind(after):
                if found and size + len(stored.envelope) > max_bytes:
                    break
                found.append(stored)
                size += len(stored.envelope)
        return found

    def _behind(self, after: int) -> list[Stored]:
        return [
            stored
            for segment in self._segments
            if segment.records[-1].pos > after
            for stored in segment.records
            if stored.pos > after
        ]

    def find(self, stream: bytes, seq: int) -> int | None:
        """The position of a record that is held."""
        with self._lock:
            held = self._behind(0)
        return next((each.pos for each in held if (each.link.stream, each.link.seq) == (stream, seq)), None)

    def mark(self) -> bool:
        """There is no disk that should know."""
        return False

    def settle(self, pos: int) -> None:
        """Acknowledged up to here."""
        with self._lock:
            self.acked = pos

    def close(self) -> None:
        """What it holds goes."""
        with self._lock:
            self._segments.clear()
            self._fresh = ()
