"""The kinds of adapters and transports, named by strings so that only what is configured is imported.

A third party's adapter is named in a connection as ``kind = "package.module:Class"``. An adapter class has the
attributes ``connection_model`` and ``device_model``, pydantic models that judge its part of the configuration
(agent/config/whole.py); a device model has ``id``, ``connection``, ``groups`` and ``point_names(group)``. A group that
is polled has ``every`` in ns, and may have ``phase`` (agent.units.Phase); without ``every`` it is event-driven. A
transport's model has ``destination(site=, channel=)``: where records go, as plans state it, which one channel has for
itself unless ``shares_destination``; ``destination_key``, the key that decides about it; and may have ``visitor()``:
the same for ``check --online``, which changes nothing at the broker. A transport is made with (settings, topic=,
signer=, clock=).
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TransportKind:
    """Where a transport and the model of its configuration are; apart, so that ``check`` imports no client library."""

    config_model: str
    transport: str


ADAPTERS = {
    "modbus": "adapters.modbus:ModbusAdapter",
    "mqtt": "adapters.mqtt:MqttAdapter",
    "mqtts": "adapters.mqtt:MqttAdapter",
}
"""By the scheme of a connection's URL, up to the first ``+``."""

TRANSPORTS = {
    "nats": TransportKind("agent.transports.nats.config:NatsConfig", "agent.transports.nats.transport:NatsTransport"),
    "ddhub": TransportKind(
        "agent.transports.ddhub.config:DdhubConfig", "agent.transports.ddhub.transport:DdhubTransport"
    ),
}
"""By a channel's ``transport``."""

LATER = frozenset({"ddhub-gateway"})
"""Kinds that are planned and do not work in this version."""

_SCHEME = re.compile(r"([a-z][a-z0-9.-]*)(\+[a-z0-9+.-]+)?://")
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def scheme(url: str) -> str | None:
    """The scheme of a URL up to its first ``+``, None if it has none."""
    match = _SCHEME.match(url)
    return None if match is None else match[1]


def load(class_path: str) -> Any:
    """The class that ``package.module:Class`` names. Raises ValueError with "what is wrong; what to do".

    Importing a third party's module may raise anything; all of it is such a ValueError.
    """
    if not _CLASS_PATH.fullmatch(class_path):
        raise ValueError(f'"{class_path}" does not name a class; write "package.module:Class"')
    module, _, name = class_path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"the module {error.name} is not installed; install it or correct the name") from error
    except AttributeError as error:
        raise ValueError(f"the module {module} has no {name}; correct the name of the class") from error
    except (Exception, SystemExit) as error:  # a program that is no module ends when it is imported
        cause = f"{type(error).__name__}: {error}".replace("; ", ", ")
        raise ValueError(f"the module {module} cannot be imported ({cause}); repair or remove it") from error
