"""Silences: the spans in which no messages of a source came, and when each must be stated (docs/evidence.md section 4,
gaps of event-driven groups).

Nobody listened (link_down), or somebody did and nothing came for longer than the device's ``silent_after``
(source_silent). Of that the time of several connections counts together: one that is lost now and then would else hide
a source that stopped. Of a device no instant is stated twice, and none at which a message of it came. A span that
lasts is stated piece by piece. Times are boot times in ns; pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.model import Cause

S = 1_000_000_000
STATE_EVERY = 300 * S  # what lasts is stated at least this often
_MOST_QUIET = 64  # connections without a message whose times are stated in the end


@dataclass(frozen=True, slots=True)
class Span:
    """From ``begin`` to ``end`` no messages came of ``device``. ``lasts``: nor since."""

    device: str
    cause: Cause
    begin: int
    end: int
    detail: str | None = None
    lasts: bool = False


@dataclass(slots=True)
class _Device:
    """``since``: up to where all is told: its last message, or the end of what was stated, or since when it is heard.
    ``after`` None: it is never called silent. ``quiet``: of earlier connections, the times after its last message that
    are not stated, the last of them, and ``quiet_for`` how long they all were.
    """

    after: int | None
    since: int
    silent: bool = False
    quiet_for: int = 0
    quiet: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_MOST_QUIET))

    def forget_quiet(self) -> None:
        """It is told, or a message came."""
        self.quiet_for = 0
        self.quiet.clear()


class Silences:
    """Of one connection. At first nobody listens."""

    def __init__(self, silent_after: Mapping[str, int | None], *, now: int) -> None:
        """``silent_after``: ns, of each device behind the connection."""
        self._devices = {device: _Device(after, now) for device, after in silent_after.items()}
        self._deaf = True
        self._trying: int | None = None
        self._detail: str | None = None
        self._spans: list[Span] = []

    def trying(self, now: int) -> None:
        """A connection is being made: until it is known what becomes of it, nothing is said of the time from now on."""
        self._trying = now

    def connected(self, since: int, *, kept: bool) -> None:
        """Somebody listens, from ``since`` on. ``kept``: the broker kept the session meanwhile."""
        for name, device in self._devices.items():
            if self._deaf:
                self._add(name, Cause.LINK_DOWN, device.since, since, "the broker kept the session" if kept else None)
            device.since = max(device.since, since)
        self._deaf, self._trying = False, None

    def lost(self, heard: int, detail: str) -> None:
        """Nobody listens; ``heard`` was the last sign of life. ``detail`` goes into what is stated of it."""
        self._detail, self._trying = detail, None
        if self._deaf:
            return
        self._deaf = True
        for name, device in self._devices.items():
            if device.silent:
                self._add(name, Cause.SOURCE_SILENT, device.since, heard)
            elif device.after is not None and device.since < heard:
                device.quiet.append((device.since, heard))
                device.quiet_for += heard - device.since
            device.silent, device.since = False, max(device.since, heard)

    def heard(self, device: str, now: int) -> None:
        """A message of a device came."""
        state = self._devices[device]
        if state.silent:
            self._add(device, Cause.SOURCE_SILENT, state.since, now)
        state.silent, state.since = False, max(state.since, now)
        state.forget_quiet()

    @property
    def due(self) -> int | None:
        """When there is something to be stated; None: not as long as nothing happens."""
        if self._spans:
            return 0
        if self._trying is not None:
            return None
        dues = (each.since + after for each in self._devices.values() if (after := self._after(each)) is not None)
        return min(dues, default=None)

    def take(self, now: int, *, fetched: int | None = None, last: bool = False) -> list[Span]:
        """What is to be stated now, in order. ``fetched``: what came up to then was told by ``heard``; None: up to now.
        ``last``: nothing more will be asked, all that lasts is stated.
        """
        if not self._deaf and fetched is not None:
            now = fetched
        until = now if self._trying is None else min(now, self._trying)
        for name, device in self._devices.items():
            after = self._after(device)
            if (after is not None and until >= device.since + after) or (last and (self._deaf or device.silent)):
                if self._deaf:
                    self._add(name, Cause.LINK_DOWN, device.since, until, self._detail, lasts=True)
                else:
                    for begin, end in device.quiet:
                        self._add(name, Cause.SOURCE_SILENT, begin, end)
                    device.forget_quiet()
                    self._add(name, Cause.SOURCE_SILENT, device.since, until, lasts=True)
                    device.silent = True
                device.since = max(device.since, until)
        spans, self._spans = self._spans, []
        return spans

    def _after(self, device: _Device) -> int | None:
        """How long after ``since`` something must be stated."""
        if self._deaf or device.silent:
            return STATE_EVERY
        return None if device.after is None else max(0, device.after - device.quiet_for)

    def _add(
        self, device: str, cause: Cause, begin: int, end: int, detail: str | None = None, *, lasts: bool = False
    ) -> None:
        if begin < end:
            self._spans.append(Span(device, cause, begin, end, detail, lasts))
