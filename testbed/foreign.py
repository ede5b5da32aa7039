"""Programs of a Debian for another machine, emulated one by one (qemu-user): no kernel of it, no systemd. By root."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from testbed.namespaces import Namespaces

NEEDS = ("qemu-user-static", "mmdebstrap")


class Foreign(Namespaces):
    """A folder with a Debian for ``machine`` is the root of what runs. ``binds``: folders by where they are to be seen,
    read-only. What is written to /tmp is gone at the end.
    """

    def __init__(self, root: Path, *, machine: str, folder: Path, binds: Mapping[str, Path]) -> None:
        self._root = root
        self._binds = binds
        super().__init__(name="foreign", folder=folder, machine=machine, environment=os.environ)

    def start(self, timeout: float = 20.0) -> Self:
        """Make the namespaces, and what is mounted in them."""
        super().start(timeout)
        lines = [f"set -e; cd {shlex.quote(str(self._root))}"]
        lines += ["mount -t proc proc proc", "mount --rbind /dev dev", "mount --rbind /sys sys"]
        lines += [f"mount -t tmpfs tmpfs {name}" for name in ("tmp", "run")]
        for place, path in self._binds.items():
            inside = shlex.quote(place.lstrip("/"))
            lines += [f"mkdir -p {inside}", f"mount --bind -o ro {shlex.quote(str(path))} {inside}"]
        self.run("sh", "-c", "\n".join(lines))
        return self

    def python(self, *arguments: str, folder: str, timeout: float, **environment: str) -> str:
        """What its python3 writes to stdout. Raises BoxError if its exit status is not 0 or the time is up."""
        inside = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment}
        given = [f"{name}={value}" for name, value in inside.items()]
        there = ["sh", "-c", 'cd "$0" && exec python3 "$@"', folder, *arguments]
        return self.run("env", "-i", *given, "chroot", self._root, *there, timeout=timeout)
