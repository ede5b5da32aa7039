"""What in the status of an agent needs somebody, most important first, each with a remedy. Pure.

Takes a status of whatever version (agent/control/answers.py, ``Running.status``): what is missing finds nothing. First
comes what loses data now, then what will, then what holds up or spoils single devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agent.printable import printable

Table = Mapping[str, Any]


class Finding(NamedTuple):
    """``what`` is wrong with ``subject``, and what to do."""

    subject: str
    what: str
    remedy: str


_OUTBOX = {
    "failed": ("its outbox failed, nothing is stored", "look at the disk (dmesg); it is tried again by itself"),
    "memory": (
        "its outbox failed, records are kept in memory only",
        "look at the disk (dmesg); it is tried again by itself",
    ),
    "removed": (
        "the file of its outbox was removed, and what it holds ends with the agent",
        "let it deliver what waits, then restart it",
    ),
    "blocked": ("its outbox is full, readings wait for the broker", "mend the way to the broker"),
}
_LOST = {
    "not_stored": ("readings not stored", "they are stated in the data; look at the disk"),
    "dropped": ("records overwritten before the broker had them", "they are stated in the data; enlarge outbox.size"),
    "unreadable": ("records of the outbox cannot be read", "look at the disk, then edge-agent outbox verify"),
    "given_up": ("records that were kept in memory are gone", "look at the disk"),
    "refused": ("records refused for good", "raise the broker's limit, then edge-agent outbox resend --refused"),
}
_CAUSES = {
    "link_down": "is it reachable: cable, address, port, a free connection?",
    "device_timeout": "is unit right, and timeout long enough?",
    "device_exception": "compare addresses with the manual; lower max_gap and max_registers",
    "decode_error": "is it the right port and device?",
    "source_silent": "is the device alive, and topic right?",
}
_BY_GATEWAY = ("exception 10 ", "exception 11 ")  # of Modbus: the device itself said nothing
_GATEWAY = "is unit right, and the device on and wired to its gateway?"
CLOCK_WORDS = {"unknown": "its state cannot be read"}


def findings(status: Table) -> list[Finding]:
    """All of them."""
    channels = tables(status, "channels")
    return [
        *_stuck(status),
        *(found for channel in channels for found in _outbox(channel)),
        *_clock_wait(status),
        *(found for channel in channels for found in _broker(channel)),
        *(found for channel in channels for found in _losses(channel)),
        *(found for channel in channels for found in _recipients(channel)),
        *_connections(status),
        *_devices(status),
        *_clock(status),
    ]


def _stuck(status: Table) -> Iterator[Finding]:
    stuck = status.get("stuck")
    for name in stuck if isinstance(stuck, Sequence) and not isinstance(stuck, str) else ():
        yield Finding(printable(str(name)), "makes no progress", "the watchdog restarts the agent; keep the log")


def _outbox(channel: Table) -> Iterator[Finding]:
    outbox = channel.get("outbox")
    if isinstance(outbox, Mapping) and (found := _OUTBOX.get(str(outbox.get("state")))):
        what, remedy = found
        trouble = text(outbox, "trouble", "")
        yield Finding(text(channel, "id"), what + (f": {trouble}" if trouble else ""), remedy)


def _broker(channel: Table) -> Iterator[Finding]:
    if channel.get("connected") is False:
        remedy = text(channel, "hint", "") or "edge-agent check --online tries it; what waits is kept"
        yield Finding(text(channel, "id"), text(channel, "state", "no connection to the broker yet"), remedy)


def _recipients(channel: Table) -> Iterator[Finding]:
    """Who does not get what others get, while delivery goes on."""
    for each in tables(channel, "recipients") if channel.get("connected") else ():
        skipped, trouble = each.get("skipped"), text(each, "trouble", "")
        missed = f" {skipped} records were skipped for it" if type(skipped) is int and skipped else ""
        remedy = "`edge-agent outbox resend` sends again what is held"
        if trouble:
            yield Finding(text(channel, "id"), f"{text(each, 'did')}: {trouble}.{missed}", text(each, "remedy", remedy))
        elif missed:
            yield Finding(text(channel, "id"), f"{text(each, 'did')}:{missed}", remedy)


def _losses(channel: Table) -> Iterator[Finding]:
    for key, (what, remedy) in _LOST.items():
        if type(count := channel.get(key)) is int and count:
            yield Finding(text(channel, "id"), f"{count} {what}", remedy)


def _connections(status: Table) -> Iterator[Finding]:
    for connection in tables(status, "connections"):
        if connection.get("state") == "away":
            detail = text(connection, "detail", "no connection yet")
            yield Finding(text(connection, "name"), detail, "is its broker up, and the way to it open?")


def _devices(status: Table) -> Iterator[Finding]:
    for device in tables(status, "devices"):
        for group in tables(device, "groups"):
            state = text(group, "state", "ok")
            if state != "ok":
                detail = text(group, "detail", "")
                what = state + (f": {detail}" if detail else "")
                remedy = _GATEWAY if detail.startswith(_BY_GATEWAY) else _CAUSES.get(state, "see its log")
                yield Finding(f"{text(device, 'id')}/{text(group, 'name')}", what, remedy)


def _clock_wait(status: Table) -> Iterator[Finding]:
    clock = status.get("clock")
    if isinstance(clock, Mapping) and type(clock.get("waiting_s")) in (int, float):
        yield Finding("clock", "no reading yet, it is waited for", "nothing: clock.wait says for how long at most")


def _clock(status: Table) -> Iterator[Finding]:
    clock = status.get("clock")
    if isinstance(clock, Mapping) and (state := text(clock, "state", "synchronised")) != "synchronised":
        words = CLOCK_WORDS.get(state, state.replace("_", " "))
        yield Finding("clock", words, "timedatectl: is a time service active, and does it reach its server?")


# ---- reading a status of which nothing is sure ---------------------------------------------------------------------


def text(table: Table, key: str, missing: str = "-") -> str:
    """A value for people."""
    value = table.get(key)
    return missing if value is None or value == "" else printable(str(value))


def tables(table: Table, key: str) -> list[Table]:
    """A list of tables; what is none is left out."""
    value = table.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, Sequence) else []
