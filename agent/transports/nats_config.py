"""What a channel with ``transport = "nats"`` says besides the keys that all channels have.

Kept apart from the transport so that a configuration is judged without importing the client library.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DEFAULT_PORT = 4222
_WORD = r"[^\s.*>\x00-\x1f\x7f]+"
_SUBJECT = re.compile(rf"{_WORD}(\.{_WORD})*")
_STREAM = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_LATER = ("tls", "ws", "wss")


def _server(url: str) -> str:
    """``nats://host[:port]``, its port written out. A refused URL is not repeated where it may hold a password."""
    scheme = url.partition("://")[0]
    if scheme in _LATER:
        raise ValueError(f"{scheme}:// is not supported yet by this version; use nats://")
    if "@" in url:
        raise ValueError("a user or password in the URL is not supported yet by this version; remove it")
    example = 'write "nats://host:4222"'
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f'"{url:.80}" is no URL of a server; {example}') from None
    if not port:
        raise ValueError(f'"{url:.80}" names port 0, where nobody answers; {example}')
    if parts.scheme != "nats" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f'"{url:.80}" is no URL of a NATS server; {example}')
    return f"nats://[{host}]:{port}" if ":" in host else f"nats://{host}:{port}"


def _subject(template: str) -> str:
    for name in _PLACEHOLDER.findall(template):
        if name not in ("site", "channel"):
            raise ValueError(f"{{{name}}} stands for nothing; use {{site}} and {{channel}}")
    _judge_subject(_PLACEHOLDER.sub("x", template))
    return template


def _judge_subject(subject: str) -> str:
    """Refuse what cannot be published to (empty words, wildcards, blanks) and what the server keeps to itself."""
    if not _SUBJECT.fullmatch(subject) or "{" in subject or "}" in subject or len(subject) > 255:
        raise ValueError(
            f'"{subject:.80}" is no subject to publish to; write words joined by dots, without blanks, * and >'
        )
    if subject.startswith(("$", "_INBOX.")):
        raise ValueError(
            f'"{subject:.80}" belongs to the server; choose a subject that does not begin with $ or _INBOX'
        )
    return subject


def _stream(name: str) -> str:
    if not _STREAM.fullmatch(name):
        raise ValueError(f'"{name:.80}" is no name of a stream; write it without blanks and . * > / \\')
    return name


class NatsConfig(BaseModel):
    """NATS JetStream: where the servers are and which subject the records go to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    servers: tuple[Annotated[str, AfterValidator(_server)], ...] = Field(min_length=1, strict=False)
    """Any of them may answer; tried in this order."""

    subject: Annotated[str, AfterValidator(_subject)] = "dx.{site}.{channel}"
    """One writer per subject. ``{site}`` and ``{channel}`` stand for their ids."""

    stream: Annotated[str, AfterValidator(_stream)] | None = None
    """The stream that must take the subject; left out: whichever stream the server has for it."""

    def topic(self, *, site: str, channel: str) -> str:
        """The subject of a channel's records. Raises ValueError if the ids do not make one."""
        return _judge_subject(self.subject.replace("{site}", site).replace("{channel}", channel))
