"""Attacks on the bytes: cut, flipped and mutated envelopes are judged alike by two verifiers that share no code.

Each raises what it documents and nothing else: anything more ends the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.envelope import envelopes
from agent.model import Plan
from agent.verifier import Level, Outcome, Verifier
from tests.evidence_example import records
from tests.independent import cbor as independent_cbor
from tests.independent.envelope import Judge, opened
from tests.judges import AgentJudge, IndependentJudge, Verdict
from tests.test_vectors import INVALID, VALID, envelope_of
from tests.vectors.writing import DID, Raw, item, sealed

RUN = records()  # plan, event, data
FUZZED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Both:
    """Both judges, who know the signer's key already, as in the middle of a stream."""

    def __init__(self) -> None:
        self.agent, self.independent = AgentJudge(), IndependentJudge()
        record = self.agent.judge(RUN["plan"]).record
        assert record is not None
        assert isinstance(record.body, Plan)
        self.plan, self.body = record.body, Judge(DID).judge(RUN["plan"]).body
        assert self.independent.judge(RUN["plan"]).text == "ok"

    def verdict(self, envelope: bytes) -> str:
        """What both say; that they say the same is asserted."""
        mine, theirs = self.agent.judge(envelope, self.plan), self.independent.judge(envelope, self.body)
        assert alike(mine, theirs), f"{mine} / {theirs}: {envelope.hex()}"
        return mine.text


def alike(mine: Verdict, theirs: Verdict) -> bool:
    """Whether two verdicts are the same, with what is reported of records that are good."""
    reported = mine.text != "ok" or list(mine.reported) == list(theirs.reported)
    return mine.text == theirs.text and reported and (mine.digest == theirs.digest or mine.text == "foreign")


BOTH = Both()


# ---- a run, cut and flipped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN)
def test_every_truncation_of_an_envelope_fails_at_structure(name: str) -> None:
    for end in range(len(RUN[name])):
        assert BOTH.verdict(RUN[name][:end]) == "structure failed", f"cut at {end}"


@pytest.mark.parametrize("name", RUN)
def test_every_flipped_bit_is_found_by_both_at_the_same_level(name: str) -> None:
    """In the framing or the header: structure, or foreign where the DID is another one; all else: signature."""
    envelope = RUN[name]
    protected, payload, _ = opened(envelope)
    header = envelope.index(protected), envelope.index(protected) + len(protected)
    start = envelope.index(payload)
    kid = envelope.index(b"did:ethr:")
    for at in range(8 * len(envelope)):
        flipped = bytearray(envelope)
        flipped[at // 8] ^= 1 << at % 8
        found = BOTH.verdict(bytes(flipped))
        if start <= at // 8 < start + len(payload) or at // 8 >= len(envelope) - 64:
            assert found == "signature failed", f"bit {at}"
        elif kid <= at // 8 < header[1]:
            assert found in {"structure failed", "foreign", "signature failed"}, f"bit {at}"
        else:
            assert found == "structure failed", f"bit {at}"


def test_a_flipped_bit_of_the_kid_never_leaves_it_the_signers() -> None:
    """But for the case of a hex digit: that is the same DID, and another header than the one that was signed."""
    envelope = RUN["plan"]
    kid, address = envelope.index(b"did:ethr:"), envelope.index(b"0x2c75") + 2
    for at in range(8 * kid, 8 * (address + 40)):
        flipped = bytearray(envelope)
        flipped[at // 8] ^= 1 << at % 8
        case = at // 8 >= address and at % 8 == 5 and chr(envelope[at // 8]).isalpha()
        assert (BOTH.verdict(bytes(flipped)) == "signature failed") == case, f"bit {at}"


def judged(data: bytes) -> Verifier:
    """The agent's verdict on a file of which the reader says that it is all there is."""
    verifier = Verifier([DID])
    for _, envelope in envelopes(data):
        verifier.feed(envelope if isinstance(envelope, bytes) else b"")
    verifier.finish(complete=True)
    return verifier


def test_every_truncation_of_a_file_is_found_but_those_between_two_records() -> None:
    """What was cut off at the end of a record leaves no trace: it is judged by time alone."""
    whole = b"".join(RUN.values())
    ends = {0, *(len(b"".join(list(RUN.values())[:n])) for n in range(1, 4))}
    for end in range(len(whole)):
        report = judged(whole[:end]).report
        assert report.good == (end in ends and end > 0), f"cut at {end}"
        if end not in ends:
            assert report.outcome(Level.STRUCTURE) is Outcome.FAILED


def test_flipped_bits_of_a_file_are_found() -> None:
    """Every thirteenth: each of all is found in its envelope, above."""
    whole = b"".join(RUN.values())
    for at in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        assert not judged(bytes(flipped)).report.good, f"bit {at}"


# ---- CBOR, mutated ----------------------------------------------------------------------------------------------

scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.integers(-300, 300) | st.floats(width=16)
)
scalars |= st.floats() | st.floats(width=32) | st.text(max_size=5) | st.binary(max_size=30)
keys = st.integers(-30, 30) | st.integers(-(2**64), 2**64 - 1)
items = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=30,
)
# Heads and items that are wrong in one way: longer than needed, tags, simple values, indefinite lengths, bignums.
WRONG = ["1800", "190000", "1b0000000000000000", "f97e00", "f98000", "fa3fc00000", "f7", "e0", "f820", "c0", "c2", "ff"]
WRONG += ["9f", "5f", "bf", "d81c", "7801", "5800", "62c328", "a1f500", "a1f93c0001", "fb3ff8000000000000", "1c", "81"]


@st.composite
def mutated(draw: st.DrawFn, start: bytes) -> bytes:
    """``start`` after some changes of its bytes."""
    data = bytearray(start)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "set", "insert", "wrong", "delete", "cut", "double"]))
        end = min(len(data), at + draw(st.integers(1, 12)))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif change == "wrong":
            data[at : at + draw(st.integers(0, 2))] = bytes.fromhex(draw(st.sampled_from(WRONG)))
        elif change == "delete":
            del data[at:end]
        elif change == "cut":
            del data[at:]
        elif change == "double":
            data[at:at] = data[at:end]
    return bytes(data)


def outcome(read: Callable[[bytes], Any], error: type[Exception], data: bytes) -> str:
    """What a reader makes of bytes; repr tells 1 from 1.0 and True."""
    try:
        return repr(read(data))
    except error:
        return "refused"


def assert_read_alike(data: bytes) -> None:
    mine = outcome(cbor.decode, EvidenceError, data)
    assert mine == outcome(independent_cbor.read, independent_cbor.Refused, data), data.hex()
    if mine != "refused":
        assert cbor.encode_any_keys(cbor.decode(data)) == data


@given(st.binary(max_size=60))
@settings(FUZZED, max_examples=500)
def test_any_bytes_are_read_alike(data: bytes) -> None:
    assert_read_alike(data)


@given(items)
@settings(FUZZED, max_examples=200)
def test_any_item_is_read_alike(value: Any) -> None:
    """NaN, infinities, minus zero and deep nests among them."""
    assert_read_alike(item(value))


@given(st.data())
@settings(FUZZED, max_examples=200)
def test_mutated_items_are_read_alike(data: st.DataObject) -> None:
    assert_read_alike(data.draw(mutated(item(data.draw(items)))))


# ---- envelopes and records, mutated -----------------------------------------------------------------------------

SEEDS = [envelope_of(vector) for vector in VALID if "envelope" in vector] + list(RUN.values())
PAYLOADS = [opened(envelope)[1] for envelope in SEEDS]
REFUSED = [envelope_of(vector) for vector in INVALID if "envelope" in vector]


@given(st.data())
@settings(FUZZED, max_examples=250)
def test_mutated_envelopes_are_judged_alike(data: st.DataObject) -> None:
    BOTH.verdict(data.draw(mutated(data.draw(st.sampled_from(SEEDS + REFUSED)))))


@given(st.data())
@settings(FUZZED, max_examples=250)
def test_records_whose_bytes_were_mutated_before_signing_are_judged_alike(data: st.DataObject) -> None:
    BOTH.verdict(sealed(Raw(data.draw(mutated(data.draw(st.sampled_from(PAYLOADS)))))))


def places(value: Any, inside: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every item within a record."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inside, *(path for key, each in pairs for path in places(each, (*inside, key)))]


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A record of which some items were replaced, left out, doubled or swapped, still deterministic CBOR."""
    record = independent_cbor.read(draw(st.sampled_from(PAYLOADS)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(record)[1:]))
        parent = record
        for key in path:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "near", "other key", "leave out", "double", "swap"]))
        if change == "near" and type(parent[last]) is int:
            parent[last] = max(-(2**64), min(2**64 - 1, parent[last] + draw(st.sampled_from([-1, 1, 2**32]))))
        elif change == "leave out":
            del parent[last]
        elif change == "double" and isinstance(parent, list):
            parent.insert(last, parent[last])
        elif change == "swap" and isinstance(parent, list):
            parent[last], parent[0] = parent[0], parent[last]
        elif change == "other key" and isinstance(parent, dict):
            parent[draw(keys)] = draw(items)
        else:
            parent[last] = draw(items)
        if not record:
            break
    return item(record)


@given(altered())
@settings(FUZZED, max_examples=250)
def test_records_whose_items_were_altered_before_signing_are_judged_alike(payload: bytes) -> None:
    BOTH.verdict(sealed(Raw(payload)))


@pytest.mark.slow
@given(st.data())
@settings(FUZZED, max_examples=5_000)
def test_a_long_campaign_of_mutations_is_judged_alike(data: st.DataObject) -> None:
    assert_read_alike(data.draw(mutated(item(data.draw(items)))))
    BOTH.verdict(data.draw(mutated(data.draw(st.sampled_from(SEEDS + REFUSED)))))
    BOTH.verdict(sealed(Raw(data.draw(mutated(data.draw(st.sampled_from(PAYLOADS)))))))
    BOTH.verdict(sealed(Raw(data.draw(altered()))))
