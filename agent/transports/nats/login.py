"""Who we are to a server: the secrets of a configuration, read for one connection and gone with it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.errors import Reason, SecretError, TransportError
from agent.secret import Secret
from agent.tls import reason
from agent.transports.nats.config import NatsServers, NatsTls
from agent.transports.nats.nkeys import Nkey, read_credentials, read_seed

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """What a connection shows and trusts. ``options`` are arguments of nats-py; ``context`` None: without TLS."""

    options: dict[str, Any]
    key: Nkey | None = None
    expires: float | None = None  # of a JWT, s since 1970
    context: ssl.SSLContext | None = None


def read_login(settings: NatsServers) -> Login:
    """All secrets and certificates as they are now; blocks. Raises TransportError (SECRET)."""
    try:
        options, key, expires = _options(settings)
    except SecretError as error:
        raise TransportError(str(error), hint=error.hint, reason=Reason.SECRET) from error
    tls = (settings.tls or NatsTls()) if settings.secure else None
    return Login(options, key, expires, None if tls is None else _context(tls))


def _options(settings: NatsServers) -> tuple[dict[str, Any], Nkey | None, float | None]:
    if settings.creds is not None:
        creds = _parsed(settings.creds, read_credentials, "is it the file that `nsc generate creds` wrote?")
        sign = {"signature_cb": creds.key.sign, "user_jwt_cb": creds.jwt.encode}
        return sign, creds.key, creds.expires
    if settings.nkey is not None:
        key = _parsed(settings.nkey, read_seed, "put the user's seed there, SU and 56 more letters and digits")
        return {"signature_cb": key.sign}, key, None
    if settings.token is not None:
        return {"token": settings.token.read()}, None, None
    if settings.username is not None and settings.password is not None:
        return {"user": settings.username, "password": settings.password.read()}, None, None
    return {}, None, None


def _parsed(secret: Secret, parse: Callable[[str], T], hint: str) -> T:
    try:
        return parse(secret.read())
    except ValueError as error:
        raise SecretError(f"{secret} {error}", hint=hint) from None


def _context(tls: NatsTls) -> ssl.SSLContext:
    try:
        return tls.context()
    except SecretError as error:
        raise TransportError(str(error), hint=error.hint, reason=Reason.SECRET) from error
    except ssl.SSLError as error:
        hint = "are ca, cert and key of tls PEM files that belong together?"
        raise TransportError(reason(error, peer="the server"), hint=hint, reason=Reason.SECRET) from error
    except OSError as error:
        hint = "are the files of tls there, and may the agent's user read them?"
        raise TransportError(reason(error, peer="the server"), hint=hint, reason=Reason.SECRET) from error
