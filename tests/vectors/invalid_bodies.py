"""Vectors of the bodies of plans, data and events that break one rule each: of the CDDL, or of those beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.vectors.valid import FIRST, TOP
from tests.vectors.vector import (
    BOOT,
    GONE,
    PARENT,
    SECOND,
    STREAM,
    STRUCTURE,
    Vector,
    block,
    data_body,
    group_map,
    plan_body,
    record,
    second,
)
from tests.vectors.writing import changed, sealed


def point(**changes: Any) -> list[Any]:
    """A point of the plan; ``i2=5`` sets its third element."""
    found: list[Any] = ["W", "W", 0, 0, None, {}]
    for name, value in changes.items():
        found[int(name[1:])] = value
    return found


def of_group(**changes: Any) -> dict[int, Any]:
    """A plan with one group that is changed."""
    return plan_body(k9=[group_map(**changes)])


def of_schedule(*schedule: Any) -> dict[int, Any]:
    """A plan whose group has this schedule."""
    return of_group(k3=list(schedule))


def of_point(**changes: Any) -> dict[int, Any]:
    """A plan with one point that is changed."""
    return of_group(k5=[point(**changes)])


DEVICE = ["pv-1", "modbus", None, None, None, None, None]
PLANS: dict[str, Any] = {
    "no map": [],
    "an unlisted key below 16": plan_body(k15=1),
    "a negative key": changed(plan_body(), **{"k-1": 1}),
    **{f"no {key}": plan_body(**{f"k{key}": GONE}) for key in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14)},
    **{f"{key} null": plan_body(**{f"k{key}": None}) for key in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14)},
    "10 null": plan_body(k10=None, k11=[9, []]),
    "11 null": plan_body(k10=[PARENT, 1], k11=None),
    "term 0": plan_body(k1=0),
    "opened of three": plan_body(k2=[1, 2, 3]),
    "opened before 1970": plan_body(k2=[-1, 2]),
    "boot id of 15 bytes": plan_body(k3=bytes(15)),
    "version in bytes": plan_body(k4=b"0.1.0"),
    "site without labels": plan_body(k5=["site-1"]),
    "a label of three": plan_body(k5=["site-1", [["a", "b", "c"]]]),
    "a label that is a number": plan_body(k5=["site-1", [["a", 1]]]),
    "a channel without a topic": plan_body(k6=["dso"]),
    "a configuration of 31 bytes": plan_body(k7=bytes(31)),
    "a device of six": plan_body(k8=[DEVICE[:6]]),
    "a device without an adapter": plan_body(k8=[["pv-1", *[None] * 6]]),
    "a serial number that is a number": plan_body(k8=[[*DEVICE[:5], 5, None]]),
    "a group that is an array": plan_body(k9=[["ac"]]),
    "an unlisted key in a group": of_group(k15=1),
    **{f"a group without {key}": of_group(**{f"k{key}": GONE}) for key in (1, 2, 4, 5)},
    "a schedule null": of_group(k3=None),
    "a schedule of three": of_schedule(SECOND, 0, 1),
    "a period of less than 1 ms": of_schedule(999_999, 0, 1, 1),
    "a negative phase": of_schedule(SECOND, -1, 1, 1),
    "a group without points": of_group(k5=[]),
    "a point of five": of_group(k5=[point()[:5]]),
    "a point without a name": of_point(i0=None),
    "a point of type 5": of_point(i2=5),
    "a point of type -1": of_point(i2=-1),
    "an exponent that is a float": of_point(i3=1.5),
    "a source that is a number": of_point(i4=40072),
    "labels of values in an array": of_point(i5=[]),
    "a label of a value that is a number": of_point(i5={0: 1}),
    "follows of seq 0": plan_body(k10=[PARENT, 0], k11=[9, []]),
    "follows of a stream of 15 bytes": plan_body(k10=[PARENT[:15], 1], k11=[9, []]),
    "resumes without a cause": plan_body(k10=[PARENT, 1], k11=[0, []]),
    "resumes of term 0": plan_body(k10=[PARENT, 1], k11=[9, [["pv-1", "ac", 0, 1]]]),
    "resumes of three": plan_body(k10=[PARENT, 1], k11=[9, [["pv-1", "ac", 1]]]),
    "withdrawn from seq 0": plan_body(k12=[[STREAM, 0, 1, 11]]),
    "withdrawn without a cause": plan_body(k12=[[STREAM, 1, 1, 0]]),
    "withdrawn of three": plan_body(k12=[[STREAM, 1, 1]]),
    "volatile a number": plan_body(k13=0),
    "a negative window": plan_body(k14=-1),
}
BEYOND_PLANS: dict[str, Any] = {
    "labels out of order": plan_body(k5=["site-1", [["b", ""], ["a", ""]]]),
    "labels sorted as text, not by their bytes": plan_body(
        k5=["site-1", [["\uffff", ""], ["\U00010000", ""], ["a", ""]]]
    ),
    "a label twice": plan_body(k5=["site-1", [["a", ""], ["a", "x"]]]),
    "a device twice": plan_body(k8=[DEVICE, DEVICE]),
    "a group twice": plan_body(k9=[group_map(), group_map()]),
    "a point twice": of_group(k5=[point(), point()]),
    "a device that is not there": of_group(k2=1),
    "a phase of a period": of_schedule(SECOND, SECOND, 1, 1),
    "an exponent on a float": of_point(i2=1, i3=-1),
    "an exponent on bytes": of_point(i2=4, i3=1),
    "follows without resumes": plan_body(k10=[PARENT, 1]),
    "resumes without follows": plan_body(k11=[9, []]),
    "withdrawn from behind to": plan_body(k12=[[STREAM, 2, 1, 11]]),
    "17 withdrawn ranges": plan_body(k12=[[STREAM, 3 * n, 3 * n, 11] for n in range(1, 18)]),
}


def of_block(**changes: Any) -> list[Any]:
    """Data with one block that is changed."""
    return data_body([block(**changes)])


def of_gap(*gap: Any) -> list[Any]:
    """Data with one gap."""
    return data_body(gaps=[list(gap)])


DATA: dict[str, Any] = {
    "no array": {},
    "of two": [1, []],
    "of four": [1, [], [], []],
    "term 0": [0, [], []],
    "blocks null": [1, None, []],
    "a block that is an array": data_body([[]]),
    "an unlisted key in a block": of_block(k9=1),
    **{f"a block without {key}": of_block(**{f"k{key}": GONE}) for key in (1, 2, 3, 5)},
    **{f"{key} null": of_block(**{f"k{key}": None}) for key in range(1, 9)},
    "no cycles": of_block(k2=[], k3=[], k4=[], k5=[[], []]),
    "a negative distance": of_block(k2=[FIRST, -1]),
    "a cycle that is a float": of_block(k2=[1.5, 1]),
    "a cycle that is null": of_block(k2=[FIRST, None]),
    "late before it was due": of_block(k3=[-1, 0]),
    "late null": of_block(k3=[None, 0]),
    "took a negative time": of_block(k4=[0, -1]),
    "no columns": of_block(k5=[]),
    "a value that is an array": of_block(k5=[[[], 1], [1, 1]]),
    "a value that is a map": of_block(k5=[[{}, 1], [1, 1]]),
    "empty quality": of_block(k6=[]),
    "quality 0": of_block(k6=[[0, 0, 0]]),
    "quality of two": of_block(k6=[[0, 0]]),
    "source times that are floats": of_block(k7=[1.5, 1.5]),
    "raw responses that are texts": of_block(k8=["", ""]),
    "a gap of six": of_gap(0, 1, 2, 1, None, None),
    "a gap without a cause": of_gap(0, 1, 2, 0, None, None, None),
    "a gap with a negative cycle": of_gap(0, -1, 2, 1, None, None, None),
    "a detail that is a number": of_gap(0, 1, 2, 1, 5, None, None),
}
BEYOND_DATA: dict[str, Any] = {
    "a distance of zero": of_block(k2=[FIRST, 0]),
    "distances that fall": of_block(k2=[FIRST, 2, 1], k3=[0] * 3, k4=[0] * 3, k5=[[0] * 3] * 2),
    "distances that stand still": of_block(k2=[FIRST, 1, 1], k3=[0] * 3, k4=[0] * 3, k5=[[0] * 3] * 2),
    "a cycle beyond 64 bits": of_block(k2=[TOP, 1]),
    "one late too few": of_block(k3=[0]),
    "one took too many": of_block(k4=[0, 0, 0]),
    "one value too few": of_block(k5=[[1], [1, 1]]),
    "a source time too few": of_block(k7=[1]),
    "a raw response too many": of_block(k8=[None, None, None]),
    "a column of two types": of_block(k5=[[1, 1.5], [1, 1]]),
    "a column of numbers and truth": of_block(k5=[[1, True], [1, 1]]),
    "a value beyond 64 bits": of_block(k5=[[TOP, 1], [1, 1]]),
    "a value below 64 bits": of_block(k5=[[-(2**64), -1], [1, 1]]),
    "a source time beyond 64 bits": of_block(k7=[TOP, 1]),
    "a null without a code": of_block(k5=[[None, 1], [1, 1]]),
    "a null with a code of values": of_block(k5=[[None, 1], [1, 1]], k6=[[0, 0, 5]]),
    "a value with a code of nulls": of_block(k6=[[0, 0, 4]]),
    "quality of a frame that is not there": of_block(k6=[[2, 0, 5]]),
    "quality of a point that is not there": of_block(k6=[[0, 2, 5]]),
    "quality out of order": of_block(k6=[[1, 0, 5], [0, 0, 5]]),
    "quality by point, not by frame": of_block(k6=[[0, 0, 5], [1, 0, 5], [0, 1, 5]]),
    "quality twice": of_block(k6=[[0, 0, 5], [0, 0, 6]]),
    "two blocks of a group": data_body([block(), block(k2=[FIRST + 2, 1])]),
    "a gap that ends before it begins": of_gap(0, 2, 1, 1, None, None, None),
    "a gap in time that ends before it begins": of_gap(0, None, None, 3, None, 2, 1),
    "a gap by cycles and by time": of_gap(0, 1, 2, 1, None, 1, 2),
    "a gap by neither": of_gap(0, None, None, 1, None, None, None),
    "a gap without its end": of_gap(0, 1, None, 1, None, None, None),
    "a gap in time without its begin": of_gap(0, None, None, 3, None, None, 2),
}
AGAINST_THE_PLAN: dict[str, Any] = {
    "a block of a group that is not there": of_block(k1=1),
    "a gap of a group that is not there": of_gap(1, 1, 2, 1, None, None, None),
    "a column too few": of_block(k5=[[1, 1]]),
    "a column too many": of_block(k5=[[1, 1]] * 3),
    "floats for integers": of_block(k5=[[1.0, 1.0], [1, 1]]),
    "truth for integers": of_block(k5=[[True, False], [1, 1]]),
    "texts for integers": of_block(k5=[["1", "1"], [1, 1]]),
    "bytes for integers": of_block(k5=[[b"", b""], [1, 1]]),
    "no took for a periodic group": of_block(k4=GONE),
}
EVENTS: dict[str, Any] = {
    "no array": {},
    "of two": [2, BOOT],
    "of four": [2, BOOT, [], []],
    "event 0": [0, BOOT, []],
    "event true": [True, BOOT, []],
    "a negative boot time": [2, -1, []],
    "details null": [2, BOOT, None],
}


def bodies() -> Iterator[Vector]:
    """Bodies of the known kinds that are refused; some by rules that the CDDL does not state."""
    shape, rule = "the shape in evidence.cddl", "a rule of section 10"
    for name, body in PLANS.items():
        yield Vector(f"plan/{name}", shape, sealed(record(1, body)), STRUCTURE, in_cddl=False)
    for name, body in BEYOND_PLANS.items():
        yield Vector(f"plan/{name}", rule, sealed(record(1, body)), STRUCTURE)
    for name, body in DATA.items():
        yield Vector(f"data/{name}", shape, sealed(second(2, body)), STRUCTURE, in_cddl=False)
    for name, body in BEYOND_DATA.items():
        yield Vector(f"data/{name}", rule, sealed(second(2, body)), STRUCTURE)
    for name, body in AGAINST_THE_PLAN.items():
        yield Vector(f"data/{name}", "the plan in force", sealed(second(2, body)), STRUCTURE, "plan/plain")
        yield Vector(f"data/{name}, no plan at hand", "it passes", sealed(second(2, body)))
    took = data_body([{1: 1, 2: [17], 3: [0], 4: [0], 5: [[1], [1.5]]}], term=3)
    yield Vector(
        "data/took of an event-driven group", "the plan in force", sealed(second(2, took)), STRUCTURE, "plan/full"
    )
    number = data_body([{1: 1, 2: [17], 3: [0], 5: [[1], [1]]}], term=3)
    yield Vector("data/integers for floats", "the plan in force", sealed(second(2, number)), STRUCTURE, "plan/full")
    for name, body in EVENTS.items():
        yield Vector(f"event/{name}", shape, sealed(second(3, body)), STRUCTURE, in_cddl=False)
