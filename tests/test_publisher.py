"""The publisher: everything in the outbox reaches the broker, in order, at least once, through whatever the way there
does (docs/evidence.md section 7, docs/outbox.md rule 5).
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio import from_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery.drain import Drain
from agent.delivery.errand import Errand
from agent.delivery.publisher import ACK_WITHIN, WINDOW, Publisher
from agent.delivery.refusals import Refusals
from agent.errors import OutboxError, TransportError, Verdict
from agent.model import Cause, Withdrawn
from agent.ports import Message
from agent.verifier import Verifier
from tests.fakes import (
    BACKEND,
    MS,
    FakeBroker,
    FakeSession,
    FakeStore,
    Fate,
    Held,
    S,
    VirtualLoop,
    turns,
    until,
    virtual_clock,
)
from tests.runs import DID, FACTS, OTHER_SECRET, Run, frame, group

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


class Bench:
    """A publisher between a fake outbox and a fake broker."""

    def __init__(
        self,
        records: int = 0,
        *,
        fate: Callable[[Message], Fate] = lambda message: Fate(),
        rate: int | None = None,
        spread: int = 0,
        topic: str = FACTS.topic,
    ) -> None:
        self.clock = virtual_clock()
        self.store = FakeStore(segment_size=4096, segments=64)
        self.broker = FakeBroker(self.clock, fate)
        self.run = Run()
        self.run.begin([group(100)])
        self.refusals = Refusals()
        self.topic = topic
        self.publisher = self.made(rate=rate, spread=spread)
        self._appended = 0
        self._cycle = 100
        self.add(records)

    def made(self, *, rate: int | None = None, spread: int = 0) -> Publisher:
        """A publisher, as a new process makes it."""
        return Publisher(
            channel="dso",
            store=self.store,
            transport=self.broker,
            did=DID,
            topic=self.topic,
            clock=self.clock,
            drain=Drain(rate=rate, spread=spread, clock=self.clock),
            refusals=self.refusals,
        )

    def add(self, records: int) -> None:
        """Put more records into the outbox."""
        while len(self.run.sent) < self._appended + records:
            if self._appended + records - len(self.run.sent) and len(self.run.sent) % 7 == 0:
                self.run.plan()  # so that a segment can begin here
            else:
                self.run.data([frame(self._cycle)])
                self._cycle += 1
        for number in range(self._appended, self._appended + records):
            envelope, link = self.run.sent[number], self.run.links[number]
            is_plan = number % 7 == 0
            full = not self.store.fits(8 * 700, 8)
            self.store.append([(envelope, link)], new_segment=number == 0 or (is_plan and full))
        self._appended += records
        self.publisher.notify()

    def move(self, topic: str) -> None:
        """Plans from now on say that the channel writes there."""
        self.run.sealer.facts = replace(FACTS, topic=topic)
        self.run.begin([group(self._cycle)])

    def numbers(self, messages: list[bytes]) -> list[int]:
        """Sequence numbers of envelopes."""
        return [self.run.sent.index(envelope) + 1 for envelope in messages]

    def sent(self, connection: int = -1) -> list[int]:
        """Sequence numbers in the order in which they were sent on a connection."""
        return self.numbers([message.envelope for message in self.broker.sent[connection]])


def by_number(fates: dict[int, list[Fate]]) -> Callable[[Message], Fate]:
    """Fates of records by their number, one for each time they are sent; good ones after that."""
    left: dict[int, Iterator[Fate]] = {number: iter(each) for number, each in fates.items()}

    def fate(message: Message) -> Fate:
        return next(left.get(int(message.id.split("-")[1]), iter(())), Fate())

    return fate


SILENT = Fate(stored=False, answers=())
UNANSWERED = Fate(answers=())


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.publisher.run)
        yield bench
        tasks.cancel_scope.cancel()


async def drained(bench: Bench, *, within: float = 120) -> None:
    with anyio.fail_after(within):
        await bench.publisher.drained()


# ---- the good case ----------------------------------------------------------------------------------------------


async def test_all_goes_out_in_order_and_once() -> None:
    async with running(Bench(200)) as bench:
        await drained(bench)
        bench.add(10)
        await drained(bench)
    assert bench.broker.messages == bench.run.sent
    assert bench.sent() == list(range(1, 211))
    assert bench.publisher.acknowledged == 210
    assert bench.store.acked == 210
    assert all(message.id.split("-")[1] == str(message.token) for message in bench.broker.sent[0])


async def test_who_keeps_up_does_not_ask_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Bench(3, fate=lambda message: Fate(answers=((S, None),)))) as bench:
        await drained(bench)

        def read(after: int, *, max_bytes: int) -> list[Held]:
            raise AssertionError("read")

        monkeypatch.setattr(bench.store, "read", read)
        for records in (1, 1, 20):
            for _ in range(records - 1):
                bench.add(1)
                await turns(50)  # it is sent before the next one comes, and not yet acknowledged
            bench.add(1)
            bench.publisher.notify()
            await drained(bench)
    assert bench.broker.messages == bench.run.sent
    assert bench.sent() == list(range(1, 26)), "each once"


async def test_nothing_is_sent_further_ahead_than_the_window() -> None:
    """Not even while all but the oldest are acknowledged: a consumer waits for it with that many at most."""
    bench = Bench(200, fate=by_number({5: [SILENT]}))
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 4 * S)
        assert bench.sent() == list(range(1, 5 + WINDOW))
        assert bench.store.acked == 4
        await drained(bench)
    assert bench.sent()[5 + WINDOW - 1] == 5
    behind = bench.broker.messages.index(bench.run.sent[4])
    assert behind == 4 + WINDOW - 1
    assert sorted(bench.numbers(bench.broker.messages)) == list(range(1, 201))


async def test_drained_up_to_a_position_does_not_wait_for_what_comes_behind_it() -> None:
    async with running(Bench(5, fate=lambda message: Fate() if message.token <= 5 else SILENT)) as bench:
        await drained(bench)
        bench.add(1)
        with anyio.fail_after(0.001):
            await bench.publisher.drained(up_to=5)
        with anyio.move_on_after(0.001) as scope:
            await bench.publisher.drained(up_to=6)
        assert scope.cancelled_caught


async def test_drained_returns_at_once_when_nothing_waits() -> None:
    bench = Bench(0)
    await drained(bench, within=0.001)


# ---- answers ----------------------------------------------------------------------------------------------------


async def test_answers_in_any_order_settle_only_what_has_no_hole() -> None:
    bench = Bench(3, fate=lambda message: UNANSWERED)
    async with running(bench):
        await until(lambda: bench.broker.sent and len(bench.broker.sent[0]) == 3)
        session = bench.broker.sessions[0]
        settled = []
        for token in (3, 2, 2, 1, 1, 3):
            session.answer(token)
            await anyio.sleep(0.01)
            settled.append(bench.store.acked)
    assert settled == [0, 0, 0, 3, 3, 3]
    assert bench.publisher.acknowledged == 3


async def test_answers_that_nobody_waits_for_are_ignored() -> None:
    bench = Bench(3, fate=lambda message: UNANSWERED)
    async with running(bench):
        await until(lambda: bench.broker.sent and len(bench.broker.sent[0]) == 3)
        for token in (0, 4, 77, -1):
            bench.broker.sessions[0].answer(token)
        await anyio.sleep(0.01)
        assert bench.store.acked == 0


async def test_an_overdue_answer_sends_again_from_the_oldest_without_those_that_were_answered() -> None:
    bench = Bench(8, fate=by_number({3: [SILENT], 6: [UNANSWERED]}))
    async with running(bench):
        begun = bench.clock.now
        await drained(bench)
        assert ACK_WITHIN <= bench.clock.now - begun < ACK_WITHIN + 100 * MS
    assert bench.sent() == [1, 2, 3, 4, 5, 6, 7, 8, 3, 6]
    assert bench.numbers(bench.broker.messages) == [1, 2, 4, 5, 6, 7, 8, 3]
    assert len(bench.broker.sent) == 1


async def test_going_back_does_not_settle_what_lies_between_answered_records() -> None:
    """8 was answered, 3 to 7 were not: the answer for 3 must not settle the others."""
    late = Fate(answers=[(100 * MS, None)])
    fates = {number: [SILENT, late if number > 3 else Fate()] for number in range(3, 8)}
    bench = Bench(8, fate=by_number(fates))
    async with running(bench):
        await until(lambda: bench.store.acked >= 3)
        assert bench.store.acked == 3
        await drained(bench)
    assert sorted(bench.numbers(bench.broker.messages)) == list(range(1, 9))


async def test_going_back_while_the_outbox_is_being_read() -> None:
    """The read that was under way is thrown away: else records 1 and 2 would be passed over."""
    bench = Bench(2, fate=by_number({1: [SILENT], 2: [SILENT]}))
    async with running(bench):
        await until(lambda: bench.broker.sent and len(bench.broker.sent[0]) == 2)
        read, overdue = bench.store.read, bench.clock.now + ACK_WITHIN

        async def time_out() -> None:
            bench.clock.now = max(bench.clock.now, overdue)
            await turns()

        def slow(after: int, *, max_bytes: int) -> list[Held]:
            found = read(after, max_bytes=max_bytes)
            from_thread.run(time_out)
            return found

        bench.store.read = slow  # type: ignore[method-assign]
        bench.add(3)
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [1, 2, 3, 4, 5]


async def test_a_late_answer_counts() -> None:
    bench = Bench(2, fate=by_number({1: [Fate(answers=[(ACK_WITHIN + S, None)])] * 5, 2: [UNANSWERED] * 5}))
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + ACK_WITHIN + 2 * S)
        assert bench.store.acked == 1
    assert len(bench.broker.messages) == 2


async def test_a_server_that_never_answers_is_left_after_two_time_outs() -> None:
    bench = Bench(3, fate=lambda message: SILENT)
    async with running(bench):
        begun = bench.clock.now
        await until(lambda: len(bench.broker.sent) > 1)
        assert 2 * ACK_WITHIN <= bench.clock.now - begun < 2 * ACK_WITHIN + S
        assert bench.sent(0) == [1, 2, 3, 1, 2, 3]
        bench.broker.fate = lambda message: Fate()
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [1, 2, 3]


async def test_time_outs_with_answers_in_between_are_not_two_in_a_row() -> None:
    bench = Bench(1, fate=by_number({1: [SILENT], 2: [SILENT]}))
    async with running(bench):
        await drained(bench)
        bench.add(1)
        await drained(bench)
    assert bench.sent() == [1, 1, 2, 2]
    assert len(bench.broker.sent) == 1


async def test_a_server_that_answers_slowly_is_kept() -> None:
    bench = Bench(30, fate=lambda message: Fate(answers=[(4 * S, None)]))
    async with running(bench):
        await drained(bench)
    assert len(bench.broker.sent) == 1
    assert bench.sent() == list(range(1, 31))


async def test_an_answer_is_overdue_only_since_its_record_left(caplog: pytest.LogCaptureFixture) -> None:
    """A large record on a slow line takes longer to leave than an answer may take to come."""
    bench = Bench(2, fate=lambda message: Fate(answers=((20 * S, None),)))
    bench.broker.leaves_in = 18 * S
    async with running(bench):
        await drained(bench)
        assert bench.sent() == [1, 2]
    assert "overdue" not in caplog.text


async def test_a_refused_record_is_tried_again_and_not_passed_over() -> None:
    """The server had no room for record 3 and had it for 4: the last message there says nothing of 3."""
    refused = Fate(stored=False, answers=[(MS, TransportError("no room"))])
    bench = Bench(6, fate=by_number({3: [refused, refused]}))
    async with running(bench):
        await drained(bench)
    assert sorted(bench.numbers(bench.broker.messages)) == [1, 2, 3, 4, 5, 6]
    assert len(bench.broker.sent) == 3
    assert bench.sent(1)[0] == bench.sent(2)[0] == 3


async def test_a_broker_that_refuses_everything_is_away_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(3, fate=lambda message: Fate(stored=False, answers=[(MS, TransportError("no room"))]))
    async with running(bench):
        await until(lambda: len(bench.broker.sent) == 6, within=60 * S)
        assert not bench.publisher.connected
        assert "broker connected" not in caplog.text
        assert caplog.text.count("broker away") == 1
        bench.broker.fate = lambda message: Fate()
        await drained(bench)
        assert bench.publisher.connected
    assert caplog.text.count("broker connected") == 1


async def test_every_loss_of_a_good_connection_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(0)
    async with running(bench):
        for losses in (1, 2):
            await until(lambda: bench.publisher.connected, within=60 * S)
            bench.broker.down()
            await until(lambda: not bench.publisher.connected, within=60 * S)
            bench.broker.up()
            assert caplog.text.count("broker away") >= losses


async def test_a_last_record_that_was_overwritten_here_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(0)
    bench.store.max_segments = 4
    while not bench.store.written or bench.store.written[0] in bench.store.held():
        bench.add(5)
    bench.broker.messages = bench.run.sent[:1]
    async with running(bench):
        await drained(bench)
    assert "was overwritten here" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_record_that_was_dropped_is_not_passed_over_when_the_connection_breaks() -> None:
    bench = Bench(6, fate=by_number({3: [SILENT]}))
    async with running(bench):
        await until(lambda: len(bench.broker.messages) == 5)
        await anyio.sleep(0.1)
        bench.broker.drop()
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [1, 2, 4, 5, 6, 3]
    assert bench.sent(1) == [3, 4, 5, 6]


# ---- records that are refused for good --------------------------------------------------------------------------

TOO_LARGE = TransportError("too large", reason="too_large", hint="raise the limit", verdict=Verdict.REJECT)
REFUSED = Fate(stored=False, answers=[(MS, TOO_LARGE)])


def refusing(*numbers: int) -> Callable[[Message], Fate]:
    """A broker that never takes these."""
    return lambda message: REFUSED if int(message.id.split("-")[1]) in numbers else Fate()


async def test_a_refused_record_holds_its_place_until_it_is_stated(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(200, fate=refusing(3, 5))
    async with running(bench):
        await until(lambda: len(bench.broker.messages) == WINDOW)
        await bench.clock.sleep_until(bench.clock.now + 4 * ACK_WITHIN)
        assert bench.store.acked == 2
        assert bench.sent() == list(range(1, 3 + WINDOW)), "not sent again, and nothing beyond the window"
        stream = bench.run.sealer.stream
        refused = bench.refusals.unstated()
        assert list(refused.values()) == [Withdrawn(stream, n, n, Cause.REFUSED) for n in (3, 5)]
        bench.refusals.stated(refused)
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [n for n in range(1, 201) if n not in (3, 5)]
    publisher = bench.publisher
    assert (publisher.refused, publisher.acknowledged, publisher.sent, publisher.repeated) == (2, 198, 200, 0)
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert "raise the limit; then `edge-agent outbox resend --refused`" in told[0].getMessage()


async def test_a_record_that_the_transport_itself_refuses_is_set_aside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(5)
    send = FakeSession.send

    async def refuse(session: FakeSession, message: Message) -> None:
        if message.token == 2:
            raise TOO_LARGE
        await send(session, message)

    monkeypatch.setattr(FakeSession, "send", refuse)
    async with running(bench):
        await until(lambda: bench.refusals)
        bench.refusals.stated(bench.refusals.unstated())
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [1, 3, 4, 5]
    assert len(bench.broker.sent) == 1


async def test_a_refused_record_is_refused_again_after_a_crash_before_it_was_stated() -> None:
    bench = Bench(5, fate=refusing(2))
    async with running(bench):
        await until(lambda: bench.refusals)
    bench.store = bench.store.reopened()
    bench.refusals = Refusals()
    bench.publisher = bench.made()
    async with running(bench):
        await until(lambda: bench.refusals)
        assert bench.store.acked <= 1
        bench.refusals.stated(bench.refusals.unstated())
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == [1, 3, 4, 5]


async def test_what_is_stated_while_the_broker_is_away_is_not_sent_again() -> None:
    bench = Bench(5, fate=refusing(2))
    async with running(bench):
        await until(lambda: bench.refusals)
        bench.broker.down()
        await until(lambda: not bench.broker.sessions)
        bench.refusals.stated(bench.refusals.unstated())
        bench.broker.up()
        await drained(bench)
    assert 2 not in bench.sent()
    assert bench.publisher.refused == 1


async def test_going_back_does_not_send_what_was_refused() -> None:
    bench = Bench(4, fate=by_number({2: [REFUSED] * 9, 3: [SILENT]}))
    async with running(bench):
        await until(lambda: 3 in bench.numbers(bench.broker.messages))
        assert bench.sent() == [1, 2, 3, 4, 3]
        bench.refusals.stated(bench.refusals.unstated())
        await drained(bench)


@pytest.mark.parametrize("reason", ["authorization", "permission", "no_stream", "stream_full", "store", "tls"])
async def test_what_concerns_the_whole_channel_sets_nothing_aside_and_stops_nobody_else(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = TransportError("it cannot be", reason=reason, hint="mend it")
    bench, other = Bench(3, fate=lambda message: Fate(stored=False, answers=[(MS, error)])), Bench(3)
    async with running(bench), running(other):
        await drained(other)
        await until(lambda: bench.publisher.failures[reason] == 5)
        assert (bench.publisher.reason, bench.publisher.trouble) == (reason, "it cannot be")
        assert not bench.publisher.connected
        assert not bench.refusals
        told = [r for r in caplog.records if r.message.startswith("broker refuses the channel, its records wait")]
        assert [record.levelname for record in told] == ["ERROR"]
        assert "hint=mend it" in told[0].getMessage()
        bench.broker.fate = lambda message: Fate()
        await drained(bench)
        assert (bench.publisher.reason, bench.publisher.trouble) == ("", "")
    assert bench.broker.messages == bench.run.sent
    assert bench.publisher.refused == 0


# ---- what waited through an outage ------------------------------------------------------------------------------


async def first_sent(bench: Bench) -> float:
    """When the first record of the newest connection goes out, in s from now."""
    begun, known = bench.clock.now, len(bench.broker.sent)
    await until(lambda: len(bench.broker.sent) > known and bench.broker.sent[-1], every=50 * MS)
    return (bench.clock.now - begun) / S


async def test_a_backlog_of_unknown_age_starts_at_a_random_time_within_the_spread() -> None:
    starts = []
    for _ in range(12):
        bench = Bench(WINDOW + 1, spread=60 * S)
        async with running(bench):
            starts.append(await first_sent(bench))
            await drained(bench)
    assert all(start <= 60.1 for start in starts)
    assert max(starts) - min(starts) > 5


async def test_what_goes_out_at_once_anyway_does_not_wait() -> None:
    bench = Bench(WINDOW, spread=60 * S)
    async with running(bench):
        assert await first_sent(bench) < 0.1


@pytest.mark.parametrize("outage", [2, 3600])
async def test_a_start_is_put_off_by_no_more_than_the_outage_lasted(
    outage: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench(1, spread=60 * S)
    async with running(bench):
        await drained(bench)
        bench.broker.down()
        bench.add(500)
        await bench.clock.sleep_until(bench.clock.now + outage * S)
        bench.broker.up()
        start = await first_sent(bench)
        assert start <= 10.1 + min(outage, 60)
        await drained(bench)
        if start > 10.1:
            assert "broker reached, what waits is sent later" in caplog.text
        bench.add(1)
        before = bench.clock.now
        await drained(bench)
        assert bench.clock.now - before < S, "live again"


async def test_a_refused_channel_does_not_draw_again_with_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    error = TransportError("no room", reason="stream_full")
    bench = Bench(200, fate=lambda message: Fate(stored=False, answers=[(MS, error)]), spread=60 * S)
    async with running(bench):
        begun = bench.clock.now
        await until(lambda: bench.publisher.failures["stream_full"] == 3, every=50 * MS)
        assert 60 <= (bench.clock.now - begun) / S < 62
        bench.broker.down()
        await until(lambda: bench.publisher.failures["other"] == 3, every=50 * MS)
        bench.broker.up()
        bench.broker.fate = lambda message: Fate()
        assert 60 <= await first_sent(bench) < 72, "the whole fleet waited for it"
        await drained(bench)


async def test_a_connection_lost_before_the_start_is_noticed() -> None:
    bench = Bench(200, spread=3600 * S)
    async with running(bench):
        await until(lambda: bench.broker.sent)
        bench.broker.drop()
        await until(lambda: len(bench.broker.sent) == 2, within=3 * S)
        assert "what waits is sent from" in bench.publisher.trouble


async def test_the_rate_holds_for_what_waited_and_not_for_what_comes_behind_it() -> None:
    bench = Bench(300, rate=20_000)
    waited = sum(map(len, bench.run.sent))
    async with running(bench):
        begun = bench.clock.now
        await until(lambda: bench.store.acked >= 100)
        bench.add(200)
        await until(lambda: bench.store.acked >= 300)
        took = (bench.clock.now - begun) / S
        assert 0.95 * waited / 20_000 <= took <= 1.05 * waited / 20_000
        before = bench.clock.now
        await drained(bench)
        assert bench.clock.now - before < S
    assert bench.broker.messages == bench.run.sent


# ---- a storm of retries -----------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.4]))
@settings(max_examples=25, deadline=None, database=None)
def test_no_storm_of_retries_makes_a_hole_for_a_consumer(seed: int, trouble: float) -> None:
    """Whatever is lost, answered late, stored late or twice: who reads never needs to wait with more than the window.
    Messages overtake each other only where they are not acknowledged yet, as when an old connection's reach the
    server behind those of a new one.
    """
    chance, sends = random.Random(seed), 0

    async def main() -> tuple[Bench, list[bytes]]:
        bench, stuck = Bench(200), list[Message]()

        def fate(message: Message) -> Fate:
            for held in [held for held in stuck if chance.random() < 0.05]:
                stuck.remove(held)
                bench.broker.take(held)
            nonlocal sends
            sends += 1
            if chance.random() < 0.005:
                bench.broker.remembered.clear()
            if chance.random() > trouble * (1 - sends / 1500):
                return Fate(answers=[(chance.choice([0, MS, 200 * MS]), None)])
            kind = chance.randrange(6)
            if kind == 0:
                stuck.append(message)
            return [
                SILENT,
                Fate(answers=[(chance.randrange(8 * S), None)] * 2),
                UNANSWERED,
                Fate(stored=False, answers=[(MS, TransportError("no room"))]),
                Fate(lost=True),
                SILENT,
            ][kind]

        bench.broker.fate = fate
        while bench.store.pending.records:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bench.publisher.run)
                with anyio.move_on_after(chance.uniform(1, 200)):
                    await bench.publisher.drained()
                tasks.cancel_scope.cancel()
            bench.store = bench.store.reopened() if bench.store.pending.records else bench.store
            bench.publisher = bench.made()
        return bench, bench.broker.messages

    bench, messages = anyio.run(main, backend_options={"loop_factory": VirtualLoop})
    verifier = Verifier([DID])
    for envelope in messages:
        verifier.feed(envelope)
    assert verifier.report.holes == []
    verifier.finish(complete=True)
    assert verifier.report.good
    assert set(messages) == set(bench.run.sent)


# ---- the connection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 7, 64, 65, 130])
@pytest.mark.parametrize("answered", [True, False])
async def test_a_connection_that_breaks_anywhere_loses_nothing(at: int, answered: bool) -> None:
    answers: list[tuple[int, TransportError | None]] = [(0, None)] if answered else [(3 * S, None)]
    broken: list[int] = []

    def fate(message: Message) -> Fate:
        if message.token == at and not broken:
            broken.append(at)
            return Fate(lost=True)
        return Fate(answers=answers if not broken else [(0, None)])

    bench = Bench(130, fate=fate)
    async with running(bench):
        await drained(bench)
    assert bench.broker.messages == bench.run.sent


async def test_back_off_grows_to_ten_seconds_and_starts_anew_when_records_went_through(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bench, tries = Bench(1), []
    connect = bench.broker.session

    def session() -> Any:
        tries.append(bench.clock.now)
        return connect()

    bench.broker.session = session  # type: ignore[method-assign]
    bench.broker.down()
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 300 * S)
        pauses = [(after - before) / S for before, after in pairwise(tries)]
        assert 0.1 <= pauses[0] <= 0.21
        assert all(5 <= pause <= 10.01 for pause in pauses[9:])
        assert min(pauses[9:]) < 7 < max(pauses[9:]), "a fleet does not come all at once"
        assert len([r for r in caplog.records if r.message.startswith("broker away")]) == 1
        bench.broker.up()
        await drained(bench)
        assert bench.publisher.connected
        bench.broker.down()
        tries.clear()
        await bench.clock.sleep_until(bench.clock.now + S)
        assert not bench.publisher.connected
        assert len(tries) >= 2


async def test_the_batcher_hears_of_every_connection() -> None:
    bench, heard = Bench(1), []
    bench.publisher.on_connected = lambda: heard.append(bench.clock.now)
    async with running(bench):
        await drained(bench)
        bench.broker.drop()
        bench.add(1)
        await drained(bench)
    assert len(heard) == 2


async def test_an_outbox_that_fails_ends_it() -> None:
    bench = Bench(1)
    bench.store._broken = True
    with pytest.raises(BaseExceptionGroup) as raised:
        await bench.publisher.run()
    assert raised.group_contains(OutboxError)


async def test_answers_that_end_without_an_error_are_a_lost_connection() -> None:
    bench = Bench(3, fate=lambda message: UNANSWERED)
    async with running(bench):
        await until(lambda: bench.broker.sent and len(bench.broker.sent[0]) == 3)
        session = bench.broker.sessions[0]

        async def nothing() -> AsyncIterator[Any]:
            return
            yield

        session.acks = nothing  # type: ignore[method-assign]
        session.lose()
        bench.broker.fate = lambda message: Fate()
        await until(lambda: len(bench.broker.sent) == 2)
        await drained(bench)


# ---- settling against the broker's last record (docs/outbox.md rule 5) ------------------------------------------


async def connected(bench: Bench) -> None:
    await until(lambda: bench.publisher.connected)


async def test_a_later_record_than_the_acknowledged_one_settles_up_to_the_window_before_it() -> None:
    """What lies within the window before it may have been refused; ids tell what was not."""
    bench = Bench(200)
    bench.broker.messages = bench.run.sent[:150]
    bench.store.settle(4)
    async with running(bench):
        await drained(bench)
    assert bench.sent() == list(range(150 - WINDOW + 1, 201))


async def test_settling_counts_records_and_not_positions() -> None:
    bench = Bench(0)
    for _ in range(150):
        bench.add(1)
        bench.store.settle(bench.store.written[-1].pos)
        bench.store.mark()
    bench.broker.messages = bench.run.sent[:]
    bench.store.settle(4)
    async with running(bench):
        await drained(bench)
    assert bench.sent() == list(range(150 - WINDOW + 1, 151))


async def test_a_record_refused_before_a_crash_is_not_passed_over_after_it() -> None:
    """Nothing but the broker's last record is known of the run before."""
    bench = Bench(100)
    bench.broker.messages = bench.run.sent[:30] + bench.run.sent[31:60]
    bench.store.settle(20)
    async with running(bench):
        await drained(bench)
    assert bench.sent()[0] == 21
    assert set(bench.broker.messages) == set(bench.run.sent)


async def test_settling_may_leave_nothing_to_wait_for() -> None:
    bench = Bench(3)
    bench.broker.last_error = TransportError("time-out")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.publisher.drained)
        bench.publisher._settled_up_to(3)


@pytest.mark.parametrize("kept", [3, 40, 150 - WINDOW])
async def test_an_earlier_record_has_all_behind_it_sent_again(caplog: pytest.LogCaptureFixture, kept: int) -> None:
    bench = Bench(150)
    bench.broker.messages = bench.run.sent[:kept]
    bench.store.settle(150)
    async with running(bench):
        await connected(bench)
        await drained(bench)
    assert set(bench.broker.messages) == set(bench.run.sent)
    assert bench.sent()[0] == max(1, kept - WINDOW + 1)
    assert "broker lost acknowledged records" in caplog.text


@pytest.mark.parametrize("behind", [1, WINDOW - 1])
@pytest.mark.parametrize("marks", [0, 100])
async def test_an_earlier_record_within_the_window_is_no_loss(
    caplog: pytest.LogCaptureFixture, behind: int, marks: int
) -> None:
    """It was sent again and stored last, when all behind it had long been acknowledged."""
    caplog.set_level(logging.INFO)
    bench = Bench(100)
    for position in range(marks):  # they take positions and are no records
        bench.store.settle(position + 1)
        bench.store.mark()
    bench.add(50 + 2 * WINDOW)  # what is not acknowledged yet does not count
    again = 150 - behind
    sent = bench.run.sent
    bench.broker.messages = [*sent[: again - 1], *sent[again:150], sent[again - 1]]
    bench.store.settle(bench.store.written[149].pos)
    async with running(bench):
        await connected(bench)
        await drained(bench)
    assert bench.sent() == list(range(again - WINDOW + 1, 151 + 2 * WINDOW))
    said = [record.levelname for record in caplog.records if record.message.startswith("broker's last record is an")]
    assert said == ["INFO"]
    assert "broker lost" not in caplog.text


async def test_the_acknowledged_record_itself_changes_nothing() -> None:
    bench = Bench(5)
    bench.broker.messages = bench.run.sent[:5]
    bench.store.settle(5)
    bench.store.mark()
    async with running(bench):
        await connected(bench)
        assert bench.store.acked == 5
        await drained(bench, within=0.01)


async def test_no_last_record_changes_nothing() -> None:
    bench = Bench(5)
    bench.store.settle(2)
    async with running(bench):
        await drained(bench)
    assert bench.sent() == [3, 4, 5]


async def test_an_empty_stream_is_no_reason_to_send_what_it_acknowledged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What expired or was removed on purpose looks just like what was lost."""
    bench = Bench(200)
    bench.store.settle(150)
    bench.broker.fate = lambda message: SILENT
    async with running(bench):
        await until(lambda: len(bench.broker.sent) == 3)
        bench.broker.fate = lambda message: Fate()
        await drained(bench)
    assert bench.numbers(bench.broker.messages) == list(range(151, 201))
    told = [r for r in caplog.records if r.message.startswith("broker holds nothing of what it acknowledged")]
    assert [r.levelname for r in told] == ["WARNING"], "once"


async def test_an_empty_stream_is_not_spoken_of_when_nothing_was_acknowledged_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fresh, moved = Bench(3), Bench(3, topic="dx.site-1.elsewhere")
    moved.store.settle(2)  # where the plan says
    for bench in (fresh, moved):
        async with running(bench):
            await drained(bench)
    assert "broker holds nothing" not in caplog.text


async def test_what_was_acknowledged_under_another_topic_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The subject moved and moved back: the last record there is older than what was acknowledged since."""
    caplog.set_level(logging.INFO)
    bench = Bench(100)
    bench.move("dx.site-1.elsewhere")
    bench.add(100)
    bench.move(FACTS.topic)
    bench.broker.messages = bench.run.sent[:100]
    bench.store.settle(200)
    bench.add(5)
    async with running(bench):
        await drained(bench)
    assert bench.sent() == list(range(201, 206))
    assert "channel wrote elsewhere meanwhile" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_record_sent_by_order_does_not_tell_how_far_delivery_had_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(200)
    bench.broker.messages = [*bench.run.sent[:150], bench.run.sent[4]]
    bench.broker.last_resent = True
    bench.store.settle(150)
    async with running(bench):
        await drained(bench)
    assert bench.sent() == list(range(151, 201))
    assert "broker lost" not in caplog.text


def planted(bench: Bench) -> dict[str, bytes]:
    """Messages that settle nothing."""
    stranger = Run(secret=OTHER_SECRET)
    stranger.begin([group(100)])
    twin = Run()
    twin.sealer.stream = bench.run.sealer.stream
    for _ in range(4):
        twin.begin([group(100)])
    elsewhere = Run()
    elsewhere.begin([group(100)])
    good = bench.run.sent[4]
    return {
        "is no evidence channel=dso error=": b"hello",
        "is no evidence channel=dso error=signature": good[:-1] + bytes([good[-1] ^ 1]),
        "is of another signer": stranger.sent[0],
        "a record that this outbox does not": elsewhere.sent[0],
        "a record that this outbox does not: it": twin.sent[3],  # our key, our number, other content
    }


@pytest.mark.parametrize("message", range(5))
async def test_what_is_not_ours_settles_nothing(message: int, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(6)
    bench.store.settle(2)
    said, envelope = list(planted(bench).items())[message]
    bench.broker.messages = [envelope]
    async with running(bench):
        await drained(bench)
    assert bench.sent() == [3, 4, 5, 6]
    assert said in caplog.text


async def test_without_permission_to_read_back_ids_alone_tell_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(4)
    bench.broker.last_error = TransportError("no permission", verdict=Verdict.REJECT)
    async with running(bench):
        await drained(bench)
        bench.broker.drop()
        await until(lambda: not bench.publisher.connected)
        await connected(bench)
    assert bench.sent(0) == [1, 2, 3, 4]
    assert caplog.text.count("does not let us read back") == 1


async def test_reading_back_that_fails_otherwise_is_a_failed_connection() -> None:
    bench = Bench(4)
    bench.broker.last_error = TransportError("time-out")
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 3 * S)
        assert not bench.publisher.connected
        assert bench.store.acked == 0
        bench.broker.last_error = None
        await drained(bench)


# ---- positions --------------------------------------------------------------------------------------------------


async def test_marks_between_records_are_stepped_over() -> None:
    bench = Bench(0)
    async with running(bench):
        for _ in range(5):
            bench.add(3)
            await drained(bench)
            bench.store.mark()
        assert bench.store.pending.records == 0
        bench.broker.drop()
        bench.add(1)
        await drained(bench)
    assert bench.broker.messages == bench.run.sent
    assert bench.store.acked == bench.store.written[-1].pos == 21


async def test_records_that_were_overwritten_while_in_flight_do_not_stall_it() -> None:
    bench = Bench(0, fate=lambda message: SILENT)
    bench.store.max_segments = 4
    bench.add(50)
    async with running(bench):
        await until(lambda: bench.broker.sent and len(bench.broker.sent[0]) > 10)
        gone: list[Withdrawn] = []
        while not gone or gone[0].last < 60:
            bench.add(7)
            gone = list(bench.store.overwritten())
        bench.add(20)
        held = bench.store.held()
        assert held[0].pos > 40
        bench.broker.fate = lambda message: Fate()
        await drained(bench)
    assert bench.store.acked == held[-1].pos
    assert set(bench.broker.messages) >= {record.envelope for record in held}


# ---- a broker that is sent whole messages, seldom ---------------------------------------------------------------


async def test_a_transport_says_how_far_ahead_it_takes_records() -> None:
    bench = Bench(300, fate=lambda message: SILENT)
    bench.broker.window, bench.broker.ack_within = 200, None
    async with running(bench):
        await bench.clock.sleep_until(bench.clock.now + 4 * ACK_WITHIN)
        assert bench.sent() == list(range(1, 201)), "nothing is overdue: the session watches"
        assert len(bench.broker.sent) == 1


async def test_a_transport_that_cannot_be_read_back_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(3)
    bench.broker.reads_back = False
    bench.broker.last_error = TransportError("nobody may read here", verdict=Verdict.REJECT)
    async with running(bench):
        await drained(bench)
    assert bench.broker.messages == bench.run.sent
    assert "read back" not in caplog.text


async def test_a_session_may_say_that_it_delivers_before_any_answer() -> None:
    bench = Bench(3, fate=lambda message: SILENT)
    bench.broker.delivers, bench.broker.ack_within = True, None
    async with running(bench):
        await until(lambda: bench.publisher.connected)
        assert bench.publisher.acknowledged == 0
        bench.broker.drop()
        await until(lambda: not bench.publisher.connected)


async def test_who_waits_for_all_to_be_delivered_has_it_hurried_along() -> None:
    """Also what is sealed meanwhile; who does not wait hurries nothing."""
    bench = Bench(5, fate=lambda message: Fate(answers=((S, None),)))
    async with running(bench):
        await until(lambda: len(bench.broker.sent[-1]) == 5 if bench.broker.sent else False)
        (session,) = bench.broker.sessions
        assert session.hastened == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.publisher.drained)
            await turns()
            assert session.hastened == [5]
            bench.add(2)
            await until(lambda: len(session.sent) == 7)
            await turns()
            assert session.hastened[-1] == 7
        hastened = len(session.hastened)
        bench.add(1)
        await until(lambda: len(session.sent) == 8)
        assert len(session.hastened) == hastened


async def test_what_is_sent_again_by_order_waits_for_no_company() -> None:
    async with running(Bench(5)) as bench:
        await drained(bench)
        errand = Errand(bench.store.read(0, max_bytes=1 << 20)[:3])
        await bench.publisher.send_again(errand)
        assert bench.broker.sessions[0].hastened[-1] == 8
