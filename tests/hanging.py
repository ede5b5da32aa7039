"""An adapter whose device hangs on demand, in each of the ways in which one can."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict

from agent.model import DeviceInfo, Sample
from agent.outbox.files import OsFiles
from agent.ports import Clock, DeviceSelection
from agent.units import Duration
from tests.runs import POINTS


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Connection(_Table):
    """``block``: the event loop hangs once this file is there."""

    block: str = ""


class Group(_Table):
    """It is polled."""

    every: Duration


class Device(_Table):
    """It has the points of tests/runs.py."""

    id: str
    connection: str
    groups: dict[str, Group]

    def point_names(self, group: str) -> tuple[str, ...]:
        """The names of a group's points."""
        return tuple(point.name for point in POINTS)


class Gate:
    """What may hang. Set: it goes on."""

    def __init__(self) -> None:
        self.disk = threading.Event()
        self.loop = threading.Event()
        self.poller = threading.Event()
        self.open()

    def open(self) -> None:
        """Nothing hangs."""
        for each in (self.disk, self.loop, self.poller):
            each.set()


GATE = Gate()


class HangingFiles(OsFiles):
    """A disk whose sync does not come back while the gate is shut."""

    def fdatasync(self, fd: int) -> None:
        """Wait for the gate."""
        GATE.disk.wait()
        super().fdatasync(fd)


class Wire:
    """One device."""

    connection_model, device_model = Connection, Device

    def __init__(self, name: str, connection: Any, devices: Sequence[DeviceSelection], clock: Clock) -> None:
        self.devices = [_Hanging(each.config.id, clock, connection.block) for each in devices]

    async def close(self) -> None:
        """Nothing to let go of."""


class _Hanging:
    def __init__(self, name: str, clock: Clock, block: str) -> None:
        self.revision = 0
        self.info = DeviceInfo(name, "hanging")
        self._clock = clock
        self._block = block

    def points(self, group: str) -> tuple[Any, ...]:
        return POINTS

    async def prepare(self) -> None:
        pass

    async def acquire(self, group: str) -> Sample:
        started = self._clock.boot()
        while self._block and Path(self._block).exists():  # noqa: ASYNC240 - that is the point
            pass
        GATE.loop.wait()
        with anyio.CancelScope(shield=True):  # it does not even honour being cut off
            while not GATE.poller.is_set():  # noqa: ASYNC110 - set by another thread
                await anyio.sleep(0.01)
        return Sample(started, self._clock.boot(), (1, 2304, 21.5))
