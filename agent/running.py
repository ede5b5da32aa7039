"""The running agent: its channels, sources and terms, what a new configuration makes of them, and how it is.

Who starts and ends it is agent/daemon.py. A reload is judged as a whole and then carried out between two terms; what
did not change goes on, without losing a cycle or a connection.
"""

from __future__ import annotations

import hmac
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from agent import __version__, journal, status
from agent.channel import DRAIN_WITHIN, Channel
from agent.clock import boot_id
from agent.clock_wait import ClockWait
from agent.config import load
from agent.config.effective import AdapterPlan, Config
from agent.config.effective import Channel as Configured
from agent.errors import AgentError, ConfigError, Problem
from agent.foresight.forecast import too_large
from agent.instant import instant
from agent.model import EventCode
from agent.outbox.files import OS_FILES, Files
from agent.ports import Clock, Signer
from agent.reload import Change, changes, moves, problem, refused
from agent.router import Router
from agent.sealing.sealer import Facts
from agent.source import Source
from agent.states import States
from agent.status import Condition
from agent.supervisor import Supervisor

SETTLE_WITHIN = 0.5  # s: how long sources may take to be told what is on disk, at the end
REFUSED_EVERY = 60_000_000_000  # ns: a refused configuration is stated at most this often

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    """To reload, or to change over to a channel's next run; and what came of it."""

    channel: Channel | None = None
    done: anyio.Event = field(default_factory=anyio.Event)
    lines: Sequence[str] = ()
    refused: ConfigError | None = None


class Running:
    """Implements what agent/control/answers.py asks of the running agent."""

    def __init__(self, config: Config, *, signer: Signer, clock: Clock, files: Files = OS_FILES) -> None:
        """``files``: what the outboxes lie on."""
        self.config = config
        self.channels: dict[str, Channel] = {}
        self.sources: dict[str, Source] = {}
        self._signer = signer
        self.did = signer.did
        self.condition = Condition()
        self.clock = clock
        self._files = files
        self.started = instant(clock)
        self.boot_id = boot_id()
        self.states = States(clock)
        self._router = Router({})
        self.clock_wait = ClockWait(clock, at_most=config.clock.wait)
        self.supervisor = Supervisor(
            [],
            sink=self._router,
            clock=clock,
            states=self.states,
            clock_wait=self.clock_wait,
            vitals=self.condition.vitals,
        )
        self._requests: deque[_Request] = deque()
        self._asked = anyio.Event()
        self._exchanging = False  # channels and sources, by a reload
        self._watchers: list[Callable[[Channel, bytes], None]] = []
        self._closing: dict[str, Channel] = {}  # ended, and perhaps still delivering
        self._reloads = 0
        self._refused: int | None = None  # boot time of the last event that says so

    async def open(self, *, channels: TaskGroup, sources: TaskGroup) -> None:
        """Open what the configuration names; it lives in these task groups. Raises OutboxError,
        ConfigError: an adapter cannot be made.
        """
        self._channel_tasks, self._source_tasks = channels, sources
        for configured in self.config.channels:
            await self._open(configured)
        for plan in self.config.adapters():
            await self._connect(self._source(plan, self.config))
        self._route()

    async def _open(self, configured: Configured, *, patient: bool = False) -> None:
        """``patient``: the channel was there before, and its outbox may be opened later."""
        if (before := self._closing.get(configured.id)) is not None:
            await before.closed.wait()  # an outbox has one writer
        channel = Channel(
            configured,
            state=self.config.agent.state,
            facts=self._facts,
            signer=self._signer,
            clock=self.clock,
            seen=self._sealed,
            reroute=self._change_over,
            vitals=self.condition.vitals,
            before=before if patient else None,
            files=self._files,
        )
        await self._channel_tasks.start(partial(channel.run, patient=patient))
        self.channels[channel.id] = channel

    async def _end(self, name: str, reason: str, *, drain_within: float) -> None:
        """Take a channel out; returns when its run is closed on disk. It may go on delivering for a while."""
        channel = self.channels.pop(name)
        self._router.routes.pop(name, None)
        self._closing = {id_: each for id_, each in self._closing.items() if not each.closed.is_set()}
        self._closing[name] = channel
        await channel.conclude(reason, drain_within=drain_within)

    def _source(self, plan: AdapterPlan, config: Config) -> Source:
        vitals = self.condition.vitals
        return Source(plan, config, sink=self._router, clock=self.clock, states=self.states, vitals=vitals)

    async def _connect(self, source: Source) -> None:
        await self._source_tasks.start(source.run)
        self.sources[source.plan.name] = source

    def _route(self) -> None:
        """What is acquired goes where it belongs from the next term on."""
        self._router.routes = {name: channel.route for name, channel in self.channels.items()}
        self.supervisor.groups = [group for source in self.sources.values() for group in source.groups]
        self.supervisor.listeners = [each.listener for each in self.sources.values() if each.listener is not None]

    def _facts(self, channel: Configured, salt: bytes) -> Facts:
        """What the plans of a channel say of the agent."""
        config = self.config
        return Facts(
            boot_id=self.boot_id,
            version=__version__,
            site=config.site.id,
            labels=tuple(config.site.labels.items()),
            channel=channel.id,
            topic=channel.topic,
            configuration=hmac.digest(salt, config.digest_text(), "sha256"),
            window_ms=channel.longest_window // 1_000_000,
        )

    async def conclude(self, reason: str) -> None:
        """Seal and close all channels; returns when all that was acquired is on disk and the sources know. Nothing may
        be acquired any more.

        If a reload was cut off, not all channels may have a way: what lies in the inboxes is left, and is not
        acknowledged.
        """
        if not self._exchanging:
            await self.supervisor.conclude()
        async with anyio.create_task_group() as tasks:
            for channel in self.channels.values():
                tasks.start_soon(partial(channel.conclude, reason, drain_within=DRAIN_WITHIN))
        with anyio.move_on_after(SETTLE_WITHIN):
            for source in self.sources.values():
                if source.listener is not None:
                    await source.listener.settled()

    # ---- reload ---------------------------------------------------------------------------------------------

    async def reload(self) -> Sequence[str]:
        """Read the configuration again and carry out what changed; returns that, a line each.

        Raises ConfigError with all that is wrong: then nothing was changed.
        """
        request = await self._request(_Request())
        if request.refused is not None:
            raise request.refused
        return request.lines

    async def _request(self, request: _Request) -> _Request:
        self._requests.append(request)
        self._asked.set()
        await request.done.wait()
        return request

    async def _change_over(self, channel: Channel) -> None:
        """A new run waits on a channel whose outbox failed: it begins with the next term."""
        await self._request(_Request(channel))

    async def changes(self) -> None:
        """Carry out what is asked for, one after the other, until cancelled: to reload, and to begin new runs. What
        fails beyond a refusal leaves a state that is not known, and is raised here, not to who asked.
        """
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            while self._requests:
                request = self._requests.popleft()
                try:
                    if request.channel is None:
                        request.lines = await self._reload()
                    else:
                        await self._begin_run(request.channel)
                except ConfigError as error:
                    request.refused = error
                    await self._tell_refused(error)
                finally:
                    request.done.set()

    async def _reload(self) -> Sequence[str]:
        new = await to_thread.run_sync(self._judged, abandon_on_cancel=True)
        change = changes(self.config, new)
        sources = self._new_sources(change, new)
        await self._open_added(change, new)
        if new.digest_text() != self.config.digest_text() or change.lines:
            await self._carry_out(change, new, sources)
        self._reloads += 1
        for line in change.lines:
            log.info("configuration changed reload=%d what=%s", self._reloads, line)
        return change.lines

    async def _begin_run(self, channel: Channel) -> None:
        if self.channels.get(channel.id) is not channel or not channel.changing:
            return  # a reload took it out meanwhile, or the run has begun
        self._exchanging = True
        async with self.supervisor.paused():
            await channel.change_over()
            self._route()
        self._exchanging = False

    async def _tell_refused(self, error: ConfigError) -> None:
        """In the log each time; as an event at most once a minute, for anybody in the socket's group may ask again."""
        for each in error.problems:
            log.error("configuration refused problem=%s", each)
        now = self.clock.boot()
        if self._refused is None or now - self._refused >= REFUSED_EVERY:
            self._refused = now
            for channel in self.channels.values():
                await channel.event(EventCode.CONFIGURATION_REFUSED, f"{len(error.problems)} problems")

    def _judged(self) -> Config:
        try:
            new = load(self.config.path)
        except PermissionError as error:
            what = f"cannot be read: {error.strerror}"
            raise ConfigError([Problem(str(self.config.path), 0, "", what, "let the agent's user read it")]) from error
        if problems := refused(self.config, new):
            raise ConfigError(problems)
        return new

    def _new_sources(self, change: Change, new: Config) -> list[Source]:
        """The sources that come, made before any is let go of: making one touches nothing. Raises ConfigError."""
        sources, problems = list[Source](), list[Problem]()
        for plan in change.sources_new:
            try:
                sources.append(self._source(plan, new))
            except ConfigError as error:
                problems += error.problems
        kept = [each for name, each in self.sources.items() if name not in change.sources_gone]
        problems = problems or too_large(new, [group for each in (*kept, *sources) for group in each.planned()])
        if problems:
            raise ConfigError(problems)
        return sources

    async def _open_added(self, change: Change, new: Config) -> None:
        """Open the channels that were not there before: one that cannot be is a reason to refuse all."""
        added: list[str] = []
        for configured in change.channels_new:
            if configured.id in self.channels:
                continue
            try:
                await self._open(configured)
                added.append(configured.id)
            except AgentError as error:
                for name in added:
                    await self._end(name, "", drain_within=0)
                found = problem(new, ("channel", configured.id), str(error), error.hint or "remove the channel")
                raise ConfigError([found]) from error

    async def _carry_out(self, change: Change, new: Config, sources: Sequence[Source]) -> None:
        """At every point ``channels`` and sources are those that live, should the agent be stopped meanwhile."""
        again = {configured.id: configured for configured in change.channels_new}
        delivered = await self._deliver(again)
        self._exchanging = True
        async with self.supervisor.paused():
            concluded = await self._let_go(change.sources_gone)
            for name in change.channels_gone:
                drains = name in delivered or name not in again
                await self._end(name, "configuration", drain_within=DRAIN_WITHIN if drains else 0)
            if new.agent.log_level != self.config.agent.log_level:
                journal.set_up(new.agent.log_level)
            self.config = new
            self.clock_wait.at_most = new.clock.wait
            for configured in new.channels:
                if configured.id not in self.channels:
                    await self._open(configured, patient=True)
                self.channels[configured.id].adopt(configured)
            for source in sources:
                if source.listener is not None:
                    source.listener.deaf_since(concluded.get(source.plan.name, self.clock.boot()))
                await self._connect(source)
            self._route()
        self._exchanging = False

    async def _deliver(self, again: Mapping[str, Configured]) -> set[str]:
        """Deliver what waits where a channel delivers elsewhere from now on: who reads there shall see the run end. All
        is acquired meanwhile. Returns those whose broker has it, and will soon have what their end adds.

        What is not delivered here, the next run delivers.
        """
        delivered: set[str] = set()

        async def deliver(channel: Channel) -> None:
            await channel.drained()
            delivered.add(channel.id)

        with anyio.move_on_after(DRAIN_WITHIN):
            async with anyio.create_task_group() as tasks:
                for name, channel in self.channels.items():
                    if name in again and channel.delivering and moves(channel.configured, again[name]):
                        tasks.start_soon(deliver, channel)
        return delivered

    async def _let_go(self, names: Sequence[str]) -> dict[str, int]:
        """Stop sources once all that came through them is on disk and they know; returns since when nobody listens, of
        those that are listened to.
        """
        listeners = {name: each for name in names if (each := self.sources[name].listener) is not None}
        await self.supervisor.conclude(list(listeners.values()))
        if listeners:
            for channel in self.channels.values():
                await channel.flush()
            with anyio.move_on_after(SETTLE_WITHIN):
                for listener in listeners.values():
                    await listener.settled()
        for name in names:
            await self.sources.pop(name).stop()
        return {name: listener.concluded for name, listener in listeners.items()}

    # ---- how it is ------------------------------------------------------------------------------------------

    @contextmanager
    def watch(self, seen: Callable[[Channel, bytes], None]) -> Iterator[None]:
        """Call ``seen`` with each channel's records (agent/control/answers.py)."""
        self._watchers.append(seen)
        try:
            yield
        finally:
            self._watchers.remove(seen)

    def _sealed(self, channel: Channel, envelopes: Sequence[bytes]) -> None:
        for seen in self._watchers:
            for envelope in envelopes:
                seen(channel, envelope)

    def summary(self) -> str:
        """For people, on one line."""
        return status.summary(self)

    def overdue(self) -> list[str]:
        """The vital parts that make no progress; to be asked about once a second."""
        return self.condition.look(self.clock.boot())

    def waiting(self) -> int:
        """Records that are not acknowledged."""
        return sum(channel.waiting for channel in self.channels.values())

    def status(self) -> dict[str, Any]:
        """For programs; agent/control/answers.py has the keys."""
        return status.status(self)
