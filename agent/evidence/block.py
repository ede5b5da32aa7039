"""Blocks: the frames of one group in one record, turned from rows into columns and back (docs/evidence.md section 4,
data).

By point, a column of integers holds the first value and then differences to the last one that was not null; floats,
texts and booleans stand plain. Columns of well-behaved integers are handled at C speed; a frame never becomes an
object per reading.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, chain, groupby, pairwise, repeat
from operator import attrgetter, countOf, ge, sub
from typing import Any

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.frames import Block, Cycles, runs_of
from agent.evidence.shape import array, known_keys, uint, uints
from agent.model import Frame, Plan, Quality, Value, ValueType

_LIMIT = 1 << 64  # integers and their differences: -2^64 to 2^64 - 1
_KEYS = frozenset(range(1, 9))
_BEYOND = "block: an integer beyond 64 bits"
_USUAL = 1 << 63  # within this neither a value nor a difference can reach the limit
_frame: Callable[[Iterable[Any]], Frame] = partial(tuple.__new__, Frame)  # Frame._make without a call of Python's


# ---- encode -----------------------------------------------------------------------------------------------------


def encode_blocks(frames: Sequence[Frame], types: Sequence[Sequence[ValueType]], *, sealed: int) -> bytes:
    """The array of blocks, one for each group that has frames. ``frames`` are by group, then by cycle; ``types`` holds
    each group's point types; ``sealed`` is the boot time of sealing, to which the reception of messages is told.
    """
    groups = groupby(frames, key=attrgetter("group"))
    return cbor.join([_encode(group, list(rows), types[group], sealed) for group, rows in groups])


def _encode(group: int, frames: list[Frame], types: Sequence[ValueType], sealed: int) -> bytes:
    first = frames[0].cycle
    quality = {(i, point): int(code) for i, frame in enumerate(frames) for point, code in frame.quality}
    rows = [frame.values for frame in frames]
    columns = _columns_of_differences(rows) if types.count(ValueType.INTEGER) == len(types) else None
    if columns is None:
        columns = cbor.encode(
            [
                _differences(column, point, quality) if kind == ValueType.INTEGER else _plain(column, point, quality)
                for point, (column, kind) in enumerate(zip(zip(*rows, strict=True), types, strict=True))
            ]
        )
    block: dict[int, Any] = {1: group, 2: [first, *(frame.cycle - first for frame in frames[1:])]}
    if frames[0].took_us is not None:
        block[3] = [frame.late_us for frame in frames]
        block[4] = [frame.took_us for frame in frames]
    else:
        block[3] = [
            frame.late_us if frame.received is None else max(0, sealed - frame.received) // 1000 for frame in frames
        ]
    encoded = {key: cbor.encode(item) for key, item in block.items()}
    encoded[5] = columns
    if quality:
        encoded[6] = cbor.encode([[i, point, quality[i, point]] for i, point in sorted(quality)])
    times = [frame.source_time for frame in frames]
    if times.count(None) < len(times):
        encoded[7] = cbor.encode(_differences(times, -1, {}))
    return cbor.join_map(encoded)


def _columns_of_differences(rows: Sequence[tuple[Any, ...]]) -> bytes | None:
    """The columns, encoded, of integers that are all there and far from the limit: at C speed. Else None."""
    try:
        with suppress(struct.error):  # more than a byte
            pack = struct.Struct(f"{len(rows[0])}b").pack
            steps = b"".join([pack(*map(sub, row, before)) for before, row in pairwise(rows)])
            if (encoded := cbor.encode_steps(rows[0], steps)) is not None:
                return encoded
        differences = zip(rows[0], *(map(sub, row, before) for before, row in pairwise(rows)), strict=True)
        return cbor.encode_integers(list(differences))  # each below 2^40: so are 2^20 frames of them below 2^60
    except (TypeError, OverflowError):  # a null, or more than 40 bits
        return None


def _differences(column: Sequence[Any], point: int, quality: dict[tuple[int, int], int]) -> list[int | None]:
    if None not in column and min(column) >= -_USUAL and max(column) < _USUAL:
        return [column[0], *map(sub, column[1:], column)]
    # Value by value: nulls, and numbers that CBOR's integers may not hold, which become null and say so.
    found: list[int | None] = []
    last = 0
    for i, value in enumerate(column):
        if value is not None and -_LIMIT <= value - last < _LIMIT and -_LIMIT <= value < _LIMIT:
            found.append(value - last)
            last = value
        else:
            found.append(None)
            _without_value(quality, (i, point))
    return found


def _plain(column: Sequence[Value], point: int, quality: dict[tuple[int, int], int]) -> list[Value]:
    found: list[Any] = list(column)
    if set(map(type, found)) == {float} and all(map(math.isfinite, found)) and 0.0 not in found:
        return found  # -0.0 == 0.0
    for i, value in enumerate(found):
        if value is None:
            _without_value(quality, (i, point))
        elif type(value) is float and not (math.isfinite(value) and value):
            if math.isfinite(value):
                found[i] = 0.0  # -0.0 too
            else:
                found[i] = None
                _without_value(quality, (i, point))
    return found


def _without_value(quality: dict[tuple[int, int], int], place: tuple[int, int]) -> None:
    """A null always has a code that nulls have."""
    if quality.get(place, len(Quality) + 1) > Quality.NO_VALUE:
        quality[place] = Quality.BAD_ENCODING


# ---- decode -----------------------------------------------------------------------------------------------------


def decode_block(block: Any, plan: Plan | None, unknown: list[str]) -> Block:
    """The frames of a block; with the plan also held against its groups and types. Raises EvidenceError for whatever is
    wrong with them, which are made later.
    """
    if type(block) is not dict:
        raise EvidenceError("a block is a map")
    known_keys(block, _KEYS, "block", unknown)
    group = uint(block.get(1), "block: group")
    cycles = array(block.get(2), "block: cycles")
    count = len(cycles)
    if not count:
        raise EvidenceError("block: no frames")
    uints(cycles, count, "block: cycles")
    first, distances = cycles[0], [0, *cycles[1:]]
    consecutive = distances == list(range(count))  # as nearly always
    if not consecutive and any(map(ge, distances, distances[1:])):
        raise EvidenceError("block: cycles do not increase")
    if first + distances[-1] >= _LIMIT:
        raise EvidenceError(_BEYOND)
    runs = [(first, first + count - 1)] if consecutive else runs_of(map(first.__add__, distances))
    late = uints(block.get(3), count, "block: late")
    took: Iterable[int | None] = uints(block[4], count, "block: took") if 4 in block else repeat(None)
    for key, kind in ((7, int), (8, bytes)):
        if key in block and set(map(type, array(block[key], "block", count))) - {kind, type(None)}:
            raise EvidenceError("block: source times are integers or null, raw responses bytes or null")
    times: Iterable[Any] = _column(block[7], ValueType.INTEGER) if 7 in block else repeat(None)
    columns = array(block.get(5), "block: values")
    if not columns:
        raise EvidenceError("block: no values")
    types = _types(group, len(columns), plan, periodic=4 in block)

    def frames(values: Iterable[Any], qualities: Iterable[Any]) -> Iterable[Frame]:
        grid = map(first.__add__, distances)
        return map(_frame, zip(repeat(group), grid, late, took, values, qualities, times, repeat(None)))

    if 6 not in block and _are_differences(columns, count, types):
        cover = Cycles(group, count, runs, ())
        return Block(cover, lambda: frames(zip(*map(accumulate, columns), strict=True), repeat(())))
    quality = _quality(block[6], count, len(columns), unknown) if 6 in block else {}
    decoded, qualities = _decoded(columns, count, types, quality)
    cover = Cycles(group, count, runs, [code for each in qualities for _, code in each])
    return Block(cover, lambda: frames(zip(*decoded, strict=True), qualities))


def _are_differences(columns: list[Any], count: int, types: Sequence[ValueType] | None) -> bool:
    """Whether all values are integers that are there, as nearly always: checked at C speed."""
    if [column for column in columns if type(column) is not list or len(column) != count]:
        return False
    if types is not None and types.count(ValueType.INTEGER) != len(types):
        return False
    values = list(chain.from_iterable(columns))
    if countOf(map(type, values), int) != len(values):
        return False
    if sum(map(abs, values)) >= _LIMIT:  # else no sum of some of them can be beyond it
        for sums in map(accumulate, columns):
            if any(not -_LIMIT <= each < _LIMIT for each in sums):
                raise EvidenceError(_BEYOND)
    return True


def _decoded(
    columns: list[Any], count: int, types: Sequence[ValueType] | None, quality: dict[int, dict[int, int]]
) -> tuple[list[Sequence[Value]], list[tuple[tuple[int, Quality], ...]]]:
    """Each column's values, each frame's quality codes."""
    decoded = []
    for point, column in enumerate(columns):
        decoded.append(_column(array(column, "block: values", count), types[point] if types else None))
        for i, value in enumerate(column) if None in column or point in quality else ():
            code = quality.get(point, {}).get(i)
            if (value is None) != (code is not None and code <= Quality.NO_VALUE) and not (code or 0) > max(Quality):
                raise EvidenceError("block: a null needs a quality code of null values, and only nulls have one")
    by_frame: list[list[tuple[int, Any]]] = [[] for _ in range(count)]
    for point, codes in sorted(quality.items()):
        for i, code in codes.items():
            by_frame[i].append((point, code))
    return decoded, [tuple(each) for each in by_frame]


def _types(group: int, columns: int, plan: Plan | None, *, periodic: bool) -> list[ValueType] | None:
    if plan is None:
        return None
    if group >= len(plan.groups):
        raise EvidenceError("block: no such group")
    planned = plan.groups[group]
    if len(planned.points) != columns:
        raise EvidenceError("block: not as many columns as the plan has points")
    if periodic != (planned.schedule is not None):
        raise EvidenceError("block: took is for periodic groups, and they always have it")
    return [point.type for point in planned.points]


def _quality(item: Any, frames: int, points: int, unknown: list[str]) -> dict[int, dict[int, int]]:
    """Quality codes by point, then frame."""
    found: dict[int, dict[int, int]] = {}
    before = (-1, -1)
    for entry in array(item, "block: quality"):
        frame, point, code = uints(entry, 3, "block: quality")
        if frame >= frames or point >= points or code < 1 or (frame, point) <= before:
            raise EvidenceError("block: quality names no value, or is not in order")
        if code > max(Quality):
            unknown.append(f"quality {code}")
        found.setdefault(point, {})[frame] = code
        before = (frame, point)
    if not found:
        raise EvidenceError("block: empty quality")
    return found


_PYTHON = {
    ValueType.INTEGER: int,
    ValueType.FLOAT: float,
    ValueType.BOOLEAN: bool,
    ValueType.TEXT: str,
    ValueType.BYTES: bytes,
}


def _column(column: list[Any], kind: ValueType | None) -> Sequence[Value]:
    """A column's values; integers from differences. Without a plan a column of integers is one of differences."""
    present = set(map(type, column)) - {type(None)}
    if len(present) > 1 or present - set(_PYTHON.values()) or (kind is not None and present - {_PYTHON[kind]}):
        raise EvidenceError("block: values of another type than the plan's")
    if present != {int}:
        return column
    if None not in column:
        values: list[Any] = list(accumulate(column))
    else:
        values, last = [], 0
        for delta in column:
            last += delta or 0
            values.append(None if delta is None else last)
    if any(value is not None and not -_LIMIT <= value < _LIMIT for value in values):
        raise EvidenceError(_BEYOND)
    return values
