"""DIDs of the did:ethr method, as far as evidence needs them (docs/evidence.md section 3). Pure."""

from __future__ import annotations

import re

_DID = re.compile(r"did:ethr:(?:([a-z0-9]+):)?0x([0-9A-Fa-f]{40})(?:#(?:controller|owner))?")
_CHAIN_IDS = {None: "0x1", "mainnet": "0x1", "volta": "0x12047", "ewc": "0xf6"}

DidKey = tuple[str, bytes]


def did_key(did: str) -> DidKey:
    """What DIDs are compared by: chain id and 20-byte address. Raises ValueError."""
    match = _DID.fullmatch(did)
    if match is None:
        raise ValueError(f"not a did:ethr DID: {did!r}; expected did:ethr:<network>:0x<40 hex digits>")
    return _CHAIN_IDS.get(match[1], match[1]), bytes.fromhex(match[2])
