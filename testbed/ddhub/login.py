"""Who somebody is: identity tokens and SIWE messages, judged with eth_account and eth_keys as the deployed systems do.

Both the DID-auth proxy and the SSI Hub use it (passport-did-auth). The specification of the Data Hub, 5.1; identity.md
2.1 and 2.2 for what is too lenient: signatures without the EIP-191 prefix pass, and every key of a DID document may log
in as that DID.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys.datatypes import PublicKey, Signature
from eth_keys.exceptions import BadSignature
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from testbed.ddhub import tokens
from testbed.ddhub.settings import CHAIN_NAMES

DID = re.compile(r"did:[a-z0-9]+?:?[a-z0-9]+?:(0x[A-Fa-f0-9]{40})")
_SIWE = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?[^\s/?#]+ wants you to sign in with your Ethereum account:\n"
    r"(?P<address>0x[0-9a-fA-F]{40})\n\n(?:(?P<statement>[^\n]+)\n)?\nURI: (?P<uri>\S+)\nVersion: (?P<version>1)\n"
    r"Chain ID: (?P<chain>\d+)\nNonce: (?P<nonce>[A-Za-z0-9]{8,})\nIssued At: (?P<issued>\S+)"
    r"(?:\nExpiration Time: (?P<expires>\S+))?(?:\nNot Before: (?P<begins>\S+))?(?:\nRequest ID: (?P<request>\S*))?"
    r"(?:\nResources:(?P<resources>(?:\n- \S+)*))?"
)


class NotVerified(Exception):
    """A 401, with the reason that the deployed systems give."""


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """An identity token whose signature fits its ``did``."""

    did: str
    claims: dict[str, Any]


def identity(token: Any, document: Callable[[str], dict[str, Any]], newest: int, *, margin: int) -> IdentityToken:
    """Judge an identity token; ``document`` resolves a DID, ``newest`` is the newest block. Raises NotVerified.

    Does not look at iat and exp: the proxy does, later (``check_times``).
    """
    try:
        claims = tokens.claims_of(token)
        did, block = claims["iss"], claims["claimData"]["blockNumber"]
        if DID.fullmatch(did) is None or isinstance(block, bool) or not isinstance(block, int | float):
            raise ValueError(did)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NotVerified("Token payload is not valid") from None
    if did.count(":") == 2:  # an old DID without a chain
        did = did.replace("did:ethr:", "did:ethr:volta:")
    if not _proves(token, document(did)):
        raise NotVerified("Not Verified: Authentication proof is not valid")
    if newest - margin >= block:
        raise NotVerified("Claim outdated")
    return IdentityToken(did, claims)


def _proves(token: str, document: dict[str, Any]) -> bool:
    """Whether an address or key of the document signed the token's first two parts."""
    signed, _, last = token.rpartition(".")
    try:
        text = tokens.decode(last).decode("ascii")
        if re.fullmatch(r"0x[0-9a-fA-F]{130}", text) is None:
            return False
        signature = bytes.fromhex(text[2:])
    except ValueError:
        return False
    inner = keccak(signed.encode())
    keys = [
        key
        for digest in (inner, keccak(b"\x19Ethereum Signed Message:\n32" + inner))
        if (key := recovered(digest, signature)) is not None
    ]
    address = document["id"].rpartition(":")[2]
    if any(key.to_checksum_address() == address for key in keys):  # string equality: a lower-case DID fails
        return True
    named = {str(entry.get("publicKeyHex", "")).lower() for entry in document["publicKey"]}
    return any(text in named for key in keys for text in key_texts(key))


def recovered(digest: bytes, signature: bytes) -> PublicKey | None:
    """The key that made 65 bytes r, s, v; v also as 27 and 28."""
    v = signature[64] - 27 if signature[64] >= 27 else signature[64]
    try:
        return Signature(signature[:64] + bytes([v])).recover_public_key_from_msg_hash(digest)
    except (BadSignature, ValidationError, ValueError):
        return None


def key_texts(key: PublicKey) -> tuple[str, str]:
    """A key as DID documents hold it: uncompressed and compressed."""
    return "0x04" + key.to_bytes().hex(), "0x" + key.to_compressed_bytes().hex()


def check_times(claims: dict[str, Any], now: float, *, most_s: float) -> None:
    """The proxy's last look at an identity token. A time in the future passes. Raises NotVerified."""
    issued, expires = _number(claims, "iat"), _number(claims, "exp")
    if issued <= 0 or expires <= issued:
        raise NotVerified("Identity token iat or exp is not valid")
    if now >= expires:
        raise NotVerified("Identity token expired")
    if now - issued >= most_s:
        raise NotVerified("Identity token is too old")


def _number(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotVerified(f"Identity token {name} is not a number")
    return value


@dataclass(slots=True)
class Siwe:
    """Sign-In with Ethereum (EIP-4361) at one place: nonces that count once and for ``ttl_s`` seconds."""

    ttl_s: float
    path: str  # what the message's URI must end in, behind the place's origin
    nonces: dict[str, float] = field(default_factory=dict)

    def initiate(self, now: float) -> str:
        """A new nonce."""
        nonce = secrets.token_hex(8)
        self.nonces[nonce] = now + self.ttl_s
        return nonce

    def verify(self, message: Any, signature: Any, *, origin: str, now: float) -> str:
        """The DID that signed the message for ``origin``. Raises NotVerified."""
        found = _SIWE.fullmatch(message) if isinstance(message, str) else None
        if found is None or not isinstance(signature, str):
            raise NotVerified("Siwe message is not valid")
        if found["uri"] != origin + self.path:
            raise NotVerified("uri in siwe message payload is incorrect")
        if self.nonces.pop(found["nonce"], 0.0) <= now:
            raise NotVerified("Nonce is not valid")
        try:
            times = [_moment(found[name]) for name in ("begins", "issued", "expires")]
            signer = Account.recover_message(encode_defunct(text=message), signature=signature)
        except Exception:  # noqa: BLE001  # whatever eth_account raises for a bad signature
            raise NotVerified("Siwe message is not valid") from None
        if (times[0] or 0.0) > now or (times[2] is not None and times[2] <= now):
            raise NotVerified("Siwe message is not valid now")
        if to_checksum_address(found["address"]) != found["address"] or signer != found["address"]:
            raise NotVerified("Signature does not match address of the message")
        return f"did:ethr:{CHAIN_NAMES[246] if found['chain'] == '246' else CHAIN_NAMES[73799]}:{signer}"


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.timestamp()
