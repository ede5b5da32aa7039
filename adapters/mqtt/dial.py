"""Making a connection: name look-up, TCP and TLS handshake, which block and belong into a worker thread.

``Dial`` is one try. ``run`` returns a connected socket or raises; ``abandon``, from any thread and at any time, makes
sure that none is left open. Certificates and keys are read at each try, so that renewed ones are taken up. The
broker's certificate is always verified.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from agent.tls import Tls


class Dial:
    """One try to reach a broker within ``timeout`` s. ``tls`` None: without TLS."""

    def __init__(self, *, host: str, port: int, tls: Tls | None, timeout: float) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._deadline = time.monotonic() + timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._done = False
        self._abandoned = False

    def run(self) -> socket.socket:
        """The connected socket; blocks. Raises OSError (which ssl.SSLError is), ValueError or SecretError."""
        try:
            context = None if self._tls is None else self._tls.context()
            connected = self._connect()
            if context is not None and self._tls is not None:
                # The handshake is apart, so that ``abandon`` finds the socket that waits for it.
                connected = context.wrap_socket(
                    connected, server_hostname=self._tls.server_name or self._host, do_handshake_on_connect=False
                )
                self._hold(connected)
                connected.do_handshake()
            connected.setblocking(False)
        except BaseException:
            self._drop()
            raise
        with self._lock:
            self._done = True
            if self._abandoned:
                connected.close()
        return connected

    def abandon(self) -> None:
        """Nobody wants the socket any more."""
        with self._lock:
            self._abandoned = True
            if self._socket is None:
                return
            if self._done:
                self._socket.close()
            else:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it

    def _connect(self) -> socket.socket:
        """Try the addresses of the host in turn; each gets its share of the time."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        error = OSError(f"{self._host} has no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            connecting = socket.socket(family, kind, protocol)
            self._hold(connecting)
            try:
                connecting.settimeout(max(0.001, self._left() / (len(found) - index)))
                connecting.connect(address)
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connecting.settimeout(max(0.001, self._left()))
            except OSError as raised:
                self._drop()
                error = raised
            else:
                return connecting
        raise error

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _hold(self, held: socket.socket) -> None:
        with self._lock:
            self._socket = held
            if self._abandoned:
                held.close()
                raise OSError("given up")

    def _drop(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
