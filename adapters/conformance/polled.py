"""What a PolledAdapter promises (agent/ports.py), as tests."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar

import anyio
import pytest

from adapters.conformance.judge import Watched, judge_error, judge_sample
from adapters.conformance.subject import PolledSubject
from adapters.conformance.tables import MS, AdapterConformance, Selection
from adapters.conformance.watch import S, SuiteClock, cancelled_at, nothing_left
from agent.errors import AcquisitionError
from agent.model import Cause, Point, Sample
from agent.ports import DeviceSelection

Act = Callable[[Watched, str], Coroutine[Any, Any, object]]

_NO_ANSWER = {Cause.DEVICE_TIMEOUT, Cause.SOURCE_SILENT, Cause.LINK_DOWN}


class Polled:
    """An adapter under test: every call is judged."""

    def __init__(self, subject: PolledSubject, adapter: Any, selection: Selection, clock: SuiteClock) -> None:
        self.adapter = adapter
        self._subject = subject
        self._clock = clock
        self.devices = [Watched(each, chosen) for each, chosen in zip(adapter.devices, selection, strict=True)]
        self.groups = [(device, group) for device in self.devices for group in device.chosen]

    async def prepare(self, device: Watched) -> None:
        """Raises AcquisitionError, and nothing else."""
        with anyio.fail_after(self._subject.within):
            try:
                await device.device.prepare()
            except AcquisitionError as error:
                judge_error(error)
                raise
            finally:
                device.look()

    async def acquire(self, device: Watched, group: str) -> Sample:
        """A sample of the points as they were when this began. Raises AcquisitionError, and nothing else."""
        points, since = device.device.points(group), self._clock.boot()
        with anyio.fail_after(self._subject.within):
            try:
                sample: Sample = await device.device.acquire(group)
            except AcquisitionError as error:
                judge_error(error)
                raise
            finally:
                device.look()
        judge_sample(points, sample, since=since, until=self._clock.boot())
        return sample

    async def read(self, device: Watched, group: str) -> Sample:
        """As the engine does it: acquire until it works, and hold the values against the other end's."""
        with anyio.fail_after(self._subject.within):
            points, sample = await self._until_it_works(device, group)
        bad = {index for index, _ in sample.quality}
        pairs = enumerate(zip(points, sample.values, strict=True))
        found = {point.name: value for index, (point, value) in pairs if index not in bad}
        for name, value in self._subject.expected(device.id, group).items():
            if name in device.chosen[group]:
                assert found.get(name) == value, f"{device.id}/{group}/{name} is {found.get(name)!r}, not {value!r}"
        return sample

    async def _until_it_works(self, device: Watched, group: str) -> tuple[Sequence[Point], Sample]:
        while True:
            points = device.device.points(group)
            try:
                return points, await self.acquire(device, group)
            except AcquisitionError:
                self._clock.advance(120 * S)  # any back-off is over
                await anyio.sleep(0.001)

    async def error(self, device: Watched, group: str) -> AcquisitionError:
        """What an acquisition that cannot work raises."""
        with pytest.raises(AcquisitionError) as caught:
            await self.acquire(device, group)
        return caught.value


class PolledAdapterConformance(AdapterConformance):
    """The suite for adapters whose devices are asked for their values."""

    subject_type: ClassVar[type[PolledSubject]]
    may_lack: ClassVar[Mapping[str, str]] = {
        "test_another_device_is_noticed": "change",
        "test_junk_is_an_error": "junk",
    }

    @asynccontextmanager
    async def polled(
        self, subject: PolledSubject, selection: Selection | None = None, *, clock: SuiteClock | None = None
    ) -> AsyncIterator[Polled]:
        """An adapter of the subject, watched."""
        clock, selection = clock or SuiteClock(), self.selection(subject) if selection is None else selection
        async with self.adapter(subject, clock, selection) as adapter:
            yield Polled(subject, adapter, selection, clock)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[tuple[PolledSubject, Polled]]:
        """A subject that answers, and its adapter."""
        async with self.started() as subject, self.polled(subject) as polled:
            yield subject, polled

    def judge_group(self, device: Any, name: str) -> None:
        """``every`` and, if there is one, ``phase`` are ns; the phase may be "auto"."""
        every = device.groups[name].every
        assert type(every) is int, f"`every` is ns, not {every!r}"
        assert every >= MS, "`every` is 1 ms or more"
        phase = getattr(device.groups[name], "phase", 0)
        assert phase == "auto" or type(phase) is int, f"`phase` is ns or auto, not {phase!r}"
        assert phase == "auto" or 0 <= phase < every, f"`phase` is less than `every`, not {phase}"

    # ---- samples ------------------------------------------------------------------------------------------------

    async def test_samples(self) -> None:
        """Every group yields what the other end has, prepared or not."""
        async with self.answering() as (_, polled):
            for device in polled.devices[1:]:
                await polled.prepare(device)
            for _ in range(3):
                for device, group in polled.groups:
                    await polled.read(device, group)

    async def test_a_selection_is_what_is_read(self) -> None:
        """Points in the selection's order, and no others."""
        async with self.started() as subject:
            every = self.selection(subject)
            turned = [DeviceSelection(s.config, {g: tuple(reversed(n)) for g, n in s.groups.items()}) for s in every]
            fewer = [DeviceSelection(s.config, {g: n[-1:] for g, n in list(s.groups.items())[-1:]}) for s in every[-1:]]
            for selection in (turned, fewer):
                async with self.polled(subject, selection) as polled:
                    for device, group in polled.groups:
                        await polled.read(device, group)

    async def test_a_device_that_stays_the_same_makes_no_new_plans(self) -> None:
        """A revision per cycle would be a plan per cycle."""
        async with self.answering() as (_, polled):
            for device, group in polled.groups:
                await polled.prepare(device)
                await polled.read(device, group)
            revisions = [device.device.revision for device in polled.devices]
            for device, group in polled.groups * 3:
                await polled.acquire(device, group)
            for device in polled.devices:
                await polled.prepare(device)
            assert [device.device.revision for device in polled.devices] == revisions

    async def test_groups_and_devices_at_the_same_time(self) -> None:
        """Pollers of several groups share a connection; each gets its own values."""
        async with self.answering() as (_, polled), anyio.create_task_group() as tasks:
            for device, group in polled.groups * 4:
                tasks.start_soon(polled.read, device, group)

    # ---- trouble ------------------------------------------------------------------------------------------------

    async def test_nobody_listens(self) -> None:
        """LINK_DOWN, and nothing is tried for ever."""
        async with self.answering() as (subject, polled):
            await subject.stop()
            for device, group in polled.groups:
                with suppress(AcquisitionError):  # it may have nothing to prepare
                    await polled.prepare(device)
                error = await polled.error(device, group)
                assert error.cause is Cause.LINK_DOWN, f"{error.cause!r}: {error.detail}"

    @pytest.mark.parametrize("known", [False, True])
    async def test_a_silent_other_end_is_an_error_in_time(self, known: bool) -> None:
        """Before the first answer and behind it; the event loop goes on meanwhile."""
        async with self.answering() as (subject, polled):
            device, group = polled.groups[0]
            if known:
                await polled.read(device, group)
            await subject.silence()
            turns = 0

            async def turn() -> None:
                nonlocal turns
                while True:
                    await anyio.sleep(0.001)
                    turns += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(turn)
                error = await polled.error(device, group)
                tasks.cancel_scope.cancel()
            assert error.cause in _NO_ANSWER, f"{error.cause!r}: {error.detail}"
            assert turns, "the event loop was blocked"

    @pytest.mark.parametrize("trouble", ["stop", "silence"])
    async def test_it_comes_back(self, trouble: str) -> None:
        """Each acquisition tries anew, whatever was before."""
        async with self.answering() as (subject, polled):
            for _ in range(2):
                for device, group in polled.groups:
                    await polled.read(device, group)
                await (subject.stop() if trouble == "stop" else subject.silence())
                for device, group in polled.groups:
                    await polled.error(device, group)
                await subject.stop()
                await subject.start()
            for device, group in polled.groups:
                await polled.read(device, group)

    async def test_junk_is_an_error(self) -> None:
        """It costs the acquisition and nothing else."""
        async with self.answering() as (subject, polled):
            for known in (False, True):
                await subject.junk()
                for device, group in polled.groups:
                    if known:
                        await polled.error(device, group)
                    else:
                        with suppress(AcquisitionError):
                            await polled.prepare(device)
                await subject.stop()
                await subject.start()
                for device, group in polled.groups:
                    await polled.read(device, group)

    async def test_another_device_is_noticed(self) -> None:
        """Info or points change together with the revision, and no value is taken for the old device's."""
        async with self.answering() as (subject, polled):
            for device, group in polled.groups:
                await polled.prepare(device)
                await polled.read(device, group)
            revisions = [device.device.revision for device in polled.devices]
            await subject.change()
            for device, group in polled.groups:
                await polled.read(device, group)
            assert [device.device.revision for device in polled.devices] != revisions, "the change was not noticed"

    # ---- the end ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("known", [False, True])
    async def test_close_ends_acquisitions_under_way(self, known: bool) -> None:
        """LINK_DOWN, at once: not only when the answer's time is up."""
        async with self.answering() as (subject, polled):
            if known:
                for device, group in polled.groups:
                    await polled.read(device, group)
            await subject.silence()
            ended = []

            async def acquire(device: Watched, group: str) -> None:
                ended.append(await polled.error(device, group))

            async with anyio.create_task_group() as tasks:
                for device, group in polled.groups:
                    tasks.start_soon(acquire, device, group)
                await anyio.wait_all_tasks_blocked()
                assert not ended, "it had ended before close; let time-outs be longer"
                await polled.adapter.close()
            assert {error.cause for error in ended} == {Cause.LINK_DOWN}
            for device, group in polled.groups:
                error = await polled.error(device, group)
                assert error.cause is Cause.LINK_DOWN, "it is closed"

    async def test_close_leaves_nothing(self) -> None:
        """No task, thread or socket, while the other end goes on."""
        async with self.started() as subject:
            for _ in range(2):
                async with nothing_left(subject.within), self.polled(subject) as polled:
                    for device, group in polled.groups:
                        await polled.read(device, group)

    # ---- cancellation -------------------------------------------------------------------------------------------

    async def _cancel_everywhere(self, polled: Polled, act: Act, at: int) -> bool:
        """Cancel an act of each group at one of its waits; whether any had so many."""
        reached = False
        for device, group in polled.groups:
            reached |= await cancelled_at(at, partial(act, device, group))
            device.look()
        return reached

    async def test_cancelled_at_any_wait_it_goes_on(self) -> None:
        """A term's end cancels an acquisition; the next one works, also of the other groups."""
        async with self.answering() as (_, polled):
            for device, group in polled.groups:
                await polled.read(device, group)
            for at in itertools.count():
                reached = await self._cancel_everywhere(polled, polled.acquire, at)
                for device, group in polled.groups:
                    await polled.read(device, group)
                if not reached:
                    break

    @pytest.mark.parametrize("preparing", [False, True])
    async def test_cancelled_at_any_wait_of_the_first_use(self, preparing: bool) -> None:
        """While it connects and learns what the devices are."""

        async def act(device: Watched, group: str) -> None:
            with suppress(AcquisitionError):  # what it just learned may be a new plan
                await (polled.prepare(device) if preparing else polled.acquire(device, group))

        async with self.started() as subject:
            reached = True
            for at in itertools.count():
                if not reached:
                    break
                async with nothing_left(subject.within), self.polled(subject) as polled:
                    reached = await self._cancel_everywhere(polled, act, at)
                    for device, group in polled.groups:
                        await polled.read(device, group)
