"""Judges what an adapter hands over: points, samples, errors, revisions. Pure; what is wrong is an AssertionError."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Quality, Sample, ValueType
from agent.ports import DeviceSelection

_TYPES = {
    ValueType.INTEGER: int,
    ValueType.FLOAT: float,
    ValueType.BOOLEAN: bool,
    ValueType.TEXT: str,
    ValueType.BYTES: bytes,
}
ADAPTERS_CAUSES = frozenset(
    {
        Cause.DEVICE_TIMEOUT,
        Cause.DEVICE_EXCEPTION,
        Cause.LINK_DOWN,
        Cause.SOURCE_SILENT,
        Cause.DECODE_ERROR,
    }
)
"""The others are the engine's to state."""


def judge_points(points: Sequence[Point], chosen: Sequence[str]) -> None:
    """They are those of the selection, in its order, and each is described as a plan needs it."""
    assert isinstance(points, tuple)
    names = [point.name for point in points]
    assert names == list(chosen), f"points are {names}, selected are {list(chosen)}"
    for point in points:
        assert isinstance(point.type, ValueType), f"{point.name}: type {point.type!r}"
        assert type(point.exponent) is int, f"{point.name}: exponent {point.exponent!r}"
        assert point.exponent == 0 or point.type is ValueType.INTEGER, f"{point.name}: only integers have an exponent"
        for text in (point.unit, point.source):
            assert text is None or (isinstance(text, str) and text), f"{point.name}: {text!r}"
        assert all(type(n) is int and isinstance(label, str) for n, label in point.labels.items()), point.name


def judge_info(info: DeviceInfo, config: Any) -> None:
    """It bears the configured id, and what a device says is text or nothing."""
    assert info.id == config.id, f"info says {info.id!r}, configured is {config.id!r}"
    assert isinstance(info.adapter, str), "info.adapter is the adapter's name"
    assert info.adapter, "info.adapter is the adapter's name"
    for text in (info.asset, info.manufacturer, info.model, info.serial, info.firmware):
        assert text is None or (isinstance(text, str) and text), f"what a device says is text or None, not {text!r}"


def judge_sample(points: Sequence[Point], sample: Sample, *, since: int, until: int) -> None:
    """Values match the points, what is null says why, and the times lie within the call."""
    assert isinstance(sample.values, tuple)
    assert len(sample.values) == len(points), f"{len(sample.values)} values for {len(points)} points"
    codes: dict[int, Quality] = {}
    for index, code in sample.quality:
        assert type(index) is int, f"quality of {index!r}"
        assert 0 <= index < len(points), f"quality of point {index} of {len(points)}"
        assert index not in codes, f"two codes for {points[index].name}; only the lowest that applies is sent"
        assert isinstance(code, Quality), f"{points[index].name}: {code!r} is no Quality"
        codes[index] = code
    for index, (point, value) in enumerate(zip(points, sample.values, strict=True)):
        missing = index in codes and codes[index] <= Quality.NO_VALUE
        assert (value is None) == missing, f"{point.name}: value {value!r} with quality {codes.get(index)!r}"
        if value is None:
            continue
        assert type(value) is _TYPES[point.type], f"{point.name}: {value!r} is no {point.type.name}"
        assert not isinstance(value, float) or math.isfinite(value), f"{point.name}: {value} is not finite"
        assert type(value) is not int or -(1 << 63) <= value < 1 << 64, f"{point.name}: {value} needs over 64 bits"
    assert type(sample.started) is type(sample.ended) is int, "times are whole ns"
    assert since <= sample.started <= sample.ended <= until, (
        f"acquired from {sample.started} to {sample.ended}, called from {since} to {until} (boot time)"
    )
    assert sample.source_time is None or type(sample.source_time) is int, "the source's time is whole ns"


def judge_error(error: AcquisitionError, causes: Collection[Cause] = ADAPTERS_CAUSES) -> None:
    """Its cause is one that may be stated here, and its detail is a line for the operator."""
    assert error.cause in causes, f"the cause is {error.cause!r}: {error.detail}"
    assert isinstance(error.detail, str), "the detail is text"
    assert error.detail, "the detail says what happened"
    assert error.detail.isprintable(), f"the detail is one line: {error.detail!r}"


class Watched:
    """A device under watch: whenever it is looked at, ``revision`` must have risen if info or points changed."""

    def __init__(self, device: Any, selection: DeviceSelection) -> None:
        self.device = device
        self.id: str = selection.config.id
        self.chosen: Mapping[str, Sequence[str]] = selection.groups
        self._revision: int = device.revision
        self._seen = self._said()

    def _said(self) -> tuple[DeviceInfo, dict[str, tuple[Point, ...]]]:
        return self.device.info, {group: self.device.points(group) for group in self.chosen}

    def look(self) -> None:
        """Judge what the device says of itself now."""
        said, revision = self._said(), self.device.revision
        judge_info(said[0], self)
        for group, names in self.chosen.items():
            judge_points(said[1][group], names)
        assert revision >= self._revision, f"revision fell from {self._revision} to {revision}"
        if said != self._seen:
            assert revision > self._revision, "info or points changed, and revision did not rise"
        self._revision, self._seen = revision, said
