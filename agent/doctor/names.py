"""The hosts of the configuration: are their names known here, how quickly, and is there a way to what they lead to."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.config import Config
from agent.config.each_of import each_of
from agent.doctor.finding import Finding, fault, note, ok, warning

_SLOW = 2.0  # s
_DISCARD = 9  # a port; nothing is sent there


@dataclass(frozen=True, slots=True)
class NameFacts:
    """``addresses``: what the host leads to; ``unreached``: those without a route from here; ``trouble``: why nothing
    was found; ``took``: s.
    """

    host: str
    addresses: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    trouble: str = ""
    took: float = 0.0


def hosts(config: Config) -> dict[str, str]:
    """The hosts that brokers and devices of a configuration have, and what each is for."""
    found = dict[str, str]()
    tables = [(f"connection {plan.name}", plan.connection) for plan in config.adapters()]
    tables += [(f"channel {channel.id}", channel.settings) for channel in config.channels]
    for what, table in tables:
        for _, text in each_of(table, str):
            host = endpoint(text)
            if host is not None:
                found.setdefault(host[0], what)
    return found


def endpoint(text: str) -> tuple[str, int | None] | None:
    """Host and port of a URL; None: it is none."""
    if "://" not in text:
        return None
    try:
        parts = urlsplit(text)
        return (parts.hostname, parts.port) if parts.hostname else None
    except ValueError:
        return None


def look(host: str) -> NameFacts:
    """Blocks for as long as the resolver does."""
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        trouble = getattr(error, "strerror", None) or "this is no name"
        return NameFacts(host, trouble=trouble, took=time.monotonic() - began)
    took = time.monotonic() - began
    addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
    return NameFacts(host, addresses, tuple(each for each in addresses if not _has_route(each)), "", took)


def _has_route(address: str) -> bool:
    """Connecting a datagram socket sends nothing, and fails without a route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _DISCARD))
    except OSError:
        return False
    return True


def judge(facts: NameFacts) -> Iterator[Finding]:
    """What is to be said of one host."""
    about, at = f"name {facts.host}", "the resolver of this box"
    if _is_address(facts.host):
        about, at = f"address {facts.host}", "the routes of this box"
    if facts.trouble:
        why = "without an address nothing is sent or read there"
        remedy = f"getent hosts {facts.host}; does DNS work here (resolvectl status, /etc/resolv.conf)?"
        yield fault(about, facts.trouble, why=why, remedy=remedy, looked_at=at)
        return
    if facts.took > _SLOW:
        found = f"looking it up took {facts.took:.1f} s"
        why = "each new connection waits for it"
        remedy = "is the first name server there? resolvectl status, /etc/resolv.conf"
        yield warning(about, found, why=why, remedy=remedy, looked_at=at)
    if facts.unreached and len(facts.unreached) == len(facts.addresses):
        why = "nothing is sent or read there"
        remedy = "ip route; is the cable in, and is there a default route?"
        yield fault(about, f"no way to {', '.join(facts.unreached)}", why=why, remedy=remedy, looked_at=at)
    elif facts.unreached:
        why = "it is tried, fails at once, and the other address is taken"
        remedy = "nothing, or give this box IPv6, or take the record out of DNS"
        yield note(about, f"no way to {', '.join(facts.unreached)}", why=why, remedy=remedy, looked_at=at)
    elif facts.took <= _SLOW:
        how = "has a way there" if _is_address(facts.host) else f"leads to {', '.join(facts.addresses)}"
        yield ok(about, how, looked_at=at)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
