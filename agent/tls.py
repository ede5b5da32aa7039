"""TLS as a client speaks it: what a configuration says of it, the context that follows, and the words when it fails.

The other end's certificate is always verified, its name too. Certificates and keys are read each time a context is
made, so that renewed ones are taken up by the next connection. Nothing is kept, and no key is ever shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, model_validator

from agent.errors import SecretError
from agent.fields import Problems, Table
from agent.secret import Secret

if TYPE_CHECKING:
    import ssl

_ALERT = "_ALERT_"
_OF_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")  # TLS 1.2 says no more when it misses ours
_DATES, _NAMES, _ISSUERS = (9, 10), (62, 64), (2, 18, 19, 20, 21)  # X509_V_ERR_ of OpenSSL


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError('expected a path in quotes; write it like "/etc/edge-agent/ca.pem"')
    context: Mapping[str, Path] = info.context or {}
    return Path(context.get("folder", Path()), value)


def _key(secret: Secret) -> Secret:
    if secret.env is not None:
        raise ValueError('a key is read from a file; write { file = "PATH" } or { credential = "NAME" }')
    return secret


def _server_name(text: str) -> str:
    try:
        is_name = text.isprintable() and 0 < len(text) <= 253
        text.encode("idna")
    except UnicodeError:
        is_name = False
    if not is_name:
        raise ValueError("this is no host name; write the name that is in the other end's certificate")
    return text


FilePath = Annotated[Path, BeforeValidator(_path)]


class Tls(Table):
    """How the other end is verified, always, and what we show of ourselves.

    ``ca``: certificates that are trusted; without it the system's. ``cert`` and ``key``: our own. ``server_name``:
    the name in the other end's certificate if it is not the host.
    """

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: Annotated[Secret, AfterValidator(_key)] | None = None
    server_name: Annotated[str, AfterValidator(_server_name)] | None = None

    @model_validator(mode="after")
    def _together(self) -> Tls:
        problems = Problems()
        if (self.cert is None) != (self.key is None):
            missing, given = ("key", "cert") if self.key is None else ("cert", "key")
            problems.add(f"{given} needs {missing}; add it, or remove {given}", missing)
        problems.raise_any("Tls")
        return self

    def context(self) -> ssl.SSLContext:
        """The files as they are now; blocks. Raises OSError (which ssl.SSLError is), SecretError."""
        import ssl  # not for who only judges a configuration

        key = None if self.key is None else self.key.path
        for path in (self.ca, self.cert, key):
            if path is not None:
                path.open("rb").close()  # ssl does not say which file is missing
        if self.key is not None:
            self.key.tell_if_open()
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            # Without a function OpenSSL would ask the terminal for the password of an encrypted key.
            context.load_cert_chain(self.cert, key, password=_no_password)
        return context


def _no_password() -> str:
    what = "the key of tls is encrypted"
    raise SecretError(what, hint="store it without a passphrase, for the agent's user alone", public=what)


# ---- when it fails ----------------------------------------------------------------------------------------------


def reason(error: OSError | None, *, peer: str) -> str:
    """Why a connection failed, in the system's or the TLS library's words; None: the other end, ``peer``, closed it."""
    import ssl

    if error is None or isinstance(error, ssl.SSLEOFError):
        return f"{peer} closed the connection"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{peer}'s certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if alert := _alert(error):
            return f"{peer} refuses the TLS connection: {alert.replace('_', ' ').lower()}"
        return f"TLS failed: {_named(error) or str(error).partition(' (_ssl.c')[0]}"
    if isinstance(error, TimeoutError):
        return "no answer"
    if error.errno is None or error.errno <= 0:  # a name look-up has negative numbers of its own
        return str(error.strerror or error)
    return os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")


def certificate_hint(error: OSError | None, *, peer: str, ours: bool) -> str | None:
    """What to look at when one end refuses the other's certificate; None: it was something else. ``ours``: we showed
    one.
    """
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _DATES:
            return f"is this machine's clock right? then {peer} needs a new certificate"
        if error.verify_code in _NAMES:
            right = peer.replace("the ", "the right ")
            return f"if it is {right}, set server_name of tls to a name that is in its certificate"
        if error.verify_code in _ISSUERS:
            return f"set ca of tls to the certificate of the authority that signed {peer}'s"
        return f"is ca of tls what {peer}'s certificate is signed with?"
    if isinstance(error, ssl.SSLError) and any(each in _alert(error) for each in _OF_CERTIFICATES):
        if not ours:
            return f"{peer} wants a certificate of ours: set cert and key of tls"
        return f"is cert of tls still valid, and signed by an authority that {peer} trusts?"
    return None


def _alert(error: ssl.SSLError) -> str:
    """The alert with which the other end refused (RFC 8446, section 6), as OpenSSL names it; "" if there was none."""
    return _named(error).partition(_ALERT)[2]


def _named(error: ssl.SSLError) -> str:
    """What went wrong, as OpenSSL names it; "" if it is not OpenSSL's or has no name."""
    return getattr(error, "reason", None) or ""
