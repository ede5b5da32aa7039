"""The Data Hub as a process, for demos and end-to-end tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from testbed.processes import Simulator


class DataHubProcess(Simulator):
    """``python -m testbed.ddhub`` over the NATS server at ``nats``; ``options``: more of its command line.

    Started again, also after a kill, it keeps its ports and what it knew. ``command`` takes the lines that
    testbed/ddhub/__main__.py lists.
    """

    def __init__(self, folder: Path, nats: str, *, options: Sequence[str | Path] = (), name: str = "ddhub") -> None:
        self.port = self.hub_port = 0
        self.url = self.hub_url = self.rpc_url = ""
        self._nats = nats
        self._state = folder / f"{name}.state"
        self._options = [str(option) for option in options]
        super().__init__([], name=name, folder=folder, piped=True)

    def start(self, timeout: float = 20.0) -> Self:
        """Start it and wait until it listens."""
        ports = ["--port", str(self.port), "--hub-port", str(self.hub_port)]
        kept = ["--nats", self._nats, "--state", str(self._state)]
        self.command_line = [sys.executable, "-m", "testbed.ddhub", *kept, *ports, *self._options]
        super().start()
        self.port = self._ready_port(timeout)
        self.url = self._url("ready ")
        self.hub_url, self.rpc_url = self._url("ssi-hub "), self._url("rpc ")
        self.hub_port = int(self.hub_url.rpartition(":")[2])
        return self

    def _url(self, word: str) -> str:
        return (self._said(word) or "").removeprefix(word)
