"""Records run both ways: what is encoded comes back as it went, and nothing that breaks the CDDL comes in."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.record import (
    MAX_BODY,
    ZEROS,
    Body,
    decode_head,
    decode_record,
    encode_data,
    encode_event,
    encode_plan,
    encode_record,
    pack,
)
from agent.model import (
    Data,
    DeviceInfo,
    Event,
    Frame,
    Gap,
    GroupPlan,
    Kind,
    Plan,
    Point,
    Quality,
    Record,
    Resume,
    Schedule,
    Sealed,
    Value,
    ValueType,
    Withdrawn,
)

STREAM = bytes(range(16))
SEALED = Sealed(1_764_000_000_000_000_000, 1_000_000_000_000, 0, None)

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
uints = st.integers(0, 2**63)
int_points = st.builds(
    Point,
    name=names,
    unit=st.none() | names,
    type=st.just(ValueType.INTEGER),
    exponent=st.integers(-20, 20),
    source=st.none() | names,
    labels=st.dictionaries(st.integers(0, 2**32), names, max_size=3),
)
other_points = st.builds(Point, name=names, unit=st.none() | names, type=st.sampled_from(list(ValueType)[1:]))
schedules = st.builds(
    lambda period, phase, first, anchor: Schedule(period, phase % period, first, anchor),
    st.integers(1_000_000, 10**12),
    uints,
    st.integers(0, 2**40),
    uints,
)
VALUES: dict[ValueType, st.SearchStrategy[Value]] = {
    ValueType.INTEGER: st.integers(-(2**64), 2**64 - 1) | st.integers(-9, 9),
    ValueType.FLOAT: st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0),
    ValueType.BOOLEAN: st.booleans(),
    ValueType.TEXT: st.text(max_size=8),
    ValueType.BYTES: st.binary(max_size=8),
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    devices = draw(st.lists(st.builds(DeviceInfo, id=names, adapter=names), min_size=1, max_size=3, unique_by=id_of))
    groups = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        points = draw(st.lists(int_points | other_points, min_size=1, max_size=4, unique_by=lambda p: p.name))
        device = draw(st.integers(0, len(devices) - 1))
        groups.append(GroupPlan(name, device, draw(st.none() | schedules), draw(uints), tuple(points)))
    follows = draw(st.none() | st.tuples(st.binary(min_size=16, max_size=16), st.integers(1, 2**63)))
    resumes = (
        (9, tuple(draw(st.lists(st.builds(Resume, names, names, st.integers(1, 9), uints), max_size=2))))
        if follows
        else None
    )
    withdrawn = draw(st.lists(st.builds(Withdrawn, st.just(STREAM), st.integers(1, 5), st.integers(5, 9), st.just(11))))
    labels = draw(st.dictionaries(names, names, max_size=3))
    return Plan(
        term=draw(st.integers(1, 2**32)),
        opened=(draw(uints), draw(uints)),
        boot_id=draw(st.binary(min_size=16, max_size=16)),
        version="0.1.0",
        site=draw(names),
        labels=tuple(sorted(labels.items(), key=lambda label: label[0].encode())),
        channel=draw(names),
        topic=draw(names),
        configuration=bytes(32),
        devices=tuple(devices),
        groups=tuple(groups),
        follows=follows,
        resumes=resumes,
        withdrawn=tuple(withdrawn[:16]),
        volatile=draw(st.booleans()),
        window_ms=draw(uints),
    )


def id_of(device: DeviceInfo) -> str:
    return device.id


@st.composite
def data_of(draw: st.DrawFn, plan: Plan) -> Data:
    frames = []
    for index, group in enumerate(plan.groups):
        for cycle in sorted(draw(st.sets(st.integers(0, 2**40), max_size=4))):
            values, quality = [], []
            for i, point in enumerate(group.points):
                code = draw(st.none() | st.sampled_from(Quality))
                values.append(None if code and code <= Quality.NO_VALUE else draw(VALUES[point.type]))
                if code:
                    quality.append((i, code))
            took = draw(uints) if group.schedule else None
            frames.append(Frame(index, cycle, draw(uints), took, tuple(values), tuple(quality)))
    ends = st.tuples(uints, uints).map(sorted)
    gap = st.builds(lambda g, ends: Gap(g, ends[0], ends[1], 3, "why"), st.integers(0, len(plan.groups) - 1), ends)
    return Data(plan.term, tuple(frames), tuple(draw(st.lists(gap, max_size=3))))


def record_of(body: Body, **changes: Any) -> Record:
    payload = encode_record(body, stream=STREAM, seq=7, prev=ZEROS, sealed=SEALED)
    return decode_record(decode_head(payload), changes.get("plan"))


@given(plans())
@settings(max_examples=60, deadline=None)
def test_plans_come_back_as_they_went(plan: Plan) -> None:
    record = record_of(pack(Kind.PLAN, encode_plan(plan)))
    assert record.body == plan
    assert (record.stream, record.seq, record.prev, record.sealed, record.unknown) == (STREAM, 7, ZEROS, SEALED, ())


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_data_comes_back_as_it_went(draw: st.DataObject) -> None:
    plan = draw.draw(plans())
    data = draw.draw(data_of(plan))
    decoded = record_of(pack(Kind.DATA, encode_data(data, plan)), plan=plan).body
    assert isinstance(decoded, Data)
    assert decoded.gaps == data.gaps
    for mine, theirs in zip(data.frames, decoded.frames, strict=True):
        spoilt = [point for point, code in theirs.quality if (point, code) not in mine.quality]
        assert all(theirs.values[point] is None for point in spoilt)  # beyond what 64 bits and differences can say
        kept = [i for i in range(len(mine.values)) if i not in spoilt]
        assert [mine.values[i] for i in kept] == [theirs.values[i] for i in kept]
        assert (mine.group, mine.cycle, mine.late_us, mine.took_us) == (
            theirs.group,
            theirs.cycle,
            theirs.late_us,
            theirs.took_us,
        )


def test_events_come_back_as_they_went() -> None:
    event = Event(4, 12, ("pv-1", None, "SN2"))
    assert record_of(pack(Kind.EVENT, encode_event(event))).body == event


@pytest.mark.parametrize(
    ("value", "sent"), [(float("nan"), None), (float("inf"), None), (-0.0, 0.0), (1.5, 1.5)], ids=str
)
def test_numbers_that_the_format_does_not_have_become_null_and_say_so(value: float, sent: float | None) -> None:
    group = GroupPlan("g", 0, Schedule(10**9, 0, 1, 1), 1, (Point("t", None, ValueType.FLOAT),))
    plan = replace(simple_plan(), groups=(group,))
    data = Data(1, (Frame(0, 1, 0, 0, (value,)),), ())
    decoded = record_of(pack(Kind.DATA, encode_data(data, plan)), plan=plan).body
    assert isinstance(decoded, Data)
    assert decoded.frames[0].values == (sent,)
    assert decoded.frames[0].quality == (((0, Quality.BAD_ENCODING),) if sent is None else ())


def test_an_integer_beyond_64_bits_spoils_only_itself() -> None:
    plan = simple_plan()
    rows = [(5,), (2**64,), (7,), (-(2**64),), (2**64 - 1,), (8,)]
    frames = tuple(Frame(0, i, 0, 0, values) for i, values in enumerate(rows))
    decoded = record_of(pack(Kind.DATA, encode_data(Data(1, frames, ()), plan)), plan=plan).body
    assert isinstance(decoded, Data)
    assert [frame.values[0] for frame in decoded.frames] == [5, None, 7, None, 2**64 - 1, 8]
    assert decoded.frames[1].quality == ((0, Quality.BAD_ENCODING),)


def simple_plan() -> Plan:
    group = GroupPlan("g", 0, Schedule(10**9, 0, 1, 1), 1, (Point("n", None, ValueType.INTEGER),))
    return Plan(
        term=1,
        opened=(1, 1),
        boot_id=bytes(16),
        version="",
        site="s",
        labels=(),
        channel="c",
        topic="t",
        configuration=bytes(32),
        devices=(DeviceInfo("d", "x"),),
        groups=(group,),
        follows=None,
        resumes=None,
        withdrawn=(),
        volatile=False,
        window_ms=0,
    )


# ---- what is refused ------------------------------------------------------------------------------------------------

RECORD = {1: 1, 2: STREAM, 3: 1, 4: ZEROS, 5: [1, 1, 0, None], 6: 3, 7: [2, 1, ["SIGTERM"]]}
BLOCK = {1: 0, 2: [5, 1], 3: [1, 2], 4: [3, 4], 5: [[7, -1]]}
BAD_RECORDS: dict[str, dict[int, Any]] = {
    "unlisted key": {**RECORD, 9: 0},
    "neither body nor packed": {key: value for key, value in RECORD.items() if key != 7},
    "both body and packed": {**RECORD, 8: zlib.compress(cbor.encode(RECORD[7]))},
    "seq 0": {**RECORD, 3: 0},
    "seq true": {**RECORD, 3: True},
    "short stream": {**RECORD, 2: bytes(15)},
    "short prev": {**RECORD, 4: bytes(31)},
    "clock 3": {**RECORD, 5: [1, 1, 3, None]},
    "negative time": {**RECORD, 5: [-1, 1, 0, None]},
    "event 0": {**RECORD, 7: [0, 1, []]},
    "event too short": {**RECORD, 7: [2, 1]},
    "packed: no zlib": {**{k: v for k, v in RECORD.items() if k != 7}, 8: b"junk"},
    "packed: more behind it": {**{k: v for k, v in RECORD.items() if k != 7}, 8: zlib.compress(b"\x80") + b"\0"},
    "packed: not finished": {**{k: v for k, v in RECORD.items() if k != 7}, 8: zlib.compress(b"\x80" * 99)[:-1]},
    "packed: too large": {**{k: v for k, v in RECORD.items() if k != 7}, 8: zlib.compress(bytes(MAX_BODY + 1))},
    "data: term 0": {**RECORD, 6: 2, 7: [0, [], []]},
    "data: short": {**RECORD, 6: 2, 7: [1, []]},
    "data: gap backwards": {**RECORD, 6: 2, 7: [1, [], [[0, 5, 4, 1, None, None, None]]]},
    "data: gap with both": {**RECORD, 6: 2, 7: [1, [], [[0, 4, 5, 1, None, 1, 2]]]},
    "data: gap of unknown group": {**RECORD, 6: 2, 7: [1, [], [[9, 4, 5, 1, None, None, None]]]},
    "block: two of one group": {**RECORD, 6: 2, 7: [1, [BLOCK, BLOCK], []]},
    "block: unknown group": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 1: 4}], []]},
    "block: cycles stand still": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 2: [5, 0]}], []]},
    "block: column too short": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[7]]}], []]},
    "block: column too many": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[7, 1], [7, 1]]}], []]},
    "block: wrong type": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[7.5, 1.5]]}], []]},
    "block: mixed types": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[7, True]]}], []]},
    "block: null without code": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[7, None]]}], []]},
    "block: code of null at a value": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 6: [[0, 0, 1]]}], []]},
    "block: quality out of order": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 6: [[1, 0, 6], [0, 0, 6]]}], []]},
    "block: no took though periodic": {**RECORD, 6: 2, 7: [1, [{k: v for k, v in BLOCK.items() if k != 4}], []]},
    "block: beyond 64 bits": {**RECORD, 6: 2, 7: [1, [{**BLOCK, 5: [[2**64 - 1, 1]]}], []]},
    "plan: not a map": {**RECORD, 6: 1, 7: [1]},
}


@pytest.mark.parametrize("fields", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_what_breaks_the_cddl_is_refused(fields: dict[int, Any]) -> None:
    with pytest.raises(EvidenceError):
        decode_record(decode_head(cbor.encode(fields)), simple_plan())


def test_the_records_that_those_were_made_from_are_good() -> None:
    assert decode_record(decode_head(cbor.encode(RECORD)), None).kind == Kind.EVENT
    decoded = decode_record(decode_head(cbor.encode({**RECORD, 6: 2, 7: [1, [BLOCK], []]})), simple_plan()).body
    assert isinstance(decoded, Data)
    assert [frame.values for frame in decoded.frames] == [(7,), (6,)]


def test_what_a_newer_version_adds_is_named_and_never_refused() -> None:
    newer = {**RECORD, 6: 9, 7: "anything", 16: 1}
    record = decode_record(decode_head(cbor.encode(newer)), None)
    assert record.body is None
    assert set(record.unknown) == {"record: key 16", "kind 9"}


PLAN = cbor.decode(encode_plan(simple_plan()))
BAD_PLANS: dict[str, dict[int, Any]] = {
    "unlisted key": {15: 1},
    "term 0": {1: 0},
    "labels not sorted": {5: ["s", [["b", ""], ["a", ""]]]},
    "follows alone": {10: [STREAM, 1]},
    "too many withdrawn": {12: [[STREAM, 1, 1, 11]] * 17},
    "withdrawn backwards": {12: [[STREAM, 2, 1, 11]]},
    "cause 0": {12: [[STREAM, 1, 1, 0]]},
    "volatile as number": {13: 0},
    "two devices of one name": {8: [["d", "x", None, None, None, None, None]] * 2},
    "group of no device": {9: [{**PLAN[9][0], 2: 7}]},
    "two groups of one name": {9: PLAN[9] * 2},
    "no points": {9: [{**PLAN[9][0], 5: []}]},
    "two points of one name": {9: [{**PLAN[9][0], 5: PLAN[9][0][5] * 2}]},
    "type 5": {9: [{**PLAN[9][0], 5: [["n", None, 5, 0, None, {}]]}]},
    "float with exponent": {9: [{**PLAN[9][0], 5: [["n", None, 1, -1, None, {}]]}]},
    "period below 1 ms": {9: [{**PLAN[9][0], 3: [999_999, 0, 1, 1]}]},
    "phase beyond the period": {9: [{**PLAN[9][0], 3: [10**9, 10**9, 1, 1]}]},
    "configuration too short": {7: bytes(31)},
}


@pytest.mark.parametrize("changes", BAD_PLANS.values(), ids=BAD_PLANS)
def test_bad_plans_are_refused(changes: dict[int, Any]) -> None:
    with pytest.raises(EvidenceError):
        decode_record(decode_head(cbor.encode({**RECORD, 6: 1, 7: {**PLAN, **changes}})), None)
