"""Coverage: which cycles of a stream are accounted for, frame by frame and gap by gap (docs/evidence.md sections 4
and 10, step 9).

One number per group, ``next``: the first cycle that neither a frame nor a gap covers. The agent keeps it to state it
in plans, start-up works out from it what was stored last, and the verifier holds what it reads against it. Pure; a
problem is a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agent.evidence.frames import cycles_of
from agent.evidence.timetable import clock_stepped, due_before
from agent.model import Data, GroupPlan, Plan

GroupKey = tuple[str, str]  # device id, group name
_OF_THE_RUN = ("boot_id", "version", "channel", "topic", "follows", "resumes", "volatile")  # alike in all its plans


@dataclass(slots=True)
class Tally:
    """What became of a group's cycles. ``gaps`` and ``silent`` (ns without messages, of an event-driven group) are by
    cause, ``quality`` counts the values that are not good by code.
    """

    present: int = 0
    missing: int = 0
    gaps: Counter[int] = field(default_factory=Counter)
    silent: Counter[int] = field(default_factory=Counter)
    quality: Counter[int] = field(default_factory=Counter)

    @property
    def expected(self) -> int:
        """Present, in gaps, and missing together."""
        return self.present + self.missing + self.gaps.total()


Lost = dict[GroupKey, int]
"""Cycles of groups that went with records that are not at hand."""


def group_key(plan: Plan, group: GroupPlan) -> GroupKey:
    """What a group is matched by between plans of different terms."""
    return plan.devices[group.device].id, group.name


class Coverage:
    """Where each group of the term in force stands; ``next[i]`` belongs to ``plan.groups[i]``.

    ``unsure``: indices of groups of which records are not at hand since they were seen last. What their next frame,
    gap or plan skips went with these records. ``torn``: the record before the next one is not at hand; it may have
    begun another term.
    """

    def __init__(self, plan: Plan, tally: Callable[[GroupKey], Tally] = lambda key: Tally()) -> None:
        """``tally`` gives the account of a group, to which ``add`` adds."""
        self._tally = tally
        self._begin(plan)

    def _begin(self, plan: Plan) -> None:
        self.plan = plan
        self.keys = tuple(group_key(plan, group) for group in plan.groups)
        self.next = [group.next for group in plan.groups]
        self.tallies = [self._tally(key) for key in self.keys]
        self.unsure: set[int] = set()
        self.torn = False

    def standing(self) -> dict[GroupKey, int]:
        """Each group's ``next``."""
        return dict(zip(self.keys, self.next, strict=True))

    def restated(self) -> Plan:
        """The plan in force with each group's ``next`` as it is now."""
        groups = (replace(group, next=n) for group, n in zip(self.plan.groups, self.next, strict=True))
        return replace(self.plan, groups=tuple(groups))

    def doubt(self) -> None:
        """Records are not at hand from here on."""
        self.unsure = set(range(len(self.next)))
        self.torn = True

    def repeat(self, plan: Plan) -> tuple[list[str], Lost]:
        """Hold a repeat of the plan in force against what was covered; goes on with the repeat's ``next``."""
        problems: list[str] = []
        lost: Lost = {}
        self.torn = False
        if replace(plan, groups=(), withdrawn=()) != replace(self.plan, groups=(), withdrawn=()) or [
            replace(group, next=0) for group in plan.groups
        ] != [replace(group, next=0) for group in self.plan.groups]:
            problems.append("a repeated plan differs from its term's first plan")
            self._begin(plan)
            return problems, lost
        for i, (key, mine, group) in enumerate(zip(self.keys, self.next, plan.groups, strict=True)):
            if i in self.unsure and mine < group.next:
                lost[key] = group.next - mine
            elif mine != group.next:
                problems.append(f"{'/'.join(key)}: the plan says next cycle {group.next}, the records say {mine}")
                self.tallies[i].missing += max(0, group.next - mine)
        self.plan = plan
        self.next = [group.next for group in plan.groups]
        self.unsure.clear()
        return problems, lost

    def change(self, plan: Plan) -> tuple[list[str], Lost]:
        """Close the term in force and go on with a new one of the same stream (docs/evidence.md, end of a term)."""
        problems = []
        changed = [name for name in _OF_THE_RUN if getattr(plan, name) != getattr(self.plan, name)]
        if changed:
            problems.append(f"the new term's plan differs in what a run never changes: {', '.join(changed)}")
        if plan.term <= self.plan.term or (plan.term != self.plan.term + 1 and not self.torn):
            problems.append(f"term {plan.term} follows term {self.plan.term}")
        new = {group_key(plan, group): group for group in plan.groups}
        hidden = plan.term != self.plan.term + 1  # terms in between: how they closed is not at hand
        lost = cycles_between(old=self.plan, old_next=self.standing(), new=plan) if hidden else {}
        for i, (key, group, mine) in enumerate(zip(self.keys, self.plan.groups, self.next, strict=True)):
            staying = new.get(key)
            if staying is not None and (staying.schedule is None) != (group.schedule is None):
                staying = None
            if group.schedule is None:
                ends, words = staying.next if staying else mine, "the new term begins at {0}, the records end at {1}"
            elif hidden:
                continue
            else:
                due = due_before(group.schedule, staying.schedule.anchor if staying else plan.opened[1])  # type: ignore[union-attr]
                ends, words = due, "the old term was closed at cycle {1}, {0} was due"
            if i in self.unsure and mine <= ends:
                lost[key] = ends - mine
                if self.torn and staying is not None and staying.schedule is not None:  # not the first plan of its term
                    lost[key] += staying.next - staying.schedule.first
            elif mine != ends:
                problems.append(f"{'/'.join(key)}: {words.format(ends, mine)}")
                self.tallies[i].missing += max(0, ends - mine)
        problems += [] if self.torn else opening_problems(plan)
        self._begin(plan)
        return problems, lost

    def add(self, data: Data) -> tuple[list[str], Lost]:
        """Account for a data record of the term in force: every group's frames and gaps must follow each other."""
        problems: list[str] = []
        lost: Lost = {}
        self.torn = False
        spans: dict[int, list[tuple[int, int, int | None]]] = {}
        for group, _, runs, codes in cycles_of(data.frames):
            spans.setdefault(group, []).extend([(first, last, None) for first, last in runs])
            if codes and group < len(self.tallies):
                self.tallies[group].quality.update(codes)
        for gap in data.gaps:
            if gap.first is not None and gap.last is not None:
                spans.setdefault(gap.group, []).append((gap.first, gap.last, gap.cause))
            elif gap.from_boot is not None and gap.to_boot is not None and gap.group < len(self.keys):
                if self.plan.groups[gap.group].schedule is not None:
                    problems.append(f"{'/'.join(self.keys[gap.group])}: a gap in time of a periodic group")
                self.tallies[gap.group].silent[gap.cause] += gap.to_boot - gap.from_boot
        for group, found in spans.items():
            if group >= len(self.next):
                problems.append(f"group {group} is not in the plan")
                continue
            key, tally = self.keys[group], self.tallies[group]
            for first, last, cause in sorted(found, key=_place) if len(found) > 1 else found:
                expected = self.next[group]
                if first < expected:
                    problems.append(f"{'/'.join(key)}: cycle {first} is covered twice")
                    first = expected
                elif first > expected and group in self.unsure:
                    lost[key] = first - expected
                elif first > expected:
                    problems.append(
                        f"{'/'.join(key)}: cycles {expected} to {first - 1} are neither present nor in a gap"
                    )
                    tally.missing += first - expected
                self.unsure.discard(group)
                count = last - first + 1
                if count <= 0:
                    continue
                if cause is None:
                    tally.present += count
                else:
                    tally.gaps[cause] += count
                self.next[group] = last + 1
        return problems, lost


def _place(span: tuple[int, int, int | None]) -> tuple[int, int]:
    return span[:2]


def opening_problems(plan: Plan) -> list[str]:
    """What is wrong with a plan as the first of its term: periodic groups begin at ``first``."""
    return [
        f"{'/'.join(group_key(plan, group))}: the term begins at cycle {group.schedule.first}, its plan at {group.next}"
        for group in plan.groups
        if group.schedule is not None and group.next != group.schedule.first
    ]


def cycles_between(*, old: Plan, old_next: dict[GroupKey, int], new: Plan) -> dict[GroupKey, int]:
    """How many cycles of each periodic group of ``old`` fall between its ``next`` and where the group goes on in
    ``new``.

    On one grid the difference of cycle numbers: within a term, and between terms of one boot unless the clock stepped.
    Else what fell due meanwhile, by boot time within one boot and by nominal time across boots (only as good as both
    clocks). A group that ``new`` does not have ends when ``new`` was opened.
    """
    found = {}
    going_on = {group_key(new, group): group for group in new.groups}
    same_boot = old.boot_id == new.boot_id
    for group in old.groups:
        key = group_key(old, group)
        if group.schedule is None or key not in old_next:
            continue
        schedule, begin, staying = group.schedule, old_next[key], going_on.get(key)
        if staying is not None and staying.schedule is not None:
            boot, wall = staying.schedule.due(staying.next), staying.schedule.nominal(staying.next)
            same_grid = (staying.schedule.period, staying.schedule.phase) == (schedule.period, schedule.phase)
            if same_grid and same_boot and not clock_stepped(schedule, wall=wall, boot=boot):
                found[key] = max(0, staying.next - begin)
                continue
        else:
            wall, boot = new.opened
        distance = boot - schedule.due(begin) if same_boot else wall - schedule.nominal(begin)
        found[key] = max(0, -(-distance // schedule.period))
    return found
