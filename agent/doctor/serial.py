"""Serial ports that connections name: are they there, are they named so that they stay the same, may the agent use
them.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config
from agent.config.each_of import each_of
from agent.doctor.finding import Finding, fault, note, ok
from agent.doctor.rights import Who

_BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True, slots=True)
class PortFacts:
    """``stable``: the name below /dev/serial/by-id that leads to it, "" if there is none. ``group``: whose it is;
    ``usable``: whether the agent's user may read and write it, None if the user is not known.
    """

    connection: str
    path: Path
    there: bool = False
    is_port: bool = False
    group: str = ""
    usable: bool | None = None
    stable: str = ""
    known: tuple[str, ...] = ()  # the names that there are


def ports(config: Config) -> Iterator[tuple[str, Path]]:
    """Each connection that names a device file, and the file; also as the path of a URL."""
    for plan in config.adapters():
        for _, text in each_of(plan.connection, str):
            path = text.partition("://")[2].partition("?")[0] if "://" in text else text
            if path.startswith("/dev/"):
                yield f"connection {plan.name}", Path(path)


def look(connection: str, path: Path, who: Who | None, *, by_id: Path = _BY_ID) -> PortFacts:
    """Blocks."""
    links = {each.name: each.resolve() for each in sorted(by_id.iterdir())} if by_id.is_dir() else {}
    known = tuple(str(by_id / name) for name in links)
    try:
        status = path.stat()
    except FileNotFoundError:
        return PortFacts(connection, path, known=known)
    bits = status.st_mode & 7
    if who is not None and status.st_uid == who.uid:
        bits = status.st_mode >> 6 & 7
    elif who is not None and status.st_gid in who.groups:
        bits = status.st_mode >> 3 & 7
    usable = None if who is None else who.uid == 0 or bits & (os.R_OK | os.W_OK) == os.R_OK | os.W_OK
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    stable = next((str(by_id / name) for name, real in links.items() if real == path.resolve()), "")
    return PortFacts(connection, path, True, stat.S_ISCHR(status.st_mode), group, usable, stable, known)


def judge(facts: PortFacts) -> Iterator[Finding]:
    """What is to be said of one."""
    about, at = facts.connection, str(facts.path)
    if not facts.there or not facts.is_port:
        there = f"there are: {', '.join(facts.known)}" if facts.known else "is the adapter plugged in? dmesg"
        what = "is not there" if not facts.there else "is no serial port"
        yield fault(about, f"{facts.path} {what}", why="nothing is read through it", remedy=there, looked_at=at)
        return
    if facts.usable is False:
        why = f"it is for the group {facts.group}"
        remedy = f"systemctl edit edge-agent: SupplementaryGroups={facts.group} and DeviceAllow={facts.path} rw"
        yield fault(about, f"the agent's user may not use {facts.path}", why=why, remedy=remedy, looked_at=at)
    if facts.stable and str(facts.path) != facts.stable:
        why = "after a restart, or when something is plugged in, the number may be another one"
        yield note(about, f"{facts.path} is numbered", why=why, remedy=f"write {facts.stable}", looked_at=at)
    elif facts.usable is not False:
        yield ok(about, f"{facts.path} is there", looked_at=at)
