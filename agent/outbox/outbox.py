"""The outbox: a channel's sealed records in a ring file of fixed size (docs/outbox.md; the layout stands in
agent/outbox/ring.py).

Promises: what ``append`` returned for is on the device and survives any crash; only that is ever read out. It seals,
sends and decides nothing, and it does not retry: after an error of the file its state is unknown, every later call
raises OutboxError, and the caller closes it and opens it again, which is the same code as at start.

What a crash leaves:
- in ``append`` or ``mark`` before the sync returned: any part of the batch. At start its unbroken beginning counts,
  the rest is dead: each record names the digest before it, so it cannot come back behind other content.
- the same where a new segment is opened: what the segment held before may be torn too. ``lost`` then says what that
  was.
- in ``open``: nothing new; see agent/outbox/recovery.py. In the creation: no ring file, or a whole one; see
  agent/outbox/files.py.

Threads: one writes (``append`` and ``mark``, which a lock keeps apart, and ``overwritten``); reading (``read``,
``find``, ``recovered``) may run in others beside it, one at a time by a lock that the writer takes only to close; the
rest is memory only and free to all. What the ring holds is one immutable ``View``, replaced as a whole once a sync
has returned, so no reader sees a record before. A segment leaves the view before its first byte is overwritten, and a
reader looks at the view again after it has read. Counts and ``lost`` have a lock of their own, never held over I/O.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import OutboxError
from agent.model import Withdrawn
from agent.outbox import ring
from agent.outbox.backlog import Backlog, Pending
from agent.outbox.files import OS_FILES, Files, RingFile, open_or_create
from agent.outbox.reader import Reader, Stored
from agent.outbox.recovery import recover
from agent.outbox.ring import FileHeader, Inspect, Segment, SegmentHeader, View

if TYPE_CHECKING:
    from agent.evidence.envelope import Link

__all__ = ["Outbox", "Pending", "Stored"]

MIN_SEGMENTS = 4
SEGMENT_SIZE = 1 << 20


class Outbox:
    """An open ring file; made by ``open``. Every method raises OutboxError when it is closed or broken."""

    def __init__(self, file: RingFile, inspect: Inspect) -> None:
        """Recover what the file holds. Raises OSError, OutboxError."""
        self._file = file
        self._broken = ""
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # two writers at once would write over each other
        self.salt, self.ring_id = file.header.salt, file.header.ring_id
        self.max_envelope = file.header.segment_size // 4
        found = recover(file, inspect)
        self._view = found.view
        self._recovered = range(found.plan_pos, found.view.next_pos)
        self.lost = found.lost
        self.last: Link | None = found.last[1] if found.last else None
        self._last_pos = found.last[0] if found.last else 0
        self._fresh: tuple[int, Sequence[Stored]] = (0, ())  # the last batch, and the position of the evidence before
        self._acked_written = found.acked
        self._announced = found.announced  # what the newest end of segment says is about to be taken away
        self._inspect = inspect
        self._reader = Reader(file, inspect=inspect, view=lambda: self._view, rot=self._rot)
        self._backlog = Backlog()
        self._backlog.acked = found.acked
        room = file.header.segment_size - ring.SEGMENT_HEADER
        for segment, after in zip(found.view.segments, found.view.segments[1:], strict=False):
            self._backlog.estimate(segment.first_pos, after.first_pos, room=room, header=ring.RECORD_HEADER)
        if found.view.segments:
            self._backlog.begin(found.view.segments[-1].first_pos)
            for pos, length in found.lengths:
                self._backlog.add(pos, length)
        self._backlog.recount()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        channel: str,
        size: int,
        inspect: Inspect,
        new: bool = True,
        files: Files = OS_FILES,
        segment_size: int = SEGMENT_SIZE,
    ) -> Outbox:
        """Open the ring file of a channel, at most ``size`` bytes, or create it if there is none (not without ``new``),
        and recover what it holds.

        Holds a lock on the file until ``close``. Raises OutboxError: the file is in use, damaged, not of this channel
        or size, of an unknown version, not there, or cannot be read or written. ValueError: a channel name or a
        segment size that cannot be.
        """
        segments = (size - ring.START) // segment_size
        if len(channel.encode()) > ring.MAX_CHANNEL or segment_size < ring.BLOCK or segment_size % ring.BLOCK:
            raise ValueError("channel name too long, or segment size no multiple of 4096")
        if segments < MIN_SEGMENTS:
            least = ring.size_in_words(MIN_SEGMENTS, segment_size)
            raise OutboxError(f"{path}: an outbox of {size} bytes is too small", hint=f"give it at least {least}")
        wanted = FileHeader(segment_size, segments, os.urandom(16), os.urandom(16), channel)

        def fill(fd: int) -> None:
            files.fallocate(fd, wanted.size)
            files.pwrite(fd, wanted.pack() * 2, 0)
            files.fdatasync(fd)

        try:
            fd = open_or_create(path, fill, new=new)
            try:
                header = ring.unpack_file_header(files.pread(fd, ring.START, 0))
                ring.agree(header, wanted, os.fstat(fd).st_size)
                return cls(RingFile(fd, header, files), inspect)
            except BaseException:
                os.close(fd)
                raise
        except (BlockingIOError, FileExistsError) as error:
            hint = "one outbox has one writer: stop the other agent, or give this one its own `state` folder"
            raise OutboxError(f"{path} is in use by another process", hint=hint) from error
        except OSError as error:
            hint = "look at the disk, its free space and the rights of the folder"
            raise OutboxError(f"{path} cannot be opened: {error.strerror}", hint=hint) from error
        except OutboxError as error:
            raise OutboxError(f"{path}: {error}", hint=error.hint) from error

    def close(self) -> None:
        """Let go of the file and its lock; waits for a reader under way. Not while the writer is under way."""
        with self._reader.lock:
            if self._file.fd >= 0:
                os.close(self._file.fd)
            self._file.fd = -1
            self._broken = self._broken or "it is closed"

    # ---- writing ----------------------------------------------------------------------------------------------------

    def fits(self, n_bytes: int, n_records: int) -> bool:
        """Whether records with envelopes of ``n_bytes`` in all surely go into the current segment."""
        self._check()
        most = n_bytes + n_records * (ring.RECORD_HEADER + 7) + ring.END_ROOM
        return not self._view.closed and self._view.at + most <= self._file.header.segment_size

    def overwritten(self) -> tuple[Withdrawn, ...]:
        """The unacknowledged evidence that opening the next segment now would drop, one entry per stream."""
        self._check()
        view, acked = self._view, self.acked
        if not self._is_full(view) or view.segments[1].first_pos <= acked + 1:
            return ()
        with self._unsafe():
            entries, following = self._entries(view, 0), self._entries(view, 1)
        known = [entry.link for entry in entries if entry.link and entry.pos <= acked]
        base = (max(acked, view.segments[0].first_pos - 1), known[-1] if known else None)
        after = next((entry for entry in following if entry.link), None)
        return tuple(ring.dropped(base, [entry for entry in entries if entry.pos > acked], after))

    def append(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> range:
        """Put sealed records behind the last one, or at the head of the next segment; they are on the device when this
        returns.

        Returns their positions. A segment's first record must be a plan. What ``overwritten`` tells is dropped by
        ``new_segment``. Raises OutboxError: nothing is known of the batch any more. ValueError: it does not fit, or
        does not follow ``last``; nothing happened.
        """
        with self._writing:
            return self._append(records, new_segment=new_segment)

    def _append(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> range:
        self._check()
        view, acked = self._view, self.acked
        before = prev = self.last.digest if self.last else ring.NO_DIGEST
        at = ring.SEGMENT_HEADER if new_segment else view.at
        most = at + sum(ring.size_of(len(envelope)) for envelope, _ in records) + ring.END_ROOM
        if not records or (view.closed and not new_segment) or most > self._file.header.segment_size:
            raise ValueError("no records, no segment to put them in, or more than goes into it")
        for envelope, link in records:
            if len(envelope) > self.max_envelope or link.prev != prev:
                raise ValueError("an envelope is larger than a quarter of a segment, or does not follow the one before")
            prev = link.digest
        with self._unsafe():
            segments, synced, lead = view.segments, view.next_pos, b""
            if new_segment:
                view, synced = self._end(view, acked)
                number = view.segments[-1].number + 1 if view.segments else 0
                lead = self._head(number, view.next_pos, before, acked).pack()
                segments = (*self._make_room(view), Segment(number, view.next_pos, before))
                if number < self._file.header.segments:  # its first use: later commits need not convert extents
                    self._file.write(number, 0, bytes(self._file.header.segment_size))
            positions = range(view.next_pos, view.next_pos + len(records))
            body = b"".join(
                ring.pack_record(ring.EVIDENCE, envelope, pos=pos, acked=acked, synced=synced)
                for pos, (envelope, _) in zip(positions, records, strict=True)
            )
            self._file.write(segments[-1].number, at - len(lead), lead + body)
            self._file.sync()
        with self._lock:
            if new_segment:
                self._backlog.begin(positions.start)
            for pos, (envelope, _) in zip(positions, records, strict=True):
                self._backlog.add(pos, len(envelope))
            fresh = (self._last_pos, [Stored(pos, *each) for pos, each in zip(positions, records, strict=True)])
            self.last, self._last_pos = records[-1][1], positions[-1]
            self._acked_written = acked
            self._view = View(segments, at + len(body), False, positions.stop)
            self._fresh = fresh  # behind the view: who gets it may settle it
        return positions

    def _end(self, view: View, acked: int) -> tuple[View, int]:
        """Put an end behind the newest segment; returns the view behind it, and the position below which all is on
        disk.

        When the next segment goes over records that nothing on disk calls acknowledged, the end names them and is
        synced before they are touched: should a crash spoil both them and the plan that states them, start still knows
        what they were.
        """
        taken = self.overwritten()
        taking = self._is_full(view) and view.segments[1].first_pos > min(acked, self._acked_written) + 1
        end = ring.pack_record(ring.END, ring.pack_end(taken), pos=view.next_pos, acked=acked, synced=view.next_pos)
        fits = view.at + len(end) <= self._file.header.segment_size
        if not view.segments or (view.closed and not (taking and fits and set(taken) - set(self._announced))):
            return view, view.next_pos
        self._file.write(view.segments[-1].number, view.at, end)
        after = View(view.segments, view.at + len(end), True, view.next_pos + 1)
        if taking:
            self._file.sync()
        with self._lock:
            self._backlog.add(view.next_pos, 0)
            if taking:
                self._view, self._acked_written, self._announced = after, acked, taken
        return after, after.next_pos if taking else view.next_pos

    def mark(self) -> bool:
        """Write down the acknowledged position if it moved since it last was; False if not, or if the segment has no
        room for it.
        """
        with self._writing:
            return self._mark()

    def _mark(self) -> bool:
        self._check()
        view, acked = self._view, self.acked
        full = view.closed or view.at + ring.RECORD_HEADER + ring.END_ROOM > self._file.header.segment_size
        if acked == self._acked_written or full:
            return False
        with self._unsafe():
            record = ring.pack_record(ring.MARK, pos=view.next_pos, acked=acked, synced=view.next_pos)
            self._file.write(view.segments[-1].number, view.at, record)
            self._file.sync()
        with self._lock:
            self._backlog.add(view.next_pos, 0)
            self._acked_written = acked
            self._view = View(view.segments, view.at + len(record), False, view.next_pos + 1)
        return True

    def _is_full(self, view: View) -> bool:
        """Whether the next segment goes over one that is held."""
        numbers = [segment.number for segment in (*view.segments[:1], *view.segments[-1:])]
        return bool(numbers) and numbers[0] <= numbers[-1] + 1 - self._file.header.segments

    def _make_room(self, view: View) -> tuple[Segment, ...]:
        """Take the segment that is about to be overwritten out of the view; returns what stays."""
        if not self._is_full(view):
            return view.segments
        with self._lock:
            self._view = View(view.segments[1:], view.at, view.closed, view.next_pos)
            self._backlog.drop()
        return view.segments[1:]

    def _head(self, number: int, first_pos: int, prev: bytes, acked: int) -> SegmentHeader:
        """The header of a new segment. The acknowledged record's name is looked up; it is left out if it is not held
        any more.
        """
        link = self.last if acked == self._last_pos else self._link_at(acked)
        stream, seq = (link.stream, link.seq) if link else (ring.NO_STREAM, 0)
        lap = number // self._file.header.segments
        return SegmentHeader(self.ring_id[:8], lap, first_pos, acked, prev, stream, seq)

    def _link_at(self, pos: int) -> Link | None:
        """Link of the evidence at a position."""
        index = self._view.holding(pos)
        for entry in self._entries(self._view, index, inspect=False) if index >= 0 else ():
            if entry.pos == pos and entry.type == ring.EVIDENCE:
                return self._inspect(entry.payload)
        return None

    def _entries(self, view: View, index: int, *, inspect: bool = True) -> list[ring.Entry]:
        """The records of a segment, for the writer: nobody overwrites it meanwhile."""
        newest = index == len(view.segments) - 1
        data = self._file.read(view.segments[index].number, 0, view.at if newest else None)
        stop = view.next_pos if newest else view.segments[index + 1].first_pos
        return ring.scan(data, view.segments[index], inspect=self._inspect if inspect else None, stop=stop)

    # ---- acknowledging ----------------------------------------------------------------------------------------------

    @property
    def acked(self) -> int:
        """Highest contiguous acknowledged position, 0 if there is none. After a start: as the newest record says."""
        return self._backlog.acked

    @property
    def next_pos(self) -> int:
        """Position of the next record."""
        return self._view.next_pos

    @property
    def removed(self) -> bool:
        """Whether somebody removed the file, or put another in its place: what it holds ends with this process."""
        return self._file.fd >= 0 and os.fstat(self._file.fd).st_nlink == 0

    @property
    def pending(self) -> Pending:
        """Evidence that waits; of earlier runs' full segments an estimate (agent/outbox/backlog.py)."""
        return self._backlog.pending

    def settle(self, pos: int) -> None:
        """Set the acknowledged position, lower than before if the server lost some. Records and marks tell it."""
        self._check()
        if not 0 <= pos < self.next_pos:
            raise ValueError(f"there is no position {pos}")
        with self._lock:
            self._backlog.settle(pos)
            if pos >= self._last_pos:
                self._fresh = (0, ())

    # ---- reading ----------------------------------------------------------------------------------------------------

    def fresh(self, after: int) -> Sequence[Stored]:
        """What ``read`` would find behind position ``after``, from memory: for who keeps up with the last batch. Empty
        if it must be read, or if there is nothing.
        """
        self._check()
        before, stored = self._fresh
        return [record for record in stored if record.pos > after] if before <= after else ()

    def read(self, after: int, *, max_bytes: int) -> list[Stored]:
        """Evidence behind position ``after`` in order, at least one record if there is one, then until ``max_bytes``
        are reached.

        Goes on with the oldest that is held when ``after`` was overwritten. What should be there and is not goes into
        ``lost``.
        """
        with self._reader.lock:
            self._check()
            with self._unsafe():
                return self._reader.read(after, max_bytes)

    def find(self, stream: bytes, seq: int) -> int | None:
        """Position of a record that is held. Reads each segment's first record at worst, and where a stream ended."""
        with self._reader.lock:
            self._check()
            with self._unsafe():
                return self._reader.find(stream, seq, self.last)

    def recovered(self) -> Iterator[bytes]:
        """What the newest segment held at ``open``, oldest first; begins with a plan, unless rot left none that can
        be read.
        """
        self._check()
        after, end = self._recovered.start - 1, self._recovered.stop
        while after + 1 < end:
            batch = [stored for stored in self.read(after, max_bytes=self.max_envelope) if stored.pos < end]
            if not batch:
                return
            yield from (stored.envelope for stored in batch)
            after = batch[-1].pos

    # ---- unknown state ----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._broken:
            raise OutboxError(f"the outbox cannot be used: {self._broken}", hint="it must be closed and opened again")

    @contextmanager
    def _unsafe(self) -> Iterator[None]:
        """Around all that touches the file: whatever goes wrong in here leaves a state that is not known."""
        try:
            yield
        except OSError as error:
            self._broken = f"the disk reported {error.strerror or error}"
            raise OutboxError(
                f"the outbox failed: {error.strerror or error}", hint="look at the disk and its free space"
            ) from error
        except BaseException:
            self._broken = "a call was interrupted"
            raise

    def _rot(self, until: int, spans: list[Withdrawn]) -> None:
        """The reader missed evidence up to a position."""
        with self._lock:
            if until > self.acked:
                known = {(span.stream, span.first, span.last) for span in self.lost}
                self.lost += tuple(span for span in spans if (span.stream, span.first, span.last) not in known)
