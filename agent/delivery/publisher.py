"""The publisher: delivers what the outbox holds, in order, until the broker has acknowledged it.

At least once: nothing is sent further than the transport's window ahead of the oldest record that is not settled, so
that a consumer never sees them further out of order. On a time-out it goes back to that one; on a lost connection it
connects again with back-off and first settles against the last record that the broker holds, if it can be asked. It
never touches a record's bytes.

What concerns the whole channel (no connection, no right, no stream, no room) waits for better times and holds up
nobody else. A record that the broker refuses for good is set aside: the next plan states it as withdrawn, and once
that is on disk delivery goes on behind it.

A crash loses nothing: what was not known to be settled is sent again under the same id.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial

import anyio
from anyio import to_thread

from agent.delivery.drain import Drain
from agent.delivery.errand import Errand
from agent.delivery.flight import WINDOW, Flight
from agent.delivery.plans import plan_before
from agent.delivery.refusals import Refusals
from agent.delivery.settling import Settling
from agent.errors import AgentError, TransportError, Verdict, only
from agent.evidence.envelope import message_id
from agent.heartbeat import WITHIN, Heartbeat
from agent.ports import Clock, Message, Recipient, Store, Stored, Transport, TransportSession

__all__ = ["ACK_WITHIN", "WINDOW", "Publisher"]

ACK_WITHIN = 5_000_000_000  # ns: how long an errand runs until it is told how far it came
LEFT_WITHIN = 3 * WITHIN  # for a record of 256 KiB at 300 bytes a second
AWAY = frozenset({"", "unreachable", "timeout", "no_leader", "lost"})  # reasons of failures that are no refusal
_READ = 256 * 1024  # bytes read from the outbox at a time
# A broker that was away for hours is found within ten seconds. What that costs while it is away, a failed attempt each
# 5 to 10 s, is nothing to a box or a line; and the jitter spreads a fleet over five seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # s

log = logging.getLogger(__name__)


class Publisher:
    """Drains an outbox into a transport. The counts are of records, since it was made.

    ``sent``: handed to the transport in their turn, ``repeated``: of these, once more. ``resent``: by order.
    ``failures``: of sessions, by reason. ``refused``: set aside.
    """

    def __init__(
        self,
        *,
        channel: str,
        store: Store,
        transport: Transport,
        did: str,
        topic: str,
        clock: Clock,
        drain: Drain,
        refusals: Refusals,
        elsewhere: Callable[[bytes], bool] = lambda stream: False,
    ) -> None:
        """``topic``: where the transport writes, as plans state it. Takes over ``refusals.on_stated``. ``elsewhere``:
        whether a stream of ours is one that this store never held.
        """
        self._channel = channel
        self._store = store
        self._transport = transport
        self._clock = clock
        self._drain = drain
        self._refusals = refusals
        refusals.on_stated = self._stated
        self._settling = Settling(channel=channel, store=store, did=did, topic=topic, elsewhere=elsewhere)
        self._hasty = 0  # who waits for all to be delivered
        self.on_connected: Callable[[], None] = lambda: None
        self.on_acknowledged: Callable[[], None] = lambda: None
        self._news = anyio.Event()
        self._moved = anyio.Event()  # what is settled
        self._flight: Flight | None = None
        self._session: tuple[TransportSession, Flight] | None = None  # that sends
        self._aside = set[int]()  # refused, stated, and not settled yet
        self._errand = Errand([])
        self._furthest = 0  # position ever sent
        self.beat = Heartbeat(f"publisher of {channel}")
        self.ended = False
        self.connected = False  # and delivers
        self.trouble, self.reason, self.hint = "", "", ""  # why not, as it was last found
        self.sent = self.repeated = self.resent = self.acknowledged = self.refused = 0
        self.failures: Counter[str] = Counter()

    def notify(self) -> None:
        """There are new records in the outbox."""
        self._news.set()

    @property
    def recipients(self) -> Sequence[Recipient]:
        """Who gets what is sent, if the broker brings it to several."""
        return self._transport.recipients

    @property
    def window(self) -> int:
        """Records that may be on their way."""
        return self._transport.window

    async def drained(self, *, up_to: int | None = None) -> None:
        """Return once everything in the outbox is settled, or all up to a position; none of it waits for company."""
        self._hasty += 1
        try:
            if self._session is not None:
                self._session[0].hasten()
            while self._store.pending.records and (up_to is None or self._store.acked < up_to):
                if self._moved.is_set():
                    self._moved = anyio.Event()
                await self._moved.wait()
        finally:
            self._hasty -= 1

    async def run(self) -> None:
        """Deliver until cancelled; every failure of the broker or the way to it ends in another try."""
        pause, failed = _FIRST_PAUSE, ""
        try:
            while True:
                self.beat.due = self._clock.boot() + WITHIN
                try:
                    await self._connect()
                    continue
                except (TransportError, BaseExceptionGroup) as raised:
                    error = only(TransportError, raised)
                self.failures[error.reason or "other"] += 1
                if self.connected:
                    pause, failed, self.connected = _FIRST_PAUSE, "", False
                    self._drain.lost()
                if str(error) != failed:  # one line per change of state, not one per try
                    self._tell(error)
                    failed = self.trouble = str(error)
                self.reason, self.hint = error.reason, error.hint
                await anyio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self.ended = True
            self.beat.due = None
            self._errand.wake()

    def _tell(self, error: TransportError) -> None:
        hint = error.hint or "none"
        if error.reason in AWAY:
            log.warning("broker away channel=%s error=%s hint=%s", self._channel, error, hint)
        else:
            log.error(
                "broker refuses the channel, its records wait channel=%s reason=%s error=%s hint=%s",
                self._channel,
                error.reason,
                error,
                hint,
            )

    async def _connect(self) -> None:
        """One session, to its end."""
        reached = False
        try:
            async with self._transport.session() as session:
                position = await self._settling.position(session) if self._transport.reads_back else None
                reached = True
                self.beat.due = None
                if position is not None:
                    self._settled_up_to(position)
                if session.delivers or not self._store.pending.records:
                    self._delivers()
                self.on_connected()
                await self._deliver(session)
        finally:
            if not reached:
                self._drain.unreachable()

    async def _deliver(self, session: TransportSession) -> None:
        backlog = self._store.next_pos - 1
        self._flight = flight = Flight(self._store.acked, window=self._transport.window)
        flight.set_aside(self._aside)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, session, flight)
                if self._transport.ack_within is not None:
                    tasks.start_soon(self._watch, flight, self._transport.ack_within)
                if pause := self._drain.begin(self._store.pending.records):
                    self.trouble, self.reason = f"connected; what waits is sent from {pause / 1e9:.0f} s on", ""
                    self.hint = ""
                    log.info(
                        "broker reached, what waits is sent later, for others wait too channel=%s waiting=%d in_s=%.0f",
                        self._channel,
                        self._store.pending.records,
                        pause / 1e9,
                    )
                    await self._clock.sleep_until(self._clock.boot() + pause)
                self._session = session, flight
                self._errand.wake()
                await self._send(session, flight, backlog=backlog)
        finally:
            self.beat.due = self._clock.boot() + WITHIN  # for leaving the session
            self._flight = self._session = None
            flight.wake()
            self._errand.wake()

    def _delivers(self) -> None:
        """A connection is worth its name once a record has come through, or none waits."""
        if not self.connected:
            self.connected, self.trouble, self.reason, self.hint = True, "", "", ""
            log.info("broker connected channel=%s waiting=%d", self._channel, self._store.pending.records)

    async def _send(self, session: TransportSession, flight: Flight, *, backlog: int) -> None:
        """``backlog``: position of the last record that is sent at the drain's rate."""
        while True:
            news, turn = anyio.Event(), flight.turn
            self._news = news
            stored = self._store.fresh(flight.cursor)
            if not stored:
                with self.beat.back_by(self._clock.boot() + WITHIN):
                    stored = await to_thread.run_sync(lambda: self._store.read(flight.cursor, max_bytes=_READ))
            if not stored:
                await self._no_more(session, news)
                continue
            for record in stored:
                while flight.full and flight.turn == turn:
                    await flight.moved.wait()
                if record.pos <= backlog and flight.turn == turn:
                    await self._drain.pace(len(record.envelope))
                if flight.turn != turn:
                    break  # went back meanwhile: what was read is not what comes next
                if flight.take(record.pos, record.link):
                    await self._hand_over(session, flight, record)
                else:
                    self._advance(flight)
            if flight.turn == turn and sum(len(record.envelope) for record in stored) < _READ // 2:
                await self._no_more(session, news)  # when this was read: do not ask the disk again

    async def _no_more(self, session: TransportSession, news: anyio.Event) -> None:
        if self._hasty:
            session.hasten()
        await news.wait()

    async def _hand_over(self, session: TransportSession, flight: Flight, record: Stored) -> None:
        self.sent += 1
        self.repeated += record.pos <= self._furthest
        self._furthest = max(self._furthest, record.pos)
        self.beat.due = self._clock.boot() + LEFT_WITHIN
        try:
            await session.send(self._message(record))
        except TransportError as error:
            if error.verdict is not Verdict.REJECT:
                raise
            self._refuse(flight, record.pos, error)
            self.beat.due = None
            return
        within = self._transport.ack_within
        if within is None:
            self.beat.due = None  # the session itself sees to it that what is under way ends
        await session.room()  # on a slow line that takes longer than an answer may
        self.beat.due = None
        if within is not None:
            flight.left(record.pos, overdue=self._clock.boot() + within)

    def _message(self, record: Stored, *, resent: bool = False) -> Message:
        find_plan = partial(plan_before, self._store, record)
        return Message(record.pos, message_id(record.link), record.envelope, resent, find_plan)

    async def _receive(self, session: TransportSession, flight: Flight) -> None:
        async for ack in session.acks():
            if not flight.knows(ack.token) and self._errand.answer(ack):
                continue
            if ack.error is None:
                flight.answer(ack.token)
            elif isinstance(ack.error, AgentError) and ack.error.verdict is Verdict.REJECT:
                self._refuse(flight, ack.token, ack.error)
            else:
                raise ack.error
            self._advance(flight)
        raise TransportError("the connection ended", reason="unreachable")

    def _advance(self, flight: Flight) -> None:
        """Settle what is answered without a hole."""
        acknowledged, aside = flight.advance()
        if acknowledged or aside:
            self.acknowledged += acknowledged
            self.refused += aside
            self._delivers()
            self._settled_up_to(flight.acked)

    def _settled_up_to(self, position: int) -> None:
        self._store.settle(position)
        self._aside = {each for each in self._aside if each > position}
        self._moved.set()
        self.on_acknowledged()

    async def _watch(self, flight: Flight, within: int) -> None:
        """Go back to the oldest record whose answer is overdue; twice without any answer, and the connection is given
        up.
        """
        missed = answers = 0
        while True:
            await self._clock.sleep_until(flight.overdue or self._clock.boot() + within)
            if flight.answers != answers:
                missed, answers = 0, flight.answers
            if flight.overdue is None or flight.overdue > self._clock.boot():
                continue
            missed += 1
            if missed > 1:
                hint = "look at its disk and load; a NATS stream with no_ack never does"
                raise TransportError("the server does not acknowledge", hint=hint, reason="timeout")
            log.warning("acknowledgement overdue, going back channel=%s records=%d", self._channel, flight.waiting)
            flight.go_back()
            self._news.set()

    # ---- records that are refused for good ------------------------------------------------------------------

    def _refuse(self, flight: Flight, position: int, error: AgentError) -> None:
        link = flight.refuse(position)
        if link is None:
            return
        if not flight.told:
            flight.told = True
            log.error(
                "broker refuses a record for good, it is set aside and stated channel=%s record=%s error=%s hint=%s",
                self._channel,
                message_id(link),
                error,
                f"{error.hint or 'see the broker'}; then `edge-agent outbox resend --refused`",
            )
        self._refusals.add(position, link)

    def _stated(self, positions: Collection[int]) -> None:
        self._aside |= {position for position in positions if position > self._store.acked}
        if self._flight is not None:
            self._flight.set_aside(positions)
            self._advance(self._flight)

    # ---- records that are sent again by order ---------------------------------------------------------------

    async def send_again(self, errand: Errand) -> None:
        """Send what waits in an errand, besides what comes in its turn; returns when all of it is answered, or after
        ``ACK_WITHIN``, to be called again. One errand at a time, of half a window at most.

        Raises TransportError when this publisher has ended.
        """
        self._errand = errand
        with anyio.move_on_after(ACK_WITHIN / 1e9):
            while errand.waiting:
                if self.ended:
                    raise TransportError("the channel was closed", hint="try again")
                if self._session is None:
                    await errand.changed.wait()
                else:
                    await self._run_errand(errand, *self._session)

    async def _run_errand(self, errand: Errand, session: TransportSession, flight: Flight) -> None:
        """Until all is answered or the session ends; live records leave room meanwhile."""
        flight.reserved = len(errand.waiting)
        try:
            while flight.room < flight.reserved and flight is self._flight:
                await flight.moved.wait()
            for record in list(errand.waiting.values()):
                await self._drain.pace(len(record.envelope))
                await self._send_again(session, errand, record)
            session.hasten()
            while errand.waiting and flight is self._flight:
                await errand.changed.wait()
        finally:
            flight.reserved = 0
            flight.wake()

    async def _send_again(self, session: TransportSession, errand: Errand, record: Stored) -> None:
        self.resent += 1
        try:
            await session.send(self._message(record, resent=True))
        except TransportError as error:
            errand.failed(record.pos, error)
            return
        await session.room()
