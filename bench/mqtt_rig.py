"""An agent that takes the messages of a real Mosquitto and delivers them to a real NATS server; who publishes to it;
and whether all of it arrived. The agent's topic and the reference's are of the same length.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.control.client import ControlError, asking
from testbed.broker import create_stream
from testbed.child import Process, ProcessError, wait_for
from testbed.mosquitto import Mosquitto
from testbed.processes import Agent, NatsServer, edge_agent

AGENT, REFERENCE = "bench/agent", "bench/other"
POINTS: Mapping[str, str] = {
    "N": '"/n", type = "integer"',
    "W": '"/power", unit = "W", decimals = 1',
    "V": '"/voltage", unit = "V", decimals = 2',
    "Tmp": '"/temperature", unit = "Cel", decimals = 2',
}


class Publisher(Process):
    """bench/publish.py. ``first``: number of its first message; ``rate`` 0: as fast as it is allowed."""

    def __init__(self, folder: Path, port: int, topic: str, *, qos: int, rate: float, first: int = 1) -> None:
        arguments = [port, topic, qos, rate, first]
        command = [sys.executable, "-m", "bench.publish", *map(str, arguments)]
        super().__init__(command, name="publisher", folder=folder, piped=True)

    def allow(self, messages: int) -> None:
        """So many in all."""
        assert self.stdin is not None, "it runs"
        try:
            self.stdin.write(b"%d\n" % messages)
            self.stdin.flush()
        except BrokenPipeError:
            raise ProcessError(f"the publisher ended: {self.log()[-500:]}") from None

    def end(self) -> int:
        """How many it sent, once the broker has them all."""
        assert self.stdin is not None, "it runs"
        self.stdin.close()
        return self._await(lambda: said(self, "sent"), timeout=60, what="the broker to take all messages")


def said(process: Process, word: str) -> int | None:
    """The number behind a word at the beginning of a line of its log."""
    found = re.search(rf"^{word} (\d+)$", process.log(), re.MULTILINE)
    return int(found[1]) if found else None


class MqttRig:
    """Brokers, which run within its ``with`` block, and the agent's configuration for them."""

    def __init__(self, folder: Path, *, qos: int, version: str, seal_within: str = "1s") -> None:
        self.folder = folder
        self.qos = qos
        self.version = version
        self.mosquitto = Mosquitto(folder)
        self.sent = 0  # to the agent, by publishers that ended
        self._nats = NatsServer(folder)
        self._seal_within = seal_within
        self._config = folder / "agent.toml"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.mosquitto)
            stack.enter_context(self._nats)
            asyncio.run(create_stream(self._nats.url, "BENCH", ["dx.>"]))
            init = [*edge_agent(), "init", str(self.folder), "--network", "volta"]
            subprocess.run(init, check=True, capture_output=True)
            self._config.write_text(self._toml())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _toml(self) -> str:
        points = ", ".join(f'{{ name = "{name}", at = {rest} }}' for name, rest in POINTS.items())
        return (
            'version = 1\n[site]\nid = "bench"\n[clock]\nwait = "0s"\n[identity]\nkey = "file:key"\n'
            f'[connection.bms]\nurl = "{self.mosquitto.url}?version={self.version}"\n'
            f'[[device]]\nid = "battery"\nconnection = "bms"\ntopic = "{AGENT}"\nqos = {self.qos}\n'
            f"[device.groups.state]\npoints = [{points}]\n"
            f'[[channel]]\nid = "bench"\ntransport = "nats"\nservers = ["{self._nats.url}"]\nsend = ["*"]\n'
            f'seal_within = "{self._seal_within}"\n'
            '[agent]\nstate = "state"\nsocket = "agent.sock"\nlog_level = "warning"\n'
        )

    # ---- who takes part -------------------------------------------------------------------------------------

    @contextmanager
    def agent(self) -> Iterator[Agent]:
        """The agent, from subscribed to stopped in order: then all that it took is sealed, and delivered if 3 s are
        enough. Raises ProcessError.
        """
        with Agent(self.folder, self._config) as agent:
            agent.wait_ready()
            wait_for(lambda: self._listens() or None, timeout=20, what="the agent to listen")
            yield agent
            if agent.stop(30):
                raise ProcessError(f"the agent failed: {agent.log()[-2000:]}")

    @contextmanager
    def publisher(self, topic: str, *, rate: float) -> Iterator[Publisher]:
        """Who publishes to the agent or the reference, until ``end``."""
        first = self.sent + 1
        with Publisher(self.folder, self.mosquitto.port, topic, qos=self.qos, rate=rate, first=first) as publisher:
            wait_for(lambda: "ready" in publisher.log() or None, timeout=20, what="the publisher to connect")
            yield publisher

    def end(self, publisher: Publisher) -> None:
        """End one that publishes to the agent; returns when the agent has taken all of it. Raises ProcessError."""
        sent = publisher.end()
        self.sent += sent
        wait_for(lambda: self.frames() >= sent or None, timeout=60, what=f"the agent to take {sent} messages")

    def _status(self) -> Any:
        with asking(self.folder / "agent.sock", "status") as answer:
            return next(answer)

    def _listens(self) -> bool:
        try:
            return any(each.get("state") == "connected" for each in self._status()["connections"])
        except ControlError:  # its socket is made after READY=1
            return False

    def frames(self) -> int:
        """Messages that the running agent made frames of since its start."""
        return int(self._status()["devices"][0]["groups"][0].get("frames", 0))

    # ---- the account ----------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Read all back as a consumer does. Raises RuntimeError unless every message is there, once, and verifies."""
        command = [*edge_agent(), "tail", "--config", str(self._config), "--until-idle", "--jsonl"]
        with (
            open(self.folder / "tail.log", "w+") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as tail,
        ):
            assert tail.stdout is not None
            lines = (json.loads(line) for line in tail.stdout)
            found = missing(lines, sent=self.sent)
        if found or tail.returncode:
            words = (self.folder / "tail.log").read_text()[-500:]
            raise RuntimeError(f"the agent did not deliver everything: {found or 'findings'} {words}")


def missing(lines: Iterable[Mapping[str, Any]], *, sent: int) -> str:
    """What is wrong with what a consumer printed, if numbers 1 to ``sent`` were published; "" if nothing is."""
    frames, numbers, report = 0, set[int](), None
    for line in lines:
        report = line.get("report", report)
        for frame in line.get("frames", ()):
            frames += 1
            numbers.add(frame["values"]["N"])
    if report is None:
        return "no report"
    gaps = {cause: n for group in report["groups"] for cause, n in group["gaps"].items()}
    present = sum(group["present"] for group in report["groups"])
    lost = len(set(range(1, sent + 1)) - numbers)
    if lost or gaps or report["cycles_missing"] or report["failed"] or not sent == present == frames:
        return f"{sent} sent, {frames} frames, {present} counted, {lost} lost, gaps {gaps}, {report['failed']} failed"
    return ""
