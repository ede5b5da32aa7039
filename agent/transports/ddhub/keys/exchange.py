"""Requests to the servers that know participants: an SSI Hub, a node of the chain.

Each ends within a time and with a bounded answer, whatever the server sends; what goes wrong is a TransportError. No
redirect is followed, for it would hand a login to somebody else, and no proxy of the environment is asked. A connection
lives for one look-up; certificates are read again each hour.

An address may hold an API key. No message has it, also where the server repeats it ("Cannot POST /v3/...").
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import httpx
from anyio import to_thread

from agent.errors import Reason, SecretError, TransportError
from agent.printable import printable
from agent.tls import Tls, reason
from agent.transports.ddhub.failures import unreached
from agent.transports.ddhub.requests import no_cookies

_WITHIN = 20.0  # s for a request with its answer
_LARGEST = 8 << 20  # bytes of an answer: a DID document with many claims has some hundred kB
_CONTEXT_LIFE = 3600.0  # s
_WORDS = 200  # characters of what a server says for people
_SHORTEST_KEY = 6  # characters; what is shorter in an address ("v3") is no key

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log whole addresses


@dataclass(frozen=True, slots=True)
class Answer:
    """``peer``: who gave it, for messages; ``url``: what was asked, not for them."""

    status: int
    body: bytes
    peer: str
    url: str = field(repr=False)

    def json(self) -> Any:
        """Raises TransportError."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise self.nonsense("its answer is no JSON") from None

    def words(self) -> str:
        """What it says, on one line, as far as it is text that was written for people; "" if not."""
        try:
            said = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        said = said.get("message", said.get("error")) if isinstance(said, dict) else said
        return self.quoted(said) if isinstance(said, str) else ""

    def quoted(self, words: str) -> str:
        """The beginning of what the server says, without what it repeats of the address."""
        parts = urlsplit(self.url)
        pieces = re.split("[/?&=:]", f"{parts.netloc.rpartition('@')[0]}/{parts.path}?{parts.query}")
        for piece in sorted({*pieces, *map(unquote, pieces)}, key=len, reverse=True):
            if len(piece) >= _SHORTEST_KEY:
                words = words.replace(piece, "...")
        return printable(words[:_WORDS])

    def nonsense(self, what: str) -> TransportError:
        """The error for an answer that cannot be."""
        return TransportError(f"{self.peer}: {what}", reason=Reason.PROTOCOL, hint="is the address right?")

    def unexpected(self) -> TransportError:
        """The error for a status that is no success."""
        words = f": {said}" if (said := self.words()) else ""
        what = f"{self.peer} answers {self.status}{words}"
        if self.status in (401, 403):
            return TransportError(what, reason=Reason.AUTHORIZATION, hint="does it know us, and is the address right?")
        if self.status == 429:
            return TransportError(
                what, reason=Reason.OTHER, hint="it is asked too often, perhaps by others of this site"
            )
        if 300 <= self.status < 400:
            return TransportError(what, reason=Reason.PROTOCOL, hint="it has moved: write its new address")
        hint = "its operator knows more" if self.status >= 500 else "is the address right?"
        return TransportError(what, reason=Reason.OTHER, hint=hint)


class Connection:
    """Requests of one look-up."""

    def __init__(self, client: httpx.AsyncClient, tls: Tls) -> None:
        self._client = client
        self._ours = tls.cert is not None
        self._extensions = {} if tls.server_name is None else {"sni_hostname": tls.server_name}

    async def request(
        self, method: str, url: str, *, peer: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """``peer``: what messages call the server, for its address may hold a key. Raises TransportError."""
        try:
            with anyio.fail_after(_WITHIN):
                async with self._client.stream(
                    method, url, json=body, headers=headers, extensions=self._extensions
                ) as response:
                    content = bytearray()
                    async for piece in response.aiter_bytes():
                        content += piece
                        if len(content) > _LARGEST:
                            raise TransportError(
                                f"{peer}: its answer is too large",
                                reason=Reason.TOO_LARGE,
                                hint="is the address right?",
                            )
                    return Answer(response.status_code, bytes(content), peer, url)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            found = unreached(error, secure=True, shows=self._ours, peer="the server")
            raise TransportError(f"{peer}: {found}", hint=found.hint, reason=found.reason) from None


class Exchange:
    """Makes connections; keeps nothing but the certificates that are trusted.

    ``transport``: instead of the network, for tests.
    """

    def __init__(self, tls: Tls | None = None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._tls = tls or Tls()
        self._transport = transport
        self._context: ssl.SSLContext | None = None
        self._made = 0.0

    @asynccontextmanager
    async def connection(self, url: str) -> AsyncIterator[Connection]:
        """To the server of an address, and to others of its kind. Raises TransportError (SECRET): our certificates."""
        secure = self._transport is None and urlsplit(url).scheme == "https"
        context = await self._certificates() if secure else False
        async with httpx.AsyncClient(
            verify=context,
            transport=self._transport,
            timeout=_WITHIN,
            trust_env=False,
            follow_redirects=False,
            cookies=no_cookies(),
        ) as client:
            yield Connection(client, self._tls)

    async def _certificates(self) -> ssl.SSLContext:
        if self._context is None or anyio.current_time() >= self._made + _CONTEXT_LIFE:
            try:
                self._context = await to_thread.run_sync(self._tls.context)
            except SecretError as error:
                raise TransportError(str(error), hint=error.hint, reason=Reason.SECRET) from error
            except OSError as error:  # which ssl.SSLError is
                hint = "are ca, cert and key of tls PEM files that belong together, and may the agent read them?"
                raise TransportError(reason(error, peer="the server"), hint=hint, reason=Reason.SECRET) from error
            self._made = anyio.current_time()
        return self._context
