"""A Data Hub that answers as it is told, for tests of the client alone: no network, each request is kept."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from agent.signer import KeySigner
from agent.transports.ddhub.broker import Broker, broker
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.login import Login
from tests.runs import SECRET, FakeClock

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
