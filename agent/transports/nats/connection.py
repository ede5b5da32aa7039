"""A connection to one NATS server, tried once and never re-made by itself: nats-py's own reconnecting is switched off.

Names are looked up and secrets and certificates are read anew each time. What goes wrong leaves as TransportError
(agent/transports/nats/failures.py). A connection that ends in any way, cancellation included, leaves no task and no
socket.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import nats.errors
from anyio import to_thread
from anyio.lowlevel import checkpoint
from nats.aio.client import Client

from agent.errors import Reason, TransportError
from agent.transports.nats.config import NatsServers
from agent.transports.nats.failures import describe, not_let_in, said, unconnected
from agent.transports.nats.login import Login, read_login
from agent.transports.nats.wire import UNSENT, Wire

_HEADERS = 512  # bytes that our headers take at most; the server's max_payload counts them

logging.getLogger("nats").setLevel(logging.CRITICAL)  # its errors reach us as exceptions; its log would say them again


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a server may be silent, in seconds. Unanswered pings end a connection after three times ``ping``."""

    connect: float = 5  # per step: TCP, greeting, TLS, reply to our CONNECT; all together twice as long
    answer: float = 5  # to a request
    ping: float = 3  # a server that is gone is noticed within 10 s


class Connection:
    """A client that is connected to one server until it is closed."""

    def __init__(self, server: str, settings: NatsServers, timeouts: Timeouts) -> None:
        self.client = Client()
        self.timeouts = timeouts
        self.on_closed: Callable[[], None] = lambda: None
        self.on_refused: Callable[[str], None] = lambda what: None  # a right that the server denies, in its words
        self._wire: Wire
        self._server = server
        self._settings = settings
        self._begun = False  # else nats-py has nobody to tell that it is closed
        self._closed = anyio.Event()
        self._cause: Exception | None = None  # why it ended
        self._refused: Exception | None = None  # the last right that was denied, which ends nothing

    @property
    def max_envelope(self) -> int:
        """Bytes of the largest message that the server takes besides our headers."""
        return self.client.max_payload - _HEADERS

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several, whose streams may be without a leader for a while."""
        return bool(self.client._server_info.get("cluster"))

    @property
    def certificate(self) -> bytes | None:
        """What the server showed, DER; None without TLS."""
        return self._wire.certificate

    async def open(self) -> None:
        """Try once. Raises TransportError; close in any case."""
        settings, expires = self._settings, None
        shows = settings.tls is not None and settings.tls.cert is not None
        signs = settings.nkey is not None or settings.creds is not None
        wire = self._wire = Wire(secure=settings.secure, shows=shows, signs=signs)
        try:
            with anyio.fail_after(2 * self.timeouts.connect):
                login = await to_thread.run_sync(read_login, settings, abandon_on_cancel=True)
                expires = login.expires
                await self._connect(wire, login)
        except Exception as error:
            found = unconnected(error, stage=wire.stage, secure=settings.secure, shows=shows)
            found = not_let_in(found, login=settings.login, expires=expires, now=time.time())
            raise TransportError(
                f"cannot connect to {self._server}: {found}", hint=found.hint, reason=found.reason
            ) from error

    async def _connect(self, wire: Wire, login: Login) -> None:
        client, seconds, tls = self.client, self.timeouts, self._settings.tls
        options = dict(login.options)
        if login.context is not None:
            options["tls"] = login.context
            options["tls_handshake_first"] = tls is not None and tls.first
            if tls is not None and tls.server_name is not None:
                options["tls_hostname"] = tls.server_name
        self._begun = True
        client._transport = wire
        client._auth_configured = bool(login.options)  # also if the server does not ask for it
        client._public_nkey = None if login.key is None else login.key.public
        await client.connect(
            self._server,
            name="edge-agent",
            error_cb=self._failed,
            closed_cb=self._was_closed,
            lame_duck_mode_cb=self._leaves,
            allow_reconnect=False,
            connect_timeout=seconds.connect,  # type: ignore[arg-type]  # it takes parts of a second, too
            ping_interval=seconds.ping,  # type: ignore[arg-type]
            max_outstanding_pings=2,
            pending_size=0,  # a publish neither waits for the connection nor outlives it
            **options,
        )

    async def room(self) -> None:
        """Return once little of what was published is unsent: our pings wait behind it. Never raises."""
        if self.client.pending_data_size > UNSENT:
            await checkpoint()  # nats-py hands it to the socket in a task of its own
        await self._wire.room(self.alive, every=self.timeouts.ping)

    def alive(self) -> None:
        """The server has shown that it is there: a ping that it has not answered yet may wait behind records on a slow
        line, or the answer may.
        """
        self.client._pings_outstanding = 0

    async def close(self) -> None:
        """Let go of socket and tasks. Never raises."""
        if not self._begun:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            # A client that never came up says so in many ways.
            with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
                await self.client.close()
            await self._closed.wait()  # nats-py may be closing already, on its own

    def lost(self, error: Exception | None = None) -> TransportError:
        """Why nothing more comes; ``error``: what nats-py raised meanwhile."""
        if error is not None and not self.client.is_closed:
            return said(error)
        found = said(self._cause or error or "by us", Reason.LOST)
        return TransportError(f"connection lost: {found}", hint=found.hint, reason=found.reason)

    async def _failed(self, error: Exception) -> None:
        if not self.client.is_connected and not self.client.is_closed:
            raise error  # leaves nats-py's retry loop, which allow_reconnect does not
        if "permissions violation" in str(error):
            self._refused = error
            self.on_refused(describe(error))
        else:
            self._keep(error)

    def _keep(self, error: Exception | None) -> None:
        """The first reason stands: what the server says before it closes goes before its closing."""
        last = self.client.last_error
        self._cause = self._cause or (last if last is not self._refused else None) or error

    async def _leaves(self) -> None:
        """It says that it will close: another one is asked at once, while this one may still answer for a while."""
        self._keep(nats.errors.Error("the server goes out of service"))
        self.on_closed()

    async def _was_closed(self) -> None:
        self._keep(None)
        self._closed.set()
        self.on_closed()


@asynccontextmanager
async def connected(server: str, settings: NatsServers, *, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """One connection to one of the servers, tried once. Raises TransportError (RETRY)."""
    connection = Connection(server, settings, timeouts)
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()
