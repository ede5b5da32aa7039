"""A small HTTP/1.1 server for pages that are made at once: GET and HEAD of /metrics and /healthz, in the event loop.

Who may ask: whoever reaches the address and, if there is a token, sends it (``Authorization: Bearer``). It is read anew
for each request. Nothing that comes in disturbs the agent: heads, clients and their patience are bounded, a connection
is one request, and what came of each is counted. h11 judges what is HTTP. There is no TLS.

An address that cannot be opened is an error in the log, and is tried again; the agent goes on without meanwhile.
"""

from __future__ import annotations

import hmac
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import anyio
import h11
from anyio import to_thread
from anyio.abc import SocketListener, SocketStream, TaskStatus

from agent.control.clients import attend_all
from agent.errors import AgentError

MAX_HEAD = 8 * 1024  # bytes
MAX_CLIENTS = 8
PATIENCE = 5.0  # s for a request and its answer
_LINGER, _LINGER_BYTES = 0.5, 64 * 1024  # s and bytes: what else a client sends is taken, so that it reads the answer
_WITHOUT_ANSWER = frozenset({"slow", "gone", "failed"})
_PIECE = 4096
_AGAIN = 10.0  # s, until an address is tried again

log = logging.getLogger(__name__)


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
"""By path; made at once, and never raise."""

TEXT = "text/plain; charset=utf-8"


async def serve(
    host: str,
    port: int,
    pages: Pages,
    *,
    counts: Counter[str],
    token: Callable[[], str] | None = None,
    patience: float = PATIENCE,
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at an IP address until cancelled; started, with the port, once it can be asked. ``token`` reads what a
    request must show; may raise AgentError. ``counts``: requests by what came of them.
    """
    with await _opened(host, port) as bound:
        bound.setblocking(False)
        async with await SocketListener.from_socket(bound) as listener:
            port = bound.getsockname()[1]
            log.info("metrics open address=%s port=%d", host, port)
            task_status.started(port)
            await attend_all(listener, _Server(pages, counts, token, patience).attend, socket="metrics")


async def _opened(host: str, port: int) -> socket.socket:
    """It listens. At boot the address may come later than the agent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    told: str | None = None
    while True:
        try:
            return socket.create_server((host, port), family=family, backlog=MAX_CLIENTS)
        except OSError as error:
            if error.strerror != told:
                log.error("metrics not open address=%s port=%d reason=%s", host, port, error.strerror)
                told = error.strerror
            await anyio.sleep(_AGAIN)


class _Server:
    def __init__(self, pages: Pages, counts: Counter[str], token: Callable[[], str] | None, patience: float) -> None:
        self._pages = pages
        self._counts = counts
        self._token = token
        self._patience = patience

    async def attend(self, stream: SocketStream, present: int) -> None:
        if present > MAX_CLIENTS:
            self._counts["busy"] += 1
            return
        outcome = await self._outcome(stream)
        self._counts[outcome] += 1
        if outcome not in _WITHOUT_ANSWER:
            await _linger(stream)

    async def _outcome(self, stream: SocketStream) -> str:
        try:
            with anyio.fail_after(self._patience):
                return await self._converse(stream)
        except TimeoutError:
            return "slow"
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return "gone"
        except Exception:
            log.exception("metrics answer failed")
            return "failed"

    async def _converse(self, stream: SocketStream) -> str:
        """One request and its answer; returns what came of it."""
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        event = None
        try:
            while (event := wire.next_event()) is h11.NEED_DATA:
                try:
                    wire.receive_data(await stream.receive(_PIECE))
                except anyio.EndOfStream:
                    wire.receive_data(b"")
        except h11.RemoteProtocolError as error:
            outcome, page = "malformed", Page(error.error_status_hint, TEXT, b"this is no request that is understood\n")
        else:
            if not isinstance(event, h11.Request):
                return "gone"
            outcome, page = await self._page(event)
        headers = [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        if page.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        if page.status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        answer = wire.send(h11.Response(status_code=page.status, headers=headers))
        if not (isinstance(event, h11.Request) and event.method == b"HEAD"):
            answer += wire.send(h11.Data(page.body))
        await stream.send(answer + wire.send(h11.EndOfMessage()))
        return outcome

    async def _page(self, request: h11.Request) -> tuple[str, Page]:
        if self._token is not None:
            try:
                token = await to_thread.run_sync(self._token, abandon_on_cancel=True)
            except AgentError as error:
                log.error("metrics refused, their token cannot be read error=%s hint=%s", error, error.hint or "none")
                return "no_token", Page(503, TEXT, b"the agent cannot read its token; its log says why\n")
            if not _shows(request, token):
                return "unauthorised", Page(401, TEXT, b"the token of agent.token is needed\n")
        if request.http_version not in (b"1.0", b"1.1"):
            return "malformed", Page(505, TEXT, b"HTTP/1.1, please\n")
        if request.method not in (b"GET", b"HEAD"):
            return "method", Page(405, TEXT, b"GET and HEAD only\n")
        path = request.target.partition(b"?")[0].decode("ascii")
        make = self._pages.get(path)
        if make is None:
            return "not_found", Page(404, TEXT, b"there are: " + ", ".join(self._pages).encode() + b"\n")
        return "ok", make()


def _shows(request: h11.Request, token: str) -> bool:
    """Whether a request carries the token."""
    shown = [value for name, value in request.headers if name == b"authorization"]
    if len(shown) != 1:
        return False
    scheme, _, given = shown[0].partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


async def _linger(stream: SocketStream) -> None:
    """Closing at once would take the answer from who still sends."""
    taken = 0
    # RuntimeError: uvloop's word for a connection that the client has reset.
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, RuntimeError):
        with anyio.move_on_after(_LINGER):
            await stream.send_eof()
            while taken < _LINGER_BYTES:
                taken += len(await stream.receive(_PIECE))
