"""Coverage: which cycles of a stream are accounted for, frame by frame and gap by gap (docs/evidence.md sections 4
and 6).

One number per group, ``next``: the first cycle that neither a frame nor a gap covers. The agent keeps it to state it
in plans, start-up works out from it what was stored last, and the verifier holds what it reads against it. Pure; a
problem is a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.evidence.timetable import clock_stepped, due_before
from agent.model import Data, Frame, GroupPlan, Plan

GroupKey = tuple[str, str]  # device id, group name
_OF_THE_RUN = ("boot_id", "version", "channel", "topic", "follows", "resumes", "volatile")  # alike in all its plans


@dataclass(frozen=True, slots=True)
class Added:
    """What a data record added to a group: frames, gap cycles by cause, cycles that nothing accounts for, and, of
    event-driven groups, ns without messages by cause.
    """

    frames: Counter[GroupKey]
    gaps: dict[GroupKey, Counter[int]]
    missing: Counter[GroupKey]
    silent: dict[GroupKey, Counter[int]]


def group_key(plan: Plan, group: GroupPlan) -> GroupKey:
    """What a group is matched by between plans of different terms."""
    return plan.devices[group.device].id, group.name


class Coverage:
    """Where each group of the term in force stands; ``next[i]`` belongs to ``plan.groups[i]``."""

    def __init__(self, plan: Plan) -> None:
        self._begin(plan)

    def _begin(self, plan: Plan) -> None:
        self.plan = plan
        self.keys = tuple(group_key(plan, group) for group in plan.groups)
        self.next = [group.next for group in plan.groups]

    def standing(self) -> dict[GroupKey, int]:
        """Each group's ``next``."""
        return dict(zip(self.keys, self.next, strict=True))

    def restated(self) -> Plan:
        """The plan in force with each group's ``next`` as it is now."""
        groups = (replace(group, next=n) for group, n in zip(self.plan.groups, self.next, strict=True))
        return replace(self.plan, groups=tuple(groups))

    def repeat(self, plan: Plan) -> list[str]:
        """Hold a repeat of the plan in force against what was covered; goes on with the repeat's ``next``."""
        problems = []
        if replace(plan, groups=(), withdrawn=()) != replace(self.plan, groups=(), withdrawn=()) or [
            replace(group, next=0) for group in plan.groups
        ] != [replace(group, next=0) for group in self.plan.groups]:
            problems.append("a repeated plan differs from its term's first plan")
            self.keys = tuple(group_key(plan, group) for group in plan.groups)
        else:
            for key, mine, group in zip(self.keys, self.next, plan.groups, strict=True):
                if mine != group.next:
                    problems.append(f"{'/'.join(key)}: the plan says next cycle {group.next}, the records say {mine}")
        self.plan = plan
        self.next = [group.next for group in plan.groups]
        return problems

    def change(self, plan: Plan) -> list[str]:
        """Close the term in force and go on with a new one of the same stream (docs/evidence.md, end of a term)."""
        problems = []
        changed = [name for name in _OF_THE_RUN if getattr(plan, name) != getattr(self.plan, name)]
        if changed:
            problems.append(f"the new term's plan differs in what a run never changes: {', '.join(changed)}")
        if plan.term != self.plan.term + 1:
            problems.append(f"term {plan.term} follows term {self.plan.term}")
        new = {group_key(plan, group): group for group in plan.groups}
        for key, group, mine in zip(self.keys, self.plan.groups, self.next, strict=True):
            staying = new.get(key)
            if group.schedule is None:
                if staying is not None and staying.schedule is None and staying.next != mine:
                    problems.append(
                        f"{'/'.join(key)}: the new term begins at {staying.next}, the records end at {mine}"
                    )
                continue
            ends = staying.schedule.anchor if staying is not None and staying.schedule is not None else plan.opened[1]
            due = due_before(group.schedule, ends)
            if mine != due:
                problems.append(f"{'/'.join(key)}: the old term was closed at cycle {mine}, {due} was due")
        problems += opening_problems(plan)
        self._begin(plan)
        return problems

    def add(self, data: Data) -> tuple[list[str], Added]:
        """Account for a data record of the term in force: every group's frames and gaps must follow each other."""
        problems: list[str] = []
        added = Added(Counter(), {}, Counter(), {})
        spans: dict[int, list[tuple[int, int, int | None]]] = {}
        _spans_of_frames(data.frames, spans)
        for gap in data.gaps:
            if gap.first is not None and gap.last is not None:
                spans.setdefault(gap.group, []).append((gap.first, gap.last, gap.cause))
            elif gap.from_boot is not None and gap.to_boot is not None and gap.group < len(self.keys):
                if self.plan.groups[gap.group].schedule is not None:
                    problems.append(f"{'/'.join(self.keys[gap.group])}: a gap in time of a periodic group")
                silent = added.silent.setdefault(self.keys[gap.group], Counter())
                silent[gap.cause] += gap.to_boot - gap.from_boot
        for group, found in spans.items():
            if group >= len(self.next):
                problems.append(f"group {group} is not in the plan")
                continue
            key = self.keys[group]
            for first, last, cause in sorted(found, key=lambda span: span[:2]):
                expected = self.next[group]
                if first < expected:
                    problems.append(f"{'/'.join(key)}: cycle {first} is covered twice")
                    first = expected
                elif first > expected:
                    problems.append(
                        f"{'/'.join(key)}: cycles {expected} to {first - 1} are neither present nor in a gap"
                    )
                    added.missing[key] += first - expected
                count = last - first + 1
                if count <= 0:
                    continue
                if cause is None:
                    added.frames[key] += count
                else:
                    added.gaps.setdefault(key, Counter())[cause] += count
                self.next[group] = last + 1
        return problems, added


def opening_problems(plan: Plan) -> list[str]:
    """What is wrong with a plan as the first of its term: periodic groups begin at ``first``."""
    return [
        f"{'/'.join(group_key(plan, group))}: the term begins at cycle {group.schedule.first}, its plan at {group.next}"
        for group in plan.groups
        if group.schedule is not None and group.next != group.schedule.first
    ]


def _spans_of_frames(frames: Iterable[Frame], spans: dict[int, list[tuple[int, int, int | None]]]) -> None:
    """Runs of consecutive cycles, per group, as (first, last, None)."""
    run: list[int] | None = None
    for frame in frames:
        if run is not None and frame.group == run[0] and frame.cycle == run[2] + 1:
            run[2] = frame.cycle
        else:
            if run is not None:
                spans.setdefault(run[0], []).append((run[1], run[2], None))
            run = [frame.group, frame.cycle, frame.cycle]
    if run is not None:
        spans.setdefault(run[0], []).append((run[1], run[2], None))


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
