"""What the broker's answers look like: JSON-B, and errors with a code. Pure.

JSON-B leaves out what is null and sorts by name. Codes: the specification, 1.14.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


class Refused(Exception):
    """A request that ends with an error of the broker."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Unhandled(Exception):
    """A request that the broker dies of: a bare 500."""


def invalid(message: str) -> Refused:
    """Bean validation."""
    return Refused(400, "17", message)


def illegal(message: str) -> Refused:
    """A Java IllegalArgumentException."""
    return Refused(400, "16", message)


def missing(message: str) -> Refused:
    """A document that is not in the database; ``message`` has to say "not exists"."""
    return Refused(404, "50", message)


def rendered(value: Any) -> bytes:
    """As Yasson writes it."""
    return json.dumps(_present(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(each) for key, each in value.items() if each is not None}
    return [_present(each) for each in value] if isinstance(value, list) else value


def timestamp(now_ms: int) -> str:
    """A java.util.Date as Yasson writes it."""
    moment = datetime.fromtimestamp(now_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ms % 1000:03}Z[UTC]"


def outcome(code: str, message: str, now_ms: int, **more: Any) -> Json:
    """The broker's DDHubResponse."""
    return {"returnCode": code, "returnMessage": message, "timestamp": timestamp(now_ms), **more}
