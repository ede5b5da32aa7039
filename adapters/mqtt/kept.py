"""What a kept session at the broker is subscribed to, remembered on disk.

MQTT has no way to ask a broker for that. What an earlier configuration subscribed would be sent on and on, and twice
where it takes the same messages as a filter of today. One filter a line; without a file it is not known.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

from adapters.mqtt.topics import judge_filter

_MOST_BYTES = 4 << 20

log = logging.getLogger(__name__)


class KeptFilters:
    """The filters that the session of one connection may hold, ``known``: empty if that is not known.

    ``path`` None: only memory knows them.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.known: Set[str] = frozenset()
        self._read = False

    async def read(self) -> None:
        """Have ``known`` say what the file does. Never raises."""
        if not self._read:
            self.known = await to_thread.run_sync(self._load)
            self._read = True

    async def write(self, filters: Set[str]) -> None:
        """Return once they are on disk, if they can be; after ``read``. Never raises."""
        if filters != self.known:
            self.known = frozenset(filters)
            await to_thread.run_sync(self._store, sorted(filters))

    def _load(self) -> Set[str]:
        found = set()
        with suppress(OSError, UnicodeDecodeError):
            if self.path is not None and self.path.stat().st_size <= _MOST_BYTES:
                for line in self.path.read_text("utf-8").splitlines():
                    with suppress(ValueError):
                        found.add(judge_filter(line))
        return found

    def _store(self, filters: list[str]) -> None:
        if self.path is None:
            return
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines(f"{each}\n" for each in filters)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            log.warning("cannot remember what is subscribed file=%s error=%s", self.path, error.strerror)
