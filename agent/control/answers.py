"""What the running agent answers to whoever asks at its socket (agent/control/server.py): status, tap, reload, outbox.

Promises: nothing here changes a record or a file, nothing blocks the event loop (ring files are read in worker
threads, a batch at a time), and what a slow reader of ``tap`` has not taken is bounded and its loss told.

Requests, one JSON object each, and the lines of their answers; the last line of all is ``{"end": code}``:

- ``status``: one line, what ``Running.status`` says.
- ``tap`` (``channel``, optional): ``{"channel", "plan"}`` for each channel, then ``{"channel", "envelope"}`` for each
  record once it is on disk, and ``{"dropped": n}`` where n were left out; without end.
- ``reload``: ``{"changed": text}`` for each change, or ``{"problem": text}`` for each problem and the end 78.
- ``outbox status`` (``channel``, optional): ``{"channel", ...}`` for each, with the keys of agent/outbox/look.py, or
  ``{"channel", "error", "hint"}``.
- ``outbox records`` (``channel``; ``newest``: so many, optional): ``{"channel", "ring", "acked"}``, then
  ``{"records": [[position, envelope], ...]}``, oldest first.
- ``outbox resend`` (``channel``; ``run``, ``first``, ``last``, or ``since``, ``until``, or ``refused``): how far it has
  come, at least every few seconds (agent/delivery/resending.py, ``Resending.run``).

Plans and envelopes are base64.
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio import to_thread

from agent.commands import CONFIGURATION, USAGE
from agent.control.server import Answer
from agent.delivery.resending import Selection
from agent.errors import ConfigError, OutboxError
from agent.outbox.look import Stored, look, records

TAP_RECORDS, TAP_BYTES = 256, 1 << 20  # held for a tap that does not read
_BATCH = 128 * 1024  # bytes of envelopes in one line

Line = dict[str, Any]


class LiveChannel(Protocol):
    """A channel of the running agent."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def ring(self) -> Path:
        """Its ring file."""

    @property
    def plan(self) -> bytes | None:
        """Envelope of the last plan that was sealed; None before the first."""

    def resend(self, selection: Selection) -> AsyncGenerator[Line]:
        """Send retained records once more. Raises AgentError."""


class Running(Protocol):
    """The running agent, as far as its answers need it."""

    @property
    def channels(self) -> Mapping[str, LiveChannel]:
        """By id; a reload may replace them."""

    def watch(self, seen: Callable[[LiveChannel, bytes], None]) -> AbstractContextManager[None]:
        """Call ``seen`` in the event loop with each sealed envelope of all channels, also of those that a reload opens
        or closes meanwhile, in order, once it is on disk. ``seen`` returns at once and never raises; several may watch.
        """

    def status(self) -> dict[str, Any]:
        """JSON-able values, made at once; agent/control/status_text.py shows them and does without what is missing.

        ``version did site pid started_wall`` (ns) ``uptime_s boot`` (text: the boot id) ``config`` (path as text),
        ``process``: ``memory_bytes cpu_s``, ``stuck`` (vital parts that make no progress), ``requests`` (to the HTTP
        server, by outcome),
        ``clock``: ``state`` ("synchronised", "not_synchronised", "unknown") ``error_us waiting_s`` (None: it does not)
        ``steps``,
        ``channels``: list of ``id topic connected`` (bool) ``state`` (text, e.g. the last error) ``reason`` (its code)
        ``hint pending_records pending_bytes oldest_s`` (None: none waits, or not known) ``rate`` (acknowledged per
        second, of the last minute) ``latency`` (a histogram: ``bounds counts sum``, s) ``records frames gaps`` (cycles
        by cause) ``dropped unreadable given_up refused`` (records) ``not_stored`` (readings) ``sent repeated resent
        acknowledged failures`` (by reason) ``recipients`` (docs/operating.md) ``stream`` (hex) ``seq acked_seq`` (of
        the run) ``term`` and ``outbox``: ``acked`` (None: not known) ``size`` ``state`` ("ok", "blocked", "removed",
        "failed", "memory") and ``trouble`` (why it is not open),
        ``devices``: list of ``id adapter connection`` and ``groups``: list of ``name state`` ("ok", or a cause's name)
        ``since_s`` (in this state) ``last_s`` (since the last value) ``detail frames undecodable failures`` (by cause),
        ``connections``: list of ``name`` and, if it is polled, ``busy_s busy`` (share of the last minute) ``late`` (a
        histogram), else ``state detail connects``.
        """

    async def reload(self) -> Sequence[str]:
        """Read the configuration again and take it over; a line for each change. Raises ConfigError with all problems:
        nothing was changed.

        Is cancelled when the agent stops, and not because who asked went away.
        """


def answers(running: Running) -> dict[str, Answer]:
    """What ``agent.control.server.serve`` answers with, by command."""

    async def status(request: Mapping[str, Any]) -> AsyncGenerator[Line]:
        yield running.status()

    async def reload(request: Mapping[str, Any]) -> AsyncGenerator[Line]:
        try:
            changes = await running.reload()
        except ConfigError as error:
            for problem in error.problems:
                yield {"problem": str(problem)}
            yield {"end": CONFIGURATION, "error": "refused; the agent goes on with the configuration that it has"}
            return
        for change in changes:
            yield {"changed": change}

    def checked(answer: Callable[[Mapping[str, Any], list[LiveChannel]], AsyncGenerator[Line]]) -> Answer:
        """The answer for the channel that the request names, else for all."""

        async def judged(request: Mapping[str, Any]) -> AsyncGenerator[Line]:
            name, channels = request.get("channel"), running.channels
            chosen = [channel for channel in channels.values() if name in (None, channel.id)]
            if not chosen:
                yield {"end": USAGE, "error": "no such channel", "hint": f"there are: {', '.join(channels)}"}
                return
            async with aclosing(answer(request, chosen)) as lines:
                async for line in lines:
                    yield line

        return judged

    async def tap(request: Mapping[str, Any], channels: list[LiveChannel]) -> AsyncGenerator[Line]:
        followed = _Tap(channels, request.get("channel"))
        with running.watch(followed.seen):
            while True:
                yield await followed.next()

    async def outbox_status(request: Mapping[str, Any], channels: list[LiveChannel]) -> AsyncGenerator[Line]:
        live = _live(running)
        for channel in channels:
            try:
                yield await _standing(channel, live.get(channel.id, {}))
            except OutboxError as error:
                yield {"channel": channel.id, "error": str(error), "hint": error.hint}

    async def outbox_records(request: Mapping[str, Any], channels: list[LiveChannel]) -> AsyncGenerator[Line]:
        newest = request.get("newest")
        if len(channels) > 1:
            yield _several(channels)
            return
        if newest is not None and (type(newest) is not int or newest < 1):
            yield {"end": USAGE, "error": "newest is no positive number"}
            return
        [channel] = channels
        standing = await _standing(channel, _live(running).get(channel.id, {}))
        yield {"channel": channel.id, "ring": str(channel.ring), "acked": standing["acked"]}
        found = records(channel.ring, channel=channel.id, newest=newest)
        try:
            while batch := await to_thread.run_sync(_batch, found):
                yield {"records": batch}
        finally:
            found.close()

    async def outbox_resend(request: Mapping[str, Any], channels: list[LiveChannel]) -> AsyncGenerator[Line]:
        if len(channels) > 1:
            yield _several(channels)
            return
        try:
            selection = Selection.of(request)
        except ValueError as error:
            yield {"end": USAGE, "error": str(error)}
            return
        async with aclosing(channels[0].resend(selection)) as lines:
            async for line in lines:
                yield line

    return {
        "status": status,
        "reload": reload,
        "tap": checked(tap),
        "outbox status": checked(outbox_status),
        "outbox records": checked(outbox_records),
        "outbox resend": checked(outbox_resend),
    }


def _several(channels: Sequence[LiveChannel]) -> Line:
    names = ", ".join(channel.id for channel in channels)
    return {"end": USAGE, "error": "there are several channels", "hint": f"name one with --channel: {names}"}


def _live(running: Running) -> dict[str, Line]:
    """What the agent knows of its outboxes and the disk does not yet, by channel."""
    return {
        channel["id"]: {
            "acked": channel.get("outbox", {}).get("acked"),
            "pending_records": channel.get("pending_records"),
            "pending_bytes": channel.get("pending_bytes"),
        }
        for channel in running.status().get("channels", [])
    }


async def _standing(channel: LiveChannel, live: Line) -> Line:
    """How a channel's outbox stands: as the file says, with the agent's own figures where it has some."""
    acked = live.get("acked")
    found = await to_thread.run_sync(
        lambda: look(channel.ring, channel=channel.id, acked=acked), abandon_on_cancel=True
    )
    return {"channel": channel.id, **found.as_json(), **{k: v for k, v in live.items() if v is not None}}


def _batch(found: Iterator[Stored]) -> list[tuple[int, str]]:
    """The next records for one line, none at the end."""
    batch, size = [], 0
    for stored in found:
        batch.append((stored.pos, b64encode(stored.envelope).decode()))
        size += len(stored.envelope)
        if size >= _BATCH:
            break
    return batch


class _Tap:
    """The records of one channel or of all, from the plans in force on; at most ``TAP_RECORDS`` and about ``TAP_BYTES``
    of them are held.

    Where something was left out its place is kept, and the plan in force is told again behind it.
    """

    def __init__(self, channels: Sequence[LiveChannel], wanted: str | None) -> None:
        """``channels``: those that there are; ``wanted``: the name of the one to follow, None for all."""
        self._wanted = wanted
        self._held: deque[Line | int] = deque()  # an int: so many were left out here
        self._bytes = 0
        self._planless: set[str] = set()  # channels that lost a record
        self._news = anyio.Event()
        for channel in channels:
            if channel.plan is not None:
                self._put({"channel": channel.id, "plan": channel.plan})

    async def next(self) -> Line:
        """The next line, once there is one."""
        while not self._held:
            self._news = anyio.Event()
            await self._news.wait()
        line = self._held.popleft()
        if isinstance(line, int):
            return {"dropped": line}
        found = line.get("plan") or line["envelope"]
        self._bytes -= len(found)
        return {**line, ("plan" if "plan" in line else "envelope"): b64encode(found).decode()}

    def seen(self, channel: LiveChannel, envelope: bytes) -> None:
        """A record is on disk."""
        if self._wanted not in (None, channel.id):
            return
        if len(self._held) < TAP_RECORDS and self._bytes < TAP_BYTES:
            if channel.id in self._planless and channel.plan is not None:
                self._put({"channel": channel.id, "plan": channel.plan})
            self._planless.discard(channel.id)
            self._put({"channel": channel.id, "envelope": envelope})
            return
        self._planless.add(channel.id)
        if self._held and isinstance(self._held[-1], int):
            self._held[-1] += 1
        else:
            self._held.append(1)
            self._news.set()

    def _put(self, line: Line) -> None:
        self._held.append(line)
        self._bytes += len(line.get("plan") or line["envelope"])
        self._news.set()
