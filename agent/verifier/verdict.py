"""What the verifier says of a record: how each level came out, and why. Plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.evidence.record import Head
from agent.model import Plan, Record


class Level(enum.StrEnum):
    """What is judged of a record, lowest first (docs/evidence.md section 6)."""

    STRUCTURE = "structure"
    SIGNATURE = "signature"
    IDENTITY = "identity"
    CONTINUITY = "continuity"
    COMPLETENESS = "completeness"


class Outcome(enum.StrEnum):
    """How a level came out."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


ALL_OK: Mapping[Level, Outcome] = MappingProxyType(dict.fromkeys(Level, Outcome.OK))


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, or cannot be known: at which level, where, and in a sentence why."""

    level: Level
    outcome: Outcome
    text: str
    stream: bytes | None = None
    seq: int | None = None

    def __str__(self) -> str:
        place = f" at {self.stream.hex()[:8]}/{self.seq}" if self.stream is not None else ""
        return f"{self.level} {self.outcome}{place}: {self.text}"


@dataclass(slots=True)
class Judged:
    """A record and how each level came out.

    ``plan`` is the plan in force, which names the groups and points of data; None: it is not at hand. ``signer`` is
    who signed it, a DID. ``repeat``: it was judged before. ``foreign``: its signer is none of the accepted ones.
    """

    outcomes: Mapping[Level, Outcome]
    findings: tuple[Finding, ...] = ()
    head: Head | None = None
    record: Record | None = None
    plan: Plan | None = None
    signer: str | None = None
    repeat: bool = False
    foreign: bool = False

    @property
    def verdict(self) -> str:
        """``ok``, ``repeat``, ``foreign``, or the lowest level that failed, else is unknown: ``identity failed``."""
        if self.repeat:
            return "repeat"
        if self.foreign:
            return "foreign"
        for worst in (Outcome.FAILED, Outcome.UNKNOWN):
            for level, outcome in self.outcomes.items():
                if outcome is worst:
                    return f"{level} {outcome}"
        return "ok"


def outcomes_of(findings: tuple[Finding, ...]) -> Mapping[Level, Outcome]:
    """How each level came out: as its worst finding."""
    if not findings:
        return ALL_OK
    outcomes = dict(ALL_OK)
    for finding in findings:
        if outcomes[finding.level] is not Outcome.FAILED:
            outcomes[finding.level] = finding.outcome
    return outcomes
