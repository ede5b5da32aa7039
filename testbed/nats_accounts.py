"""NKeys and JWTs of NATS for tests: an operator, an account with JetStream, and users, as ``nsc`` would make them
(NATS ADR-14). Written without the agent's code, which the tests hold against it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PREFIXES = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_SEED = 18 << 3
_LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
_STORE = ("mem_storage", "disk_storage", "streams", "consumer")
_EVERYTHING = {"wildcards": True, **dict.fromkeys(_LIMITS + _STORE, -1)}
_NO_STORE = _EVERYTHING | dict.fromkeys(_STORE, 0)


class NatsKey:
    """An NKey of an operator, account or user; ``nonce`` makes tests repeatable."""

    def __init__(self, kind: str, nonce: str = "") -> None:
        self._raw = hashlib.sha256(f"{kind}/{nonce}".encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(self._raw)
        prefix = _PREFIXES[kind]
        self.seed = _text(bytes([_SEED | prefix >> 5, (prefix & 31) << 3]) + self._raw)
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        self.public = _text(bytes([prefix]) + self._key.public_key().public_bytes(*raw))

    def sign(self, text: bytes) -> bytes:
        """Ed25519."""
        return self._key.sign(text)

    def jwt(self, claims: dict[str, Any]) -> str:
        """The claims, signed."""
        claims = {"iss": self.public, "jti": "TEST", **claims}
        head = _url(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        body = f"{head}.{_url(json.dumps(claims).encode())}"
        return f"{body}.{_url(self.sign(body.encode()))}"


class NatsAccounts:
    """An operator with one account. ``settings`` is for the server's configuration."""

    def __init__(self) -> None:
        self._operator = NatsKey("operator")
        self._account, system = NatsKey("account"), NatsKey("account", "system")
        about = {"type": "operator", "version": 2, "system_account": system.public}
        operator = self._operator.jwt({"sub": self._operator.public, "name": "testbed", "iat": 1, "nats": about})
        accounts = {
            self._account.public: self._of("site", self._account, _EVERYTHING),
            system.public: self._of("system", system, _NO_STORE),
        }
        preload = "\n".join(f"  {name}: {jwt}" for name, jwt in accounts.items())
        self.settings = (
            f"operator: {operator}\nsystem_account: {system.public}\nresolver: MEMORY\n"
            f"resolver_preload {{\n{preload}\n}}\n"
        )

    def _of(self, name: str, key: NatsKey, limits: dict[str, Any]) -> str:
        about = {"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
        return self._operator.jwt({"sub": key.public, "name": name, "iat": 1, "nats": about})

    def creds(self, name: str = "agent", *, expires: float | None = None, publish: Sequence[str] = ()) -> str:
        """A credentials file of a user. ``expires``: s since 1970; ``publish``: all that he may publish to."""
        key = NatsKey("user", name)
        pub = {"allow": list(publish)} if publish else {}
        about = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": pub, "sub": {}}
        claims = {"sub": key.public, "name": name, "iat": 1, "nats": about}
        jwt = self._account.jwt(claims | ({} if expires is None else {"exp": int(expires)}))
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
        )


def _url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _text(content: bytes) -> str:
    """Base32 with a CRC-16/XMODEM behind it."""
    crc = 0
    for byte in content:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return base64.b32encode(content + crc.to_bytes(2, "little")).decode().rstrip("=")
