"""What the service manager is told: READY once records can be kept, STATUS with what matters, STOPPING (sd_notify(3)).

READY never waits for a device or a broker. Without a service manager nothing is sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import anyio
import sdnotify

_EVERY = 1.0  # s


class Health:
    """Tells the service manager how the agent is."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None
        self._last = ""

    def ready(self) -> None:
        """The agent is up."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The agent reads its configuration again; ``ready`` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The agent is on its way down."""
        self._send("STOPPING=1")

    async def run(self, status: Callable[[], str]) -> None:
        """Keep STATUS as ``status`` says, sent when it changes."""
        while True:
            text = status()
            if text != self._last:
                self._last = text
                self._send(f"STATUS={text}")
            await anyio.sleep(_EVERY)

    def _send(self, message: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(message)
