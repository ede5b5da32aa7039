"""Sending retained records again, by order: which, under which ids, and what goes on beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest

from agent.delivery.publisher import ACK_WITHIN, WINDOW
from agent.delivery.resending import Resending, Selection
from agent.errors import TransportError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Cause
from tests.fakes import BACKEND, MS, Fate, S, until
from tests.test_publisher import REFUSED, SILENT, TOO_LARGE, Bench, drained, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


@asynccontextmanager
async def delivered(records: int) -> AsyncIterator[Bench]:
    """Records that the broker had, has forgotten and lost."""
    async with running(Bench(records)) as bench:
        await drained(bench)
        bench.broker.messages.clear()
        bench.broker.remembered.clear()
        yield bench


def order(bench: Bench, selection: Selection) -> Resending:
    return Resending(bench.store, bench.publisher, selection)


async def outcome(bench: Bench, selection: Selection, *, within: float = 60) -> dict[str, Any]:
    """The last line."""
    lines: list[dict[str, Any]] = []
    with anyio.fail_after(within):
        async with aclosing(order(bench, selection).run()) as answer:
            lines = [line async for line in answer]
    assert [line.pop("done", False) for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


def run_of(bench: Bench) -> str:
    return bench.run.sealer.stream.hex()


# ---- which ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [32, 8])
async def test_records_of_a_run_by_number(digits: int) -> None:
    async with delivered(300) as bench:
        told = await outcome(bench, Selection(run=run_of(bench)[:digits], first=20, last=120))
        assert bench.numbers(bench.broker.messages) == list(range(20, 121))
        ids = {message.envelope: (message.id, message.resent) for message in bench.broker.sent[0][300:]}
        first = {message.envelope: (message.id, True) for message in bench.broker.sent[0][:300]}
        assert ids.items() <= first.items(), "the same ids, and marked"
        assert (told["stored"], told["missing"], told["in_turn"]) == (101, 0, 0)
        assert bench.store.acked == 300
        assert (bench.publisher.resent, bench.publisher.sent, bench.publisher.acknowledged) == (101, 300, 300)


async def test_a_whole_run() -> None:
    async with delivered(70) as bench:
        told = await outcome(bench, Selection(run=run_of(bench)))
        assert bench.broker.messages == bench.run.sent
        assert (told["stored"], told["missing"]) == (70, 0)


async def test_records_by_time() -> None:
    bench = Bench(0)
    async with running(bench):
        for _ in range(100):
            bench.run.clock.now += S
            bench.add(1)
        await drained(bench)
        bench.broker.messages.clear()
        bench.broker.remembered.clear()
        sealed = [decode_record(decode_head(unpack(each).payload), None).sealed.wall for each in bench.run.sent]
        told = await outcome(bench, Selection(since=sealed[30], until=sealed[59]))
        assert bench.numbers(bench.broker.messages) == list(range(31, 61))
        assert (told["stored"], told["held_since"]) == (30, None)


async def test_what_plans_call_refused() -> None:
    async with delivered(30) as bench:
        for number in (3, 4, 9):
            bench.run.withdraw(number, number, Cause.REFUSED)
        bench.run.withdraw(12, 13, Cause.OVERFLOW)
        bench.run.plan()
        bench.add(40)
        await drained(bench)
        bench.broker.messages.clear()
        told = await outcome(bench, Selection(refused=True))
        assert bench.numbers(bench.broker.messages) == [3, 4, 9]
        assert (told["stored"], told["missing"]) == (3, 0)


async def test_nothing_was_refused() -> None:
    async with delivered(30) as bench:
        assert (await outcome(bench, Selection(refused=True)))["stored"] == 0


async def test_what_is_not_held_any_more_is_told() -> None:
    bench = Bench(0)
    bench.store.max_segments = 4
    async with running(bench):
        while not bench.store.written or bench.store.written[0] in bench.store.held():
            bench.add(5)
            await drained(bench)
        bench.broker.messages.clear()
        bench.broker.remembered.clear()
        oldest = bench.store.held()[0]
        told = await outcome(bench, Selection(run=run_of(bench), first=2, last=oldest.link.seq + 1))
        assert told["stored"] == 2
        assert told["missing"] == oldest.link.seq - 2
        assert told["ranges"] == [(run_of(bench), 2, oldest.link.seq - 1)]
        told = await outcome(bench, Selection(since=1))
        assert told["held_since"] == decode_record(decode_head(unpack(oldest.envelope).payload), None).sealed.wall


async def test_of_a_run_that_is_not_held_all_is_missing() -> None:
    async with delivered(5) as bench:
        told = await outcome(bench, Selection(run="ab" * 16, first=3, last=5))
        assert (told["stored"], told["missing"], told["ranges"]) == (0, 3, [("ab" * 16, 3, 5)])


async def test_what_is_not_settled_comes_in_its_turn() -> None:
    async with delivered(10) as bench:
        bench.broker.fate = lambda message: SILENT if message.token > 10 else Fate()
        bench.add(5)
        told = await outcome(bench, Selection(run=run_of(bench), first=8))
        assert bench.numbers(bench.broker.messages) == [8, 9, 10]
        assert (told["stored"], told["in_turn"], told["missing"]) == (3, 5, 0)
        assert bench.store.acked == 10


# ---- how --------------------------------------------------------------------------------------------------------


async def test_what_the_broker_has_already_is_told_apart() -> None:
    async with running(Bench(10)) as bench:
        await drained(bench)
        told = await outcome(bench, Selection(run=run_of(bench)))
        assert (told["stored"], told["duplicates"]) == (0, 10)
    assert bench.broker.messages == bench.run.sent


async def test_live_records_go_on_and_no_more_than_the_window_is_on_its_way() -> None:
    async with delivered(200) as bench:
        way: list[int] = []

        def fate(message: Any) -> Fate:
            flight = bench.publisher._flight
            assert flight is not None
            way.append(len(flight._order) + len(bench.publisher._errand.waiting))
            return Fate(answers=[(100 * MS, None)])

        bench.broker.fate = fate
        bench.add(200)  # a backlog beside it
        told = await outcome(bench, Selection(run=run_of(bench), last=200))
        await drained(bench)
        assert told["stored"] == 200
        assert max(way) <= WINDOW
        kinds = "".join("r" if message.resent else "l" for message in bench.broker.sent[0][200:])
        assert "lr" in kinds
        assert "rl" in kinds
        assert [m for m in bench.sent() if m > 200] == list(range(201, 401)), "in order and once"


async def test_it_goes_on_when_the_broker_is_back() -> None:
    async with delivered(200) as bench:
        seen = 0

        def fate(message: Any) -> Fate:
            nonlocal seen
            seen += 1
            return Fate(lost=seen == 70)

        bench.broker.fate = fate
        told = await outcome(bench, Selection(run=run_of(bench)))
        assert set(bench.broker.messages) == set(bench.run.sent)
        assert told["stored"] + told["duplicates"] == 200
        assert len(bench.broker.sent) == 2
        assert bench.store.acked == 200


async def test_it_tells_that_it_waits_while_the_broker_is_away() -> None:
    async with delivered(10) as bench:
        bench.broker.down()
        await until(lambda: not bench.publisher.connected)
        begun = bench.clock.now
        async with aclosing(order(bench, Selection(run=run_of(bench))).run()) as lines:
            first = await anext(lines)
            assert first["waits"] == "nobody listens"
            assert bench.clock.now - begun <= ACK_WITHIN
            bench.broker.up()
            told = [line async for line in lines]
        assert told[-1]["stored"] == 10


async def test_a_lost_answer_has_it_sent_again() -> None:
    async with delivered(3) as bench:
        fates = iter([Fate(), SILENT])
        bench.broker.fate = lambda message: next(fates, Fate())
        told = await outcome(bench, Selection(run=run_of(bench)))
        assert told["stored"] == 3
        assert len(bench.broker.sent) == 1


async def test_a_stream_without_room_is_waited_for_and_the_connection_kept() -> None:
    """There is nothing live that would find out, and it must not be made anew each time."""
    full = TransportError("no room", reason="stream_full")
    async with delivered(3) as bench:
        bench.broker.fate = lambda message: Fate(stored=False, answers=[(MS, full)])
        async with aclosing(order(bench, Selection(run=run_of(bench))).run()) as lines:
            assert (await anext(lines))["waits"] == "no room"
            bench.broker.fate = lambda message: Fate()
            told = [line async for line in lines]
        assert told[-1]["stored"] == 3
        assert len(bench.broker.sent) == 1
        assert bench.publisher.connected


async def test_what_is_refused_again_is_told_and_not_stated_again() -> None:
    async with delivered(5) as bench:
        bench.broker.fate = lambda message: REFUSED if message.token == 2 else Fate()
        told = await outcome(bench, Selection(run=run_of(bench)))
        assert (told["stored"], told["refused"]) == (4, 1)
        assert not bench.refusals


async def test_what_the_transport_itself_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with delivered(3) as bench:

        async def refuse(message: Any) -> None:
            raise TOO_LARGE

        monkeypatch.setattr(bench.broker.sessions[0], "send", refuse)
        assert (await outcome(bench, Selection(run=run_of(bench))))["refused"] == 3


async def test_one_that_is_broken_off_leaves_delivery_as_it_was() -> None:
    async with delivered(200) as bench:
        bench.broker.fate = lambda message: Fate(answers=[(S, None)])
        async with aclosing(order(bench, Selection(run=run_of(bench))).run()) as lines:
            await anext(lines)
        bench.broker.fate = lambda message: Fate()
        bench.add(200)
        await drained(bench)
        assert bench.broker.messages[-1] == bench.run.sent[-1]


async def test_it_ends_when_the_channel_does() -> None:
    bench = Bench(10)
    async with anyio.create_task_group() as tasks:
        async with running(bench):
            await drained(bench)
            bench.broker.down()
            await until(lambda: not bench.publisher.connected)
            ended = anyio.Event()

            async def ask() -> None:
                with pytest.raises(TransportError, match="the channel was closed"):
                    await outcome(bench, Selection(run=run_of(bench)))
                ended.set()

            tasks.start_soon(ask)
            await anyio.sleep(1)
        with anyio.fail_after(ACK_WITHIN / S + 1):
            await ended.wait()


async def test_its_rate_is_that_of_the_drain() -> None:
    bench = Bench(300, rate=20_000)
    async with running(bench):
        await drained(bench)
        begun = bench.clock.now
        await outcome(bench, Selection(run=run_of(bench)))
        assert (bench.clock.now - begun) / S >= 0.9 * sum(map(len, bench.run.sent)) / 20_000


# ---- what may be asked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "one of these"),
        ({"run": "ab" * 16, "refused": True}, "one of these"),
        ({"run": "ab"}, "first 8 hex digits"),
        ({"run": 5}, "first 8 hex digits"),
        ({"run": "xy" * 16}, "first 8 hex digits"),
        ({"refused": 1}, "true or false"),
        ({"refused": True, "first": 3}, "belong"),
        ({"run": "ab" * 16, "until": 3}, "belong"),
        ({"since": -1}, "numbers"),
        ({"since": "x"}, "numbers"),
        ({"since": True}, "numbers"),
        ({"since": 5, "until": 4}, "behind its end"),
        ({"run": "ab" * 16, "first": 0}, "behind its end"),
        ({"run": "ab" * 16, "first": 5, "last": 4}, "behind its end"),
    ],
)
def test_what_cannot_be_asked_for(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection.of(request_)


def test_what_can_be_asked_for() -> None:
    assert Selection.of({"command": "outbox resend", "run": "AB" * 16, "first": 2}) == Selection(run="ab" * 16, first=2)
    assert Selection.of({"since": 5}) == Selection(since=5)
    assert Selection.of({"refused": True}) == Selection(refused=True)
