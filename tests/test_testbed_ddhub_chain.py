"""The fake chain, its node's JSON-RPC and the fake SSI Hub keep to the specification of identities."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import rlp
from eth_abi.abi import encode
from eth_account import Account
from eth_keys.constants import SECPK1_N
from eth_utils.address import to_checksum_address

from testbed.ddhub.contract import FOR_EVER, KEY_NAME, gas_for, key_value
from testbed.ddhub.documents import document
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import DataHub
from testbed.ddhub.settings import Settings
from tests.ddhub_world import IDENTITIES, VECTORS, siwe

NO_NATS = "nats://127.0.0.1:9"
RESOLUTION, RPC = IDENTITIES["erc1056_resolution"], IDENTITIES["json_rpc"]
REGISTRY = RESOLUTION["registry"]
ATTRIBUTE_CHANGED = RPC["topics"]["DIDAttributeChanged(address,bytes32,bytes,uint256,uint256)"]
pytestmark = pytest.mark.anyio
numbers = itertools.count(5000)


class Node:
    """Asks the node."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def ask(self, method: str, *params: Any) -> dict[str, Any]:
        """The whole answer."""
        asked = {"jsonrpc": "2.0", "id": 7, "method": method, "params": [*params]}
        answer: dict[str, Any] = (await self._http.post("/rpc", json=asked)).raise_for_status().json()
        assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
        return answer

    async def result(self, method: str, *params: Any) -> Any:
        return (await self.ask(method, *params))["result"]

    async def error(self, method: str, *params: Any) -> tuple[int, str]:
        error = (await self.ask(method, *params))["error"]
        return error["code"], error["message"]

    async def read(self, name: str, address: str, block: str = "latest") -> int:
        data = RPC["selectors"][f"{name}(address)"] + address[2:].lower().rjust(64, "0")
        return int(await self.result("eth_call", {"to": REGISTRY, "data": data}, block), 16)


@pytest.fixture(scope="module")
async def hub() -> AsyncIterator[DataHub]:
    async with DataHub(NO_NATS) as hub:
        yield hub


@pytest.fixture
async def node(hub: DataHub) -> AsyncIterator[Node]:
    async with httpx.AsyncClient(base_url=hub.hub_url, verify=False, trust_env=False) as http:
        yield Node(http)


@pytest.fixture
def address() -> str:
    """An account that nobody used."""
    return str(Account.from_key(f"0x{next(numbers):064x}").address)


# ---- the registry -----------------------------------------------------------------------------------------------


async def test_a_change_stands_in_a_block_of_its_own_and_points_to_the_one_before(
    hub: DataHub, node: Node, address: str
) -> None:
    did = hub.did(address)
    assert (await node.read("changed", address), await node.read("owners", address)) == (0, 0)
    assert await node.read("identityOwner", address) == int(address, 16)
    hub.chain.publish_keys(did, signature="0x04ab", encryption="PEM\n")
    newest = int(await node.result("eth_blockNumber"), 16)
    assert (newest, await node.read("changed", address)) == (hub.chain.head, hub.chain.head)
    topic = "0x" + address[2:].lower().rjust(64, "0")
    found = await node.result(
        "eth_getLogs", {"address": REGISTRY, "fromBlock": "0x0", "toBlock": "latest", "topics": [None, topic]}
    )
    assert [int(log["blockNumber"], 16) for log in found] == [newest - 1, newest]
    until = int(hub.clock.now()) + FOR_EVER
    values = [
        (key_value("dsb-signature-key", "0x04ab"), 0),
        (key_value("dsb-symmetric-encryption", "PEM\n"), newest - 1),
    ]
    for log, (value, previous) in zip(found, values, strict=True):
        block = await node.result("eth_getBlockByNumber", log["blockNumber"], False)
        assert block["hash"] == log["blockHash"]
        made = int(block["timestamp"], 16) + FOR_EVER
        assert abs(made - until) < 60
        assert log == {
            "address": REGISTRY, "topics": [ATTRIBUTE_CHANGED, topic],
            "data": "0x" + encode(
                ["bytes32", "bytes", "uint256", "uint256"], [KEY_NAME.encode(), value, made, previous]
            ).hex(),
            "blockNumber": log["blockNumber"], "blockHash": log["blockHash"],
            "transactionHash": log["transactionHash"], "transactionIndex": "0x0", "logIndex": "0x0", "removed": False,
        }  # fmt: skip


def test_the_keys_are_written_as_the_gateway_writes_them() -> None:
    for case in VECTORS["e_didAttributes"]:
        tag = case["resultingPublicKeyEntry"]["id"].partition("#")[2]
        value = key_value(tag, case["resultingPublicKeyEntry"]["publicKeyHex"])
        assert "0x" + value.hex() == case["valueHex"]
        assert case["nameText"] == KEY_NAME
        assert int(case["validity"]) == FOR_EVER


async def test_several_changes_may_share_a_block(hub: DataHub, node: Node, address: str) -> None:
    before = hub.chain.head
    with hub.chain.one_block():
        hub.chain.set_attribute(address, "did/pub/Secp256k1/veriKey/hex", b"\x02ab", validity_s=10)
        hub.chain.add_delegate(address, "veriKey", "0x" + "12" * 20)
        hub.chain.revoke_attribute(address, "did/pub/Secp256k1/veriKey/hex", b"\x02ab")
        hub.chain.change_owner(address, "0x" + "34" * 20)
    assert hub.chain.head == before + 1
    found = await node.result("eth_getLogs", {"fromBlock": hex(before + 1), "toBlock": hex(before + 1)})
    assert [log["logIndex"] for log in found] == ["0x0", "0x1", "0x2", "0x3"]
    # the first points to the past, the others to their own block
    at_words = (3, 3, 3, 1)  # where previousChange stands in the data
    previous = [int(log["data"][2:][word * 64 :][:64], 16) for log, word in zip(found, at_words, strict=True)]
    assert previous == [0, before + 1, before + 1, before + 1]
    assert await node.read("identityOwner", address) == await node.read("owners", address) == int("34" * 20, 16)


async def test_the_registry_is_read_as_of_a_block(hub: DataHub, node: Node, address: str) -> None:
    hub.chain.set_key(address, "a", "0x1")
    before = hex(hub.chain.head)
    hub.chain.change_owner(address, "0x" + "34" * 20)
    assert (await node.read("changed", address), await node.read("changed", address, before)) == (
        hub.chain.head,
        hub.chain.head - 1,
    )
    assert await node.read("identityOwner", address, before) == int(address, 16)
    assert await node.read("identityOwner", address) == int("34" * 20, 16)
    data = RPC["selectors"]["changed(address)"] + address[2:].lower().rjust(64, "0")
    asked = {"to": REGISTRY, "data": data}
    assert await node.error("eth_call", asked, hex(hub.chain.head + 1)) == (-32000, "header not found")


async def test_an_identity_that_was_given_up_is_its_own_for_the_contract(
    hub: DataHub, node: Node, address: str
) -> None:
    hub.chain.change_owner(address, "0x" + "00" * 20)
    assert (await node.read("owners", address), await node.read("identityOwner", address)) == (0, int(address, 16))
    hub.chain.change_owner(address, address)
    assert await node.read("owners", address) == int(address, 16)


async def test_a_reorganisation_takes_blocks_away(hub: DataHub, node: Node, address: str) -> None:
    hub.chain.set_key(address, "a", "0x1")
    hub.chain.mine(2)
    old = await node.result("eth_getBlockByNumber", hex(hub.chain.head), False)
    hub.chain.reorg(3)
    new = await node.result("eth_getBlockByNumber", "latest", False)
    assert new["number"] == old["number"]
    assert new["hash"] != old["hash"]
    assert await node.read("changed", address) == 0


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"fromBlock": "0x0"}, 4),
        ({"fromBlock": "0x0", "toBlock": "0xc8"}, 2),
        ({"fromBlock": "0xc8", "toBlock": "0xc8"}, 1),
        ({"fromBlock": "0x0", "address": [REGISTRY.upper().replace("X", "x")]}, 4),
        ({"fromBlock": "0x0", "address": "0x" + "00" * 20}, 0),
        ({"fromBlock": "earliest", "topics": [RESOLUTION["logs"][2]["topics"][0]]}, 1),
        ({"fromBlock": "earliest", "topics": [[log["topics"][0] for log in RESOLUTION["logs"][1:3]]]}, 4),
        ({"fromBlock": "earliest", "topics": [None, RESOLUTION["logs"][0]["topics"][1]]}, 4),
        ({"fromBlock": "earliest", "topics": [None, "0x" + "00" * 32]}, 0),
        ({"fromBlock": "earliest", "topics": [None, None, None]}, 0),
    ],
)
async def test_logs_are_found_by_block_address_and_topics(asked: dict[str, Any], count: int) -> None:
    async with DataHub(NO_NATS) as hub, httpx.AsyncClient(base_url=hub.hub_url, verify=False) as http:
        hub.chain.add_logs(RESOLUTION["logs"])
        found = await Node(http).result("eth_getLogs", asked)
    assert len(found) == count
    assert {(log["blockNumber"], log["data"]) for log in found} <= {
        (log["blockNumber"], log["data"]) for log in RESOLUTION["logs"]
    }


async def test_what_a_node_does_not_like_is_an_error(hub: DataHub, node: Node) -> None:
    assert (await node.error("eth_feeHistory"))[0] == -32601
    assert (await node.error("eth_getLogs", {"fromBlock": "zero"}))[0] == -32602
    assert (await node.error("eth_call", {"to": REGISTRY, "data": "0x12345678"}, "latest"))[0] == 3
    assert await node.result("eth_call", {"to": "0x" + "00" * 20, "data": "0x12345678"}, "latest") == "0x"
    assert await node.result("eth_getBlockByNumber", "0xffffff", False) is None
    assert await node.result("eth_chainId") == "0x12047"
    hub.rpc.most_blocks = 5
    try:
        assert (await node.error("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x5"}))[0] == -32005
        assert (await node.ask("eth_getLogs", {"fromBlock": "0x1", "toBlock": "0x5"})).get("error") is None
    finally:
        hub.rpc.most_blocks = None
    hub.faults.put("rpc-error", method="eth_call", message="no")
    hub.faults.put("rpc-nonsense", method="eth_call", result={"a": 1})
    assert await node.result("eth_chainId") == "0x12047"
    assert await node.error("eth_call", {}) == (-32603, "no")
    assert await node.result("eth_call", {}) == {"a": 1}


# ---- transactions -----------------------------------------------------------------------------------------------


def transaction(key: str, nonce: int, data: str, **changes: Any) -> str:
    """Signed, in hex; without what is changed to None."""
    usual = {
        "to": to_checksum_address(REGISTRY), "value": 0, "gas": 200_000, "gasPrice": 10**9, "nonce": nonce,
        "chainId": 73799, "data": data,
    }  # fmt: skip
    chosen = {name: value for name, value in (usual | changes).items() if value is not None}
    return "0x" + bytes(Account.sign_transaction(chosen, key).raw_transaction).hex()


def set_attribute(address: str, value: bytes) -> str:
    selector = str(RPC["selectors"]["setAttribute(address,bytes32,bytes,uint256)"])
    types, values = ["address", "bytes32", "bytes", "uint256"], [address, KEY_NAME.encode(), value, 1000]
    return selector + encode(types, values).hex()


FEES = {"gasPrice": None, "maxFeePerGas": 10**9, "maxPriorityFeePerGas": 1}


@pytest.mark.parametrize("kind", [{}, {"chainId": None}, FEES], ids=["EIP-155", "before", "EIP-1559"])
async def test_a_signed_transaction_is_mined_into_a_block_of_its_own(
    hub: DataHub, node: Node, kind: dict[str, Any]
) -> None:
    key = f"0x{next(numbers):064x}"
    address = Account.from_key(key).address
    value = key_value("dsb-signature-key", "0x04")
    data = set_attribute(address, value)
    raw = transaction(key, 0, data, **kind)
    assert await node.error("eth_sendRawTransaction", raw) == (-32000, "insufficient funds for gas * price + value")
    hub.chain.fund(address)
    assert int(await node.result("eth_getBalance", address, "latest"), 16) == 10**18
    sent = await node.result("eth_sendRawTransaction", raw)
    receipt = await node.result("eth_getTransactionReceipt", sent)
    assert (receipt["status"], receipt["blockNumber"], receipt["from"]) == ("0x1", hex(hub.chain.head), address.lower())
    assert [log["transactionHash"] for log in receipt["logs"]] == [sent]
    assert value.hex() in receipt["logs"][0]["data"]
    estimated = {"from": receipt["from"], "to": REGISTRY, "data": data}
    assert int(receipt["gasUsed"], 16) == int(await node.result("eth_estimateGas", estimated), 16)
    refused = estimated | {"from": REGISTRY}
    assert await node.error("eth_estimateGas", refused) == (3, "execution reverted: bad_actor")
    spent = 10**18 - int(await node.result("eth_getBalance", address, "latest"), 16)
    assert spent == int(receipt["gasUsed"], 16) * 10**9
    assert await node.result("eth_getTransactionCount", address, "latest") == "0x1"
    (entry,) = document(hub.chain, hub.did(address), hub.clock.now())["publicKey"]
    assert entry["publicKeyHex"] == "0x04"
    assert await node.error("eth_sendRawTransaction", raw) == (-32000, "nonce too low")


async def test_transactions_wait_for_a_block_when_told(hub: DataHub, node: Node) -> None:
    key = f"0x{next(numbers):064x}"
    address = Account.from_key(key).address
    hub.chain.fund(address)
    hub.chain.automine = False
    try:
        signed = [transaction(key, nonce, set_attribute(address, b"x")) for nonce in (0, 1)]
        sent = [await node.result("eth_sendRawTransaction", raw) for raw in signed]
        assert await node.result("eth_getTransactionReceipt", sent[0]) is None
        counts = [await node.result("eth_getTransactionCount", address, block) for block in ("latest", "pending")]
        assert counts == ["0x0", "0x2"]
        hub.chain.mine()
    finally:
        hub.chain.automine = True
    receipts = [await node.result("eth_getTransactionReceipt", each) for each in sent]
    assert {each["blockNumber"] for each in receipts} == {hex(hub.chain.head)}
    assert [each["logs"][0]["logIndex"] for each in receipts] == ["0x0", "0x1"]


async def test_only_the_owner_may_change_an_identity(hub: DataHub, node: Node, address: str) -> None:
    key = f"0x{next(numbers):064x}"
    hub.chain.fund(Account.from_key(key).address)

    async def status(nonce: int, **changes: Any) -> str:
        raw = transaction(key, nonce, set_attribute(address, b"x"), **changes)
        sent = await node.result("eth_sendRawTransaction", raw)
        return str((await node.result("eth_getTransactionReceipt", sent))["status"])

    assert await status(0) == "0x0"
    assert hub.chain.changed(address) == 0
    hub.chain.change_owner(address, Account.from_key(key).address)
    assert await status(1) == "0x1"
    least = gas_for(bytes.fromhex(set_attribute(address, b"x")[2:]))
    assert await status(2, gas=least - 1) == "0x0"  # out of gas
    assert await status(3, gas=least) == "0x1"
    assert await status(4, to=address, gas=60_000) == "0x1"  # to somewhere else: nothing happens


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chainId": 246}, "invalid chain id"),
        ({"nonce": 1}, "nonce too high"),
        ({"gas": 21_000}, "intrinsic gas too low"),
        ({"gas": 10_000_000}, "exceeds block gas limit"),
        ({"gasPrice": 0}, "transaction underpriced"),
    ],
)
async def test_transactions_are_judged(hub: DataHub, node: Node, changes: dict[str, Any], reason: str) -> None:
    key = f"0x{next(numbers):064x}"
    address = Account.from_key(key).address
    hub.chain.fund(address)
    raw = transaction(key, changes.pop("nonce", 0), set_attribute(address, b"x"), **changes)
    code, message = await node.error("eth_sendRawTransaction", raw)
    assert code == -32000
    assert reason in message
    assert (await node.error("eth_sendRawTransaction", "0x1234"))[0] == -32000


async def test_a_transaction_with_the_other_signature_is_refused(node: Node) -> None:
    raw = transaction(f"0x{next(numbers):064x}", 0, "0x")
    *fields, v, r, s = rlp.decode(bytes.fromhex(raw[2:]))
    v, s = (int.from_bytes(v, "big") - 35 ^ 1) + 35, SECPK1_N - int.from_bytes(s, "big")
    other = rlp.encode([*fields, v.to_bytes(3, "big"), r, s.to_bytes(32, "big")])
    assert "invalid transaction v, r, s values" in (await node.error("eth_sendRawTransaction", "0x" + other.hex()))[1]


# ---- documents --------------------------------------------------------------------------------------------------


def test_documents_are_those_of_the_deployed_resolver() -> None:
    chain = DataHub(NO_NATS).chain
    chain.add_logs(RESOLUTION["logs"])
    made = document(chain, RESOLUTION["did"], RESOLUTION["validTo_unix"] - 1)
    wanted = RESOLUTION["ew_did_document"]
    assert {**made, "publicKey": by_id(made)} == {**wanted, "publicKey": by_id(wanted)}
    assert document(chain, RESOLUTION["did"], RESOLUTION["validTo_unix"])["publicKey"] == []


def by_id(made: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(made["publicKey"], key=lambda entry: str(entry["id"]))


def test_keys_of_the_data_hub_are_found_in_documents() -> None:
    chain = DataHub(NO_NATS).chain
    for case in VECTORS["e_didAttributes"]:
        chain.set_attribute(case["identity"], case["nameText"], bytes.fromhex(case["valueHex"][2:]))
    did = VECTORS["identities"]["bob"]["did"]
    wanted = [case["resultingPublicKeyEntry"] for case in VECTORS["e_didAttributes"]]
    assert by_id(document(chain, did, 0)) == wanted


def test_the_resolver_is_as_blind_as_the_deployed_one(address: str) -> None:
    hub = DataHub(NO_NATS)
    did = hub.did(address)

    def tags() -> set[str]:
        found = document(hub.chain, did, hub.clock.now())
        return {entry["id"].partition("#")[2] for entry in found["publicKey"]}

    hub.chain.set_key(did, "old", "0x1")
    with hub.chain.one_block():  # only the first change of a block is seen
        hub.chain.set_key(did, "new", "0x2")
        hub.chain.revoke_attribute(did, KEY_NAME, key_value("old", "0x1"))
    assert tags() == {"old", "new"}
    hub.chain.revoke_attribute(did, KEY_NAME, key_value("old", "0x1"))
    assert tags() == {"new"}
    hub.chain.change_owner(did, "0x" + "12" * 20)
    assert tags() == {"new"}
    hub.chain.set_attribute(
        did, "did/pub/Secp256k1/veriKey/hex", b"\x02" + b"a" * 32
    )  # raw bytes: not for this resolver
    assert tags() == {"new"}


# ---- SSI Hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def reader(hub: DataHub) -> AsyncIterator[Gateway]:
    """Somebody who talks to the SSI Hub."""
    async with Gateway(hub.hub_url, f"0x{next(numbers):064x}", now=hub.clock.now) as reader:
        yield reader


async def log_in(hub: DataHub, reader: Gateway) -> str:
    """Let the reader's requests have a bearer token; its refresh token."""
    nonce = (await reader.ask("POST", "/v1/login/siwe/initiate")).json()["nonce"]
    signed = siwe(reader, f"{hub.hub_url}/v1/login/siwe/verify", nonce)
    answer = (await reader.ask("POST", "/v1/login/siwe/verify", json=signed)).raise_for_status().json()
    reader.tokens = {"access_token": answer["token"]}
    return str(answer["refreshToken"])


async def test_the_hub_gives_documents_to_who_is_logged_in(hub: DataHub, reader: Gateway, address: str) -> None:
    did = hub.did(address)
    hub.chain.set_key(did, "dsb-signature-key", "0x04")
    assert (await reader.ask("GET", f"/v1/DID/{did}")).status_code == 401
    await log_in(hub, reader)
    assert (await reader.get("/v1/auth/status")) == {"user": reader.did}
    found = await reader.get(f"/v1/DID/{did}", includeClaims=False)
    usual = document(hub.chain, did, hub.clock.now())
    assert found == {**usual, "created": None, "delegates": None, "proof": None, "updated": None}
    assert [entry["publicKeyHex"] for entry in found["publicKey"]] == ["0x04"]
    lower = await reader.get(f"/v1/DID/{did.lower()}")
    assert lower["id"] == did
    assert (await reader.ask("GET", "/v1/DID/nonsense")).status_code == 400
    assert (await reader.ask("GET", f"/v1/DID/{did.replace('volta', 'ewc')}")).status_code == 404
    hub.faults.put("stale-document", did=did)
    assert (await reader.get(f"/v1/DID/{did}"))["publicKey"] == []
    hub.chain.set_attribute(did, "did/svc/x", b"{nonsense")
    assert (await reader.ask("GET", f"/v1/DID/{did}")).status_code == 500


async def test_tokens_of_the_hub_expire_and_are_refreshed_once(hub: DataHub, reader: Gateway) -> None:
    refresh = await log_in(hub, reader)
    hub.clock.move(900)
    assert (await reader.get("/v1/auth/status")) == {"user": None}
    answers = [await reader.ask("GET", "/v1/refresh_token", params={"refresh_token": refresh}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]
    reader.tokens = {"access_token": answers[0].json()["token"]}
    assert (await reader.get("/v1/auth/status")) == {"user": reader.did}
    nonce = (await reader.ask("POST", "/v1/login/siwe/initiate")).json()["nonce"]
    hub.clock.move(60)
    signed = siwe(reader, f"{hub.hub_url}/v1/login/siwe/verify", nonce)
    assert (await reader.ask("POST", "/v1/login/siwe/verify", json=signed)).status_code == 401


async def test_identity_tokens_are_another_way_into_the_hub(hub: DataHub, reader: Gateway) -> None:
    answer = await reader.ask("POST", "/v1/login", json={"identityToken": reader.identity_token()})
    assert answer.json().keys() == {"token", "refreshToken"}
    old = reader.identity_token(claimData={"blockNumber": hub.chain.head - 10})
    assert (await reader.ask("POST", "/v1/login", json={"identityToken": old})).status_code == 401
    assert (await reader.ask("POST", "/v1/login", json={})).status_code == 400
    async with DataHub(NO_NATS, settings=Settings(hub_identity_token=False)) as strict:
        answer = await reader.ask("POST", f"{strict.hub_url}/v1/login", json={"identityToken": "x"})
    assert answer.status_code == 404


async def test_every_key_of_a_document_may_log_in_as_its_did(hub: DataHub, address: str) -> None:
    async with Gateway(hub.url, f"0x{next(numbers):064x}", now=hub.clock.now) as device:
        token = device.identity_token(iss=hub.did(address))
        hub.enrol(hub.did(address))
        assert (await device.ask("POST", "/auth/login", json={"identityToken": token})).status_code == 401
        hub.chain.set_key(address, "dsb-signature-key", device.signature_key)
        assert (await device.ask("POST", "/auth/login", json={"identityToken": token})).status_code == 201
