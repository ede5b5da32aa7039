"""Looks for a key in what a process left behind: output, logs, files, exceptions."""

from __future__ import annotations

import io
import traceback
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

PIECE = 8  # bytes of the key in a row; fewer would be found by chance


def holds(content: bytes, secret: bytes) -> bool:
    """Whether there is a piece of the key: raw, in hex or base64, reversed, or all of it as a number."""
    pieces = [part[i : i + PIECE] for part in (secret, secret[::-1]) for i in range(len(secret) - PIECE + 1)]
    lower = content.lower()
    return (
        any(piece in content or piece.hex().encode() in lower for piece in pieces)
        or any(b64encode(secret[i:])[2 : 2 + PIECE] in content for i in range(3))
        or str(int.from_bytes(secret, "big")).encode() in content
    )


def files_with(folder: Path, secret: bytes) -> set[str]:
    """The files below a folder that hold a piece of the key."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and _in(path, secret)}


def _in(path: Path, secret: bytes) -> bool:
    return holds(path.read_bytes(), secret)


def told(error: BaseException) -> bytes:
    """All that an exception says: its traceback as Python prints it, and each exception behind it, also hidden ones."""
    text = io.StringIO()
    traceback.print_exception(error, file=text)
    for each in _chain(error):
        text.write(f"{each!r} {each.args!r} {vars(each)!r}\n")
    return text.getvalue().encode(errors="backslashreplace")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    if error is not None:
        yield error
        yield from _chain(error.__cause__)
        yield from _chain(error.__context__)
