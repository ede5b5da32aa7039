"""The batcher: collects frames and gaps for at most the batch window, has them sealed, and puts them on disk.

``put`` accepts, and waits only while a full batch is still on its way to the disk; ``Receipt.durable`` returns once
the record is on disk. One commit is one write and one fdatasync in a worker thread. Only what is on disk is announced
to the publisher. A crash loses what was accepted and not yet committed: its cycles are stated by the next run's plan.

Plans are repeated at the head of each segment, hourly, and with the next record after a reconnect if a minute has
passed since the last one and the broker has that: one that is still to be delivered need not be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
from anyio import to_thread

from agent.errors import RecordTooLargeError
from agent.evidence.record import Body
from agent.model import (
    ClockQuality,
    Data,
    DeviceInfo,
    Event,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Point,
    Value,
    ValueType,
    Withdrawn,
)
from agent.ports import Clock, Store
from agent.refusals import Refusals
from agent.sealer import Sealer

S = 1_000_000_000
GAPS_WAIT = 10 * S  # a batch without a value may wait longer than the window
PLAN_EVERY = 3600 * S
PLAN_AT_MOST_EVERY = 60 * S  # after reconnects
STATE_EVERY = S  # what the broker refused; the publisher waits for it
LOOK_EVERY = S  # at the wall clock's quality, while a batch is open
_NEVER = 1 << 62
FULL = 160 * 1024  # bytes by the greatest possible size of what is in the batch

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Receipt:
    """Of a batch: settles when its record is on disk. ``hurried``: it waits for its window no more."""

    settled: bool = False
    hurried: bool = False
    _event: anyio.Event = field(default_factory=anyio.Event)

    async def durable(self) -> None:
        """Return once what was put is on disk; never if that fails (the process ends)."""
        await self._event.wait()

    def settle(self) -> None:
        """It is on disk."""
        self.settled = True
        self._event.set()


@dataclass(slots=True)
class Batch:
    """What is not sealed yet. ``opened``: boot time of its first value, or of its first gap if it has no value.
    ``clock``: how good the wall clock was at worst since its first value or gap; ``looked``: when it was last asked.
    """

    frames: dict[int, list[Frame]] = field(default_factory=dict)
    gaps: dict[int, list[Gap]] = field(default_factory=dict)
    opened: int | None = None
    clock: ClockQuality | None = None
    looked: int = 0
    bound: int = 0  # bytes
    receipt: Receipt = field(default_factory=Receipt)

    def add_gap(self, gap: Gap) -> None:
        """Join it to the group's last gap if it goes on with the same cause."""
        gaps = self.gaps.setdefault(gap.group, [])
        last = gaps[-1] if gaps else None
        if (
            last is not None
            and last.last is not None
            and gap.first == last.last + 1
            and (last.cause, last.detail) == (gap.cause, gap.detail)
        ):
            gaps[-1] = replace(last, last=gap.last)
        else:
            gaps.append(gap)
            self.bound += 64 + len((gap.detail or "").encode())

    def data(self, term: int) -> Data:
        """The body: frames and gaps by group."""
        frames = [frame for _, group in sorted(self.frames.items()) for frame in group]
        return Data(term, frames, [gap for _, group in sorted(self.gaps.items()) for gap in group])


class Batcher:
    """Frames and gaps in, records on disk."""

    def __init__(
        self,
        *,
        outbox: Store,
        sealer: Sealer,
        clock: Clock,
        window: int,
        started: tuple[Value, ...] | None = None,
        on_durable: Callable[[Sequence[bytes]], None] = lambda envelopes: None,
        refusals: Refusals | None = None,
    ) -> None:
        """``window`` in ns: a value is on disk this soon after it was read. ``started``: details of the start event,
        which comes behind a run's first plan; None: none. ``on_durable`` gets what has just come onto the disk.
        ``refusals``: what plans must state; takes over ``on_new``.
        """
        self._outbox = outbox
        self._sealer = sealer
        self._clock = clock
        self._window = window * 9 // 10  # the rest is for sealing and the disk
        self._started = started
        self._on_durable = on_durable
        self._refusals = refusals if refusals is not None else Refusals()
        self._refusals.on_new = lambda: self._sleep.cancel()
        self._batch = Batch()
        self._frame_bounds: list[int] = []
        self._texts: list[tuple[int, ...]] = []  # by group: points whose values have no greatest length
        self._sleep = anyio.CancelScope()  # of ``run``; cancelled when it must look again
        self._room = anyio.Event()
        self._commits = anyio.Lock()
        self._planned: int | None = None  # boot time of the last plan
        self._plan_pos = 0
        self._plan_wanted = False
        self._stated: tuple[int, tuple[Withdrawn, ...]] | None = None  # position of the plan that first stated these
        self._losses_known = 0  # of ``outbox.lost``
        self.dropped = 0  # records overwritten before they were acknowledged, since start
        self.plan: bytes | None = None  # envelope of the last plan

    # ---- in -------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether nothing may be put until the batch is on its way to the disk."""
        return self._batch.bound >= FULL

    async def room(self) -> None:
        """Wait until the batch is on its way to the disk; others may wait for that, too."""
        while self.full:
            await self._room.wait()

    def put(self, item: Frame | Gap) -> Receipt:
        """Accept a frame or a gap of the term in force."""
        batch = self._batch
        if isinstance(item, Frame):
            if not batch.frames:  # the window of a value is shorter than that of gaps alone
                self._open(batch)
            batch.frames.setdefault(item.group, []).append(item)
            batch.bound += self._frame_bounds[item.group]
            for point in self._texts[item.group]:
                batch.bound += 4 * len(item.values[point] or "")  # type: ignore[arg-type]  # text, bytes or None
        else:
            if batch.opened is None:
                self._open(batch)
            batch.add_gap(item)
        if batch.bound >= FULL:
            self._sleep.cancel()
        return batch.receipt

    def _open(self, batch: Batch) -> None:
        batch.opened = self._clock.boot()
        self._look(batch, batch.opened)
        self._sleep.cancel()

    def _look(self, batch: Batch, now: int) -> None:
        """Note how good the wall clock is."""
        quality = self._clock.quality()
        batch.clock, batch.looked = quality if batch.clock is None else quality.worst(batch.clock), now

    async def begin_term(
        self, *, opened: tuple[int, int], devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
    ) -> None:
        """Seal what belongs to the old term, then the plan of the new one; returns when it is on disk."""
        await self.flush()
        async with self._commits:
            self._sealer.begin_term(opened=opened, devices=devices, groups=groups)
            self._frame_bounds = [frame_bound(group.points) for group in groups]
            self._texts = [
                tuple(i for i, point in enumerate(group.points) if point.type in (ValueType.TEXT, ValueType.BYTES))
                for group in groups
            ]
            bodies = []
            if self._sealer.term == 1 and self._started is not None:
                bodies = [self._sealer.event_body(Event(EventCode.START, self._clock.boot(), self._started))]
            await self._commit(bodies, None, plan=True)
        self._sleep.cancel()
        log.info(
            "term begun channel=%s run=%s term=%d groups=%d",
            self._sealer.facts.channel,
            self._sealer.stream.hex(),
            self._sealer.term,
            len(groups),
        )

    async def event(self, code: EventCode, *details: Value) -> None:
        """Seal an event now, behind what was put before it."""
        await self.flush(Event(code, self._clock.boot(), details))

    def restate(self) -> None:
        """The broker is back: repeat the plan with the next record, at most once a minute."""
        if self._planned is not None and self._outbox.acked >= self._plan_pos:
            self._plan_wanted = True

    def hurry(self) -> None:
        """Somebody waits for what was put: seal it now."""
        batch = self._batch
        if batch.opened is not None and not batch.receipt.hurried:
            batch.receipt.hurried = True
            self._sleep.cancel()

    # ---- out ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit each batch when its window ends or it is full. Raises OutboxError, SignerError."""
        while True:
            batch, deadline, now = self._batch, self._deadline(), self._clock.boot()
            if deadline <= now:
                await self.flush()
                continue
            if batch.opened is not None:
                if batch.looked + LOOK_EVERY <= now:
                    self._look(batch, now)
                deadline = min(deadline, batch.looked + LOOK_EVERY)
            with anyio.CancelScope() as self._sleep:
                await self._clock.sleep_until(deadline)

    async def flush(self, event: Event | None = None) -> None:
        """Seal what is there, and the event behind it; returns when it is on disk. Raises OutboxError, SignerError."""
        async with self._commits:
            batch, self._batch = self._batch, Batch()
            batch.receipt.hurried = True
            self._room.set()
            self._room = anyio.Event()
            data = batch.data(self._sealer.term) if batch.opened is not None else None
            if data is not None or event is not None or self._plan_due() <= self._clock.boot():
                bodies = [self._sealer.event_body(event)] if event else []
                await self._commit(bodies, data, plan=False, clock=batch.clock)
                batch.receipt.settle()

    async def mark(self) -> None:
        """Have the disk know what the broker acknowledged, if no record has told it. Raises OutboxError."""
        async with self._commits:  # the outbox has one writer at a time
            await to_thread.run_sync(self._outbox.mark)

    def _deadline(self) -> int:
        """When the batch must be sealed; without one, when the plan must be repeated."""
        batch = self._batch
        if batch.opened is None:
            return self._plan_due()
        if batch.receipt.hurried or batch.bound >= FULL:
            return batch.opened
        due = batch.opened + (self._window if batch.frames else max(self._window, GAPS_WAIT))
        return min(due, self._plan_due()) if self._refusals else due

    def _plan_due(self) -> int:
        if self._planned is None:
            return _NEVER
        return self._planned + (STATE_EVERY if self._refusals else PLAN_EVERY)

    async def _commit(
        self, bodies: list[Body], data: Data | None, *, plan: bool, clock: ClockQuality | None = None
    ) -> None:
        """Seal in order (plan, data, others) and write them in one go; a plan goes first wherever a segment begins.
        ``clock``: how good the wall clock was at worst since the batch was opened.
        """
        at = self._sealer.now(clock)
        if data is not None:
            bodies.insert(0, self._sealer.data_body(data, at=at))
        now = at.boot
        wanted = self._plan_wanted and self._planned is not None and now - self._planned >= PLAN_AT_MOST_EVERY
        self._forget_withdrawn()
        plan = plan or wanted or self._plan_due() <= now
        if losses := self._new_losses():
            plan = True
            bodies.append(self._sealer.event_body(Event(EventCode.OUTBOX_DAMAGED, now, (losses,))))
        refused = self._refusals.unstated() if plan else {}
        if plan:
            self._sealer.withdraw(tuple(refused.values()))
            bodies.insert(0, self._sealer.plan_body())
        new_segment = not self._outbox.fits(self._sealer.bound(bodies), len(bodies))
        if new_segment:
            with anyio.CancelScope(shield=True):  # what was taken out of the batch is not dropped
                gone = await to_thread.run_sync(self._outbox.overwritten)
            self._sealer.withdraw(gone)
            if gone:
                self.dropped += _count(gone)
                log.warning(
                    "outbox full, oldest records dropped channel=%s records=%d",
                    self._sealer.facts.channel,
                    _count(gone),
                )
            bodies[: int(plan)] = [self._sealer.plan_body()]
            plan = True
        for body in bodies:
            if self._sealer.bound([body]) > self._outbox.max_envelope:
                raise RecordTooLargeError(
                    f"a {body.kind.name.lower()} record of {len(body.content)} bytes is larger than the outbox takes",
                    hint="spread the points over several groups and channels, or shorten seal_within",
                )
        records = [self._sealer.seal(body, at=at) for body in bodies[: int(plan)]]
        if data is not None:
            for problem in self._sealer.cover(data):
                log.error("evidence incomplete channel=%s problem=%s", self._sealer.facts.channel, problem)
        records += [self._sealer.seal(body, at=at) for body in bodies[int(plan) :]]
        with anyio.CancelScope(shield=True):  # a record that was sealed must reach the disk, or the process must end
            positions = await to_thread.run_sync(lambda: self._outbox.append(records, new_segment=new_segment))
        if plan:
            self.plan = records[0][0]
            self._planned, self._plan_pos, self._plan_wanted = now, positions[0], False
            if self._stated is None or self._stated[1] != self._sealer.withdrawn:
                self._stated = (positions[0], self._sealer.withdrawn)
        self._refusals.stated(refused)
        self._on_durable([envelope for envelope, _ in records])

    def _new_losses(self) -> str:
        """State what the outbox misses since it was last asked; returns it in words, nothing if there is none."""
        new = self._outbox.lost[self._losses_known :]
        self._losses_known += len(new)
        if not new:
            return ""
        self._sealer.withdraw(new)
        log.error(
            "outbox damaged, records cannot be read channel=%s records=%d", self._sealer.facts.channel, _count(new)
        )
        return f"{_count(new)} records cannot be read"

    def _forget_withdrawn(self) -> None:
        """Withdrawn ranges go once a record sealed after the plan that stated them is acknowledged."""
        if (
            self._stated is not None
            and self._stated[1] == self._sealer.withdrawn
            and self._outbox.acked > self._stated[0]
        ):
            self._sealer.forget_withdrawn()


def _count(ranges: Sequence[Withdrawn]) -> int:
    return sum(each.last - each.first + 1 for each in ranges)


def frame_bound(points: Sequence[Point]) -> int:
    """Bytes of a frame at most, quality included; texts and bytes without their content."""
    return 24 + sum(10 if point.type is ValueType.BOOLEAN else 18 for point in points)
