"""What kind of file system an outbox lies on, and what speaks against it (docs/outbox.md, rule 8)."""

from __future__ import annotations

import re
from pathlib import Path

_MEMORY = "it is memory, and a restart of the machine loses all that waits"
_REMOTE = "locks and syncs are only as good as the server and the network"
_COPIES = "every write goes to another place, so reserved room is not kept and the disk wears faster"
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
}


def filesystem_kind(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path lies on, such as "ext4" (proc_pid_mountinfo(5)); "": not known."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    wanted, best, kind = path.resolve(), -1, ""
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount.split(" ")[4]))
        if wanted.is_relative_to(point) and len(point.parts) >= best:  # a later mount lies over an earlier one
            best, kind = len(point.parts), source.split(" ")[0]
    return kind


def against(path: Path) -> str | None:
    """In words, why an outbox should not lie there; None: nothing is known against it."""
    kind = filesystem_kind(path)
    return f"{path} lies on {kind}: {_AGAINST[kind]}" if kind in _AGAINST else None
