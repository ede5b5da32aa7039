"""Who we are to a Data Hub: the tokens of a login, kept in memory only and renewed before they expire.

One request renews them at a time, whoever else needs them waits for it. A refresh spends the old token whatever comes
of it, so one that fails ends in a full login. Tokens outlive a connection, and are gone with the process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from agent.errors import Reason, TransportError
from agent.ports import Clock
from agent.transports.ddhub.answers import Tokens

S = 1_000_000_000
_LATER = 30 * S  # until a refresh that failed is tried again, while the old tokens are good
_AWAY = (Reason.UNREACHABLE, Reason.TIMEOUT, Reason.LOST)
_FULL_EVERY = 60 * S  # a full login for other roles is tried at most this often


class Login:
    """The tokens in force. What it is given to log in with raises TransportError."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = anyio.Lock()
        self._tokens: Tokens | None = None
        self._renew_at = self._expires_at = self._entered_at = 0  # boot times; the last is of the last full login
        self._open = ""  # the access token with which our channel was opened
        self.logins = self.refreshes = 0

    async def token(
        self,
        *,
        enter: Callable[[], Awaitable[Tokens]],
        renew: Callable[[str], Awaitable[Tokens]],
        open_: Callable[[str], Awaitable[None]],
        spent: str | None = None,
    ) -> str:
        """The access token. ``spent``: one that the Data Hub does not take any more. ``enter`` logs in with the key,
        ``renew`` with a refresh token; ``open_`` is called with a new access token before anybody else gets it. Raises
        TransportError.
        """
        async with self._lock:
            if self._tokens is None or self._tokens.access == spent or self._clock.boot() >= self._renew_at:
                await self._renew(renew, spent)
            if self._tokens is not None and self._tokens.access != self._open:
                try:
                    return await self._opened(self._tokens, open_)
                except TransportError as error:
                    if error.reason != Reason.AUTHORIZATION:
                        raise
                    self._tokens = None
            if self._tokens is None:
                found = await enter()
                self.logins += 1
                self._entered_at = self._clock.boot()
                self._take(found)
                return await self._opened(found, open_)
            return self._tokens.access

    async def _renew(self, renew: Callable[[str], Awaitable[Tokens]], spent: str | None) -> None:
        """Have others in their place; the same while they are good all the same; none: a full login is needed."""
        tokens, self._tokens = self._tokens, None
        if tokens is None or tokens.refresh is None:
            return
        try:
            self._take(await renew(tokens.refresh))
            self.refreshes += 1
        except TransportError as error:
            if error.reason not in _AWAY:
                return
            now = self._clock.boot()
            if tokens.access == spent or now >= self._expires_at:
                raise
            self._tokens, self._renew_at = tokens, min(now + _LATER, self._expires_at)

    async def _opened(self, tokens: Tokens, open_: Callable[[str], Awaitable[None]]) -> str:
        await open_(tokens.access)
        self._open = tokens.access
        return tokens.access

    def _take(self, tokens: Tokens) -> None:
        now, life = self._clock.boot(), tokens.expires_in * S
        self._tokens, self._renew_at, self._expires_at = tokens, now + life * 4 // 5, now + life

    def leave(self) -> None:
        """A role is missing, and a refresh would copy those we have: log in anew next time, but not too often."""
        if self._clock.boot() - self._entered_at >= _FULL_EVERY:
            self._tokens = None
