"""Which points a channel sends: deny by default, and quickly also where there are many."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from agent.config.selection import Names


class Device:
    """As much of a device as a pattern looks at."""

    def __init__(self, name: str, **groups: tuple[str, ...]) -> None:
        self.id = name
        self.groups = groups

    def point_names(self, group: str) -> tuple[str, ...]:
        return self.groups[group]


DEVICES = [
    Device("pv-1", ac=("W", "WH", "St"), dc=("A",)),
    Device("pv-10", ac=("W",)),
    Device("meter", power=("W", "Hz"), energy=("Wh",)),
]
ALL = [f"{d.id}/{group}/{point}" for d in DEVICES for group, points in d.groups.items() for point in points]


def test_nothing_is_sent_that_is_not_named() -> None:
    assert Names(DEVICES).selection([]) == {}
    assert Names(DEVICES).selection(["pv-1/ac/W"]) == {"pv-1": {"ac": ("W",)}}
    assert Names(DEVICES).selection(["pv-1/*"]) == {"pv-1": {"ac": ("W", "WH", "St"), "dc": ("A",)}}
    assert Names(DEVICES).selection(["pv-1", "pv-1/ac", "PV-1/*", "pv-1/ac/", "", "/*"]) == {}


def test_points_stand_in_the_order_of_the_device() -> None:
    assert Names(DEVICES).selection(["*/St", "*/W"]) == {
        "pv-1": {"ac": ("W", "St")},
        "pv-10": {"ac": ("W",)},
        "meter": {"power": ("W",)},
    }
    assert list(Names(DEVICES).selection(["*"])) == ["pv-1", "pv-10", "meter"]


def test_what_no_channel_sends_is_told_in_short() -> None:
    names = Names(DEVICES)
    assert names.without([]) == ["pv-1/*", "pv-10/*", "meter/*"]
    assert names.without([names.selection(["*"])]) == []
    assert names.without([names.selection(["pv-1/ac/W"]), names.selection(["meter/e*"])]) == [
        "pv-1/ac/WH",
        "pv-1/ac/St",
        "pv-1/dc/*",
        "pv-10/*",
        "meter/power/*",
    ]


@given(st.lists(st.text(st.sampled_from("pv-1/acWmeter*?[]!"), max_size=8), max_size=4))
def test_a_pattern_names_what_it_names_one_by_one(patterns: list[str]) -> None:
    """However the names are looked up, each pattern is held against each name."""
    chosen = {name for name in ALL if any(fnmatchcase(name, pattern) for pattern in patterns)}
    selected = Names(DEVICES).selection(patterns)
    assert {f"{d}/{g}/{p}" for d, groups in selected.items() for g, points in groups.items() for p in points} == chosen
    for pattern in patterns:
        assert set(Names(DEVICES).matching(pattern)) == {name for name in ALL if fnmatchcase(name, pattern)}


def test_a_hundred_patterns_over_ten_thousand_points() -> None:
    points = tuple(f"P{number}" for number in range(100))
    names = Names([Device(f"device-{number}", g=points) for number in range(100)])
    patterns = [f"device-{number}/g/P{number}*" for number in range(50)] + [f"*{number}" for number in range(50)]
    began = time.process_time()
    assert len(names.selection(patterns)) == 100
    assert time.process_time() - began < 2  # 0.1 s on a PC; each pattern against each name in turn takes 20 times that
