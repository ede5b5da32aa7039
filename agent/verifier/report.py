"""The verifier's account of what it read, by signer and channel: cycles by group and cause, how runs join, what is not
at hand, how good the clock was. Plain values; ``agent/rendering`` shows them.

It grows with channels and groups, not with records: of runs and holes the latest ``LISTED`` are kept one by one, the
others by number.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from agent.evidence.coverage import GroupKey, Tally
from agent.model import Sealed
from agent.verifier.verdict import Level, Outcome

LISTED = 256
_MOST_NEWS = 64  # kinds of news from newer versions


class HoleState(enum.StrEnum):
    """What is known of records that did not come in their turn."""

    OPEN = "open"
    FILLED = "filled"  # they came late
    ACCOUNTED = "accounted"  # a plan withdraws them
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Part:
    """Records ``first`` to ``last`` that have not come. ``before``: digest of the record before them; ``after``: prev
    of the one behind them; None: not at hand. ``merged``: some of them may have come.
    """

    first: int
    last: int
    before: bytes | None = None
    after: bytes | None = None
    merged: bool = False


@dataclass(slots=True)
class Hole:
    """Records ``first`` to ``last`` of a stream that did not come in their turn, and, as far as it is known, the cycles
    that went with those that have not come yet.

    ``cause`` is that of the plan that withdraws them. ``whole_run``: nothing of that run was at hand. ``unread``:
    what seems to have gone with it may have gone otherwise: of it or behind it a record could not be read.
    """

    stream: bytes
    first: int
    last: int
    state: HoleState = HoleState.OPEN
    cause: int | None = None
    parts: list[Part] = field(default_factory=list)
    cycles: dict[GroupKey, int] = field(default_factory=dict)
    whole_run: bool = False
    unread: bool = False

    @property
    def missing(self) -> int:
        """How many records have not come."""
        return sum(part.last - part.first + 1 for part in self.parts)


class Join(enum.StrEnum):
    """How a run joins the one before it (docs/evidence.md section 10, step 10)."""

    FIRST = "first"
    CONTINUOUS = "continuous"
    ROLLED_BACK = "rolled back"
    FORK = "fork"
    UNKNOWN = "unknown"
    BROKEN = "broken"
    VOLATILE = "volatile"
    MIDDLE = "seen from its middle on"


@dataclass(slots=True)
class Run:
    """One stream, and how it joins the one before it.

    ``cause`` and ``bridged``: why nothing was stored between the two, and how many cycles of each group that took;
    ``length_known``: their number is sure. ``lost``: records that the store forgot, of a run that was rolled back.
    """

    stream: bytes
    join: Join
    detail: str = ""
    cause: int | None = None
    length_known: bool = True
    lost: int = 0
    bridged: dict[GroupKey, int] = field(default_factory=dict)
    began: Sealed | None = None
    ended: Sealed | None = None
    stopped: str | None = None  # reason of a stop event with which it ended

    @property
    def joins(self) -> str:
        """The join in words: ``continuous``, ``rolled back 5``, ``unknown: ...``."""
        number = f" {self.lost}" if self.join is Join.ROLLED_BACK else ""
        return f"{self.join}{number}" + (f": {self.detail}" if self.detail else "")


@dataclass(slots=True)
class ChannelReport:
    """What was read of one channel of one signer. ``channel`` None: runs of which no plan was at hand.

    ``clock`` counts the records by the state of the agent's clock when they were sealed (``agent.model.ClockState``);
    ``error_us`` is the greatest error that it stated. ``events`` by code. ``overdue_ns``: for how long nothing was
    sealed although the plan says it should have been; None: it is not overdue, or was not asked for.
    """

    signer: str
    channel: str | None
    name: str | None = None  # of the signer, from the allow-list
    site: str | None = None
    topic: str | None = None
    records: int = 0
    frames: int = 0
    first: Sealed | None = None
    last: Sealed | None = None
    clock: Counter[int] = field(default_factory=Counter)
    error_us: int | None = None
    events: Counter[int] = field(default_factory=Counter)
    groups: dict[GroupKey, Tally] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    joins: Counter[str] = field(default_factory=Counter)  # of all runs, by ``Join``
    unlisted_holes: Counter[str] = field(default_factory=Counter)  # by ``HoleState``: those that are listed no more
    overdue_ns: int | None = None

    def tally(self, key: GroupKey) -> Tally:
        """The account of a group."""
        return self.groups.setdefault(key, Tally())

    def add_run(self, run: Run) -> None:
        """List a run."""
        self.runs.append(run)
        self.joins[run.join] += 1
        if len(self.runs) > LISTED:
            del self.runs[0]

    def rejoin(self, run: Run, join: Join, detail: str = "") -> None:
        """What was said of a run's join is known better now."""
        self.joins[run.join] -= 1
        self.joins[join] += 1
        run.join, run.detail = join, detail

    def cycles(self) -> tuple[int, int, int]:
        """(expected, present, in gaps) over all groups; what is neither is missing."""
        return _cycles(self.groups)


@dataclass(slots=True)
class Report:
    """The account so far; ``finish`` of the verifier makes it final."""

    records: int = 0  # judged, repeats and foreign ones not included
    frames: int = 0
    failed: int = 0  # records with at least one failed level, and holes that nothing accounts for
    repeats: int = 0
    late: int = 0  # came again too late to be compared with what was judged before: counted as neither
    foreign: int = 0
    before_plan: int = 0  # data whose plan is not at hand: judged up to continuity only
    planned: bool = False  # a plan was at hand, so that completeness could be judged
    channels: list[ChannelReport] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)  # by ``Level``
    unknowns: Counter[str] = field(default_factory=Counter)
    news: Counter[str] = field(default_factory=Counter)  # what a newer version of the format added

    def fail(self, level: Level) -> None:
        """Something failed that is not a record."""
        self.failed += 1
        self.failures[level] += 1

    def tell_news(self, news: tuple[str, ...]) -> None:
        """Count what a newer version of the format added."""
        for what in news:
            self.news[what if what in self.news or len(self.news) < _MOST_NEWS else "other"] += 1

    def told(self) -> list[ChannelReport]:
        """The channels of which there is anything to tell."""
        return [each for each in self.channels if each.channel is not None or each.records or each.holes or each.runs]

    @property
    def groups(self) -> dict[GroupKey, Tally]:
        """Each group's account, of all channels together."""
        found: dict[GroupKey, Tally] = {}
        for channel in self.channels:
            for key, tally in channel.groups.items():
                total = found.setdefault(key, Tally())
                total.present += tally.present
                total.missing += tally.missing
                total.gaps += tally.gaps
                total.silent += tally.silent
                total.quality += tally.quality
        return found

    @property
    def runs(self) -> list[Run]:
        """The runs that are listed, of all channels."""
        return [run for channel in self.channels for run in channel.runs]

    @property
    def holes(self) -> list[Hole]:
        """The holes that are listed, of all channels."""
        return [hole for channel in self.channels for hole in channel.holes]

    def sealed(self) -> tuple[int | None, int | None]:
        """Wall times, ns: when the earliest and the latest record at hand were sealed."""
        first = min((channel.first.wall for channel in self.channels if channel.first), default=None)
        last = max((channel.last.wall for channel in self.channels if channel.last), default=None)
        return first, last

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
        totals = [channel.cycles() for channel in self.channels]
        expected, present, in_gaps = (sum(each) for each in zip(*totals, strict=True)) if totals else (0, 0, 0)
        return expected, present, in_gaps


def _cycles(groups: dict[GroupKey, Tally]) -> tuple[int, int, int]:
    tallies = groups.values()
    return (
        sum(t.expected for t in tallies),
        sum(t.present for t in tallies),
        sum(t.gaps.total() for t in tallies),
    )
