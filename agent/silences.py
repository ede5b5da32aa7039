"""Silences: the spans in which no messages of a source came, and when each must be stated (docs/evidence.md section 4,
gaps of event-driven groups).

Nobody listened (link_down), or somebody did and nothing came for longer than the device's ``silent_after``
(source_silent). A span that lasts is stated piece by piece. Times are boot times in ns; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import Cause

S = 1_000_000_000
STATE_EVERY = 300 * S  # what lasts is stated at least this often


@dataclass(frozen=True, slots=True)
class Span:
    """From ``begin`` to ``end`` no messages came of ``device``, or of any if it is None. ``lasts``: nor since."""

    device: str | None
    cause: Cause
    begin: int
    end: int
    detail: str | None = None
    lasts: bool = False


@dataclass(slots=True)
class _Device:
    """``since``: its last message, or since when it can be heard; while ``silent`` the end of what was stated."""

    after: int
    since: int
    silent: bool = False


class Silences:
    """Of one connection. At first nobody listens."""

    def __init__(self, silent_after: Mapping[str, int], *, now: int) -> None:
        """``silent_after``: ns, of the devices that have it."""
        self._devices = {device: _Device(after, now) for device, after in silent_after.items()}
        self._deaf: int | None = now  # since when nobody listens, as far as it was not stated
        self._detail: str | None = None
        self._spans: list[Span] = []

    def connected(self, now: int, *, kept: bool) -> None:
        """Somebody listens from now on. ``kept``: what came meanwhile comes now."""
        if self._deaf is not None:
            self._add(None, Cause.LINK_DOWN, self._deaf, now, "messages were kept" if kept else self._detail)
        self._deaf = None
        for device in self._devices.values():
            device.since = now

    def lost(self, heard: int, detail: str) -> None:
        """Nobody listens; ``heard`` was the last sign of life. ``detail`` goes into what is stated of it."""
        self._detail = detail
        if self._deaf is not None:
            return
        self._deaf = heard
        for name, device in self._devices.items():
            if device.silent:
                self._add(name, Cause.SOURCE_SILENT, device.since, heard)
                self._deaf = max(heard, device.since)
            device.silent = False

    def heard(self, device: str, now: int) -> None:
        """A message of a device came."""
        state = self._devices.get(device)
        if state is not None:
            if state.silent:
                self._add(device, Cause.SOURCE_SILENT, state.since, now)
            state.silent, state.since = False, now

    @property
    def due(self) -> int | None:
        """When there is something to be stated; None: not as long as nothing happens."""
        if self._spans:
            return 0
        if self._deaf is not None:
            return self._deaf + STATE_EVERY
        dues = (each.since + (STATE_EVERY if each.silent else each.after) for each in self._devices.values())
        return min(dues, default=None)

    def take(self, now: int, *, last: bool = False) -> list[Span]:
        """What is to be stated now, in order. ``last``: nothing more will be asked, all that lasts is stated."""
        if self._deaf is not None:
            if last or now >= self._deaf + STATE_EVERY:
                self._add(None, Cause.LINK_DOWN, self._deaf, now, self._detail, lasts=True)
                self._deaf = now
        else:
            for name, device in self._devices.items():
                if now >= device.since + (STATE_EVERY if device.silent else device.after) or (last and device.silent):
                    self._add(name, Cause.SOURCE_SILENT, device.since, now, lasts=True)
                    device.silent, device.since = True, now
        spans, self._spans = self._spans, []
        return spans

    def _add(
        self,
        device: str | None,
        cause: Cause,
        begin: int,
        end: int,
        detail: str | None = None,
        *,
        lasts: bool = False,
    ) -> None:
        if begin < end:
            self._spans.append(Span(device, cause, begin, end, detail, lasts))
