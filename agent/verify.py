"""The verifier: who measured what, that nothing is missing, and why where something is (docs/evidence.md section 6).

Offline: it needs the envelopes and the DIDs to accept, no network, no agent, and besides the standard library only
cbor2 and coincurve. Streaming: records may come twice, late and out of order by up to ``WINDOW``; each is judged once
its turn in its stream has come. State grows with the number of streams and holes, not of records.

It does not judge whether a device told the truth, nor what was cut off at the end.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.coverage import Coverage, cycles_between, opening_problems
from agent.envelope import Envelope, Keys, unpack
from agent.errors import EvidenceError
from agent.model import Data, Plan, Record, Withdrawn
from agent.record import VERSION, ZEROS, Head, decode_head, decode_record
from agent.report import Finding, Hole, Level, Outcome, Report, Run

WINDOW = 64  # records that may wait for an earlier one, as many as a publisher has in flight
REMEMBERED = 256  # digests kept per stream, to tell a repeat from an equivocation

_DID = re.compile(r"did:ethr:(?:([a-z0-9]+):)?0x([0-9A-Fa-f]{40})(?:#(?:controller|owner))?")
_CHAIN_IDS = {None: "0x1", "mainnet": "0x1", "volta": "0x12047", "ewc": "0xf6"}


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
class _Stream:
    """What is remembered of one run."""

    expected: int | None = None  # seq whose turn it is; None: not begun
    digest: bytes | None = None  # of the record before it; None behind a hole
    begun: bool = False
    waiting: dict[int, Head] = field(default_factory=dict)
    recent: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    coverage: Coverage | None = None
    before: Coverage | None = None  # where things stood before holes that no plan has followed yet
    holes: list[Hole] = field(default_factory=list)  # these holes
    children: list[bytes] = field(default_factory=list)  # streams that wait for this one's records

    @property
    def last(self) -> int:
        return (self.expected or 1) - 1


def did_key(did: str) -> tuple[str, bytes]:
    """What DIDs are compared by: chain id and 20-byte address. Raises ValueError."""
    match = _DID.fullmatch(did)
    if match is None:
        raise ValueError(f"not a did:ethr DID: {did!r}; expected did:ethr:<network>:0x<40 hex digits>")
    return _CHAIN_IDS.get(match[1], match[1]), bytes.fromhex(match[2])


class Verifier:
    """Judges envelopes of the accepted signers: ``feed`` each, ``finish`` at the end; ``report`` is the account."""

    def __init__(self, accept: Iterable[str]) -> None:
        self.report = Report()
        self._accept = {did_key(did) for did in accept}
        self._keys = Keys()
        self._streams: dict[bytes, _Stream] = {}
        self._withdrawn: list[Withdrawn] = []

    def feed(self, envelope: bytes) -> list[Judged]:
        """Take one envelope; returns the records whose turn has come, in order of their streams."""
        try:
            opened = unpack(envelope)
        except EvidenceError as error:
            return [self._failed(Level.STRUCTURE, str(error))]
        if did_key(opened.did) not in self._accept:
            self.report.foreign += 1
            return [_foreign(opened)]
        try:
            self._keys.check(opened)
        except EvidenceError as error:
            return [self._failed(Level.SIGNATURE, str(error))]
        try:
            head = decode_head(opened.payload)
        except EvidenceError as error:
            return [self._failed(Level.STRUCTURE, str(error))]
        return list(self._place(head))

    def settle(self) -> list[Judged]:
        """Judge what waits at the beginning of a stream: the caller knows that nothing earlier is on its way."""
        return [judged for stream in list(self._streams) for judged in self._release(stream, begin=True)]

    def finish(self, *, complete: bool = False) -> list[Judged]:
        """Judge all that still waits. ``complete``: the input is all there is, so open holes have failed; else they
        are unknown.
        """
        judged = self.settle()
        for stream in list(self._streams):
            judged += self._release(stream, begin=True, flush=True)
        for hole in self.report.holes:
            self._account(hole)
            if hole.state == "open":
                hole.state = "failed" if complete else "unknown"
                counts = self.report.failures if complete else self.report.unknowns
                counts.update((Level.CONTINUITY, Level.COMPLETENESS))
                self.report.failed += complete
        for hole in self.report.holes:
            self._count_cycles(hole)
        return judged

    # ---- order ----------------------------------------------------------------------------------------------

    def _place(self, head: Head) -> Iterator[Judged]:
        link = head.link
        stream = self._streams.setdefault(link.stream, _Stream())
        known = stream.recent.get(link.seq)
        if known == link.digest:
            self.report.repeats += 1
            yield Judged({}, head=head, repeat=True)
        elif known is not None:
            yield self._failed(Level.CONTINUITY, "equivocation: another record with this number was seen", head)
        elif stream.expected is not None and link.seq < stream.expected:
            self.report.records += 1
            self.report.unknowns[Level.CONTINUITY] += 1
            text = "came too late to be put in order"
            finding = Finding(Level.CONTINUITY, Outcome.UNKNOWN, text, link.stream, link.seq)
            yield Judged({Level.CONTINUITY: Outcome.UNKNOWN}, (finding,), head)
        else:
            stream.recent[link.seq] = link.digest
            if len(stream.recent) > REMEMBERED:
                stream.recent.popitem(last=False)
            stream.waiting[link.seq] = head
            yield from self._release(link.stream)

    def _release(self, name: bytes, *, begin: bool = False, flush: bool = False) -> Iterator[Judged]:
        """Judge what waits in a stream as far as its turn has come."""
        stream = self._streams[name]
        while stream.waiting:
            full = flush or len(stream.waiting) > WINDOW
            if stream.expected is None:
                first = min(stream.waiting)
                if first != 1 and first <= WINDOW and not full and not begin:
                    return
                if first == 1 and (parent := self._parent_behind(stream.waiting[1])) is not None:
                    children = self._streams[parent].children
                    if not full:
                        if name not in children:
                            children.append(name)
                        return
                    if name in children:
                        children.remove(name)
                    stream.expected = first
                    yield from self._release(parent, begin=begin, flush=True)  # what it waits with comes first
                    continue
                stream.expected = first
            if stream.expected not in stream.waiting:
                if not full:
                    return
                self._open_hole(name, stream, stream.expected, min(stream.waiting) - 1)
                stream.expected = min(stream.waiting)
            head = stream.waiting.pop(stream.expected)
            yield self._judge(stream, head)
            stream.expected += 1
            stream.digest = head.link.digest
        children, stream.children = stream.children, []
        for child in children:
            yield from self._release(child, begin=begin, flush=flush)

    def _parent_behind(self, head: Head) -> bytes | None:
        """The run that this one follows if records of it are still to come."""
        plan = _plan_in(head)
        if plan is None or plan.follows is None:
            return None
        parent = self._streams.get(plan.follows[0])
        return plan.follows[0] if parent is not None and parent.last < plan.follows[1] else None

    # ---- judge ----------------------------------------------------------------------------------------------

    def _judge(self, stream: _Stream, head: Head) -> Judged:
        findings: list[Finding] = []

        def find(level: Level, text: str, outcome: Outcome = Outcome.FAILED) -> None:
            findings.append(Finding(level, outcome, text, head.link.stream, head.link.seq))

        record = None
        try:
            record = decode_record(head, stream.coverage.plan if stream.coverage else None)
        except EvidenceError as error:
            find(Level.STRUCTURE, str(error), Outcome.FAILED if head.version == VERSION else Outcome.UNKNOWN)
        plan = record.body if record is not None and isinstance(record.body, Plan) else None
        if head.link.seq == 1:
            for text in self._join(stream, head, plan):
                find(Level.CONTINUITY, text)
        elif stream.digest is not None and head.link.prev != stream.digest:
            find(Level.CONTINUITY, "the chain is broken: prev is not the digest of the record before")
        elif not stream.begun:
            self.report.runs.append(Run(head.link.stream, "seen from its middle on"))
        stream.begun = True
        if record is None:
            find(Level.COMPLETENESS, "the record cannot be read", Outcome.UNKNOWN)
        elif plan is not None:
            for text in self._plan(stream, plan, record.seq):
                find(Level.COMPLETENESS, text)
        elif isinstance(record.body, Data):
            if stream.coverage is None:
                self.report.before_plan += 1
                find(Level.COMPLETENESS, "its plan is not at hand", Outcome.UNKNOWN)
            elif record.body.term != stream.coverage.plan.term:
                find(Level.COMPLETENESS, f"data of term {record.body.term} in term {stream.coverage.plan.term}")
            else:
                problems, added = stream.coverage.add(record.body)
                self.report.count(added)
                for text in problems:
                    find(Level.COMPLETENESS, text)
        return self._counted(head, record, stream.coverage, findings)

    def _join(self, stream: _Stream, head: Head, plan: Plan | None) -> Iterator[str]:
        """How a run joins the one it follows; yields what is wrong."""
        run, link = "first", head.link
        cause, length_known = None, True
        if plan is None:
            yield "a stream must begin with a plan"
            run = "broken"
        elif plan.follows is None:
            if link.prev != ZEROS:
                yield "the first run of an outbox has a prev that is not zeros"
        else:
            parent = self._streams.get(plan.follows[0])
            cause = plan.resumes[0] if plan.resumes else None
            if parent is None or parent.expected is None:
                run = "unknown: the run before it is not at hand"
            else:
                if parent.last < plan.follows[1]:
                    self._open_hole(plan.follows[0], parent, parent.last + 1, plan.follows[1])
                run = "continuous" if parent.last <= plan.follows[1] else f"rolled back {parent.last - plan.follows[1]}"
                known = parent.recent.get(plan.follows[1])
                if known is not None and known != link.prev:
                    yield "the chain is broken: prev is not the digest of the record it follows"
                    run = "broken"
                length_known = self._resume(parent, plan)
        self.report.runs.append(Run(link.stream, run, cause, length_known))

    def _resume(self, parent: _Stream, plan: Plan) -> bool:
        """Count what fell due between two runs as gaps with the stated cause; returns whether their number is known."""
        old = parent.coverage or parent.before
        if old is None or plan.resumes is None:
            return False
        cause, resumes = plan.resumes
        begins = {(r.device, r.group): r.cycle for r in resumes if r.term == old.plan.term}
        mine = dict(zip(old.keys, old.next, strict=True))
        if (
            parent.coverage is None
        ):  # a hole hides where the parent ended: what it took with it ends where resumes begins
            lost = {key: max(0, begins[key] - begin) for key, begin in mine.items() if key in begins}
            self._fill(parent, lost)
        for key, count in cycles_between(old=old.plan, old_next=begins, new=plan).items():
            self.report.tally(key).gaps[cause] += count
        return old.plan.boot_id == plan.boot_id or len(begins) == len(resumes)

    def _plan(self, stream: _Stream, plan: Plan, seq: int) -> list[str]:
        problems = []
        for withdrawn in plan.withdrawn:
            if not any(_within(withdrawn, known) for known in self._withdrawn):
                self._withdrawn = [known for known in self._withdrawn if not _within(known, withdrawn)] + [withdrawn]
        if stream.coverage is None:
            if seq == 1:
                problems = opening_problems(plan)
            if stream.before is not None:
                begins = dict(zip(stream.before.keys, stream.before.next, strict=True))
                self._fill(stream, cycles_between(old=stream.before.plan, old_next=begins, new=plan))
            stream.coverage = Coverage(plan)
        elif plan.term == stream.coverage.plan.term:
            problems = stream.coverage.repeat(plan)
        else:
            problems = stream.coverage.change(plan)
        return problems

    # ---- holes ----------------------------------------------------------------------------------------------

    def _open_hole(self, name: bytes, stream: _Stream, first: int, last: int) -> None:
        hole = Hole(name, first, last)
        self.report.holes.append(hole)
        stream.holes.append(hole)
        stream.digest = None
        if stream.coverage is not None:
            stream.before, stream.coverage = stream.coverage, None

    def _fill(self, stream: _Stream, cycles: dict[tuple[str, str], int]) -> None:
        """The cycles that the holes since the last plan took with them are known now: they go to the last of these
        holes.
        """
        if stream.holes:
            stream.holes[-1].cycles = cycles
        stream.holes, stream.before = [], None

    def _account(self, hole: Hole) -> None:
        """A hole that plans withdraw, in one range or several, is accounted for."""
        at = hole.first
        for withdrawn in sorted((w for w in self._withdrawn if w.stream == hole.stream), key=lambda w: w.first):
            if withdrawn.first <= at <= withdrawn.last:
                at, hole.cause = withdrawn.last + 1, withdrawn.cause
        if at > hole.last:
            hole.state = "accounted"
        else:
            hole.cause = None

    def _count_cycles(self, hole: Hole) -> None:
        for key, count in (hole.cycles or {}).items():
            if hole.state == "accounted" and hole.cause is not None:
                self.report.tally(key).gaps[hole.cause] += count
            else:
                self.report.tally(key).missing += count
        hole.cycles = None

    # ---- account --------------------------------------------------------------------------------------------

    def _counted(self, head: Head, record: Record | None, coverage: Coverage | None, findings: list[Finding]) -> Judged:
        report = self.report
        report.records += 1
        outcomes = dict.fromkeys(Level, Outcome.OK)
        for finding in findings:
            if outcomes[finding.level] is not Outcome.FAILED:
                outcomes[finding.level] = finding.outcome
        failed = [level for level, outcome in outcomes.items() if outcome is Outcome.FAILED]
        report.failures.update(failed)
        report.failed += bool(failed)
        if record is not None:
            report.news.update(record.unknown)
            report.first_sealed = report.first_sealed or record.sealed.wall
            report.last_sealed = record.sealed.wall
            if isinstance(record.body, Data):
                report.frames += len(record.body.frames)
        return Judged(outcomes, tuple(findings), head, record, coverage.plan if coverage else None)

    def _failed(self, level: Level, text: str, head: Head | None = None) -> Judged:
        """A record that fails before its turn: it stands in no stream."""
        self.report.records += 1
        self.report.failed += 1
        self.report.failures[level] += 1
        place = (head.link.stream, head.link.seq) if head else (None, None)
        return Judged({level: Outcome.FAILED}, (Finding(level, Outcome.FAILED, text, *place),), head)


def _within(one: Withdrawn, other: Withdrawn) -> bool:
    """Whether a range says nothing that the other does not: plans restate their ranges as these grow."""
    same = (one.stream, one.cause) == (other.stream, other.cause)
    return same and other.first <= one.first and one.last <= other.last


def _foreign(opened: Envelope) -> Judged:
    finding = Finding(Level.IDENTITY, Outcome.UNKNOWN, f"foreign: signed in the name of {opened.did}")
    return Judged({Level.IDENTITY: Outcome.UNKNOWN}, (finding,), foreign=True)


def _plan_in(head: Head) -> Plan | None:
    try:
        body = decode_record(head, None).body
    except EvidenceError:
        return None
    return body if isinstance(body, Plan) else None
