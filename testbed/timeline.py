"""When a group is accounted for: spans of boot time by its frames, its gaps, and what runs state of the ones before."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """Boot times from ``begin`` to before ``end``."""

    begin: int
    end: int
    is_frame: bool


class Timeline:
    """A group's spans in order of its cycles. It is judged from ``since`` on, where its evidence begins, to ``until``,
    where it ends.
    """

    def __init__(self, since: int) -> None:
        self.since = self.until = since
        self._spans: list[Span] = []
        self._index: tuple[list[int], list[int]] | None = None

    def frame(self, begin: int, end: int) -> None:
        """An acquisition that gave a frame."""
        self._spans.append(Span(begin, end, is_frame=True))
        self._index = None

    def gap(self, begin: int, end: int) -> None:
        """A stretch that is stated as without frames."""
        self._spans.append(Span(begin, end, is_frame=False))
        self._index = None

    def holds(self, boot: int) -> bool:
        """Whether a time is accounted for."""
        if self._index is None:
            spans = sorted(self._stretched())
            self._index = [span.begin for span in spans], list(accumulate((span.end for span in spans), max))
        begins, furthest = self._index
        at = bisect_right(begins, boot) - 1
        return at >= 0 and boot < furthest[at]

    def _stretched(self) -> list[Span]:
        """An acquisition that failed may go on past the gap of its cycle; the next begins when it is over."""
        spans = list(self._spans)
        for i, (span, following) in enumerate(pairwise(spans)):
            if following.is_frame and not span.is_frame and span.end < following.begin:
                spans[i] = span._replace(end=following.begin)
        return spans
