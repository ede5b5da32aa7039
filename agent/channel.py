"""A channel at work: run follows run on its outbox, for as long as the channel is configured.

When the outbox fails (any error of the disk, docs/outbox.md, rule 2) its run is over. The outbox is opened again by the
code of every start, with back-off, and a new run begins with the next term of all channels. Until then what is put is
dropped and counted, or, if the channel is configured so, a volatile run carries on in memory and ends when the outbox
is open again. A crash at any point leaves the outbox as its last commit left it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus

from agent.config.effective import Channel as Configured
from agent.delivery.drain import Drain
from agent.delivery.latency import Pace
from agent.delivery.resending import Resending, Selection
from agent.errors import AgentError, OutboxError
from agent.evidence.history import History, replay
from agent.evidence.record import link_of
from agent.heartbeat import Vitals
from agent.instant import instant
from agent.model import EventCode
from agent.outbox import MemoryStore, Outbox
from agent.outbox.files import OS_FILES, Files
from agent.outbox.filesystem import against
from agent.ports import Clock, Recipient, Signer
from agent.router import Route
from agent.run import Means, Run, make_run
from agent.sealing.sealer import Facts
from agent.tally import COUNTS, Tally

DRAIN_WITHIN = 3.0  # s: how long a run that ends goes on delivering
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # s: until a failed outbox is opened again
LASTING = 60.0  # s: an outbox that worked for so long was a good one

log = logging.getLogger(__name__)


class Channel:
    """One configured channel. ``reroute`` has ``change_over`` called between two terms, and the router know of it."""

    def __init__(
        self,
        configured: Configured,
        *,
        state: Path,
        facts: Callable[[Configured, bytes], Facts],
        signer: Signer,
        clock: Clock,
        seen: Callable[[Channel, Sequence[bytes]], None],
        reroute: Callable[[Channel], Awaitable[None]],
        vitals: Vitals,
        before: Channel | None = None,
        files: Files = OS_FILES,
    ) -> None:
        """``state``: the folder of the ring files. ``facts``: what plans say, given the outbox's salt. ``seen`` gets
        the envelopes that have just come onto the disk; it returns at once and never raises. ``before``: what a reload
        took out to make room for this one.
        """
        self.configured = configured
        self.id = configured.id
        self.ring = state / f"{configured.id}.ring"
        self._reroute = reroute
        self._files = files
        self._failing: bool = before is not None and before._failing  # nothing has been stored in the outbox since
        self._mine: set[bytes] = set() if before is None else before._mine  # streams of this process in the ring
        self._volatile: set[bytes] = set() if before is None else before._volatile  # and of those that never were
        self._failed: list[Run] = [] if before is None else before._failed  # what they left on the disk is not known
        self._trouble = ""  # why the outbox is not open
        self._current: Run  # what is acquired goes to this one
        self._next: Run | None = None  # and to this one, from the next term on
        self._stored: Run | None = None  # the last one on the outbox
        self._outbox: Outbox | MemoryStore  # the ring as it was last open; if it never was, nothing
        self._tally: Tally = Tally(None if before is None else before._tally)
        self._means: Means = Means(
            facts=facts,
            signer=signer,
            clock=clock,
            drain=Drain(rate=configured.drain.rate, spread=configured.drain.spread, clock=clock),
            pace=Pace() if before is None else before._means.pace,
            vitals=vitals,
            elsewhere=self._volatile.__contains__,
            seen=lambda envelopes: seen(self, envelopes),
        )
        self._resending = False
        self._end = anyio.Event()
        self.closed = anyio.Event()

    # ---- from opening to closing ----------------------------------------------------------------------------

    async def run(self, *, patient: bool = False, task_status: TaskStatus[None]) -> None:
        """Until ``conclude``. ``patient``: the channel was there before, so that its outbox is not made anew, and may
        be opened later. Raises SignerError, RecordTooLargeError, and OutboxError if the outbox cannot be opened at
        first.
        """
        pause = FIRST_PAUSE
        try:
            try:
                run = self._current = self._wire(*await self._open(new=not patient))
                self._failing = False
            except OutboxError as error:
                if not patient:
                    raise
                run = self._current = self._wire_nothing(error)
            task_status.started()
            async with anyio.create_task_group() as runs:
                while True:
                    opened = anyio.current_time()
                    failure = await run.live()
                    if failure is None:
                        break
                    if anyio.current_time() - opened >= LASTING:
                        pause = FIRST_PAUSE
                    self._failed.append(run)
                    self._note_failure(failure)
                    if self._end.is_set():
                        break
                    memory = self._carry_on(runs)
                    outbox, pause = await self._opened_again(pause)
                    if outbox is None:
                        break
                    run = self._wire(*outbox, after=memory)
                    overtaken, self._next = self._next, run
                    if overtaken is not None:  # in memory, and nothing came to it yet
                        runs.start_soon(partial(overtaken.conclude, "", drain_within=0))
                    runs.start_soon(self._change)
        finally:
            self.closed.set()
        log.info("channel closed channel=%s waiting=%d", self.id, self.waiting)

    async def conclude(self, reason: str, *, drain_within: float) -> None:
        """Seal what is there and a stop event; returns when it is on disk, or cannot be. ``run`` ends by itself."""
        self._end.set()
        for each in (self._current, self._next):
            if each is not None:
                await each.conclude(reason, drain_within=drain_within)

    def _note_failure(self, error: OutboxError) -> None:
        """One line for each change, not for each try."""
        self._failing = True
        if str(error) != self._trouble:
            log.error("outbox failed channel=%s error=%s hint=%s", self.id, error, error.hint or "none")
            self._trouble = str(error)

    async def _opened_again(self, pause: float) -> tuple[tuple[Outbox, History] | None, float]:
        """The outbox, and the next pause; None: the channel ends."""
        while True:
            with anyio.move_on_after(pause):
                await self._end.wait()
            pause = min(2 * pause, LONGEST_PAUSE)
            if self._end.is_set():
                return None, pause
            try:
                outbox, history = await self._open(new=False)
            except OutboxError as error:
                self._note_failure(error)
                continue
            if self._end.is_set():
                outbox.close()
                return None, pause
            return (outbox, history), pause

    async def _open(self, *, new: bool) -> tuple[Outbox, History]:
        """``new``: make the outbox if there is none. One that has failed is not gone for good: another one in its place
        would follow nothing.
        """
        size = self.configured.outbox.size

        def open_() -> tuple[Outbox, History]:
            outbox = Outbox.open(self.ring, channel=self.id, size=size, inspect=link_of, new=new, files=self._files)
            try:
                return outbox, replay(outbox.recovered())
            except BaseException:
                outbox.close()
                raise

        try:
            if new:
                self.ring.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot make the state folder {self.ring.parent}: {error.strerror}"
            raise OutboxError(what, hint="is agent.state right? is a disk to be mounted there?") from error
        if new and (warning := await to_thread.run_sync(against, self.ring.parent)) is not None:
            log.warning("outbox on a file system that is not for it channel=%s reason=%s", self.id, warning)
        return await to_thread.run_sync(open_)

    def _carry_on(self, runs: TaskGroup) -> Run | None:
        """A run in memory, if that is wanted. There is none yet: while there is one, nothing touches the outbox."""
        self._next = None
        if self.configured.outbox.on_disk_failure != "memory":
            return None
        memory = self._next = self._make(MemoryStore(), History())
        self._volatile.add(memory.sealer.stream)
        runs.start_soon(memory.live)
        runs.start_soon(self._change)
        return memory

    async def _change(self) -> None:
        """Have what is acquired go to the next run, unless the channel ends before."""
        async with anyio.create_task_group() as tasks:

            async def end() -> None:
                await self._end.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end)
            await self._reroute(self)
            tasks.cancel_scope.cancel()

    @property
    def changing(self) -> bool:
        """Whether a run waits for the next term."""
        return self._next is not None

    async def change_over(self) -> None:
        """Between two terms: what is acquired goes to the run that waits for it."""
        if self._next is None:
            return
        await self._current.conclude("the outbox is open again", drain_within=DRAIN_WITHIN)
        run, self._next = self._next, None  # not before: who ends the channel meanwhile must find it
        if run is None:  # it failed meanwhile
            return
        self._current = run
        self._tally.fold(run)
        if run.store is self._outbox and run.batcher.storing:
            log.info("outbox open again channel=%s not_stored=%d", self.id, self._tally.counts["not_stored"])
            self._failing, self._trouble = False, ""

    # ---- runs -----------------------------------------------------------------------------------------------

    def _wire(self, outbox: Outbox, history: History, *, after: Run | None = None) -> Run:
        """A run on the outbox. ``after``: it delivers nothing before that has closed."""
        self._outbox = outbox
        while self._failed:
            self._failed.pop().batcher.found(outbox.last)
        mine = self._failing and outbox.last is not None and outbox.last.stream in self._mine
        run = self._make(outbox, history, unstored=mine, after=after)
        self._mine.add(run.sealer.stream)
        self._stored = run
        log.info(
            "channel opened channel=%s run=%s waiting=%d", self.id, run.sealer.stream.hex(), outbox.pending.records
        )
        return run

    def _wire_nothing(self, error: OutboxError) -> Run:
        """A run that stores nothing: there is no outbox."""
        self._outbox = MemoryStore()
        run = self._make(self._outbox, History())
        run.batcher.fail(error)
        return run

    def _make(
        self, store: Outbox | MemoryStore, history: History, *, unstored: bool = False, after: Run | None = None
    ) -> Run:
        run = make_run(self.configured, store, history, self._means, unstored=unstored, after=after)
        self._tally.add(run)
        return run

    # ---- while it runs --------------------------------------------------------------------------------------

    @property
    def route(self) -> Route:
        """Where the router takes what is acquired."""
        return self._current.route

    def adopt(self, configured: Configured) -> None:
        """Take over what may change within a run: what is sent, and what plans say. In force from the next term on."""
        self.configured = configured
        for run in (self._current, self._next):
            if run is not None:
                run.route.selection = configured.selection
                run.sealer.facts = self._means.facts(configured, run.store.salt)

    async def flush(self) -> None:
        """Have on disk what was put, as far as that is possible now."""
        await self._current.batcher.flush()

    async def drained(self) -> None:
        """Return once the broker has all that is on disk now."""
        await self._current.publisher.drained(up_to=self._current.store.next_pos - 1)

    async def event(self, code: EventCode, *details: str) -> None:
        """Record an event."""
        if self._current.sealer.term:
            await self._current.batcher.event(code, *details)

    # ---- how it is ------------------------------------------------------------------------------------------

    async def resend(self, selection: Selection) -> AsyncGenerator[dict[str, Any]]:
        """Send retained records once more (``Resending.run``); one order at a time. Raises AgentError."""
        if self._failing:
            raise AgentError("the outbox of this channel has failed", hint="wait until its disk is back")
        if self._resending:
            raise AgentError("another resend of this channel is under way", hint="wait for its end, or end it")
        self._resending = True
        try:
            async with aclosing(Resending(self._outbox, self._current.publisher, selection).run()) as lines:
                async for line in lines:
                    yield line
        finally:
            self._resending = False

    @property
    def plan(self) -> bytes | None:
        """Envelope of the last plan that was sealed."""
        return self._current.batcher.plan

    @property
    def delivering(self) -> bool:
        """Whether the broker takes records."""
        return self._current.publisher.connected and self._current.batcher.storing

    @property
    def waiting(self) -> int:
        """Records that are not acknowledged."""
        return sum(store.pending.records for store in {self._outbox, self._current.store})

    @property
    def _in_memory(self) -> bool:
        """Whether a run in memory carries on."""
        return self._current.sealer.volatile and self._current.batcher.storing

    def _state(self) -> str:
        """How the outbox is, in a word."""
        if self._failing:
            return "memory" if self._in_memory else "failed"
        if isinstance(self._outbox, Outbox) and self._outbox.removed:
            return "removed"
        return "blocked" if self._current.batcher.blocked else "ok"

    def _oldest(self) -> float | None:
        """For how long the oldest record that is not acknowledged has waited, in s; None: none does, or not known."""
        wall, boot = instant(self._means.clock)
        runs = {run for run in (self._current, self._stored) if run is not None and run.store.pending.records}
        ages = [run.latency.oldest(run.store.acked, wall=wall, boot=boot) for run in runs]
        return max((age for age in ages if age is not None), default=None)

    def status(self) -> dict[str, Any]:
        """For programs; agent/control/answers.py has the keys."""
        current, counts = self._current, self._tally.counts
        pending = [store.pending for store in {self._outbox, current.store}]
        return {
            "id": self.id,
            "topic": self.configured.topic,
            "connected": self.delivering,
            "state": current.publisher.trouble,
            "reason": current.publisher.reason,
            "hint": current.publisher.hint,
            "pending_records": sum(each.records for each in pending),
            "pending_bytes": sum(each.bytes for each in pending),
            "oldest_s": self._oldest(),
            "rate": self._means.pace.rate.per_second(self._means.clock.boot()),
            "latency": self._means.pace.latency.as_json(),
            **{name: counts[name] for name in COUNTS},
            "gaps": self._tally.gaps,
            "failures": dict(self._tally.failures),
            "recipients": [_told(each, self._means.clock.boot()) for each in current.publisher.recipients],
            "stream": current.sealer.stream.hex(),
            "seq": current.sealer.seq,
            "acked_seq": current.latency.acked_seq,
            "term": current.sealer.term,
            "outbox": {
                "acked": self._outbox.acked if isinstance(self._outbox, Outbox) else None,
                "size": self.configured.outbox.size,
                "state": self._state(),
                "trouble": self._trouble,
            },
        }


def _told(recipient: Recipient, now: int) -> dict[str, Any]:
    """For programs: ``last_s`` since the last delivery in place of its boot time."""
    told = asdict(recipient)
    last = told.pop("last")
    return {**told, "last_s": None if last is None else (now - last) / 1e9}
