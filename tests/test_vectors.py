"""The golden vectors: the files are what their makers write, and two verifiers that share no code agree with each.

tests/golden/evidence/README.md says what is in the files; ``python -m tests.vectors`` writes them anew.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.model import Data, Frame, Plan
from agent.rendering import account
from agent.verifier import Level, Verifier
from tests.evidence_example import NAMES
from tests.independent import cbor as independent_cbor
from tests.independent.chain import continuity
from tests.independent.envelope import Judge, opened, unpacked
from tests.independent.values import decoded
from tests.judges import AgentJudge, IndependentJudge, front_door
from tests.test_evidence_docs import matches
from tests.vectors.__main__ import files
from tests.vectors.notation import notation
from tests.vectors.stored import GOLDEN
from tests.vectors.writing import DID, item


def stored(name: str) -> Any:
    """What stands in a file."""
    return json.loads((GOLDEN / name).read_text())


def envelope_of(vector: dict[str, Any]) -> bytes:
    """The bytes: as they are, or put together as the file describes it."""
    if "envelope" in vector:
        return bytes.fromhex(vector["envelope"])
    return b"".join(bytes.fromhex(content) * times for content, times in vector["parts"])


VALID, INVALID = stored("valid.json"), stored("invalid.json")
VECTORS = {vector["name"]: vector for vector in [*VALID, *INVALID]}
CHAINS = stored("chains.json")
HISTORIES = stored("histories.json")
_GIVEN = ("name", "what", "complete", "now", "envelopes")
PLANS = {vector["plan"] for vector in VECTORS.values() if "plan" in vector}


# ---- the files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "text"), [pytest.param(*each, id=each[0].name) for each in files()])
def test_the_files_are_what_their_makers_write(path: Path, text: str) -> None:
    assert path.read_text() == text, "python -m tests.vectors writes them anew"


def test_every_file_is_named_in_the_readme() -> None:
    readme = (GOLDEN / "README.md").read_text()
    assert not [path.name for path in GOLDEN.iterdir() if path.name != "README.md" and path.name not in readme]


def test_names_are_given_once() -> None:
    assert len(VECTORS) == len(VALID) + len(INVALID)
    assert all(vector["verdict"] in {"ok", "structure unknown"} for vector in VALID)


# ---- CBOR -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", stored("cbor.json")["allowed"], ids=lambda vector: vector["name"])
def test_both_readers_take_what_is_allowed(vector: dict[str, str]) -> None:
    data = bytes.fromhex(vector["cbor"])
    mine, theirs = cbor.decode(data), independent_cbor.read(data)
    assert repr(mine) == repr(theirs)
    assert cbor.encode_any_keys(mine) == item(theirs) == data


@pytest.mark.parametrize("vector", stored("cbor.json")["refused"], ids=lambda vector: vector["name"])
def test_both_readers_refuse_the_rest(vector: dict[str, str]) -> None:
    data = bytes.fromhex(vector["cbor"])
    with pytest.raises(EvidenceError):
        cbor.decode(data)
    with pytest.raises(independent_cbor.Refused):
        independent_cbor.read(data)


# ---- envelopes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent() -> AgentJudge:
    """The agent's verifier."""
    return AgentJudge()


@pytest.fixture(scope="module")
def independent() -> IndependentJudge:
    """The independent one."""
    return IndependentJudge()


def plans_in_force(name: str | None) -> tuple[Plan | None, dict[int, Any] | None]:
    """The plan of a vector as both verifiers read it."""
    if name is None:
        return None, None
    envelope = envelope_of(VECTORS[name])
    record = AgentJudge().judge(envelope).record
    assert record is not None
    assert isinstance(record.body, Plan)
    return record.body, Judge(DID).judge(envelope).body


IN_FORCE = {name: plans_in_force(name) for name in [*PLANS, None]}


@pytest.mark.parametrize("name", VECTORS)
def test_both_verifiers_say_what_the_vector_says(name: str, agent: AgentJudge, independent: IndependentJudge) -> None:
    vector = VECTORS[name]
    envelope, (plan, body) = envelope_of(vector), IN_FORCE[vector.get("plan")]
    mine, theirs = agent.judge(envelope, plan), independent.judge(envelope, body)
    expected = vector["verdict"], sorted(vector.get("reported", []))
    assert (mine.text, mine.reported if mine.text == "ok" else []) == expected
    assert (theirs.text, theirs.reported if theirs.text == "ok" else []) == expected
    assert mine.digest == theirs.digest or theirs.text == "foreign"


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("signature/")])
def test_a_signature_fails_whether_or_not_the_key_is_known(name: str) -> None:
    envelope = envelope_of(VECTORS[name])
    assert AgentJudge().judge(envelope).text == IndependentJudge().judge(envelope).text == "signature failed"


@pytest.mark.parametrize("name", [name for name, vector in VECTORS.items() if "plan" not in vector])
def test_the_agents_front_door_says_the_same(name: str) -> None:
    assert front_door(envelope_of(VECTORS[name])) == VECTORS[name]["verdict"]


def test_what_a_newer_format_added_is_told_in_the_report() -> None:
    verifier = Verifier([DID])
    verifier.feed(envelope_of(VECTORS["plan/newer"]))
    verifier.finish()
    assert sorted(verifier.report.news.elements()) == VECTORS["plan/newer"]["reported"]


def as_stated(frame: Frame, plan: Plan) -> dict[str, Any]:
    """The agent's frame in the words of the files, without what the agent does not keep."""
    group = plan.groups[frame.group]
    values = {point.name: notation(item(value)) for point, value in zip(group.points, frame.values, strict=True)}
    quality = {group.points[point].name: int(code) for point, code in frame.quality}
    stated: dict[str, Any] = {"cycle": frame.cycle, "values": values, "quality": quality}
    if group.schedule is not None:
        nominal, due = group.schedule.nominal(frame.cycle), group.schedule.due(frame.cycle)
        stated |= {"nominal": nominal, "due_boot": due, "late_us": frame.late_us, "took_us": frame.took_us}
    if frame.source_time is not None:
        stated["source_time"] = frame.source_time
    return stated


@pytest.mark.parametrize("name", [vector["name"] for vector in VALID if "frames" in vector])
def test_both_verifiers_decode_the_values(name: str, agent: AgentJudge) -> None:
    vector = VECTORS[name]
    plan, body = IN_FORCE[vector["plan"]]
    assert plan is not None
    assert body is not None
    found = Judge(DID).judge(envelope_of(vector), body)
    theirs = []
    for frame in decoded(found.body, found.record[5], body):
        frame["values"] = {point: notation(item(value)) for point, value in frame["values"].items()}
        if "raw" in frame:
            frame["raw"] = frame["raw"] and frame["raw"].hex()
        del frame["device"], frame["group"]
        theirs.append(frame)
    assert theirs == vector["frames"]
    record = agent.judge(envelope_of(vector), plan).record
    assert record is not None
    assert isinstance(record.body, Data)
    kept = [
        {key: value for key, value in frame.items() if key not in {"raw", "received_boot"} and value is not None}
        for frame in vector["frames"]
    ]
    assert [as_stated(frame, plan) for frame in record.body.frames] == kept


# ---- all that there is ----------------------------------------------------------------------------------------


def test_the_valid_vectors_have_every_kind_every_field_and_every_code() -> None:
    judge = Judge(DID)
    found = [judge.judge(envelope_of(vector)) for vector in VALID]
    records = [one for one in found if one.verdict == "ok"]
    plans = [one.body for one in records if one.record[6] == 1]
    data = [one.body for one in records if one.record[6] == 2]
    groups = [group for plan in plans for group in plan[9]]
    blocks = [block for body in data for block in body[1]]
    assert {key for one in records for key in one.record} >= set(range(1, 9))
    assert {one.record[6] for one in records} >= {1, 2, 3, 4}
    assert {one.record[5][2] for one in records} == {0, 1, 2}
    assert {key for plan in plans for key in plan} >= set(range(1, 15))
    assert {key for group in groups for key in group} >= set(range(1, 6))
    assert {point[2] for group in groups for point in group[5]} == set(range(5))
    assert {key for block in blocks for key in block} >= set(range(1, 9))
    assert {code for block in blocks for _, _, code in block.get(6, [])} >= set(range(1, 11))
    assert {gap[3] for body in data for gap in body[2]} >= {*range(1, 14), 99}
    assert {entry[3] for plan in plans for entry in plan[12]} >= {11, 12, 13, 14}
    assert {one.body[0] for one in records if one.record[6] == 3} >= set(range(1, 8))


def test_the_worked_example_is_read_by_the_independent_verifier() -> None:
    judge = Judge(DID)
    plan, event, data = (judge.judge(bytes.fromhex((GOLDEN / f"{name}.hex").read_text())) for name in NAMES)
    assert [one.verdict for one in (plan, event, data)] == ["ok"] * 3
    frames = decoded(data.body, data.record[5], plan.body)
    assert [frame["cycle"] for frame in frames] == [8820005000, 8820005001, 8820005004]
    assert [frame["values"] for frame in frames] == [
        {"W": 4200, "PhVphA": 2304}, {"W": 4210, "PhVphA": None}, {"W": 4195, "PhVphA": 2301},
    ]  # fmt: skip
    assert [frame["quality"] for frame in frames] == [{}, {"PhVphA": 2}, {}]
    found = continuity([data, event, plan], complete=True)
    assert (found.level, found.repeats, found.holes) == ("ok", [], {})


# ---- CDDL -----------------------------------------------------------------------------------------------------

ON_AMD64 = os.uname().machine == "x86_64"  # where pycddl has a wheel
# What pycddl cannot tell: text from bytes of a size, an array from an empty map, null from an array that may be empty;
# it lets unlisted keys pass in maps in an array, wants valid CBOR also where the CDDL says ``any``, and knows
# of ``uint .ge 16`` as a key 16 only.
BEYOND_THE_TOOL = {
    "record/stream text",
    "plan/labels of values in an array",
    "event/details null",
    "plan/an unlisted key in a group",
    "data/an unlisted key in a block",
    "unprotected/keys twice, out of order, longer than needed",
    "unprotected/what a record must not hold",
    "unprotected/text that is not UTF-8",
}
RULES = {1: "plan", 2: "data", 3: "event"}


def rule_of(record: Any) -> str:
    """The rule for a record by its keys; the tool is weak where a rule is a choice of maps."""
    if not isinstance(record, dict) or 8 in record:
        return "packed-record"
    return f"{RULES.get(record.get(6, 0), 'unknown')}-record"


def only_key_16(vector: dict[str, Any]) -> bool:
    """Whether the vector has no keys above 16."""
    return not any("key" in each and not each.endswith("key 16") for each in vector.get("reported", []))


if ON_AMD64:
    SHAPED = [vector for vector in VALID if vector["verdict"] == "ok" and only_key_16(vector)]

    @pytest.mark.parametrize("name", [vector["name"] for vector in SHAPED])
    def test_what_is_valid_has_the_shape_of_the_cddl(name: str) -> None:
        envelope = envelope_of(VECTORS[name])
        protected, payload, _ = opened(envelope)
        record = independent_cbor.read(payload)
        assert name in BEYOND_THE_TOOL or matches("envelope", envelope)
        assert matches("header", protected)
        assert matches(rule_of(record), payload)
        body = unpacked(record[8]) if 8 in record else item(record[7])
        rule = RULES.get(record[6])
        assert rule is None or len(body) > 100_000 or matches(rule, body)

    @pytest.mark.parametrize("name", [vector["name"] for vector in INVALID if vector.get("cddl") is False])
    def test_what_is_misshapen_does_not_match_it(name: str) -> None:
        _, payload, _ = opened(envelope_of(VECTORS[name]))
        rule = rule_of(independent_cbor.read(payload))
        assert name in BEYOND_THE_TOOL or not matches(rule, payload)


# ---- chains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS["chains"], ids=lambda chain: chain["name"])
def test_both_verifiers_judge_the_chain_alike(chain: dict[str, Any]) -> None:
    envelopes = [bytes.fromhex(CHAINS["envelopes"][name]) for name in chain["records"]]
    judge = Judge(DID)
    theirs = continuity(map(judge.judge, envelopes), complete=chain["complete"])
    assert theirs.level == chain["continuity"]
    assert (len(theirs.repeats), len(theirs.equivocations)) == (chain["repeats"], chain["equivocations"])
    assert [[stream.hex(), seq] for stream, seq in theirs.broken] == chain["broken"]
    assert [[name.hex(), *rest, state] for (name, *rest), state in theirs.holes.items()] == chain["holes"]

    verifier = Verifier([DID])
    for envelope in envelopes:
        verifier.feed(envelope)
    verifier.finish(complete=chain["complete"])
    report = verifier.report
    assert report.outcome(Level.CONTINUITY) == chain["continuity"]
    assert report.repeats == chain["repeats"]
    assert [[hole.stream.hex(), hole.first, hole.last, hole.state] for hole in report.holes] == chain["holes"]


def test_zlib_of_this_machine_reads_the_stored_bodies() -> None:
    assert all(zlib.decompress(bytes.fromhex(hexed)) for hexed in stored("packed.json").values())


# ---- histories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history["name"])
def test_a_history_is_accounted_for_as_its_file_says(history: dict[str, Any]) -> None:
    verifier = Verifier([DID])
    for envelope in history["envelopes"]:
        verifier.feed(bytes.fromhex(envelope))
    verifier.finish(complete=history["complete"], now=history["now"])
    told = account.as_json(verifier.report)
    [channel] = [each for each in told["channels"] if each["channel"] is not None]
    kept = ("present", "missing", "gaps", "silent_ns", "quality")
    assert {
        "levels": {level: outcome for level, outcome in told["levels"].items() if outcome != "ok"},
        "joins": [run["joins"] for run in channel["runs"]],
        "holes": [[hole["first"], hole["last"], hole["missing"], hole["state"]] for hole in channel["holes"]],
        "groups": {f"{g['device']}/{g['group']}": {name: g[name] for name in kept} for g in channel["groups"]},
        "overdue_ns": channel["overdue_ns"],
        **{name: told[name] for name in ("repeats", "late", "foreign")},
    } == {
        name: value for name, value in history.items() if name not in ("name", "what", "complete", "now", "envelopes")
    }


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history["name"])
def test_both_verifiers_judge_each_record_of_a_history_alike(history: dict[str, Any]) -> None:
    """Up to its place in the chain."""
    envelopes = [bytes.fromhex(envelope) for envelope in history["envelopes"]]
    independent, agents = IndependentJudge(), AgentJudge()
    for envelope in envelopes:
        theirs, ours = independent.judge(envelope), agents.judge(envelope)
        assert (theirs.text, theirs.reported, theirs.digest) == (ours.text, ours.reported, ours.digest)
