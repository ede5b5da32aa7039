"""What is written into the registry of DIDs to publish the keys of a participant, as transactions of the chain.

One attribute, one transaction, one block: readers of the registry (Energy Web's resolver, and with it every client
gateway and hub) look at the first entry of a block only, so that of two in one block the second is never seen.

Transactions are of the first kind, with the chain's id (EIP-155): every node takes them. Pure, but for the signer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import SignerError
from agent.evidence.keccak import checksum_address, keccak256
from agent.evidence.recovery import of_address
from agent.ports import Signer
from agent.transports.ddhub.keys.network import participant

ATTRIBUTE = "did/pub/Rsa/veriKey/hex"  # for both keys, whatever their kind: so client gateways write them
VALIDITY = 9_007_199_254_740_990  # s; as client gateways write it, longer than anybody will ask
_SET_ATTRIBUTE = bytes.fromhex("7ad4b0a4")  # setAttribute(address,bytes32,bytes,uint256)


def attribute_value(tag: str, key: str) -> bytes:
    """What the attribute of a key holds: its tag and its text, as client gateways write it."""
    return json.dumps({"type": "Rsa", "tag": tag, "publicKey": key}, separators=(",", ":"), ensure_ascii=False).encode()


def set_attribute(address: bytes, value: bytes) -> bytes:
    """The call that publishes a value for an identity."""
    head = [
        address.rjust(32, b"\0"),
        ATTRIBUTE.encode().ljust(32, b"\0"),
        (4 * 32).to_bytes(32),  # where the value begins
        VALIDITY.to_bytes(32),
        len(value).to_bytes(32),
    ]
    return _SET_ATTRIBUTE + b"".join(head) + value + bytes(-len(value) % 32)


def gas_of(data: bytes) -> int:
    """How much gas such a call takes at most, for who cannot ask a node: what any transaction costs, the bytes of the
    call, those of the log's entry, twice what storing a block number costs; and a fifth more. What is left is not paid.
    """
    of_call = sum(16 if byte else 4 for byte in data)
    of_entry = 3 * 375 + 8 * len(data)
    return (21_000 + of_call + of_entry + 2 * 22_100) * 6 // 5


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the registry that is not sent yet. ``tag``: of the key it publishes; ``sender``, ``registry``: 20
    bytes.
    """

    tag: str
    chain_id: int
    sender: bytes
    registry: bytes
    data: bytes
    gas: int

    def for_wallet(self) -> Mapping[str, Any]:
        """As wallets take a transaction (eth_sendTransaction); they add nonce and price."""
        return {
            "from": checksum_address(self.sender),
            "to": checksum_address(self.registry),
            "value": "0x0",
            "data": f"0x{self.data.hex()}",
            "gas": hex(self.gas),
            "chainId": hex(self.chain_id),
        }

    def signed(self, signer: Signer, *, nonce: int, gas_price: int) -> Signed:
        """``gas_price`` in wei. Raises SignerError, also if the sender is not the signer."""
        if participant(signer.did).address != self.sender:
            raise SignerError(f"{checksum_address(self.sender)} is not the address of our key")
        fields: list[int | bytes] = [nonce, gas_price, self.gas, self.registry, 0, self.data]
        digest = keccak256(rlp([*fields, self.chain_id, 0, 0]))
        signature = signer.sign(digest)
        found = of_address(self.sender, signature, digest)
        if found is None:
            hint = "suspect the hardware: memory or CPU"
            raise SignerError("a signature just made is not that of our address", hint=hint)
        v = 2 * self.chain_id + 35 + found[0]
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        return Signed(self, nonce, gas_price, rlp([*fields, v, r, s]))


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction that any node takes. ``raw``: what is sent; ``gas_price`` in wei."""

    call: Call
    nonce: int
    gas_price: int
    raw: bytes

    @property
    def hash(self) -> str:
        """By which the chain knows it."""
        return f"0x{keccak256(self.raw).hex()}"


def rlp(items: Sequence[int | bytes]) -> bytes:
    """A list in Ethereum's encoding (RLP; Yellow Paper, appendix B). A number is its bytes without leading zeros."""
    body = b"".join(map(_item, items))
    return _head(0xC0, len(body)) + body


def _item(item: int | bytes) -> bytes:
    text = item if isinstance(item, bytes) else item.to_bytes((item.bit_length() + 7) // 8)
    return text if len(text) == 1 and text < b"\x80" else _head(0x80, len(text)) + text


def _head(kind: int, length: int) -> bytes:
    if length < 56:
        return bytes([kind + length])
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([kind + 55 + len(digits)]) + digits


def publishing(did: str, tag: str, key: str, *, registry: str) -> Call:
    """The call by which the owner of a DID publishes one of its keys; ``registry``: the contract's address."""
    who = participant(did)
    data = set_attribute(who.address, attribute_value(tag, key))
    contract = bytes.fromhex(registry.removeprefix("0x"))
    return Call(tag, who.network.chain_id, who.address, contract, data, gas_of(data))
