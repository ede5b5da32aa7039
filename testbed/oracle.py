"""The oracle: what the simulators served, what the consumer verified, what gaps state; and whether the three agree.

It is told nothing by the agent: it reads the site's journal (what was served, and when), the JSON Lines of
``edge-agent tail`` (what a consumer got), decodes registers on its own, and counts cycles on its own. It finds

- a value that differs from the registers served while it was acquired,
- a cycle that is neither present nor in a stated gap, or is there twice,
- a read that the site answered and that no frame, gap or statement of a new run accounts for,
- a record number that is missing without being withdrawn, and any record that failed verification.
"""

from __future__ import annotations

import bisect
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

GroupKey = tuple[str, str]  # device id, group name
Json = dict[str, Any]

_FORMATS = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "int64": ">q", "uint64": ">Q"}
_FORMATS |= {"float32": ">f", "float64": ">d", "enum16": ">H", "bitfield16": ">H", "bitfield32": ">I"}
_FORMATS |= {"acc16": ">H", "acc32": ">I", "acc64": ">Q", "enum32": ">I"}
_NOTHING = {"int16": -0x8000, "uint16": 0xFFFF, "int32": -0x80000000, "uint32": 0xFFFFFFFF, "enum16": 0xFFFF}
_NOTHING |= {"bitfield16": 0xFFFF, "bitfield32": 0xFFFFFFFF, "acc16": 0, "acc32": 0, "acc64": 0, "enum32": 0xFFFFFFFF}
_NOTHING |= {"int64": -0x8000000000000000, "uint64": 0xFFFFFFFFFFFFFFFF}


# ---- what was served --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """One answered read: registers from ``address`` on, made at ``boot`` (ns of CLOCK_BOOTTIME)."""

    boot: int
    unit: int
    address: int
    registers: bytes

    def bytes_at(self, address: int, size: int) -> bytes | None:
        """``size`` registers from a protocol address; None if the read did not span them."""
        start = 2 * (address - self.address)
        return self.registers[start : start + 2 * size] if 0 <= start <= len(self.registers) - 2 * size else None


@dataclass(slots=True)
class Journal:
    """A site's journal: its register map and all reads that it answered, in order of time."""

    points: dict[tuple[int, str], Json] = field(default_factory=dict)  # by unit and name
    served: list[Served] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Journal:
        """Read journals; a line cut short by a kill is passed over."""
        journal = cls()
        for path in paths:
            for line in json_lines(path):
                if "map" in line:
                    for point in line["map"]["points"]:
                        journal.points[line["map"]["unit"], point["name"]] = point
                elif "registers" in line:
                    journal.served.append(
                        Served(line["t_boot"], line["unit"], line["address"], bytes.fromhex(line["registers"]))
                    )
        journal.served.sort(key=lambda read: read.boot)
        return journal

    def between(self, unit: int, first: int, last: int) -> Iterator[Served]:
        """The reads of a unit answered from ``first`` to ``last`` (boot time)."""
        start = bisect.bisect_left(self.served, first, key=lambda read: read.boot)
        for read in self.served[start:]:
            if read.boot > last:
                return
            if read.unit == unit:
                yield read


def json_lines(path: Path) -> list[Json]:
    """The JSON objects of a file, one a line; a last line without its end is not there yet."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line.startswith(b"{")]


def value_in(read: Served, point: Json) -> Decimal | str | None:
    """A point's value in a read: exact, None for not implemented, "absent" if the read did not span it."""
    raw = read.bytes_at(point["address"], point["size"])
    if raw is None:
        return "absent"
    (number,) = struct.unpack(_FORMATS[point["type"]], raw)
    if number != number or (point["model"] is not None and number == _NOTHING.get(point["type"])):
        return None  # plain registers have no value that means "not implemented"
    scale = 0
    if point["sf_address"] is not None:
        sf = read.bytes_at(point["sf_address"], 1)
        if sf is None:
            return "absent"
        (scale,) = struct.unpack(">h", sf)
        if scale == -0x8000:
            return None
    return Decimal(number).scaleb(scale)


# ---- the account ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Account:
    """What came of it. Good if there is no problem and something was checked."""

    records: int = 0
    frames: int = 0
    failed: int = 0
    repeats: int = 0
    runs: int = 0
    cycles_expected: int = 0
    cycles_present: int = 0
    cycles_in_gaps: int = 0
    values_checked: int = 0
    values_wrong: int = 0
    reads_lost: int = 0  # answered by the site, accounted for by nothing
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing failed, nothing missing, nothing wrong, and something was there."""
        return not self.problems and not self.failed and self.values_checked > 0 and not self.values_wrong

    def problem(self, text: str) -> None:
        """Note what is wrong."""
        self.problems.append(text)


@dataclass(slots=True)
class _Group:
    """Where a group of a stream stands: schedule of the term in force, next cycle to be accounted for."""

    period: int
    first: int
    anchor: int
    next: int

    def due(self, cycle: int) -> int:
        return self.anchor + (cycle - self.first) * self.period


class Oracle:
    """Holds a consumer's records against a site's journal. ``units``: Modbus unit of each device id."""

    def __init__(self, journal: Journal, *, units: Mapping[str, int]) -> None:
        self._journal = journal
        self._units = units
        self._accounted: dict[GroupKey, list[tuple[int, int]]] = {}  # spans of boot time
        self._withdrawn: list[tuple[str, int, int]] = []
        self._ended: dict[str, dict[GroupKey, _Group]] = {}  # streams and where they ended
        self.account = Account()

    def judge(self, lines: Sequence[Json]) -> Account:
        """``lines``: what ``tail --jsonl`` wrote, in any order, repeats included; of one boot of the machine."""
        account = self.account
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
                continue
            if streams.setdefault(line["stream"], {}).setdefault(line["seq"], line) is not line:
                account.problem(f"{line['id']}: handed over twice")
            if line["kind"] == "plan":
                self._withdrawn += [(stream, first, last) for stream, first, last, _ in line["plan"]["withdrawn"]]
        for stream, records in _in_order(streams):
            account.runs += 1
            self._stream(stream, [records[seq] for seq in sorted(records)])
        self._reads()
        account.cycles_expected = account.cycles_present + account.cycles_in_gaps + account.cycles_expected
        return account

    # ---- cycles ---------------------------------------------------------------------------------------------

    def _stream(self, stream: str, records: list[Json]) -> None:
        groups: dict[GroupKey, _Group] = {}
        expected, skipped = 1, False
        for record in records:
            if record["seq"] != expected:
                skipped = True
                self._missing(stream, expected, record["seq"] - 1)
            expected = record["seq"] + 1
            if record["kind"] == "plan":
                groups = self._plan(record, groups, skipped=skipped)
                skipped = False
            elif record["kind"] == "data" and not skipped:
                self._data(record, groups)
        self._ended[stream] = groups

    def _missing(self, stream: str, first: int, last: int) -> None:
        lost = set(range(first, last + 1))
        for name, low, high in self._withdrawn:
            if name == stream:
                lost.difference_update(range(low, high + 1))
        if lost:
            self.account.problem(f"records {min(lost)} to {max(lost)} of {stream[:8]} are missing and not withdrawn")

    def _plan(self, record: Json, old: dict[GroupKey, _Group], *, skipped: bool) -> dict[GroupKey, _Group]:
        plan, new = record["plan"], {}
        for group in plan["groups"]:
            s = group["schedule"]
            new[group["device"], group["group"]] = _Group(s["period"], s["first"], s["anchor"], group["next"])
        if record["seq"] == 1 and plan["follows"] is not None:
            ended = self._ended.get(plan["follows"][0])
            if ended is None:
                self.account.problem(f"{record['id']} follows a run that is not at hand")
            for key, group in (ended or {}).items():
                self._nothing(key, group, until=new[key].due(new[key].next) if key in new else plan["opened"][1])
        elif skipped:
            for key, group in old.items():
                if key in new:
                    self._nothing(key, group, until=new[key].due(new[key].next))
        else:
            for key, group in old.items():
                same = key in new and (new[key].first, new[key].anchor) == (group.first, group.anchor)
                if same and new[key].next != group.next:
                    self.account.problem(f"{record['id']}: {key} goes on at {new[key].next}, was at {group.next}")
                if not same and group.due(group.next) < (new[key].anchor if key in new else plan["opened"][1]):
                    self.account.problem(f"{record['id']}: {key} was not closed: cycle {group.next} is unaccounted for")
        return new

    def _nothing(self, key: GroupKey, group: _Group, *, until: int) -> None:
        """A stretch that was stated as missing: its cycles are in gaps."""
        begin = group.due(group.next)
        if until > begin:
            self.account.cycles_in_gaps += -(-(until - begin) // group.period)
        self._accounted.setdefault(key, []).append((begin - group.period, until))

    def _data(self, record: Json, groups: dict[GroupKey, _Group]) -> None:
        spans = [((f["device"], f["group"]), f["cycle"], f["cycle"], f) for f in record["frames"]]
        spans += [
            ((g["device"], g["group"]), g["from"], g["to"], None) for g in record["gaps"] if g["from"] is not None
        ]
        for key, first, last, frame in sorted(spans, key=lambda span: (span[0], span[1])):
            group = groups[key]
            if first != group.next:
                self.account.problem(f"{record['id']}: {key} cycle {first} where {group.next} was due")
                self.account.cycles_expected += max(0, first - group.next)
            group.next = last + 1
            if frame is not None:
                self.account.frames += 1
                self.account.cycles_present += 1
                self._frame(record, key, frame)
            else:
                self.account.cycles_in_gaps += last - first + 1
                self._accounted.setdefault(key, []).append((group.due(first), group.due(last + 1)))

    # ---- values ---------------------------------------------------------------------------------------------

    def _frame(self, record: Json, key: GroupKey, frame: Json) -> None:
        begin = frame["started_boot"]
        end = begin + (frame["took_us"] + 1) * 1000  # times in records are whole microseconds, rounded down
        self._accounted.setdefault(key, []).append((begin, end))
        unit = self._units[key[0]]
        reads = list(self._journal.between(unit, begin, end))
        for name, value in frame["values"].items():
            self.account.values_checked += 1
            point = self._journal.points[unit, name]
            served = [value_in(read, point) for read in reads]
            mine = None if value is None else Decimal(str(value))
            if not any(seen == mine and not isinstance(seen, str) for seen in served):
                self.account.values_wrong += 1
                text = f"{record['id']}: {key} cycle {frame['cycle']} {name} is {value}, served was {served}"
                if self.account.values_wrong <= 10:
                    self.account.problem(text)

    def _reads(self) -> None:
        """Every answered read of a polled group must be accounted for, up to where the last run's evidence ends."""
        groups = {
            key: group for ended in self._ended.values() for key, group in ended.items()
        }  # the last run's prevail
        for key, group in groups.items():
            spans = sorted(self._accounted.get(key, []))
            until = group.due(group.next)
            since = spans[0][0] if spans else until
            starts = [begin for begin, _ in spans]
            furthest: list[int] = []
            for _, end in spans:
                furthest.append(max(end, furthest[-1]) if furthest else end)
            for read in self._journal.served:
                if read.unit != self._units[key[0]] or not since <= read.boot < until:
                    continue
                at = bisect.bisect_right(starts, read.boot) - 1
                if (at < 0 or furthest[at] < read.boot) and not self._other(key, read.boot):
                    self.account.reads_lost += 1
                    self.account.problem(f"{key}: a read answered at {read.boot} is in no frame and no gap")

    def _other(self, key: GroupKey, boot: int) -> bool:
        """Whether the read belongs to another group of the same device."""
        return any(
            other != key and other[0] == key[0] and any(begin <= boot <= end for begin, end in spans)
            for other, spans in self._accounted.items()
        )


def _in_order(streams: dict[str, dict[int, Json]]) -> Iterator[tuple[str, dict[int, Json]]]:
    """Streams, each behind the one that it follows."""
    follows = {}
    for stream, records in streams.items():
        plan = records.get(1, {}).get("plan")
        follows[stream] = plan["follows"][0] if plan and plan["follows"] else None
    done: set[str | None] = set()
    while len(done) < len(streams):
        ready = [s for s in streams if s not in done and (follows[s] in done or follows[s] not in streams)]
        for stream in ready:
            done.add(stream)
            yield stream, streams[stream]
