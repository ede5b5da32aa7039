"""What the tests of the NATS edge share: sessions against real servers and servers that are none."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import socket
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import nats
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig

from agent.errors import TransportError, Verdict
from agent.ports import Ack, Message
from agent.transports.nats.config import NatsConfig
from agent.transports.nats.connection import Timeouts
from agent.transports.nats.transport import NatsSession, NatsTransport
from testbed.broker import create_stream
from testbed.processes import NatsServer

SHORT = Timeouts(connect=0.3, answer=1.0, ping=0.1)
numbers = itertools.count()


@asynccontextmanager
async def stream(url: str, **settings: Any) -> AsyncIterator[tuple[Client, str]]:
    """A client, and the subject of a stream of its own with these settings."""
    name = f"S{next(numbers)}"
    async with await nats.connect(url, allow_reconnect=False) as client:
        await client.jetstream().add_stream(
            StreamConfig(name=name, subjects=[f"{name}.>"], storage=StorageType.MEMORY, **settings)
        )
        yield client, f"{name}.a"


def transport(*urls: str, subject: str, name: str | None = None, timeouts: Timeouts | None = None) -> NatsTransport:
    return NatsTransport(NatsConfig(servers=urls, stream=name), topic=subject, timeouts=timeouts or SHORT)


def message(number: int, content: bytes = b"content") -> Message:
    return Message(number, f"id-{number}", content)


async def answers(session: NatsSession, count: int) -> list[Ack]:
    found = []
    with anyio.fail_after(5):
        async with aclosing(session.acks()) as acks:  # type: ignore[type-var]
            async for ack in acks:
                found.append(ack)
                if len(found) == count:
                    break
    return found


async def loss(session: NatsSession, *, within: float = 2.0) -> TransportError:
    """What ``acks`` raises when the connection is lost."""
    with anyio.fail_after(within), pytest.raises(TransportError) as raised:
        async for _ in session.acks():
            pass
    return raised.value


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No task, no open file, no unraisable exception and no complaint of the event loop stays behind."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    gc.collect()  # what earlier tests left must not go meanwhile
    tasks, files = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
    yield
    with anyio.move_on_after(5):  # sockets close in the loop's next turns; a fake server notices that later
        while asyncio.all_tasks() - tasks or len(os.listdir("/proc/self/fd")) > files:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0)
    assert asyncio.all_tasks() - tasks == set()
    assert len(os.listdir("/proc/self/fd")) <= files
    gc.collect()
    assert complaints == []
    loop.set_exception_handler(None)


@asynccontextmanager
async def fake_server(*greeting: bytes, heard: list[bytes] | None = None) -> AsyncIterator[str]:
    """Accepts, says this and no more; an empty word closes the connection. What comes goes to ``heard``."""

    async def serve(connection: SocketStream) -> None:
        async with connection:
            for words in greeting:
                if not words:
                    return
                await connection.send(words)
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    came = await connection.receive()
                    if heard is not None:
                        heard.append(came)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        await anyio.wait_all_tasks_blocked()
        yield f"nats://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def liar(answer: bytes, *, info: bytes = b'{"max_payload": 1048576}') -> AsyncIterator[str]:
    """A server that lets everybody in and gives this answer to every request."""

    async def serve(connection: SocketStream) -> None:
        stream = BufferedByteReceiveStream(connection)
        number = b""
        async with connection:
            await connection.send(b"INFO " + info + b"\r\n")
            with suppress(anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                while True:
                    verb, *words = (await stream.receive_until(b"\r\n", 65536)).split(b" ")
                    if verb == b"PING":
                        await connection.send(b"PONG\r\n")
                    elif verb == b"SUB":
                        number = words[-1]
                    elif verb == b"PUB":
                        await stream.receive_exactly(int(words[-1]) + 2)
                        await connection.send(b"MSG %s %s %d\r\n%s\r\n" % (words[1], number, len(answer), answer))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"nats://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def refused(url: str) -> TransportError:
    async with nothing_left():
        with anyio.fail_after(2), pytest.raises(TransportError) as raised:
            async with transport(url, subject="a").session():
                pytest.fail("connected")
    assert raised.value.verdict is Verdict.RETRY
    assert str(raised.value).startswith(f"cannot connect to {url}: ")
    return raised.value


@asynccontextmanager
async def rights(own_server: NatsServer, permissions: str) -> AsyncIterator[NatsTransport]:
    """A transport without credentials, which has these permissions only; stream S takes the subject S.a."""
    own_server.kill()
    own_server.settings = f"""
        authorization {{ users = [
            {{ user: admin, password: admin }}
            {{ user: agent, password: agent, permissions: {{ {permissions} }} }}
        ] }}
        no_auth_user: agent
    """
    own_server.start()
    await create_stream(own_server.url.replace("://", "://admin:admin@"), "S", ["S.>"])
    async with nothing_left():
        yield transport(own_server.url, subject="S.a", timeouts=Timeouts(answer=30))


@asynccontextmanager
async def slow_line(port: int, *, rate: int) -> AsyncIterator[tuple[str, list[int]]]:
    """A way to a server that takes ``rate`` bytes a second, there and back: its URL, and the sizes of what has come
    there so far.
    """
    came: list[int] = []

    async def serve(near: SocketStream) -> None:
        async with near, await anyio.connect_tcp("127.0.0.1", port) as far, anyio.create_task_group() as tasks:

            async def back() -> None:
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        words = await far.receive(4096)
                        await anyio.sleep(len(words) / rate)
                        await near.send(words)

            tasks.start_soon(back)
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    words = await near.receive(4096)
                    await anyio.sleep(len(words) / rate)
                    came.append(len(words))
                    await far.send(words)
            tasks.cancel_scope.cancel()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        listening = listener.listeners[0].extra(anyio.abc.SocketAttribute.raw_socket)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        tasks.start_soon(listener.serve, serve)
        yield f"nats://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", came
        tasks.cancel_scope.cancel()


# ---- cancellation -----------------------------------------------------------------------------------------------


@types.coroutine
def cancelled_at(number: int, scope: anyio.CancelScope, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, bool]:
    """Run ``work`` and cancel ``scope`` where it waits for the ``number``th time; False if it does not come to that."""
    step: Callable[[], Any] = lambda: work.send(None)  # noqa: E731
    for count in itertools.count():
        try:
            waits_for = step()
        except StopIteration:
            return count > number
        if count == number:
            scope.cancel()
        try:
            sent = yield waits_for
            step = lambda value=sent: work.send(value)  # type: ignore[misc]  # noqa: E731
        except BaseException as error:  # noqa: BLE001  # passed on
            step = lambda value=error: work.throw(value)  # type: ignore[misc]  # noqa: E731
    raise AssertionError


async def everywhere(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Cancel ``work`` at each place where it waits; nothing may stay behind. Returns the number of places."""
    for number in itertools.count():
        async with nothing_left():
            with anyio.CancelScope() as scope:
                if not await cancelled_at(number, scope, work()):
                    return number
    raise AssertionError
