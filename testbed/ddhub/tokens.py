"""HS256 JSON Web Tokens, made and judged. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any


def encode(text: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The inverse of encode. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def issue(claims: dict[str, Any], secret: bytes) -> str:
    """A signed token."""
    signed = f"{encode(_json({'alg': 'HS256', 'typ': 'JWT'}))}.{encode(_json(claims))}"
    return f"{signed}.{encode(_signature(signed, secret))}"


def claims_of(token: str) -> dict[str, Any]:
    """What a token claims, of three parts, without a look at its signature. Raises ValueError."""
    _, payload, _ = token.split(".")
    claims = json.loads(decode(payload))
    if not isinstance(claims, dict):
        raise ValueError("no JSON object")
    return claims


def verified(token: str, secret: bytes, now: float) -> dict[str, Any]:
    """What a token claims that we signed and that has not expired. Raises ValueError."""
    claims = claims_of(token)
    signed, _, signature = token.rpartition(".")
    if not hmac.compare_digest(encode(_signature(signed, secret)), signature):
        raise ValueError("bad signature")
    if now >= claims["exp"]:
        raise ValueError("expired")
    return claims


def _signature(signed: str, secret: bytes) -> bytes:
    return hmac.digest(secret, signed.encode(), hashlib.sha256)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
