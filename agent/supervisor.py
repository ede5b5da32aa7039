"""The supervisor: acquires every group on its marks, and begins a new term when the plan or the wall clock changes.

Within a term each group has a poller that counts cycles on CLOCK_BOOTTIME. A poller never stops for a failing device:
what it cannot read is a gap with a cause. When a term must end, the pollers finish the acquisition under way, what
fell due meanwhile is stated, and the next term begins with new anchors (docs/evidence.md sections 4 and 5).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import anyio

from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, EventCode, Frame, Gap, GroupPlan, Schedule, Value
from agent.ports import Clock, PolledDevice
from agent.timetable import anchor, clock_stepped, due_before, latest_due

PREPARE_WITHIN = 3.0  # s: how long the first term waits for devices to say what they are
_SAME_GRID = 1_000_000  # ns: anchors this close are one grid; the two clocks cannot be read at one instant

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where frames, gaps and terms go: the batcher."""

    async def put(self, item: Frame | Gap) -> object:
        """Accept a frame or gap of the term in force."""

    async def begin_term(
        self, *, opened: tuple[int, int], devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
    ) -> None:
        """End the term in force and begin the next."""

    async def event(self, code: EventCode, *details: Value) -> None:
        """Record an event."""


@dataclass(frozen=True, slots=True)
class PolledGroup:
    """A group of a device and how often it is read; ns."""

    device: PolledDevice
    name: str
    period: int
    phase: int = 0


@dataclass(slots=True)
class _Term:
    """The term in force, as the pollers see it. ``next[i]``: first cycle of group i that is neither put nor stated."""

    schedules: list[Schedule]
    revisions: dict[str, int]
    next: list[int]
    ended_by: Cause | None = None
    sleepers: set[anyio.CancelScope] = field(default_factory=set)

    def end(self, cause: Cause) -> None:
        """Have all pollers stop once their acquisition under way is over."""
        if self.ended_by is None:
            self.ended_by = cause
            for sleeper in self.sleepers:
                sleeper.cancel()


class Supervisor:
    """Runs the pollers of all groups, term after term."""

    def __init__(self, groups: Sequence[PolledGroup], *, sink: Sink, clock: Clock, started: tuple[Value, ...]) -> None:
        """``started``: the details of the start event, the second record of a run."""
        self._groups = groups
        self._devices: Mapping[str, PolledDevice] = {group.device.info.id: group.device for group in groups}
        self._sink = sink
        self._clock = clock
        self._started = started
        self._failing: dict[str, Cause] = {}

    async def run(self) -> None:
        """Prepare the devices, then acquire until cancelled."""
        await self._prepare()
        term = await self._begin(None)
        await self._sink.event(EventCode.START, *self._started)
        while True:
            async with anyio.create_task_group() as pollers:
                for index, group in enumerate(self._groups):
                    pollers.start_soon(self._poll, term, index, group)
            term = await self._begin(term)

    def failing_devices(self) -> str:
        """How many of all, for people."""
        return f"{len(self._failing)} of {len(self._devices)}"

    async def _prepare(self) -> None:
        async def prepare(device: PolledDevice) -> None:
            try:
                await device.prepare()
            except AcquisitionError as error:
                self._note(device, error)

        with anyio.move_on_after(PREPARE_WITHIN):
            async with anyio.create_task_group() as devices:
                for device in self._devices.values():
                    devices.start_soon(prepare, device)

    async def _begin(self, old: _Term | None) -> _Term:
        """Close the old term, if there is one, and begin the next with new anchors for all groups."""
        wall, boot = self._clock.wall(), self._clock.boot()
        infos = [device.info for device in self._devices.values()]
        places = {info.id: i for i, info in enumerate(infos)}
        schedules = []
        for index, group in enumerate(self._groups):
            schedule = anchor(period=group.period, phase=group.phase, wall=wall, boot=boot)
            if old is not None:
                schedule = _kept(old.schedules[index], schedule)
                closes = due_before(old.schedules[index], schedule.anchor)
                if closes > old.next[index]:
                    await self._sink.put(Gap(index, old.next[index], closes - 1, old.ended_by or Cause.CLOCK_STEP))
            schedules.append(schedule)
        revisions = {name: device.revision for name, device in self._devices.items()}
        plans = [
            GroupPlan(
                group.name, places[group.device.info.id], schedule, schedule.first, group.device.points(group.name)
            )
            for group, schedule in zip(self._groups, schedules, strict=True)
        ]
        await self._sink.begin_term(opened=(wall, boot), devices=infos, groups=plans)
        return _Term(schedules, revisions, [schedule.first for schedule in schedules])

    async def _poll(self, term: _Term, index: int, group: PolledGroup) -> None:
        """Acquire one group at each of its due times until the term ends."""
        schedule, device = term.schedules[index], group.device
        name = device.info.id
        while await self._sleep_until(term, schedule.due(term.next[index])):
            cycle, boot = term.next[index], self._clock.boot()
            if clock_stepped(schedule, cycle=cycle, wall=self._clock.wall(), boot=boot):
                log.warning("clock stepped group=%s/%s", name, group.name)
                term.end(Cause.CLOCK_STEP)
                return
            latest = latest_due(schedule, boot)
            if latest > cycle:  # the acquisition before took longer than the period
                await self._sink.put(Gap(index, cycle, latest - 1, Cause.OVERRUN))
                cycle = latest
            try:
                sample = await device.acquire(group.name)
            except AcquisitionError as error:
                self._note(device, error)
                await self._sink.put(Gap(index, cycle, cycle, error.cause, error.detail))
            else:
                if name in self._failing:
                    self._note(device, None)
                late = max(0, sample.started - schedule.due(cycle)) // 1000
                took = (sample.ended - sample.started) // 1000
                await self._sink.put(Frame(index, cycle, late, took, sample.values, sample.quality))
            term.next[index] = cycle + 1
            if device.revision != term.revisions[name]:
                log.info("plan changed device=%s", name)
                term.end(Cause.OVERRUN)

    async def _sleep_until(self, term: _Term, boot: int) -> bool:
        """Sleep; False if the term ended meanwhile."""
        if term.ended_by is None:
            with anyio.CancelScope() as sleeper:
                term.sleepers.add(sleeper)
                try:
                    await self._clock.sleep_until(boot)
                finally:
                    term.sleepers.discard(sleeper)
        return term.ended_by is None

    def _note(self, device: PolledDevice, error: AcquisitionError | None) -> None:
        """One log line per change of a device's state."""
        name = device.info.id
        if error is None:
            del self._failing[name]
            log.info("device answers again device=%s", name)
        elif self._failing.get(name) != error.cause:
            self._failing[name] = error.cause
            log.warning("device fails device=%s cause=%s detail=%s", name, error.cause.name.lower(), error.detail)


def _kept(old: Schedule, new: Schedule) -> Schedule:
    """The new schedule on the old grid if the wall clock did not step: else reading jitter would make or lose a
    cycle.
    """
    due = old.due(new.first)
    if (old.period, old.phase) == (new.period, new.phase) and abs(due - new.anchor) < _SAME_GRID:
        return replace(new, anchor=due)
    return new
