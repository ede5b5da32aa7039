"""What a campaign's life plays in: the rig, with the agent's outbox on a disk of its own, a bad line to a broker that
speaks TLS with both sides' certificates, a battery with its MQTT broker, a wall clock that can be set.

It must have mount and network namespaces of its own (testbed/campaign/__main__.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from testbed.bad_disk import Disk
from testbed.campaign.agent import Writes
from testbed.campaign.disk import Reflinks, SmallDisk
from testbed.campaign.wan import THERE
from testbed.certificates import Authority
from testbed.child import wait_for
from testbed.mosquitto import Mosquitto
from testbed.processes import NatsServer, ProcessError, Simulator
from testbed.rig import Rig
from testbed.wall_clock import SYNCHRONISED, WallClock

_TLS = """\
[channel.tls]
ca = "tls/ca.pem"
cert = "tls/agent.pem"
key = { file = "tls/agent.key" }
server_name = "localhost"
"""
_DAYS = 2
_LOOKED_UP = {"FAKETIME_NO_CACHE": "0", "FAKETIME_CACHE_DURATION": "1"}  # each time costs as much CPU as the agent
_UNDER_WAY = 3  # records that wait though all works


class Wan(Simulator):
    """The line to the broker (testbed/campaign/wan.py)."""

    def __init__(self, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "testbed.campaign.wan"], name="wan", folder=folder, piped=True)
        self.start()
        self._await(lambda: self._said("ready "), timeout=10, what="ready")

    def line(self, *, delay_ms: int = 0, jitter_ms: int = 0, loss: float = 0) -> None:
        """How it is from now on, each way; ``loss`` in %."""
        self.command(f"line {delay_ms} {jitter_ms} {loss:g}")


class World(Rig):
    """``defect``: one of testbed/campaign/defects.py, for the agent. ``memory``: its channel goes on in memory while
    the disk fails.
    """

    def __init__(self, folder: Path, *, defect: str = "none", memory: bool = False) -> None:
        folder.mkdir(parents=True)
        self.certificates = Authority(folder / "tls")
        self.issue()
        self.wan = Wan(folder)
        self.reflinks = Reflinks(folder / "reflinks.image", folder / "reflinks")
        self.disk = SmallDisk(self.reflinks.place / "state.image", folder / "state")
        self.errors, self.writes = Disk(folder / "disk.orders"), Writes(folder / "writes.orders")
        settings = (
            f'tls {{\n  cert_file: "{folder}/tls/server.pem"\n  key_file: "{folder}/tls/server.key"\n'
            f'  ca_file: "{folder}/tls/ca.pem"\n  verify: true\n  timeout: 5\n}}\nallow_non_tls: true\n'
        )
        self.mosquitto = Mosquitto(folder)
        try:
            super().__init__(
                folder,
                broker=NatsServer(folder, settings=settings, host="0.0.0.0"),
                mqtt=self.mosquitto,
                mqtt_version="5",
                battery={"rate": 10.0},
                outbox_more='on_disk_failure = "memory"' if memory else "",
            )
        except BaseException:
            self.wan.close()
            raise
        self._processes.insert(0, self.wan)
        text = self.config.read_text().replace(self.broker.url, f"tls://{THERE}:{self.broker.port}")
        self.config.write_text(text + _TLS)
        self.clock = WallClock(folder)
        self.clock.says(SYNCHRONISED)
        self.agent.environment |= self.clock.environment | _LOOKED_UP
        module = [sys.executable, "-m", "testbed.campaign.agent"]
        orders = [str(self.errors.orders), str(self.clock.kernel), str(self.writes.orders), defect]
        self.agent.command_line = [*module, *orders, "run", "--config", str(self.config)]
        self.died: list[str] = []  # ends of the agent that nobody caused, in words

    def issue(self, *, expired: bool = False) -> None:
        """New certificates for both sides; the next connection has them, the server's from its next start on."""
        self.certificates.issue("server", days=0 if expired else _DAYS)
        if not expired:
            self.certificates.issue("agent")

    def begin(self) -> None:
        """Start the agent; return when all of it works and the battery's messages are owed."""
        self.agent.start().wait_ready()
        wait_for(lambda: "INFO listening connection" in self.agent.log(), timeout=30, what="the agent to listen")
        self.mosquitto.save()
        self.disk.sync()  # else a power cut of one that syncs nothing would only tell that it made no file
        self.listening()
        self.wait_for_state()

    @property
    def ready(self) -> bool:
        """Whether the agent can be told something."""
        return self.agent.alive and "READY=1" in self.agent.states

    def recover(self, timeout: float) -> None:
        """Return when the agent stores, delivers and reads everything. One that ended is started again, as a service
        manager does.

        Raises ProcessError if the time is up.
        """
        agent, seen = self.agent, len(self.agent.states)
        here = agent.states

        def recovered() -> bool:
            nonlocal seen, here
            if not agent.alive:
                self.died.append(agent.log()[-600:])
                agent.wait()
                agent.start()
            if here is not agent.states:
                here, seen = agent.states, 0
            waiting, there, failing = self.state()
            told = any(state.startswith("STATUS=") for state in here[seen:])
            bad = any(word in agent.status for word in ("FAILED", "MEMORY", "BLOCKED"))
            return "READY=1" in here and told and not bad and 0 <= waiting <= _UNDER_WAY and there and failing == 0

        try:
            wait_for(recovered, timeout=timeout, what="all to work again")
        except ProcessError as error:
            ends = f"; it ended {len(self.died)} times, at last: {self.died[-1]}" if self.died else ""
            raise ProcessError(f"{error}; status: {agent.status}{ends}; log: {agent.log()[-3000:]}") from None

    def close(self) -> None:
        """End everything at once."""
        self.errors.heal()
        self.writes.heal()
        super().close()
        self.disk.unmount()
        self.reflinks.unmount()
