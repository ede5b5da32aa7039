"""A running agent as its control socket knows it, without a daemon: channels with real ring files, and the real server
in a thread with an event loop of its own, so that a test may ask it as blocking commands do.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from agent.control import server as control
from agent.control.answers import LiveChannel, answers
from agent.control.server import Answer
from agent.delivery.resending import Selection
from agent.errors import AgentError, ConfigError, Problem
from agent.evidence.record import link_of
from agent.model import Gap
from agent.outbox import Outbox
from testbed.child import wait_for
from tests.runs import Run, frame, group


class Ring:
    """An outbox that a run seals into, as a batcher does. ``held``: position and envelope of all that it took."""

    def __init__(self, path: Path, *, channel: str = "dso", size: int = 5 << 20, segment_size: int = 1 << 20) -> None:
        self.path = path
        self.run = Run()
        self.held: list[tuple[int, bytes]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.box = Outbox.open(path, channel=channel, size=size, inspect=link_of, segment_size=segment_size)
        self.run.begin([group(100)])
        self._next = 100
        self._append(0, new_segment=True)

    def data(self, cycles: int = 1, gaps: Sequence[Gap] = ()) -> bytes:
        """Put a record with as many frames on disk, behind a plan if it begins a segment."""
        first = len(self.run.sent)
        new_segment = not self.box.fits(4096, 2)
        if new_segment:
            self.run.plan()
        self.run.data([frame(cycle) for cycle in range(self._next, self._next + cycles)], gaps)
        self._next += cycles
        self._append(first, new_segment=new_segment)
        return self.run.sent[-1]

    def _append(self, first: int, *, new_segment: bool) -> None:
        records = list(zip(self.run.sent[first:], self.run.links[first:], strict=True))
        positions = self.box.append(records, new_segment=new_segment)
        self.held += [(pos, envelope) for pos, (envelope, _) in zip(positions, records, strict=True)]


class FakeChannel:
    """Implements ``LiveChannel``; ``seal`` tells its watchers, in the event loop."""

    def __init__(self, name: str, ring: Path, plan: bytes | None = None) -> None:
        self.id = name
        self.ring = ring
        self.plan = plan
        self.resends: list[Selection] = []
        self.resent: Sequence[dict[str, Any]] = ()  # what it tells of a resend
        self.refuses = ""
        self.watchers: list[Callable[[LiveChannel, bytes], None]] = []  # of the agent that it belongs to

    async def resend(self, selection: Selection) -> AsyncGenerator[dict[str, Any]]:
        self.resends.append(selection)
        if self.refuses:
            raise AgentError(self.refuses, hint="a hint")
        for line in self.resent:
            yield line

    def seal(self, *envelopes: bytes) -> None:
        for envelope in envelopes:
            for seen in list(self.watchers):
                seen(self, envelope)


@dataclass
class FakeRunning:
    """Implements ``Running``. ``problems``: the next reload is refused."""

    channels: dict[str, FakeChannel] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=lambda: {"version": "0.1.0", "site": "site-1"})
    changes: Sequence[str] = ()
    problems: Sequence[Problem] = ()
    reloads: int = 0

    def __post_init__(self) -> None:
        self._watchers: list[Callable[[LiveChannel, bytes], None]] = []
        for channel in self.channels.values():
            channel.watchers = self._watchers

    @contextmanager
    def watch(self, seen: Callable[[LiveChannel, bytes], None]) -> Iterator[None]:
        self._watchers.append(seen)
        try:
            yield
        finally:
            self._watchers.remove(seen)

    def replace(self, channel: FakeChannel) -> None:
        """As a reload does."""
        channel.watchers = self._watchers
        self.channels[channel.id] = channel

    def status(self) -> dict[str, Any]:
        return copy.deepcopy(self.told)

    async def reload(self) -> Sequence[str]:
        self.reloads += 1
        if self.problems:
            raise ConfigError(self.problems)
        return self.changes


class Served:
    """The server at work at ``path``."""

    def __init__(self, path: Path, portal: BlockingPortal) -> None:
        self.path = path
        self._portal = portal

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in the event loop."""
        self._portal.call(function, *arguments)

    def seal(self, channel: FakeChannel, *envelopes: bytes) -> None:
        """Once somebody watches the channel, seal."""
        wait_for(lambda: bool(channel.watchers), timeout=10, what="a tap")
        self._portal.call(channel.seal, *envelopes)


@contextmanager
def serving(
    what: FakeRunning | Mapping[str, Answer], path: Path, *, patience: float = control.PATIENCE
) -> Iterator[Served]:
    """Answer at ``path`` while the block runs."""
    given = answers(what) if isinstance(what, FakeRunning) else what

    async def serve(*, task_status: TaskStatus[None]) -> None:
        await control.serve(path, given, patience=patience, task_status=task_status)

    with start_blocking_portal() as portal:
        future, _ = portal.start_task(serve)
        try:
            yield Served(path, portal)
        finally:
            future.cancel()


async def nothing(request: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
    """An answer without lines."""
    none: Sequence[Mapping[str, Any]] = ()
    for line in none:
        yield line
