"""What the deployed systems keep in databases: topics, channels, roles, files, refresh tokens, the chain. Messages are
in NATS.

With a path it is one JSON file, replaced as a whole at each change: a hub that was killed goes on with it.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class State:
    """Everything is plain JSON; who changes something calls ``save``."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        kept = json.loads(path.read_bytes()) if path is not None and path.exists() else {}
        self.secret: str = kept.get("secret") or secrets.token_hex(32)
        self.participants: dict[str, list[str]] = kept.get("participants", {})  # DID: roles that the proxy finds
        self.topics: list[Json] = kept.get("topics", [])
        self.channels: dict[str, str] = kept.get("channels", {})  # fqcn: the DID that it belongs to
        self.role_index: dict[str, list[str]] = kept.get("role_index", {})  # DID: roles, never forgotten
        self.files: dict[str, Json] = kept.get("files", {})
        self.refresh_tokens: dict[str, str] = kept.get("refresh_tokens", {})  # id: DID
        self.blocks: list[Json] = kept.get("blocks", [])
        self.accounts: dict[str, Json] = kept.get("accounts", {})

    def save(self) -> None:
        """Put it on disk, if it has a place there."""
        if self.path is None:
            return
        whole = {name: value for name, value in vars(self).items() if name != "path"}
        beside = self.path.with_name(self.path.name + ".new")
        with open(beside, "w", encoding="utf-8", opener=_private) as file:
            json.dump(whole, file)
        beside.replace(self.path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
