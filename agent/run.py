"""A run on a channel: one stream of records, from the opening of its outbox to its end, and what seals and delivers it.

The nesting of its task groups is the order of its end: first nothing more is sealed, and a stop event closes the
stream; then what can still be delivered is delivered, for a bounded time; then the outbox closes. When the outbox fails
all of it ends at once; a crash at any point leaves the outbox as its last commit left it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
from anyio import to_thread

from agent import kinds
from agent.config.effective import Channel as Configured
from agent.delivery.drain import Drain
from agent.delivery.latency import Latency, Pace
from agent.delivery.publisher import Publisher
from agent.delivery.refusals import Refusals
from agent.errors import OutboxError, RecordTooLargeError, TransportError, only
from agent.evidence.history import History
from agent.heartbeat import Vitals
from agent.model import Cause, EventCode
from agent.outbox import MemoryStore, Outbox
from agent.outbox.look import sealed_at
from agent.ports import Clock, Signer
from agent.router import Route
from agent.sealing.batcher import Batcher, full_for
from agent.sealing.sealer import Facts, Sealer

MARK_EVERY = 10.0  # s: how soon the disk knows what was acknowledged, when no record is written

log = logging.getLogger(__name__)


class Run:
    """``live`` is all of it, from opened to closed; ``conclude`` begins its end. ``after``: it delivers nothing before
    that has closed.
    """

    def __init__(
        self,
        channel: str,
        *,
        store: Outbox | MemoryStore,
        sealer: Sealer,
        batcher: Batcher,
        publisher: Publisher,
        route: Route,
        latency: Latency,
        vitals: Vitals,
        after: Run | None = None,
    ) -> None:
        self.store = store
        self.sealer = sealer
        self.batcher = batcher
        self.publisher = publisher
        self.route = route
        self.latency = latency
        self.given_up = 0  # records that were kept in memory only, and the broker never had
        self.closed = anyio.Event()
        self._channel = channel
        self._after = after
        self._vitals = vitals
        self._ending: tuple[str, float] = ("", 0)  # reason, and s for what can still be delivered
        self._end = anyio.Event()
        self._sealed = anyio.Event()

    async def live(self) -> OutboxError | None:
        """Seal and deliver until ``conclude``. Returns why not until then: the outbox failed. Raises SignerError, and
        RecordTooLargeError.
        """
        error: OutboxError | None = None
        try:
            with self._vitals.watching(self.batcher.beat, self.publisher.beat):
                await self._live()
        except (OutboxError, BaseExceptionGroup) as raised:
            error = _failure(raised)
            self.batcher.fail(error)
        finally:
            if self.sealer.volatile and (left := self.store.pending.records):
                self.given_up = left
                log.warning("what was kept in memory is given up channel=%s records=%d", self._channel, left)
            self.batcher.discard()
            self._sealed.set()
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self.store.close)
            self.closed.set()
        return error

    async def _live(self) -> None:
        batcher = self.batcher
        async with anyio.create_task_group() as delivery:
            delivery.start_soon(self._deliver)
            delivery.start_soon(self._mark)
            async with anyio.create_task_group() as sealing:
                sealing.start_soon(batcher.run)
                await self._end.wait()
                reason, drain_within = self._ending
                deadline = anyio.current_time() + drain_within
                if self.sealer.term:
                    await batcher.event(EventCode.STOP, reason)
                with anyio.CancelScope(deadline=deadline):
                    await batcher.unblocked()
                if batcher.blocked:
                    batcher.discard()
                    log.warning("outbox full, its run ends without its last records channel=%s", self._channel)
                sealing.cancel_scope.cancel()
            if batcher.failed:
                raise batcher.failed
            self._sealed.set()
            with anyio.CancelScope(deadline=deadline):
                await self.publisher.drained()
            delivery.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await batcher.mark()
        if batcher.failed:
            raise batcher.failed

    async def _deliver(self) -> None:
        if self._after is not None:
            await self._after.closed.wait()
        await self.publisher.run()

    async def _mark(self) -> None:
        """Have the disk know within ten seconds what the broker acknowledged, and people if the file was removed."""
        told = False
        while True:
            await self._find_oldest()
            await anyio.sleep(MARK_EVERY)
            await self.batcher.mark()
            if not told and isinstance(self.store, Outbox) and self.store.removed:
                told = True
                log.error("outbox was removed, what it holds ends with the agent channel=%s", self._channel)

    async def _find_oldest(self) -> None:
        """Note when the oldest record of earlier runs that waits was sealed, as long as there is one."""
        acked = self.store.acked
        if acked < self.latency.backlog:
            stored = await to_thread.run_sync(lambda: self.store.read(acked, max_bytes=1))
            self.latency.backlog_wall = sealed_at(stored[0].envelope) if stored else None

    async def conclude(self, reason: str, *, drain_within: float) -> None:
        """Seal what is there and a stop event; returns when it is on disk, or cannot be. ``live`` ends by itself."""
        if not self._end.is_set():
            self._ending = (reason, drain_within)
            self._end.set()
        await self._sealed.wait()


@dataclass(frozen=True, slots=True)
class Means:
    """What all runs of a channel have in common. ``facts``: what plans say, given the outbox's salt. ``elsewhere``:
    whether a stream of ours is one that the outbox never held. ``seen`` gets the envelopes that have just come onto the
    disk.
    """

    facts: Callable[[Configured, bytes], Facts]
    signer: Signer
    clock: Clock
    drain: Drain
    pace: Pace
    vitals: Vitals
    elsewhere: Callable[[bytes], bool]
    seen: Callable[[Sequence[bytes]], None]


def make_run(
    configured: Configured,
    store: Outbox | MemoryStore,
    history: History,
    means: Means,
    *,
    unstored: bool = False,
    after: Run | None = None,
) -> Run:
    """A run on a store that holds ``history``; one in memory is volatile, and has no start event. ``unstored``: nothing
    was stored since the run before, though the agent lived.
    """
    in_memory = isinstance(store, MemoryStore)
    clock, refusals, latency = means.clock, Refusals(), Latency(means.pace)
    latency.backlog = store.next_pos - 1
    sealer = Sealer(
        means.facts(configured, store.salt),
        signer=means.signer,
        clock=clock,
        last=None if isinstance(store, MemoryStore) else store.last,
        history=history,
        cause=Cause.NOT_STORED if unstored else Cause.AGENT_DOWN,
        volatile=in_memory,
    )
    transport = kinds.load(configured.transport)(
        configured.settings, topic=configured.topic, signer=means.signer, clock=clock
    )
    publisher = Publisher(
        channel=configured.id,
        store=store,
        transport=transport,
        did=means.signer.did,
        topic=configured.topic,
        clock=clock,
        drain=means.drain,
        refusals=refusals,
        elsewhere=(lambda stream: True) if in_memory else means.elsewhere,
    )

    def durable(envelopes: Sequence[bytes]) -> None:
        latency.stored(store.next_pos - 1, seq=sealer.seq, now=clock.boot())
        publisher.notify()
        means.seen(envelopes)

    batcher = Batcher(
        outbox=store,
        sealer=sealer,
        clock=clock,
        window=configured.seal_within,
        window_away=configured.seal_within_away,
        away=lambda: not publisher.connected,
        full=full_for(transport.max_envelope),
        block=configured.outbox.when_full == "block" and not in_memory,
        started=None if in_memory else (sealer.facts.version, history.clean),
        unstored_since=history.sealed if unstored else None,
        on_durable=durable,
        refusals=refusals,
    )

    def acknowledged() -> None:
        latency.settled(store.acked, acknowledged=publisher.acknowledged, now=clock.boot())
        batcher.acknowledged()

    publisher.on_connected = batcher.restate
    publisher.on_acknowledged = acknowledged
    route = Route(batcher, configured.selection)
    return Run(
        configured.id,
        store=store,
        sealer=sealer,
        batcher=batcher,
        publisher=publisher,
        route=route,
        latency=latency,
        vitals=means.vitals,
        after=after,
    )


def _failure(raised: BaseException) -> OutboxError:
    """The outbox's error in what ended a run, whatever the connection made of it; raises all else again."""
    group = raised if isinstance(raised, BaseExceptionGroup) else BaseExceptionGroup("", [raised])
    grave = group.split((OutboxError, TransportError))[1] or group.subgroup(RecordTooLargeError)
    found = group.subgroup(OutboxError)
    if grave is not None or found is None:
        raise raised
    return only(OutboxError, found)
