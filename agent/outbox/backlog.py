"""How much evidence an outbox holds and how much of it waits, by position. In memory only; no lock of its own.

Exact for segments that were written or scanned in this run. Of full segments of an earlier run only first and last
position are known: every position but the last (the end of segment) counts as evidence and all room as envelope, so
that both figures are a little too high (marks, unused ends). They become 0 all the same when the last record is
acknowledged.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pending:
    """Evidence that is held and not acknowledged; ``bytes`` of envelopes."""

    records: int
    bytes: int


@dataclass(slots=True)
class _Share:
    """One segment's evidence. ``lengths``: of the envelope at each position, 0 for other records; None: not known, or
    acknowledged.
    """

    first_pos: int
    end_pos: int
    records: int
    bytes: int
    lengths: array[int] | None

    def above(self, pos: int) -> tuple[int, int]:
        """Records and bytes behind ``pos``."""
        if pos < self.first_pos:
            return self.records, self.bytes
        if pos >= self.end_pos - 1:
            return 0, 0
        if self.lengths is not None:
            rest = self.lengths[pos + 1 - self.first_pos :]
            return sum(1 for length in rest if length), sum(rest)
        left = self.end_pos - 2 - pos  # the last position is the end of segment
        return min(left, self.records), self.bytes * left // (self.end_pos - self.first_pos)

    def between(self, before: int, pos: int) -> tuple[int, int]:
        """Records and bytes behind ``before`` up to ``pos``; what ``above`` is less by."""
        if self.lengths is not None:
            gone = self.lengths[max(0, before + 1 - self.first_pos) : max(0, pos + 1 - self.first_pos)]
            return sum(1 for length in gone if length), sum(gone)
        (more, larger), (fewer, smaller) = self.above(before), self.above(pos)
        return more - fewer, larger - smaller


class Backlog:
    """The segments in use, oldest first, and the acknowledged position, which may also go down."""

    def __init__(self) -> None:
        self.acked = 0
        self.pending = Pending(0, 0)
        self._shares: list[_Share] = []

    def estimate(self, first_pos: int, end_pos: int, *, room: int, header: int) -> None:
        """Add a full segment of an earlier run: ``room`` bytes for records with a ``header`` each, the last one no
        evidence.
        """
        records = max(0, end_pos - first_pos - 1)
        size = max(0, room - (records + 1) * header)
        self._shares.append(_Share(first_pos, end_pos, records, size, None))

    def begin(self, first_pos: int) -> None:
        """Add the segment that is written from now on."""
        self._shares.append(_Share(first_pos, first_pos, 0, 0, array("I")))

    def add(self, pos: int, length: int) -> None:
        """A record went into the newest segment; ``length`` 0: no evidence. Positions that were passed over hold
        nothing.
        """
        share = self._shares[-1]
        assert share.lengths is not None, "only the newest segment grows"
        share.lengths.extend([0] * (pos - share.end_pos))
        share.lengths.append(length)
        share.end_pos = pos + 1
        if length:
            share.records, share.bytes = share.records + 1, share.bytes + length
            if pos > self.acked:
                self.pending = Pending(self.pending.records + 1, self.pending.bytes + length)

    def drop(self) -> None:
        """The oldest segment is gone."""
        records, size = self._shares.pop(0).above(self.acked)
        self.pending = Pending(self.pending.records - records, self.pending.bytes - size)

    def settle(self, pos: int) -> None:
        """``pos`` is the highest contiguous acknowledged position now. When it moves on, only the segments that it
        moves through are looked at.
        """
        before, self.acked = self.acked, pos
        if pos < before:
            self.recount()
            return
        records, size = self.pending.records, self.pending.bytes
        for share in self._shares[self._index(before) : self._index(pos) + 1]:
            gone = share.between(before, pos)
            records, size = records - gone[0], size - gone[1]
            if share.end_pos <= pos + 1 and share is not self._shares[-1]:
                share.lengths = None  # 4 bytes a record are kept for what waits only
        self.pending = Pending(records, size)

    def recount(self) -> None:
        """Work out ``pending`` anew."""
        counts = [share.above(self.acked) for share in self._shares]
        self.pending = Pending(sum(count[0] for count in counts), sum(count[1] for count in counts))

    def _index(self, pos: int) -> int:
        """Index of the segment that holds ``pos``, 0 if it lies before all."""
        return max(0, bisect_right(self._shares, pos, key=lambda share: share.first_pos) - 1)
