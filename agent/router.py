"""The router: gives each channel what its ``send`` names of a term's devices, groups and points, and nothing else.

All channels change their terms together. A frame is not copied for a channel that takes it as it is. The cycles of
event-driven groups are counted here, from 0 in each channel's run and on through its terms (docs/evidence.md,
section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Protocol

import anyio

from agent.model import Cause, DeviceInfo, EventCode, Frame, Gap, GroupPlan, Value
from agent.sealing.batch import Receipt

GroupKey = tuple[str, str]  # device id, group name


class Sealing(Protocol):
    """What the router needs of a channel's batcher."""

    @property
    def storing(self) -> bool:
        """Whether what is put can come onto the disk."""

    @property
    def full(self) -> bool:
        """Whether nothing may be put until a batch is on its way to the disk."""

    async def room(self) -> None:
        """Wait while it is full."""

    @property
    def stuck(self) -> bool:
        """Whether nothing should be put until the broker has acknowledged more."""

    async def moving(self) -> None:
        """Wait while it is stuck."""

    def put(self, item: Frame | Gap) -> Receipt:
        """Accept a frame or gap of the term in force."""

    async def begin_term(
        self, *, opened: tuple[int, int], devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
    ) -> None:
        """End the term in force and begin the next."""

    async def event(self, code: EventCode, *details: Value) -> None:
        """Record an event."""

    def hurry(self) -> None:
        """Seal now what was put."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a polled group ends with its term: ``covered`` is the first cycle that is neither put nor stated, and
    ``stays`` or ``goes`` the one up to which its cycles are to be stated, where the next term has it and where not.
    """

    group: int
    covered: int
    stays: int
    goes: int
    cause: Cause

    def gap(self, group: int, *, stays: bool) -> Gap | None:
        """What a channel states, under its own index of the group."""
        end = self.stays if stays else self.goes
        cause = self.cause if stays else Cause.DISABLED
        return Gap(group, self.covered, end - 1, cause) if self.covered < end else None


@dataclass(frozen=True, slots=True)
class Receipts:
    """Of one item on the channels that took it and could store it; of all that took it if none could."""

    receipts: Sequence[Receipt]

    @property
    def settled(self) -> bool:
        """Whether it is on disk on each of them."""
        return all(receipt.settled for receipt in self.receipts)

    @property
    def hurried(self) -> bool:
        """Whether it waits for its batch's window on no channel."""
        return all(receipt.hurried for receipt in self.receipts)

    async def durable(self) -> None:
        """Return once it is on disk on each of them. Raises NotStoredError."""
        for receipt in self.receipts:
            await receipt.durable()


@dataclass(frozen=True, slots=True)
class _Way:
    """What a channel makes of a group: its index in the channel's plan, and the points that it takes; None: all."""

    group: int
    key: GroupKey
    event_driven: bool
    values: Callable[[tuple[Value, ...]], Any] | None
    places: Mapping[int, int]  # of the points taken: index in the sample to index in the channel's plan

    def frame(self, frame: Frame, cycle: int) -> Frame:
        """The frame as the channel's plan has it."""
        values, quality = frame.values, frame.quality
        if self.values is not None:
            values = self.values(values)
            quality = tuple((self.places[point], code) for point, code in quality if point in self.places)
        elif (frame.group, frame.cycle) == (self.group, cycle):
            return frame
        # Not ``_replace``, which takes three times as long.
        return Frame(
            self.group, cycle, frame.late_us, frame.took_us, values, quality, frame.source_time, frame.received
        )


@dataclass(slots=True)
class Route:
    """A channel and what it takes: of each device and group the names of points."""

    sealing: Sealing
    selection: Mapping[str, Mapping[str, Sequence[str]]]
    ways: list[_Way | None] = field(default_factory=list)  # by the group's index in the term
    devices: set[str] = field(default_factory=set)
    cycles: dict[GroupKey, int] = field(default_factory=dict)  # the next one of event-driven groups


class Router:
    """Implements the supervisor's sink for several channels. ``routes``, by channel id, changes between terms only."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = dict(routes)
        self._begun = anyio.Event()  # a term

    def stuck(self, group: int) -> bool:
        """Whether a channel that takes the group is stuck."""
        return any(route.sealing.stuck for route, _ in self._taking(group))

    async def room(self, group: int) -> None:
        """Wait while one is."""
        while stuck := next((route.sealing for route, _ in self._taking(group) if route.sealing.stuck), None):
            await stuck.moving()

    def _taking(self, group: int) -> list[tuple[Route, _Way]]:
        return [
            (route, way)
            for route in self.routes.values()
            if group < len(route.ways) and (way := route.ways[group]) is not None
        ]

    async def put(self, item: Frame | Gap) -> Receipts:
        """Hand a frame or gap of the term in force to the channels that take its group; waits while one is full.

        All of them get it or, if that is cancelled, none. Where a channel cannot store it the others' receipts count:
        it states by itself what it has not.
        """
        taking = self._taking(item.group)
        while full := next((route.sealing for route, _ in taking if route.sealing.full), None):
            await full.room()
        receipts = [(route.sealing.storing, route.sealing.put(self._of(route, way, item))) for route, way in taking]
        stored = [receipt for storing, receipt in receipts if storing]
        return Receipts(stored or [receipt for _, receipt in receipts])

    def _of(self, route: Route, way: _Way, item: Frame | Gap) -> Frame | Gap:
        if isinstance(item, Frame):
            if not way.event_driven:
                return way.frame(item, item.cycle)
            cycle = route.cycles[way.key]
            route.cycles[way.key] = cycle + 1
            return way.frame(item, cycle)
        if way.event_driven and item.from_boot is None and item.first is None:  # a message that yielded nothing
            cycle = route.cycles[way.key]
            route.cycles[way.key] = cycle + 1
            return replace(item, group=way.group, first=cycle, last=cycle)
        return replace(item, group=way.group)

    def hurry(self, group: int) -> None:
        """Somebody waits for what was put of a group: seal it now."""
        for route in self.routes.values():
            if group < len(route.ways) and route.ways[group] is not None:
                route.sealing.hurry()

    async def storing(self, groups: Set[GroupKey], *, patience: float) -> None:
        """Return once channels that take any of these groups can store it: all of them, or after ``patience`` s one."""
        with anyio.move_on_after(patience):
            await self._storing(groups, all)
        await self._storing(groups, any)

    async def _storing(self, groups: Set[GroupKey], enough: Callable[[Iterable[bool]], bool]) -> None:
        while taking := [
            route.sealing.storing and bool(route.ways)  # else it has no plan yet
            for route in self.routes.values()
            if not route.ways or any(way is not None and way.key in groups for way in route.ways)
        ]:
            if enough(taking):
                break
            await self._begun.wait()  # what stores again does so with a new term

    async def begin_term(
        self,
        *,
        opened: tuple[int, int],
        devices: Sequence[DeviceInfo],
        groups: Sequence[GroupPlan],
        closing: Sequence[Closing] = (),
    ) -> None:
        """Close the term in force and begin the next on every channel with its part of the devices and groups; returns
        when all plans are on disk, but those of channels that cannot have them there for now.
        """
        for route in self.routes.values():
            old = route.ways
            chosen, taken = _part(route, devices, groups)
            stay = {(chosen[group.device].id, group.name) for group in taken}
            for each in closing:
                way = old[each.group] if each.group < len(old) else None
                if way is not None and (gap := each.gap(way.group, stays=way.key in stay)) is not None:
                    await route.sealing.room()
                    route.sealing.put(gap)
            await route.sealing.begin_term(opened=opened, devices=chosen, groups=taken)
        self._begun.set()
        self._begun = anyio.Event()

    async def event(self, code: EventCode, *details: Value, device: str | None = None) -> None:
        """Record an event on every channel, or on those that send anything of a device."""
        for route in self.routes.values():
            if device is None or device in route.devices:
                await route.sealing.event(code, *details)


def _part(
    route: Route, devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
) -> tuple[list[DeviceInfo], list[GroupPlan]]:
    """A channel's part of a term; its ways are laid anew."""
    chosen: dict[str, DeviceInfo] = {}
    taken: list[GroupPlan] = []
    route.ways = []
    for group in groups:
        info = devices[group.device]
        names = set(route.selection.get(info.id, {}).get(group.name, ()))
        picked = [index for index, point in enumerate(group.points) if point.name in names]
        if not picked:
            route.ways.append(None)
            continue
        chosen.setdefault(info.id, info)
        key = (info.id, group.name)
        event_driven = group.schedule is None
        values = None if len(picked) == len(group.points) else _picker(picked)
        places = {index: place for place, index in enumerate(picked)}
        route.ways.append(_Way(len(taken), key, event_driven, values, places))
        first = route.cycles.setdefault(key, 0) if event_driven else group.next
        points = tuple(group.points[index] for index in picked)
        taken.append(replace(group, device=list(chosen).index(info.id), next=first, points=points))
    route.devices = set(chosen)
    return list(chosen.values()), taken


def _picker(picked: Sequence[int]) -> Callable[[tuple[Value, ...]], Any]:
    """What takes some of a sample's values, as a tuple."""
    if len(picked) == 1:
        only = picked[0]
        return lambda values: (values[only],)
    return itemgetter(*picked)
