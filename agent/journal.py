"""The log: one line per change of state on standard error, with a priority that journald understands (sd-daemon(3)).

A line is a constant message and then key=value pairs. A line that says what the last one of its subject said is held
back for a minute and counted. Whatever the state, the last line written of a subject tells it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from asyncio import InvalidStateError
from collections.abc import Callable, Mapping

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_FOLD = 60.0  # s
_REMEMBERED = 4096  # subjects: the groups of a large fleet
_set: Mapping[str, str] = {}  # levels by logger, as last set up
_OF = re.compile(r" (?:group|device|connection|channel)=(\S+)")


class _Folded(logging.Filter):
    """Holds back a line if the last one written of its subject was the same and is less than a minute old. The next one
    that passes says how many were held back.

    The subject is the group, device, connection or channel that a line names, or else the part of the agent that wrote
    it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._last: dict[tuple[str, str], tuple[str, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line, now = record.getMessage(), self._now()
        named = _OF.search(line)
        subject = record.name, named[1] if named else ""
        last, since, held = self._last.pop(subject, ("", now, 0))
        if line == last and now - since < _FOLD:
            self._last[subject] = (line, since, held + 1)
            return False
        if len(self._last) >= _REMEMBERED:
            del self._last[next(iter(self._last))]  # who has said nothing for the longest time
        self._last[subject] = (line, now, 0)
        if held:
            repeated = "repeated" if line == last else "before_repeated"
            record.msg, record.args = f"{line} {repeated}={held}", ()
        return True


def _is_news(record: logging.LogRecord) -> bool:
    """False for what the event loop says when a local client hangs up in the very turn in which anyio (4.16) stops
    waiting for it: the result comes for a future that has ended. Nothing is lost by it.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, InvalidStateError) and "set_result" in record.getMessage())


class _Line(logging.Formatter):
    """Its own time is UTC, as all that the agent says elsewhere."""

    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def __init__(self, *, journald: bool) -> None:
        super().__init__("%(levelname)s %(message)s" if journald else "%(asctime)s %(levelname)s %(message)s")
        self.converter = time.gmtime
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record).replace("\n", " | ")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._journald else line


def set_up(levels: Mapping[str, str]) -> None:
    """Log to standard error at these levels (debug, info, warning, error) by part of the agent; ``default``: the rest.
    May be called again.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(journald="JOURNAL_STREAM" in os.environ))
    handler.addFilter(_Folded())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries
    logging.getLogger("asyncio").filters[:] = [_is_news]
    global _set
    for name in _set:
        logging.getLogger(name).setLevel(logging.NOTSET)
    _set = {**dict.fromkeys(("agent", "adapters"), levels["default"]), **levels}
    del _set["default"]
    for name, level in _set.items():
        logging.getLogger(name).setLevel(level.upper())
