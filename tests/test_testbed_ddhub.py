"""The fake Data Hub keeps to the specification: logins, channels, topics, and sending."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest

from testbed.ddhub import fields, naming, tokens
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import CREATOR_ROLES, OWNER, USER_ROLE, DataHub
from testbed.ddhub.login import NotVerified, Siwe, identity
from testbed.ddhub.payloads import judge_payload
from testbed.ddhub.replies import Refused
from testbed.ddhub.rules import permits
from testbed.ddhub.settings import ADMIN, TOPICCREATOR, USER, Settings
from testbed.processes import NatsServer
from tests.ddhub_world import ALICE, BOB, IDENTITIES, NOWHERE, UUID4, VECTORS, message, siwe, told

SCHEMA = {
    "type": "object",
    "required": ["unit"],
    "properties": {
        "unit": {"type": "string"},
        "at": {"type": "string", "format": "local-date-time"},
        "amount": {"type": "string", "pattern": "^[0-9.]+$"},
        "list": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}
pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
async def hub(server: NatsServer) -> AsyncIterator[DataHub]:
    async with DataHub(server.url, settings=Settings(fetch_wait_s=0.5)) as hub:
        yield hub


@pytest.fixture
async def alice(hub: DataHub) -> AsyncIterator[Gateway]:
    """A participant who may create topics, logged in."""
    async with Gateway(hub.url, ALICE, now=hub.clock.now) as alice:
        hub.enrol(alice.did, CREATOR_ROLES)
        await alice.login()
        yield alice


@pytest.fixture
async def bob(hub: DataHub) -> AsyncIterator[Gateway]:
    """Another one, logged in."""
    async with Gateway(hub.url, BOB, now=hub.clock.now) as bob:
        hub.enrol(bob.did)
        await bob.login()
        yield bob


@pytest.fixture(scope="module")
def topic(hub: DataHub) -> str:
    return hub.add_topic("telemetry", SCHEMA)


# ---- naming and rules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["f_brokerNaming"]["streams"], ids=lambda case: case["fqcn"])
def test_streams_have_the_names_of_the_deployed_ones(case: dict[str, Any]) -> None:
    assert (naming.stream_name(case["fqcn"]), [naming.stream_subject(case["fqcn"])]) == (
        case["stream"],
        case["subjects"],
    )


def test_subjects_and_message_ids_are_the_deployed_ones() -> None:
    vectors = VECTORS["f_brokerNaming"]
    sent, key, once = vectors["messageSubject"], vectors["internalSubject"], vectors["dedupe"]
    assert naming.message_subject(sent["fqcn"], sent["topicId"]) == sent["subject"]
    assert naming.message_subject(key["fqcn"], naming.INTERNAL) == key["subject"]
    assert naming.keys_fqcn(sent["fqcn"]) == key["fqcn"]
    made = naming.dedupe_id(once["transactionId"], once["senderDid"], once["fqcn"], once["topicId"])
    assert made == once["natsMsgId"]


@pytest.mark.parametrize(
    ("client_id", "since", "name"),
    [
        ("id1:chan.name.x", None, "id1:chan:name:x"),
        ("id1:chan.name.x", 0x67748580, "id1:chan:name:x:#:67748580"),
        (".a>>b*", None, "a:b"),
    ],
)
def test_consumers_have_the_names_of_the_deployed_ones(client_id: str, since: int | None, name: str) -> None:
    assert naming.consumer_name(client_id, since) == name
    assert naming.client_id_of(name) == naming.consumer_name(client_id)


@pytest.mark.parametrize(
    ("rule", "roles", "permitted"),
    [
        (USER, [USER_ROLE], True),
        (USER, ["user.roles.edge.apps.aemo.iam.ewc"], False),
        (USER, ["user.roles.x.apps.myenergyweb.y.ewc"], True),
        (USER, ["xuser.roles.ddhub.apps.energyweb.iam.ewc"], False),
        (USER, [], False),
        (ADMIN, [USER_ROLE], False),
        (ADMIN, ["admin.roles.ddhub.apps.energyweb.iam.ewc"], True),
        (TOPICCREATOR, CREATOR_ROLES, True),
        (TOPICCREATOR, CREATOR_ROLES[::-1], True),
        (TOPICCREATOR, CREATOR_ROLES[:2], False),
        (("b.c",), ["a.b.c.d"], True),
        (("b.c",), ["a.bxc.d"], False),
    ],
)
def test_roles_are_judged_by_patterns_of_which_each_needs_a_role_of_its_own(
    rule: tuple[str, ...], roles: list[str], permitted: bool
) -> None:
    assert permits(rule, roles) is permitted


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (fields.NO_SPECIAL, ["", "0xa1", "my_topic", "my topic", "a&lt;b", "&#47;"], ["my-topic", "a.b", "a/b", "&"]),
        (fields.UUID4, [UUID4, UUID4.upper()], ["0b271eb8-1e21-1817-95af-7951649360ed", UUID4[1:], ""]),
        (fields.SEMVER, ["1.0.0", "10.2.3-rc.1+b"], ["1.0", "v1.0.0", "1.0.0-"]),
        (fields.CLIENT_ID, ["a1:b.c>*-d"], ["a_b", "", "a b"]),
        (fields.KEY_CLIENT_ID, ["a1:b-d"], ["a.b", "a_b"]),
        (fields.OWNER, ["x.ewc"], [".ewc", "x.ewc2"]),
        (fields.FILE_NAME, ["a.csv", "b.TSV"], ["a.txt", "csv"]),
        (fields.IS_DID, ["did:ethr:volta:0x1", "DID:x"], ["ethr", "did:"]),
        (fields.NO_DID, ["02ab", "x did:"], ["did:ethr:volta:0x1", "DiD:x"]),
    ],
)  # fmt: skip
def test_texts_are_judged_by_the_brokers_patterns(pattern: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fields.fits(pattern, text)] == []
    assert [text for text in bad if fields.fits(pattern, text)] == []


# ---- login ------------------------------------------------------------------------------------------------------


def own_document(did: str) -> dict[str, Any]:
    """What a DID without registry history resolves to."""
    return {"id": did, "publicKey": []}


@pytest.mark.parametrize(
    "token",
    [
        VECTORS["d_identityToken"]["cases"][0]["token"],
        IDENTITIES["identity_token_ddhub_gateway"]["token"],
        IDENTITIES["identity_token_dsb_client_python_legacy"]["token"],  # no EIP-191 prefix, v 0 or 1, no chain
    ],
    ids=["vector d", "gateway", "DSB client"],
)
def test_identity_tokens_of_others_are_taken(token: str) -> None:
    who = identity(token, own_document, 0, margin=4)
    assert who.did.lower() == tokens.claims_of(token)["iss"].lower().replace("ethr:0x", "ethr:volta:0x")


def test_a_gateways_identity_token_is_the_published_one() -> None:
    case = VECTORS["d_identityToken"]["cases"][0]
    assert Gateway(NOWHERE, case["privateKey"], now=lambda: 1735689600.5).identity_token() == case["token"]


def lower_case(did: str) -> dict[str, Any]:
    return own_document(did.lower())


def somebody_else(did: str) -> dict[str, Any]:
    return own_document("did:ethr:volta:0x1563915e194D8CfBA1943570603F7606A3115508")


@pytest.mark.parametrize(
    ("change", "document", "reason"),
    [
        ({}, lower_case, "Not Verified: Authentication proof is not valid"),
        ({}, somebody_else, "Not Verified: Authentication proof is not valid"),
        ({"iss": "did:web:x"}, own_document, "Token payload is not valid"),
        ({"claimData": {}}, own_document, "Token payload is not valid"),
        ({"claimData": {"blockNumber": "1"}}, own_document, "Token payload is not valid"),
        ({"claimData": {"blockNumber": 96}}, own_document, "Claim outdated"),
        ({"claimData": {"blockNumber": 97}}, own_document, None),
    ],
)
def test_identity_tokens_are_judged(change: dict[str, Any], document: Any, reason: str | None) -> None:
    token = Gateway(NOWHERE, ALICE).identity_token(**change)
    if reason is None:
        identity(token, document, 100, margin=4)
        return
    with pytest.raises(NotVerified, match=reason):
        identity(token, document, 100, margin=4)


def test_a_signature_in_raw_bytes_is_no_proof() -> None:
    signed, _, last = Gateway(NOWHERE, ALICE).identity_token().rpartition(".")
    raw = bytes.fromhex(tokens.decode(last).decode()[2:])
    with pytest.raises(NotVerified):
        identity(f"{signed}.{tokens.encode(raw)}", own_document, 0, margin=4)


async def test_a_login_gives_tokens_with_the_roles_of_now(hub: DataHub, alice: Gateway) -> None:
    answer = await alice.ask("POST", "/auth/login", json={"identityToken": alice.identity_token()})
    body = answer.json()
    assert (answer.status_code, body["type"], body["expires_in"]) == (201, "Bearer", 3600)
    claims = tokens.claims_of(body["access_token"])
    assert claims.keys() == {"id", "did", "roles", "iat", "exp"}
    assert (claims["did"], claims["roles"]) == (alice.did, [*CREATOR_ROLES])
    assert claims["exp"] - claims["iat"] == 3600
    refresh = tokens.claims_of(body["refresh_token"])
    assert refresh["exp"] - refresh["iat"] == 86400


NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("claims", "status", "reason"),
    [
        ({"iat": None}, 401, "Identity token iat"),
        ({"exp": None}, 401, "Identity token exp"),
        ({"iat": 0}, 401, "not valid"),
        ({"iat": NOW, "exp": NOW}, 401, "not valid"),
        ({"exp": NOW}, 401, "not valid"),
        ({"iat": NOW - 400, "exp": NOW - 1}, 401, "expired"),
        ({"iat": NOW - 1800, "exp": NOW + 9}, 401, "too old"),
        ({"iat": NOW - 1799, "exp": NOW + 9}, 201, ""),
        ({"iat": NOW + 500, "exp": NOW + 800}, 201, ""),
        ({"iss": "x"}, 401, "Token payload is not valid"),
        ({"claimData": {"blockNumber": 1}}, 401, "Claim outdated"),
    ],
)
async def test_the_proxy_looks_at_the_times_of_an_identity_token(
    hub: DataHub, claims: dict[str, Any], status: int, reason: str
) -> None:
    at = hub.clock.now()
    hub.clock.move(NOW - at)
    try:
        async with Gateway(hub.url, BOB) as bob:
            hub.enrol(bob.did)
            token = bob.identity_token(**{"iat": NOW, "exp": NOW + 300, **claims})
            answer = await bob.ask("POST", "/auth/login", json={"identityToken": token})
    finally:
        hub.clock.move(at - NOW)
    assert answer.status_code == status
    assert reason in answer.json().get("message", "")


async def test_who_has_no_role_or_says_nothing_does_not_get_in(hub: DataHub) -> None:
    async with Gateway(hub.url, "0x" + "33" * 32) as nobody:
        answer = await nobody.ask("POST", "/auth/login", json={"identityToken": nobody.identity_token(iat=None)})
        assert (answer.status_code, answer.json()["message"]) == (401, "User does not have any roles.")
        answer = await nobody.ask("POST", "/auth/login", json={})
        assert (answer.status_code, answer.json()["message"]) == (400, "Missing credentials")


async def test_a_refresh_token_counts_once_and_keeps_the_old_roles(hub: DataHub, bob: Gateway) -> None:
    old = bob.tokens
    hub.enrol(bob.did, CREATOR_ROLES)
    answer = await bob.ask("POST", "/auth/refresh-token", json={"refreshToken": old["refresh_token"]})
    assert answer.status_code == 201
    assert tokens.claims_of(answer.json()["access_token"])["roles"] == [USER_ROLE]
    answer = await bob.ask("POST", "/auth/refresh-token", json={"refreshToken": old["refresh_token"]})
    assert answer.status_code == 401
    await bob.authenticate()
    assert tokens.claims_of(bob.tokens["access_token"])["roles"] == [*CREATOR_ROLES]


async def test_tokens_expire_and_are_revoked(hub: DataHub, bob: Gateway) -> None:
    async def seen() -> int:
        return (await bob.ask("GET", "/config")).status_code

    assert await seen() == 200
    hub.clock.move(3601)
    assert await seen() == 401
    await bob.authenticate()
    assert await seen() == 200
    hub.proxy.revoke()
    assert await seen() == 401
    again = await bob.ask("POST", "/auth/refresh-token", json={"refreshToken": bob.tokens["refresh_token"]})
    assert again.status_code == 201
    hub.proxy.revoke(refresh_too=True)
    again = await bob.ask("POST", "/auth/refresh-token", json={"refreshToken": again.json()["refresh_token"]})
    assert again.status_code == 401
    bob.tokens = {}
    assert await seen() == 401
    bob.tokens = {"access_token": "a.b.c"}
    assert await seen() == 401
    await bob.authenticate()
    bob.tokens = {"access_token": bob.tokens["refresh_token"]}  # which is for refreshing alone
    assert await seen() == 401


async def test_siwe_is_another_way_in(hub: DataHub) -> None:
    async with Gateway(hub.url, BOB) as bob:
        hub.enrol(bob.did)
        nonce = (await bob.ask("POST", "/auth/login/siwe/initiate")).json()["nonce"]
        signed = siwe(bob, f"{hub.url}/auth/login/siwe/verify", nonce)
        answers = [await bob.ask("POST", "/auth/login/siwe/verify", json=signed) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 401]
    assert tokens.claims_of(answers[0].json()["access_token"])["did"] == bob.did


def test_a_siwe_message_of_another_library_is_taken() -> None:
    given = IDENTITIES["siwe"]
    place = Siwe(60, "/v1/login/siwe/verify", {"abcdefgh12345678": 5.0})
    origin = "https://identitycache-dev.energyweb.org"
    assert (
        place.verify(given["message"], given["signature"], origin=origin, now=4.0)
        == IDENTITIES["did_ethr"]["did_volta"]
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("login/siwe", "login/other", "uri in siwe message payload is incorrect"),
        ("Nonce: abcdefgh12345678", "Nonce: abcdefgh12345679", "Nonce is not valid"),
        ("Version: 1", "Version: 2", "Siwe message is not valid"),
        ("\n\n\nURI", "\n\nURI", "Siwe message is not valid"),
        ("2025-01-01T", "2025-01-32T", "Siwe message is not valid"),
        ("Chain ID: 73799", "Chain ID: 246", "Signature does not match"),
        ("0x2c7536E3605D9C16a7a3D7b1898e529396a65c23", "0x2c7536e3605d9c16a7a3d7b1898e529396a65c23", "Signature"),
    ],
)
def test_a_siwe_message_is_judged(old: str, new: str, reason: str) -> None:
    given = IDENTITIES["siwe"]
    place = Siwe(60, "/v1/login/siwe/verify", {"abcdefgh12345678": 5.0})
    with pytest.raises(NotVerified, match=reason):
        place.verify(
            given["message"].replace(old, new), given["signature"], now=4.0,
            origin="https://identitycache-dev.energyweb.org",
        )  # fmt: skip


# ---- who may call what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/messages", 403),
        ("DELETE", "/channel/clientIds/x", 403),
        ("GET", "/nothing", 403),
        ("POST", "/topics", 403),
        ("PUT", "/topics/1", 403),
        ("GET", "/config", 200),
    ],
)
async def test_what_has_no_rule_or_needs_more_roles_is_forbidden(
    bob: Gateway, method: str, path: str, status: int
) -> None:
    answer = await bob.ask(method, path)
    assert answer.status_code == status
    if status == 403:
        assert told(answer) == (403, "10", "Forbidden access")


async def test_the_broker_behind_the_proxy_believes_every_token(hub: DataHub, bob: Gateway) -> None:
    forged = tokens.issue({"did": bob.did, "roles": [USER_ROLE], "exp": 1}, b"somebody's secret")
    bob.tokens = {"access_token": forged}
    assert (await bob.ask("GET", "/config")).status_code == 401
    hub.proxy.guarded = False
    try:
        assert (await bob.ask("GET", "/config")).status_code == 200
        bob.tokens = {"access_token": tokens.issue({"did": bob.did, "roles": USER_ROLE}, b"")}
        assert (await bob.ask("GET", "/config")).status_code == 403
        bob.tokens = {"access_token": "a.b"}
        assert (await bob.ask("GET", "/config")).status_code == 401
    finally:
        hub.proxy.guarded = True


async def test_config_tells_the_limits(bob: Gateway) -> None:
    assert await bob.get("/config") == {
        "msgExpired": 86400000, "msgMaxSize": 8388608, "fileMaxSize": 512000000, "natsMaxClientidSize": 200,
    }  # fmt: skip


# ---- channels and roles -----------------------------------------------------------------------------------------


async def test_keys_of_the_first_init_ext_channel_are_ignored(hub: DataHub) -> None:
    async with Gateway(hub.url, "0x" + "44" * 32, now=hub.clock.now) as carol:
        hub.enrol(carol.did)
        await carol.authenticate()
        keys = {"anonymousKeys": [{"anonymousKey": "02aa"}, {"anonymousKey": "02aa"}, {"anonymousKey": "02bb"}]}
        first, second, third = [await carol.post("/channel/initExtChannel", keys) for _ in range(3)]
        assert (first["returnCode"], first.get("status")) == ("00", None)
        assert [each["status"] for each in second["status"]] == ["Success", "Success"]
        assert third["status"] == [
            {"key": key, "status": "Fail", "message": "Record exists"} for key in ("02aa", "02bb")
        ]
        sent = await carol.post("/messages", message(hub.add_topic("anonymous", {}), anonymousRecipient=["02aa"]))
        assert sent["recipients"] == {"total": 1, "sent": 1, "failed": 0}
        done = await carol.ask("DELETE", "/channel/stream/02aa")
        assert (done.status_code, done.json()["returnCode"]) == (200, "00")
        assert told(await carol.ask("DELETE", f"/channel/stream/{carol.did}"))[:2] == (400, "18")


async def test_the_role_index_never_forgets(hub: DataHub, alice: Gateway) -> None:
    async with Gateway(hub.url, "0x" + "55" * 32, now=hub.clock.now) as dave:
        old, new = "user.roles.old.apps.energyweb.iam.ewc", "user.roles.new.apps.energyweb.iam.ewc"
        hub.enrol(dave.did, [old])
        await dave.login()
        hub.enrol(dave.did, [new])
        await dave.login()
        assert (await alice.get("/roles/list", roles=[old])) == {"dids": [dave.did]}
        assert (await alice.get("/roles/list", roles=[new, USER_ROLE], searchType="ALL")) == {"dids": []}
        assert dave.did in (await alice.get("/roles/list", roles=[new, USER_ROLE]))["dids"]
        assert (await alice.get("/roles/check", did=dave.did, roles=[old])) == {"hasRole": True}
        assert (await alice.get("/roles/check", did=dave.did, roles=["x"])) == {"hasRole": False}


# ---- topics -----------------------------------------------------------------------------------------------------


def new_topic(**changes: Any) -> dict[str, Any]:
    usual = {"name": "made", "schemaType": "JSD7", "schema": "{}", "version": "1.0.0", "owner": OWNER, "tags": ["a"]}
    return usual | changes


async def test_a_topic_lives_and_dies(alice: Gateway) -> None:
    made = await alice.post("/topics", new_topic(name="life", schema='{"type":"object"}'))
    assert made.keys() == {"id", "name", "owner", "schemaType", "schema", "tags", "version"}
    assert re.fullmatch("[0-9a-f]{24}", made["id"])
    place = f"/topics/{made['id']}/versions"
    assert told(await alice.ask("POST", "/topics", json=new_topic(name="life")))[:2] == (400, "51")

    page = await alice.get("/topics", owner=OWNER, name="life")
    assert page == {
        "count": 1, "limit": 0, "page": 1,
        "records": [{"id": made["id"], "name": "life", "owner": OWNER, "schemaType": "JSD7", "tags": ["a"]}],
    }  # fmt: skip
    for schema in ('{"type":"string"}', '{"type":"array"}'):  # a version that is there is overwritten
        put = await alice.ask("PUT", f"{place}/1.1.0", json={"schema": schema})
        assert put.json()["schema"] == json.loads(schema)
    assert (await alice.get(f"{place}/1.1.0"))["schema"] == {"type": "array"}
    assert [each["version"] for each in (await alice.get(place))["records"]] == ["1.0.0", "1.1.0"]

    assert (await alice.ask("DELETE", f"{place}/1.0.0")).json()["returnCode"] == "00"
    assert told(await alice.ask("GET", f"{place}/1.0.0")) == (404, "50", f"id:{made['id']} version not exists")
    assert (await alice.ask("DELETE", f"{place}/1.1.0")).status_code == 200
    assert (await alice.get("/topics", owner=OWNER, name="life"))["count"] == 0
    assert (await alice.get("/topics", owner=OWNER, name="life", includeDeleted=True))["count"] == 1


async def test_schemas_that_are_no_json_come_within_an_object(alice: Gateway) -> None:
    made = await alice.post("/topics", new_topic(name="csv", schemaType="CSV", schema="a,b"))
    assert made["schema"] == {"CSV": "a,b"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "a-b"}, "17"),
        ({"owner": "x.com"}, "17"),
        ({"owner": "edge.apps.aemo.iam.ewc"}, "12"),
        ({"schema": {"type": "object"}}, "15"),
        ({"schema": ""}, "17"),
        ({"schema": "{"}, "13"),
        ({"schema": '{"type":"thing"}'}, "13"),
        ({"schemaType": "XSD6", "schema": "<a/>"}, "13"),
        ({"schemaType": "JSON"}, "17"),
        ({"version": "1"}, "17"),
        ({"tags": ["a.b"]}, "17"),
    ],
)
async def test_new_topics_are_judged(alice: Gateway, changes: dict[str, Any], code: str) -> None:
    assert told(await alice.ask("POST", "/topics", json=new_topic(**changes)))[:2] == (400, code)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 400, "17"),
        ({"owner": OWNER, "page": 2}, 400, "14"),
        ({"owner": OWNER, "page": 0, "limit": 1}, 400, "17"),
    ],
)
async def test_questions_for_topics_are_judged(bob: Gateway, query: dict[str, Any], status: int, code: str) -> None:
    assert told(await bob.ask("GET", "/topics", params=query))[:2] == (status, code)


async def test_topics_come_in_pages(hub: DataHub, bob: Gateway) -> None:
    owner = "pages.apps.energyweb.iam.ewc"
    for name in "abc":
        hub.add_topic(name, "{}", owner=owner)
    pages = [await bob.get("/topics", owner=owner, limit=2, page=page) for page in (1, 2, 3)]
    assert [[each["name"] for each in page["records"]] for page in pages] == [["a", "b"], ["c"], []]
    assert {page["count"] for page in pages} == {3}
    assert (await bob.get("/topics/count", owner=[owner, "x"])) == [
        {"owner": owner, "count": 3}, {"owner": "x", "count": 0},
    ]  # fmt: skip
    assert (await bob.get("/topics/search", keyword="A", owner=owner))["count"] == 1
    (updated,) = await bob.get("/topics/topicUpdatesMonitor", namespaceList=[owner])
    assert abs(updated["lastTopicUpdate"] - hub.clock.now_ms()) < 60_000


# ---- sending ----------------------------------------------------------------------------------------------------


async def test_a_message_lies_in_the_recipients_stream_as_the_broker_writes_it(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str
) -> None:
    step1, step2 = VECTORS["h_exampleSend"]["step1_internal"], VECTORS["h_exampleSend"]["step2_message"]
    hub.add_topic("example", SCHEMA, topic_id=step2["body"]["topicId"])
    before = len(await hub.stored_keys(bob.did))
    key = await alice.post(step1["path"], step1["body"])
    sent = await alice.post(step2["path"], step2["body"])
    assert step2["body"]["fqcns"] == [bob.did]

    (detail,) = sent["status"][0]["details"]
    assert sent == {
        "clientGatewayMessageId": UUID4,
        "recipients": {"total": 1, "sent": 1, "failed": 0},
        "status": [
            {"name": "SENT", "details": [{"did": bob.did, "messageId": detail["messageId"], "statusCode": 200}]}
        ],
    }
    kept = (await hub.stored(bob.did))[-1]
    at = int(kept["timestampNanos"])
    assert at % 1_000_000 == 0
    assert abs(at / 1e9 - hub.clock.now()) < 60
    assert kept == {
        "messageId": detail["messageId"], "payloadEncryption": True, "payload": step2["body"]["payload"],
        "topicVersion": "1.0.0", "transactionId": "tx-1", "sender": alice.did,
        "signature": step2["body"]["signature"], "clientGatewayMessageId": UUID4, "timestampNanos": str(at),
        "isFile": False, "subject": VECTORS["f_brokerNaming"]["messageSubject"]["subject"],
        "headers": {"Nats-Msg-Id": VECTORS["f_brokerNaming"]["dedupe"]["natsMsgId"]},
    }  # fmt: skip
    kept = (await hub.stored_keys(bob.did))[before]
    assert kept == {
        "messageId": key["messageId"], "payload": step1["body"]["payload"], "transactionId": "", "sender": alice.did,
        "clientGatewayMessageId": UUID4, "timestampNanos": kept["timestampNanos"],
        "subject": VECTORS["f_brokerNaming"]["internalSubject"]["subject"], "headers": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "code", "text"),
    [
        ({"payload": None}, 400, "17", "payload : "),
        ({"payload": ""}, 400, "17", "payload : "),
        ({"payload": {"a": 1}}, 400, "15", "payload"),
        ({"clientGatewayMessageId": UUID4.replace("-4", "-1", 1)}, 400, "17", "clientGatewayMessageId : "),
        ({"clientGatewayMessageId": UUID4.replace("-9", "-0")}, 400, "17", "clientGatewayMessageId : "),
        ({"clientGatewayMessageId": UUID4.replace("-9", "-c")}, 400, "17", "clientGatewayMessageId : "),
        ({"signature": "a/b"}, 400, "17", "signature : "),
        ({"signature": None}, 400, "17", "signature : "),
        ({"topicVersion": "1"}, 400, "17", "topicVersion : "),
        ({"topicId": "x"}, 400, "17", "topicId : "),
        ({"topicId": "ab"}, 400, "16", "ObjectId"),
        ({"topicId": "ab" * 12}, 404, "50", f"id:{'ab' * 12} version not exists"),
        ({"topicVersion": "9.0.0"}, 404, "50", "version not exists"),
        ({"transactionId": "x" * 201}, 400, "17", "transactionId : "),
        ({"topicRestrictions": "x" * 501}, 400, "17", "topicRestrictions : "),
        ({"fqcns": ["x" * 201]}, 400, "17", "fqcns : "),
        ({"anonymousRecipient": ["x"] * 26}, 400, "17", "anonymousRecipient : "),
        ({"anonymousRecipient": [""]}, 400, "17", "anonymousRecipient : "),
        ({"fqcns": []}, 400, "16", "fqcns"),
        ({"fqcns": "x"}, 400, "15", "fqcns"),
        ({"payloadEncryption": 7}, 400, "15", "payloadEncryption"),
    ],
)
async def test_messages_are_judged(
    alice: Gateway, topic: str, changes: dict[str, Any], status: int, code: str, text: str
) -> None:
    answer = await alice.ask("POST", "/messages", json=message(topic, alice.did) | changes)
    assert told(answer)[:2] == (status, code)
    assert text in told(answer)[2]


async def test_a_body_that_is_no_json_is_told(alice: Gateway) -> None:
    for body in (b"{", b"[]", b"", b'{"payload":NaN}', b'{"payload":"\xff"}'):
        answer = await alice.ask("POST", "/messages", content=body, headers=JSON)
        assert told(answer)[:2] == (400, "15")


async def test_a_body_that_is_not_called_json_is_not_read(alice: Gateway, topic: str) -> None:
    body = json.dumps(message(topic, alice.did))
    for kind in (None, {"Content-Type": "text/plain"}):
        assert (await alice.ask("POST", "/messages", content=body, headers=kind or {})).status_code == 415
        token = json.dumps({"identityToken": alice.identity_token()})
        answer = await alice.ask("POST", "/auth/login", content=token, headers=kind or {})
        assert (answer.status_code, answer.json()["message"]) == (400, "Missing credentials")
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert (await alice.ask("POST", "/messages", content=body, headers=charset)).status_code == 200


async def test_a_topic_that_is_deleted_takes_no_messages(hub: DataHub, alice: Gateway) -> None:
    gone = hub.add_topic("gone", "{}")
    await alice.ask("DELETE", f"/topics/{gone}")
    answer = await alice.ask("POST", "/messages", json=message(gone, alice.did))
    assert told(answer) == (404, "50", f"id:{gone} not exists")


async def test_recipients_fail_one_by_one_within_a_200(alice: Gateway, bob: Gateway, topic: str) -> None:
    stranger = "did:ethr:volta:0x0000000000000000000000000000000000000001"
    asked = message(topic, bob.did, stranger, "x", anonymousRecipient=["did:x", "02ff"])
    answer = await alice.ask("POST", "/messages", json=asked)
    body = answer.json()
    assert answer.status_code == 200
    assert body["recipients"] == {"total": 3, "sent": 1, "failed": 4}  # who is badly written is not in total
    assert [each["name"] for each in body["status"]] == ["SENT", "FAILED"]
    details = body["status"][1]["details"]
    failed = {each["did"]: (each["statusCode"], each["err"]["code"], each["err"]["reason"]) for each in details}
    assert failed == {
        "x": (400, "MB::INVALID_FQCN", "fqcn:x DIDs format invalid"),
        "did:x": (400, "MB::INVALID_ANONYMOUSKEY", "anonymousRecipient:did:x format invalid"),
        stranger: (400, "MB::INVALID_FQCN", f"fqcn:{stranger} not exists"),
        "02ff": (400, "MB::INVALID_ANONYMOUSKEY", "fqcn:02ff not exists"),
    }
    body = await alice.post("/messages", message(topic, stranger))
    assert [each["name"] for each in body["status"]] == ["FAILED"]


async def test_a_transaction_id_counts_once_within_its_window(
    hub: DataHub, alice: Gateway, bob: Gateway, topic: str
) -> None:
    async def sent(**changes: Any) -> list[str]:
        answer = await alice.post("/messages", message(topic, bob.did, **changes))
        details = [detail for each in answer["status"] for detail in each["details"]]
        return [each["err"]["reason"] if "err" in each else "" for each in details]

    assert [await sent(transactionId="once", payload=text) for text in ("a", "b")] == [
        [""],
        ["Duplicate transaction id."],
    ]
    assert [await sent() for _ in range(2)] == [[""], [""]]  # without an id nobody looks
    hub.clock.move(119)
    assert await sent(transactionId="once") == ["Duplicate transaction id."]
    hub.clock.move(1)
    twice = [await sent(transactionId="once") for _ in range(2)]
    assert twice == [[""], ["Duplicate transaction id."]]
    kept = [each["payload"] for each in await hub.stored(bob.did) if each["transactionId"] == "once"]
    assert kept == ["a", "00:11"]
    assert "Nats-Msg-Id" not in (await hub.stored(bob.did))[-2]["headers"]


async def test_what_is_larger_than_nats_takes_fails_for_its_recipient(alice: Gateway, topic: str) -> None:
    answer = await alice.post("/messages", message(topic, alice.did, payload="x" * 1_048_576))
    (detail,) = answer["status"][0]["details"]
    assert (detail["err"]["code"], "did" in detail) == ("MB::NATS_SERVER", False)
    assert "payload size exceed" in detail["err"]["reason"]


async def test_what_is_larger_than_a_streams_messages_may_be_fails_too(server: NatsServer) -> None:
    hub = DataHub(server.url, settings=Settings(message_max=1000))
    async with hub, Gateway(hub.url, "0x" + "66" * 32) as bob:
        hub.enrol(bob.did)
        await bob.login()
        answer = await bob.post("/messages", message(hub.add_topic("small", "{}"), bob.did, payload="x" * 1000))
        (detail,) = answer["status"][0]["details"]
        assert detail["err"]["reason"] == "message size exceeds maximum allowed [10054]"
        assert (await bob.get("/config"))["msgMaxSize"] == 1000


async def test_text_that_is_no_unicode_is_stored_with_question_marks(hub: DataHub, alice: Gateway, topic: str) -> None:
    body = json.dumps(message(topic, alice.did, payload="\ud800", transactionId="\udfff"))
    assert (await alice.ask("POST", "/messages", content=body, headers=JSON)).json()["recipients"]["sent"] == 1
    assert (await hub.stored(alice.did))[-1]["payload"] == "?"


async def test_a_key_for_who_has_no_mailbox_is_answered_with_nothing(hub: DataHub, alice: Gateway) -> None:
    body = {"fqcn": "did:ethr:volta:0x0000000000000000000000000000000000000001", "payload": "x"}
    answer = await alice.ask("POST", "/messages/internal", json={**body, "clientGatewayMessageId": "any text"})
    assert (answer.status_code, answer.text) == (200, "{}")
    assert told(await alice.ask("POST", "/messages/internal", json=body))[:2] == (400, "17")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"unit": "kWh"}, None),
        ({"unit": "&lt;b&gt;"}, None),
        ({"unit": "a-b"}, "17"),
        ({"unit": "2025.01"}, "17"),
        ({"unit": "a\nb"}, "17"),
        ({"unit": "x", "amount": "1.5"}, None),
        ({"unit": "x", "amount": "a"}, "17"),
        ({"unit": "x", "list": ["a.b"]}, None),
        ({"unit": "x", "deep": {"text": "a.b"}}, "17"),
        ({"unit": "x", "other": "a.b"}, None),
        ({"unit": "x", "at": "2025-01-01T00:00:00"}, None),
        ({"unit": "x", "at": "2025-01-01T00:00:00Z"}, "17"),
        ({}, "17"),
        ([{"unit": "x"}], "60"),
        ("text", "60"),
        (None, "60"),
    ],
    ids=str,
)
async def test_payloads_in_clear_are_judged(alice: Gateway, topic: str, payload: Any, code: str | None) -> None:
    text = "{" if payload is None else json.dumps(payload)
    answer = await alice.ask("POST", "/messages", json=message(topic, alice.did, payload=text, payloadEncryption=False))
    assert answer.status_code == (200 if code is None else 400)
    assert code is None or told(answer)[1] == code


@pytest.mark.parametrize(("payload", "passes"), [('{"unit":"a b"}', True), ('{"unit":"&lt;"}', False)])
def test_the_last_release_takes_no_entities(payload: str, passes: bool) -> None:
    judge_payload(payload, json.dumps(SCHEMA), entities=True)
    with nullcontext() if passes else pytest.raises(Refused):
        judge_payload(payload, json.dumps(SCHEMA), entities=False)


async def test_a_proxy_may_take_siwe_only_and_be_of_another_chain(server: NatsServer) -> None:
    settings = Settings(blocknum_auth=False, chain="ewc")
    async with DataHub(server.url, settings=settings) as hub, Gateway(hub.url, BOB, chain="ewc") as bob:
        assert hub.did(bob.address) == bob.did
        answer = await bob.ask("POST", "/auth/login", json={"identityToken": bob.identity_token()})
        assert answer.status_code == 404


async def test_only_payloads_of_json_schemas_are_judged(hub: DataHub, alice: Gateway) -> None:
    csv = hub.add_topic("table", "a,b", schema_type="CSV")
    answer = await alice.post("/messages", message(csv, alice.did, payload="1,2", payloadEncryption=False))
    assert answer["recipients"]["sent"] == 1
