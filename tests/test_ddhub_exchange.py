"""Requests to hubs and nodes over real sockets: TLS, names, silence, and what a server may do in the middle of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from agent.errors import Reason, TransportError
from agent.tls import Tls
from agent.transports.ddhub.keys import exchange
from agent.transports.ddhub.keys.exchange import Answer, Exchange
from testbed.certificates import Authority, Certificate

pytestmark = pytest.mark.anyio

Serve = Callable[[ByteStream], Awaitable[None]]
CANARY = "canary-4711"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("hub", hosts="DNS:hub.site")


def saying(*pieces: bytes) -> Serve:
    async def serve(stream: ByteStream) -> None:
        await stream.receive()
        for piece in pieces:
            await stream.send(piece)

    return serve


async def silent(stream: ByteStream) -> None:
    await stream.receive()
    await anyio.sleep_forever()


@asynccontextmanager
async def served(serve: Serve, certificate: Certificate | None = None) -> AsyncIterator[str]:
    """An address at which requests are answered like this."""
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.path, certificate.key)
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    if context is not None:
        listener = TLSListener(listener, context, standard_compatible=False)

    async def handle(stream: ByteStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the client left
                await serve(stream)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def asked(url: str, tls: Tls | None = None) -> Answer:
    async with Exchange(tls).connection(url) as connection:
        return await connection.request("GET", f"{url}/{CANARY}", peer="the hub")


async def refusal(url: str, tls: Tls | None = None) -> TransportError:
    with pytest.raises(TransportError) as raised:
        await asked(url, tls)
    assert CANARY not in f"{raised.value}{raised.value.hint}"
    return raised.value


def trusting(authority: Authority, **settings: Any) -> Tls:
    return Tls.model_validate({"ca": str(authority.path), **settings})


async def test_a_certificate_of_the_site_under_another_name(authority: Authority, certificate: Certificate) -> None:
    async with served(saying(GOOD), certificate) as url:
        assert (await asked(url, trusting(authority, server_name="hub.site"))).json() == {}
        error = await refusal(url, trusting(authority))
        assert (error.reason, error.hint) == (
            Reason.TLS,
            "if it is the right server, set server_name of tls to a name that is in its certificate",
        )
        assert (await refusal(url)).hint == (
            "set ca of tls to the certificate of the authority that signed the server's"
        )


async def test_a_certificate_of_ours_that_is_not_there(tmp_path: Path) -> None:
    error = await refusal("https://127.0.0.1:1", Tls.model_validate({"ca": str(tmp_path / "none.pem")}))
    assert error.reason == Reason.SECRET
    assert "No such file or directory" in str(error)


@pytest.mark.parametrize(
    ("serve", "words", "reason"),
    [
        (saying(), "the server closed the connection", Reason.LOST),
        (saying(b"220 mail ready\r\n\r\n"), "it is not HTTP as it should be", Reason.PROTOCOL),
        (saying(GOOD[:-1]), "it is not HTTP as it should be", Reason.PROTOCOL),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"), "HTTP", Reason.PROTOCOL),
        (saying(b"HTTP/1.1 200 OK\r\n\r\n", *[bytes(1 << 20)] * 9), "its answer is too large", Reason.TOO_LARGE),
        (silent, "the server does not answer in time", Reason.TIMEOUT),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "", Reason.OTHER),
    ],
)
async def test_what_a_server_may_do(serve: Serve, words: str, reason: Reason, monkeypatch: pytest.MonkeyPatch) -> None:
    if serve is silent:
        monkeypatch.setattr(exchange, "_WITHIN", 0.05)
    async with served(serve) as url:
        if not words:
            assert (await asked(url)).status == 200
            return
        error = await refusal(url)
    assert words in str(error)
    assert error.reason == reason


async def test_a_cookie_is_not_sent_back() -> None:
    """One that is no text would keep the next request from being made."""
    odd = GOOD.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=\xff; Path=/\r\n\r\n")
    async with served(saying(odd)) as url, Exchange().connection(url) as connection:
        for _ in range(2):
            assert (await connection.request("GET", url, peer="the hub")).status == 200


async def test_nobody_listens_and_no_such_name() -> None:
    error = await refusal("http://127.0.0.1:1")
    assert (str(error), error.reason) == ("the hub: Connection refused", Reason.UNREACHABLE)
    error = await refusal("https://nobody.invalid")
    assert (str(error), error.reason) == ("the hub: the name of the server is not known", Reason.UNREACHABLE)


async def test_a_redirect_is_not_followed_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with served(
        saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    ) as url:
        answer = await asked(url)
    assert answer.status == 302
    assert str(answer.unexpected()) == "the hub answers 302"
