"""The wait for the clock: at start, so that the first readings do not carry the time of a clock that nobody has set.

It holds back acquisition and nothing else, ends at the latest after ``at_most``, and ends at once where the state of
the clock cannot be read: then waiting tells nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from agent.model import ClockState
from agent.ports import Clock
from agent.units import duration_text

S = 1_000_000_000
_ASK_EVERY = S // 2

log = logging.getLogger(__name__)


class ClockWait:
    """``at_most`` in ns, 0: no wait; it may change while the wait lasts, and counts from the beginning."""

    def __init__(self, clock: Clock, *, at_most: int) -> None:
        self.at_most = at_most
        self._clock = clock
        self._began: int | None = None  # boot time; None: no wait is under way

    @property
    def waiting(self) -> bool:
        """Whether nothing is acquired because of it."""
        return self._began is not None

    async def over(self) -> None:
        """Return once the clock is synchronised, or has been waited for, or cannot be judged."""
        if not self.at_most or self._clock.quality().state is not ClockState.NOT_SYNCHRONISED:
            return
        began = self._began = self._clock.boot()
        log.info("waiting for a synchronised clock before the first reading at_most=%s", duration_text(self.at_most))
        try:
            while (now := self._clock.boot()) < (end := began + self.at_most):
                await self._clock.sleep_until(min(now + _ASK_EVERY, end))
                if self._clock.quality().state is not ClockState.NOT_SYNCHRONISED:
                    break
        finally:
            self._began = None
        state = self._clock.quality().state.name.lower()
        log.info("readings begin clock=%s waited_s=%.1f", state, (self._clock.boot() - began) / S)

    def status(self) -> dict[str, Any]:
        """How the clock is, for programs: ``state``, ``error_us`` or None, and ``waiting_s``: for how much longer at
        most nothing is read because of it, or None.
        """
        quality = self._clock.quality()
        left = None if self._began is None else max(0, self._began + self.at_most - self._clock.boot()) / S
        return {"state": quality.state.name.lower(), "error_us": quality.error_us, "waiting_s": left}
