"""Logs of the registry of DIDs (ERC-1056), encoded by eth_abi, and a node that tells them; for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from eth_abi.abi import encode

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "identity.json").read_text())
DDHUB: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "ddhub.json").read_text())
TOPICS: dict[str, str] = {name.partition("(")[0]: topic for name, topic in VECTORS["json_rpc"]["topics"].items()}
SELECTORS: dict[str, str] = {name.partition("(")[0]: each for name, each in VECTORS["json_rpc"]["selectors"].items()}

ALICE, BOB = DDHUB["identities"]["alice"], DDHUB["identities"]["bob"]
DID: str = BOB["did"]
ADDRESS = bytes.fromhex(BOB["address"][2:])
KEY: str = BOB["publicKeyUncompressed"]
PEM: str = DDHUB["c_rsa"]["publicKeyPemPkcs1"]
REGISTRY: str = VECTORS["erc1056_resolution"]["registry"]
NAME = b"did/pub/Rsa/veriKey/hex"
FOR_EVER = 4_102_444_800
NOW = 1_764_000_000

Log = dict[str, Any]


def value(tag: str, key: str) -> bytes:
    return json.dumps({"type": "Rsa", "tag": tag, "publicKey": key}).encode()


SIGNATURE, ENCRYPTION = value("dsb-signature-key", KEY), value("dsb-symmetric-encryption", PEM)


class Ledger:
    """Writes the logs of one identity as the contract does."""

    def __init__(self, address: bytes = ADDRESS) -> None:
        self.address = address
        self.owner = address
        self.logs: list[Log] = []
        self.changed = 0

    def attribute(self, block: int, content: bytes, *, name: bytes = NAME, until: int = FOR_EVER) -> Ledger:
        types = ["bytes32", "bytes", "uint256", "uint256"]
        return self._log(block, "DIDAttributeChanged", types, [name.ljust(32, b"\0"), content, until])

    def new_owner(self, block: int, owner: str) -> Ledger:
        self._log(block, "DIDOwnerChanged", ["address", "uint256"], [owner])
        self.owner = bytes.fromhex(owner[2:])
        if not any(self.owner):  # which the contract keeps for "none was named"
            self.owner = self.address
        return self

    def delegate(self, block: int, delegate: str) -> Ledger:
        types = ["bytes32", "address", "uint256", "uint256"]
        return self._log(block, "DIDDelegateChanged", types, [b"veriKey".ljust(32, b"\0"), delegate, FOR_EVER])

    def _log(self, block: int, event: str, types: list[str], values: list[Any]) -> Ledger:
        self.logs.append(
            {
                "address": REGISTRY,
                "topics": [TOPICS[event], f"0x{self.address.hex():0>64}"],
                "data": f"0x{encode(types, [*values, self.changed]).hex()}",
                "blockNumber": hex(block),
                "logIndex": hex(sum(log["blockNumber"] == hex(block) for log in self.logs)),
                "removed": False,
            }
        )
        self.changed = block
        return self

    def published(self) -> Ledger:
        """Both keys, as they should be."""
        return self.attribute(100, SIGNATURE).attribute(200, ENCRYPTION)


class Refused(Exception):
    """The node answers a call with this error."""


class Node:
    """A node of the chain over a ledger, which answers requests of httpx. ``script``: by method, what it says instead;
    ``asked``: the methods that were called.
    """

    def __init__(self, ledger: Ledger, *, head: int = 1000, chain: int = 73799) -> None:
        self.ledger = ledger
        self.head = head
        self.chain = chain
        self.asked: list[str] = []
        self.script: dict[str, Callable[..., Any]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        call = json.loads(request.content)
        self.asked.append(call["method"])
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            scripted = self.script.get(call["method"])
            said = scripted(*call["params"]) if scripted else getattr(self, call["method"])(*call["params"])
            if isinstance(said, httpx.Response):
                return said
            answer["result"] = said
        except Refused as error:
            answer["error"] = {"code": -32000, "message": str(error)}
        return httpx.Response(200, json=answer)

    def eth_chainId(self) -> str:  # noqa: N802 - as nodes name it
        return hex(self.chain)

    def eth_blockNumber(self) -> str:  # noqa: N802
        return hex(self.head)

    def eth_syncing(self) -> bool | Mapping[str, str]:
        return False

    def eth_call(self, call: Mapping[str, str], block: str) -> str:
        assert call["to"].lower() == REGISTRY
        assert call["data"][10:] == f"{self.ledger.address.hex():0>64}"
        until = int(block, 16)
        if call["data"][:10] == SELECTORS["changed"]:
            blocks = [int(log["blockNumber"], 16) for log in self.ledger.logs]
            return f"0x{max((each for each in blocks if each <= until), default=0):064x}"
        assert call["data"][:10] == SELECTORS["identityOwner"]
        return f"0x{self.ledger.owner.hex():0>64}"

    def eth_getLogs(self, asked: Mapping[str, Any]) -> list[Log]:  # noqa: N802
        assert asked["address"].lower() == REGISTRY
        assert asked["topics"] == [None, f"0x{self.ledger.address.hex():0>64}"]
        first, last = int(asked["fromBlock"], 16), int(asked["toBlock"], 16)
        return [log for log in self.ledger.logs if first <= int(log["blockNumber"], 16) <= last]
