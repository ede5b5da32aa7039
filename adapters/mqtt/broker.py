"""A broker: connecting and subscribing to it, one try at a time.

Look-up, TCP and TLS handshake happen in a worker thread, everything else in the event loop. Passwords and certificates
are read at each try, so that renewed ones are taken up.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread

from adapters.mqtt.account import CLOSED, Account, certificate_hint, link_down, reason
from adapters.mqtt.client import Session
from adapters.mqtt.dial import Dial
from agent.errors import SecretError
from agent.tls import Tls

S = 1_000_000_000


class Broker:
    """A broker as one client of it sees it."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._timeout = account.config.timeout / S
        self._sessions: set[Session] = set()
        self._closed = False

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Session]:
        """Connect and subscribe once. Raises AcquisitionError (LINK_DOWN)."""
        if self._closed:
            raise link_down(CLOSED)
        session: Session | None = None
        try:
            try:
                with anyio.fail_after(self._timeout):
                    session = self._session(*await self._dial())
                    await session.open()
            except TimeoutError:
                what = "connection" if session is None else "answer to CONNECT and SUBSCRIBE"
                hint = f"is {self._account.place} reachable from here, and an MQTT broker?"
                raise link_down(f"no {what} within {self._timeout:g} s", hint) from None
            yield session
        finally:
            if session is not None:
                self._sessions.discard(session)
                with anyio.CancelScope(shield=True):
                    await session.close()

    def close(self) -> None:
        """Let go of all connections; who waits for one gets LINK_DOWN. Never raises."""
        self._closed = True
        for session in self._sessions:
            session.abort()

    def _session(self, connected: socket.socket, password: str | None) -> Session:
        try:
            session = Session(self._account, connected, password)
        except BaseException:
            connected.close()
            raise
        self._sessions.add(session)
        return session

    async def _dial(self) -> tuple[socket.socket, str | None]:
        """A connected socket, and the password as it is now."""
        config = self._account.config
        tls = (config.tls or Tls()) if config.secure else None
        dial = Dial(host=config.host, port=config.port, tls=tls, timeout=self._timeout)

        def run() -> tuple[socket.socket, str | None]:
            password = None if config.password is None else config.password.read()
            return dial.run(), password

        try:
            return await to_thread.run_sync(run, abandon_on_cancel=True)
        except SecretError as error:
            raise link_down(error.public, f"{error}; {error.hint}") from error
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else type(error).__name__
            raise link_down(f"cannot connect: {why}", _hint(error, self._account)) from error
        except BaseException:
            dial.abandon()
            raise


def _hint(error: Exception, account: Account) -> str:
    if isinstance(error, OSError) and (hint := certificate_hint(error, account)):
        return hint
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        return account.doubt
    if isinstance(error, ssl.SSLError):
        return "is it a TLS port, and are ca, cert and key of tls PEM files that belong together?"
    if isinstance(error, FileNotFoundError | PermissionError):
        return "are the files of tls there, and may the agent's user read them?"
    return f"is {account.place} reachable from here?"
