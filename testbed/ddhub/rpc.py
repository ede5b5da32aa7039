"""A node's JSON-RPC over the chain: what a resolver of ERC-1056 and a sender of transactions ask.

``most_blocks``: a range of eth_getLogs that is longer is refused, as public nodes do. Batches are answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from testbed.ddhub.broker import Parts
from testbed.ddhub.chain import BLOCK_GAS, Chain, ChainError
from testbed.ddhub.contract import NOBODY, gas_for
from testbed.ddhub.transaction import decode_transaction

_ZERO = "0x" + 64 * "0"
_READS = {
    keccak(text=text)[:4].hex(): text.partition("(")[0]
    for text in ("identityOwner(address)", "owners(address)", "changed(address)", "nonce(address)")
}


class _RpcError(Exception):
    """``args``: code and message."""


class Rpc:
    """An ASGI application that answers POSTs of any path."""

    def __init__(self, parts: Parts, chain: Chain, *, gas_price: int = 1_000_000_000) -> None:
        self.most_blocks: int | None = None
        self.gas_price = gas_price
        self.base_fee: int | None = 7  # None: a chain before EIP-1559
        self._faults = parts.faults
        self._chain = chain
        self._methods: Mapping[str, Callable[..., Any]] = {
            "eth_chainId": lambda: hex(chain.settings.chain_id),
            "net_version": lambda: str(chain.settings.chain_id),
            "eth_blockNumber": lambda: hex(chain.head),
            "eth_syncing": lambda: False,
            "eth_gasPrice": lambda: hex(self.gas_price),
            "eth_maxPriorityFeePerGas": lambda: hex(self.gas_price),
            "eth_call": self._call,
            "eth_getLogs": self._logs,
            "eth_getBlockByNumber": self._block,
            "eth_getTransactionCount": self._count,
            "eth_getBalance": lambda address, _="latest": hex(chain.balance(address)),
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getTransactionByHash": self._transaction,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        try:
            asked = json.loads(await request.body())
        except ValueError:
            value: Any = _failed(None, -32700, "Parse error")
        else:
            value = [self._one(each) for each in asked] if isinstance(asked, list) else self._one(asked)
        await Response(json.dumps(value), media_type="application/json")(scope, receive, send)

    def _one(self, asked: Any) -> dict[str, Any]:
        if not isinstance(asked, dict) or asked.get("jsonrpc") != "2.0" or not isinstance(asked.get("method"), str):
            return _failed(None, -32600, "Invalid Request")
        number, method, params = asked.get("id"), asked["method"], asked.get("params", [])
        if fault := self._faults.take("rpc-error", method=method):
            return _failed(number, fault.details.get("code", -32603), fault.details.get("message", "Internal error"))
        if fault := self._faults.take("rpc-nonsense", method=method):
            return {"jsonrpc": "2.0", "id": number, "result": fault.details.get("result")}
        if method not in self._methods:
            return _failed(number, -32601, f"the method {method} does not exist/is not available")
        try:
            return {"jsonrpc": "2.0", "id": number, "result": self._methods[method](*params)}
        except _RpcError as error:
            return _failed(number, *error.args)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            return _failed(number, -32602, f"invalid argument: {error}")

    def _number(self, block: str) -> int:
        if block in ("latest", "pending", "safe", "finalized"):
            return self._chain.head
        return 0 if block == "earliest" else int(block, 16)

    def _call(self, call: dict[str, Any], block: str = "latest") -> str:
        data = bytes.fromhex(str(call.get("data", call.get("input")))[2:])
        if to_checksum_address(call["to"]) != to_checksum_address(self._chain.settings.registry):
            return "0x"
        name = _READS.get(data[:4].hex())
        if name is None or len(data) != 36:
            raise _RpcError(3, "execution reverted")
        address, number = "0x" + data[-20:].hex(), self._number(block)
        if number > self._chain.head:
            raise _RpcError(-32000, "header not found")
        if name == "nonce":
            return _ZERO
        if name == "changed":
            return "0x" + f"{self._chain.changed(address, number):064x}"
        owner = self._chain.owners(address, number) if name == "owners" else self._chain.owner(address, number)
        return "0x" + owner[2:].lower().rjust(64, "0")

    def _logs(self, asked: dict[str, Any]) -> list[Any]:
        if "blockHash" in asked:
            found = [each["number"] for each in self._chain.state.blocks if each["hash"] == asked["blockHash"]]
            if not found:
                raise _RpcError(-32000, "unknown block")
            first = last = found[0]
        else:
            first, last = (self._number(asked.get(name, "latest")) for name in ("fromBlock", "toBlock"))
        if last < first:
            raise _RpcError(-32000, "invalid block range params")
        if self.most_blocks is not None and last - first + 1 > self.most_blocks:
            raise _RpcError(-32005, f"query exceeds max block range {self.most_blocks}")
        addresses = asked.get("address")
        listed = [addresses] if isinstance(addresses, str) else addresses
        if listed is not None and self._chain.settings.registry.lower() not in [each.lower() for each in listed]:
            return []
        topics = asked.get("topics", [])
        return [log for log in self._chain.logs(first, last) if _fits(log["topics"], topics)]

    def _block(self, block: str, _: bool = False) -> dict[str, Any] | None:
        number = self._number(block)
        if number > self._chain.head:
            return None
        found = self._chain.state.blocks[number]
        fee = {} if self.base_fee is None else {"baseFeePerGas": hex(self.base_fee)}
        return {
            "number": hex(number), "hash": found["hash"], "timestamp": hex(found["timestamp"]),
            "parentHash": self._chain.state.blocks[number - 1]["hash"] if number else _ZERO, **fee,
            "gasLimit": hex(BLOCK_GAS), "transactions": [each["hash"] for each in found["transactions"]],
        }  # fmt: skip

    def _count(self, address: str, block: str = "latest") -> str:
        return hex(self._chain.nonce(address, pending=block == "pending"))

    def _estimate(self, call: dict[str, Any], block: str = "latest") -> str:
        data = bytes.fromhex(call.get("data", call.get("input", "0x"))[2:])
        if to_checksum_address(call["to"]) == to_checksum_address(self._chain.settings.registry):
            try:
                self._chain.would_change(data, call.get("from", NOBODY))
            except ValueError as error:
                raise _RpcError(3, str(error)) from None
        return hex(gas_for(data))

    def _send(self, raw: str) -> str:
        try:
            transaction = decode_transaction(bytes.fromhex(raw[2:]))
            self._chain.send(transaction)
        except (ValueError, ChainError) as error:
            raise _RpcError(-32000, str(error)) from None
        return transaction.hash

    def _receipt(self, tx_hash: str) -> dict[str, Any] | None:
        found = self._chain.find_transaction(tx_hash)
        if found is None:
            return None
        transaction, block = found
        logs = self._chain.logs(block["number"], block["number"])
        return {
            "transactionHash": tx_hash, "blockNumber": hex(block["number"]), "blockHash": block["hash"],
            "transactionIndex": hex(block["transactions"].index(transaction)), "from": transaction["from"].lower(),
            "to": transaction["to"] and transaction["to"].lower(), "status": hex(transaction["status"]),
            "gasUsed": hex(transaction["gasUsed"]), "effectiveGasPrice": hex(transaction["gasPrice"]),
            "logs": [log for log in logs if log["transactionHash"] == tx_hash], "contractAddress": None,
        }  # fmt: skip

    def _transaction(self, tx_hash: str) -> dict[str, Any] | None:
        found = self._chain.find_transaction(tx_hash)
        if found is None:
            return None
        transaction, block = found
        return {
            "hash": tx_hash, "blockNumber": hex(block["number"]), "from": transaction["from"].lower(),
            "to": transaction["to"] and transaction["to"].lower(), "nonce": hex(transaction["nonce"]),
            "input": transaction["input"], "gas": hex(transaction["gas"]), "gasPrice": hex(transaction["gasPrice"]),
        }  # fmt: skip


def _fits(topics: list[str], asked: list[Any]) -> bool:
    """Whether a log's topics are those asked for: null is any, a list is one of."""
    if len(asked) > len(topics):
        return False
    for topic, wanted in zip(topics, asked, strict=False):
        choices = [wanted] if isinstance(wanted, str) else wanted
        if choices is not None and topic not in [each.lower() for each in choices]:
            return False
    return True


def _failed(number: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}
