"""One thing that was looked at, and what was found there."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.printable import printable


class Level(enum.IntEnum):
    """How bad it is."""

    OK = 0
    NOTE = 1  # to be known; nothing to do
    WARNING = 2  # will go wrong, or costs something; mend it soon
    FAULT = 3  # is wrong now


@dataclass(frozen=True, slots=True)
class Finding:
    """``about``: the subject; ``found``: what is so; ``why`` that matters; ``remedy``: what to do, "" if nothing;
    ``looked_at``: a file, a command, a server.
    """

    level: Level
    about: str
    found: str
    why: str = ""
    remedy: str = ""
    looked_at: str = ""

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return {
            "level": self.level.name.lower(),
            "about": self.about,
            "found": self.found,
            "why": self.why,
            "remedy": self.remedy,
            "looked_at": self.looked_at,
        }


def ok(about: str, found: str, *, looked_at: str = "") -> Finding:
    """All is well."""
    return Finding(Level.OK, about, found, looked_at=looked_at)


def note(about: str, found: str, *, why: str, remedy: str = "", looked_at: str = "") -> Finding:
    """To be known."""
    return Finding(Level.NOTE, about, found, why, remedy, looked_at)


def warning(about: str, found: str, *, why: str, remedy: str, looked_at: str = "") -> Finding:
    """To be mended soon."""
    return Finding(Level.WARNING, about, found, why, remedy, looked_at)


def fault(about: str, found: str, *, why: str, remedy: str, looked_at: str = "") -> Finding:
    """To be mended now."""
    return Finding(Level.FAULT, about, found, why, remedy, looked_at)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level; OK without findings."""
    return max((each.level for each in findings), default=Level.OK)


_PLURAL = {Level.FAULT: "faults", Level.WARNING: "warnings", Level.NOTE: "notes"}


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """For people: what is worst first, and a last line that counts."""
    for each in sorted(findings, key=lambda finding: -finding.level):
        name = each.level.name if each.level >= Level.WARNING else each.level.name.lower()
        yield f"{name:8} {printable(each.about)}: {printable(each.found)}"
        if each.level > Level.OK:
            for label, text in (("why", each.why), ("do", each.remedy), ("looked at", each.looked_at)):
                if text:
                    yield f"         {label}: {printable(text)}"
    counts = Counter(each.level for each in findings)
    told = [f"{counts[level]} {_PLURAL[level][: -1 if counts[level] == 1 else None]}" for level in _PLURAL]
    yield f"{', '.join(told)}, {counts[Level.OK]} good"
