"""A line to a server: what is said over it arrives late, each way, and is counted.

``python -m bench.line PORT DELAY_MS`` prints ``ready 127.0.0.1:PORT``, forwards what connects there to PORT, and ends
when its standard input ends. The command ``count`` is answered with ``counted TO FROM``, the bytes of TCP payload that
went to the server and came from it so far, and ``done count``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from pathlib import Path
from typing import Self, cast

from bench.on_uvloop import run
from testbed.processes import Simulator

counted = {"to": 0, "from": 0}


class _End(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other end, later."""

    def __init__(self, delay: float, direction: str) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._delay = delay
        self._direction = direction
        self._early = deque[bytes]()  # came before this end was connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what waited for it."""
        self.transport = cast(asyncio.Transport, transport)
        while self._early:
            self.transport.write(self._early.popleft())

    def data_received(self, data: bytes) -> None:
        """It is on its way now."""
        counted[self._direction] += len(data)
        assert self.other is not None
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self.other.say, data)
        else:
            self.other.say(data)

    def say(self, data: bytes) -> None:
        """It arrives."""
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """So is the other end."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Line(Simulator):
    """The line as a process of its own; ``port`` is set when it runs. ``round_trip`` in s, besides what is there."""

    def __init__(self, folder: Path, server: int, *, round_trip: float = 0.0, name: str = "line") -> None:
        self.port = 0
        command = [sys.executable, "-m", "bench.line", str(server), str(round_trip * 500)]
        super().__init__(command, name=name, folder=folder, piped=True)

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it takes connections."""
        super().start()
        self.port = self._ready_port(timeout)
        return self

    def bytes_sent(self) -> int:
        """To the server so far."""
        start = self.log_path.stat().st_size
        self.command("count")
        said = self._said("counted ", start)
        assert said is not None, "it is said before the command is done"
        return int(said.split()[1])


async def serve(server: int, delay: float) -> None:
    """Until the end of the standard input."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    connecting = set[asyncio.Task[object]]()

    def accept() -> _End:
        near, far = _End(delay, "to"), _End(delay, "from")
        near.other, far.other = far, near
        task = loop.create_task(loop.create_connection(lambda: far, "127.0.0.1", server))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return near

    listening = await loop.create_server(accept, "127.0.0.1", 0)

    def listen() -> None:
        text = os.read(sys.stdin.fileno(), 4096)
        if not text:
            ended.set()
        for _ in text.splitlines():
            print(f"counted {counted['to']} {counted['from']}\ndone count", flush=True)

    loop.add_reader(sys.stdin.fileno(), listen)
    print(f"ready 127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    listening.close()


if __name__ == "__main__":
    run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
