"""Heartbeats: what vital parts promise about being back, and which of them did not keep it.

A vital part (the writer of a channel, its publisher, a poller, a listener) notes before it waits for something that
must come to an end by when that will be, and nothing while it may wait for as long as it takes. It costs an attribute,
no timer and no task. Who feeds the watchdog (agent/health.py) asks ``Vitals.overdue`` about once a second.

Times are boot times, which also count while the box sleeps, and a part that could not run cannot keep a promise: so one
is overdue only if it was so at two looks in a row, with the same promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

WITHIN = 300_000_000_000
"""Ns that something may take whose length nobody knows, an adapter's or a library's business: longer than any time-out
that can be configured, and than name service, TLS and a slow line together."""


class Heartbeat:
    """One vital part. ``due``: it is back by this boot time; None: it waits for work, or for others who promise."""

    __slots__ = ("due", "name")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.due: int | None = None

    @contextmanager
    def back_by(self, due: int) -> Iterator[None]:
        """The block ends by then."""
        self.due = due
        try:
            yield
        finally:
            self.due = None


class Vitals:
    """The vital parts as they come and go."""

    def __init__(self) -> None:
        self._parts: set[Heartbeat] = set()
        self._late: dict[Heartbeat, int] = {}  # at the last look, and what they had promised

    @contextmanager
    def watching(self, *parts: Heartbeat) -> Iterator[None]:
        """These are vital while the block runs."""
        self._parts.update(parts)
        try:
            yield
        finally:
            self._parts.difference_update(parts)

    def overdue(self, now: int) -> list[str]:
        """The names of parts that promised to be back by now, are not, and were not at the last look either."""
        late = {part: part.due for part in self._parts if part.due is not None and part.due < now}
        found = sorted(part.name for part, due in late.items() if self._late.get(part) == due)
        self._late = late
        return found
