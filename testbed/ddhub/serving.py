"""HTTP of the fake: uvicorn in the event loop of whoever starts it, and the faults that any request may meet."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from testbed.ddhub.faults import Faults
from testbed.ddhub.proxy import page


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: what the server shows, and who must have vouched for a client (None: no client certificate)."""

    certificate: Path
    key: Path
    clients: Path | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One request: its body, and the status of its answer (None: there was none)."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    status: int | None
    sent: bytes


class Listener:
    """One port of the loopback interface that answers with ``app``, from ``open`` to ``close``.

    ``port`` 0 takes a free one. ``served`` gets every request once it is answered. Closing cuts what is under way.
    """

    def __init__(
        self, app: ASGIApp, *, faults: Faults, served: Callable[[Served], None], port: int = 0, tls: Tls | None = None
    ) -> None:
        self.port = port
        self._app = app
        self._faults = faults
        self._served = served
        self._tls = tls
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's algorithm on: 40 ms a request
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", self.port))
        except OSError:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl_certfile": self._tls.certificate, "ssl_keyfile": self._tls.key}
            if self._tls.clients is not None:
                options |= {"ssl_ca_certs": str(self._tls.clients), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            proxy_headers=False,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            **options,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[listening])  # serve() would take the signals of the whole program

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        if self._server is None:
            return
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            _abort(connection)
        await asyncio.sleep(0)  # the connections learn of it, and say no more
        for task in list(self._server.server_state.tasks):
            task.cancel()
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
        for server in self._server.servers:
            await server.wait_closed()
        self._server = None

    # ---- a request ----

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, status, sent = bytearray(), None, bytearray()

        async def hear() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def say(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            sent.extend(message.get("body", b""))
            await send(message)

        try:
            await self._meet(scope, hear, say)
        except asyncio.CancelledError:
            pass  # by close(): the task ends here
        finally:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            query = scope["query_string"].decode("latin-1")
            self._served(Served(scope["method"], scope["path"], query, headers, bytes(body), status, bytes(sent)))

    async def _meet(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless a fault is put for it."""
        fault = self._faults.take_any(scope["path"])
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault.name == "cut":
            await self._cut(scope, receive)
        elif fault.name == "silent":
            await _gone(receive)
        elif fault.name in ("lost", "done-500", "held", "truncated"):
            messages = list[Message]()

            async def keep(message: Message) -> None:
                messages.append(message)

            await self._app(scope, receive, keep)
            await self._after(fault.name, fault.released, messages, scope, receive, send)
        else:
            while (await receive()).get("more_body"):
                pass
            await _instead(fault.name)(scope, receive, send)

    async def _after(
        self, name: str, released: asyncio.Event, messages: list[Message], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """What comes of an answer that is made."""
        if name == "lost":
            await self._cut(scope, receive)
            return
        if name == "done-500":
            await page(500)(scope, receive, send)
            return
        if name == "held":
            await released.wait()
        body = b"".join(message.get("body", b"") for message in messages)
        if name == "truncated":
            body = body[: len(body) // 2]
        await Response(body, messages[0]["status"], media_type="application/json")(scope, receive, send)

    async def _cut(self, scope: Scope, receive: Receive) -> None:
        """End the connection of a request without a word."""
        assert self._server is not None
        for connection in list(self._server.server_state.connections):
            if getattr(connection, "client", None) == scope["client"]:
                _abort(connection)
        await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Wait until the client is no longer there."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _abort(connection: Any) -> None:
    if connection.transport is not None:
        connection.transport.abort()


def _instead(name: str) -> Response:
    if name == "junk":
        return Response('{"status":[{"name":', media_type="application/json")
    if name == "html":
        return Response("<!doctype html><title>Sign in</title>", media_type="text/html")
    if name == "empty":
        return Response(b"")
    answer = page(int(name))
    if name == "429":
        answer.headers["Retry-After"] = "1"
    return answer
