"""A connection that is polled, as the engine sees it: how long it was busy, and how late its devices were read.

Busy is the time in which at least one acquisition was under way; so those that wait for each other count once, and so
does the time that a silent device takes until its time-out.
"""

from __future__ import annotations

from typing import Any

from agent.heartbeat import WITHIN
from agent.histogram import Histogram, Rate

LATE = (0.001, 0.01, 0.1, 0.5, 1, 5, 60)  # s
_S = 1e9


class Bus:
    """``within``: ns that an acquisition may take at most, waiting for its turn included."""

    def __init__(self, within: int = WITHIN) -> None:
        self.within = within
        self.late = Histogram(LATE)
        self._under_way = 0
        self._since = 0
        self._busy = 0  # ns, until the last acquisition that left nobody behind
        self._share = Rate()
        self._shared = 0  # of ``_busy``: what the rate knows
        self._told = 0  # when it was told last; about once a second, it costs more than the rest

    def begin(self, now: int) -> None:
        """An acquisition is under way."""
        if not self._under_way:
            self._since = now
        self._under_way += 1

    def end(self, now: int) -> None:
        """It is not any more."""
        self._under_way -= 1
        if not self._under_way:
            self._busy += now - self._since
            if now - self._told >= _S:
                self._share.add((self._busy - self._shared) / _S, now)
                self._shared, self._told = self._busy, now

    def status(self, now: int) -> dict[str, Any]:
        """``busy_s`` since it was made, ``busy`` of the last minute, 0 to 1, and ``late``: readings by seconds between
        due time and beginning.
        """
        under_way = now - self._since if self._under_way else 0
        share = self._share.per_second(now) + (self._busy - self._shared + under_way) / 60e9
        return {"busy_s": (self._busy + under_way) / _S, "busy": min(1.0, share), "late": self.late.as_json()}
