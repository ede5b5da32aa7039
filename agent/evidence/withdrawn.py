"""Withdrawn ranges: which records may be missing, as plans state it (docs/evidence.md section 4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from agent.model import Withdrawn

MOST = 16  # entries in a plan


def merged(entries: Iterable[Withdrawn]) -> tuple[Withdrawn, ...]:
    """Neighbours and overlaps of one stream and cause made one; past 16 the two nearest of one stream are joined over
    what lies between.

    That joins what was not lost into a range of what may be: it is only a permission. Streams keep the order in which
    they came; where no two entries are of one stream the oldest go, nothing joins them.
    """
    places: dict[bytes, int] = {}
    given = list(entries)
    for entry in given:
        places.setdefault(entry.stream, len(places))
    found = _joined(given, places)
    while len(found) > MOST:
        distances = [(after.first - before.last, i) for i, before, after in _neighbours(found)]
        if distances:
            _, nearest = min(distances)
            before, after = found[nearest], found.pop(nearest + 1)
            found[nearest] = replace(before, last=max(before.last, after.last))
            found = _joined(found, places)  # it may reach a neighbour of its own cause now
        else:
            found.pop(0)
    return tuple(found)


def _joined(entries: Iterable[Withdrawn], places: dict[bytes, int]) -> list[Withdrawn]:
    """Sorted, neighbours and overlaps of one stream and cause made one."""
    found: list[Withdrawn] = []
    for entry in sorted(entries, key=lambda e: (places[e.stream], e.first)):
        last = found[-1] if found else None
        if (
            last is not None
            and (last.stream, last.cause) == (entry.stream, entry.cause)
            and entry.first <= last.last + 1
        ):
            found[-1] = replace(last, last=max(last.last, entry.last))
        else:
            found.append(entry)
    return found


def _neighbours(entries: list[Withdrawn]) -> Iterator[tuple[int, Withdrawn, Withdrawn]]:
    for i, (before, after) in enumerate(pairwise(entries)):
        if before.stream == after.stream:
            yield i, before, after
