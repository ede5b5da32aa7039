"""The clock: sane, kept by exactly one time service, and behind it one that runs without power."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.clock import SystemClock
from agent.control.status_text import age
from agent.doctor.finding import Finding, fault, note, ok, warning
from agent.model import ClockQuality, ClockState

_SERVICES = {  # as the kernel names a process, 15 characters
    "systemd-timesyn": "systemd-timesyncd",
    "chronyd": "chronyd",
    "ntpd": "ntpd",
    "openntpd": "openntpd",
}
_SANE = (datetime(2025, 1, 1, tzinfo=UTC).timestamp(), datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_FAR = 300  # s
_ROUGH = 1_000_000  # us
_WHY = "every record carries this time, and says how good it is"


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """``wall`` in s since 1970; ``services``: time services that run, None if that could not be seen; ``rtc``: what the
    clock behind the battery says, s since 1970, None if there is none; ``reads_rtc``: whether that could be seen.
    """

    quality: ClockQuality
    wall: float
    services: tuple[str, ...] | None
    rtc: float | None = None
    reads_rtc: bool = True


def look(*, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> ClockFacts:
    """Blocks."""
    clock = SystemClock()
    rtc, reads = None, (sys / "class").is_dir()
    for name in ("rtc0", "rtc1"):
        with suppress(OSError, ValueError):
            rtc = rtc or float((sys / "class" / "rtc" / name / "since_epoch").read_text())
    return ClockFacts(clock.quality(), clock.wall() / 1e9, _services(proc), rtc, reads)


def _services(proc: Path) -> tuple[str, ...] | None:
    """None where processes of others are hidden: ours alone are not worth a word."""
    seen, found = 0, set[str]()
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            seen += 1
            found.add(_SERVICES.get((process / "comm").read_text().strip(), ""))
    hidden = not (proc / "1").exists() or seen < 2
    return None if hidden else tuple(sorted(found - {""}))


def judge(facts: ClockFacts) -> Iterator[Finding]:
    """What is to be said of it."""
    at = "the kernel (adjtimex)"
    shown = datetime.fromtimestamp(facts.wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not _SANE[0] <= facts.wall <= _SANE[1]:
        remedy = "start a time service that reaches a server of this site, or set it: date -u -s"
        yield fault("clock", f"it says {shown}", why=_WHY, remedy=remedy, looked_at=at)
    if facts.services is not None and len(facts.services) > 1:
        found = f"{' and '.join(facts.services)} both run"
        remedy = f"keep one: systemctl disable --now {facts.services[-1]}"
        why = "each sets the clock its way, and every step begins a new term"
        yield warning("clock", found, why=why, remedy=remedy, looked_at="/proc")
    yield from _quality(facts, shown, at)
    yield from _behind(facts)


def _quality(facts: ClockFacts, shown: str, at: str) -> Iterator[Finding]:
    state, error = facts.quality.state, facts.quality.error_us
    if state is ClockState.UNKNOWN:
        why = "records say so, and nobody can tell how far off they are"
        remedy = "in a container: let its filter of system calls pass adjtimex and clock_adjtime"
        yield warning("clock", "how good it is cannot be read", why=why, remedy=remedy, looked_at=at)
    elif state is ClockState.NOT_SYNCHRONISED:
        remedy = "apt install systemd-timesyncd, and name a server that this site reaches"
        if facts.services is None:
            remedy = "timedatectl: does a time service run, and does it reach a server?"
        elif facts.services:
            remedy = (
                f"{facts.services[0]} runs: does it reach a server? timedatectl timesync-status, or chronyc tracking"
            )
        yield warning("clock", f"not synchronised; it says {shown}", why=_WHY, remedy=remedy, looked_at=at)
    elif error is not None and error > _ROUGH:
        found = f"synchronised, but it may be off by {error / 1e6:.1f} s"
        remedy = "timedatectl timesync-status, or chronyc tracking: when did the server last answer?"
        yield warning("clock", found, why=_WHY, remedy=remedy, looked_at=at)
    else:
        kept = f" by {facts.services[0]}" if facts.services else ""
        bound = "" if error is None else f", off by {error / 1000:.1f} ms at most"
        yield ok("clock", f"synchronised{kept}{bound}; it says {shown}", looked_at=at)


def _behind(facts: ClockFacts) -> Iterator[Finding]:
    """What the box would begin with after a loss of power."""
    at = "/sys/class/rtc"
    if facts.rtc is None:
        if facts.reads_rtc:
            why = "after a loss of power it begins at a wrong time, and clock.wait holds the first reading back"
            yield note("clock", "there is none behind a battery", why=why, looked_at=at)
        return
    apart = abs(facts.rtc - facts.wall)
    if apart > _FAR and facts.quality.state is ClockState.SYNCHRONISED:
        found = f"the one behind the battery is {age(apart)} off"
        why = "the box begins with that time after a loss of power"
        yield note("clock", found, why=why, remedy="hwclock --systohc --utc; is its battery empty?", looked_at=at)
