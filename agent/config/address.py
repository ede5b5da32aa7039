"""An address to listen at: ``127.0.0.1:9469`` or ``[::1]:9469``. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

_WRITTEN = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})")
_REMEDY = 'write it like "127.0.0.1:9469"'


class Address(NamedTuple):
    """An IP address, and a TCP port."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(value: Any) -> Address | None:
    """The address; None for ``""``. Names are not asked for, but ``localhost`` is 127.0.0.1. Raises ValueError."""
    if isinstance(value, Address) or value == "":
        return value or None
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'expected an IP address and a port; {_REMEDY}, or "" for none')
    host = found["six"] or found["host"]
    try:
        address = Address(str(ip_address("127.0.0.1" if host == "localhost" else host)), int(found["port"]))
    except ValueError:
        raise ValueError(f'"{host}" is no IP address; {_REMEDY}') from None
    if not 0 < address.port < 65_536:
        raise ValueError(f"there is no port {address.port}; choose 1 to 65535")
    return address


def _text(address: Address | None) -> str:
    return "" if address is None else str(address)


Listen = Annotated[
    Address | None,
    PlainValidator(parse),
    PlainSerializer(_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}),
]
"""Where to listen; None: nowhere."""
