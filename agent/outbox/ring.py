"""The ring file's format: bytes in, values out; no file, no clock, no log. docs/outbox.md says why; this is the layout.

All numbers little-endian; ``crc32`` is zlib's, over everything behind the crc field (of a record: rest of the header
and payload).

file header, at 0 and again at 4096, each filled with zeros to 4096 bytes (the crc covers them), written once::

    magic "EVRING01" | crc32 4 | segment_size 4 | segments 4 | ring id 16 | salt 16 | length 2 and channel name, UTF-8

segment header, 96 bytes, at 8192 + slot x segment_size::

    magic "SEG1" | crc32 4 | ring id[0:8] | lap 8 | first_pos 8 | acked_pos 8 | prev 32 | stream 16, seq 8 of acked_pos

record header, 40 bytes; records start on a multiple of 8 behind the segment header, padded with zeros, never cross a
segment::

    magic "REC1" | crc32 4 | length 4 | type 4 | pos 8 | acked_pos 8 | synced_pos 8

Types: 1 evidence (payload: an envelope), 2 mark (no payload), 3 end of segment (payload: what opening the next segment
takes away unacknowledged, 32 bytes each: stream 16, first seq 8, last seq 8). ``pos`` counts every record from 1,
across runs. ``prev`` is the digest of the evidence record before the segment's first, zeros if there is none.
``acked_pos``: highest contiguous acknowledged position. ``synced_pos``: all records below it were on disk when this
one was written. A segment's number is lap x segments + slot; it holds greater positions than the one numbered before
it.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import EvidenceError, OutboxError
from agent.model import Cause, Withdrawn

if TYPE_CHECKING:
    from agent.evidence.envelope import Link

BLOCK = 4096
START = 2 * BLOCK  # of the first segment
EVIDENCE, MARK, END = 1, 2, 3
NO_DIGEST = bytes(32)
NO_STREAM = bytes(16)

_FILE_MAGIC = b"EVRING01"
_SEGMENT_MAGIC = b"SEG1"
RECORD_MAGIC = b"REC1"
_CRC = struct.Struct("<I")
_FILE = struct.Struct("<II16s16sH")  # behind magic and crc
_SEGMENT = struct.Struct("<8sQQQ32s16sQ")
_RECORD = struct.Struct("<4sIIIQQQ")
_SPAN = struct.Struct("<16sQQ")
SEGMENT_HEADER = 8 + _SEGMENT.size
RECORD_HEADER = _RECORD.size
MAX_SPANS = 16
END_ROOM = RECORD_HEADER + MAX_SPANS * _SPAN.size  # kept free in every segment
MAX_CHANNEL = BLOCK - 12 - _FILE.size


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a ring file is, for life."""

    segment_size: int
    segments: int
    ring_id: bytes
    salt: bytes
    channel: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return START + self.segments * self.segment_size

    def pack(self) -> bytes:
        """One block."""
        name = self.channel.encode()
        body = _FILE.pack(self.segment_size, self.segments, self.ring_id, self.salt, len(name)) + name
        body = body.ljust(BLOCK - 12, b"\0")
        return _FILE_MAGIC + _CRC.pack(zlib.crc32(body)) + body


def unpack_file_header(blocks: bytes) -> FileHeader:
    """The header from the first two blocks of a file, whichever is whole.

    Raises OutboxError for a version that is not known and for anything that is no ring file.
    """
    header = whole_file_header(blocks)
    if header is None:
        hint = "it is left as it is; `edge-agent outbox repair` saves what is left of one"
        raise OutboxError("this file is no ring file", hint=hint)
    return header


def whole_file_header(blocks: bytes) -> FileHeader | None:
    """As ``unpack_file_header``; None if neither header is whole. Raises OutboxError for a version that is not
    known.
    """
    for block in (blocks[:BLOCK], blocks[BLOCK:START]):
        if block[:6] == _FILE_MAGIC[:6] and block[:8] != _FILE_MAGIC:
            raise OutboxError(
                f"this ring file has version {block[6:8]!r}, which is not known here",
                hint="run the version of the agent that wrote it, or move the file away to begin a new one",
            )
    for block in (blocks[:BLOCK], blocks[BLOCK:START]):
        if len(block) == BLOCK and block[:8] == _FILE_MAGIC and block[8:12] == _CRC.pack(zlib.crc32(block[12:])):
            size, segments, ring_id, salt, length = _FILE.unpack_from(block, 12)
            name = block[12 + _FILE.size :][:length].decode(errors="replace")
            return FileHeader(size, segments, ring_id, salt, name)
    return None


def agree(header: FileHeader, wanted: FileHeader, size: int) -> None:
    """Raise OutboxError if a ring file is not the one that the configuration means."""
    if header.channel != wanted.channel:
        hint = f"each channel has its own file: name the channel {header.channel!r} again, or move the file away"
        raise OutboxError(f"it is the outbox of channel {header.channel!r}, not of {wanted.channel!r}", hint=hint)
    if (header.segment_size, header.segments) != (wanted.segment_size, wanted.segments):
        hint = f"put size back to {size_in_words(header.segments, header.segment_size)}, or stop the agent and run "
        hint += f"`edge-agent outbox resize --channel {header.channel}`"
        raise OutboxError(f"it was made with {header.segments} segments of {header.segment_size} bytes", hint=hint)
    if size != header.size:
        hint = "it was cut or extended from outside: `edge-agent outbox repair` saves what is left of it"
        raise OutboxError(f"it has {size} bytes and not {header.size}", hint=hint)


def size_in_words(segments: int, segment_size: int) -> str:
    """A configured size that gives this many segments, in MiB where that is exact enough."""
    size = START + segments * segment_size
    mib = -(-size // (1 << 20))
    return f'"{mib}MiB"' if mib << 20 < size + segment_size else f"{size} bytes"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The head of a segment; ``acked_stream`` is NO_STREAM when the acknowledged record is not known."""

    ring: bytes  # first 8 bytes of the ring's id
    lap: int
    first_pos: int
    acked: int
    prev: bytes
    acked_stream: bytes = NO_STREAM
    acked_seq: int = 0

    def pack(self) -> bytes:
        """96 bytes."""
        body = _SEGMENT.pack(
            self.ring, self.lap, self.first_pos, self.acked, self.prev, self.acked_stream, self.acked_seq
        )
        return _SEGMENT_MAGIC + _CRC.pack(zlib.crc32(body)) + body


def unpack_segment_header(data: bytes, ring_id: bytes) -> SegmentHeader | None:
    """The header of a segment of this ring, None if there is none or it is damaged."""
    header = any_segment_header(data)
    return header if header and header.ring == ring_id[:8] else None


def any_segment_header(data: bytes) -> SegmentHeader | None:
    """The header of a segment of whatever ring."""
    body = data[8:SEGMENT_HEADER]
    if data[:4] != _SEGMENT_MAGIC or len(body) != _SEGMENT.size or data[4:8] != _CRC.pack(zlib.crc32(body)):
        return None
    return SegmentHeader(*_SEGMENT.unpack(body))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in use."""

    number: int
    first_pos: int
    prev: bytes


@dataclass(frozen=True, slots=True)
class View:
    """What the ring holds at one instant, all of it durable: segments, oldest first, and where the newest one's
    records end.
    """

    segments: tuple[Segment, ...]
    at: int  # offset in the newest segment of the next record
    closed: bool  # nothing more goes into the newest segment
    next_pos: int

    def holding(self, pos: int) -> int:
        """Index of the segment that ``pos`` falls into, -1 if it is older than all."""
        return bisect_right(self.segments, pos, key=lambda segment: segment.first_pos) - 1


# ---- records --------------------------------------------------------------------------------------------------------

Inspect = Callable[[bytes], "Link"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A record found in a segment, from offset ``at`` to ``end`` of the bytes at hand; ``link`` only of evidence."""

    pos: int
    type: int
    acked: int
    synced: int
    payload: bytes
    at: int
    end: int
    link: Link | None


def size_of(length: int) -> int:
    """Bytes that a record with a payload of ``length`` bytes takes in a segment."""
    return (RECORD_HEADER + length + 7) & ~7


def pack_record(kind: int, payload: bytes = b"", *, pos: int, acked: int, synced: int) -> bytes:
    """A record with its padding."""
    body = _RECORD.pack(RECORD_MAGIC, 0, len(payload), kind, pos, acked, synced)[8:] + payload
    return (RECORD_MAGIC + _CRC.pack(zlib.crc32(body)) + body).ljust(size_of(len(payload)), b"\0")


def entry_at(data: bytes, at: int, *, low: int, high: int | None, inspect: Inspect | None) -> Entry | None:
    """The record at an offset if it is whole and its position is ``low`` or more and below ``high``.

    Without ``inspect`` evidence is not looked into and ``link`` stays None. Types that are not known are passed over
    like a mark.
    """
    if at + RECORD_HEADER > len(data):
        return None
    magic, crc, length, kind, pos, acked, synced = _RECORD.unpack_from(data, at)
    last = at + RECORD_HEADER + length
    if magic != RECORD_MAGIC or pos < low or (high is not None and pos >= high) or last > len(data):
        return None
    if zlib.crc32(memoryview(data)[at + 8 : last]) != crc:
        return None
    payload, link = data[at + RECORD_HEADER : last], None
    if kind == EVIDENCE and inspect is not None:
        try:
            link = inspect(payload)
        except EvidenceError:
            return None
    return Entry(pos, kind, acked, synced, payload, at, at + size_of(length), link)


def walk(
    data: bytes,
    at: int,
    *,
    pos: int,
    prev: bytes | None,
    inspect: Inspect | None,
    stop: int | None,
    resync: bool = True,
) -> Iterator[Entry]:
    """The records from offset ``at`` on, of which the first has position ``pos`` and follows the digest ``prev``
    (None: any).

    A record counts if magic, crc, pos and prev fit. At the first that does not: with ``stop``, the position that
    follows the last one that must be there, and with a later valid record that says by synced_pos that this one was on
    disk, it is rot, and the walk goes on at the next valid record (not with ``resync`` off). Else it is the tail, and
    the walk is over.
    """
    while stop is None or pos < stop:
        entry = entry_at(data, at, low=pos, high=pos + 1, inspect=inspect)
        if entry and entry.link and prev is not None and entry.link.prev != prev:
            entry = None  # left by a batch that never became durable: right in all but the record that it follows
        if entry is None and resync:
            entry = after_rot(data, at, pos=pos, stop=stop, inspect=inspect)
        if entry is None:
            return
        yield entry
        if entry.pos > pos:
            prev = None
        if entry.link:
            prev = entry.link.digest
        at, pos = entry.end, entry.pos + 1


def after_rot(data: bytes, at: int, *, pos: int, stop: int | None, inspect: Inspect | None) -> Entry | None:
    """The first valid record behind ``at`` that proves that ``pos`` was on disk; None: there is no proof."""
    found = at
    while (found := data.find(RECORD_MAGIC, found + 8 - found % 8)) >= 0:
        if found % 8:
            continue
        # each record that is missing in between took a header's room at least
        high = pos + 1 + (found - at) // RECORD_HEADER
        entry = entry_at(data, found, low=pos + 1, high=high if stop is None else min(high, stop), inspect=inspect)
        if entry and (stop is not None or entry.synced > pos):
            return entry
    return None


def scan(data: bytes, head: SegmentHeader | Segment, *, inspect: Inspect | None, stop: int | None) -> list[Entry]:
    """All records of a segment from its bytes; ``stop`` None: it is the newest."""
    return list(walk(data, SEGMENT_HEADER, pos=head.first_pos, prev=head.prev, inspect=inspect, stop=stop))


# ---- what is missing ------------------------------------------------------------------------------------------------


def holes(base: tuple[int, Link | None], entries: Iterable[Entry], *, above: int, cause: Cause) -> list[Withdrawn]:
    """What is missing among entries behind ``base`` (a position and, if known, the evidence there or last before it).

    Holes that end at position ``above`` or before are of no interest: acknowledged.
    """
    at, link = base
    absent, spans = 0, list[Withdrawn]()
    for entry in entries:
        absent += entry.pos - at - 1
        at = entry.pos
        if entry.link is None:
            continue
        if absent and entry.pos - 1 > above:
            spans += between(link, entry.link, absent, cause)
        link, absent = entry.link, 0
    return spans


def between(before: Link | None, after: Link, absent: int, cause: Cause) -> list[Withdrawn]:
    """Name the evidence that ``absent`` positions between two records may have held.

    Exact within a stream; where a stream ended in the hole the range goes as far as it may have gone (withdrawn is a
    permission), and one that began and ended in it stays unnamed.
    """
    if before is None:
        first = max(1, after.seq - absent)
        return [Withdrawn(after.stream, first, after.seq - 1, cause)] if first < after.seq else []
    if before.digest == after.prev:  # marks or ends of segments only
        return []
    if before.stream == after.stream:
        return [Withdrawn(after.stream, before.seq + 1, after.seq - 1, cause)] if before.seq + 1 < after.seq else []
    begun = min(after.seq - 1, absent)
    spans = []
    if absent > begun:
        spans.append(Withdrawn(before.stream, before.seq + 1, before.seq + absent - begun, cause))
    if begun:
        spans.append(Withdrawn(after.stream, after.seq - begun, after.seq - 1, cause))
    return spans


def dropped(base: tuple[int, Link | None], entries: Iterable[Entry], after: Entry | None) -> list[Withdrawn]:
    """One range per stream for evidence that is given up: ``entries``, and what is missing from ``base`` to ``after``.

    ``base`` as in ``holes``.
    """
    gone = list(entries)
    spans = holes(base, [*gone, after] if after else gone, above=0, cause=Cause.OVERFLOW)
    spans += [Withdrawn(e.link.stream, e.link.seq, e.link.seq, Cause.OVERFLOW) for e in gone if e.link]
    ranges: dict[bytes, tuple[int, int]] = {}
    for span in spans:
        first, last = ranges.get(span.stream, (span.first, span.last))
        ranges[span.stream] = min(first, span.first), max(last, span.last)
    return [Withdrawn(stream, first, last, Cause.OVERFLOW) for stream, (first, last) in ranges.items()]


def pack_end(spans: Iterable[Withdrawn]) -> bytes:
    """The payload of an end of segment; of more than MAX_SPANS ranges the last ones."""
    return b"".join(_SPAN.pack(span.stream, span.first, span.last) for span in [*spans][-MAX_SPANS:])


def unpack_end(payload: bytes) -> tuple[Withdrawn, ...]:
    """The ranges in an end of segment."""
    whole = len(payload) - len(payload) % _SPAN.size
    spans = _SPAN.iter_unpack(payload[:whole])
    return tuple(Withdrawn(stream, first, last, Cause.OVERFLOW) for stream, first, last in spans)
