"""When something is tried again: a connection that failed, a unit that does not answer.

Pure: boot times in ns in, verdicts out. After a failed or lost connection nothing is tried for 0.2 s, doubling to
30 s; a unit that did not answer three times in a row is left alone for 1 s, doubling to 60 s. Any answer ends both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import Cause

MS = 1_000_000
S = 1_000 * MS
_IN_A_ROW = 3
_NOT_TRIED = "not tried after repeated time-outs"


@dataclass(slots=True)
class Backoff:
    """When the next try is due: after ``first`` ns, then twice as long each time, ``most`` at most."""

    first: int
    most: int
    until: int = 0
    delay: int = 0

    def fail(self, now: int) -> None:
        """A try failed."""
        self.delay = min(self.delay * 2 or self.first, self.most)
        self.until = now + self.delay

    def succeed(self) -> None:
        """A try succeeded: the next failure begins at ``first`` again."""
        self.until = self.delay = 0


@dataclass(slots=True)
class _Unit:
    """What is known of a unit: how often in a row it did not answer."""

    timeouts: int = 0
    backoff: Backoff = field(default_factory=lambda: Backoff(1 * S, 60 * S))


class Patience:
    """The trouble of one connection and its units, as long as it lasts."""

    def __init__(self) -> None:
        self._backoff = Backoff(200 * MS, 30 * S)
        self._trouble = ""
        self._timeouts = 0  # in a row, of all units, over the connection as it is
        self._units: dict[int, _Unit] = {}

    def refusal(self, unit: int, now: int) -> tuple[Cause, str] | None:
        """Why nothing may be asked of a unit now, in the words of what went wrong; None: it may."""
        if now < self._backoff.until:
            return Cause.LINK_DOWN, self._trouble
        if unit in self._units and now < self._units[unit].backoff.until:
            return Cause.DEVICE_TIMEOUT, _NOT_TRIED
        return None

    def lost(self, trouble: str, now: int) -> None:
        """The connection could not be made, or broke in the middle of a request."""
        self._trouble = trouble
        self._backoff.fail(now)

    def connected(self) -> None:
        """There is a new connection."""
        self._timeouts = 0

    def answered(self, unit: int) -> None:
        """Something came back for a request."""
        self._timeouts = 0
        self.forgive(unit)

    def forgive(self, unit: int) -> None:
        """What was tried last was no fault of connection and unit."""
        if self._backoff.delay:
            self._backoff.succeed()
        if self._units:
            self._units.pop(unit, None)

    def timed_out(self, unit: int, now: int) -> bool:
        """A unit did not answer. True: neither did the ones before; perhaps the other end is gone and the network did
        not say so, so that the connection had better be made anew.
        """
        state = self._units.setdefault(unit, _Unit())
        state.timeouts += 1
        if state.timeouts >= _IN_A_ROW:
            state.backoff.fail(now)
        self._timeouts += 1
        return self._timeouts >= _IN_A_ROW
