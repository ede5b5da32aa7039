"""What CDDL cannot say of a body, and a data record's blocks turned into values (docs/evidence.md section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.independent.cbor import Refused

LOWEST, HIGHEST = -(2**64), 2**64 - 1
TYPES = (int, float, bool, str, bytes)
EMPTY_CODES = range(1, 5)  # with these the value is null
FULL_CODES = range(5, 10)  # with these it is there


def check_body(kind: int, body: Any) -> None:
    """What holds within one body, whatever came before it. Raises Refused."""
    if kind == 1:
        _check_plan(body)
    elif kind == 2:
        groups = [block[1] for block in body[1]]
        if len(set(groups)) < len(groups):
            raise Refused("body: a group has two blocks")
        for at, block in enumerate(body[1]):
            _check_block(block, f"body[1][{at}]")
        for at, gap in enumerate(body[2]):
            _check_gap(gap, f"body[2][{at}]")


def _check_plan(plan: dict[int, Any]) -> None:
    _check_names([device[0] for device in plan[8]], "body.8")
    _check_names([(group[2], group[1]) for group in plan[9]], "body.9")
    if (10 in plan) != (11 in plan):
        raise Refused("body: follows without resumes, or resumes without follows")
    labels = [name.encode() for name, _ in plan[5][1]]
    if labels != sorted(set(labels)):
        raise Refused("body.5: labels twice or not sorted")
    for at, entry in enumerate(plan[12]):
        if entry[1] > entry[2]:
            raise Refused(f"body.12[{at}]: from behind to")
    for at, group in enumerate(plan[9]):
        if group[2] >= len(plan[8]):
            raise Refused(f"body.9[{at}].2: no such device")
        if 3 in group and group[3][1] >= group[3][0]:
            raise Refused(f"body.9[{at}].3: phase not below the period")
        _check_names([point[0] for point in group[5]], f"body.9[{at}].5")
        for point in group[5]:
            if point[2] != 0 and point[3] != 0:
                raise Refused(f"body.9[{at}].5: an exponent on a type that is not integer")


def _check_names(names: list[Any], at: str) -> None:
    if len(set(names)) < len(names):
        raise Refused(f"{at}: a name twice")


def _check_block(block: dict[int, Any], at: str) -> None:
    cycles = block[2]
    distances = [0, *cycles[1:]]
    if any(later <= earlier for earlier, later in pairwise(distances)):
        raise Refused(f"{at}.2: distances do not grow")
    if cycles[0] + distances[-1] > HIGHEST:
        raise Refused(f"{at}.2: cycles above 64 bits")
    columns = [block[key] for key in (3, 4, 7, 8) if key in block] + block[5]
    if any(len(column) != len(cycles) for column in columns):
        raise Refused(f"{at}: as many items as frames are needed everywhere")
    marks = [(frame, point) for frame, point, _ in block.get(6, [])]
    if any(later <= earlier for earlier, later in pairwise(marks)):
        raise Refused(f"{at}.6: not in order")
    coded = {}
    for frame, point, code in block.get(6, []):
        if frame >= len(cycles) or point >= len(block[5]):
            raise Refused(f"{at}.6: no such frame or point")
        coded[frame, point] = code
    for point, column in enumerate(block[5]):
        for frame, value in enumerate(column):
            code = coded.get((frame, point), 0)
            if (value is None and (code == 0 or code in FULL_CODES)) or (value is not None and code in EMPTY_CODES):
                raise Refused(f"{at}: quality code {code} and the value do not go together")
        types = {type(value) for value in column if value is not None}
        if len(types) > 1:
            raise Refused(f"{at}.5: a column of several types")
        if types == {int}:
            summed(column)
    if 7 in block:
        summed(block[7])


def _check_gap(gap: list[Any], at: str) -> None:
    by_cycle, by_time = gap[1:3], gap[5:7]
    there, absent = (by_cycle, by_time) if by_time == [None, None] else (by_time, by_cycle)
    if absent != [None, None] or None in there or there[0] > there[1]:
        raise Refused(f"{at}: neither cycles from..to nor boot times from..to")


def summed(column: list[Any]) -> list[int | None]:
    """Integers from the first one and differences to the last that was not null. Raises Refused above 64 bits."""
    total = 0
    sums: list[int | None] = []
    for value in column:
        if value is None:
            sums.append(None)
            continue
        total += value
        if not LOWEST <= total <= HIGHEST:
            raise Refused("a sum above 64 bits")
        sums.append(total)
    return sums


def check_against_plan(body: list[Any], plan: dict[int, Any]) -> None:
    """Hold a data body against the plan of its term. Raises Refused."""
    if any(index >= len(plan[9]) for index in [*(block[1] for block in body[1]), *(gap[0] for gap in body[2])]):
        raise Refused("body: no such group in the plan")
    for block in body[1]:
        group = plan[9][block[1]]
        if (3 in group) != (4 in block):
            raise Refused("body: took is for periodic groups, and for all of these")
        if len(block[5]) != len(group[5]):
            raise Refused("body: not as many points as the plan has")
        for point, column in zip(group[5], block[5], strict=True):
            if any(value is not None and type(value) is not TYPES[point[2]] for value in column):
                raise Refused(f"body: a value of {point[0]} is not of the plan's type")


def decoded(body: list[Any], sealed: list[Any], plan: dict[int, Any]) -> list[dict[str, Any]]:
    """The frames of a data body that was held against its plan: group, cycle, times, and each point's value and code.

    Values stay unscaled, as the plan's exponent is exact and a float is not: value x 10^exponent is what was measured.
    """
    return [frame for block in body[1] for frame in _frames(block, sealed, plan)]


def _frames(block: dict[int, Any], sealed: list[Any], plan: dict[int, Any]) -> Iterator[dict[str, Any]]:
    group = plan[9][block[1]]
    names = [point[0] for point in group[5]]
    columns = [summed(column) if point[2] == 0 else column for point, column in zip(group[5], block[5], strict=True)]
    codes = {(frame, point): code for frame, point, code in block.get(6, [])}
    sources = summed(block[7]) if 7 in block else None
    for at, distance in enumerate([0, *block[2][1:]]):
        cycle = block[2][0] + distance
        frame: dict[str, Any] = {"device": plan[8][group[2]][0], "group": group[1], "cycle": cycle}
        if 3 in group:
            period, phase, first, anchor = group[3]
            frame["nominal"] = phase + cycle * period
            frame["due_boot"] = anchor + (cycle - first) * period
            frame["late_us"], frame["took_us"] = block[3][at], block[4][at]
        else:
            frame["received_boot"] = sealed[1] - 1000 * block[3][at]
        if sources is not None:
            frame["source_time"] = sources[at]
        if 8 in block:
            frame["raw"] = block[8][at]
        values = [column[at] for column in columns]
        frame["values"] = dict(zip(names, values, strict=True))
        frame["quality"] = {name: codes[at, i] for i, name in enumerate(names) if (at, i) in codes}
        yield frame
