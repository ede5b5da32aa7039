"""A channel to the Data Hub: every record reaches every recipient, in order, whatever broker and recipients do."""

from __future__ import annotations

import json
import logging
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from Crypto.Cipher import PKCS1_OAEP

from agent.control.findings import findings
from agent.delivery.drain import Drain
from agent.delivery.errand import Errand
from agent.delivery.publisher import Publisher
from agent.delivery.refusals import Refusals
from agent.errors import Reason, TransportError, Verdict
from agent.evidence.record import link_of
from agent.heartbeat import WITHIN
from agent.ports import Ack, Message, Recipient
from agent.transports.ddhub.content import payload, signature
from agent.transports.ddhub.content.payload import largest_envelope
from agent.transports.ddhub.content.records import Agreement, agreement
from agent.transports.ddhub.content.schema import TopicSchema, telemetry_schema
from agent.transports.ddhub.keys.network import canonical
from agent.transports.ddhub.requests import Timeouts
from agent.transports.ddhub.transport import DdhubTransport
from agent.verifier import Verifier
from tests.ddhub_scripted import ALICE, BOB, PRIVATE_KEY, TOPIC_ID, Keys, Mailboxes, said, transport
from tests.fakes import BACKEND, FakeStore, until, virtual_clock
from tests.runs import DID, Run, S, frame, group

pytestmark = pytest.mark.anyio
CAROL = "did:ethr:volta:0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"
MINUTE = 60 * S


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


class Bench:
    """A publisher between an outbox and a Data Hub with mailboxes."""

    def __init__(
        self, records: int = 0, *, box: Mailboxes | None = None, keys: Keys | None = None, **settings: Any
    ) -> None:
        self.clock = virtual_clock()
        self.store = FakeStore(segment_size=1 << 22, segments=8)
        self.box = box or Mailboxes()
        self.keys = keys or Keys()
        self.refusals = Refusals()
        self.run = Run()
        self.run.begin([group(100)])
        self.appended, self.cycle = 0, 100
        self.settings = settings
        self.start()
        self.add(records)

    def start(self) -> None:
        """As a new process does."""
        self.transport: DdhubTransport = transport(self.box, keys=self.keys, clock=self.clock, **self.settings)
        self.publisher = Publisher(
            channel="market",
            store=self.store,
            transport=self.transport,
            did=DID,
            topic=self.transport.topic,
            clock=self.clock,
            drain=Drain(rate=None, spread=0, clock=self.clock),
            refusals=self.refusals,
        )

    def add(self, records: int) -> None:
        """Put more records into the outbox."""
        while len(self.run.sent) < self.appended + records:
            self.run.data([frame(self.cycle)])
            self.cycle += 1
        for number in range(self.appended, self.appended + records):
            self.store.append([(self.run.sent[number], self.run.links[number])], new_segment=number == 0)
        self.appended += records
        self.publisher.notify()

    async def drained(self, *, within: float = 3600) -> None:
        with anyio.fail_after(within):
            await self.publisher.drained()

    async def delivered(self, *, within: int = 3600 * S) -> None:
        """Without telling it to hurry."""
        await until(lambda: not self.store.pending.records, within=within, every=S // 10)

    @property
    def sent(self) -> list[bytes]:
        """What the outbox got."""
        return self.run.sent[: self.appended]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.publisher.run)
        yield bench
        tasks.cancel_scope.cancel()


def failing(words: str, *, of: str = ALICE, times: int | None = None) -> Callable[[str, dict[str, Any]], str | None]:
    """What a broker says of one recipient, so many times."""
    left = [times]

    def fails(did: str, body: dict[str, Any]) -> str | None:
        if did != of or left[0] == 0:
            return None
        if left[0] is not None:
            left[0] -= 1
        return words

    return fails


# ---- the good case ----------------------------------------------------------------------------------------------


async def test_records_travel_together_and_each_recipient_can_read_them() -> None:
    async with running(Bench(5, recipients=[BOB, ALICE])) as bench:
        await until(lambda: bench.publisher.connected, every=S // 10)
        assert not bench.box.posted()
        bench.add(3)
        await bench.delivered()
    assert bench.box.envelopes(BOB) == bench.box.envelopes(ALICE) == bench.sent
    (body,) = bench.box.posted()
    assert body["fqcns"] == [BOB, ALICE]
    assert body["payloadEncryption"] is True
    assert (body["topicId"], body["topicVersion"]) == (TOPIC_ID, "1.0.0")
    assert signature.is_signed_by(body["payload"], body["signature"], signature.public_key_of(bench.transport.signer))
    first, last, count = body["transactionId"].split(":")
    assert count == "8"
    assert (first.split("-")[1], last.split("-")[1]) == ("1", "8")
    assert len(body["transactionId"]) <= 200
    keys = bench.box.posted("/messages/internal")
    assert sorted(each["fqcn"] for each in keys) == sorted([BOB, ALICE])
    assert {each["clientGatewayMessageId"] for each in keys} == {body["clientGatewayMessageId"]}
    assert keys[0]["payload"] != keys[1]["payload"]
    assert bench.publisher.acknowledged == 8


async def test_a_message_leaves_so_long_after_its_first_record() -> None:
    async with running(Bench(send_every="5m")) as bench:
        await until(lambda: bench.publisher.connected, every=S // 10)
        begun = bench.clock.now
        for count in range(1, 8):
            bench.add(1)
            await bench.clock.sleep_until(begun + count * 70 * S)
        await bench.delivered()
    assert [len(each.envelopes) for each in bench.box.boxes[BOB]] == [5, 2]
    assert 650 * S <= bench.clock.now - begun <= 651 * S


async def test_each_message_has_its_own_key_and_ids() -> None:
    async with running(Bench(2)) as bench:
        await bench.drained()
        bench.add(2)
        await bench.drained()
    one, other = bench.box.posted()
    assert one["clientGatewayMessageId"] != other["clientGatewayMessageId"]
    assert one["transactionId"] != other["transactionId"]
    assert one["payload"][:33] != other["payload"][:33]


async def test_who_waits_for_all_to_be_delivered_does_not_wait_for_company() -> None:
    async with running(Bench(3, send_every="1h")) as bench:
        await bench.drained(within=2)
        begun = bench.clock.now
        bench.add(1)
        await bench.delivered(within=2 * 3600 * S)
        assert bench.clock.now - begun >= 3599 * S, "only for who waits"


async def test_a_backlog_leaves_at_once_in_full_messages() -> None:
    bench = Bench(200, max_message="64KiB")
    async with running(bench):
        await until(lambda: len(bench.box.boxes.get(BOB, [])) >= 2, within=10 * S)
        assert bench.clock.now < 1020 * S
        await bench.delivered()
    assert bench.box.envelopes() == bench.sent
    sizes = [len(body["payload"]) for body in bench.box.posted()]
    assert max(sizes) <= 64 * 1024
    assert min(sizes[:-1]) > 60 * 1024
    assert bench.box.paths.count("/auth/login") == 1


async def test_what_the_hub_showed_of_itself_is_there_for_the_doctor() -> None:
    async with Bench().transport.session() as session:
        facts = await session.facts()
    assert facts.server == "hub.example"
    assert facts.certificate is None


async def test_a_message_holds_records_of_one_run() -> None:
    """So what a stopped agent sent at its end makes the same message when it is sent again, not knowing of it."""
    bench = Bench()
    ids = [f"{stream * 32}-{seq}-00000000" for stream, seq in (("a", 7), ("a", 8), ("b", 1), ("b", 2))]
    async with bench.transport.session() as session:
        for token, each in enumerate(ids, 1):
            await session.send(Message(token, each, b"%d" % token))
        session.hasten()
        with anyio.fail_after(60):
            acks = session.acks()
            assert [(await anext(acks)).token for _ in ids] == [1, 2, 3, 4]
    assert [each.envelopes for each in bench.box.boxes[BOB]] == [[b"1", b"2"], [b"3", b"4"]]
    assert [body["transactionId"] for body in bench.box.posted()] == [
        f"{ids[0]}:{ids[1]}:2",
        f"{ids[2]}:{ids[3]}:2",
    ]


async def test_a_message_with_one_record_more_is_another_message() -> None:
    """What was set aside once is not taken for delivered when it is sent after all, within the broker's two minutes."""
    bench = Bench()
    ids = [f"{'a' * 32}-{seq}-00000000" for seq in (7, 8, 9)]
    for chosen in ([0, 2], [0, 1, 2]):
        bench.start()
        async with bench.transport.session() as session:
            for token in chosen:
                await session.send(Message(token, ids[token], b"%d" % token))
            session.hasten()
            with anyio.fail_after(60):
                acks = session.acks()
                for token in chosen:
                    assert await anext(acks) == Ack(token)
    assert [each.envelopes for each in bench.box.boxes[BOB]] == [[b"0", b"2"], [b"0", b"1", b"2"]]


async def test_a_record_that_fits_into_no_message_is_refused() -> None:
    bench = Bench(max_message="64KiB")
    assert bench.transport.max_envelope is not None
    async with bench.transport.session() as session:
        with pytest.raises(TransportError) as raised:
            await session.send(Message(1, "a-1-0", bytes(bench.transport.max_envelope + 1)))
        assert raised.value.verdict is Verdict.REJECT
        await session.send(Message(1, "a-1-0", bytes(bench.transport.max_envelope)))
        session.hasten()
        with anyio.fail_after(60):
            assert await anext(session.acks()) == Ack(1)
    assert len(bench.box.posted()[0]["payload"]) <= 65536


def test_the_largest_envelope_fits_and_one_more_byte_does_not() -> None:
    for most in (4096, 65536, 450 * 1024, 8 << 20):
        size = largest_envelope(most)
        assert payload.encrypted_size(payload.clear_size([size], [])) <= most
        assert payload.encrypted_size(payload.clear_size([size + 1], [])) > most or size % 3 != 0


# ---- what the broker takes --------------------------------------------------------------------------------------


async def test_the_brokers_own_limit_counts() -> None:
    box = Mailboxes()
    box.answers["/config"] = [(200, {"msgMaxSize": 40 * 1024})]
    async with running(Bench(100, box=box)) as bench:
        await bench.drained()
    assert max(len(body["payload"]) for body in box.posted()) <= 36 * 1024
    assert box.envelopes() == bench.sent


@pytest.mark.parametrize("by", ["nats", "proxy"])
async def test_what_is_too_large_for_the_broker_is_sent_in_smaller_messages(by: str) -> None:
    box = Mailboxes(largest=20_000)
    if by == "proxy":
        box.largest = 1 << 20
        box.before = lambda request: (
            box.answers.update({"/messages": [(413, b"<html>")]})
            if request.url.path == "/messages/internal" and len(box.posted()) < 4
            else box.answers.pop("/messages", None)
        )
    async with running(Bench(100, box=box)) as bench:
        await bench.drained()
    assert sorted(set(box.envelopes())) == sorted(bench.sent)
    assert box.envelopes() == bench.sent
    assert bench.publisher.refused == 0


async def test_a_record_that_is_too_large_alone_is_refused_and_the_others_are_not() -> None:
    box = Mailboxes()
    large = 10

    def fails(did: str, body: dict[str, Any]) -> str | None:
        return "Maximum payload exceeded" if large in lengths(body) else None

    def lengths(body: dict[str, Any]) -> set[int]:
        first, last = body["transactionId"].split(":")[:2]
        return set(range(int(first.split("-")[1]), int(last.split("-")[1]) + 1))

    box.fails = fails
    bench = Bench(20, box=box)
    async with running(bench):
        await until(lambda: bench.refusals, every=S // 10)
        assert [each.first for each in bench.refusals.unstated().values()] == [large]
        bench.refusals.stated([*bench.refusals.unstated()])
        await bench.drained()
    assert box.envelopes() == [each for number, each in enumerate(bench.sent, 1) if number != large]
    assert bench.publisher.refused == 1


# ---- recipients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["stranger", "keyless", "no key", "nats", "unnamed"])
async def test_a_recipient_that_does_not_get_it_is_tried_alone_and_the_others_get_it_once(cause: str) -> None:
    box, keys = Mailboxes(), Keys()
    if cause == "stranger":
        box.strangers.add(ALICE)
    elif cause == "keyless":
        box.keyless.add(ALICE)
    elif cause == "no key":
        keys.without.add(ALICE)
    else:
        box.fails = failing("" if cause == "unnamed" else "timeout")
    async with running(Bench(3, box=box, keys=keys, recipients=[BOB, ALICE, CAROL])) as bench:
        with anyio.move_on_after(60):
            await bench.publisher.drained()
        assert bench.store.pending.records == 3
        assert not bench.publisher.connected
        assert bench.publisher.reason == Reason.RECIPIENT
        assert ALICE in bench.publisher.trouble
        assert BOB not in bench.publisher.trouble
        bench.add(2)
        box.strangers.clear()
        box.keyless.clear()
        keys.without.clear()
        box.fails = failing("", times=0)
        await bench.drained(within=30)
        assert bench.publisher.connected
    for did in (BOB, ALICE, CAROL):
        assert box.envelopes(did) == bench.sent
    first, *others = [body for body in box.posted() if body["transactionId"] == box.posted()[0]["transactionId"]]
    assert all(body["fqcns"] == [ALICE] for body in others)
    assert {body["payload"] for body in others} == {first["payload"]}
    assert {body["clientGatewayMessageId"] for body in others} == {first["clientGatewayMessageId"]}


async def test_the_log_tells_once_who_does_not_get_records_and_once_that_he_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    box = Mailboxes(strangers={ALICE})
    async with running(Bench(3, box=box, recipients=[BOB, ALICE])) as bench:
        with anyio.move_on_after(60):
            await bench.publisher.drained()
        box.strangers.clear()
        await bench.drained()
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if line.startswith("recipient does not get records")]) == 1
    assert len([line for line in told if line.startswith("recipient gets records again")]) == 1
    assert len([line for line in told if "broker refuses the channel" in line and "reason=recipient" in line]) == 1
    assert any("ever logged in" in line for line in told)


async def test_skip_goes_on_without_who_is_unknown_at_once_and_counts_it() -> None:
    box = Mailboxes(strangers={ALICE})
    async with running(Bench(3, box=box, recipients=[BOB, ALICE], on_recipient_failure="skip")) as bench:
        await bench.drained(within=1)
        bench.add(2)
        await bench.drained(within=1)
        assert box.envelopes(BOB) == bench.sent
        account = bench.transport.courier.accounts[ALICE]
        assert (account.delivered, account.skipped) == (0, 5)
        assert "no mailbox" in account.trouble
        assert "logged in" in account.remedy
        box.strangers.clear()
        bench.add(1)
        await bench.drained(within=1)
        now = bench.clock.boot()
    assert box.envelopes(ALICE) == bench.sent[-1:]
    assert bench.publisher.recipients == (Recipient(BOB, 6, last=now), Recipient(ALICE, 1, 5, last=now))


async def test_skip_tries_for_a_minute_where_it_may_pass() -> None:
    """A hub or a node that is away for a moment costs nobody a record."""
    for times, got in ((7, True), (None, False)):
        box = Mailboxes(fails=failing("timeout", times=times))
        async with running(Bench(3, box=box, recipients=[BOB, ALICE], on_recipient_failure="skip")) as bench:
            begun = bench.clock.now
            await bench.drained(within=90)
            taken = bench.clock.now - begun
        assert box.envelopes(BOB) == bench.sent
        assert (box.envelopes(ALICE) == bench.sent) is got
        assert taken < 60 * S if got else 60 * S <= taken < 75 * S
        assert box.posted()[1]["fqcns"] == [ALICE]


async def test_who_was_skipped_is_tried_once_until_it_gets_something() -> None:
    """Else each message of a backlog takes a minute, and the log tells of each."""
    keys = Keys(without={ALICE})
    async with running(Bench(3, keys=keys, recipients=[BOB, ALICE], on_recipient_failure="skip")) as bench:
        await bench.drained()
        tries = keys.asked.count(ALICE)
        assert tries > 6
        for count in range(1, 4):
            bench.add(2)
            await bench.drained(within=1)
            assert keys.asked.count(ALICE) == tries + count
        assert bench.publisher.failures == {"recipient": tries - 1}
        keys.without.clear()
        bench.add(1)
        await bench.drained()
        keys.without.add(ALICE)
        bench.add(1)
        with pytest.raises(TimeoutError):
            await bench.drained(within=50)
        await bench.drained()
    assert bench.box.envelopes(ALICE) == bench.sent[-2:-1]


async def test_who_is_unknown_is_not_taken_for_a_message_that_is_too_large() -> None:
    """A DID has 40 hex digits, and NATS' number for "too large" may be among them."""
    odd = canonical("did:ethr:volta:0x" + "10054" * 8)
    box = Mailboxes(fails=failing(f"fqcn:{odd} not exists", of=odd))
    async with running(Bench(3, box=box, recipients=[odd])) as bench:
        with anyio.move_on_after(60):
            await bench.publisher.drained()
        assert bench.publisher.reason == Reason.RECIPIENT
        assert bench.transport.most == 450 * 1024
        assert not bench.refusals


async def test_a_key_that_is_called_too_large_makes_no_message_smaller() -> None:
    box = Mailboxes()
    box.answers["/messages/internal"] = [(413, b"<html>")]
    async with running(Bench(1, box=box)) as bench:
        with anyio.move_on_after(5):
            await bench.publisher.drained()
        assert bench.publisher.reason == Reason.RECIPIENT
        del box.answers["/messages/internal"]
        await bench.drained()
    assert box.envelopes() == bench.sent
    assert not bench.refusals


async def test_skip_never_goes_on_without_all() -> None:
    box = Mailboxes(strangers={BOB, ALICE})
    async with running(Bench(3, box=box, recipients=[BOB, ALICE], on_recipient_failure="skip")) as bench:
        with anyio.move_on_after(60):
            await bench.publisher.drained()
        assert bench.store.pending.records == 3
        box.strangers.clear()
        await bench.drained()
    assert box.envelopes(BOB) == box.envelopes(ALICE) == bench.sent


async def test_a_missing_recipient_in_the_answer_has_not_got_it() -> None:
    box = Mailboxes()
    box.answers["/messages"] = [(200, {"recipients": {"total": 1, "sent": 1, "failed": 0}}), (200, {"status": []})]
    async with running(Bench(1, box=box)) as bench:
        with anyio.move_on_after(5):
            await bench.publisher.drained()
        assert bench.store.pending.records == 1
        assert "does not name it" in bench.publisher.trouble
        del box.answers["/messages"]
        await bench.drained()
    assert box.envelopes() == bench.sent


async def test_those_who_hold_a_role_get_it_and_not_we_ourselves() -> None:
    box = Mailboxes(holders=[DID, BOB, "did:ethr:volta:0x00", ALICE, ALICE.lower()])
    changes: dict[str, Any] = {"roles": ["market.roles.edge.apps.example.iam.ewc"], "recipients": None}
    async with running(Bench(1, box=box, **changes)) as bench:
        await bench.drained()
        box.holders.append(CAROL)
        bench.add(1)
        await bench.drained()
        await bench.clock.sleep_until(bench.clock.now + 10 * MINUTE)
        bench.add(1)
        await bench.drained()
    assert box.posted()[0]["fqcns"] == sorted([BOB, ALICE])
    assert box.envelopes(BOB) == bench.sent
    assert box.envelopes(CAROL) == bench.sent[-1:]


async def test_who_is_named_beside_a_role_gets_it_too_and_in_his_padding() -> None:
    box = Mailboxes(holders=[DID, BOB, ALICE])
    named: Any = [{"did": ALICE, "padding": "pkcs1v15"}, CAROL, DID]
    changes: dict[str, Any] = {"roles": ["market.roles.edge.apps.example.iam.ewc"], "recipients": named}
    async with running(Bench(1, box=box, **changes)) as bench:
        await bench.drained()
        box.holders.clear()
        await bench.clock.sleep_until(bench.clock.now + 11 * MINUTE)
        bench.add(1)
        await bench.drained()
    assert [body["fqcns"] for body in box.posted()] == [[ALICE, CAROL, BOB], [ALICE, CAROL]]
    wrapped = {body["fqcn"]: body["payload"] for body in reversed(box.posted("/messages/internal"))}
    assert [padding_of(wrapped[did]) for did in (ALICE, CAROL, BOB)] == ["pkcs1v15", "oaep", "oaep"]


def padding_of(wrapped: str) -> str:
    """How a key was wrapped."""
    try:
        PKCS1_OAEP.new(PRIVATE_KEY).decrypt(b64decode(wrapped))
    except ValueError:
        return "pkcs1v15"
    return "oaep"


async def test_the_last_list_of_who_holds_a_role_is_used_for_a_day() -> None:
    box = Mailboxes(holders=[BOB])
    changes: dict[str, Any] = {"roles": ["market.roles.edge.apps.example.iam.ewc"], "recipients": None}
    async with running(Bench(1, box=box, **changes)) as bench:
        await bench.drained()
        box.answers["/roles/list"] = [said("60", "Mongo")]
        await bench.clock.sleep_until(bench.clock.now + 23 * 60 * MINUTE)
        bench.add(1)
        await bench.drained()
        await bench.clock.sleep_until(bench.clock.now + 60 * MINUTE)
        bench.add(1)
        with anyio.move_on_after(60):
            await bench.publisher.drained()
        assert bench.store.pending.records == 1
        assert bench.publisher.reason == Reason.STORE
        del box.answers["/roles/list"]
        await bench.drained()
    assert box.envelopes(BOB) == bench.sent


async def test_who_is_let_in_so_slowly_that_nobody_would_wait_for_it_tries_again() -> None:
    """The watchdog takes a publisher for hung that is not in after five minutes."""
    box = Mailboxes()
    bench = Bench(1, box=box)

    async def slow(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(100)
        return await Mailboxes.__call__(box, request)

    bench.transport._over, bench.transport._timeouts = httpx.MockTransport(slow), Timeouts(answer=1000)
    begun = bench.clock.now
    with pytest.raises(TransportError) as raised:
        async with bench.transport.session():
            pytest.fail("opened")
    assert raised.value.reason == Reason.TIMEOUT
    assert bench.clock.now - begun <= WITHIN - 30 * S


async def test_nobody_to_send_to_is_an_error_with_a_remedy() -> None:
    changes: dict[str, Any] = {"roles": ["market.roles.edge.apps.example.iam.ewc"], "recipients": None}
    for box, settings in ((Mailboxes(holders=[DID]), changes), (Mailboxes(), {"recipients": [DID]})):
        bench = Bench(1, box=box, **settings)
        with pytest.raises(TransportError) as raised:
            async with bench.transport.session():
                pytest.fail("opened")
        assert raised.value.reason == Reason.RECIPIENT
        assert raised.value.hint


# ---- the broker fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/messages/internal", "/messages"])
@pytest.mark.parametrize(
    "answer",
    [
        (500, b"<html>"),
        (502, b""),
        (503, b""),
        (429, b""),
        (200, b"<html>"),
        (200, b""),
        said("60", "timeout"),
        said("20", "JetStream"),
        httpx.ReadTimeout("x"),
        httpx.ReadError("x"),
        (401, b""),
    ],
)
async def test_whatever_the_broker_answers_all_arrives_once(path: str, answer: Any) -> None:
    box = Mailboxes()
    box.answers[path] = [answer]
    async with running(Bench(4, box=box, recipients=[BOB, ALICE])) as bench:
        with anyio.move_on_after(5):
            await bench.publisher.drained()
        assert bench.store.pending.records == 4
        assert bench.publisher.trouble
        del box.answers[path]
        await bench.drained()
    assert box.envelopes(BOB) == box.envelopes(ALICE) == bench.sent
    assert len({body["clientGatewayMessageId"] for body in box.posted()}) == 1


async def test_an_answer_that_was_lost_is_a_duplicate_the_next_time() -> None:
    box = Mailboxes()
    lost = [httpx.ReadError("x")]

    async def lose(request: httpx.Request) -> httpx.Response:
        answer = await Mailboxes.__call__(box, request)
        if request.url.path == "/messages" and lost:
            raise lost.pop()
        return answer

    bench = Bench(4, box=box)
    bench.transport._over = httpx.MockTransport(lose)
    async with running(bench):
        await bench.drained()
    assert box.envelopes() == bench.sent
    assert len(box.posted()) == 2


async def test_a_stopped_agent_sends_the_same_message_again() -> None:
    """Same records, same ends, so the broker knows the transaction, within its two minutes."""
    box = Mailboxes(took=S)
    bench = Bench(4, box=box)
    async with running(bench):
        with anyio.move_on_after(0.5):
            await bench.publisher.drained()
        await until(lambda: box.boxes.get(BOB), every=S // 10)
    bench.store = bench.store.reopened()
    bench.start()
    async with running(bench):
        await bench.drained()
    assert box.envelopes() == bench.sent
    one, other = box.posted()
    assert one["transactionId"] == other["transactionId"]
    assert one["clientGatewayMessageId"] != other["clientGatewayMessageId"]


async def test_an_outage_of_the_whole_hub_loses_nothing() -> None:
    box = Mailboxes()
    async with running(Bench(4, box=box)) as bench:
        await bench.drained()
        away = httpx.ConnectError("no")
        kept = {path: [*each] for path, each in box.answers.items()}
        for path in (*kept, "/messages", "/messages/internal"):
            box.answers[path] = [away]
        bench.add(5)
        with anyio.move_on_after(3600):
            await bench.publisher.drained()
        assert not bench.publisher.connected
        box.answers.clear()
        box.answers.update(kept)
        await bench.drained()
    assert box.envelopes() == bench.sent


async def test_the_topic_is_looked_up_again_when_the_broker_does_not_know_it() -> None:
    box = Mailboxes()
    box.answers["/messages"] = [said("50", f"id:{TOPIC_ID} version not exists", 404)]
    async with running(Bench(1, box=box)) as bench:
        with anyio.move_on_after(3):
            await bench.publisher.drained()
        assert "version not exists" in bench.publisher.trouble
        del box.answers["/messages"]
        await bench.drained()
    assert box.paths.count("/topics") >= 2


def readable(**of_records: Any) -> Any:
    """Our schema for a topic that demands readable values."""
    schema = json.loads(telemetry_schema(readable=True))
    schema["properties"]["records"] |= of_records
    return schema


def version(schema: Any) -> Any:
    """A version of the topic with this schema."""
    return 200, {"id": TOPIC_ID, "version": "1.0.0", "schemaType": "JSD7", "schema": schema}


async def test_a_payload_that_the_schema_does_not_take_waits_until_it_does() -> None:
    """Only what is sent shows it: no text of a record is so short."""
    box, path = Mailboxes(), f"/topics/{TOPIC_ID}/versions/1.0.0"
    good = box.answers[path]
    short = {"type": "object", "properties": {"envelopes": {"items": {"type": "string", "maxLength": 100}}}}
    box.answers[path] = [version(short)]
    async with running(Bench(2, box=box)) as bench:
        with anyio.move_on_after(20):
            await bench.publisher.drained()
        assert bench.publisher.reason == Reason.SCHEMA
        assert not bench.publisher.connected
        assert "/messages/internal" not in box.paths
        box.answers[path] = good
        await bench.drained()
    assert box.envelopes() == bench.sent


async def test_a_schema_of_which_judging_takes_long_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes seconds, and its owner may register any."""
    threads = set[int]()

    def judged(self: TopicSchema, *arguments: Any, **named: Any) -> tuple[str, ...]:
        threads.add(threading.get_ident())
        return ()

    monkeypatch.setattr(TopicSchema, "problems", judged)
    async with Bench().transport.session():
        assert threads
        assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/topics", (200, {"records": []}), Reason.NO_TOPIC),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", said("50", "version not exists", 404), Reason.NO_TOPIC),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", (500, b"<html>"), Reason.OTHER),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", said("50", "Mongo"), Reason.STORE),
        (
            f"/topics/{TOPIC_ID}/versions/1.0.0",
            (200, {"id": TOPIC_ID, "version": "1.0.0", "schemaType": "XML", "schema": {}}),
            Reason.SCHEMA,
        ),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", version({"type": "object", "required": ["kW"]}), Reason.SCHEMA),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", version({"typ": "object"}), Reason.SCHEMA),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", version(readable(minItems=1)), Reason.SCHEMA),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", version([]), Reason.SCHEMA),
        (f"/topics/{TOPIC_ID}/versions/1.0.0", version(None), Reason.PROTOCOL),
        ("/config", said("10", "Forbidden access", 403), Reason.PERMISSION),
    ],
)
async def test_what_keeps_a_channel_from_opening(path: str, answer: Any, reason: Reason) -> None:
    box = Mailboxes()
    box.answers[path] = [answer]
    with pytest.raises(TransportError) as raised:
        async with Bench(box=box).transport.session():
            pytest.fail("opened")
    assert raised.value.reason == reason
    assert raised.value.hint


# ---- sent again by order ----------------------------------------------------------------------------------------


async def test_what_is_resent_goes_in_a_message_of_its_own_that_no_window_swallows() -> None:
    async with running(Bench(6)) as bench:
        await bench.drained()
        bench.add(1)
        errand = Errand(bench.store.read(0, max_bytes=1 << 20)[1:4])
        with anyio.fail_after(2):
            while errand.waiting:
                await bench.publisher.send_again(errand)
        assert (errand.stored, errand.duplicates) == (3, 0)
        await bench.drained()
    resent = bench.box.boxes[BOB][1]
    assert resent.envelopes == bench.sent[1:4]
    assert resent.body["transactionId"].count(":") == 3
    assert len(resent.body["transactionId"]) <= 200
    assert bench.box.envelopes() == [*bench.sent[:6], *bench.sent[1:4], bench.sent[6]]


async def test_what_takes_longer_than_an_errand_is_sent_once() -> None:
    bench = Bench(6)
    async with running(bench):
        await bench.drained()
        bench.box.took = 30 * S
        errand = Errand(bench.store.read(0, max_bytes=1 << 20))
        with anyio.fail_after(60):
            while errand.waiting:
                await bench.publisher.send_again(errand)
    assert bench.box.envelopes() == bench.sent * 2


# ---- readable values --------------------------------------------------------------------------------------------


def agreements(bench: Bench) -> list[Agreement]:
    """What the readable copies are worth, message by message, to who has read all records in order."""
    verifier = Verifier([DID])
    judged = {each.head.link: each for envelope in bench.run.sent for each in verifier.feed(envelope) if each.head}
    found = []
    for each in bench.box.boxes[BOB]:
        text = payload.decode(each.text)
        assert text.records is not None
        found.append(agreement(text.records, [judged[link_of(envelope)] for envelope in text.envelopes]))
    return found


def read(bench: Bench) -> list[int]:
    """How many values are readable in each message."""
    return [len(payload.decode(each.text).records or ()) for each in bench.box.boxes[BOB]]


async def test_values_are_readable_where_the_topic_demands_it() -> None:
    box = Mailboxes(schema=readable())
    async with running(Bench(1, box=box, max_message="64KiB")) as bench:
        await bench.drained()
        bench.add(120)
        await bench.drained()
        errand = Errand(bench.store.read(0, max_bytes=1 << 20)[40:45])
        while errand.waiting:
            await bench.publisher.send_again(errand)
    assert box.envelopes() == [*bench.sent, *bench.sent[40:45]]
    assert set(agreements(bench)) == {Agreement.AGREE}
    assert read(bench)[0] == 0
    assert sum(read(bench)) == 3 * 120 + 3 * 5
    sizes = [len(body["payload"]) for body in box.posted()]
    assert 60 * 1024 < max(sizes) <= 64 * 1024


async def test_who_goes_on_within_a_run_has_its_plan_from_the_outbox() -> None:
    box = Mailboxes(schema=readable())
    bench = Bench(40, box=box)
    bench.store.settle(30)
    async with running(bench):
        await bench.drained()
    assert box.envelopes() == bench.sent[30:]
    assert agreements(bench) == [Agreement.AGREE]
    assert read(bench) == [3 * 10]


async def test_without_its_plan_a_record_goes_alone_with_those_alike(caplog: pytest.LogCaptureFixture) -> None:
    """What is said beside the records is all that they say, or nothing."""
    box = Mailboxes(schema=readable())
    bench = Bench(10, box=box)
    bench.store.settle(1)
    del bench.store.segments[0].records[0]
    async with running(bench):
        await bench.drained()
        bench.run.plan()
        bench.add(4)
        await bench.drained()
    assert box.envelopes() == bench.sent[1:]
    assert agreements(bench) == [Agreement.UNKNOWN, Agreement.AGREE]
    assert read(bench) == [0, 3 * 3]
    told = [each.getMessage() for each in caplog.records if "without its readable copy" in each.getMessage()]
    assert len(told) == 1
    assert "its plan is not in the outbox any more" in told[0]


async def test_a_record_that_fits_only_without_its_copy_goes_without_it() -> None:
    box = Mailboxes(schema=readable())
    bench = Bench(2, box=box, max_message="64KiB")
    bench.run.data([frame(cycle) for cycle in range(101, 700)])
    bench.run.data([frame(700)])
    async with running(bench):
        bench.add(2)
        await bench.drained()
    assert box.envelopes() == bench.sent
    assert agreements(bench) == [Agreement.AGREE, Agreement.UNKNOWN, Agreement.AGREE]
    assert read(bench) == [3, 0, 3]
    assert not bench.refusals


async def test_what_the_brokers_nats_does_not_take_goes_without_its_copy_before_it_is_refused() -> None:
    box = Mailboxes(schema=readable(), largest=20_000)
    bench = Bench(1, box=box)
    bench.run.data([frame(cycle) for cycle in range(100, 300)])
    async with running(bench):
        bench.add(1)
        await bench.drained()
    assert box.envelopes() == bench.sent
    assert read(bench)[-1] == 0
    assert not bench.refusals


async def test_a_topic_that_does_not_ask_costs_nothing() -> None:
    def no_plan() -> bytes | None:
        pytest.fail("a plan was looked for")

    bench = Bench(2)
    async with bench.transport.session() as session:
        await session.send(Message(1, "a-2-0", bench.sent[1], find_plan=no_plan))
        session.hasten()
        with anyio.fail_after(60):
            assert await anext(session.acks()) == Ack(1)
    assert payload.decode(bench.box.boxes[BOB][0].text).records is None


async def test_a_topic_that_asks_from_now_on_gets_readable_values() -> None:
    box = Mailboxes()
    async with running(Bench(3, box=box)) as bench:
        await bench.drained()
        box.answers[f"/topics/{TOPIC_ID}/versions/1.0.0"] = [version(readable())]
        await bench.clock.sleep_until(bench.clock.now + 61 * MINUTE)
        bench.add(2)
        await bench.drained()
    assert box.envelopes() == bench.sent
    assert payload.decode(box.boxes[BOB][0].text).records is None
    assert read(bench) == [0, 6]


# ---- who only looks ---------------------------------------------------------------------------------------------


async def test_a_visitor_changes_nothing() -> None:
    box = Mailboxes()
    bench = Bench(box=box)
    bench.transport.config = bench.transport.config.visitor()
    async with bench.transport.session() as session:
        assert session.delivers
        assert await session.last() is None
    assert "/channel/initExtChannel" not in box.paths
    assert {request.method for request in box.asked if request.url.path != "/auth/login"} == {"GET"}


# ---- how it is shown --------------------------------------------------------------------------------------------


def test_status_names_who_is_skipped_and_why() -> None:
    late = {"did": ALICE, "delivered": 3, "skipped": 5, "trouble": "it has no mailbox", "remedy": "log in once"}
    back = {"did": CAROL, "delivered": 3, "skipped": 2, "trouble": "", "remedy": ""}
    good = {"did": BOB, "delivered": 8, "skipped": 0, "trouble": "", "remedy": ""}
    channel = {"id": "market", "connected": True, "recipients": [good, late, back]}
    found = [(each.subject, each.what, each.remedy) for each in findings({"channels": [channel]})]
    resend = "`edge-agent outbox resend` sends again what is held"
    assert found == [
        ("market", f"{ALICE}: it has no mailbox. 5 records were skipped for it", "log in once"),
        ("market", f"{CAROL}: 2 records were skipped for it", resend),
    ]
    waits = channel | {"connected": False, "state": "1 of 2 recipients do not get what is sent", "hint": "log in once"}
    assert [each.what for each in findings({"channels": [waits]})] == ["1 of 2 recipients do not get what is sent"]
