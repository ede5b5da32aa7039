"""A chain with the ERC-1056 registry on it: blocks, logs, and the transactions that make them.

A change is mined into a block of its own, unless it is made within ``one_block()``, or ``automine`` is False and
``mine()`` is called later. Everything is in the state, so that it survives a restart; nothing is ever final: ``reorg``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from testbed.ddhub.clock import HubClock
from testbed.ddhub.settings import Settings
from testbed.ddhub.state import Json, State
from testbed.ddhub.transaction import Transaction

OWNER_CHANGED = keccak(text="DIDOwnerChanged(address,address,uint256)")
DELEGATE_CHANGED = keccak(text="DIDDelegateChanged(address,bytes32,address,uint256,uint256)")
ATTRIBUTE_CHANGED = keccak(text="DIDAttributeChanged(address,bytes32,bytes,uint256,uint256)")
KEY_NAME = "did/pub/Rsa/veriKey/hex"
FOR_EVER = 9007199254740990
BLOCK_GAS = 8_000_000
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


class ChainError(Exception):
    """What a node answers to a transaction that it does not take; ``args[0]`` is its message."""


def address_of(did: str) -> str:
    """The checksummed address of a DID, or of an address."""
    return to_checksum_address(did.rpartition(":")[2])


def intrinsic_gas(data: bytes) -> int:
    """What a transaction costs before it does anything (EIP-2028)."""
    return 21_000 + sum(16 if byte else 4 for byte in data)


def gas_for(data: bytes) -> int:
    """What a transaction to the registry needs."""
    return intrinsic_gas(data) + _EXECUTION_GAS + 8 * len(data)


def _hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def _name(text: str | bytes) -> bytes:
    return (text.encode() if isinstance(text, str) else text).ljust(32, b"\0")


class Chain:
    """Addresses are given as such or as a DID."""

    def __init__(self, state: State, *, settings: Settings, clock: HubClock) -> None:
        self.state = state
        self.settings = settings
        self.automine = True
        self._clock = clock
        self._waiting: list[Json] = []  # logs without a place yet
        self._pool: list[Transaction] = []
        self._held = 0
        if not state.blocks:
            for _ in range(10):
                self._append([], [])

    # ---- what tests do ----

    @property
    def head(self) -> int:
        """The number of the newest block."""
        return len(self.state.blocks) - 1

    def mine(self, count: int = 1) -> None:
        """Put everything that waits into one block, and ``count`` - 1 empty ones behind it."""
        logs, self._waiting = self._waiting, []
        pool, self._pool = self._pool, []
        self._append(logs, pool)
        for _ in range(count - 1):
            self._append([], [])
        self.state.save()

    @contextmanager
    def one_block(self) -> Iterator[None]:
        """All changes within the block of code are mined into one block at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._settle()

    def reorg(self, depth: int) -> None:
        """Replace the newest ``depth`` blocks by empty ones with other hashes; what was in them is gone."""
        count = len(self.state.blocks)
        lost = self.state.blocks[count - depth :]
        del self.state.blocks[count - depth :]
        for block in lost:
            for transaction in block["transactions"]:
                self._account(transaction["from"])["nonce"] -= 1
        for block in lost:
            self._append([], [], salt=block["hash"])
        self.state.save()

    def fund(self, did: str, wei: int = 10**18) -> None:
        """Give an account something to pay gas with."""
        self._account(did)["balance"] += wei
        self.state.save()

    def publish_keys(self, did: str, *, signature: str | None = None, encryption: str | None = None) -> None:
        """Set the two attributes of a participant of the Data Hub, each in a block of its own.

        ``signature``: 0x04..; ``encryption``: PEM.
        """
        for tag, key in (("dsb-signature-key", signature), ("dsb-symmetric-encryption", encryption)):
            if key is not None:
                self.set_key(did, tag, key)

    def set_key(self, did: str, tag: str, key: str, *, validity_s: int = FOR_EVER) -> None:
        """Set one key as the gateway does: JSON under the name did/pub/Rsa/veriKey/hex."""
        self.set_attribute(did, KEY_NAME, key_value(tag, key), validity_s=validity_s)

    def set_attribute(self, did: str, name: str | bytes, value: bytes, *, validity_s: int = FOR_EVER) -> None:
        """DIDAttributeChanged, valid for ``validity_s`` from now on."""
        self._attribute(did, _name(name), value, self._now() + validity_s)

    def revoke_attribute(self, did: str, name: str | bytes, value: bytes) -> None:
        """DIDAttributeChanged with validTo 0."""
        self._attribute(did, _name(name), value, 0)

    def add_delegate(self, did: str, kind: str | bytes, delegate: str, *, validity_s: int = FOR_EVER) -> None:
        """DIDDelegateChanged; ``kind``: veriKey or sigAuth."""
        self._delegate(did, _name(kind), delegate, self._now() + validity_s)

    def change_owner(self, did: str, owner: str) -> None:
        """DIDOwnerChanged."""
        self._emit(did, OWNER_CHANGED, ("address",), (address_of(owner),))

    def add_logs(self, logs: list[Json]) -> None:
        """Put logs as a node gives them (test vectors) at their block numbers; blocks between are made."""
        for log in logs:
            number = int(log["blockNumber"], 16)
            while self.head < number:
                self._append([], [])
            self.state.blocks[number]["logs"].append({name: log[name] for name in ("topics", "data")} | {"tx": None})
        self.state.save()

    # ---- reading ----

    def owner(self, did: str) -> str:
        """The registry's identityOwner."""
        found = [log for log in self._of(did) if log["topics"][0] == _hex(OWNER_CHANGED)]
        return to_checksum_address("0x" + found[-1]["data"][26:66]) if found else address_of(did)

    def changed(self, did: str) -> int:
        """The block of the last event; 0 if there is none."""
        found = self._of(did)
        if self._waiting and any(log["topics"][1] == _topic(did) for log in self._waiting):
            return self.head + 1
        return int(found[-1]["block"]) if found else 0

    def nonce(self, address: str, *, pending: bool = False) -> int:
        """How many transactions an account sent."""
        waiting = [each for each in self._pool if each.sender == address_of(address)] if pending else []
        return int(self._account(address)["nonce"]) + len(waiting)

    def balance(self, address: str) -> int:
        """In wei."""
        return int(self._account(address)["balance"])

    def logs(self, first: int, last: int) -> list[Json]:
        """The registry's logs of these blocks as a node gives them."""
        found = []
        for block in self.state.blocks[max(first, 0) : last + 1]:
            for index, log in enumerate(block["logs"]):
                found.append(
                    {
                        "address": self.settings.registry.lower(),
                        "topics": log["topics"],
                        "data": log["data"],
                        "blockNumber": hex(block["number"]),
                        "blockHash": block["hash"],
                        "transactionHash": log["tx"] or _hex(keccak(text=f"{block['hash']}{index}")),
                        "transactionIndex": hex(index),
                        "logIndex": hex(index),
                        "removed": False,
                    }
                )
        return found

    # ---- transactions ----

    def send(self, transaction: Transaction) -> None:
        """Take a signed transaction into the pool, or mine it. Raises ChainError."""
        data, account = transaction.data, self._account(transaction.sender)
        if transaction.chain_id not in (None, self.settings.chain_id):
            raise ChainError("invalid chain id for signer")
        if transaction.nonce < self.nonce(transaction.sender, pending=True):
            raise ChainError("nonce too low")
        if transaction.nonce > self.nonce(transaction.sender, pending=True):
            raise ChainError("nonce too high")
        if transaction.gas < intrinsic_gas(data):
            raise ChainError("intrinsic gas too low")
        if transaction.gas > BLOCK_GAS:
            raise ChainError("exceeds block gas limit")
        if account["balance"] < transaction.gas * transaction.gas_price + transaction.value:
            raise ChainError("insufficient funds for gas * price + value")
        self._pool.append(transaction)
        if self.automine:
            self.mine()

    def find_transaction(self, tx_hash: str) -> tuple[Json, Json] | None:
        """A mined transaction and its block."""
        for block in self.state.blocks:
            for transaction in block["transactions"]:
                if transaction["hash"] == tx_hash:
                    return transaction, block
        return None

    def _execute(self, transaction: Transaction) -> Json:
        """Do it: logs go to those that wait. Its receipt's facts."""
        account = self._account(transaction.sender)
        account["nonce"] += 1
        kept, before = self._waiting, len(self._waiting)
        used, done = intrinsic_gas(transaction.data), True
        if transaction.to == address_of(self.settings.registry):
            used = gas_for(transaction.data)
            done = used <= transaction.gas and self._call(transaction)
        if not done:
            del kept[before:]
            used = min(used, transaction.gas)
        account["balance"] -= used * transaction.gas_price
        for log in kept[before:]:
            log["tx"] = transaction.hash
        return {
            "hash": transaction.hash, "from": transaction.sender, "to": transaction.to, "nonce": transaction.nonce,
            "input": _hex(transaction.data), "gas": transaction.gas, "gasPrice": transaction.gas_price,
            "gasUsed": used, "status": int(done),
        }  # fmt: skip

    def _call(self, transaction: Transaction) -> bool:
        """The contract; False if it reverts."""
        try:
            name, types = _CALLS[transaction.data[:4]]
            identity, *rest = decode(types, transaction.data[4:])
        except Exception:  # noqa: BLE001  # eth_abi's many ways to say that the data does not fit
            return False
        identity = to_checksum_address(identity)
        if self._owner_in_block(identity) != transaction.sender:  # onlyOwner
            return False
        until = self._now() + rest[-1] if isinstance(rest[-1], int) else 0
        if name in ("setAttribute", "revokeAttribute"):
            self._attribute(identity, rest[0], rest[1], until, settle=False)
        elif name == "addDelegate":
            self._delegate(identity, rest[0], rest[1], until, settle=False)
        elif name == "revokeDelegate":
            self._delegate(identity, rest[0], rest[1], self._now(), settle=False)
        else:
            self._emit(identity, OWNER_CHANGED, ("address",), (to_checksum_address(rest[0]),), settle=False)
        return True

    # ---- inside ----

    def _owner_in_block(self, address: str) -> str:
        found = [
            log for log in self._waiting if log["topics"] == [_hex(OWNER_CHANGED), _topic(address)]
        ]  # of earlier transactions of the block
        return to_checksum_address("0x" + found[-1]["data"][26:66]) if found else self.owner(address)

    def _attribute(self, did: str, name: bytes, value: bytes, until: int, *, settle: bool = True) -> None:
        self._emit(did, ATTRIBUTE_CHANGED, ("bytes32", "bytes", "uint256"), (name, value, until), settle=settle)

    def _delegate(self, did: str, kind: bytes, delegate: str, until: int, *, settle: bool = True) -> None:
        values = (kind, address_of(delegate), until)
        self._emit(did, DELEGATE_CHANGED, ("bytes32", "address", "uint256"), values, settle=settle)

    def _emit(
        self, did: str, event: bytes, types: tuple[str, ...], values: tuple[Any, ...], *, settle: bool = True
    ) -> None:
        data = encode([*types, "uint256"], [*values, self.changed(did)])
        self._waiting.append({"topics": [_hex(event), _topic(did)], "data": _hex(data), "tx": None})
        if settle:
            self._settle()

    def _settle(self) -> None:
        if self.automine and not self._held and self._waiting:
            self.mine()

    def _append(self, logs: list[Json], pool: list[Transaction], *, salt: str = "") -> None:
        number = len(self.state.blocks)
        self._waiting = logs
        done = [self._execute(transaction) for transaction in pool]
        logs, self._waiting = self._waiting, []
        parent = self.state.blocks[-1]["hash"] if number else ""
        self.state.blocks.append(
            {
                "number": number,
                "hash": _hex(keccak(text=f"block {number} {parent} {salt} {len(logs)}")),
                "timestamp": self._now(),
                "logs": logs,
                "transactions": done,
            }
        )

    def _of(self, did: str) -> list[Json]:
        topic = _topic(did)
        return [
            {**log, "block": block["number"]}
            for block in self.state.blocks
            for log in block["logs"]
            if log["topics"][1] == topic
        ]

    def _account(self, did: str) -> Json:
        return self.state.accounts.setdefault(address_of(did), {"nonce": 0, "balance": 0})

    def _now(self) -> int:
        return int(self._clock.now())


def key_value(tag: str, key: str) -> bytes:
    """The value of a key's attribute, as iam-client-lib writes it."""
    escaped = key.replace("\n", "\\n")
    return f'{{"type":"Rsa","tag":"{tag}","publicKey":"{escaped}"}}'.encode()


def _topic(did: str) -> str:
    return "0x" + address_of(did)[2:].lower().rjust(64, "0")
