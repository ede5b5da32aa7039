"""Namespaces of users, mounts and processes, in which programs of another machine run, too. Needs root.

testbed/apart.py holds them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import provision
from testbed.box import BoxError, cgroup2, run
from testbed.child import Process, ProcessError, wait_for

_APART = Path(__file__).with_name("apart.py")
_EMULATOR = {"arm64": "qemu-user-static"}
_OURS = {"x86_64": "amd64", "aarch64": "arm64"}


class Namespaces(Process):
    """They end with this process, and with them all that runs in there. ``machine``: whose programs are to run; if it
    is another than ours they are emulated. ``environment``: of what runs.
    """

    def __init__(self, *, name: str, folder: Path, machine: str, environment: Mapping[str, str]) -> None:
        self.foreign = foreign(machine)
        self.machine = machine
        self._leader = ""
        self._inside = environment
        emulation = [machine, str(program(_EMULATOR[machine])[0])] if self.foreign else []
        holder = [sys.executable, "-I", "-S", str(_APART), str(cgroup2()), *emulation]
        super().__init__(holder, name=name, folder=folder)

    def start(self, timeout: float = 20.0) -> Self:
        """Make the namespaces."""
        super().start()
        self._leader = self._await(self._ready, timeout=timeout, what="namespaces")
        return self

    def close(self) -> None:
        """End all that runs in there."""
        super().close()
        if self._leader:
            with suppress(ProcessError):
                wait_for(
                    lambda: not Path("/proc", self._leader).exists(), timeout=30, what="the end of its first process"
                )

    def run(self, *command: str | Path, check: bool = True, given: str = "", timeout: float = 1800.0) -> str:
        """What a command in there writes to stdout. Raises BoxError if its exit status is not 0 or the time is up."""
        enter = ["nsenter", f"--target={self._leader}", "--user", "--mount", "--pid", *map(str, command)]
        return run(enter, environment=self._inside, check=check, given=given, timeout=timeout)

    def _ready(self) -> str | None:
        line = next((line for line in self.log().splitlines() if line.startswith("ready ")), None)
        return line and line.split()[1]


def foreign(machine: str) -> bool:
    """Whether programs of a machine ("amd64", "arm64") have to be emulated here."""
    return _OURS.get(os.uname().machine) != machine


def program(name: str) -> tuple[Path, dict[str, str]]:
    """A program of Debian and the environment that it needs. Raises BoxError if it was not made ready."""
    found = provision.program(name)
    if found is None:
        raise BoxError(f"no {name}: provision.py makes it ready")
    return found
