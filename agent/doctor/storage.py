"""The folder of the outboxes: is it on a disk that keeps what is written, and is there room for what was configured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.control.status_text import size
from agent.doctor.finding import Finding, fault, note, ok, warning
from agent.outbox.filesystem import WEARS, Mount, mount_of, reason_against

_MOUNTED = {  # options that break what the outbox rests on
    "nobarrier": "a power cut may lose what was said to be on disk",
    "barrier=0": "a power cut may lose what was said to be on disk",
    "data=writeback": "after a power cut a file may hold what other files held before",
}
_SPARE, _NODES = 64 << 20, 64  # bytes, files: what the log and small files need


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """``folder``: the state folder; ``there``: whether it is, else the folder above it was looked at. ``free``: bytes
    that we may still take, ``files``: files. ``wanted``: of each outbox, how many bytes it has not reserved yet, and
    ``thin``: those whose file is there and has not reserved all. ``errors``: how many the file system has counted.
    ``instead``: what is there that is no folder.
    """

    folder: Path
    there: bool
    mount: Mount
    free: int
    files: int
    wanted: Mapping[str, int] = field(default_factory=dict)
    thin: tuple[str, ...] = ()
    errors: int | None = None
    instead: str = ""


def look(folder: Path, outboxes: Mapping[str, int], *, sys: Path = Path("/sys")) -> StorageFacts:
    """``outboxes``: bytes by channel. Blocks. Raises OSError."""
    there, instead = folder.is_dir(), ""
    if folder.is_symlink() and not there:
        instead = f"a link to {folder.readlink()}, where no folder is"
    elif folder.exists() and not there:
        instead = "no folder"
    nearest = next(each for each in (folder, *folder.parents) if each.is_dir())
    room = os.statvfs(nearest)
    wanted, thin = dict[str, int](), list[str]()
    for name, count in outboxes.items():
        wanted[name] = count
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            status = (folder / f"{name}.ring").stat()
            wanted[name] = max(0, status.st_size - 512 * status.st_blocks)
            if wanted[name]:
                thin.append(name)
    errors = None
    with suppress(OSError, ValueError):
        device = (sys / "dev" / "block" / device_number(nearest)).resolve().name
        errors = int((sys / "fs" / "ext4" / device / "errors_count").read_text())
    files = room.f_favail if room.f_files else _NODES  # some file systems do not count them
    return StorageFacts(
        folder, there, mount_of(nearest), room.f_bavail * room.f_frsize, files, wanted, tuple(thin), errors, instead
    )


def device_number(path: Path) -> str:
    """MAJOR:MINOR of the device that a path lies on, as /sys names it. Raises OSError."""
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def judge(facts: StorageFacts) -> Iterator[Finding]:
    """What is to be said of it."""
    about, at = "state folder", str(facts.folder)
    if facts.instead:
        why, remedy = "the agent does not start without it", "is a disk to be mounted there? is agent.state right?"
        yield fault(about, f"{facts.folder} is {facts.instead}", why=why, remedy=remedy, looked_at=at)
    elif not facts.there:
        why = "the agent makes it at its first start, if it may"
        remedy = "is agent.state right? is a disk missing that is mounted there?"
        yield note(about, f"{facts.folder} is not there", why=why, remedy=remedy, looked_at=at)
    yield from _kind(facts, about)
    yield from _mounted(facts, about)
    if facts.errors:
        remedy = "dmesg says which; check the file system (fsck), and replace the card or disk"
        why = "a disk that failed once fails again, and then nothing is stored"
        found = f"its file system has counted {facts.errors} errors"
        yield fault(about, found, why=why, remedy=remedy, looked_at="/sys/fs/ext4")
    yield from _room(facts, about)


def _kind(facts: StorageFacts, about: str) -> Iterator[Finding]:
    kind, at = facts.mount.kind, "/proc/self/mountinfo"
    if (why := reason_against(kind)) is None:
        if kind:
            yield ok(about, f"{facts.folder} lies on {kind}", looked_at=at)
        return
    told = warning if kind in WEARS else fault
    remedy = "stop the agent, put agent.state on a local ext4 or XFS, copy what is in it, start"
    yield told(about, f"{facts.folder} lies on {kind}", why=why, remedy=remedy, looked_at=at)


def _mounted(facts: StorageFacts, about: str) -> Iterator[Finding]:
    at = "/proc/self/mountinfo"
    if "ro" in facts.mount.options:
        why = "nothing can be stored; the kernel does that by itself after an error of the disk"
        remedy = "dmesg says why; fsck and replace the card, or mount it with rw"
        yield fault(about, f"{facts.folder} is mounted read-only", why=why, remedy=remedy, looked_at=at)
    for option, why in _MOUNTED.items():
        if option in facts.mount.options:
            remedy = f"take {option} out of /etc/fstab and mount it anew"
            yield warning(about, f"{facts.folder} is mounted with {option}", why=why, remedy=remedy, looked_at=at)


def _room(facts: StorageFacts, about: str) -> Iterator[Finding]:
    wanted, at = sum(facts.wanted.values()), "statvfs"
    free = f"{size(facts.free)} free"
    for name in facts.thin:
        found = f"outbox {name} has not reserved {size(facts.wanted[name])} of its room"
        why = "it was copied, and a full disk would stop it"
        remedy = f"stop the agent, edge-agent outbox resize --channel {name}, start"
        yield warning(about, found, why=why, remedy=remedy, looked_at=f"{facts.folder}/{name}.ring")
    if wanted > facts.free:
        found = f"{free}, and the outboxes still need {size(wanted)}"
        why = "the agent cannot make them, and does not start"
        yield fault(about, found, why=why, remedy="make room, or lower outbox.size", looked_at=at)
    elif facts.files < _NODES or facts.free - wanted < _SPARE:
        short = "hardly a file more can be made" if facts.files < _NODES else free
        why = "outboxes have their room, the log and the rest of the box do not"
        yield warning(about, short, why=why, remedy="journalctl --vacuum-size=100M; du -xh / | sort -h", looked_at=at)
    else:
        more = f", of which the outboxes still need {size(wanted)}" if wanted else ""
        yield ok(about, free + more, looked_at=at)
