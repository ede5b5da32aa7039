"""Which public key made a signature: recovered from r || s, and known by its address (SEC 1, section 4.1.6). Pure."""

from __future__ import annotations

from collections.abc import Iterator

import coincurve

from agent.evidence.keccak import address_of


def candidates(signature: bytes, digest: bytes) -> Iterator[tuple[int, coincurve.PublicKey]]:
    """The keys that may have made r || s over a digest of 32 bytes, each with its recovery id: 0 and 1 at most."""
    for recovery in (0, 1):
        key = recovered(signature, digest, recovery)
        if key is not None:
            yield recovery, key


def recovered(signature: bytes, digest: bytes, recovery: int) -> coincurve.PublicKey | None:
    """The key of a signature with its recovery id; None if it is nobody's. A high s does."""
    try:
        return coincurve.PublicKey.from_signature_and_message(signature + bytes([recovery]), digest, hasher=None)
    except Exception:  # noqa: BLE001 - what coincurve raises for an impossible signature or id
        return None


def of_address(address: bytes, signature: bytes, digest: bytes) -> tuple[int, coincurve.PublicKey] | None:
    """The recovery id and the key with which a signature is that of an address; None if it is another's."""
    for recovery, key in candidates(signature, digest):
        if address_of(key.format(compressed=False)) == address:
            return recovery, key
    return None
