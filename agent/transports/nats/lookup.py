"""Looking a host's name up, each time in a thread of its own.

With the line a resolver often goes too, and then a look-up hangs for half a minute and cannot be ended. The event
loop's few threads would soon all hang, the names and addresses of everybody else would wait behind them, and so would
the end of the process.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which to try them. Raises OSError, UnicodeError. Cancelled, it leaves
    the thread to its end.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def answer(addresses: list[str], error: Exception | None) -> None:
        if found.cancelled():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def ask() -> None:
        addresses: list[str] = []
        error: Exception | None = None
        try:
            addresses = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(answer, addresses, error)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    return await found
