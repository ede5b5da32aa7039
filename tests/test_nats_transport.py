"""The NATS edge against a real nats-server, and against servers that are none: every end of a connection is an error
with a verdict, in time, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import anyio
import anyio.abc
import nats
import pytest
from anyio.abc import SocketStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StreamConfig

from agent.errors import Reason, TransportError, Verdict
from agent.evidence.envelope import CONTENT_TYPE
from agent.ports import Ack, Last, Message
from agent.transports.nats.config import NatsServers
from agent.transports.nats.connection import Timeouts
from agent.transports.nats.consumer import Consumer, Source
from agent.transports.nats.pull import BATCH, Place
from testbed.broker import create_stream
from testbed.processes import NatsServer, free_port
from tests.nats_sessions import (
    SHORT,
    answers,
    everywhere,
    fake_server,
    liar,
    loss,
    message,
    nothing_left,
    refused,
    rights,
    slow_line,
    stream,
    transport,
)

pytestmark = pytest.mark.anyio

# ---- connecting -------------------------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    error = await refused(f"nats://127.0.0.1:{free_port()}")
    assert (error.reason, "Connect call failed" in str(error)) == (Reason.UNREACHABLE, True)


async def test_no_such_host() -> None:
    error = await refused("nats://no-such-host.invalid:4222")
    assert (error.reason, "the name is not known" in str(error)) == (Reason.UNREACHABLE, True)


@pytest.mark.parametrize(
    ("greeting", "words", "reason"),
    [
        ([], "no answer in time", Reason.TIMEOUT),
        ([b'INFO {"max_payl'], "no answer in time", Reason.TIMEOUT),
        ([b'INFO {"max_payload": 1048576}\r\n'], "no answer in time", Reason.TIMEOUT),
        ([b""], "the server closed the connection", Reason.PROTOCOL),
        ([b'INFO {"max_payload": 1048576}\r\n', b""], "the server closed the connection", Reason.LOST),
        ([b"SSH-2.0-OpenSSH_9.2p1\r\n"], 'but with "SSH-2.0-OpenSSH_9.2p1"', Reason.PROTOCOL),
        ([b"INFO\r\n"], "does not greet as a NATS server", Reason.PROTOCOL),
        ([b"INFO []\r\n"], "does not greet as a NATS server", Reason.PROTOCOL),
        ([b"INFO {{{\r\n"], "does not greet as a NATS server", Reason.PROTOCOL),
        ([b'INFO {"max_payload": "1048576"}\r\n'], "a largest message of", Reason.PROTOCOL),
        ([b'INFO {"max_payload": null}\r\n'], "a largest message of", Reason.PROTOCOL),
        ([b'INFO {"max_payload": 512}\r\n'], "a largest message of 512", Reason.PROTOCOL),
        ([b"x" * 100_000], "", Reason.PROTOCOL),
        ([b"INFO {}\r\n-ERR 'Authorization Violation'\r\n"], "Authorization Violation", Reason.AUTHORIZATION),
        ([b"INFO {}\r\n-ERR 'maximum connections exceeded'\r\n"], "maximum connections exceeded", Reason.OTHER),
    ],
)
async def test_a_server_that_is_none_or_silent(greeting: list[bytes], words: str, reason: Reason) -> None:
    async with fake_server(*greeting) as url:
        error = await refused(url)
    assert (error.reason, words in str(error)) == (reason, True)


def test_a_silent_server_is_given_up_within_ten_seconds() -> None:
    times = Timeouts()
    assert 2 * times.connect <= 10
    assert 3 * times.ping + 1 <= 10  # the third unanswered ping; the first may be a full interval away, that is counted


async def test_servers_take_turns(server: NatsServer) -> None:
    away = f"nats://127.0.0.1:{free_port()}"
    both = transport(away, server.url, subject="a")
    with pytest.raises(TransportError, match=away):
        async with both.session():
            pass
    async with nothing_left(), both.session():
        pass
    with pytest.raises(TransportError, match=away):
        async with both.session():
            pass


async def test_the_servers_limit_is_known_once_connected(own_server: NatsServer) -> None:
    own_server.kill()
    own_server.settings = "max_payload: 65536"
    own_server.start()
    small = transport(own_server.url, subject="a")
    assert small.max_envelope is None
    async with small.session():
        assert small.max_envelope == 65536 - 512


async def test_errors_of_who_uses_the_session_stay_what_they_are(server: NatsServer) -> None:
    async with nothing_left():
        with pytest.raises(OSError, match="disk"):
            async with transport(server.url, subject="a").session():
                raise OSError("disk")


# ---- publishing -------------------------------------------------------------------------------------------------


async def test_every_message_is_acknowledged_and_stored_with_its_headers(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject), nothing_left():
        async with transport(server.url, subject=subject).session() as session:
            for number in range(1, 65):
                await session.send(message(number, b"%d" % number))
            assert await answers(session, 64) == [Ack(number) for number in range(1, 65)]
        stored = await client.jetstream().get_msg(subject.partition(".")[0], 64)
        assert (stored.subject, stored.data) == (subject, b"64")
        assert stored.headers == {"Nats-Msg-Id": "id-64", "Content-Type": CONTENT_TYPE}


async def test_a_duplicate_is_acknowledged_and_stored_once(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject):
        async with transport(server.url, subject=subject).session() as session:
            await session.send(message(1))
            await session.send(message(1))
            assert await answers(session, 2) == [Ack(1), Ack(1, duplicate=True)]
        assert (await client.jetstream().stream_info(subject.partition(".")[0])).state.messages == 1


@pytest.mark.parametrize(
    ("settings", "words", "reason", "hint"),
    [
        ({"max_msgs": 1, "discard": DiscardPolicy.NEW}, "maximum messages exceeded", Reason.STREAM_FULL, "limits"),
        ({"max_bytes": 200, "discard": DiscardPolicy.NEW}, "maximum bytes exceeded", Reason.STREAM_FULL, "limits"),
        ({"max_msg_size": 200}, "message size exceeds maximum allowed", Reason.TOO_LARGE, "max_msg_size"),
    ],
)
async def test_what_the_stream_refuses_comes_back_in_the_servers_words(
    server: NatsServer, settings: dict[str, Any], words: str, reason: Reason, hint: str
) -> None:
    async with (
        stream(server.url, **settings) as (_, subject),
        transport(server.url, subject=subject).session() as session,
    ):
        await session.send(message(1))
        await session.send(message(2, bytes(200)))
        good, bad = await answers(session, 2)
    assert good == Ack(1)
    assert isinstance(bad.error, TransportError)
    verdict = Verdict.REJECT if reason is Reason.TOO_LARGE else Verdict.RETRY
    assert (bad.token, bad.error.verdict, bad.error.reason) == (2, verdict, reason)
    assert words in str(bad.error)
    assert hint in bad.error.hint


async def test_no_stream(server: NatsServer) -> None:
    async with transport(server.url, subject="nowhere.a").session() as session:
        with pytest.raises(TransportError, match=r"no JetStream stream takes nowhere\.a") as raised:
            await session.last()
        assert (raised.value.verdict, raised.value.reason) == (Verdict.RETRY, Reason.NO_STREAM)
        assert "create the stream" in raised.value.hint
        await session.send(message(1))
        [ack] = await answers(session, 1)
        assert isinstance(ack.error, TransportError)
        assert ack.error.reason is Reason.NO_STREAM
        assert "create the stream" in ack.error.hint


async def test_a_stream_that_does_not_take_the_subject_stores_nothing(server: NatsServer) -> None:
    async with stream(server.url) as (_, other), stream(server.url) as (client, subject):
        name = other.partition(".")[0]
        async with transport(server.url, subject=subject, name=name).session() as session:
            assert await session.last() is None
            await session.send(message(1))
            [ack] = await answers(session, 1)
        assert isinstance(ack.error, TransportError)
        assert ack.error.reason is Reason.WRONG_STREAM
        assert "does not take" in ack.error.hint
        assert (await client.jetstream().stream_info(subject.partition(".")[0])).state.messages == 0


async def test_a_record_too_large_is_rejected_and_the_largest_is_not(server: NatsServer) -> None:
    async with stream(server.url) as (_, subject):
        sender = transport(server.url, subject=subject, name=subject.partition(".")[0])
        async with sender.session() as session:
            assert sender.max_envelope is not None
            with pytest.raises(TransportError, match="larger than the server takes") as raised:
                await session.send(message(1, bytes(sender.max_envelope + 1)))
            assert (raised.value.verdict, raised.value.reason) == (Verdict.REJECT, Reason.TOO_LARGE)
            await session.send(Message(2**63, f"{'f' * 32}-{2**63}-{'f' * 8}", bytes(sender.max_envelope)))
            assert await answers(session, 1) == [Ack(2**63)]


async def test_junk_on_the_reply_subject_is_ignored(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    junk = (b"", b"+ACK", b"[]", b"null", b'{"seq": "1"}', b'{"seq": 1}', b'{"error": 3}', b"[" * 5000, b"\xff")
    async with stream(server.url) as (client, subject):
        overheard = await client.subscribe(subject)
        async with transport(server.url, subject=subject).session() as session:
            await session.send(message(1))
            reply = (await overheard.next_msg()).reply
            for words in junk:
                await client.publish(reply, words)
            await client.publish(reply.rpartition(".")[0] + ".one", b'{"stream": "S", "seq": 1}')
            await client.flush()
            await session.send(message(2))
            assert await answers(session, 2) == [Ack(1), Ack(2)]
            assert session.junk == len(junk) + 1
    assert [record.getMessage() for record in caplog.records] == [
        f"junk on the reply subject, ignored subject={subject}"
    ]


@pytest.mark.parametrize(
    "words",
    [
        b'{"stream": "S", "seq": 0, "duplicate": true}',  # nats-server 2.10
        b'{"stream": "S", "seq": 0, "error": {"code": 409, "err_code": 10158, "description": "duplicate message id"}}',
    ],
)
async def test_a_cluster_that_still_stores_a_record_sent_twice_has_not_acknowledged_it(
    server: NatsServer, words: bytes
) -> None:
    """Its leader may go before the record is safe; the first one's own answer counts, or the next repeat's."""
    async with stream(server.url) as (client, subject):
        overheard = await client.subscribe(subject)
        async with transport(server.url, subject=subject).session() as session:
            await session.send(message(1))
            reply = (await overheard.next_msg()).reply
            await client.publish(reply.rpartition(".")[0] + ".2", words)
            await client.flush()
            await session.send(message(3))
            assert await answers(session, 2) == [Ack(1), Ack(3)]
            assert session.junk == 0


async def test_what_is_sent_by_order_says_so_and_is_told_when_it_is_read_back(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject):
        async with transport(server.url, subject=subject).session() as session:
            await session.send(message(1))
            await session.send(replace(message(2), resent=True))
            assert await answers(session, 2) == [Ack(1), Ack(2)]
            assert await session.last() == Last(b"content", resent=True)
            await session.send(message(3))
            await answers(session, 1)
            assert await session.last() == Last(b"content")
        stored = await client.jetstream().get_msg(subject.partition(".")[0], 2)
        assert stored.headers == {"Nats-Msg-Id": "id-2", "Content-Type": CONTENT_TYPE, "Edge-Agent-Resent": "1"}


# ---- reading back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
async def test_the_last_message(server: NatsServer, named: bool) -> None:
    async with stream(server.url) as (client, subject):
        sender = transport(server.url, subject=subject, name=subject.partition(".")[0] if named else None)
        async with nothing_left(), sender.session() as session:
            assert await session.last() is None
            await client.jetstream().publish(subject, b"first")
            await client.jetstream().publish(subject + ".b", b"another subject")
            assert await session.last() == Last(b"first")
            await client.jetstream().publish(subject, b"")
            assert await session.last() == Last(b"")


async def test_a_stream_named_wrongly(server: NatsServer) -> None:
    async with transport(server.url, subject="a", name="NONE").session() as session:
        with pytest.raises(TransportError, match="there is no stream NONE") as raised:
            await session.last()
    assert (raised.value.verdict, raised.value.reason) == (Verdict.RETRY, Reason.NO_STREAM)


@pytest.mark.parametrize("also", [[], ["$JS.API.STREAM.NAMES"]])
async def test_not_permitted_to_read_back(own_server: NatsServer, also: list[str]) -> None:
    async with rights(own_server, f"publish: {['S.>', *also]}") as sender, sender.session() as session:
        with anyio.fail_after(2), pytest.raises(TransportError, match="not permitted to read back") as raised:
            await session.last()
        assert (raised.value.verdict, raised.value.reason) == (Verdict.REJECT, Reason.PERMISSION)
        assert "$JS.API.STREAM.MSG.GET" in raised.value.hint
        await session.send(message(1))  # which needs no right to read
        assert await answers(session, 1) == [Ack(1)]


async def test_not_permitted_to_publish(own_server: NatsServer) -> None:
    async with rights(own_server, 'publish: ["$JS.>"]') as sender, sender.session() as session:
        assert await session.last() is None
        await session.send(message(1))
        error = await loss(session)
        assert (error.verdict, error.reason) == (Verdict.RETRY, Reason.PERMISSION)
        assert "publish to S.a" in error.hint
        assert "not permitted" in str(error)


async def test_not_permitted_to_hear_answers(own_server: NatsServer) -> None:
    async with rights(own_server, 'subscribe: ["S.>"]') as sender, sender.session() as session:
        with anyio.fail_after(2), pytest.raises(TransportError, match="not permitted") as raised:
            await session.last()
        assert (raised.value.verdict, raised.value.reason) == (Verdict.RETRY, Reason.PERMISSION)
        assert "_INBOX" in raised.value.hint
        assert (await loss(session)).hint == raised.value.hint


async def test_an_account_without_jetstream(own_server: NatsServer) -> None:
    own_server.kill()
    own_server.settings = "accounts { A: { users: [ { user: agent, password: agent } ] } }\nno_auth_user: agent"
    own_server.start()
    async with nothing_left(), transport(own_server.url, subject="S.a").session() as session:
        with pytest.raises(TransportError, match="no JetStream here") as raised:
            await session.last()
        assert (raised.value.verdict, raised.value.reason) == (Verdict.RETRY, Reason.NO_JETSTREAM)


# ---- losing the server ------------------------------------------------------------------------------------------


async def test_a_killed_server_and_the_one_after_it(own_server: NatsServer) -> None:
    await create_stream(own_server.url, "S", ["S.>"])
    sender = transport(own_server.url, subject="S.a")
    async with nothing_left(), sender.session() as session:
        await session.send(message(1))
        assert await answers(session, 1) == [Ack(1)]
        own_server.signal(signal.SIGSTOP)
        for number in range(2, 66):
            await session.send(message(number, bytes(100_000)))
        own_server.kill()
        error = await loss(session)
        assert (str(error).startswith("connection lost: "), error.reason) == (True, Reason.LOST)
        with pytest.raises(TransportError, match="connection lost"):
            await session.send(message(66))
        with pytest.raises(TransportError, match="connection lost"):
            await session.last()
    own_server.start()
    async with nothing_left(), sender.session() as session:
        assert await session.last() == Last(b"content")
        await session.send(message(2))
        assert await answers(session, 1) == [Ack(2)]


async def test_a_server_that_stops_in_order(own_server: NatsServer) -> None:
    async with nothing_left(), transport(own_server.url, subject="S.a").session() as session:
        own_server.signal(signal.SIGTERM)
        assert str(await loss(session, within=5)).startswith("connection lost: ")


@pytest.mark.parametrize("waiting", [0, 1, 64])
async def test_a_frozen_server_is_noticed_with_messages_in_flight(own_server: NatsServer, waiting: int) -> None:
    async with nothing_left(), transport(own_server.url, subject="S.a").session() as session:
        own_server.signal(signal.SIGSTOP)
        with anyio.fail_after(1):
            for number in range(1, waiting + 1):  # 64 of them are far more than the sockets' buffers hold
                await session.send(message(number, bytes(250_000)))
        error = await loss(session)
        assert (str(error), error.reason) == ("connection lost: stale connection", Reason.TIMEOUT)


async def test_leaving_a_session_does_not_wait_for_a_frozen_server(own_server: NatsServer) -> None:
    async with nothing_left():
        with anyio.fail_after(1):
            async with transport(own_server.url, subject="S.a", timeouts=Timeouts()).session() as session:
                own_server.signal(signal.SIGSTOP)
                for number in range(1, 65):
                    await session.send(message(number, bytes(250_000)))


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"nope", b"[]", b"{}", b"\xff", b"[" * 5000),
        *(b'{"message": 5}', b'{"message": {}}', b'{"message": {"subject": "a", "seq": 1, "data": "?"}}'),
        *(b'{"error": 5}', b'{"error": {}}', b'{"streams": [5]}', b'{"streams": ["x y"]}'),
    ],
)
@pytest.mark.parametrize("name", ["S", None])
async def test_an_answer_that_is_none_is_an_error_of_this_channel_alone(answer: bytes, name: str | None) -> None:
    """Anything else that it raised would end the agent."""
    async with nothing_left(), liar(answer) as url:
        async with transport(url, subject="a", name=name).session() as session:
            with pytest.raises(TransportError) as raised:
                await session.last()
        reader = Consumer(Source(NatsServers(servers=(url,)), name, "a"), timeouts=SHORT)
        async with aclosing(reader.messages()) as found:
            with pytest.raises(TransportError):
                await anext(found)
    assert (raised.value.verdict, raised.value.reason) == (Verdict.RETRY, Reason.PROTOCOL)


async def test_a_message_that_somebody_else_sent_to_a_reader_is_an_error_of_the_connection() -> None:
    for reply in ("", "a.b", "$JS.ACK.S.c.1.2.x.4.5", "$JS.ACK.d.a.S.c.1.2.3.x.5.t"):
        with pytest.raises(TransportError):
            Place.of(Msg(Client(), reply=reply))
    assert Place.of(Msg(Client(), reply="$JS.ACK.S.c.1.2.3.4.5")) == Place(2, 4, 5, 3, 1)
    assert Place.of(Msg(Client(), reply="$JS.ACK.d.a.S.c.1.2.3.4.5.t")) == Place(2, 4, 5, 3, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_server_goes_while_the_last_message_is_asked_for(
    own_server: NatsServer, number: signal.Signals
) -> None:
    await create_stream(own_server.url, "S", ["S.>"])
    times = Timeouts(answer=30, ping=0.1 if number is signal.SIGSTOP else 30)
    async with nothing_left(), transport(own_server.url, subject="S.a", timeouts=times).session() as session:
        own_server.signal(signal.SIGSTOP)

        async def go() -> None:
            await anyio.wait_all_tasks_blocked()
            own_server.signal(number)

        with anyio.fail_after(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go)
                with pytest.raises(TransportError, match="connection lost") as raised:
                    await session.last()
        assert raised.value.verdict is Verdict.RETRY


# ---- slow lines -------------------------------------------------------------------------------------------------


async def test_on_a_slow_line_records_wait_where_nothing_waits_behind_them(server: NatsServer) -> None:
    async with (
        stream(server.url) as (_, subject),
        slow_line(server.port, rate=4_000_000) as (url, came),
        transport(url, subject=subject).session() as session,
    ):
        for number in range(1, 41):
            await session.send(message(number, bytes(50_000)))
            await session.room()
            assert number * 50_000 - sum(came) < 150_000
        assert [ack.token for ack in await answers(session, 40)] == list(range(1, 41))


async def test_a_record_that_takes_long_to_leave_is_a_sign_of_life(server: NatsServer) -> None:
    """Three pings come due and wait behind it."""
    async with (
        stream(server.url) as (_, subject),
        slow_line(server.port, rate=400_000) as (url, _),
        transport(url, subject=subject).session() as session,
    ):
        await session.send(message(1, bytes(256 * 1024)))
        await session.room()
        assert await answers(session, 1) == [Ack(1)]


async def test_reading_over_a_slow_line_is_a_sign_of_life(server: NatsServer) -> None:
    """The answers to our pings wait behind what was asked for."""
    async with stream(server.url) as (client, subject):
        for number in range(40):
            await client.jetstream().publish(subject, b"%d" % number + bytes(20_000))
        async with slow_line(server.port, rate=1_000_000) as (url, _):
            reader = Consumer(Source(NatsServers(servers=(url,)), None, subject), timeouts=SHORT)
            assert [found.rstrip(b"\0") async for found in upto(reader, 40)] == [b"%d" % each for each in range(40)]


async def test_acknowledgements_are_signs_of_life_and_nothing_else_but_an_answered_ping() -> None:
    acks = 10

    async def serve(connection: SocketStream) -> None:
        async with connection:
            await connection.send(b'INFO {"max_payload": 1048576}\r\nPONG\r\n')
            heard = b""
            while b"HPUB" not in heard:
                heard += await connection.receive()
            reply = heard.split(b"HPUB", 1)[1].split()[1]
            for words in [b'{"stream": "S", "seq": 1}'] * acks + [b"junk"] * 100:
                await anyio.sleep(0.1)
                await connection.send(b"MSG %s 1 %d\r\n%s\r\n" % (reply, len(words), words))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        url = f"nats://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with transport(url, subject="a", timeouts=Timeouts(ping=0.1)).session() as session:
            await session.send(message(1))
            assert len(await answers(session, acks)) == acks
            assert (await loss(session)).reason == Reason.TIMEOUT
        tasks.cancel_scope.cancel()


async def test_a_frozen_server_is_noticed_while_a_record_leaves(own_server: NatsServer) -> None:
    async with (
        stream(own_server.url) as (_, subject),
        nothing_left(),
        transport(own_server.url, subject=subject).session() as session,
    ):
        own_server.signal(signal.SIGSTOP)
        with anyio.fail_after(5), suppress(TransportError):
            for number in range(64):
                await session.send(message(number, bytes(256 * 1024)))
                await session.room()
        assert (await loss(session)).reason == Reason.TIMEOUT


# ---- cancellation -----------------------------------------------------------------------------------------------


async def test_cancelled_at_every_wait(server: NatsServer) -> None:
    async with stream(server.url) as (_, subject):

        async def work() -> None:
            async with transport(server.url, subject=subject).session() as session:
                await session.last()
                await session.send(message(1))
                await answers(session, 1)

        assert await everywhere(work) > 8


async def test_connecting_cancelled_at_every_wait() -> None:
    async with fake_server(b'INFO {"max_payload": 1048576}\r\n') as url:

        async def work() -> None:
            with pytest.raises(TransportError):
                async with transport(url, subject="a", timeouts=Timeouts(connect=0.05)).session():
                    pass

        assert await everywhere(work) > 3


async def test_reading_cancelled_at_every_wait(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject):
        await client.jetstream().publish(subject, b"1")

        async def work() -> None:
            assert [found async for found in upto(consumer(server, subject), 1)] == [b"1"]

        assert await everywhere(work) > 8


# ---- the consumer -----------------------------------------------------------------------------------------------


def consumer(server: NatsServer, subject: str, *, only_new: bool = False) -> Consumer:
    return Consumer(Source(NatsServers(servers=(server.url,)), None, subject), only_new=only_new, timeouts=SHORT)


async def upto(reader: Consumer, count: int) -> AsyncIterator[bytes]:
    """The next ``count`` messages."""
    with anyio.fail_after(10):
        async with aclosing(reader.messages()) as messages:
            async for found in messages:
                if found is not None:
                    yield found
                    count -= 1
                if not count:
                    return


async def until_idle(reader: Consumer) -> list[bytes]:
    """What is stored."""
    found = []
    with anyio.fail_after(10):
        async with aclosing(reader.messages()) as messages:
            async for each in messages:
                if each is None:
                    break
                found.append(each)
    return found


async def to_the_end(reader: Consumer) -> None:
    async with aclosing(reader.messages()) as messages:
        async for _ in messages:
            pass


async def publish(client: Client, subject: str, *numbers: int) -> None:
    for number in numbers:
        await client.jetstream().publish(subject, b"%d" % number)


def texts(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


async def test_what_is_stored_comes_in_order_and_then_what_comes(server: NatsServer) -> None:
    count = 3 * BATCH
    async with stream(server.url) as (client, subject), nothing_left():
        await publish(client, subject, *range(count))
        await publish(client, subject + ".b", 4711)
        async with aclosing(consumer(server, subject).messages()) as messages:
            with anyio.fail_after(5):
                assert [await anext(messages) for _ in range(count)] == texts(*range(count))
                assert await anext(messages) is None
            await publish(client, subject, 1)
            with anyio.fail_after(0.5):  # not a second later, with the batch
                while (found := await anext(messages)) is None:
                    pass
            assert found == b"1"


async def test_an_empty_stream_is_idle_at_once(server: NatsServer) -> None:
    async with stream(server.url) as (_, subject):
        with anyio.fail_after(0.5):
            assert await until_idle(consumer(server, subject)) == []


async def test_reading_goes_on_behind_a_restart(own_server: NatsServer) -> None:
    await create_stream(own_server.url, "S", ["S.>"])
    reader = consumer(own_server, "S.>")
    async with nothing_left():
        async with await nats.connect(own_server.url) as client:
            await publish(client, "S.a", *range(10))
        assert [found async for found in upto(reader, 5)] == texts(*range(5))
        async with aclosing(reader.messages()) as messages:
            assert await anext(messages) == b"5"
            own_server.kill()
            with anyio.fail_after(2), pytest.raises(TransportError):
                async for _ in messages:
                    pass
        with pytest.raises(TransportError, match="cannot connect"):
            await until_idle(reader)
        own_server.start()
        async with await nats.connect(own_server.url) as client:
            await publish(client, "S.a", *range(10, 15))
        rest = await until_idle(reader)
    assert rest == texts(*range(10 if rest[0] == b"10" else 6, 15))


async def no_change(client: Client, name: str) -> None:
    pass


async def purge(client: Client, name: str) -> None:
    await client.jetstream().purge_stream(name)


async def delete_last(client: Client, name: str) -> None:
    await client.jetstream().delete_msg(name, 5)


async def delete_read(client: Client, name: str) -> None:
    for number in range(1, 6):
        await client.jetstream().delete_msg(name, number)


async def make_anew(client: Client, name: str) -> None:
    await client.jetstream().delete_stream(name)
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))


@pytest.mark.parametrize("change", [no_change, purge, delete_last, delete_read, make_anew])
@pytest.mark.parametrize("later", [0, 1, 10])
async def test_reading_goes_on_without_loss_or_repeat(
    server: NatsServer, change: Callable[[Client, str], Awaitable[None]], later: int
) -> None:
    async with stream(server.url) as (client, subject), nothing_left():
        reader = consumer(server, subject)
        await publish(client, subject, *range(5))
        assert await until_idle(reader) == texts(*range(5))
        await change(client, subject.partition(".")[0])
        await publish(client, subject, *range(5, 5 + later))
        assert await until_idle(reader) == texts(*range(5, 5 + later))
        await publish(client, subject, 100)
        assert await until_idle(reader) == texts(100)


async def test_only_new_messages_and_none_lost_before_the_first(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject):
        await publish(client, subject, *range(5))
        reader = consumer(server, subject, only_new=True)
        assert await until_idle(reader) == []  # then the connection is away
        await publish(client, subject, 5, 6)
        assert await until_idle(reader) == texts(5, 6)


async def test_a_slow_reader_holds_one_batch(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject):
        await publish(client, subject, *range(4 * BATCH))
        async with aclosing(consumer(server, subject).messages()) as messages:
            assert await anext(messages) == b"0"
            await anyio.wait_all_tasks_blocked()
            waiting = [task for task in asyncio.all_tasks() if "_read_loop" in repr(task)]
            assert len(waiting) == 2  # ours and the test's client
            info = await client.jetstream().consumers_info(subject.partition(".")[0])
            assert info[0].delivered is not None
            assert info[0].delivered.stream_seq == BATCH


async def test_a_consumer_that_the_server_forgot(server: NatsServer) -> None:
    async with stream(server.url) as (client, subject), nothing_left():
        name = subject.partition(".")[0]
        reader = consumer(server, subject)
        await publish(client, subject, 0)
        async with aclosing(reader.messages()) as messages:
            assert await anext(messages) == b"0"
            [info] = await client.jetstream().consumers_info(name)
            await client.jetstream().delete_consumer(name, info.name)
            with anyio.fail_after(3), pytest.raises(TransportError, match="the server ended the consumer"):
                async for _ in messages:
                    pass
        await publish(client, subject, 1)
        assert await until_idle(reader) == texts(1)


async def test_a_consumer_of_nothing(server: NatsServer) -> None:
    for name in (None, "NONE"):
        reader = Consumer(Source(NatsServers(servers=(server.url,)), name, "nowhere.a"), timeouts=SHORT)
        with pytest.raises(TransportError, match=r"no stream for nowhere\.a"):
            await until_idle(reader)


@pytest.mark.parametrize("also", [[], ["$JS.API.STREAM.NAMES"], ["$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.CREATE.>"]])
async def test_a_consumer_without_rights(own_server: NatsServer, also: list[str]) -> None:
    async with rights(own_server, f"publish: {['S.>', *also]}"):
        reader = Consumer(Source(NatsServers(servers=(own_server.url,)), None, "S.a"))
        with anyio.fail_after(2), pytest.raises(TransportError, match="not permitted: permissions violation") as raised:
            await to_the_end(reader)
    assert "docs/consuming.md" in raised.value.hint


# ---- imports ----------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported() -> None:

    code = (
        "import sys, agent.transports.nats.transport; "
        "print([m for m in ('aiohttp', 'nkeys', 'nats.micro', 'Crypto') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
