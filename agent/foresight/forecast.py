"""What a channel will send and store: bytes a day, and for how long its outbox lasts, before anything is read.

A span of the channel's timeline is played through: readings fall due, batches close as agent/sealing/batcher.py closes
them, and what would be sealed is encoded by the code that seals, over typical values (agent/foresight/walk.py). Scaled
to a day, with the repeated plans and the ring's own bytes. Without gaps, quality codes, events and a broker that was
away.
Messages of event-driven groups come as they like: they are told one by one, each with a record to itself.

Pure but for the CPU: no clock, no device, no key; the same configuration has the same forecast.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import __version__
from agent.config.effective import Channel, Config
from agent.config.problems import Place
from agent.config.tables import MIB, Site
from agent.errors import Problem
from agent.evidence.envelope import MAX_ENVELOPE, protected_header, seal
from agent.evidence.record import Body, encode_data, encode_plan, encode_record, pack
from agent.evidence.timetable import anchor, due_before
from agent.foresight.walk import Walk
from agent.model import (
    Cause,
    Data,
    DeviceInfo,
    Frame,
    GroupPlan,
    Kind,
    Plan,
    Point,
    Resume,
    Schedule,
    Sealed,
)
from agent.outbox import ring
from agent.sealing.batcher import S, frame_bound, full_for
from agent.sealing.committer import PLAN_EVERY
from agent.units import size_text

ASSUMED = "values that move about 1 % per reading, no gaps; the broker's protocol (about 0.3 KiB a record) not counted"
DAY = 86_400 * S
_WALL, _BOOT = 1_800_000_000 * S + S // 7, 1_000_000 * S  # some instant
_VALUES, _RECORDS = 40_000, 256  # at most so many are played through, but three readings of each frequent group
_ROOM = MIB - ring.SEGMENT_HEADER - ring.END_ROOM  # of a segment
_DID = f"did:ethr:volta:0x{40 * '0'}"


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A group of a device as a channel sends it. ``period`` None: it is event-driven. ns."""

    device: DeviceInfo
    name: str
    points: tuple[Point, ...]
    period: int | None
    phase: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one channel, per day: records, and bytes of their envelopes. ``lasts``: how long the outbox holds what comes
    while the broker is away, ns; None: nothing is polled. ``messages``: bytes that one message of an event-driven group
    takes on its own. ``largest``: bytes of the largest envelope that cannot be avoided.
    """

    records: float
    sent: float
    lasts: float | None
    messages: Mapping[str, int]
    largest: int


def sent(channel: Channel, groups: Iterable[PlannedGroup]) -> list[PlannedGroup]:
    """What a channel takes of these groups."""
    taken = []
    for group in groups:
        names = set(channel.selection.get(group.device.id, {}).get(group.name, ()))
        if names:
            taken.append(replace(group, points=tuple(point for point in group.points if point.name in names)))
    return taken


def too_large(config: Config, groups: Sequence[PlannedGroup]) -> list[Problem]:
    """What could not become a record on any channel of a configuration (docs/outbox.md, rule 10)."""
    did = config.identity.did
    forecasters = [Forecaster(config.site, each, sent(each, groups), did=did) for each in config.channels]
    return list(dict.fromkeys(problem for each in forecasters for problem in each.problems(config.places)))


class _NoKey:
    """Stands in for the signer: a signature's length is always the same."""

    did = _DID

    def sign(self, digest: bytes) -> bytes:
        return bytes(64)


class Forecaster:
    """Plays a channel through."""

    def __init__(self, site: Site, channel: Channel, groups: Sequence[PlannedGroup], *, did: str | None = None) -> None:
        self._channel = channel
        self._groups = groups
        self._protected = protected_header(did or _DID)
        most = getattr(channel.settings, "max_envelope", None)
        self._full = full_for(most)
        self._most = MAX_ENVELOPE if most is None else min(most, MAX_ENVELOPE)
        self._plan = _plan(site, channel, groups)
        self._walks = [Walk(group.points, seed=f"{group.device.id}/{group.name}") for group in groups]
        self._bounds = [frame_bound(group.points) for group in groups]
        self._plan_size = self._size(pack(Kind.PLAN, encode_plan(self._plan)))
        self._frame_overhead = self._size(Body(Kind.DATA, 7, b""))

    def problems(self, places: Mapping[tuple[str, ...], Place]) -> Iterator[Problem]:
        """What can make a record larger than outbox or transport take (docs/outbox.md), at the place to change."""
        limit = size_text(MAX_ENVELOPE) if self._most == MAX_ENVELOPE else _kib(self._most)
        if self._plan_size > self._most:
            what = f"the plan of this channel takes {_kib(self._plan_size)}, and a record at most {limit}"
            remedy = "spread the points over several channels, or shorten names and sources"
            yield places["channel", self._channel.id].problem(what, remedy)
        for group, bound in zip(self._groups, self._bounds, strict=True):
            if bound + self._frame_overhead > self._most:
                what = f"one reading of {len(group.points)} points may take {_kib(bound)}, and a record at most {limit}"
                yield places["group", group.device.id, group.name].problem(
                    what, "spread the points over several groups"
                )

    def forecast(self) -> Forecast:
        """The figures."""
        records, sent, stored = self._data_of_a_day(self._channel.seal_within)
        largest = max([self._plan_size, *(bound + self._frame_overhead for bound in self._bounds)])
        messages = {
            f"{group.device.id}/{group.name}": self._sealed([self._frame(index, 0)])
            for index, group in enumerate(self._groups)
            if group.period is None
        }
        if not records:
            return Forecast(0, 0, None, messages, largest)
        channel, plan = self._channel, ring.size_of(self._plan_size)
        plans, _ = self._plans_of_a_day(records, stored)
        away = (records, stored)
        if channel.seal_within_away != channel.seal_within:  # the outbox fills while the broker is away
            in_outage, _, kept = self._data_of_a_day(channel.seal_within_away)
            away = (in_outage, kept)
        plans_away, room = self._plans_of_a_day(*away)
        segments = (channel.outbox.size - ring.START) // MIB - 1  # one is always being overwritten
        lasts = segments * room / (away[1] + plans_away * plan) * DAY
        return Forecast(records + plans, sent + plans * self._plan_size, lasts, messages, largest)

    def _plans_of_a_day(self, records: float, stored: float) -> tuple[float, float]:
        """How many, besides data records and their bytes in the ring; and the bytes of a segment that hold records."""
        room = _ROOM - stored / records / 2  # what does not go into a segment's end begins the next one
        plan = ring.size_of(self._plan_size)
        lap = max(1.0, room - 1.5 * plan) / stored * DAY  # ns that one segment takes; about, plans depend on it
        return DAY / min(lap, PLAN_EVERY) + (DAY / lap / 2 if lap > PLAN_EVERY else 0), room

    def _data_of_a_day(self, seal_within: int) -> tuple[float, float, float]:
        """Data records, bytes of their envelopes, and their bytes in the ring."""
        polled = {index: group.period for index, group in enumerate(self._groups) if group.period is not None}
        if not polled:
            return 0, 0, 0
        window = seal_within * 9 // 10
        step = min(polled.values())
        values = sum(len(self._groups[index].points) / period for index, period in polled.items())
        span = max(3 * max(step, window), min(_VALUES / values, _RECORDS * max(step, window)))
        frequent = {index for index, period in polled.items() if period <= max(step, span / 8)}
        longest = max(polled[index] for index in frequent)
        span = -(-int(span) // longest) * longest
        batches, span = self._batches(frequent, window, span)
        sizes = [self._sealed(frames) for frames in batches]
        a_day = DAY / span
        records, sent, stored = a_day * len(sizes), a_day * sum(sizes), a_day * sum(map(ring.size_of, sizes))
        base = sizes[-1]
        for index in polled.keys() - frequent:  # each of these goes with what is frequent, or on its own
            frame = self._frame(index, _BOOT)
            joins = any(self._meet(index, other, window) for other in frequent)
            size = (
                self._sealed(sorted([*batches[-1], frame], key=lambda each: each.group))
                if joins
                else self._sealed([frame])
            )
            times = DAY / polled[index]
            records += 0 if joins else times
            sent += times * (size - base if joins else size)
            stored += times * (ring.size_of(size) - ring.size_of(base) if joins else ring.size_of(size))
        return records, sent, stored

    def _meet(self, seldom: int, frequent: int, window: int) -> bool:
        """Whether a group's readings come while a batch with the other's is open, or open one that it still joins."""
        period, phases = self._groups[frequent].period, [self._groups[each].phase for each in (seldom, frequent)]
        apart = (phases[0] - phases[1]) % (period or 1)
        return apart <= window or (period or 1) - apart <= window

    def _batches(self, groups: set[int], window: int, span: int) -> tuple[list[list[Frame]], int]:
        """What is sealed together over a span, by group and cycle, and how long that took: the last batch is whole."""
        due = [(self._schedule(index).due(self._schedule(index).first), index) for index in groups]
        heapq.heapify(due)
        begin, batches = due[0][0], list[list[Frame]]()
        while due[0][0] < begin + span:
            closes, bound, batch = due[0][0] + window, 0, list[Frame]()
            while due[0][0] <= closes and bound < self._full:
                at, index = due[0]
                heapq.heapreplace(due, (at + self._schedule(index).period, index))
                batch.append(self._frame(index, at))
                bound += self._bounds[index]
            batches.append(sorted(batch, key=lambda frame: frame.group))
        return batches, due[0][0] - begin

    def _frame(self, index: int, at: int) -> Frame:
        """A reading; how late it was and how long it took as over a quick network."""
        walk, is_polled = self._walks[index], self._groups[index].period is not None
        values = walk.next()
        spread = at % 997
        if not is_polled:
            return Frame(index, 100_000, 150_000 + 97 * spread, None, values, source_time=_WALL)
        return Frame(index, due_before(self._schedule(index), at), 300 + spread, 9_000 + 11 * spread, values)

    def _schedule(self, index: int) -> Schedule:
        schedule = self._plan.groups[index].schedule
        assert schedule is not None
        return schedule

    def _sealed(self, frames: Sequence[Frame]) -> int:
        """Bytes of the envelope of a data record."""
        return self._size(pack(Kind.DATA, encode_data(Data(self._plan.term, frames, ()), self._plan)))

    def _size(self, body: Body) -> int:
        sealed = Sealed(_WALL, _BOOT)
        payload = encode_record(body, stream=bytes(16), seq=1_000_000, prev=bytes(32), sealed=sealed)
        return len(seal(payload, protected=self._protected, signer=_NoKey()))


def _plan(site: Site, channel: Channel, groups: Sequence[PlannedGroup]) -> Plan:
    """A plan as a later run states it."""
    devices = tuple({group.device.id: group.device for group in groups}.values())
    places = {device.id: index for index, device in enumerate(devices)}
    planned = []
    for group in groups:
        schedule = None
        if group.period is not None:
            schedule = anchor(period=group.period, phase=group.phase, wall=_WALL, boot=_BOOT)
        first = schedule.first if schedule else 0
        planned.append(GroupPlan(group.name, places[group.device.id], schedule, first, group.points))
    polled = [(group.device.id, each) for group, each in zip(groups, planned, strict=True) if each.schedule]
    return Plan(
        term=2,
        opened=(_WALL, _BOOT),
        boot_id=bytes(range(16)),
        version=__version__,
        site=site.id,
        labels=tuple(site.labels.items()),
        channel=channel.id,
        topic=channel.topic,
        configuration=bytes(range(32)),
        devices=devices,
        groups=tuple(planned),
        follows=(bytes(range(16)), 1_000_000),
        resumes=(int(Cause.AGENT_DOWN), tuple(Resume(device, each.name, 2, each.next) for device, each in polled)),
        withdrawn=(),
        volatile=False,
        window_ms=channel.longest_window // 1_000_000,
    )


def _kib(count: int) -> str:
    return f"{-(-count // 1024)} KiB"
