"""The router: a channel gets what its ``send`` names, and nothing else ever leaves on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from agent.model import (
    Cause,
    DeviceInfo,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Point,
    Quality,
    Schedule,
    Value,
    ValueType,
)
from agent.router import Route, Router
from agent.sealing.batch import Receipt

pytestmark = pytest.mark.anyio
DEVICES = (DeviceInfo("meter", "modbus", "urn:nmi:1"), DeviceInfo("secret", "modbus"), DeviceInfo("battery", "mqtt"))
METER = (Point("W", "W", ValueType.INTEGER), Point("Hz", "Hz", ValueType.FLOAT), Point("St", None, ValueType.TEXT))
BATTERY = (Point("SoC", "%", ValueType.INTEGER),)
GROUPS = (
    GroupPlan("ac", 0, Schedule(1000, 0, 7, 5), 7, METER),
    GroupPlan("ac", 1, Schedule(1000, 0, 7, 5), 7, METER),
    GroupPlan("state", 2, None, 0, BATTERY),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Sealing:
    """Stands for a channel's batcher."""

    def __init__(self) -> None:
        self.items: list[Frame | Gap] = []
        self.plans: list[tuple[Sequence[DeviceInfo], Sequence[GroupPlan]]] = []
        self.events: list[tuple[Any, ...]] = []
        self.hurried = 0
        self.receipt = Receipt()

    full = stuck = False
    storing = True

    async def room(self) -> None:
        await checkpoint()

    async def moving(self) -> None:
        await checkpoint()

    def put(self, item: Frame | Gap) -> Receipt:
        self.items.append(item)
        return self.receipt

    async def begin_term(
        self, *, opened: tuple[int, int], devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
    ) -> None:
        self.plans.append((devices, groups))

    async def event(self, code: EventCode, *details: Value) -> None:
        self.events.append((code, *details))

    def hurry(self) -> None:
        self.hurried += 1


async def routed(**selections: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[Router, dict[str, Sealing]]:
    sealings = {name: Sealing() for name in selections}
    router = Router({name: Route(sealings[name], selection) for name, selection in selections.items()})
    await router.begin_term(opened=(1, 2), devices=DEVICES, groups=GROUPS)
    return router, sealings


def frame(group: int, *values: Value, quality: Any = ()) -> Frame:
    return Frame(group, 7, 1, 2, values, quality)


async def test_a_plan_names_only_what_the_channel_takes() -> None:
    _, sealings = await routed(
        all={"meter": {"ac": ["W", "Hz", "St"]}, "battery": {"state": ["SoC"]}},
        little={"meter": {"ac": ["Hz"]}},
    )
    (devices, groups) = sealings["all"].plans[0]
    assert list(devices) == [DEVICES[0], DEVICES[2]]
    assert list(groups) == [GROUPS[0], GroupPlan("state", 1, None, 0, BATTERY)]
    (devices, groups) = sealings["little"].plans[0]
    assert list(devices) == [DEVICES[0]]
    assert [(group.name, group.points) for group in groups] == [("ac", (METER[1],))]


async def test_values_and_qualities_of_other_points_stay_here() -> None:
    router, sealings = await routed(some={"meter": {"ac": ["W", "St"]}}, one={"meter": {"ac": ["Hz"]}})
    quality = ((0, Quality.SUSPECT), (1, Quality.OLD_DATA), (2, Quality.OUT_OF_RANGE))
    await router.put(frame(0, 10, 50.0, "run", quality=quality))
    await router.put(frame(1, 11, 50.1, "secret"))
    await router.put(Gap(1, 8, 9, Cause.OVERRUN))
    assert sealings["some"].items == [frame(0, 10, "run", quality=((0, Quality.SUSPECT), (1, Quality.OUT_OF_RANGE)))]
    assert sealings["one"].items == [frame(0, 50.0, quality=((0, Quality.OLD_DATA),))]


async def test_a_frame_that_is_taken_as_it_is_is_not_copied() -> None:
    router, sealings = await routed(all={"meter": {"ac": ["W", "Hz", "St"]}})
    whole = frame(0, 10, 50.0, "run")
    await router.put(whole)
    assert sealings["all"].items[0] is whole


async def test_cycles_of_messages_are_counted_per_channel_from_zero_and_on_through_terms() -> None:
    router, sealings = await routed(a={"battery": {"state": ["SoC"]}})
    message = Frame(2, 0, 0, None, (50,), received=1)
    for _ in range(2):
        await router.put(message)
    await router.put(Gap(2, None, None, Cause.DECODE_ERROR, "junk"))
    await router.put(Gap(2, None, None, Cause.LINK_DOWN, None, 3, 4))
    sealings["b"] = Sealing()
    router.routes["b"] = Route(sealings["b"], {"battery": {"state": ["SoC"]}})
    await router.begin_term(opened=(1, 2), devices=DEVICES, groups=GROUPS)
    await router.put(message)
    cycles = [(item.cycle if isinstance(item, Frame) else item.first) for item in sealings["a"].items]
    assert cycles == [0, 1, 2, None, 3]
    assert [group.next for _, groups in sealings["a"].plans for group in groups] == [0, 3]
    assert [item.cycle for item in sealings["b"].items if isinstance(item, Frame)] == [0]


async def test_an_event_of_a_device_goes_only_where_the_device_is_known() -> None:
    router, sealings = await routed(a={"battery": {"state": ["SoC"]}}, b={"meter": {"ac": ["W"]}})
    await router.event(EventCode.DEVICE_IDENTITY_CHANGED, "meter", "x", "y", device="meter")
    await router.event(EventCode.CLOCK_STEP, 1, 2)
    assert [len(each.events) for each in sealings.values()] == [1, 2]


async def test_a_receipt_settles_when_all_channels_have_it_on_disk_and_only_they_hurry() -> None:
    router, sealings = await routed(
        a={"battery": {"state": ["SoC"]}}, b={"battery": {"state": ["SoC"]}}, c={"meter": {"ac": ["W"]}}
    )
    receipts = await router.put(Frame(2, 0, 0, None, (50,), received=1))
    router.hurry(2)
    assert [each.hurried for each in sealings.values()] == [1, 1, 0]
    sealings["a"].receipt.hurried = True
    assert not receipts.hurried, "the other's window may be long"
    sealings["b"].receipt.hurried = True
    assert receipts.hurried
    sealings["a"].receipt.settle()
    assert not receipts.settled
    sealings["b"].receipt.settle()
    assert receipts.settled
    await receipts.durable()


async def test_what_a_channel_has_no_term_of_is_not_for_it() -> None:
    router, sealings = await routed(a={"meter": {"ac": ["W"]}})
    sealings["new"] = Sealing()
    router.routes["new"] = Route(sealings["new"], {"meter": {"ac": ["W"]}})
    await router.put(frame(0, 1, 2.0, "x"))
    assert sealings["new"].items == []
