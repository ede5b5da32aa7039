"""What a test can let go wrong with the fake Data Hub, the fake as a program, and TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from testbed.certificates import Authority
from testbed.ddhub.faults import ANYWHERE, Faults
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import DataHub, in_thread
from testbed.ddhub.process import DataHubProcess
from testbed.ddhub.serving import Tls
from testbed.ddhub.settings import Settings
from testbed.processes import NatsServer, ProcessError
from tests import ddhub_world
from tests.ddhub_world import message, numbers, participant, told

pytestmark = pytest.mark.anyio
hub, alice = ddhub_world.hub, ddhub_world.alice
JSON = {"Content-Type": "application/json"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string", "pattern": "."}}}


@pytest.fixture(scope="module")
def topic(hub: DataHub) -> str:
    return hub.add_topic("faulty", SCHEMA)


async def outcome(who: Gateway, method: str, path: str, **options: Any) -> str:
    """Status and the beginning of the text, or the error's name."""
    try:
        answer = await who.ask(method, path, **options)
    except httpx.TransportError as error:
        return type(error).__name__
    return f"{answer.status_code} {answer.text[:6]}".strip()


# ---- what any request may meet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seen", "done"),
    [
        ("500", "500 <html>", False),
        ("502", "502 <html>", False),
        ("503", "503 <html>", False),
        ("401", "401 <html>", False),
        ("403", "403 <html>", False),
        ("413", "413 <html>", False),
        ("496", "496 <html>", False),
        ("429", "429 <html>", False),
        ("done-500", "500 <html>", True),
        ("cut", "RemoteProtocolError", False),
        ("lost", "RemoteProtocolError", True),
        ("silent", "ReadTimeout", False),
        ("junk", '200 {"stat', False),
        ("html", "200 <!doct", False),
        ("truncated", '200 {"clie', True),
        ("empty", "200", False),
    ],
)
async def test_a_request_meets_a_fault_once(
    hub: DataHub, alice: Gateway, topic: str, name: str, seen: str, done: bool
) -> None:
    asked = {"json": message(topic, alice.did, payload=name), "timeout": 0.2 if name == "silent" else 10}
    before = hub.faults.taken[name]
    hub.faults.put(name, path="/messages")
    assert await outcome(alice, "POST", "/messages", **asked) == seen
    assert [each["payload"] for each in await hub.stored(alice.did)] == ([name] if done else [])
    assert hub.faults.taken[name] == before + 1
    assert (await outcome(alice, "POST", "/messages", **asked)).startswith("200")
    assert hub.calls("/messages")[-1]["payload"] == name


def test_every_fault_that_a_request_may_meet_has_been_shown() -> None:
    marks = test_a_request_meets_a_fault_once.pytestmark  # type: ignore[attr-defined]
    (cases,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    assert {case[0] for case in cases if not case[0].isdecimal()} | {"held"} == set(ANYWHERE)


async def test_an_answer_is_held_until_it_is_released(hub: DataHub, alice: Gateway) -> None:
    fault = hub.faults.put("held", path="/config")
    waiting = asyncio.ensure_future(alice.get("/config"))
    with anyio.fail_after(5):
        while not fault.count:  # noqa: ASYNC110  # counted when it is met
            await anyio.sleep(0.01)
    await alice.get("/topics", owner="x")
    assert not waiting.done()
    fault.release()
    assert (await waiting)["msgExpired"] == 86400000


def test_faults_are_counted_and_may_wait() -> None:
    faults = Faults()
    faults.put("500", path="/messages*", times=2, skip=1)
    faults.put("502", times=None)
    taken = [faults.take_any(path) for path in ("/config", "/messages", "/messages/ack", "/messages", "/messages")]
    assert [each and each.name for each in taken] == ["502", "502", "500", "500", "502"]
    faults.clear("502")
    assert faults.take_any("/messages") is None
    assert faults.taken == {"500": 2, "502": 3}
    faults.put("key-lost", did="a")
    assert faults.take("key-lost", did="b") is None
    assert faults.take("key-lost", did="a") is not None
    with pytest.raises(ValueError, match="no fault"):
        faults.put("200")


# ---- what belongs to one call -----------------------------------------------------------------------------------


async def test_a_key_is_lost_though_the_answer_is_200(hub: DataHub, alice: Gateway) -> None:
    body = {"fqcn": alice.did, "clientGatewayMessageId": "m", "payload": "k"}
    hub.faults.put("key-lost", did=alice.did)
    assert await alice.post("/messages/internal", {**body, "fqcn": "did:x"}) == {}  # who has no mailbox
    assert await alice.post("/messages/internal", body) == {}
    assert (await alice.post("/messages/internal", body)).keys() == {"messageId"}
    assert len(await hub.stored_keys(alice.did)) == 1


@pytest.mark.parametrize("with_did", [True, False])
async def test_one_recipient_fails_within_a_200(hub: DataHub, alice: Gateway, topic: str, with_did: bool) -> None:
    async with participant(hub) as bob:
        await bob.login()
        hub.faults.put("recipient-failed", did=bob.did, reason="Duplicate transaction id.", with_did=with_did)
        hub.faults.put("miscounted", by=2)
        answer = await alice.post("/messages", message(topic, alice.did, bob.did))
        assert answer["recipients"] == {"total": 4, "sent": 1, "failed": 1}
        (failed,) = answer["status"][1]["details"]
        who = {"did": bob.did} if with_did else {}
        assert failed == {
            **who, "statusCode": 400, "err": {"code": "MB::NATS_SERVER", "reason": "Duplicate transaction id."},
        }  # fmt: skip
        assert await hub.stored(bob.did) == []
        hub.faults.put("all-failed", code="MB::X", reason="y")
        answer = await alice.post("/messages", message(topic, alice.did, bob.did))
        assert answer["recipients"] == {"total": 2, "sent": 0, "failed": 2}
        assert [each["err"] for each in answer["status"][0]["details"]] == [{"code": "MB::X", "reason": "y"}] * 2


async def test_a_search_may_find_nothing_or_less_or_the_newest_first(hub: DataHub, alice: Gateway, topic: str) -> None:
    for n in range(5):
        await alice.post("/messages", message(topic, alice.did, payload=f"{n}"))
        hub.clock.move(1)
    asked = {"fqcnTopicList": [topic], "senderId": [alice.did], "amount": 10}

    async def search() -> list[str]:
        return [each["payload"] for each in await alice.post("/messages/search", asked)]

    hub.faults.put("search-empty", path="/messages/search")
    assert await search() == []
    hub.faults.put("search-partial")
    assert len(await search()) == 4
    hub.faults.put("reversed")
    assert await search() == ["4", "3", "2", "1", "0"]
    await alice.post("/messages/internal", {"fqcn": alice.did, "clientGatewayMessageId": "m", "payload": "k"})
    hub.faults.put("search-empty")
    assert await alice.post("/messages/internal/search", {}) == []
    assert len(await alice.post("/messages/internal/search", {})) == 1


async def test_payloads_in_clear_may_be_rewritten(hub: DataHub, alice: Gateway, topic: str) -> None:
    text = '{"a": "x&#47;", "b": "1.5-<"}'
    hub.faults.put("escaped", times=None)
    await alice.post("/messages", message(topic, alice.did, payload=text, payloadEncryption=False))
    await alice.post("/messages", message(topic, alice.did, payload=text))
    hub.faults.clear("escaped")
    first, second = (each["payload"] for each in await hub.stored(alice.did))
    assert json.loads(first) == {"a": "x&amp;#47;", "b": "1.5-<"}
    assert second == text


async def test_a_broker_without_nats_says_so(alice: Gateway) -> None:
    async with DataHub("nats://127.0.0.1:9") as hub, Gateway(hub.url, "0x" + "11" * 32) as bob:
        hub.enrol(bob.did)
        await bob.authenticate()
        assert told(await bob.ask("POST", "/channel/initExtChannel"))[:2] == (400, "60")


@pytest.mark.parametrize("path", ["/v1/login/siwe/initiate", "/rpc"])
async def test_hub_and_node_may_be_down_while_the_broker_is_not(hub: DataHub, alice: Gateway, path: str) -> None:
    hub.faults.put("cut", path="/v1/*", times=None)
    hub.faults.put("503", path="/rpc", times=None)
    seen = await outcome(alice, "POST", hub.hub_url + path, json={"jsonrpc": "2.0", "method": "eth_chainId"})
    assert seen == ("503 <html>" if path == "/rpc" else "RemoteProtocolError")
    assert (await outcome(alice, "GET", "/config")).startswith("200")
    hub.faults.clear()
    seen = await outcome(alice, "POST", hub.hub_url + path, json={"jsonrpc": "2.0", "method": "eth_chainId"})
    assert seen.startswith("20")


async def test_the_broker_goes_on_when_nats_is_back(own_server: NatsServer) -> None:
    hub = DataHub(own_server.url, settings=Settings(request_wait_s=0.2))
    async with hub, participant(hub) as bob:
        await bob.login()
        topic = hub.add_topic("back", "{}")
        own_server.kill()
        assert told(await bob.ask("POST", "/messages", json=message(topic, bob.did)))[:2] == (400, "60")
        asked = {"fqcnTopicList": [topic], "senderId": [bob.did]}
        assert told(await bob.ask("POST", "/messages/search", json=asked))[:2] == (400, "60")
        own_server.start()
        answer = await bob.post("/messages", message(topic, bob.did))
        assert answer["recipients"]["sent"] == 1
        assert len(await bob.post("/messages/search", asked)) == 1


async def test_what_is_larger_than_nginx_takes_does_not_come_through(server: NatsServer) -> None:
    hub = DataHub(server.url, settings=Settings(body_max=1000))
    async with hub, participant(hub) as bob:
        await bob.login()
        assert await outcome(bob, "POST", "/messages", headers=JSON, content=b"x" * 1001) == "413 <html>"
        assert await outcome(bob, "POST", "/messages", headers=JSON, content=b"x" * 1000) == '400 {"retu'


async def test_a_hub_that_closes_cuts_what_waits(server: NatsServer) -> None:
    hub = DataHub(server.url)
    async with hub, participant(hub) as bob:
        await bob.authenticate()
        fault = hub.faults.put("silent", path="/config")
        waiting = asyncio.ensure_future(outcome(bob, "GET", "/config"))
        with anyio.fail_after(5):
            while not fault.count:  # noqa: ASYNC110  # counted when it is met
                await anyio.sleep(0.01)
        with anyio.fail_after(1):
            await hub.close()
            assert await waiting in ("RemoteProtocolError", "ReadError")


# ---- threads, programs, TLS -------------------------------------------------------------------------------------


def test_a_hub_may_run_in_a_thread(server: NatsServer) -> None:
    hub = DataHub(server.url)
    with in_thread(hub) as portal:
        did = hub.did("0x" + "12" * 20)
        portal.call(hub.open_channel, did)
        assert httpx.get(f"{hub.url}/auth", verify=False).text == "OK"
        portal.call(hub.move, 90_000.0)
        assert portal.call(hub.stored, did) == []


async def test_a_program_that_is_killed_goes_on_with_what_it_knew(server: NatsServer, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    with DataHubProcess(tmp_path, server.url) as program:
        urls = program.url, program.hub_url, program.rpc_url
        async with Gateway(program.url, f"0x{next(numbers):064x}") as bob:
            program.command(f"enrol {bob.did}")
            program.command(f"topic edge.apps.energyweb.iam.ewc telemetry {schema}")
            program.command(f"fund {bob.did}")
            await bob.login()
            (topic,) = (await bob.get("/topics", owner="edge.apps.energyweb.iam.ewc"))["records"]
            await bob.post("/messages", message(topic["id"], bob.did))
            program.command("fault 502 /config 1")
            assert await outcome(bob, "GET", "/config") == "502 <html>"
            program.kill()
            program.start()
            assert (program.url, program.hub_url, program.rpc_url) == urls
            assert await outcome(bob, "GET", "/config") == '200 {"file'  # the token is still good
            asked = {"fqcnTopicList": [topic["id"]], "senderId": [bob.did]}
            assert len(await bob.post("/messages/search", asked)) == 1
            balance = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": [bob.address]}
            answer = await bob.ask("POST", program.rpc_url, json=balance)
            assert int(answer.json()["result"], 16) == 10**18
            program.command("move 90000")
            assert await outcome(bob, "GET", "/config") == "401 <html>"  # its clock went on
        for line in ("dance", "move far", "fault nonsense", "topic a b /nowhere"):
            with pytest.raises(ProcessError, match=f"refused {line}"):
                program.command(line)
        assert program.stop() == 0


async def test_who_has_no_certificate_does_not_get_in(server: NatsServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shown, client = authority.issue("server"), authority.issue("client")
    hub = DataHub(server.url, tls=Tls(shown.path, shown.key, authority.path))
    async with hub:
        assert hub.url.startswith("https://")
        assert hub.hub_url.startswith("http://")
        trust = ssl.create_default_context(cafile=authority.path)
        async with Gateway(hub.url, f"0x{next(numbers):064x}", tls=trust) as bob:
            assert await outcome(bob, "GET", "/auth") in ("ReadError", "ConnectError", "RemoteProtocolError")
        trust.load_cert_chain(client.path, client.key)
        async with Gateway(hub.url, f"0x{next(numbers):064x}", tls=trust) as bob:
            hub.enrol(bob.did)
            await bob.login()
            assert (await bob.get("/config"))["msgExpired"] == 86400000
            hub.faults.put("cut")
            assert await outcome(bob, "GET", "/config") in ("ReadError", "RemoteProtocolError")
