"""The status of an agent as a calm page of text, most important first. Pure.

Takes what the running agent says (agent/control/answers.py, ``Running.status``), of whatever version: what is missing
or not as expected is left out or shown as ``-``. What needs somebody's attention begins with ``!``, and stands above
with a remedy (agent/control/findings.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from agent.control.findings import CLOCK_WORDS, Table, findings, tables, text

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_MOST = 20  # findings
TIMEOUT, EXCEPTION = "device_timeout", "device_exception"


def lines(status: Table) -> Iterator[str]:
    """The whole page."""
    yield f"edge-agent {text(status, 'version')} at {text(status, 'site')}, up {age(status.get('uptime_s'))}"
    yield f"  identity  {text(status, 'did')}"
    yield f"  process   {text(status, 'pid')}{_takes(status)}, configuration {text(status, 'config')}"
    if isinstance(status.get("clock"), Mapping):
        yield _marked(f"clock     {clock_words(status)}", alarm=text(status["clock"], "state") != "synchronised")
    yield from _needs(status)
    channels, connections = tables(status, "channels"), tables(status, "connections")
    groups = [(device, group) for device in tables(status, "devices") for group in tables(device, "groups")]
    if channels:
        yield ""
        yield from aligned([CHANNEL_HEADING, *map(channel_row, channels)])
    if connections:
        yield ""
        yield from aligned([("  connection", "state", "busy", "95% late by"), *map(_connection, connections)])
    if groups:
        yield ""
        heading = ("  group", "state", "since", "last value", "ok", "timeouts", "exceptions", "other")
        yield from aligned([heading, *(_group(*each) for each in groups)])


def _needs(status: Table) -> Iterator[str]:
    """What needs somebody, and the remedy."""
    found = findings(status)
    if found:
        yield ""
    for each in found[:_MOST]:
        yield f"! {each.subject}: {each.what}"
        yield f"    {each.remedy}"
    if len(found) > _MOST:
        yield f"! {len(found) - _MOST} more"


def _takes(status: Table) -> str:
    usage = status.get("process")
    return f", {size(usage['memory_bytes'])}" if isinstance(usage, Mapping) and "memory_bytes" in usage else ""


def age(seconds: Any) -> str:
    """A span of time for people: ``12 s``, ``3 min``, ``2 h 5 min``, ``4 d 3 h``."""
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e12:
        return "-"
    if seconds < 60:
        return f"{int(seconds)} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"
    for index, (unit, name) in enumerate(_UNITS):
        if seconds >= unit:
            whole, rest = divmod(int(seconds), unit)
            finer = _UNITS[index + 1] if index + 1 < len(_UNITS) else None
            part = f" {rest // finer[0]} {finer[1]}" if finer and rest >= finer[0] else ""
            return f"{whole} {name}{part}"
    return "-"


def size(count: Any) -> str:
    """Bytes for people: ``812 B``, ``1.4 MiB``."""
    if type(count) is not int or count < 0:
        return "-"
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count} B"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def share(part: Any) -> str:
    """A share of 1 for people: ``12%``."""
    return f"{part:.0%}" if type(part) in (int, float) and 0 <= part <= 1 else "-"


def rate(per_second: Any) -> str:
    """So many a second, for people."""
    return f"{per_second:.3g}" if type(per_second) in (int, float) and 0 <= per_second < 1e12 else "-"


def within(histogram: Any, part: float = 0.95) -> str:
    """The bound that this share of a histogram's values does not exceed."""
    if not isinstance(histogram, Mapping):
        return "-"
    bounds, counts = histogram.get("bounds"), histogram.get("counts")
    if not isinstance(bounds, list) or not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return "-"
    total = sum(counts)
    if not bounds or len(counts) != len(bounds) + 1 or total <= 0:
        return "-"
    for bound, count in zip(bounds, accumulate(counts), strict=False):
        if count >= part * total:
            return _span(bound)
    return f"> {_span(bounds[-1])}"


def _span(seconds: Any) -> str:
    return f"{seconds * 1000:g} ms" if type(seconds) is float and 0 < seconds < 1 else age(seconds)


def clock_words(status: Table) -> str:
    """How the clock is."""
    clock = status.get("clock")
    if not isinstance(clock, Mapping):
        return "-"
    state, error, left = text(clock, "state"), clock.get("error_us"), clock.get("waiting_s")
    words = CLOCK_WORDS.get(state, state.replace("_", " "))
    if type(error) is int and error >= 0:
        words += f", off by {_milliseconds(error)} at most"
    if type(left) in (int, float):
        words += f"; no reading yet, it is waited for, {age(left)} more at most"
    return words


def _milliseconds(us: int) -> str:
    return f"{us} us" if us < 1000 else f"{us / 1000:.1f} ms" if us < 1_000_000 else f"{us / 1_000_000:.1f} s"


CHANNEL_HEADING = ("  channel", "broker", "waiting", "oldest", "delivered", "a second", "95% within", "dropped")


def channel_row(channel: Table) -> tuple[str, ...]:
    """A channel, under ``CHANNEL_HEADING``."""
    connected = channel.get("connected")
    waiting = text(channel, "pending_records")
    if channel.get("pending_bytes"):
        waiting += f" ({size(channel['pending_bytes'])})"
    outbox = channel.get("outbox")
    bad = isinstance(outbox, Mapping) and outbox.get("state", "ok") != "ok"
    return (
        _marked(text(channel, "id"), alarm=connected is False or bool(channel.get("dropped")) or bad),
        "connected" if connected else "away" if connected is False else "-",
        waiting,
        age(channel.get("oldest_s")),
        text(channel, "acknowledged"),
        rate(channel.get("rate")),
        within(channel.get("latency")),
        text(channel, "dropped"),
    )


def _connection(connection: Table) -> tuple[str, ...]:
    state = text(connection, "state")
    name = _marked(text(connection, "name"), alarm=state not in ("connected", "ok", "-"))
    return name, state, share(connection.get("busy")), within(connection.get("late"))


def _group(device: Table, group: Table) -> tuple[str, ...]:
    state = text(group, "state")
    name = _marked(f"{text(device, 'id')}/{text(group, 'name')}", alarm=state not in ("ok", "-"))
    last = age(group.get("last_s"))
    counts = [str(count) for count in outcomes(group)] if "frames" in group else ["-"] * 4
    return name, state, age(group.get("since_s")), last if last == "-" else f"{last} ago", *counts


def outcomes(group: Table) -> tuple[int, int, int, int]:
    """Of a group: values, time-outs, exceptions, and what else went wrong."""
    failures = group.get("failures")
    counts = {key: count for key, count in failures.items() if type(count) is int} if isinstance(failures, dict) else {}
    timeouts, exceptions = counts.get(TIMEOUT, 0), counts.get(EXCEPTION, 0)
    frames = group.get("frames")
    good = frames if type(frames) is int else 0
    return good, timeouts, exceptions, sum(counts.values()) - timeouts - exceptions


def _marked(name: str, *, alarm: bool) -> str:
    return f"{'!' if alarm else ' '} {name}"
