"""Requests to a Data Hub over HTTP, each tried once, bounded in size and time. Every failure is a TransportError
(agent/transports/ddhub/failures.py); what an answer says is another one's business.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
from anyio import to_thread

from agent import __version__
from agent.errors import Reason, SecretError, TransportError
from agent.ports import Clock
from agent.tls import Tls
from agent.transports.ddhub.answers import PEER
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.failures import refused, unreached
from agent.transports.facts import BrokerFacts

S = 1_000_000_000
MIB = 1 << 20
_HERE = ("localhost", "127.0.0.1", "::1")
_IDLE = 30  # s: so long is a connection kept for the next request; firewalls forget idle ones unseen


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a Data Hub may be silent, in s; the broker itself may wait for its NATS for up to 100 s."""

    connect: float = 10
    answer: float = 30  # to any request: what opens a session is done within the publisher's patience
    slow: float = 120  # to a message or a search; all together, too


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``ahead``: by how many seconds the other clock is ahead of ours, to a second; None: it tells no
    time.
    """

    status: int
    body: bytes
    ahead: float | None

    @property
    def is_success(self) -> bool:
        """By its status, which says little."""
        return 200 <= self.status < 300


@asynccontextmanager
async def requests(
    server: DdhubServer,
    *,
    clock: Clock,
    timeouts: Timeouts | None = None,
    over: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Requests]:
    """Requests to a Data Hub; nothing is sent before the first. ``over``: in place of the network.

    Raises TransportError: a certificate of ours cannot be read.
    """
    timeouts = timeouts or Timeouts()
    verify: Any = server.secure  # without TLS no certificates are read
    if server.secure and over is None:
        try:
            verify = await to_thread.run_sync((server.tls or Tls()).context, abandon_on_cancel=True)
        except (OSError, SecretError) as error:
            hint = getattr(error, "hint", "") or "see tls of the channel"
            words = f"a certificate or key of tls cannot be used: {error}"
            raise TransportError(words, hint=hint, reason=Reason.SECRET) from error
    client = httpx.AsyncClient(
        base_url=server.url,
        verify=verify,
        timeout=httpx.Timeout(timeouts.answer, connect=timeouts.connect),
        limits=httpx.Limits(max_connections=4, keepalive_expiry=_IDLE),
        headers={
            "User-Agent": f"edge-agent/{__version__}",
            "X-DDHUB-Client-Version": __version__,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        follow_redirects=False,
        trust_env=urlsplit(server.url).hostname not in _HERE,  # a proxy of the environment leads elsewhere only
        transport=over,
        cookies=no_cookies(),
    )
    async with client:
        yield Requests(client, server, clock=clock, timeouts=timeouts)


def no_cookies() -> CookieJar:
    """Takes none and sends none: an odd one would spoil every request after it."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


class Requests:
    """Made by ``requests``."""

    def __init__(self, client: httpx.AsyncClient, server: DdhubServer, *, clock: Clock, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._client = client
        self._clock = clock
        self._secure = server.secure
        self._shows = server.tls is not None and server.tls.cert is not None
        server_name = server.tls.server_name if server.tls is not None else None
        self._extensions = {} if server_name is None else {"sni_hostname": server_name}
        self.heard = BrokerFacts(urlsplit(server.url).hostname or "")
        """What the server showed with its last answer."""

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        query: Sequence[tuple[str, str]] = (),
        within: float | None = None,
        most: int = MIB,
    ) -> Reply:
        """One request and its answer, of at most ``most`` bytes, ``within`` s. Raises TransportError."""
        within = within or self.timeouts.answer
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        try:
            with anyio.fail_after(within):
                request = self._client.build_request(
                    method,
                    path,
                    params=[*query] or None,
                    content=content,
                    headers=headers,
                    timeout=httpx.Timeout(within, connect=self.timeouts.connect),
                    extensions=self._extensions,
                )
                answer = await self._client.send(request, stream=True)
                ahead = _ahead(answer.headers, self._clock.wall())
                self.heard = BrokerFacts(
                    self.heard.server, certificate=_certificate(answer), ahead=ahead, ahead_within=1.0
                )
                try:
                    return Reply(answer.status_code, await _read(answer, most), ahead)
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise unreached(error, secure=self._secure, shows=self._shows) from error

    def refusal(self, reply: Reply) -> TransportError:
        """What an answer that is no success means."""
        return refused(reply.status, reply.body, shows=self._shows)


async def _read(answer: httpx.Response, most: int) -> bytes:
    """A body of at most so many bytes. Raises TransportError."""
    found = bytearray()
    async for part in answer.aiter_bytes():
        found += part
        if len(found) > most:
            raise TransportError(
                f"the answer of {PEER} has more than {most} bytes", hint="is url a Data Hub?", reason=Reason.PROTOCOL
            )
    return bytes(found)


def _ahead(headers: httpx.Headers, now: int) -> float | None:
    """By how many seconds the clock of an answer's Date (RFC 9110, section 6.6.1) is ahead of ours."""
    try:
        theirs = parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, OverflowError):
        return None
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    return theirs.timestamp() - now / S


def _certificate(answer: httpx.Response) -> bytes | None:
    """What the server showed, DER."""
    stream = answer.extensions.get("network_stream")
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    return tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
