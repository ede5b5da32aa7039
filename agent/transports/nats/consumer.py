"""Reading records back from JetStream, for ``edge-agent tail``: in order, from any start, across restarts of the
server.

A pull consumer is made on the server for each connection; the server forgets it ``_FORGOTTEN`` seconds after the last
request. Where to go on is known here, by the stream's own sequence numbers and times, and lost with the process.
nats-py's ``fetch`` is not used: it waits for full batches and starts a task for every message.
"""

from __future__ import annotations

import datetime
import math
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import anyio
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from agent.errors import Reason, TransportError
from agent.transports.nats.config import NatsServers, judge_server, judge_stream, judged_servers
from agent.transports.nats.connection import Connection, Timeouts, connected
from agent.transports.nats.failures import api_error, describe
from agent.transports.nats.pull import Place, Pull

_FORGOTTEN = 60  # s
_SUBJECT = re.compile(r"[^\s.]+(\.[^\s.]+)*")  # wildcards are welcome


@dataclass(frozen=True, slots=True)
class Source:
    """A subject of a stream on servers of which any may answer."""

    servers: NatsServers
    stream: str | None  # None: whichever stream takes the subject
    subject: str

    @classmethod
    def parse(cls, url: str, **settings: Any) -> Source:
        """``tls://host:4222/STREAM?subject=...``; ``settings``: more keys of ``NatsServers``.

        Raises ValueError, which repeats no password.
        """
        example = "expected nats://HOST:4222/STREAM?subject=..., or tls:// in front"
        address, _, rest = url.partition("?")
        scheme, mark, place = address.partition("://")
        host, _, stream = place.partition("/")
        server = judge_server(f"{scheme}{mark}{host}")
        try:
            query = parse_qs(rest, keep_blank_values=True, strict_parsing=True)
        except ValueError:
            raise ValueError(f"not a source: {url:.200}; {example}") from None
        subject = query.get("subject", [])
        if set(query) != {"subject"} or len(subject) != 1 or "#" in rest:
            raise ValueError(f"not a source: {url:.200}; {example}")
        if not _SUBJECT.fullmatch(subject[0]):
            raise ValueError(f"not the name of a subject: {url:.200}; {example}")
        return cls(judged_servers(servers=(server,), **settings), judge_stream(stream) if stream else None, subject[0])


class Consumer:
    """Yields a subject's messages as they are stored; remembers where it is, so that it can be used again after an
    error.
    """

    def __init__(
        self,
        source: Source,
        *,
        only_new: bool = False,
        place: Sequence[int] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """``place``: as ``place`` of an earlier one was; go on behind it. Zeros: at the beginning."""
        self._source = source
        self._servers = deque(source.servers.servers)
        self._timeouts = timeouts or Timeouts()
        self._only_new = only_new
        self._first: int | None = None  # with ``only_new``: where that begins, once a server said so
        self._last = Place(place[0], place[1], 0) if place and place[0] else None  # of the last message yielded

    @property
    def place(self) -> list[int] | None:
        """Where the last message that was yielded stands: number in the stream, and time of the server, ns."""
        return None if self._last is None else [self._last.seq, self._last.time]

    async def messages(self) -> AsyncGenerator[bytes | None]:
        """The messages; None whenever nothing more is stored at the moment, at least about once a second.

        Raises TransportError when the connection cannot be made or is lost. Close it (``aclosing``).
        """
        server = self._servers[0]
        self._servers.rotate(-1)
        arrived, incoming = anyio.create_memory_object_stream[Msg](math.inf)  # never more than was asked for
        with arrived, incoming:
            async with connected(server, self._source.servers, timeouts=self._timeouts) as connection:
                pull = Pull(connection, arrived, incoming)
                try:
                    await pull.open()
                    async with aclosing(self._read(connection, pull)) as found:
                        async for data in found:
                            yield data
                except nats.js.errors.NotFoundError as error:
                    raise TransportError(
                        f"no stream for {self._source.subject} on {server}",
                        hint="create it, or correct the names",
                        reason=Reason.NO_STREAM,
                    ) from error
                except nats.js.errors.APIError as error:
                    raise api_error(error) from error
                except (nats.errors.Error, OSError) as error:
                    raise TransportError(f"{server}: {describe(error)}") from error

    async def _read(self, connection: Connection, pull: Pull) -> AsyncGenerator[bytes | None]:
        jetstream = connection.client.jetstream(timeout=self._timeouts.answer)
        stream = await self._stream(jetstream, pull)

        async def attach(config: ConsumerConfig) -> int:
            info = await pull.request(jetstream.add_consumer(stream, config))
            pull.attach(stream, info.name)
            if self._first is None and self._only_new and info.delivered is not None:
                self._first = info.delivered.stream_seq + 1
            return info.num_pending or 0

        pending = await attach(self._start())
        last = self._last
        if last is not None:
            # The last message that we saw must be the first that comes. If it is not, it was deleted, or the stream was
            # made anew or lost its end in a crash, and its numbers mean something else: then time tells what is new.
            again = await pull.one() if pending else None
            if again is None or (again.seq, again.time) != (last.seq, last.time):
                pending = await attach(self._since(last.time))
            else:
                pending = again.pending
        if not pending:
            yield None
        while True:
            message = await pull.receive()
            if message is None:
                yield None
                continue
            place = Place.of(message)
            if last is None or place.time > last.time or place.seq > last.seq:
                self._last = place
                yield message.data
            if not place.pending:
                yield None

    async def _stream(self, jetstream: JetStreamContext, pull: Pull) -> str:
        if self._source.stream is not None:
            return self._source.stream
        return await pull.request(jetstream.find_stream_name_by_subject(self._source.subject))

    def _start(self) -> ConsumerConfig:
        if self._last is not None:
            return self._config(DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._last.seq)
        if self._first is not None:
            return self._config(DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._first)
        return self._config(DeliverPolicy.NEW if self._only_new else DeliverPolicy.ALL)

    def _since(self, time: int) -> ConsumerConfig:
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=time // 1000)
        return self._config(DeliverPolicy.BY_START_TIME, opt_start_time=moment)

    def _config(
        self,
        policy: DeliverPolicy,
        *,
        opt_start_seq: int | None = None,
        opt_start_time: datetime.datetime | None = None,
    ) -> ConsumerConfig:
        return ConsumerConfig(
            name=f"tail-{secrets.token_hex(8)}",
            deliver_policy=policy,
            opt_start_seq=opt_start_seq,
            opt_start_time=opt_start_time,
            filter_subject=self._source.subject,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_FORGOTTEN,
            mem_storage=True,  # nothing of it is worth a write on the server's disk
        )
