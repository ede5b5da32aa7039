"""A whole rig for tests: a site, a battery with its MQTT broker if wanted, a NATS server with a stream, an agent
configured for all of them, consumers, and the oracle's word.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed import battery_device
from testbed.account import Account
from testbed.bad_disk import Disk
from testbed.battery_device import MqttBroker
from testbed.broker import create_stream
from testbed.cluster import NatsCluster
from testbed.journal import boot_time
from testbed.oracle import Oracle
from testbed.processes import Agent, Battery, NatsServer, Process, ProcessError, Site, Tail, edge_agent, wait_for
from testbed.published import Topic, read_messages
from testbed.served import Journal, Json, Unit

_CONFIG = """\
version = 1
site = {{ id = "{site}" }}
identity = {{ key = "file:key", did = "{did}" }}
clock = {{ wait = "{clock_wait}" }}
agent = {{ state = "state", socket = "agent.sock" }}

[connection.plant]
url = "modbus+tcp://127.0.0.1:{port}"
timeout = "250ms"

[connection.other]
url = "modbus+tcp://127.0.0.1:{port}"
timeout = "250ms"

{devices}
"""

_CHANNEL = """
[[channel]]
id = "{channel}"
transport = "nats"
servers = {servers}
send = {send}
seal_within = "{seal_within}"
outbox = {{ {outbox} }}
drain = {{ spread = "0s" }}
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
    """Site, battery and brokers run from the beginning; the agent is started by who uses this. All of it ends with the
    ``with`` block.

    ``units``: the Modbus unit behind each device of the configuration. ``mqtt``: the broker, in this folder and not
    started, of a battery that is one more device; ``mqtt_version`` "3.1.1" or "5" for both its clients; ``battery``:
    arguments for it; ``bms``: more lines for its connection. ``channels``: what each channel sends, by id.
    ``outbox_more``: more keys for their outboxes. ``disk``: what the agent's outboxes lie on. ``cluster``: the NATS
    servers, in this folder and not started, of which ``broker`` is the first; else there is one, ``broker`` if it is
    given.
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
        mqtt: MqttBroker | None = None,
        mqtt_version: str = "3.1.1",
        battery: Mapping[str, Any] | None = None,
        bms: str = "",
        channels: Mapping[str, Sequence[str]] | None = None,
        clock_wait: str = "0s",
        outbox_more: str = "",
        disk: Disk | None = None,
        cluster: NatsCluster | None = None,
        broker: NatsServer | None = None,
    ) -> None:
        self.folder = folder
        self.site = site or Site(folder)
        self.broker = cluster.nodes[0] if cluster is not None else broker or NatsServer(folder)
        self.units = units or {"pv-1": 1, "grid-meter": 2}
        self.config = folder / "agent.toml"
        self.channels = channels or {self.CHANNEL: ["*"]}
        self.mqtt = mqtt
        self._battery: Battery | None = None
        self._battery_span: tuple[int | None, int | None] = (None, None)
        self._processes: list[Process | NatsCluster] = [self.site, cluster or self.broker, *([mqtt] if mqtt else [])]
        self._consumers = 0
        self._stopped = 0
        try:
            self.site.start()
            (cluster or self.broker).start()
            if mqtt is not None:
                url = battery_device.broker_url(mqtt.start(), mqtt_version)
                self._battery = Battery(folder, url, **(battery or {}))
                self._processes.append(self._battery.start())
                devices += battery_device.tables(url, self._battery.topic, more=bms)
            if cluster is not None:
                cluster.create_stream(self.STREAM, "dx.>")
            else:
                asyncio.run(create_stream(self.broker.url, self.STREAM, ["dx.>"]))
            self.did = command("init", folder, "--network", "volta").strip()
        except BaseException:
            self.close()
            raise
        self.config.write_text(
            _CONFIG.format(
                site=self.SITE,
                did=self.did,
                clock_wait=clock_wait,
                port=self.site.port,
                devices=devices,
            )
            + "".join(
                _CHANNEL.format(
                    channel=channel,
                    servers=json.dumps(cluster.urls if cluster is not None else [self.broker.url]),
                    send=json.dumps(list(send)),
                    seal_within=seal_within,
                    outbox=", ".join([f'size = "{outbox}"', *([outbox_more] if outbox_more else [])]),
                )
                for channel, send in self.channels.items()
            )
        )
        self.agent = Agent(folder, self.config, disk=disk)
        self._processes.append(self.agent)

    @property
    def source(self) -> list[str]:
        """What a consumer of the first channel needs to know."""
        return self.source_of(next(iter(self.channels)))

    def source_of(self, channel: str) -> list[str]:
        """What a consumer of a channel needs to know."""
        return [f"{self.broker.url}/{self.STREAM}?subject=dx.{self.SITE}.{channel}", "--did", self.did]

    @property
    def battery(self) -> Battery:
        """The battery; only with ``mqtt``."""
        assert self._battery is not None, "the rig has no battery"
        return self._battery

    def listening(self) -> None:
        """The agent listens: say so when it does. From now on every message of the battery is owed."""
        self._battery_span = boot_time(), None

    def settle_battery(self, timeout: float = 30) -> None:
        """Silence the battery, wait until the broker has taken all of it, which is owed then, and until it came.

        Raises ProcessError if some of it does not come; what has no number, or may be lost with a killed broker, is not
        waited for.
        """
        self.battery.command("silence")
        self.battery.wait_acknowledged(timeout)
        begin, end = self._battery_span[0] or 0, boot_time()
        self._battery_span = self._battery_span[0], end
        excused = [(at - int(self.mqtt.LOSES * 1e9), at) for at in self.mqtt.kills] if self.mqtt else []
        owed = {
            m.n
            for m in read_messages(self.battery.journal)
            if m.acked and m.boot >= begin and m.at("/n") and not any(a <= m.acked <= b for a, b in excused)
        }
        self._consumers += 1
        with Tail(self.folder, *self.source, name=f"consumer-{self._consumers}") as tail:

            def missing() -> set[int]:
                frames = [frame for line in tail.lines() for frame in line.get("frames", [])]
                return owed - {frame["values"].get("N") for frame in frames if frame["device"] == battery_device.DEVICE}

            wait_for(lambda: not missing(), timeout=timeout, what=f"messages of {len(owed)} to come")

    def stop(self, timeout: float = 10) -> None:
        """Stop the agent in order. Raises ProcessError if it takes longer or does not end with 0."""
        self._stopped = boot_time()
        code = self.agent.stop(timeout)
        if code:
            raise ProcessError(f"the agent ended with {code}:\n{self.agent.log()[-2000:]}")

    def consumed(
        self, *, until_idle: bool = False, timeout: float = 60, channel: str | None = None, strict: bool = True
    ) -> list[Json]:
        """What a consumer gets that reads the stream from its beginning to the agent's last stop: records, and the
        report at last. ``until_idle``: it finds the end by itself. ``channel``: another than the first.

        Raises ProcessError if it finds anything wrong, unless that is for the caller to see (``strict`` False).
        """
        self._consumers += 1
        name = f"consumer-{self._consumers}"
        source = self.source_of(channel) if channel else self.source
        tail = Tail(self.folder, *source, *(["--until-idle"] if until_idle else []), name=name)
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
        if code and (strict or not tail.lines() or "report" not in tail.lines()[-1]):
            raise ProcessError(f"the consumer ended with {code}: {tail.lines()[-1:]} {tail.log()[-2000:]}")
        return list(tail.lines())

    def _says_stop(self, line: Json) -> bool:
        found: bool = "event" in line and line["event"]["code"] == "stop" and line["sealed"]["boot"] >= self._stopped
        return found

    def state(self) -> tuple[int, bool, int]:
        """Of the agent's status: records that wait on all channels, whether all see their broker, devices that
        fail.
        """
        channels = re.findall(r"(\d+) waiting, broker (\w+)", self.agent.status)
        failing = re.search(r"(\d+) of \d+ devices failing", self.agent.status)
        if not channels or not failing:
            return -1, False, -1
        there = all(broker == "connected" for _, broker in channels)
        return sum(int(waiting) for waiting, _ in channels), there, int(failing[1])

    def wait_for_state(self, *, timeout: float = 20, failing: int | None = 0) -> None:
        """Return once everything is delivered and ``failing`` devices fail; None: however many. Raises ProcessError,
        with the end of the agent's log, if the time is up or the agent ends.
        """

        def reached() -> bool:
            if not self.agent.alive:
                raise ProcessError(f"the agent ended, its log: {self.agent.log()[-4000:]}")
            waiting, there, fail = self.state()
            return waiting == 0 and there and failing in (None, fail)

        try:
            wait_for(reached, timeout=timeout, what=f"the agent to have delivered all, {failing} devices failing")
        except ProcessError as error:
            raise ProcessError(f"{error}; its status: {self.agent.status}; {self.agent.log()[-4000:]}") from error

    def judge(self, lines: list[Json], *, ended: bool = True, points: Mapping[str, Json] | None = None) -> Account:
        """The oracle's account of what a consumer printed; what the verifier counted is held against it.

        ``points``: other points for all units than those of the site's own register map.
        """
        journal = Journal.read(self.site.journal)
        if points is not None:
            for unit in journal.units.values():
                unit.points = dict(points)
        devices: dict[str, Unit | Topic] = {device: journal.units[unit] for device, unit in self.units.items()}
        if self._battery is not None and self.mqtt is not None:
            begin, end = self._battery_span
            devices[battery_device.DEVICE] = battery_device.judged(
                self._battery, [self.mqtt], owed_from=begin, owed_until=end
            )
        account = Oracle(devices).judge(lines, ended=ended)
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


def told(lines: Sequence[Json], what: str) -> list[Json]:
    """Runs, holes or groups, of all channels, in the report that ends what ``tail --jsonl`` printed."""
    return [each for channel in lines[-1]["report"]["channels"] for each in channel[what]]
