"""Which points a channel sends: patterns over ``device/group/point``, deny by default.

Pure. A pattern costs as many comparisons as there are names that begin like it, so that a hundred patterns over ten
thousand points are judged in well under a second.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any

_MAGIC = re.compile(r"[*?[]")
_LAST = chr(0x10FFFF)

Selection = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Points by device and group, in the device's order; groups and devices without any left out."""


class Names:
    """The points of all devices, by their names."""

    def __init__(self, devices: Iterable[Any]) -> None:
        """``devices``: of an adapter's device_model (agent/kinds.py)."""
        self._points: dict[str, dict[str, dict[str, str]]] = {
            device.id: {
                group: {f"{device.id}/{group}/{point}": point for point in device.point_names(group)}
                for group in device.groups
            }
            for device in devices
        }
        self._sorted = sorted(name for groups in self._points.values() for names in groups.values() for name in names)

    @property
    def devices(self) -> Collection[str]:
        """The ids of the devices."""
        return self._points.keys()

    def matching(self, pattern: str) -> list[str]:
        """The names that a pattern names."""
        magic = _MAGIC.search(pattern)
        start = pattern if magic is None else pattern[: magic.start()]
        match = re.compile(translate(pattern)).match
        low, high = bisect_left(self._sorted, start), bisect_left(self._sorted, start + _LAST)
        return [name for name in self._sorted[low:high] if match(name)]

    def selection(self, patterns: Sequence[str]) -> Selection:
        """What the patterns name together."""
        chosen = {name for pattern in set(patterns) for name in self.matching(pattern)}
        selected = {}
        for device, groups in self._points.items():
            found = {
                group: tuple(point for name, point in names.items() if name in chosen)
                for group, names in groups.items()
            }
            if some := {group: points for group, points in found.items() if points}:
                selected[device] = some
        return selected

    def without(self, selections: Iterable[Selection]) -> list[str]:
        """What none of the selections holds: names, or patterns for whole groups and devices."""
        taken = {
            (device, group, point)
            for selected in selections
            for device, groups in selected.items()
            for group, points in groups.items()
            for point in points
        }
        left = []
        for device, groups in self._points.items():
            rest = {
                group: [f"{device}/{group}/{point}" for point in names.values() if (device, group, point) not in taken]
                for group, names in groups.items()
            }
            if all(len(rest[group]) == len(groups[group]) for group in groups):
                left.append(f"{device}/*")
                continue
            for group, names in rest.items():
                left += [f"{device}/{group}/*"] if len(names) == len(groups[group]) else names
        return left
