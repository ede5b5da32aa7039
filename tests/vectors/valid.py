"""Vectors that verify: every kind of record and every field of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tests.vectors import valid_envelopes
from tests.vectors.stored import stored
from tests.vectors.vector import (
    BOOT,
    GONE,
    PARENT,
    SECOND,
    STREAM,
    WALL,
    Vector,
    block,
    changed_to_packed,
    data_body,
    group_map,
    plan_body,
    record,
    second,
)
from tests.vectors.writing import header, item, raw, sealed

FIRST = WALL // SECOND
TOP = 2**64 - 1
DIGEST = hashlib.sha256(b"a response").digest()


# ---- plans ------------------------------------------------------------------------------------------------------

ENUMERATION = {-1: "unknown", 0: "off", 1: "on", 24: "standby", 1000: "fault"}  # whose order is 0, 1, 24, 1000, -1
ALL_TYPES = [
    ["W", "W", 0, -1, "holding:40084 int16 sf 40085", {}],
    ["Temp", "Cel", 1, 0, None, {}],
    ["On", None, 2, 0, None, {}],
    ["Mode", None, 3, 0, "text", {}],
    ["Raw", None, 4, 0, None, {}],
    ["St", None, 0, 0, None, ENUMERATION],
]
FULL = plan_body(
    k1=3,
    k5=["site-1", [["country", "NL"], ["dso", "westnet"], ["\u00e4", "last by its bytes"]]],
    k8=[
        ["pv-1", "modbus", "asset-7", "Maker", "Model 3", "SN1", "1.2.3"],
        ["meter", "mqtt", None, None, None, None, None],
    ],
    k9=[
        {1: "all", 2: 0, 3: [SECOND, 250_000_000, FIRST, BOOT + 250_000_000], 4: FIRST, 5: ALL_TYPES},
        {1: "messages", 2: 1, 4: 17, 5: ALL_TYPES[:2]},
        {1: "all", 2: 1, 3: [1_000_000, 999_999, FIRST * 1000, BOOT], 4: FIRST * 1000, 5: [ALL_TYPES[5]]},
    ],
    k10=[PARENT, 4711],
    k11=[9, [["pv-1", "all", 2, FIRST - 30], ["pv-1", "gone", 2, 0]]],
    k12=[[PARENT, n, n + 1, 11 + n % 3] for n in range(1, 33, 2)],
    k13=True,
    k14=30_000,
)
BOUNDS = plan_body(
    k1=TOP,
    k2=[TOP, TOP],
    k8=[["", "", "", "", "", "", ""]],
    k9=[{1: "", 2: 0, 3: [TOP, TOP - 1, TOP, TOP], 4: TOP, 5: [["", "", 0, -20, "", {2**32: ""}]]}],
    k12=[[STREAM, 1, TOP, 11], [STREAM, TOP, TOP, 12]],
    k14=TOP,
)


def plans() -> Iterator[Vector]:
    """Plans."""
    yield Vector("plan/plain", "one device, one periodic group", sealed(record(1, plan_body())))
    empty = plan_body(k5=["", []], k8=[], k9=[])
    yield Vector("plan/empty", "no device, no group, no label: the smallest plan", sealed(record(1, empty)))
    follows = record(1, FULL, k4=hashlib.sha256(b"the record that it follows").digest())
    yield Vector(
        "plan/full",
        "every optional field: labels, what devices say of themselves, points of all types, values with names, an "
        "event-driven group, two groups of one name on two devices, follows, resumes, 16 withdrawn ranges, volatile",
        sealed(follows),
    )
    yield Vector(
        "plan/packed",
        "the same, packed by zlib",
        sealed(changed_to_packed(follows, stored("plan/packed", item(FULL)))),
        body=item(FULL),
    )
    repeat = plan_body(k9=[group_map(k4=FIRST + 60)], k12=[[STREAM, 2, 5, 13]])
    yield Vector("plan/repeat", "a repeat: next has moved, a range is withdrawn", sealed(second(1, repeat, k3=6)))
    event_driven = plan_body(k9=[group_map(k3=GONE, k4=0)])
    yield Vector("plan/event-driven", "a plan of one event-driven group", sealed(record(1, event_driven)))
    yield Vector("plan/bounds", "empty texts and the largest numbers", sealed(record(1, BOUNDS, k3=TOP)))
    newer = plan_body(
        k9=[group_map(k16=[1, {-5: None}], k70000=None)],
        k10=[PARENT, 9],
        k11=[99, []],
        k12=[[PARENT, 1, 2, 14]],
        k16=raw("f93c00"),
        k23="new",
    )
    yield Vector(
        "plan/newer",
        "keys from 16 in record, plan, group and header, and causes that nobody knows",
        sealed(record(1, newer, k16={1: {-1: "x"}}), header(k33=b"\x01")),
        reported=[
            "cause 14",
            "cause 99",
            "group: key 16",
            "group: key 70000",
            "header: key 33",
            "plan: key 16",
            "plan: key 23",
            "record: key 16",
        ],
    )


# ---- data -------------------------------------------------------------------------------------------------------


def frame(cycle: int, values: dict[str, str], quality: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """A frame as files state it."""
    return {"cycle": cycle, **more, "values": values, "quality": quality or {}}


def data() -> Iterator[Vector]:
    """Data under the plain plan, then under the one with everything."""
    yield Vector("data/empty", "neither frames nor gaps", sealed(second(2, data_body())), plan="plan/plain", frames=[])
    yield Vector(
        "data/plain",
        "two frames, the second as differences",
        sealed(second(2, data_body([block()]))),
        plan="plan/plain",
        frames=[
            frame(FIRST, {"W": "4200", "PhVphA": "2304"}, nominal=WALL, due_boot=BOOT, late_us=1200, took_us=3100),
            frame(
                FIRST + 1,
                {"W": "4210", "PhVphA": "2301"},
                nominal=WALL + SECOND,
                due_boot=BOOT + SECOND,
                late_us=800,
                took_us=2900,
            ),
        ],
    )
    yield Vector(
        "data/without plan", "the same; no plan of its term is at hand", sealed(second(2, data_body([block()])))
    )
    long_columns = block(
        k2=[FIRST, *range(1, 100)], k3=[1] * 100, k4=[2] * 100, k5=[[2300, *[-1, 1] * 49, 5], [7] * 100]
    )
    body = data_body([long_columns])
    yield Vector(
        "data/packed",
        "a hundred frames, packed by zlib",
        sealed(changed_to_packed(second(2, body), stored("data/packed", item(body)))),
        body=item(body),
        plan="plan/plain",
    )
    nulls = block(
        k2=[FIRST, 1, 2, 7],
        k3=[0] * 4,
        k4=[0, 1, TOP, 3],
        k5=[[None, 5, None, -7], [None] * 4],
        k6=[[0, 0, 1], [0, 1, 2], [1, 1, 3], [2, 0, 4], [2, 1, 4], [3, 1, 4]],
    )
    timed = [{"nominal": WALL + n * SECOND, "due_boot": BOOT + n * SECOND, "late_us": 0} for n in (0, 1, 2, 7)]
    yield Vector(
        "data/nulls",
        "a difference is to the last that is not null; a column of nulls; the four codes that nulls have",
        sealed(second(2, data_body([nulls]))),
        plan="plan/plain",
        frames=[
            frame(FIRST, {"W": "null", "PhVphA": "null"}, {"W": 1, "PhVphA": 2}, **timed[0], took_us=0),
            frame(FIRST + 1, {"W": "5", "PhVphA": "null"}, {"PhVphA": 3}, **timed[1], took_us=1),
            frame(FIRST + 2, {"W": "null", "PhVphA": "null"}, {"W": 4, "PhVphA": 4}, **timed[2], took_us=TOP),
            frame(FIRST + 7, {"W": "-2", "PhVphA": "null"}, {"PhVphA": 4}, **timed[3], took_us=3),
        ],
    )
    limits = block(
        k2=[0, TOP], k5=[[-(2**64), TOP], [TOP, -(2**64)]], k3=[TOP, 0], k4=[TOP, 0], k16=1, k17={24: 0, -1: 0}
    )
    yield Vector(
        "data/limits",
        "the largest cycle, values and differences; keys from 16 in the block",
        sealed(second(2, data_body([limits]))),
        plan="plan/plain",
        reported=["block: key 16", "block: key 17"],
    )
    yield from _all_types()
    yield from _event_driven()
    gaps = [
        *([0, FIRST + n, FIRST + n, n + 1, "why" if n % 2 else None, None, None] for n in range(13)),
        [0, FIRST + 13, TOP, 99, "", None, None],
    ]
    yield Vector(
        "data/gaps by cycles",
        "every cause, and one that nobody knows",
        sealed(second(2, data_body(gaps=gaps))),
        plan="plan/plain",
        reported=["cause 99"],
    )


def _all_types() -> Iterator[Vector]:
    columns = [
        [2304, -5, 0],
        [21.5, 0.0, -4.1],
        [True, None, False],
        ["auto", "", "\u20ac"],
        [b"", b"\x00\xff", b"x"],
        [-1, 25, 976],
    ]
    everything = {
        1: 0,
        2: [FIRST, 1, 2],
        3: [0, 1, 2],
        4: [3, 4, 5],
        5: columns,
        6: [[0, 0, 5], [0, 1, 6], [0, 3, 7], [1, 0, 8], [1, 1, 9], [1, 2, 10], [1, 3, 10]],
        7: [WALL, None, -5],
        8: [b"\x01\x03", DIGEST, None],
    }
    values = [
        {"W": "2304", "Temp": "21.5", "On": "true", "Mode": '"auto"', "Raw": "h''", "St": "-1"},
        {"W": "2299", "Temp": "0.0", "On": "null", "Mode": '""', "Raw": "h'00ff'", "St": "24"},
        {"W": "2299", "Temp": "-4.1", "On": "false", "Mode": '"\u20ac"', "Raw": "h'78'", "St": "1000"},
    ]
    quality = [{"W": 5, "Temp": 6, "Mode": 7}, {"W": 8, "Temp": 9, "On": 10, "Mode": 10}, {}]
    sources, raws = [WALL, None, WALL - 5], ["0103", DIGEST.hex(), None]
    frames = [
        frame(
            FIRST + n,
            values[n],
            quality[n],
            nominal=WALL + 250_000_000 + n * SECOND,
            due_boot=BOOT + 250_000_000 + n * SECOND,
            late_us=n,
            took_us=3 + n,
            source_time=sources[n],
            raw=raws[n],
        )
        for n in range(3)
    ]
    gaps = [
        [0, FIRST + 3, FIRST + 9, 1, "no answer", None, None],
        [1, None, None, 5, None, BOOT, BOOT + 9],
        [1, 17, 18, 6, "not JSON", None, None],
    ]
    yield Vector(
        "data/all types",
        "every type of value, the codes of values that are there, an unknown code with and without a value, the "
        "source's own time, raw responses and a digest of one, gaps of two groups by cycles and by time",
        sealed(second(2, data_body([everything], gaps, term=3))),
        plan="plan/full",
        reported=["quality 10", "quality 10"],
        frames=frames,
    )


def _event_driven() -> Iterator[Vector]:
    messages = {1: 1, 2: [17, 1], 3: [900, 0], 5: [[1, 1], [0.5, 1e-07]], 7: [WALL - 900_000, 900_000]}
    other = {1: 2, 2: [FIRST * 1000], 3: [7], 4: [8], 5: [[24]]}
    gaps = [[1, None, None, 3, "kept session", BOOT, BOOT], [1, None, None, 8, None, 0, TOP]]
    frames = [
        frame(17, {"W": "1", "Temp": "0.5"}, received_boot=BOOT - 900_000, source_time=WALL - 900_000),
        frame(18, {"W": "2", "Temp": "1e-07"}, received_boot=BOOT, source_time=WALL),
        frame(
            FIRST * 1000,
            {"St": "24"},
            nominal=WALL + 999_999,
            due_boot=BOOT,
            late_us=7,
            took_us=8,
        ),
    ]
    yield Vector(
        "data/event-driven",
        "messages without took: the age at sealing tells when they were received; blocks of two groups; gaps by time",
        sealed(second(2, data_body([messages, other], gaps, term=3))),
        plan="plan/full",
        frames=frames,
    )
    swapped = [other, messages]
    yield Vector(
        "data/blocks in another order",
        "blocks may stand in any order of groups",
        sealed(second(2, data_body(swapped, term=3))),
        plan="plan/full",
        frames=[frames[2], *frames[:2]],
    )


def vectors() -> list[Vector]:
    """All of them."""
    return [*plans(), *data(), *valid_envelopes.events(), *valid_envelopes.envelopes()]
