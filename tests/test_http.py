"""The HTTP server of the metrics, over real sockets: what it answers, to whom, and that nobody disturbs it."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from agent.control import http
from agent.control.http import Page, serve
from agent.errors import SecretError

pytestmark = pytest.mark.anyio

PAGES = {
    "/metrics": lambda: Page(200, "text/plain; version=0.0.4", b"a 1\n"),
    "/healthz": lambda: Page(503, "x/y", b""),
}
TOKEN = "s3cret-\N{GREEK SMALL LETTER TAU}"
HEADERS = (
    b"Content-Type: text/plain; version=0.0.4\r\nContent-Length: 4\r\nCache-Control: no-store\r\nConnection: close\r\n"
)


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"


class Served:
    """The server, and what came of requests."""

    def __init__(self, port: int, counts: Counter[str]) -> None:
        self.port = port
        self.counts = counts

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def ask(self, request: bytes, *, ends: bool = False) -> bytes:
        """All that comes back until it closes. ``ends``: we say nothing more."""
        async with await self.connect() as stream:
            await stream.send(request)
            if ends:
                await stream.send_eof()
            return await rest(stream)


async def rest(stream: SocketStream) -> bytes:
    received = b""
    with anyio.fail_after(10):
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


@asynccontextmanager
async def served(
    *, token: Callable[[], str] | None = None, patience: float = 5, pages: http.Pages = PAGES
) -> AsyncIterator[Served]:
    counts: Counter[str] = Counter()

    async def run(*, task_status: Any) -> None:
        await serve("127.0.0.1", 0, pages, counts=counts, token=token, patience=patience, task_status=task_status)

    async with anyio.create_task_group() as tasks:
        yield Served(await tasks.start(run), counts)
        tasks.cancel_scope.cancel()


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: box", *headers, "", ""]).encode()


# ---- what it answers ------------------------------------------------------------------------------------------------


async def test_get_and_head_of_a_page() -> None:
    async with served() as server:
        assert await server.ask(get("/metrics")) == b"HTTP/1.1 200 \r\n" + HEADERS + b"\r\na 1\n"
        assert await server.ask(get("/metrics", method="HEAD")) == b"HTTP/1.1 200 \r\n" + HEADERS + b"\r\n"
        assert await server.ask(get("/metrics?a=b")) == b"HTTP/1.1 200 \r\n" + HEADERS + b"\r\na 1\n"
        assert await server.ask(b"GET /metrics HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 \r\n" + HEADERS + b"\r\na 1\n"
        assert (await server.ask(get("/healthz"))).startswith(b"HTTP/1.1 503 \r\nContent-Type: x/y\r\n")
        assert server.counts == {"ok": 5}


@pytest.mark.parametrize(
    ("request_", "status", "outcome"),
    [
        (get("/"), b"404", "not_found"),
        (get("/metrics/"), b"404", "not_found"),
        (get("http://box/metrics"), b"404", "not_found"),
        (get("/metrics", method="POST"), b"405", "method"),
        (get("/metrics", "Content-Length: 3", method="PUT") + b"abc", b"405", "method"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400", "malformed"),  # TLS
        (b"GET /metrics\r\n\r\n", b"400", "malformed"),
        (b"GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n", b"505", "malformed"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400", "malformed"),  # no Host
        (get("/metrics", "Host: again"), b"400", "malformed"),
        (get("/metrics", "a b: c"), b"400", "malformed"),
        (get("/metrics", "Content-Length: x"), b"400", "malformed"),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", b"400", "malformed"),
        (get("/metrics", "a: " + "x" * 2 * http.MAX_HEAD), b"431", "malformed"),
        (b"x" * (2 * http.MAX_HEAD), b"431", "malformed"),
    ],
)
async def test_what_is_refused_is_answered_and_counted(request_: bytes, status: bytes, outcome: str) -> None:
    async with served() as server:
        answer = await server.ask(request_)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.split(b"\r\n\r\n", 1)[1].strip(), "words for who reads it"
        assert server.counts == {outcome: 1}
        assert (await server.ask(get("/metrics"))).endswith(b"a 1\n"), "nothing is left of it"
        if status == b"405":
            assert b"\r\nAllow: GET, HEAD\r\n" in answer


async def test_a_request_in_pieces() -> None:
    async with served() as server, await server.connect() as stream:
        for byte in get("/metrics", "x: y"):
            await stream.send(bytes([byte]))
        assert (await rest(stream)).endswith(b"a 1\n")


# ---- to whom --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"Authorization: Bearer {TOKEN}"], b"200"),
        ([f"authorization: bearer  {TOKEN}"], b"200"),
        ([], b"401"),
        (["Authorization: Bearer"], b"401"),
        (["Authorization: Bearer wrong"], b"401"),
        ([f"Authorization: Basic {TOKEN}"], b"401"),
        ([f"Authorization: {TOKEN}"], b"401"),
        ([f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"], b"401"),
        ([f"Cookie: Bearer {TOKEN}"], b"401"),
    ],
)
async def test_who_must_show_a_token(headers: list[str], status: bytes) -> None:
    async with served(token=lambda: TOKEN) as server:
        answer = await server.ask(get("/metrics", *headers))
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert (b"\r\nWWW-Authenticate: Bearer\r\n" in answer) == (status == b"401")
        assert (b"a 1" in answer) == (status == b"200")
        assert server.counts == {"ok" if status == b"200" else "unauthorised": 1}


async def test_a_token_is_read_anew_and_one_that_cannot_be_read_lets_nobody_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = iter(["one", "two"])

    def token() -> str:
        try:
            return next(tokens)
        except StopIteration:
            raise SecretError("file t cannot be read", hint="mend it") from None

    async with served(token=token) as server:
        assert b" 200 " in await server.ask(get("/metrics", "Authorization: Bearer one"))
        assert b" 200 " in await server.ask(get("/metrics", "Authorization: Bearer two"))
        assert b" 503 " in await server.ask(get("/metrics", "Authorization: Bearer two"))
        assert server.counts == {"ok": 2, "no_token": 1}
    assert "their token cannot be read error=file t cannot be read hint=mend it" in caplog.text
    assert "Bearer" not in caplog.text


# ---- who disturbs nobody --------------------------------------------------------------------------------------------


async def test_who_is_silent_slow_or_gone_is_given_up_and_counted() -> None:
    async with served(patience=0.1) as server:
        async with await server.connect() as stream:
            assert await rest(stream) == b""
        async with await server.connect() as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n")
            assert await rest(stream) == b""
        assert server.counts == {"slow": 2}
        assert await server.ask(b"GET /met", ends=True) != b""
        assert await server.ask(b"", ends=True) == b""
        assert server.counts == {"slow": 2, "malformed": 1, "gone": 1}


async def test_who_does_not_read_a_large_page_holds_up_nobody() -> None:
    large = {"/metrics": lambda: Page(200, "text/plain", bytes(64 << 20)), "/healthz": PAGES["/healthz"]}
    async with served(patience=0.3, pages=large) as server, await server.connect() as stream:
        await stream.send(get("/metrics"))
        assert b" 503 " in await server.ask(get("/healthz"))
        with anyio.fail_after(10):
            while server.counts["slow"] + server.counts["gone"] < 1:  # noqa: ASYNC110 - nobody sets an event for it
                await anyio.sleep(0.02)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True}), ("asyncio", {"use_uvloop": False})])
async def test_who_resets_the_connection_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """As who scrapes does that has no more patience: the answer finds no connection any more."""

    def given_up() -> Page:
        client.close()
        return Page(200, "text/plain", b"a 1\n")

    async with served(pages={**PAGES, "/given_up": given_up}) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        client.sendall(get("/given_up"))
        with anyio.fail_after(10):
            while not server.counts:  # noqa: ASYNC110 - nobody sets an event for it
                await anyio.sleep(0.01)
        assert (await server.ask(get("/metrics"))).endswith(b"a 1\n")
    assert caplog.text == "", "no defect"


async def test_too_many_at_once_are_sent_away_and_then_taken_again() -> None:
    async with served() as server:
        waiting = [await server.connect() for _ in range(http.MAX_CLIENTS)]
        for stream in waiting:
            await stream.send(b"GET")
        assert await server.ask(get("/metrics")) == b""
        assert server.counts == {"busy": 1}
        for stream in waiting:
            await stream.aclose()
        with anyio.fail_after(10):
            while server.counts["malformed"] < http.MAX_CLIENTS:  # noqa: ASYNC110 - nobody sets an event for it
                await anyio.sleep(0.01)
        assert (await server.ask(get("/metrics"))).endswith(b"a 1\n")


async def test_a_page_that_fails_is_a_defect_that_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Page:
        raise KeyError("x")

    async with served(pages={**PAGES, "/fails": fails}) as server:
        assert await server.ask(get("/fails")) == b""
        assert server.counts == {"failed": 1}
        assert b" 200 " in await server.ask(get("/metrics"))
    assert "metrics answer failed" in caplog.text


async def test_a_defect_with_one_client_ends_that_client_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(stream: SocketStream) -> None:
        raise ValueError("x")

    async with served() as server:
        with monkeypatch.context() as patched:
            patched.setattr(http, "_linger", fails)
            assert (await server.ask(get("/metrics"))).endswith(b"a 1\n")
        assert (await server.ask(get("/metrics"))).endswith(b"a 1\n")
    assert "client failed socket=metrics" in caplog.text


async def test_an_address_that_is_taken_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float, waits: Callable[[float], Any] = anyio.sleep) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            taken.close()
        await waits(0)

    async def run(*, task_status: Any) -> None:
        await serve("127.0.0.1", port, PAGES, counts=Counter(), task_status=task_status)

    tries: list[float] = []
    monkeypatch.setattr(anyio, "sleep", sleep)
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            await tasks.start(run)
        assert (await Served(port, Counter()).ask(get("/metrics"))).endswith(b"a 1\n")
        tasks.cancel_scope.cancel()
    assert caplog.text.count(f"metrics not open address=127.0.0.1 port={port} reason=Address already in use") == 1
