"""The stream of a channel with ``create``, against real servers: made once, looked at, never changed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio
import nats
import pytest
from nats.js.api import StreamConfig

from agent.errors import Reason, TransportError, Verdict
from agent.ports import Last
from agent.transports.nats.config import NatsConfig
from agent.transports.nats.failures import answered
from agent.transports.nats.stream import prepare
from agent.transports.nats.transport import NatsTransport
from testbed.processes import NatsServer
from tests.nats_sessions import SHORT, answers, message, nothing_left, rights

pytestmark = pytest.mark.anyio

numbers = itertools.count()
GIB = 1 << 30
EVERYTHING: dict[str, Any] = {
    "subjects": ["{name}.>"],
    "max_age": "2h",
    "max_bytes": "1GiB",
    "max_msg_size": "1MiB",
    "storage": "memory",
    "discard": "new",
    "duplicate_window": "1m",
    "replicas": 1,
}


@pytest.fixture
def name() -> str:
    return f"C{next(numbers)}"


def transport(
    server: NatsServer, name: str, *, subject: str = "", visitor: bool = False, **create: Any
) -> NatsTransport:
    if "subjects" in create:
        create["subjects"] = [pattern.format(name=name) for pattern in create["subjects"]]
    config = NatsConfig.model_validate({"servers": [server.url], "stream": name, "create": create})
    config = config.visitor() if visitor else config
    return NatsTransport(config, topic=subject or f"{name}.a", timeouts=SHORT)


async def existing(server: NatsServer, name: str) -> StreamConfig:
    async with await nats.connect(server.url) as client:
        return (await client.jetstream().stream_info(name)).config


async def deliver(sender: NatsTransport) -> str:
    """Returns what was to be said of the stream."""
    async with nothing_left(), sender.session() as session:
        await session.last()
        await session.send(message(1))
        assert [(ack.token, ack.error) for ack in await answers(session, 1)] == [(1, None)]
        return session.remark


async def refusal(sender: NatsTransport) -> TransportError:
    async with nothing_left():
        with anyio.fail_after(5), pytest.raises(TransportError) as raised:
            async with sender.session():
                pytest.fail("connected")
    assert raised.value.verdict is Verdict.RETRY
    return raised.value


async def test_what_is_created_when_nothing_is_said(server: NatsServer, name: str) -> None:
    assert await deliver(transport(server, name)) == ""
    made = await existing(server, name)
    assert (made.subjects, made.storage, made.discard, made.retention) == ([f"{name}.a"], "file", "old", "limits")
    assert (made.max_age, made.max_bytes, made.max_msg_size, made.duplicate_window) == (0, -1, -1, 120)


async def test_all_that_is_said_is_created_and_then_found_as_it_is(
    server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent")
    for _ in range(2):
        assert await deliver(transport(server, name, **EVERYTHING)) == ""
    assert caplog.messages == [f"stream created stream={name} subjects={name}.>"]
    made = await existing(server, name)
    assert (made.subjects, made.storage, made.discard) == ([f"{name}.>"], "memory", "new")
    assert (made.max_age, made.max_bytes, made.max_msg_size, made.duplicate_window) == (7200, GIB, 1 << 20, 60)


async def test_what_differs_is_said_once_and_left_as_it_is(
    server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await deliver(transport(server, name))
    before = await existing(server, name)
    sender = transport(server, name, **EVERYTHING)
    caplog.clear()
    remark = await deliver(sender)
    assert await deliver(sender) == remark
    assert remark == (
        f"the stream {name} is not as configured: storage is file, configured memory, "
        "max_age is unlimited, configured 2h, max_bytes is unlimited, configured 1GiB, "
        "max_msg_size is unlimited, configured 1MiB, duplicate_window is 2m, configured 1m, "
        f"discard is old, configured new, subjects lack {name}.>"
    )
    assert caplog.messages == [f"remark on the stream subject={name}.a remark={remark}"]
    assert await existing(server, name) == before


async def test_keys_that_are_not_written_may_be_anything(server: NatsServer, name: str) -> None:
    await deliver(transport(server, name, **EVERYTHING))
    assert await deliver(transport(server, name, discard="new")) == ""


async def test_a_stream_that_does_not_take_the_subject_is_an_error(server: NatsServer, name: str) -> None:
    await deliver(transport(server, name, max_bytes="1GiB"))
    error = await refusal(transport(server, name, subject=f"{name}.b", max_bytes="4GiB"))
    assert error.reason is Reason.WRONG_STREAM
    what = f"the stream {name} takes {name}.a, not {name}.b"
    assert str(error) == f"{what}; max_bytes is 1GiB, configured 4GiB"
    assert "add the subject to the stream" in error.hint


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"no_ack": True}, "acknowledges nothing (no_ack)"), ({"sealed": True}, "is sealed for ever")],
)
@pytest.mark.parametrize("visitor", [False, True])
async def test_a_stream_that_can_acknowledge_nothing_is_an_error(
    server: NatsServer, name: str, settings: dict[str, Any], words: str, visitor: bool
) -> None:
    async with await nats.connect(server.url) as client:
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.a"]))
        await client.jetstream().update_stream(replace(await existing(server, name), **settings))
    error = await refusal(transport(server, name, visitor=visitor))
    assert (error.reason, str(error)) == (Reason.WRONG_STREAM, f"the stream {name} {words}")


async def test_what_a_server_says_of_a_stream_moves_no_cursor() -> None:
    class Server:
        async def stream_info(self, name: str) -> Any:
            return SimpleNamespace(config=StreamConfig(name=name, subjects=["\x1b[2J", "a"], storage="\x1b[3J"))  # type: ignore[arg-type]

    config = NatsConfig.model_validate({"servers": ["nats://h"], "stream": "S", "create": {"storage": "file"}})
    said = [await prepare(Server(), config, "a")]  # type: ignore[arg-type]
    with pytest.raises(TransportError) as raised:
        await prepare(Server(), config, "b")  # type: ignore[arg-type]
    assert [each.isprintable() and "3J, configured file" in each for each in (*said, str(raised.value))] == [True] * 2


async def test_a_stream_that_cannot_be_created(server: NatsServer, name: str) -> None:
    await deliver(transport(server, name))
    error = await refusal(transport(server, f"{name}X", subject=f"{name}.b", subjects=[f"{name}.>"]))
    assert (error.reason, "cannot create the stream" in str(error)) == (Reason.WRONG_STREAM, True)
    error = await refusal(transport(server, f"{name}Y", replicas=3))
    assert (error.reason, "replicas > 1" in str(error)) == (Reason.OTHER, True)
    assert "correct create" in error.hint


async def test_two_that_create_it_at_the_same_time(server: NatsServer, name: str) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            sender = transport(server, name, subject=f"{name}.{number}", subjects=["{name}.>"], replicas=1)

            async def work(sender: NatsTransport = sender) -> None:
                async with sender.session() as session:
                    assert session.remark == ""

            tasks.start_soon(work)


async def test_a_visitor_creates_nothing(server: NatsServer, name: str) -> None:
    async with transport(server, name, visitor=True).session() as session:
        assert await session.last() is None
        assert session.remark == f"the stream {name} is not there yet, the agent creates it"
    with pytest.raises(nats.js.errors.NotFoundError):
        await existing(server, name)
    await deliver(transport(server, name))
    async with transport(server, name, visitor=True, max_bytes="1GiB").session() as session:
        assert await session.last() == Last(b"content")
        assert session.remark.endswith("max_bytes is unlimited, configured 1GiB")


async def test_without_the_right_to_look_delivery_goes_on(own_server: NatsServer) -> None:
    async with rights(own_server, "publish: ['S.>', '$JS.API.STREAM.MSG.GET.>']"):
        remark = await deliver(transport(own_server, "S"))
    assert remark.startswith("not permitted to ask: permissions violation")
    assert "$JS.API.STREAM.INFO.>" in remark


# ---- full, and no room ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server whose account has 1 MB for streams."""
    account = "A: { users: [ { user: a, password: a } ], jetstream: { max_file: 1MB, max_mem: 0 } }"
    settings = f"accounts {{ {account} }}\nno_auth_user: a"
    with NatsServer(tmp_path_factory.mktemp("narrow"), settings=settings) as server:
        yield server


async def first_error(sender: NatsTransport) -> TransportError:
    """Of records of 100 kB."""
    async with sender.session() as session:
        for number in range(1, 21):
            await session.send(message(number, bytes(100_000)))
        error = next(ack.error for ack in await answers(session, 20) if ack.error is not None)
    assert isinstance(error, TransportError)
    return error


async def test_a_full_stream_a_full_account_and_a_record_too_large(
    server: NatsServer, narrow: NatsServer, name: str
) -> None:
    full = await first_error(transport(server, name, max_bytes="1MiB", discard="new"))
    assert (full.reason, full.verdict, "maximum bytes" in str(full)) == (Reason.STREAM_FULL, Verdict.RETRY, True)
    large = await first_error(transport(server, f"{name}X", max_msg_size="1KiB"))
    assert (large.reason, large.verdict) == (Reason.TOO_LARGE, Verdict.REJECT)
    error = await refusal(transport(narrow, f"{name}Y", max_bytes="1GiB"))
    assert (error.reason, "insufficient storage" in str(error)) == (Reason.STORE, True)
    error = await first_error(transport(narrow, name))
    assert (error.reason, error.verdict) == (Reason.STORE, Verdict.RETRY)
    assert "more room" in error.hint


def test_a_disk_that_takes_no_more_is_no_stream_that_is_full() -> None:
    assert answered(10077, "no space left on device").reason is Reason.STORE
    assert answered(10077, "maximum messages exceeded").reason is Reason.STREAM_FULL
    assert answered(10023, "insufficient resources").reason is Reason.STORE
    assert answered(10167, "too many requests").reason is Reason.STORE
    assert answered(None, "raft: not leader").reason is Reason.NO_LEADER
    assert answered(4711, "what nobody knows yet").reason is Reason.OTHER
    assert str(answered(None, None)) == "None"
