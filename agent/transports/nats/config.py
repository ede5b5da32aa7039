"""What a channel with ``transport = "nats"`` says besides the keys that all channels have.

Kept apart from the transport so that a configuration is judged without importing the client library. No secret stands
in it, only what leads to one.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from agent.fields import SOME, Problems, Table, Text, judge_host
from agent.secret import Secret
from agent.tls import Tls
from agent.units import Duration, S, Size, duration_range, duration_text, size_range

DEFAULT_PORT = 4222
LOGINS = ("username", "token", "nkey", "creds")
_WORD = r"[^\s.*>\x00-\x1f\x7f]+"
_SUBJECT = re.compile(rf"{_WORD}(\.{_WORD})*")
_PATTERN = re.compile(rf"(({_WORD}|\*)\.)*({_WORD}|\*|>)")
_STREAM = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def judge_server(url: str) -> str:
    """``nats://host[:port]`` or ``tls://host[:port]``, its port written out. Raises ValueError, which does not repeat
    what may hold a password.
    """
    example = 'write "tls://host:4222", or "nats://host:4222" without TLS'
    if "@" in url:
        raise ValueError("a user or password stands in the address; use username and password, where it is not shown")
    if url.partition("://")[0] in ("ws", "wss"):
        raise ValueError("NATS over WebSocket is not supported yet by this version; use tls:// or nats://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f'"{url:.80}" is no URL of a server; {example}') from None
    if not port:
        raise ValueError(f'"{url:.80}" names port 0, where nobody answers; {example}')
    extra = parts.path not in ("", "/") or parts.query or parts.fragment
    if parts.scheme not in ("nats", "tls") or not host or extra:
        raise ValueError(f'"{url:.80}" is no URL of a NATS server; {example}')
    judge_host(host)
    return f"{parts.scheme}://[{host}]:{port}" if ":" in host else f"{parts.scheme}://{host}:{port}"


def _subject(template: str) -> str:
    for name in _PLACEHOLDER.findall(template):
        if name not in ("site", "channel"):
            raise ValueError(f"{{{name}}} stands for nothing; use {{site}} and {{channel}}")
    _judge_subject(_PLACEHOLDER.sub("x", template))
    return template


def _pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text) or set(text) & set("{}") or len(text) > 255 or text.startswith("$"):
        raise ValueError(f'"{text:.80}" is no subject of a stream; write words joined by dots, such as "dx.>"')
    return text


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


def judge_stream(name: str) -> str:
    """The name of a stream. Raises ValueError."""
    if not _STREAM.fullmatch(name):
        raise ValueError(f'"{name:.80}" is no name of a stream; write it without blanks and . * > / \\')
    return name


def takes(pattern: str, subject: str) -> bool:
    """Whether a subject of a stream, which may hold ``*`` and ``>``, takes a subject."""
    wanted, words = pattern.split("."), subject.split(".")
    if wanted[-1] == ">" and len(words) >= len(wanted):
        wanted = wanted[:-1]
        words = words[: len(wanted)]
    return len(wanted) == len(words) and all(want in ("*", word) for want, word in zip(wanted, words, strict=True))


class NatsTls(Tls):
    """TLS with a server. ``first``: it begins at once, without the server's greeting in the clear, as servers with
    ``handshake_first`` and some ways through port 443 want it.
    """

    first: bool = False


class NatsServers(Table):
    """Where the servers are, and who we are to them. All secrets are read at each connection."""

    servers: Annotated[tuple[Annotated[str, AfterValidator(judge_server)], ...], Field(strict=False), SOME]
    """Any of them may answer; tried in this order."""

    username: Text | None = None
    password: Secret | None = None
    token: Secret | None = None
    nkey: Secret | None = None
    """The seed of a user's NKey."""

    creds: Secret | None = None
    """A user's JWT and seed, as ``nsc`` writes them."""

    tls: NatsTls | None = None

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.servers[0].startswith("tls://")

    @property
    def login(self) -> str:
        """Which of ``LOGINS`` it is; "" without one."""
        return next((name for name in LOGINS if getattr(self, name) is not None), "")

    @model_validator(mode="after")
    def _judge(self) -> NatsServers:
        problems = Problems()
        self._judge_together(problems)
        problems.raise_any(type(self).__name__)
        return self

    def _judge_together(self, problems: Problems) -> None:
        kinds = {server.partition(":")[0] for server in self.servers}
        if len(kinds) > 1:
            problems.add("some are tls:// and some nats://, without TLS; write the same for all", "servers")
        if self.tls is not None and "tls" not in kinds:
            problems.add("nats:// is not encrypted; write tls:// in servers, or remove it", "tls")
        given = [name for name in LOGINS if getattr(self, name) is not None]
        if self.password is not None and self.username is None:
            problems.add("a password needs a username; add it", "username")
            given.append("password")
        if self.username is not None and self.password is None:
            problems.add("a username needs a password; add it", "password")
        for name in given[1:]:
            problems.add(f"{given[0]} is a way to log in already; keep one of the two", name)


def judged_servers(**settings: Any) -> NatsServers:
    """The same from a command line. Raises ValueError with one line of words, which repeats no value."""
    try:
        return NatsServers(**settings)
    except ValidationError as error:
        said = {".".join(map(str, each["loc"])): each["msg"] for each in error.errors(include_input=False)}
    raise ValueError(" / ".join(f"{key}: {words.removeprefix('Value error, ')}" for key, words in said.items()))


class NatsCreate(Table):
    """The stream that is created if there is none of its name; one that is there is never changed.

    ``subjects``: those that it takes, the channel's own if left out. ``max_age``, ``duplicate_window`` in ns,
    ``max_bytes``, ``max_msg_size`` in bytes; None: no limit.
    """

    subjects: Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], Field(strict=False), SOME] | None = None
    storage: Literal["file", "memory"] = "file"
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    max_age: Annotated[Duration, duration_range("1h", "36500d")] | None = None
    max_bytes: Annotated[Size, size_range("1MiB", "1024TiB")] | None = None
    max_msg_size: Annotated[Size, size_range("1KiB", "64MiB")] | None = None
    duplicate_window: Annotated[Duration, duration_range("1s", "7d")] = 120 * S
    discard: Literal["old", "new"] = "old"

    @model_validator(mode="after")
    def _together(self) -> NatsCreate:
        problems = Problems()
        if self.max_age is not None and self.duplicate_window > self.max_age:
            problems.add(f"it is longer than max_age; choose at most {duration_text(self.max_age)}", "duplicate_window")
        problems.raise_any("NatsCreate")
        return self


class NatsConfig(NatsServers):
    """NATS JetStream: the servers, and which subject of which stream the records go to."""

    subject: Annotated[str, AfterValidator(_subject)] = "dx.{site}.{channel}"
    """One writer per subject. ``{site}`` and ``{channel}`` stand for their ids."""

    stream: Annotated[str, AfterValidator(judge_stream)] | None = None
    """The stream that must take the subject; left out: whichever stream the server has for it."""

    create: NatsCreate | None = None

    destination_key: ClassVar[str] = "subject"

    is_visitor: ClassVar[bool] = False
    """Looks and changes nothing."""

    def visitor(self) -> NatsConfig:
        """The same for who only looks whether all is well: no stream is created."""
        return NatsVisitor.model_construct(**dict(self))

    def destination(self, *, site: str, channel: str) -> str:
        """The subject of a channel's records. Raises ValueError if the ids do not make one."""
        subject = _judge_subject(self.subject.replace("{site}", site).replace("{channel}", channel))
        patterns = self.create.subjects if self.create is not None else None
        if patterns is not None and not any(takes(pattern, subject) for pattern in patterns):
            raise ValueError(f'the subjects of create do not take "{subject:.80}"; add it there')
        return subject

    def _judge_together(self, problems: Problems) -> None:
        super()._judge_together(problems)
        if self.create is not None and self.stream is None:
            problems.add('create needs the name of the stream; add stream = "NAME"', "stream")


class NatsVisitor(NatsConfig):
    """``NatsConfig.visitor``."""

    is_visitor: ClassVar[bool] = True
