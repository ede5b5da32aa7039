"""The committer: bodies in, sealed records on disk, with one write and one fdatasync for each commit.

A plan goes first wherever a segment begins, hourly, and with the next record after a reconnect if a minute has passed
since the last one and the broker has that: one that is still to be delivered need not be repeated. What a new segment
overwrites unacknowledged, and what the outbox misses, is stated in the plans from then on. Nothing is sealed twice:
room is asked for before (docs/outbox.md, rule 6), and when a write fails the run is over.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import anyio
from anyio import to_thread

from agent.delivery.refusals import Refusals
from agent.errors import RecordTooLargeError
from agent.evidence.record import Body
from agent.model import Event, EventCode, Link, Withdrawn
from agent.ports import Store
from agent.sealing.batch import Batch
from agent.sealing.sealer import Sealer

S = 1_000_000_000
PLAN_EVERY = 3600 * S
PLAN_AT_MOST_EVERY = 60 * S  # after reconnects
STATE_EVERY = S  # what the broker refused; the publisher waits for it
_NEVER = 1 << 62

log = logging.getLogger(__name__)


class Committer:
    """Puts one commit after the other into an outbox; its caller sees to it that they do not meet."""

    def __init__(
        self,
        *,
        outbox: Store,
        sealer: Sealer,
        block: bool,
        on_durable: Callable[[Sequence[bytes]], None],
        refusals: Refusals,
    ) -> None:
        """``block``: what is not acknowledged is never overwritten. ``on_durable`` gets what has just come onto the
        disk. ``refusals``: what plans must state.
        """
        self._refusals = refusals
        self._outbox = outbox
        self._sealer = sealer
        self._block = block
        self._on_durable = on_durable
        self._planned: int | None = None  # boot time of the last plan
        self._plan_pos = 0
        self._plan_wanted = False
        self._stated: tuple[int, tuple[Withdrawn, ...]] | None = None  # position of the plan that first stated these
        self._losses_known = 0  # of ``outbox.lost``
        self._losses = 0  # records: found and not yet told by an event
        self._unsure: tuple[Link, int] | None = None  # of the commit under way: its data record, and its frames
        self.dropped = 0  # records overwritten before they were acknowledged
        self.unreadable = 0  # records that the outbox misses
        self.records = self.frames = 0  # put on disk
        self.gaps: Counter[int] = Counter()  # cycles that are stated as missing on disk; a span of time counts one
        self.plan: bytes | None = None  # envelope of the last plan

    @property
    def plan_due(self) -> int:
        """Boot time at which the plan must be repeated."""
        if self._planned is None:
            return _NEVER
        return self._planned + (STATE_EVERY if self._refusals else PLAN_EVERY)

    def restate(self) -> None:
        """The broker is back: repeat the plan with the next record, at most once a minute."""
        if self._planned is not None and self._outbox.acked >= self._plan_pos:
            self._plan_wanted = True

    async def commit(self, bodies: list[Body], batch: Batch | None, *, plan: bool = False) -> int | None:
        """Seal in order (plan, data, others) and write them in one go; returns the last one's position once they are on
        disk. None: there is no room, and nothing was sealed.

        Raises OutboxError, after which nothing may be committed any more; SignerError.
        """
        at = self._sealer.now(batch.clock if batch else None)
        data = batch.data(self._sealer.term) if batch else None
        if data is not None:
            bodies.insert(0, self._sealer.data_body(data, at=at))
        now = at.boot
        wanted = self._plan_wanted and self._planned is not None and now - self._planned >= PLAN_AT_MOST_EVERY
        self._forget_withdrawn()
        plan = plan or wanted or self.plan_due <= now
        self._find_losses()
        if self._losses:
            plan = True
            words = f"{self._losses} records cannot be read"
            bodies.append(self._sealer.event_body(Event(EventCode.OUTBOX_DAMAGED, now, (words,))))
        refused = self._refusals.unstated() if plan else {}
        if plan:
            self._sealer.withdraw(tuple(refused.values()))
            bodies.insert(0, self._sealer.plan_body())
        new_segment = not self._outbox.fits(self._sealer.bound(bodies), len(bodies))
        if new_segment:
            gone = await to_thread.run_sync(self._outbox.overwritten)
            if gone and self._block:
                self._make_room()
                return None
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
        self._unsure = (records[int(plan)][1], batch.count) if batch else None
        with anyio.CancelScope(shield=True):  # a record that was sealed must reach the disk, or the run must end
            positions = await to_thread.run_sync(lambda: self._outbox.append(records, new_segment=new_segment))
        self._unsure, self._losses = None, 0
        self._count(records, batch)
        if plan:
            self.plan = records[0][0]
            self._planned, self._plan_pos, self._plan_wanted = now, positions[0], False
            if self._stated is None or self._stated[1] != self._sealer.withdrawn:
                self._stated = (positions[0], self._sealer.withdrawn)
        self._refusals.stated(refused)
        self._on_durable([envelope for envelope, _ in records])
        return positions[-1]

    def _count(self, records: Sequence[tuple[bytes, Link]], batch: Batch | None) -> None:
        self.records += len(records)
        if batch is not None:
            self.frames += batch.count
            for gaps in batch.gaps.values():
                for gap in gaps:
                    self.gaps[gap.cause] += 1 if gap.first is None or gap.last is None else gap.last - gap.first + 1

    def _make_room(self) -> None:
        """What was refused for good holds up the oldest segment: from now on it counts as stated. The plan that opens
        the next segment does so, and before that nothing on disk calls it acknowledged (``Batcher.mark``).
        """
        refused = self._refusals.unstated()
        self._sealer.withdraw(tuple(refused.values()))
        self._refusals.stated(refused)

    def found(self, last: Link | None) -> int:
        """``last`` is what recovery found at the end of the outbox after a commit failed: returns how many frames of
        that commit are there all the same.
        """
        if self._unsure is not None and last is not None:
            link, frames = self._unsure
            if last.stream == link.stream and last.seq >= link.seq:
                return frames
        return 0

    def _find_losses(self) -> None:
        """State what the outbox misses since it was last asked."""
        new = self._outbox.lost[self._losses_known :]
        self._losses_known += len(new)
        if new:
            self._losses += _count(new)
            self.unreadable += _count(new)
            self._sealer.withdraw(new)
            log.error(
                "outbox damaged, records cannot be read channel=%s records=%d", self._sealer.facts.channel, _count(new)
            )

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
