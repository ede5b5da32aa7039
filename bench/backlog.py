"""An outbox full of records that wait: what an agent holds after a day without its broker."""

from __future__ import annotations

from pathlib import Path

import anyio

from agent.delivery.refusals import Refusals
from agent.evidence.history import History
from agent.evidence.record import link_of
from agent.evidence.timetable import anchor
from agent.model import ClockQuality, DeviceInfo, Frame, GroupPlan, Point, ValueType
from agent.outbox import Outbox
from agent.outbox.files import OsFiles
from agent.ports import Signer
from agent.sealing.batch import Batch
from agent.sealing.committer import Committer
from agent.sealing.sealer import Facts, Sealer
from testbed.registers import PlainUnit

S = 1_000_000_000
_BEGAN = 1_790_000_000 * S


class _Files(OsFiles):
    """Nothing is lost if this process is: what takes time here is not what is measured."""

    def fdatasync(self, fd: int) -> None:
        """It may be durable later."""


class _Clock:
    """Moves when it is told."""

    def __init__(self) -> None:
        self.now = 1000 * S

    def wall(self) -> int:
        """Ns since 1970."""
        return self.now + _BEGAN

    def boot(self) -> int:
        """Ns since boot."""
        return self.now

    def quality(self) -> ClockQuality:
        """Nothing is known."""
        return ClockQuality()

    async def sleep_until(self, boot: int) -> None:
        """Nobody sleeps here."""


def write(path: Path, *, size: int, records: int, points: int, signer: Signer, facts: Facts) -> None:
    """Fill a ring file as the agent would: a record a second with one reading of each point, and the plans between.

    ``size`` of the ring in bytes, as the channel's configuration has it; ``facts`` name the channel.
    """
    anyio.run(_write, path, size, records, points, signer, facts)


async def _write(path: Path, size: int, records: int, points: int, signer: Signer, facts: Facts) -> None:
    clock = _Clock()
    outbox = Outbox.open(path, channel=facts.channel, size=size, inspect=link_of, files=_Files())
    sealer = Sealer(facts, signer=signer, clock=clock, last=None, history=History())
    committer = Committer(outbox=outbox, sealer=sealer, block=False, on_durable=lambda _: None, refusals=Refusals())
    schedule = anchor(period=S, phase=0, wall=clock.wall(), boot=clock.boot())
    columns = tuple(Point(f"R{number}", "W", ValueType.INTEGER) for number in range(points))
    group = GroupPlan("all", 0, schedule, schedule.first, columns)
    sealer.begin_term(opened=(clock.wall(), clock.boot()), devices=[DeviceInfo("d0", "modbus")], groups=[group])
    await committer.commit([], None, plan=True)
    unit = PlainUnit(points, seed=1)
    for cycle in range(schedule.first, schedule.first + records):
        clock.now = schedule.due(cycle) + S
        values = unit.read(0.0, 0, points)
        assert values is not None, "all of them are there"
        reading = Frame(0, cycle, 300, 5000, tuple(values))
        await committer.commit([], Batch(frames={0: [reading]}, opened=schedule.due(cycle)))
    outbox.close()
