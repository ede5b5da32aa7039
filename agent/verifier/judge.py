"""Judges a record whose turn has come, or that came late: its body against the CDDL, its place in the chain, and the
cycles that it accounts for (docs/evidence.md section 10, steps 7 and 9).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agent.errors import EvidenceError
from agent.evidence.coverage import Coverage, GroupKey, Tally, group_key
from agent.evidence.frames import cycles_of
from agent.evidence.record import VERSION, Head, decode_record
from agent.model import Data, Event, EventCode, Plan, Record, Sealed
from agent.verifier import holes
from agent.verifier.accepted import Accepted
from agent.verifier.book import Book, Stream
from agent.verifier.report import Hole, Part
from agent.verifier.runs import Found, Runs
from agent.verifier.verdict import Finding, Judged, Level, Outcome, outcomes_of

_NO_PLAN = "its plan is not at hand"


class Judge:
    """Judges records and adds them to the account."""

    def __init__(self, book: Book, runs: Runs, accepted: Accepted) -> None:
        self._book = book
        self._runs = runs
        self._accepted = accepted

    def in_turn(self, stream: Stream, head: Head) -> Judged:
        """The next record of a stream."""
        found: list[Found] = []
        link, coverage = head.link, stream.coverage
        record = _decoded(head, coverage.plan if coverage else None, found)
        body = record.body if record is not None else None
        if link.seq == 1 and not isinstance(body, Plan) and head.version == VERSION:
            found.append((Level.CONTINUITY, Outcome.FAILED, "a stream must begin with a plan"))
        if stream.digest is not None and link.prev != stream.digest:
            found.append((Level.CONTINUITY, Outcome.FAILED, holes.BROKEN))
        if record is None:
            found.append((Level.COMPLETENESS, Outcome.UNKNOWN, "the record cannot be read"))
        else:
            if isinstance(body, Plan):
                found += self._plan(stream, head, record.sealed, body)
            elif isinstance(body, Data):
                found += self._data(stream, body)
            stream.span.add(record.sealed)
            if stream.run is not None:
                self._date(stream, record)
        if stream.followers:
            self._runs.went_on(stream, link.seq, self._covered(stream, body))
        if stream.rivals:
            found += self._runs.compare(stream)
        plan = stream.coverage.plan if stream.coverage is not None else None
        return self._counted(stream, head, record, plan, found)

    def late(self, stream: Stream, head: Head, hole: Hole, part: Part) -> Judged:
        """A record that was given up and has come after all."""
        found: list[Found] = []
        problems = holes.fill(hole, part, head.link)
        found += ((Level.CONTINUITY, Outcome.FAILED, problem) for problem in problems)
        record, plan = _decoded(head, None, found), None
        if record is not None and isinstance(record.body, Data):
            plan = stream.plan_of(record.body.term)
            record = _decoded(head, plan, found) if plan is not None else record
        body = record.body if record is not None else None
        if isinstance(body, Plan):
            plan = body
            stream.keep(body)
            self._book.permissions.of(stream.signer).add(body.withdrawn)
            if head.link.seq == 1:
                found += self._runs.begin_late(stream, head, body, hole)
        elif isinstance(body, Data) and plan is not None:
            self._recover(stream, plan, body, hole)
        elif not isinstance(body, Event):
            hole.unread = True
            found.append(
                (Level.COMPLETENESS, Outcome.UNKNOWN, "it came late, and cannot be read or has no plan at hand")
            )
        return self._counted(stream, head, record, plan, found, late=True)

    # ---- plans ----------------------------------------------------------------------------------------------

    def _plan(self, stream: Stream, head: Head, sealed: Sealed, plan: Plan) -> Iterator[Found]:
        """Take a plan into force; yields what is wrong with it."""
        self._book.report.planned = True
        self._book.permissions.of(stream.signer).add(plan.withdrawn)
        coverage = stream.coverage
        if coverage is not None:
            if plan.term == coverage.plan.term:
                problems, lost = coverage.repeat(plan)
            else:
                stream.keep(coverage.plan)
                problems, lost = coverage.change(plan)
            if lost:
                stream.lose(lost)
            yield from ((Level.COMPLETENESS, Outcome.FAILED, text) for text in problems)
            return
        signer = self._accepted.find(stream.signer)
        stream.denied = bool(signer and signer.channels is not None and plan.channel not in signer.channels)
        self._move(stream, plan, None if signer is None else signer.name)
        tally = (lambda key: Tally()) if plan.volatile else stream.account.tally
        stream.coverage = Coverage(plan, tally)
        if not stream.planned:
            yield from self._runs.begin(stream, head, sealed, plan)
        stream.planned = True

    def _move(self, stream: Stream, plan: Plan, name: str | None) -> None:
        """The channel of a stream is known: what was opened for it until now goes there."""
        old, new = stream.account, self._book.account(stream.signer, stream.did, plan.channel)
        mine = [hole for hole in old.holes if hole.stream == stream.name]
        if old is not new:
            old.holes = [hole for hole in old.holes if hole.stream != stream.name]
            new.holes += mine
        new.name, new.site, new.topic = name, plan.site, plan.topic
        stream.account = new

    # ---- data -----------------------------------------------------------------------------------------------

    def _data(self, stream: Stream, data: Data) -> Iterator[Found]:
        coverage = stream.coverage
        if coverage is None or (coverage.torn and data.term != coverage.plan.term):
            self._book.report.before_plan += 1
            stream.unplanned = stream.unplanned or coverage is None
            if stream.holes:
                stream.holes[-1].unread = True  # what this record covers will seem to have gone with the hole
            yield Level.COMPLETENESS, Outcome.UNKNOWN, _NO_PLAN
            return
        if data.term != coverage.plan.term:
            yield Level.COMPLETENESS, Outcome.FAILED, f"data of term {data.term} in term {coverage.plan.term}"
            return
        problems, lost = coverage.add(data)
        if lost:
            stream.lose(lost)
        if coverage.plan.volatile:
            self._take_over(stream, coverage)
        for text in problems:
            yield Level.COMPLETENESS, Outcome.FAILED, text

    def _covered(self, stream: Stream, body: object) -> dict[GroupKey, int]:
        """How many cycles of each group a record of the term in force covers."""
        covered: dict[GroupKey, int] = Counter()
        if isinstance(body, Data) and stream.coverage is not None and body.term == stream.coverage.plan.term:
            keys = stream.coverage.keys
            for cycles in cycles_of(body.frames):
                covered[keys[cycles.group]] += cycles.number
            for gap in body.gaps:
                if gap.first is not None and gap.last is not None:
                    covered[keys[gap.group]] += gap.last - gap.first + 1
        return covered

    def _take_over(self, stream: Stream, coverage: Coverage) -> None:
        """What a run kept in memory covered goes to the account, and is in no gap of the runs around it."""
        covered: dict[GroupKey, int] = {}
        for key, mine in zip(coverage.keys, coverage.tallies, strict=True):
            if mine.expected:
                covered[key] = mine.present + mine.gaps.total()
                total = stream.account.tally(key)
                total.present += mine.present
                total.missing += mine.missing
                total.gaps.update(mine.gaps)
            mine.present = mine.missing = 0
            mine.gaps.clear()
        self._runs.kept_in_memory(stream, covered, coverage.plan.channel)

    def _recover(self, stream: Stream, plan: Plan, data: Data, hole: Hole) -> None:
        """Count the cycles of a record that came late: they are missing no more."""
        affected = [hole, *(each for each in stream.holes if each is not hole)]
        for cycles in cycles_of(data.frames):
            key = group_key(plan, plan.groups[cycles.group])
            tally = stream.account.tally(key)
            tally.present += cycles.number
            tally.quality.update(cycles.codes)
            holes.recover(affected, key, cycles.number)
        for gap in data.gaps:
            key = group_key(plan, plan.groups[gap.group])
            if gap.first is not None and gap.last is not None:
                count = gap.last - gap.first + 1
                stream.account.tally(key).gaps[gap.cause] += count
                holes.recover(affected, key, count)
            elif gap.from_boot is not None and gap.to_boot is not None:
                stream.account.tally(key).silent[gap.cause] += gap.to_boot - gap.from_boot

    # ---- account --------------------------------------------------------------------------------------------

    def _date(self, stream: Stream, record: Record) -> None:
        run, body = stream.run, record.body
        assert run is not None
        run.began = run.began or record.sealed
        run.ended = record.sealed
        run.stopped = None
        if isinstance(body, Event) and body.code == EventCode.STOP:
            run.stopped = str(body.details[0]) if body.details else ""

    def _identity(self, stream: Stream) -> Iterator[Found]:
        """What the allow-list says of the channel."""
        if stream.denied:
            yield (
                Level.IDENTITY,
                Outcome.FAILED,
                f"the allow-list does not let its signer write the channel {stream.account.channel}",
            )
        elif stream.coverage is None:
            signer = self._accepted.find(stream.signer)
            if signer is not None and signer.channels is not None:
                yield Level.IDENTITY, Outcome.UNKNOWN, "its channel is not known before a plan is at hand"

    def _counted(
        self,
        stream: Stream,
        head: Head,
        record: Record | None,
        plan: Plan | None,
        found: list[Found],
        *,
        late: bool = False,
    ) -> Judged:
        """Add a record to the account; ``plan``: the one in force, if there is one."""
        report, account = self._book.report, stream.account
        if stream.denied or plan is None:
            found += self._identity(stream)
        findings: tuple[Finding, ...] = ()
        if found:
            link = head.link
            findings = tuple(Finding(level, how, text, link.stream, link.seq) for level, how, text in found)
        judged = Judged(outcomes_of(findings), findings, head, record, None, stream.did)
        report.records += 1
        account.records += 1
        if findings:
            failed = [level for level, outcome in judged.outcomes.items() if outcome is Outcome.FAILED]
            report.failures.update(failed)
            report.failed += bool(failed)
            # Data whose plan is not at hand is judged up to continuity only: that leaves nothing unknown.
            planned = plan is not None and all(text is not _NO_PLAN for _, _, text in found)
            report.unknowns.update(
                level
                for level, outcome in judged.outcomes.items()
                if outcome is Outcome.UNKNOWN and (level is not Level.COMPLETENESS or planned)
            )
        if record is None:
            return judged
        sealed, body = record.sealed, record.body
        account.first = account.first or sealed
        if not late:
            account.last = sealed
        account.clock[sealed.clock] += 1
        if sealed.error_us is not None:
            account.error_us = max(sealed.error_us, account.error_us or 0)
        if record.unknown:
            report.tell_news(record.unknown)
        if isinstance(body, Data):
            count = len(body.frames)
            report.frames += count
            account.frames += count
        elif isinstance(body, Event):
            account.events[body.code] += 1
        if plan is not None and (not isinstance(body, Data) or body.term == plan.term):
            judged.plan = plan  # else data names other groups
        return judged


def _decoded(head: Head, plan: Plan | None, found: list[Found]) -> Record | None:
    try:
        return decode_record(head, plan)
    except EvidenceError as error:
        how = Outcome.FAILED if head.version == VERSION else Outcome.UNKNOWN
        found.append((Level.STRUCTURE, how, str(error)))
        return None
