"""The chains on which participants' DIDs live, and the form in which a DID is written there.

Components of the Data Hub compare DIDs as text, some against the checksummed address: what we emit is always
``did:ethr:<volta|ewc>:<EIP-55 address>``; what we compare, we compare by meaning (agent/evidence/did.py). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.evidence.did import did_key
from agent.evidence.keccak import checksum_address


@dataclass(frozen=True, slots=True)
class Network:
    """A chain with the registry of DIDs (ERC-1056). ``currency``: what its gas is paid in."""

    name: str
    chain_id: int
    registry: str  # the contract's address
    hub: str  # the SSI Hub that Energy Web runs for it
    currency: str


NETWORKS: Mapping[str, Network] = {
    each.name: each
    for each in (
        Network(
            name="volta",
            chain_id=73799,
            registry="0xc15d5a57a8eb0e1dcbe5d88b8f9a82017e5cc4af",
            hub="https://identitycache-dev.energyweb.org/v1",
            currency="VT",
        ),
        Network(
            name="ewc",
            chain_id=246,
            registry="0xE29672f34e92b56C9169f9D485fFc8b9A136BCE4",
            hub="https://identitycache.energyweb.org/v1",
            currency="EWT",
        ),
    )
}
"""By the name in a DID."""

_BY_CHAIN = {hex(network.chain_id): network for network in NETWORKS.values()}


@dataclass(frozen=True, slots=True)
class Participant:
    """A DID in parts. ``address``: 20 bytes."""

    network: Network
    address: bytes

    @property
    def did(self) -> str:
        """``did:ethr:<network>:<EIP-55 address>``."""
        return f"did:ethr:{self.network.name}:{checksum_address(self.address)}"


def participant(did: str) -> Participant:
    """Which participant a DID names, however it is written. Raises ValueError, also for a chain without a Data Hub."""
    chain, address = did_key(did)
    if chain not in _BY_CHAIN:
        known = " or ".join(NETWORKS)
        raise ValueError(f"not a DID of a chain with a Data Hub: {did!r}; expected did:ethr:<{known}>:0x...")
    return Participant(_BY_CHAIN[chain], address)


def canonical(did: str) -> str:
    """The DID as it is written to others. Raises ValueError."""
    return participant(did).did
