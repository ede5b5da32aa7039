"""A chain with the ERC-1056 registry on it: blocks, logs, and the transactions that make them.

A change is mined into a block of its own, unless it is made within ``one_block()``, or ``automine`` is False and
``mine()`` is called later. Everything is in the state, so that it survives a restart; nothing is ever final: ``reorg``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eth_utils.crypto import keccak

from testbed.ddhub.clock import HubClock
from testbed.ddhub.contract import (
    FOR_EVER,
    KEY_NAME,
    NOBODY,
    OWNER_CHANGED,
    Change,
    address_of,
    attribute,
    called,
    delegate,
    gas_for,
    intrinsic_gas,
    key_value,
    owner,
    owner_named,
    topic_of,
)
from testbed.ddhub.settings import Settings
from testbed.ddhub.state import Json, State
from testbed.ddhub.transaction import Transaction

BLOCK_GAS = 8_000_000


class ChainError(Exception):
    """What a node answers to a transaction that it does not take; ``args[0]`` is its message."""


class Chain:
    """Addresses are given as such or as a DID."""

    def __init__(self, state: State, *, settings: Settings, clock: HubClock) -> None:
        self.state = state
        self.settings = settings
        self.automine = True
        self.least_gas_price = 1  # wei
        self._clock = clock
        self._waiting: list[Json] = []  # logs without a place yet
        self._pool: list[Transaction] = []
        self._held = 0
        if not state.blocks:
            for _ in range(10):
                self._append([])

    # ---- what tests do ----

    @property
    def head(self) -> int:
        """The number of the newest block."""
        return len(self.state.blocks) - 1

    def mine(self, count: int = 1) -> None:
        """Put everything that waits into one block, and ``count`` - 1 empty ones behind it."""
        pool, self._pool = self._pool, []
        self._append(pool)
        for _ in range(count - 1):
            self._append([])
        self.state.save()

    @contextmanager
    def one_block(self) -> Iterator[None]:
        """All changes within the block of code are mined into one block at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self._waiting and self.automine and not self._held:
                self.mine()

    def reorg(self, depth: int) -> None:
        """Replace the newest ``depth`` blocks by empty ones with other hashes; what was in them is gone."""
        count = len(self.state.blocks)
        lost = self.state.blocks[count - depth :]
        del self.state.blocks[count - depth :]
        for block in lost:
            for transaction in block["transactions"]:
                self._account(transaction["from"])["nonce"] -= 1
        for block in lost:
            self._append([], salt=block["hash"])
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
        self._make(attribute(did, name, value, self._now() + validity_s))

    def revoke_attribute(self, did: str, name: str | bytes, value: bytes) -> None:
        """DIDAttributeChanged with validTo 0."""
        self._make(attribute(did, name, value, 0))

    def add_delegate(self, did: str, kind: str | bytes, address: str, *, validity_s: int = FOR_EVER) -> None:
        """DIDDelegateChanged; ``kind``: veriKey or sigAuth."""
        self._make(delegate(did, kind, address, self._now() + validity_s))

    def change_owner(self, did: str, address: str) -> None:
        """DIDOwnerChanged."""
        self._make(owner(did, address))

    def add_logs(self, logs: list[Json]) -> None:
        """Put logs as a node gives them (test vectors) at their block numbers; blocks between are made."""
        for log in logs:
            number = int(log["blockNumber"], 16)
            while self.head < number:
                self._append([])
            self.state.blocks[number]["logs"].append({name: log[name] for name in ("topics", "data")} | {"tx": None})
        self.state.save()

    # ---- reading ----

    def owners(self, did: str, block: int | None = None) -> str:
        """What the registry stores as owner, zero if nothing; as of a block, None: with what waits."""
        found = [log for log in self._of(did, block) if log["topics"][0] == OWNER_CHANGED]
        return owner_named(found[-1]) if found else NOBODY

    def owner(self, did: str, block: int | None = None) -> str:
        """The registry's identityOwner: who has no owner, or gave it up, is his own."""
        stored = self.owners(did, block)
        return address_of(did) if stored == NOBODY else stored

    def changed(self, did: str, block: int | None = None) -> int:
        """The block of the last event; 0 if there is none."""
        found = self._of(did, block)
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
                        "transactionHash": log["tx"] or "0x" + keccak(text=f"{block['hash']}{index}").hex(),
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
        if transaction.gas_price < self.least_gas_price:
            raise ChainError("transaction underpriced")
        if account["balance"] < transaction.gas * transaction.gas_price + transaction.value:
            raise ChainError("insufficient funds for gas * price + value")
        self._pool.append(transaction)
        if self.automine:
            self.mine()

    def would_change(self, data: bytes, sender: str) -> Change:
        """What a call of the registry would do. Raises ValueError if it reverts."""
        change = called(data, self._now())
        if self.owner(change.identity) != address_of(sender):
            raise ValueError("execution reverted: bad_actor")
        return change

    def find_transaction(self, tx_hash: str) -> tuple[Json, Json] | None:
        """A mined transaction and its block."""
        for block in self.state.blocks:
            for transaction in block["transactions"]:
                if transaction["hash"] == tx_hash:
                    return transaction, block
        return None

    def _execute(self, transaction: Transaction) -> Json:
        """Do it: its log goes to those that wait. Its receipt's facts."""
        account = self._account(transaction.sender)
        used, done = intrinsic_gas(transaction.data), True
        if transaction.to == address_of(self.settings.registry):
            used = min(gas_for(transaction.data), transaction.gas)
            try:
                change = self.would_change(transaction.data, transaction.sender)
                done = gas_for(transaction.data) == used
            except ValueError:
                done = False
            else:
                if done:
                    self._waiting.append({**change.log(self.changed(change.identity)), "tx": transaction.hash})
        account["nonce"] += 1
        account["balance"] -= used * transaction.gas_price
        return {
            "hash": transaction.hash, "from": transaction.sender, "to": transaction.to, "nonce": transaction.nonce,
            "input": "0x" + transaction.data.hex(), "gas": transaction.gas, "gasPrice": transaction.gas_price,
            "gasUsed": used, "status": int(done),
        }  # fmt: skip

    # ---- inside ----

    def _make(self, change: Change) -> None:
        """Change something without a transaction."""
        self._waiting.append({**change.log(self.changed(change.identity)), "tx": None})
        if self.automine and not self._held:
            self.mine()

    def _append(self, pool: list[Transaction], *, salt: str = "") -> None:
        """A block of the logs that wait and of these transactions."""
        number = len(self.state.blocks)
        done = [self._execute(transaction) for transaction in pool]
        logs, self._waiting = self._waiting, []
        parent = self.state.blocks[-1]["hash"] if number else ""
        digest = keccak(text=f"block {number} {parent} {salt} {len(logs)}")
        self.state.blocks.append(
            {
                "number": number,
                "hash": "0x" + digest.hex(),
                "timestamp": self._now(),
                "logs": logs,
                "transactions": done,
            }
        )

    def _of(self, did: str, until: int | None = None) -> list[Json]:
        """The logs of an identity up to a block, the oldest first; those that wait belong to the next one."""
        topic, waiting = topic_of(did), {"number": self.head + 1, "logs": self._waiting}
        return [
            {**log, "block": block["number"]}
            for block in [*self.state.blocks, waiting][: None if until is None else until + 1]
            for log in block["logs"]
            if log["topics"][1] == topic
        ]

    def _account(self, did: str) -> Json:
        return self.state.accounts.setdefault(address_of(did), {"nonce": 0, "balance": 0})

    def _now(self) -> int:
        return int(self._clock.now())
