"""The batcher: what was put is sealed within the window, in order, once, and settles when it is on disk (docs/outbox.md
rules 1, 2 and 6; docs/evidence.md section 4).
"""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio import to_thread

from agent.delivery.refusals import Refusals
from agent.errors import NotStoredError, OutboxError
from agent.evidence.envelope import unpack
from agent.evidence.history import History
from agent.evidence.record import decode_head, decode_record
from agent.model import (
    Cause,
    ClockQuality,
    ClockState,
    Data,
    Event,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Link,
    Plan,
    Point,
    Record,
    ValueType,
    Withdrawn,
)
from agent.sealing.batch import Receipt
from agent.sealing.batcher import FULL, GAPS_WAIT, Batcher
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from agent.verifier import Verifier
from tests.fakes import BACKEND, MS, FakeStore, S, turns, until, virtual_clock
from tests.runs import DEVICE, DID, FACTS, SECRET, frame, group

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


def bodies(store: FakeStore) -> list[Record]:
    """All that was written, decoded."""
    plan, found = None, []
    for held in store.written:
        record = decode_record(decode_head(unpack(held.envelope).payload), plan)
        plan = record.body if isinstance(record.body, Plan) else plan
        found.append(record)
    return found


def kinds(store: FakeStore) -> str:
    """A letter for each record: p, d or e."""
    return "".join({Plan: "p", Data: "d", Event: "e"}[type(record.body)] for record in bodies(store))


class Bench:
    """A batcher over a fake outbox, with a term of one group in force."""

    def __init__(
        self,
        store: FakeStore | None = None,
        *,
        history: History | None = None,
        block: bool = False,
        unstored_since: int | None = None,
        window: int = S,
    ) -> None:
        self.clock = virtual_clock()
        self.store = store or FakeStore()
        self.sealer = Sealer(
            FACTS,
            signer=KeySigner(SECRET, did=DID),
            clock=self.clock,
            last=self.store.last,
            history=history or History(),
        )
        self.announced: list[int] = []
        self.refusals = Refusals()
        self.batcher = Batcher(
            outbox=self.store,
            sealer=self.sealer,
            clock=self.clock,
            window=window,
            block=block,
            unstored_since=unstored_since,
            on_durable=lambda _: self.announced.append(len(self.store.written)),
            refusals=self.refusals,
        )
        self.cycle = 100

    async def begin(self, *points: Point, groups: int = 1) -> None:
        plans = [group(self.cycle, name=f"group-{i}", anchor=self.clock.now) for i in range(groups)]
        if points:
            plans = [replace(plan, points=points) for plan in plans]
        await self.batcher.begin_term(opened=(self.clock.wall(), self.clock.now), devices=[DEVICE], groups=plans)

    async def put(self, *values: Any) -> Receipt:
        """The next cycle's frame."""
        item = frame(self.cycle)
        self.cycle += 1
        await self.batcher.room()
        return self.batcher.put(item._replace(values=values) if values else item)

    async def gap(self, cause: Cause = Cause.DEVICE_TIMEOUT, cycles: int = 1) -> Receipt:
        first, self.cycle = self.cycle, self.cycle + cycles
        await self.batcher.room()
        return self.batcher.put(Gap(0, first, self.cycle - 1, cause))

    def verified(self) -> Verifier:
        verifier = Verifier([DID])
        for held in self.store.written:
            for judged in verifier.feed(held.envelope):
                assert judged.findings == ()
        verifier.finish(complete=True)
        assert verifier.report.good
        return verifier


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.begin()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.batcher.run)
        yield bench
        tasks.cancel_scope.cancel()


# ---- when -------------------------------------------------------------------------------------------------------


async def test_values_are_on_disk_within_the_window_of_the_first() -> None:
    async with running(Bench()) as bench:
        begun = bench.clock.now
        receipt = await bench.put()
        for _ in range(4):
            await bench.clock.sleep_until(bench.clock.now + 150 * MS)
            assert await bench.put() is receipt
        assert not receipt.hurried
        await receipt.durable()
        assert receipt.hurried
        assert begun + 800 * MS <= bench.clock.now <= begun + S
        await bench.clock.sleep_until(bench.clock.now + 2 * S)
        assert kinds(bench.store) == "pd"
        await bench.put()
        await bench.clock.sleep_until(bench.clock.now + S)
        assert kinds(bench.store) == "pdd"
    assert bench.verified().report.cycles() == (6, 6, 0)
    assert bench.announced == [1, 2, 3]


async def test_without_a_window_each_value_is_on_disk_at_once() -> None:
    bench = Bench(window=0)
    async with running(bench):
        for _ in range(3):
            began = bench.clock.now
            await (await bench.put()).durable()
            assert bench.clock.now == began
            await bench.clock.sleep_until(began + 20 * MS)
        assert kinds(bench.store) == "pddd"
    bench.verified()


async def test_gaps_alone_wait_longer_and_join() -> None:
    async with running(Bench()) as bench:
        begun = bench.clock.now
        receipt = await bench.gap()
        for _ in range(8):
            await bench.clock.sleep_until(bench.clock.now + S)
            await bench.gap()
        await receipt.durable()
        assert bench.clock.now == begun + GAPS_WAIT
        await bench.gap(Cause.DEVICE_TIMEOUT)
        await bench.gap(Cause.LINK_DOWN)
        await bench.batcher.flush()
    spans = [[(g.first, g.last, g.cause) for g in r.body.gaps] for r in bodies(bench.store) if isinstance(r.body, Data)]
    assert spans == [
        [(100, 108, Cause.DEVICE_TIMEOUT)],
        [(109, 109, Cause.DEVICE_TIMEOUT), (110, 110, Cause.LINK_DOWN)],
    ]
    bench.verified()


async def test_a_value_that_joins_gaps_is_not_kept_waiting_with_them() -> None:
    async with running(Bench()) as bench:
        await bench.gap()
        await bench.clock.sleep_until(bench.clock.now + 2 * S)
        put = bench.clock.now
        await (await bench.put()).durable()
        assert bench.clock.now <= put + S
    bench.verified()


async def test_after_a_flush_by_an_event_the_window_begins_anew() -> None:
    async with running(Bench()) as bench:
        await bench.put()
        await bench.clock.sleep_until(bench.clock.now + 500 * MS)
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
        assert kinds(bench.store) == "pde"
        put = bench.clock.now
        await (await bench.put()).durable()
        assert bench.clock.now == put + 900 * MS
    bench.verified()


# ---- full -------------------------------------------------------------------------------------------------------


async def test_a_full_batch_goes_at_once_and_holds_all_putters_back_until_then() -> None:
    bench, door = Bench(), threading.Event()
    await bench.begin(Point("text", None, ValueType.TEXT), groups=5)
    bench.store.before_append = lambda: door.wait(10)
    accepted: list[int] = []

    async def put(index: int) -> None:
        for cycle in range(100, 103):
            await bench.batcher.room()
            bench.batcher.put(Frame(index, cycle, 0, 0, ("x" * 15_000,)))
            accepted.append(bench.clock.now)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.batcher.run)
        async with anyio.create_task_group() as putters:
            for index in range(5):
                putters.start_soon(put, index)
            await turns(100)
            assert len(accepted) == 6, "three fill a batch: one is on its way to the disk, one waits, nothing more"
            door.set()
        await bench.batcher.flush()
        tasks.cancel_scope.cancel()
    assert len(accepted) == 15
    assert accepted[-1] == accepted[0], "no time passed: it was not the window that made room"
    assert bench.verified().report.cycles() == (15, 15, 0)


async def test_a_record_larger_than_the_outbox_takes_ends_it() -> None:
    bench = Bench(FakeStore(segment_size=8192))
    await bench.begin(Point("text", None, ValueType.TEXT))
    await bench.put(random.Random(1).randbytes(4000).hex())
    with pytest.raises(OutboxError, match="larger than the outbox takes") as raised:
        await bench.batcher.flush()
    assert "seal_within" in raised.value.hint
    assert kinds(bench.store) == "p", "it was not sealed"


# ---- segments ---------------------------------------------------------------------------------------------------


async def test_each_segment_begins_with_a_plan_and_nothing_is_sealed_twice() -> None:
    async with running(Bench(FakeStore(segment_size=4096, segments=100))) as bench:
        for _ in range(40):
            await bench.put()
            await bench.batcher.flush()
    assert all(held.records[0].link.seq for held in bench.store.segments)
    assert len(bench.store.segments) > 4
    assert [held.link.seq for held in bench.store.written] == list(range(1, len(bench.store.written) + 1))
    plans = [record.body for record in bodies(bench.store) if isinstance(record.body, Plan)]
    assert len(plans) == len(bench.store.segments)
    assert bench.verified().report.cycles() == (40, 40, 0)


async def test_what_a_new_segment_overwrites_is_stated_in_its_plan_until_that_is_acknowledged() -> None:
    store = FakeStore(segment_size=4096, segments=4)
    async with running(Bench(store)) as bench:
        while len(store.commits) == len(store.written) or store.written[0] in store.held():
            await bench.put()
            await bench.batcher.flush()
        kept = store.held()[0]
        stated = Withdrawn(bench.sealer.stream, 1, kept.link.seq - 1, Cause.OVERFLOW)
        plan = store.segments[-1].records[0]
        assert _withdrawn(store, plan.pos) == (stated,)
        assert bench.batcher.committer.dropped == kept.link.seq - 1

        store.settle(plan.pos)  # the plan itself: not yet
        await _repeat(bench)
        assert _withdrawn(store) == (stated,)
        data = next(held for held in store.written if held.pos > plan.pos)
        store.settle(data.pos)  # a record sealed after it
        await _repeat(bench)
        assert _withdrawn(store) == ()
    verifier = Verifier([DID])
    for held in store.held():
        verifier.feed(held.envelope)
    verifier.finish(complete=True)
    assert verifier.report.good


async def test_what_the_outbox_finds_missing_is_stated_once_with_an_event() -> None:
    store = FakeStore()
    bench = Bench(store)
    await bench.begin()
    missing = Withdrawn(bytes(16), 5, 9, Cause.DISK_ERROR)
    store.lost = (missing,)
    await bench.put()
    await bench.batcher.flush()
    assert _withdrawn(store) == (missing,)
    store.settle(store.written[-1].pos)
    await _repeat(bench)
    await _repeat(bench)
    assert _withdrawn(store) == ()
    damaged = [r.body for r in bodies(store) if isinstance(r.body, Event) and r.body.code == EventCode.OUTBOX_DAMAGED]
    assert [event.details for event in damaged] == [("5 records cannot be read",)]


async def test_ranges_carried_over_from_the_last_run_are_stated_until_acknowledged() -> None:
    store, lost = FakeStore(), Withdrawn(bytes(16), 5, 9, Cause.OVERFLOW)
    first = Bench(store)
    await first.begin()
    await first.put()
    await first.batcher.flush()
    store.settle(store.written[-1].pos)
    bench = Bench(store, history=History(withdrawn=(lost,)))
    await bench.begin()
    assert _withdrawn(store) == (lost,)
    await _repeat(bench)
    assert _withdrawn(store) == (lost,), "what was acknowledged was sealed before the plan that stated it here"
    store.settle(store.written[-1].pos)
    await _repeat(bench)
    assert _withdrawn(store) == ()


async def test_a_range_added_meanwhile_starts_the_waiting_anew() -> None:
    bench = Bench(FakeStore(), history=History(withdrawn=(Withdrawn(bytes(16), 5, 9, Cause.OVERFLOW),)))
    await bench.begin()
    await bench.put()
    await bench.batcher.flush()
    bench.store.settle(2)
    more = Withdrawn(bytes(16), 10, 12, Cause.OVERFLOW)
    bench.sealer.withdraw([more])
    await _repeat(bench)
    assert _withdrawn(bench.store) == (Withdrawn(bytes(16), 5, 12, Cause.OVERFLOW),)


async def _repeat(bench: Bench) -> None:
    """Have the plan repeated."""
    bench.clock.now += 3600 * S
    await bench.put()
    await bench.batcher.flush()


# ---- what the broker refused ------------------------------------------------------------------------------------


def refused(bench: Bench, seq: int) -> Withdrawn:
    return Withdrawn(bench.sealer.stream, seq, seq, Cause.REFUSED)


async def test_what_was_refused_is_stated_by_a_plan_of_its_own_and_then_told() -> None:
    bench = Bench()
    told: list[tuple[list[int], int]] = []
    bench.refusals.on_stated = lambda positions: told.append((sorted(positions), len(bench.store.written)))
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 5 * S)
        bench.refusals.add(2, bench.store.written[0].link)
        await until(lambda: told, within=10 * MS)
        assert kinds(bench.store) == "pp"
        assert _withdrawn(bench.store) == (refused(bench, 1),)
        assert told == [([2], 2)], "once it is on disk"
        assert not bench.refusals
        await bench.clock.sleep_until(bench.clock.now + 60 * S)
    assert kinds(bench.store) == "pp"


async def test_many_refusals_make_a_plan_a_second_at_most() -> None:
    bench = Bench()
    async with running(bench):
        begun = bench.clock.now
        for number in range(50):
            await bench.put()
            bench.refusals.add(number, bench.store.written[0].link._replace(seq=number + 1))
            await anyio.sleep(0.1)
        plans = [record.sealed.boot for record in bodies(bench.store) if isinstance(record.body, Plan)]
        assert all(after - before >= S for before, after in pairwise(plans))
        assert 4 <= len(plans) <= (bench.clock.now - begun) // S + 1
    assert _withdrawn(bench.store)[0].first == 1
    bench.verified()


async def test_what_a_failed_disk_did_not_take_is_not_stated() -> None:
    bench = Bench()
    bench.refusals.on_stated = lambda positions: pytest.fail("stated")
    await bench.begin()
    bench.store.failures.append("failed")
    bench.refusals.add(1, bench.store.written[0].link)
    bench.clock.now += S
    await bench.batcher.flush()
    assert bench.batcher.failed
    assert bench.refusals


async def test_before_the_first_plan_a_refusal_waits_for_it() -> None:
    """Of a record of the run before."""
    bench = Bench()
    bench.refusals.add(1, Link(bytes(16), 7, bytes(32), bytes(32)))
    await bench.begin()
    assert _withdrawn(bench.store) == (Withdrawn(bytes(16), 7, 7, Cause.REFUSED),)
    assert not bench.refusals


def _withdrawn(store: FakeStore, pos: int | None = None) -> tuple[Withdrawn, ...]:
    """What the plan at a position states, or the last one."""
    plans = [
        record.body
        for record, held in zip(bodies(store), store.written, strict=True)
        if isinstance(record.body, Plan) and pos in (None, held.pos)
    ]
    return plans[-1].withdrawn


# ---- plans ------------------------------------------------------------------------------------------------------


async def test_plans_are_repeated_hourly_also_when_nothing_is_measured() -> None:
    async with running(Bench()) as bench:
        begun = bench.clock.now
        await bench.clock.sleep_until(begun + 3 * 3600 * S + 1)
        assert [record.sealed.boot - begun for record in bodies(bench.store)] == [n * 3600 * S for n in range(4)]
        assert kinds(bench.store) == "pppp"
    bench.verified()


async def test_a_repeated_plan_goes_before_the_data() -> None:
    async with running(Bench()) as bench:
        await bench.clock.sleep_until(bench.clock.now + 3599 * S + 500 * MS)
        await (await bench.put()).durable()
        assert kinds(bench.store) == "ppd"
    bench.verified()


async def test_after_a_reconnect_the_plan_is_repeated_at_most_once_a_minute() -> None:
    async with running(Bench()) as bench:
        begun = bench.clock.now
        for _ in range(5 * 60):
            await bench.put()
            await bench.clock.sleep_until(bench.clock.now + S)
            bench.store.settle(bench.store.written[-1].pos)
            bench.batcher.restate()  # a link that flaps every second
        sealed = [record.sealed.boot - begun for record in bodies(bench.store) if isinstance(record.body, Plan)]
    assert len(sealed) == 5
    assert all(60 * S <= after - before <= 62 * S for before, after in pairwise(sealed))
    bench.verified()


async def test_a_plan_that_is_still_to_be_delivered_is_not_repeated() -> None:
    async with running(Bench()) as bench:
        bench.batcher.restate()
        for _ in range(100):
            await bench.put()
            await bench.clock.sleep_until(bench.clock.now + S)
        assert kinds(bench.store).count("p") == 1


# ---- terms and events -------------------------------------------------------------------------------------------


async def test_a_term_ends_with_its_data_before_the_next_ones_plan() -> None:
    async with running(Bench()) as bench:
        await bench.put()
        bench.clock.now += 500 * MS
        await bench.begin()
        await bench.put()
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
    assert kinds(bench.store) == "pdpde"
    assert [r.body.term for r in bodies(bench.store) if isinstance(r.body, (Plan, Data))] == [1, 1, 2, 2]


async def test_a_full_outbox_that_blocks_seals_nothing_until_there_is_room() -> None:
    store = FakeStore(segment_size=4096, segments=4)
    async with running(Bench(store, block=True)) as bench:
        while not bench.batcher.blocked:
            await bench.put()
            await bench.batcher.flush()
        held, seq = list(store.written), bench.sealer.seq
        receipt = await bench.put()
        await bench.batcher.flush()  # nobody waits for it but who puts
        await bench.batcher.event(EventCode.CONFIGURATION_REFUSED, "1 problems")
        bench.cycle += 1
        await bench.batcher.begin_term(
            opened=(bench.clock.wall(), bench.clock.now), devices=[DEVICE], groups=[group(bench.cycle)]
        )
        await bench.put()
        await bench.clock.sleep_until(bench.clock.now + 3600 * S)
        assert (store.written, bench.sealer.seq) == (held, seq)
        assert not receipt.settled
        store.settle(store.segments[0].records[-1].pos - 1)
        bench.batcher.acknowledged()
        await bench.clock.sleep_until(bench.clock.now + S)
        assert bench.batcher.blocked, "one record of the oldest segment waits"
        store.settle(store.segments[0].records[-1].pos)
        bench.batcher.acknowledged()
        await receipt.durable()
        await bench.clock.sleep_until(bench.clock.now + 10 * S)
        assert not bench.batcher.blocked
        assert kinds(store)[len(held) :] == "pddepd", "in the order in which it came, nothing twice"
    assert bench.batcher.committer.dropped == bench.batcher.not_stored == 0
    assert [record.link.seq for record in store.written] == list(range(1, len(store.written) + 1))


async def test_a_refused_record_does_not_block_a_full_outbox_for_good() -> None:
    """It holds up the oldest segment until a plan states it, for which there is no room."""
    store = FakeStore(segment_size=4096, segments=4)
    async with running(Bench(store, block=True)) as bench:
        while not bench.batcher.blocked:
            await bench.put()
            await bench.batcher.flush()
        refused, last = store.written[1], store.written[-1].pos

        def stated(positions: Collection[int]) -> None:
            assert list(positions) == [refused.pos]
            store.settle(last)  # as the publisher does: the broker has all the others
            bench.batcher.acknowledged()

        bench.refusals.on_stated = stated
        bench.refusals.add(refused.pos, refused.link)
        held = len(store.written)
        await bench.clock.sleep_until(bench.clock.now + 5 * S)
        assert not bench.batcher.blocked
        plan = bodies(store)[held].body
        assert isinstance(plan, Plan)
        assert plan.withdrawn == (Withdrawn(refused.link.stream, refused.link.seq, refused.link.seq, Cause.REFUSED),)


async def test_a_full_outbox_that_blocks_keeps_two_batches_and_holds_up_who_puts() -> None:
    store = FakeStore(segment_size=1 << 20, segments=4)
    async with running(Bench(store, block=True)) as bench:
        await bench.begin(Point("text", None, ValueType.TEXT))
        draw = random.Random(3)
        while not bench.batcher.blocked:
            await bench.put(draw.randbytes(10_000).hex())
            await bench.batcher.flush()
        put = 0
        while not bench.batcher.stuck:
            await bench.put(draw.randbytes(10_000).hex())
            put += 1
        assert 3 <= put <= 5
        with anyio.move_on_after(60) as waited:
            await bench.batcher.moving()
        assert waited.cancelled_caught
        bench.batcher.discard()
        await bench.batcher.moving()
        assert bench.batcher.not_stored == put + 1, "given up: counted"


async def test_what_is_kept_while_it_blocks_becomes_no_record_larger_than_any_other() -> None:
    store = FakeStore(segment_size=1 << 17, segments=4)
    async with running(Bench(store, block=True)) as bench:
        await bench.begin(Point("text", None, ValueType.TEXT))
        draw = random.Random(3)
        while not bench.batcher.blocked:
            await bench.put(draw.randbytes(2_000).hex())
            await bench.batcher.flush()
        held = len(store.written)
        while not bench.batcher.stuck:
            await bench.put(draw.randbytes(2_000).hex())
        store.settle(store.written[-1].pos)
        bench.batcher.acknowledged()
        await bench.clock.sleep_until(bench.clock.now + 10 * S)
        sizes = [len(record.body.frames) * 16_000 for record in bodies(store)[held:] if isinstance(record.body, Data)]
        assert sum(sizes) > FULL + 16_000
        assert max(sizes) <= FULL + 16_000
        bench.verified()


# ---- the disk ---------------------------------------------------------------------------------------------------


async def test_a_receipt_settles_only_when_the_record_is_on_disk() -> None:
    bench, door = Bench(), threading.Event()
    await bench.begin()
    bench.store.before_append = lambda: door.wait(10)
    settled: list[int] = []

    async def wait(receipt: Receipt) -> None:
        await receipt.durable()
        settled.append(len(bench.store.written))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, await bench.put())
        tasks.start_soon(bench.batcher.flush)
        await turns()
        assert settled == []
        door.set()
    assert settled == [2]
    assert bench.announced == [1, 2]


async def test_a_mark_waits_until_a_commit_under_way_is_on_disk() -> None:
    bench, door = Bench(), threading.Event()
    await bench.begin()
    bench.store.settle(bench.store.written[-1].pos)
    bench.store.before_append = lambda: door.wait(10)
    await bench.put()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.batcher.flush)
        await turns()
        tasks.start_soon(bench.batcher.mark)
        await turns()
        assert len(bench.store.written) == 1
        door.set()
    assert [held.pos for held in bench.store.written] == [1, 2], "the mark came behind it"


@pytest.mark.parametrize("how", ["failed", "applied"])
async def test_an_append_that_fails_ends_it_settles_nothing_and_is_never_tried_again(how: str) -> None:
    bench = Bench()
    await bench.begin()
    bench.store.failures.append(how)
    receipt = await bench.put()
    with pytest.raises(OutboxError, match="the disk failed"):
        await bench.batcher.run()
    with pytest.raises(NotStoredError):
        await receipt.durable()
    assert bench.announced == [1], "nothing of it was announced"
    written = len(bench.store.written)
    receipt = await bench.put()
    with pytest.raises(NotStoredError):
        await receipt.durable()
    await bench.batcher.flush()
    await bench.batcher.event(EventCode.STOP, "SIGTERM")
    await bench.begin()
    await bench.batcher.mark()
    assert len(bench.store.written) == written, "nothing is tried again"
    assert bench.batcher.not_stored == 2
    bench.batcher.found(bench.store.reopened().last)
    assert bench.batcher.not_stored == (2 if how == "failed" else 1)


async def test_of_event_driven_groups_what_was_not_stored_is_stated_once() -> None:
    bench = Bench(unstored_since=990 * S)
    plan = GroupPlan("state", 0, None, 0, (Point("n", None, ValueType.INTEGER),))
    await bench.batcher.begin_term(opened=(bench.clock.wall(), 1000 * S), devices=[DEVICE], groups=[plan])
    for begin, end in [(991 * S, 999 * S), (995 * S, 1000 * S), (995 * S, 1002 * S)]:
        bench.batcher.put(Gap(0, None, None, Cause.LINK_DOWN, None, begin, end))
    await bench.batcher.flush()
    [data] = [record.body for record in bodies(bench.store) if isinstance(record.body, Data)]
    assert [(gap.cause, gap.from_boot, gap.to_boot) for gap in data.gaps] == [
        (Cause.NOT_STORED, 990 * S, 1000 * S),
        (Cause.LINK_DOWN, 1000 * S, 1002 * S),
    ]


async def test_what_was_not_stored_ends_with_the_first_message_that_is() -> None:
    """It came before the run began, and waited to be put."""
    bench = Bench(unstored_since=990 * S)
    plan = GroupPlan("state", 0, None, 0, (Point("n", None, ValueType.INTEGER),))
    await bench.batcher.begin_term(opened=(bench.clock.wall(), 1000 * S), devices=[DEVICE], groups=[plan])
    for cycle, received in enumerate((998 * S, 999 * S)):
        bench.batcher.put(Frame(0, cycle, 0, None, (1,), received=received))
    await bench.batcher.flush()
    [data] = [record.body for record in bodies(bench.store) if isinstance(record.body, Data)]
    assert [(gap.cause, gap.from_boot, gap.to_boot) for gap in data.gaps] == [(Cause.NOT_STORED, 990 * S, 998 * S)]
    assert len(data.frames) == 2


async def test_a_commit_under_way_is_finished_when_it_is_cancelled() -> None:
    bench, door, inside = Bench(FakeStore(segment_size=4096)), threading.Event(), threading.Event()
    await bench.begin()

    def write() -> None:
        inside.set()
        door.wait(10)

    bench.store.before_append = write
    receipt = await bench.put()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.batcher.flush)
        await to_thread.run_sync(inside.wait)
        tasks.cancel_scope.cancel()
        door.set()
    with anyio.fail_after(1):
        await receipt.durable()
    bench.store.before_append = lambda: None
    await bench.batcher.event(EventCode.STOP, "SIGTERM")
    assert kinds(bench.store) == "pde"
    bench.verified()


async def test_frames_count_by_their_greatest_size() -> None:
    """A batch never grows beyond what one record may hold, whatever is put."""
    bench = Bench(FakeStore(segment_size=1 << 20))
    points = [Point(f"p{i}", None, ValueType.INTEGER) for i in range(120)]
    await bench.begin(*points)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.batcher.run)
        for n in range(600):
            values = tuple((n * 7919 * (i + 1) << 40) % (1 << 62) * (-1) ** n for i in range(120))
            await bench.put(*values)
        tasks.cancel_scope.cancel()
    await bench.batcher.flush()
    assert max(len(held.envelope) for held in bench.store.written) <= 256 * 1024
    assert bench.verified().report.frames == 600


# ---- how good the wall clock was ----------------------------------------------------------------------------------

UNKNOWN, UNSYNCHRONISED = ClockQuality(), ClockQuality(ClockState.NOT_SYNCHRONISED)


def good(error_us: int) -> ClockQuality:
    return ClockQuality(ClockState.SYNCHRONISED, error_us)


def stated(store: FakeStore, kind: type) -> list[tuple[int, int | None]]:
    """State and error of the clock in the records of a kind."""
    return [(each.sealed.clock, each.sealed.error_us) for each in bodies(store) if isinstance(each.body, kind)]


@pytest.mark.parametrize(
    ("before", "at_first", "at_sealing", "expected"),
    [
        (UNKNOWN, good(5), good(5), (2, 5)),  # what was before its first value does not count
        (good(5), good(7), good(5), (2, 7)),
        (good(5), good(5), good(7), (2, 7)),
        (good(5), UNSYNCHRONISED, good(5), (1, None)),
        (good(5), good(5), UNSYNCHRONISED, (1, None)),
        (good(5), UNKNOWN, UNSYNCHRONISED, (0, None)),
    ],
)
async def test_a_record_says_the_worst_clock_since_its_batch_opened(
    before: ClockQuality, at_first: ClockQuality, at_sealing: ClockQuality, expected: tuple[int, int | None]
) -> None:
    bench = Bench()
    bench.clock.good = before
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 5 * S)
        bench.clock.good = at_first
        await bench.put()
        bench.clock.good = at_sealing
        await bench.put()
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
    assert stated(bench.store, Plan) == [(before.state, before.error_us)]
    assert stated(bench.store, Data) == [expected]
    bench.verified()


async def test_the_next_record_says_how_the_clock_is_then() -> None:
    bench = Bench()
    bench.clock.good = UNSYNCHRONISED
    async with running(bench):
        await (await bench.put()).durable()
        bench.clock.good = good(900)
        await (await bench.put()).durable()
        await bench.batcher.event(EventCode.STOP, "SIGTERM")
    assert stated(bench.store, Data) == [(1, None), (2, 900)]
    assert stated(bench.store, Event) == [(2, 900)]


async def test_a_batch_that_is_open_for_long_misses_no_second_of_a_bad_clock() -> None:
    bench = Bench()
    bench.clock.good = good(5)
    async with running(bench):
        receipt = await bench.gap()  # without a value it may wait for 10 s
        await bench.clock.sleep_until(bench.clock.now + 4 * S)
        bench.clock.good = UNSYNCHRONISED
        await bench.clock.sleep_until(bench.clock.now + S)
        bench.clock.good = good(5)
        began = bench.clock.now
        await receipt.durable()
        assert bench.clock.now - began == 5 * S
    assert stated(bench.store, Data) == [(1, None)]


async def test_the_kernel_is_asked_for_each_batch_and_not_for_each_value() -> None:
    bench = Bench()
    asked = 0

    def quality() -> ClockQuality:
        nonlocal asked
        asked += 1
        return good(5)

    bench.clock.quality = quality  # type: ignore[method-assign]
    async with running(bench):
        asked = 0
        for _ in range(100):
            await bench.put()
            await bench.clock.sleep_until(bench.clock.now + 100 * MS)
        assert asked <= 2 * kinds(bench.store).count("d") + 1
