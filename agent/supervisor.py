"""The supervisor: acquires every group on its marks, and begins a new term when the plan or the wall clock changes.

Within a term each group has a poller that counts cycles on CLOCK_BOOTTIME. A poller never stops for a failing device:
what it cannot read is a gap with a cause. When a term must end, the pollers finish the acquisition under way (what
takes longer than ``END_WITHIN`` is cut off, so that a dead device does not hold up the others), what fell due meanwhile
is stated, and the next term begins with new anchors (docs/evidence.md sections 4 and 5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, EventCode, Frame, Gap, GroupPlan, Schedule, Value
from agent.ports import Clock, PolledDevice
from agent.timetable import anchor, clock_stepped, due_before, following, latest_due, offset

PREPARE_WITHIN = 3.0  # s: how long the first term waits for devices to say what they are
END_WITHIN = 0.5  # s: how long the end of a term waits for acquisitions under way

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
    over: bool = False
    scopes: dict[anyio.CancelScope, float] = field(default_factory=dict)  # grace in s

    def end(self) -> None:
        """Have all pollers stop: those that sleep now, those that acquire once that is over or ``END_WITHIN`` is."""
        if self.over:
            return  # the grace counts from the first reason to end
        self.over = True
        now = anyio.current_time()
        for scope, grace in self.scopes.items():
            scope.deadline = now + grace

    @contextmanager
    def cut_off(self, *, grace: float) -> Iterator[None]:
        """What is awaited in here is cancelled ``grace`` s after the term's end."""
        with anyio.CancelScope() as scope:
            self.scopes[scope] = grace
            try:
                yield
            finally:
                del self.scopes[scope]


class Supervisor:
    """Runs the pollers of all groups, term after term."""

    def __init__(self, groups: Sequence[PolledGroup], *, sink: Sink, clock: Clock, started: tuple[Value, ...]) -> None:
        """``started``: the details of the start event, which comes behind a run's first plan."""
        self._groups = groups
        self._devices: Mapping[str, PolledDevice] = {group.device.info.id: group.device for group in groups}
        self._sink = sink
        self._clock = clock
        self._started = started
        self._failing: dict[tuple[str, str], Cause] = {}  # by device and group

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
        return f"{len({device for device, _ in self._failing})} of {len(self._devices)}"

    async def _prepare(self) -> None:
        async def prepare(device: PolledDevice) -> None:
            try:
                await device.prepare()
            except AcquisitionError as error:
                for group in self._groups:
                    if group.device is device:
                        self._note(device, group.name, error)

        with anyio.move_on_after(PREPARE_WITHIN):
            async with anyio.create_task_group() as devices:
                for device in self._devices.values():
                    devices.start_soon(prepare, device)

    async def _begin(self, old: _Term | None) -> _Term:
        """Close the old term, if there is one, and begin the next with new anchors for all groups."""
        wall, boot = self._clock.wall(), self._clock.boot()
        schedules, gaps = [], []
        if old is None:
            schedules = [anchor(period=g.period, phase=g.phase, wall=wall, boot=boot) for g in self._groups]
            stepped = False
        else:
            stepped = any(clock_stepped(schedule, wall=wall, boot=boot) for schedule in old.schedules)
            for index, (schedule, covered) in enumerate(zip(old.schedules, old.next, strict=True)):
                new = following(schedule, covered=covered, stepped=stepped, wall=wall, boot=boot)
                closed = due_before(schedule, new.anchor)
                if closed > covered:  # due while other groups' acquisitions under way were waited for, or stepped over
                    cause = Cause.CLOCK_STEP if stepped else Cause.OVERRUN
                    gaps.append(Gap(index, covered, closed - 1, cause))
                schedules.append(new)
        # What the plan says of the devices is read in one go: nothing may change between its parts.
        infos = [device.info for device in self._devices.values()]
        places = {info.id: i for i, info in enumerate(infos)}
        term = _Term(
            schedules,
            {name: device.revision for name, device in self._devices.items()},
            [schedule.first for schedule in schedules],
        )
        plans = [
            GroupPlan(
                group.name, places[group.device.info.id], schedule, schedule.first, group.device.points(group.name)
            )
            for group, schedule in zip(self._groups, schedules, strict=True)
        ]
        for gap in gaps:
            await self._sink.put(gap)
        await self._sink.begin_term(opened=(wall, boot), devices=infos, groups=plans)
        if old is not None and stepped:
            await self._sink.event(EventCode.CLOCK_STEP, boot + offset(old.schedules[0]), wall)
        return term

    async def _poll(self, term: _Term, index: int, group: PolledGroup) -> None:
        """Acquire one group at each of its due times until the term ends.

        Nothing is awaited between waking and acquiring, nor between acquiring and ending a term whose plan changed: a
        sample belongs to the points as they were when its acquisition began, and these are the term's.
        """
        schedule, device = term.schedules[index], group.device
        name = device.info.id
        while await self._sleep_until(term, schedule.due(term.next[index])):
            wall, boot = self._clock.wall(), self._clock.boot()
            if clock_stepped(schedule, wall=wall, boot=boot):
                log.warning("clock stepped group=%s/%s", name, group.name)
                term.end()
                return
            if device.revision != term.revisions[name]:
                term.end()
                return
            missed, cycle = term.next[index], latest_due(schedule, boot)
            item = await self._acquire(term, index, cycle)
            if device.revision != term.revisions[name]:
                log.info("plan changed device=%s", name)
                term.end()
            if missed < cycle:  # the acquisition before took longer than the period
                await self._sink.put(Gap(index, missed, cycle - 1, Cause.OVERRUN))
            await self._sink.put(item)
            term.next[index] = cycle + 1

    async def _acquire(self, term: _Term, index: int, cycle: int) -> Frame | Gap:
        """One cycle of a group: what was read, or why nothing was."""
        group, sample = self._groups[index], None
        try:
            with term.cut_off(grace=END_WITHIN):
                sample = await group.device.acquire(group.name)
        except AcquisitionError as error:
            self._note(group.device, group.name, error)
            return Gap(index, cycle, cycle, error.cause, error.detail)
        if sample is None:
            # No time-out, which would speak of the device: it was the agent that gave this cycle no more time.
            return Gap(index, cycle, cycle, Cause.OVERRUN, "cut off at the end of the term")
        if self._failing:
            self._note(group.device, group.name, None)
        late = max(0, sample.started - term.schedules[index].due(cycle)) // 1000
        took = (sample.ended - sample.started) // 1000
        return Frame(index, cycle, late, took, sample.values, sample.quality)

    async def _sleep_until(self, term: _Term, boot: int) -> bool:
        """Sleep; False if the term ended meanwhile."""
        if not term.over:
            with term.cut_off(grace=0):
                await self._clock.sleep_until(boot)
        return not term.over

    def _note(self, device: PolledDevice, group: str, error: AcquisitionError | None) -> None:
        """One log line per change of a group's state."""
        name = device.info.id
        before = self._failing.get((name, group))
        if error is None and before is not None:
            del self._failing[name, group]
            log.info("device answers again group=%s/%s", name, group)
        elif error is not None and before != error.cause:
            self._failing[name, group] = error.cause
            cause = error.cause.name.lower()
            log.warning("device fails group=%s/%s cause=%s detail=%s", name, group, cause, error.detail)
