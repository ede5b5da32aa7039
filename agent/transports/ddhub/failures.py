"""What went wrong with a Data Hub, as TransportErrors: each with words, a hint, a verdict and a reason.

The table is the broker's own (its ``returnCode``); statuses that come from what stands before it (proxy, TLS) are told
apart by number. No token, payload or address with a query is ever repeated.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import httpx

from agent import tls
from agent.errors import Reason, TransportError, Verdict
from agent.printable import printable
from agent.transports.ddhub.answers import PEER, malformed

ROLE = "user.roles.<namespace>"
_WORDS = 300  # characters of what the other end says
_CODES = {  # docs of the broker: returnCode -> reason, hint
    "10": (Reason.PERMISSION, f"the broker wants a role such as {ROLE} in our token: enrol this DID, then log in anew"),
    "12": (Reason.PERMISSION, "a role of ours must belong to the owner of the topic"),
    "13": (Reason.OTHER, "the schema is not one that the broker takes"),
    "15": (Reason.PROTOCOL, "the broker cannot read our JSON: is it a Data Hub of a version that we know?"),
    "16": (Reason.OTHER, "is the id of the topic right?"),
    "17": (Reason.OTHER, "the broker finds a field of ours wrong; its words say which"),
    "20": (Reason.STORE, "the broker's NATS refuses; look at its log and its disk"),
    "21": (Reason.STORE, "the broker could not publish; look at its NATS"),
    "51": (Reason.OTHER, "it is there already"),
    "60": (Reason.STORE, "the broker failed or waited too long; look at its log"),
    **dict.fromkeys(("22", "23", "30", "40", "50"), (Reason.STORE, "look at the broker's log")),
}
_CERTIFICATE = {495, 496, 525, 526}
_BEHIND = {  # only of 503 it is certain that the broker has done nothing
    502: Reason.LOST,
    503: Reason.UNREACHABLE,
    504: Reason.TIMEOUT,
}
_NO_CERTIFICATE = b"SSL certificate"  # nginx's own words, in a page: "No required SSL certificate was sent"
_PAGE = 4096  # bytes of one that are looked at
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)*")  # a JWT; whoever refuses one may repeat it


def unreached(error: Exception, *, secure: bool, shows: bool, peer: str = PEER) -> TransportError:
    """Why a request got no answer. ``secure``: over TLS. ``shows``: we have a certificate. ``peer``: who was asked.

    What the library itself says is not repeated: an address, or a header of ours, may stand in it.
    """
    if isinstance(error, httpx.ConnectTimeout):
        hint = "is the way to it open? a firewall that drops looks like this"
        return TransportError(f"{peer} does not answer", hint=hint, reason=Reason.TIMEOUT)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return TransportError(f"{peer} does not answer in time", hint="look at its load", reason=Reason.TIMEOUT)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            about = tls.certificate_hint(cause, peer=peer, ours=shows)
            hint = about or "does it speak TLS?"
            return TransportError(tls.reason(cause, peer=peer), hint=hint, reason=Reason.TLS)
        if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.CloseError):
            continue  # it was reached
        if isinstance(cause, socket.gaierror):
            hint = "is the name right, and does DNS work here?"
            return TransportError(f"the name of {peer} is not known", hint=hint, reason=Reason.UNREACHABLE)
        if isinstance(cause, OSError) and cause.errno is not None:
            hint = "is the name right, and is the way to it open?"
            return TransportError(tls.reason(cause, peer=peer), hint=hint, reason=Reason.UNREACHABLE)
    if isinstance(error, httpx.ConnectError):
        hint = "is the name right, and is the way to it open?"
        return TransportError(f"{peer} is not reached", hint=hint, reason=Reason.UNREACHABLE)
    if isinstance(error, httpx.NetworkError | httpx.ProxyError):
        return TransportError(f"the connection to {peer} was lost", hint=_lost(secure, shows), reason=Reason.LOST)
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" in str(error):
        return TransportError(f"{peer} closed the connection", hint=_lost(secure, shows), reason=Reason.LOST)
    if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError):
        return malformed("it is not HTTP as it should be", peer=peer)
    hint = "is the address right?"
    return TransportError(f"{peer} cannot be asked: {type(error).__name__}", hint=hint, reason=Reason.OTHER)


def _lost(secure: bool, shows: bool) -> str:
    """With TLS 1.3 a certificate is refused, or missed, when the connection stands."""
    if not secure:
        return "its log says more; does it speak TLS?"
    if not shows:
        return "its log says more; if it wants certificates of its participants, set cert and key of tls"
    return "its log says more; is cert of tls still valid, and signed by an authority that it trusts?"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from; httpx and httpcore wrap what the system says."""
    seen = set[int]()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        if isinstance(found, ExceptionGroup):  # anyio tried several addresses
            yield from _causes(found.exceptions[0])
        found = found.__cause__ or found.__context__


def refused(status: int, body: bytes, *, shows: bool) -> TransportError:
    """An answer that is no success. ``shows``: we have a certificate."""
    code, words = spoken(body)
    said = f"{PEER} refuses ({status}{f', code {code}' if code else ''}){f': {words}' if words else ''}"
    reason, hint = _CODES.get(code, (Reason.OTHER, "the broker's log says more"))
    verdict = Verdict.RETRY
    if status in _CERTIFICATE or (status == 400 and _NO_CERTIFICATE in body[:_PAGE]):
        hint = "is cert of tls still valid, and signed by an authority that the Data Hub trusts?"
        reason, hint = (
            Reason.TLS,
            hint if shows else "the Data Hub wants a certificate of ours: set cert and key of tls",
        )
    elif status == 401:
        reason, hint = Reason.AUTHORIZATION, "the next login says why"
    elif status == 403:
        reason, hint = _CODES["10"]
    elif status == 413:
        reason, hint = Reason.TOO_LARGE, "lower max_message, or have the limit raised before the broker"
    elif status == 429:
        hint = "the Data Hub limits how often it is asked; have the limit raised, or lengthen send_every"
        reason = Reason.UNREACHABLE  # for now, and for all
    elif status in _BEHIND:
        reason, hint = _BEHIND[status], "the proxy is there and the broker behind it is not"
    elif 300 <= status < 400:
        reason, hint = Reason.PROTOCOL, "it sends us elsewhere; write the address that answers itself into url"
    elif status == 404 and code == "50":
        reason, hint = Reason.NO_TOPIC, "is the topic there, in this version?"
    elif status == 404 and not code:
        reason, hint = Reason.PROTOCOL, "nothing answers there; is url the address of a Data Hub?"
    return TransportError(said, hint=hint, reason=reason, verdict=verdict)


def spoken(body: bytes) -> tuple[str, str]:
    """``returnCode`` and ``returnMessage`` of the broker, or ``message`` of the proxy; "" for what is not there."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(found, dict):
        return "", ""
    code, words = found.get("returnCode"), found.get("returnMessage", found.get("message"))
    if isinstance(words, list):  # as the proxy's framework lists what it finds wrong
        words = ", ".join(map(str, words))
    return (
        str(code)[:10] if isinstance(code, str | int) else "",
        printable(_TOKEN.sub("(a token)", words)[:_WORDS]) if isinstance(words, str) else "",
    )
