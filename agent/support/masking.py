"""Secrets taken out of text: those that are known by their bytes, others by their looks. Pure.

The last of several nets: what is packed should not hold any. A short secret may take harmless text with it.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import quote

MASK = "(masked)"
_SHORTEST = 4  # characters of a secret that is looked for
_LINE = 12  # characters of a line of a longer secret
_LOOKS = (
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|SEED|JWT)-----.*?(?:-----END [A-Z0-9 ]*-+|\Z)",
        re.DOTALL,
    ),
    re.compile(r"\bS[UAONCX][A-Z2-7]{48,}\b"),  # seed of an NKey
    re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]+)?"),  # JWT
    re.compile(r"(?<=://)[^\s/@\"']+(?=@)"),  # user and password of a URL
    re.compile(r"(?i)(?<=authorization: )\S+(?: \S+)?"),
    re.compile(
        r"(?i)\b(?:password|passwd|passphrase|token|api[_-]?key)[\"']?\s*(?:=|:\s*(?=[\"']))\s*[\"']?(?![({])[^\s\"',;}]+"
    ),
)


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, plain, in hex, base64, quoted as in a URL or in JSON, and without what looks like
    one.
    """
    for form in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(form, MASK)
    for look in _LOOKS:
        text = look.sub(MASK, text)
    return text


def _forms(secret: str) -> Iterator[str]:
    for piece in {secret, *(line.strip() for line in secret.splitlines() if len(line.strip()) >= _LINE)}:
        if len(piece) < _SHORTEST:
            continue
        raw = piece.encode()
        yield from (piece, quote(piece, safe=""), json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1])
        yield from (raw.hex(), raw.hex().upper())
        for shift in range(3):  # wherever it stands in what was encoded
            encoded = b64encode(bytes(shift) + raw).decode().rstrip("=")
            if len(inner := encoded[4 if shift else 0 : len(encoded) - 2]) >= 2 * _SHORTEST:
                yield inner
        if re.fullmatch(r"(?:0x)?[0-9A-Fa-f]{64}", piece):  # a key
            bare = piece.removeprefix("0x")
            yield from (bare, bare.lower(), bare.upper(), str(int(bare, 16)))
