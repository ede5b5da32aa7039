"""The oracle: a clean history is good, and each kind of defect is found, and nothing else beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from testbed.account import Account
from testbed.oracle import Oracle
from testbed.published import Topic, messages
from testbed.served import Journal
from testbed.timeline import Timeline

Json = dict[str, Any]
MS = 1_000_000
S = 1000 * MS
ZERO = 1000 * S  # boot time of cycle 0 of both groups
PERIODS = {"power": 200 * MS, "energy": S}
LATE = {"power": MS, "energy": 30 * MS}  # one wire: never at once
POINTS = {"power": ["W", "V"], "energy": ["E", "F", "N"]}
REQUESTS = {"power": [(10, 4)], "energy": [(40, 3), (60, 3)]}
EXPONENTS = {"W": -1, "V": -1, "E": 0, "F": 0, "N": 0}
MAP = [
    {"model": 103, "name": "W", "address": 10, "type": "int16", "size": 1, "sf_address": 11},
    {"model": 103, "name": "V", "address": 12, "type": "uint16", "size": 1, "sf_address": 13},
    {"model": 103, "name": "E", "address": 40, "type": "acc32", "size": 2, "sf_address": 42},
    {"model": None, "name": "F", "address": 60, "type": "float32", "size": 2, "sf_address": None},
    {"model": 103, "name": "N", "address": 62, "type": "uint16", "size": 1, "sf_address": None},
]
A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


def registers(boot: int, address: int, count: int) -> str:
    """The device's image at a time: everything moves but N, which it does not have."""
    ms = boot // MS
    words = {10: ms % 9000 - 4500, 11: -1, 12: 2300 + ms % 7, 13: -1, 40: ms >> 16, 41: ms & 0xFFFF, 42: 0, 62: 0xFFFF}
    words[60], words[61] = struct.unpack(">2H", struct.pack(">f", ms / 7))
    return struct.pack(f">{count}H", *(words.get(at, 0) & 0xFFFF for at in range(address, address + count))).hex()


class World:
    """A site's journal and what a consumer printed."""

    def __init__(self) -> None:
        self.journal: list[Json] = [{"map": {"unit": 1, "points": MAP}}]
        self.lines: list[Json] = []
        self._stream, self._seq = "", 0

    # ---- the site ----

    def serve(self, boot: int, address: int, count: int) -> None:
        self.journal.append(
            {"t_boot": boot, "t_wall": boot, "unit": 1, "fc": 3, "address": address, "count": count}
            | {"registers": registers(boot, address, count)}
        )

    def poll(self, group: str, cycle: int, *, late: int | None = None) -> int:
        """The group's requests of a cycle; returns when the acquisition began."""
        started = ZERO + cycle * PERIODS[group] + (LATE[group] if late is None else late)
        for i, (address, count) in enumerate(REQUESTS[group]):
            self.serve(started + 100_000 * (i + 1), address, count)
        return started

    # ---- the agent ----

    def record(self, kind: str, stream: str, boot: int, **fields: Any) -> Json:
        """The next record of a stream; a new stream begins at record 1."""
        self._seq = self._seq + 1 if self._stream == stream else 1
        self._stream = stream
        line = {"verdict": "ok", "findings": [], "id": f"{stream[:2]}-{self._seq}", "stream": stream, "seq": self._seq}
        self.lines.append(line | {"kind": kind, "sealed": {"boot": boot}} | fields)
        return self.lines[-1]

    def plan(self, stream: str, opened: int, nexts: dict[str, int], *, ahead: int = 0, **fields: Any) -> Json:
        """A plan whose groups are on the grid, or ``ahead`` ns earlier; ``nexts``: next cycle of each group."""
        groups = [self.group(name, nexts[name], opened, ahead=ahead) for name in nexts]
        plan = {"term": 1, "opened": [opened, opened], "boot_id": "00" * 16, "channel": "dso", "groups": groups}
        plan |= {"follows": None, "resumes": None, "withdrawn": [], "volatile": False} | fields
        return self.record("plan", stream, opened, plan=plan)

    def group(self, name: str, following: int, opened: int, *, ahead: int = 0) -> Json:
        first = -(-(opened + ahead - ZERO) // PERIODS[name])
        anchor = ZERO + first * PERIODS[name] - ahead
        schedule = {"period": PERIODS[name], "phase": 0, "first": first, "anchor": anchor}
        points = [{"name": point, "exponent": EXPONENTS[point]} for point in POINTS[name]]
        return {"device": "pv", "group": name, "next": following, "schedule": schedule, "points": points}

    def data(self, stream: str, boot: int, frames: list[Json], gaps: list[Json] | None = None, term: int = 1) -> Json:
        return self.record("data", stream, boot, term=term, frames=frames, gaps=gaps or [])

    def frame(self, group: str, cycle: int, *, late: int | None = None) -> Json:
        """Poll, and make a frame of it."""
        started = self.poll(group, cycle, late=late)
        values: dict[str, float | None] = {}
        for address, count in REQUESTS[group]:
            boot = started + 100_000 * (REQUESTS[group].index((address, count)) + 1)
            raw = bytes.fromhex(registers(boot, address, count))
            if address == 10:
                w, _, v, _ = struct.unpack(">hhHh", raw)
                values |= {"W": w / 10, "V": v / 10}
            elif address == 40:
                values["E"] = struct.unpack(">Ih", raw)[0]
            else:
                values |= {"F": struct.unpack(">fH", raw)[0], "N": None}
        found = {"device": "pv", "group": group, "cycle": cycle, "started_boot": started}
        quality = {"quality": {"N": "not_implemented"}} if group == "energy" else {}
        return found | {"took_us": 500, "values": values} | quality

    def unstop(self) -> None:
        """Take the last record, the stop, away: the run goes on."""
        self.lines.pop()
        self._seq -= 1

    def judge(self, **options: Any) -> Account:
        journal = Journal(json.loads(json.dumps(self.journal)))
        return Oracle({"pv": journal.units[1]}).judge(json.loads(json.dumps(self.lines)), **options)


def gap(group: str, first: int, last: int, cause: str = "device_timeout") -> Json:
    return {"device": "pv", "group": group, "from": first, "to": last, "cause": cause}


def frames(world: World, group: str, first: int, last: int) -> list[Json]:
    return [world.frame(group, cycle) for cycle in range(first, last + 1)]


def resumes(power: int, energy: int, *, cause: str = "agent_down") -> Json:
    return {"cause": cause, "groups": [["pv", "power", 1, power], ["pv", "energy", 1, energy]]}


def history() -> World:
    """Two runs: the first is killed with reads that it did not seal, the second ends in order.

    Records: aa 1 plan, 2 start, 3 data, 4 data with gaps, 5 plan again, 6 data; bb 1 plan, 2 start, 3 data, 4 stop.
    """
    world = World()
    for address, count in ((0, 2), (2, 2), (11, 1), (13, 1), (42, 1)):  # discovery
        world.serve(ZERO + 990 * MS, address, count)
    world.plan(A, ZERO + 995 * MS, {"power": 5, "energy": 1})
    world.record("event", A, ZERO + 996 * MS, event={"code": "start", "details": []})
    world.data(A, ZERO + 2 * S, [*frames(world, "energy", 1, 1), *frames(world, "power", 5, 9)])
    # cycle 10 of power: the first of its requests fails late; 11 is overrun meanwhile
    world.serve(ZERO + 2350 * MS, 10, 4)
    data = [*frames(world, "energy", 2, 2), world.frame("power", 12, late=20 * MS), *frames(world, "power", 13, 14)]
    world.data(A, ZERO + 3 * S, data, [gap("power", 10, 10, "device_exception"), gap("power", 11, 11, "overrun")])
    world.plan(A, ZERO + 995 * MS, {"power": 15, "energy": 3})
    world.data(A, ZERO + 4 * S, [*frames(world, "energy", 3, 3), *frames(world, "power", 15, 19)])
    world.poll("energy", 4)  # not sealed
    for cycle in (20, 21, 22):
        world.poll("power", cycle)
    for address, count in ((0, 2), (2, 2), (11, 1), (13, 1), (42, 1)):  # the next run looks for models
        world.serve(ZERO + 4700 * MS, address, count)
    follows: Json = {"follows": [A, 6], "resumes": resumes(20, 4)}
    world.plan(B, ZERO + 4710 * MS, {"power": 24, "energy": 5}, **follows)
    world.record("event", B, ZERO + 4720 * MS, event={"code": "start", "details": []})
    world.data(B, ZERO + 6 * S, [*frames(world, "energy", 5, 5), *frames(world, "power", 24, 29)])
    world.poll("power", 30)  # under way when it was stopped
    world.record("event", B, ZERO + 6100 * MS, event={"code": "stop", "details": []})
    return world


def test_a_clean_history_is_good() -> None:
    account = history().judge()
    assert account.problems == []
    assert account.good
    assert asdict(account) == asdict(account) | {
        "records": 10,
        "frames": 23,
        "failed": 0,
        "runs": 2,
        "cycles_expected": 30,
        "cycles_present": 23,
        "cycles_in_gaps": 7,
        "gaps": {"device_exception": 1, "overrun": 1, "agent_down": 5},
        "values_checked": 19 * 2 + 4 * 3,
        "values_wrong": 0,
        "reads_lost": 0,
    }


def test_the_order_of_lines_and_repeats_do_not_matter() -> None:
    world = history()
    world.lines = [*reversed(world.lines), {"verdict": "repeat", "findings": [], "id": "x"}, {"report": {}}]
    account = world.judge()
    assert (account.problems, account.repeats) == ([], 1)


def test_nothing_at_all_is_not_good() -> None:
    assert not Oracle({}).judge([]).good


# ---- what it must find ------------------------------------------------------------------------------------------


def _frame(world: World, seq: int, place: int, stream: str = A) -> Json:
    frame: Json = _record(world, seq, stream)["frames"][place]
    return frame


def _record(world: World, seq: int, stream: str = A) -> Json:
    return next(line for line in world.lines if (line["stream"], line["seq"]) == (stream, seq))


def _wrong_value(world: World) -> None:
    _frame(world, 3, 1)["values"]["W"] += 0.1


def _wrong_scale(world: World) -> None:
    _frame(world, 3, 1)["values"]["V"] *= 10


def _value_of_another_poll(world: World) -> None:
    _frame(world, 3, 2)["values"] = _frame(world, 3, 1)["values"]


def _frame_of_another_time(world: World) -> None:
    _frame(world, 3, 1)["started_boot"] += 2 * MS


def _number_for_a_sentinel(world: World) -> None:
    frame = _frame(world, 3, 0)
    frame["values"]["N"] = 65535
    del frame["quality"]


def _null_for_a_number(world: World) -> None:
    frame = _frame(world, 3, 0)
    frame["values"]["E"], frame["quality"]["E"] = None, "not_implemented"


def _null_for_an_answer(world: World) -> None:
    frame = _frame(world, 3, 0)
    frame["values"]["E"], frame["quality"]["E"] = None, "device_exception"


def _null_for_an_odd_encoding(world: World) -> None:
    frame = _frame(world, 3, 0)
    frame["values"]["E"], frame["quality"]["E"] = None, "bad_encoding"


def _float_not_exact(world: World) -> None:
    _frame(world, 3, 0)["values"]["F"] = round(_frame(world, 3, 0)["values"]["F"], 2)


def _unjournalled(world: World) -> None:
    at = _frame(world, 3, 1)["started_boot"]
    world.journal = [line for line in world.journal if not at <= line.get("t_boot", 0) <= at + MS]


def _dropped_frame(world: World) -> None:
    del _record(world, 3)["frames"][3]


def _doubled_frame(world: World) -> None:
    _record(world, 6)["frames"].append(_frame(world, 3, 2))


def _frame_twice_in_a_record(world: World) -> None:
    _record(world, 3)["frames"].append(_frame(world, 3, 2))


def _gap_too_short(world: World) -> None:
    del _record(world, 4)["gaps"][0]


def _gap_too_long(world: World) -> None:
    _record(world, 4)["gaps"][1]["to"] = 12


def _hole(world: World) -> None:
    world.lines.remove(_record(world, 4))


def _hole_at_the_end_of_a_run(world: World) -> None:
    world.lines.remove(_record(world, 6))


def _hole_withdrawn_in_part(world: World) -> None:
    world.lines.remove(_record(world, 3))
    world.lines.remove(_record(world, 4))
    _record(world, 1, B)["plan"]["withdrawn"] = [[A, 2, 3, "overflow"]]


def _hole_at_the_end(world: World) -> None:
    world.lines.remove(_record(world, 4, B))


def _lost_run(world: World) -> None:
    _record(world, 1, B)["plan"]["follows"] = [C, 7]


def _first_run_lost(world: World) -> None:
    world.lines = [line for line in world.lines if line["stream"] == B]


def _no_resumes(world: World) -> None:
    _record(world, 1, B)["plan"]["resumes"] = None


def _resumes_too_late(world: World) -> None:
    _record(world, 1, B)["plan"]["resumes"] = resumes(21, 4)


def _resumes_too_early(world: World) -> None:
    _record(world, 1, B)["plan"]["resumes"] = resumes(20, 3)


def _new_outbox(world: World) -> None:
    _record(world, 1, B)["plan"] |= {"follows": None, "resumes": None}


def _rolled_back(world: World) -> None:
    _record(world, 1, B)["plan"]["follows"] = [A, 5]


def _begins_too_late(world: World) -> None:
    """Run B states nothing for its first second: the time between the runs seems longer than it was."""
    plan = _record(world, 1, B)["plan"]
    plan["groups"][0] = world.group("power", 27, ZERO + 5300 * MS)
    _record(world, 3, B)["frames"][1:4] = []


def _repeated_plan_says_other(world: World) -> None:
    _record(world, 5)["plan"]["groups"][0]["next"] = 14


def _frames_of_an_other_term(world: World) -> None:
    _record(world, 6)["term"] = 2


def _polled_without_trace(world: World) -> None:
    world.poll("power", 27, late=90 * MS)


def _answered_before_the_stop(world: World) -> None:
    world.poll("power", 30, late=50 * MS)


def _not_verified(world: World) -> None:
    record = _record(world, 2)
    record |= {"verdict": "signature failed", "findings": ["signature failed: no"]}


def _without_turn(world: World) -> None:
    del _record(world, 2, B)["kind"]  # came too late to be put in order


def _handed_over_twice(world: World) -> None:
    world.lines.append(dict(_record(world, 3)))


def _no_plan(world: World) -> None:
    world.lines.remove(_record(world, 1, B))


DEFECTS: list[tuple[Callable[[World], None], dict[str, int], list[str]]] = [
    (_wrong_value, {"values_wrong": 1}, ["cycle 5: W is"]),
    (_wrong_scale, {"values_wrong": 1}, ["cycle 5: V is"]),
    (_value_of_another_poll, {"values_wrong": 2}, ["cycle 6: W is", "cycle 6: V is"]),
    (
        _frame_of_another_time,
        {"values_wrong": 2, "reads_lost": 1},
        ["cycle 5: W is", "cycle 5: V is", "power: a request answered"],
    ),
    (_number_for_a_sentinel, {"values_wrong": 1}, ["N is 65535 : served was not implemented"]),
    (_null_for_a_number, {"values_wrong": 1}, ["E is None not_implemented: served was"]),
    (_null_for_an_answer, {"values_wrong": 1}, ["E is None device_exception: served was"]),
    (_null_for_an_odd_encoding, {"values_wrong": 1}, ["E is None bad_encoding: served was"]),
    (_float_not_exact, {"values_wrong": 1}, ["F is"]),
    (_unjournalled, {"values_wrong": 2}, ["W is", "V is"]),
    (
        _dropped_frame,
        {"cycles_missing": 1, "reads_lost": 1, "cycles_present": 22},
        ["power cycles 7 to 7 are not there", "power: a request answered"],
    ),
    (_doubled_frame, {"cycles_present": 23, "frames": 24}, ["power cycle 6 is there twice"]),
    (_frame_twice_in_a_record, {"cycles_present": 23, "frames": 24}, ["power cycle 6 is there twice"]),
    (
        _gap_too_short,
        {"cycles_missing": 1, "reads_lost": 0, "cycles_in_gaps": 6},
        ["power cycles 10 to 10 are not there"],
    ),
    (_gap_too_long, {"cycles_present": 22, "cycles_in_gaps": 8}, ["power cycle 12 is there twice"]),
    (
        _hole,
        {"records_withdrawn": 0, "cycles_missing": 6, "reads_lost": 6},  # a read that failed late, four frames of two
        ["records 4 to 4 of run aaaaaaaa are missing and not withdrawn", *["a request answered"] * 6],
    ),
    (
        _hole_at_the_end_of_a_run,
        {"reads_lost": 12},  # ten are told
        ["records 6 to 6 of run aaaaaaaa are missing and not withdrawn", *["a request answered"] * 10],
    ),
    (
        _hole_withdrawn_in_part,
        {"records_withdrawn": 1, "reads_lost": 13},
        ["records 4 to 4 of run aaaaaaaa are missing and", *["a request answered"] * 10],
    ),
    (_hole_at_the_end, {}, ["does not say that it stopped"]),
    (
        _lost_run,
        {"cycles_missing": 5},
        ["records 1 to 7 of run cccccccc are missing and not withdrawn", *["a request answered"] * 5],
    ),
    (_first_run_lost, {}, ["records 1 to 6 of run aaaaaaaa are missing and not withdrawn"]),
    (
        _no_resumes,
        {"cycles_missing": 5, "reads_lost": 5},
        [
            "power ended at 20 of term 1, resumes says nothing",
            "energy ended at 4",
            *["power: a request answered"] * 3,
            *["energy: a request answered"] * 2,
        ],
    ),
    (_resumes_too_late, {}, ["power ended at 20 of term 1, resumes says cycle 21 of term 1"]),
    (_resumes_too_early, {}, ["energy ended at 4 of term 1, resumes says cycle 3 of term 1"]),
    (_new_outbox, {"reads_lost": 5}, ["begins a new outbox", *["a request answered"] * 5]),
    (_rolled_back, {}, ["follows record 5 of a run that went on to 6"]),
    (_begins_too_late, {}, ["power begins at cycle 27 of 27, 690000000 ns after the term was opened"]),
    (_repeated_plan_says_other, {}, ["power stands at", "power cycles 14 to 14"]),
    (
        _not_verified,
        {"failed": 1, "reads_lost": 13},  # behind it nothing is known up to the next plan
        ["signature failed", "records 2 to 2 of run aaaaaaaa", *["a request answered"] * 10],
    ),
    (_without_turn, {"failed": 1}, ["bb-2: ok", "records 2 to 2 of run bbbbbbbb"]),
    (_handed_over_twice, {"failed": 0}, ["handed over twice"]),
    (_polled_without_trace, {"reads_lost": 1}, ["power: a request answered"]),
    (_answered_before_the_stop, {"reads_lost": 1}, ["power: a request answered"]),
    (_no_plan, {}, ["run bbbbbbbb: no plan of it is at hand", "does not say that it stopped"]),
]


@pytest.mark.parametrize(("spoil", "counts", "problems"), DEFECTS, ids=[each[0].__name__[1:] for each in DEFECTS])
def test_a_defect_is_found_and_nothing_else(
    spoil: Callable[[World], None], counts: dict[str, int], problems: list[str]
) -> None:
    world = history()
    spoil(world)
    account = world.judge()
    found = sorted(account.problems)
    assert len(found) == len(problems), found
    for text in problems:
        hit = next((each for each in found if text in each), None)
        assert hit is not None, (text, found)
        found.remove(hit)
    assert asdict(account) == asdict(account) | counts
    assert not account.good


def test_data_of_another_term_is_a_defect() -> None:
    world = history()
    _frames_of_an_other_term(world)
    assert any("data of term 2 in term 1" in problem for problem in world.judge().problems)


def test_clocks_that_drift_make_no_cycle() -> None:
    """The next run reads its anchors anew, and finds the grid 60 microseconds later."""
    world = history()
    for group in _record(world, 1, B)["plan"]["groups"]:
        group["schedule"]["anchor"] += 60_000
    for frame in _record(world, 3, B)["frames"]:
        frame["late_us"] = 940
    assert world.judge().gaps == history().judge().gaps


def test_a_device_without_a_journal_is_refused() -> None:
    with pytest.raises(ValueError, match="behind pv"):
        Oracle({}).judge(history().lines)


def test_a_run_that_ends_behind_a_hole_says_nothing_of_its_end() -> None:
    world = history()
    world.lines.remove(_record(world, 5))
    for name in ("frames", "gaps", "term"):
        del _record(world, 6)[name]
    _record(world, 1, B)["plan"]["withdrawn"] = [[A, 5, 5, "overflow"]]
    account = world.judge()
    assert (account.problems, account.records_withdrawn) == ([], 1)


def test_records_behind_a_hole_are_not_judged_until_the_next_plan() -> None:
    world = history()
    world.lines.remove(_record(world, 3))
    for name in ("frames", "gaps", "term"):  # the verifier does not know what they mean
        del _record(world, 4)[name]
    _record(world, 1, B)["plan"]["withdrawn"] = [[A, 3, 3, "overflow"]]
    assert world.judge().problems == []


# ---- what it must not take for a defect ---------------------------------------------------------------------------


def test_withdrawn_records_are_accounted_for() -> None:
    world = history()
    world.lines.remove(_record(world, 3))
    world.lines.remove(_record(world, 4))
    _record(world, 1, B)["plan"]["withdrawn"] = [[A, 2, 3, "overflow"], [A, 4, 9, "overflow"]]
    account = world.judge()
    assert account.problems == []
    assert (account.records_withdrawn, account.cycles_expected) == (2, 30)
    assert account.gaps == {"overflow": 12, "agent_down": 5}


def test_a_run_may_be_withdrawn_whole_and_another_from_its_beginning() -> None:
    world = history()
    opened = ZERO + 6100 * MS
    plan: Json = {"follows": [B, 4], "resumes": resumes(30, 6)}
    world.plan(C, opened, {"power": 31, "energy": 7}, **plan)
    world.data(C, ZERO + 7 * S, [*frames(world, "power", 31, 35), *frames(world, "energy", 7, 7)])
    withdrawn = [[B, 1, 4, "overflow"], [C, 1, 2, "overflow"]]
    world.plan(C, opened, {"power": 36, "energy": 8}, **plan, withdrawn=withdrawn)
    world.data(C, ZERO + 8 * S, frames(world, "power", 36, 37))
    world.record("event", C, ZERO + 8 * S, event={"code": "stop", "details": []})
    world.lines = [line for line in world.lines if line["stream"] != B and (line["stream"], line["seq"]) > (C, 2)]
    world.lines = [*[line for line in history().lines if line["stream"] == A], *world.lines]
    account = world.judge()
    assert account.problems == []
    assert account.records_withdrawn == 4 + 2
    assert account.cycles_in_gaps == 2 + (36 - 20) + (8 - 4)


def test_a_run_that_was_killed_before_it_sealed_anything_but_its_plan() -> None:
    world = history()
    world.unstop()
    world.plan(C, ZERO + 6300 * MS, {"power": 32, "energy": 7}, follows=[B, 3], resumes=resumes(30, 6))
    plan: Json = {"follows": [C, 1], "resumes": resumes(32, 7)}
    world.plan("dd" * 16, ZERO + 6500 * MS, {"power": 33, "energy": 7}, **plan)
    world.data("dd" * 16, ZERO + 7 * S, frames(world, "power", 33, 34))
    world.record("event", "dd" * 16, ZERO + 7 * S, event={"code": "stop", "details": []})
    account = world.judge()
    assert account.problems == []
    assert account.runs == 4


def test_a_new_term_of_a_run() -> None:
    """The wall clock stepped by 70 ms: the old term is closed, the new grid lies 70 ms earlier."""
    world = history()
    world.unstop()
    opened = ZERO + 6050 * MS
    plan: Json = {"follows": [A, 6], "resumes": resumes(20, 4)}
    closing = world.data(B, opened, [], [gap("power", 30, 30, "clock_step"), gap("energy", 6, 6, "clock_step")])
    world.plan(B, opened, {"power": 31, "energy": 7}, term=2, ahead=70 * MS, **plan)
    world.data(B, ZERO + 7 * S, [world.frame("power", 31, late=-65 * MS)], term=2)
    world.record("event", B, ZERO + 7 * S, event={"code": "stop", "details": []})
    account = world.judge()
    assert account.problems == []
    assert account.gaps["clock_step"] == 2

    closing["gaps"].pop(0)
    account = world.judge()
    assert [p for p in account.problems if "power was closed at cycle 30 and not at 31" in p]
    assert account.cycles_missing == 1


def test_a_group_that_goes_and_comes_back_by_a_new_plan() -> None:
    world = history()
    world.unstop()
    bare: Json = {"follows": [A, 6], "resumes": resumes(20, 4)}
    world.data(B, ZERO + 6200 * MS, [world.frame("energy", 6)], [gap("power", 30, 30, "disabled")])
    world.plan(B, ZERO + 6150 * MS, {"energy": 7}, term=2, **bare)
    world.data(B, ZERO + 8 * S, [world.frame("energy", 7)], term=2)
    world.plan(B, ZERO + 7500 * MS, {"power": 38, "energy": 8}, term=3, **bare)
    world.data(B, ZERO + 8 * S, [world.frame("power", 38)], term=3)
    world.record("event", B, ZERO + 8 * S, event={"code": "stop", "details": []})
    assert world.judge().problems == []


def test_a_scale_factor_that_moved_makes_null() -> None:
    world = history()
    for group in _record(world, 1)["plan"]["groups"] + _record(world, 5)["plan"]["groups"]:
        for point in group["points"]:
            if point["name"] == "W":
                point["exponent"] = 2
    frame = _frame(world, 3, 1)
    frame["values"]["W"], frame["quality"] = None, {"W": "bad_encoding"}
    assert world.judge().problems == []


def test_a_scale_factor_may_come_with_another_request() -> None:
    points = [{"model": 1, "name": "X", "address": 0, "type": "int16", "size": 1, "sf_address": 500}]
    lines: list[Json] = [{"map": {"unit": 1, "points": points}}]
    lines += [{"t_boot": 5, "unit": 1, "address": 0, "registers": "0007"}]
    lines += [{"t_boot": 6, "unit": 1, "address": 500, "registers": "fffe"}]
    unit = Journal(lines).units[1]
    reads = unit.between(5, 6)
    assert unit.judge("X", 0.07, quality=None, exponent=-2, reads=reads) == ""
    assert unit.judge("X", 7, quality=None, exponent=0, reads=reads) == "served was 0.07"
    assert all(unit.footprint(["X"]).fits(read) for read in reads)


def test_a_point_that_the_device_does_not_have() -> None:
    unit = Journal([{"map": {"unit": 1, "points": MAP}}]).units[1]
    assert unit.judge("Q", None, quality="not_implemented", exponent=0, reads=[]) == ""
    assert unit.judge("Q", 0, quality=None, exponent=0, reads=[]) == "the device has no such point"
    assert unit.judge("W", None, quality="device_exception", exponent=0, reads=[]) == ""


def test_sixty_four_bits_are_compared_exactly() -> None:
    points = [{"model": None, "name": "X", "address": 0, "type": "uint64", "size": 4, "sf_address": None}]
    read = {"t_boot": 5, "unit": 1, "address": 0, "registers": "fffffffffffffffe"}
    unit = Journal([{"map": {"unit": 1, "points": points}}, read]).units[1]
    reads = unit.between(5, 5)
    assert unit.judge("X", 0xFFFFFFFFFFFFFFFE, quality=None, exponent=0, reads=reads) == ""
    assert unit.judge("X", str(0xFFFFFFFFFFFFFFFE), quality=None, exponent=0, reads=reads) == ""
    assert unit.judge("X", 0xFFFFFFFFFFFFFFFF, quality=None, exponent=0, reads=reads) != ""
    assert unit.judge("X", True, quality=None, exponent=0, reads=reads) != ""


def test_a_run_that_still_goes_on_is_judged_as_far_as_it_came() -> None:
    world = history()
    world.lines.pop()
    for cycle in (31, 32, 33):
        world.poll("power", cycle)
    assert world.judge(ended=False).problems == []


# ---- several sites, several channels, boots -----------------------------------------------------------------------


def test_each_channel_is_held_against_what_was_served() -> None:
    """Both channels get the same groups of one device; what one of them lost is found."""
    world = history()
    other = [json.loads(json.dumps(line)) for line in world.lines]
    for line in other:
        line["stream"] = {A: "11" * 16, B: "22" * 16}[line["stream"]]
        if "plan" in line:
            line["plan"]["channel"] = "grid"
            if line["plan"]["follows"]:
                line["plan"]["follows"][0] = "11" * 16
    world.lines += other
    account = world.judge()
    assert account.problems == []
    assert account.runs == 4

    dropped = next(line for line in other if (line["stream"], line["seq"]) == ("22" * 16, 3))
    dropped["frames"].pop()
    account = world.judge()
    assert account.reads_lost == 1
    assert len(account.problems) == 1  # the last cycle of the run: nothing else tells


def test_sites_with_journals_of_their_own() -> None:
    world, other = history(), history()
    for line in other.lines:
        for item in [*line.get("frames", []), *line.get("gaps", []), *line.get("plan", {}).get("groups", [])]:
            item["device"] = "meter"
        for resume in (line.get("plan", {}).get("resumes") or {"groups": []})["groups"]:
            resume[0] = "meter"
    for mine, theirs in zip(world.lines, other.lines, strict=True):
        for name in ("frames", "gaps"):
            mine.get(name, []).extend(theirs.get(name, []))
        if "plan" in mine:
            mine["plan"]["groups"] += theirs["plan"]["groups"]
            if mine["plan"]["resumes"]:
                mine["plan"]["resumes"]["groups"] += theirs["plan"]["resumes"]["groups"]
    first, second = Journal(world.journal), Journal(other.journal)
    account = Oracle({"pv": first.units[1], "meter": second.units[1]}).judge(world.lines)
    assert (account.problems, account.frames) == ([], 46)
    second.units[1].reads.clear()
    assert Oracle({"pv": first.units[1], "meter": second.units[1]}).judge(world.lines).values_wrong == 50


def test_several_boots_are_refused() -> None:
    world = history()
    _record(world, 1, B)["plan"]["boot_id"] = "01" * 16
    with pytest.raises(ValueError, match="several boots"):
        world.judge()


def test_a_polled_device_has_no_event_driven_group() -> None:
    world = history()
    _record(world, 1, B)["plan"]["groups"][0]["schedule"] = None
    with pytest.raises(ValueError, match="behind pv"):
        world.judge()


# ---- event-driven groups ----------------------------------------------------------------------------------------

TOPIC = "site/battery/state"
FIELDS = {"N": "/n", "SoC": "/soc", "W": "/power/w", "State": "/state", "On": "/on", "T2": "/temp/1"}
TYPES = {"N": "integer", "SoC": "integer", "W": "float", "State": "text", "On": "boolean", "T2": "integer"}
GARBAGE = b"\xff\xfe no JSON"


def at(n: int) -> int:
    """When message n is published."""
    return ZERO + n * 100 * MS


class Feed(World):
    """A publisher's journal, and what a consumer printed of an agent that listened."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = [{"connected": True, "t_boot": ZERO, "t_wall": ZERO}]
        self.options: Json = {"time": ("/ts", MS), "silent_after": 8 * S}

    def publish(self, n: int, *, qos: int = 1, retain: bool = False, acked: bool = True, **fields: Any) -> Json:
        """A message, and the frame that it should give. A field that is ``...`` is left out."""
        state: Json = {"ts": at(n) // MS, "n": n, "soc": 50 + n / 10, "power": {"w": -n * 1.5}, "state": "idle"}
        state |= {"on": n % 2 == 0, "temp": [20.0, 21.5]} | fields
        state = {name: value for name, value in state.items() if value is not ...}
        self._publish(n, {"payload": json.dumps(state)}, qos=qos, retain=retain, acked=acked)
        values = {"N": n, "SoC": state.get("soc"), "W": -n * 1.5, "State": "idle", "On": n % 2 == 0, "T2": 21.5}
        frame: Json = {"device": "battery", "group": "state", "received": at(n) + MS, "values": values}
        frame |= {"source_time": at(n) // MS * MS, "took_us": None}
        return frame | ({"quality": {"SoC": "no_value"}} if state.get("soc") is None else {})

    def publish_garbage(self, n: int, raw: bytes = GARBAGE) -> str:
        """A message that is no JSON; returns what a gap says of it."""
        self._publish(n, {"payload_hex": raw.hex()}, qos=1, retain=False, acked=True)
        return f"{TOPIC}: {len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:16]}: not UTF-8"

    def _publish(self, n: int, payload: Json, *, qos: int, retain: bool, acked: bool) -> None:
        line = {"t_boot": at(n), "t_wall": at(n), "n": n, "topic": TOPIC, "qos": qos, "retain": retain}
        self.journal.append(line | payload)
        if acked and qos:
            self.journal.append({"acked": n, "t_boot": at(n) + MS // 2})

    def listen(self, stream: str, opened: int, following: int = 0, **fields: Any) -> Json:
        points = [{"name": name, "type": TYPES[name], "exponent": -1} for name in FIELDS]
        group = {"device": "battery", "group": "state", "next": following, "schedule": None, "points": points}
        return self.plan(stream, opened, {}, groups=[group], **fields)

    def sealed(
        self, stream: str, boot: int, frames: list[Json], gaps: list[Json] | None = None, first: int = 0
    ) -> Json:
        """A data record; cycles are given in order from ``first``, gaps of garbage hold theirs."""
        taken = {gap["from"] for gap in gaps or []}
        cycles = (cycle for cycle in itertools.count(first) if cycle not in taken)
        for frame in frames:
            frame |= {"cycle": next(cycles), "late_us": (boot - frame.pop("received")) // 1000}
        return self.data(stream, boot, frames, gaps)

    def judge(self, **options: Any) -> Account:
        topic = Topic(FIELDS, messages(json.loads(json.dumps(self.journal))), **self.options)
        return Oracle({"battery": topic}).judge(json.loads(json.dumps(self.lines)), **options)


def quiet(begin: int, end: int, cause: str = "link_down") -> Json:
    gap: Json = {"device": "battery", "group": "state", "from": None, "to": None, "cause": cause, "detail": None}
    return gap | {"from_boot": begin, "to_boot": end}


def undecoded(cycle: int, detail: str, *, last: int | None = None) -> Json:
    gap: Json = {"device": "battery", "group": "state", "from": cycle, "to": last or cycle, "cause": "decode_error"}
    return gap | {"detail": detail, "from_boot": None, "to_boot": None}


def marked(frame: Json, quality: str) -> Json:
    """The same message, come again."""
    values = json.loads(json.dumps(frame["values"]))
    again: Json = frame | {"values": values, "quality": {n: quality for n, v in values.items() if v is not None}}
    return again


def listening() -> Feed:
    """Two runs. Messages 1 to 6 came in the first, which was killed; 7 and 8 while nobody listened; 9 is of QoS 0 and
    lost, 10 was never acknowledged and is not there; 11 is, and nothing after it for 10 s.

    Records: aa 1 plan, 2 data, 3 plan again, 4 data; bb 1 plan, 2 data, 3 data with the silence, 4 stop.
    """
    feed = Feed()
    feed.publish(0)  # before anybody listened
    feed.listen(A, ZERO + 10 * MS)
    first, second = feed.publish(1), feed.publish(2, soc=...)
    detail = feed.publish_garbage(3)
    fourth = feed.publish(4, soc=None)
    gaps = [undecoded(2, detail), quiet(ZERO + 10 * MS, ZERO + 20 * MS)]
    feed.sealed(A, ZERO + 450 * MS, [first, second, fourth], gaps)
    feed.listen(A, ZERO + 10 * MS, 4)
    fifth, sixth = feed.publish(5, retain=True), feed.publish(6)
    sixth_again = marked(sixth, "possible_duplicate") | {"received": at(9)}
    kept = marked(fifth, "old_data") | {"received": at(9)}
    feed.sealed(A, ZERO + 650 * MS, [fifth, sixth], first=4)
    away = [feed.publish(n) | {"received": at(9)} for n in (7, 8)]
    feed.listen(B, ZERO + 880 * MS, follows=[A, 4], resumes={"cause": "agent_down", "groups": []})
    feed.publish(9, qos=0)
    feed.publish(10, acked=False)
    eleventh = feed.publish(11)
    came = [kept, sixth_again, *away, eleventh]
    feed.sealed(B, ZERO + 1200 * MS, came, [quiet(ZERO + 880 * MS, ZERO + 890 * MS)])
    feed.sealed(B, ZERO + 12 * S, [], [quiet(at(11) + MS, ZERO + 12 * S, "source_silent")])
    feed.record("event", B, ZERO + 12 * S, event={"code": "stop", "details": []})
    return feed


def test_a_clean_history_of_messages_is_good() -> None:
    account = listening().judge()
    assert account.problems == []
    assert account.good
    assert asdict(account) == asdict(account) | {
        "records": 8,
        "frames": 10,
        "runs": 2,
        "cycles_expected": 11,
        "cycles_present": 10,
        "cycles_in_gaps": 1,
        "gaps": {"decode_error": 1},
        "values_checked": 10 * 7,
        "messages_published": 12,
        "messages_owed": 9,  # 1 to 8 and 11
        "messages_delivered": 8,
        "messages_in_gaps": 1,
        "messages_doubled": 1,
        "messages_retained": 1,
        "messages_excused": 0,
        "messages_lost": 0,
    }


def _value(feed: Feed) -> None:
    _frame(feed, 2, 0)["values"]["SoC"] = 50.2


def _text_for_a_number(feed: Feed) -> None:
    _frame(feed, 2, 0)["values"]["State"] = 5


def _number_for_a_boolean(feed: Feed) -> None:
    _frame(feed, 2, 0)["values"]["On"] = 0


def _null_where_one_was_sent(feed: Feed) -> None:
    frame = _frame(feed, 2, 0)
    frame["values"]["SoC"], frame["quality"] = None, {"SoC": "no_value"}


def _value_where_none_was_sent(feed: Feed) -> None:
    frame = _frame(feed, 2, 1)
    frame["values"]["SoC"] = 50.1
    del frame["quality"]


def _values_of_another_message(feed: Feed) -> None:
    _frame(feed, 4, 0)["values"] |= {"SoC": 50.6, "W": -9.0}


def _time_of_another_message(feed: Feed) -> None:
    _frame(feed, 2, 0)["source_time"] += MS


def _frame_of_no_message(feed: Feed) -> None:
    _frame(feed, 2, 0)["values"]["N"] = 99
    _frame(feed, 2, 0)["source_time"] += 7 * MS


def _received_before_it_was_sent(feed: Feed) -> None:
    _frame(feed, 2, 0)["late_us"] += 5000


def _message_lost(feed: Feed) -> None:
    _record(feed, 2, B)["frames"].pop(2)
    for frame in _record(feed, 2, B)["frames"][2:]:
        frame["cycle"] -= 1


def _cycle_lost(feed: Feed) -> None:
    _record(feed, 2, B)["frames"].pop(2)


def _last_message_lost(feed: Feed) -> None:
    feed.publish(80)


def _garbage_lost(feed: Feed) -> None:
    feed.publish_garbage(20, b"cut {")


def _garbage_not_told(feed: Feed) -> None:
    _record(feed, 2)["gaps"][0]["detail"] = f"{TOPIC}: 12 bytes, sha256 0123456789abcdef"


def _json_taken_for_garbage(feed: Feed) -> None:
    """The frame of message 6 is a gap."""
    sent = next(line["payload"] for line in feed.journal if line.get("n") == 6)
    _record(feed, 4)["frames"].pop(1)
    detail = f"{TOPIC}: {len(sent)} bytes, sha256 {hashlib.sha256(sent.encode()).hexdigest()[:12]}"
    _record(feed, 4)["gaps"].append(undecoded(5, detail))


def _wrong_cause(feed: Feed) -> None:
    _record(feed, 2)["gaps"][0]["cause"] = "overrun"


def _twice_and_not_marked(feed: Feed) -> None:
    del _frame(feed, 2, 1, B)["quality"]


def _kept_by_nobody(feed: Feed) -> None:
    next(line for line in feed.journal if line.get("n") == 5)["retain"] = False


def _silent_while_messages_came(feed: Feed) -> None:
    _record(feed, 2)["gaps"][1] |= {"from_boot": ZERO + 110 * MS - 20 * MS, "to_boot": ZERO + 250 * MS}


def _silence_not_told(feed: Feed) -> None:
    _record(feed, 3, B)["gaps"].clear()


def _silences_overlap(feed: Feed) -> None:
    _record(feed, 3, B)["gaps"].append(quiet(ZERO + 11 * S, ZERO + 12 * S))


def _does_not_begin_at_zero(feed: Feed) -> None:
    _record(feed, 1, B)["plan"]["groups"][0]["next"] = 7


def _repeat_does_not_go_on(feed: Feed) -> None:
    _record(feed, 3)["plan"]["groups"][0]["next"] = 3


def _records_lost(feed: Feed) -> None:
    feed.lines.remove(_record(feed, 4))


MESSAGE_DEFECTS: list[tuple[Callable[[Feed], None], dict[str, int], list[str]]] = [
    (_value, {"values_wrong": 1}, ["cycle 0: SoC is 50.2 : published was 50.1"]),
    (_text_for_a_number, {"values_wrong": 1}, ["State is 5"]),
    (_number_for_a_boolean, {"values_wrong": 1}, ["On is 0 : published was False"]),
    (_null_where_one_was_sent, {"values_wrong": 1}, ["SoC is None no_value: published was 50.1"]),
    (_value_where_none_was_sent, {"values_wrong": 1}, ["SoC is 50.1 : published was None"]),
    (_values_of_another_message, {"values_wrong": 2}, ["SoC is 50.6", "W is -9.0"]),
    (_time_of_another_message, {"values_wrong": 1}, ["source time is"]),
    (
        _frame_of_no_message,
        {"values_wrong": 6, "messages_lost": 0, "messages_owed": 8},  # it may have begun with message 2
        ["no message was published that says this"],
    ),
    (_received_before_it_was_sent, {}, ["received 4000000 ns before message 1 was published"]),
    (_message_lost, {"messages_lost": 1, "cycles_missing": 0}, ["message 7, published at"]),
    (
        _cycle_lost,
        {"messages_lost": 1, "cycles_missing": 1},
        ["message 7, published at", "cycles 2 to 2 are not there"],
    ),
    (_last_message_lost, {"messages_lost": 1}, ["message 80, published at"]),
    (_garbage_lost, {"messages_lost": 1, "messages_in_gaps": 1}, ["message 20, published at"]),
    (_garbage_not_told, {"messages_lost": 1}, ["decode_error of no message", "message 3, published at"]),
    (_json_taken_for_garbage, {"messages_lost": 0}, ["decode_error, and message 6 is JSON"]),
    (_wrong_cause, {"messages_lost": 1}, ["overrun is no reason", "message 3, published at"]),
    (_twice_and_not_marked, {"messages_doubled": 1}, ["message 6 is there 2 times and not marked"]),
    (_kept_by_nobody, {}, ["old_data, and message 5 was not published as a retained one"]),
    (_silent_while_messages_came, {}, ["link_down from"]),
    (_silence_not_told, {}, ["nothing came from"]),
    (_silences_overlap, {}, ["link_down from 1011000000000 to 1012000000000, where 1012000000000 was the end"]),
    (_does_not_begin_at_zero, {}, ["stands at cycle 0, the plan says 7", *["is there twice"] * 5]),
    (_repeat_does_not_go_on, {}, ["stands at cycle 4, the plan says 3", "cycles 3 to 3 are not there"]),
    (_records_lost, {"messages_lost": 0, "messages_delivered": 8}, ["records 4 to 4 of run aaaaaaaa are missing"]),
]


@pytest.mark.parametrize(
    ("spoil", "counts", "problems"), MESSAGE_DEFECTS, ids=[each[0].__name__[1:] for each in MESSAGE_DEFECTS]
)
def test_a_defect_of_messages_is_found(
    spoil: Callable[[Feed], None], counts: dict[str, int], problems: list[str]
) -> None:
    feed = listening()
    spoil(feed)
    account = feed.judge()
    found = sorted(account.problems)
    for text in problems:
        hit = next((each for each in found if text in each), None)
        assert hit is not None, (text, found)
        found.remove(hit)
    assert found == []
    assert asdict(account) == asdict(account) | counts
    assert not account.good


def test_what_cannot_be_decoded_may_have_waited_at_the_broker() -> None:
    """Published long before the run that got it, which listens from its beginning on."""
    feed = Feed()
    feed.listen(A, ZERO)
    feed.sealed(A, at(1) + 50 * MS, [feed.publish(1)])
    detail = feed.publish_garbage(2)
    feed.listen(B, at(200), follows=[A, 2], resumes={"cause": "agent_down", "groups": []})
    down = quiet(at(200) - 500 * MS, at(200))
    feed.sealed(B, at(202), [feed.publish(201)], [undecoded(0, detail), down], first=1)
    feed.record("event", B, at(203), event={"code": "stop", "details": []})
    account = feed.judge()
    assert account.problems == []
    assert account.messages_in_gaps == 1


def test_what_a_killed_broker_lost_is_not_counted() -> None:
    feed = listening()
    _message_lost(feed)
    _twice_and_not_marked(feed)
    feed.options["broker_loses"] = [(at(8), at(9))]  # it was killed later
    account = feed.judge()
    assert (account.messages_lost, len(account.problems)) == (1, 1)
    feed.options["broker_loses"] = [(at(7), at(8))]
    account = feed.judge()
    assert account.problems == []
    assert (account.messages_lost, account.messages_excused, account.messages_owed) == (0, 1, 8)


def test_a_publisher_may_send_a_message_twice() -> None:
    feed = listening()
    _twice_and_not_marked(feed)
    lost = {"connected": False, "t_boot": at(6) + 1}
    place = next(i for i, line in enumerate(feed.journal) if line.get("acked") == 6)
    feed.journal.insert(place, lost)
    assert feed.judge().problems == []
    feed.journal.remove(lost)
    feed.journal.insert(place + 1, lost)  # it was acknowledged before
    assert len(feed.judge().problems) == 1


def test_what_must_be_there_can_be_told() -> None:
    feed = listening()
    feed.options["owed_from"] = at(0)
    assert feed.judge().problems == [f"battery/state: message 0, published at {at(0)}, is in no frame and no gap"]
    feed = listening()
    feed.publish(115)  # under way at the end, perhaps
    assert feed.judge().problems == []
    feed.options["owed_until"] = at(115)
    assert feed.judge().messages_lost == 1


def test_messages_of_qos_0_are_judged_if_asked_for() -> None:
    feed = listening()
    _record(feed, 3, B)["gaps"].clear()
    feed.options["silent_after"] = None
    feed.publish(60, qos=0)
    feed.options["at_most_once"] = True
    assert feed.judge().messages_lost == 1  # 60, and not 9, when nobody listened

    for spared in (
        {"broker_loses": [(at(55), at(58))]},
        {"at_most_once": False},
    ):
        feed.options |= spared
        assert feed.judge().problems == []
        feed.options |= {"broker_loses": (), "at_most_once": True}
    _record(feed, 3, B)["gaps"].append(quiet(at(50), at(65)))
    assert feed.judge().problems == []
    _record(feed, 3, B)["gaps"].clear()
    feed.journal.insert(1, {"connected": False, "t_boot": ZERO})
    assert feed.judge().problems == []


def test_messages_published_while_the_link_is_down_at_the_end_are_not_owed_yet() -> None:
    feed = listening()
    feed.publish(80)
    _record(feed, 3, B)["gaps"][0] |= {"to_boot": at(75)}
    _record(feed, 3, B)["gaps"].append(quiet(at(75), ZERO + 12 * S))
    assert feed.judge().problems == []


def test_messages_in_withdrawn_records_are_accounted_for() -> None:
    feed = listening()
    feed.lines.remove(_record(feed, 2, B))
    late = feed.publish(90) | {"received": at(90)}
    plan: Json = {"follows": [A, 4], "resumes": {"cause": "agent_down", "groups": []}}
    feed.lines = [line for line in feed.lines if (line["stream"], line["seq"]) < (B, 3)]
    feed._stream, feed._seq = B, 2
    feed.listen(B, ZERO + 880 * MS, 5, withdrawn=[[B, 2, 2, "overflow"]], **plan)
    feed.sealed(B, ZERO + 12 * S, [late], [quiet(at(11), at(89), "source_silent")], first=5)
    feed.record("event", B, ZERO + 12 * S, event={"code": "stop", "details": []})
    account = feed.judge()
    assert account.problems == []
    assert (account.records_withdrawn, account.messages_excused, account.messages_lost) == (1, 3, 0)  # 7, 8, 11
    feed.lines[-3]["plan"]["groups"][0]["next"] = feed.lines[-2]["frames"][0]["cycle"] = 2  # the hole held two
    assert feed.judge().messages_lost == 1


def test_an_event_driven_group_goes_on_in_the_next_term() -> None:
    feed = listening()
    feed.unstop()
    plan: Json = {"follows": [A, 4], "resumes": {"cause": "agent_down", "groups": []}}
    feed.listen(B, ZERO + 12 * S, 5, term=2, **plan)
    late = feed.publish(121) | {"values": {"N": 121, "SoC": 62.1}}
    feed.lines[-1]["plan"]["groups"][0]["points"] = [{"name": "N"}, {"name": "SoC"}]
    feed.sealed(B, ZERO + 13 * S, [late], first=5)["term"] = 2
    feed.record("event", B, ZERO + 13 * S, event={"code": "stop", "details": []})
    assert feed.judge().problems == []


@pytest.mark.parametrize("point", ["N", "On"])  # by the time, by all values
def test_messages_are_told_apart_without_their_number(point: str) -> None:
    feed = listening()
    for line in feed.lines:
        for frame in line.get("frames", []):
            del frame["values"]["N"]
            frame.get("quality", {}).pop("N", None)
            if point == "On":
                del frame["source_time"]
        for group in line.get("plan", {}).get("groups", []):
            group["points"] = [each for each in group["points"] if each["name"] != "N"]
    if point == "On":
        feed.options["time"] = None
    account = feed.judge()
    assert account.problems == []
    assert (account.messages_delivered, account.messages_doubled) == (8, 1)
    _value(feed)
    (problem,) = feed.judge().problems
    assert ("no message was published that says this" if point == "On" else "SoC is 50.2") in problem


def test_values_of_messages_are_compared_exactly() -> None:
    payload = (
        '{"a": 9007199254740993, "b": 0.1, "c": 1e-7, "d": "5", "e": true, "f": 5, "g": [1], "h": 123456789.123456789}'
    )
    line = {"t_boot": 1, "n": 1, "topic": TOPIC, "qos": 1, "retain": False, "payload": payload}
    (message,) = messages([line])
    right: list[tuple[str, object, str | None, str]] = [
        ("/a", 9007199254740993, None, "integer"),
        ("/a", "9007199254740993", None, "integer"),
        ("/b", 0.1, None, "integer"),
        ("/c", 1e-7, None, "float"),
        ("/d", "5", None, "text"),
        ("/e", True, None, "boolean"),
        ("/f", 5.0, None, "float"),
        ("/g/0", 1, "out_of_range", "integer"),
        ("/g", None, "bad_encoding", "integer"),
        ("/d", None, "bad_encoding", "integer"),
        ("/e", None, "bad_encoding", "integer"),
        ("/h", "123456789.123456789", None, "integer"),
        ("/x/y", None, "no_value", "integer"),
    ]
    for pointer, value, quality, kind in right:
        assert message.judge(pointer, value, quality=quality, kind=kind) == "", pointer
    wrong: list[tuple[str, object, str | None, str]] = [
        ("/a", 9007199254740992, None, "integer"),
        ("/b", 0.1000000000000001, None, "integer"),
        ("/d", 5, None, "text"),
        ("/e", 1, None, "boolean"),
        ("/e", True, None, "integer"),
        ("/f", "five", None, "integer"),
        ("/f", True, None, "integer"),
        ("/g", None, "no_value", "integer"),
        ("/h", 123456789.12345679, None, "integer"),
        ("/x/y", None, None, "integer"),
        ("/x/y", 0, "no_value", "integer"),
    ]
    for pointer, value, quality, kind in wrong:
        assert message.judge(pointer, value, quality=quality, kind=kind) != "", pointer


# ---- parts ----------------------------------------------------------------------------------------------------


def test_a_journal_that_kills_cut_short(tmp_path: Path) -> None:
    read = '{"t_boot": 7, "t_wall": 7, "unit": 1, "fc": 3, "address": 0, "count": 1, "registers": "0001"}'
    whole = json.dumps({"map": {"unit": 1, "points": MAP}})
    journal = tmp_path / "journal"
    for cut in (whole[:200], read[:30], "{"):
        journal.write_text(f"{whole}\n{read}\n{cut}{whole}\n{read}\n{cut}{read}\n{cut}")
        unit = Journal.read(journal).units[1]
        assert list(unit.points.values()) == MAP
        assert len(unit.reads) == 3


def test_many_problems_of_a_kind_are_counted_and_not_told() -> None:
    account = Account()
    for i in range(1, 100):
        account.problem(f"value {i}", count=i)
    assert len(account.problems) == 10


def test_the_verifier_is_held_against_the_oracle() -> None:
    account = history().judge()
    report = {name: value for name, value in asdict(account).items() if isinstance(value, int)}
    account.compare(report)
    assert account.good
    account.compare(report | {"cycles_present": 1})
    assert account.problems == ["the verifier counts 1 cycles_present, the oracle 23"]


def test_a_failed_acquisition_reaches_to_the_next_frame() -> None:
    timeline = Timeline(0)
    timeline.frame(0, 5)
    timeline.gap(10, 20)
    timeline.frame(25, 30)
    timeline.gap(40, 50)
    timeline.gap(60, 70)
    held = [boot for boot in range(80) if timeline.holds(boot)]
    assert held == [*range(5), *range(10, 30), *range(40, 50), *range(60, 70)]
