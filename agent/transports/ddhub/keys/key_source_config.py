"""Where the keys of other participants come from: what a channel's ``keys`` says.

One of ``file``, ``hub``, ``rpc``; none of them is the SSI Hub that Energy Web runs for the network of our DID. Kept
apart from what asks, so that a configuration is judged without importing an HTTP client. No secret stands in it: the
address of a node often holds an API key, and may therefore be a reference to a secret.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from agent.evidence.keccak import checksum_address
from agent.fields import Problems, Table, judge_host
from agent.secret import Secret
from agent.tls import FilePath, Tls

_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{40}")
_WAYS = ("file", "hub", "rpc")
_LONGEST_URL = 2048
_INSTEAD = 'put the whole address into { file = "PATH" }'


def judge_http(
    url: str, *, example: str = "https://host/path", instead: str = _INSTEAD, is_secret: bool = False
) -> SplitResult:
    """An address that is asked over HTTP, taken apart; ``is_secret``: it may hold a user and password,
    ``instead``: what to do if not. Raises ValueError, which does not repeat it: it may hold a key.
    """
    wrong = f'this is no address of a server; write it like "{example}"'
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(wrong)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in ("http", "https") or not host or port == 0 or "#" in url:
        raise ValueError(wrong)
    if "@" in parts.netloc and not is_secret:
        raise ValueError(f"a user or password stands in the address; {instead}")
    judge_host(host)
    return parts


def judge_url(url: str, *, is_secret: bool = False) -> str:
    """The address of who knows keys; ``is_secret``: it may hold a user and password. Raises ValueError, which does not
    repeat it.
    """
    parts = judge_http(url, is_secret=is_secret)
    if parts.scheme == "http" and not _is_here(parts.hostname or ""):
        raise ValueError("without TLS anybody on the way can put his keys in place of the right ones; use https://")
    return url


def shown(url: str) -> str:
    """Scheme, host and port of an address: what may be logged, for API keys stand in the path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_url(url: str) -> str:
    if "?" in url:
        raise ValueError('what stands behind the ? may be a key; put the whole address into { file = "PATH" }')
    return judge_url(url)


def _hub(url: str) -> str:
    """With the version of the API, which an operator may leave out."""
    base = _open_url(url).rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def _rpc(value: Any, info: ValidationInfo) -> str | Secret:
    if isinstance(value, str):
        return _open_url(value)
    if isinstance(value, dict | Secret):
        return Secret.model_validate(value, context=info.context)
    raise ValueError('expected an address in quotes; write it like "https://host/path", or { file = "PATH" }')


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("the list is empty; name at least one")
        return tuple(value)
    return (value,)


def _contract(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("this is no address of a contract; write 0x and 40 hex digits")
    address = checksum_address(bytes.fromhex(text[2:]))
    if text[2:] not in (text[2:].lower(), text[2:].upper(), address[2:]):
        raise ValueError("the capitals of this address do not fit its digits (EIP-55); is a digit wrong?")
    return address


def _written(value: str | Secret) -> Any:
    return value if isinstance(value, str) else value.model_dump(mode="json", exclude_none=True)


Rpc = Annotated[
    str | Secret, PlainValidator(_rpc, json_schema_input_type=str | Secret), PlainSerializer(_written, return_type=Any)
]
"""The address of a node, or what leads to it."""


class KeySourceConfig(Table):
    """``keys`` of a channel."""

    file: FilePath | None = None
    """A file with the keys of each participant (docs/ddhub.md)."""

    hub: Annotated[str, AfterValidator(_hub)] | None = None
    """An SSI Hub; we log in to it with our key."""

    rpc: (
        Annotated[
            tuple[Rpc, ...],
            BeforeValidator(_listed, json_schema_input_type=str | Secret | list[str | Secret]),
            Field(strict=False),
        ]
        | None
    ) = None
    """JSON-RPC of one node of the chain, or of several: the next is asked when one does not answer."""

    registry: Annotated[str, AfterValidator(_contract)] | None = None
    """The registry's contract (ERC-1056); left out: that of the network."""

    confirmations: Annotated[int, Field(ge=0, le=100)] = 12
    """How many blocks must stand on an entry until it counts, for the youngest may still be replaced."""

    tls: Tls | None = None

    @model_validator(mode="after")
    def _together(self) -> KeySourceConfig:
        problems = Problems()
        given = [name for name in _WAYS if getattr(self, name) is not None]
        for name in given[1:]:
            problems.add(f"the keys come from {given[0]} already; keep one of the two", name)
        if self.rpc is None:
            for name in ("registry", "confirmations"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    problems.add("it belongs to rpc; add rpc, or remove it", name)
        if self.file is not None and self.tls is not None:
            problems.add("a file needs no TLS; remove it", "tls")
        problems.raise_any("KeySourceConfig")
        return self
