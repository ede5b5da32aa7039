"""Two judges of an envelope for tests: the agent's own verifier, level by level, and the one of tests/independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import EvidenceError
from agent.evidence.did import did_key
from agent.evidence.envelope import Keys, unpack
from agent.evidence.record import VERSION, decode_head, decode_record
from agent.model import Plan, Record
from agent.verifier import Judged, Level, Verifier
from tests.independent.envelope import Judge
from tests.vectors.writing import DID


@dataclass(frozen=True)
class Verdict:
    """What one of them says: the first level that is not ok, and how; what it reports; the digest if it has a place."""

    text: str
    reported: Sequence[str] = ()
    digest: bytes = b""
    record: Record | None = None


class AgentJudge:
    """The agent's functions in the order of docs/evidence.md section 10. Raises nothing but what a bug raises."""

    def __init__(self, did: str = DID) -> None:
        self.signer = did_key(did)
        self.keys = Keys()

    def judge(self, envelope: bytes, plan: Plan | None = None) -> Verdict:
        """The verdict; ``plan``: the one in force."""
        try:
            opened = unpack(envelope)
        except EvidenceError:
            return Verdict("structure failed")
        if did_key(opened.did) != self.signer:
            return Verdict("foreign", sorted(opened.unknown))
        try:
            self.keys.check(opened)
        except EvidenceError:
            return Verdict("signature failed", sorted(opened.unknown))
        try:
            head = decode_head(opened.payload)
        except EvidenceError:
            return Verdict("structure failed")
        try:
            record = decode_record(head, plan)
        except EvidenceError:
            known = head.version == VERSION
            return Verdict(f"structure {'failed' if known else 'unknown'}", (), head.link.digest)
        return Verdict("ok", sorted(opened.unknown + record.unknown), head.link.digest, record)


class IndependentJudge:
    """The verifier of tests/independent."""

    def __init__(self, did: str = DID) -> None:
        self.inner = Judge(did)

    def judge(self, envelope: bytes, plan: dict[int, Any] | None = None) -> Verdict:
        """The verdict; ``plan``: the body of the one in force."""
        found = self.inner.judge(envelope, plan)
        return Verdict(found.verdict, sorted(found.reported), found.digest)


def front_door(envelope: bytes) -> str:
    """What the agent's Verifier says of an envelope alone, at the three lower levels."""
    verifier = Verifier([DID])
    judged: list[Judged] = [*verifier.feed(envelope), *verifier.finish()]
    (only,) = judged
    if only.foreign:
        return "foreign"
    for level in (Level.STRUCTURE, Level.SIGNATURE, Level.IDENTITY):
        if only.outcomes.get(level, "ok") != "ok":
            return f"{level} {only.outcomes[level]}"
    return "ok"
