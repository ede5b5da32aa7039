"""Whole histories: the records of one or several runs in the order in which they came, and what the report must be.

Made by the agent's own sealer on a fake clock. What is expected stands here, written by hand: it is not what a verifier
happened to say.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.evidence.record import Body
from agent.model import (
    Cause,
    ClockQuality,
    ClockState,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Point,
    Quality,
    ValueType,
    Withdrawn,
)
from tests.runs import DEVICE, FakeClock, Run, S, frame, group

STREAMS = [bytes([n]) * 16 for n in range(1, 9)]
BOOTS = [bytes([0xB0 + n]) * 16 for n in range(4)]
GOOD = ClockQuality(ClockState.SYNCHRONISED, 1000)
BATTERY = (Point("SoC", "%", ValueType.INTEGER), Point("Mode", None, ValueType.TEXT))


@dataclass(frozen=True)
class Group:
    """What a group's account must be; ``gaps`` by cause, ``silent`` in ns by cause, ``quality`` by code."""

    present: int
    missing: int = 0
    gaps: Mapping[str, int] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    quality: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """``joins``: how each run joins the one before, in order of their beginning at hand. ``holes``: [first, last, how
    many have not come, state]. ``levels`` are those that are not ok. ``late``: records that came too late to be
    compared. ``now``: the reader's time; ``overdue`` in ns.
    """

    name: str
    what: str
    sent: Sequence[bytes]
    groups: Mapping[str, Group]
    joins: Sequence[str] = ("first",)
    holes: Sequence[tuple[int, int, int, str]] = ()
    levels: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    repeats: int = 0
    late: int = 0
    foreign: int = 0
    now: int | None = None
    overdue: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The history as it stands in its file."""
        return {
            "name": self.name,
            "what": self.what,
            "complete": self.complete,
            "now": self.now,
            "levels": dict(self.levels),
            "joins": list(self.joins),
            "holes": [list(hole) for hole in self.holes],
            "groups": {
                name: {
                    "present": each.present,
                    "missing": each.missing,
                    "gaps": dict(each.gaps),
                    "silent_ns": dict(each.silent),
                    "quality": dict(each.quality),
                }
                for name, each in self.groups.items()
            },
            "repeats": self.repeats,
            "late": self.late,
            "foreign": self.foreign,
            "overdue_ns": self.overdue,
            "envelopes": [envelope.hex() for envelope in self.sent],
        }


class _Run(Run):
    """A run whose bodies are not packed (zlib's output differs from version to version) and whose stream is fixed."""

    def _sent(self, body: Any) -> bytes:
        if body.key == 8:
            body = Body(body.kind, 7, zlib.decompress(body.content))
        return super()._sent(body)


def _run(number: int, boot: int, *, after: Run | None = None, last: int | None = None, **options: Any) -> _Run:
    """Run ``number``, which begins ``boot`` s after the machine did; the store still holds ``last`` records of the one
    before.
    """
    store = after
    if after is not None and last is not None:
        store = _Run()
        store.sent, store.links = after.sent[:last], after.links[:last]
    run = _Run(after=store, clock=FakeClock(boot=boot * S, **options))
    run.sealer.stream = STREAMS[number]
    return run


def _polled(number: int, boot: int, cycles: int = 4, **options: Any) -> _Run:
    """A run with a group that is read every second, a record each; the first cycle is ``boot`` - 900."""
    run = _run(number, boot, **options)
    run.begin([group(boot - 900, anchor=boot * S)])
    for cycle in range(cycles):
        run.clock.now = (boot + cycle) * S
        run.data([frame(boot - 900 + cycle)])
    return run


def histories() -> list[History]:
    """All of them."""
    return [*_one_run(), *_terms(), *_late_and_lost(), *_several_runs(), *_two_agents()]


def _one_run() -> list[History]:
    gaps = _run(0, 1000)
    gaps.begin([group(100)])
    gaps.event(EventCode.START, "0.1.0", False)
    gaps.data([frame(100), frame(103)], [Gap(0, 101, 102, Cause.DEVICE_TIMEOUT, "no answer")])
    gaps.data([], [Gap(0, 104, 110, Cause.LINK_DOWN), Gap(0, 111, 111, Cause.OVERRUN)])
    gaps.plan()
    quality = _run(0, 1000)
    quality.begin([group(100)])
    codes = ((0, Quality.NOT_IMPLEMENTED), (1, Quality.SUSPECT))
    quality.data([Frame(0, 100, 1, 2, (None, 2304, 21.5), codes)])
    messages = _run(0, 1000)
    messages.begin([GroupPlan("state", 0, None, 0, BATTERY)])
    messages.clock.now += S
    messages.data(
        [Frame(0, 0, 500, None, (80, "on")), Frame(0, 2, 100, None, (81, "on"), ((0, Quality.OLD_DATA),))],
        [
            Gap(0, 1, 1, Cause.DECODE_ERROR, "topic site/battery, 3 bytes"),
            Gap(0, None, None, Cause.SOURCE_SILENT, None, 900 * S, 990 * S),
        ],
    )
    counted = _run(0, 1000)
    counted.begin([GroupPlan("state", 0, None, 5, BATTERY)])
    counted.data([Frame(0, 5, 500, None, (80, "on"))])
    hidden = _run(0, 1000)
    hidden.begin([group(100)])
    hidden.data([frame(100), frame(102)])
    twice = _run(0, 1000)
    twice.begin([group(100)])
    twice.data([frame(100), frame(101)], [Gap(0, 101, 102, Cause.OVERRUN)])
    plan = _polled(0, 1000, 2)
    assert plan.sealer.coverage is not None
    plan.sealer.coverage.next[0] = 105
    plan.plan()
    changed = _polled(0, 1000, 2)
    changed.sealer.facts = replace(changed.sealer.facts, site="site-2")
    assert changed.sealer.coverage is not None
    changed.sealer.coverage.plan = replace(changed.sealer.coverage.plan, site="site-2")
    changed.plan()
    joiner = _polled(0, 1000, 6)
    joiner.plan()
    joiner.data([frame(106)])
    stop = _polled(0, 1000, 2)
    stop.event(EventCode.STOP, "SIGTERM")
    alive, wall = _polled(0, 1000, 2), 1001 * S + FakeClock().offset
    failed = {"completeness": "failed"}
    return [
        History(
            "gaps",
            "each cycle is a frame or in a gap with its cause",
            gaps.sent,
            {"pv-1/ac": Group(2, gaps={"device_timeout": 2, "link_down": 7, "overrun": 1})},
        ),
        History(
            "qualities",
            "values that are not good are counted by code",
            quality.sent,
            {"pv-1/ac": Group(1, quality={"not_implemented": 1, "suspect": 1})},
        ),
        History(
            "messages",
            "cycles are counted from 0 in each stream; a gap in time never fails",
            messages.sent,
            {
                "pv-1/state": Group(
                    2, gaps={"decode_error": 1}, silent={"source_silent": 90 * S}, quality={"old_data": 1}
                )
            },
        ),
        History(
            "messages from 5 on",
            "the first plan of a stream counts them from 0",
            counted.sent,
            {"pv-1/state": Group(1)},
            levels=failed,
        ),
        History("a hidden cycle", "neither frame nor gap", hidden.sent, {"pv-1/ac": Group(2, 1)}, levels=failed),
        History(
            "a cycle twice",
            "a gap restates a covered cycle; the frame stands",
            twice.sent,
            {"pv-1/ac": Group(2, gaps={"overrun": 1})},
            levels=failed,
        ),
        History(
            "a plan that counts otherwise",
            "next is 105, the records end at 101: 102 to 104 are missing",
            plan.sent,
            {"pv-1/ac": Group(2, 3)},
            levels=failed,
        ),
        History(
            "a repeated plan that differs",
            "only next and withdrawn may",
            changed.sent,
            {"pv-1/ac": Group(2)},
            levels=failed,
        ),
        History(
            "a late joiner",
            "before the first plan at hand continuity only is judged",
            joiner.sent[3:],
            {"pv-1/ac": Group(1)},
            joins=["seen from its middle on"],
        ),
        History(
            "overdue",
            "nothing was sealed for longer than 5 minutes and the window",
            alive.sent,
            {"pv-1/ac": Group(2)},
            now=wall + 302 * S,
            overdue=302 * S,
        ),
        History(
            "not overdue yet", "for 5 minutes and the window", alive.sent, {"pv-1/ac": Group(2)}, now=wall + 301 * S
        ),
        History("stopped", "who stops in order is not overdue", stop.sent, {"pv-1/ac": Group(2)}, now=wall + 10**6 * S),
    ]


def _terms() -> list[History]:
    good = _polled(0, 1000, 2)
    good.clock.now = 1001 * S + S // 2
    good.begin([group(102, anchor=1002 * S)], [replace(DEVICE, serial="SN2")])
    good.data([frame(102)])
    early = _polled(0, 1000, 1)
    early.clock.now = 1005 * S
    early.begin([group(105, anchor=1005 * S)])
    step = _polled(0, 1000, 2)
    step.clock.now, step.clock.offset = 1004 * S, step.clock.offset + 3600 * S
    step.data([], [Gap(0, 102, 103, Cause.CLOCK_STEP)])
    step.begin([group(3704, anchor=1004 * S)])
    step.data([frame(3704)])
    jump = _polled(0, 1000, 2)
    jump.clock.now = 1002 * S
    jump.begin([group(102, anchor=1002 * S)])
    jump.begin([group(102, anchor=1002 * S)])
    return [
        History("a new term", "a device was exchanged", good.sent, {"pv-1/ac": Group(3)}),
        History(
            "a clock step",
            "one hour ahead: the old term is closed, cycle numbers jump",
            step.sent,
            {"pv-1/ac": Group(3, gaps={"clock_step": 2})},
        ),
        History(
            "a term that ends too early",
            "cycles 101 to 104 were due before the new anchor",
            early.sent,
            {"pv-1/ac": Group(1, 4)},
            levels={"completeness": "failed"},
        ),
        History(
            "a term is left out",
            "term 3 follows term 1: the plan of term 2 did not come",
            [*jump.sent[:3], jump.sent[4]],
            {"pv-1/ac": Group(2)},
            holes=[(4, 4, 1, "failed")],
            levels={"continuity": "failed", "completeness": "failed"},
        ),
    ]


def _late_and_lost() -> list[History]:
    run = _polled(0, 1000, 100)
    sent = run.sent
    withdrawn = _polled(0, 1000, 6)
    withdrawn.withdraw(3, 5, Cause.OVERFLOW)
    withdrawn.plan()
    eventful = _polled(0, 1000, 2)
    eventful.event(EventCode.STOP, "SIGTERM")
    eventful.plan()
    long = _polled(0, 1000, 300)
    both = {"continuity": "failed", "completeness": "failed"}
    return [
        History(
            "a hole",
            "two records never came; what lies behind is judged, its plan being the same",
            sent[:4] + sent[6:],
            {"pv-1/ac": Group(98, 2)},
            holes=[(5, 6, 2, "failed")],
            levels=both,
        ),
        History(
            "a hole without cycles",
            "an event never came; that is known only from the plan behind it, so completeness has failed, too",
            eventful.sent[:3] + eventful.sent[4:],
            {"pv-1/ac": Group(2)},
            holes=[(4, 4, 1, "failed")],
            levels=both,
        ),
        History(
            "a hole that may still be filled",
            "the reader does not say that the input is complete",
            sent[:4] + sent[6:],
            {"pv-1/ac": Group(98, 2)},
            holes=[(5, 6, 2, "unknown")],
            levels={"continuity": "unknown", "completeness": "unknown"},
            complete=False,
        ),
        History(
            "filled",
            "three records came after more than 64 others",
            sent[:4] + sent[7:] + [sent[6], sent[4], sent[5]],
            {"pv-1/ac": Group(100)},
            holes=[(5, 7, 0, "filled")],
        ),
        History(
            "filled in part",
            "one of three did not come",
            sent[:4] + sent[7:] + [sent[5], sent[6]],
            {"pv-1/ac": Group(99, 1)},
            holes=[(5, 7, 1, "failed")],
            levels=both,
        ),
        History(
            "withdrawn",
            "a later plan says that they may be missing",
            withdrawn.sent[:2] + withdrawn.sent[5:],
            {"pv-1/ac": Group(3, gaps={"overflow": 3})},
            holes=[(3, 5, 3, "accounted")],
        ),
        History(
            "repeats", "within the last 256 records of a stream", [*sent, *sent[:3]], {"pv-1/ac": Group(100)}, repeats=3
        ),
        History(
            "too late to be compared",
            "after more than 256 later records: counted as nothing",
            [*long.sent, *long.sent[:2]],
            {"pv-1/ac": Group(300)},
            late=2,
        ),
    ]


def _several_runs() -> list[History]:
    first = _polled(0, 1000)
    second = _polled(1, 1010, after=first)
    third = _polled(2, 1020, after=second)
    forgot = _polled(3, 1010, after=first, last=3)
    backup = _polled(4, 1030, after=first)
    new = _polled(5, 1010)
    broken = _polled(6, 1010, after=first)
    lying = _run(7, 1010, after=first)
    lying.sealer._resumes = (int(Cause.AGENT_DOWN), ())
    lying.begin([group(110, anchor=1010 * S)])
    dropped = _polled(2, 1020, after=second)
    dropped.sealer.withdraw([Withdrawn(STREAMS[1], 1, len(second.sent), Cause.OVERFLOW)])
    dropped.plan()
    other = _polled(0, 1000)
    other.links[-1] = other.links[-1]._replace(digest=bytes(32))
    broken = _polled(6, 1010, after=other)
    down = {"agent_down": 6}
    beheaded = _polled(1, 1010, after=first)
    beheaded.plan()
    both = {"continuity": "failed", "completeness": "failed"}
    return [
        History(
            "continuous",
            "what fell due between two runs is agent_down",
            first.sent + second.sent,
            {"pv-1/ac": Group(8, gaps=down)},
            joins=["first", "continuous"],
        ),
        History(
            "rolled back",
            "the store forgot two records that it had published; data wins over a gap",
            first.sent + forgot.sent,
            {"pv-1/ac": Group(8, gaps=down)},
            joins=["first", "rolled back 2"],
        ),
        History(
            "a restored backup",
            "the store forgot two whole runs",
            first.sent + second.sent + third.sent + backup.sent,
            {"pv-1/ac": Group(16, gaps={"agent_down": 18})},
            joins=["first", "continuous", "continuous", "rolled back 10"],
        ),
        History(
            "a run is missing",
            "no record of it came",
            first.sent + third.sent,
            {"pv-1/ac": Group(8, 16)},
            joins=["first", "unknown: the run before it is not at hand"],
            holes=[(1, 5, 5, "failed")],
            levels={"continuity": "failed", "completeness": "failed"},
        ),
        History(
            "the end of a run is missing",
            "the run that follows it says how far it went, and resumes where it ended",
            first.sent[:3] + second.sent,
            {"pv-1/ac": Group(6, 2, gaps=down)},
            joins=["first", "continuous"],
            holes=[(4, 5, 2, "failed")],
            levels=both,
        ),
        History(
            "the beginning of a run is missing",
            "all from the run before it to its first plan at hand went with the hole",
            first.sent + beheaded.sent[2:],
            {"pv-1/ac": Group(4, 10)},
            joins=["first", "seen from its middle on"],
            holes=[(1, 2, 2, "failed")],
            levels=both,
        ),
        History(
            "the first run at hand follows another",
            "that is not at hand, nothing fails",
            second.sent + third.sent,
            {"pv-1/ac": Group(8, gaps=down)},
            joins=["unknown: the run before it is not at hand", "continuous"],
        ),
        History(
            "the second run first",
            "it waits for the run that it follows",
            second.sent + first.sent,
            {"pv-1/ac": Group(8, gaps=down)},
            joins=["first", "continuous"],
        ),
        History(
            "a run was dropped",
            "a later plan withdraws all of it",
            first.sent + dropped.sent,
            {"pv-1/ac": Group(8, gaps={"overflow": 16})},
            joins=["first", "unknown: the run before it is not at hand"],
            holes=[(1, 5, 5, "accounted")],
        ),
        History(
            "a new outbox",
            "it follows none, though there was one",
            first.sent + new.sent,
            {"pv-1/ac": Group(8)},
            joins=["first", "unknown: a new outbox, it follows none"],
            levels={"continuity": "unknown"},
        ),
        History(
            "broken",
            "prev at seq 1 is not the digest of the record that follows names",
            first.sent + broken.sent,
            {"pv-1/ac": Group(8, gaps=down)},
            joins=["first", "broken"],
            levels={"continuity": "failed"},
        ),
        History(
            "resumes says something else",
            "it names no cycle of the group",
            first.sent + lying.sent,
            {"pv-1/ac": Group(4, gaps=down)},
            joins=["first", "continuous"],
            levels={"completeness": "failed"},
        ),
    ]


def _two_agents() -> list[History]:
    first = _polled(0, 1000)
    one, clone = _polled(1, 1010, after=first), _polled(2, 1012, after=first)
    words = f"fork: at the same time as run {STREAMS[1].hex()[:8]}: two agents use this key"
    parts: list[_Run] = []
    for number, (boot_id, begin) in enumerate(zip(BOOTS, (1000, 2000, 2005), strict=False)):
        run = _run(3 + number, 5, after=parts[0] if parts else None, offset=begin * S)
        run.sealer.facts = replace(run.sealer.facts, boot_id=boot_id)
        run.clock.good = GOOD
        run.begin([group(begin + 5, anchor=5 * S)])
        for cycle in range(10):
            run.clock.now = (5 + cycle) * S
            run.data([frame(begin + 5 + cycle)])
        parts.append(run)
    parent, left, right = parts
    across = f"fork: at the same time as run {STREAMS[4].hex()[:8]}: two agents use this key"
    memory = _run(6, 1005)
    begin_term = memory.sealer.begin_term

    def volatile(**arguments: Any) -> None:
        begin_term(**arguments)
        assert memory.sealer.coverage is not None
        memory.sealer.coverage.plan = replace(memory.sealer.coverage.plan, volatile=True)

    memory.sealer.begin_term = volatile  # type: ignore[method-assign]
    memory.begin([group(105, anchor=1005 * S)])
    memory.data([frame(105), frame(106)])
    return [
        History(
            "fork",
            "two runs follow one, in the same boot at the same time",
            first.sent + one.sent + clone.sent,
            {"pv-1/ac": Group(12, gaps={"agent_down": 6})},
            joins=["first", "continuous", words],
            levels={"continuity": "failed"},
        ),
        History(
            "fork across boots",
            "told by clocks that were synchronised, to 1 ms",
            parent.sent + left.sent + right.sent,
            {"pv-1/ac": Group(30, gaps={"agent_down": 990})},
            joins=["first", "continuous", across],
            levels={"continuity": "failed"},
        ),
        History(
            "kept in memory",
            "a volatile run is neither parent nor child; what it covers is in no gap",
            first.sent + memory.sent + _polled(1, 1010, after=first).sent,
            {"pv-1/ac": Group(10, gaps={"agent_down": 4})},
            joins=["first", "volatile", "continuous"],
        ),
    ]
