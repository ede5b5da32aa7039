"""The oracle's part for event-driven groups: each message that the broker took, and what became of it.

Every message is a cycle, counted from 0 in each run without hole: a frame, or a gap of cause decode_error if it is not
JSON. What the broker took (QoS 1 and 2) must be there once. More often it may be there only as the source's or the
broker's doing: marked possible_duplicate, or old_data if it was published retained, sent twice by the publisher, or
forgotten by a broker that was killed. Brokers need not keep the order: messages are told apart by their number (a point
at ``/n``), their time, or all their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from testbed.account import Account
from testbed.journal import Json
from testbed.published import Message, Topic

GroupKey = tuple[str, str]  # device id, group name
_GRACE = 2_000_000_000  # ns before the end of the evidence: what was published then may be under way
_ROUNDED = 2_000  # ns: receptions are told in whole microseconds
_QUIET = ("link_down", "source_silent", "disabled", "not_stored")


@dataclass(slots=True)
class _Run:
    """What a group says of the time that one run took; all in boot times."""

    stream: str
    opened: int
    ended: int
    signs: list[int] = field(default_factory=list)  # when something came
    within: list[tuple[int, int]] = field(default_factory=list)  # something came at some time of these
    quiet: list[tuple[int, int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Seen:
    """What became of one message: when it came, live or again and as a retained one; that it was no JSON."""

    live: list[int] = field(default_factory=list)
    again: int = 0
    retained: int = 0
    undecoded: int = 0


class EventGroup:
    """One event-driven group on one channel."""

    def __init__(self, key: GroupKey, topic: Topic, account: Account) -> None:
        self._key = key
        self._name = "/".join(key)
        self._topic = topic
        self._account = account
        self._next = 0
        self._kinds: Mapping[str, str | None] = {}
        self._runs: list[_Run] = []
        self._seen: dict[int, _Seen] = {}
        self._dropped = 0.0  # messages that were in records which a plan withdraws

    # ---- plans ----------------------------------------------------------------------------------------------

    def begin(self, record: Json, group: Json, *, hole: bool) -> None:
        """The first plan at hand of a run. ``hole``: records before it are missing: told elsewhere if unstated."""
        if hole:
            self._dropped = math.inf  # how many messages the run before had is stated nowhere
        if record["seq"] == 1:
            self.plan(record, group)
        else:
            self.behind_a_hole(record, group)

    def behind_a_hole(self, record: Json, group: Json) -> None:
        """The first plan behind missing records."""
        self._enter(record)
        self._dropped += group["next"] - self._next
        self._adopt(group)

    def plan(self, record: Json, group: Json) -> None:
        """A plan that follows what was counted: a repeat, or of the next term."""
        self._enter(record)
        if group["next"] != self._next:
            text = f"{self._name} stands at cycle {self._next}, the plan says {group['next']}"
            self._account.problem(f"{record['id']}: {text}")
        self._adopt(group)

    def _enter(self, record: Json) -> None:
        if not self._runs or self._runs[-1].stream != record["stream"]:
            opened = record["plan"]["opened"][1]
            self._runs.append(_Run(record["stream"], opened, opened))
            self._next = 0

    def _adopt(self, group: Json) -> None:
        self._next = group["next"]
        self._kinds = {point["name"]: point.get("type") for point in group["points"]}

    # ---- frames and gaps ------------------------------------------------------------------------------------

    def reached(self, record: Json) -> None:
        """The evidence goes on to here."""
        if self._runs[-1].stream == record["stream"]:
            self._runs[-1].ended = record["sealed"]["boot"]

    def data(self, record: Json) -> None:
        """A data record, of which only what concerns this group is looked at."""
        mine = [each for each in [*record["frames"], *record["gaps"]] if (each["device"], each["group"]) == self._key]
        for item in sorted(mine, key=_first_cycle):
            if "cause" not in item:
                self._account.frames += 1
                self._account.cycles_present += self._count(record, item["cycle"], item["cycle"])
                self._frame(record, item)
            elif item["from"] is not None:
                new = self._count(record, item["from"], item["to"])
                self._account.gap(item["cause"], new)
                self._gap(record, item, new)
            else:
                self._quiet(record, item)

    def _count(self, record: Json, first: int, last: int) -> int:
        """Count cycles; returns how many of them are new."""
        if first > self._next:
            self._account.cycles_missing += first - self._next
            text = f"{self._name} cycles {self._next} to {first - 1} are not there"
            self._account.problem(f"{record['id']}: {text}")
        elif first < self._next:
            self._account.doubled += 1
            self._account.problem(f"{record['id']}: {self._name} cycle {first} is there twice")
        new = last + 1 - max(first, self._next)
        self._next = max(self._next, last + 1)
        return max(0, new)

    def _frame(self, record: Json, frame: Json) -> None:
        account, place = self._account, f"{record['id']}: {self._name} cycle {frame['cycle']}"
        received = record["sealed"]["boot"] - frame["late_us"] * 1000
        self._runs[-1].signs.append(received)
        account.values_checked += len(self._kinds) + (self._topic.time is not None)
        message = self._topic.of(frame, received, self._seen)
        if message is None or message.document is None:
            account.values_wrong += len(self._kinds)
            account.problem(f"{place}: no message was published that says this", count=account.values_wrong)
            return
        for text in self._topic.wrong(message, frame, self._kinds):
            account.values_wrong += 1
            account.problem(f"{place}: {text}", count=account.values_wrong)
        if received + _ROUNDED < message.boot:
            account.problem(f"{place}: received {message.boot - received} ns before message {message.n} was published")
        seen, qualities = self._seen.setdefault(message.n, _Seen()), frame.get("quality", {}).values()
        if "old_data" in qualities:
            seen.retained += 1
            if not message.retain:
                account.problem(f"{place}: old_data, and message {message.n} was not published as a retained one")
        elif "possible_duplicate" in qualities:
            seen.again += 1
        else:
            seen.live.append(received)

    def _gap(self, record: Json, gap: Json, new: int) -> None:
        """Messages that gave no frame: the detail tells which one; of several, the others are any that fit."""
        account, detail = self._account, gap["detail"] or ""
        if gap["cause"] != "decode_error":
            account.problem(f"{record['id']}: {self._name}: {gap['cause']} is no reason to give a message no frame")
            return
        came = [message for message in self._topic.messages if message.boot <= record["sealed"]["boot"]]
        told = [message for message in came if message.fits(detail)]
        message = next((each for each in told if each.n not in self._seen), next(iter(told), None))
        if message is None:
            account.problem(f"{record['id']}: {self._name}: decode_error of no message that was published: {detail}")
            return
        if message.document is not None:
            account.problem(f"{record['id']}: {self._name}: decode_error, and message {message.n} is JSON")
        others = [each for each in came if each.document is None and each.n not in self._seen and each is not message]
        for each in [message, *others[: new - 1]]:
            # It may have waited for us at the broker: when it came is not told.
            self._runs[-1].within.append((each.boot, record["sealed"]["boot"]))
            self._seen.setdefault(each.n, _Seen()).undecoded += 1

    def _quiet(self, record: Json, gap: Json) -> None:
        """A time without messages."""
        begin, end, cause = gap["from_boot"], gap["to_boot"], gap["cause"]
        before = max((last for _, last, _ in self._runs[-1].quiet), default=begin)
        if cause not in _QUIET or not before <= begin < end <= record["sealed"]["boot"]:
            text = f"{self._name}: {cause} from {begin} to {end}, where {before} was the end of the one before"
            self._account.problem(f"{record['id']}: {text}")
        self._runs[-1].quiet.append((begin, end, cause))

    # ---- what became of the messages ------------------------------------------------------------------------

    def conclude(self) -> None:
        """Judge times without messages, and every message."""
        account, loses = self._account, self._topic.broker_loses
        for run in self._runs:
            for text in self._untrue(run):
                account.problem(f"{self._name}: {text}")
        excused = 0
        account.messages_published += len(self._topic.messages)
        owed = {message.n for message in self._owed()}
        for message in self._topic.messages:
            seen = self._seen.get(message.n, _Seen())
            times = len(seen.live) + seen.again + seen.undecoded
            account.messages_delivered += bool(seen.live or seen.again or seen.retained)
            account.messages_in_gaps += bool(seen.undecoded)
            account.messages_doubled += max(0, times - 1)
            account.messages_retained += seen.retained
            forgotten = any(begin <= at for begin, _ in loses for at in seen.live)
            if len(seen.live) > 1 and not message.again and not forgotten:
                account.doubled += 1
                account.problem(f"{self._name}: message {message.n} is there {len(seen.live)} times and not marked")
            if message.n not in owed:
                continue
            taken = message.acked or message.boot
            if not times and not seen.retained and any(begin <= taken <= end for begin, end in loses):
                account.messages_excused += 1
            elif not times and not seen.retained and excused < self._dropped:
                excused += 1
                account.messages_excused += 1
            else:
                account.messages_owed += 1
                if not times and not seen.retained:
                    account.messages_lost += 1
                    text = f"message {message.n}, published at {message.boot}, is in no frame and no gap"
                    account.problem(f"{self._name}: {text}", count=account.messages_lost)

    def _owed(self) -> Iterator[Message]:
        """What must be there."""
        live = [m.boot for m in self._topic.messages if (seen := self._seen.get(m.n)) and (seen.live or seen.again)]
        begin, end = self._topic.owed_from, self._topic.owed_until
        if begin is None:
            begin = min(live, default=self._runs[0].opened)
        if end is None:
            end = self._listened_until() - _GRACE
        for message in self._topic.messages:
            taken = message.acked is not None or (not message.qos and self._topic.at_most_once and self._heard(message))
            if taken and begin <= message.boot <= end:
                yield message

    def _listened_until(self) -> int:
        """The end of the evidence, or when the link went down that was down then."""
        run = self._runs[-1]
        until = run.ended
        for begin, end, cause in reversed(run.quiet):
            if cause != "source_silent" and end >= until - _GRACE:
                until = begin
        return until

    def _heard(self, message: Message) -> bool:
        """Whether the agent listened when a message of QoS 0 came, and well before and after."""
        begin, end = message.boot - _GRACE, message.boot + _GRACE
        listening = any(
            run.signs
            and run.signs[0] <= begin
            and end <= run.ended
            and not any(cause != "source_silent" and first < end and last > begin for first, last, cause in run.quiet)
            for run in self._runs
        )
        broken = any(first < end and last > begin for first, last in self._topic.broker_loses)
        return message.online and listening and not broken

    def _untrue(self, run: _Run) -> Iterator[str]:
        """What is wrong with the times that a run states to be without messages, and those that it does not."""
        signs = sorted(run.signs)
        for begin, end, cause in run.quiet:
            inside = [sign for sign in signs if begin + _ROUNDED < sign < end - _ROUNDED]
            if inside:
                yield f"{cause} from {begin} to {end}, and {len(inside)} messages came then"
        if self._topic.silent_after is None:
            return
        known = sorted([*((sign, sign) for sign in signs), *((begin, end) for begin, end, _ in run.quiet)])
        at = known[0][0] if known else run.opened
        known = sorted([*known, *((max(begin, at), max(end, at)) for begin, end in run.within)])
        for begin, end in [*known, (run.ended, run.ended)]:
            if begin - at > self._topic.silent_after + _GRACE:
                yield f"nothing came from {at} to {begin}, and no gap says so"
            at = max(at, end)


def _first_cycle(item: Json) -> int:
    cycle = item["cycle"] if "cycle" in item else item["from"]
    return -1 if cycle is None else int(cycle)
