"""A Data Hub that answers as it is told, for tests of the client alone: no network, each request is kept."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.lowlevel import checkpoint
from Crypto.PublicKey import RSA

from agent.errors import TransportError
from agent.signer import KeySigner
from agent.transports.ddhub.broker import Broker, broker
from agent.transports.ddhub.config import DdhubConfig, DdhubServer
from agent.transports.ddhub.content import cipher, payload
from agent.transports.ddhub.content.schema import telemetry_schema
from agent.transports.ddhub.keys.participant import ParticipantError, ParticipantKeys
from agent.transports.ddhub.login import Login
from agent.transports.ddhub.transport import DdhubTransport
from tests.runs import SECRET, FakeClock, S

URL = "https://hub.example"
ALICE = "did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
BOB = "did:ethr:volta:0x1563915e194D8CfBA1943570603F7606A3115508"
USER = "user.roles.ddhub.apps.energyweb.iam.ewc"

Answer = tuple[int, Any]  # status and body: bytes as they are, all else as JSON


def jwt(number: int = 1, roles: tuple[str, ...] = (USER,)) -> str:
    """An access token, of which nobody checks the signature."""
    said = json.dumps({"id": number, "did": "did", "roles": list(roles)}).encode()
    return f"e30.{urlsafe_b64encode(said).rstrip(b'=').decode()}.c2ln"


def login(number: int = 1, *, expires_in: Any = 3600, **more: Any) -> Answer:
    """What a login or a refresh yields."""
    tokens = {"access_token": jwt(number), "type": "Bearer", "expires_in": expires_in, "refresh_token": f"r{number}"}
    return 201, tokens | more


def said(code: str, words: str, status: int = 400) -> Answer:
    """A refusal of the broker."""
    return status, {"returnCode": code, "returnMessage": words, "timestamp": "2025-01-01T00:00:00.123Z[UTC]"}


OPENED: Answer = (200, {"returnCode": "00", "returnMessage": "Success", "timestamp": "t"})


@dataclass
class Script:
    """What each path answers: the next of its answers, the last for ever. Others answer 404."""

    answers: dict[str, list[Answer | Exception]] = field(default_factory=dict)
    asked: list[httpx.Request] = field(default_factory=list)
    before: Callable[[httpx.Request], Any] = lambda request: None
    date: str | None = None

    def __post_init__(self) -> None:
        self.answers.setdefault("/auth/login", [login()])
        self.answers.setdefault("/channel/initExtChannel", [OPENED])

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        self.asked.append(request)
        self.before(request)
        left = self.answers.get(request.url.path, [(404, b"<html>")])
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=content, headers={} if self.date is None else {"date": self.date})

    @property
    def paths(self) -> list[str]:
        """What was asked, in order."""
        return [request.url.path for request in self.asked]

    def body(self, index: int = -1) -> Any:
        """What was sent."""
        return json.loads(self.asked[index].content)


@asynccontextmanager
async def hub(script: Script, *, clock: FakeClock | None = None, login: Login | None = None) -> AsyncIterator[Broker]:
    """A client of it."""
    clock = clock or FakeClock()
    over = httpx.MockTransport(script)
    async with broker(
        DdhubServer(url=URL), signer=KeySigner(SECRET, network="volta"), clock=clock, login=login, over=over
    ) as found:
        yield found


# ---- with mailboxes ---------------------------------------------------------------------------------------------

VECTORS = json.loads((Path(__file__).parent / "vectors" / "ddhub.json").read_text())
PUBLIC_KEY: str = VECTORS["c_rsa"]["publicKeyPemPkcs1"]
PRIVATE_KEY = RSA.import_key(VECTORS["c_rsa"]["privateKeyPemPkcs8"])
TOPIC_ID = "62545547fe37f174d7715ff3"
CONFIG = {
    "url": URL,
    "topic": {"owner": "edge.apps.example.iam.ewc", "name": "telemetry", "version": "1.0.0"},
    "recipients": [BOB],
    "keys": {"file": "/nowhere"},
}


@dataclass
class Keys:
    """A ``KeySource``: all have the same RSA key but those who have none. ``asked``: of whom, in order."""

    without: set[str] = field(default_factory=set)
    down: TransportError | None = None
    asked: list[str] = field(default_factory=list)

    async def keys(self, did: str) -> ParticipantKeys:
        """What the file or hub would say."""
        self.asked.append(did)
        await checkpoint()
        if self.down is not None:
            raise self.down
        if did in self.without:
            raise ParticipantError(f"{did} has no key", hint="publish one")
        return ParticipantKeys(None, PUBLIC_KEY)


@dataclass
class Delivered:
    """A message that a recipient can read: its text, and what went with it."""

    text: str
    body: dict[str, Any]

    @property
    def envelopes(self) -> list[bytes]:
        """The records."""
        return list(payload.decode(self.text).envelopes)


@dataclass
class Mailboxes(Script):
    """A Data Hub with a mailbox for each participant that is not ``strangers``; the broker keeps a transaction once.

    ``fails``: asked for each recipient of a message, it gives the words of a failure or None. ``largest``: bytes that
    NATS takes.
    """

    strangers: set[str] = field(default_factory=set)
    keyless: set[str] = field(default_factory=set)  # the broker answers {} to their keys
    holders: list[str] = field(default_factory=list)
    fails: Callable[[str, dict[str, Any]], str | None] = lambda did, body: None
    largest: int = 1 << 20
    schema: Any = field(default_factory=lambda: json.loads(telemetry_schema()))
    took: int = 0  # ns that a message takes
    keys: dict[tuple[str, str], str] = field(default_factory=dict)  # wrapped, by recipient and message
    seen: set[tuple[str, str]] = field(default_factory=set)
    boxes: dict[str, list[Delivered]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        topic = {"id": TOPIC_ID, "owner": "edge.apps.example.iam.ewc", "name": "telemetry", "schemaType": "JSD7"}
        version = topic | {"version": "1.0.0", "schema": self.schema}
        self.answers.setdefault("/config", [(200, {"msgMaxSize": 8388608})])
        self.answers.setdefault("/topics", [(200, {"count": 1, "limit": 0, "page": 1, "records": [topic]})])
        self.answers.setdefault(f"/topics/{TOPIC_ID}/versions/1.0.0", [(200, version)])

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer: as told, or else as a broker does."""
        if request.url.path in self.answers:
            return await super().__call__(request)
        self.asked.append(request)
        self.before(request)
        if request.url.path == "/roles/list":
            return httpx.Response(200, json={"dids": self.holders})
        body = json.loads(request.content)
        if request.url.path == "/auth/refresh-token":
            return httpx.Response(201, json=login(len(self.asked))[1])
        if request.url.path == "/messages/internal":
            return httpx.Response(200, json=self._key(body))
        assert request.url.path == "/messages"
        if self.took:
            await anyio.sleep(self.took / S)
        return httpx.Response(200, json=self._message(body))

    def _key(self, body: dict[str, Any]) -> dict[str, str]:
        did = body["fqcn"]
        if did in self.strangers | self.keyless:
            return {}
        self.keys[did, body["clientGatewayMessageId"]] = body["payload"]
        return {"messageId": f"key-{len(self.keys)}"}

    def _message(self, body: dict[str, Any]) -> dict[str, Any]:
        sent, failed = list[dict[str, Any]](), list[dict[str, Any]]()
        for did in body["fqcns"]:
            words = f"fqcn:{did} not exists" if did in self.strangers else self.fails(did, body)
            if words is None and len(body["payload"]) > self.largest:
                words = "Maximum payload exceeded"
            if words is None and (did, body["transactionId"]) in self.seen:
                words = "Duplicate transaction id."
            if words is not None:
                failed.append({"did": did, "statusCode": 400, "err": {"code": "MB::NATS_SERVER", "reason": words}})
                continue
            self.seen.add((did, body["transactionId"]))
            key = cipher.unwrap(self.keys[did, body["clientGatewayMessageId"]], [PRIVATE_KEY])
            self.boxes.setdefault(did, []).append(Delivered(cipher.decrypt(body["payload"], key), body))
            sent.append({"did": did, "messageId": f"m{len(self.seen)}", "statusCode": 200})
        status = [{"name": name, "details": each} for name, each in (("SENT", sent), ("FAILED", failed)) if each]
        total = {"total": len(body["fqcns"]), "sent": len(sent), "failed": len(failed)}
        return {"clientGatewayMessageId": body["clientGatewayMessageId"], "recipients": total, "status": status}

    def envelopes(self, did: str = BOB) -> list[bytes]:
        """All records that a recipient got, in order."""
        return [envelope for each in self.boxes.get(did, []) for envelope in each.envelopes]

    def posted(self, path: str = "/messages") -> list[dict[str, Any]]:
        """The bodies that were sent there."""
        return [json.loads(each.content) for each in self.asked if each.url.path == path]


def transport(box: Mailboxes, *, keys: Keys | None = None, clock: FakeClock, **changes: Any) -> DdhubTransport:
    """A channel's transport; ``changes``: keys of its configuration."""
    config = DdhubConfig.model_validate(CONFIG | changes)
    return DdhubTransport(
        config,
        topic=str(config.topic),
        signer=KeySigner(SECRET, network="volta"),
        clock=clock,
        keys=keys or Keys(),
        over=httpx.MockTransport(box),
    )
