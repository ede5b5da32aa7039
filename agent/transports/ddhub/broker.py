"""A Data Hub over HTTP: logging in through its proxy, and one method for each call of its broker that we make.

Every request is tried once; only a token that is not taken any more is replaced, and the request made again, once.
Every failure leaves as TransportError (agent/transports/ddhub/failures.py), also an answer that makes no sense. Answers
are bounded in size and time. Tokens are in memory only (agent/transports/ddhub/login.py), and in no message.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from anyio import to_thread

from agent.eip191 import identity_token
from agent.errors import Reason, TransportError
from agent.ports import Clock, Signer
from agent.transports.ddhub import answers
from agent.transports.ddhub.answers import Tokens
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.login import Login
from agent.transports.ddhub.requests import MIB, Reply, Requests, Timeouts, requests
from agent.transports.facts import BrokerFacts

S = 1_000_000_000
_SKEW = 60  # s: a clock that differs by more is told of
_NO_DID = "is the DID document of this key there, and does the Data Hub resolve it on our network?"
_LOGIN_HINTS = (  # by a part of what the proxy says, in small letters
    ("does not have any roles", Reason.PERMISSION, "enrol this DID for a role of the Data Hub, and wait for approval"),
    ("proof is not valid", Reason.AUTHORIZATION, _NO_DID),
    ("payload is not valid", Reason.AUTHORIZATION, _NO_DID),
)


@asynccontextmanager
async def broker(
    server: DdhubServer,
    *,
    signer: Signer,
    clock: Clock,
    login: Login | None = None,
    opens: bool = True,
    timeouts: Timeouts | None = None,
    over: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Broker]:
    """What talks to a Data Hub; nothing is sent before the first call. ``login``: tokens that outlive this. ``opens``:
    have the broker make our channel if it is not there. ``over``: in place of the network.

    Raises TransportError: a certificate of ours cannot be read.
    """
    async with requests(server, clock=clock, timeouts=timeouts, over=over) as line:
        yield Broker(line, signer=signer, clock=clock, login=login or Login(clock=clock), opens=opens)


class Broker:
    """The calls. All raise TransportError, and log in first where that is needed."""

    def __init__(self, line: Requests, *, signer: Signer, clock: Clock, login: Login, opens: bool) -> None:
        self._line = line
        self._signer = signer
        self._clock = clock
        self._login = login
        self._opens = opens

    @property
    def heard(self) -> BrokerFacts:
        """What the server showed of itself with its last answer."""
        return self._line.heard

    # ---- ourselves --------------------------------------------------------------------------------------------

    async def enter(self) -> Mapping[str, Any]:
        """Log in if that is due, and have our channel opened; returns what the token says of us (``did``, ``roles``),
        as it is read and not verified.
        """
        return claims(await self._token())

    async def limits(self) -> answers.Limits:
        """What the broker takes."""
        return answers.limits(await self._asked("GET", "/config"))

    async def client_ids(self) -> list[str]:
        """The names under which our messages were ever searched for."""
        return answers.names(await self._asked("GET", "/channel/clientIds"))

    async def remove_client_ids(self, client_ids: Sequence[str]) -> list[str]:
        """Forget names, and every other that contains one of them; returns those that were there."""
        return answers.names(await self._asked("DELETE", "/channel/clientIds", {"clientIds": list(client_ids)}))

    async def dids_with_roles(self, roles: Iterable[str]) -> list[str]:
        """Who holds any of these roles, or held it once: the broker never forgets one."""
        query = [*(("roles", role) for role in roles), ("searchType", "ANY")]
        return answers.dids(await self._asked("GET", "/roles/list", query=query))

    # ---- topics -----------------------------------------------------------------------------------------------

    async def topics(self, *, owner: str, name: str) -> list[answers.Topic]:
        """The topics of exactly this name."""
        found = answers.topics(await self._asked("GET", "/topics", query=[("owner", owner), ("name", name)]))
        return [topic for topic in found if (topic.owner, topic.name) == (owner, name)]

    async def topic_version(self, topic_id: str, version: str) -> answers.TopicVersion:
        """A version of a topic, with its schema."""
        return answers.topic_version(await self._asked("GET", f"/topics/{topic_id}/versions/{version}"))

    async def names(self, owner: str) -> list[str]:
        """The names of an owner's topics."""
        found = answers.topics(await self._asked("GET", "/topics", query=[("owner", owner)]))
        return sorted({topic.name for topic in found if topic.owner == owner})

    async def versions(self, topic_id: str) -> list[str]:
        """The versions of a topic, in no order."""
        return answers.versions(await self._asked("GET", f"/topics/{topic_id}/versions", most=8 * MIB))

    async def create_topic(
        self, *, owner: str, name: str, version: str, schema: str, schema_type: str = "JSD7", tags: Sequence[str] = ()
    ) -> answers.Topic:
        """Register a topic with its first version."""
        body = {"owner": owner, "name": name, "version": version, "schema": schema, "schemaType": schema_type}
        return answers.topics({"records": [await self._asked("POST", "/topics", {**body, "tags": list(tags)})]})[0]

    async def put_version(self, topic_id: str, version: str, *, schema: str) -> None:
        """Register a version of a topic; one that is there is overwritten."""
        await self._asked("PUT", f"/topics/{topic_id}/versions/{version}", {"schema": schema})

    # ---- sending ----------------------------------------------------------------------------------------------

    async def send_key(self, did: str, gateway_id: str, wrapped: str) -> str | None:
        """Put the wrapped key of a message into a recipient's mailbox; None: he has none, whatever the status says."""
        body = {"fqcn": did, "clientGatewayMessageId": gateway_id, "payload": wrapped}
        return answers.message_id(await self._asked("POST", "/messages/internal", body))

    async def send_message(
        self,
        dids: Sequence[str],
        *,
        payload: str,
        signature: str,
        topic_id: str,
        topic_version: str,
        gateway_id: str,
        transaction_id: str,
    ) -> answers.Posted:
        """Send an encrypted message to recipients; what became of it is in the answer alone."""
        body = {
            "fqcns": list(dids),
            "transactionId": transaction_id,
            "payload": payload,
            "topicId": topic_id,
            "topicVersion": topic_version,
            "signature": signature,
            "clientGatewayMessageId": gateway_id,
            "payloadEncryption": True,
        }
        return answers.posted(await self._asked("POST", "/messages", body, within=self._line.timeouts.slow))

    # ---- receiving --------------------------------------------------------------------------------------------

    async def search(
        self, *, client_id: str, topic_ids: Sequence[str], senders: Sequence[str], amount: int, most: int = 64 * MIB
    ) -> tuple[list[answers.ReceivedMessage], list[str]]:
        """Messages that wait for us under a client id, in no order; and why others cannot be read.

        One client id belongs to one set of topics and senders: what is not of them is lost for it. ``most``: bytes that
        the answer may have.
        """
        body = {"fqcnTopicList": list(topic_ids), "senderId": list(senders), "clientId": client_id, "amount": amount}
        found = await self._asked("POST", "/messages/search", body, within=self._line.timeouts.slow, most=most)
        return answers.messages(found)

    async def search_keys(
        self, *, client_id: str, amount: int, most: int = 8 * MIB
    ) -> tuple[list[answers.ReceivedKey], list[str]]:
        """Keys that wait for us; what is returned is never returned again to this client id."""
        body = {"clientId": client_id, "amount": amount}
        found = await self._asked("POST", "/messages/internal/search", body, within=self._line.timeouts.slow, most=most)
        return answers.keys(found)

    async def acknowledge(self, message_ids: Sequence[str], *, client_id: str) -> tuple[list[str], list[str]]:
        """Acknowledge messages; returns which were, and which are not there, which counts as done.

        Code 20: some may be acknowledged, ask again for all.
        """
        body = {"messageIds": list(message_ids), "clientId": client_id}
        return answers.acknowledged(await self._asked("POST", "/messages/ack", body, within=self._line.timeouts.slow))

    # ---- how ----------------------------------------------------------------------------------------------------

    async def _asked(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        within: float | None = None,
        most: int = MIB,
    ) -> Any:
        """The answer to a request as JSON. Logs in if needed, and once more if the token is not taken."""
        token = await self._token()
        reply = await self._line.send(method, path, body, token=token, query=query, within=within, most=most)
        if reply.status == 401:
            token = await self._token(spent=token)
            reply = await self._line.send(method, path, body, token=token, query=query, within=within, most=most)
        return self._judged(reply)

    def _judged(self, reply: Reply) -> Any:
        if reply.is_success:
            return answers.parsed(reply.body)
        error = self._line.refusal(reply)
        if error.reason is Reason.PERMISSION:
            self._login.leave()
        raise error

    async def _token(self, *, spent: str | None = None) -> str:
        return await self._login.token(enter=self._enter, renew=self._renew, open_=self._open, spent=spent)

    async def _enter(self) -> Tokens:
        """Log in with the key."""
        issued = self._clock.wall() // S
        token = await to_thread.run_sync(lambda: identity_token(issued=issued, signer=self._signer))
        reply = await self._line.send("POST", "/auth/login", {"identityToken": token})
        if reply.is_success:
            return answers.tokens(answers.parsed(reply.body))
        raise self._not_let_in(reply)

    def _not_let_in(self, reply: Reply) -> TransportError:
        """Why the proxy does not let us in: our clock, or what it says."""
        error = self._line.refusal(reply)
        if reply.status not in (400, 401, 403, 500) or error.reason is Reason.TLS:
            return error
        words = f"not let in as {self._signer.did}: {error}"
        if reply.ahead is not None and abs(reply.ahead) > _SKEW:
            way = "behind" if reply.ahead > 0 else "ahead of"
            hint = f"this machine's clock is {abs(reply.ahead):.0f} s {way} that of the Data Hub; set it right"
            return TransportError(words, hint=hint, reason=Reason.AUTHORIZATION)
        for part, reason, hint in _LOGIN_HINTS:
            if part in str(error).lower():
                return TransportError(words, hint=hint, reason=reason)
        if reply.status == 500:
            return TransportError(words, hint="the proxy's own look-ups fail; its log says which", reason=Reason.STORE)
        hint = "is this DID enrolled there, and is this machine's clock right? the proxy's log says more"
        return TransportError(words, hint=hint, reason=Reason.AUTHORIZATION)

    async def _renew(self, refresh: str) -> Tokens:
        reply = await self._line.send("POST", "/auth/refresh-token", {"refreshToken": refresh})
        if reply.is_success:
            return answers.tokens(answers.parsed(reply.body))
        raise self._line.refusal(reply)

    async def _open(self, token: str) -> None:
        """Have the broker make our channel if it is not there, and note our roles. Once after each login."""
        if self._opens:
            self._judged(await self._line.send("POST", "/channel/initExtChannel", {}, token=token))


def claims(token: str) -> Mapping[str, Any]:
    """What an access token says, unverified: {} if it cannot be read."""
    try:
        part = token.split(".")[1]
        found = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, IndexError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
