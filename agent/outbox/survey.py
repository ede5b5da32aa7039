"""A ring file looked through from end to end, damaged as it may be: what each segment holds, and what cannot be read.

Read-only; for ``outbox verify`` and ``outbox repair``. Holds one segment in memory. What counts as a record is what
counts at start (docs/outbox.md, rule 3). A segment whose header is gone is found by its records, and gets the number
that fits between its neighbours'.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from agent.errors import OutboxError
from agent.model import Cause, Withdrawn
from agent.outbox import ring
from agent.outbox.files import OS_FILES, Files, OsFiles, RingFile
from agent.outbox.recovery import recover
from agent.outbox.ring import Entry, FileHeader, Inspect, SegmentHeader

if TYPE_CHECKING:
    from agent.evidence.envelope import Link

_USUAL = 1 << 20  # bytes of a segment
_TRIES = 5  # to see a file whose writer keeps overtaking us
_LISTED = 1000  # places with damage that are told one by one


class LookingFiles(OsFiles):
    """Reads, and writes nothing."""

    def __init__(self, files: Files = OS_FILES) -> None:
        self._files = files

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only at the end of the file."""
        return self._files.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Nothing."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""


class LenientFiles(LookingFiles):
    """Reads what can be read: zeros for blocks that the disk does not give, and behind the end. Writes nothing."""

    def __init__(self, files: Files = OS_FILES) -> None:
        super().__init__(files)
        self.unread: dict[int, str] = {}  # offset of each block that the disk does not give, and what it says

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``length`` bytes."""
        try:
            return self._files.pread(fd, length, offset).ljust(length, b"\0")
        except OSError:
            between = range(offset - offset % ring.BLOCK + ring.BLOCK, offset + length, ring.BLOCK)
            return b"".join(self._block(fd, *ends) for ends in pairwise([offset, *between, offset + length]))

    def _block(self, fd: int, at: int, end: int) -> bytes:
        try:
            return self._files.pread(fd, end - at, at).ljust(end - at, b"\0")
        except OSError as error:
            self.unread[at - at % ring.BLOCK] = error.strerror or str(error)
            return bytes(end - at)


@dataclass(frozen=True, slots=True)
class Place:
    """A segment that holds records: its slot in the file, its number, its first position, and where its first record
    begins. ``head`` None: that cannot be read, and the rest is what its records say.
    """

    slot: int
    number: int
    first_pos: int
    at: int = ring.SEGMENT_HEADER
    head: SegmentHeader | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A segment with all its bytes and the records in it, at least one."""

    place: Place
    data: bytes
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Damage:
    """Positions that should be held and cannot be read. ``offset``: in the file; ``spans``: the evidence that they, and
    those of the damage right before, may have been.
    """

    offset: int
    first_pos: int
    last_pos: int
    spans: tuple[Withdrawn, ...] = ()


class Survey:
    """A ring file at one instant; made by ``survey``.

    ``troubles``: what keeps the agent from starting on it, or hides records that can be read; ``outbox repair`` mends
    that. ``damage``, ``undescribed`` (so many more) and ``overtaken`` (segments that the writer took away meanwhile)
    are complete when ``parts`` came to its end.
    """

    def __init__(self, file: RingFile, inspect: Inspect) -> None:
        """``file`` on ``LenientFiles``. Raises OSError."""
        self.file, self._inspect = file, inspect
        self.damage: list[Damage] = []
        self.undescribed = self.overtaken = 0
        self._stop: int | None = None  # position behind the newest place, if it is known
        self.places = self._outline()
        newest = self._read(len(self.places) - 1) if self.places else None
        self.next_pos = newest.entries[-1].pos + 1 if newest else 1
        self.acked = min(newest.entries[-1].acked, self.next_pos - 1) if newest else 0
        self.troubles = list(self._troubles())

    def parts(self) -> Iterator[Part]:
        """Each segment, oldest first."""
        self.damage, self.undescribed, self.overtaken = [], 0, 0
        link: Link | None = None
        pos = self.places[0].first_pos if self.places else 0  # the next that must be there
        missing: list[Damage] = []
        at = 0
        for index, place in enumerate(self.places):
            part = self._read(index)
            if place.head and self.file.read(place.slot, 0, ring.SEGMENT_HEADER) != place.head.pack():
                self.overtaken += 1
                link, missing, pos = None, [], self.places[index + 1].first_pos if place != self.places[-1] else 0
                continue
            base = ring.START + place.slot * self.file.header.segment_size
            at = base + place.at
            for entry in part.entries:
                if entry.pos > pos:
                    missing.append(Damage(at, pos, entry.pos - 1))
                if entry.link:
                    self._note(missing, link, entry.link)
                    link, missing = entry.link, []
                pos, at = entry.pos + 1, base + entry.end
            yield part
        if self._stop is not None and pos < self._stop:
            missing.append(Damage(at, pos, self._stop - 1))
        self._note(missing, link, None)

    def _note(self, missing: list[Damage], before: Link | None, after: Link | None) -> None:
        if missing and after is not None:
            absent = sum(each.last_pos - each.first_pos + 1 for each in missing)
            spans = tuple(ring.between(before, after, absent, Cause.DISK_ERROR))
            missing = [*missing[:-1], replace(missing[-1], spans=spans)]
        room = max(0, _LISTED - len(self.damage))
        self.damage += missing[:room]
        self.undescribed += len(missing[room:])

    # ---- where the segments are -------------------------------------------------------------------------------------

    def _outline(self) -> list[Place]:
        """All segments with a record that counts, oldest first."""
        count = self.file.header.segments
        found = [Place(number % count, number, head.first_pos, head=head) for number, head in self.file.heads()]
        newest = found[-1] if found else None
        for slot in sorted(set(range(count)) - {place.slot for place in found}):
            data = self.file.read(slot)
            first = _first(data, self._inspect)
            if first is not None and (newest is None or self._counts(data, first, newest)):
                found.append(Place(slot, slot, first.pos, first.at))
        found.sort(key=lambda place: place.first_pos)
        dead = 0
        while found and not self._entries(found, len(found) - 1, self.file.read(found[-1].slot)):
            self._stop = found.pop().first_pos
            dead += 1
        if dead < 2:  # as at start: its opening never became whole, and proves nothing
            self._stop = None
        return self._numbered(found)

    def _counts(self, data: bytes, first: Entry, newest: Place) -> bool:
        """Whether records under no header are held: not if a start gave the segment up, which wipes its header and
        leaves the record behind it; but also then if they wait.
        """
        if first.pos > newest.first_pos or not given_up(data):
            return True
        entries = self._entries([newest], 0, self.file.read(newest.slot))
        *_, last = ring.walk(data, first.at, pos=first.pos, prev=None, inspect=self._inspect, stop=newest.first_pos)
        return bool(entries) and last.pos > entries[-1].acked

    def _numbered(self, places: list[Place]) -> list[Place]:
        """The same with numbers that rise with their positions; new ones for all if those in the headers do not."""
        count = self.file.header.segments
        numbers = [place.number for place in places]
        anchor = max((i for i, place in enumerate(places) if place.head), default=len(places) - 1)
        for i in reversed(range(anchor)):
            if places[i].head is None:
                numbers[i] = numbers[i + 1] - 1 - (numbers[i + 1] - 1 - places[i].slot) % count
        for i in range(anchor + 1, len(places)):
            numbers[i] = numbers[i - 1] + 1 + (places[i].slot - numbers[i - 1] - 1) % count
        if numbers and (numbers != sorted(set(numbers)) or not 0 <= numbers[0] > numbers[-1] - count):
            numbers = list(range(count, count + len(numbers)))
        return [replace(place, number=number) for place, number in zip(places, numbers, strict=True)]

    # ---- what they hold ---------------------------------------------------------------------------------------------

    def _read(self, index: int) -> Part:
        data = self.file.read(self.places[index].slot)
        return Part(self.places[index], data, self._entries(self.places, index, data))

    def _entries(self, places: Sequence[Place], index: int, data: bytes) -> list[Entry]:
        place, stop = places[index], places[index + 1].first_pos if index + 1 < len(places) else self._stop
        prev = place.head.prev if place.head else None
        return list(ring.walk(data, place.at, pos=place.first_pos, prev=prev, inspect=self._inspect, stop=stop))

    def _troubles(self) -> Iterator[str]:
        for slot in (place.slot for place in self.places if place.head is None):
            yield f"the header of the segment at byte {ring.START + slot * self.file.header.segment_size} is broken"
        try:
            recover(self.file, self._inspect)
        except OutboxError as error:
            yield str(error)


def given_up(data: bytes) -> bool:
    """Whether a start wiped a segment's header, of which it states what it held."""
    return not any(data[: ring.SEGMENT_HEADER]) and data[ring.SEGMENT_HEADER :].startswith(ring.RECORD_MAGIC)


def _first(data: bytes, inspect: Inspect) -> Entry | None:
    """The first valid record in a segment's bytes, whatever its position."""
    at = ring.SEGMENT_HEADER
    while (at := data.find(ring.RECORD_MAGIC, at)) >= 0:
        if at % 8 == 0 and (entry := ring.entry_at(data, at, low=0, high=None, inspect=inspect)):
            return entry
        at += 1
    return None


def survey(fd: int, inspect: Inspect, files: Files = OS_FILES) -> Survey:
    """Look a ring file through that ``fd`` has open; also what is left of one, whose header then has an empty salt and
    an unknown channel's name, "".

    Raises OSError, and OutboxError: it has another version, is no ring file, or its writer is too fast.
    """
    size = os.fstat(fd).st_size
    lenient = LenientFiles(files)
    blocks = lenient.pread(fd, ring.START, 0)
    troubles = []
    header = ring.whole_file_header(blocks) or _guessed(fd, lenient, size)
    if header is None:
        raise OutboxError("this file is no ring file, nor what is left of one", hint="is it the right file?")
    if not header.salt:
        troubles.append("both of its file headers are broken")
    elif blocks[: ring.BLOCK] != blocks[ring.BLOCK :]:
        troubles.append("one of its two file headers is broken")
    if size != header.size:
        troubles.append(f"it has {size} bytes and not {header.size}")
    file = RingFile(fd, header, lenient)
    for _ in range(_TRIES):
        before = file.heads()
        found = Survey(file, inspect)
        if file.heads() == before:
            found.troubles[:0] = troubles
            if lenient.unread:
                offset, reason = next(iter(lenient.unread.items()))
                text = f"the disk does not give {len(lenient.unread)} blocks of {ring.BLOCK} bytes"
                found.troubles.append(f"{text}, the first at byte {offset}: {reason}")
            return found
    raise OutboxError("it is written faster than it can be looked at", hint="try again")


def _guessed(fd: int, files: Files, size: int) -> FileHeader | None:
    """What the file's header must have said, from the segments' headers; None if there is none."""
    rings: dict[bytes, list[int]] = {}
    for offset in range(ring.START, size, ring.BLOCK):
        with suppress(OSError):
            if head := ring.any_segment_header(files.pread(fd, ring.SEGMENT_HEADER, offset)):
                rings.setdefault(head.ring, []).append(offset - ring.START)
    if not rings:
        return None
    [(ring_id, _)] = Counter({each: len(offsets) for each, offsets in rings.items()}).most_common(1)
    segment_size = _USUAL
    if any(offset % _USUAL for offset in rings[ring_id]):
        segment_size = math.gcd(*rings[ring_id])
    return FileHeader(segment_size, -(-(size - ring.START) // segment_size), ring_id + bytes(8), b"", "")
