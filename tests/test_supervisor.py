"""The supervisor on virtual time: every cycle is a frame or a gap, whatever devices and clocks do (docs/evidence.md
sections 4 and 5).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from agent.clock_wait import ClockWait
from agent.errors import AcquisitionError
from agent.evidence.coverage import Coverage
from agent.model import (
    Cause,
    ClockQuality,
    ClockState,
    Data,
    DeviceInfo,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Plan,
    Value,
)
from agent.router import Closing, Receipts
from agent.states import States
from agent.supervisor import END_WITHIN, PREPARE_WITHIN, Supervisor
from agent.term import PolledGroup, Term
from tests.fakes import BACKEND, MS, Acquisition, FakeDevice, S, virtual_clock
from tests.runs import FACTS, POINTS, START, FakeClock

pytestmark = pytest.mark.anyio
OTHER_POINTS = (replace(POINTS[0], exponent=1), *POINTS[1:])


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


@pytest.fixture
async def clock() -> FakeClock:
    clock = virtual_clock()
    clock.now = 1000 * S - 300 * MS  # the next mark of a second is 300 ms away
    return clock


class Terms:
    """A sink that holds what it is given against the evidence format's rules, term by term."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.plans: list[Plan] = []
        self.items: list[list[Frame | Gap]] = []
        self.events: list[tuple[int, EventCode, tuple[Value, ...]]] = []
        self.slow: Callable[[], int] = lambda: 0  # ns that the next ``put`` takes
        self.full_until = 0  # boot time
        self.problems: list[str] = []
        self._coverage: Coverage | None = None

    def stuck(self, group: int) -> bool:
        return self.clock.now < self.full_until

    async def room(self, group: int) -> None:
        await self.clock.sleep_until(self.full_until)

    async def put(self, item: Frame | Gap) -> Receipts:
        if wait := self.slow():
            await self.clock.sleep_until(self.clock.now + wait)
        self.items[-1].append(item)
        assert self._coverage is not None
        data = Data(len(self.plans), [item], []) if isinstance(item, Frame) else Data(len(self.plans), [], [item])
        self.problems += self._coverage.add(data)[0]
        return Receipts([])

    async def begin_term(
        self,
        *,
        opened: tuple[int, int],
        devices: Sequence[DeviceInfo],
        groups: Sequence[GroupPlan],
        closing: Sequence[Closing],
    ) -> None:
        stay = {(devices[group.device].id, group.name) for group in groups}
        for each in closing:
            old = self.plans[-1]
            key = (old.devices[old.groups[each.group].device].id, old.groups[each.group].name)
            if (gap := each.gap(each.group, stays=key in stay)) is not None:
                await self.put(gap)
        plan = Plan(
            len(self.plans) + 1,
            opened,
            *(FACTS.boot_id, FACTS.version, FACTS.site, FACTS.labels, FACTS.channel, FACTS.topic, FACTS.configuration),
            tuple(devices),
            tuple(groups),
            None,
            None,
            (),
            False,
            1000,
        )
        if self._coverage is None:
            self._coverage = Coverage(plan)
        else:
            self.problems += self._coverage.change(plan)[0]
        self.plans.append(plan)
        self.items.append([])
        await checkpoint()

    async def event(self, code: EventCode, *details: Value, device: str | None = None) -> None:
        self.events.append((len(self.plans), code, details))

    def brief(self, group: int = 0, term: int = 1) -> list[tuple[int, int, int | None]]:
        """First and last cycle counted from the group's first one, and the cause of gaps."""
        schedule = self.plans[term - 1].groups[group].schedule
        assert schedule is not None
        first = schedule.first
        found: list[tuple[int, int, int | None]] = []
        for item in self.items[term - 1]:
            if item.group == group and isinstance(item, Frame):
                found.append((item.cycle - first, item.cycle - first, None))
            elif item.group == group and isinstance(item, Gap) and item.first is not None and item.last is not None:
                found.append((item.first - first, item.last - first, item.cause))
        return found


@asynccontextmanager
async def running(terms: Terms, *groups: PolledGroup) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(groups, sink=terms, clock=terms.clock, states=States(terms.clock))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        yield supervisor
        tasks.cancel_scope.cancel()
    assert terms.problems == []


def failing(supervisor: Supervisor) -> str:
    devices, total = supervisor.states.failing()
    return f"{len(devices)} of {total}"


def script(*steps: Acquisition) -> Callable[[str], Acquisition]:
    """These acquisitions, then good ones that take 10 ms."""
    left = list(steps)
    return lambda group: left.pop(0) if left else Acquisition(10 * MS)


# ---- due times --------------------------------------------------------------------------------------------------


async def test_groups_are_read_on_the_marks_of_utc(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    groups = [PolledGroup(device, "fast", 500 * MS), PolledGroup(device, "slow", 2 * S, phase=250 * MS)]
    async with running(terms, *groups):
        await clock.sleep_until(1004 * S)
    marks = [(at + clock.offset) % S // MS for at, group in device.acquired if group == "fast"]
    assert marks == [0, 500] * 4 + [0]
    assert [(at + clock.offset) % (2 * S) // MS for at, group in device.acquired if group == "slow"] == [250, 250]
    assert [(plan.groups[0].schedule, plan.opened) for plan in terms.plans] == [
        (terms.plans[0].groups[0].schedule, (clock.offset + 1000 * S - 300 * MS, 1000 * S - 300 * MS))
    ]
    assert terms.brief() == [(n, n, None) for n in range(8)]


async def test_lateness_and_duration_are_of_the_acquisition_itself(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script(Acquisition(20 * MS), Acquisition(30 * MS)))
    acquire = device.acquire

    async def behind_others(group: str) -> Any:
        await clock.sleep_until(clock.now + 40 * MS)  # the wire was busy
        return await acquire(group)

    device.acquire = behind_others  # type: ignore[method-assign]
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1001 * S + 500 * MS)
    frames = [item for item in terms.items[0] if isinstance(item, Frame)]
    assert [(frame.late_us, frame.took_us) for frame in frames] == [(40_000, 20_000), (40_000, 30_000)]


async def test_an_acquisition_that_takes_too_long_costs_the_cycles_before_the_latest(clock: FakeClock) -> None:
    terms = Terms(clock)
    device = FakeDevice(clock, script=script(Acquisition(), Acquisition(3 * S + 200 * MS), Acquisition(S)))
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1006 * S + 500 * MS)
    assert terms.brief() == [
        *((0, 0, None), (1, 1, None)),  # begins at 1001 s, ends at 1004.2 s
        *((2, 3, Cause.OVERRUN), (4, 4, None)),  # the latest is acquired at once; ends at 1005.2 s
        *((5, 5, None), (6, 6, None)),
    ]
    frames = [item for item in terms.items[0] if isinstance(item, Frame)]
    assert [frame.late_us for frame in frames] == [0, 0, 200_000, 200_000, 0]


async def test_exactly_one_period_is_no_overrun(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=lambda group: Acquisition(S))
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1005 * S + 1)
    assert terms.brief() == [(n, n, None) for n in range(5)]


async def test_time_asleep_is_stated(clock: FakeClock) -> None:
    """Boot time and wall clock go on together in a suspend."""
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1001 * S + 500 * MS)
        clock.now += 60 * S
        await clock.sleep_until(1063 * S + 500 * MS)
    assert terms.brief() == [
        *((0, 0, None), (1, 1, None)),
        (2, 60, Cause.OVERRUN),
        *((n, n, None) for n in (61, 62, 63)),
    ]


async def test_a_sink_that_takes_its_time_delays_and_loses_nothing_unstated(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    waits = [0, 2500 * MS, 0, 0]
    terms.slow = lambda: waits.pop(0) if waits else 0
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1005 * S + 500 * MS)
    assert terms.brief() == [
        *((0, 0, None), (1, 1, None)),
        *((2, 2, Cause.OVERRUN), (3, 3, None)),
        *((4, 4, None), (5, 5, None)),
    ]


# ---- failing devices --------------------------------------------------------------------------------------------


async def test_a_failing_device_does_not_disturb_another(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    terms, good = Terms(clock), FakeDevice(clock, "good", script=script())
    bad = FakeDevice(clock, "bad", script=script(*[Acquisition(2500 * MS, Cause.DEVICE_TIMEOUT)] * 3))
    async with running(terms, PolledGroup(good, "ac", S), PolledGroup(bad, "ac", S)) as supervisor:
        await clock.sleep_until(1006 * S + 600 * MS)
        assert failing(supervisor) == "1 of 2"
        await clock.sleep_until(1010 * S + 500 * MS)
        assert failing(supervisor) == "0 of 2"
    assert terms.brief(0) == [(n, n, None) for n in range(11)]
    timeout = Cause.DEVICE_TIMEOUT
    assert terms.brief(1) == [
        *((0, 0, timeout), (1, 1, Cause.OVERRUN), (2, 2, timeout), (3, 4, Cause.OVERRUN), (5, 5, timeout)),
        *((6, 6, Cause.OVERRUN), (7, 7, None), (8, 8, None), (9, 9, None), (10, 10, None)),
    ]
    gap = next(item for item in terms.items[0] if isinstance(item, Gap))
    assert gap.detail == "scripted device_timeout"
    said = [record.message for record in caplog.records if "group=bad/ac" in record.message]
    assert [line.split(" group")[0] for line in said] == ["device fails", "device answers again"]


async def test_a_group_that_fails_beside_one_that_does_not_is_logged_once(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    terms = Terms(clock)
    failed = Acquisition(0, Cause.DEVICE_EXCEPTION)
    device = FakeDevice(clock, script=lambda group: failed if group == "bad" else Acquisition())
    async with running(terms, PolledGroup(device, "good", S), PolledGroup(device, "bad", S)) as supervisor:
        await clock.sleep_until(1010 * S + 500 * MS)
        assert failing(supervisor) == "1 of 1"
    assert len([record for record in caplog.records if "device" in record.message]) == 1


async def test_preparing_is_bounded(clock: FakeClock) -> None:
    terms, begun = Terms(clock), clock.now
    slow, broken = FakeDevice(clock, "slow", script=script()), FakeDevice(clock, "broken", script=script())
    slow.preparing = lambda: 1e6

    def fails() -> float:
        raise AcquisitionError(Cause.LINK_DOWN, "refused")

    broken.preparing = fails
    async with running(terms, PolledGroup(slow, "ac", S), PolledGroup(broken, "ac", S)) as supervisor:
        await clock.sleep_until(begun + 2 * S)
        assert terms.plans == []
        assert failing(supervisor) == "1 of 2"
        await clock.sleep_until(begun + 6 * S)
        assert failing(supervisor) == "0 of 2"
    assert terms.plans[0].opened[1] == begun + int(PREPARE_WITHIN * S)
    assert len(terms.brief(0)) == len(terms.brief(1)) == 3


# ---- terms ------------------------------------------------------------------------------------------------------


async def test_a_plan_change_begins_a_term_after_the_acquisitions_under_way(clock: FakeClock) -> None:
    terms = Terms(clock)
    changing = FakeDevice(
        clock, "a", script=script(Acquisition(), Acquisition(100 * MS, new_points=OTHER_POINTS), Acquisition())
    )
    busy = FakeDevice(clock, "b", script=script(Acquisition(), Acquisition(550 * MS)))
    async with running(terms, PolledGroup(changing, "ac", 250 * MS), PolledGroup(busy, "ac", 250 * MS)):
        await clock.sleep_until(1001 * S + 50 * MS)
    assert [plan.devices[0].id for plan in terms.plans] == ["a", "a"]
    assert [plan.groups[0].points for plan in terms.plans] == [POINTS, OTHER_POINTS]
    assert terms.plans[1].opened[1] == 1000 * S + 550 * MS
    assert terms.brief(0) == [(0, 0, None), (1, 1, None), (2, 3, Cause.OVERRUN)]
    assert terms.brief(1) == [(0, 0, None), (1, 1, None), (2, 3, Cause.OVERRUN)]
    schedules = [plan.groups[0].schedule for plan in terms.plans]
    assert schedules[0] is not None
    assert schedules[1] == replace(schedules[0], first=schedules[0].first + 4, anchor=1000 * S + 750 * MS)
    assert terms.brief(0, term=2) == terms.brief(1, term=2) == [(0, 0, None), (1, 1, None)]


@pytest.mark.parametrize("change", ["plan", "clock"])
async def test_a_dead_device_does_not_hold_up_the_end_of_a_term(clock: FakeClock, change: str) -> None:
    terms = Terms(clock)
    good = FakeDevice(clock, "good", script=script())
    dead = FakeDevice(clock, "dead", script=lambda group: Acquisition(60 * S, Cause.DEVICE_TIMEOUT))
    async with running(terms, PolledGroup(good, "ac", S), PolledGroup(dead, "ac", S)):
        await clock.sleep_until(1000 * S + 500 * MS)
        if change == "plan":
            good.change(OTHER_POINTS)
        else:
            clock.offset += 3600 * S
        await clock.sleep_until(1005 * S + 500 * MS)
    assert terms.plans[1].opened[1] == 1001 * S + int(END_WITHIN * S)
    assert terms.brief(0)[0] == (0, 0, None)
    assert terms.brief(1)[0] == (0, 0, Cause.OVERRUN)
    (gap,) = [item for item in terms.items[0] if isinstance(item, Gap) and item.detail]
    assert (gap.group, gap.detail) == (1, "cut off at the end of the term")
    assert terms.brief(0, term=2) == [(n, n, None) for n in range(4)], "read again from 1002 s on"
    assert [at for at, _ in dead.acquired] == [1000 * S, 1002 * S]


async def test_a_second_reason_to_end_a_term_does_not_prolong_it(clock: FakeClock) -> None:
    terms = Terms(clock)
    changing = [
        FakeDevice(clock, name, script=script(Acquisition(took * MS, new_points=OTHER_POINTS)))
        for name, took in (("a", 100), ("b", 400))
    ]
    dead = FakeDevice(clock, "dead", script=lambda group: Acquisition(60 * S, Cause.DEVICE_TIMEOUT))
    async with running(terms, *(PolledGroup(device, "ac", S) for device in (*changing, dead))):
        await clock.sleep_until(1001 * S + 500 * MS)
    assert terms.plans[1].opened[1] == 1000 * S + 100 * MS + int(END_WITHIN * S)
    assert terms.brief(0) == terms.brief(1) == [(0, 0, None)]


async def test_a_sample_that_the_sink_does_not_take_yet_is_not_cut_off(clock: FakeClock) -> None:
    terms = Terms(clock)
    changing = FakeDevice(clock, "a", script=script(Acquisition(100 * MS, new_points=OTHER_POINTS)))
    other = FakeDevice(clock, "b", script=script(Acquisition(50 * MS)))
    waits = [3 * S]  # from 1000.05 s on; the term ends at 1000.1 s
    terms.slow = lambda: waits.pop(0) if waits else 0
    async with running(terms, PolledGroup(changing, "ac", S), PolledGroup(other, "ac", S)):
        await clock.sleep_until(1004 * S + 500 * MS)
    assert terms.plans[1].opened[1] == 1003 * S + 50 * MS
    assert terms.brief(1) == [(0, 0, None), (1, 3, Cause.OVERRUN)]


async def test_while_channels_are_full_readings_wait_and_cycles_are_stated(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    terms.full_until = 1003 * S + 200 * MS
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1005 * S + 500 * MS)
    assert terms.brief() == [(0, 0, None), (1, 2, Cause.OVERRUN), (3, 3, None), (4, 4, None), (5, 5, None)]


async def test_a_full_channel_does_not_hold_up_the_end_of_a_term(clock: FakeClock) -> None:
    """What there was no room for is stated, not put."""
    terms = Terms(clock)
    changing = FakeDevice(clock, "a", script=script(Acquisition(100 * MS, new_points=OTHER_POINTS)))
    other = FakeDevice(clock, "b", script=script(Acquisition(50 * MS)))
    terms.full_until = 1010 * S
    async with running(terms, PolledGroup(changing, "ac", S), PolledGroup(other, "ac", S)):
        await clock.sleep_until(1002 * S)
    assert terms.plans[1].opened[1] == 1000 * S + 100 * MS
    assert terms.brief(0) == terms.brief(1) == [(0, 0, Cause.OVERRUN)]


async def test_being_held_up_between_two_looks_at_the_clocks_is_no_step_of_one(clock: FakeClock) -> None:
    terms, device, held_up = Terms(clock), FakeDevice(clock, script=script()), list[int]()
    wall = clock.wall

    def look() -> int:
        now = wall()
        if clock.now > 1001 * S and len(held_up) < 3:
            held_up.append(clock.now)
            clock.now += 20 * MS
        return now

    clock.wall = look  # type: ignore[method-assign]
    async with running(terms, PolledGroup(device, "ac", 100 * MS)):
        await clock.sleep_until(1003 * S + 50 * MS)
    assert len(held_up) == 3
    assert len(terms.plans) == 1


@pytest.mark.parametrize("drift", [-4 * MS, -MS, -1000, 0, 1000, MS, 4 * MS])
@pytest.mark.parametrize("took", [0, 100 * 1000, 2 * MS])
async def test_drift_of_the_clocks_neither_makes_nor_loses_a_cycle(clock: FakeClock, drift: int, took: int) -> None:
    terms = Terms(clock)
    device = FakeDevice(clock, script=script(Acquisition(), Acquisition(took, new_points=OTHER_POINTS)))
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1000 * S + 500 * MS)
        clock.offset += drift
        await clock.sleep_until(1003 * S + 500 * MS)
    assert len(terms.plans) == 2
    assert terms.brief(0) == [(0, 0, None), (1, 1, None)]
    assert terms.brief(0, term=2) == [(0, 0, None), (1, 1, None)]
    assert [at for at, _ in device.acquired] == [1000 * S, 1001 * S, 1002 * S, 1003 * S]


async def test_a_device_that_changed_by_itself_is_not_read_under_the_old_plan(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1001 * S + 500 * MS)
        device.change(OTHER_POINTS)
        await clock.sleep_until(1004 * S + 500 * MS)
    assert [len(frames) for frames in terms.items] == [2, 3]
    assert terms.plans[1].groups[0].points == OTHER_POINTS
    assert terms.brief(0, term=2) == [(0, 0, None), (1, 1, None), (2, 2, None)]


async def test_a_device_that_says_it_is_another_one_is_an_event_behind_a_new_plan(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    first = DeviceInfo("pv-1", "fake", None, "EdgeWorks", "PV-25K", "SIM-1", None)
    other, nobody = replace(first, serial="SIM-2"), DeviceInfo("pv-1", "fake")
    async with running(terms, PolledGroup(device, "ac", S)):
        for wait, info in (
            (1001, first),
            (1003, replace(first, asset="urn:x")),
            (1005, nobody),
            (1007, other),
        ):
            await clock.sleep_until(wait * S + 500 * MS)
            device.become(info)
        await clock.sleep_until(1010 * S)
    assert [plan.devices[0].serial for plan in terms.plans] == [None, "SIM-1", "SIM-1", None, "SIM-2"]
    assert terms.events == [
        (
            5,
            EventCode.DEVICE_IDENTITY_CHANGED,
            ("pv-1", "EdgeWorks / PV-25K / SIM-1 / ?", "EdgeWorks / PV-25K / SIM-2 / ?"),
        )
    ], "not when it is first known, nor when it was not asked yet"


async def test_no_acquisition_begins_under_the_old_plan_while_the_sink_is_busy(clock: FakeClock) -> None:
    """The device changed, and the sink does not take the sample yet: another group of it must not be read meanwhile."""
    terms = Terms(clock)
    changes = [Acquisition(), Acquisition(50 * MS, new_points=OTHER_POINTS)]
    device = FakeDevice(
        clock, script=lambda group: changes.pop(0) if group == "a" and changes else Acquisition(10 * MS)
    )
    groups = [PolledGroup(device, "a", S), PolledGroup(device, "b", S, phase=500 * MS)]
    async with running(terms, *groups):
        await clock.sleep_until(1001 * S + 10 * MS)
        waits = [3 * S]
        terms.slow = lambda: waits.pop(0) if waits else 0
        await clock.sleep_until(1006 * S)
    changed = 1001 * S + 50 * MS
    opened = terms.plans[1].opened[1]
    assert opened == 1004 * S + 50 * MS
    assert [at for at, _ in device.acquired if changed < at < opened] == []


async def test_a_sample_whose_points_changed_under_way_is_a_gap(clock: FakeClock) -> None:
    terms = Terms(clock)
    device = FakeDevice(
        clock,
        script=lambda group: (
            Acquisition(300 * MS) if group == "b" or device.revision else Acquisition(50 * MS, new_points=OTHER_POINTS)
        ),
    )
    async with running(terms, PolledGroup(device, "a", S), PolledGroup(device, "b", S)):
        await clock.sleep_until(1002 * S + 900 * MS)
    assert terms.brief(0) == [(0, 0, None)]
    assert terms.brief(1) == [(0, 0, Cause.DECODE_ERROR)]
    assert terms.brief(0, term=2) == terms.brief(1, term=2) == [(0, 0, None), (1, 1, None)]


@pytest.mark.parametrize(
    ("step", "closing", "first"),
    [
        (3600 * S, [], 3602),
        (3600 * S + 400 * MS, [(2, 2, Cause.CLOCK_STEP)], 3603),
        (-3600 * S, [], -3598),
        (-10 * S - 600 * MS, [(2, 2, Cause.CLOCK_STEP)], -8),
        (60 * MS, [(2, 2, Cause.CLOCK_STEP)], 3),
        (-60 * MS, [(2, 2, Cause.CLOCK_STEP)], 2),
    ],
)
async def test_a_step_of_the_wall_clock_begins_a_term_on_the_new_marks(
    clock: FakeClock, step: int, closing: list[Any], first: int
) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1001 * S + 500 * MS)
        clock.offset += step
        await clock.sleep_until(1006 * S + 500 * MS)
    assert len(terms.plans) == 2
    assert terms.brief(0) == [(0, 0, None), (1, 1, None), *closing]
    old, new = (plan.groups[0].schedule for plan in terms.plans)
    assert old is not None
    assert new is not None
    assert 1002 * S <= new.anchor < 1003 * S
    assert all((at + clock.offset) % S == 0 for at, _ in device.acquired[2:]), "read on the marks of the stepped clock"
    assert new.first - old.first == first
    assert terms.brief(0, term=2)[:3] == [(0, 0, None), (1, 1, None), (2, 2, None)]
    ((term, code, (before, after)),) = [event for event in terms.events if event[1] is EventCode.CLOCK_STEP]
    assert (term, code) == (2, EventCode.CLOCK_STEP)
    assert isinstance(after, int)
    assert isinstance(before, int)
    assert after - before == step


async def test_a_step_within_the_tolerance_of_the_period_is_none(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    async with running(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1001 * S + 500 * MS)
        clock.offset += 50 * MS
        await clock.sleep_until(1003 * S + 500 * MS)
    assert len(terms.plans) == 1
    assert terms.brief() == [(n, n, None) for n in range(4)]


async def test_the_group_with_the_shortest_period_finds_a_step_for_all(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    groups = [PolledGroup(device, "minute", 60 * S), PolledGroup(device, "ac", S)]
    async with running(terms, *groups):
        await clock.sleep_until(1001 * S + 500 * MS)
        clock.offset += 200 * MS
        await clock.sleep_until(1063 * S)
    assert len(terms.plans) == 2
    assert [(at + clock.offset) % (60 * S) for at, group in device.acquired if group == "minute"][-1] == 0


# ---- the wait for the clock ---------------------------------------------------------------------------------------

UNSYNCHRONISED = ClockQuality(ClockState.NOT_SYNCHRONISED)


@asynccontextmanager
async def waiting(terms: Terms, *groups: PolledGroup) -> AsyncIterator[Supervisor]:
    """A supervisor that waits for 60 s at most for a clock that is not synchronised."""
    terms.clock.good = UNSYNCHRONISED
    wait = ClockWait(terms.clock, at_most=60 * S)
    states = States(terms.clock)
    supervisor = Supervisor(groups, sink=terms, clock=terms.clock, states=states, clock_wait=wait)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        yield supervisor
        tasks.cancel_scope.cancel()
    assert terms.problems == []


async def test_nothing_is_asked_and_no_term_begins_until_the_clock_is_good(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    prepared = []

    def preparing() -> float:
        prepared.append(clock.now)
        return 0.01

    device.preparing = preparing
    clock.offset = -clock.now + 10 * S  # 1970
    async with waiting(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1020 * S)
        assert (terms.plans, device.acquired, prepared) == ([], [], [])
        clock.offset, clock.good = START, ClockQuality(ClockState.SYNCHRONISED, 7)
        await clock.sleep_until(1023 * S + 500 * MS)
    assert len(prepared) == 1
    assert len(terms.plans) == 1, "one term, on the marks of the right clock"
    assert terms.plans[0].opened[0] - terms.plans[0].opened[1] == START
    assert terms.brief() == [(0, 0, None), (1, 1, None), (2, 2, None)]
    assert terms.events == []


async def test_a_clock_that_stays_bad_is_waited_for_once(clock: FakeClock) -> None:
    terms, device = Terms(clock), FakeDevice(clock, script=script())
    began = clock.now
    async with waiting(terms, PolledGroup(device, "ac", S)):
        await clock.sleep_until(1062 * S + 500 * MS)
        device.change(OTHER_POINTS)
        await clock.sleep_until(1064 * S + 500 * MS)
    assert terms.plans[0].opened[1] == began + 60 * S
    assert len(terms.plans) == 2
    assert [at for at, _ in device.acquired] == [second * S for second in (1060, 1061, 1062, 1063, 1064)]


async def test_who_pauses_meanwhile_waits_for_nothing(clock: FakeClock) -> None:
    """A reload, which may even end the wait."""
    terms = Terms(clock)
    old, new = FakeDevice(clock, "old", script=script()), FakeDevice(clock, "new", script=script())
    async with waiting(terms, PolledGroup(old, "ac", S)) as supervisor:
        await clock.sleep_until(1005 * S)
        for device in (old, new):
            began = clock.now
            async with supervisor.paused():
                supervisor.groups = [PolledGroup(device, "ac", S)]
            assert clock.now == began
        assert terms.plans == []
        async with supervisor.paused():
            clock.good = ClockQuality(ClockState.SYNCHRONISED, 7)
            await clock.sleep_until(clock.now + 5 * S)  # the wait is over, and what is acquired is still being changed
            assert terms.plans == []
            assert new.acquired == []
        await clock.sleep_until(clock.now + 3 * S)
        async with supervisor.paused():  # as ever: the next term has begun behind it
            pass
        assert len(terms.plans) == 2
    assert old.acquired == []
    assert [plan.devices[0].id for plan in terms.plans] == ["new", "new"]
    assert set(supervisor.states.groups) == {("new", "ac")}


async def test_what_waits_for_room_when_its_term_is_over_waits_no_more(clock: FakeClock) -> None:
    term = Term([], [], [], opened=(clock.wall(), clock.boot()), clock=clock, grace=0.5)
    term.end()
    with anyio.fail_after(1):
        with term.cut_off(grace=0):
            await anyio.sleep_forever()
