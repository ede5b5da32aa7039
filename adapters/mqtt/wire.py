"""A connected socket, plain or TLS, driven by the event loop; asyncio's own transports take no socket after its TLS
handshake.

What comes goes to ``received`` in pieces; ``pause`` stops that, and with it the other end once the buffers between are
full. What is written waits here until the socket takes it. ``lost`` is called once, with the error, when the connection
ends without our doing, None when the other end closed it; neither is called after that or after ``close``. Nothing is
raised into the event loop, and the socket is closed in every case. Needs a loop with add_reader: asyncio's on Unix, or
uvloop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import anyio

_PIECE = 1 << 16  # a whole TLS record (16 KiB): of one that is half read the loop would not hear again
_LAST_PIECES = 64  # that are read once nothing can be sent any more
_FAREWELL = 0.5  # s that the other end has to close after we did
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """The socket, from connected to closed."""

    def __init__(
        self, connected: socket.socket, *, received: Callable[[bytes], None], lost: Callable[[OSError | None], None]
    ) -> None:
        self._socket = connected
        self._fd = connected.fileno()
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._flushing = False  # a flush is due in this turn of the loop
        self._writing = False  # the loop tells when the socket takes more
        self._reading = False
        self._ended = asyncio.Event()
        self.resume()

    @property
    def paused(self) -> bool:
        """Whether nothing is read."""
        return not self._reading

    def write(self, data: bytes) -> None:
        """Send it; what is written in one turn of the loop goes out together."""
        if self._ended.is_set():
            return
        self._out += data
        if not self._flushing and not self._writing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def pause(self) -> None:
        """Read no more."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Read again."""
        if not self._reading and not self._ended.is_set():
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def abort(self) -> None:
        """Close at once. Never raises."""
        if not self._ended.is_set():
            self._ended.set()
            self.pause()
            if self._writing:
                self._loop.remove_writer(self._fd)
            self._out.clear()
            self._socket.close()

    async def close(self) -> None:
        """Send what waits, if the socket takes it now, and close. Never raises.

        Closing with unread bytes would reset the connection, and what we sent last could be lost with it: they are
        read and thrown away until the other end has closed, too, or 0.5 s have passed.
        """
        self._received, self._lost = _ignore, _ignore
        try:
            self._flush()
            if not self._ended.is_set():
                with suppress(OSError):
                    if not self._out:
                        self._socket.shutdown(socket.SHUT_WR)
                self.resume()
                with anyio.move_on_after(_FAREWELL, shield=True):
                    await self._ended.wait()
        finally:
            self.abort()

    def _readable(self) -> None:
        if not self._reading:
            return
        try:
            data = self._socket.recv(_PIECE)
        except _NOT_NOW:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        self._received(data)
        if self._writing:
            self._flush()  # TLS may have waited for bytes before it could send

    def _flush(self) -> None:
        self._flushing = False
        while self._out and not self._ended.is_set():
            try:
                sent = self._socket.send(self._out)
            except _NOT_NOW:
                break
            except OSError as error:
                self._hear_why(error)
                return
            del self._out[:sent]
        wanted = bool(self._out)
        if wanted != self._writing and not self._ended.is_set():
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)

    def _hear_why(self, error: OSError) -> None:
        """The other end is gone: what it said before, an alert of TLS or a packet, tells why; our failure does not."""
        for _ in range(_LAST_PIECES):
            if not self._reading:  # the reason was among what came, or nothing more may be taken in
                break
            try:
                data = self._socket.recv(_PIECE)
            except ssl.SSLError as heard:
                error = error if isinstance(heard, _NOT_NOW) else heard
                break
            except OSError:
                break
            if not data:
                break
            self._received(data)
        self._end(error)

    def _end(self, error: OSError | None) -> None:
        if not self._ended.is_set():
            self.abort()
            self._lost(error)


def _ignore(_: object) -> None:
    pass
