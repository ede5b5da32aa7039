"""Sending retained records once more, by order (``edge-agent outbox resend``).

Only what is settled is sent: what is not comes in its turn. Records go out under their old ids, so that a broker that
has them may drop them, and a verifier fills its holes or tells repeats. Holds one read of the outbox, and of what is
not held any more at most ``_LISTED`` ranges. What ends before its end changed nothing, and may be asked for again.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread

from agent.delivery.errand import Errand
from agent.delivery.publisher import Publisher
from agent.errors import EvidenceError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, plan_of
from agent.model import Cause
from agent.ports import Store, Stored

_READ = 256 * 1024  # bytes read from the outbox at a time
_RANGES = 4096  # of refused records of a run; of more, the span of all
_LISTED = 20  # ranges that are named
_NEVER = 1 << 63
_RUN = re.compile("[0-9a-f]{8,32}")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records: ``first`` to ``last`` of the run whose id begins with ``run`` (hex), those sealed from ``since``
    to ``until`` (wall ns), or those that plans call refused.
    """

    run: str = ""
    first: int = 1
    last: int = _NEVER
    since: int = 0
    until: int = _NEVER
    refused: bool = False

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Selection:
        """What a request asks for. Raises ValueError."""
        run, refused = request.get("run", ""), request.get("refused", False)
        if not isinstance(run, str) or (run and not _RUN.fullmatch(run.lower())):
            raise ValueError("run is the id of a run, or its first 8 hex digits or more")
        if not isinstance(refused, bool):
            raise ValueError("refused is true or false")
        numbers = {key: request[key] for key in ("first", "last", "since", "until") if key in request}
        if any(type(number) is not int or not 0 <= number <= _NEVER for number in numbers.values()):
            raise ValueError("first, last, since and until are numbers")
        found = cls(run=run.lower(), refused=refused, **numbers)
        if [bool(run), refused, "since" in numbers].count(True) != 1:
            raise ValueError("name a run, a time since when, or what was refused: one of these")
        if ({"first", "last"} & numbers.keys() and not run) or ("until" in numbers and "since" not in numbers):
            raise ValueError("numbers belong to a run, and until to since")
        if found.first < 1 or found.first > found.last or found.since > found.until:
            raise ValueError("what is asked for begins behind its end")
        return found


@dataclass(slots=True)
class _Range:
    """Records of a run; those up to ``next`` have been met or are not held."""

    first: int
    last: int
    next: int = 0

    def __post_init__(self) -> None:
        self.next = self.first


class _Numbered:
    """Records by number, met in ascending order within each run."""

    def __init__(self, ranges: Mapping[bytes, Sequence[_Range]], *, prefix: str = "") -> None:
        """``prefix``: the ranges under b"" are of the first run whose id begins with this."""
        self._ranges = dict(ranges)
        self._prefix = prefix
        self._missing: list[tuple[str, int, int]] = []
        self._count = 0

    def wants(self, stored: Stored) -> bool:
        """Whether it is one of these."""
        link = stored.link
        if self._prefix and link.stream.hex().startswith(self._prefix):
            self._ranges, self._prefix = {link.stream: self._ranges[b""]}, ""
        ranges = self._ranges.get(link.stream, ())
        index = bisect_left(ranges, link.seq, key=lambda each: each.last)
        if index == len(ranges) or ranges[index].first > link.seq:
            return False
        found = ranges[index]
        self._miss(link.stream, found.next, link.seq - 1)
        found.next = link.seq + 1
        return True

    @property
    def done(self) -> bool:
        """Whether all that is asked for was met."""
        return all(each.next > each.last for ranges in self._ranges.values() for each in ranges)

    def missing(self) -> tuple[int, list[tuple[str, int, int]]]:
        """How many are not held, and the first ranges of them; to be asked at the end. Of a run whose end was left
        open, what lies behind its last record does not count.
        """
        for stream, ranges in self._ranges.items():
            for each in ranges:
                if each.last < _NEVER:
                    self._miss(stream, each.next, each.last)
        return self._count, self._missing

    def _miss(self, stream: bytes, first: int, last: int) -> None:
        if first <= last:
            self._count += last - first + 1
            if len(self._missing) < _LISTED:
                self._missing.append((stream.hex() or self._prefix, first, last))


class _Timed:
    """Records by the time when they were sealed."""

    done = False

    def __init__(self, since: int, until: int) -> None:
        self._since, self._until = since, until

    def wants(self, stored: Stored) -> bool:
        """Whether it is one of these."""
        return self._since <= _sealed(stored) <= self._until


@dataclass(slots=True)
class Resending:
    """One order. The counts are of records: ``stored`` by the broker, ``duplicates`` that it says it has already,
    ``refused`` again, ``in_turn``: not settled yet.
    """

    store: Store
    publisher: Publisher
    selection: Selection
    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    in_turn: int = 0
    position: int = 0  # up to which the outbox was looked through
    _errand: Errand = field(default_factory=lambda: Errand([]))

    async def run(self) -> AsyncGenerator[dict[str, Any]]:
        """Send it; yields how far that has come, at least every few seconds, and ``done`` with ``missing`` (a number),
        ``ranges`` (run, first, last) and ``held_since`` at last. Raises OutboxError, TransportError.
        """
        selection, up_to = self.selection, self.store.next_pos - 1
        wanted: _Numbered | _Timed = _Timed(selection.since, selection.until)
        if selection.run:
            stream = bytes.fromhex(selection.run) if len(selection.run) == 32 else b""
            wanted = _Numbered(
                {stream: [_Range(selection.first, selection.last)]}, prefix="" if stream else selection.run
            )
            if stream:
                self.position = await to_thread.run_sync(self._before, stream, selection.first)
        elif selection.refused:
            ranges: dict[bytes, list[tuple[int, int]]] = {}
            after = 0
            while (stored := await self._read(after, up_to, lambda found: _note_refused(found, ranges))) is not None:
                after = stored
                yield self._told()
            wanted = _Numbered({stream: [_Range(*each) for each in found] for stream, found in ranges.items()})
        held_since = await to_thread.run_sync(self._held_since)
        at_once = self.publisher.window // 2
        chosen: list[Stored] = []

        def choose(found: Sequence[Stored]) -> None:
            chosen[:] = [record for record in found if wanted.wants(record)]

        while not wanted.done and (read := await self._read(self.position, up_to, choose)) is not None:
            for start in range(0, len(chosen), at_once):
                batch = chosen[start : start + at_once]
                self._errand = Errand(record for record in batch if record.pos <= self.store.acked)
                self.in_turn += len(batch) - len(self._errand.waiting)
                while self._errand.waiting:
                    await self.publisher.send_again(self._errand)
                    yield self._told()
                self._count()
            self.position = read
            yield self._told()
        missing, ranges_missing = wanted.missing() if isinstance(wanted, _Numbered) else (0, [])
        late = held_since if isinstance(wanted, _Timed) and held_since and selection.since < held_since else None
        yield self._told() | {"done": True, "missing": missing, "ranges": ranges_missing, "held_since": late}

    async def _read(self, after: int, up_to: int, use: Callable[[Sequence[Stored]], None]) -> int | None:
        """Look at the next records; returns the position of the last one, None if there are no more."""

        def read() -> int | None:
            found = [each for each in self.store.read(after, max_bytes=_READ) if each.pos <= up_to]
            use(found)
            return found[-1].pos if found else None

        return await to_thread.run_sync(read)

    def _before(self, stream: bytes, seq: int) -> int:
        """A position before all records from ``seq`` on of a run."""
        found = self.store.find(stream, seq)
        return 0 if found is None else found - 1

    def _held_since(self) -> int | None:
        """When the oldest record held was sealed, if there were older ones."""
        oldest = self.store.read(0, max_bytes=1)[:1]
        return _sealed(oldest[0]) if oldest and oldest[0].pos > 1 else None

    def _count(self) -> None:
        errand, self._errand = self._errand, Errand([])
        self.stored += errand.stored
        self.duplicates += errand.duplicates
        self.refused += errand.refused

    def _told(self) -> dict[str, Any]:
        errand = self._errand
        told = {
            "stored": self.stored + errand.stored,
            "duplicates": self.duplicates + errand.duplicates,
            "refused": self.refused + errand.refused,
            "in_turn": self.in_turn,
            "position": self.position,
            "up_to": self.store.next_pos - 1,
        }
        trouble = errand.trouble or self.publisher.trouble
        return told | {"waits": trouble or "for the broker"} if errand.waiting else told


def _sealed(stored: Stored) -> int:
    """When a record was sealed, wall ns; 0 if that cannot be read."""
    try:
        sealed = decode_head(unpack(stored.envelope).payload).fields.get(5)
    except EvidenceError:
        return 0
    return sealed[0] if isinstance(sealed, list) and sealed and isinstance(sealed[0], int) else 0


def _note_refused(found: Iterable[Stored], ranges: dict[bytes, list[tuple[int, int]]]) -> None:
    """Add what plans among these records call refused; the ranges of a run are sorted and apart."""
    told = [entry for stored in found if (plan := plan_of(stored.envelope)) for entry in plan.withdrawn]
    for stream in {entry.stream for entry in told if entry.cause == Cause.REFUSED}:
        new = [(each.first, each.last) for each in told if (each.stream, each.cause) == (stream, Cause.REFUSED)]
        ranges[stream] = _joined([*ranges.get(stream, []), *new])


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found if len(found) <= _RANGES else [(found[0][0], found[-1][1])]
