"""A message as it came over the wire: what the client hands over and the devices decode.

Pure. The payload is parsed when the first device asks for it, and once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from adapters.mqtt.payload import parse

_UNPARSED = object()
_LONGEST_TOPIC = 200  # characters of a topic in a text for people and evidence


@dataclass(frozen=True, slots=True)
class Skipped:
    """A payload that was read and thrown away: why, and what is known of it."""

    size: int
    digest: bytes  # SHA-256
    reason: str


@dataclass(slots=True, eq=False)
class Message:
    """A PUBLISH packet (MQTT 5.0, section 3.3). ``mid``: its packet identifier, 0 with QoS 0."""

    topic: str
    payload: bytes
    qos: int = 0
    mid: int = 0
    dup: bool = False
    retain: bool = False
    skipped: Skipped | None = None
    _document: Any = _UNPARSED
    _problem: str = ""

    @property
    def size(self) -> int:
        """Of topic and payload: what somebody else chose."""
        return len(self.topic) + len(self.payload)

    def document(self) -> Any:
        """The payload as JSON. Raises ValueError with what is wrong with it, in a few words."""
        if self._document is _UNPARSED and not self._problem:
            try:
                if self.skipped is not None:
                    raise ValueError(self.skipped.reason)
                self._document = parse(self.payload)
            except ValueError as error:
                self._problem = str(error)
        if self._problem:
            raise ValueError(self._problem)
        return self._document

    def forget(self) -> None:
        """Let go of the parsed payload, which takes many times its memory; it can be parsed again."""
        self._document = _UNPARSED

    def describe(self) -> str:
        """``site/battery/state 1234 bytes sha256 0123456789abcdef``: which message it was, without its payload."""
        topic = self.topic if len(self.topic) <= _LONGEST_TOPIC else self.topic[:_LONGEST_TOPIC] + "..."
        if not topic.isprintable():  # it goes into logs
            topic = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in topic)
        size, digest = len(self.payload), hashlib.sha256(self.payload).digest()
        if self.skipped is not None:
            size, digest = self.skipped.size, self.skipped.digest
        return f"{topic} {size} bytes sha256 {digest.hex()[:16]}"
