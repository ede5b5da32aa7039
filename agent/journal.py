"""The log: one line per change of state on standard error, with a priority that journald understands (sd-daemon(3)).

A line is a constant message and then key=value pairs. The same line within a minute is held back and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import time

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_FOLD = 60.0  # s
_REMEMBERED = 256


class _Folded(logging.Filter):
    """Holds back a line that was written less than a minute ago; the next one that passes says how many were held
    back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line, now = record.getMessage(), time.monotonic()
        since, held = self._seen.get(line, (-_FOLD, 0))
        if now - since < _FOLD:
            self._seen[line] = (since, held + 1)
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[line] = (now, 0)
        if held:
            record.msg, record.args = f"{line} repeated={held}", ()
        return True


class _Line(logging.Formatter):
    def __init__(self, *, journald: bool) -> None:
        super().__init__("%(levelname)s %(message)s" if journald else "%(asctime)s %(levelname)s %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record).replace("\n", " | ")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._journald else line


def set_up(level: str) -> None:
    """Log to standard error at this level (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(journald="JOURNAL_STREAM" in os.environ))
    handler.addFilter(_Folded())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries
    for name in ("agent", "adapters"):
        logging.getLogger(name).setLevel(level.upper())
