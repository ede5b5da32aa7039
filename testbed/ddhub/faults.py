"""What a test lets go wrong: by name, for so many requests, counted.

``DataHub.faults.put("500", path="/messages", times=2)``. Names that any request may meet are in ``ANYWHERE``, those
that belong to one call in ``PLACES``. A fault that is over says nothing; ``taken`` counts them by name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

ANYWHERE = {
    "500": "answered 500 without being done",
    "502": "answered 502 with nginx's page",
    "503": "answered 503 with nginx's page",
    "401": "answered 401 with nginx's page: the token has expired or was revoked",
    "403": "answered 403 with nginx's page",
    "413": "answered 413 with nginx's page",
    "429": "answered 429 with Retry-After: 1",
    "done-500": "done, and then answered 500",
    "cut": "connection cut, nothing done",
    "lost": "done, and the connection cut instead of an answer",
    "silent": "nothing done, no answer until the client goes or the hub closes",
    "held": "done, the answer held until Fault.release()",
    "junk": "200, text that is no JSON",
    "html": "200, a page of HTML",
    "truncated": "done, and half of the answer",
    "empty": "200 with no body",
}
PLACES = {
    "key-lost": "POST /messages/internal: 200 {}, not stored (did: of whom)",
    "recipient-failed": "POST /messages: one recipient FAILED in a 200 (did, code, reason, with_did: is it named)",
    "all-failed": "POST /messages: every recipient FAILED in a 200 (code, reason, with_did)",
    "miscounted": "POST /messages: total is greater than sent and failed together (by: so many)",
    "ack-incomplete": "POST /messages/ack: 400/20 after the first `done` ids were acknowledged (default 1)",
    "search-empty": "POST /messages/search, also internal: 200 [] although there is something",
    "reversed": "POST /messages/search: the newest first",
    "escaped": "POST /messages: plain strings of unencrypted JSON payloads rewritten (branch fix/handle-encode)",
    "unordered-drop": "POST /messages/search: the first found is left out (it comes next time)",
    "rpc-error": "JSON-RPC: an error object (code, message; method: of which)",
    "rpc-nonsense": "JSON-RPC: `result` is this (result; method: of which)",
    "stale-document": "GET /v1/DID: the document of a DID without any attribute",
}


@dataclass(slots=True)
class Fault:
    """One fault that was put: ``left`` more times (None: until taken away)."""

    name: str
    path: str
    left: int | None
    details: dict[str, Any]
    skip: int = 0
    count: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let held answers go; call it in the hub's event loop."""
        self.released.set()


class Faults:
    """All faults that are put, the oldest first. Plain memory: a hub that is started again has none."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self._faults: list[Fault] = []

    def put(self, name: str, *, path: str = "*", times: int | None = 1, skip: int = 0, **details: Any) -> Fault:
        """Let ``name`` happen to the next ``times`` requests (None: all) after the next ``skip`` that it fits.

        ``path`` is a pattern with ``*``; ``details`` are as ANYWHERE and PLACES name them. Raises ValueError for an
        unknown name.
        """
        if name not in ANYWHERE and name not in PLACES:
            raise ValueError(f"no fault {name!r}")
        self._faults.append(Fault(name, path, times, details, skip))
        return self._faults[-1]

    def clear(self, name: str | None = None) -> None:
        """Take away the faults of this name, or all; held answers go."""
        for fault in [each for each in self._faults if name in (None, each.name)]:
            fault.left = 0
            fault.release()
        self._faults = [each for each in self._faults if each.left != 0]

    def take(self, name: str, path: str = "", **facts: Any) -> Fault | None:
        """The fault of this name that happens now, counted; None if none does.

        Of its details, those that ``facts`` have too must be equal.
        """
        return self._take((name,), path, facts)

    def take_any(self, path: str) -> Fault | None:
        """The fault of ANYWHERE that happens to a request of this path."""
        return self._take(tuple(ANYWHERE), path, {})

    def _take(self, names: tuple[str, ...], path: str, facts: dict[str, Any]) -> Fault | None:
        for fault in self._faults:
            if fault.name not in names or not fnmatchcase(path, fault.path):
                continue
            if any(fault.details.get(key) not in (None, value) for key, value in facts.items()):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.left is not None:
                fault.left -= 1
                if not fault.left:
                    self._faults.remove(fault)
            fault.count += 1
            self.taken[fault.name] += 1
            return fault
        return None
