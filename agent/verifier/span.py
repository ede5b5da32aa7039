"""When a run was: what its records say of it by clocks that can be compared with those of another run."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import ClockState, Sealed

MARGIN = 1_000_000_000  # ns: what synchronised clocks may be off beyond the error that they state


@dataclass(slots=True)
class Span:
    """From the first to the last record of a run: by boot times, and, where the clock was synchronised, by wall times,
    in ns. A wall time is taken at the end of its error at which the run is shorter.
    """

    boot_id: bytes | None = None
    boot_first: int | None = None
    boot_last: int = 0
    wall_first: int | None = None
    wall_last: int = 0

    def add(self, sealed: Sealed) -> None:
        """Count a record in."""
        if self.boot_first is None:
            self.boot_first = sealed.boot
        self.boot_last = sealed.boot
        if sealed.clock == ClockState.SYNCHRONISED and sealed.error_us is not None:
            error = sealed.error_us * 1000
            if self.wall_first is None:
                self.wall_first = sealed.wall + error
            self.wall_last = max(self.wall_last, sealed.wall - error)

    def ends_after(self, other: Span) -> bool | None:
        """Whether its last record was sealed after the first one of ``other``; None: it cannot be told."""
        if (
            self.boot_id is not None
            and self.boot_id == other.boot_id
            and None not in (self.boot_first, other.boot_first)
        ):
            return self.boot_last > other.boot_first  # type: ignore[operator]  # neither is None
        if self.wall_first is not None and other.wall_first is not None:
            return self.wall_last > other.wall_first + MARGIN
        return None
