"""Text from anywhere, for a terminal or a log line."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line; what would move a cursor, colour or hide anything is written as its code point."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
