"""The verifier's report in words and as plain JSON values (docs/consuming.md). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from agent.evidence.coverage import GroupKey, Tally
from agent.model import ClockState, Sealed
from agent.printable import printable
from agent.rendering.words import cause_name, event_name, moment, quality_name
from agent.verifier import ChannelReport, Hole, HoleState, Join, Level, Outcome, Report, Run

_WORST_LAST = (Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED)
CLOCKS = {
    ClockState.SYNCHRONISED: "synchronised",
    ClockState.NOT_SYNCHRONISED: "not synchronised",
    ClockState.UNKNOWN: "of unknown state",
}


# ---- words ------------------------------------------------------------------------------------------------------


def summary(report: Report) -> str:
    """One line: what was verified and how each level came out."""
    expected, present, in_gaps = report.cycles()
    signature = max(
        (report.outcome(level) for level in (Level.STRUCTURE, Level.SIGNATURE, Level.IDENTITY)), key=_WORST_LAST.index
    )
    return (
        f"verified {report.records} records, {report.frames} frames, {report.failed} failed: signature {signature}, "
        f"continuity {report.outcome(Level.CONTINUITY)}, completeness {report.outcome(Level.COMPLETENESS)} "
        f"({present} of {expected} cycles, {in_gaps} in gaps)"
    )


def lines(report: Report) -> list[str]:
    """The account for people; the summary comes last."""
    found: list[str] = []
    for channel in report.told():
        found += _channel(channel)
    if report.foreign:
        found.append(f"{report.foreign} records of other signers, not judged")
    if report.before_plan:
        found.append(f"{report.before_plan} records whose plan is not at hand, judged up to continuity")
    if report.late:
        found.append(f"{report.late} records came again too late to be compared with what was judged")
    found += [f"from a newer version: {what} ({count} times)" for what, count in sorted(report.news.items())]
    return [*found, summary(report)]


def _channel(channel: ChannelReport) -> Iterator[str]:
    if channel.channel is not None:
        who = f"{printable(channel.name)} ({channel.signer})" if channel.name else channel.signer
        yield printable(f"channel {channel.channel} of site {channel.site}, signed by ") + who
        if channel.first is not None and channel.last is not None:
            yield f"  sealed {time_range(channel.first, channel.last)}, clock {clock_quality(channel)}"
    for key, tally in sorted(channel.groups.items()):
        yield from _group(key, tally)
    rest = channel.joins.copy()
    for run in channel.runs:
        rest[run.join] -= 1
        yield f"  {run_words(run)}"
    for join, count in sorted((+rest).items()):
        yield f"  {count} earlier runs: {join}"
    for hole in channel.holes:
        yield f"  {hole_words(hole)}"
    for state, count in sorted(channel.unlisted_holes.items()):
        yield f"  {count} further ranges of missing records: {state}"
    if channel.overdue_ns is not None:
        yield f"  OVERDUE: nothing was sealed for {duration(channel.overdue_ns)}"


def _group(key: GroupKey, tally: Tally) -> Iterator[str]:
    name = printable("/".join(key))
    missing = f", {tally.missing} MISSING" if tally.missing else ""
    yield f"  {name}: {tally.present} of {tally.expected} cycles present, {causes(tally.gaps)}{missing}"
    if tally.silent:
        spans = ", ".join(f"{duration(ns)} {cause_name(cause)}" for cause, ns in sorted(tally.silent.items()))
        yield f"  {name}: no messages during {spans}"
    if tally.quality:
        codes = ", ".join(f"{n} {quality_name(code)}" for code, n in sorted(tally.quality.items()))
        yield f"  {name}: values that are not good: {codes}"


def causes(gaps: Counter[int]) -> str:
    """How many cycles are in gaps, by cause."""
    return ", ".join(f"{n} {cause_name(cause)}" for cause, n in sorted((+gaps).items())) or "none in gaps"


def time_range(first: Sealed, last: Sealed) -> str:
    """From when to when."""
    return f"{moment(first.wall)} to {moment(last.wall)}"


def clock_quality(channel: ChannelReport) -> str:
    """How good the agent's clock was, over all records: the state, or how many records had which."""
    total, known = channel.clock.total(), +channel.clock
    error = f", off by at most {channel.error_us / 1000:.3g} ms" if channel.error_us is not None else ""
    if len(known) == 1:
        return _clock(next(iter(known))) + error
    return ", ".join(f"{_clock(state)} in {n} of {total} records" for state, n in sorted(known.items())) + error


def _clock(state: int) -> str:
    return CLOCKS[ClockState(state)]


def run_words(run: Run) -> str:
    """A run and how it joins the one before it."""
    cause = f", {cause_name(run.cause)} before it" if run.cause is not None and run.join is not Join.FORK else ""
    stopped = f", stopped ({printable(run.stopped)})" if run.stopped is not None else ""
    length = "" if run.length_known else ", length unknown"
    return f"run {run.stream.hex()[:8]}: {run.joins}{cause}{length}{stopped}"


def hole_words(hole: Hole) -> str:
    """Records that did not come in their turn, and what came of them."""
    what = f"records {hole.first} to {hole.last} of run {hole.stream.hex()[:8]}"
    if hole.state is HoleState.FILLED:
        return f"{what} came late: {hole.state}"
    cause = f" ({cause_name(hole.cause)})" if hole.cause is not None else ""
    some = f"{hole.missing} of " if hole.missing < hole.last - hole.first + 1 else ""
    return f"{some}{what} missing: {hole.state}{cause}"


def duration(ns: int) -> str:
    """A time in the largest units that say it."""
    seconds = ns / 1e9
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


# ---- JSON -------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The account as plain JSON values."""
    return {
        "records": report.records,
        "frames": report.frames,
        "failed": report.failed,
        "repeats": report.repeats,
        "late": report.late,
        "foreign": report.foreign,
        "before_plan": report.before_plan,
        **_cycles(report.cycles()),
        "sealed": list(report.sealed()),
        "levels": {str(level): str(report.outcome(level)) for level in Level},
        "channels": [_channel_json(channel) for channel in report.told()],
        "unknown": dict(report.news),
    }


def _cycles(cycles: tuple[int, int, int]) -> dict[str, int]:
    expected, present, in_gaps = cycles
    return {
        "cycles_expected": expected,
        "cycles_present": present,
        "cycles_in_gaps": in_gaps,
        "cycles_missing": expected - present - in_gaps,
    }


def _channel_json(channel: ChannelReport) -> dict[str, Any]:
    return {
        "signer": channel.signer,
        "name": channel.name,
        "site": channel.site,
        "channel": channel.channel,
        "topic": channel.topic,
        "records": channel.records,
        "frames": channel.frames,
        **_cycles(channel.cycles()),
        "sealed": [channel.first and channel.first.wall, channel.last and channel.last.wall],
        "clock": {ClockState(state).name.lower(): channel.clock[state] for state in ClockState},
        "clock_error_us": channel.error_us,
        "overdue_ns": channel.overdue_ns,
        "events": {event_name(code): n for code, n in sorted(channel.events.items())},
        "groups": [_group_json(key, tally) for key, tally in sorted(channel.groups.items())],
        "runs": [_run_json(run) for run in channel.runs],
        "joins": {str(join): channel.joins[join] for join in Join if channel.joins[join]},
        "holes": [_hole_json(hole) for hole in channel.holes],
        "unlisted_holes": {str(state): n for state, n in sorted(channel.unlisted_holes.items())},
    }


def _group_json(key: GroupKey, tally: Tally) -> dict[str, Any]:
    return {
        "device": key[0],
        "group": key[1],
        "expected": tally.expected,
        "present": tally.present,
        "missing": tally.missing,
        "gaps": {cause_name(cause): n for cause, n in sorted((+tally.gaps).items())},
        "silent_ns": {cause_name(cause): ns for cause, ns in sorted(tally.silent.items())},
        "quality": {quality_name(code): n for code, n in sorted(tally.quality.items())},
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "stream": run.stream.hex(),
        "joins": run.joins,
        "cause": None if run.cause is None else cause_name(run.cause),
        "length_known": run.length_known,
        "sealed": [run.began and run.began.wall, run.ended and run.ended.wall],
        "stopped": run.stopped,
    }


def _hole_json(hole: Hole) -> dict[str, Any]:
    return {
        "stream": hole.stream.hex(),
        "first": hole.first,
        "last": hole.last,
        "missing": hole.missing,
        "state": str(hole.state),
        "cause": None if hole.cause is None else cause_name(hole.cause),
    }
