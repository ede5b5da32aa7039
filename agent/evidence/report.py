"""The verifier's account of what it read: counts, cycles by group and cause, how runs join, what is missing. Plain
values.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agent.evidence.coverage import Added, GroupKey
from agent.evidence.record import Head
from agent.model import Cause, Plan, Record


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


@dataclass(frozen=True, slots=True)
class Judged:
    """A record and how each level came out; ``plan`` is the plan in force, which names its groups and points."""

    outcomes: dict[Level, Outcome]
    findings: tuple[Finding, ...] = ()
    head: Head | None = None
    record: Record | None = None
    plan: Plan | None = None
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


@dataclass(slots=True)
class Hole:
    """Records ``first`` to ``last`` of a stream that are not at hand, and, once known, the cycles that went with
    them.
    """

    stream: bytes
    first: int
    last: int
    state: str = "open"  # open, accounted, failed, unknown
    cause: int | None = None  # as withdrawn
    cycles: dict[GroupKey, int] | None = None
    whole_run: bool = False  # nothing of that run was at hand


@dataclass(frozen=True, slots=True)
class Run:
    """One stream and how it joins the one before: ``first``, ``continuous``, ``rolled back N``, ``unknown`` or
    ``broken``.
    """

    stream: bytes
    joins: str
    cause: int | None = None  # of what was not stored in between
    length_known: bool = True


@dataclass(slots=True)
class Tally:
    """Cycles of one group, and ns without messages, by cause, of an event-driven one."""

    present: int = 0
    missing: int = 0
    gaps: Counter[int] = field(default_factory=Counter)
    silent: Counter[int] = field(default_factory=Counter)

    @property
    def expected(self) -> int:
        """Present, in gaps, and missing together."""
        return self.present + self.missing + self.gaps.total()


@dataclass(slots=True)
class Report:
    """The account so far; ``finish`` of the verifier makes it final."""

    records: int = 0  # judged, repeats and foreign ones not included
    frames: int = 0
    failed: int = 0  # records with at least one failed level, and holes that nothing accounts for
    repeats: int = 0
    foreign: int = 0
    before_plan: int = 0  # data at the start whose plan is not at hand: judged up to continuity only
    planned: bool = False  # a plan was at hand, so that completeness could be judged
    first_sealed: int | None = None  # wall, ns
    last_sealed: int | None = None
    groups: dict[GroupKey, Tally] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    failures: Counter[Level] = field(default_factory=Counter)
    unknowns: Counter[Level] = field(default_factory=Counter)
    news: Counter[str] = field(default_factory=Counter)  # what a newer version of the format added

    def tally(self, key: GroupKey) -> Tally:
        """The cycles of a group."""
        return self.groups.setdefault(key, Tally())

    def count(self, added: Added) -> None:
        """Account for what a data record added."""
        for key, frames in added.frames.items():
            self.tally(key).present += frames
        for key, gaps in added.gaps.items():
            self.tally(key).gaps.update(gaps)
        for key, missing in added.missing.items():
            self.tally(key).missing += missing
        for key, silent in added.silent.items():
            self.tally(key).silent.update(silent)

    def outcome(self, level: Level) -> Outcome:
        """The worst of a level: failed if anything failed, unknown if something could not be known or nothing was
        there.
        """
        if self.failures[level]:
            return Outcome.FAILED
        if self.unknowns[level] or not (self.planned if level is Level.COMPLETENESS else self.records):
            return Outcome.UNKNOWN
        return Outcome.OK

    @property
    def good(self) -> bool:
        """Whether everything at hand verified, and there was something."""
        return bool(self.records) and not self.failed and not self.foreign and not any(self.failures.values())

    def cycles(self) -> tuple[int, int, int]:
        """(expected, present, in gaps) over all groups; what is neither is missing."""
        tallies = self.groups.values()
        return (
            sum(t.expected for t in tallies),
            sum(t.present for t in tallies),
            sum(t.gaps.total() for t in tallies),
        )

    def summary(self) -> str:
        """One line: what was verified and how each level came out."""
        expected, present, in_gaps = self.cycles()
        signature = max(
            (self.outcome(level) for level in (Level.STRUCTURE, Level.SIGNATURE, Level.IDENTITY)),
            key=(Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED).index,
        )
        return (
            f"verified {self.records} records, {self.frames} frames, {self.failed} failed: signature {signature}, "
            f"continuity {self.outcome(Level.CONTINUITY)}, completeness {self.outcome(Level.COMPLETENESS)} "
            f"({present} of {expected} cycles, {in_gaps} in gaps)"
        )

    def lines(self) -> list[str]:
        """The account for people; the summary comes last."""
        lines = []
        for (device, group), tally in sorted(self.groups.items()):
            causes = ", ".join(f"{n} {cause_name(cause)}" for cause, n in sorted(tally.gaps.items())) or "none in gaps"
            missing = f", {tally.missing} MISSING" if tally.missing else ""
            lines.append(f"{device}/{group}: {tally.present} of {tally.expected} cycles present, {causes}{missing}")
            if tally.silent:
                spans = ", ".join(f"{ns / 1e9:.1f} s {cause_name(cause)}" for cause, ns in sorted(tally.silent.items()))
                lines.append(f"{device}/{group}: no messages during {spans}")
        for run in self.runs:
            cause = f", {cause_name(run.cause)} before it" if run.cause is not None else ""
            lines.append(
                f"run {run.stream.hex()[:8]}: {run.joins}{cause}{'' if run.length_known else ', length unknown'}"
            )
        for hole in self.holes:
            cause = f" ({cause_name(hole.cause)})" if hole.cause is not None else ""
            lines.append(
                f"records {hole.first} to {hole.last} of run {hole.stream.hex()[:8]} missing: {hole.state}{cause}"
            )
        if self.foreign:
            lines.append(f"{self.foreign} records of other signers, not judged")
        if self.before_plan:
            lines.append(f"{self.before_plan} records before the first plan at hand, judged up to continuity")
        lines += [f"from a newer version: {what} ({count} times)" for what, count in sorted(self.news.items())]
        return [*lines, self.summary()]

    def as_json(self) -> dict[str, Any]:
        """The account as plain JSON values."""
        expected, present, in_gaps = self.cycles()
        return {
            "records": self.records,
            "frames": self.frames,
            "failed": self.failed,
            "repeats": self.repeats,
            "foreign": self.foreign,
            "before_plan": self.before_plan,
            "cycles_expected": expected,
            "cycles_present": present,
            "cycles_in_gaps": in_gaps,
            "cycles_missing": expected - present - in_gaps,
            "sealed": [self.first_sealed, self.last_sealed],
            "levels": {str(level): str(self.outcome(level)) for level in Level},
            "groups": [
                {
                    "device": device,
                    "group": group,
                    "expected": tally.expected,
                    "present": tally.present,
                    "missing": tally.missing,
                    "gaps": {cause_name(cause): n for cause, n in sorted(tally.gaps.items())},
                    "silent_ns": {cause_name(cause): ns for cause, ns in sorted(tally.silent.items())},
                }
                for (device, group), tally in sorted(self.groups.items())
            ],
            "runs": [
                {
                    "stream": run.stream.hex(),
                    "joins": run.joins,
                    "cause": None if run.cause is None else cause_name(run.cause),
                    "length_known": run.length_known,
                }
                for run in self.runs
            ],
            "holes": [
                {"stream": h.stream.hex(), "first": h.first, "last": h.last, "state": h.state} for h in self.holes
            ],
            "unknown": dict(self.news),
        }


def cause_name(cause: int) -> str:
    """The cause's name in lower case, or its number."""
    return Cause(cause).name.lower() if cause in Cause._value2member_map_ else f"cause {cause}"
