"""The verifier: who measured what, that nothing is missing, and why where something is (docs/evidence.md section 6).

Offline: it needs the envelopes and the DIDs to accept, no network, no agent, and besides the standard library only
cbor2 and coincurve. Streaming: records may come twice, late and out of order by up to ``WINDOW``; each is judged once
its turn in its stream has come. State grows with the number of streams and holes, not of records.

It does not judge whether a device told the truth, nor what was cut off at the end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

from agent.errors import EvidenceError
from agent.evidence.coverage import Coverage, GroupKey, cycles_between, group_key, opening_problems
from agent.evidence.did import DidKey, did_key
from agent.evidence.envelope import Envelope, Keys, unpack
from agent.evidence.holes import Holes
from agent.evidence.record import VERSION, ZEROS, Head, decode_head, decode_record
from agent.evidence.report import Finding, Hole, Level, Outcome, Report, Run
from agent.evidence.report import Judged as Judged
from agent.model import Data, Plan, Record

WINDOW = 64  # records that may wait for an earlier one, as many as a publisher has in flight
REMEMBERED = 256  # digests kept per stream, to tell a repeat from an equivocation


@dataclass(slots=True)
class _Stream:
    """What is remembered of one run."""

    signer: DidKey | None = None
    expected: int | None = None  # seq whose turn it is; None: not begun
    start: int = 1  # seq of the first record judged
    digest: bytes | None = None  # of the record before it; None behind a hole
    planned: bool = False  # a plan of it was at hand
    joined: bool = False  # what lies before its first record at hand was judged
    skipped: dict[GroupKey, int] | None = None  # cycles of its first term before that record
    waiting: dict[int, Head] = field(default_factory=dict)
    recent: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    coverage: Coverage | None = None
    before: Coverage | None = None  # where things stood before holes that no plan has followed yet
    holes: list[Hole] = field(default_factory=list)  # these holes
    children: list[bytes] = field(default_factory=list)  # streams that wait for this one's records

    @property
    def last(self) -> int:
        return (self.expected or 1) - 1


_Found = tuple[Level, Outcome, str]


class Verifier:
    """Judges envelopes of the accepted signers: ``feed`` each, ``finish`` at the end; ``report`` is the account."""

    def __init__(self, accept: Iterable[str]) -> None:
        self.report = Report()
        self._accept = {did_key(did) for did in accept}
        self._keys = Keys()
        self._streams: dict[bytes, _Stream] = {}
        self._holes = Holes(self.report)
        self._latest: dict[tuple[DidKey | None, str], bytes] = {}  # the last run begun, by signer and channel

    def feed(self, envelope: bytes) -> list[Judged]:
        """Take one envelope; returns the records whose turn has come, in order of their streams."""
        try:
            opened = unpack(envelope)
        except EvidenceError as error:
            return [self._failed(Level.STRUCTURE, str(error))]
        signer = did_key(opened.did)
        if signer not in self._accept:
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
        return list(self._place(head, signer))

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
        self._beheaded()
        self._holes.settle(complete=complete)
        return judged

    # ---- order ----------------------------------------------------------------------------------------------

    def _place(self, head: Head, signer: DidKey) -> Iterator[Judged]:
        link = head.link
        stream = self._streams.setdefault(link.stream, _Stream())
        stream.signer = signer
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
        """Judge what waits in a stream, and in the runs that wait for it, as far as its turn has come.

        ``begin``: nothing earlier than what waits is on its way to the beginning of a stream. ``flush``: nothing at
        all.
        """
        todo = [(name, flush)]
        while todo:
            current, forced = todo.pop()
            yield from self._advance(current, todo, begin=begin or forced, flush=forced)

    def _advance(self, name: bytes, todo: list[tuple[bytes, bool]], *, begin: bool, flush: bool) -> Iterator[Judged]:
        """Judge what waits in one stream; ``todo`` takes the streams that come next, the last one first."""
        stream = self._streams[name]
        while stream.waiting:
            full = flush or len(stream.waiting) > WINDOW
            if stream.expected is None:
                first = min(stream.waiting)
                if first != 1 and first <= WINDOW and not full and not begin:
                    return
                parent = self._parent_behind(stream.waiting[1]) if first == 1 else None
                if parent is not None:
                    children = self._streams[parent].children
                    unseen = self._streams[parent].expected is None and not self._streams[parent].waiting
                    if not full and not (begin and unseen):
                        if name not in children:
                            children.append(name)
                        return
                    if name in children:
                        children.remove(name)
                stream.expected = stream.start = first
                if parent is not None:  # what it waits with comes first
                    todo += [(name, flush), (parent, True)]
                    return
            if stream.expected not in stream.waiting:
                if not full:
                    return
                self._open_hole(name, stream, stream.expected, min(stream.waiting) - 1)
                stream.expected = min(stream.waiting)
            head = stream.waiting.pop(stream.expected)
            yield self._judge(stream, head)
            stream.expected += 1
            stream.digest = head.link.digest
        todo += [(child, flush) for child in stream.children]
        stream.children = []

    def _parent_behind(self, head: Head) -> bytes | None:
        """The run that this one follows if records of it are still to come."""
        plan = _plan_in(head)
        if plan is None or plan.follows is None or plan.follows[0] == head.link.stream:
            return None
        parent = self._streams.setdefault(plan.follows[0], _Stream())
        return plan.follows[0] if parent.last < plan.follows[1] else None

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
        if head.link.seq == 1 and plan is None and head.version == VERSION:
            find(Level.CONTINUITY, "a stream must begin with a plan")
        if stream.digest is not None and head.link.prev != stream.digest:
            find(Level.CONTINUITY, "the chain is broken: prev is not the digest of the record before")
        if record is None:
            find(Level.COMPLETENESS, "the record cannot be read", Outcome.UNKNOWN)
        elif plan is not None:
            for level, outcome, text in self._plan(stream, head, plan):
                find(level, text, outcome)
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

    def _plan(self, stream: _Stream, head: Head, plan: Plan) -> Iterator[_Found]:
        """Take a plan into force; yields what is wrong with it."""
        self.report.planned = True
        self._holes.permit(plan.withdrawn)
        if stream.coverage is not None:
            same = plan.term == stream.coverage.plan.term
            for text in stream.coverage.repeat(plan) if same else stream.coverage.change(plan):
                yield Level.COMPLETENESS, Outcome.FAILED, text
            return
        if stream.before is not None:  # behind a hole
            self._fill(stream, cycles_between(old=stream.before.plan, old_next=stream.before.standing(), new=plan))
        elif not stream.planned:
            yield from self._begin(stream, head, plan)
        stream.coverage, stream.planned = Coverage(plan), True

    def _begin(self, stream: _Stream, head: Head, plan: Plan) -> Iterator[_Found]:
        """The first plan of a run: how the run joins the one before it."""
        name = head.link.stream
        lineage = (stream.signer, plan.channel)
        before = self._streams.get(self._latest.get(lineage, b""))
        self._latest[lineage] = name
        self._holes.found(name)
        parent = self._streams.get(plan.follows[0]) if plan.follows else None
        cause = plan.resumes[0] if plan.resumes else None
        if stream.start == 1 and head.link.seq > 1:  # its first plan could not be read
            self.report.runs.append(Run(name, "unknown: its first plan could not be read", length_known=False))
            return
        if plan.term == 1:
            stream.skipped = {
                group_key(plan, group): group.next - group.schedule.first for group in plan.groups if group.schedule
            }
        stream.joined = stream.start == 1 or before is not None
        if stream.start > 1:
            if before is not None:
                self._missing_since(before, plan, name, last=stream.start - 1)
                if plan.follows and parent and parent.expected and parent.last < plan.follows[1]:
                    self._holes.open(plan.follows[0], parent.last + 1, plan.follows[1])
            self.report.runs.append(Run(name, "seen from its middle on", cause, length_known=False))
            return
        for text in opening_problems(plan):
            yield Level.COMPLETENESS, Outcome.FAILED, text
        if plan.follows is not None and (parent is None or parent.expected is None):
            if before is not None:
                self._missing_since(before, plan, plan.follows[0], last=plan.follows[1]).whole_run = True
            joins = "unknown: the run before it is not at hand"
            self.report.runs.append(Run(name, joins, cause, length_known=False))
            return
        if parent is None or plan.follows is None:
            if head.link.prev != ZEROS:
                yield Level.CONTINUITY, Outcome.FAILED, "the first run of an outbox has a prev that is not zeros"
            if before is not None:
                text = "a new outbox: the run follows none, though this signer had one on this channel"
                yield Level.CONTINUITY, Outcome.UNKNOWN, text
            self.report.runs.append(Run(name, "first" if before is None else "unknown: a new outbox, it follows none"))
            return
        last = parent.last
        if last < plan.follows[1]:
            self._open_hole(plan.follows[0], parent, last + 1, plan.follows[1])
        joins = "continuous" if last <= plan.follows[1] else f"rolled back {last - plan.follows[1]}"
        known = parent.recent.get(plan.follows[1])
        if known is not None and known != head.link.prev:
            yield (
                Level.CONTINUITY,
                Outcome.FAILED,
                "the chain is broken: prev is not the digest of the record it follows",
            )
            joins = "broken"
        length_known = yield from self._resume(parent, plan, went_on=last > plan.follows[1])
        self.report.runs.append(Run(name, joins, cause, length_known))

    def _missing_since(self, before: _Stream, plan: Plan, name: bytes, *, last: int) -> Hole:
        """Records 1 to ``last`` of a run are not at hand, and not because the input begins behind them: with them went
        what fell due since the last run at hand.
        """
        hole = self._holes.open(name, 1, last)
        if old := before.coverage or before.before:
            hole.cycles = cycles_between(old=old.plan, old_next=old.standing(), new=plan)
        return hole

    def _resume(self, parent: _Stream, plan: Plan, *, went_on: bool) -> Generator[_Found, None, bool]:
        """Count what fell due between two runs as gaps with the stated cause; returns whether their number is known.

        ``resumes`` must say what the parent's records say, unless these are not all at hand or the parent went on
        behind the record that is followed.
        """
        old = parent.coverage or parent.before
        if old is None or plan.resumes is None:
            return False
        cause, resumes = plan.resumes
        periodic = {key for key, group in zip(old.keys, old.plan.groups, strict=True) if group.schedule is not None}
        mine = {key: cycle for key, cycle in old.standing().items() if key in periodic}
        stated = {(r.device, r.group): r.cycle for r in resumes if r.term == old.plan.term}
        begins = mine
        if parent.coverage is None:  # a hole hides where the parent ended: what it took ends where resumes begins
            if stated.keys() == mine.keys():
                self._fill(parent, {key: max(0, stated[key] - cycle) for key, cycle in mine.items()})
                begins = stated
            else:  # in a term that is not at hand: all until the new run goes with the hole
                self._fill(parent, cycles_between(old=old.plan, old_next=mine, new=plan))
                return False
        elif not went_on and (stated != mine or len(resumes) != len(mine)):
            yield Level.COMPLETENESS, Outcome.FAILED, "the new run resumes elsewhere than the run before it ended"
        for key, count in cycles_between(old=old.plan, old_next=begins, new=plan).items():
            self.report.tally(key).gaps[cause] += count
        return old.plan.boot_id == plan.boot_id

    def _beheaded(self) -> None:
        """Runs seen from their middle on: what is missing of them was withdrawn, or is missing if no plan ever told how
        they join. Only the first run at hand may begin anywhere.
        """
        begun = [(name, stream) for name, stream in self._streams.items() if stream.expected is not None]
        for number, (name, stream) in enumerate(begun):
            if stream.start == 1 or stream.joined:
                continue
            if not stream.planned:
                self.report.runs.append(Run(name, "seen from its middle on, without a plan", length_known=False))
            earlier = any(other.signer == stream.signer for _, other in begun[:number])
            if self._holes.withdrawn(name, stream.start - 1) or (earlier and not stream.planned):
                self._holes.open(name, 1, stream.start - 1).cycles = stream.skipped

    def _open_hole(self, name: bytes, stream: _Stream, first: int, last: int) -> None:
        stream.holes.append(self._holes.open(name, first, last))
        stream.digest = None
        if stream.coverage is not None:
            stream.before, stream.coverage = stream.coverage, None

    def _fill(self, stream: _Stream, cycles: dict[GroupKey, int]) -> None:
        """The cycles that the holes since the last plan took are known now: they go to the last of these holes."""
        if stream.holes:
            stream.holes[-1].cycles = cycles
        stream.holes, stream.before = [], None

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
        # Data before the first plan at hand is judged up to continuity only: that leaves nothing unknown.
        judged = [level for level in Level if level is not Level.COMPLETENESS or coverage is not None]
        report.unknowns.update(level for level in judged if outcomes[level] is Outcome.UNKNOWN)
        if record is not None:
            report.news.update(record.unknown)
            report.first_sealed = report.first_sealed or record.sealed.wall
            report.last_sealed = record.sealed.wall
            if isinstance(record.body, Data):
                report.frames += len(record.body.frames)
        plan = coverage.plan if coverage else None
        if record is not None and isinstance(record.body, Data) and plan is not None and plan.term != record.body.term:
            plan = None  # it names other groups
        return Judged(outcomes, tuple(findings), head, record, plan)

    def _failed(self, level: Level, text: str, head: Head | None = None) -> Judged:
        """A record that fails before its turn: it stands in no stream."""
        self.report.records += 1
        self.report.failed += 1
        self.report.failures[level] += 1
        place = (head.link.stream, head.link.seq) if head else (None, None)
        return Judged({level: Outcome.FAILED}, (Finding(level, Outcome.FAILED, text, *place),), head)


def _foreign(opened: Envelope) -> Judged:
    finding = Finding(Level.IDENTITY, Outcome.UNKNOWN, f"foreign: signed in the name of {opened.did}")
    return Judged({Level.IDENTITY: Outcome.UNKNOWN}, (finding,), foreign=True)


def _plan_in(head: Head) -> Plan | None:
    try:
        body = decode_record(head, None).body
    except EvidenceError:
        return None
    return body if isinstance(body, Plan) else None
