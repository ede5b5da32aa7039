"""The socket below nats-py: which address, when TLS begins, and what the server says before it let us in.

nats-py would send a password in the clear to a server that does not ask for TLS, and would wait for the second address
of a name for ever. Both are decided here. It closes at once, whatever still waits to be sent.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import ParseResult

import anyio
from nats.aio.transport import TcpTransport

from agent.errors import Reason, TransportError
from agent.printable import printable
from agent.transports.nats.config import DEFAULT_PORT
from agent.transports.nats.failures import closed
from agent.transports.nats.lookup import look_up

UNSENT = 16 * 1024  # bytes that may wait to be sent; enough to keep a fast line busy
_LOOK = 0.01  # s
LEAST_PAYLOAD = 1024  # bytes of a message that a server must take to be of any use


class Wire(TcpTransport):
    """One connection. ``stage`` is how far it came: reach, greet, handshake, inside (the greeting within TLS), login.

    ``secure``: nothing of ours is sent without TLS. ``shows``: we have a certificate; ``signs``: an NKey.
    """

    def __init__(self, *, secure: bool, shows: bool, signs: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage = "reach"
        self._secure = secure
        self._shows = shows
        self._signs = signs
        self._handshaken = self._greeted = False
        self._held = b""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Try the addresses of the host in turn, each with its share of the time. Raises OSError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + connect_timeout
        async with asyncio.timeout_at(until):
            found = await look_up(uri.hostname or "", uri.port or DEFAULT_PORT)
        for index, address in enumerate(found):
            now = loop.time()
            try:
                async with asyncio.timeout_at(now + (until - now) / (len(found) - index)):
                    pair = await asyncio.open_connection(address, uri.port, limit=buffer_size)
            except OSError:  # which TimeoutError is
                if index + 1 == len(found):
                    raise
            else:
                self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer = pair
                self._hold_little(pair[1])
                self.stage = "greet"
                return

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        """TLS from here on. Raises OSError, which ssl.SSLError is."""
        self.stage = "handshake"
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)  # type: ignore[arg-type]
        if self._io_writer is not None:
            self._hold_little(self._io_writer)
        self._handshaken = True
        for _ in range(
            2
        ):  # with TLS 1.3 a near server may have refused our certificate by now: read that before a write fails
            await asyncio.sleep(0)
        self.stage = "login" if self._greeted else "inside"

    @property
    def certificate(self) -> bytes | None:
        """The server's, DER; None without TLS."""
        spoken = None if self._io_writer is None else self._io_writer.get_extra_info("ssl_object")
        return None if spoken is None else spoken.getpeercert(binary_form=True)

    async def readline(self) -> bytes:
        """The greeting, then what comes of our login. Raises TransportError, OSError."""
        while True:
            line: bytes = await super().readline()  # type: ignore[no-untyped-call]
            if not line:
                raise closed(self.stage, secure=self._secure)
            if not self._greeted:
                self._greeted, self.stage = True, "login"
                return self._judged(line)
            if not line.startswith(b"INFO "):  # nats-py takes a second one here for our being let in
                return line

    def _judged(self, line: bytes) -> bytes:
        """The greeting, such that nats-py begins TLS if we want it. Raises TransportError."""
        verb, _, rest = line.partition(b" ")
        try:
            info = json.loads(rest)
        except (ValueError, RecursionError):
            info = None
        if verb != b"INFO" or not isinstance(info, dict):
            what = printable(line[:40].decode("ascii", "replace").strip())
            hint = "is it a NATS server, and is the port right?"
            words = f'it does not greet as a NATS server, but with "{what}"'
            raise TransportError(words, hint=hint, reason=Reason.PROTOCOL)
        self._judge(info)
        most = info.get("max_payload", LEAST_PAYLOAD)
        if type(most) is not int or most < LEAST_PAYLOAD:
            what, hint = f"the server names a largest message of {most!r:.40}", "raise max_payload on the server"
            raise TransportError(what, hint=hint, reason=Reason.PROTOCOL)
        return b"INFO " + json.dumps({**info, "tls_required": self._secure}).encode() + b"\r\n"

    def _judge(self, info: Mapping[str, Any]) -> None:
        what = hint = ""
        if self._secure and not (self._handshaken or info.get("tls_required") or info.get("tls_available")):
            what, hint = "the server offers no TLS", "switch TLS on there, or write nats:// to do without"
        elif not self._secure and info.get("tls_required"):
            what, hint = "the server wants TLS", "write tls:// in servers"
        elif self._secure and info.get("tls_verify") and not self._shows:
            what, hint = "the server wants a certificate of ours", "set cert and key of tls"
        if what:
            raise TransportError(what, hint=hint, reason=Reason.TLS)
        if self._signs and info.get("auth_required") and "nonce" not in info:
            hint = "configure NKeys there, or log in another way"
            raise TransportError("the server takes no NKey", hint=hint, reason=Reason.AUTHORIZATION)

    def write(self, payload: bytes) -> None:
        """Send; CONNECT goes out in one piece with the PING behind it.

        A server that refuses our certificate may close meanwhile; a second write would fail before we have read why.
        """
        if payload.startswith(b"CONNECT "):
            self._held = payload
            return
        held, self._held = self._held, b""
        super().write(held + payload)  # type: ignore[no-untyped-call]

    def _hold_little(self, writer: asyncio.StreamWriter) -> None:
        """What waits, waits in the outbox, and neither here nor in the kernel, where pings would wait behind it."""
        writer.transport.set_write_buffer_limits(UNSENT)
        raw = writer.get_extra_info("socket")  # None: closed meanwhile
        if raw is not None:
            with suppress(OSError):  # in some containers
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    async def room(self, leaves: Callable[[], None], *, every: float) -> None:
        """Return once at most about ``UNSENT`` bytes are unsent, or the connection is lost; ``leaves`` is called each
        ``every`` seconds in which some left.
        """
        while (unsent := self._unsent()) > UNSENT:
            with anyio.move_on_after(every):
                await self._nearly_sent()
                return
            if self._unsent() < unsent:
                leaves()

    async def _nearly_sent(self) -> None:
        if self._io_writer is not None:
            with suppress(OSError):
                await self._io_writer.drain()
        while self._unsent() > UNSENT:  # noqa: ASYNC110  # below TLS, where no event tells
            await asyncio.sleep(_LOOK)

    def _unsent(self) -> int:
        """Bytes in this process: in TLS, and in the socket's own buffer below it; 0 once it is closed."""
        transports = {each.transport for each in (self._bare_io_writer, self._io_writer) if each is not None}
        if any(each.is_closing() for each in transports):
            return 0
        return sum(each.get_write_buffer_size() for each in transports)

    async def drain(self) -> None:
        """Do not wait: what may be unsent is bounded by the publisher's window.

        nats-py's ``Client._close`` drains first: on a lost connection that raises, on a frozen one it never ends, and
        in both cases socket and tasks stay and nobody is told.
        """

    def close(self) -> None:
        """Drop the connection."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Do not wait: the loop closes the socket in its next turn, and a handshake that failed would never tell."""

    def __bool__(self) -> bool:
        """Always true, for nats-py replaces what is false."""
        return True
