"""The listener: one connection to a source of messages, kept up, and what its messages mean for event-driven groups.

It connects again with back-off for as long as it runs; terms come and go meanwhile. Within a term ``pump`` makes a
frame of each message, or a gap if nothing in it can be understood, in the order of arrival. A message is acknowledged
once all of it is on disk, in the same order; when half of what the source sends without an acknowledgement waits for
that, it is sealed at once. When no messages came is stated as gaps in time.

A crash loses what was not acknowledged: a source that keeps it sends it again. What a lost connection left
unacknowledged is sealed all the same, and comes again as possible duplicate. When a message cannot be stored by any
channel that takes it, or was in a batch that failed, the connection is given up, so that the source sends it again,
and made anew once they store again; for one channel of several that is waited for ``PATIENCE`` at most.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

from agent.errors import AcquisitionError, NotStoredError, only
from agent.heartbeat import WITHIN, Heartbeat, Vitals
from agent.model import Cause, Frame, Gap
from agent.ports import Arrival, Clock, EventAdapter, EventDevice, Subscription
from agent.router import GroupKey, Receipts
from agent.silences import Silences
from agent.states import States

S = 1_000_000_000
_INBOX = 512  # messages fetched and not yet put
_GATHER = 0.015  # s: how long messages are left to gather while few come
_FETCHED = 20_000_000  # ns: what came so long ago was fetched
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # s
_LASTING = 30 * S  # a connection that stood for so long was a good one
PATIENCE = 10.0  # s
CONCLUDE_WITHIN = 1.0  # s: how long the end waits for a channel that is full

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where frames and gaps go."""

    async def room(self, group: int) -> None:
        """Return once no channel that takes the group is full for want of acknowledgements."""

    async def put(self, item: Frame | Gap) -> Receipts:
        """Accept a frame or gap of the term in force."""

    def hurry(self, group: int) -> None:
        """Somebody waits for what was put of a group."""

    async def storing(self, groups: Set[GroupKey], *, patience: float) -> None:
        """Return once channels that take these groups can store it: all of them, or after ``patience`` s one."""


class Term(Protocol):
    """What a listener needs of the term in force."""

    over: bool

    @property
    def indexes(self) -> Mapping[GroupKey, int]:
        """A group's index in the term."""

    @property
    def revisions(self) -> Mapping[str, int]:
        """Of each device, as the term's plan has it."""

    def end(self) -> None:
        """A new term is needed."""

    def look(self) -> None:
        """End the term if the wall clock has left it and no poller will see that."""

    def cut_off(self, *, grace: float) -> AbstractContextManager[object]:
        """What is awaited in here is cancelled ``grace`` s after the term's end."""

    async def wait(self, event: anyio.Event, *, until: int | None) -> None:
        """Wait for an event, until a boot time or the end of the term at most."""


@dataclass(slots=True)
class _Message:
    """A message on its way: of how many of the groups that it concerns a frame was put, and the receipts."""

    subscription: Subscription
    arrival: Arrival
    put: int = 0
    receipts: list[Receipts] = field(default_factory=list)


class Listener:
    """A connection to a source, and the groups that live on its messages."""

    def __init__(
        self,
        name: str,
        adapter: EventAdapter,
        groups: Sequence[tuple[EventDevice, str]],
        *,
        sink: Sink,
        clock: Clock,
        states: States,
        vitals: Vitals | None = None,
    ) -> None:
        self.name = name
        self._vitals = vitals or Vitals()
        self._beat = Heartbeat(f"listener of {name}")
        self.connects = 0  # connections that were made
        self.adapter = adapter
        self.groups = groups
        self.connected = False
        self.trouble = ""  # why not, as it was last found
        self._sink = sink
        self._clock = clock
        self._states = states
        self.deaf_since(clock.boot())
        self._inbox: deque[_Message] = deque()  # fetched, not all put
        self._unsettled: deque[_Message] = deque()  # put, not acknowledged
        self._held: deque[_Message] = deque()  # of these, from the oldest on that is not on its way to the disk
        self._news = anyio.Event()  # for the pump
        self._room = anyio.Event()  # for the receiver
        self._added = anyio.Event()  # for the acknowledger
        self._told = anyio.Event()  # by the acknowledger

    def deaf_since(self, boot: int) -> None:
        """Nobody has listened since then; before ``run``."""
        self.concluded = boot  # from then on nothing that came was put
        silent_after = {device.info.id: device.silent_after for device, _ in self.groups}
        self._silences = Silences(silent_after, now=boot)

    # ---- the connection -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        with self._vitals.watching(self._beat):
            await self._keep_up()

    async def _keep_up(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            heard = began = self._clock.boot()
            self._beat.due = began + WITHIN
            self._silences.trying(began)
            try:
                async with self.adapter.subscribe() as subscription, anyio.create_task_group() as tasks:
                    self._begin(subscription)
                    tasks.start_soon(self._acknowledge, subscription)
                    try:
                        await self._receive(subscription)
                    finally:
                        heard = subscription.heard
                        self._beat.due = self._clock.boot() + WITHIN  # for leaving the connection
            except (AcquisitionError, BaseExceptionGroup) as raised:
                error = only(AcquisitionError, raised)
                self._beat.due = None
                self._lost(heard, error)
                if error.cause == Cause.NOT_STORED:
                    groups = {(device.info.id, group) for device, group in self.groups}
                    await self._sink.storing(groups, patience=PATIENCE)
            if heard - began >= _LASTING:
                pause = _FIRST_PAUSE
            await anyio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _begin(self, subscription: Subscription) -> None:
        self.connected, self.trouble = True, ""
        self.connects += 1
        self._beat.due = None
        self._silences.connected(subscription.since, kept=subscription.resumed)
        for device, group in self.groups:
            self._states.well(device.info.id, group, tell=False)
        self._news.set()
        log.info("listening connection=%s session=%s", self.name, "kept" if subscription.resumed else "new")

    def _lost(self, heard: int, error: AcquisitionError) -> None:
        if error.detail != self.trouble:  # one line per change of state, not one per try
            log.warning("not listening connection=%s error=%s hint=%s", self.name, error.detail, error.hint or "none")
        self.connected, self.trouble = False, error.detail
        self._silences.lost(heard, error.detail)
        for device, group in self.groups:
            self._states.failed(device.info.id, group, error.cause, error.detail, tell=False)
        self._news.set()

    async def _receive(self, subscription: Subscription) -> None:
        """Fetch what comes until the connection is lost."""
        while True:
            while len(self._inbox) >= _INBOX:
                await self._room.wait()
            arrivals = await subscription.receive()
            self._inbox.extend([_Message(subscription, arrival) for arrival in arrivals])
            self._news.set()
            if 2 * len(arrivals) < (subscription.window or _INBOX):
                await anyio.sleep(_GATHER)  # waking up costs more than a message; when it came is known already

    async def _acknowledge(self, subscription: Subscription) -> None:
        """Tell the source what is on disk, in the order of arrival. Raises AcquisitionError: something may not be."""
        while True:
            while self._unsettled:
                message = self._unsettled[0]
                try:
                    for receipts in message.receipts:
                        if not receipts.settled:
                            await receipts.durable()
                except NotStoredError as error:
                    self._unsettled.popleft()
                    if message.subscription is not subscription:
                        continue  # the source sends it again, as it has not been told
                    what, hint = "the outbox does not store what came", "messages wait at their source"
                    raise AcquisitionError(Cause.NOT_STORED, what, hint=hint) from error
                self._unsettled.popleft()
                message.subscription.acknowledge(message.arrival)
            self._told.set()
            self._told, self._added = anyio.Event(), anyio.Event()
            await self._added.wait()

    # ---- in a term ------------------------------------------------------------------------------------------

    async def pump(self, term: Term) -> None:
        """Put what came, in order, and what has to be stated, until the term ends."""
        while not term.over:
            term.look()
            with term.cut_off(grace=0):  # a channel may be full for long
                while self._inbox and not term.over:
                    if not await self._put(term, self._inbox[0]):
                        term.end()
                        return
                    self._taken()
            self._hurry(term)
            self._room.set()
            self._room = anyio.Event()
            self._added.set()
            await checkpoint()  # what came is put before it is said that nothing came
            if not self._inbox and not term.over:
                await self._state(term, self._clock.boot(), last=False)
                self._news = anyio.Event()
                due = self._silences.due
                await term.wait(self._news, until=None if due is None else due + _FETCHED)

    async def settled(self) -> None:
        """Return once the source knows of all that was put."""
        while self._unsettled and self.connected:
            await self._told.wait()

    async def conclude(self, term: Term) -> None:
        """Put what is there, as far as the plan in force allows, and state what lasts; nothing more will come."""
        with anyio.move_on_after(CONCLUDE_WITHIN):
            for _ in range(len(self._inbox)):
                if not await self._put(term, self._inbox[0]):
                    break
                self._taken()
        self.concluded = self._inbox[0].arrival.received if self._inbox else self._clock.boot()
        self._added.set()
        await self._state(term, self.concluded, last=True)  # no later: who takes our place goes on from there

    def _taken(self) -> None:
        """The oldest message was put, all of it."""
        message = self._inbox.popleft()
        if message.arrival.owed:
            self._unsettled.append(message)
            self._held.append(message)

    async def _put(self, term: Term, message: _Message) -> bool:
        """Put what a message means for its groups; False if the plan must change first."""
        arrival = message.arrival
        for index, group in arrival.concerns[message.put :]:
            device = self.adapter.devices[index]
            name = device.info.id
            place = term.indexes.get((name, group))
            if place is not None:
                await self._sink.room(place)
                item = self._item(device, group, place, arrival)
                if device.revision != term.revisions[name]:
                    return False
                self._silences.heard(name, arrival.received)
                message.receipts.append(await self._sink.put(item))
            message.put += 1
        return True

    def _item(self, device: EventDevice, group: str, place: int, arrival: Arrival) -> Frame | Gap:
        """A message as a cycle of a group, or why it yields nothing."""
        name = device.info.id
        try:
            sample = device.decode(group, arrival)
        except AcquisitionError as error:
            self._states.undecodable(name, group, error.detail)
            return Gap(place, None, None, error.cause, error.detail)
        self._states.good(name, group)
        return Frame(
            place, 0, 0, None, sample.values, sample.quality, source_time=sample.source_time, received=arrival.received
        )

    async def _state(self, term: Term, now: int, *, last: bool) -> None:
        """State the spans up to now in which no messages came."""
        for span in self._silences.take(now, fetched=now - _FETCHED, last=last):
            for device, group in self.groups:
                name = device.info.id
                if span.device == name and (name, group) in term.indexes:
                    place = term.indexes[name, group]
                    await self._sink.put(Gap(place, None, None, span.cause, span.detail, span.begin, span.end))
                    if span.cause is Cause.SOURCE_SILENT and span.lasts:
                        self._states.failed(name, group, span.cause, "no messages")

    def _hurry(self, term: Term) -> None:
        """When half of what the source sends without an acknowledgement waits to be sealed, or behind such a message,
        do not wait for the window of the batch.
        """
        held = self._held
        while held and all(receipts.hurried for receipts in held[0].receipts):
            held.popleft()
        window = held[-1].subscription.window if held else None
        if window is not None and 2 * len(held) >= window:
            for device, group in self.groups:
                if (device.info.id, group) in term.indexes:
                    self._sink.hurry(term.indexes[device.info.id, group])
