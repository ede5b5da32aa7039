"""The fake Data Hub keeps to the specification: searching, acknowledging, keys, and what 24 hours take away."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed.ddhub.gateway import Gateway, Padding, decrypt, is_signed_by, unwrap
from testbed.ddhub.hub import DataHub
from testbed.ddhub.settings import Settings
from testbed.processes import NatsServer
from tests import ddhub_world
from tests.ddhub_world import ALICE, BOB, NOWHERE, UUID4, VECTORS, message, numbers, participant, told

DAY = 24 * 3600
pytestmark = pytest.mark.anyio
hub, alice, bob = ddhub_world.hub, ddhub_world.alice, ddhub_world.bob


@pytest.fixture(scope="module")
def topic(hub: DataHub) -> str:
    return hub.add_topic("one", "{}")


@pytest.fixture(scope="module")
def other(hub: DataHub) -> str:
    return hub.add_topic("other", "{}")


class Reader:
    """Bob's searches with one client id; messages by their payloads."""

    def __init__(self, bob: Gateway, sender: Gateway, *topics: str, client_id: str | None = "reader") -> None:
        self.bob = bob
        self.ids: dict[str, str] = {}
        self._asked = {"fqcnTopicList": [*topics], "senderId": [sender.did], "amount": 100, "clientId": client_id}

    async def search(self, **changes: Any) -> list[str]:
        """Payloads in the order of their times."""
        found = await self.bob.post("/messages/search", self._asked | changes)
        self.ids |= {each["payload"]: each["messageId"] for each in found}
        return [each["payload"] for each in sorted(found, key=lambda each: (each["timestampNanos"], each["payload"]))]

    async def acknowledge(self, *payloads: str, **changes: Any) -> tuple[list[str], list[str]]:
        """Payloads acknowledged and not found."""
        ids = {self.ids.get(each, each): each for each in payloads}
        body = {"messageIds": [*ids], "clientId": self._asked["clientId"]} | changes
        answer = await self.bob.post("/messages/ack", body)
        return [ids[each] for each in answer["acked"]], [ids[each] for each in answer["notFound"]]


async def give(sender: Gateway, recipient: Gateway, topic: str, *payloads: str, **changes: Any) -> None:
    for payload in payloads:
        answer = await sender.post("/messages", message(topic, recipient.did, payload=payload, **changes))
        assert answer["recipients"]["sent"] == 1


# ---- searching --------------------------------------------------------------------------------------------------


async def test_a_search_tells_all_of_a_message(alice: Gateway, bob: Gateway, topic: str) -> None:
    more = {"initiatingMessageId": "m", "initiatingTransactionId": "t", "topicRestrictions": "r", "transactionId": "x"}
    await give(alice, bob, topic, "a", **more)
    await give(alice, bob, topic, "b", isFile="true")
    asked = {"fqcnTopicList": [topic], "senderId": [alice.did], "amount": 2}
    answer = await bob.ask("POST", "/messages/search", json=asked)
    first, second = sorted(answer.json(), key=lambda each: each["payload"])
    usual = {
        "topicId": topic, "topicVersion": "1.0.0", "payloadEncryption": True, "senderDid": alice.did,
        "signature": "0x12", "clientGatewayMessageId": UUID4, "fqcn": bob.did,
    }  # fmt: skip
    varying = ("messageId", "timestampNanos")
    assert first == {**usual, **more, "payload": "a", "isFile": False, **{name: first[name] for name in varying}}
    assert second == {
        **usual, "payload": "b", "isFile": True, "transactionId": "", **{name: second[name] for name in varying},
    }  # fmt: skip
    assert isinstance(first["timestampNanos"], int)
    assert '"null"' not in answer.text


async def test_results_have_no_order_and_come_until_acknowledged(alice: Gateway, bob: Gateway, topic: str) -> None:
    payloads = [f"{n:02}" for n in range(20)]
    await give(alice, bob, topic, *payloads)
    reader = Reader(bob, alice, topic)
    asked = {"fqcnTopicList": [topic], "senderId": [alice.did], "amount": 100, "clientId": "reader"}
    orders = [[each["payload"] for each in await bob.post("/messages/search", asked)] for _ in range(3)]
    assert [sorted(each) for each in orders] == [payloads] * 3
    assert payloads not in orders
    assert await reader.search() == payloads
    assert await reader.acknowledge(*payloads[:15]) == (payloads[:15], [])
    assert await reader.search() == payloads[15:]
    assert len(await reader.search(amount=3)) == 3
    assert await Reader(bob, alice, topic, client_id="somebodyelse").search() == payloads


async def test_the_amount_is_one_unless_told_otherwise(alice: Gateway, bob: Gateway, topic: str) -> None:
    await give(alice, bob, topic, "a", "b")
    reader = Reader(bob, alice, topic)
    assert await reader.search(amount=None) == ["a"]
    assert await reader.search(amount=0) == []
    assert await Reader(bob, alice, topic, client_id=None).search(amount=5) == ["a", "b"]
    assert "mb-default" in await bob.get("/channel/clientIds")


async def test_filters_lose_what_they_leave_out_but_for_the_topic_id(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str, other: str
) -> None:
    await give(alice, bob, topic, "mine")
    await give(alice, bob, other, "other")
    async with participant(hub) as carol:
        await carol.login()
        await give(carol, bob, topic, "carols")
    reader = Reader(bob, alice, topic, other)
    assert await reader.search(topicId=[other]) == ["other"]
    assert await reader.search() == ["mine", "other"]  # put back; but carol's message is lost for this client id
    everybody = {"senderId": ["did:ethr:"]}  # any part of a DID will do
    assert await reader.search(**everybody) == ["mine", "other"]
    assert await reader.search(fqcnTopicList=[topic], **everybody) == ["mine"]
    assert await reader.search(**everybody) == ["mine"]
    assert len(await Reader(bob, alice, topic, other, client_id="fresh").search(**everybody)) == 3


async def test_from_has_a_consumer_of_its_own_and_loses_what_is_older(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str
) -> None:
    await give(alice, bob, topic, "old")
    hub.clock.move(100)
    second = int(hub.clock.now())
    await give(alice, bob, topic, "new")
    reader = Reader(bob, alice, topic)

    def at(moment: int, rest: str = ".000Z") -> dict[str, str]:
        return {"from": f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S}{rest}"}

    assert await reader.search(**at(second, ".999+05:00")) == ["new"]  # another zone is read over
    assert await reader.acknowledge("new") == ([], ["new"])  # another consumer
    assert await reader.acknowledge("new", **at(second - 1)) == ([], ["new"])  # there is none
    assert await reader.acknowledge("new", **at(second)) == (["new"], [])
    assert await reader.search(**at(second)) == []
    assert await reader.search() == ["old", "new"]
    names = await hub.streams.consumers(bob.did)
    assert sorted(names) == ["reader", f"reader:#:{second:x}"]
    await reader.search(**at(second - 5))
    assert sorted(await hub.streams.consumers(bob.did)) == ["reader", f"reader:#:{second - 5:x}"]
    assert await bob.get("/channel/clientIds") == ["reader"]


async def test_ack_true_acknowledges_at_once(alice: Gateway, bob: Gateway, topic: str) -> None:
    await give(alice, bob, topic, "a", "b")
    reader = Reader(bob, alice, topic)
    assert await reader.search(ack=True, amount=1) == ["a"]
    assert await reader.search(ack="true") == ["b"]
    assert await reader.search() == []


async def test_an_anonymous_key_has_a_stream_of_its_own(hub: DataHub, alice: Gateway, bob: Gateway, topic: str) -> None:
    key = f"02{next(numbers)}"
    await bob.post("/channel/initExtChannel", {"anonymousKeys": [{"anonymousKey": key}]})
    sent = await alice.post("/messages", message(topic, payload="a", fqcns=None, anonymousRecipient=[key]))
    assert sent["recipients"]["sent"] == 1
    reader = Reader(bob, alice, topic)
    assert await reader.search() == []
    assert await reader.search(anonymousRecipient=key) == ["a"]
    assert await reader.acknowledge("a", anonymousRecipient=key) == (["a"], [])


@pytest.mark.parametrize(
    ("changes", "status", "code", "text"),
    [
        ({"fqcnTopicList": []}, 400, "17", "fqcnTopicList : "),
        ({"fqcnTopicList": ["x"]}, 400, "17", "fqcnTopicList : "),
        ({"fqcnTopicList": ["ab" * 12]}, 404, "50", "not exists"),
        ({"senderId": None}, 400, "17", "senderId : "),
        ({"clientId": "a_b"}, 400, "17", "clientId : "),
        ({"clientId": "a" * 248}, 400, "17", "clientId : "),
        ({"from": "2025-01-01T00:00:00Z"}, 400, "17", "from : Required"),
        ({"anonymousRecipient": "did:x"}, 400, "17", "anonymousRecipient : "),
        ({"anonymousRecipient": "nobody"}, 400, "20", "stream not found"),
        ({"amount": "x"}, 400, "15", "amount"),
    ],
)
async def test_searches_are_judged(
    bob: Gateway, topic: str, changes: dict[str, Any], status: int, code: str, text: str
) -> None:
    asked = {"fqcnTopicList": [topic], "senderId": ["x"], "clientId": "a"} | changes
    answer = await bob.ask("POST", "/messages/search", json=asked)
    assert told(answer)[:2] == (status, code)
    assert text in told(answer)[2]


async def test_who_never_had_a_channel_cannot_search(hub: DataHub, topic: str) -> None:
    async with participant(hub) as carol:
        await carol.authenticate()
        asked = {"fqcnTopicList": [topic], "senderId": ["x"]}
        assert told(await carol.ask("POST", "/messages/search", json=asked))[:2] == (400, "20")
        assert told(await carol.ask("POST", "/messages/internal/search", json={}))[:2] == (400, "20")


async def test_a_search_finds_nothing_while_another_holds_what_is_pending(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str
) -> None:
    await give(alice, bob, topic, "a", "b", "c")
    reader = Reader(bob, alice, topic)
    assert await reader.search() == ["a", "b", "c"]
    held = await hub.streams.fetch(bob.did, "reader", 2)
    assert await reader.search() == []
    ids = {"messageIds": [*reader.ids.values()], "clientId": "reader"}
    answer = await bob.ask("POST", "/messages/ack", json=ids)
    assert told(answer)[:2] == (400, "20")
    await hub.streams.put_back(held)
    assert await reader.search() == [each.body["payload"] for each in held]  # the third is acknowledged all the same


async def test_client_ids_are_deleted_by_any_part_of_their_names(alice: Gateway, bob: Gateway, topic: str) -> None:
    await give(alice, bob, topic, "a")
    for client_id in ("one", "another", "third"):
        reader = Reader(bob, alice, topic, client_id=client_id)
        await reader.search(ack=True)
    deleted = await bob.ask("DELETE", "/channel/clientIds", json={"clientIds": ["o", "x"]})
    assert deleted.json() == ["o"]
    assert await bob.get("/channel/clientIds") == ["third"]
    assert await Reader(bob, alice, topic, client_id="one").search() == ["a"]
    answer = await bob.ask("DELETE", "/channel/clientIds", json={"clientIds": []})
    assert told(answer)[:2] == (400, "17")


# ---- acknowledging ----------------------------------------------------------------------------------------------


async def test_only_what_a_search_gave_can_be_acknowledged(alice: Gateway, bob: Gateway, topic: str) -> None:
    await give(alice, bob, topic, "a", "b")
    reader = Reader(bob, alice, topic)
    assert await reader.acknowledge("nonsense") == ([], ["nonsense"])
    await reader.search()
    assert await Reader(bob, alice, topic, client_id="x").acknowledge(reader.ids["a"]) == ([], [reader.ids["a"]])
    assert await reader.acknowledge("a", "nonsense") == (["a"], ["nonsense"])
    assert await reader.acknowledge("a", "b") == (["b"], ["a"])


async def test_what_cannot_be_fetched_is_told_though_something_was_acknowledged(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str
) -> None:
    await give(alice, bob, topic, "a", "b", "c")
    reader = Reader(bob, alice, topic)
    await reader.search()
    hub.faults.put("ack-incomplete", done=2)
    ids = [reader.ids[each] for each in "abc"]
    answer = await bob.ask("POST", "/messages/ack", json={"messageIds": ids, "clientId": "reader"})
    assert told(answer) == (400, "20", "Not able to retrieve complete TotalAckPendingRetrieve.")
    assert await reader.acknowledge("a", "b", "c") == (["c"], ["a", "b"])


# ---- keys -------------------------------------------------------------------------------------------------------


async def test_a_key_comes_once_for_each_client_id(alice: Gateway, bob: Gateway) -> None:
    for n in range(3):
        body = {"fqcn": bob.did, "clientGatewayMessageId": f"m{n}", "payload": f"key {n}"}
        await alice.post("/messages/internal", body)

    async def search(**asked: Any) -> list[str]:
        found = await bob.post("/messages/internal/search", asked)
        return sorted(each["payload"] for each in found)

    assert await search() == ["key 0"]
    assert await search(amount=100) == ["key 1", "key 2"]
    assert await search(amount=100) == []
    (key,) = await bob.post("/messages/internal/search", {"clientId": "my:keys-1"})
    assert key == {
        "messageId": key["messageId"], "payload": "key 0", "fqcn": bob.did, "senderDid": alice.did,
        "timestampNanos": key["timestampNanos"], "clientGatewayMessageId": "m0", "isFile": False,
        "payloadEncryption": False,
    }  # fmt: skip
    answer = await bob.ask("POST", "/messages/internal/search", json={"clientId": "a.b"})
    assert told(answer)[:2] == (400, "17")


async def test_keys_that_a_filter_leaves_out_come_again_after_a_while(server: NatsServer) -> None:
    hub = DataHub(server.url, settings=Settings(ack_wait_s=0.2))
    async with hub, participant(hub) as bob:
        await bob.login()
        await bob.post("/messages/internal", {"fqcn": bob.did, "clientGatewayMessageId": "m", "payload": "k"})

        async def search(**asked: Any) -> list[str]:
            return [each["payload"] for each in await bob.post("/messages/internal/search", asked)]

        assert await search(senderId=["nobody"]) == []
        assert await search() == []
        with anyio.fail_after(5):
            while not (found := await search()):  # noqa: ASYNC110  # NATS counts real time
                await anyio.sleep(0.02)
    assert found == ["k"]


# ---- the clock --------------------------------------------------------------------------------------------------


async def test_everything_is_gone_after_24_hours(hub: DataHub, alice: Gateway, bob: Gateway, topic: str) -> None:
    async def send(*payloads: str) -> None:
        await give(alice, bob, topic, *payloads)
        for each in payloads:
            key = {"fqcn": bob.did, "clientGatewayMessageId": each, "payload": each}
            await alice.post("/messages/internal", key)

    await send("a", "b")
    reader = Reader(bob, alice, topic)
    assert await reader.search() == ["a", "b"]
    await hub.move(DAY / 2)
    await send("c")
    assert [each["payload"] for each in await hub.stored(bob.did)] == ["a", "b", "c"]
    await hub.move(DAY / 2 - 60)
    assert len(await hub.stored(bob.did)) == 3
    await hub.move(120)
    assert [each["payload"] for each in await hub.stored(bob.did)] == ["c"]
    assert [each["payload"] for each in await hub.stored_keys(bob.did)] == ["c"]
    assert await reader.acknowledge("a", "b") == ([], ["a", "b"])
    assert await reader.search() == ["c"]
    hub.clock.move(DAY)  # who looks is told nothing of what is too old
    assert await reader.search() == []
    assert await bob.post("/messages/internal/search", {}) == []


# ---- the other participant --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "keys_first"), [("oaep", True), ("pkcs1v15", False)])
async def test_gateways_understand_each_other(
    alice: Gateway, bob: Gateway, topic: str, padding: Padding, keys_first: bool
) -> None:
    to_bob, bob.padding = {bob.did: bob.encryption_key}, padding
    for text in ('{"a":1}', "ü"):
        sent = await alice.send(topic, text, to_bob, padding=padding, keys_first=keys_first, transaction_id=text)
        assert sent["recipients"]["sent"] == 1
    await give(alice, bob, topic, '{"b":2}', payloadEncryption=False)
    found = await bob.receive([topic], {alice.did: alice.signature_key})
    assert [(each.text, each.verified, each.problem) for each in found] == [
        ('{"a":1}', True, ""), ("ü", True, ""), ('{"b":2}', False, "bad signature"),
    ]  # fmt: skip
    assert await bob.receive([topic], {alice.did: alice.signature_key}) == []


def test_a_gateway_reads_what_the_published_ones_wrote() -> None:
    for case in VECTORS["b_aes"]["cases"]:
        assert decrypt(case["payload"], bytes.fromhex(case["keyHex"])) == case["plaintext"]
    for case in VECTORS["a_signature"]["cases"]:
        assert Gateway(NOWHERE, ALICE).sign(case["text"]) == case["signature"]
        assert is_signed_by(case["text"], case["signature"], case["recoveredPublicKey"])
        assert not is_signed_by(case["text"], case["signature"][2:], case["recoveredPublicKey"])
        assert not is_signed_by(case["text"] + " ", case["signature"], case["recoveredPublicKey"])
    kinds: tuple[Padding, Padding] = ("oaep", "pkcs1v15")
    for case, kind, other in zip((VECTORS["c_rsa"], VECTORS["c_rsa"]["legacy"]), kinds, kinds[::-1], strict=True):
        assert unwrap(case["wrappedKeyBase64"], published_key(), kind) == case["unwrapsToAscii"]
        with pytest.raises(ValueError, match="cannot be unwrapped"):
            unwrap(case["wrappedKeyBase64"], published_key(), other)
    own = Gateway(NOWHERE, BOB, rsa_key=published_key())
    assert own.encryption_key == VECTORS["c_rsa"]["publicKeyPemPkcs1"]
    assert own.signature_key == VECTORS["identities"]["bob"]["publicKeyUncompressed"]


def published_key() -> rsa.RSAPrivateKey:
    pem = VECTORS["c_rsa"]["privateKeyPemPkcs8"]
    key = serialization.load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


# ---- files ------------------------------------------------------------------------------------------------------


def form(topic: str, *recipients: str, **changes: Any) -> dict[str, Any]:
    usual = {
        "fileName": "table.csv", "fqcns": ",".join(recipients), "signature": "0x12", "topicId": topic,
        "topicVersion": "1.0.0", "clientGatewayMessageId": UUID4, "payloadEncryption": "true",
    }  # fmt: skip
    return {name: value for name, value in (usual | changes).items() if value is not None}


async def test_a_file_is_told_of_and_can_be_fetched_by_anybody_for_a_day(
    hub: DataHub, alice: Gateway, bob: Gateway
) -> None:
    table = hub.add_topic("table", "a,b", schema_type="CSV")
    content = bytes(range(256)) + b"\r\n--x\r\n"
    sent = await alice.ask("POST", "/messages/upload", data=form(table, bob.did, "x"), files={"file": ("any", content)})
    assert sent.json()["recipients"] == {"total": 1, "sent": 1, "failed": 1}
    (told_of,) = await bob.post("/messages/search", {"fqcnTopicList": [table], "senderId": [alice.did]})
    assert (told_of["isFile"], told_of["payloadEncryption"]) == (True, True)
    file_id = json.loads(told_of["payload"])["fileId"]
    found = await bob.ask("GET", "/messages/download", params={"fileId": file_id})
    assert found.content == content
    names = ("content-disposition", "clientgatewaymessageid", "payloadencryption", "ownerdid", "signature")
    assert [found.headers[name] for name in names] == [
        'attachment; filename="table.csv"', UUID4, "true", alice.did, "0x12",
    ]  # fmt: skip
    assert told(await bob.ask("GET", "/messages/download", params={"fileId": "x"}))[:2] == (404, "50")
    hub.clock.move(DAY)
    await bob.authenticate()
    late = await bob.ask("GET", "/messages/download", params={"fileId": file_id})
    assert told(late) == (400, "50", "File are expired")


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"fileName": "table.txt"}, "17", "fileName : "),
        ({"fqcns": ""}, "17", "fqcns : "),
        ({"clientGatewayMessageId": "x"}, "17", "clientGatewayMessageId : "),
    ],
)
async def test_uploads_are_judged(alice: Gateway, topic: str, changes: dict[str, Any], code: str, text: str) -> None:
    data = form(topic, alice.did) | changes
    answer = await alice.ask("POST", "/messages/upload", data=data, files={"file": ("x", b"x")})
    assert told(answer)[:2] == (400, code)
    assert text in told(answer)[2]
    assert told(await alice.ask("POST", "/messages/upload", json={}))[:2] == (400, "16")
