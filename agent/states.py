"""How each group of each device is: what the log says once per change, and ``status`` whenever it is asked."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agent.model import Cause
from agent.ports import Clock

S = 1e9
_TELL_EVERY = 60_000_000_000  # ns
_NAMED = 3  # devices, on a line

log = logging.getLogger(__name__)


@dataclass(slots=True)
class GroupState:
    """A group as it was last seen. ``cause`` None: it answers, or nothing was tried yet. Times are boot times."""

    since: int
    cause: Cause | None = None
    detail: str = ""
    last: int | None = None  # its last frame
    frames: int = 0
    undecodable: int = 0  # messages that yielded nothing
    failures: Counter[Cause] = field(default_factory=Counter)  # tries, and messages, that yielded nothing
    told: int | None = None  # when the last of them was logged


class States:
    """The states of all groups that are acquired, by device id and group name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.groups: dict[tuple[str, str], GroupState] = {}

    def keep(self, keys: set[tuple[str, str]]) -> None:
        """From now on these groups are acquired, and no others."""
        now = self._clock.boot()
        self.groups = {key: self.groups.get(key) or GroupState(now) for key in sorted(keys)}

    def good(self, device: str, group: str) -> None:
        """A frame came."""
        state = self._of(device, group)
        state.frames += 1
        state.last = self._clock.boot()
        if state.cause is not None:
            self.well(device, group)

    def well(self, device: str, group: str, *, tell: bool = True) -> None:
        """Nothing is in the way of frames. ``tell``: in the log, if it changed."""
        state = self._of(device, group)
        if state.cause is None:
            return
        state.cause, state.detail, state.since = None, "", self._clock.boot()
        if tell:
            log.info("device answers again group=%s/%s", device, group)

    def failed(self, device: str, group: str, cause: Cause, detail: str, *, tell: bool = True) -> None:
        """Nothing came, and why. ``tell``: in the log, if the cause changed."""
        state = self._of(device, group)
        state.failures[cause] += 1
        changed = state.cause is not cause
        if changed:
            state.cause, state.since = cause, self._clock.boot()
        if changed and tell:
            log.warning("device fails group=%s/%s cause=%s detail=%s", device, group, cause.name.lower(), detail)
        state.detail = detail

    def undecodable(self, device: str, group: str, detail: str) -> None:
        """A message came that yielded nothing; the source as such is well. Told at most once a minute, for each one
        has another digest.
        """
        state, now = self._of(device, group), self._clock.boot()
        state.undecodable += 1
        state.failures[Cause.DECODE_ERROR] += 1
        if state.cause is Cause.SOURCE_SILENT:
            self.well(device, group)
        if state.told is None or now - state.told >= _TELL_EVERY:
            state.told = now
            log.warning(
                "message not understood group=%s/%s so_far=%d last=%s", device, group, state.undecodable, detail
            )

    def _of(self, device: str, group: str) -> GroupState:
        """The state of a group, also of one that will be acquired from the next term on."""
        state = self.groups.get((device, group))
        if state is None:
            state = self.groups[device, group] = GroupState(self._clock.boot())
        return state

    def failing(self) -> tuple[list[str], int]:
        """The devices that have a group that fails, and how many devices there are."""
        devices = {device for device, _ in self.groups}
        return sorted({device for (device, _), state in self.groups.items() if state.cause is not None}), len(devices)

    def summary(self) -> tuple[bool, str]:
        """For people, in a few words; True: somebody should look."""
        failing, devices = self.failing()
        names = f" ({', '.join(failing[:_NAMED])}{', ...' if len(failing) > _NAMED else ''})" if failing else ""
        return bool(failing), f"{len(failing)} of {devices} devices failing{names}"

    def status(self, device: str, group: str) -> dict[str, Any]:
        """How a group is, for programs; agent/control/answers.py has the keys."""
        state, now = self.groups.get((device, group)), self._clock.boot()
        if state is None:
            return {"name": group}
        return {
            "name": group,
            "state": "ok" if state.cause is None else state.cause.name.lower(),
            "since_s": (now - state.since) / S,
            "last_s": None if state.last is None else (now - state.last) / S,
            "detail": state.detail,
            "frames": state.frames,
            "undecodable": state.undecodable,
            "failures": {cause.name.lower(): count for cause, count in sorted(state.failures.items())},
        }
