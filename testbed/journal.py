"""A simulator's journal: JSON lines that are with the kernel before the world learns what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

Json = dict[str, Any]


def boot_time() -> int:
    """Ns of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class JournalFile:
    """Appends lines; without a file it writes nothing."""

    def __init__(self, path: str | None) -> None:
        self._file: TextIO | None = None
        if path:
            self._file = open(path, "a", buffering=1, encoding="ascii")  # noqa: SIM115  # until the process ends

    def __bool__(self) -> bool:
        return self._file is not None

    def line(self, content: str) -> None:
        """Append one JSON object; it has left the process when this returns."""
        if self._file:
            self._file.write(content + "\n")

    def now(self, content: Mapping[str, Any]) -> int:
        """Append an object with the times ``t_boot`` and ``t_wall`` before it; returns the first."""
        boot = boot_time()
        self.line(json.dumps({"t_boot": boot, "t_wall": time.time_ns(), **content}))
        return boot


def json_lines(path: Path) -> Iterator[Json]:
    """The JSON objects of a file, one a line. One that a kill cut short was not answered either: it is passed over, and
    what was written behind it on the same line is taken.
    """
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        start = line.find("{")
        while start >= 0:
            try:
                yield json.loads(line[start:])
                break
            except ValueError:
                start = line.find("{", start + 1)
