"""True histories of an agent whose configuration changes while it runs: polled and event-driven sources, two channels,
reloads of every kind, clock steps, lost connections. Each channel verifies without a finding, and no message that was
acknowledged is missing (docs/evidence.md sections 4 to 6).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.evidence.history import History
from agent.listener import Listener
from agent.model import Data, EventCode, Plan
from agent.router import Route, Router
from agent.sealing.batcher import Batcher
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from agent.states import States
from agent.supervisor import Supervisor
from agent.term import PolledGroup
from agent.verifier import Outcome, Verifier
from tests.event_fakes import EVENT_POINTS, FakeEventDevice, FakeSource
from tests.fakes import MS, Acquisition, FakeDevice, FakeStore, S, VirtualLoop, virtual_clock
from tests.runs import DID, FACTS, POINTS, SECRET, START

VARIANTS = tuple((replace(POINTS[0], exponent=exponent), *POINTS[1:]) for exponent in range(3))
PERIODS = (100 * MS, 400 * MS, S, 1500 * MS, 5 * S)
ALL = {
    "meter": {"0": [p.name for p in POINTS], "1": [p.name for p in POINTS]},
    "pv": {"0": [p.name for p in POINTS], "1": [p.name for p in POINTS]},
    "battery": {"state": [p.name for p in EVENT_POINTS]},
}
Step = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class World:
    """What happens: ns after the step before, what, and a number. ``chance`` seeds all that is drawn meanwhile."""

    steps: tuple[Step, ...]
    begin: int  # the wall clock's time at boot
    window: int | None
    trouble: float
    chance: int


KINDS = {
    "reload": st.integers(0, 2**16),
    "send": st.sampled_from([1, 3, 30]),
    "junk": st.just(1),
    "exponent": st.integers(-3, 0),
    "drop": st.just(0),
    "away": st.sampled_from([300 * MS, 9 * S]),
    "change": st.integers(0, 1),
    "step": st.sampled_from([3 * MS, 60 * MS, S, 3600 * S, START, -60 * MS, -S, -7 * S, -3600 * S]),
}
WORLDS = st.builds(
    World,
    st.lists(
        st.one_of([st.tuples(st.integers(0, 3 * S), st.just(kind), number) for kind, number in KINDS.items()]),
        max_size=12,
    ).map(tuple),
    st.sampled_from([START, START, 0, 1_577_836_800 * S]),
    st.sampled_from([None, 1, 20]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2**32),
)


class Life:
    """A world while it happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(world.chance)
        self.clock = virtual_clock()
        self.clock.now += self.chance.randrange(10 * S)
        self.clock.booted, self.clock.offset = self.clock.now, world.begin
        self.device = FakeEventDevice("battery")
        self.source = FakeSource(self.clock, self.device, window=world.window)
        self.polled = [FakeDevice(self.clock, name, script=self.acquisition) for name in ("meter", "pv")]
        self.stores: dict[str, FakeStore] = {}
        self.batchers: dict[str, Batcher] = {}
        routes = {}
        for name in ("all", "some"):
            self.stores[name] = FakeStore(segments=1 << 20)
            signer = KeySigner(SECRET, did=DID)
            facts = replace(FACTS, channel=name)
            sealer = Sealer(facts, signer=signer, clock=self.clock, last=None, history=History())
            self.batchers[name] = Batcher(outbox=self.stores[name], sealer=sealer, clock=self.clock, window=S // 3)
            routes[name] = Route(self.batchers[name], ALL)
        self.router = Router(routes)
        self.states = States(self.clock)
        self.listener = self.listen()
        self.supervisor = Supervisor(
            self.groups(), [self.listener], sink=self.router, clock=self.clock, states=self.states
        )

    def acquisition(self, group: str) -> Acquisition:
        trouble = self.chance.random() < self.world.trouble
        return Acquisition(self.chance.choice([450 * MS, S + 7 * MS]) if trouble else self.chance.choice([0, 7 * MS]))

    def groups(self) -> list[PolledGroup]:
        chosen = [(device, name) for device in self.polled for name in "01" if self.chance.random() < 0.6]
        groups = []
        for device, name in chosen or [(self.polled[0], "0")]:
            period = self.chance.choice(PERIODS)
            groups.append(PolledGroup(device, name, period, self.chance.choice([0, 0, period // 3, period - 1])))
        return groups

    def listen(self) -> Listener:
        groups = [(device, "state") for device in self.source.devices]
        return Listener("bms", self.source, groups, sink=self.router, clock=self.clock, states=self.states)

    async def live(self) -> None:
        async with anyio.create_task_group() as connecting:
            self.connecting, self.scope = connecting, anyio.CancelScope()
            connecting.start_soon(self.connect, self.listener, self.scope)
            async with anyio.create_task_group() as tasks:
                for batcher in self.batchers.values():
                    tasks.start_soon(batcher.run)
                tasks.start_soon(self.supervisor.run)
                for after, kind, number in self.world.steps:
                    await self.clock.sleep_until(self.clock.boot() + after)
                    await self.step(kind, number)
                await self.clock.sleep_until(self.clock.boot() + 40 * S)
                tasks.cancel_scope.cancel()
            await self.supervisor.conclude()
            for batcher in self.batchers.values():
                await batcher.event(EventCode.STOP, "SIGTERM")
            connecting.cancel_scope.cancel()

    async def connect(self, listener: Listener, scope: anyio.CancelScope) -> None:
        with scope:
            await listener.run()

    async def step(self, kind: str, number: int) -> None:
        if kind == "reload":
            await self.reload(random.Random(number))
        elif kind == "send":
            for _ in range(number):
                self.source.send(self.chance.randrange(1000))
        elif kind == "junk":
            self.source.send(None)
        elif kind == "exponent":
            self.device.exponents[self.source.send(1).n] = number
        elif kind == "drop":
            self.source.drop()
        elif kind == "away":
            self.source.down = True
            self.source.drop()
            await self.clock.sleep_until(self.clock.boot() + number)
            self.source.down = False
        elif kind == "change":
            self.polled[number].change(self.chance.choice(VARIANTS))
        else:
            self.clock.offset = max(0, self.clock.offset + number)  # 1970 at boot is the earliest that Linux allows

    async def reload(self, chance: random.Random) -> None:
        async with self.supervisor.paused():
            if chance.random() < 0.7:
                self.supervisor.groups = self.groups()
            if chance.random() < 0.5:
                await self.supervisor.conclude([self.listener])
                self.scope.cancel()
                self.scope, self.listener = anyio.CancelScope(), self.listen()
                self.supervisor.listeners = [self.listener]
                self.connecting.start_soon(self.connect, self.listener, self.scope)
            some = {device: groups for device, groups in ALL.items() if chance.random() < 0.6}
            self.router.routes["some"].selection = some or {"battery": {"state": ["x"]}}
            await self.clock.sleep_until(self.clock.boot() + chance.choice([0, 3 * MS, 700 * MS]))

    # ---- the account ----------------------------------------------------------------------------------------

    def check(self) -> None:
        for name, store in self.stores.items():
            verifier = Verifier([DID])
            numbers, junk, plan = [], 0, None
            for held in store.written:
                for judged in verifier.feed(held.envelope):
                    assert [str(f) for f in judged.findings if f.outcome is Outcome.FAILED] == []
                    assert judged.record is not None
                    body = judged.record.body
                    plan = body if isinstance(body, Plan) else plan
                    if isinstance(body, Data) and plan is not None:
                        battery = [i for i, g in enumerate(plan.groups) if plan.devices[g.device].id == "battery"]
                        numbers += [frame.values[0] for frame in body.frames if frame.group in battery]
                        junk += sum(
                            g.last - g.first + 1
                            for g in body.gaps
                            if g.group in battery and g.first is not None and g.last is not None
                        )
            verifier.finish(complete=True)
            assert verifier.report.good
            if name == "all":
                good = {sent.n for sent in self.source.sent if sent.x is not None}
                assert set(numbers) <= good
                assert {n for n in self.source.acknowledged if n in good} <= set(numbers)
                assert junk >= len({n for n in self.source.acknowledged if n not in good})
                kept = {sent.n for sent in self.source.sent} if not self.source.unheard else set()
                assert kept <= set(self.source.acknowledged), "all that was kept for us came in the end"


def live(world: World) -> None:
    async def main() -> Life:
        life = Life(world)
        await life.live()
        return life

    anyio.run(main, backend_options={"loop_factory": VirtualLoop}).check()


_SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], database=None
)


@given(WORLDS)
@settings(_SETTINGS, max_examples=30)
def test_a_true_history_of_a_changing_agent_never_alarms(world: World) -> None:
    live(world)


@pytest.mark.slow
@given(WORLDS)
@settings(_SETTINGS, max_examples=800)
def test_many_true_histories_of_a_changing_agent_never_alarm(world: World) -> None:
    live(world)
