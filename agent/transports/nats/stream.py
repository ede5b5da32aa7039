"""The JetStream stream of a channel with ``create``: made if it is not there, looked at if it is, never changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from agent.errors import Reason, TransportError
from agent.printable import printable
from agent.transports.nats.config import NatsConfig, NatsCreate, takes
from agent.transports.nats.failures import NO_STREAM, api_error
from agent.units import duration_text, size_text

_NS = 1_000_000_000
_IN_USE = 10058  # somebody else made it meanwhile

log = logging.getLogger(__name__)


async def prepare(jetstream: JetStreamContext, config: NatsConfig, subject: str) -> str:
    """What is to be said of the stream, "" if nothing. Without ``create`` only a visitor looks.

    Raises TransportError: it does not take our subject or acknowledge it, or cannot be created; what nats-py raises.
    """
    if config.stream is None or (config.create is None and not config.is_visitor):
        return ""
    found = await _look(jetstream, config.stream)
    if found is None:
        if config.create is None:
            return ""  # reading back will say so
        if config.is_visitor:
            return f"the stream {config.stream} is not there yet, the agent creates it"
        found = await _create(jetstream, config.stream, config.create, subject)
    differences = [] if config.create is None else [*differing(found, config.create)]
    patterns = found.subjects or []
    if not any(takes(pattern, subject) for pattern in patterns):
        what = f"the stream {config.stream} takes {', '.join(patterns) or 'no subject'}, not {subject}"
        hint = "add the subject to the stream, or correct the channel's subject or stream"
        raise TransportError(printable("; ".join([what, *differences])), hint=hint, reason=Reason.WRONG_STREAM)
    unfit = "acknowledges nothing (no_ack)" if found.no_ack else "is sealed for ever" if found.sealed else ""
    if unfit:
        hint = "have the server's operator change that, or name another stream"
        raise TransportError(f"the stream {config.stream} {unfit}", hint=hint, reason=Reason.WRONG_STREAM)
    return (
        printable(f"the stream {config.stream} is not as configured: {', '.join(differences)}") if differences else ""
    )


async def _look(jetstream: JetStreamContext, name: str) -> StreamConfig | None:
    try:
        return (await jetstream.stream_info(name)).config
    except nats.js.errors.NotFoundError as error:
        if error.err_code != NO_STREAM:
            raise
        return None


async def _create(jetstream: JetStreamContext, name: str, create: NatsCreate, subject: str) -> StreamConfig:
    wanted = StreamConfig(
        name=name,
        subjects=list(create.subjects or [subject]),
        retention=RetentionPolicy.LIMITS,
        storage=StorageType(create.storage),
        num_replicas=create.replicas,
        max_age=(create.max_age or 0) / _NS,
        max_bytes=create.max_bytes or -1,
        max_msg_size=create.max_msg_size or -1,
        duplicate_window=create.duplicate_window / _NS,
        discard=DiscardPolicy(create.discard),
    )
    try:
        made = (await jetstream.add_stream(wanted)).config
    except nats.js.errors.APIError as error:
        if error.err_code == _IN_USE:
            with suppress(nats.js.errors.APIError):
                if (found := await _look(jetstream, name)) is not None:
                    return found
        wrong = api_error(error)
        what = f"cannot create the stream {name}: {wrong}"
        hint = wrong.hint or "correct create, or let the server's operator make the stream"
        raise TransportError(what, hint=hint, reason=wrong.reason) from error
    log.info("stream created stream=%s subjects=%s", name, ",".join(made.subjects or ()))
    return made


def differing(found: StreamConfig, create: NatsCreate) -> Iterator[str]:
    """What of a stream is not as it is written in ``create``, in words; keys that are not written may be anything."""
    actual = {
        "max_age": _duration(found.max_age),
        "max_bytes": _size(found.max_bytes),
        "max_msg_size": _size(found.max_msg_size),
        "duplicate_window": _duration(found.duplicate_window),
        "storage": found.storage,
        "discard": found.discard,
        "replicas": found.num_replicas,
    }
    written = create.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"subjects"})
    for key, wanted in written.items():
        if actual[key] != wanted:
            yield f"{key} is {actual[key]}, configured {wanted}"
    for pattern in create.subjects or ():
        if pattern not in (found.subjects or ()):
            yield f"subjects lack {pattern}"


def _size(count: int | None) -> str:
    return size_text(count) if count is not None and count > 0 else "unlimited"


def _duration(seconds: float | None) -> str:
    return duration_text(round(seconds * 1000) * (_NS // 1000)) if seconds else "unlimited"
