"""The status of an agent as a calm page of text, most important first. Pure.

Takes what the running agent says (agent/control/answers.py, ``Running.status``), of whatever version: what is missing
or not as expected is left out or shown as ``-``. What needs somebody's attention begins with ``!``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.printable import printable

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

_OUTBOX = {
    "failed": "its outbox failed, nothing is stored",
    "memory": "its outbox failed, records are kept in memory only",
    "removed": "the file of its outbox was removed, and what it holds ends with the agent",
    "blocked": "its outbox is full, readings wait for the broker",
}

Table = Mapping[str, Any]


def lines(status: Table) -> Iterator[str]:
    """The whole page."""
    yield f"edge-agent {_text(status, 'version')} at {_text(status, 'site')}, up {age(status.get('uptime_s'))}"
    yield f"  identity  {_text(status, 'did')}"
    yield f"  process   {_text(status, 'pid')}, configuration {_text(status, 'config')}"
    if isinstance(clock := status.get("clock"), Mapping):
        yield _clock(clock)
    channels, devices, connections = (_tables(status, key) for key in ("channels", "devices", "connections"))
    if channels:
        yield ""
        heading = ("  channel", "broker", "waiting", "oldest", "delivered", "dropped")
        yield from aligned([heading, *map(_channel, channels)])
        for channel in channels:
            if not channel.get("connected") and channel.get("state"):
                yield f"    {_text(channel, 'id')}: {_text(channel, 'state')}"
            yield from _outbox(channel)
            yield from _recipients(channel)
    if connections:
        yield ""
        yield from aligned([("  connection", "state", ""), *map(_connection, connections)])
    if devices:
        yield ""
        groups = [(device, group) for device in devices for group in _tables(device, "groups")]
        yield from aligned([("  group", "state", "since", "last value", ""), *(_group(*each) for each in groups)])


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


def _clock(clock: Table) -> str:
    state, error, left = _text(clock, "state"), clock.get("error_us"), clock.get("waiting_s")
    words = {"unknown": "its state cannot be read"}.get(state, state.replace("_", " "))
    if type(error) is int and error >= 0:
        words += f", off by {_milliseconds(error)} at most"
    if type(left) in (int, float):
        words += f"; no reading yet, it is waited for, {age(left)} more at most"
    return _marked(f"clock     {words}", alarm=state != "synchronised")


def _milliseconds(us: int) -> str:
    return f"{us} us" if us < 1000 else f"{us / 1000:.1f} ms" if us < 1_000_000 else f"{us / 1_000_000:.1f} s"


def _channel(channel: Table) -> tuple[str, ...]:
    connected = channel.get("connected")
    waiting = _text(channel, "pending_records")
    if channel.get("pending_bytes"):
        waiting += f" ({size(channel['pending_bytes'])})"
    dropped = channel.get("dropped")
    return (
        _marked(_text(channel, "id"), alarm=connected is False or bool(dropped) or _outbox_state(channel) in _OUTBOX),
        "connected" if connected else "away" if connected is False else "-",
        waiting,
        age(channel.get("oldest_s")),
        _text(channel, "acknowledged"),
        _text(channel, "dropped"),
    )


def _outbox_state(channel: Table) -> str:
    outbox = channel.get("outbox")
    return _text(outbox, "state") if isinstance(outbox, Mapping) else "-"


def _outbox(channel: Table) -> Iterator[str]:
    """What is wrong with an outbox, and what that cost."""
    name, outbox, lost = _text(channel, "id"), channel.get("outbox"), channel.get("not_stored")
    if isinstance(outbox, Mapping) and (words := _OUTBOX.get(_outbox_state(channel))):
        trouble = _text(outbox, "trouble", "")
        yield f"    {name}: {words}{': ' if trouble else ''}{trouble}"
    if type(lost) is int and lost:
        yield f"    {name}: {lost} readings not stored"


def _recipients(channel: Table) -> Iterator[str]:
    """Who does not get what is sent, and why."""
    for each in _tables(channel, "recipients"):
        skipped = each.get("skipped")
        missed = f", {skipped} records skipped" if type(skipped) is int and skipped else ""
        if each.get("trouble"):
            remedy = _text(each, "remedy", "")
            words = f"{_text(each, 'trouble')}{'; ' if remedy else ''}{remedy}"
            yield f"    {_text(channel, 'id')}: {_text(each, 'did')}{missed}: {words}"
        elif missed:
            yield f"    {_text(channel, 'id')}: {_text(each, 'did')}{missed} since the channel opened"


def _connection(connection: Table) -> tuple[str, ...]:
    state = _text(connection, "state")
    name = _marked(_text(connection, "name"), alarm=state not in ("connected", "ok", "-"))
    return name, state, _text(connection, "detail", "")


def _group(device: Table, group: Table) -> tuple[str, ...]:
    state = _text(group, "state")
    name = _marked(f"{_text(device, 'id')}/{_text(group, 'name')}", alarm=state not in ("ok", "-"))
    last = age(group.get("last_s"))
    return name, state, age(group.get("since_s")), last if last == "-" else f"{last} ago", _text(group, "detail", "")


def _marked(name: str, *, alarm: bool) -> str:
    return f"{'!' if alarm else ' '} {name}"


def _text(table: Table, key: str, missing: str = "-") -> str:
    value = table.get(key)
    return missing if value is None or value == "" else printable(str(value))


def _tables(table: Table, key: str) -> list[Table]:
    value = table.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, Sequence) else []
