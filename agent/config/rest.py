"""What is left of a table when what was refused in it is taken away, so that the rest can be judged all the same.

pydantic judges what several keys say together only when each key by itself is good. Taken away is only that on which
no other key depends: unknown keys that are no misspelt ones, elements of lists, and tables two levels down (a group).
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.config.toml_lines import Key


class Rest:
    """``raw``: the table without what was refused."""

    def __init__(self, raw: Mapping[str, Any], taken: set[Key]) -> None:
        self._taken = taken
        self._kept: dict[Key, list[int]] = {}  # of each list, the elements that are left
        self.raw = self._left(raw, ())

    @classmethod
    def of(cls, raw: Any, refused: Mapping[Key, bool]) -> Rest | None:
        """``refused``: keys within the table, and whether nothing depends on each. None if others may depend on one."""
        taken = {key if stray else _element(key) for key, stray in refused.items()}
        return None if () in taken else cls(raw, taken)

    def original(self, key: Key) -> Key:
        """Where in the whole table stands what has this key in the rest."""
        place: Key = ()
        for part in key:
            kept = self._kept.get(place)
            place = (*place, part if kept is None or not isinstance(part, int) else kept[part])
        return place

    def lacks(self, key: Key) -> bool:
        """Whether something within this key of the whole table was taken away, so that it may be too short."""
        return any(taken[: len(key)] == key for taken in self._taken)

    def _left(self, value: Any, at: Key) -> Any:
        if isinstance(value, dict):
            return {
                name: self._left(each, (*at, name)) for name, each in value.items() if (*at, name) not in self._taken
            }
        if isinstance(value, list):
            kept = self._kept[at] = [index for index in range(len(value)) if (*at, index) not in self._taken]
            return [self._left(value[index], (*at, index)) for index in kept]
        return value


def _element(key: Key) -> Key:
    """The innermost element of a list, or the table two levels down, that a key is in; () if there is none."""
    indexes = [index for index, part in enumerate(key) if isinstance(part, int)]
    if indexes:
        return key[: indexes[-1] + 1]
    return key[:2] if len(key) > 2 else ()
