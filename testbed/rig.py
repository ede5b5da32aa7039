"""A whole rig for tests: a site, a broker with a stream, an agent configured for both, consumers, and the oracle's
word.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.account import Account
from testbed.broker import create_stream
from testbed.oracle import Oracle
from testbed.processes import Agent, NatsServer, Process, ProcessError, Site, Tail, edge_agent, wait_for
from testbed.served import Journal, Json

_CONFIG = """\
version = 1
site = {{ id = "{site}" }}
identity = {{ key = "file:key", did = "{did}" }}
agent = {{ state = "state" }}

[connection.plant]
url = "modbus+tcp://127.0.0.1:{port}"
timeout = "250ms"

[connection.other]
url = "modbus+tcp://127.0.0.1:{port}"
timeout = "250ms"

{devices}
[[channel]]
id = "{channel}"
transport = "nats"
servers = ["{url}"]
send = ["*"]
seal_within = "{seal_within}"
outbox = {{ size = "{outbox}" }}
"""

PV_AND_METER = """\
[[device]]
id = "pv-1"
connection = "plant"
unit = 1
sunspec = {}
[device.groups]
power = { every = "100ms", points = ["103.W", "103.PhVphA", "103.A", "103.Hz"] }
energy = { every = "500ms", points = ["103.WH", "103.TmpCab", "103.TmpOt", "103.St"] }

[[device]]
id = "grid-meter"
connection = "other"
unit = 2
sunspec = {}
[device.groups]
power = { every = "100ms", points = ["203.W", "203.WphA", "203.Hz"] }
energy = { every = "500ms", points = ["203.TotWhImp", "203.TotWhExp"] }
"""


def command(*arguments: str | Path, code: int = 0, timeout: float = 30) -> str:
    """What ``edge-agent ARGUMENTS`` prints. Raises ProcessError if it does not end with ``code``."""
    done = subprocess.run([*edge_agent(), *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    if done.returncode != code:
        raise ProcessError(f"edge-agent {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


class Rig:
    """Site and broker run from the beginning; the agent is started by who uses this. All of it ends with the ``with``
    block.

    ``units``: the Modbus unit behind each device of the configuration.
    """

    SITE, CHANNEL, STREAM = "rig", "dso", "TELEMETRY"

    def __init__(
        self,
        folder: Path,
        *,
        devices: str = PV_AND_METER,
        units: Mapping[str, int] | None = None,
        seal_within: str = "200ms",
        outbox: str = "16MiB",
        site: Site | None = None,
    ) -> None:
        self.folder = folder
        self.site = site or Site(folder)
        self.broker = NatsServer(folder)
        self.units = units or {"pv-1": 1, "grid-meter": 2}
        self.config = folder / "agent.toml"
        self._processes: list[Process] = [self.site, self.broker]
        self._consumers = 0
        self._stopped = 0
        try:
            self.site.start()
            self.broker.start()
            asyncio.run(create_stream(self.broker.url, self.STREAM, ["dx.>"]))
            self.did = command("init", folder, "--network", "volta").strip()
        except BaseException:
            self.close()
            raise
        self.config.write_text(
            _CONFIG.format(
                site=self.SITE,
                did=self.did,
                port=self.site.port,
                devices=devices,
                channel=self.CHANNEL,
                url=self.broker.url,
                seal_within=seal_within,
                outbox=outbox,
            )
        )
        self.agent = Agent(folder, self.config)
        self._processes.append(self.agent)

    @property
    def source(self) -> list[str]:
        """What a consumer needs to know."""
        return [f"{self.broker.url}/{self.STREAM}?subject=dx.{self.SITE}.{self.CHANNEL}", "--did", self.did]

    def stop(self, timeout: float = 10) -> None:
        """Stop the agent in order. Raises ProcessError if it takes longer or does not end with 0."""
        self._stopped = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        code = self.agent.stop(timeout)
        if code:
            raise ProcessError(f"the agent ended with {code}:\n{self.agent.log()[-2000:]}")

    def consumed(self, *, until_idle: bool = False, timeout: float = 60) -> list[Json]:
        """What a consumer gets that reads the stream from its beginning to the agent's last stop: records, and the
        report at last. ``until_idle``: it finds the end by itself.

        Raises ProcessError if it finds anything wrong.
        """
        self._consumers += 1
        name = f"consumer-{self._consumers}"
        tail = Tail(self.folder, *self.source, *(["--until-idle"] if until_idle else []), name=name)
        self._processes.append(tail)
        tail.start()
        if not until_idle:
            wait_for(
                lambda: not tail.alive or any(self._says_stop(line) for line in tail.lines()),
                timeout=timeout,
                what="the consumer to have the agent's last record",
            )
            tail.signal(signal.SIGTERM)
        code = tail.wait(timeout)
        if code:
            raise ProcessError(f"the consumer ended with {code}: {tail.lines()[-1:]} {tail.log()[-2000:]}")
        return list(tail.lines())

    def _says_stop(self, line: Json) -> bool:
        found: bool = "event" in line and line["event"]["code"] == "stop" and line["sealed"]["boot"] >= self._stopped
        return found

    def state(self) -> tuple[int, bool, int]:
        """Of the agent's status: records that wait, whether the broker is there, devices that fail."""
        found = re.search(r"(\d+) waiting, broker (\w+).* (\d+) of \d+ devices failing", self.agent.status)
        return (int(found[1]), found[2] == "connected", int(found[3])) if found else (-1, False, -1)

    def wait_for_state(self, *, timeout: float = 20, failing: int = 0) -> None:
        """Return once everything is delivered and ``failing`` devices fail."""
        wait_for(
            lambda: self.state() == (0, True, failing),
            timeout=timeout,
            what=f"the agent to have delivered all, {failing} devices failing: {self.agent.status}",
        )

    def judge(self, lines: list[Json], *, ended: bool = True, points: Mapping[str, Json] | None = None) -> Account:
        """The oracle's account of what a consumer printed; what the verifier counted is held against it.

        ``points``: other points for all units than those of the site's own register map.
        """
        journal = Journal.read(self.site.journal)
        if points is not None:
            for unit in journal.units.values():
                unit.points = dict(points)
        account = Oracle({device: journal.units[unit] for device, unit in self.units.items()}).judge(lines, ended=ended)
        report = next((line["report"] for line in reversed(lines) if "report" in line), None)
        if report is not None:
            account.compare(report)
        return account

    def close(self) -> None:
        """End everything at once."""
        for process in reversed(self._processes):
            process.kill()
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
