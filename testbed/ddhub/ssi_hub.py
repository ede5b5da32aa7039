"""The SSI Hub: logins with SIWE or an identity token, and DID documents.

Its access tokens are HS256 (the hub's are RS256: to clients both are opaque). Documents are resolved when asked for;
the hub's own cache is the fault "stale-document". Claims, roles, assets and the store are not here.
"""

from __future__ import annotations

import uuid
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from testbed.ddhub import tokens
from testbed.ddhub.broker import Parts
from testbed.ddhub.chain import Chain, address_of
from testbed.ddhub.documents import Unresolvable, document
from testbed.ddhub.login import DID, NotVerified, Siwe, identity
from testbed.ddhub.proxy import answer, body_of, problem

_BLOCK_MARGIN = 10  # as the hub is deployed


class SsiHub:
    """An ASGI application under /v1. ``origin``: under which URL clients know it."""

    def __init__(self, parts: Parts, chain: Chain) -> None:
        self.origin = ""
        self._parts = parts
        self._chain = chain
        self._siwe = Siwe(parts.settings.nonce_ttl_s, "/v1/login/siwe/verify")
        self._refreshable: dict[str, str] = {}
        self._secret = b"hub " + parts.state.secret.encode()
        self._app = Starlette(
            routes=[
                Route("/v1/login", self.login, methods=["POST"]),
                Route("/v1/login/siwe/initiate", self.siwe_initiate, methods=["POST"]),
                Route("/v1/login/siwe/verify", self.siwe_verify, methods=["POST"]),
                Route("/v1/refresh_token", self.refresh, methods=["GET"]),
                Route("/v1/auth/status", self.status, methods=["GET"]),
                Route("/v1/DID/{did}", self.resolve, methods=["GET"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self._app(scope, receive, send)

    async def login(self, request: Request) -> Response:
        """POST /v1/login."""
        if not self._parts.settings.hub_identity_token:
            return problem(404, "Cannot POST /v1/login")
        token = (await body_of(request)).get("identityToken")
        if not token:
            return problem(400, "Missing credentials")
        try:
            now, newest = self._parts.clock.now(), self._chain.head
            who = identity(token, lambda did: document(self._chain, did, now), newest, margin=_BLOCK_MARGIN)
        except NotVerified as error:
            return problem(401, str(error))
        except Unresolvable as error:
            return problem(500, str(error))
        return self._pair(who.did)

    async def siwe_initiate(self, _: Request) -> Response:
        """POST /v1/login/siwe/initiate."""
        return answer(201, {"nonce": self._siwe.initiate(self._parts.clock.now())})

    async def siwe_verify(self, request: Request) -> Response:
        """POST /v1/login/siwe/verify."""
        body, now = await body_of(request), self._parts.clock.now()
        if not body.get("message") or not body.get("signature"):
            return problem(400, "Missing credentials")
        try:
            return self._pair(self._siwe.verify(body["message"], body["signature"], origin=self.origin, now=now))
        except NotVerified as error:
            return problem(401, str(error))

    async def refresh(self, request: Request) -> Response:
        """GET /v1/refresh_token."""
        try:
            claims = tokens.verified(
                request.query_params.get("refresh_token", ""), self._secret, self._parts.clock.now()
            )
            did = self._refreshable.pop(claims["id"])
        except (ValueError, KeyError, TypeError):
            return problem(401, "Unauthorized")
        return self._pair(did, status=200)

    async def status(self, request: Request) -> Response:
        """GET /v1/auth/status."""
        return answer(200, {"user": self._user(request)})

    async def resolve(self, request: Request) -> Response:
        """GET /v1/DID/{did}; ``includeClaims`` is not read."""
        if self._user(request) is None:
            return problem(401, "Unauthorized")
        did = request.path_params["did"]
        if DID.fullmatch(did) is None:
            return problem(400, "Validation failed: did")
        method, chain, *_ = did.removeprefix("did:").split(":")
        if (method, chain) != ("ethr", self._parts.settings.chain):
            return problem(404, f"Cannot resolve {did}")
        did = f"did:ethr:{chain}:{address_of(did)}"
        try:
            found = document(self._chain, did, self._parts.clock.now())
        except Unresolvable as error:
            return problem(500, str(error))
        if self._parts.faults.take("stale-document", request.url.path, did=did):
            found.update(publicKey=[], service=[])
        return answer(200, {**found, "created": None, "delegates": None, "proof": None, "updated": None})

    def _user(self, request: Request) -> str | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = tokens.verified(token, self._secret, self._parts.clock.now())
        except (ValueError, KeyError, TypeError):
            return None
        return str(claims["did"]) if scheme.lower() == "bearer" else None

    def _pair(self, did: str, *, status: int = 201) -> Response:
        settings, now = self._parts.settings, int(self._parts.clock.now())

        def token(lifetime_s: int) -> tuple[str, str]:
            claims: dict[str, Any] = {"id": str(uuid.uuid4()), "did": did, "verifiedRoles": [], "iat": now}
            return claims["id"], tokens.issue({**claims, "exp": now + lifetime_s}, self._secret)

        (_, access), (refresh_id, refresh) = token(settings.hub_access_ttl_s), token(settings.hub_refresh_ttl_s)
        self._refreshable[refresh_id] = did
        return answer(status, {"token": access, "refreshToken": refresh})
