"""The tables of agent.toml that belong to no adapter and no transport, as models.

Each judges its own table; what concerns several tables is judged in agent/config/whole.py. Validation gets a
context with ``folder``, the folder of the file, against which relative paths are resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from agent.config.address import Listen
from agent.config.levels import Levels
from agent.config.levels import parse as levels
from agent.custody import PATTERN, Custody, parse
from agent.fields import Id, Problems, Table, Text
from agent.secret import Secret
from agent.units import Duration, Rate, S, Size, duration_range, duration_text, size_range

VERSION = 1
MIB = 1 << 20
LONGEST_SOCKET = 107  # bytes, unix(7)
_DID = re.compile(r"did:ethr:[A-Za-z0-9-]{1,32}:0x[0-9A-Fa-f]{40}")


def _judge_did(value: str) -> str:
    if not _DID.fullmatch(value):
        raise ValueError(
            f'"{value[:80]}" is no DID of an agent; write "did:ethr:NETWORK:0x" and 40 hex digits, or remove it'
        )
    return value


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError('expected a path in quotes; write it like "/var/lib/edge-agent"')
    if value.startswith("~"):
        raise ValueError("~ stands for no folder here; write the whole path")
    context: Mapping[str, Path] = info.context or {}
    return Path(context.get("folder", Path()), value)


def _socket(value: Any, info: ValidationInfo) -> Path | None:
    if value == "":
        return None
    path = _path(value, info)
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise ValueError(
            f"the path of a socket has at most {LONGEST_SOCKET} bytes, with its folder; choose a shorter one"
        )
    return path


def _custody(value: Any, info: ValidationInfo) -> Custody:
    context: Mapping[str, Path] = info.context or {}
    return parse(value, folder=context.get("folder", Path()))


def _whole_mib(count: int) -> int:
    if count % MIB:
        raise ValueError("the ring has segments of 1 MiB; write whole MiB")
    return count


def _socket_text(path: Path | None) -> str:
    return "" if path is None else str(path)


PathText = Annotated[Path, BeforeValidator(_path)]


class Site(Table):
    """Where the data is from; signed into every plan."""

    id: Id
    labels: dict[Text, Text] = Field(default={}, max_length=32)


class Identity(Table):
    """The agent's key, what opens it if it is a keystore, and the DID that it must have."""

    key: Annotated[
        Custody,
        PlainValidator(_custody),
        PlainSerializer(str, return_type=str, when_used="json"),
        WithJsonSchema({"type": "string", "pattern": PATTERN}),
    ]
    passphrase: Secret | None = None
    did: Annotated[str, AfterValidator(_judge_did)] | None = None

    @model_validator(mode="after")
    def _together(self) -> Identity:
        problems = Problems()
        if self.key.kind == "keystore" and self.passphrase is None:
            remedy = 'add passphrase = { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }'
            problems.add(f"a keystore needs a passphrase; {remedy}", "key")
        if self.key.kind != "keystore" and self.passphrase is not None:
            problems.add(f'a key in "{self.key.kind}:" has no passphrase; remove it', "passphrase")
        problems.raise_any("identity")
        return self


class ClockTable(Table):
    """The wall clock. ``wait``: so long at most, in ns, is a synchronised one waited for at start; 0: it is not."""

    wait: Annotated[Duration, duration_range("0s", "1d")] = 60 * S


class Agent(Table):
    """The process itself. ``state``: folder of the outboxes and of what was learned. ``socket``: where the running
    agent answers commands; None: it does not. ``http``: where it answers /metrics and /healthz, to who shows ``token``;
    None: nowhere. ``log_level``: by part.
    """

    state: PathText = Path("/var/lib/edge-agent")
    socket: Annotated[
        Path | None,
        BeforeValidator(_socket),
        PlainSerializer(_socket_text, return_type=str, when_used="json"),
        WithJsonSchema({"type": "string"}),
    ] = Path("/run/edge-agent/agent.sock")
    http: Listen = None
    token: Secret | None = None
    log_level: Levels = Field(default_factory=lambda: levels("info"))

    @model_validator(mode="after")
    def _together(self) -> Agent:
        problems = Problems()
        if self.token is None and self.http is not None and not self.http.loopback:
            remedy = 'add token = { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }, or choose 127.0.0.1'
            problems.add(f"others than this machine reach {self.http}; {remedy}", "http")
        if self.token is not None and self.http is None:
            problems.add("it is for http, and there is none; remove it", "token")
        problems.raise_any("agent")
        return self


class Outbox(Table):
    """The ring on disk that holds a channel's records. ``size`` in bytes. ``when_full``: what is not delivered is
    overwritten, or new readings wait. ``on_disk_failure``: until the disk is back readings are dropped, or kept in
    memory.
    """

    size: Annotated[Size, size_range("5MiB", "1TiB"), AfterValidator(_whole_mib)] = 64 * MIB
    when_full: Literal["drop-oldest", "block"] = "drop-oldest"
    on_disk_failure: Literal["drop", "memory"] = "drop"


class Drain(Table):
    """How a channel sends what waited through an outage. ``rate``: bytes of envelopes a second, None: as fast as the
    broker takes them. ``spread`` in ns: the start is put off by a random time up to this.
    """

    rate: Rate | None = None
    spread: Annotated[Duration, duration_range("0s", "1h")] = 60 * S


class ChannelTable(Table):
    """What every channel says; the rest of its keys belong to its transport.

    ``seal_within`` in ns, and ``seal_within_away`` while the broker is; None: the same. ``send``: patterns over
    device/group/point; what no pattern names is not even read.
    """

    id: Id
    transport: str
    send: tuple[str, ...] = Field(min_length=1, strict=False)
    seal_within: Annotated[Duration, duration_range("0s", "60s")] = S
    seal_within_away: Annotated[Duration, duration_range("0s", "60s")] | None = None
    outbox: Outbox = Outbox()
    drain: Drain = Field(default_factory=Drain)

    @model_validator(mode="after")
    def _grows(self) -> ChannelTable:
        problems = Problems()
        if self.seal_within_away is not None and self.seal_within_away < self.seal_within:
            what = f"{duration_text(self.seal_within_away)} is less than seal_within"
            problems.add(f"{what}; choose {duration_text(self.seal_within)} or more, or remove it", "seal_within_away")
        problems.raise_any("channel")
        return self
