"""Reading records back from JetStream, for ``edge-agent tail``: in order, from any start, across restarts of the
server.

A consumer on the server is made per connection and forgotten with it; where to go on is known by the stream's own
sequence numbers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import anyio
import nats.errors
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from agent.errors import TransportError
from agent.transports.nats import connect, describe

_FETCH = 256  # messages
_WAIT = 1.0  # s


@dataclass(frozen=True, slots=True)
class Source:
    """A subject of a stream on a server."""

    server: str
    stream: str | None  # None: whichever stream takes the subject
    subject: str

    @classmethod
    def parse(cls, url: str) -> Source:
        """``nats://host:4222/STREAM?subject=...``. Raises ValueError."""
        parts = urlsplit(url)
        subjects = parse_qs(parts.query).get("subject", [])
        stream = parts.path.strip("/") or None
        if parts.scheme != "nats" or not parts.hostname or len(subjects) != 1:
            raise ValueError(f"not a source: {url!r}; expected nats://host:4222/STREAM?subject=...")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"nats://{host}:{parts.port or 4222}", stream, subjects[0])


class Consumer:
    """Yields a subject's messages as they are stored; remembers where it is, so that it can be used again after an
    error.
    """

    def __init__(self, source: Source, *, only_new: bool = False) -> None:
        self._source = source
        self._next: int | None = None
        self._only_new = only_new

    async def messages(self) -> AsyncIterator[bytes | None]:
        """The messages; None each time that nothing more is stored at the moment. Raises TransportError when the
        connection fails.
        """
        source = self._source
        client = await connect(source.server, on_closed=lambda: None)
        try:
            jetstream = client.jetstream(timeout=5)
            stream = source.stream or await jetstream.find_stream_name_by_subject(source.subject)
            subscription = await jetstream.pull_subscribe(source.subject, stream=stream, config=self._start())
            while True:
                try:
                    batch = await subscription.fetch(_FETCH, timeout=_WAIT)
                except nats.errors.TimeoutError:
                    if client.is_closed:
                        raise TransportError("connection lost") from None
                    yield None
                    continue
                for message in batch:
                    self._next = message.metadata.sequence.stream + 1
                    yield message.data
                if message.metadata.num_pending == 0:
                    yield None
        except nats.js.errors.NotFoundError as error:
            raise TransportError(
                f"no stream for {source.subject} on {source.server}", hint="is the stream made, and the name right?"
            ) from error
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise TransportError(f"{source.server}: {describe(error)}") from error
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await client.close()

    def _start(self) -> ConsumerConfig:
        policy = DeliverPolicy.NEW if self._only_new else DeliverPolicy.ALL
        if self._next is not None:
            policy = DeliverPolicy.BY_START_SEQUENCE
        return ConsumerConfig(
            ack_policy=AckPolicy.NONE, deliver_policy=policy, opt_start_seq=self._next, inactive_threshold=30
        )
