"""The oracle: what the simulators served, what the consumer verified, what gaps state; and whether the three agree.

It is told nothing by the agent: it reads the simulators' journals (what was served or published, and when) and the JSON
Lines of ``edge-agent tail`` (what a consumer got), decodes on its own and counts cycles on its own. It finds

- a value that differs from the registers served during its acquisition (also one from another poll),
- a cycle that is neither present nor in a stated gap, or is there twice; a run or term that does not join the one
  before,
- a request that a site answered for a group and that no frame, gap or statement of a later run accounts for,
- a message that a broker took and that no frame or gap accounts for (testbed/oracle_events.py),
- a record number that is missing and not withdrawn, and every record that failed verification.

Frames of a killed run that were served and not yet sealed are accounted for by the ``resumes`` of the run that
follows. What a device is asked before it is polled (SunSpec discovery) belongs to no group and is not judged. Evidence
ends where the last run's does; if that run was stopped in order, at most one acquisition per group was under way.

It judges within one boot of the machine; a site must have no other reader than the agent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.account import Account
from testbed.oracle_events import EventGroup
from testbed.published import Topic
from testbed.served import Footprint, Json, Unit
from testbed.timeline import Timeline

GroupKey = tuple[str, str]  # device id, group name
_JITTER = 1_000_000  # ns: a term that goes on with the grid before it may begin this much before it was opened


class Oracle:
    """Holds a consumer's records against what was served; ``devices``: what stands behind each device id."""

    def __init__(self, devices: Mapping[str, Unit | Topic]) -> None:
        self._units = {device: what for device, what in devices.items() if isinstance(what, Unit)}
        self._topics = {device: what for device, what in devices.items() if isinstance(what, Topic)}

    def judge(self, lines: Iterable[Json], *, ended: bool = True) -> Account:
        """``lines``: what ``tail --jsonl`` printed, of one or several channels. ``ended``: the last run was stopped in
        order.

        Raises ValueError for what it cannot judge.
        """
        account = Account()
        streams: dict[str, dict[int, Json]] = {}
        for line in lines:
            if "verdict" not in line:
                continue
            if line["verdict"] == "repeat":
                account.repeats += 1
                continue
            account.records += 1
            if line["verdict"] != "ok" or "kind" not in line:
                account.failed += 1
                account.problem(f"{line.get('id', 'a record')}: {line['verdict']}: {'; '.join(line['findings'])}")
            elif streams.setdefault(line["stream"], {}).setdefault(line["seq"], line) is not line:
                account.doubled += 1
                account.problem(f"{line['id']}: handed over twice")
        plans = [line["plan"] for records in streams.values() for line in records.values() if line["kind"] == "plan"]
        if len({plan["boot_id"] for plan in plans}) > 1:
            raise ValueError("the runs are of several boots of the machine; judge them boot by boot")
        unknown = {
            group["device"]
            for plan in plans
            for group in plan["groups"]
            if group["device"] not in (self._units if group["schedule"] else self._topics)
        }
        if unknown:
            raise ValueError(f"it is not said what stands behind {', '.join(sorted(unknown))}")
        channels = [
            _Channel(runs, account=account, units=self._units, topics=self._topics)
            for runs in _by_channel(streams, account).values()
        ]
        for channel in channels:
            channel.judge(ended=ended)
        for channel in channels:
            for lost in channel.lost(channels):
                account.reads_lost += 1
                account.problem(lost, count=account.reads_lost)
        account.cycles_expected = account.cycles_present + account.cycles_in_gaps + account.cycles_missing
        return account


def _by_channel(streams: Mapping[str, dict[int, Json]], account: Account) -> dict[str, list[list[Json]]]:
    """The runs of each channel in order of time, each with its records in order."""
    channels: dict[str, list[list[Json]]] = {}
    for stream, records in streams.items():
        channel = next((line["plan"]["channel"] for line in records.values() if line["kind"] == "plan"), None)
        if channel is None:
            account.problem(f"run {stream[:8]}: no plan of it is at hand")
        else:
            channels.setdefault(channel, []).append([records[seq] for seq in sorted(records)])
    for runs in channels.values():
        runs.sort(key=lambda run: run[0]["sealed"]["boot"])
    return channels


@dataclass(slots=True)
class _Group:
    """A group in the term in force: cycle n is due at ``anchor`` + (n - ``first``) x ``period``. ``next``: the first
    that is not accounted for.
    """

    period: int
    phase: int
    first: int
    anchor: int
    next: int
    exponents: Mapping[str, int]

    @classmethod
    def of(cls, group: Json) -> _Group:
        """As a plan describes it."""
        s = group["schedule"]
        exponents = {p["name"]: p["exponent"] for p in group["points"]}
        return cls(s["period"], s["phase"], s["first"], s["anchor"], group["next"], exponents)

    def due(self, cycle: int) -> int:
        return self.anchor + (cycle - self.first) * self.period

    def fall_due(self, begin: int, end: int, following: _Group | None) -> int:
        """How many cycles fall due from ``begin``, where one does, to before ``end``, where one of ``following`` does.

        If that has the same marks and the clocks drifted only (docs/evidence.md, section 4, says when they stepped), it
        is one grid.
        """
        if following is not None and (self.period, self.phase) == (following.period, following.phase):
            shift = (following.first - self.first) * self.period - (following.anchor - self.anchor)
            if abs(shift) <= min(max(self.period // 20, 5_000_000), 1_000_000_000):
                return max(0, round((end - begin) / self.period))
        return max(0, -(-(end - begin) // self.period))

    def due_before(self, boot: int) -> int:
        """The first cycle, from ``first`` on, that is not due before ``boot``."""
        return self.first + max(0, -(-(boot - self.anchor) // self.period))


class _Channel:
    """The runs of one channel."""

    def __init__(
        self,
        runs: Sequence[Sequence[Json]],
        *,
        account: Account,
        units: Mapping[str, Unit],
        topics: Mapping[str, Topic],
    ) -> None:
        self._runs = runs
        self._account = account
        self._units = units
        self._topics = topics
        self._withdrawn: dict[str, list[tuple[int, int, str]]] = {}
        for line in (line for run in runs for line in run if line["kind"] == "plan"):
            for stream, first, last, cause in line["plan"]["withdrawn"]:
                self._withdrawn.setdefault(stream, []).append((first, last, cause))
        self._groups: dict[GroupKey, _Group] = {}
        self._events: dict[GroupKey, EventGroup] = {}  # all that there ever were
        self._term = 0
        self._timelines: dict[GroupKey, Timeline] = {}
        self._footprints: dict[GroupKey, Footprint] = {}  # of all points that a group ever had
        self._covered: Counter[GroupKey] = Counter()  # cycles, by runs in memory since the last one that was stored
        self._hole = False  # behind one, up to the next plan, nobody knows where the groups stand
        self._ended = False

    def judge(self, *, ended: bool) -> None:
        """Account for all cycles and values."""
        before: Json | None = None
        for run in self._runs:
            self._account.runs += 1
            if any(record["kind"] == "plan" and record["plan"].get("volatile") for record in run):
                self._aside(run)
                continue
            self._run(run, before)
            before = run[-1]
        stopped = before is not None and before.get("event", {}).get("code") == "stop"
        if ended and before is not None and not stopped:
            self._account.problem(f"{before['id']}: the last run's last record does not say that it stopped")
        self._ended = stopped and not self._hole
        for key, group in self._groups.items():
            self._timelines[key].until = group.due(group.next)
        for events in self._events.values():
            events.conclude()

    # ---- runs and terms -------------------------------------------------------------------------------------

    def _run(self, run: Sequence[Json], before: Json | None) -> None:
        begun, cause, expected = False, None, 1
        for record in run:
            if record["seq"] != expected:
                self._hole, cause = True, self._missing(record["stream"], expected, record["seq"] - 1)
            expected = record["seq"] + 1
            if record["kind"] == "plan":
                if not begun:
                    self._join(record, before)
                elif self._hole:
                    self._skip(record, cause)
                    for group, events in self._event_driven(record):
                        events.behind_a_hole(record, group)
                else:
                    self._plan(record)
                begun, self._hole = True, False
            elif record["kind"] == "data" and not self._hole:
                if begun:
                    self._data(record)
                else:
                    self._account.problem(f"{record['id']}: data before the run's plan")
            for events in self._events.values():
                events.reached(record)

    def _aside(self, run: Sequence[Json]) -> None:
        """A run that was kept in memory while the disk failed: it joins no other. What it covers is in no gap of the
        stored runs around it.
        """
        stored = self._groups, self._term, self._timelines, self._footprints, self._hole
        self._groups, self._term, self._timelines, self._footprints, self._hole = {}, 0, {}, {}, False
        plan = run[0].get("plan", {})
        if plan.get("follows") or plan.get("resumes"):
            self._account.problem(f"{run[0]['id']}: a run in memory follows none")
        self._run(run, None)
        for record in (record for record in run if record["kind"] == "data"):
            self._covered.update((f["device"], f["group"]) for f in record["frames"])
            for gap in record["gaps"]:
                self._covered[_key(gap)] += 0 if gap["from"] is None else gap["to"] - gap["from"] + 1
        self._groups, self._term, self._timelines, self._footprints, self._hole = stored

    def _missing(self, stream: str, first: int, last: int) -> str | None:
        """Note records that are not there; returns the cause that was stated, None if they are not all withdrawn."""
        entries = [entry for entry in self._withdrawn.get(stream, []) if entry[0] <= last and entry[1] >= first]
        lost = set(range(first, last + 1))
        for low, high, _ in entries:
            lost.difference_update(range(low, high + 1))
        self._account.records_withdrawn += last - first + 1 - len(lost)
        if lost:
            self._account.records_missing += len(lost)
            text = f"records {min(lost)} to {max(lost)} of run {stream[:8]} are missing and not withdrawn"
            self._account.problem(text)
            return None
        return entries[0][2]

    def _join(self, record: Json, before: Json | None) -> None:
        """The first plan of a run at hand: from where the run before ended to its beginning nothing was stored."""
        account, plan, place = self._account, record["plan"], record["id"]
        follows, resumes = plan["follows"], plan["resumes"] or {"cause": None, "groups": []}
        cause: str | None = resumes["cause"]
        if follows is None:
            cause = None
            if before is not None:
                account.problem(f"{place}: begins a new outbox; how the run before it ended is stated nowhere")
        elif before is None or follows[0] != before["stream"]:
            self._hole, cause = True, cause if self._missing(follows[0], 1, follows[1]) else None
        elif follows[1] < before["seq"]:
            account.problem(f"{place}: follows record {follows[1]} of a run that went on to {before['seq']}")
        elif follows[1] > before["seq"]:
            self._hole, cause = True, cause if self._missing(follows[0], before["seq"] + 1, follows[1]) else None
        stated = {(device, group): (term, cycle) for device, group, term, cycle in resumes["groups"]}
        for key, group in self._groups.items():
            if follows is not None and not self._hole and stated.get(key) != (self._term, group.next):
                said = "cycle {1} of term {0}".format(*stated[key]) if key in stated else "nothing"
                account.problem(
                    f"{place}: {_name(key)} ended at {group.next} of term {self._term}, resumes says {said}"
                )
        if record["seq"] == 1:
            self._opens(record)
        for described, events in self._event_driven(record):
            events.begin(record, described, hole=self._hole)
        self._skip(record, cause)

    def _skip(self, record: Json, cause: str | None) -> None:
        """Go on at a plan. What lies between is not stored: stated with its cause, or missing."""
        new = _groups(record["plan"])
        for key, group in self._groups.items():
            begin = group.due(group.next)
            until = new[key].due(new[key].next) if key in new else record["plan"]["opened"][1]
            cycles = max(0, group.fall_due(begin, until, new.get(key)) - self._covered.pop(key, 0))
            if cause is None:
                self._account.cycles_missing += cycles
            else:
                self._account.gap(cause, cycles)
                self._timelines[key].gap(begin, until)
        self._adopt(record["plan"], new)

    def _plan(self, record: Json) -> None:
        """A repeat of the plan in force, or the first of the next term, which closes the old one."""
        plan, new = record["plan"], _groups(record["plan"])
        for described, events in self._event_driven(record):
            events.plan(record, described)
        if plan["term"] == self._term:
            for key in sorted(key for key in new | self._groups if new.get(key) != self._groups.get(key)):
                was, said = self._groups.get(key), new.get(key)
                self._account.problem(f"{record['id']}: {_name(key)} stands at {was}, the repeated plan says {said}")
            self._adopt(plan, new)
            return
        for key, group in self._groups.items():
            closes = group.due_before(new[key].anchor if key in new else plan["opened"][1])
            if group.next < closes:
                self._account.cycles_missing += closes - group.next
            if group.next != closes:
                text = f"{record['id']}: {_name(key)} was closed at cycle {group.next} and not at {closes}"
                self._account.problem(text)
        if plan["term"] != self._term + 1:
            self._account.problem(f"{record['id']}: term {plan['term']} comes after term {self._term}")
        self._opens(record)
        self._adopt(plan, new)

    def _opens(self, record: Json) -> None:
        """The first plan of a term: every group begins with its first grid number, and that is the next one due."""
        opened = record["plan"]["opened"][1]
        for key, group in _groups(record["plan"]).items():
            late = group.anchor - opened
            if group.next != group.first or not -_JITTER <= late < group.period + _JITTER:
                text = f"begins at cycle {group.next} of {group.first}, {late} ns after the term was opened"
                self._account.problem(f"{record['id']}: {_name(key)} {text}")

    def _adopt(self, plan: Json, new: dict[GroupKey, _Group]) -> None:
        for key in self._groups.keys() - new.keys():
            self._timelines[key].until = plan["opened"][1]
        for key, group in new.items():
            begins = group.due(group.next)
            timeline = self._timelines.setdefault(key, Timeline(begins))
            if key not in self._groups and timeline.until < begins:  # it had gone: nothing was asked meanwhile
                timeline.gap(timeline.until, begins)
            footprint = self._units[key[0]].footprint(group.exponents)
            self._footprints[key] = footprint | self._footprints.get(key, footprint)
        self._groups, self._term = new, plan["term"]

    def _event_driven(self, record: Json) -> Iterator[tuple[Json, EventGroup]]:
        """The event-driven groups of a plan, as it describes them."""
        for group in record["plan"]["groups"]:
            if group["schedule"] is None:
                key = _key(group)
                if key not in self._events:
                    self._events[key] = EventGroup(key, self._topics[key[0]], self._account)
                yield group, self._events[key]

    # ---- frames and gaps ------------------------------------------------------------------------------------

    def _data(self, record: Json) -> None:
        account = self._account
        if record["term"] != self._term:
            account.problem(f"{record['id']}: data of term {record['term']} in term {self._term}")
            return
        for events in self._events.values():
            events.data(record)
        items = [(_key(f), f["cycle"], f["cycle"], f) for f in record["frames"] if _key(f) in self._groups]
        items += [(_key(g), g["from"], g["to"], g) for g in record["gaps"] if _key(g) in self._groups]
        for key, first, last, item in sorted(items, key=lambda each: each[:3]):
            group = self._groups[key]
            if first > group.next:
                account.cycles_missing += first - group.next
                account.problem(f"{record['id']}: {_name(key)} cycles {group.next} to {first - 1} are not there")
            elif first < group.next:
                account.doubled += 1
                account.problem(f"{record['id']}: {_name(key)} cycle {first} is there twice")
            new = last + 1 - max(first, group.next)
            group.next = max(group.next, last + 1)
            if "cause" in item:
                account.gap(item["cause"], new)
                self._timelines[key].gap(group.due(first), group.due(last + 1))
            else:
                account.frames += 1
                account.cycles_present += max(0, new)
                self._frame(record, key, item)

    def _frame(self, record: Json, key: GroupKey, frame: Json) -> None:
        begin = frame["started_boot"]
        end = begin + (frame["took_us"] + 2) * 1000  # both times are whole microseconds, rounded down
        self._timelines[key].frame(begin, end)
        account, unit, exponents = self._account, self._units[key[0]], self._groups[key].exponents
        reads = [read for read in unit.between(begin, end) if self._footprints[key].fits(read)]
        quality = frame.get("quality", {})
        for name in exponents:
            account.values_checked += 1
            value = frame["values"][name]
            wrong = unit.judge(name, value, quality=quality.get(name), exponent=exponents[name], reads=reads)
            if wrong:
                account.values_wrong += 1
                place = f"{record['id']}: {_name(key)} cycle {frame['cycle']}"
                account.problem(
                    f"{place}: {name} is {value} {quality.get(name, '')}: {wrong}", count=account.values_wrong
                )

    # ---- what was answered ----------------------------------------------------------------------------------

    def lost(self, channels: Iterable[_Channel]) -> Iterator[str]:
        """The requests for this channel's groups that nothing accounts for. One that fits another group, too, may be
        that one's, also on another channel.
        """
        others = [(k, c._footprints[k], timeline) for c in channels for k, timeline in c._timelines.items()]
        for key, timeline in self._timelines.items():
            footprint, under_way = self._footprints[key], set[tuple[int, int]]()
            for read in self._units[key[0]].reads:
                if read.boot < timeline.since or timeline.holds(read.boot) or not footprint.fits(read):
                    continue
                if read.boot >= timeline.until:
                    asked = (read.address, read.end)
                    if not self._ended or asked not in under_way:  # what was under way at the end: each asked once
                        under_way.add(asked)
                        continue
                if not any(
                    other != key and other[0] == key[0] and shape.fits(read) and times.holds(read.boot)
                    for other, shape, times in others
                ):
                    yield f"{_name(key)}: a request answered at {read.boot} is in no frame and no gap"


def _groups(plan: Json) -> dict[GroupKey, _Group]:
    return {_key(group): _Group.of(group) for group in plan["groups"] if group["schedule"] is not None}


def _key(item: Json) -> GroupKey:
    return item["device"], item["group"]


def _name(key: GroupKey) -> str:
    return "/".join(key)
