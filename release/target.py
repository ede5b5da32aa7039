"""The systems that packages are made for: what of the lock a system needs, and which wheels run there.

Pure. Nothing of a target is asked of the machine that builds: any can be made on any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.requirements import Requirement

OLDEST_GLIBC = 17  # minor version; manylinux2014 is the same
NEEDS_GLIBC = "2.28"  # the newest symbol that a wheel of the lock asks for


@dataclass(frozen=True, slots=True)
class Target:
    """A Debian release on a machine. ``glibc``: minor version of what the release ships."""

    name: str
    release: int
    codename: str
    python: str  # "3.11"
    glibc: int
    architecture: str  # as Debian calls it
    machine: str  # as the kernel does

    @property
    def wheels(self) -> list[str]:
        """pip's options for the wheels that run there."""
        abi = f"cp{self.python.replace('.', '')}"
        platforms = [f"manylinux_2_{minor}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        return [
            f"--python-version={self.python}",
            "--implementation=cp",
            *(f"--abi={each}" for each in (abi, "abi3", "none")),
            *(f"--platform={each}_{self.machine}" for each in (*platforms, "manylinux2014")),
        ]

    @property
    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) are there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def needs(self, entries: Mapping[str, str]) -> dict[str, str]:
        """Those entries of the lock whose markers hold there, without them: pip would ask its own machine."""
        needed = {}
        for name, block in entries.items():
            found = re.match(r"([^;\\\n]+)(;[^\\\n]+)?", block)
            assert found is not None, name
            marker = Requirement(found[0].strip()).marker
            if marker is None or marker.evaluate(self.markers):
                needed[name] = found[1].rstrip() + " " + block[found.end() :].lstrip(" ")
        return needed


_RELEASES = ((12, "bookworm", "3.11", 36), (13, "trixie", "3.13", 41))
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
TARGETS = {
    target.name: target
    for release, codename, python, glibc in _RELEASES
    for architecture, machine in _MACHINES.items()
    for target in [Target(f"deb{release}-{architecture}", release, codename, python, glibc, architecture, machine)]
}
