"""The message broker's HTTP side: which call needs which roles, and how errors are answered.

It believes every token: behind the proxy (``proxy.py``) only good ones arrive. A path that is not in the table is 403.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nats.errors import Error as NatsError
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from testbed.ddhub import tokens
from testbed.ddhub.clock import HubClock
from testbed.ddhub.faults import Faults
from testbed.ddhub.fields import is_json, parsed
from testbed.ddhub.replies import Json, Refused, Unhandled, outcome, rendered
from testbed.ddhub.rules import permits
from testbed.ddhub.settings import Settings
from testbed.ddhub.state import State
from testbed.ddhub.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all parts of the fake share."""

    settings: Settings
    clock: HubClock
    faults: Faults
    state: State
    streams: Streams


@dataclass(frozen=True, slots=True)
class Call:
    """A request of somebody who may make it."""

    did: str
    roles: list[str]
    token: str
    request: Request
    body: bytes

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in the path."""
        return self.request.path_params

    @property
    def query(self) -> QueryParams:
        """The query."""
        return self.request.query_params

    def json(self) -> Json:
        """The body. Raises Refused (15); HTTPException (415) if it is not called JSON, as JAX-RS has it."""
        if not is_json(self.request.headers):
            raise HTTPException(415)
        return parsed(self.body)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A call, the rule set that it needs (``user``, ``admin``, ``topiccreator`` of Settings), and who answers it.

    ``handler`` returns JSON, or a Response.
    """

    method: str
    path: str
    rule: str
    handler: Handler


@dataclass(slots=True)
class BrokerApp:
    """The ASGI application of all endpoints."""

    parts: Parts
    endpoints: Sequence[Endpoint]
    app: Starlette = field(init=False)

    def __post_init__(self) -> None:
        routes = [Route(each.path, self._route(each), methods=[each.method]) for each in self.endpoints]
        # Starlette answers HEAD where it answers GET; nobody asks
        nowhere = {404: self._no_rule, 405: self._no_rule}
        self.app = Starlette(
            routes=routes,
            exception_handlers={
                Refused: self._refused,
                NatsError: self._no_answer,
                TimeoutError: self._no_answer,
                **nowhere,
            },
        )
        self.app.router.redirect_slashes = False

    def _route(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            did, roles, token = self._principal(request)
            if not permits(getattr(self.parts.settings, endpoint.rule), roles):
                raise Refused(403, "10", "Forbidden access")
            body = await request.body()
            try:
                found = await endpoint.handler(Call(did, roles, token, request, body))
            except Unhandled as error:
                return Response(f"Internal Server Error: {error}", 500, media_type="text/plain")
            return found if isinstance(found, Response) else _json(found)

        return answer

    def _principal(self, request: Request) -> tuple[str, list[str], str]:
        """Who a token says it is; nobody looks at its signature or age."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = tokens.claims_of(token)
        except ValueError:
            raise HTTPException(401) from None
        did, roles = claims.get("did"), claims.get("roles")
        if scheme.lower() != "bearer":
            raise HTTPException(401)
        if not isinstance(did, str) or not isinstance(roles, list) or not all(isinstance(each, str) for each in roles):
            raise Refused(403, "10", "Forbidden access")
        return did, roles, token

    def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _json(outcome(error.code, error.message, self.parts.clock.now_ms()), error.status)

    def _no_answer(self, _: Request, error: Exception) -> Response:
        """NATS went away meanwhile."""
        return _json(outcome("60", f"NATS: {error}", self.parts.clock.now_ms()), 400)

    def _no_rule(self, request: Request, _: Exception) -> Response:
        self._principal(request)
        return _json(outcome("10", "Forbidden access", self.parts.clock.now_ms()), 403)


def _json(value: Any, status: int = 200) -> Response:
    return Response(rendered(value), status, media_type="application/json")
