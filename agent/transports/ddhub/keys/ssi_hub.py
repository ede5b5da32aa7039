"""Energy Web's SSI Hub: logs in with our key (Sign-In with Ethereum, EIP-4361) and asks for DID documents.

A hub proves nothing; it is as trusted as its certificate. Its documents are a cache of the chain: late, and blind to
changes of owner (registry.py reads the chain itself). The token is in memory only; it is made
anew before it expires, and when the hub does not take it any more.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import anyio

from agent.eip191 import sign_personal_message
from agent.errors import Reason, SignerError, TransportError
from agent.ports import Clock, Signer
from agent.transports.ddhub.keys.exchange import Connection, Exchange
from agent.transports.ddhub.keys.key_source_config import shown
from agent.transports.ddhub.keys.network import Participant, participant
from agent.transports.ddhub.keys.participant import ParticipantKeys, judge_network, read_document

S = 1_000_000_000
_LIFE = 600  # s that a token is used if it does not say how long it is good for
_LONGEST_LIFE = 86_400


def sign_in_text(*, domain: str, who: Participant, uri: str, nonce: str, issued: int) -> str:
    """The message of EIP-4361 without a statement; ``issued``: ns since 1970."""
    at = datetime.fromtimestamp(issued // S, UTC)
    return (
        f"{domain} wants you to sign in with your Ethereum account:\n{who.did.rpartition(':')[2]}\n\n\n"
        f"URI: {uri}\nVersion: 1\nChain ID: {who.network.chain_id}\nNonce: {nonce}\n"
        f"Issued At: {at:%Y-%m-%dT%H:%M:%S}.{issued % S // 1_000_000:03d}Z"
    )


class SsiHub:
    """One hub. ``url``: with the version of the API, such as ``https://identitycache.energyweb.org/v1``."""

    def __init__(self, url: str, *, signer: Signer, clock: Clock, exchange: Exchange) -> None:
        self.peer = f"SSI Hub {shown(url)}"
        self._url = url
        self._signer = signer
        self._clock = clock
        self._exchange = exchange
        self._token = ""
        self._renew_at = 0  # boot time, ns
        self._logging_in = anyio.Lock()

    async def keys(self, who: Participant) -> ParticipantKeys:
        """The keys in a participant's document. Raises TransportError; ParticipantError if it is on another chain."""
        judge_network(who, participant(self._signer.did).network)
        async with self._exchange.connection(self._url) as connection:
            document = await self._document(connection, who.did)
        try:
            return read_document(document, who.did)
        except ValueError as error:
            raise TransportError(f"{self.peer}: {error}", reason=Reason.PROTOCOL, hint="is it an SSI Hub?") from None

    async def _document(self, connection: Connection, did: str) -> Any:
        url = f"{self._url}/DID/{did}?includeClaims=false"
        token = await self._logged_in(connection)
        answer = await connection.request("GET", url, peer=self.peer, headers=_bearer(token))
        if answer.status == 401:  # it forgot us: restarted, or its clock is another
            if self._token == token:
                self._token = ""
            token = await self._logged_in(connection)
            answer = await connection.request("GET", url, peer=self.peer, headers=_bearer(token))
        if answer.status == 404 and answer.words():  # the hub's word, and not the page of a proxy without a hub
            return {"id": did}  # a DID that was never changed has no keys
        if answer.status != 200:
            raise answer.unexpected()
        return answer.json()

    async def _logged_in(self, connection: Connection) -> str:
        """A token; one login at a time."""
        async with self._logging_in:
            if not self._token or self._clock.boot() >= self._renew_at:
                self._token = await self._log_in(connection)
                self._renew_at = self._clock.boot() + _life(self._token) * S * 4 // 5
            return self._token

    async def _log_in(self, connection: Connection) -> str:
        nonce = await self._asked(connection, "initiate", {}, "nonce")
        if not nonce.isalnum() or not nonce.isascii() or len(nonce) > 200:
            raise self._nonsense("its nonce is none")  # it would become a part of what we sign
        origin = _origin(self._url)
        text = sign_in_text(
            domain=origin.partition("://")[2],
            who=participant(self._signer.did),
            uri=f"{origin}/v1/login/siwe/verify",
            nonce=nonce,
            issued=self._clock.wall(),
        )
        try:
            signature = sign_personal_message(text.encode(), signer=self._signer)
        except SignerError as error:
            raise TransportError(str(error), hint=error.hint, verdict=error.verdict) from error
        proof = {"message": text, "signature": f"0x{signature.hex()}"}
        token = await self._asked(connection, "verify", proof, "token")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise self._nonsense("its token is none")
        return token

    async def _asked(self, connection: Connection, step: str, body: Any, member: str) -> str:
        answer = await connection.request("POST", f"{self._url}/login/siwe/{step}", peer=self.peer, body=body)
        if answer.status not in (200, 201):
            raise answer.unexpected()
        said = answer.json()
        value = said.get(member) if isinstance(said, dict) else None
        if not isinstance(value, str) or not value:
            raise self._nonsense(f"its answer to a login has no {member}")
        return value

    def _nonsense(self, what: str) -> TransportError:
        return TransportError(f"{self.peer}: {what}", reason=Reason.PROTOCOL, hint="is it an SSI Hub?")


def _origin(url: str) -> str:
    """As the hub writes its own, which it compares as text: small letters, and no port that goes without saying."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    usual = parts.port in (None, {"http": 80, "https": 443}[parts.scheme])
    return f"{parts.scheme}://{host}" if usual else f"{parts.scheme}://{host}:{parts.port}"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _life(token: str) -> int:
    """For how many seconds a token is good, by what it says of itself: our clock may differ from the hub's."""
    try:
        part = token.split(".")[1]
        claims = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        life = int(claims["exp"]) - int(claims["iat"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return _LIFE
    return min(max(life, 1), _LONGEST_LIFE)
