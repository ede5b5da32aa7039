"""The tables of an adapter's configuration, and its construction (agent/kinds.py): for both kinds of adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest

from adapters.conformance.judge import Watched
from adapters.conformance.subject import CONNECTION, Subject, Table
from adapters.conformance.watch import SuiteClock, no_network, nothing_left
from agent.ports import DeviceSelection

MS = 1_000_000
_UNKNOWN = "no_such_key_as_this"

Selection = Sequence[DeviceSelection]


def _error(model: Any, table: Table) -> Any:
    """The error with which a model refuses a table."""
    with pytest.raises(ValueError) as caught:
        model.model_validate(table)
    assert hasattr(caught.value, "errors"), f"models raise pydantic's ValidationError, not {caught.value!r}"
    return caught.value


def _places(error: Any) -> set[tuple[Any, ...]]:
    return {tuple(each["loc"]) for each in error.errors()}


def _selected(device: Any) -> DeviceSelection:
    return DeviceSelection(device, {group: device.point_names(group) for group in device.groups})


class AdapterConformance:
    """What holds for every adapter."""

    pytestmark = pytest.mark.anyio
    subject_type: ClassVar[type[Any]]
    """The subject; made anew for each test."""

    may_lack: ClassVar[Mapping[str, str]] = {}
    """Tests by what a subject must have for them; a suite without it does not have the test."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        subject: Any = getattr(cls, "subject_type", None)
        if subject is None:
            return
        own = [each for each in subject.__mro__ if each.__module__ != Subject.__module__]
        for test, needed in cls.may_lack.items():
            if not any(needed in vars(each) for each in own):
                setattr(cls, test, None)

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The agent runs on asyncio."""
        return "asyncio"

    # ---- the stage ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Any]:
        """A subject that answers; nothing is left when it has stopped."""
        subject: Subject = self.subject_type()
        async with nothing_left(subject.within):
            try:
                await subject.start()
                yield subject
            finally:
                with anyio.CancelScope(shield=True):
                    await subject.stop()

    @asynccontextmanager
    async def adapter(
        self, subject: Subject, clock: SuiteClock, selection: Selection | None = None
    ) -> AsyncIterator[Any]:
        """An adapter that reads all that its tables say, or a selection of it."""
        chosen = self.selection(subject) if selection is None else selection
        connection = subject.adapter.connection_model.model_validate(subject.connection())
        adapter = subject.adapter(CONNECTION, connection, chosen, clock)
        try:
            yield adapter
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(subject.within):
                await adapter.close()

    def selection(self, subject: Subject) -> Selection:
        """All points of all devices."""
        return [_selected(subject.adapter.device_model.model_validate(table)) for table in subject.devices()]

    # ---- tables -------------------------------------------------------------------------------------------------

    async def test_good_tables_are_accepted(self) -> None:
        """A device's model says its id, its connection, its groups and the names of their points."""
        async with self.started() as subject:
            with no_network():
                subject.adapter.connection_model.model_validate(subject.connection())
                devices = [each.config for each in self.selection(subject)]
        assert [device.id for device in devices] == [table["id"] for table in subject.devices()]
        assert {device.connection for device in devices} == {CONNECTION}
        for device in devices:
            assert device.groups, f"{device.id} has no group"
            for name in device.groups:
                self.judge_group(device, name)
                points = device.point_names(name)
                assert points, f"{device.id}/{name} has no points"
                assert all(isinstance(point, str) for point in points)
                assert len(set(points)) == len(points), f"{device.id}/{name}: two points of one name"
        assert len(devices) > 1, "the suite needs two devices"
        assert any(len(device.groups) > 1 for device in devices), "the suite needs a device with two groups"

    def judge_group(self, device: Any, name: str) -> None:
        """What a device's model says of how often a group is read."""
        raise NotImplementedError

    async def test_unknown_keys_are_refused_where_they_are(self) -> None:
        """Nothing is accepted and ignored; a key is found in every table."""
        async with self.started() as subject:
            adapter, connection, devices = subject.adapter, subject.connection(), subject.devices()
        bad = connection | {_UNKNOWN: 1}
        assert (_UNKNOWN,) in _places(_error(adapter.connection_model, bad))
        for table in devices:
            assert (_UNKNOWN,) in _places(_error(adapter.device_model, table | {_UNKNOWN: 1}))
            for name, group in table["groups"].items():
                groups = table["groups"] | {name: group | {_UNKNOWN: 1}}
                assert ("groups", name, _UNKNOWN) in _places(_error(adapter.device_model, table | {"groups": groups}))

    async def test_all_problems_are_found_at_once(self) -> None:
        """Not only the first."""
        async with self.started() as subject:
            model, table = subject.adapter.device_model, subject.devices()[0]
        groups = {name: group | {_UNKNOWN: 1} for name, group in table["groups"].items()}
        error = _error(model, table | {"groups": groups, _UNKNOWN: 1, _UNKNOWN + "_either": 1, "id": 5})
        found = _places(error)
        assert {(_UNKNOWN,), (_UNKNOWN + "_either",), ("id",)} | {
            ("groups", name, _UNKNOWN) for name in groups
        } <= found

    async def test_what_is_refused_has_a_remedy(self) -> None:
        """A problem that the model states itself reads "what is wrong; what to do"."""
        async with self.started() as subject:
            model, tables = subject.adapter.device_model, subject.refused()
        for table in tables:
            for each in _error(model, table).errors():
                what, mark, remedy = str(each["msg"]).rpartition("; ")
                assert each["type"] != "value_error" or (what and mark and remedy), f"no remedy: {each['msg']}"

    # ---- construction -------------------------------------------------------------------------------------------

    async def test_construction_touches_no_network(self) -> None:
        """A check of a configuration, and a start without the network, must be possible."""
        async with self.started() as subject:
            with no_network():
                async with self.adapter(subject, SuiteClock()):
                    pass

    async def test_devices_and_points_are_those_selected(self) -> None:
        """Before the other end was reached, and in the selection's order: what is not selected is not read."""
        async with self.started() as subject:
            every = self.selection(subject)
            turned = [DeviceSelection(s.config, {g: tuple(reversed(n)) for g, n in s.groups.items()}) for s in every]
            fewer = [DeviceSelection(s.config, {g: n[-1:] for g, n in list(s.groups.items())[-1:]}) for s in every[-1:]]
            for selection in (every, turned, fewer):
                async with self.adapter(subject, SuiteClock(), selection) as adapter:
                    assert len(adapter.devices) == len(selection)
                    for device, chosen in zip(adapter.devices, selection, strict=True):
                        Watched(device, chosen).look()

    async def test_closing_twice_does_no_harm(self) -> None:
        """Nor does closing what was never used."""
        async with self.started() as subject, self.adapter(subject, SuiteClock()) as adapter:
            await adapter.close()
            await adapter.close()
