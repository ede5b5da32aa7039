"""The demo's far end with NATS: a JetStream stream, and consumers that read it back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from testbed.broker import create_stream
from testbed.demo_run import SENT, SITE, Stage
from testbed.processes import NatsServer, Process, Tail, edge_agent

CHANNEL, STREAM = "dso", "TELEMETRY"
SUBJECT = f"dx.{SITE}.{CHANNEL}"


class NatsEnd:
    """Implements ``FarEnd``. Of two consumers one prints JSON lines, for the verdict, the other text, for people."""

    in_company = 0

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.broker: NatsServer
        self.tail: Tail
        self._watched: Process
        self._did = ""  # the agent's
        self._position = 0

    def open(self, did: str) -> None:
        """Start the server and make the stream."""
        self._did = did
        self.broker = self._stage.start(NatsServer(self._stage.folder))
        asyncio.run(create_stream(self.broker.url, STREAM, ["dx.>"]))
        self._stage.say(f"broker   nats-server with JetStream on port {self.broker.port}, stream {STREAM}")

    def channel(self) -> str:
        """The channel in the agent's configuration."""
        return (
            f'[[channel]]\nid = "{CHANNEL}"\ntransport = "nats"\nservers = ["{self.broker.url}"]\n'
            f'send = {SENT}\noutbox = {{ size = "16MiB" }}\n'
        )

    def admit(self, config: Path) -> None:
        """Everybody may write there."""

    def consume(self) -> None:
        """Start the consumers."""
        source = [f"{self.broker.url}/{STREAM}?subject={SUBJECT}", "--did", self._did]
        folder = self._stage.folder
        self.tail = self._stage.start(Tail(folder, *source))
        self._watched = self._stage.start(Process([*edge_agent(), "tail", *source], name="watched", folder=folder))

    @property
    def processes(self) -> Sequence[Process]:
        """Consumers that must not end."""
        return self.tail, self._watched

    def newest_record(self) -> list[str]:
        """The record with most lines that the consumer printed since it was last asked."""
        with open(self._watched.log_path, "rb") as log:
            log.seek(self._position)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        records: list[list[str]] = [[]]
        for line in whole.decode("utf-8", "replace").splitlines():
            if line.startswith(" "):
                records[-1].append(line)
            else:
                records.append([line])
        return max(records, key=len) if any(len(record) > 1 for record in records) else []
