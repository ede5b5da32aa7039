"""DataHub: the proxy with the broker behind it, the SSI Hub and the chain's node, opened and closed together.

In an async test::

    async with DataHub(server.url) as hub:             # server: testbed.processes.NatsServer
        hub.enrol(did)                                 # the roles that its logins have
        topic_id = hub.add_topic("telemetry", schema)  # owner edge.apps.energyweb.iam.ewc, version 1.0.0
        await hub.open_channel(other)                  # as if somebody had logged in: can be sent to
        hub.faults.put("502", path="/messages")
        ...
        await hub.move(25 * 3600)                      # what is older than 24 h is gone

In a test without an event loop: ``with in_thread(hub) as portal:`` and ``portal.call(hub.move, 90000)``. What changes
something only in memory (``enrol``, ``add_topic``, ``faults.put``, ``chain``) may be called from there directly.

What was served is in ``hub.served``, the newest last; ``hub.calls("/messages")`` are the bodies of the requests of a
path. ``await hub.stored(did)`` is what lies in a recipient's stream.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import Receive, Scope, Send

from testbed.ddhub.broker import BrokerApp, Parts
from testbed.ddhub.chain import Chain, address_of
from testbed.ddhub.channels import Channels
from testbed.ddhub.clock import HubClock
from testbed.ddhub.faults import Faults
from testbed.ddhub.messages import Messages
from testbed.ddhub.naming import keys_fqcn
from testbed.ddhub.proxy import Proxy
from testbed.ddhub.rpc import Rpc
from testbed.ddhub.searches import Searches
from testbed.ddhub.serving import Listener, Served, Tls
from testbed.ddhub.settings import Settings
from testbed.ddhub.ssi_hub import SsiHub
from testbed.ddhub.state import Json, State
from testbed.ddhub.streams import Streams
from testbed.ddhub.topics import Topics

USER_ROLE = "user.roles.ddhub.apps.energyweb.iam.ewc"
CREATOR_ROLES = (
    "topiccreator.roles.ddhub.apps.energyweb.iam.ewc",
    USER_ROLE,
    "topiccreator.roles.edge.apps.energyweb.iam.ewc",
)
OWNER = "edge.apps.energyweb.iam.ewc"


class DataHub:
    """Opened by ``async with``. ``nats``: the URL of a server with JetStream.

    ``state``: a file that keeps everything but messages. ``tls``: for proxy and broker; SSI Hub and node always speak
    plain HTTP. ``seed`` decides in which order search results come.
    """

    def __init__(
        self,
        nats: str,
        *,
        settings: Settings | None = None,
        state: Path | None = None,
        clock: HubClock | None = None,
        port: int = 0,
        hub_port: int = 0,
        tls: Tls | None = None,
        seed: int = 1,
    ) -> None:
        self.settings = settings or Settings()
        self.clock = clock or HubClock()
        self.faults = Faults()
        self.state = State(state)
        self.served: list[Served] = []
        self.chain = Chain(self.state, settings=self.settings, clock=self.clock)
        self.streams = Streams(nats, settings=self.settings, clock=self.clock)
        parts = Parts(
            settings=self.settings, clock=self.clock, faults=self.faults, state=self.state, streams=self.streams
        )
        self._topics, self._channels = Topics(parts), Channels(parts)
        messages = Messages(parts, self._topics)
        searches = Searches(parts, self._topics, chance=random.Random(seed))
        rooms = (self._channels, self._topics, messages, searches)
        endpoints = [endpoint for room in rooms for endpoint in room.endpoints()]
        self.proxy = Proxy(parts, self.chain, BrokerApp(parts, endpoints).app)
        self.ssi_hub, self.rpc = SsiHub(parts, self.chain), Rpc(parts, self.chain)
        self._front = self._listener(self.proxy, port, tls)
        self._back = self._listener(self._hub_or_node, hub_port, None)

    # ---- where it is ----

    @property
    def url(self) -> str:
        """Proxy and broker."""
        return self._front.url

    @property
    def hub_url(self) -> str:
        """The SSI Hub, without /v1."""
        return self._back.url

    @property
    def rpc_url(self) -> str:
        """The chain's node."""
        return f"{self._back.url}/rpc"

    async def open(self) -> None:
        """Listen. Raises OSError if a port is taken."""
        await self._front.open()
        await self._back.open()
        self.proxy.origin, self.ssi_hub.origin = self.url, self.hub_url

    async def close(self) -> None:
        """Cut everything and stop."""
        await self._front.close()
        await self._back.close()
        await self.streams.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- what is there ----

    def enrol(self, did: str, roles: Sequence[str] = (USER_ROLE,)) -> None:
        """Let a DID have these roles from its next full login on; none: it cannot log in."""
        self.state.participants[did] = [*roles]
        self.state.save()

    async def open_channel(self, did: str, roles: Sequence[str] = (USER_ROLE,)) -> None:
        """What a participant's login and initExtChannel do: from now on it can be sent to."""
        if did not in self.state.participants:
            self.enrol(did, roles)
        await self._channels.open(did, [*roles], [])

    def add_topic(
        self,
        name: str,
        schema: Json | str,
        *,
        owner: str = OWNER,
        version: str = "1.0.0",
        schema_type: str = "JSD7",
        topic_id: str | None = None,
    ) -> str:
        """A topic without its creator; its id. ``topic_id``: 24 hex digits."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        topic = self._topics.add(owner=owner, name=name, schema=text, version=version, schema_type=schema_type, tags=[])
        topic["id"] = topic_id or topic["id"]
        self.state.save()
        return str(topic["id"])

    def did(self, address: str) -> str:
        """The DID of an address on this chain, as the proxy emits it."""
        return f"did:ethr:{self.settings.chain}:{address_of(address)}"

    # ---- time ----

    async def move(self, seconds: float) -> None:
        """Let time pass: tokens expire, and messages older than the broker's 24 h are gone when this returns."""
        self.clock.move(seconds)
        for fqcn in self.state.channels:
            await self.streams.expire(fqcn)
            await self.streams.expire(keys_fqcn(fqcn))

    # ---- what happened ----

    async def stored(self, did: str) -> list[Json]:
        """The bodies in a recipient's stream (of a DID or an anonymous key), with ``subject`` and ``headers``."""
        return await self.streams.stored(did)

    async def stored_keys(self, did: str) -> list[Json]:
        """The bodies in a participant's mailbox of keys."""
        return await self.streams.stored(keys_fqcn(did))

    def calls(self, path: str, method: str = "POST") -> list[Json]:
        """The JSON bodies of the requests of this path that were answered or cut, in order."""
        return [json.loads(each.body or b"{}") for each in self.served if (each.path, each.method) == (path, method)]

    # ---- inside ----

    def _listener(self, app: Any, port: int, tls: Tls | None) -> Listener:
        return Listener(app, faults=self.faults, served=self.served.append, port=port, tls=tls)

    async def _hub_or_node(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.ssi_hub if scope["path"].startswith("/v1") else self.rpc
        await app(scope, receive, send)


@contextmanager
def in_thread(hub: DataHub) -> Iterator[BlockingPortal]:
    """Let a hub run in a thread of its own; ``portal.call`` runs its coroutines there."""
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(hub):
        yield portal
