"""A term, as pollers and pumps see it: one anchor of cycles to clocks, and the plan that holds meanwhile
(docs/evidence.md sections 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from agent.bus import Bus
from agent.evidence.timetable import clock_stepped, offset
from agent.instant import instant
from agent.listener import Listener
from agent.model import GroupPlan, Schedule
from agent.ports import Clock, EventDevice, PolledDevice

S = 1_000_000_000

Identity = tuple[str | None, str | None, str | None, str | None]
"""Manufacturer, model, serial number, firmware."""


@dataclass(frozen=True, slots=True)
class PolledGroup:
    """A group of a device and how often it is read; ns. ``bus``: the connection that it shares with others."""

    device: PolledDevice
    name: str
    period: int
    phase: int = 0
    bus: Bus = field(default_factory=Bus, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Device id and name: what it is matched by between terms."""
        return self.device.info.id, self.name


class Term:
    """``next[i]``: first cycle of polled group i that is neither put nor stated. Polled groups come first in the plan,
    then those of the listeners.
    """

    def __init__(
        self,
        groups: Sequence[PolledGroup],
        listeners: Sequence[Listener],
        schedules: Sequence[Schedule],
        *,
        opened: tuple[int, int],
        clock: Clock,
        grace: float,
    ) -> None:
        """``grace`` in s: what an acquisition under way gets at the end."""
        self.groups = groups
        self.listeners = listeners
        self.schedules = schedules
        self.opened = opened
        self.next = [schedule.first for schedule in schedules]
        self.over = False
        self._clock = clock
        self._scopes: dict[anyio.CancelScope, float] = {}  # grace in s
        # What the plan says of the devices is read in one go: nothing may change between its parts.
        self._event_groups = [each for listener in listeners for each in listener.groups]
        devices: dict[str, PolledDevice | EventDevice] = {group.device.info.id: group.device for group in groups}
        devices |= {device.info.id: device for device, _ in self._event_groups}
        self.devices = [device.info for device in devices.values()]
        self.revisions = {name: device.revision for name, device in devices.items()}
        keys = [group.key for group in groups] + [(device.info.id, name) for device, name in self._event_groups]
        self.indexes = {key: index for index, key in enumerate(keys)}

    def plans(self) -> list[GroupPlan]:
        """The groups as a plan has them. To be called before anything is awaited."""
        places = {info.id: index for index, info in enumerate(self.devices)}
        polled = [
            GroupPlan(group.name, places[group.key[0]], schedule, schedule.first, group.device.points(group.name))
            for group, schedule in zip(self.groups, self.schedules, strict=True)
        ]
        return polled + [
            GroupPlan(name, places[device.info.id], None, 0, device.points(name)) for device, name in self._event_groups
        ]

    # ---- its end --------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Have all stop: those that sleep now, those that acquire once that is over or its grace is."""
        if self.over:
            return  # the grace counts from the first reason to end
        self.over = True
        now = anyio.current_time()
        for scope, grace in self._scopes.items():
            scope.deadline = now + grace

    @contextmanager
    def cut_off(self, *, grace: float, after: float = math.inf) -> Iterator[anyio.CancelScope]:
        """What is awaited in here is cancelled ``grace`` s after the term's end, or ``after`` s at the latest."""
        with anyio.CancelScope(deadline=anyio.current_time() + (grace if self.over else after)) as scope:
            self._scopes[scope] = grace
            try:
                yield scope
            finally:
                del self._scopes[scope]

    def allow(self, scope: anyio.CancelScope, *, grace: float) -> None:
        """From now on the block of a ``cut_off`` has another grace, as long as the term is not over. Cheaper than a
        block for each thing that is awaited.
        """
        self._scopes[scope] = grace

    async def wait(self, event: anyio.Event, *, until: int | None) -> None:
        """Wait for an event, until a boot time or the end of the term at most."""
        if not self.over:
            with self.cut_off(grace=0, after=math.inf if until is None else (until - self._clock.boot()) / S):
                await event.wait()

    # ---- what the next one asks -----------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Wall minus boot time as the term has it."""
        return offset(self.schedules[0]) if self.schedules else self.opened[0] - self.opened[1]

    def stepped(self, *, wall: int, boot: int) -> bool:
        """Whether the wall clock has left the term; with event-driven groups only, by more than 1 s."""
        if not self.schedules:
            return abs(wall - boot - self.offset) > S
        return any(clock_stepped(schedule, wall=wall, boot=boot) for schedule in self.schedules)

    def look(self) -> None:
        """End the term if the wall clock has left it and no poller will see that."""
        if self.schedules:
            return
        wall, boot = instant(self._clock)
        if self.stepped(wall=wall, boot=boot):
            self.end()

    def identities(self) -> dict[str, Identity]:
        """What devices say of themselves, of those that have said anything."""
        said = {info.id: (info.manufacturer, info.model, info.serial, info.firmware) for info in self.devices}
        return {device: identity for device, identity in said.items() if any(identity)}
