"""What the service manager is told: READY once records can be kept, STATUS with what matters, STOPPING (sd_notify(3)).

READY never waits for a device or a broker. A service manager that does not listen just now holds up nothing: it is told
as soon as it does. Without a service manager nothing is sent.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable

import anyio
import sdnotify

_EVERY = 1.0  # s
_MOST_WAITING = 64  # messages that it has not taken, of which one is a STATUS; the oldest go
_STATUS = "STATUS="

log = logging.getLogger(__name__)


class Health:
    """Tells the service manager how the agent is."""

    def __init__(self) -> None:
        self._notifier: sdnotify.SystemdNotifier | None = None
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._last = ""
        if os.environ.get("NOTIFY_SOCKET"):
            try:
                self._notifier = sdnotify.SystemdNotifier(debug=True)  # which raises instead of hiding it
            except OSError as error:
                log.error("the service manager cannot be told how the agent is error=%s", error)
            else:
                self._notifier.socket.setblocking(False)

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
                self._waiting = deque((each for each in self._waiting if not each.startswith(_STATUS)), _MOST_WAITING)
                self._send(_STATUS + text)
            self._flush()
            await anyio.sleep(_EVERY)

    def close(self) -> None:
        """Let go of the socket."""
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _send(self, message: str) -> None:
        if self._notifier is not None:
            self._waiting.append(message)
            self._flush()

    def _flush(self) -> None:
        """Send what waits, in order, as far as it is taken now."""
        while self._waiting and self._notifier is not None:
            try:
                # sdnotify writes Latin-1, the protocol is UTF-8: so it gets each byte as a character
                self._notifier.notify(self._waiting[0].encode().decode("latin-1"))
            except BlockingIOError:
                return
            except OSError as error:
                log.error("the service manager cannot be told how the agent is error=%s", error)
                self.close()
                return
            self._waiting.popleft()
