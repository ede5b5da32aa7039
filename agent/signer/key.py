"""A secp256k1 key in memory, and its form in a file: 64 hex digits on one line.

Signs digests with libsecp256k1 (RFC 6979, low-S) and verifies each signature before it is handed out. The secret is
in no message, representation or chain of exceptions, whatever the library raises.
"""

from __future__ import annotations

import re
import secrets

import coincurve

from agent.errors import SignerError
from agent.evidence.did import did_key
from agent.evidence.envelope import verify
from agent.evidence.keccak import address_of, checksum_address

DEFAULT_NETWORK = "ewc"
_HEX = re.compile(rb"\s*(?:0[xX])?([0-9A-Fa-f]{64})\s*")


class KeySigner:
    """A secp256k1 key held in memory; implements the ``Signer`` port."""

    def __init__(self, secret: bytes, *, did: str | None = None, network: str = DEFAULT_NETWORK) -> None:
        """``network``: of the DID, if ``did`` does not say it.

        Raises SignerError if the secret is no key, or not the key of ``did``.
        """
        key = _private_key(secret)
        if key is None:
            raise SignerError("the key is not a number that secp256k1 allows", hint="create a new key")
        self._key = key
        self._public = key.public_key
        mine = did_of(self._public, did.split(":")[2] if did else network)
        if did is not None and did_key(did) != did_key(mine):
            raise SignerError(f"the key is that of {mine}, not of {did}", hint="correct identity.did or identity.key")
        self.did = mine

    def __repr__(self) -> str:
        return f"KeySigner({self.did})"

    @property
    def address(self) -> str:
        """``0x`` and 40 hex digits with the capitals of EIP-55."""
        return self.did.rpartition(":")[2]

    @property
    def public_key(self) -> bytes:
        """The public key, compressed (SEC 1): 33 bytes."""
        compressed: bytes = self._public.format()
        return compressed

    def sign(self, digest: bytes) -> bytes:
        """r || s over a 32-byte digest. Raises SignerError if the signature does not verify (a fault of memory or
        CPU), ValueError if it is no digest.
        """
        if len(digest) != 32:
            raise ValueError(f"a digest has 32 bytes, not {len(digest)}")
        try:
            signature: bytes | None = self._key.sign_recoverable(digest, hasher=None)[:64]
        except Exception:  # noqa: BLE001 - whatever it says, it was made with the key at hand
            signature = None
        if signature is None or not verify(self._public, signature, digest):
            raise SignerError("a signature just made does not verify", hint="suspect the hardware: memory or CPU")
        return signature


def _private_key(secret: bytes) -> coincurve.PrivateKey | None:
    """None if the library refuses the number. No exception of it gets further, not even as the context of ours."""
    try:
        return coincurve.PrivateKey(secret) if len(secret) == 32 else None
    except Exception:  # noqa: BLE001 - as above
        return None


def new_secret() -> bytes:
    """A new key: 32 bytes from the system's generator."""
    while _private_key(secret := secrets.token_bytes(32)) is None:  # zero or not below the order: once in 2^128
        continue
    return secret


def secret_from_hex(text: bytes) -> bytes | None:
    """The 32 bytes that 64 hex digits say, with or without ``0x`` and blanks around; None if they are not there."""
    match = _HEX.fullmatch(text)
    return bytes.fromhex(match[1].decode()) if match else None


def secret_as_hex(secret: bytes) -> bytes:
    """The content of a key file."""
    return secret.hex().encode() + b"\n"


def did_of(public: coincurve.PublicKey, network: str) -> str:
    """``did:ethr:<network>:<EIP-55 address>``."""
    return f"did:ethr:{network}:{checksum_address(address_of(public.format(compressed=False)))}"
