"""What we are to a broker, and how it is said that it cannot be reached."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.mqtt.config import MqttConnection, default_client_id
from adapters.mqtt.kept import KeptFilters
from adapters.mqtt.topics import Routes
from agent.errors import AcquisitionError
from agent.model import Cause
from agent.ports import Clock

CLOSED = "the connection was closed by the agent"
_ALERT = "_ALERT_"
_OF_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")  # TLS 1.2 says no more when it misses ours
_DATES, _NAMES, _ISSUERS = (9, 10), (62, 64), (2, 18, 19, 20, 21)  # X509_V_ERR_ of OpenSSL


@dataclass(frozen=True, slots=True)
class Account:
    """What we are to a broker. ``filters``: what is subscribed, and the highest QoS asked for."""

    name: str
    config: MqttConnection
    filters: Mapping[str, int]
    routes: Routes
    clock: Clock
    lowered: set[str] = field(default_factory=set)
    """Filters of which it was said that the broker grants a lower QoS."""
    kept: KeptFilters = field(default_factory=KeptFilters)

    @property
    def client_id(self) -> str:
        """The configured one, or one made of the connection's name."""
        return self.config.client_id or default_client_id(self.name)

    @property
    def place(self) -> str:
        """Where the broker is, for people."""
        return f"{self.config.host} port {self.config.port}"

    @property
    def doubt(self) -> str:
        """What to look for when the other end does not behave like a broker."""
        return f"is {self.place} an MQTT broker, {'with' if self.config.secure else 'without'} TLS?"

    @property
    def taken_over(self) -> str:
        """What to look for when the connection is lost."""
        return f'if it happens again and again: does another client use the client_id "{self.client_id}"?'


def reason(error: OSError | None) -> str:
    """Why a connection failed, in the system's or the TLS library's words; None: the other end closed it."""
    if error is None or isinstance(error, ssl.SSLEOFError):
        return "the broker closed the connection"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if alert := _alert(error):
            return f"the broker refuses the TLS connection: {alert.replace('_', ' ').lower()}"
        return f"TLS failed: {_named(error) or str(error).partition(' (_ssl.c')[0]}"
    if isinstance(error, TimeoutError):
        return "no answer"
    if error.errno is None or error.errno <= 0:  # a name look-up has negative numbers of its own
        return str(error.strerror or error)
    return os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")


def certificate_hint(error: OSError | None, account: Account) -> str | None:
    """What to look at when one end refuses the other's certificate; None: it was something else."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _DATES:
            return "is this machine's clock right? then the broker needs a new certificate"
        if error.verify_code in _NAMES:
            return "if it is the right broker, set server_name of tls to a name that is in its certificate"
        if error.verify_code in _ISSUERS:
            return "set ca of tls to the certificate of the authority that signed the broker's"
        return "is ca of tls what the broker's certificate is signed with?"
    if isinstance(error, ssl.SSLError) and any(each in _alert(error) for each in _OF_CERTIFICATES):
        if account.config.tls is None or account.config.tls.cert is None:
            return "the broker wants a certificate of ours: set cert and key of tls"
        return "is cert of tls still valid, and signed by an authority that the broker trusts?"
    return None


def _alert(error: ssl.SSLError) -> str:
    """The alert with which the other end refused (RFC 8446, section 6), as OpenSSL names it; "" if there was none."""
    return _named(error).partition(_ALERT)[2]


def _named(error: ssl.SSLError) -> str:
    """What went wrong, as OpenSSL names it; "" if it is not OpenSSL's or has no name."""
    return getattr(error, "reason", None) or ""


def link_down(text: str, hint: str = "") -> AcquisitionError:
    """The connection is lost or was not made."""
    return AcquisitionError(Cause.LINK_DOWN, text, hint=hint)
