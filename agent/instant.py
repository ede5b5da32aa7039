"""One look at two clocks."""

from __future__ import annotations

from agent.ports import Clock

_AT_ONCE = 1_000_000  # ns; a term ends when the clocks are 5 ms apart or more (docs/evidence.md section 4)


def instant(clock: Clock, *, looks: int = 5) -> tuple[int, int]:
    """Wall and boot time of one instant, ns. On a busy machine we may be held up between two looks at clocks, and the
    one would seem to have stepped against the other.
    """
    before, wall, boot = clock.boot(), clock.wall(), clock.boot()
    if boot - before >= _AT_ONCE and looks > 1:
        return instant(clock, looks=looks - 1)
    return wall, boot
