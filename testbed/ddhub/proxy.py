"""The DID-auth proxy: logins at /auth, and nothing else of the broker for who has no good access token.

Access tokens are HS256, of one hour; a refresh gives new ones with the roles of the old. Behind it stands the broker,
which believes every token.
"""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from testbed.ddhub import tokens
from testbed.ddhub.broker import Parts
from testbed.ddhub.chain import Chain
from testbed.ddhub.documents import Unresolvable, document
from testbed.ddhub.fields import is_json
from testbed.ddhub.login import NotVerified, Siwe, check_times, identity

_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_REASONS = {401: "Authorization Required", 503: "Service Temporarily Unavailable"}  # as nginx words them


def page(status: int) -> Response:
    """An error as nginx words it."""
    reason = _REASONS.get(status) or http.client.responses.get(status, "Error")
    return Response(_PAGE.format(f"{status} {reason}"), status, media_type="text/html")


def problem(status: int, message: str) -> Response:
    """An error as NestJS words it."""
    names = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
    body = {"statusCode": status, "message": message, **({"error": names[status]} if status in names else {})}
    return Response(json.dumps(body), status, media_type="application/json")


def answer(status: int, value: Any) -> Response:
    """JSON."""
    return Response(json.dumps(value, separators=(",", ":")), status, media_type="application/json")


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request; empty if there is none, as NestJS has it."""
    if not is_json(request.headers):
        return {}
    try:
        value = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class Proxy:
    """An ASGI application: /auth here, everything else to ``broker``. ``origin``: under which URL clients know it."""

    def __init__(self, parts: Parts, chain: Chain, broker: ASGIApp) -> None:
        self.origin = ""
        self.guarded = True  # False: the broker can be reached past the proxy
        self._parts = parts
        self._chain = chain
        self._broker = broker
        self._given: set[str] = set()  # ids of access tokens
        self._revoked: set[str] = set()
        self._siwe = Siwe(parts.settings.nonce_ttl_s, "/auth/login/siwe/verify")
        posts: Sequence[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/auth/login", self.login),
            ("/auth/refresh-token", self.refresh),
            ("/auth/login/siwe/initiate", self.siwe_initiate),
            ("/auth/login/siwe/verify", self.siwe_verify),
            ("/auth/logout", self.logout),
        ]
        self._app = Starlette(
            routes=[
                *(Route(path, handler, methods=["POST"]) for path, handler in posts),
                Route("/auth/token-introspection", self.introspect, methods=["GET"]),
                Route("/auth", self.hello, methods=["GET"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["path"] == "/auth" or scope["path"].startswith("/auth/"):
            await self._app(scope, receive, send)
        elif int(Request(scope).headers.get("content-length", 0)) > self._parts.settings.body_max:
            await page(413)(scope, receive, send)
        elif self.guarded and self._claims(Request(scope)) is None:
            await page(401)(scope, receive, send)
        else:
            await self._broker(scope, receive, send)

    # ---- what tests do ----

    def revoke(self, *, refresh_too: bool = False) -> None:
        """Refuse all access tokens that were given until now; with ``refresh_too`` nobody can refresh them either."""
        self._revoked |= self._given
        if refresh_too:
            self._parts.state.refresh_tokens.clear()
            self._parts.state.save()

    # ---- calls ----

    async def hello(self, _: Request) -> Response:
        """GET /auth."""
        return Response("OK")

    async def login(self, request: Request) -> Response:
        """POST /auth/login."""
        if not self._parts.settings.blocknum_auth:
            return problem(404, "Cannot POST /auth/login")
        token = (await body_of(request)).get("identityToken")
        if not token:
            return problem(400, "Missing credentials")
        settings, now = self._parts.settings, self._parts.clock.now()
        try:
            who = identity(
                token, lambda did: document(self._chain, did, now), self._chain.head, margin=settings.block_margin
            )
            return self._logged_in(who.did, lambda: check_times(who.claims, now, most_s=settings.access_ttl_s * 0.5))
        except NotVerified as error:
            return problem(401, str(error))
        except Unresolvable as error:
            return problem(500, str(error))

    async def siwe_initiate(self, _: Request) -> Response:
        """POST /auth/login/siwe/initiate."""
        return answer(201, {"nonce": self._siwe.initiate(self._parts.clock.now())})

    async def siwe_verify(self, request: Request) -> Response:
        """POST /auth/login/siwe/verify."""
        body = await body_of(request)
        if not body.get("message") or not body.get("signature"):
            return problem(400, "Missing credentials")
        try:
            now = self._parts.clock.now()
            did = self._siwe.verify(body["message"], body["signature"], origin=self.origin, now=now)
            return self._logged_in(did, lambda: None)
        except NotVerified as error:
            return problem(401, str(error))

    async def refresh(self, request: Request) -> Response:
        """POST /auth/refresh-token: the old refresh token ends, the roles stay as they were."""
        token = (await body_of(request)).get("refreshToken")
        try:
            claims = tokens.verified(str(token), self._secret, self._parts.clock.now())
            if self._parts.state.refresh_tokens.pop(claims["id"], None) is None:
                raise ValueError("not whitelisted")
        except (ValueError, KeyError, TypeError):
            return problem(401, "Unauthorized")
        return self._pair(claims["did"], claims["roles"])

    async def logout(self, request: Request) -> Response:
        """POST /auth/logout."""
        claims, body = self._claims(request), await body_of(request)
        if claims is None:
            return problem(401, "Unauthorized")
        known = self._parts.state.refresh_tokens
        try:
            given = tokens.claims_of(str(body.get("refreshToken"))).get("id")
        except ValueError:
            given = None
        for each in [each for each, did in known.items() if did == claims["did"]]:
            if body.get("allDevices") or each == given:
                del known[each]
        self._parts.state.save()
        return Response(status_code=201)

    async def introspect(self, request: Request) -> Response:
        """GET /auth/token-introspection."""
        claims = self._claims(request)
        return problem(401, "Unauthorized") if claims is None else answer(200, claims)

    # ---- inside ----

    @property
    def _secret(self) -> bytes:
        return self._parts.state.secret.encode()

    def _claims(self, request: Request) -> dict[str, Any] | None:
        """What a good access token says."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = tokens.verified(token, self._secret, self._parts.clock.now())
        except (ValueError, KeyError, TypeError):
            return None
        is_access = claims["exp"] - claims["iat"] <= self._parts.settings.access_ttl_s  # a refresh token is none
        return claims if is_access and scheme.lower() == "bearer" and claims["id"] not in self._revoked else None

    def _logged_in(self, did: str, last_check: Callable[[], None]) -> Response:
        """The guard of roles comes before the look at the token's times."""
        roles = self._parts.state.participants.get(did, [])
        if not roles:
            raise NotVerified("User does not have any roles.")
        last_check()
        return self._pair(did, roles)

    def _pair(self, did: str, roles: list[str]) -> Response:
        settings, now = self._parts.settings, self._parts.clock.now()
        both = {"did": did, "roles": roles, "iat": int(now)}
        access = {"id": str(uuid.uuid4()), **both, "exp": int(now) + settings.access_ttl_s}
        refresh = {"id": str(uuid.uuid4()), **both, "exp": int(now) + settings.refresh_ttl_s}
        self._given.add(str(access["id"]))
        self._parts.state.refresh_tokens[str(refresh["id"])] = did
        self._parts.state.save()
        return answer(
            201,
            {
                "access_token": tokens.issue(access, self._secret),
                "type": "Bearer",
                "expires_in": settings.access_ttl_s,
                "refresh_token": tokens.issue(refresh, self._secret),
            },
        )
