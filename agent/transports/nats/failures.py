"""What went wrong with a NATS server, as TransportErrors: each with words, a hint, a verdict and a reason.

The tables are nats-server's own: the texts of its -ERR, and JetStream's error codes (server/errors.json).
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

import nats.errors
import nats.js.errors

from agent import tls
from agent.errors import Reason, TransportError, Verdict
from agent.printable import printable

NO_STREAM = 10059
IN_PROCESS = 10158
_TOO_LARGE, _NOT_STORED = 10054, 10077
_LET_IN = "is it right, and does the server know it? its log says more"
_ROOM = "give the server's JetStream more room: its disk, max_file_store, or the limits of the account"
_NO_JETSTREAM = "switch JetStream on for the server and the account"
_LEADER = "a cluster chooses one within seconds; if it does not, too few of its servers run"
_CODES = {
    NO_STREAM: (Reason.NO_STREAM, "create the stream on the server, or correct the channel's stream"),
    10060: (
        Reason.WRONG_STREAM,
        "the channel's stream does not take the channel's subject; correct one of them",
    ),
    10065: (Reason.WRONG_STREAM, "another stream takes some of these subjects already; name that one"),
    _TOO_LARGE: (Reason.TOO_LARGE, "raise the stream's max_msg_size, or shorten seal_within"),
    10039: (Reason.NO_JETSTREAM, _NO_JETSTREAM),
    10076: (Reason.NO_JETSTREAM, _NO_JETSTREAM),
    10109: (Reason.WRONG_STREAM, "the stream is sealed, for ever: name another one"),
    10167: (Reason.STORE, "the server takes records more slowly than they come: look at its load and its disk"),
    **dict.fromkeys((10002, 10023, 10028, 10047), (Reason.STORE, _ROOM)),
    **dict.fromkeys((10004, 10008, 10009, 10118), (Reason.NO_LEADER, _LEADER)),
}
_SAID = (  # by a part of what the server says, in small letters
    ("authentication expired", Reason.EXPIRED, "renew the credentials; new ones are taken up at the next try"),
    ("authorization", Reason.AUTHORIZATION, _LET_IN),
    ("authentication revoked", Reason.AUTHORIZATION, "the server's operator revoked these credentials"),
    ("authentication timeout", Reason.TIMEOUT, ""),
    ("maximum connections", Reason.OTHER, "raise max_connections on the server"),
    ("maximum account", Reason.OTHER, "raise the account's limits on the server"),
    ("maximum payload", Reason.TOO_LARGE, "raise max_payload on the server, or shorten seal_within"),
    ("tls required", Reason.TLS, "write tls:// in servers"),
    ("stale connection", Reason.TIMEOUT, ""),
)


def describe(error: object) -> str:
    """An error in words: nats-py's often have none."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    words = getattr(error, "description", None) or str(error).removeprefix("nats: ").strip("'")
    return printable(words or type(error).__name__)


def unconnected(error: BaseException, *, stage: str, secure: bool, shows: bool) -> TransportError:
    """Why a connection was not made, without the name of the server. ``stage``: of ``agent.transports.nats.wire``;
    ``shows``: we have a certificate.
    """
    if isinstance(error, TransportError):
        return error
    if isinstance(error, ssl.SSLError):
        hint = tls.certificate_hint(error, peer="the server", ours=shows)
        if hint is None and stage == "handshake":
            hint = "does it speak TLS? with tls.first it must begin with that, without it must greet first"
        return TransportError(tls.reason(error, peer="the server"), hint=hint or "", reason=Reason.TLS)
    if isinstance(error, socket.gaierror):
        hint = "is the name right, and does DNS work here?"
        return TransportError(f"the name is not known: {error.strerror}", hint=hint, reason=Reason.UNREACHABLE)
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return _no_answer(stage, secure)
    if isinstance(error, ConnectionResetError | BrokenPipeError | EOFError):
        return closed(stage, secure=secure)
    if isinstance(error, OSError):
        hint = "does the server run there, and is the way to it open?"
        return TransportError(describe(error), hint=hint, reason=Reason.UNREACHABLE)
    if isinstance(error, nats.errors.Error):
        return said(error)
    # What is no NATS server makes nats-py raise all sorts of things.
    return TransportError(describe(error), hint="is it a NATS server?", reason=Reason.PROTOCOL)


def _no_answer(stage: str, secure: bool) -> TransportError:
    hints = {
        "reach": "is the way to it open? a firewall that drops looks like this",
        "greet": "does it hang? or does it want TLS at once: then "
        + ("set tls.first" if secure else "write tls:// and set tls.first"),
        "handshake": "does it speak TLS?",
        "inside": "if it greets before TLS begins, remove tls.first",
    }
    return TransportError("no answer in time", hint=hints.get(stage, ""), reason=Reason.TIMEOUT)


def closed(stage: str, *, secure: bool) -> TransportError:
    """The server closed the connection before we were let in."""
    if stage == "login" and secure:
        hint = "it may want another certificate of ours, or none of ours is valid; its log says more"
        return TransportError("the server closed the connection", hint=hint, reason=Reason.TLS)
    if stage in ("greet", "handshake", "inside"):
        hint = "is it a NATS server? if it wants TLS at once, set tls.first"
        return TransportError("the server closed the connection", hint=hint, reason=Reason.PROTOCOL)
    return TransportError("the server closed the connection", hint="its log says more", reason=Reason.LOST)


def said(error: object, otherwise: Reason = Reason.OTHER) -> TransportError:
    """What the server said with -ERR."""
    words = describe(error)
    for part, reason, hint in _SAID:
        if part in words.lower():
            return TransportError(words, hint=hint, reason=reason)
    return TransportError(words, reason=otherwise)


def not_let_in(error: TransportError, *, login: str, expires: float | None, now: float) -> TransportError:
    """More about a server that does not let us in, which itself says no more. ``login``: the key that is configured."""
    if error.reason is not Reason.AUTHORIZATION:
        return error
    if expires is not None and expires <= now:
        day = datetime.fromtimestamp(expires, UTC)
        what = f"{error}: by this machine's clock the JWT of creds expired at {day:%Y-%m-%d %H:%M:%S} UTC"
        hint = "renew the credentials; new ones are taken up at the next try"
        return TransportError(what, hint=hint, reason=Reason.EXPIRED)
    if not login:
        hint = "the server wants a login: set username and password, token, nkey or creds"
        return TransportError(str(error), hint=hint, reason=Reason.AUTHORIZATION)
    return TransportError(f"not let in with {login}: {error}", hint=error.hint, reason=Reason.AUTHORIZATION)


def no_answer(error: Exception) -> TransportError:
    """What came as an answer is none: nats-py raises all sorts of things then, which must not end the agent."""
    what = f"the server's answer cannot be read: {type(error).__name__}: {describe(error)}"
    return TransportError(what, hint="does JetStream answer, or somebody else?", reason=Reason.PROTOCOL)


def answered(code: object, words: object) -> TransportError:
    """JetStream's answer with an error, to a record or a request."""
    reason, hint = _CODES.get(code, (Reason.OTHER, "")) if isinstance(code, int) else (Reason.OTHER, "")
    if code == _NOT_STORED:
        full = str(words).startswith("maximum")
        reason = Reason.STREAM_FULL if full else Reason.STORE
        hint = "raise the stream's limits, or let it discard old messages" if full else _ROOM
    if code is None and str(words).startswith("raft: "):  # a leader that lost its office meanwhile
        reason, hint = Reason.NO_LEADER, _LEADER
    verdict = Verdict.REJECT if code == _TOO_LARGE else Verdict.RETRY
    return TransportError(printable(str(words or code)), hint=hint, verdict=verdict, reason=reason)


def api_error(error: nats.js.errors.APIError) -> TransportError:
    """The same of a request that nats-py made; it says so itself when nobody answered."""
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and error.err_code is None:
        return TransportError("no JetStream here", hint=_NO_JETSTREAM, reason=Reason.NO_JETSTREAM)
    found = answered(error.err_code, error.description or describe(error))
    if found.reason is Reason.NO_JETSTREAM:
        return TransportError(f"no JetStream here: {found}", hint=found.hint, reason=found.reason)
    return found


def nobody(subject: str, *, clustered: bool) -> TransportError:
    """Nobody answers to a record. In a cluster it may be that the stream has no leader."""
    if not clustered:
        return no_stream(subject)
    what = f"nobody takes {subject}: its stream has no leader at the moment, or there is none"
    return TransportError(what, hint=_LEADER, reason=Reason.NO_LEADER)


def no_stream(subject: str) -> TransportError:
    """No stream takes our subject."""
    hint = "create the stream on the server, or correct the channel's subject"
    return TransportError(f"no JetStream stream takes {subject}", hint=hint, reason=Reason.NO_STREAM)


def too_large(size: int, most: int) -> TransportError:
    """A record does not fit into a message."""
    return TransportError(
        f"record of {size} bytes is larger than the server takes ({most})",
        hint="raise max_payload on the server, or shorten seal_within",
        verdict=Verdict.REJECT,
        reason=Reason.TOO_LARGE,
    )
