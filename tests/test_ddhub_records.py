"""What the readable copy beside the envelopes is worth: it agrees, differs, or cannot be held against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agent.model import Frame, GroupPlan, Point, Quality, ValueType
from agent.transports.ddhub.content.payload import decode, encode
from agent.transports.ddhub.content.records import Agreement, agreement, rendered
from agent.verifier import Judged, Verifier
from tests.runs import DID, Run, frame, group

BATTERY = (
    Point("SoC", "%", ValueType.FLOAT),
    Point("State", None, ValueType.TEXT),
    Point("On", None, ValueType.BOOLEAN),
    Point("Raw", None, ValueType.BYTES),
)
JsonRecords = list[Any]


def a_run() -> Run:
    run = Run()
    run.begin([group(100), GroupPlan("state", 0, None, 0, BATTERY)])
    run.data(
        [
            frame(100),
            Frame(0, 101, 1, 2, (None, -2304, 0.1), ((0, Quality.NO_VALUE), (1, Quality.SUSPECT))),
            Frame(1, 0, 500_000, None, (81.25, "grid — tied", True, b"\xff\x00"), (), 1_763_999_999_123_456_789),
        ]
    )
    run.data([frame(102), frame(103)])
    return run


def judged(envelopes: Sequence[bytes]) -> list[Judged]:
    verifier = Verifier([DID])
    found = [each for envelope in envelopes for each in verifier.feed(envelope)]
    return [*found, *verifier.finish(complete=True)]


RUN = a_run()
JUDGED = judged(RUN.sent)


def sent(spoil: Callable[[JsonRecords], object] = lambda records: None) -> Agreement:
    """What comes out if the JSON of the records is changed like that on the way."""
    text = encode(RUN.sent, rendered(JUDGED))
    payload: dict[str, Any] = json.loads(text)
    spoil(payload["records"])
    found = decode(json.dumps(payload, indent=1))
    assert found.records is not None
    return agreement(found.records, judged(found.envelopes))


def test_what_is_sent_agrees() -> None:
    found = decode(encode(RUN.sent, rendered(JUDGED)))
    assert found.records is not None
    assert len(found.records) == 3 + 2 + 4 + 6
    assert agreement(found.records, judged(found.envelopes)) is Agreement.AGREE


def test_it_still_does_when_a_program_with_doubles_wrote_it_again() -> None:
    assert sent() is Agreement.AGREE


def test_order_does_not_count_once_times_are_resolved() -> None:
    def resolve(records: JsonRecords) -> None:
        name, base = "", 0.0
        for each in records:
            name, base = each.pop("bn", name), each.pop("bt", base)
            each["n"], each["t"] = name + each["n"], round(base + each.get("t", 0), 6)
        records.reverse()

    assert sent(resolve) is Agreement.AGREE


SPOILT: dict[str, Callable[[JsonRecords], object]] = {
    "a value": lambda r: r[1].update(v=230.41),
    "a unit": lambda r: r[0].update(u="kW"),
    "a name": lambda r: r[0].update(n="pv-2/ac/W"),
    "the base name": lambda r: r[0].update(bn="did:ethr:volta:0x00/"),
    "a time": lambda r: r[3].update(t=1.000001),
    "the base time": lambda r: r[0].update(bt=r[0]["bt"] + 1),
    "too fine a time": lambda r: r[3].update(t=1.0000001),
    "a quality": lambda r: r[3].pop("quality"),
    "a truth value": lambda r: r[7].update(vb=False),
    "a number for a truth value": lambda r: r[7].update(vb=1),
    "a text": lambda r: r[6].update(vs="island"),
    "bytes": lambda r: r[8].update(vd="AAA"),
    "one less": lambda r: r.pop(),
    "one more": lambda r: r.append(r[-1]),
    "a base value": lambda r: r[0].update(bv=1),
    "a time that is text": lambda r: r[0].update(bt="1"),
    "a name that is a number": lambda r: r[0].update(n=1),
    "a huge time": lambda r: r[0].update(bt=1e300),
    "an object in a value": lambda r: r[0].update(v={}),
    "no object": lambda r: r.append(1),
    "all but one": lambda r: r.__delitem__(slice(1, None)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_was_changed_differs(name: str) -> None:
    assert sent(SPOILT[name]) is Agreement.DIFFER


def test_an_empty_list_says_nothing_of_values() -> None:
    assert sent(lambda records: records.clear()) is Agreement.UNKNOWN


def test_records_that_are_no_list_differ() -> None:
    found = decode(encode(RUN.sent).replace("]}", '],"records":null}'))
    assert found.records is not None
    assert agreement(found.records, judged(found.envelopes)) is Agreement.DIFFER


def test_without_the_plan_it_is_unknown() -> None:
    assert (
        agreement(decode(encode(RUN.sent, rendered(JUDGED))).records or (), judged(RUN.sent[1:])) is Agreement.UNKNOWN
    )


def test_of_a_record_that_does_not_verify_it_is_unknown() -> None:
    damaged = RUN.sent[2][:-1] + bytes([RUN.sent[2][-1] ^ 1])
    assert agreement((), judged([*RUN.sent[:2], damaged])) is Agreement.UNKNOWN


def test_of_records_seen_before_it_is_unknown() -> None:
    assert agreement((), judged([*RUN.sent, RUN.sent[1]])[-1:]) is Agreement.UNKNOWN


def test_a_plan_alone_has_no_values() -> None:
    assert agreement((), judged(RUN.sent[:1])) is Agreement.AGREE
