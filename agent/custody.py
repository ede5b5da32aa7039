"""Where the device's key is kept, as a configuration or a command line names it: ``file:PATH``, ``credential:NAME``
(systemd.exec(5), LoadCredential=) or ``keystore:FILE`` (web3 secret storage, version 3).

Pure: names a place and touches nothing. agent/signer opens it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.fields import NOT_YET

PATTERN = "^(file|credential|keystore):."
_REMEDY = 'write "file:PATH", "keystore:FILE" or "credential:NAME"'
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_DIGITS = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")

Kind = Literal["file", "credential", "keystore"]


@dataclass(frozen=True, slots=True)
class Custody:
    """One place of a key. ``where`` is a path, or the name of a credential."""

    kind: Kind
    where: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}"

    @property
    def path(self) -> Path:
        """The file of a ``file:`` or ``keystore:``."""
        return Path(self.where)


def parse(text: object, *, folder: Path = Path()) -> Custody:
    """The place that a text names; relative paths start at ``folder``.

    Raises ValueError with "what is wrong; what to do"; it never repeats the text, which may be the key itself.
    """
    kind, _, where = text.partition(":") if isinstance(text, str) else ("", "", "")
    if _DIGITS.search(str(text)):
        raise ValueError(f"this looks like the key itself, which stands only in its own place; {_REMEDY}")
    if kind == "pkcs11":
        raise ValueError(f'"pkcs11:" is {NOT_YET}; {_REMEDY}')
    if kind == "credential" and where:
        if not _NAME.fullmatch(where) or where in (".", ".."):
            raise ValueError("this is no name of a credential; write letters, digits, _, . and -")
        return Custody("credential", where)
    if kind not in ("file", "keystore") or not where or "\0" in where:
        raise ValueError(f"expected the place of the key; {_REMEDY}")
    if where.startswith("~"):
        raise ValueError("~ stands for no folder here; write the whole path")
    return Custody("file" if kind == "file" else "keystore", str(folder / where))
