"""The readable copy of records on their way: which plan it is made with, and what becomes of it where there is none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery.plans import plan_before
from agent.evidence.record import link_of, plan_of
from agent.model import EventCode
from agent.outbox import Outbox
from agent.ports import Message
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.content.copies import Copies
from agent.transports.ddhub.content.records import rendered
from agent.transports.ddhub.message import Draft, fits_with_copy
from agent.verifier import Verifier
from tests.fakes import FakeStore
from tests.runs import DID, POINTS, Run, frame, group, renamed


def unasked() -> bytes | None:
    pytest.fail("a plan was looked for")


class Lookup:
    """Gives the plan, and counts how often it was asked."""

    def __init__(self, plan: bytes | None) -> None:
        self.plan = plan
        self.asked = 0

    def __call__(self) -> bytes | None:
        self.asked += 1
        return self.plan


def of_consumer(*envelopes: bytes) -> list[str]:
    """What a consumer that has all makes of each record."""
    verifier = Verifier([DID])
    judged = [each for envelope in envelopes for each in verifier.feed(envelope)]
    return [",".join(rendered([each])) for each in [*judged, *verifier.finish()]]


def two_terms() -> Run:
    run = Run()
    run.begin([group(100)])
    run.event(EventCode.START, "0.1.0", True)
    run.data([frame(100), frame(101)])
    run.data([frame(102)])
    run.begin([renamed(group(200), "dc")])
    run.data([frame(200)])
    return run


# ---- the copy ---------------------------------------------------------------------------------------------------


def test_it_says_what_a_consumer_makes_of_the_record() -> None:
    run, copies = two_terms(), Copies()
    made = [copies.of(envelope, unasked) for envelope in run.sent]
    assert made == of_consumer(*run.sent)
    assert [bool(each) for each in made] == [False, False, True, True, False, True]
    assert isinstance(made[5], str)
    assert "pv-1/dc/W" in made[5]


def test_who_begins_within_a_term_looks_its_plan_up_once() -> None:
    run, copies, lookup = two_terms(), Copies(), Lookup(None)
    lookup.plan = run.sent[0]
    assert [copies.of(each, lookup) for each in run.sent[2:4]] == of_consumer(*run.sent)[2:4]
    assert lookup.asked == 1
    lookup.plan = run.sent[4]
    assert copies.of(run.sent[5], lookup) == of_consumer(*run.sent)[5]
    assert lookup.asked == 2


@pytest.mark.parametrize("held", ["none", "of another term", "no plan"])
def test_without_its_plan_there_is_none_and_it_is_looked_for_once(held: str) -> None:
    run, copies = two_terms(), Copies()
    lookup = Lookup({"none": None, "of another term": run.sent[4], "no plan": run.sent[1]}[held])
    assert [copies.of(each, lookup) for each in run.sent[1:4]] == ["", None, None]
    assert lookup.asked == 1
    assert [copies.of(each, lookup) for each in run.sent[4:]] == of_consumer(*run.sent)[4:]
    assert lookup.asked == 1


def test_what_cannot_be_read_has_none() -> None:
    assert Copies().of(b"\x00", unasked) is None


# ---- the plan in the outbox ---------------------------------------------------------------------------------------


def stored(store: FakeStore, run: Run, *, segments: list[int]) -> None:
    """Put a run into an outbox; ``segments``: the records that begin one."""
    for number, (envelope, link) in enumerate(zip(run.sent, run.links, strict=True)):
        store.append([(envelope, link)], new_segment=number in segments)


def test_the_plan_in_force_is_found_however_far_back_it_lies() -> None:
    run, store = Run(), FakeStore(segment_size=1 << 20)
    run.begin([group(100)])
    for cycle in range(100, 700):
        run.data([frame(cycle)])
    run.begin([group(800)])
    run.data([frame(800)])
    stored(store, run, segments=[0])
    records = store.read(0, max_bytes=1 << 20)
    for number, plan in ((0, 0), (1, 0), (17, 0), (600, 0), (601, 601), (602, 601)):
        assert plan_before(store, records[number]) == run.sent[plan]


def test_a_plan_of_another_run_is_none_of_this() -> None:
    store = FakeStore(segment_size=1 << 14, segments=2)
    before, run = Run(), Run()
    before.begin([group(100)])
    before.data([frame(100)])
    run = Run(after=before)
    run.begin([group(200)])
    run.data([frame(200)])
    stored(store, before, segments=[0])
    stored(store, run, segments=[])
    records = store.read(0, max_bytes=1 << 20)
    assert plan_before(store, records[1]) == before.sent[0]
    assert plan_before(store, records[3]) == run.sent[0]
    store.segments[0].records[2:3] = []  # rot
    assert plan_before(store, records[3]) is None


def test_a_ring_holds_the_plan_of_every_record_that_it_holds(tmp_path: Path) -> None:
    run = Run()
    ring = Outbox.open(tmp_path / "ring", channel="dso", size=5 * 8192, inspect=link_of, segment_size=8192)
    run.begin([group(100)])
    for first in range(100, 200, 4):
        if (full := not ring.fits(3000, 4)) and first > 100:
            run.plan()
        begin = len(run.sent) - full
        for cycle in range(first, first + 4):
            run.data([frame(cycle)])
        ring.append([*zip(run.sent, run.links, strict=True)][begin:], new_segment=full)
    held = ring.read(0, max_bytes=1 << 20)
    assert held[0].pos > 1, "it went round"
    for record in [*held[:3], *held[3::7], held[-1]]:
        found = plan_before(ring, record)
        assert found is not None
        assert plan_of(found) is not None
        assert link_of(found).seq <= record.link.seq
        assert Copies().of(record.envelope, partial(plan_before, ring, record)) is not None
    ring.close()


# ---- the size of a message ----------------------------------------------------------------------------------------


def message(number: int, size: int) -> Message:
    return Message(number, f"{'a' * 32}-{number}-00000000", bytes(size))


COPY = st.one_of(st.just(""), st.none(), st.integers(1, 90).map(lambda size: '{"n":"' + "x" * size + '"}'))


@settings(max_examples=50, deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(1, 300), COPY), min_size=1, max_size=12),
    most=st.integers(100, 3000),
    copied=st.booleans(),
)
def test_a_draft_takes_exactly_what_fits(
    records: list[tuple[int, str | None]],
    most: int,
    copied: bool,
) -> None:
    draft = Draft(most=most, since=0, resent=False, copied=copied)
    taken, copies = list[bytes](), list[str]()
    for number, (size, copy) in enumerate(records):
        new = message(number, size)
        beside = [*copies, copy] if copy else copies
        text = payload.encode([*taken, new.envelope], beside if copied else None)
        fits = payload.encrypted_size(len(text)) <= most
        values = {each is not None for _, each in records[: number + 1] if each != ""}
        assert draft.takes(new, copy) is (not taken or (fits and (not copied or len(values) < 2)))
        if not draft.takes(new, copy):
            break
        draft.add(new, copy)
        taken, copies = [*taken, new.envelope], [*beside]
        assert draft.text() == text
        assert draft.copies == (len(copies) if copied else 0)


def test_a_record_and_its_copy_fit_or_do_not() -> None:
    new, copy = message(1, 100), '{"n":"x"}'
    size = payload.encrypted_size(len(payload.encode([new.envelope], [copy])))
    assert fits_with_copy(new, copy, most=size)
    assert not fits_with_copy(new, copy, most=size - 1)


def test_the_text_of_a_draft_is_json() -> None:
    run, draft, copies = two_terms(), Draft(most=1 << 20, since=0, resent=False, copied=True), Copies()
    for number, envelope in enumerate(run.sent):
        draft.add(Message(number, f"{'a' * 32}-{number}-00000000", envelope), copies.of(envelope, unasked))
    found: dict[str, Any] = json.loads(draft.text())
    assert len(found["envelopes"]) == 6
    assert len(found["records"]) == 4 * len(POINTS)
