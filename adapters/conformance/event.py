"""What an EventAdapter promises (agent/ports.py), as tests."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, ClassVar

import anyio
import pytest

from adapters.conformance.judge import Watched, judge_error, judge_sample
from adapters.conformance.subject import EventSubject, Values
from adapters.conformance.tables import AdapterConformance, Selection
from adapters.conformance.watch import S, SuiteClock, cancelled_at, nothing_left
from agent.errors import AcquisitionError
from agent.model import Cause, Quality
from agent.ports import Arrival, Subscription

Meaning = Mapping[tuple[str, str], Values]


class Listening:
    """An adapter under test: every call is judged."""

    def __init__(self, subject: EventSubject, adapter: Any, selection: Selection, clock: SuiteClock) -> None:
        self.adapter = adapter
        self._subject = subject
        self._clock = clock
        self._waiting: list[Arrival] = []
        self._latest = 0  # when the last arrival was received, or subscribing began
        self._since: int | None = None  # of the subscription, once it was looked at
        self.devices = [Watched(each, chosen) for each, chosen in zip(adapter.devices, selection, strict=True)]

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """A subscription, as the engine makes it: again until it works."""
        context, subscription = await self._enter()
        try:
            window = subscription.window
            assert window is None or (type(window) is int and window > 0), f"window {window!r}"
            assert type(subscription.resumed) is bool, "resumed is true or false"
            self._look(subscription)
            yield subscription
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(self._subject.within):
                await context.__aexit__(None, None, None)

    def _look(self, subscription: Subscription) -> None:
        """Judge its times: when messages could first come lies within subscribing and is known from then on."""
        since, heard, now = subscription.since, subscription.heard, self._clock.boot()
        assert type(since) is type(heard) is int, "since and heard are boot times, ns"
        if self._since is None:
            assert self._latest <= since, f"since {since}, and subscribing began at {self._latest}"
            self._since = self._latest = since
        assert since == self._since, f"since went from {self._since} to {since}"
        assert since <= heard <= now, f"since {since}, heard at {heard}, and now it is {now}"

    async def _enter(self) -> tuple[AbstractAsyncContextManager[Subscription], Subscription]:
        self._since, self._latest = None, self._clock.boot()
        with anyio.fail_after(self._subject.within):
            while True:
                context: AbstractAsyncContextManager[Subscription] = self.adapter.subscribe()
                try:
                    return context, await context.__aenter__()
                except AcquisitionError as error:
                    judge_error(error)
                    self._clock.advance(120 * S)
                    await anyio.sleep(0.001)
        raise AssertionError

    async def refusal(self) -> AcquisitionError:
        """What subscribing raises when it cannot work, within a bounded time."""
        with anyio.fail_after(self._subject.within), pytest.raises(AcquisitionError) as caught:
            async with self.adapter.subscribe():
                pass
        judge_error(caught.value)
        return caught.value

    async def receive(self, subscription: Subscription) -> list[Arrival]:
        """What came. Raises AcquisitionError, and nothing else."""
        try:
            arrivals = list(await subscription.receive())
        except AcquisitionError as error:
            judge_error(error)
            raise
        assert arrivals, "receive returns at least one arrival"
        self._look(subscription)
        for each in arrivals:
            assert type(each.received) is int, "received is boot time, ns"
            assert self._latest <= each.received, f"received at {each.received}, what was before at {self._latest}"
            assert each.received <= subscription.heard, f"received at {each.received}, heard at {subscription.heard}"
            self._latest = each.received
            for index, group in each.concerns:
                assert 0 <= index < len(self.devices), f"concerns device {index} of {len(self.devices)}"
                assert group in self.devices[index].chosen, f"concerns group {group!r}, which is not selected"
        return arrivals

    async def take(self, subscription: Subscription, count: int = 1) -> list[Arrival]:
        """The next arrivals, whatever receive returns at a time."""
        with anyio.fail_after(self._subject.within):
            while len(self._waiting) < count:
                self._waiting += await self.receive(subscription)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def lost(self, subscription: Subscription) -> AcquisitionError:
        """What receive raises once the connection is lost, what came before it set aside."""
        with anyio.fail_after(self._subject.within):
            while True:
                try:
                    await self.receive(subscription)
                except AcquisitionError as error:
                    return error

    def decode(self, arrival: Arrival, *, again: bool = False) -> Meaning:
        """What an arrival means: good values by device and group. ``again``: it may be marked as coming a second time.
        Raises AcquisitionError, DECODE_ERROR.
        """
        meaning: dict[tuple[str, str], Values] = {}
        for index, group in arrival.concerns:
            device = self.devices[index]
            try:
                sample = device.device.decode(group, arrival)
            except AcquisitionError as error:
                judge_error(error, {Cause.DECODE_ERROR})
                raise
            finally:
                device.look()
            points = device.device.points(group)
            judge_sample(points, sample, since=arrival.received, until=arrival.received)
            bad = {at for at, code in sample.quality if not (again and code is Quality.POSSIBLE_DUPLICATE)}
            pairs = enumerate(zip(points, sample.values, strict=True))
            meaning[device.id, group] = {point.name: value for at, (point, value) in pairs if at not in bad}
        return meaning

    def check(self, arrivals: Sequence[Arrival], numbers: Sequence[int], *, again: bool = False) -> None:
        """These arrivals are those messages, in this order."""
        found = [self.decode(each, again=again) for each in arrivals]
        assert found == [self._subject.expected(number) for number in numbers]


class EventAdapterConformance(AdapterConformance):
    """The suite for adapters whose devices send their values when they like."""

    subject_type: ClassVar[type[EventSubject]]
    may_lack: ClassVar[Mapping[str, str]] = {"test_points_change_with_the_revision": "change"}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[Any, Listening]]:
        """A subject that answers, and its adapter, which has not subscribed yet."""
        async with self.started() as subject:
            clock, selection = SuiteClock(), self.selection(subject)
            async with self.adapter(subject, clock, selection) as adapter:
                yield subject, Listening(subject, adapter, selection, clock)

    def judge_group(self, device: Any, name: str) -> None:
        """It is due when a message comes."""
        assert getattr(device.groups[name], "every", None) is None, "an event-driven group has no `every`"

    async def test_silence_has_a_length(self) -> None:
        """Ns, or None."""
        async with self.listening() as (_, listening):
            for device in listening.devices:
                length = device.device.silent_after
                assert length is None or (type(length) is int and length > 0), f"silent_after {length!r}"

    # ---- messages -----------------------------------------------------------------------------------------------

    async def test_messages_come_in_order(self) -> None:
        """Each once, with the time of its reception, and they mean what was sent."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            numbers = range(1, 11)
            for number in numbers:
                await subject.send(number)
            for number in numbers:
                arrivals = await listening.take(subscription)
                listening.check(arrivals, [number])
                subscription.acknowledge(arrivals[0])

    async def test_junk_costs_nothing_but_itself(self) -> None:
        """Anybody may send anything: decode raises DECODE_ERROR at most, and the next message is as good as ever."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            least = await subject.send_junk()
            await subject.send(1)
            junk = 0
            with anyio.fail_after(subject.within):
                while True:
                    (arrival,) = await listening.take(subscription)
                    meaning = None
                    with suppress(AcquisitionError):
                        meaning = listening.decode(arrival)
                    subscription.acknowledge(arrival)
                    if meaning == subject.expected(1):
                        break
                    junk += 1
            assert junk >= least

    async def test_more_than_the_window(self) -> None:
        """Acknowledging keeps the source going."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            numbers = range(1, 2 * min(subscription.window or 10, 100) + 2)
            for number in numbers:
                await subject.send(number)
            for number in numbers:
                arrivals = await listening.take(subscription)
                listening.check(arrivals, [number])
                subscription.acknowledge(arrivals[0])

    async def test_points_change_with_the_revision(self) -> None:
        """In decode, and what it returns belongs to the new points."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            await subject.send(1)
            listening.check(await listening.take(subscription), [1])
            revisions = [device.device.revision for device in listening.devices]
            await subject.change()
            await subject.send(2)
            listening.check(await listening.take(subscription), [2])
            assert [device.device.revision for device in listening.devices] != revisions

    # ---- acknowledgements ---------------------------------------------------------------------------------------

    async def test_nothing_is_acknowledged_before_it_is_on_disk(self) -> None:
        """And then in the order of arrival."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            for number in (1, 2, 3):
                await subject.send(number)
            arrivals = await listening.take(subscription, 3)
            can_tell = subject.acknowledged() is not None
            for number, arrival in enumerate(arrivals, 1):
                if can_tell:
                    assert list(subject.acknowledged()) == list(range(1, number))
                subscription.acknowledge(arrival)
                if can_tell:
                    await _acknowledged(subject, number)
            if can_tell:
                assert list(subject.acknowledged()) == [1, 2, 3]

    async def test_acknowledging_over_a_lost_connection_does_nothing(self) -> None:
        """It never raises: what was not acknowledged comes again."""
        async with self.listening() as (subject, listening):
            async with listening.subscribe() as subscription:
                await subject.send(1)
                arrivals = await listening.take(subscription)
                await subject.drop()
                assert (await listening.lost(subscription)).cause is Cause.LINK_DOWN
                subscription.acknowledge(arrivals[0])
            subscription.acknowledge(arrivals[0])

    # ---- trouble ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("trouble", ["stop", "silence"])
    async def test_who_cannot_be_reached(self, trouble: str) -> None:
        """LINK_DOWN in time, and later it works."""
        async with self.listening() as (subject, listening):
            await (subject.stop() if trouble == "stop" else subject.silence())
            for _ in range(2):
                assert (await listening.refusal()).cause is Cause.LINK_DOWN
            await subject.stop()
            await subject.start()
            async with listening.subscribe() as subscription:
                await subject.send(1)
                listening.check(await listening.take(subscription), [1])

    async def test_a_lost_connection(self) -> None:
        """LINK_DOWN; over the next one comes what was not acknowledged, if the source keeps it."""
        async with self.listening() as (subject, listening):
            async with listening.subscribe() as subscription:
                assert not subscription.resumed
                for number in (1, 2, 3):
                    await subject.send(number)
                arrivals = await listening.take(subscription, 3)
                subscription.acknowledge(arrivals[0])
                if subject.keeps:
                    await _acknowledged(subject, 1)
                await subject.drop()
                assert (await listening.lost(subscription)).cause is Cause.LINK_DOWN
            async with listening.subscribe() as subscription:
                assert subscription.resumed is subject.keeps
                await subject.send(4)
                numbers = [2, 3, 4] if subject.keeps else [4]
                listening.check(await listening.take(subscription, len(numbers)), numbers, again=True)

    # ---- the end, and cancellation ------------------------------------------------------------------------------

    async def test_leaving_closes_the_connection(self) -> None:
        """No task, thread or socket stays, while the source goes on."""
        async with self.listening() as (subject, listening):
            for number in (1, 2):
                async with nothing_left(subject.within), listening.subscribe() as subscription:
                    await subject.send(number)
                    arrivals = await listening.take(subscription)
                    subscription.acknowledge(arrivals[0])

    async def test_close_ends_a_subscription(self) -> None:
        """Who receives learns that the connection is gone."""
        async with self.listening() as (_, listening), listening.subscribe() as subscription:
            causes = []

            async def receive() -> None:
                causes.append((await listening.lost(subscription)).cause)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await listening.adapter.close()
            assert causes == [Cause.LINK_DOWN]

    async def test_receiving_cancelled_at_any_wait_loses_nothing(self) -> None:
        """Every message still comes, once and in order."""
        async with self.listening() as (subject, listening), listening.subscribe() as subscription:
            got: list[Arrival] = []
            sent, reached = 0, True

            async def receive() -> None:
                got.extend(await listening.receive(subscription))

            for at in itertools.count():
                if not reached:
                    break
                known = len(got)
                await cancelled_at(0, receive)  # while nothing comes
                await subject.send(sent := sent + 1)
                reached = await cancelled_at(at, receive)
                with anyio.fail_after(subject.within):
                    while len(got) < sent:
                        await receive()
                for arrival in got[known:]:
                    subscription.acknowledge(arrival)
            listening.check(got, range(1, sent + 1))

    async def test_subscribing_cancelled_at_any_wait(self) -> None:
        """Nothing stays open, and the next time it works."""
        async with self.listening() as (subject, listening):

            async def subscribe() -> None:
                async with listening.adapter.subscribe():
                    pass

            for at in itertools.count():
                async with nothing_left(subject.within):
                    if not await cancelled_at(at, subscribe):
                        break
            async with listening.subscribe() as subscription:
                await subject.send(1)
                listening.check(await listening.take(subscription), [1])


async def _acknowledged(subject: EventSubject, count: int) -> None:
    """Wait until the source has seen so many acknowledgements."""
    with anyio.fail_after(subject.within):
        while len(subject.acknowledged() or ()) < count:  # noqa: ASYNC110 - the source has no event
            await anyio.sleep(0.001)
