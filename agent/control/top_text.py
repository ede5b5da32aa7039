"""The status of an agent as a live page, for a terminal of any size: what needs somebody first. Pure.

Rates are of the time between two statuses, by the agent's own clock. What does not fit is counted in the last line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agent.control.findings import Table, findings, tables, text
from agent.control.status_text import (
    CHANNEL_HEADING,
    age,
    aligned,
    channel_row,
    clock_words,
    outcomes,
    rate,
    share,
    size,
    within,
)

_SHOWN = 6  # findings at most, while there is something else to show


class Line(NamedTuple):
    """A line, and whether somebody should look at it."""

    text: str
    alarm: bool = False


def page(status: Table, before: Table | None, *, width: int, height: int | None = None) -> list[Line]:
    """At most ``height`` lines of at most ``width`` characters; None: as many as there are. ``before``: the status from
    a moment ago; of another run of the agent it counts for nothing.
    """
    elapsed = _elapsed(status, before)
    found = findings(status)
    devices = _devices(status, before if elapsed else None, elapsed)
    head = list(_head(status, before, elapsed))
    tables_ = [*_channels(status), *_connections(status)]
    shown = found if height is None else found[:_SHOWN]
    told = [Line(f"! {each.subject}: {each.what}", alarm=True) for each in shown]
    if len(found) > len(shown):
        told.append(Line(f"! {len(found) - len(shown)} more: edge-agent status", alarm=True))
    lines = [*head, *([Line(""), *told] if told else []), *tables_, *devices]
    if height is not None and len(lines) > height:
        lines = [*lines[: height - 1], Line(f"  {len(lines) - height + 1} lines more: edge-agent status")]
    return [Line(line.text[:width].rstrip(), line.alarm) for line in lines]


def _elapsed(status: Table, before: Table | None) -> float:
    """Seconds between the two; 0: they are not of one run, or nobody knows."""
    now, then = status.get("uptime_s"), None if before is None else before.get("uptime_s")
    if type(now) not in (int, float) or type(then) not in (int, float) or before is None:
        return 0.0
    same = status.get("pid") == before.get("pid") and status.get("started_wall") == before.get("started_wall")
    return max(0.0, now - then) if same and now is not None and then is not None else 0.0


def _head(status: Table, before: Table | None, elapsed: float) -> Iterator[Line]:
    yield Line(f"edge-agent {text(status, 'version')} at {text(status, 'site')}, up {age(status.get('uptime_s'))}")
    usage, earlier = _table(status, "process"), _table(before or {}, "process")
    used, then = usage.get("cpu_s"), earlier.get("cpu_s")
    busy = "-"
    if elapsed and type(used) in (int, float) and type(then) in (int, float) and used is not None and then is not None:
        busy = share(min(1.0, max(0.0, (used - then) / elapsed)))
    clock = text(_table(status, "clock"), "state") != "synchronised"
    yield Line(f"cpu {busy}, memory {size(usage.get('memory_bytes'))}, clock {clock_words(status)}", alarm=clock)


def _channels(status: Table) -> Iterator[Line]:
    yield from _rows(CHANNEL_HEADING, [channel_row(channel) for channel in tables(status, "channels")])


def _connections(status: Table) -> Iterator[Line]:
    heading = ("  connection", "state", "busy", "95% late by")
    rows = []
    for connection in tables(status, "connections"):
        state = text(connection, "state")
        mark = "! " if state == "away" else "  "
        late = within(connection.get("late"))
        rows.append((mark + text(connection, "name"), state, share(connection.get("busy")), late))
    yield from _rows(heading, rows)


def _devices(status: Table, before: Table | None, elapsed: float) -> list[Line]:
    """One row each, those that fail first."""
    earlier = {text(device, "id"): _counts(device) for device in tables(before or {}, "devices")}
    rows = []
    for device in tables(status, "devices"):
        name, counts = text(device, "id"), _counts(device)
        states = {text(group, "state", "ok") for group in tables(device, "groups")} - {"ok"}
        good = "-"
        if elapsed and name in earlier:
            good = rate(max(0, counts[0] - earlier[name][0]) / elapsed)
        ages: list[float] = [
            group["last_s"] for group in tables(device, "groups") if type(group.get("last_s")) in (int, float)
        ]
        row = (
            ("! " if states else "  ") + name,
            ", ".join(sorted(states)) or "ok",
            age(min(ages, default=None)),
            good,
            *map(str, counts),
        )
        rows.append((not states, row))
    heading = ("  device", "state", "last", "a second", "ok", "timeouts", "exceptions", "other")
    return list(_rows(heading, [row for _, row in sorted(rows, key=lambda each: each[0])]))


def _counts(device: Table) -> tuple[int, ...]:
    counts = [outcomes(group) for group in tables(device, "groups")]
    return tuple(map(sum, zip(*counts, strict=True))) if counts else (0, 0, 0, 0)


def _rows(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Line]:
    if rows:
        yield Line("")
        for line in aligned([heading, *rows]):
            yield Line(line, alarm=line.startswith("!"))


def _table(status: Table, key: str) -> Mapping[str, Any]:
    value = status.get(key)
    return value if isinstance(value, Mapping) else {}
