"""A whole agent in one process on virtual time: the real ``Running`` with its real ring files, over devices, brokers
and a disk that are fakes. Configured by a file, so that it can be reloaded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel, ConfigDict, Field

from agent import kinds
from agent.config import load
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Data, Frame, Gap, Plan, Point, Record, Sample, ValueType
from agent.ports import DeviceSelection
from agent.running import Running
from agent.signer import KeySigner
from agent.units import Duration
from agent.verifier import Level, Outcome, Verifier
from agent.verifier.report import Report
from tests.event_fakes import EVENT_POINTS, FakeEventDevice, FakeSource
from tests.fakes import FakeBroker, FakeDevice, virtual_clock
from tests.faulty_files import FaultyFiles
from tests.runs import DID, POINTS, SECRET

BLOB = (Point("blob", None, ValueType.TEXT),)
_CHANNEL = """
[[channel]]
id = "{id}"
transport = "fake"
{more}
"""
_BASE = """\
version = 1
site = { id = "house" }
identity = { key = "file:key" }
clock = { wait = "0s" }
agent = { state = "state", socket = "" }

[connection.wire]
kind = "tests.house:Wire"
[[device]]
id = "meter"
connection = "wire"
groups = { fast = { every = "200ms" }, slow = { every = "1s" } }
[[device]]
id = "blob"
connection = "wire"
groups = { big = { every = "1s" } }

[connection.bus]
kind = "tests.house:Bus"
[[device]]
id = "battery"
connection = "bus"
groups = { state = {} }
"""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Connection(_Table):
    pass


class _PolledGroup(_Table):
    every: Duration


class _EventGroup(_Table):
    pass


class _Polled(_Table):
    id: str
    connection: str
    groups: dict[str, _PolledGroup]

    def point_names(self, group: str) -> tuple[str, ...]:
        return tuple(point.name for point in (BLOB if self.id == "blob" else POINTS))


class _Event(_Table):
    id: str
    connection: str
    groups: dict[str, _EventGroup]

    def point_names(self, group: str) -> tuple[str, ...]:
        return tuple(point.name for point in EVENT_POINTS)


class FakeChannel(_Table):
    """A transport's part of the configuration; ``mark``: may be changed, and means nothing."""

    mark: Annotated[int, Field(ge=0)] = 0

    def destination(self, *, site: str, channel: str) -> str:
        return f"{site}.{channel}"


@dataclass
class World:
    """What lies around the agent that is at work."""

    brokers: dict[str, FakeBroker] = field(default_factory=dict)
    devices: dict[str, FakeDevice] = field(default_factory=dict)
    source: FakeSource | None = None
    blob: int = 0  # characters that the blob's value has; half as many bytes are left when they are packed


_world = World()


class Blob(FakeDevice):
    """A device whose value is as long as told."""

    async def acquire(self, group: str) -> Sample:
        sample = await super().acquire(group)
        text = f"{len(self.acquired):08}" + random.Random(len(self.acquired)).randbytes(_world.blob // 2).hex()
        return Sample(sample.started, sample.ended, (text,))


class Wire:
    """Two devices that are asked."""

    connection_model, device_model = _Connection, _Polled

    def __init__(self, name: str, connection: Any, devices: Sequence[DeviceSelection], clock: Any) -> None:
        made = []
        for each in devices:
            device = _world.devices.get(each.config.id)
            if device is None:
                blob = each.config.id == "blob"
                device = Blob(clock, "blob", points=BLOB) if blob else FakeDevice(clock, each.config.id)
            _world.devices[each.config.id] = device
            made.append(device)
        self.devices = made

    async def close(self) -> None:
        pass


def Bus(name: str, connection: Any, devices: Sequence[DeviceSelection], clock: Any) -> FakeSource:  # noqa: N802
    """A source that keeps what is not acknowledged."""
    assert _world.source is not None
    return _world.source


Bus.connection_model, Bus.device_model = _Connection, _Event  # type: ignore[attr-defined]


def make_transport(settings: Any, *, topic: str, signer: Any, clock: Any) -> FakeBroker:
    return _world.brokers[topic]


class House:
    """The agent and its world. ``channels``: lines of each channel's table, by id; ``send`` and the outbox's size are
    filled in where they are missing.
    """

    def __init__(self, folder: Path, channels: Mapping[str, str], *, window: int | None = 20) -> None:
        global _world
        self.clock = virtual_clock()
        self.folder = folder
        self.files = FaultyFiles()
        self.world = _world = World()
        self.world.brokers = {f"house.{name}": FakeBroker(self.clock) for name in channels}
        self.world.source = self.source = FakeSource(self.clock, FakeEventDevice("battery"), window=window)
        self.channels = channels
        (folder / "key").write_text(SECRET.hex())
        (folder / "key").chmod(0o600)
        self.configure(channels)
        self.running: Running
        self.not_stored_by: Counter[str] = Counter()  # of all lives that have ended, by channel

    def configure(self, channels: Mapping[str, str]) -> None:
        """Write the file."""
        text = _BASE
        for name, more in channels.items():
            if "send" not in more:
                more = 'send = ["*"]\n' + more
            if "outbox" not in more:
                more += '\noutbox = { size = "5MiB" }'
            text += _CHANNEL.format(id=name, more=more)
        (self.folder / "agent.toml").write_text(text)

    def broker(self, channel: str = "dso") -> FakeBroker:
        return self.world.brokers[f"house.{channel}"]

    def status(self, channel: str = "dso") -> dict[str, Any]:
        return next(each for each in self.running.status()["channels"] if each["id"] == channel)

    async def live(self, work: Callable[[], Awaitable[object]]) -> None:
        """The agent, from its start to its stop in order once ``work`` returns."""
        self.running = running = Running(
            load(self.folder / "agent.toml"), signer=KeySigner(SECRET, did=DID), clock=self.clock, files=self.files
        )
        async with anyio.create_task_group() as channels, anyio.create_task_group() as sources:
            await running.open(channels=channels, sources=sources)
            async with anyio.create_task_group() as acquisition:
                acquisition.start_soon(running.supervisor.run)
                acquisition.start_soon(running.changes)
                await work()
                acquisition.cancel_scope.cancel()
            await running.conclude("SIGTERM")
            sources.cancel_scope.cancel()
        self.not_stored_by.update({name: each.status()["not_stored"] for name, each in running.channels.items()})

    @property
    def not_stored(self) -> int:
        """Readings that no channel's outbox took."""
        return self.not_stored_by.total()

    def acquired(self) -> int:
        """Acquisitions of all devices that were asked."""
        return sum(len(device.acquired) for device in self.world.devices.values())

    async def until(self, condition: Callable[[], object], *, within: float = 600) -> None:
        with anyio.fail_after(within):
            while not condition():  # noqa: ASYNC110 - the agent has no event for it
                await anyio.sleep(0.05)

    async def in_state(self, state: str, channel: str = "dso") -> None:
        await self.until(lambda: self.status(channel)["outbox"]["state"] == state)

    async def delivered(self) -> None:
        await self.until(lambda: all(not c["pending_records"] for c in self.running.status()["channels"]))

    # ---- what came of it ------------------------------------------------------------------------------------

    def verified(self, channel: str = "dso") -> Report:
        """What the broker has, which must be good throughout."""
        verifier = Verifier([DID])
        judged = [each for envelope in self.broker(channel).messages for each in verifier.feed(envelope)]
        judged += verifier.finish(complete=True)
        found = [finding for each in judged for finding in each.findings if finding.outcome is Outcome.FAILED]
        assert [str(finding) for finding in found] == []
        assert {hole.state for hole in verifier.report.holes} <= {"accounted"}
        assert [verifier.report.outcome(level) for level in Level] == [Outcome.OK] * 5
        return verifier.report

    def records(self, channel: str = "dso") -> list[Record]:
        plans: dict[bytes, Plan] = {}
        found = []
        for envelope in self.broker(channel).messages:
            head = decode_head(unpack(envelope).payload)
            record = decode_record(head, plans.get(head.link.stream))
            if isinstance(record.body, Plan):
                plans[record.stream] = record.body
            found.append(record)
        return found

    def items(self, group: str, channel: str = "dso") -> list[Frame | Gap]:
        """Frames and gaps of a group, as they came."""
        plans: dict[bytes, Plan] = {}
        found: list[Frame | Gap] = []
        for record in self.records(channel):
            if isinstance(record.body, Plan):
                plans[record.stream] = record.body
            elif isinstance(record.body, Data):
                names = [each.name for each in plans[record.stream].groups]
                items: list[Frame | Gap] = [*record.body.frames, *record.body.gaps]
                found += [each for each in items if names[each.group] == group]
        return found

    def frames(self, group: str, channel: str = "dso") -> list[Frame]:
        return [each for each in self.items(group, channel) if isinstance(each, Frame)]

    def messages(self, channel: str = "dso") -> list[Any]:
        """Numbers of the source's messages."""
        return [frame.values[0] for frame in self.frames("state", channel)]


def fake_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``transport = "fake"`` work."""
    kind = kinds.TransportKind("tests.house:FakeChannel", "tests.house:make_transport")
    monkeypatch.setitem(kinds.TRANSPORTS, "fake", kind)
