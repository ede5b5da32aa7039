"""A channel at work: its outbox, and around it what seals into it and what delivers out of it.

The nesting of its task groups is the order of its end: first nothing more is sealed, and a stop event closes the run on
disk; then what can still be delivered is delivered, for a bounded time; then the outbox closes. A crash at any point
leaves the outbox as its last commit left it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from agent import kinds
from agent.batcher import Batcher
from agent.config.effective import Channel as Configured
from agent.drain import Drain
from agent.errors import AgentError, OutboxError
from agent.evidence.history import replay
from agent.evidence.record import link_of
from agent.model import EventCode
from agent.outbox import Outbox
from agent.outbox.filesystem import against
from agent.ports import Clock, Signer
from agent.publisher import AWAY, Publisher
from agent.refusals import Refusals
from agent.resending import Resending, Selection
from agent.router import Route
from agent.sealer import Facts, Sealer

MARK_EVERY = 10.0  # s: how soon the disk knows what was acknowledged, when no record is written

log = logging.getLogger(__name__)


class Channel:
    """One run on one configured channel."""

    def __init__(
        self,
        configured: Configured,
        *,
        state: Path,
        facts: Callable[[Configured, bytes], Facts],
        signer: Signer,
        clock: Clock,
        seen: Callable[[Channel, Sequence[bytes]], None],
    ) -> None:
        """``state``: the folder of the ring files. ``facts``: what plans say, given the outbox's salt. ``seen`` gets
        the envelopes that have just come onto the disk; it returns at once and never raises.
        """
        self.configured = configured
        self.id = configured.id
        self.ring = state / f"{configured.id}.ring"
        self._facts = facts
        self._signer = signer
        self._clock = clock
        self._seen = seen
        self._resending = False
        self._ending: tuple[str, float] | None = None  # reason, and s for what can still be delivered
        self._end = anyio.Event()
        self._sealed = anyio.Event()
        self.closed = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """From opening the outbox to closing it, which ``conclude`` begins. Raises OutboxError, SignerError."""
        self._outbox = outbox = await self._open()
        try:
            self._wire(outbox)
            task_status.started()
            async with anyio.create_task_group() as delivery:
                delivery.start_soon(self._publisher.run)
                delivery.start_soon(self._mark)
                async with anyio.create_task_group() as sealing:
                    sealing.start_soon(self._batcher.run)
                    await self._end.wait()
                    reason, drain_within = self._ending or ("", 0)
                    if self._sealer.term:
                        await self._batcher.event(EventCode.STOP, reason)
                    sealing.cancel_scope.cancel()
                self._sealed.set()
                with anyio.move_on_after(drain_within):
                    await self._publisher.drained()
                delivery.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(outbox.mark)
        finally:
            outbox.close()
            self.closed.set()
        log.info("channel closed channel=%s waiting=%d", self.id, outbox.pending.records)

    async def conclude(self, reason: str, *, drain_within: float) -> None:
        """Seal what is there and a stop event; returns when it is on disk. ``run`` then ends by itself."""
        self._ending = (reason, drain_within)
        self._end.set()
        await self._sealed.wait()

    async def _open(self) -> Outbox:
        try:
            self.ring.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot make the state folder {self.ring.parent}: {error.strerror}"
            raise OutboxError(what, hint="see agent.state") from error
        if (warning := await to_thread.run_sync(against, self.ring.parent)) is not None:
            log.warning("outbox on a file system that is not for it channel=%s reason=%s", self.id, warning)
        size = self.configured.outbox.size
        return await to_thread.run_sync(lambda: Outbox.open(self.ring, channel=self.id, size=size, inspect=link_of))

    def _wire(self, outbox: Outbox) -> None:
        configured, clock = self.configured, self._clock
        history = replay(outbox.recovered())
        self._sealer = sealer = Sealer(
            self._facts(configured, outbox.salt), signer=self._signer, clock=clock, last=outbox.last, history=history
        )
        transport = kinds.load(configured.transport)(configured.settings, subject=configured.topic)
        refusals, drain = Refusals(), configured.drain
        self._publisher = publisher = Publisher(
            channel=self.id,
            store=outbox,
            transport=transport,
            did=self._signer.did,
            topic=configured.topic,
            clock=clock,
            drain=Drain(rate=drain.rate, spread=drain.spread, clock=clock),
            refusals=refusals,
        )
        self._batcher = batcher = Batcher(
            outbox=outbox,
            sealer=sealer,
            clock=clock,
            window=configured.seal_within,
            started=(sealer.facts.version, history.clean),
            on_durable=self._durable,
            refusals=refusals,
        )
        publisher.on_connected = batcher.restate
        self.route = Route(batcher, configured.selection)
        log.info("channel opened channel=%s run=%s waiting=%d", self.id, sealer.stream.hex(), outbox.pending.records)

    async def _mark(self) -> None:
        """Have the disk know within ten seconds what the broker acknowledged."""
        while True:
            await anyio.sleep(MARK_EVERY)
            await self._batcher.mark()

    def _durable(self, envelopes: Sequence[bytes]) -> None:
        self._publisher.notify()
        self._seen(self, envelopes)

    # ---- while it runs --------------------------------------------------------------------------------------

    def adopt(self, configured: Configured) -> None:
        """Take over what may change within a run: what is sent, and what plans say. In force from the next term on."""
        self.configured = configured
        self.route.selection = configured.selection
        self._sealer.facts = self._facts(configured, self._outbox.salt)

    async def flush(self) -> None:
        """Have on disk what was put. Raises OutboxError."""
        await self._batcher.flush()

    async def drained(self) -> None:
        """Return once the broker has all that is on disk now."""
        await self._publisher.drained(up_to=self._outbox.next_pos - 1)

    async def event(self, code: EventCode, *details: str) -> None:
        """Record an event. Raises OutboxError."""
        if self._sealer.term:
            await self._batcher.event(code, *details)

    async def resend(self, selection: Selection) -> AsyncGenerator[dict[str, Any]]:
        """Send retained records once more (``Resending.run``); one order at a time. Raises AgentError."""
        if self._resending:
            raise AgentError("another resend of this channel is under way", hint="wait for its end, or end it")
        self._resending = True
        try:
            async with aclosing(Resending(self._outbox, self._publisher, selection).run()) as lines:
                async for line in lines:
                    yield line
        finally:
            self._resending = False

    @property
    def plan(self) -> bytes | None:
        """Envelope of the last plan that was sealed."""
        return self._batcher.plan

    @property
    def delivering(self) -> bool:
        """Whether the broker takes records."""
        return self._publisher.connected

    @property
    def waiting(self) -> int:
        """Records that are not acknowledged."""
        return self._outbox.pending.records

    def summary(self) -> str:
        """For people, in a few words."""
        publisher, dropped = self._publisher, self._batcher.dropped
        broker = "connected" if publisher.connected else "away" if publisher.reason in AWAY else "refusing"
        why = f" ({publisher.reason})" if broker == "refusing" else ""
        return (
            f"outbox {self.id}: {self._outbox.pending.records} waiting, broker {broker}{why}, "
            f"{publisher.acknowledged} delivered"
            + (f", {publisher.refused} records refused" if publisher.refused else "")
            + (f", {dropped} records dropped" if dropped else "")
        )

    def status(self) -> dict[str, Any]:
        """For programs (docs/operating.md, status)."""
        pending, publisher = self._outbox.pending, self._publisher
        return {
            "id": self.id,
            "topic": self.configured.topic,
            "connected": publisher.connected,
            "state": publisher.trouble,
            "reason": publisher.reason,
            "pending_records": pending.records,
            "pending_bytes": pending.bytes,
            "acknowledged": publisher.acknowledged,
            "sent": publisher.sent,
            "repeated": publisher.repeated,
            "resent": publisher.resent,
            "refused": publisher.refused,
            "failures": dict(publisher.failures),
            "dropped": self._batcher.dropped,
            "stream": self._sealer.stream.hex(),
            "seq": self._sealer.seq,
            "term": self._sealer.term,
            "outbox": {"acked": self._outbox.acked},
        }
