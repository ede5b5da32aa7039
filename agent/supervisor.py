"""The supervisor: has every group acquired, and begins a new term when the plan or the wall clock changes.

Within a term each polled group has a poller that counts cycles on CLOCK_BOOTTIME, and each listener pumps what its
source sent. A poller never stops for a failing device: what it cannot read is a gap with a cause. When a term must
end, the pollers finish the acquisition under way (what takes longer than ``END_WITHIN`` is cut off, so that a dead
device does not hold up the others), what fell due meanwhile is stated, and the next term begins with new anchors
(docs/evidence.md sections 4 and 5). ``paused`` is the time between two terms, in which what is acquired may change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from agent.clock_wait import ClockWait
from agent.errors import AcquisitionError
from agent.evidence.timetable import anchor, clock_stepped, due_before, following, latest_due
from agent.heartbeat import WITHIN, Heartbeat, Vitals
from agent.instant import instant
from agent.listener import Listener
from agent.model import Cause, DeviceInfo, EventCode, Frame, Gap, GroupPlan, Value
from agent.ports import Clock, PolledDevice
from agent.router import Closing, Receipts
from agent.states import States
from agent.term import Identity, PolledGroup, Term

PREPARE_WITHIN = 3.0  # s: how long the first term waits for devices to say what they are
END_WITHIN = 0.5  # s: how long the end of a term waits for acquisitions under way

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where frames, gaps and terms go: the router."""

    def stuck(self, group: int) -> bool:
        """Whether a channel that takes the group is full for want of acknowledgements."""

    async def room(self, group: int) -> None:
        """Return once none is."""

    async def put(self, item: Frame | Gap) -> Receipts:
        """Accept a frame or gap of the term in force."""

    async def begin_term(
        self,
        *,
        opened: tuple[int, int],
        devices: Sequence[DeviceInfo],
        groups: Sequence[GroupPlan],
        closing: Sequence[Closing],
    ) -> None:
        """Close the term in force and begin the next."""

    async def event(self, code: EventCode, *details: Value, device: str | None = None) -> None:
        """Record an event, of a device where it is said."""


class Supervisor:
    """Runs pollers and pumps, term after term. ``groups`` and ``listeners`` are changed while ``paused`` only."""

    def __init__(
        self,
        groups: Sequence[PolledGroup],
        listeners: Sequence[Listener] = (),
        *,
        sink: Sink,
        clock: Clock,
        states: States,
        clock_wait: ClockWait | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        """``clock_wait``: what the first reading waits for. ``vitals``: where pollers are watched."""
        self.groups = groups
        self.listeners = listeners
        self._sink = sink
        self._clock = clock
        self.states = states
        self._clock_wait = clock_wait
        self._vitals = vitals or Vitals()
        self.clock_steps = 0  # of the wall clock, each with a term of its own
        self._idle = False  # nothing is acquired yet, and no term is about to begin
        self._term: Term | None = None
        self._identities: dict[str, Identity] = {}  # as last said; a device that was not asked yet has said nothing
        self._resume = anyio.Event()
        self._resume.set()
        self._quiet = anyio.Event()  # nothing is acquired, and it waits for ``_resume``
        self._begun = anyio.Event()

    async def run(self) -> None:
        """Wait for the clock, prepare the devices, then acquire until cancelled."""
        self._know()
        if self._clock_wait is not None:
            self._idle = True
            self._quiet.set()  # who pauses meanwhile does not wait for the clock
            await self._clock_wait.over()
            await self._resumed()
            self._idle = False
        await self._prepare()
        while True:
            self._quiet.set()
            await self._resumed()
            term = await self._begin(self._term)
            self._begun.set()
            if not self._resume.is_set():  # paused meanwhile
                term.end()
            async with anyio.create_task_group() as tasks:
                for index, group in enumerate(term.groups):
                    tasks.start_soon(self._poll, term, index, group)
                for listener in term.listeners:
                    tasks.start_soon(listener.pump, term)

    async def _resumed(self) -> None:
        """Return once nobody pauses, with what is to be acquired then."""
        while not self._resume.is_set():  # asked again behind each wait: somebody may have paused anew
            await self._resume.wait()
        self._quiet = anyio.Event()
        self._know()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """The term in force ends, and the next one begins behind this block with what ``groups`` and ``listeners`` are
        then. Before the first term it waits for none: that begins when the clock allows it.
        """
        self._resume = anyio.Event()
        try:
            if self._term is not None:
                self._term.end()
            await self._quiet.wait()
            yield
        finally:
            self._begun = anyio.Event()
            self._resume.set()
        if not self._idle:
            await self._begun.wait()

    async def conclude(self, listeners: Sequence[Listener] | None = None) -> None:
        """Have listeners, all if none are named, state what lasts; nothing may be acquired any more."""
        if self._term is not None:
            for listener in self._term.listeners if listeners is None else listeners:
                await listener.conclude(self._term)

    def _know(self) -> None:
        polled = {(group.device.info.id, group.name) for group in self.groups}
        self.states.keep(polled | {(d.info.id, name) for each in self.listeners for d, name in each.groups})

    async def _prepare(self) -> None:
        async def prepare(device: PolledDevice) -> None:
            try:
                await device.prepare()
            except AcquisitionError as error:
                for group in self.groups:
                    if group.device is device:
                        self.states.failed(device.info.id, group.name, error.cause, error.detail)

        beat = Heartbeat("what devices say of themselves")
        beat.due = self._clock.boot() + WITHIN
        with self._vitals.watching(beat), anyio.move_on_after(PREPARE_WITHIN):
            async with anyio.create_task_group() as tasks:
                for device in {id(group.device): group.device for group in self.groups}.values():
                    tasks.start_soon(prepare, device)

    # ---- terms ----------------------------------------------------------------------------------------------

    async def _begin(self, old: Term | None) -> Term:
        """Close the old term, if there is one, and begin the next with new anchors for all groups."""
        standing = [] if old is None else list(zip(old.groups, old.schedules, old.next, strict=True))
        wall, boot = instant(self._clock)
        # Not at the very instant of a mark that was read: a group that goes is closed up to here, and no further.
        ahead = max([0, *(schedule.due(covered - 1) + 1 - boot for _, schedule, covered in standing)])
        wall, boot = wall + ahead, boot + ahead
        stepped = old is not None and old.stepped(wall=wall, boot=boot)
        schedules = [anchor(period=g.period, phase=g.phase, wall=wall, boot=boot) for g in self.groups]
        places = {group.key: index for index, group in enumerate(self.groups)}
        closing = []
        for index, (group, schedule, covered) in enumerate(standing):
            goes = stays = due_before(schedule, boot)
            if (place := places.get(group.key)) is not None:
                marks = {"period": self.groups[place].period, "phase": self.groups[place].phase}
                new = following(schedule, covered=covered, stepped=stepped, wall=wall, boot=boot, **marks)
                schedules[place] = new
                stays = due_before(schedule, new.anchor)
            # due while other groups' acquisitions under way were waited for, or stepped over
            cause = Cause.CLOCK_STEP if stepped else Cause.OVERRUN
            closing.append(Closing(index, covered, stays, goes, cause))
        term = Term(self.groups, self.listeners, schedules, opened=(wall, boot), clock=self._clock, grace=END_WITHIN)
        with anyio.CancelScope(shield=True):  # sink and supervisor must be in the same term, also when it ends here
            await self._sink.begin_term(opened=term.opened, devices=term.devices, groups=term.plans(), closing=closing)
            self._term = term
        if old is not None and stepped:
            self.clock_steps += 1
            await self._sink.event(EventCode.CLOCK_STEP, boot + old.offset, wall)
        for device, identity in term.identities().items():
            before = self._identities.get(device, identity)
            self._identities[device] = identity
            if before != identity:
                said = _said(before, identity)
                log.warning("device says it is another one device=%s before=%s now=%s", device, *said)
                await self._sink.event(EventCode.DEVICE_IDENTITY_CHANGED, device, *said, device=device)
        return term

    # ---- polling --------------------------------------------------------------------------------------------

    async def _poll(self, term: Term, index: int, group: PolledGroup) -> None:
        """Acquire one group at each of its due times until the term ends.

        Nothing is awaited between waking and acquiring, nor between acquiring and ending a term whose plan changed: a
        sample belongs to the points as they were when its acquisition began, and these are the term's.
        """
        schedule, device = term.schedules[index], group.device
        name = device.info.id
        item: Frame | Gap | None = None
        cycle = 0
        beat = Heartbeat(f"poller of {name}/{group.name}")
        with self._vitals.watching(beat), term.cut_off(grace=0) as scope:
            while not term.over:
                term.allow(scope, grace=0)
                due = schedule.due(term.next[index])
                beat.due = due + WITHIN
                await self._clock.sleep_until(due)
                wall, boot = instant(self._clock)
                if clock_stepped(schedule, wall=wall, boot=boot):
                    log.warning("clock stepped group=%s/%s", name, group.name)
                    term.end()
                    return
                if device.revision != term.revisions[name]:
                    term.end()
                    return
                cycle = latest_due(schedule, boot)
                # No time-out, which would speak of the device: it is the agent that gives this cycle no more time.
                item = Gap(index, cycle, cycle, Cause.OVERRUN, "cut off at the end of the term")
                term.allow(scope, grace=END_WITHIN)
                beat.due = boot + group.bus.within
                group.bus.begin(boot)
                try:
                    item = await self._acquire(term, index, cycle)
                finally:
                    group.bus.end(self._clock.boot())
                    beat.due = None  # what follows waits for channels
                if device.revision != term.revisions[name]:
                    log.info("plan changed device=%s", name)
                    term.end()
                if term.over:
                    break
                term.allow(scope, grace=math.inf)
                await self._put(term, index, cycle, item)
                item = None
        if item is not None:  # the term ended meanwhile
            await self._put(term, index, cycle, item)

    async def _put(self, term: Term, index: int, cycle: int, item: Frame | Gap) -> None:
        """Hand on one cycle of a group, and state those that were missed before it; waits until the group's channels
        are not full. What there is no room for until the term ends is stated by the next one.
        """
        while self._sink.stuck(index):
            with term.cut_off(grace=0):
                await self._sink.room(index)
            if term.over and self._sink.stuck(index):
                return
        missed = term.next[index]
        if missed < cycle:  # the acquisition before took longer than the period
            await self._sink.put(Gap(index, missed, cycle - 1, Cause.OVERRUN))
        await self._sink.put(item)
        term.next[index] = cycle + 1

    async def _acquire(self, term: Term, index: int, cycle: int) -> Frame | Gap:
        """One cycle of a group: what was read, or why nothing was."""
        group = term.groups[index]
        name = group.device.info.id
        try:
            sample = await group.device.acquire(group.name)
        except AcquisitionError as error:
            self.states.failed(name, group.name, error.cause, error.detail)
            return Gap(index, cycle, cycle, error.cause, error.detail)
        self.states.good(name, group.name)
        late = max(0, sample.started - term.schedules[index].due(cycle)) // 1000
        group.bus.late.observe(late / 1e6)
        took = (sample.ended - sample.started) // 1000
        return Frame(index, cycle, late, took, sample.values, sample.quality, sample.source_time)


def _said(*identities: Identity) -> list[str]:
    """What a device says of itself, as one text each."""
    return [" / ".join(each or "?" for each in identity) for identity in identities]
