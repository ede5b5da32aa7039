"""What ``check`` foretells: held against the real batcher on virtual time and against a real ring file."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.config.effective import Channel
from agent.config.problems import Place
from agent.config.tables import MIB, Outbox, Site
from agent.evidence.envelope import MAX_ENVELOPE, unpack
from agent.evidence.history import History
from agent.evidence.record import Body, decode_head, link_of
from agent.evidence.timetable import anchor
from agent.foresight.forecast import DAY, Forecaster, PlannedGroup
from agent.foresight.walk import Walk
from agent.model import ClockQuality, DeviceInfo, Frame, GroupPlan, Kind, Link, Point, ValueType
from agent.outbox import Outbox as Ring
from agent.outbox.outbox import SEGMENT_SIZE
from agent.sealing.batcher import Batcher
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from tests.fakes import BACKEND, FakeStore, virtual_clock
from tests.runs import DID, FACTS, SECRET

MS, S = 1_000_000, 1_000_000_000
SITE = Site(id="site-1", labels={"dso": "westnet"})
METER, BATTERY = DeviceInfo("meter", "modbus", "urn:nmi:1"), DeviceInfo("battery", "mqtt")
INTEGERS = tuple(Point(f"P{i}", "V", ValueType.INTEGER, -1, f"holding:{i} int16") for i in range(12))
MIXED = (
    Point("W", "W", ValueType.INTEGER),
    Point("Hz", "Hz", ValueType.FLOAT, source="holding:1 float32"),
    Point("T", "Cel", ValueType.FLOAT, source="/t"),
    Point("St", None, ValueType.INTEGER, labels={1: "off", 4: "run"}),
    Point("Name", None, ValueType.TEXT),
    Point("On", None, ValueType.BOOLEAN),
    Point("Raw", None, ValueType.BYTES),
)


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


def channel(seal_within: int = S, size: int = 64 * MIB) -> Channel:
    outbox = Outbox.model_construct(size=size, when_full="drop-oldest")
    return Channel("dso", "x:Y", None, "dx.site-1.dso", ("*",), seal_within, seal_within, outbox, {})


def polled(period: int, points: Sequence[Point] = INTEGERS, name: str = "power", phase: int = 0) -> PlannedGroup:
    return PlannedGroup(METER, name, tuple(points), period, phase)


def forecaster(*groups: PlannedGroup, seal_within: int = S, size: int = 64 * MIB) -> Forecaster:
    return Forecaster(SITE, channel(seal_within, size), groups, did=DID)


# ---- against the real thing ---------------------------------------------------------------------------------------

CASES: list[tuple[int, list[PlannedGroup]]] = [
    (S, [polled(S)]),
    (S, [polled(S, MIXED)]),
    (S, [polled(100 * MS), polled(500 * MS, MIXED, "energy")]),
    (200 * MS, [polled(100 * MS), polled(500 * MS, INTEGERS[:3], "energy")]),
    (5 * S, [polled(S), polled(60 * S, MIXED, "minutes"), polled(900 * S, INTEGERS[:1], "quarters")]),
    (S, [polled(2 * S, phase=300 * MS), polled(60 * S, MIXED, "minutes", phase=1500 * MS)]),
    (60 * S, [polled(5 * S, MIXED), polled(7 * S, INTEGERS, "sevens")]),
    (0, [polled(200 * MS), polled(S, MIXED, "energy", phase=50 * MS)]),
    (S, [polled(900 * S), polled(3600 * S, INTEGERS[:2], "hours")]),
    (S, [polled(S, tuple(replace(INTEGERS[0], name=f"P{i}") for i in range(5_000)))]),
    (10 * S, [polled(S, tuple(replace(INTEGERS[0], name=f"P{i}") for i in range(2_000)))]),
]


async def run_for(span: int, seal_within: int, groups: Sequence[PlannedGroup]) -> list[tuple[Kind, int]]:
    """Kind and envelope's size of each record that the real batcher puts on disk in a span of its time."""
    clock, store = virtual_clock(), FakeStore(segments=1_000)
    sealer = Sealer(FACTS, signer=KeySigner(SECRET, did=DID), clock=clock, last=None, history=History())
    batcher = Batcher(outbox=store, sealer=sealer, clock=clock, window=seal_within)
    end, draw = clock.now + span, random.Random(7)
    schedules = [
        anchor(period=group.period or 0, phase=group.phase, wall=clock.wall(), boot=clock.boot()) for group in groups
    ]

    async def poll(index: int) -> None:
        schedule, walk = schedules[index], Walk(groups[index].points, seed=f"other {index}")
        cycle = schedule.first
        while schedule.due(cycle) < end:
            await clock.sleep_until(schedule.due(cycle))
            late, took = draw.randint(200, 2_000), draw.randint(2_000, 30_000)
            await batcher.room()
            batcher.put(Frame(index, cycle, late, took, walk.next()))
            cycle += 1

    async with anyio.create_task_group() as tasks:
        plans = [
            GroupPlan(group.name, 0, schedule, schedule.first, group.points)
            for group, schedule in zip(groups, schedules, strict=True)
        ]
        await batcher.begin_term(opened=(clock.wall(), clock.boot()), devices=[METER], groups=plans)
        tasks.start_soon(batcher.run)
        async with anyio.create_task_group() as pollers:
            for index in range(len(groups)):
                pollers.start_soon(poll, index)
        await clock.sleep_until(end)
        await batcher.flush()
        tasks.cancel_scope.cancel()
    heads = [(decode_head(unpack(held.envelope).payload), len(held.envelope)) for held in store.written]
    return [(Kind(head.fields[6]), size) for head, size in heads if head.fields[6] != Kind.EVENT]


@pytest.mark.anyio
@pytest.mark.parametrize(("seal_within", "groups"), CASES, ids=range(len(CASES)))
async def test_it_comes_as_foretold(seal_within: int, groups: list[PlannedGroup]) -> None:
    span = 3 * max(group.period or 0 for group in groups)
    span = max(span, 20 * max(seal_within, min(group.period or 0 for group in groups)))
    written = await run_for(span, seal_within, groups)
    data = [size for kind, size in written if kind is Kind.DATA]
    foretold = forecaster(*groups, seal_within=seal_within).forecast()
    plan = [size for kind, size in written if kind is Kind.PLAN]
    plans = max(24, (len(plan) - 1) * DAY / span)
    assert foretold.records == pytest.approx(len(data) * DAY / span + plans, rel=0.1)
    assert foretold.sent == pytest.approx(sum(data) * DAY / span + plans * max(plan), rel=0.12)


class StoppedClock:
    def wall(self) -> int:
        return 10**18

    def boot(self) -> int:
        return 10**15

    def quality(self) -> ClockQuality:
        return ClockQuality()

    async def sleep_until(self, boot: int) -> None:
        raise AssertionError("nobody sleeps")


def endless(envelope: int) -> Iterator[tuple[bytes, Link]]:
    """Records of a run whose envelopes have this many bytes."""
    measuring, sealer = (
        Sealer(FACTS, signer=KeySigner(SECRET, did=DID), clock=StoppedClock(), last=None, history=History())
        for _ in range(2)
    )
    overhead = len(measuring.seal(Body(Kind.DATA, 8, bytes(envelope)), at=measuring.now())[0]) - envelope
    body = Body(Kind.DATA, 8, random.Random(1).randbytes(envelope - overhead))
    while True:
        yield sealer.seal(body, at=sealer.now())


@pytest.mark.parametrize(("size", "envelope"), [(5 * MIB, 600), (6 * MIB, 30_000)])
def test_an_outbox_lasts_as_long_as_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, envelope: int
) -> None:
    """What a full ring still holds once the next segment has gone over its oldest."""
    foreteller = forecaster(polled(S), size=size)
    monkeypatch.setattr(foreteller, "_sealed", lambda frames: envelope)
    lasts = foreteller.forecast().lasts
    assert lasts is not None
    records, held, at_once = endless(envelope), 0, max(1, 6_000 // envelope)
    ring = Ring.open(tmp_path / "r", channel="dso", size=size, inspect=link_of)
    try:
        while (new := not ring.fits(at_once * envelope, at_once)) is False or not ring.overwritten():
            ring.append([*islice(records, at_once)], new_segment=new)
            held += at_once
    finally:
        ring.close()
    segments = (size - 8192) // MIB
    assert 0.97 < lasts / S / (held * (segments - 1) / segments) < 1.02  # a record a second


def test_the_largest_envelope_is_the_outboxs() -> None:
    assert SEGMENT_SIZE // 4 == MAX_ENVELOPE


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_the_same_configuration_has_the_same_forecast() -> None:
    groups = [polled(S, MIXED), polled(60 * S, INTEGERS, "minutes")]
    assert forecaster(*groups).forecast() == forecaster(*groups).forecast()


def test_more_is_more() -> None:
    """A point more, a reading more, a record more."""
    base = forecaster(polled(S)).forecast()
    assert base.lasts is not None
    more = forecaster(polled(S, [*INTEGERS, *MIXED])).forecast()
    often = forecaster(polled(100 * MS)).forecast()
    together = forecaster(polled(S), seal_within=10 * S).forecast()
    larger = forecaster(polled(S), size=128 * MIB).forecast()
    assert more.sent > base.sent > together.sent
    assert often.sent > base.sent
    assert base.records == pytest.approx(86_400, rel=0.01)
    assert together.records == pytest.approx(8_640, rel=0.05)
    assert larger.lasts == pytest.approx(base.lasts * 126 / 62, rel=0.01)


def test_what_is_seldom_read_goes_with_others_or_alone() -> None:
    """An hourly reading falls together with one of each minute, unless its phase parts them."""
    hourly = Forecaster(SITE, channel(), [polled(60 * S)]).forecast()
    together = forecaster(polled(60 * S), polled(3600 * S, INTEGERS, "hourly")).forecast()
    apart = forecaster(polled(60 * S), polled(3600 * S, INTEGERS, "hourly", phase=30 * S)).forecast()
    just = forecaster(polled(60 * S), polled(3600 * S, INTEGERS, "hourly", phase=59 * S + 200 * MS)).forecast()
    assert together.records == pytest.approx(hourly.records, abs=1)
    assert just.records == pytest.approx(hourly.records, abs=1)
    assert apart.records == pytest.approx(hourly.records + 24, abs=1)
    assert 24 * 30 < together.sent - hourly.sent < apart.sent - hourly.sent - 24 * 200


def test_typical_values() -> None:
    walk, again = Walk(MIXED, seed="s"), Walk(MIXED, seed="s")
    rows = [walk.next() for _ in range(400)]
    assert rows == [again.next() for _ in range(400)]
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    assert [{type(value) for value in column} for column in columns] == [
        {int},
        {float},
        {float},
        {int},
        {str},
        {bool},
        {bytes},
    ]
    steps = [after / before - 1 for before, after in pairwise(columns[1])]
    assert 0.007 < sum(step * step for step in steps) ** 0.5 / len(steps) ** 0.5 < 0.013
    assert all(struct.unpack("f", struct.pack("f", value))[0] == value for value in columns[1])
    assert set(columns[3]) <= {1, 4}
    assert 1 < len(set(columns[4])) < 20


def test_messages_are_told_one_by_one() -> None:
    group = PlannedGroup(BATTERY, "state", MIXED, None)
    alone = forecaster(group).forecast()
    assert (alone.records, alone.sent, alone.lasts) == (0, 0, None)
    assert alone.messages.keys() == {"battery/state"}
    assert 300 < alone.messages["battery/state"] < 600
    both = forecaster(polled(S), group).forecast()
    assert both.messages == alone.messages
    assert both.sent == pytest.approx(forecaster(polled(S)).forecast().sent, rel=0.01)


def places(name: str) -> dict[tuple[str, ...], Place]:
    return {
        ("channel", "dso"): Place("a.toml", 9, "channel[0]"),
        ("group", "meter", name): Place("a.toml", 5, f"device[0].groups.{name}"),
    }


def test_what_cannot_become_a_record_is_a_problem() -> None:
    many = tuple(replace(INTEGERS[0], name=f"P{i}") for i in range(14_700))
    (problem,) = forecaster(polled(S, many)).problems(places("power"))
    assert str(problem) == (
        "a.toml:5: device[0].groups.power: one reading of 14700 points may take 259 KiB, and a record at most 256KiB; "
        "spread the points over several groups"
    )
    assert [*forecaster(polled(S, many[:14_400])).problems(places("power"))] == []


def test_a_plan_that_cannot_become_a_record_is_a_problem() -> None:
    draw = random.Random(1)
    points = [
        Point(draw.randbytes(32).hex(), None, ValueType.INTEGER, source=f"holding:{i} int16") for i in range(8_000)
    ]
    (problem,) = forecaster(polled(S, points)).problems(places("power"))
    assert str(problem).startswith("a.toml:9: channel[0]: the plan of this channel takes ")
    assert str(problem).endswith(
        "and a record at most 256KiB; spread the points over several channels, or shorten names and sources"
    )
    assert [*forecaster(polled(S, points[:4_000])).problems(places("power"))] == []


@pytest.mark.parametrize(("points", "period"), [(1_000, S), (100, 100 * MS), (10, 10 * MS), (1, 365 * DAY)])
def test_it_takes_no_time(points: int, period: int) -> None:
    group = polled(period, [replace(INTEGERS[0], name=f"P{i}") for i in range(points)])
    began = time.process_time()
    assert forecaster(group).forecast().sent
    assert time.process_time() - began < 1  # 0.1 s on a PC
