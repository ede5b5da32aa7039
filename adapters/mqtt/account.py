"""What we are to a broker, and how it is said that it cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.mqtt.config import MqttConnection, default_client_id
from adapters.mqtt.kept import KeptFilters
from adapters.mqtt.topics import Routes
from agent import tls
from agent.errors import AcquisitionError
from agent.model import Cause
from agent.ports import Clock

CLOSED = "the connection was closed by the agent"


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
    return tls.reason(error, peer="the broker")


def certificate_hint(error: OSError | None, account: Account) -> str | None:
    """What to look at when one end refuses the other's certificate; None: it was something else."""
    settings = account.config.tls
    return tls.certificate_hint(error, peer="the broker", ours=settings is not None and settings.cert is not None)


def link_down(text: str, hint: str = "") -> AcquisitionError:
    """The connection is lost or was not made."""
    return AcquisitionError(Cause.LINK_DOWN, text, hint=hint)
