"""The batcher: collects frames and gaps for at most the batch window, has them sealed, and puts them on disk.

``put`` accepts, and waits only while a full batch is still on its way to the disk; ``Receipt.durable`` returns once
the record is on disk. One commit is one write and one fdatasync in a worker thread. Only what is on disk is announced
to the publisher. A crash loses what was accepted and not yet committed: its cycles are stated by the next run's plan.

What goes onto the disk stands in one queue, in order: batches, events, plans of new terms. A job leaves it when it is
on disk. Two things can keep it there:

- The outbox fails: its state is unknown, nothing is tried again (docs/outbox.md, rule 2). ``failed`` says why; from
  then on all that is put is dropped and counted, receipts fail, and ``run`` raises. Nobody else is told by an error.
- It is full and must not overwrite what is not acknowledged (``block``). Nothing is sealed until there is room: only
  ``run`` waits for that, all others return at once. When two batches wait in memory it is ``stuck``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import anyio
from anyio import to_thread

from agent.delivery.refusals import Refusals
from agent.errors import OutboxError, RecordTooLargeError
from agent.heartbeat import Heartbeat
from agent.model import Cause, DeviceInfo, Event, EventCode, Frame, Gap, GroupPlan, Link, Point, Value, ValueType
from agent.ports import Clock, Store
from agent.sealing.batch import Batch, Job, NextTerm, Receipt
from agent.sealing.committer import Committer
from agent.sealing.sealer import Sealer

S = 1_000_000_000
GAPS_WAIT = 10 * S  # a batch without a value may wait longer than the window
LOOK_EVERY = S  # at the wall clock's quality, while a batch is open
LOOK_FOR_ROOM = 0.2  # s: a blocked outbox is asked for room this often at most, it reads the disk for that
WRITE_WITHIN = 60 * S  # a write or sync that takes longer hangs: no card stalls for so long and goes on
FULL = 160 * 1024  # bytes by the greatest possible size of what is in the batch


def full_for(max_envelope: int | None) -> int:
    """At how many bytes a batch is closed so that its record goes into an envelope of at most so many."""
    return FULL if max_envelope is None else min(FULL, max_envelope * 3 // 4)


log = logging.getLogger(__name__)


class Batcher:
    """Frames and gaps in, records on disk."""

    def __init__(
        self,
        *,
        outbox: Store,
        sealer: Sealer,
        clock: Clock,
        window: int,
        window_away: int | None = None,
        away: Callable[[], bool] = lambda: False,
        block: bool = False,
        full: int = FULL,
        started: tuple[Value, ...] | None = None,
        unstored_since: int | None = None,
        on_durable: Callable[[Sequence[bytes]], None] = lambda envelopes: None,
        refusals: Refusals | None = None,
    ) -> None:
        """``window`` in ns: a value is on disk this soon after it was read; ``window_away`` while ``away`` says that
        the broker is. ``block``: what is not acknowledged is never overwritten. ``full``: bytes, by their greatest
        possible size, at which a batch is closed. ``started``: details of the start
        event, which comes behind a run's first plan; None: none. ``unstored_since``: from this boot time on, until the
        first term, nothing was stored though the agent lived; None: it did not. ``on_durable`` gets what has just come
        onto the disk. ``refusals``: what plans must state; takes over ``on_new``.
        """
        self._outbox = outbox
        self._sealer = sealer
        self._clock = clock
        self._window = window * 9 // 10  # the rest is for sealing and the disk
        self._window_away = (window if window_away is None else window_away) * 9 // 10
        self._away = away
        self._refusals = refusals if refusals is not None else Refusals()
        self._refusals.on_new = self._refused
        self.committer = Committer(
            outbox=outbox, sealer=sealer, block=block, on_durable=on_durable, refusals=self._refusals
        )
        self._started = started
        self._unstored_since = unstored_since
        self._told_until = 0  # boot time: of event-driven groups all before it is stated
        self._full = full
        self._batch = Batch()
        self._jobs: deque[Job] = deque()
        self._frame_bounds: list[int] = []
        self._texts: list[tuple[int, ...]] = []  # by group: points whose values have no greatest length
        self._sleep = anyio.CancelScope()  # of ``run``; cancelled when it must look again
        self._room = anyio.Event()
        self._moved = anyio.Event()  # what is acknowledged, or anything else that ends a wait for room
        self._commits = anyio.Lock()
        self._owed: deque[tuple[int, Receipt]] = deque()  # of a volatile run: position, and what waits for the broker
        self._over = False  # nothing is stored any more
        self.beat = Heartbeat(f"writer of {sealer.facts.channel}")
        self.failed: OutboxError | None = None
        self.blocked = False
        self.not_stored = 0  # frames that were dropped because nothing could be stored

    # ---- in -------------------------------------------------------------------------------------------------

    @property
    def storing(self) -> bool:
        """Whether what is put can come onto the disk."""
        return not self._over

    @property
    def plan(self) -> bytes | None:
        """Envelope of the last plan."""
        return self.committer.plan

    @property
    def full(self) -> bool:
        """Whether nothing may be put until the batch is on its way to the disk."""
        return self._batch.bound >= self._full and not self.blocked

    async def room(self) -> None:
        """Wait until the batch is on its way to the disk; others may wait for that, too."""
        while self.full:
            await self._room.wait()

    @property
    def stuck(self) -> bool:
        """Whether nothing should be put until the broker has acknowledged more. What is put all the same is taken."""
        return self.blocked and self._batch.bound + sum(job.batch.bound for job in self._jobs) >= 2 * self._full

    async def moving(self) -> None:
        """Wait while it is stuck."""
        while self.stuck:
            await self._room.wait()

    def put(self, item: Frame | Gap) -> Receipt:
        """Accept a frame or a gap of the term in force."""
        batch = self._batch
        if self._over:
            self.not_stored += isinstance(item, Frame)
            return batch.receipt
        if isinstance(item, Frame):
            if item.received is not None and item.received < self._told_until:
                batch.end_unstored(item.group, item.received)
            if not batch.frames:  # the window of a value is shorter than that of gaps alone
                self._open(batch)
            batch.frames.setdefault(item.group, []).append(item)
            batch.bound += self._frame_bounds[item.group]
            for point in self._texts[item.group]:
                batch.bound += 4 * len(item.values[point] or "")  # type: ignore[arg-type]  # text, bytes or None
        else:
            if item.from_boot is not None and item.to_boot is not None and item.from_boot < self._told_until:
                if item.to_boot <= self._told_until:
                    return batch.receipt
                item = replace(item, from_boot=self._told_until)
            if batch.opened is None:
                self._open(batch)
            batch.add_gap(item)
        if batch.bound >= self._full:
            if self.blocked:
                self._take()  # two records, not one that may be larger than the outbox takes
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
        """Seal what belongs to the old term, then the plan of the new one; returns when it is on disk, or cannot be for
        now. What is put from now on belongs to the new term.
        """
        async with self._commits:
            if self._over:
                return
            self._take()
            self._jobs.append(Job(term=NextTerm(opened, devices, groups)))
            self._frame_bounds = [frame_bound(group.points) for group in groups]
            self._texts = [
                tuple(i for i, point in enumerate(group.points) if point.type in (ValueType.TEXT, ValueType.BYTES))
                for group in groups
            ]
            self._state_unstored(opened[1], groups)
            await self._work()
        self._sleep.cancel()

    def _state_unstored(self, until: int, groups: Sequence[GroupPlan]) -> None:
        """At a run's first term: what was not stored since the run before, of event-driven groups; of the others the
        plan's ``resumes`` tells.
        """
        if self._unstored_since is not None and self._unstored_since < until:
            for index, group in enumerate(groups):
                if group.schedule is None:
                    self.put(Gap(index, None, None, Cause.NOT_STORED, None, self._unstored_since, until))
            self._told_until = until
        self._unstored_since = None

    async def event(self, code: EventCode, *details: Value) -> None:
        """Seal an event now, behind what was put before it; returns when it is on disk, or cannot be for now."""
        await self.flush(Event(code, self._clock.boot(), details))

    def restate(self) -> None:
        """The broker is back: repeat the plan with the next record, at most once a minute."""
        self.committer.restate()

    def hurry(self) -> None:
        """Somebody waits for what was put: seal it now."""
        batch = self._batch
        if batch.opened is not None and not batch.receipt.hurried:
            batch.receipt.hurried = True
            self._sleep.cancel()

    def _refused(self) -> None:
        """The broker will never take a record: a plan has to say so soon, or room may be had without it."""
        self._sleep.cancel()
        self._moved.set()

    def acknowledged(self) -> None:
        """The broker has more than before: there may be room, and what is kept in memory only is safe now."""
        while self._owed and self._owed[0][0] <= self._outbox.acked:
            self._owed.popleft()[1].settle()
        self._moved.set()

    # ---- out ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit each batch when its window ends or it is full. Raises OutboxError, SignerError."""
        while True:
            if self.failed is not None:
                raise self.failed
            if self.blocked:
                await self._moved.wait()
                await anyio.sleep(LOOK_FOR_ROOM)
                self._moved = anyio.Event()
                async with self._commits:
                    await self._work()
                continue
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
        """Seal what is there, and the event behind it; returns when it is on disk, or cannot be for now."""
        async with self._commits:
            if not self._over:
                self._take(event)
                await self._work()

    async def mark(self) -> None:
        """Have the disk know what the broker acknowledged, if no record has told it."""
        async with self._commits:  # the outbox has one writer at a time
            if not self._over and not self.blocked:  # then the next segment's plan tells it, with what it must state
                try:
                    with self.beat.back_by(self._clock.boot() + WRITE_WITHIN):
                        await to_thread.run_sync(self._outbox.mark)
                except OutboxError as error:
                    self.fail(error)

    def _deadline(self) -> int:
        """When the batch must be sealed; without one, when the plan must be repeated."""
        batch = self._batch
        if batch.opened is None:
            return self.committer.plan_due
        if batch.receipt.hurried or batch.bound >= self._full:
            return batch.opened
        window = self._window_away if self._away() else self._window
        due = batch.opened + (window if batch.frames else max(window, GAPS_WAIT))
        return min(due, self.committer.plan_due) if self._refusals else due

    def _take(self, event: Event | None = None) -> None:
        """Put what is there at the end of the queue, and the event behind it."""
        if self._batch.opened is None and event is None and self.committer.plan_due > self._clock.boot():
            return  # nothing is there, and no plan is due
        batch, self._batch = self._batch, Batch()
        batch.receipt.hurried = True
        self._jobs.append(Job(batch, event))
        self._tell_room()

    async def unblocked(self) -> None:
        """Return once nothing waits for room in the outbox."""
        while self.blocked:
            await self._room.wait()

    def _tell_room(self) -> None:
        self._room.set()
        self._room = anyio.Event()

    async def _work(self) -> None:
        """Do what is in the queue, as far as the outbox takes it; ``_commits`` is held. It loses nothing when it is
        cancelled. Raises SignerError and RecordTooLargeError, which no other outbox would mend.
        """
        while self._jobs:
            job = self._jobs[0]
            try:
                with self.beat.back_by(self._clock.boot() + WRITE_WITHIN):
                    done = await self._do(job)
            except RecordTooLargeError:
                raise
            except OutboxError as error:
                self.fail(error)
                return
            if not done:
                if not self.blocked:
                    log.warning("outbox full, waiting for the broker channel=%s", self._sealer.facts.channel)
                self.blocked = True
                self._tell_room()
                self._sleep.cancel()
                return
            if self._jobs:  # else it was given up meanwhile
                self._jobs.popleft()
            self._tell_room()
        if self.blocked:
            self.blocked = False
            self._tell_room()
            log.info("outbox has room again channel=%s", self._sealer.facts.channel)

    async def _do(self, job: Job) -> bool:
        """Have a job done on disk; False if the outbox has no room for it."""
        if (term := job.term) is not None:
            if not term.begun:
                self._sealer.begin_term(opened=term.opened, devices=term.devices, groups=term.groups)
                term.begun = True
            bodies = []
            if self._sealer.term == 1 and self._started is not None:
                bodies = [self._sealer.event_body(Event(EventCode.START, self._clock.boot(), self._started))]
            if await self.committer.commit(bodies, None, plan=True) is None:
                return False
            log.info(
                "term begun channel=%s run=%s term=%d groups=%d",
                self._sealer.facts.channel,
                self._sealer.stream.hex(),
                self._sealer.term,
                len(term.groups),
            )
            return True
        batch = job.batch if job.batch.opened is not None else None
        bodies = [self._sealer.event_body(job.event)] if job.event else []
        position = await self.committer.commit(bodies, batch)
        if position is None:
            return False
        if self._sealer.volatile:
            self._owed.append((position, job.batch.receipt))
            self.acknowledged()
        else:
            job.batch.receipt.settle()
        return True

    # ---- when the outbox fails ------------------------------------------------------------------------------

    def fail(self, error: OutboxError) -> None:
        """Nothing is stored any more; ``run`` raises this."""
        if self.failed is None:
            self.failed = error
            self.discard()

    def discard(self) -> None:
        """Drop what was put and is not known to be on disk, and all that is put from now on: its receipts fail."""
        self._over = True
        for batch in [*(job.batch for job in self._jobs), self._batch]:
            self.not_stored += batch.count
            batch.receipt.fail()
        for _, receipt in self._owed:
            receipt.fail()
        self._owed.clear()
        self._jobs.clear()
        self._batch, self.blocked = Batch(), False
        self._batch.receipt.fail()
        self._tell_room()
        self._moved.set()
        self._sleep.cancel()

    def found(self, last: Link | None) -> None:
        """``last`` is what recovery found at the end of the outbox: a commit that failed may be there all the same."""
        self.not_stored -= self.committer.found(last)


def frame_bound(points: Sequence[Point]) -> int:
    """Bytes of a frame at most, quality included; texts and bytes without their content."""
    return 24 + sum(10 if point.type is ValueType.BOOLEAN else 18 for point in points)
