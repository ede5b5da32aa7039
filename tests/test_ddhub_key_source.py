"""Where keys come from: the chain, an SSI Hub, a file; each fault of a server, and what is remembered meanwhile."""

from __future__ import annotations

import base64
import json
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from agent.errors import Reason, TransportError, Verdict
from agent.secret import Secret
from agent.signer import KeySigner
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_source import CachedKeys, FileKeys, KeySource, open_key_source
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.network import NETWORKS, Participant, participant
from agent.transports.ddhub.keys.participant import ParticipantError, ParticipantKeys, Remark
from agent.transports.ddhub.keys.participants_file import parse
from agent.transports.ddhub.keys.ssi_hub import sign_in_text
from tests.ddhub_registry import (
    ALICE,
    BOB,
    DDHUB,
    DID,
    ENCRYPTION,
    KEY,
    PEM,
    SIGNATURE,
    VECTORS,
    Ledger,
    Node,
    Refused,
)
from tests.runs import FakeClock

pytestmark = pytest.mark.anyio

S = 1_000_000_000
SIGNER = KeySigner(bytes.fromhex(ALICE["privateKey"][2:]), network="volta")
CANARY = "canary-4711"
NODE = f"https://node.example/v3/{CANARY}"
Handler = Callable[[httpx.Request], httpx.Response]
Slow = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def source(handler: Handler | Slow, clock: FakeClock | None = None, **keys: Any) -> KeySource:
    config = KeySourceConfig.model_validate(keys)
    exchange = Exchange(transport=httpx.MockTransport(handler))
    return open_key_source(config, signer=SIGNER, clock=clock or FakeClock(), exchange=exchange)


def of_chain(node: Handler, **keys: Any) -> KeySource:
    return source(node, **{"rpc": NODE, **keys})


async def pair(found: KeySource, did: str = DID) -> tuple[str | None, str | None]:
    keys = await found.keys(did)
    return keys.signature, keys.encryption


async def refusal(found: KeySource, did: str = DID) -> TransportError:
    with pytest.raises(TransportError) as raised:
        await found.keys(did)
    assert CANARY not in f"{raised.value!r}{raised.value.hint}{raised.value.__cause__}{raised.value.__context__}"
    return raised.value


# ---- the chain ------------------------------------------------------------------------------------------------------


async def test_the_chain_is_asked_at_once() -> None:
    node = Node(Ledger().published())
    assert await pair(of_chain(node), DID.lower()) == (KEY, PEM)
    assert node.asked == ["eth_chainId", "eth_blockNumber", "eth_syncing", "eth_call", "eth_call", "eth_getLogs"]


async def test_a_participant_that_never_published_anything() -> None:
    node = Node(Ledger())
    with pytest.raises(ParticipantError, match=f"{DID} has published no key") as raised:
        await of_chain(node).keys(DID)
    assert raised.value.verdict is Verdict.RETRY
    assert "eth_getLogs" not in node.asked


async def test_a_node_that_catches_up_with_the_chain_takes_nobodys_keys_away() -> None:
    node, clock = Node(Ledger().published()), FakeClock()
    found = source(node, clock, rpc=NODE)
    assert await pair(found) == (KEY, PEM)
    node.ledger, node.head = Ledger(), 20  # begun anew
    node.script["eth_syncing"] = lambda: {"startingBlock": "0x0", "currentBlock": "0x14", "highestBlock": "0x3e8"}
    clock.now += 3600 * S
    assert await pair(found) == (KEY, PEM)
    error = await refusal(of_chain(node))
    assert str(error) == "https://node.example is still catching up with the chain, at block 20"


@pytest.mark.parametrize("said", [False, None, "0x0", Refused("the method eth_syncing does not exist")], ids=str)
async def test_a_node_that_does_not_say_whether_it_is_behind_is_asked(said: Any) -> None:
    node = Node(Ledger().published())

    def syncing() -> Any:
        if isinstance(said, Refused):
            raise said
        return said

    node.script["eth_syncing"] = syncing
    assert await pair(of_chain(node)) == (KEY, PEM)


async def test_where_ranges_are_limited_the_list_is_walked_and_all_of_a_block_is_read() -> None:
    node = Node(Ledger().attribute(100, SIGNATURE).attribute(200, SIGNATURE).attribute(200, ENCRYPTION))
    ranges = []

    def limited(asked: dict[str, Any]) -> Any:
        ranges.append((int(asked["fromBlock"], 16), int(asked["toBlock"], 16)))
        if asked["fromBlock"] != asked["toBlock"]:
            raise Refused("query exceeds max block range 10000")
        return node.eth_getLogs(asked)

    node.script["eth_getLogs"] = limited
    clock = FakeClock()
    found = source(node, clock, rpc=NODE)
    assert await pair(found) == (KEY, PEM)
    assert ranges == [(0, 200), (200, 200), (100, 100)]
    clock.now += 3600 * S
    assert await pair(found) == (KEY, PEM)
    assert ranges[3:] == ranges[:3], "it may be able to by now"


async def test_a_history_that_never_ends_is_an_error_of_that_participant(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    for block in range(100, 109):
        ledger.attribute(block, SIGNATURE)
    node = Node(ledger.delegate(109, ALICE["address"]))
    size = 9 * len(SIGNATURE) + 10 * 200
    monkeypatch.setattr("agent.transports.ddhub.keys.did_history._LARGEST", size - 1)
    assert "has published more than" in str(await refusal(of_chain(node)))
    monkeypatch.setattr("agent.transports.ddhub.keys.did_history._LARGEST", size)
    assert await pair(of_chain(node)) == (KEY, None)
    node.script["eth_getLogs"] = lambda asked: [
        log for log in node.eth_getLogs(asked) if asked["fromBlock"] == asked["toBlock"]
    ]
    assert await pair(of_chain(node)) == (KEY, None)
    monkeypatch.setattr("agent.transports.ddhub.keys.did_history._MOST_BLOCKS", 9)
    assert "changed in more than 9 blocks" in str(await refusal(of_chain(node)))


async def test_a_node_that_takes_too_long_for_one_participant(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(Ledger().published())

    async def slow(request: httpx.Request) -> httpx.Response:
        if b"eth_getLogs" in request.content:
            await anyio.sleep_forever()
        return node(request)

    monkeypatch.setattr("agent.transports.ddhub.keys.did_history._WITHIN", 0.02)
    error = await refusal(source(slow, rpc=NODE))
    assert f"all changes of {DID} cannot be had in 0 s" in str(error)
    assert (error.reason, error.verdict) == (Reason.TIMEOUT, Verdict.RETRY)


async def test_a_node_that_left_entries_out_is_asked_for_them() -> None:
    node = Node(Ledger().published().attribute(300, SIGNATURE, until=0))
    node.script["eth_getLogs"] = lambda asked: [
        log for log in node.eth_getLogs(asked) if asked["fromBlock"] != "0x0" or log["blockNumber"] != "0x12c"
    ]
    assert await pair(of_chain(node)) == (None, PEM)


async def test_a_node_that_forgot_a_block_proves_nothing() -> None:
    node = Node(Ledger().published().attribute(300, SIGNATURE, until=0))
    node.script["eth_getLogs"] = lambda asked: [log for log in node.eth_getLogs(asked) if log["blockNumber"] != "0x12c"]
    error = await refusal(of_chain(node))
    assert "it has no log of block 300, in which the registry changed" in str(error)
    assert (error.reason, error.verdict) == (Reason.PROTOCOL, Verdict.RETRY)


async def test_the_youngest_blocks_do_not_count_yet() -> None:  # R7
    node = Node(Ledger().published().attribute(300, SIGNATURE, until=0), head=311)
    assert await pair(of_chain(node)) == (KEY, PEM)
    node.head = 312
    assert await pair(of_chain(node)) == (None, PEM)
    node.head = 300
    assert await pair(of_chain(node, confirmations=0)) == (None, PEM)
    node.head = 3  # younger than the margin
    with pytest.raises(ParticipantError):
        await of_chain(node).keys(DID)


async def test_a_changed_owner_is_honoured_and_must_be_the_contracts() -> None:
    ledger = Ledger().published().new_owner(300, ALICE["address"])
    keys = await of_chain(Node(ledger)).keys(DID)
    assert (keys.signature, keys.encryption) == (None, PEM)
    ledger.owner = bytes(19) + b"\x01"
    assert "name two owners" in str(await refusal(of_chain(Node(ledger))))


async def test_a_did_that_was_given_up_has_no_keys_though_the_contract_names_an_owner() -> None:
    ledger, clock = Ledger().published(), FakeClock()
    found = source(Node(ledger), clock, rpc=NODE)
    assert await pair(found) == (KEY, PEM)
    ledger.new_owner(300, "0x" + "00" * 20)
    clock.now += 3600 * S
    with pytest.raises(ParticipantError, match="has published no key") as raised:
        await found.keys(DID)
    assert raised.value.hint.startswith("the DID was given up in block 300; ")


async def test_a_node_of_another_chain_is_refused() -> None:
    error = await refusal(of_chain(Node(Ledger().published(), chain=246)))
    assert str(error) == "https://node.example is a node of chain 246, and the DIDs are of volta"
    assert error.hint == "name a node of chain 73799"


@pytest.mark.parametrize("where", ["rpc", "hub"])
async def test_a_participant_of_another_chain_is_none_of_ours(where: str) -> None:
    asked = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(404)

    with pytest.raises(ParticipantError, match="on another chain than we are") as raised:
        await source(server, **{where: "https://server.example"}).keys(DID.replace("volta", "ewc"))  # type: ignore[arg-type]
    assert raised.value.verdict is Verdict.REJECT
    assert asked == []


@pytest.mark.parametrize("did", ["did:web:x", "", DID[:-1]])
async def test_what_is_no_did_is_asked_nobody(did: str) -> None:
    node = Node(Ledger())
    with pytest.raises(ParticipantError) as raised:
        await of_chain(node).keys(did)
    assert (raised.value.verdict, node.asked) == (Verdict.REJECT, [])


def html(status: int) -> Callable[..., httpx.Response]:
    return lambda *_: httpx.Response(status, html=f"<html>{CANARY}</html>")


@pytest.mark.parametrize(
    ("method", "said", "words", "reason"),
    [
        ("eth_chainId", html(200), "its answer is no JSON", Reason.PROTOCOL),
        ("eth_chainId", html(401), "answers 401", Reason.AUTHORIZATION),
        ("eth_chainId", html(429), "answers 429", Reason.OTHER),
        ("eth_chainId", html(302), "answers 302", Reason.PROTOCOL),
        ("eth_chainId", html(503), "answers 503", Reason.OTHER),
        ("eth_chainId", lambda: httpx.Response(200, json={"id": 99, "result": "0x1"}), "no answer of", Reason.PROTOCOL),
        ("eth_chainId", lambda: httpx.Response(200, json=[]), "this is no answer of JSON-RPC", Reason.PROTOCOL),
        ("eth_chainId", lambda: httpx.Response(400, json={"error": "x"}), "answers 400: x", Reason.OTHER),
        ("eth_chainId", lambda: None, "a number of the chain is none", Reason.PROTOCOL),
        ("eth_blockNumber", lambda: 17, "a number of the chain is none", Reason.PROTOCOL),
        ("eth_call", lambda *_: "0x", "there is no such contract", Reason.PROTOCOL),
        ("eth_call", lambda *_: "0xzz", "there is no such contract", Reason.PROTOCOL),
        ("eth_call", lambda *_: None, "there is no such contract", Reason.PROTOCOL),
        ("eth_getLogs", lambda _: None, "its log is no list", Reason.PROTOCOL),
        ("eth_getLogs", lambda _: [7], "an entry of the log is no object", Reason.PROTOCOL),
        ("eth_getLogs", lambda _: Ledger().attribute(9999, SIGNATURE).logs, "that were not asked for", Reason.PROTOCOL),
        ("eth_getLogs", lambda _: httpx.Response(200, content=b" " * (9 << 20)), "is too large", Reason.TOO_LARGE),
    ],
)
async def test_what_a_node_may_say(method: str, said: Callable[..., Any], words: str, reason: Reason) -> None:
    node = Node(Ledger().published())
    node.script[method] = said
    error = await refusal(of_chain(node))
    assert words in str(error)
    assert (error.reason, error.verdict) == (reason, Verdict.RETRY)
    assert str(error).startswith("https://node.example")


async def test_a_refusal_of_a_node_is_told() -> None:
    node = Node(Ledger().published())

    def no(*_: Any) -> None:
        raise Refused("missing trie node\x1b[2J")

    node.script["eth_call"] = no
    assert "https://node.example refuses eth_call: missing trie node\\u001b[2J" in str(await refusal(of_chain(node)))


@pytest.mark.parametrize("key", [CANARY, "canary%2D4711"])
@pytest.mark.parametrize(
    "place", ["https://node.example/v3/KEY", "https://node.example/?key=KEY", "https://me:KEY@node.example/"]
)
async def test_what_a_server_repeats_of_an_address_is_not_told(
    place: str, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "node").write_text(url := place.replace("KEY", key))
    node = Secret(file=str(tmp_path / "node"))
    path = url.removeprefix("https://").removeprefix("node.example")
    long = f"{'x' * 190}{CANARY}"  # cut in the middle
    for status, said in (
        (404, {"message": f"Cannot POST {path}", "statusCode": 404}),
        (401, {"message": f"the key {CANARY} is not known"}),
        (200, {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": f"{path} {CANARY}: no such project"}}),
        (403, {"error": long}),
    ):
        answer = httpx.Response(status, json=said)
        error = await refusal(source(lambda _, answer=answer: answer, rpc=node))
        assert key not in str(error)
        assert "canary" not in str(error)
        assert "..." in str(error)
    assert "canary" not in caplog.text  # httpx logs addresses


@pytest.mark.parametrize(
    ("raised", "words", "reason"),
    [
        (httpx.ConnectTimeout(CANARY), "https://node.example: the server does not answer", Reason.TIMEOUT),
        (httpx.ReadTimeout(CANARY), "https://node.example: the server does not answer in time", Reason.TIMEOUT),
        (httpx.ConnectError(CANARY), "https://node.example: the server is not reached", Reason.UNREACHABLE),
        (
            httpx.RemoteProtocolError(CANARY),
            "https://node.example: the answer of the server cannot be read",
            Reason.PROTOCOL,
        ),
        (ConnectionRefusedError(111, "x"), "https://node.example: Connection refused", Reason.UNREACHABLE),
        (ssl.SSLError(1, "x"), "https://node.example: TLS failed: ", Reason.TLS),
        (httpx.UnsupportedProtocol(CANARY), "https://node.example: the server cannot be asked", Reason.OTHER),
    ],
)
async def test_a_node_that_is_not_reached(raised: Exception, words: str, reason: Reason) -> None:
    def fails(_: httpx.Request) -> httpx.Response:
        raise raised

    error = await refusal(of_chain(fails))
    assert words in str(error)
    assert error.reason == reason


async def test_another_node_is_asked_and_then_first() -> None:
    node = Node(Ledger().published())
    hosts = []

    def nodes(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        if request.url.host == "a.example":
            raise httpx.ConnectError(CANARY)
        return node(request)

    clock = FakeClock()
    found = source(nodes, clock, rpc=["https://a.example", "https://b.example"])
    await found.keys(DID)
    assert (hosts[0], hosts.count("a.example")) == ("a.example", 1)
    clock.now += 3601 * S
    await found.keys(DID)
    assert hosts.count("a.example") == 1


async def test_of_several_nodes_that_fail_the_first_is_told() -> None:
    def fails(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503 if request.url.host == "a.example" else 404)

    error = await refusal(source(fails, rpc=["https://a.example", "https://b.example"]))
    assert str(error) == "https://a.example answers 503"


async def test_an_address_may_be_a_secret(tmp_path: Path) -> None:
    place = tmp_path / "node"
    found = of_chain(node := Node(Ledger().published()), rpc=Secret(file=str(place)))
    assert (await refusal(found)).reason == Reason.SECRET
    place.write_text("http://node.example/\n")
    found = of_chain(node, rpc=Secret(file=str(place)))
    assert "without TLS anybody on the way" in str(await refusal(found))
    place.write_text(f"{NODE}?key={CANARY}\n")
    assert await pair(of_chain(node, rpc=Secret(file=str(place)))) == (KEY, PEM)
    place.write_text(f"https://user:{CANARY}@node.example/")
    given = set()

    def guarded(request: httpx.Request) -> httpx.Response:
        given.add(request.headers["authorization"])
        return node(request)

    assert await pair(of_chain(guarded, rpc=Secret(file=str(place)))) == (KEY, PEM)
    assert given == {f"Basic {base64.b64encode(f'user:{CANARY}'.encode()).decode()}"}


# ---- the hub --------------------------------------------------------------------------------------------------------


class Hub:
    """An SSI Hub: SIWE judged by eth_account, and documents."""

    def __init__(self) -> None:
        entries = [attribute["resultingPublicKeyEntry"] for attribute in DDHUB["e_didAttributes"]]
        self.documents: dict[str, Any] = {DID: {"id": DID, "publicKey": entries}}
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.tokens: set[str] = set()
        self.script: dict[str, Callable[[], httpx.Response]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert "origin" not in request.headers
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        assert request.url.host in ("hub.example", "::1")
        if path in self.script:
            return self.script[path]()
        if path == "/v1/login/siwe/initiate":
            return httpx.Response(201, json={"nonce": f"nonce{len(self.messages)}"})
        if path == "/v1/login/siwe/verify":
            said = json.loads(request.content)
            who = Account.recover_message(encode_defunct(text=said["message"]), signature=said["signature"])
            assert who == ALICE["address"]
            self.messages.append(said["message"])
            self.tokens.add(token := f"{CANARY}-{len(self.messages)}.eyJpYXQiOjEwMCwiZXhwIjoxMDAwfQ.x")
            return httpx.Response(201, json={"token": token, "refreshToken": CANARY})
        assert dict(request.url.params) == {"includeClaims": "false"}
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return httpx.Response(401, json={"message": "Unauthorized", "statusCode": 401})
        document = self.documents.get(path.removeprefix("/v1/DID/"))
        if document is None:
            return httpx.Response(404, json={"message": "Cannot resolve", "statusCode": 404})
        return httpx.Response(200, json=document)


def of_hub(hub: Handler, clock: FakeClock | None = None) -> KeySource:
    return source(hub, clock, hub="https://hub.example")


def test_the_message_of_the_vectors() -> None:
    who = Participant(NETWORKS["volta"], bytes.fromhex(VECTORS["did_ethr"]["address"][2:]))
    text = sign_in_text(
        domain="switchboard-dev.energyweb.org",
        who=who,
        uri="https://identitycache-dev.energyweb.org/v1/login/siwe/verify",
        nonce="abcdefgh12345678",
        issued=1_735_689_600 * S,
    )
    assert text == VECTORS["siwe"]["message"]


async def test_the_hub_lets_us_in_by_our_key_and_is_asked_in_one_form() -> None:
    hub = Hub()
    assert await pair(of_hub(hub), DID.lower()) == (KEY, PEM)
    assert hub.requests == ["POST /v1/login/siwe/initiate", "POST /v1/login/siwe/verify", f"GET /v1/DID/{DID}"]
    (message,) = hub.messages
    assert message == (
        "hub.example wants you to sign in with your Ethereum account:\n"
        f"{ALICE['address']}\n\n\nURI: https://hub.example/v1/login/siwe/verify\nVersion: 1\nChain ID: 73799\n"
        "Nonce: nonce0\nIssued At: 2025-11-24T16:16:40.000Z"
    )


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Hub.Example:443", "https://hub.example"),
        ("https://hub.example:8443/v1", "https://hub.example:8443"),
        ("http://[::1]:80/v1/", "http://[::1]"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
async def test_the_hub_is_named_as_it_names_itself(url: str, origin: str) -> None:
    hub = Hub()
    assert await pair(source(hub, hub=url)) == (KEY, PEM)
    (message,) = hub.messages
    assert message.startswith(f"{origin.partition('://')[2]} wants you to sign in with your Ethereum account:\n")
    assert f"\nURI: {origin}/v1/login/siwe/verify\n" in message


async def test_one_login_serves_many_look_ups_until_it_expires() -> None:
    hub, clock = Hub(), FakeClock()
    hub.documents[ALICE["did"]] = {"id": ALICE["did"], "publicKey": []}
    found = of_hub(hub, clock)
    await found.keys(DID)
    with pytest.raises(ParticipantError):
        await found.keys(ALICE["did"])
    assert len(hub.messages) == 1
    clock.now += 721 * S  # 80 % of the token's 900 s
    with pytest.raises(ParticipantError):
        await found.keys(ALICE["did"])
    assert len(hub.messages) == 2


@pytest.mark.parametrize("claims", ['{"iat":1,"exp":1e999}', '{"iat":1}', "[]", "x"])
async def test_a_token_that_says_nothing_of_its_life_is_used_all_the_same(claims: str) -> None:
    hub = Hub()
    token = f"a.{base64.urlsafe_b64encode(claims.encode()).decode()}.b"
    hub.tokens.add(token)
    hub.script["/v1/login/siwe/verify"] = lambda: httpx.Response(201, json={"token": token})
    assert await pair(of_hub(hub)) == (KEY, PEM)


async def test_a_hub_that_forgot_us_gets_one_more_login() -> None:
    hub, clock = Hub(), FakeClock()
    found = of_hub(hub, clock)
    await found.keys(DID)
    hub.tokens.clear()
    clock.now += 3600 * S
    assert await pair(found) == (KEY, PEM)
    hub.script[f"/v1/DID/{DID}"] = lambda: httpx.Response(401, json={"message": "never"})
    error = await refusal(of_hub(hub))
    assert (str(error), error.reason) == ("SSI Hub https://hub.example answers 401: never", Reason.AUTHORIZATION)
    assert hub.requests[-6:-3] == hub.requests[-3:]


async def test_a_did_that_the_hub_does_not_know_has_no_keys() -> None:
    with pytest.raises(ParticipantError, match="has published no key"):
        await of_hub(Hub()).keys(BOB["did"].replace("1563915e194D8CfBA1943570603F7606A3115508", "11" * 20))


async def test_a_proxy_without_a_hub_takes_nobodys_keys_away() -> None:
    hub, clock = Hub(), FakeClock()
    found = of_hub(hub, clock)
    assert await pair(found) == (KEY, PEM)
    hub.script[f"/v1/DID/{DID}"] = lambda: httpx.Response(404, html="<h1>404 Not Found</h1>")
    assert str(await refusal(of_hub(hub))) == "SSI Hub https://hub.example answers 404"
    clock.now += 3600 * S
    assert await pair(found) == (KEY, PEM)


@pytest.mark.parametrize(
    ("path", "said", "words"),
    [
        ("/v1/login/siwe/initiate", {"nonce": "a\nChain ID: 1"}, "its nonce is none"),
        ("/v1/login/siwe/initiate", {"nonce": ""}, "its answer to a login has no nonce"),
        ("/v1/login/siwe/initiate", [], "its answer to a login has no nonce"),
        ("/v1/login/siwe/verify", {"token": "a b"}, "its token is none"),
        ("/v1/login/siwe/verify", {"token": 7}, "its answer to a login has no token"),
        (f"/v1/DID/{DID}", [], "this is no DID document"),
        (f"/v1/DID/{DID}", {"id": ALICE["did"]}, "this is not the DID document of"),
    ],
)
async def test_what_a_hub_may_say(path: str, said: Any, words: str) -> None:
    hub = Hub()
    hub.script[path] = lambda: httpx.Response(200, json=said)
    error = await refusal(of_hub(hub))
    assert words in str(error)
    assert (error.reason, error.hint) == (Reason.PROTOCOL, "is it an SSI Hub?")


@pytest.mark.parametrize("status", [400, 403, 500])
async def test_a_hub_that_does_not_let_us_in(status: int) -> None:
    hub = Hub()
    hub.script["/v1/login/siwe/verify"] = lambda: httpx.Response(status, json={"message": "no"})
    assert str(await refusal(of_hub(hub))) == f"SSI Hub https://hub.example answers {status}: no"


async def test_without_a_word_it_is_the_hub_of_our_network() -> None:
    hosts = []

    def nobody(request: httpx.Request) -> httpx.Response:
        hosts.append(str(request.url))
        raise httpx.ConnectError("x")

    await refusal(source(nobody))
    assert hosts == ["https://identitycache-dev.energyweb.org/v1/login/siwe/initiate"]


# ---- what is remembered ---------------------------------------------------------------------------------------------


class Scripted:
    """Answers what it is told to, and counts."""

    def __init__(self, said: ParticipantKeys | TransportError) -> None:
        self.said = said
        self.asked: list[str] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def keys(self, who: Participant) -> ParticipantKeys:
        self.asked.append(who.did)
        await self.gate.wait()
        if isinstance(self.said, TransportError):
            raise self.said
        return self.said


BOTH = ParticipantKeys(KEY, PEM)
DOWN = TransportError("it is down", hint="wait")


async def test_keys_that_do_not_fit_are_asked_for_again_once_a_minute() -> None:
    resolver, clock = Scripted(BOTH), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    assert await cached.keys(DID) == await cached.renewed(DID) == BOTH
    resolver.said = ParticipantKeys(KEY, None)
    clock.now += 59 * S
    assert await cached.renewed(DID) == BOTH
    clock.now += S
    assert await cached.keys(DID) == BOTH
    assert await cached.renewed(DID) == await cached.renewed(DID) == await cached.keys(DID) == resolver.said
    assert len(resolver.asked) == 2
    resolver.said = DOWN
    clock.now += 60 * S
    assert await cached.renewed(DID) == ParticipantKeys(KEY, None), "the last is used while nobody can be asked"


async def test_keys_are_asked_for_once_an_hour_however_the_did_is_written() -> None:
    resolver, clock = Scripted(BOTH), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    for did in (DID, DID.lower(), DID.replace("volta", "0x12047")):
        assert await cached.keys(did) == BOTH
    clock.now += 3599 * S
    await cached.keys(DID)
    assert resolver.asked == [DID]
    clock.now += S
    await cached.keys(DID)
    assert resolver.asked == [DID, DID]


async def test_what_is_not_there_is_asked_for_again_soon() -> None:
    resolver, clock = Scripted(ParticipantKeys(None, None)), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    for _ in range(2):
        with pytest.raises(ParticipantError):
            await cached.keys(DID)
    assert len(resolver.asked) == 1
    resolver.said = BOTH
    clock.now += 60 * S
    assert await cached.keys(DID) == BOTH


async def test_of_many_one_goes_and_asks() -> None:
    resolver = Scripted(BOTH)
    resolver.gate = anyio.Event()
    cached = CachedKeys(resolver, clock=FakeClock())
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(cached.keys, DID)
        await anyio.wait_all_tasks_blocked()
        resolver.gate.set()
    assert resolver.asked == [DID]


async def test_whoever_waited_for_an_answer_that_failed_does_not_ask_again() -> None:
    resolver = Scripted(DOWN)
    resolver.gate = anyio.Event()
    cached, raised = CachedKeys(resolver, clock=FakeClock()), []

    async def ask() -> None:
        try:
            await cached.keys(DID)
        except TransportError as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        resolver.gate.set()
    assert resolver.asked == [DID]
    assert [(str(error), error.hint) for error in raised] == [("it is down", "wait")] * 3
    assert len(set(map(id, raised))) == 3


async def test_whoever_was_cancelled_leaves_the_others_to_ask() -> None:
    resolver = Scripted(BOTH)
    resolver.gate = anyio.Event()
    cached = CachedKeys(resolver, clock=FakeClock())
    with anyio.move_on_after(0):
        await cached.keys(DID)
    resolver.gate.set()
    assert await cached.keys(DID) == BOTH


async def test_while_the_source_is_down_the_last_is_used_and_told(caplog: pytest.LogCaptureFixture) -> None:
    resolver, clock = Scripted(BOTH), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    await cached.keys(DID)
    resolver.said = DOWN
    caplog.set_level(logging.INFO)
    clock.now += 3600 * S
    assert await cached.keys(DID) == BOTH
    clock.now += 29 * S
    assert await cached.keys(DID) == BOTH
    assert len(resolver.asked) == 2
    clock.now += S
    assert await cached.keys(DID) == BOTH
    assert len(resolver.asked) == 3
    assert caplog.messages == [
        "keys of participants cannot be renewed, and the last are used error=it is down hint=wait"
    ]
    resolver.said = changed = ParticipantKeys(ALICE["publicKeyUncompressed"], PEM)
    clock.now += 30 * S
    assert await cached.keys(DID) == changed
    assert caplog.messages[1:] == [
        "keys of participants are renewed again",
        f"a participant changed its keys did={DID}",
    ]


async def test_a_source_that_is_away_is_waited_for_once_and_not_for_each_participant() -> None:
    resolver, clock = Scripted(BOTH), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    other = ALICE["did"]
    await cached.keys(other)
    clock.now += 3600 * S
    resolver.said = TransportError("no answer in 20 s", reason=Reason.TIMEOUT)
    with pytest.raises(TransportError, match="no answer in 20 s"):
        await cached.keys(DID)
    assert await cached.keys(other) == BOTH
    assert resolver.asked == [other, DID]
    clock.now += 30 * S
    resolver.said = BOTH
    assert await cached.keys(DID) == await cached.keys(other) == BOTH
    assert resolver.asked == [other, DID, DID, other]


async def test_what_is_a_week_old_is_used_no_more() -> None:
    resolver, clock = Scripted(BOTH), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    await cached.keys(DID)
    resolver.said = DOWN
    clock.now += 7 * 86_400 * S - 1
    assert await cached.keys(DID) == BOTH
    clock.now += 31 * S
    with pytest.raises(TransportError):
        await cached.keys(DID)


async def test_a_participant_that_nobody_asked_for_yet_is_an_error_while_the_source_is_down() -> None:
    resolver, clock = Scripted(DOWN), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    for _ in range(3):
        with pytest.raises(TransportError):
            await cached.keys(DID)
    assert len(resolver.asked) == 1
    resolver.said = BOTH
    clock.now += 30 * S
    assert await cached.keys(DID) == BOTH


async def test_a_remark_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    resolver, clock = Scripted(ParticipantKeys(KEY, None, (Remark("t", "is odd", "mend it"),))), FakeClock()
    cached = CachedKeys(resolver, clock=clock)
    await cached.keys(DID)
    clock.now += 3600 * S
    await cached.keys(DID)
    assert len(resolver.asked) == 2
    assert caplog.messages == [f"keys of a participant need attention did={DID} what=t: is odd; mend it"]


async def test_no_more_is_remembered_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transports.ddhub.keys.key_source._MOST", 2)
    resolver = Scripted(BOTH)
    cached = CachedKeys(resolver, clock=FakeClock())
    dids = [DID, ALICE["did"], VECTORS["did_ethr"]["did_volta"]]
    for did in (*dids, DID, DID):
        await cached.keys(did)
    assert resolver.asked == [*dids, DID]


# ---- a file ---------------------------------------------------------------------------------------------------------


async def test_the_file_is_read_again_when_it_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "participants.json"
    found = open_key_source(KeySourceConfig(file=str(path)), signer=SIGNER, clock=FakeClock())  # type: ignore[arg-type]
    assert isinstance(found, FileKeys)
    assert "participants.json cannot be read: No such file" in str(await refusal(found))
    path.write_text("{")
    assert "participants.json:1: this is no JSON" in str(await refusal(found))
    path.write_text(json.dumps({DID: {"signature": KEY, "encryption": PEM}}))
    assert await pair(found, DID.lower()) == (KEY, PEM)
    assert caplog.messages == []
    with pytest.raises(ParticipantError, match=r"is not in .*participants\.json"):
        await found.keys(ALICE["did"])
    path.write_text("{ ")
    assert await pair(found) == (KEY, PEM)
    assert await pair(found) == (KEY, PEM)
    path.unlink()
    assert await pair(found) == (KEY, PEM)
    assert [message.partition(" error=")[0] for message in caplog.messages] == [
        "the file of participants is not taken, and the last good one is used"
    ] * 2
    path.write_text(json.dumps({DID: {"signature": KEY}}))
    assert await pair(found) == (KEY, None)


async def test_a_file_is_read_beside_the_event_loop_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, threads = tmp_path / "participants.json", []
    path.write_text(json.dumps({DID: {"signature": KEY}}))

    def parsed(content: bytes, *, file: str) -> Any:
        threads.append(threading.current_thread())
        return parse(content, file=file)

    monkeypatch.setattr("agent.transports.ddhub.keys.key_source.parse", parsed)
    found = FileKeys(path)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(found.keys, DID)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "participants.json"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    assert "File too large" in str(await refusal(FileKeys(path)))


def test_our_own_did_says_which_network() -> None:
    assert participant(SIGNER.did).network.name == "volta"
