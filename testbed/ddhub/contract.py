"""The ERC-1056 registry as it is seen from outside: its events, its calls, and what they cost. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

OWNER_CHANGED = "0x" + keccak(text="DIDOwnerChanged(address,address,uint256)").hex()
DELEGATE_CHANGED = "0x" + keccak(text="DIDDelegateChanged(address,bytes32,address,uint256,uint256)").hex()
ATTRIBUTE_CHANGED = "0x" + keccak(text="DIDAttributeChanged(address,bytes32,bytes,uint256,uint256)").hex()
KEY_NAME = "did/pub/Rsa/veriKey/hex"
FOR_EVER = 9007199254740990
NOBODY = "0x" + 40 * "0"
_EXECUTION_GAS = 45_000
_CALLS = {
    keccak(text=f"{name}({','.join(types)})")[:4]: (name, types)
    for name, types in {
        "setAttribute": ("address", "bytes32", "bytes", "uint256"),
        "revokeAttribute": ("address", "bytes32", "bytes"),
        "addDelegate": ("address", "bytes32", "address", "uint256"),
        "revokeDelegate": ("address", "bytes32", "address"),
        "changeOwner": ("address", "address"),
    }.items()
}


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to an identity; ``types`` and ``values`` are its event's, without previousChange."""

    identity: str
    event: str
    types: tuple[str, ...]
    values: tuple[Any, ...]

    def log(self, previous: int) -> dict[str, Any]:
        """Topics and data of the event."""
        data = encode([*self.types, "uint256"], [*self.values, previous])
        return {"topics": [self.event, topic_of(self.identity)], "data": "0x" + data.hex()}


def attribute(identity: str, name: str | bytes, value: bytes, until: int) -> Change:
    """DIDAttributeChanged; ``until`` 0 revokes."""
    return Change(identity, ATTRIBUTE_CHANGED, ("bytes32", "bytes", "uint256"), (_word(name), value, until))


def delegate(identity: str, kind: str | bytes, address: str, until: int) -> Change:
    """DIDDelegateChanged."""
    values = (_word(kind), address_of(address), until)
    return Change(identity, DELEGATE_CHANGED, ("bytes32", "address", "uint256"), values)


def owner(identity: str, address: str) -> Change:
    """DIDOwnerChanged."""
    return Change(identity, OWNER_CHANGED, ("address",), (address_of(address),))


def called(data: bytes, now: int) -> Change:
    """What a call of the registry changes. Raises ValueError if it reverts whoever calls."""
    try:
        name, types = _CALLS[data[:4]]
        identity, *rest = decode(types, data[4:])
    except Exception:  # noqa: BLE001  # eth_abi has many ways to say that the data does not fit
        raise ValueError("execution reverted") from None
    identity = to_checksum_address(identity)
    if name == "setAttribute":
        return attribute(identity, rest[0], rest[1], (now + rest[2]) % 2**256)
    if name == "revokeAttribute":
        return attribute(identity, rest[0], rest[1], 0)
    if name == "addDelegate":
        return delegate(identity, rest[0], rest[1], (now + rest[2]) % 2**256)
    if name == "revokeDelegate":
        return delegate(identity, rest[0], rest[1], now)
    return owner(identity, rest[0])


def owner_named(log: dict[str, Any]) -> str:
    """The owner that a DIDOwnerChanged names."""
    return to_checksum_address("0x" + log["data"][26:66])


def key_value(tag: str, key: str) -> bytes:
    """The value of a key's attribute, as iam-client-lib writes it."""
    return json.dumps({"type": "Rsa", "tag": tag, "publicKey": key}, separators=(",", ":")).encode()


def address_of(did: str) -> str:
    """The checksummed address of a DID, or of an address."""
    return to_checksum_address(did.rpartition(":")[2])


def topic_of(did: str) -> str:
    """How an identity stands in its logs."""
    return "0x" + address_of(did)[2:].lower().rjust(64, "0")


def intrinsic_gas(data: bytes) -> int:
    """What a transaction costs before it does anything (EIP-2028)."""
    return 21_000 + sum(16 if byte else 4 for byte in data)


def gas_for(data: bytes) -> int:
    """What a transaction to the registry needs."""
    return intrinsic_gas(data) + _EXECUTION_GAS + 8 * len(data)


def _word(text: str | bytes) -> bytes:
    return (text.encode() if isinstance(text, str) else text).ljust(32, b"\0")
