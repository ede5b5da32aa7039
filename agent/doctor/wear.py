"""How worn the disk of the state folder is, as far as it says, and what the agent itself writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.control.status_text import size
from agent.doctor.finding import Finding, fault, note, ok, warning
from agent.doctor.storage import device_number
from agent.foresight.forecast import Forecast
from agent.outbox import ring

_PAGE = 4096
_WORN, _DEAD = 9, 11  # of life_time: 80 to 90 % used; more than 100 % (JESD84-B51, DEVICE_LIFE_TIME_EST)
_RESERVE = {2: "80 % of its spare blocks are used up", 3: "hardly a spare block is left"}  # PRE_EOL_INFO


@dataclass(frozen=True, slots=True)
class WearFacts:
    """``disk``: its name, such as "mmcblk0", "" if it is not known; ``kind``: "SD", "MMC" or "". ``life``: the worst of
    its estimates, in tenths and 11 at most, ``reserve``: 1 to 3; None: it does not say. ``writes``: bytes that the
    agent writes a day, whole pages; None: not foretold.
    """

    disk: str
    kind: str = ""
    life: int | None = None
    reserve: int | None = None
    writes: float | None = None


def look(folder: Path, writes: float | None, *, sys: Path = Path("/sys")) -> WearFacts:
    """Blocks. Raises OSError."""
    nearest = next(each for each in (folder, *folder.parents) if each.is_dir())
    disk = _disk(sys / "dev" / "block" / device_number(nearest))
    if disk is None:
        return WearFacts("", writes=writes)
    kind, life, reserve = "", None, None
    with suppress(OSError):
        kind = (disk / "device" / "type").read_text().strip()
    with suppress(OSError, ValueError):
        life = max(int(each, 16) for each in (disk / "device" / "life_time").read_text().split())
    with suppress(OSError, ValueError):
        reserve = int((disk / "device" / "pre_eol_info").read_text(), 16)
    return WearFacts(disk.name, kind if kind in ("SD", "MMC") else "", life, reserve, writes)


def _disk(block: Path) -> Path | None:
    """The whole disk behind a block device: a partition's, or the first below a mapped one."""
    with suppress(OSError):
        found = block.resolve(strict=True)
        for _ in range(8):
            below = sorted((found / "slaves").iterdir()) if (found / "slaves").is_dir() else []
            if below:
                found = below[0].resolve(strict=True)
            elif (found / "partition").exists():
                found = found.parent
            else:
                return found
    return None


def written(forecasts: Iterable[Forecast]) -> float:
    """Bytes a day that the outboxes have the disk write: each record is a write of its own, in whole pages."""
    total = 0.0
    for each in forecasts:
        if each.records:
            total += each.records * (ring.size_of(round(each.sent / each.records)) / _PAGE + 1) * _PAGE
    return total


def judge(facts: WearFacts) -> Iterator[Finding]:
    """What is to be said of it."""
    about, at = "disk", f"/sys/block/{facts.disk}/device"
    ours = "" if not facts.writes else f"; the agent writes about {size(round(facts.writes))} a day"
    if not facts.disk:
        return
    replace = "order a new one, and replace it: docs/operating.md, a dead SD card"
    if facts.life is not None and facts.life >= _DEAD:
        why = "it may fail any day, or turn read-only"
        yield fault(about, f"{facts.disk} is past its life{ours}", why=why, remedy=replace, looked_at=at)
    elif facts.life is not None and facts.life >= _WORN:
        used = f"{10 * (facts.life - 1)} to {10 * facts.life} % of its life"
        why = "a worn one fails, or turns read-only"
        remedy = f"{replace}; a longer seal_within writes less"
        yield warning(about, f"{facts.disk} has used {used}{ours}", why=why, remedy=remedy, looked_at=at)
    elif facts.life:
        yield ok(about, f"{facts.disk} has used at most {10 * facts.life} % of its life{ours}", looked_at=at)
    elif facts.kind == "SD":
        why = "SD cards do not say how worn they are, and a worn one dies or turns read-only without a warning"
        remedy = "use an industrial card, and keep a spare; a longer seal_within writes less"
        yield note(about, f"{facts.disk} is an SD card{ours}", why=why, remedy=remedy, looked_at=at)
    elif ours:
        yield ok(about, f"{facts.disk}{ours}", looked_at=at)
    if facts.reserve in _RESERVE:
        told = fault if facts.reserve == max(_RESERVE) else warning
        why = "it turns read-only when none is left"
        yield told(about, f"{facts.disk}: {_RESERVE[facts.reserve]}", why=why, remedy=replace, looked_at=at)
