"""How runs join (docs/evidence.md section 10, step 10): what lies between a run and the one that it follows, what the
store forgot, runs that are missing, and two agents that use one key.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.evidence.coverage import Coverage, GroupKey, cycles_between, group_key, opening_problems
from agent.evidence.record import ZEROS, Head
from agent.model import ClockState, Plan, Sealed
from agent.verifier import holes
from agent.verifier.book import WINDOW, Book, Lineage, Stream
from agent.verifier.report import Hole, Join, Part, Run
from agent.verifier.verdict import Level, Outcome

Found = tuple[Level, Outcome, str]

_MOST_LEAVES = 16  # of the runs of a channel that none follows: with so many a new one is compared
_BROKEN = "the chain is broken: prev is not the digest of the record it follows"


class Runs:
    """Joins the runs of each signer and channel."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def begin(self, stream: Stream, head: Head, sealed: Sealed, plan: Plan) -> Iterator[Found]:
        """The first plan at hand of a run, and when it was sealed: how the run joins the one before it."""
        book, name = self._book, stream.name
        lineage = book.lineages.setdefault((stream.signer, plan.channel), Lineage())
        before = book.find(stream.signer, lineage.latest)
        cause = plan.resumes[0] if plan.resumes else None
        stream.run = run = Run(name, Join.UNKNOWN, cause=cause, began=sealed)
        stream.span.boot_id = plan.boot_id
        book.found(stream.account, name)
        if plan.volatile:
            run.join = Join.VOLATILE
            stream.joined = True
            stream.account.add_run(run)
            return
        lineage.latest = name
        if plan.term == 1:
            stream.skipped = {
                group_key(plan, group): group.next - (group.schedule.first if group.schedule else 0)
                for group in plan.groups
            }
        if stream.start > 1:
            self._seen_from_its_middle_on(stream, plan, before)
        elif head.link.seq > 1:
            run.detail, run.length_known, stream.joined = "its first plan could not be read", False, True
        else:
            stream.joined = True
            problems = opening_problems(plan)
            problems += [f"messages are counted from {g.next}, not 0" for g in plan.groups if not g.schedule and g.next]
            yield from ((Level.COMPLETENESS, Outcome.FAILED, text) for text in problems)
            yield from self._follow(stream, head, plan, before, lineage)
        stream.account.add_run(run)
        self._set_rivals(stream, plan, lineage)

    def _seen_from_its_middle_on(self, stream: Stream, plan: Plan, before: Stream | None) -> None:
        assert stream.run is not None
        stream.run.join, stream.run.length_known = Join.MIDDLE, False
        if before is None:
            return
        stream.joined = True
        hole = self._missing_since(before, plan, stream, stream.name, last=stream.start - 1)
        stream.holes.insert(0, hole)
        parent = self._book.find(stream.signer, plan.follows[0]) if plan.follows else None
        if plan.follows and parent is not None and parent.expected and parent.last < plan.follows[1]:
            parent.ends = plan.follows[1]
            if not parent.waiting:  # else these come first
                self._cut_short(parent, parent.ends)

    def begin_late(self, stream: Stream, head: Head, plan: Plan, hole: Hole) -> Iterator[Found]:
        """The first plan of a run that was seen from its middle on came late: now the run can be joined, and what fell
        due before it did not go with the hole.
        """
        run, parent = stream.run, self._book.find(stream.signer, plan.follows[0]) if plan.follows else None
        if run is None or run.join is not Join.MIDDLE or parent is None or plan.follows is None:
            return
        if parent.expected is None or parent.last != plan.follows[1]:
            return
        stream.account.rejoin(run, Join.CONTINUOUS)
        if parent.recent.get(parent.last, head.link.prev) != head.link.prev:
            yield Level.CONTINUITY, Outcome.FAILED, _BROKEN
            stream.account.rejoin(run, Join.BROKEN)
        parent.followers.append((stream.name, parent.last))
        lineage = self._book.lineages[stream.signer, plan.channel]
        yield from self._resume(stream, parent, plan, lineage, agreed=True)
        for key, count in run.bridged.items():
            holes.recover([hole], key, count)
        hole.unread = stream.unplanned

    def _follow(
        self, stream: Stream, head: Head, plan: Plan, before: Stream | None, lineage: Lineage
    ) -> Iterator[Found]:
        """The first record of a run is at hand: hold it against the run that it follows."""
        run, book = stream.run, self._book
        assert run is not None
        if plan.follows is None:
            if head.link.prev != ZEROS:
                yield Level.CONTINUITY, Outcome.FAILED, "the first run of an outbox has a prev that is not zeros"
            if before is None or self._followed_already(stream):
                run.join = Join.FIRST
            else:
                run.detail = "a new outbox, it follows none"
                text = "a new outbox: the run follows none, though this signer had one on this channel"
                yield Level.CONTINUITY, Outcome.UNKNOWN, text
            return
        name, seq = plan.follows
        parent = book.find(stream.signer, name)
        if parent is None or parent.expected is None:
            if before is not None:
                self._missing_since(before, plan, stream, name, last=seq).whole_run = True
            run.detail, run.length_known = "the run before it is not at hand", False
            stream.unjoined, stream.unjoined_prev = plan, head.link.prev
            return
        run.join = Join.CONTINUOUS
        if parent.last < seq:
            self._cut_short(parent, seq, after=head.link.prev)
        elif parent.last > seq or parent.followers:
            run.lost = max(0, parent.last - seq) + self._records_behind(parent)
            run.join = Join.ROLLED_BACK if run.lost else Join.CONTINUOUS
        known = parent.recent.get(seq)
        if known is not None and known != head.link.prev:
            yield Level.CONTINUITY, Outcome.FAILED, _BROKEN
            run.join, run.lost = Join.BROKEN, 0
        parent.followers.append((stream.name, seq))
        if name in lineage.leaves:
            lineage.leaves.remove(name)
        forgot = run.join is Join.ROLLED_BACK
        # What runs covered is at hand, whatever the store forgot of it: data wins over a gap.
        begins_behind = before if forgot and before is not None else parent
        yield from self._resume(stream, begins_behind, plan, lineage, agreed=not forgot)
        if len(parent.recent) > WINDOW:  # it has ended: only what a publisher sends again can still come
            parent.recent = dict(list(parent.recent.items())[-WINDOW:])

    def _followed_already(self, stream: Stream) -> bool:
        """Whether a run that follows this one came before it."""
        return any(
            other.signer == stream.signer and other.unjoined and other.unjoined.follows[0] == stream.name  # type: ignore[index]
            for other in self._book.streams.values()
        )

    def _records_behind(self, parent: Stream) -> int:
        """Records of the runs that follow a run, and of those that follow these."""
        total, seen = 0, set[bytes]()
        todo = [child for child, _ in parent.followers]
        while todo:
            stream = self._book.find(parent.signer, todo.pop())
            if stream is not None and stream.name not in seen:
                seen.add(stream.name)
                total += stream.last
                todo += [child for child, _ in stream.followers]
        return total

    def _cut_short(self, parent: Stream, last: int, *, after: bytes | None = None) -> None:
        """A run has ended with record ``last``, and not all up to it is at hand."""
        self._book.open_hole(parent, parent.last + 1, last, after=after)
        parent.expected, parent.digest = last + 1, after

    def _missing_since(self, before: Stream, plan: Plan, stream: Stream, name: bytes, *, last: int) -> Hole:
        """Records 1 to ``last`` of a run are not at hand, and not because the input begins behind them: with them went
        what fell due since the last run at hand.
        """
        hole = self._book.note_hole(stream, name, Part(1, last))
        hole.unread = True  # when the run before it ended and this one began is not at hand
        if before.coverage is not None:
            hole.cycles = cycles_between(old=before.coverage.plan, old_next=before.coverage.standing(), new=plan)
        return hole

    def _resume(self, stream: Stream, parent: Stream, plan: Plan, lineage: Lineage, *, agreed: bool) -> Iterator[Found]:
        """Count what fell due between two runs as gaps with the stated cause.

        ``resumes`` must say what the parent's records say, unless these are not all at hand or (not ``agreed``) the
        store has forgotten some.
        """
        run, old = stream.run, parent.coverage
        assert run is not None
        run.length_known = False
        if old is None or plan.resumes is None:
            return
        cause, resumes = plan.resumes
        mine = {
            key: cycle
            for key, cycle, group in zip(old.keys, old.next, old.plan.groups, strict=True)
            if group.schedule is not None
        }
        stated = {(r.device, r.group): r.cycle for r in resumes if r.term == old.plan.term}
        begins = mine
        if agreed and old.unsure:  # a hole hides where the parent ended: what it took ends where resumes begins
            if stated.keys() != mine.keys():  # in a term that is not at hand: all until the new run goes with the hole
                parent.lose(cycles_between(old=old.plan, old_next=mine, new=plan))
                for hole in parent.holes[-1:]:
                    hole.unread = True  # what of that fell due while nothing ran is not known
                return
            unsure = {old.keys[i] for i in old.unsure}
            parent.lose({key: stated[key] - cycle for key, cycle in mine.items() if key in unsure})
            begins = stated
            agreed = all(stated[key] == cycle or (key in unsure and stated[key] > cycle) for key, cycle in mine.items())
        elif agreed:
            agreed = stated == mine and len(resumes) == len(mine)
        if not agreed and run.join is not Join.ROLLED_BACK:
            yield Level.COMPLETENESS, Outcome.FAILED, "the new run resumes elsewhere than the run before it ended"
        for key, count in cycles_between(old=old.plan, old_next=begins, new=plan).items():
            bridged = max(0, count - lineage.volatile.get(key, 0))  # data wins over a gap
            run.bridged[key] = bridged
            stream.account.tally(key).gaps[cause] += bridged
        lineage.volatile.clear()
        ended = parent.run.ended if parent.run is not None else None
        clocks = [at.clock for at in (ended, run.began) if at is not None]
        run.length_known = old.plan.boot_id == plan.boot_id or clocks == [ClockState.SYNCHRONISED] * 2

    # ---- later ----------------------------------------------------------------------------------------------

    def went_on(self, stream: Stream, seq: int, covered: dict[GroupKey, int]) -> None:
        """A run has a record behind one that another run follows: the store forgot it. What it covers is in no gap."""
        for name, followed in stream.followers:
            child = self._book.find(stream.signer, name)
            if child is not None and child.run is not None and seq > followed:
                child.run.lost += 1
                if child.run.join is Join.CONTINUOUS:
                    child.account.rejoin(child.run, Join.ROLLED_BACK)
                for key, count in covered.items():
                    self._unbridge(child, key, count)

    def kept_in_memory(self, stream: Stream, covered: dict[GroupKey, int], channel: str) -> None:
        """A volatile run covered cycles: they are in no gap of the run that begins behind it."""
        lineage = self._book.lineages.setdefault((stream.signer, channel), Lineage())
        latest = self._book.find(stream.signer, lineage.latest)
        later = latest if latest is not None and latest.span.boot_last > stream.span.boot_last else None
        for key, count in covered.items():
            taken = self._unbridge(later, key, count) if later is not None else 0
            lineage.volatile[key] = lineage.volatile.get(key, 0) + count - taken

    def _unbridge(self, stream: Stream, key: GroupKey, count: int) -> int:
        """So many cycles before a run are at hand after all: take them off the gap; returns how many it had."""
        run = stream.run
        if run is None or run.cause is None:
            return 0
        taken = min(count, run.bridged.get(key, 0))
        run.bridged[key] = run.bridged.get(key, 0) - taken
        stream.account.tally(key).gaps[run.cause] -= taken
        return taken

    def finish(self) -> None:
        """End runs where they ended, join them with those that came only after them, and judge what is missing before
        runs that were seen from their middle on: it was withdrawn, or is missing if no plan ever told how they join.
        Only the first run at hand may begin anywhere.
        """
        for stream in self._book.streams.values():
            if stream.ends is not None and stream.last < stream.ends:
                self._cut_short(stream, stream.ends)
            if stream.unjoined is not None:
                self._join_late(stream, stream.unjoined)
        begun = [stream for stream in self._book.streams.values() if stream.expected is not None]
        for number, stream in enumerate(begun):
            if stream.start == 1 or stream.joined:
                continue
            stream.joined = True
            if not stream.planned:
                stream.account.add_run(Run(stream.name, Join.MIDDLE, "without a plan", length_known=False))
            earlier = any(other.signer == stream.signer for other in begun[:number])
            part = Part(1, stream.start - 1)
            withdrawn = self._book.permissions.of(stream.signer).cause(stream.name, [part]) is not None
            if withdrawn or (earlier and not stream.planned):
                hole = self._book.note_hole(stream, stream.name, part)
                hole.cycles = stream.skipped or {}

    def _join_late(self, stream: Stream, plan: Plan) -> None:
        """The run that this one follows may have come after it, by ``outbox resend`` say."""
        assert plan.follows is not None
        assert stream.run is not None
        parent = self._book.find(stream.signer, plan.follows[0])
        if parent is None or parent.last != plan.follows[1] or stream.run.join is not Join.UNKNOWN:
            return
        stream.unjoined = None
        joins = parent.recent.get(parent.last, stream.unjoined_prev) == stream.unjoined_prev
        if not joins:
            self._book.report.fail(Level.CONTINUITY)
        stream.account.rejoin(stream.run, Join.CONTINUOUS if joins else Join.BROKEN)
        lineage = self._book.lineages[stream.signer, plan.channel]
        for level, outcome, text in self._resume(stream, parent, plan, lineage, agreed=True):
            assert outcome is Outcome.FAILED, text
            self._book.report.fail(level)

    def overdue(self, now: int) -> None:
        """Note for how long channels have been silent that should not be; ``now`` is the reader's wall time, ns."""
        for (signer, _), lineage in self._book.lineages.items():
            stream = self._book.find(signer, lineage.latest)
            if stream is None or stream.coverage is None or stream.account.last is None:
                continue
            if stream.run is not None and stream.run.stopped is not None:
                continue
            silent = now - stream.account.last.wall
            stream.account.overdue_ns = silent if silent > _patience(stream.coverage) else None

    # ---- two agents -----------------------------------------------------------------------------------------

    def _set_rivals(self, stream: Stream, plan: Plan, lineage: Lineage) -> None:
        """A run must not be at the same time as the one that it follows, nor as any that none follows yet."""
        for name in {*lineage.leaves, *([plan.follows[0]] if plan.follows else [])}:
            other = self._book.find(stream.signer, name)
            if other is not None and other is not stream:
                other.rivals.append(stream.name)
                stream.rivals.append(name)
        lineage.leaves = [*lineage.leaves, stream.name][-_MOST_LEAVES:]

    def compare(self, stream: Stream) -> Iterator[Found]:
        """Hold the time of a run that has a new record against those of others that must not have been meanwhile."""
        for name in list(stream.rivals):
            other = self._book.find(stream.signer, name)
            mine = other is None or stream.span.ends_after(other.span)
            if not mine:
                continue  # it is over before the other one began, or that cannot be told
            if other is not None and other.span.ends_after(stream.span):
                if stream.name in other.rivals:
                    other.rivals.remove(stream.name)
                younger, elder = (other, stream) if _began_later(other, stream) else (stream, other)
                words = f"at the same time as run {elder.name.hex()[:8]}: two agents use this key"
                if younger.run is not None:
                    younger.account.rejoin(younger.run, Join.FORK, words)
                yield Level.CONTINUITY, Outcome.FAILED, f"fork: run {younger.name.hex()[:8]} was {words}"
            stream.rivals.remove(name)  # else: only a record of the other one could still change this


def _began_later(one: Stream, other: Stream) -> bool:
    if one.span.boot_id == other.span.boot_id:
        return (one.span.boot_first or 0) > (other.span.boot_first or 0)
    return (one.span.wall_first or 0) > (other.span.wall_first or 0)


def _patience(coverage: Coverage) -> int:
    """Ns after which something must have been sealed (docs/evidence.md section 10, step 11)."""
    periods = [group.schedule.period for group in coverage.plan.groups if group.schedule is not None]
    longest = max(300_000_000_000, min(periods)) if periods else 3600_000_000_000
    return longest + coverage.plan.window_ms * 1_000_000
