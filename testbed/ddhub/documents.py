"""DID documents as Energy Web's resolver makes them from the registry's logs, its defects included.

Only the first log of a block counts, a change of owner changes nothing, one service that is no JSON makes the whole
document unresolvable (the specification of identities, 1.3 and 1.4, R1 to R3).
"""

from __future__ import annotations

import json
import re
from typing import Any

from eth_abi.abi import decode
from eth_utils.address import to_checksum_address

from testbed.ddhub.chain import ATTRIBUTE_CHANGED, DELEGATE_CHANGED, Chain, address_of

_ATTRIBUTE = re.compile(r"did/(pub|auth|svc)/(\w+)(/(\w+))?(/(\w+))?")
_OWNER_VALIDITY = {"type": "BigNumber", "hex": "0x1ffffffffffffe"}


class Unresolvable(Exception):
    """The resolver threw."""


def document(chain: Chain, did: str, now: float) -> dict[str, Any]:
    """The document of ``did``, whose address stays as it is written. Raises Unresolvable."""
    entries: dict[str, dict[str, Any]] = {"publicKey": {}, "service": {}}
    for log in _history(chain, did):  # the newest first
        kind, entry, until = _entry(log, did)
        if kind and entry["id"] not in entries[kind]:
            entries[kind][entry["id"]] = (entry, until)
    alive = {kind: [entry for entry, until in found.values() if until > now] for kind, found in entries.items()}
    owner = {"type": "owner", "publicKey": f"{did}#owner", "validity": _OWNER_VALIDITY}
    return {
        "@context": "https://www.w3.org/ns/did/v1",
        "id": did,
        "publicKey": alive["publicKey"],
        "authentication": [owner],
        "service": alive["service"],
    }


def _history(chain: Chain, did: str) -> list[dict[str, Any]]:
    topic = "0x" + address_of(did)[2:].lower().rjust(64, "0")
    first_of_block: dict[str, dict[str, Any]] = {}
    for log in chain.logs(0, chain.head):
        if log["topics"][1] == topic:
            first_of_block.setdefault(log["blockNumber"], log)
    return [*first_of_block.values()][::-1]


def _entry(log: dict[str, Any], did: str) -> tuple[str, dict[str, Any], int]:
    """Where a log's entry belongs ("" if nowhere), the entry, and until when it is valid."""
    data = bytes.fromhex(log["data"][2:])
    if log["topics"][0] == "0x" + DELEGATE_CHANGED.hex():
        kind, delegate, until, _ = decode(["bytes32", "address", "uint256", "uint256"], data)
        text, address = _text(kind), to_checksum_address(delegate)
        entry = {
            "id": f"{did}#delegate-{text}-{address}",
            "type": "Secp256k1VerificationKey2018",
            "controller": did,
            "ethereumAddress": address,
        }
        return ("publicKey" if text in ("veriKey", "sigAuth") else ""), entry, until
    if log["topics"][0] != "0x" + ATTRIBUTE_CHANGED.hex():
        return "", {}, 0
    name, value, until, _ = decode(["bytes32", "bytes", "uint256", "uint256"], data)
    found = _ATTRIBUTE.fullmatch(_text(name))
    if found is None:
        return "", {}, 0
    section, algorithm, _, kind = found.group(1, 2, 3, 4)
    if section == "svc":
        try:
            service = json.loads(value)
        except ValueError as error:
            raise Unresolvable(f"Unexpected token in JSON: {error}") from None
        return "service", {"id": None, **service}, until
    try:
        key = json.loads(value)
        tag, text = key["tag"], key["publicKey"]
    except (ValueError, TypeError, KeyError):
        return "", {}, 0
    entry = {
        "id": f"{did}#{tag}",
        "type": f"{algorithm}{kind}",
        "controller": address_of(did),
        "publicKeyHex": text,
    }
    return ("publicKey" if section == "pub" else ""), entry, until


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")
