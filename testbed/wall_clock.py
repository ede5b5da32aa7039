"""The wall clock of one program, set while it runs: libfaketime lies between it and the kernel (provision.py gets
that), and what the kernel says of the clock comes from a file.

CLOCK_BOOTTIME and CLOCK_MONOTONIC stay the machine's, so that what a program does by them can be held against what
others saw. With ``asleep`` all three are one, so that they go on together as they do when a machine sleeps.

``python -m testbed.wall_clock FILE ...``: ``edge-agent ...`` whose kernel says what the file says: the result, status
and maxerror of adjtimex(2).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import provision
from testbed.processes import Agent, ProcessError

SYNCHRONISED, NOT_SYNCHRONISED = (0, 0x2001, 1500), (5, 0x40, 16_000_000)
YEAR_1970, YEAR_2020 = 0.0, 1_577_836_800.0  # s


class WallClock:
    """The wall clock of the programs that run with its ``environment``; at first it is right, and nobody keeps it.

    ``rate``: it runs so many times as fast from the start of a program on.
    """

    def __init__(self, folder: Path, *, rate: float = 1.0, asleep: bool = False, name: str = "clock") -> None:
        library = provision.program("libfaketime")
        if library is None:
            raise ProcessError("no libfaketime: python3 provision.py debian makes it ready")
        self._file, self.kernel = folder / f"{name}.faketime", folder / f"{name}.kernel"
        self._rate = "" if rate == 1 else f" x{rate:.6f}"
        self.environment = {
            "LD_PRELOAD": str(library[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "0" if asleep else "1",
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.offset = 0.0
        self.step(0)
        self.says(NOT_SYNCHRONISED)

    def set(self, wall: float) -> None:
        """Set it to s since 1970."""
        self.step(wall - time.time() - self.offset)

    def step(self, seconds: float) -> None:
        """Set it forward, or back."""
        self.offset += seconds
        _replace(self._file, f"{self.offset:+.6f}{self._rate}\n")

    def says(self, answer: Sequence[int]) -> None:
        """Have the kernel answer this from now on."""
        _replace(self.kernel, " ".join(map(str, answer)))

    def of(self, agent: Agent) -> None:
        """From its next start on it is this agent's clock."""
        agent.environment |= self.environment
        run = agent.command_line.index("run")
        module = [sys.executable, "-m", "testbed.wall_clock", str(self.kernel)]
        agent.command_line = module + agent.command_line[run:]


def _replace(file: Path, text: str) -> None:
    """Never half of it, for it is read all the time."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def follow(kernel: Path) -> None:
    """From now on this process asks the file what the kernel says of the clock."""
    from agent import clock

    def read() -> tuple[int, int, int]:
        result, status, maxerror = map(int, kernel.read_text().split())
        return result, status, maxerror

    clock._adjtimex = lambda: read
    os.environ.pop("LD_PRELOAD", None)  # what it starts has the machine's clock


def main() -> int:
    """Be the agent."""
    from agent.cli import main as edge_agent

    follow(Path(sys.argv[1]))
    return edge_agent(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
