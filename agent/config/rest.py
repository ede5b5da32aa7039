"""What is left of a table when what was refused in it is taken away, so that the rest can be judged all the same.

pydantic judges what several keys say together only when each key by itself is good. Taken away is only that on which
no other key depends: what the caller knows to be such, elements of lists, and then tables two levels down (a group).
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from agent.config.toml_lines import Key


class Rest:
    """``raw``: the table without what was refused so far."""

    def __init__(self, table: Any, taken: Set[Key] = frozenset()) -> None:
        self._table = table
        self._taken = taken
        self._kept: dict[Key, list[int]] = {}  # of each list, the elements that are left
        self.raw = self._left(table, ()) if taken else table

    @property
    def is_whole(self) -> bool:
        """Whether nothing was taken away."""
        return not self._taken

    def less(self, refused: Mapping[Key, Key]) -> Rest | None:
        """Without what was refused in it, too; None if nothing more can be taken away.

        ``refused``: keys within the whole table, each with the key around it on which nothing depends; () if that is
        not known. Groups go only when no more elements do, as these may hide what else is wrong within a group.
        """
        for around in (_element, _group):
            taken = self._taken | {alone or around(key) for key, alone in refused.items()} - {()}
            if taken != self._taken:
                return Rest(self._table, taken)
        return None

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
    """The innermost element of a list that a key is in; () if there is none."""
    indexes = [index for index, part in enumerate(key) if isinstance(part, int)]
    return key[: indexes[-1] + 1] if indexes else ()


def _group(key: Key) -> Key:
    """The table two levels down that a key is in; () if there is none."""
    return key[:2] if len(key) > 2 else ()
