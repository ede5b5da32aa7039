"""True histories never alarm: random worlds are lived through by the real supervisor, batcher, sealer and publisher.
What reached the broker verifies without a finding and counts what the world counted (docs/evidence.md section 6).

A world has devices that are slow, fail and change their points; a wall clock that begins in 1970 or 2020, is set,
steps, is slewed, and is good or not; an agent that is stopped, killed or loses its last commit, in one boot or across
boots; a broker that goes away, forgets answers, refuses and drops messages; and at times an outbox too small for all
that.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.delivery.drain import Drain
from agent.delivery.publisher import Publisher
from agent.delivery.refusals import Refusals
from agent.errors import AcquisitionError, OutboxError, TransportError, Verdict
from agent.evidence.coverage import GroupKey
from agent.evidence.envelope import unpack
from agent.evidence.history import replay
from agent.evidence.record import decode_head, decode_record
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
    Kind,
    Plan,
    Record,
    Sample,
    Schedule,
    Value,
)
from agent.ports import Message
from agent.router import Closing, Receipts
from agent.sealing.batcher import Batcher
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from agent.states import States
from agent.supervisor import Supervisor
from agent.term import PolledGroup
from agent.verifier import WINDOW, Level, Outcome, Verifier
from tests.fakes import (
    MS,
    Acquisition,
    FakeBroker,
    FakeDevice,
    FakeStore,
    Fate,
    S,
    VirtualLoop,
    virtual_clock,
)
from tests.runs import DID, FACTS, POINTS, SECRET, START, FakeClock, Run, frame, group, simple_run

CAUSES = (Cause.DEVICE_TIMEOUT, Cause.DEVICE_EXCEPTION, Cause.LINK_DOWN)
VARIANTS = tuple((replace(POINTS[0], exponent=exponent), *POINTS[1:]) for exponent in range(3))
CLOCKS = (
    ClockQuality(),
    ClockQuality(ClockState.NOT_SYNCHRONISED),
    ClockQuality(ClockState.SYNCHRONISED, 1500),
    ClockQuality(ClockState.SYNCHRONISED, 0),
)
YEAR_2020 = 1_577_836_800 * S
Step = tuple[int, str, int]  # ns after the step before, what happens, how much


@dataclass(frozen=True, slots=True)
class World:
    """What happens. ``chance`` is the seed of all that is drawn while it does."""

    groups: tuple[tuple[int, int, int], ...]  # device, period, phase
    begin: int  # the wall clock's time at the beginning
    steps: tuple[Step, ...]
    segment_size: int
    trouble: float  # how often an acquisition or a message goes wrong
    chance: int
    refused: float = 0  # how many of the records with values the broker never takes


def worlds() -> st.SearchStrategy[World]:
    groups = st.lists(
        st.builds(
            lambda device, period, part: (device, period, period * part // 100),
            st.integers(0, 1),
            st.sampled_from([100 * MS, 400 * MS, S, 1500 * MS, 5 * S]),
            st.sampled_from([0, 0, 30, 99]),
        ),
        min_size=1,
        max_size=3,
    )
    amount = {
        "step": st.sampled_from(
            [3 * MS, 8 * MS, 60 * MS, 700 * MS, S, 3600 * S, 10**9 * S, -3 * MS, -60 * MS, -S, -7 * S]
        ),
        "ntp": st.just(0),
        "clock": st.integers(0, len(CLOCKS) - 1),
        "slew": st.sampled_from([12, 500, 80_000, -12, -500, -80_000]),  # ppm, for 6 s
        "change": st.integers(0, 1),
        "away": st.sampled_from([S, 5 * S, 40 * S]),
        "break": st.just(0),
        "forget": st.just(0),
        "suspend": st.sampled_from([300 * MS, 20 * S]),
        "mark": st.just(0),
        "stop": st.sampled_from([0, 1, 900 * MS, 15 * S]),
        "kill": st.sampled_from([0, 1, 900 * MS, 15 * S]),
        "reboot": st.sampled_from([S, 15 * S]),
        "cut": st.sampled_from([0, 2 * S]),
        "cut after all was written": st.sampled_from([0, 2 * S]),
    }
    step = st.one_of([st.tuples(st.integers(0, 12 * S), st.just(kind), many) for kind, many in amount.items()])
    return st.builds(
        World,
        groups.map(tuple),
        st.sampled_from([START, YEAR_2020, 0, 1, 7 * S]),
        st.lists(step, max_size=8).map(tuple),
        st.sampled_from([8192, 8192, 1 << 20]),
        st.sampled_from([0.0, 0.02, 0.15]),
        st.integers(0, 2**32),
        st.sampled_from([0, 0, 0, 0.03, 0.5]),
    )


class Spy:
    """Between supervisor and batcher: notes what was put."""

    def __init__(self, batcher: Batcher, ledger: Ledger) -> None:
        self._batcher, self._ledger = batcher, ledger
        self._keys: list[GroupKey] = []

    def stuck(self, group: int) -> bool:
        """There is always room."""
        return False

    async def room(self, group: int) -> None:
        """There is."""

    async def put(self, item: Frame | Gap) -> Receipts:
        await self._batcher.room()
        receipt = self._batcher.put(item)
        key = self._keys[item.group]
        if isinstance(item, Frame):
            self._ledger.put[key, None] += 1
        elif item.first is not None and item.last is not None:
            self._ledger.put[key, item.cause] += item.last - item.first + 1
        return Receipts([receipt])

    async def begin_term(
        self,
        *,
        opened: tuple[int, int],
        devices: Sequence[DeviceInfo],
        groups: Sequence[GroupPlan],
        closing: Sequence[Closing],
    ) -> None:
        for each in closing:
            if (gap := each.gap(each.group, stays=True)) is not None:
                await self.put(gap)
        self._keys = [(devices[group.device].id, group.name) for group in groups]
        await self._batcher.begin_term(opened=opened, devices=devices, groups=groups)

    async def event(self, code: EventCode, *details: Value, device: str | None = None) -> None:
        await self._batcher.event(code, *details)


@dataclass(slots=True)
class Ledger:
    """The world's own account of cycles."""

    put: Counter[tuple[GroupKey, int | None]] = field(default_factory=Counter)
    succeeded: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    crashes: int = 0


class Life:
    """A world while it happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(world.chance)
        self.clock = virtual_clock()
        self.clock.now += self.chance.randrange(10 * S)
        self.clock.booted, self.clock.offset = self.clock.now, world.begin
        self.clocks = [(0, self.clock.good)]  # since when (``now``) how good the wall clock is
        self.store = FakeStore(segment_size=world.segment_size, segments=4)
        self.broker = FakeBroker(self.clock, self.fate)
        self.healed = False
        self.refused: set[bytes] = set()
        self.ledger = Ledger()
        self.boot_id = FACTS.boot_id
        self.boots = {self.boot_id: self.clock.booted}
        self.devices: list[FakeDevice] = []

    def refuses(self, envelope: bytes) -> bool:
        """Whether the broker never takes this record."""
        head = decode_head(unpack(envelope).payload)
        drawn = random.Random(f"{self.world.chance} {head.link.seq}").random()
        return drawn < self.world.refused and head.fields[6] == Kind.DATA

    def acquisition(self, period: int) -> Acquisition:
        """How the next one goes."""
        took = self.chance.choice([0, 0, MS, 7 * MS, period // 3])
        new_points = cause = None
        if self.chance.random() < self.world.trouble:
            trouble = self.chance.randrange(4)
            if trouble == 0:
                took = self.chance.choice([period, period + 1, 3 * period + 7 * MS])
            elif trouble == 1:
                new_points = self.chance.choice(VARIANTS)
            else:
                cause = self.chance.choice(CAUSES)
        return Acquisition(took, cause, new_points)

    def fate(self, message: Message) -> Fate:
        """What becomes of a message."""
        if self.refuses(message.envelope):
            self.refused.add(message.envelope)
            return Fate(stored=False, answers=[(MS, TransportError("too large", verdict=Verdict.REJECT))])
        if self.healed or self.chance.random() > self.world.trouble / 2:
            return Fate(answers=[(self.chance.choice([0, MS, 300 * MS]), None)])
        return self.chance.choice(
            [
                Fate(answers=[(self.chance.randrange(8 * S), None)]),
                Fate(answers=[(0, None), (S, None)]),
                Fate(answers=()),
                Fate(stored=False, answers=()),
                Fate(stored=False, answers=[(MS, TransportError("no room"))]),
                Fate(lost=True),
            ]
        )

    async def live(self) -> None:
        """Run the agent, again and again, until all steps are done; then let everything heal and drain."""
        steps = list(self.world.steps)
        while True:
            ended = False
            try:
                ended = await self._run(steps)
            except* OutboxError:
                self.ledger.crashes += 1
            if ended:
                return
            self.store = self.store.reopened()

    async def _run(self, steps: list[Step]) -> bool:
        """One run of the agent, wired as the daemon does; True if it was the last."""
        clock, store = self.clock, self.store
        history = replay(store.recovered())
        sealer = Sealer(
            replace(FACTS, boot_id=self.boot_id),
            signer=KeySigner(SECRET, did=DID),
            clock=clock,
            last=store.last,
            history=history,
        )
        refusals = Refusals()
        publisher = Publisher(
            channel="dso",
            store=store,
            transport=self.broker,
            did=DID,
            topic=FACTS.topic,
            clock=clock,
            drain=Drain(rate=100_000, spread=60 * S, clock=clock),
            refusals=refusals,
        )
        batcher = Batcher(
            outbox=store,
            sealer=sealer,
            clock=clock,
            window=S // 3,
            started=("0.1.0", history.clean),
            on_durable=lambda _: publisher.notify(),
            refusals=refusals,
        )
        publisher.on_connected = batcher.restate
        groups = self._groups()
        supervisor = Supervisor(groups, sink=Spy(batcher, self.ledger), clock=clock, states=States(clock))
        down, last = 0, False
        async with anyio.create_task_group() as delivery:
            delivery.start_soon(publisher.run)
            async with anyio.create_task_group() as sealing:
                sealing.start_soon(batcher.run)
                async with anyio.create_task_group() as acquisition:
                    acquisition.start_soon(supervisor.run)
                    end, down = await self._direct(steps)
                    if end in ("kill", "reboot"):
                        delivery.cancel_scope.cancel()
                        await anyio.sleep_forever()
                    acquisition.cancel_scope.cancel()
                if sealer.term:
                    await batcher.event(EventCode.STOP, "SIGTERM")
                last = end == "end"
                if last:
                    self.healed = True
                    self.broker.up()
                    with anyio.fail_after(600):
                        await publisher.drained()  # what is refused yet must be stated first
                sealing.cancel_scope.cancel()
            delivery.cancel_scope.cancel()
        if down:
            await clock.sleep_until(clock.boot() + down)
        if end == "reboot":
            self._reboot()
        return last

    def _groups(self) -> list[PolledGroup]:
        periods = {str(i): period for i, (_, period, _) in enumerate(self.world.groups)}

        def script(group: str) -> Acquisition:
            return self.acquisition(periods[group])

        self.devices = [Counting(self, f"device-{i}", script) for i in range(2)]
        return [
            PolledGroup(self.devices[device], str(i), period, phase)
            for i, (device, period, phase) in enumerate(self.world.groups)
        ]

    async def _direct(self, steps: list[Step]) -> tuple[str, int]:
        """Have the steps happen until one ends the run: its name, and for how long the agent is down then."""
        clock = self.clock
        while steps:
            after, kind, amount = steps.pop(0)
            await clock.sleep_until(clock.boot() + after)
            if kind == "step":
                self._set(clock.wall() + amount)
            elif kind == "ntp":
                self._set(max(START + clock.now, clock.wall()))
                self._good(CLOCKS[2])
            elif kind == "clock":
                self._good(CLOCKS[amount])
            elif kind == "slew":
                for _ in range(60):
                    await clock.sleep_until(clock.boot() + S // 10)
                    self._set(clock.wall() + amount * S // 10 // 1_000_000)
            elif kind == "suspend":
                clock.now += amount
            elif kind == "change":
                self.devices[amount].change(self.chance.choice(VARIANTS))
            elif kind == "away":
                self.broker.down()
                await clock.sleep_until(clock.boot() + amount)
                self.broker.up()
            elif kind == "break":
                self.broker.drop()
            elif kind == "forget":
                self.broker.remembered.clear()
            elif kind == "mark":
                self.store.mark()
            elif kind.startswith("cut"):
                self.store.failures.append("failed" if kind == "cut" else "applied")
            else:
                return kind, amount
        await clock.sleep_until(clock.boot() + 3 * S)
        return "end", 0

    def _reboot(self) -> None:
        """The clock goes on, or there is no battery behind it, and nobody has set it yet."""
        self.clock.reboot()
        if self.chance.random() < 0.5:
            self.clock.offset = self.world.begin
        self._good(CLOCKS[1])
        self.boot_id = self.chance.randbytes(16)
        self.boots[self.boot_id] = self.clock.booted

    def _set(self, wall: int) -> None:
        """Set the wall clock, as far as the kernel lets it: never before it would have been 1970 at boot."""
        self.clock.offset = max(0, wall - self.clock.boot())

    def _good(self, quality: ClockQuality) -> None:
        self.clock.good = quality
        self.clocks.append((self.clock.now, quality))

    # ---- the account ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Hold the verifier's report against what happened."""
        verifier = Verifier([DID])
        judged = [each for envelope in self.broker.messages for each in verifier.feed(envelope)]
        judged += verifier.finish(complete=True)
        report = verifier.report
        found = [finding for each in judged for finding in each.findings]
        assert [str(finding) for finding in found if finding.outcome is Outcome.FAILED] == []
        assert {hole.state for hole in report.holes} <= {"accounted"}
        assert report.good

        delivered = set(self.broker.messages)
        written = {held.envelope for held in self.store.written}
        assert delivered <= written, "what is not on disk must not leave"
        assert {held.envelope for held in self.store.held()} <= delivered | self.refused
        assert not delivered & self.refused
        # A record that was refused, and overwritten before it could be sent again, leaves those behind it unjudged up
        # to the next plan. Nothing else is unknown, and that only where records are lost.
        assert [report.outcome(level) for level in Level] == [Outcome.OK] * 5
        assert len(found) == report.before_plan
        assert not report.before_plan or delivered != written
        present, gaps, lost_plans = self._cycles(delivered)
        if not report.before_plan:
            assert {key: tally.present for key, tally in report.groups.items() if tally.present} == +present
        assert sum(tally.missing for tally in report.groups.values()) == 0
        if delivered == written:
            counted = {(k, cause): n for k, tally in report.groups.items() for cause, n in tally.gaps.items() if n}
            assert counted == dict(+gaps)
        elif not lost_plans:
            total = present.copy()
            for (key, _), count in gaps.items():
                total[key] += count
            assert {key: tally.expected for key, tally in report.groups.items() if tally.expected} == +total
        if not self.ledger.crashes and not any(kind in ("kill", "reboot", "stop") for _, kind, _ in self.world.steps):
            self._check_put(self._cycles(written))

    def _check_clock(self, record: Record, boot_id: bytes) -> None:
        """A record says the worst since its batch opened, which may last 10 s and a suspend: no worse than the worst in
        that time, no better than at its end.
        """
        sealed, at = record.sealed, record.sealed.boot + self.boots[boot_id]
        begin = at - 11 * S - sum(amount for _, kind, amount in self.world.steps if kind == "suspend")
        before = [quality for since, quality in self.clocks if since <= begin or not since][-1]
        then = [before, *(quality for since, quality in self.clocks if begin < since <= at)]
        assert min(quality.state for quality in then) <= sealed.clock <= then[-1].state
        assert (sealed.error_us is None) == (sealed.clock != ClockState.SYNCHRONISED)
        if sealed.error_us is not None:
            assert (then[-1].error_us or 0) <= sealed.error_us <= max(quality.error_us or 0 for quality in then)

    def _check_put(self, stored: tuple[Counter[GroupKey], Counter[tuple[GroupKey, int]], int]) -> None:
        """An agent that lived through it stored all that was put, and what was put is what the devices did."""
        present, gaps, _ = stored
        put: dict[tuple[GroupKey, int | None], int] = {(key, None): n for key, n in present.items()}
        put.update(((key, cause), n) for (key, cause), n in gaps.items())
        assert put == dict(self.ledger.put)
        assert self.ledger.succeeded - sum(present.values()) in range(len(self.world.groups) + 1)  # the stop's
        for cause in CAUSES:
            counted = sum(n for (_, each), n in gaps.items() if each == cause)
            assert self.ledger.failed[cause] - counted in range(len(self.world.groups) + 1)

    def _cycles(self, delivered: set[bytes]) -> tuple[Counter[GroupKey], Counter[tuple[GroupKey, int]], int]:
        """From what was written: frames in ``delivered``, cycles in gaps or lost by cause, and how many terms' first
        plans are lost. Cycles between two runs are worked out from their schedules alone.
        """
        present: Counter[GroupKey] = Counter()
        gaps: Counter[tuple[GroupKey, int]] = Counter()
        lost_plans = 0
        plan: Plan | None = None
        stream, after = b"", dict[GroupKey, int]()
        for held in self.store.written:
            record = decode_record(decode_head(unpack(held.envelope).payload), plan)
            at_hand = held.envelope in delivered
            if isinstance(record.body, Plan):
                opens = record.stream != stream or plan is None or record.body.term != plan.term
                lost_plans += opens and not at_hand
                if plan is not None and record.stream != stream:
                    for key, count in _between(plan, after, record.body).items():
                        gaps[key, Cause.AGENT_DOWN] += count
                if opens:
                    after = {_key(record.body, group): group.next for group in record.body.groups}
                plan, stream = record.body, record.stream
            assert plan is not None
            self._check_clock(record, plan.boot_id)
            if isinstance(record.body, Data):
                for frame in record.body.frames:
                    key = _key(plan, plan.groups[frame.group])
                    after[key] = max(after[key], frame.cycle + 1)
                    if at_hand:
                        present[key] += 1
                    else:
                        gaps[key, Cause.OVERFLOW] += 1
                for gap in record.body.gaps:
                    key = _key(plan, plan.groups[gap.group])
                    assert gap.first is not None
                    assert gap.last is not None
                    after[key] = max(after[key], gap.last + 1)
                    gaps[key, gap.cause if at_hand else Cause.OVERFLOW] += gap.last - gap.first + 1
        return present, gaps, lost_plans


class Counting(FakeDevice):
    """A device that counts what it did."""

    def __init__(self, life: Life, name: str, script: Callable[[str], Acquisition]) -> None:
        super().__init__(life.clock, name, script=script)
        self._ledger = life.ledger

    async def acquire(self, group: str) -> Sample:
        try:
            sample = await super().acquire(group)
        except AcquisitionError as error:
            self._ledger.failed[error.cause] += 1
            raise
        self._ledger.succeeded += 1
        return sample


def _key(plan: Plan, group: GroupPlan) -> GroupKey:
    return plan.devices[group.device].id, group.name


def _between(old: Plan, after: dict[GroupKey, int], new: Plan) -> dict[GroupKey, int]:
    """Marks of the old run's grid, behind what it covered, before the new run's first one. Half a period or the clock's
    tolerance from it is the same mark.
    """
    found = {}
    goes_on = {_key(new, planned): planned.schedule for planned in new.groups}
    for planned in old.groups:
        key, schedule = _key(old, planned), planned.schedule
        other = goes_on[key]
        assert schedule is not None
        assert other is not None
        found[key] = _marks(schedule, after[key], other, same_boot=old.boot_id == new.boot_id)
    return found


def _marks(old: Schedule, cycle: int, new: Schedule, *, same_boot: bool) -> int:
    if not same_boot:
        return max(0, new.first - cycle)
    count = 0
    tolerance = min(max(old.period // 20, 5 * MS), S)
    shift = abs((new.nominal(0) - new.due(0)) - (old.nominal(0) - old.due(0)))
    begins = new.anchor - (tolerance if shift <= tolerance else 0)
    while old.due(cycle + count) < begins:
        count += 1
    return count


def live(world: World) -> Life:
    async def main() -> Life:
        life = Life(world)
        await life.live()
        return life

    life = anyio.run(main, backend_options={"loop_factory": VirtualLoop})
    life.check()
    return life


_SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], database=None
)


@given(worlds())
@settings(_SETTINGS, max_examples=60)
def test_a_true_history_never_alarms(world: World) -> None:
    live(world)


@pytest.mark.slow
@given(worlds())
@settings(_SETTINGS, max_examples=1000)
def test_many_true_histories_never_alarm(world: World) -> None:
    live(world)


# ---- what worlds found, by itself -------------------------------------------------------------------------------


def test_a_run_that_cannot_wait_longer_is_judged_behind_what_its_parent_has() -> None:
    """Else the hole in the parent would be opened up to its end, over records that are at hand."""
    first = simple_run(60, per_record=1)
    second = Run(after=first, clock=FakeClock(boot=1060 * S))
    second.begin([group(160, anchor=1060 * S)])
    for cycle in range(160, 160 + 2 * WINDOW):
        second.data([frame(cycle)])
    first.sent[30:32] = []
    verifier = Verifier([DID])
    for envelope in first.sent + second.sent:
        verifier.feed(envelope)
    verifier.finish()
    assert [(hole.stream, hole.first, hole.last) for hole in verifier.report.holes] == [(first.sealer.stream, 31, 32)]


def test_runs_that_follow_each_other_in_a_circle_come_to_an_end() -> None:
    one, other = Run(), Run()
    one.sealer._follows, one.sealer._resumes = (other.sealer.stream, 1000), (int(Cause.AGENT_DOWN), ())
    other.sealer._follows, other.sealer._resumes = (one.sealer.stream, 1000), (int(Cause.AGENT_DOWN), ())
    verifier = Verifier([DID])
    for run in (one, other):
        run.begin([group(100)])
        for cycle in range(100, 110):
            run.data([frame(cycle)])
        for envelope in run.sent:
            verifier.feed(envelope)
    verifier.finish(complete=True)
    assert verifier.report.records == 22


@pytest.mark.parametrize("drift", [-4 * MS, 0, 4 * MS])
def test_drift_between_two_runs_of_one_boot_makes_no_cycle(drift: int) -> None:
    first = simple_run(10)  # cycles 100 to 109, due at 1000 to 1009 s
    second = Run(after=first, clock=FakeClock(boot=1012 * S))
    second.begin([group(112, anchor=1012 * S + drift)])
    verifier = Verifier([DID])
    for envelope in first.sent + second.sent:
        verifier.feed(envelope)
    verifier.finish()
    assert verifier.report.groups["pv-1", "ac"].gaps == {Cause.AGENT_DOWN: 2}
