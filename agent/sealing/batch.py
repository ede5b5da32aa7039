"""A batch: what is to become one record, its receipt, and what else waits for the disk. In memory only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import anyio

from agent.errors import NotStoredError
from agent.model import Cause, ClockQuality, Data, DeviceInfo, Event, Frame, Gap, GroupPlan


@dataclass(slots=True)
class Receipt:
    """Of a batch: settles when its record is on disk, or fails. ``hurried``: it waits for its window no more."""

    settled: bool = False
    failed: bool = False
    hurried: bool = False
    _event: anyio.Event = field(default_factory=anyio.Event)

    async def durable(self) -> None:
        """Return once what was put is on disk. Raises NotStoredError: it may not be, and nobody will try again."""
        await self._event.wait()
        if self.failed:
            raise NotStoredError("the outbox did not store it")

    def settle(self) -> None:
        """It is on disk."""
        if not self.failed:
            self.settled = True
        self._event.set()

    def fail(self) -> None:
        """Nobody knows whether it is on disk, or it is known not to be."""
        if not self.settled:
            self.failed = self.hurried = True
        self._event.set()


@dataclass(slots=True)
class Batch:
    """What is not sealed yet. ``opened``: boot time of its first value, or of its first gap if it has no value.
    ``clock``: how good the wall clock was at worst since its first value or gap; ``looked``: when it was last asked.
    """

    frames: dict[int, list[Frame]] = field(default_factory=dict)
    gaps: dict[int, list[Gap]] = field(default_factory=dict)
    opened: int | None = None
    clock: ClockQuality | None = None
    looked: int = 0
    bound: int = 0  # bytes
    receipt: Receipt = field(default_factory=Receipt)

    def add_gap(self, gap: Gap) -> None:
        """Join it to the group's last gap if it goes on with the same cause."""
        gaps = self.gaps.setdefault(gap.group, [])
        last = gaps[-1] if gaps else None
        if (
            last is not None
            and last.last is not None
            and gap.first == last.last + 1
            and (last.cause, last.detail) == (gap.cause, gap.detail)
        ):
            gaps[-1] = replace(last, last=gap.last)
        else:
            gaps.append(gap)
            self.bound += 64 + len((gap.detail or "").encode())

    def end_unstored(self, group: int, received: int) -> None:
        """A message that is stored came then: what was not stored of its group ends there at the latest."""
        self.gaps[group] = [
            replace(gap, to_boot=min(gap.to_boot, received))
            if gap.cause is Cause.NOT_STORED and gap.to_boot is not None
            else gap
            for gap in self.gaps.get(group, ())
            if gap.cause is not Cause.NOT_STORED or gap.from_boot is None or gap.from_boot < received
        ]

    @property
    def count(self) -> int:
        """Frames in it."""
        return sum(len(group) for group in self.frames.values())

    def data(self, term: int) -> Data:
        """The body: frames and gaps by group."""
        frames = [frame for _, group in sorted(self.frames.items()) for frame in group]
        return Data(term, frames, [gap for _, group in sorted(self.gaps.items()) for gap in group])


@dataclass(slots=True)
class NextTerm:
    """The plan of a term to come; ``begun``: the sealer is in it."""

    opened: tuple[int, int]
    devices: Sequence[DeviceInfo]
    groups: Sequence[GroupPlan]
    begun: bool = False


@dataclass(slots=True)
class Job:
    """What is to be on disk next: a batch, an event behind it, or the first plan of a term."""

    batch: Batch = field(default_factory=Batch)
    event: Event | None = None
    term: NextTerm | None = None
