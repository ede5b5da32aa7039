"""The time that the fake goes by: another clock's, moved by a test."""

from __future__ import annotations

import time
from collections.abc import Callable


class HubClock:
    """Seconds since 1970 of ``source``, plus all moves. Only JetStream's timers (ack wait) keep to the real clock."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._moved = 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._source() + self._moved

    def now_ms(self) -> int:
        """Milliseconds since 1970: the resolution of the broker."""
        return int(self.now() * 1000)

    def move(self, seconds: float) -> None:
        """Let time pass. DataHub.move also lets messages expire at once."""
        self._moved += seconds
