"""Errors that say what to do next.

Every error that leaves a part of the agent carries a verdict, which decides policy, and a hint, which tells the
operator the remedy. Messages never hold a payload, a key or a password. What fails for one point is a quality code,
not an exception.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from agent.model import Cause


class Verdict(enum.Enum):
    """What policy does with an error; nothing else about the error decides."""

    RETRY = "retry"  # the same action may succeed later
    REJECT = "reject"  # this one item never will; go on with the next
    FATAL = "fatal"  # the part that raised it cannot go on


class AgentError(Exception):
    """An error with a verdict and, for the operator, a hint.

    ``verdict`` is a class default that an instance may override.
    """

    verdict = Verdict.FATAL

    def __init__(self, message: str, *, hint: str = "", verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if verdict is not None:
            self.verdict = verdict


Kind = TypeVar("Kind", bound=Exception)


def only(kind: type[Kind], raised: BaseException) -> Kind:
    """The error of a kind in what a task group raised, the first of several; raises anything else again."""
    if isinstance(raised, BaseExceptionGroup):
        found, others = raised.split(kind)
        if found is not None and others is None:
            return only(kind, found.exceptions[0])
    elif isinstance(raised, kind):
        return raised
    raise raised


class AcquisitionError(AgentError):
    """A whole acquisition failed: its cycle is a gap with this cause (docs/evidence.md, section 5)."""

    verdict = Verdict.RETRY

    def __init__(self, cause: Cause, detail: str, *, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.cause = cause
        self.detail = detail


class EvidenceError(AgentError):
    """Bytes that are not evidence: malformed, not deterministic, too large or wrongly signed."""

    verdict = Verdict.REJECT


class SignerError(AgentError):
    """The key cannot be used: missing, unreadable, open to others, or not the one of the configured DID."""


class SecretError(AgentError):
    """A secret that the configuration refers to is not there or cannot be read; it may come or be renewed.

    The message tells where it lies, for the log of this box; ``public`` is for signed gaps, which leave it.
    """

    verdict = Verdict.RETRY

    def __init__(self, message: str, *, hint: str = "", public: str = "a secret cannot be read") -> None:
        super().__init__(message, hint=hint)
        self.public = public


class CheckpointError(AgentError):
    """A saved state of the verifier that cannot be read: damaged, or of another version."""

    verdict = Verdict.REJECT


class OutboxError(AgentError):
    """The outbox is in an unknown state, or cannot be opened; docs/outbox.md, rule 2: it is re-opened, never repaired
    in flight.
    """


class RecordTooLargeError(OutboxError):
    """A record is larger than the outbox takes: the configuration asks for it, and would ask for it again."""


class NotStoredError(AgentError):
    """What was put may not be on disk: the outbox failed, or could not take it any more. It is never tried again."""

    verdict = Verdict.REJECT


class Reason(enum.StrEnum):
    """Why a broker was not reached or took nothing: few, fixed words, fit for the label of a metric."""

    UNREACHABLE = "unreachable"  # no such name, no way there, nobody listens
    TIMEOUT = "timeout"  # it does not answer, or fell silent
    PROTOCOL = "protocol"  # what answers is no such broker
    TLS = "tls"  # one end does not want the other's certificate, or only one speaks TLS
    SECRET = "secret"  # noqa: S105  # a secret or certificate of ours cannot be read or used
    AUTHORIZATION = "authorization"  # the broker lets us not in
    EXPIRED = "expired"  # credentials that were good once
    PERMISSION = "permission"  # let in, but not to do this
    NO_JETSTREAM = "no_jetstream"
    NO_LEADER = "no_leader"  # the broker's cluster chooses one, or too few of its servers are there
    NO_STREAM = "no_stream"
    WRONG_STREAM = "wrong_stream"  # it does not take our subject
    NO_TOPIC = "no_topic"  # of the Data Hub
    SCHEMA = "schema"  # of the topic: it does not take what we send
    RECIPIENT = "recipient"  # one does not get what others got
    STREAM_FULL = "stream_full"  # and keeps the old
    STORE = "store"  # the broker cannot store at the moment
    TOO_LARGE = "too_large"
    LOST = "lost"  # the connection ended
    OTHER = "other"  # the broker says something else


class TransportError(AgentError):
    """The broker could not be reached or did not take a record; the verdict says whether to try again.

    ``reason``: what kind of failure it is, to be counted by, mostly a ``Reason``; "" if there is no better one.
    """

    verdict = Verdict.RETRY

    def __init__(self, message: str, *, reason: str = "", hint: str = "", verdict: Verdict | None = None) -> None:
        super().__init__(message, hint=hint, verdict=verdict)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration: where it stands, what it is, and the remedy."""

    file: str
    line: int  # from 1; 0 if there is no line
    key: str  # dotted, e.g. "device[0].groups.ac.every"; "" for the whole file
    what: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        return f"{place}:{key} {self.what}; {self.remedy}"


class ConfigError(AgentError):
    """A configuration was refused; ``problems`` holds all that is wrong with it, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
