"""A new ring file in the place of one: with more or fewer segments (``resize``), or with all that can be read of a
damaged one (``repair``). Offline: the lock is held meanwhile, so it is refused while an agent has the outbox open.

Segments are copied whole, so that each still begins with a plan, and positions stay. The new file has a ring id of
its own, so that it can be told from the old one, and the old one's salt, by which plans name their configuration.

A crash before the rename leaves the old file in its place, and ``<name>.new``, which the next call takes over; after
it the new one is whole (agent/outbox/files.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import EvidenceError, OutboxError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Plan
from agent.outbox import ring
from agent.outbox.files import OS_FILES, Files, RingFile, open_locked, replace_locked
from agent.outbox.outbox import MIN_SEGMENTS
from agent.outbox.recovery import recover
from agent.outbox.ring import FileHeader, Inspect, SegmentHeader
from agent.outbox.survey import Damage, LookingFiles, Part, Survey, given_up, survey

if TYPE_CHECKING:
    from agent.evidence.envelope import Link

Copied = tuple[int, SegmentHeader, bytes]  # number, header, and what follows the header


@dataclass(frozen=True, slots=True)
class Resized:
    """What ``resize`` did; ``before`` and ``after`` in segments, which ``dropped`` says of the acknowledged ones."""

    before: int
    after: int
    size: int
    kept: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Repaired:
    """What ``repair`` did, or would do. ``waiting``: of ``records``, those behind the acknowledged position ``acked``;
    ``aside``: where the old file is now.
    """

    channel: str
    records: int
    waiting: int
    acked: int
    troubles: tuple[str, ...]
    damage: tuple[Damage, ...]
    undescribed: int  # so many more places with damage
    new_salt: bool
    aside: Path


def resize(path: Path, *, channel: str, size: int, inspect: Inspect, files: Files = OS_FILES) -> Resized:
    """Make the outbox of a channel ``size`` bytes large, at most. All that waits is kept, and as much before it as
    fits.

    Raises OutboxError: too small for what waits, damaged, in use, not of this channel, no room on the disk, or what
    only ``repair`` can still read would be gone for good.
    """
    with _held(path) as fd:
        old = ring.unpack_file_header(files.pread(fd, ring.START, 0))
        ring.agree(old, replace(old, channel=channel), os.fstat(fd).st_size)
        file = RingFile(fd, old, LookingFiles(files))
        found = recover(file, inspect)
        headless = [place.slot for place in survey(fd, inspect, files).places if place.head is None]
        if not all(given_up(file.read(slot, 0, ring.SEGMENT_HEADER + ring.RECORD_HEADER)) for slot in headless):
            hint = "run `edge-agent outbox repair` first: it saves them"
            raise OutboxError("the header of a segment is broken, and its records would stay behind", hint=hint)
        segments = found.view.segments
        waiting = len(segments) - max(0, found.view.holding(found.acked + 1))
        # Where a start has to state what lay before the oldest segment, the new file must show that there was one.
        lost = bool(segments) and (
            segments[0].first_pos > found.acked + 1
            and segments[0].number > max(0, segments[-1].number + 1 - old.segments)
        )
        count = (size - ring.START) // old.segment_size
        least = max(MIN_SEGMENTS, waiting + lost)
        if count < least:
            what = f"{size} bytes are too small: {waiting} segments hold records that wait"
            raise OutboxError(what, hint=f"give it at least {ring.size_in_words(least, old.segment_size)}")
        if count == old.segments:
            return Resized(count, count, old.size, len(segments), 0)
        kept = segments[-count:]
        heads = dict(file.heads())
        header = replace(old, segments=count, ring_id=os.urandom(16))

        def copied() -> Iterator[Copied]:
            for number, segment in enumerate(kept, count if lost else 0):
                end = found.view.at if segment is kept[-1] else None
                data = file.read(segment.number, 0, end)
                yield number, heads[segment.number], data[ring.SEGMENT_HEADER :]

        _replace(fd, path, header, copied(), files)
        return Resized(old.segments, count, header.size, len(kept), len(segments) - len(kept))


def repair(
    path: Path,
    *,
    channel: str | None,
    aside: Path,
    inspect: Inspect,
    dry_run: bool = False,
    files: Files = OS_FILES,
) -> Repaired:
    """Put a ring file with every record that can be read in the place of a damaged one, which is kept as ``aside``.

    ``channel``: whose it is to be; None: whose it says. Raises OutboxError: nothing is wrong with it that this mends,
    nothing of it can be read, its version is not known, it is in use, or there is no room on the disk.
    """
    with _held(path) as fd:
        found = survey(fd, inspect, files)
        records, waiting, named = _counted(found)
        header = found.file.header
        name = header.channel or named or channel or ""
        if channel is not None and name != channel:
            raise OutboxError(f"it is the outbox of channel {name!r}, not of {channel!r}", hint="is it the right file?")
        if not found.troubles:
            hint = "what `edge-agent outbox verify` finds beside is lost, and a start states it"
            raise OutboxError("nothing is wrong with it that a repair would mend", hint=hint)
        if not records:
            raise OutboxError("no record in it can be read", hint="move it away to begin a new outbox")
        if not name:
            raise OutboxError("it does not say of which channel it is", hint="name it with --channel")
        done = Repaired(
            channel=name,
            records=records,
            waiting=waiting,
            acked=found.acked,
            troubles=tuple(found.troubles),
            damage=tuple(found.damage),
            undescribed=found.undescribed,
            new_salt=not header.salt,
            aside=aside,
        )
        if not dry_run:
            new = replace(header, ring_id=os.urandom(16), salt=header.salt or os.urandom(16), channel=name)
            _replace(fd, path, new, _saved(found), files, aside=aside)
        return done


def _counted(found: Survey) -> tuple[int, int, str | None]:
    """Evidence that can be read, what of it waits, and the channel that its first plan names."""
    records, waiting, channel = 0, 0, None
    for part in found.parts():
        for entry in part.entries:
            if entry.link:
                records += 1
                waiting += entry.pos > found.acked
                channel = channel or _channel(entry.payload)
    return records, waiting, channel


def _channel(envelope: bytes) -> str | None:
    try:
        body = decode_record(decode_head(unpack(envelope).payload), None).body
    except EvidenceError:
        return None
    return body.channel if isinstance(body, Plan) else None


def _saved(found: Survey) -> Iterator[Copied]:
    """The segments as they are, with new headers where those are gone. The last one is given a mark."""
    link, pos = None, 0
    for part in found.parts():
        place, data = part.place, part.data[ring.SEGMENT_HEADER :]
        head = place.head or _head_for(part, link, pos, found.acked)
        if place.head is None and head.first_pos == part.entries[0].pos:
            data = part.data[place.at :]
        if place is found.places[-1]:
            data = _ended(part, data, found)
        yield place.number, head, data
        link = next((entry.link for entry in reversed(part.entries) if entry.link), link)
        pos = part.entries[-1].pos


def _head_for(part: Part, before: Link | None, pos: int, acked: int) -> SegmentHeader:
    """A header for a segment that lost it; ``pos``: where the one before ends. If the first record, the plan, went with
    it, positions for as many as may have gone stay free: start sees that, and looks for an older plan.
    """
    first, digest = part.entries[0], before.digest if before else ring.NO_DIGEST
    room = (part.place.at - ring.SEGMENT_HEADER) // ring.RECORD_HEADER
    if room and first.pos > pos + 1:
        return SegmentHeader(b"", 0, max(pos + 1, first.pos - room), acked, digest)
    return SegmentHeader(b"", 0, first.pos, acked, first.link.prev if first.link else digest)


def _ended(part: Part, data: bytes, found: Survey) -> bytes:
    """The newest segment's bytes behind its header, to the end of its last record, and a mark that proves that they
    were on disk.

    An end of segment stays the last where it names what is missing before the oldest segment, or nothing is. Else a
    start has to work out what went, as it does behind a mark.
    """
    last = part.entries[-1]
    data = data[: len(data) - (len(part.data) - last.end)]
    oldest = found.places[0]
    one = oldest.number <= part.place.number + 2 - found.file.header.segments  # a second one it does not name
    named = one and bool(ring.unpack_end(last.payload))
    if last.type == ring.END and (named or oldest.first_pos <= found.acked + 1):
        return data
    mark = ring.pack_record(ring.MARK, pos=last.pos + 1, acked=found.acked, synced=last.pos + 1)
    return data + mark if last.end + len(mark) + ring.END_ROOM <= len(part.data) else data


# ---- the new file ---------------------------------------------------------------------------------------------------


def _replace(
    fd: int, path: Path, header: FileHeader, segments: Iterable[Copied], files: Files, *, aside: Path | None = None
) -> None:
    """Write a ring file and put it in the place of the one that ``fd`` has open."""

    def fill(new: int) -> None:
        files.fallocate(new, header.size)
        files.pwrite(new, header.pack() * 2, 0)
        file = RingFile(new, header, files)
        for number, head, data in segments:
            packed = replace(head, ring=header.ring_id[:8], lap=number // header.segments).pack()
            file.write(number, 0, packed + data)
        files.fdatasync(new)

    replace_locked(fd, path, fill, aside=aside)


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """The file, locked. What the system says becomes an OutboxError."""
    try:
        fd = open_locked(path)
        try:
            yield fd
        finally:
            os.close(fd)
    except BlockingIOError as error:
        raise OutboxError(f"{path} is in use: the agent runs", hint="stop the agent first") from error
    except OSError as error:
        hint = "look at the disk and the rights of the folder"
        if error.errno == errno.EIO:
            hint = "look at the disk; `edge-agent outbox repair` saves what it still gives"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "the new file is made beside the old one: make room for it"
        raise OutboxError(f"{path}: {error.strerror or error}", hint=hint) from error
    except OutboxError as error:
        raise OutboxError(f"{path}: {error}", hint=error.hint) from error
