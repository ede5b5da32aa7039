"""What kind of file system an outbox lies on, and what speaks against it (docs/outbox.md, rule 8)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MEMORY = "it is memory, and a restart of the machine loses all that waits"
_REMOTE = "locks and syncs are only as good as the server and the network"
_COPIES = "every write goes to another place, so reserved room is not kept and the disk wears faster"
_SIMPLE = "it knows neither owners nor a journal, so anybody reads the key and a power cut may take the folder"
_AGAINST = {
    "tmpfs": _MEMORY,
    "ramfs": _MEMORY,
    "overlay": "it goes away with the container",
    "btrfs": _COPIES,
    "f2fs": _COPIES,
    "zfs": _COPIES,
    "nfs": _REMOTE,
    "nfs4": _REMOTE,
    "cifs": _REMOTE,
    "smb3": _REMOTE,
    "9p": _REMOTE,
    "vfat": _SIMPLE,
    "msdos": _SIMPLE,
    "exfat": _SIMPLE,
}
WEARS = frozenset(kind for kind, why in _AGAINST.items() if why is _COPIES)  # it works there, at a price


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a path lies: the type of its file system such as "ext4" ("": not known), and the options in force."""

    kind: str = ""
    options: frozenset[str] = frozenset()


def mount_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> Mount:
    """The mount that a path lies on (proc_pid_mountinfo(5)). Never raises for a path that is not there."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return Mount()
    wanted, best, found = path.resolve(), -1, Mount()
    for line in lines:
        mount, _, source = line.partition(" - ")
        fields, of_source = mount.split(" "), source.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), fields[4]))
        if wanted.is_relative_to(point) and len(point.parts) >= best:  # a later mount lies over an earlier one
            options = {*fields[5].split(","), *(of_source[2].split(",") if len(of_source) > 2 else ())}
            best, found = len(point.parts), Mount(of_source[0], frozenset(options))
    return found


def filesystem_kind(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path lies on; "": not known."""
    return mount_of(path, mounts).kind


def reason_against(kind: str) -> str | None:
    """In words, why an outbox should not lie on a type of file system; None: nothing is known against it."""
    return _AGAINST.get(kind)


def against(path: Path) -> str | None:
    """In words, why an outbox should not lie there; None: nothing is known against it."""
    kind = filesystem_kind(path)
    return f"{path} lies on {kind}: {_AGAINST[kind]}" if kind in _AGAINST else None
