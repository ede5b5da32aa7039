"""What the service manager is told: READY once records can be kept, STATUS with what matters, WATCHDOG while all vital
parts make progress, STOPPING (sd_notify(3), sd_watchdog_enabled(3)).

READY never waits for a device or a broker. A service manager that does not listen just now holds up nothing: it is told
as soon as it does. Without a service manager nothing is sent.

The watchdog is fed from the event loop, four times in the time that the service manager allows, so a loop that hangs
feeds nothing. It is not fed either while a vital part makes no progress (agent/heartbeat.py), which the log names; if
the part goes on in time, nothing happens.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import anyio
import sdnotify

_EVERY = 1.0  # s
_MOST_WAITING = 64  # messages that it has not taken, of which one is a STATUS and one a WATCHDOG; the oldest go
_STATUS, _WATCHDOG = "STATUS=", "WATCHDOG=1"

log = logging.getLogger(__name__)


class Health:
    """Tells the service manager how the agent is."""

    def __init__(self) -> None:
        self._notifier: sdnotify.SystemdNotifier | None = None
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._last = ""
        self._feed_every = _allowed() / 4  # s; 0: nobody watches
        self._fed = 0.0
        self._stuck: Sequence[str] = ()
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

    async def run(self, status: Callable[[], str], overdue: Callable[[], Sequence[str]] = tuple) -> None:
        """Keep STATUS as ``status`` says, sent when it changes, and feed the watchdog unless a part is ``overdue``."""
        while True:
            self._look(overdue())
            text = status()
            if text != self._last:
                self._last = text
                self._replace(_STATUS, _STATUS + text)
            self._flush()
            await anyio.sleep(min(_EVERY, self._feed_every or _EVERY))

    def close(self) -> None:
        """Let go of the socket."""
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _look(self, stuck: Sequence[str]) -> None:
        """Feed the watchdog, or say why not, once for each part."""
        for part in stuck:
            if part not in self._stuck:
                log.critical("no progress, the watchdog is not fed part=%s", part)
        for part in self._stuck:
            if part not in stuck:
                log.warning("progress again part=%s", part)
        self._stuck = stuck
        now = time.monotonic()
        if self._feed_every and not stuck and now - self._fed >= self._feed_every - _EVERY / 2:
            self._fed = now
            self._replace(_WATCHDOG, _WATCHDOG)

    def _replace(self, kind: str, message: str) -> None:
        """Send it instead of what still waits of its kind."""
        self._waiting = deque((each for each in self._waiting if not each.startswith(kind)), _MOST_WAITING)
        self._send(message)

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


def _allowed() -> float:
    """Seconds that the service manager lets pass without a WATCHDOG; 0: it does not watch us."""
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC") or 0)
        watched = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return 0.0
    return allowed / 1e6 if allowed > 0 and watched == os.getpid() else 0.0
