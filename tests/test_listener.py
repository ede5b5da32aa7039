"""The listener with supervisor, router, batcher and sealer on virtual time: every message is a frame or a gap, is
acknowledged when it is on disk, and when none came is stated (docs/evidence.md sections 4 and 5).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from agent.evidence.history import History
from agent.listener import Listener
from agent.model import Cause, Data, Event, EventCode, Frame, Gap, Plan, Quality, Record
from agent.router import Route, Router
from agent.sealing.batcher import Batcher
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from agent.states import States
from agent.supervisor import Supervisor
from agent.term import PolledGroup
from agent.verifier import Verifier
from tests.event_fakes import FakeEventDevice, FakeSource
from tests.fakes import BACKEND, MS, FakeDevice, FakeStore, S, virtual_clock
from tests.runs import DID, FACTS, POINTS, SECRET, FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


@dataclass
class Bench:
    """One source, and the way from it to the outbox of one channel."""

    clock: FakeClock
    source: FakeSource
    polled: list[PolledGroup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store, slow = FakeStore(), FakeStore()
        self.sealer, self.batcher = self.sealing(self.store, window=S)
        _, self.slow = self.sealing(slow, window=60 * S)
        names = {device.info.id: {"state": ["n", "x"]} for device in self.source.devices}
        self.router = Router(
            {
                "dso": Route(self.batcher, names | {"meter": {"ac": [p.name for p in POINTS]}}),
                "slow": Route(self.slow, {"slow": {"state": ["n"]}}),
            }
        )
        self.states = States(self.clock)
        self.listener = self.listen(self.source)
        self.supervisor = Supervisor(
            self.polled, [self.listener], sink=self.router, clock=self.clock, states=self.states
        )

    def sealing(self, store: FakeStore, *, window: int) -> tuple[Sealer, Batcher]:
        signer = KeySigner(SECRET, did=DID)
        sealer = Sealer(FACTS, signer=signer, clock=self.clock, last=None, history=History())
        return sealer, Batcher(outbox=store, sealer=sealer, clock=self.clock, window=window)

    def listen(self, source: FakeSource) -> Listener:
        groups = [(device, "state") for device in source.devices]
        return Listener("bms", source, groups, sink=self.router, clock=self.clock, states=self.states)

    def records(self) -> list[Record]:
        """What is on disk, verified."""
        verifier = Verifier([DID])
        found = []
        for held in self.store.written:
            for judged in verifier.feed(held.envelope):
                assert judged.findings == ()
                assert judged.record is not None
                found.append(judged.record)
        verifier.finish(complete=True)
        assert verifier.report.good
        return found

    def items(self) -> list[Frame | Gap]:
        found: list[Frame | Gap] = []
        for record in self.records():
            if isinstance(record.body, Data):
                found += [*record.body.frames, *record.body.gaps]
        return found

    def frames(self) -> list[Frame]:
        return [item for item in self.items() if isinstance(item, Frame) and item.took_us is None]

    def numbers(self) -> list[Any]:
        """The first point of each frame: which message it was."""
        return [frame.values[0] for frame in self.frames()]

    def silences(self) -> list[tuple[int, int | None, int | None]]:
        return [(g.cause, g.from_boot, g.to_boot) for g in self.items() if isinstance(g, Gap) and g.first is None]

    async def after(self, ns: int) -> None:
        await self.clock.sleep_until(self.clock.now + ns)


@asynccontextmanager
async def running(*devices: FakeEventDevice, polled: bool = False, **options: Any) -> AsyncIterator[Bench]:
    clock = virtual_clock()
    groups = [PolledGroup(FakeDevice(clock, "meter"), "ac", S)] if polled else []
    bench = Bench(clock, FakeSource(clock, *devices, **options), groups)
    async with anyio.create_task_group() as connecting:
        connecting.start_soon(bench.listener.run)
        connecting.start_soon(bench.batcher.run)
        connecting.start_soon(bench.slow.run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.supervisor.run)
            await bench.after(100 * MS)
            yield bench
            tasks.cancel_scope.cancel()
        await bench.supervisor.conclude()
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
        await bench.after(10 * MS)
        connecting.cancel_scope.cancel()


async def test_each_message_is_a_cycle_counted_from_zero_with_its_own_times() -> None:
    async with running() as bench:
        sent = []
        for x in (5, 7, -3):
            sent.append(bench.clock.now)
            bench.source.send(x)
            await bench.after(30 * MS)
        await bench.after(2 * S)
    frames = bench.frames()
    assert [(frame.cycle, frame.values, frame.quality) for frame in frames] == [
        (0, (0, 5), ()),
        (1, (1, 7), ()),
        (2, (2, -3), ()),
    ]
    assert [frame.source_time for frame in frames] == [0, 1000, 2000]
    (record,) = [r for r in bench.records() if isinstance(r.body, Data) and r.body.frames]
    assert [record.sealed.boot - frame.late_us * 1000 for frame in frames] == sent


async def test_a_message_is_acknowledged_when_it_is_on_disk_and_not_before() -> None:
    async with running() as bench:
        bench.source.send(1)
        bench.source.send(2)
        await bench.after(500 * MS)
        assert bench.source.acknowledged == []
        await bench.after(600 * MS)
        assert bench.source.acknowledged == bench.numbers() == [0, 1]


@pytest.mark.parametrize("window", [1, 2, 20])
async def test_half_a_window_that_waits_is_sealed_at_once(window: int) -> None:
    async with running(window=window) as bench:
        for x in range(500):
            bench.source.send(x)
        await bench.after(100 * MS)
        assert len(bench.source.acknowledged) > 400
        await bench.after(2 * S)
    assert bench.source.acknowledged == bench.numbers() == list(range(500))


async def test_what_is_on_its_way_to_the_disk_has_no_small_record_follow_it() -> None:
    async with running(window=20) as bench:
        for burst in [16, 1] * 20:
            for _ in range(burst):
                bench.source.send()
            await bench.after(20 * MS)
        await bench.after(2 * S)
    sizes = [len(record.body.frames) for record in bench.records() if isinstance(record.body, Data)]
    assert sum(sizes) == 340
    assert min(sizes[:-1]) >= 10, "half a window"


async def test_a_message_that_waits_in_a_slow_channel_holds_back_half_a_window_at_most() -> None:
    async with running(FakeEventDevice("slow"), FakeEventDevice("quick"), window=20) as bench:
        for n in range(40):
            bench.source.send(device=0 if n == 0 else 1)
            await bench.after(250 * MS)
        assert len(bench.source.acknowledged) >= 30


async def test_messages_for_nobody_count_when_they_wait_behind_others() -> None:
    async with running(window=20) as bench:
        for _ in range(60):
            bench.source.send()
            bench.source.send(device=None)
            bench.source.send(device=None)
        await bench.after(200 * MS)
        assert len(bench.source.acknowledged) >= 170


@pytest.mark.parametrize(("count", "acknowledged"), [(9, 0), (10, 10), (11, 11)])
async def test_less_than_half_a_window_waits_for_the_window_of_the_batch(count: int, acknowledged: int) -> None:
    async with running(window=20) as bench:
        for _ in range(count):
            bench.source.send()
        await bench.after(500 * MS)
        assert len(bench.source.acknowledged) == acknowledged
        await bench.after(S)
        assert len(bench.source.acknowledged) == count


async def test_a_connection_about_to_take_no_more_is_not_kept_waiting() -> None:
    async with running(window=20) as bench:
        bench.source.send(None)
        bench.source.send(None)
        await bench.after(500 * MS)
        assert bench.source.acknowledged == []
        bench.source.crowd()
        bench.source.send(None)
        await bench.after(100 * MS)
        assert bench.source.acknowledged == [0, 1, 2]


async def test_what_cannot_be_understood_is_a_gap_of_its_own_cycle_and_is_acknowledged() -> None:
    async with running() as bench:
        for x in (1, None, None, 4):
            bench.source.send(x)
        await bench.after(2 * S)
        assert bench.source.acknowledged == [0, 1, 2, 3]
    assert [frame.cycle for frame in bench.frames()] == [0, 3]
    gaps = [item for item in bench.items() if isinstance(item, Gap) and item.first is not None]
    assert [(gap.first, gap.last, gap.cause, gap.detail) for gap in gaps] == [
        (1, 1, Cause.DECODE_ERROR, "message 1 is junk"),
        (2, 2, Cause.DECODE_ERROR, "message 2 is junk"),
    ]
    assert bench.states.groups["battery", "state"].undecodable == 2


async def test_a_value_that_needs_another_plan_comes_behind_it() -> None:
    device = FakeEventDevice(exponents={1: -2, 3: -3})
    async with running(device) as bench:
        for x in range(5):
            bench.source.send(x)
        await bench.after(3 * S)
        assert bench.source.acknowledged == [0, 1, 2, 3, 4]
    plan, by_exponent = None, list[tuple[int, int]]()
    for record in bench.records():
        if isinstance(record.body, Plan):
            plan = record.body
        elif isinstance(record.body, Data):
            assert plan is not None
            by_exponent += [(plan.groups[0].points[1].exponent, frame.cycle) for frame in record.body.frames]
    assert by_exponent == [(-1, 0), (-2, 1), (-2, 2), (-3, 3), (-3, 4)]


async def test_terms_of_polled_groups_lose_no_message_and_delay_none_for_long() -> None:
    async with running(polled=True) as bench:
        for n in range(40):
            bench.source.send(n)
            if n % 10 == 5:
                bench.clock.offset += 3600 * S
            await bench.after(250 * MS)
        await bench.after(2 * S)
    assert bench.numbers() == list(range(40))
    assert bench.batcher.plan is not None
    plans = [record.body for record in bench.records() if isinstance(record.body, Plan)]
    assert max(plan.term for plan in plans) == 5


async def test_a_lost_connection_is_a_gap_in_time_and_what_was_not_acknowledged_comes_again() -> None:
    async with running() as bench:
        bench.source.send(1)
        await bench.after(50 * MS)
        lost = bench.clock.now
        bench.source.down = True
        bench.source.drop()
        for _ in range(3):
            bench.source.send(2)
            await bench.after(700 * MS)
        bench.source.down = False
        await bench.after(31 * S)
        assert sorted(set(bench.source.acknowledged)) == [0, 1, 2, 3]
    assert bench.numbers() == [0, 0, 1, 2, 3], "the first one was sealed, and came again"
    assert [frame.quality for frame in bench.frames()][:3] == [
        (),
        ((0, Quality.POSSIBLE_DUPLICATE), (1, Quality.POSSIBLE_DUPLICATE)),
        (),
    ]
    (_, first, second) = [None, *bench.silences()]
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == (Cause.LINK_DOWN, Cause.LINK_DOWN)
    assert second[1] is not None
    assert lost - 60 * MS <= second[1] <= lost


async def test_what_an_earlier_connection_brought_and_was_not_stored_ends_no_later_one() -> None:
    async with running() as bench:
        bench.source.send(1)
        await bench.after(50 * MS)
        bench.source.drop()
        bench.source._queue.clear()  # the source does not send it again
        await bench.after(400 * MS)
        assert (bench.listener.connected, bench.source.tries) == (True, 2)
        bench.batcher.discard()
        await bench.after(5 * S)
        assert (bench.listener.connected, bench.source.tries) == (True, 2)


async def test_a_connection_that_never_comes_up_is_stated_every_five_minutes_and_at_the_end() -> None:
    clock = virtual_clock()
    source = FakeSource(clock)
    source.down = True
    bench = Bench(clock, source)
    async with anyio.create_task_group() as tasks:
        for run in (bench.listener.run, bench.batcher.run, bench.supervisor.run):
            tasks.start_soon(run)
        begun = clock.now
        await bench.after(1000 * S)
        tasks.cancel_scope.cancel()
    ended = clock.now
    await bench.supervisor.conclude()
    await bench.batcher.event(EventCode.STOP, "SIGTERM")
    spans = bench.silences()
    assert {cause for cause, _, _ in spans} == {Cause.LINK_DOWN}
    assert (spans[0][1], spans[-1][2]) == (begun, ended)
    assert [before[2] for before in spans[:-1]] == [after[1] for after in spans[1:]]
    assert len(spans) == 4
    assert source.tries > 1000 / 31
    assert bench.states.failing() == (["battery"], 1)


async def test_a_source_that_falls_silent_is_stated_and_fails_until_it_comes_back() -> None:
    async with running(FakeEventDevice(silent_after=20 * S)) as bench:
        bench.source.send(1)
        await bench.after(5 * S)
        assert bench.states.failing() == ([], 1)
        await bench.after(20 * S)
        assert bench.states.groups["battery", "state"].cause is Cause.SOURCE_SILENT
        bench.source.send(2)
        await bench.after(2 * S)
        assert bench.states.failing() == ([], 1)
    spans = [span for span in bench.silences() if span[0] == Cause.SOURCE_SILENT]
    assert [before[2] for before in spans[:-1]] == [after[1] for after in spans[1:]]
    assert spans[0][1] is not None
    assert spans[-1][2] is not None
    assert spans[-1][2] - spans[0][1] == 25 * S


async def test_a_clock_step_ends_a_term_of_event_driven_groups_only() -> None:
    async with running() as bench:
        bench.source.send(1)
        await bench.after(2 * S)
        bench.clock.offset += 900 * MS
        bench.source.send(2)
        await bench.after(2 * S)
        assert bench.sealer.term == 1
        bench.clock.offset += 200 * MS
        bench.source.send(3)
        await bench.after(2 * S)
        assert bench.sealer.term == 2
    assert bench.numbers() == [0, 1, 2]
    (event,) = [
        record.body
        for record in bench.records()
        if isinstance(record.body, Event) and record.body.code == EventCode.CLOCK_STEP
    ]
    before, after = event.details
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after - before == 1100 * MS


async def test_between_two_terms_another_source_may_take_its_place_and_its_cycles_go_on() -> None:
    async with running() as bench:
        for x in range(3):
            bench.source.send(x)
        await bench.after(50 * MS)
        other = FakeSource(bench.clock)
        listener = bench.listen(other)
        async with anyio.create_task_group() as tasks:
            async with bench.supervisor.paused():
                await bench.supervisor.conclude([bench.listener])
                bench.supervisor.listeners = [listener]
                tasks.start_soon(listener.run)
            await bench.after(50 * MS)
            other.send(7)
            await bench.after(2 * S)
            assert other.acknowledged == [0]
            tasks.cancel_scope.cancel()
    assert [(frame.cycle, frame.values[1]) for frame in bench.frames()] == [(0, 0), (1, 1), (2, 2), (3, 7)]
    assert bench.sealer.term == 2


async def test_what_takes_its_place_while_nobody_listens_goes_on_where_it_ended() -> None:
    """The clock goes on between any two looks at it."""
    async with running() as bench:
        bench.source.down = True
        bench.source.drop()
        await bench.after(2 * S)
        frozen, looks = bench.clock.boot, itertools.count()
        async with bench.supervisor.paused():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bench.clock, "boot", lambda: frozen() + next(looks) * 1000)
                await bench.supervisor.conclude([bench.listener])
            listener = bench.listen(bench.source)
            listener.deaf_since(bench.listener.concluded)
            bench.supervisor.listeners = [listener]
        await bench.after(2 * S)
    down = [(begin, end) for cause, begin, end in bench.silences() if cause == Cause.LINK_DOWN]
    assert len(down) > 1
    assert [end for _, end in down[:-1]] == [begin for begin, _ in down[1:]]


async def test_a_message_that_came_while_nothing_was_pumped_ends_the_silence_before() -> None:
    async with running(FakeEventDevice(silent_after=S)) as bench:
        bench.source.send(1)
        await bench.after(600 * MS)
        async with bench.supervisor.paused():
            await bench.after(100 * MS)
            bench.source.send(2)
            await bench.after(600 * MS)
        await bench.after(300 * MS)
        bench.source.send(3)
        await bench.after(100 * MS)
    assert bench.numbers() == [0, 1, 2]
    assert [span for span in bench.silences() if span[0] == Cause.SOURCE_SILENT] == []


async def test_messages_that_nobody_waits_for_are_not_hurried() -> None:
    async with running(window=20, owed=False) as bench:
        for _ in range(40):
            bench.source.send(1)
            await bench.after(50 * MS)
    data = [record for record in bench.records() if isinstance(record.body, Data) and record.body.frames]
    assert len(data) <= 4
    assert bench.source.acknowledged == []


async def test_a_connection_that_is_taken_over_again_and_again_is_not_fought_for() -> None:
    async with running() as bench:
        for _ in range(600):
            bench.source.drop()
            await bench.after(100 * MS)
    assert bench.source.tries < 20


async def test_a_stop_while_the_plans_of_a_new_term_are_on_their_way_mixes_no_terms() -> None:
    """A reload exchanges the places of two sources, and the stop comes while a disk is slow."""
    clock = virtual_clock()
    sources = {name: FakeSource(clock, FakeEventDevice(name)) for name in "ab"}
    bench = Bench(clock, sources["a"])
    listeners = {name: bench.listen(source) for name, source in sources.items()}
    bench.router.routes["dso"].selection = {name: {"state": ["n", "x"]} for name in "ab"}
    bench.supervisor.listeners = [listeners["a"], listeners["b"]]
    async with anyio.create_task_group() as connecting:
        for listener in listeners.values():
            connecting.start_soon(listener.run)
        connecting.start_soon(bench.batcher.run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.supervisor.run)
            await bench.after(100 * MS)
            loop, stopped = asyncio.get_running_loop(), threading.Event()

            def stop() -> None:
                tasks.cancel_scope.cancel()
                stopped.set()

            def slow_disk() -> None:
                loop.call_soon_threadsafe(stop)
                stopped.wait(10)

            async with bench.supervisor.paused():
                bench.supervisor.listeners = [listeners["b"], listeners["a"]]
                sources["b"].send(100)
                bench.store.before_append = slow_disk
        await bench.supervisor.conclude()
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
        connecting.cancel_scope.cancel()
    plan, of_b = None, []
    for record in bench.records():
        plan = record.body if isinstance(record.body, Plan) else plan
        if isinstance(record.body, Data) and plan is not None:
            of_b += [plan.devices[plan.groups[f.group].device].id for f in record.body.frames if f.values[1] == 100]
    assert of_b == ["b"]


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
async def test_what_is_under_way_at_the_stop_is_sealed_once(turns: int) -> None:
    async with running() as bench:
        for x in range(5000):  # more than a batch holds: the pump waits for room
            bench.source.send(x)
        for _ in range(turns):
            await checkpoint()
    assert bench.numbers() == list(range(len(bench.numbers())))
    assert bench.source.acknowledged == bench.numbers()
    assert len(bench.numbers()) >= (512 if turns else 0)


async def test_a_pause_asked_for_at_any_moment_comes_and_ends() -> None:
    async with running(polled=True) as bench:
        for n in range(30):
            await bench.after(n * 17 * MS)
            async with bench.supervisor.paused():
                term = bench.sealer.term
                await bench.after(MS)
                assert bench.sealer.term == term
            assert bench.sealer.term == term + 1
        await bench.after(S)
    bench.records()
