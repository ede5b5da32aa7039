"""The clients of a listening socket: taken in, each attended in a task of its own, let go of.

Nothing that a client does ends more than its own connection. How many there may be is decided by who attends them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import SocketListener, SocketStream

Attend = Callable[[SocketStream, int], Awaitable[None]]
"""Given a client, and how many there are, this one included. What it raises is a defect, and is logged."""

_PAUSE = 0.5  # s, when the system has no descriptor left

log = logging.getLogger(__name__)


async def attend_all(listener: SocketListener, attend: Attend, *, socket: str) -> None:
    """Until cancelled. ``socket``: its name in the log."""
    present = 0

    async def one(stream: SocketStream, count: int) -> None:
        nonlocal present
        try:
            async with stream:
                await attend(stream, count)
        except Exception:
            log.exception("client failed socket=%s", socket)
        finally:
            present -= 1

    async with anyio.create_task_group() as clients:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                log.warning("client not accepted socket=%s reason=%s", socket, error.strerror)
                await anyio.sleep(_PAUSE)
                continue
            present += 1
            clients.start_soon(one, stream, present)
