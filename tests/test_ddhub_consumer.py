"""Receiving from the Data Hub: nothing that can be opened is lost or handed over twice, whatever broker, senders and
the power do; what cannot be opened is told, counted, and harms nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.errors import Reason, SignerError, TransportError
from agent.transports.ddhub import answers
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.keys.key_folder import KeyFolder
from agent.transports.ddhub.keys.key_source import CachedKeys
from agent.transports.ddhub.keys.network import Participant
from agent.transports.ddhub.keys.participant import ParticipantKeys
from agent.transports.ddhub.keys.rsa_key import public_pem
from agent.transports.ddhub.receiving.mailbox import Mailbox
from agent.transports.ddhub.receiving.mailbox_file import MailboxError, MailboxFile
from agent.transports.ddhub.receiving.our_keys import OurKeys
from agent.transports.ddhub.receiving.source import receiving
from testbed.ddhub.hub import DataHub
from testbed.processes import NatsServer
from tests.ddhub_keys import MINE, SMALL
from tests.ddhub_receiving import Receiver, collect, envelopes, moving_hub, records, rounds
from tests.runs import FakeClock, S

pytestmark = pytest.mark.anyio
HOUR = 3600 * S
KEY = bytes(range(32))
FAULTS = ["502", "lost", "truncated", "junk", "401"]


@pytest.fixture(scope="module")
async def world(server: NatsServer) -> AsyncIterator[tuple[DataHub, FakeClock]]:
    async with moving_hub(server.url) as world:
        yield world


@pytest.fixture
async def us(world: tuple[DataHub, FakeClock], tmp_path: Path) -> AsyncIterator[Receiver]:
    async with Receiver.made(*world, tmp_path) as made:
        yield made


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says, and forget it."""
    lines = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    caplog.clear()
    return lines


# ---- what comes is handed over ----------------------------------------------------------------------------------


async def test_several_senders_in_one_batch_in_the_order_in_which_the_broker_took_them(us: Receiver) -> None:
    alice, carol = await us.sender(), await us.sender()
    sent = records(6)
    for number, envelope in enumerate(sent):
        await us.send(alice if number % 2 else carol, envelope, padding="pkcs1v15" if number == 3 else "oaep")
    async with us.open() as consumer:
        found = await rounds(consumer)
        assert envelopes(found) == [*sent]
        assert [each.sender for each in found] == [carol.did, alice.did] * 3
        assert [each.doubts for each in found] == [()] * 6
        assert found[0].nanos < found[1].nanos
        assert not consumer.settled
        await consumer.acknowledge(found)
        assert await collect(consumer) == []
        assert +consumer.counts == Counter(delivered=6)
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert not +consumer.counts


async def test_what_is_not_acknowledged_by_the_caller_comes_again_after_a_restart_only(us: Receiver) -> None:
    alice = await us.sender()
    sent = records(3)
    for envelope in sent:
        await us.send(alice, envelope)
    async with us.open() as consumer:
        found = await rounds(consumer, 3)
        assert envelopes(found) == [*sent]
        await consumer.acknowledge(found[:1])
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*sent[1:]]


async def test_many_small_searches_bring_all_of_many_messages(us: Receiver) -> None:
    alice = await us.sender()
    sent = records(20)
    for envelope in sent:
        await us.send(alice, envelope)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*sent]
    assert {each["amount"] for each in us.hub.calls("/messages/search")} == {16}


@pytest.mark.parametrize("fault", ["reversed", "search-partial", "search-empty"])
async def test_a_search_without_order_or_result_loses_nothing(us: Receiver, fault: str) -> None:
    alice = await us.sender()
    sent = records(3)
    for envelope in sent:
        await us.send(alice, envelope)
    us.hub.faults.put(fault, path="/messages/search", times=2)
    async with us.open() as consumer:
        assert sorted(envelopes(await collect(consumer))) == sorted(sent)


@pytest.mark.parametrize("path", ["/messages/search", "/messages/internal/search", "/messages/ack"])
async def test_a_hub_that_fails_in_any_way_at_any_call_loses_nothing(us: Receiver, path: str) -> None:
    alice = await us.sender()
    async with us.open() as consumer:
        for fault, envelope in zip(FAULTS, records(len(FAULTS)), strict=True):
            await us.send(alice, envelope)
            put = us.hub.faults.put(fault, path=path)
            assert envelopes(await collect(consumer, us.clock)) == [envelope], fault
            assert put.count == 1, fault
    async with us.open() as consumer:
        assert await collect(consumer) == []


@pytest.mark.parametrize("path", ["/topics", "/auth/login", "/channel/initExtChannel"])
async def test_a_hub_that_fails_before_anything_is_received(us: Receiver, path: str) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    us.hub.faults.put("502", path=path)
    async with us.open() as consumer:
        with pytest.raises(TransportError):
            await rounds(consumer)
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_tokens_that_expired_while_nothing_came(us: Receiver) -> None:
    alice = await us.sender()
    async with us.open() as consumer:
        assert await collect(consumer) == []
        us.clock.now += 30 * HOUR
        await us.send(alice, *records(1))
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_answers_that_are_too_large_for_somebody_become_smaller(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    us.hub.faults.put("truncated", path="/messages/search", times=2)
    async with us.open() as consumer:
        assert len(await collect(consumer, us.clock)) == 1
    assert [each["amount"] for each in us.hub.calls("/messages/search")][:4] == [16, 8, 4, 8]


async def test_a_topic_that_is_not_there_is_an_error_until_it_is(us: Receiver) -> None:
    await us.sender()
    us.name = "elsewhere"
    async with us.open() as consumer:
        with pytest.raises(TransportError, match=r"has no topic edge\.apps\.energyweb\.iam\.ewc/elsewhere") as raised:
            await rounds(consumer)
        assert "have its owner register it" in raised.value.hint
        us.hub.add_topic("elsewhere", {"type": "object"})
        assert await rounds(consumer) == []


async def test_a_topic_that_is_made_anew_is_read_under_its_new_id(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    async with us.open() as consumer:
        assert await collect(consumer) == []
        next(each for each in us.hub.state.topics if each["id"] == us.topic_id)["name"] = "former"
        us.topic_id = us.hub.add_topic(us.name, {"type": "object"})
        us.clock.now += HOUR
        await us.send(alice, *records(1))
        assert len(await collect(consumer)) == 1
    assert told(caplog) == [
        f"topic has another id now and is read under that topic=edge.apps.energyweb.iam.ewc/{us.name}"
    ]


# ---- keys -------------------------------------------------------------------------------------------------------


async def test_a_key_that_comes_behind_its_message(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice = await us.sender()
    sent = records(2)
    gateway_id = await us.send_encrypted(alice, payload.encode(sent[:1]), key=KEY)
    async with us.open() as consumer:
        assert await rounds(consumer, 2) == []
        assert +consumer.counts == Counter(parked=1)
        (line,) = told(caplog)
        assert line.startswith("message cannot be opened yet id=")
        assert line.endswith(
            "its key has not come; the sender sends the key first; if it never comes, have the records resent"
        )
        await us.send(alice, sent[1])
        assert envelopes(await rounds(consumer)) == [sent[1]], "what is parked holds nobody up"
    async with us.open() as consumer:
        await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await collect(consumer)) == [*sent]
        assert told(caplog) == []


async def test_a_key_that_never_comes(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice = await us.sender()
    us.hub.faults.put("key-lost", path="/messages/internal")
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert len(told(caplog)) == 1
        us.clock.now += 24 * HOUR
        await us.hub.move(0)
        assert await us.stored() == 0
        assert await collect(consumer) == []
        assert told(caplog) == []
        us.clock.now += HOUR + S
        assert await collect(consumer) == []
        (line,) = told(caplog)
        assert line.startswith("message is given up id=")
        assert "`outbox resend` of its sender brings the records" in line
        assert consumer.counts["given_up"] == 1


async def test_a_message_without_its_key_is_acknowledged_and_comes_from_the_mailbox(us: Receiver) -> None:
    """At the broker it would come first in each search, until only such messages came."""
    alice = await us.sender()
    waiting = {await us.send_encrypted(alice, payload.encode([each]), key=KEY): each for each in records(20)}
    await us.send(alice, b"newest")
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [b"newest"]
        assert consumer.counts["parked"] == 20
    await us.hub.move(0)
    async with us.open() as consumer:
        for gateway_id in waiting:
            await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await collect(consumer)) == [*waiting.values()]


async def test_a_key_that_was_wrapped_for_somebody_else_and_then_for_us(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    gateway_id = await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    await us.send_key(alice, gateway_id, KEY, rsa=MINE)
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert "compare the DID document with `ddhub keys`" in told(caplog)[0]
        await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_key_that_somebody_else_sent_for_a_message_is_not_its_key(us: Receiver) -> None:
    alice, mallory = await us.sender(), await us.sender(known=False)
    gateway_id = await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    await us.send_key(mallory, gateway_id, bytes(32))
    async with us.open(alice) as consumer:
        assert await collect(consumer) == []
        assert +consumer.counts == Counter(parked=1)
        await us.send_key(alice, gateway_id, bytes(32))
        assert await collect(consumer) == []
        await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_key_of_ours_that_was_rotated_opens_what_was_sent_for_it(us: Receiver) -> None:
    alice = await us.sender()
    sent = records(2)
    await us.send(alice, sent[0])
    us.ours.insert(0, MINE)
    us.rsa = MINE
    await us.send(alice, sent[1])
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*sent]


async def test_a_key_of_ours_that_comes_while_we_receive(us: Receiver) -> None:
    alice = await us.sender()
    us.rsa = MINE
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert await collect(consumer) == []
        us.ours.append(MINE)
        assert await collect(consumer) == []
        us.clock.now += 61 * S
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_our_keys_are_read_again_only_for_who_has_a_key(us: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long, and a key that never comes is waited for 25 h."""
    alice = await us.sender()
    read = list[str]()
    monkeypatch.setattr(OurKeys, "_renew", lambda self: read.append("again"))
    await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    async with us.open() as consumer:
        for _ in range(3):
            assert await collect(consumer) == []
            us.clock.now += 61 * S
    assert read == []


async def test_a_key_of_ours_that_was_put_back_while_nobody_received(us: Receiver) -> None:
    alice = await us.sender()
    us.rsa = MINE
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert await collect(consumer) == []
    us.ours.append(MINE)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_an_answer_with_keys_that_was_lost_is_asked_for_again_under_another_name(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    us.hub.faults.put("lost", path="/messages/internal/search")
    async with us.open() as consumer:
        assert envelopes(await collect(consumer, us.clock)) == [*records(1)]
    names = dict.fromkeys(each["clientId"] for each in us.hub.calls("/messages/internal/search"))
    assert [name.rpartition(":")[2] for name in names] == ["keys0", "keys1"]
    assert told(caplog) == ["keys of messages may have been lost on their way, and all are fetched again"]


@pytest.mark.parametrize("what", ["a proxy gave up", "cancelled", "the disk is full"])
async def test_keys_that_were_handed_out_and_never_stored_come_again(
    us: Receiver, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The broker counts them as delivered once it has sent them."""
    alice = await us.sender()
    await us.send(alice, *records(1))
    search, put = Broker.search_keys, Mailbox.put_keys
    scope = anyio.CancelScope()

    async def answered(self: Broker, **asked: Any) -> Any:
        found = await search(self, **asked)
        if what == "a proxy gave up":
            raise TransportError("504", reason=Reason.UNREACHABLE)
        if what == "cancelled":
            scope.cancel()
        return found

    def stored(self: Mailbox, *arguments: Any, **named: Any) -> None:
        if what == "the disk is full":
            raise MailboxError("database or disk is full")
        put(self, *arguments, **named)

    with monkeypatch.context() as broken, suppress(TransportError, MailboxError), scope:
        broken.setattr(Broker, "search_keys", answered)
        broken.setattr(Mailbox, "put_keys", stored)
        async with us.open() as consumer:
            await rounds(consumer)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_key_of_what_waits_that_was_never_stored_comes_again(
    us: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await us.sender()
    gateway_id = await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    async with us.open() as consumer:
        assert await collect(consumer) == []
    await us.send_key(alice, gateway_id, KEY)

    def full(*_: Any, **__: Any) -> None:
        raise MailboxError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(Mailbox, "put_keys", full)
        async with us.open() as consumer:
            with pytest.raises(MailboxError):
                await rounds(consumer)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_what_has_its_key_does_not_wait_until_all_keys_are_fetched_again(us: Receiver) -> None:
    alice = await us.sender()
    sent = records(2)
    gateway_id = await us.send_encrypted(alice, payload.encode(sent[:1]), key=KEY)
    await us.send(alice, sent[1])
    async with us.open() as consumer:
        us.hub.faults.put("500", path="/messages/internal/search")  # so that keys are in doubt
        with pytest.raises(TransportError):
            await rounds(consumer)
        us.hub.faults.put("500", path="/messages/internal/search", skip=3, times=2)
        assert envelopes(await rounds(consumer)) == [sent[1]]
        with pytest.raises(TransportError):
            await rounds(consumer)
        await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await rounds(consumer)) == [sent[0]]
    names = dict.fromkeys(each["clientId"] for each in us.hub.calls("/messages/internal/search"))
    assert [name.rpartition(":")[2] for name in names] == ["keys0", "keys1"], "and not again and again"


async def test_what_has_half_a_character_in_a_name_stops_nothing(us: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody with a role may choose the name of a key, and half a character cannot be stored."""
    alice = await us.sender()
    await us.send(alice, *records(1))
    parsed = answers.parsed

    def more(body: bytes) -> Any:
        found = parsed(body)
        if isinstance(found, list):
            found += [each | {"clientGatewayMessageId": "\ud800"} for each in found]
        return found

    monkeypatch.setattr(answers, "parsed", more)
    async with us.open(alice) as consumer:
        assert envelopes(await rounds(consumer)) == [*records(1)]
        assert +consumer.counts == Counter(delivered=1, refused=1)


async def test_more_keys_than_there_is_room_for_wait_at_the_broker(
    us: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("mailbox.MOST_KEYS", 6), ("mailbox.MOST_WAITING_KEYS", 3), ("consumer.AMOUNT", 2)):
        monkeypatch.setattr(f"agent.transports.ddhub.receiving.{name}", value)
    monkeypatch.setattr("agent.transports.ddhub.receiving.consumer._KEYS", 2)
    alice, carol = await us.sender(), await us.sender()
    sent = records(10)
    for number in range(4):
        await us.send_key(carol, f"of another topic {number}", KEY)
    for envelope in sent:
        await us.send(alice, envelope)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*sent]
        assert not consumer.counts["parked"]


async def test_all_that_waits_is_tried_with_a_key_of_ours_that_came_with_something_new(us: Receiver) -> None:
    alice = await us.sender()
    sent = records(2)
    us.rsa = MINE
    await us.send(alice, sent[0])
    async with us.open() as consumer:
        assert await collect(consumer) == []
        us.ours.append(MINE)
        us.clock.now += 61 * S
        await us.send(alice, sent[1])
        assert envelopes(await collect(consumer)) == [*sent]


async def test_what_waited_is_handed_over_in_batches(us: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.sorter._MOST_AT_ONCE", 2)
    alice = await us.sender()
    sent = records(5)
    us.rsa = MINE
    for envelope in sent:
        await us.send(alice, envelope)
    async with us.open() as consumer:
        assert await collect(consumer) == []
    us.ours.append(MINE)
    async with us.open() as consumer:
        for some in (sent[:2], sent[2:4], sent[4:]):
            found = await rounds(consumer)
            assert envelopes(found) == [*some]
            await consumer.acknowledge(found)


async def test_a_file_of_ours_that_cannot_be_read_again_stops_nothing(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    folder = KeyFolder(us.state, us.signer)
    folder.add(us.rsa, made=us.clock.wall())
    us.rsa = MINE
    await us.send(alice, *records(1))
    async with receiving(
        us.source, signer=us.signer, senders=[alice.did], folder=us.state, clock=us.clock, every=0.01
    ) as consumer:
        assert await collect(consumer) == []
        told(caplog)
        (us.state / "rsa-2.pem").write_text("torn")
        for _ in range(2):
            us.clock.now += 61 * S
            assert await collect(consumer) == []
        (line,) = told(caplog)
        assert line.startswith("our RSA keys cannot be read again, and those at hand are used error=")
        (us.state / "rsa-2.pem").unlink()
        folder.add(MINE, made=us.clock.wall())
        us.clock.now += 61 * S
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_key_that_is_published_for_us_and_is_not_ours_is_told(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    us.known[us.did] = {"encryption": public_pem(MINE)}
    us.introduce(alice)
    KeyFolder(us.state, us.signer).add(SMALL, made=us.clock.wall())
    async with receiving(
        us.source, signer=us.signer, senders=[alice.did], folder=us.state, clock=us.clock, every=0.01
    ) as consumer:
        assert await collect(consumer) == []
    (line,) = told(caplog)
    assert "an RSA key that we do not hold" in line


async def test_without_a_key_of_ours_nothing_begins(us: Receiver, tmp_path: Path) -> None:
    await us.sender()
    with pytest.raises(SignerError, match="there is no RSA key of ours in") as raised:
        async with receiving(us.source, signer=us.signer, senders=[us.senders[0].did], folder=tmp_path, clock=us.clock):
            pass
    assert "`edge-agent ddhub keys" in raised.value.hint


# ---- senders ----------------------------------------------------------------------------------------------------


async def test_a_sender_whose_key_is_not_known_yet(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice, carol = await us.sender(), await us.sender(known=False)
    sent = records(2)
    await us.send(carol, sent[0])
    await us.send(alice, sent[1])
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [sent[1]], "the other sender is not held up"
        (line,) = told(caplog)
        assert f"{carol.did} is not in" in line
        us.introduce(carol)
        us.clock.now += 61 * S
        assert envelopes(await collect(consumer)) == [sent[0]]
        assert told(caplog) == []


async def test_a_signature_by_a_key_that_was_not_published_yet(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice, carol = await us.sender(), await us.sender()
    us.known[alice.did] = us.known[carol.did]
    us.introduce(carol)
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert "its signature is not by the key in the sender's DID document" in told(caplog)[0]
        us.clock.now += 61 * S
        assert await collect(consumer) == []
        assert told(caplog) == [], "it is told once"
        us.introduce(alice)
        us.clock.now += 61 * S
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_sender_whose_key_changed_is_looked_up_again_at_once(us: Receiver) -> None:
    alice, carol = await us.sender(), await us.sender()
    await us.send(alice, *records(1))
    clock = FakeClock()
    said = {alice.did: ParticipantKeys(carol.signature_key, None)}

    class Document:
        async def keys(self, who: Participant) -> ParticipantKeys:
            return said.get(who.did, ParticipantKeys(None, None))

    keys = CachedKeys(Document(), clock=clock)
    await keys.keys(alice.did)
    said[alice.did] = ParticipantKeys(alice.signature_key, None)
    clock.now += 61 * S
    async with us.open(alice, keys=keys) as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]
        assert not consumer.counts["parked"]


async def test_another_set_of_senders_is_another_client_id_and_loses_and_repeats_nothing(us: Receiver) -> None:
    alice, carol = await us.sender(), await us.sender()
    sent = records(4)
    await us.send(alice, sent[0])
    await us.send(carol, sent[1])
    async with us.open(alice) as consumer:
        assert envelopes(await collect(consumer)) == [sent[0]]
    async with us.open(alice, carol) as consumer:
        assert envelopes(await collect(consumer)) == [sent[1]], "not lost though the first search left it out"
        assert consumer.counts["repeated"] == 1
    await us.send(alice, sent[2])
    await us.send(carol, sent[3])
    async with us.open(alice) as consumer:
        assert envelopes(await collect(consumer)) == [sent[2]]
        (old,) = await consumer.old_client_ids()
        asked = [each["clientId"] for each in us.hub.calls("/messages/search")]
        assert old in asked
        assert len({*asked}) == 2
        assert await consumer.remove_client_ids([old]) == [old]
        assert await consumer.old_client_ids() == []
    async with us.open(carol, alice) as consumer:
        assert envelopes(await collect(consumer)) == [sent[3]]
    assert {each["clientId"] for each in us.hub.calls("/messages/search")} == {*asked}, "order of senders is no matter"


async def test_two_mailboxes_of_one_participant_take_nothing_from_each_other(us: Receiver, tmp_path: Path) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    async with us.open() as consumer, us.open(folder=tmp_path / "other") as second:
        assert envelopes(await collect(consumer)) == [*records(1)]
        assert envelopes(await collect(second)) == [*records(1)]


async def test_one_process_and_one_reader_at_a_time(us: Receiver) -> None:
    await us.sender()
    async with us.open():
        with pytest.raises(MailboxError, match="in use by another process"):
            async with us.open():
                pass


# ---- what is not to be trusted ----------------------------------------------------------------------------------

JUNK = [
    ({"isFile": True}, "it is a file; records come in messages"),
    ({"payload": "neither hex nor JSON", "payloadEncryption": True}, "it is neither encrypted nor a text of ours"),
    ({"payload": f"{'0' * 32}:{'1' * 32}", "payloadEncryption": True}, "its signature is not by the key"),
    ({"payload": '{"records":[]}'}, 'payload: expected "envelopes"'),
]


@pytest.mark.parametrize(("changes", "words"), JUNK)
async def test_messages_that_are_none_are_told_once_and_stop_nothing(
    us: Receiver, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    alice = await us.sender()
    await us.post(alice, payload.encode(records(1)), **changes)
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]
        assert consumer.counts["refused"] + consumer.counts["parked"] == 1
    (line,) = told(caplog)
    assert words in line
    async with us.open() as consumer:
        assert await collect(consumer) == []
    assert told(caplog) == []


async def test_what_is_decrypted_and_is_no_payload(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice = await us.sender()
    await alice.send(us.topic_id, "[]", {us.did: public_pem(us.rsa)})
    async with us.open() as consumer:
        assert await collect(consumer) == []
    (line,) = told(caplog)
    assert "message is refused" in line
    assert "payload: expected a text that begins with {" in line


async def test_a_text_in_clear_that_was_rewritten_is_handed_over_and_said_to_be(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    envelope = b"\xfb\xef\xbe" * 4  # in base64url nothing but dashes and letters
    text = payload.encode([envelope])
    assert "-" in text
    await us.post(alice, text.replace("-", "&#45;"), signature=alice.sign(text))
    async with us.open() as consumer:
        (found,) = await collect(consumer)
        assert found.envelopes == (envelope,)
        assert found.payload.altered
        assert consumer.counts["flawed"] == 1
    (line,) = told(caplog)
    assert "altered in transport" in line


async def test_a_text_in_clear_with_a_wrong_signature_is_handed_over_for_its_records_prove_themselves(
    us: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await us.sender()
    await us.post(alice, payload.encode(records(1)), signature=alice.sign("another"))
    async with us.open() as consumer:
        (found,) = await collect(consumer)
        assert found.envelopes == (*records(1),)
    assert "its signature is not good" in told(caplog)[0]


async def test_the_brokers_word_for_encryption_is_not_taken(us: Receiver) -> None:
    alice = await us.sender()
    text = payload.encode(records(1))
    await us.post(alice, text, payloadEncryption=True)
    gateway_id = await us.send_encrypted(alice, text, key=KEY)
    await us.send_key(alice, gateway_id, KEY)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)] * 2


async def test_what_cannot_be_opened_takes_bounded_room(
    us: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_PARKED", 20_000)
    alice = await us.sender()
    for envelope in records(5):
        await us.send_encrypted(alice, payload.encode([envelope]), key=KEY)
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert consumer.counts["parked"] == 5
        given_up = consumer.counts["given_up"]
        assert 0 < given_up < 5
    assert len([line for line in told(caplog) if "there is no more room" in line]) == given_up


# ---- acknowledging ----------------------------------------------------------------------------------------------


async def test_acknowledgements_that_were_not_all_taken(us: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    alice = await us.sender()
    for envelope in records(4):
        await us.send(alice, envelope)
    us.hub.faults.put("ack-incomplete", path="/messages/ack", times=3, done=1)
    async with us.open() as consumer:
        assert len(await collect(consumer)) == 4
    lines = told(caplog)
    assert len(lines) == 1, "one line as long as it lasts"
    assert lines[0].startswith("messages are not acknowledged yet")
    async with us.open() as consumer:
        assert await collect(consumer) == []
        assert not +consumer.counts, "the broker has taken all"


async def test_acknowledgements_that_are_never_taken_hold_nothing_up(
    us: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.consumer.AMOUNT", 2)
    alice = await us.sender()
    sent = records(7)
    for envelope in sent:
        await us.send(alice, envelope)
    us.hub.faults.put("ack-incomplete", path="/messages/ack", times=None, done=0)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*sent]


async def test_what_the_broker_forgot_that_we_have_is_passed_over_at_once(
    us: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.consumer.AMOUNT", 2)
    alice, carol = await us.sender(), await us.sender()
    sent = records(6)
    for envelope in sent[:5]:
        await us.send(alice, envelope)
    async with us.open(alice) as consumer:
        assert len(await collect(consumer)) == 5
    await us.send(carol, sent[5])
    async with us.open(alice, carol, every=3600.0) as consumer:
        with anyio.fail_after(20):
            assert envelopes(await rounds(consumer, 4)) == [sent[5]]


async def test_searches_and_acknowledgements_never_overlap(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        found = await rounds(consumer)
        held = us.hub.faults.put("held", path="/messages/search")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rounds, consumer)
            while not held.count:  # noqa: ASYNC110 - nobody sets an event
                await anyio.sleep(0.01)
            tasks.start_soon(consumer.acknowledge, found)
            await anyio.sleep(0.05)
            assert us.hub.calls("/messages/ack") == []
            held.release()
        assert len(us.hub.calls("/messages/ack")) == 1


async def test_who_is_told_to_stop_while_he_takes_a_batch_has_it(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        found = await rounds(consumer)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await consumer.acknowledge(found)
    async with us.open() as consumer:
        assert await collect(consumer) == []


async def test_acknowledgements_of_what_the_broker_has_forgotten(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        found = await rounds(consumer)
        us.clock.now += 24 * HOUR + S
        await us.hub.move(0)
        await consumer.acknowledge(found)
        calls = len(us.hub.calls("/messages/ack"))
        assert await collect(consumer) == []
    assert len(us.hub.calls("/messages/ack")) == calls


# ---- crashes ----------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The power goes."""


STEPS = ["put_keys", "known", "finish", "settle", "expire"]


@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("step", STEPS)
async def test_after_a_crash_at_any_step_nothing_is_missing(
    us: Receiver, monkeypatch: pytest.MonkeyPatch, step: str, done: bool
) -> None:
    alice = await us.sender()
    sent = records(3)
    for envelope in sent:
        await us.send(alice, envelope)
    real = getattr(Mailbox, step)

    def crash(self: Mailbox, *arguments: Any, **named: Any) -> Any:
        if done:
            real(self, *arguments, **named)
        raise Crash

    kept: list[bytes] = []  # by a caller that stores before it acknowledges

    async def process() -> None:
        async with us.open() as consumer:
            while True:
                batch = await rounds(consumer)
                kept.extend(envelopes(batch))
                await consumer.acknowledge(batch)

    with monkeypatch.context() as broken:
        broken.setattr(Mailbox, step, crash)
        broken.setattr(MailboxFile, "close", lambda self: self._db.close())
        with pytest.raises(Crash):
            await process()
    async with us.open() as consumer:
        us.clock.now += 36 * S
        again = envelopes(await collect(consumer))
    assert {*kept, *again} == {*sent}
    if step in ("settle", "expire") or (step == "finish" and done):
        assert not {*kept} & {*again}, "it was done with here, whether or not the broker knows"


@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
async def test_after_a_crash_while_a_message_is_parked_it_is_not_missing(
    us: Receiver, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    alice = await us.sender()
    gateway_id = await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    real = Mailbox.park

    def crash(self: Mailbox, *arguments: Any, **named: Any) -> Any:
        if done:
            real(self, *arguments, **named)
        raise Crash

    with monkeypatch.context() as broken:
        broken.setattr(Mailbox, "park", crash)
        broken.setattr(MailboxFile, "close", lambda self: self._db.close())
        with pytest.raises(Crash):
            async with us.open() as consumer:
                await rounds(consumer)
    await us.send_key(alice, gateway_id, KEY)
    async with us.open() as consumer:
        us.clock.now += 36 * S
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_after_a_crash_it_waits_for_what_the_broker_may_hold_back(
    us: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await us.sender()
    with monkeypatch.context() as broken:
        broken.setattr(MailboxFile, "close", lambda self: self._db.close())
        async with us.open() as consumer:
            await rounds(consumer, 3)
            assert consumer.settled
    async with us.open() as consumer:
        await rounds(consumer, 5)
        assert not consumer.settled
        us.clock.now += 36 * S
        assert consumer.settled
    async with us.open() as consumer:
        await rounds(consumer, 3)
        assert consumer.settled
        us.hub.faults.put("500", path="/messages/search")
        with pytest.raises(TransportError):
            await rounds(consumer)
        await rounds(consumer, 5)
        assert not consumer.settled


@pytest.mark.parametrize("path", ["/messages/search", "/messages/internal/search"])
async def test_a_search_that_was_given_up_counts_as_a_crash(us: Receiver, path: str) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    held = us.hub.faults.put("held", path=path)
    async with us.open() as consumer:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rounds, consumer)
                while not held.count:  # noqa: ASYNC110 - nobody sets an event
                    await anyio.sleep(0.01)
                scope.cancel()
    held.release()
    async with us.open() as consumer:
        us.clock.now += 34 * S
        await rounds(consumer, 5)
        assert not consumer.settled
        us.clock.now += 2 * S
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_a_message_of_which_the_parking_was_not_heard(us: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await us.sender()
    gateway_id = await us.send_encrypted(alice, payload.encode(records(1)), key=KEY)
    us.hub.faults.put("500", path="/messages/ack")
    async with us.open() as consumer:
        await rounds(consumer)
    async with us.open() as consumer:
        await us.send_key(alice, gateway_id, KEY)
        assert envelopes(await collect(consumer)) == [*records(1)]
    async with us.open() as consumer:
        assert await collect(consumer) == []


async def test_everything_of_a_day_comes_again_to_a_new_mailbox(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    async with us.open() as consumer:
        assert len(await collect(consumer)) == 1
    for name in ("mailbox.db", "mailbox.db-wal"):
        (us.state / name).unlink(missing_ok=True)
    async with us.open() as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


async def test_the_keys_of_our_folder_and_the_senders_of_a_file(us: Receiver) -> None:
    alice = await us.sender()
    await us.send(alice, *records(1))
    KeyFolder(us.state, us.signer).add(us.rsa, made=us.clock.wall())
    async with receiving(
        us.source, signer=us.signer, senders=[alice.did], folder=us.state, clock=us.clock, every=0.01
    ) as consumer:
        assert envelopes(await collect(consumer)) == [*records(1)]


@pytest.mark.parametrize(
    ("senders", "words"),
    [
        ([], "say whose messages are to be received"),
        (["did:ethr:volta:0x1"], "is no DID of a participant"),
        (["did:ethr:ewc:0x1563915e194D8CfBA1943570603F7606A3115508"], "ours is volta"),
    ],
)
async def test_senders_that_cannot_be(us: Receiver, senders: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        async with receiving(us.source, signer=us.signer, senders=senders, folder=us.state, clock=us.clock):
            pass
