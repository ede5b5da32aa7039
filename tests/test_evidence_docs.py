"""docs/evidence.md and docs/evidence.cddl: the worked example, its files, the agent and the verifier say the same, and
what the agent makes has the shape of the CDDL.

The CDDL is read by a tool that is not ours (pycddl). It has no wheel for arm64, where those checks are left out, and it
lets some unlisted keys pass where a map is one of several choices.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from agent.errors import EvidenceError
from agent.evidence.cbor import encode
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Cause, EventCode, Gap, Kind, Quality
from agent.verifier import Outcome, Verifier
from tests.evidence_example import GOLDEN, NAMES, STREAM, explained, files, records, rendering
from tests.runs import DID, Run, frame, group

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "evidence.md").read_text()
CDDL = (ROOT / "docs" / "evidence.cddl").read_text()
CAN_READ_CDDL = os.uname().machine == "x86_64"


def block(name: str) -> str:
    """What the page shows of a record."""
    found = re.search(rf"^### {name}\n```\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def shown(name: str) -> bytes:
    """The left column of the page."""
    return bytes.fromhex("".join(line.split(" ", 1)[0] for line in block(name).splitlines()))


# ---- the worked example -----------------------------------------------------------------------------------------


def test_the_agent_still_makes_the_golden_files() -> None:
    for path, text in files():
        assert path.read_text() == text, f"{path.name} differs: the format changed, or the rendering did"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_golden_bytes_and_their_meaning(name: str) -> None:
    golden = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
    assert shown(name) == golden
    assert block(name) == explained(name, golden)


def test_the_page_verifies_and_reads_as_its_files_say() -> None:
    envelopes = {name: shown(name) for name in NAMES}
    assert rendering(envelopes) == {name: json.loads((GOLDEN / f"{name}.json").read_text()) for name in NAMES}
    verifier = Verifier([DID])
    judged = [each for envelope in envelopes.values() for each in verifier.feed(envelope)]
    judged += verifier.finish(complete=True)
    assert [each.verdict for each in judged] == ["ok"] * 3
    assert all(outcome is Outcome.OK for each in judged for outcome in each.outcomes.values())
    assert verifier.report.cycles() == (5, 3, 2)


def test_one_flipped_bit_of_the_page_is_noticed() -> None:
    for at in range(0, 8 * len(shown("data")), 101):
        envelope = bytearray(shown("data"))
        envelope[at // 8] ^= 1 << at % 8
        verifier = Verifier([DID])
        verifier.feed(bytes(envelope))
        verifier.finish()
        assert not verifier.report.good


def test_the_page_explains_the_values_as_a_foreign_decoder_finds_them() -> None:
    """With nothing of ours: cbor2 and the words of the page."""
    tag = cbor2.loads(shown("data"))
    assert tag.tag == 18
    record = cbor2.loads(tag.value[2])
    assert (record[2], record[3], record[6]) == (STREAM, 3, 2)
    _, (only,), ((_, first, last, cause, _, _, _),) = record[7]
    cycles = [only[2][0], *(only[2][0] + distance for distance in only[2][1:])]
    assert cycles == [8820005000, 8820005001, 8820005004]
    assert (first, last, cause) == (8820005002, 8820005003, Cause.DEVICE_TIMEOUT)
    assert only[5] == [[4200, 10, -15], [2304, None, -3]]
    assert only[6] == [[1, 1, Quality.DEVICE_EXCEPTION]]


def test_nothing_on_the_page_stays_unexplained() -> None:
    for name in NAMES:
        assert "# ?" not in block(name)


# ---- CDDL -------------------------------------------------------------------------------------------------------


def matches(rule: str, item: bytes) -> bool:
    """Whether an item has the shape of a rule."""
    import pycddl

    try:
        pycddl.Schema(f"start-here = {rule}\n{CDDL}").validate_cbor(item)
    except pycddl.ValidationError:
        return False
    return True


def assert_matches(envelope: bytes) -> None:
    opened = unpack(envelope)
    fields = cbor2.loads(opened.payload)
    assert matches("envelope", envelope)
    assert matches("header", opened.protected)
    assert matches("record", opened.payload)
    body = zlib.decompress(fields[8]) if 8 in fields else encode(fields[7])
    assert matches({Kind.PLAN: "plan", Kind.DATA: "data", Kind.EVENT: "event"}[fields[6]], body)


def a_run() -> Run:
    """A run that follows another, with packed and plain records of all kinds."""
    before = Run()
    before.begin([group(5)])
    before.event(EventCode.START, "0.1.0", False)
    before.data([frame(5)])
    run = Run(after=before)
    run.withdraw(2, 9, Cause.OVERFLOW, stream=before.sealer.stream)
    run.begin([group(10), group(10, name="slow")])
    run.data([frame(cycle) for cycle in range(10, 40)], [Gap(1, 10, 12, Cause.LINK_DOWN)])
    run.data([], [Gap(0, 40, 41, Cause.DEVICE_TIMEOUT, "no answer within 1 s")])
    run.event(EventCode.STOP, "SIGTERM")
    return run


def test_what_the_agent_makes_has_the_shape_of_the_cddl() -> None:
    run = a_run()
    packed = [8 in cbor2.loads(unpack(envelope).payload) for envelope in run.sent]
    assert True in packed
    assert False in packed
    for envelope in [*records().values(), *run.sent] if CAN_READ_CDDL else []:
        assert_matches(envelope)


def altered(item: bytes, change: Callable[[Any], object]) -> bytes:
    decoded = cbor2.loads(item)
    change(decoded)
    return encode(decoded)


RECORDS: dict[str, Callable[[Any], object]] = {
    "an unlisted key below 16": lambda r: r.update({15: 1}),
    "no prev": lambda r: r.pop(4),
    "seq 0": lambda r: r.update({3: 0}),
    "a stream of 15 bytes": lambda r: r.update({2: bytes(15)}),
    "clock 3": lambda r: r.update({5: [1, 2, 3, None]}),
    "a negative time": lambda r: r.update({5: [-1, 2, 0, None]}),
    "data of four elements": lambda r: r[7].append(1),
    "a gap of six elements": lambda r: r[7][2][0].pop(),
    "a gap without a cause": lambda r: r[7][2][0].__setitem__(3, 0),
    "no cycles": lambda r: r[7][1][0].update({2: []}),
    "a cycle that is a float": lambda r: r[7][1][0].update({2: [1.5, 1, 4]}),
    "a block without values": lambda r: r[7][1][0].pop(5),
}
PLANS: dict[str, Callable[[Any], object]] = {
    "a point of type 5": lambda p: p[9][0][5][0].__setitem__(2, 5),
    "a period of less than 1 ms": lambda p: p[9][0][3].__setitem__(0, 999_999),
    "a group without points": lambda p: p[9][0].update({5: []}),
    "no window": lambda p: p.pop(14),
    "a device of six elements": lambda p: p[8][0].pop(),
    "volatile that is a number": lambda p: p.update({13: 0}),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_broken_record_is_refused_by_the_verifier_and_by_the_cddl(what: str) -> None:
    payload = altered(unpack(records()["data"]).payload, RECORDS[what])
    with pytest.raises(EvidenceError):
        decode_record(decode_head(payload), None)
    assert not CAN_READ_CDDL or not matches("record", payload)


@pytest.mark.parametrize("what", PLANS)
def test_a_broken_plan_is_refused_by_the_verifier_and_by_the_cddl(what: str) -> None:
    good = cbor2.loads(unpack(records()["plan"]).payload)
    payload = altered(encode(good), lambda r: PLANS[what](r[7]))
    with pytest.raises(EvidenceError):
        decode_record(decode_head(payload), None)
    assert not CAN_READ_CDDL or not matches("plan", encode(cbor2.loads(payload)[7]))


@pytest.mark.parametrize(
    "change",
    [lambda r: r.update({8: b""}), lambda r: r[7][1][0].update({9: 1})],
    ids=["body and packed", "an unlisted key in a block"],
)
def test_what_the_tool_lets_pass_the_verifier_refuses(change: Callable[[Any], object]) -> None:
    payload = altered(unpack(records()["data"]).payload, change)
    with pytest.raises(EvidenceError):
        decode_record(decode_head(payload), None)


def test_a_key_from_16_is_allowed_and_reported() -> None:
    payload = altered(unpack(records()["data"]).payload, lambda r: r.update({16: 1}))
    assert decode_record(decode_head(payload), None).unknown == ("record: key 16",)
    assert not CAN_READ_CDDL or matches("record", payload)


def test_what_is_no_envelope_does_not_match() -> None:
    envelope = records()["event"]
    assert not CAN_READ_CDDL or not any(
        matches("envelope", item) for item in (envelope[1:], encode([1]), b"\xd1" + envelope[1:])
    )
    opened = unpack(envelope)
    assert not CAN_READ_CDDL or not matches("header", altered(opened.protected, lambda h: h.update({1: -7})))
