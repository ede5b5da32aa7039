"""NKeys and what holds them: the seed of a user, and the credentials file with a JWT that ``nsc`` writes.

An NKey is an Ed25519 key (RFC 8032) in base32 with a prefix that says whose it is, and a CRC-16 (NATS ADR-14). Pure:
text in, values out. No error repeats a text. The seed stays in the memory of who holds the ``Nkey``.

Signed with pycryptodome, which eth-account brings to every installation; nats-py's own way needs two more packages,
cryptography would take 16 MB of disk and 8 MiB of memory, against 4.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b32decode, b32encode, b64encode, urlsafe_b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from Crypto.PublicKey.ECC import EccKey

_SEED, _USER = 18 << 3, 20 << 3  # shown as S and U
_WHOSE = {"O": "an operator", "A": "an account", "N": "a server", "C": "a cluster", "X": "a curve key"}
_SEED_TEXT = re.compile(r"(?<![A-Z2-7])S[A-Z][A-Z2-7]{56}(?![A-Z2-7])")
_JWT = re.compile(r"(?<![\w.-])[\w-]{8,}\.([\w-]{8,})\.[\w-]{8,}(?![\w.-])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Nkey:
    """A user's key: ``public`` is the text by which the server knows it."""

    public: str
    _key: EccKey = field(repr=False)

    @classmethod
    def of(cls, seed: bytes) -> Nkey:
        """The key of a seed of 32 bytes."""
        from Crypto.Signature import eddsa  # 0.1 s and 4 MiB, which only this way to log in needs

        key = eddsa.import_private_key(seed)
        return cls(_encoded(bytes([_USER]) + key.public_key().export_key(format="raw")), key)

    def sign(self, nonce: str) -> bytes:
        """The signature of what the server gave us to sign, as it is sent: base64."""
        from Crypto.Signature import eddsa

        return b64encode(eddsa.new(self._key, "rfc8032").sign(nonce.encode()))


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a credentials file holds. ``expires``: s since 1970, as the JWT says it; None: never."""

    key: Nkey
    jwt: str = field(repr=False)
    expires: float | None


def read_seed(text: str) -> Nkey:
    """The one seed of a user in a text. Raises ValueError."""
    found = _SEED_TEXT.findall(text)
    if len(found) != 1:
        raise ValueError("holds no seed of an NKey" if not found else "holds several seeds")
    raw = b32decode(found[0] + "=" * 6)
    if binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("holds a seed that is damaged")
    whose = (raw[0] & 7) << 5 | raw[1] >> 3
    if raw[0] & 0xF8 != _SEED or whose != _USER:
        raise ValueError(f"holds the seed of {_WHOSE.get(found[0][1], 'something')}, not of a user (SU...)")
    return Nkey.of(raw[2:-2])


def read_credentials(text: str) -> Credentials:
    """The JWT and the seed of a credentials file. Raises ValueError."""
    jwt = _JWT.search(text)
    if jwt is None:
        raise ValueError("holds no JWT")
    return Credentials(read_seed(text.replace(jwt[0], "")), jwt[0], _expiry(jwt[1]))


def _expiry(claims: str) -> float | None:
    """``exp`` of a JWT's claims (RFC 7519); None if it has none that can be read, which the server will judge."""
    try:
        found = json.loads(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return found if isinstance(found, int | float) and not isinstance(found, bool) and found > 0 else None


def _encoded(prefixed: bytes) -> str:
    crc = binascii.crc_hqx(prefixed, 0)  # CRC-16/XMODEM
    return b32encode(prefixed + crc.to_bytes(2, "little")).decode().rstrip("=")
