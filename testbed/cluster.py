"""A JetStream cluster of real nats-servers on loopback."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import nats
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from testbed.broker import create_stream
from testbed.processes import NatsServer


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_until_all_are_known:
        probes = [open_until_all_are_known.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class NatsCluster:
    """``nodes`` are servers that know of each other; each may be killed and started again, and keeps port and store.

    ``settings``: more lines for the configuration of each.
    """

    def __init__(self, folder: Path, *, nodes: int = 3, settings: str = "") -> None:
        ports = _free_ports(nodes)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.nodes = [
            NatsServer(
                folder,
                name=f"node-{number}",
                settings=f"server_name: node-{number}\n"
                f"cluster {{\n  name: testbed\n  listen: 127.0.0.1:{port}\n  routes: [{routes}]\n}}\n{settings}",
            )
            for number, port in enumerate(ports, 1)
        ]

    @property
    def urls(self) -> list[str]:
        """Where clients connect, to any of them."""
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        """A node that runs."""
        return next((node.url for node in self.nodes if node.alive), self.nodes[0].url)

    @property
    def alive(self) -> bool:
        """Whether all run."""
        return all(node.alive for node in self.nodes)

    def start(self, timeout: float = 10.0) -> Self:
        """Start those that do not run; each greets then, and may have no leader yet."""
        for node in self.nodes:
            if not node.alive:
                node.start(timeout)
        return self

    def kill(self) -> None:
        """SIGKILL for all."""
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        """End all."""
        for node in self.nodes:
            node.kill()  # one that ends in order waits for the others
            node.close()

    def create_stream(self, name: str, *subjects: str, within: float = 20.0) -> None:
        """A stream on three nodes, once the cluster has a leader. Raises what nats-py raises after ``within`` s."""

        async def create() -> None:
            deadline = anyio.current_time() + within
            while True:
                try:
                    await create_stream(self.url, name, subjects, replicas=3)
                    return
                except (nats.js.errors.APIError, nats.errors.Error, OSError):
                    if anyio.current_time() > deadline:
                        raise
                    await asyncio.sleep(0.1)

        asyncio.run(create())

    def leader(self, stream: str) -> NatsServer | None:
        """The node that leads a stream; None while there is none, or nobody says so."""

        async def ask(jetstream: JetStreamContext) -> str:
            cluster = (await jetstream.stream_info(stream)).cluster
            return (cluster.leader if cluster else None) or ""

        name = self._asked(ask)
        return next((node for node in self.nodes if node.name == name), None)

    def step_down(self, stream: str) -> None:
        """Have the stream's leader hand over, if there is one."""

        async def order(jetstream: JetStreamContext) -> None:
            await jetstream._nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=2)

        self._asked(order)

    def _asked(self, question: Any) -> Any:
        async def main() -> Any:
            client = await nats.connect(self.url, allow_reconnect=False, connect_timeout=2)
            try:
                return await question(client.jetstream(timeout=2))
            finally:
                await client.close()

        try:
            return asyncio.run(main())
        except (nats.js.errors.APIError, nats.errors.Error, OSError, TimeoutError):
            return None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
