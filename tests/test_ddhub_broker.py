"""The Data Hub's HTTP client: what it sends, how it logs in, and what every answer becomes, sense or nonsense."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import anyio
import httpx
import pytest

from agent.eip191 import identity_token
from agent.errors import Reason, TransportError, Verdict
from agent.signer import KeySigner
from agent.transports.ddhub.answers import Failure, ReceivedKey, ReceivedMessage, Topic
from agent.transports.ddhub.broker import Broker, broker
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.login import Login
from tests.ddhub_scripted import ALICE, BOB, OPENED, URL, USER, Script, hub, jwt, login, said
from tests.runs import DID, SECRET, START, FakeClock, S

pytestmark = pytest.mark.anyio

LIMITS = {"msgExpired": 86400000, "msgMaxSize": 8388608, "fileMaxSize": 512000000, "natsMaxClientidSize": 200}
Call = Callable[[Broker], Awaitable[Any]]


async def refusal(script: Script, call: Call = Broker.limits) -> TransportError:
    async with hub(script) as api:
        with pytest.raises(TransportError) as raised:
            await call(api)
    assert raised.value.verdict is Verdict.RETRY
    assert "eyJ" not in f"{raised.value} {raised.value.hint}", "a token is shown"
    return raised.value


# ---- logging in -------------------------------------------------------------------------------------------------


async def test_it_logs_in_opens_its_channel_and_then_asks() -> None:
    script = Script({"/config": [(200, LIMITS)]})
    async with hub(script) as api:
        found = await api.limits()
        assert (found.message, found.kept, found.client_id) == (8388608, 86400000, 200)
        await api.limits()
    assert script.paths == ["/auth/login", "/channel/initExtChannel", "/config", "/config"]
    entering, opening, asking, _ = script.asked
    token = json.loads(entering.content)["identityToken"]
    assert token == identity_token(issued=(START + 1000 * S) // S, signer=KeySigner(SECRET, network="volta"))
    assert "authorization" not in entering.headers
    assert opening.content == b"{}"
    assert opening.headers["authorization"] == asking.headers["authorization"] == f"Bearer {jwt()}"
    assert asking.headers["user-agent"].startswith("edge-agent/")


async def test_what_the_token_says_of_us() -> None:
    async with hub(Script()) as api:
        assert (await api.enter())["roles"] == [USER]
    for odd in ("", "a.b", "a.b.c", "e30.W10.x", "e30.8J-.x"):
        async with hub(Script({"/auth/login": [login(access_token=odd or "-")]})) as api:
            assert await api.enter() == {}


async def test_it_is_renewed_at_four_fifths_of_its_life_with_the_last_refresh_token() -> None:
    clock, script = FakeClock(), Script({"/config": [(200, {})], "/auth/refresh-token": [login(2), login(3)]})
    async with hub(script, clock=clock) as api:
        await api.limits()
        clock.now += 2879 * S
        await api.limits()
        clock.now += S
        await api.limits()
        clock.now += 2880 * S
        await api.limits()
    renewed = ["/auth/refresh-token", "/channel/initExtChannel", "/config"]
    assert script.paths == ["/auth/login", "/channel/initExtChannel", "/config", "/config", *renewed, *renewed]
    spent = [json.loads(each.content) for each in script.asked if each.url.path == "/auth/refresh-token"]
    assert spent == [{"refreshToken": "r1"}, {"refreshToken": "r2"}]
    assert script.asked[-1].headers["authorization"] == f"Bearer {jwt(3)}"


async def test_who_cannot_renew_logs_in_again() -> None:
    clock, script = FakeClock(), Script({"/config": [(200, {})], "/auth/refresh-token": [(401, {})]})
    script.answers["/auth/login"] = [login(1), login(2)]
    async with hub(script, clock=clock) as api:
        await api.limits()
        clock.now += 3000 * S
        await api.limits()
    assert script.paths[3:] == ["/auth/refresh-token", "/auth/login", "/channel/initExtChannel", "/config"]
    assert script.asked[-1].headers["authorization"] == f"Bearer {jwt(2)}"


async def test_tokens_that_are_good_are_used_while_the_proxy_is_away() -> None:
    clock, script = FakeClock(), Script({"/config": [(200, {})], "/auth/refresh-token": [httpx.ConnectError("no")]})
    async with hub(script, clock=clock) as api:
        await api.limits()
        clock.now += 3000 * S
        await api.limits()
        await api.limits()
        clock.now += 30 * S
        await api.limits()
        assert script.paths[3:] == ["/auth/refresh-token", "/config", "/config", "/auth/refresh-token", "/config"]
        clock.now += 600 * S
        with pytest.raises(TransportError):
            await api.limits()


async def test_one_logs_in_for_all_who_wait() -> None:
    script = Script({"/config": [(200, {})]})
    async with hub(script) as api, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(api.limits)
    assert sorted(script.paths) == ["/auth/login", "/channel/initExtChannel", *["/config"] * 5]


async def test_a_token_that_is_not_taken_any_more_is_replaced_once() -> None:
    script = Script({"/config": [(401, b""), (200, LIMITS)], "/auth/refresh-token": [login(2)]})
    async with hub(script) as api:
        assert (await api.limits()).message == 8388608
    assert script.paths[2:] == ["/config", "/auth/refresh-token", "/channel/initExtChannel", "/config"]

    script = Script({"/config": [(401, b"")], "/auth/refresh-token": [login(2)]})
    assert (await refusal(script)).reason == Reason.AUTHORIZATION
    assert script.paths.count("/config") == 2


async def test_tokens_outlive_a_connection() -> None:
    clock, script = FakeClock(), Script({"/config": [(200, {})]})
    kept = Login(clock=clock)
    for _ in range(2):
        async with hub(script, clock=clock, login=kept) as api:
            await api.limits()
    assert script.paths == ["/auth/login", "/channel/initExtChannel", "/config", "/config"]


async def test_a_channel_that_was_not_opened_is_opened_before_anything_else() -> None:
    clock, script = FakeClock(), Script({"/config": [(200, {})]})
    script.answers["/channel/initExtChannel"] = [(500, b""), OPENED]
    async with hub(script, clock=clock) as api:
        with pytest.raises(TransportError):
            await api.limits()
        await api.limits()
    assert script.paths == ["/auth/login", *["/channel/initExtChannel"] * 2, "/config"]


async def test_without_a_role_it_logs_in_anew_once_a_minute() -> None:
    """A refresh would copy the roles that we have."""
    clock, script = FakeClock(), Script({"/config": [said("10", "Forbidden access", 403)]})
    async with hub(script, clock=clock) as api:
        for _ in range(7):
            with pytest.raises(TransportError) as raised:
                await api.limits()
            assert raised.value.reason == Reason.PERMISSION
            assert "enrol" in raised.value.hint
            clock.now += 10 * S
        assert script.paths.count("/auth/login") == 1
        script.answers["/config"] = [(200, LIMITS)]
        await api.limits()
    assert script.paths.count("/auth/login") == 2
    assert "/auth/refresh-token" not in script.paths


@pytest.mark.parametrize(
    ("answer", "reason", "hint"),
    [
        ((401, {"statusCode": 401, "message": "User does not have any roles."}), Reason.PERMISSION, "enrol"),
        (
            (401, {"message": "Not Verified: Authentication proof is not valid"}),
            Reason.AUTHORIZATION,
            "DID document",
        ),
        ((401, {"message": "Claim outdated"}), Reason.AUTHORIZATION, "clock right"),
        ((401, b""), Reason.AUTHORIZATION, "clock right"),
        ((400, {"message": ["Missing credentials"]}), Reason.AUTHORIZATION, "enrolled"),
        ((500, {"message": "unexpected verified roles"}), Reason.STORE, "look-ups"),
        ((404, b"<html>"), Reason.PROTOCOL, "address of a Data Hub"),
        ((502, b"<html>"), Reason.LOST, "behind it"),
        ((503, b"<html>"), Reason.UNREACHABLE, "behind it"),
        ((504, b"<html>"), Reason.TIMEOUT, "behind it"),
        ((201, b"<html>"), Reason.PROTOCOL, "url"),
        ((201, b"[" * 100_000), Reason.PROTOCOL, "url"),
        ((201, []), Reason.PROTOCOL, "url"),
        ((201, {"access_token": "a\nb", "expires_in": 1}), Reason.PROTOCOL, "url"),
        (login(expires_in=-1), Reason.PROTOCOL, "url"),
        (login(expires_in="soon"), Reason.PROTOCOL, "url"),
        ((201, b"\x00" * (1 << 21)), Reason.PROTOCOL, "url"),
        ((307, b""), Reason.PROTOCOL, "elsewhere"),
        ((201, {"access_token": "a b ", "expires_in": 1}), Reason.PROTOCOL, "url"),
        ((400, b"<title>400 The SSL certificate error</title>"), Reason.TLS, "cert and key"),
    ],
)
async def test_who_is_not_let_in(answer: Any, reason: Reason, hint: str) -> None:
    error = await refusal(Script({"/auth/login": [answer]}))
    assert error.reason == reason
    assert hint in error.hint


async def test_a_clock_that_is_wrong_is_told_of() -> None:
    now = (START + 1000 * S) / S
    for ahead, words in ((1000, "1000 s behind"), (-1000, "1000 s ahead of")):
        script = Script({"/auth/login": [(401, {"message": "x"})]}, date=formatdate(now + ahead, usegmt=True))
        error = await refusal(script)
        assert words in error.hint
        assert DID in str(error)
    for date in (formatdate(now + 10, usegmt=True), "yesterday", "", f"Mon, 01 Jan {9**30} 00:00:00 GMT"):
        script = Script({"/auth/login": [(401, {"message": "x"})]}, date=date)
        assert "of the Data Hub;" not in (await refusal(script)).hint


async def test_how_far_its_clock_is_ahead_is_kept_for_the_doctor() -> None:
    script = Script({"/config": [(200, {})]}, date=formatdate(START / S + 10, usegmt=True))
    async with hub(script) as api:
        assert api.heard.ahead is None
        await api.limits()
        assert api.heard.ahead == pytest.approx(10 - 1000, abs=1)


# ---- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (said("17", "signature : Required"), Reason.OTHER, "(400, code 17): signature : Required"),
        (said("20", "Not able to retrieve complete TotalAckPendingRetrieve."), Reason.STORE, "code 20"),
        (said("21", "FQCN not exists", 404), Reason.STORE, "(404, code 21): FQCN not exists"),
        (said("50", "id:62 version not exists", 404), Reason.NO_TOPIC, "version not exists"),
        (said("60", "timeout", 400), Reason.STORE, "code 60"),
        (said("99", "what\x1b[31m?", 500), Reason.OTHER, r"what\u001b[31m?"),
        ((500, b"<html>boom</html>"), Reason.OTHER, "refuses (500)"),
        ((413, b""), Reason.TOO_LARGE, "413"),
        ((429, b""), Reason.UNREACHABLE, "429"),
        (said("50", "Mongo"), Reason.STORE, "code 50"),
        ((400, b"<html><head><title>400 No required SSL certificate was sent</title>"), Reason.TLS, "400"),
        (said("60", "what is eyJhbGciOiJIUzI1NiJ9.eyJkaWQiOiJ4In0.c2ln?"), Reason.STORE, "what is (a token)?"),
        ((495, b""), Reason.TLS, "495"),
        ((496, b""), Reason.TLS, "496"),
        ((526, b""), Reason.TLS, "526"),
        ((400, {"returnCode": 7, "returnMessage": 8}), Reason.OTHER, "(400, code 7)"),
        ((400, b"[]"), Reason.OTHER, "(400)"),
        (httpx.ConnectTimeout("x"), Reason.TIMEOUT, "does not answer"),
        (httpx.ReadTimeout("x"), Reason.TIMEOUT, "in time"),
        (httpx.ReadError("x"), Reason.LOST, "lost"),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), Reason.LOST, "closed"),
        (httpx.RemoteProtocolError("illegal status line"), Reason.PROTOCOL, "not HTTP"),
        (ConnectionRefusedError(111, "refused"), Reason.UNREACHABLE, "refused"),
        (ssl.SSLError(1, "[SSL] x (_ssl.c:1)"), Reason.TLS, "TLS failed: [SSL] x"),
    ],
)
async def test_every_refusal_has_a_reason(answer: Any, reason: Reason, words: str) -> None:
    error = await refusal(Script({"/config": [answer]}))
    assert error.reason == reason
    assert words in str(error)
    assert error.hint


NONSENSE: list[tuple[str, Call, Any]] = [
    ("/config", Broker.limits, []),
    ("/config", Broker.limits, b"{"),
    ("/config", Broker.limits, b"\xff"),
    ("/channel/clientIds", Broker.client_ids, [1]),
    ("/roles/list", lambda api: api.dids_with_roles(["a.b"]), {"dids": None}),
    ("/topics", lambda api: api.topics(owner="o", name="n"), {"records": [1]}),
    ("/topics", lambda api: api.topics(owner="o", name="n"), {"records": [{"owner": "o", "name": "n"}]}),
    (
        "/topics",
        lambda api: api.topics(owner="o", name="n"),
        {"records": [{"id": "\ud800", "owner": "o", "name": "n"}]},
    ),
    ("/topics", lambda api: api.topics(owner="o", name="n"), {"records": [{"id": "..", "owner": "o", "name": "n"}]}),
    ("/channel/clientIds", Broker.client_ids, ["\udfff"]),
    ("/topics/a/versions/1.0.0", lambda api: api.topic_version("a", "1.0.0"), {"id": 3}),
    ("/messages/internal", lambda api: api.send_key(BOB, "id", "key"), []),
    ("/messages/search", lambda api: api.search(client_id="c", topic_ids=["a"], senders=["b"], amount=1), {}),
    ("/messages/internal/search", lambda api: api.search_keys(client_id="c", amount=1), [[]]),
    ("/messages/ack", lambda api: api.acknowledge(["a"], client_id="c"), {"acked": {}}),
]


async def test_a_cookie_of_the_proxy_is_not_sent_back() -> None:
    """One that is no text would keep every request from being made."""
    script = Script({"/config": [(200, LIMITS)]})

    async def sets(request: httpx.Request) -> httpx.Response:
        answer = await script(request)
        answer.headers = httpx.Headers([(b"set-cookie", b"a=\xff; Path=/")])
        return answer

    over = httpx.MockTransport(sets)
    signer = KeySigner(SECRET, network="volta")
    async with broker(DdhubServer(url=URL), signer=signer, clock=FakeClock(), over=over) as api:
        await api.limits()
    assert all("cookie" not in each.headers for each in script.asked)


@pytest.mark.parametrize(("path", "call", "answer"), NONSENSE)
async def test_an_answer_that_makes_no_sense_is_an_error(path: str, call: Call, answer: Any) -> None:
    assert (await refusal(Script({path: [(200, answer)]}), call)).reason == Reason.PROTOCOL


# ---- calls ------------------------------------------------------------------------------------------------------


async def test_topics() -> None:
    version = {"id": "aa", "name": "t", "owner": "o.ewc", "version": "1.0.0", "schemaType": "JSD7", "schema": {"a": 1}}
    records = [version | {"name": "t2"}, version | {"odd": None}]
    script = Script(
        {"/topics": [(200, {"count": 2, "records": records})], "/topics/aa/versions/1.0.0": [(200, version)]}
    )
    async with hub(script) as api:
        assert await api.topics(owner="o.ewc", name="t") == [Topic("aa", "o.ewc", "t", "JSD7")]
        assert script.asked[-1].url.query == b"owner=o.ewc&name=t"
        assert (await api.topic_version("aa", "1.0.0")).schema == {"a": 1}
        script.answers["/topics"] = [(200, version)]
        made = await api.create_topic(owner="o.ewc", name="t", version="1.0.0", schema="{}", tags=["x"])
        assert made.id == "aa"
        assert script.body() == {
            "owner": "o.ewc",
            "name": "t",
            "version": "1.0.0",
            "schema": "{}",
            "schemaType": "JSD7",
            "tags": ["x"],
        }
        await api.put_version("aa", "1.0.0", schema="{}")
        assert (script.asked[-1].method, script.body()) == ("PUT", {"schema": "{}"})


async def test_roles() -> None:
    script = Script({"/roles/list": [(200, {"dids": [ALICE, BOB]})]})
    async with hub(script) as api:
        assert await api.dids_with_roles(["a.b", "c.d"]) == [ALICE, BOB]
    assert script.asked[-1].url.query == b"roles=a.b&roles=c.d&searchType=ANY"


async def test_sending() -> None:
    answer = {
        "clientGatewayMessageId": "u",
        "recipients": {"total": 3, "sent": 1, "failed": 3},
        "status": [
            {"name": "SENT", "details": [{"did": BOB, "messageId": "m", "statusCode": 200}]},
            {
                "name": "FAILED",
                "details": [
                    {
                        "did": ALICE,
                        "statusCode": 400,
                        "err": {"code": "MB::INVALID_FQCN", "reason": f"fqcn:{ALICE} not exists"},
                    },
                    {"statusCode": 400, "err": {"code": "MB::NATS_SERVER", "reason": "timeout"}},
                    {"did": "x"},
                ],
            },
        ],
    }
    script = Script({"/messages/internal": [(200, {"messageId": "k"}), (200, {})], "/messages": [(200, answer)]})
    async with hub(script) as api:
        assert await api.send_key(BOB, "u", "a2V5") == "k"
        assert script.body() == {"fqcn": BOB, "clientGatewayMessageId": "u", "payload": "a2V5"}
        assert await api.send_key(ALICE, "u", "a2V5") is None
        found = await api.send_message(
            [BOB, ALICE],
            payload="00:00",
            signature="0x00",
            topic_id="aa",
            topic_version="1.0.0",
            gateway_id="u",
            transaction_id="t",
        )
    assert found.sent == {BOB: "m"}
    assert found.failed == {ALICE: Failure("MB::INVALID_FQCN", f"fqcn:{ALICE} not exists"), "x": Failure("", "")}
    assert found.unnamed == [Failure("MB::NATS_SERVER", "timeout")]
    assert script.body() == {
        "fqcns": [BOB, ALICE],
        "transactionId": "t",
        "payload": "00:00",
        "topicId": "aa",
        "topicVersion": "1.0.0",
        "signature": "0x00",
        "clientGatewayMessageId": "u",
        "payloadEncryption": True,
    }


async def test_receiving() -> None:
    message = {
        "messageId": "m",
        "topicId": "aa",
        "topicVersion": "1.0.0",
        "payload": "00:00",
        "payloadEncryption": True,
        "senderDid": BOB,
        "signature": "0x00",
        "timestampNanos": 1764000000123000000,
        "clientGatewayMessageId": "u",
        "transactionId": "",
        "isFile": False,
        "fqcn": ALICE,
        "more": {},
    }
    bare = {
        "messageId": "n",
        "topicId": "aa",
        "payload": "{}",
        "senderDid": BOB,
        "timestampNanos": "9007199254740993",
    }
    floats = b'[{"messageId":"o","topicId":"aa","payload":"x","senderDid":"b","timestampNanos":1e18}]'
    key = {k: message[k] for k in ("messageId", "payload", "senderDid", "timestampNanos", "clientGatewayMessageId")}
    script = Script(
        {
            "/messages/search": [(200, [message, bare, {}]), (200, floats)],
            "/messages/internal/search": [(200, [key | {"isFile": False}, {"payload": "x"}])],
            "/messages/ack": [(200, {"acked": ["m"], "notFound": ["n"]})],
            "/channel/clientIds": [(200, ["a", "b"])],
        }
    )
    async with hub(script) as api:
        good, bad = await api.search(client_id="c", topic_ids=["aa"], senders=[BOB], amount=100)
        assert good == [
            ReceivedMessage("m", "aa", "1.0.0", "00:00", True, BOB, "0x00", 1764000000123000000, "u", "", False),
            ReceivedMessage("n", "aa", "", "{}", False, BOB, "", 9007199254740993, "", "", False),
        ]
        assert len(bad) == 1
        assert script.body() == {"fqcnTopicList": ["aa"], "senderId": [BOB], "clientId": "c", "amount": 100}
        assert await api.search(client_id="c", topic_ids=["aa"], senders=[BOB], amount=1) == (
            [],
            ["the answer of the Data Hub cannot be read: timestampNanos is no whole number"],
        )
        keys, odd = await api.search_keys(client_id="c", amount=100)
        assert keys == [ReceivedKey("m", BOB, "u", "00:00", 1764000000123000000)]
        assert len(odd) == 1
        assert await api.acknowledge(["m", "n"], client_id="c") == (["m"], ["n"])
        assert script.body() == {"messageIds": ["m", "n"], "clientId": "c"}
        assert await api.client_ids() == ["a", "b"]
        assert await api.remove_client_ids(["a"]) == ["a", "b"]
        assert (script.asked[-1].method, script.body()) == ("DELETE", {"clientIds": ["a"]})
