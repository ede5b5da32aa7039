"""How what waited through an outage is sent: a fleet that finds its broker again at the same moment must not flood it.

The start is put off by a random time of up to ``spread``, but never by more than the outage lasted, and not at all
when no more waits than goes out at once anyway (``WINDOW`` records): a short outage delays nothing. How long the broker
was away before this process began is not known, and counts as long. After that, what waited when the session began goes
at ``rate``; what was sealed since then follows it, as fast as it can.
"""

from __future__ import annotations

import random

from agent.delivery.flight import WINDOW
from agent.ports import Clock

S = 1_000_000_000
_CATCH_UP = S // 10  # ns: what a late wake-up may make good


class Drain:
    """``rate`` in bytes a second, None: no limit; ``spread`` in ns."""

    def __init__(self, *, rate: int | None, spread: int, clock: Clock) -> None:
        self._rate = rate
        self._spread = spread
        self._clock = clock
        self._away_since: int | None = None  # boot time; None: since before this process
        self._start: int | None = None  # boot time at which it begins after this outage
        self._free = 0  # boot time at which the next bytes may go

    def lost(self) -> None:
        """Records came through until now."""
        self._away_since, self._start = self._clock.boot(), None

    def unreachable(self) -> None:
        """The broker was not reached again: the whole fleet may be waiting for it, so what was drawn does not hold."""
        self._start = None

    def begin(self, waiting: int) -> int:
        """The broker is reached and ``waiting`` records wait; returns for how long still, in ns. Drawn once for each
        outage, so that who is refused and tries again does not wait again.
        """
        now = self._clock.boot()
        if self._start is None:
            longest = self._spread if self._away_since is None else min(self._spread, now - self._away_since)
            self._start = now + (round(random.uniform(0, longest)) if waiting > WINDOW else 0)
        return max(0, self._start - now)

    async def pace(self, size: int) -> None:
        """Return when ``size`` more bytes may go."""
        if self._rate is not None:
            due = max(self._free, self._clock.boot() - _CATCH_UP)
            self._free = due + size * S // self._rate
            await self._clock.sleep_until(due)
