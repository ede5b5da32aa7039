"""What the key signs to log in: personal messages of Ethereum (EIP-191, version 0x45) and Energy Web's identity tokens.

The prefix keeps them apart from transactions of Ethereum and from our records, whose digests are SHA-256. Pure: the
caller says what time it is. Keccak in plain Python takes 0.4 ms per 136 bytes, which a login can bear.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from agent.errors import SignerError
from agent.evidence.keccak import keccak256
from agent.evidence.recovery import of_address
from agent.ports import Signer

LOGIN_LIFETIME = 300  # s; who holds a token is logged in as us until it expires
_ANY_BLOCK = 999_999_999_999  # the token says until which block it holds; its expiry is in "exp"


def personal_message_digest(message: bytes) -> bytes:
    """What ``personal_sign`` signs: Keccak-256 of the prefix, the length in decimal digits, and the message."""
    return keccak256(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message))


def sign_personal_message(message: bytes, *, signer: Signer) -> bytes:
    """r || s || v, 65 bytes, v 27 or 28. ``message``: of SIWE (EIP-4361) the UTF-8 text. Raises SignerError."""
    digest = personal_message_digest(message)
    signature = signer.sign(digest)
    found = of_address(bytes.fromhex(signer.did.rpartition(":0x")[2]), signature, digest)
    if found is not None:
        return signature + bytes([27 + found[0]])
    raise SignerError("a signature just made is not that of our address", hint="suspect the hardware: memory or CPU")


def identity_token(*, issued: int, signer: Signer, lifetime: int = LOGIN_LIFETIME) -> str:
    """The token that a Data Hub takes for a login, good for ``lifetime`` seconds from ``issued`` (s since 1970, UTC).

    A secret until then: it names no recipient, so whoever reads it can log in as us. Raises SignerError.
    """
    payload = {
        "iss": signer.did,
        "claimData": {"blockNumber": _ANY_BLOCK},
        "iat": issued,
        "exp": issued + lifetime,
    }
    return _signed({"alg": "ES256", "typ": "JWT"}, payload, signer=signer)


def _signed(header: Mapping[str, Any], payload: Mapping[str, Any], *, signer: Signer) -> str:
    """Energy Web's signature in the shape of a JWT, whatever its header says: a personal message over the Keccak-256 of
    the first two parts, and as third part the hex digits of r || s || v. The order of members counts.
    """
    signed = f"{_part(_json(header))}.{_part(_json(payload))}"
    signature = sign_personal_message(keccak256(signed.encode()), signer=signer)
    return f"{signed}.{_part(f'0x{signature.hex()}'.encode())}"


def _json(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()


def _part(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
