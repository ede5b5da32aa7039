"""A durable consumer: the server remembers what of a subject was acknowledged, for one reader.

A message is acknowledged once ``keep`` has put on disk what was made of it. What was not comes again ``ACK_WAIT``
seconds after it was handed out, at a new connection before anything newer: for that long a new connection waits if an
earlier one left such messages. So a crash repeats and never skips, and order stays. A message that is handed out
between two of ours went to somebody else; then the connection is given up and all not acknowledged comes again, too.

The consumer on the server bears the number of the reader's own file, chosen by chance. So a second reader with a file
of its own, which would get a part of the messages and find the rest missing, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import anyio
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from agent.errors import CheckpointError, TransportError
from agent.transports.nats.connection import Connection, Timeouts
from agent.transports.nats.consumer import Consumer, Source
from agent.transports.nats.pull import WAIT, Place, Pull

ACK_WAIT = 6.0  # s
_KEEP_EVERY = 2.0  # s
_MOST = 1024  # messages handed out and not acknowledged; keeping begins at half of that
_CLOSING = 2.0  # s for the last acknowledgements
_NO_CONSUMER = 10014
_OWNER = "edge-agent-checkpoint"  # in the consumer's metadata
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NS = 1_000_000_000


def judge_name(name: str) -> None:
    """The name of a durable consumer. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f'"{name:.80}" is no name of a durable consumer; use letters, digits, - and _')


class DurableConsumer(Consumer):
    """As Consumer; ``name`` is the consumer's on the server, which is created if it is not there.

    ``place``: as Consumer's, and ``owner``, the number of the reader's file. ``keep`` puts place and all that was made
    of the messages on disk; what it raises ends ``messages``.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        owner: int,
        keep: Callable[[], None],
        only_new: bool = False,
        place: Sequence[int] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(source, only_new=only_new, place=place, timeouts=timeouts)
        self._name = name
        self._owner = owner
        self._keep = keep
        self._kept_at = 0.0
        self._done: dict[int, str] = {}  # what was made of these is not acknowledged yet: reply subjects by number

    @property
    def place(self) -> list[int]:
        """As Consumer's; zeros: no message came yet."""
        return [*(super().place or (0, 0)), self._owner]

    async def _read(self, connection: Connection, pull: Pull) -> AsyncGenerator[bytes | None]:
        """Raises CheckpointError: the consumer belongs to another reader's file."""
        jetstream = connection.client.jetstream(timeout=self._timeouts.answer)
        stream = await self._stream(jetstream, pull)
        self._keep()  # the number is ours before the server has it
        await self._acknowledge(connection)  # what an earlier connection could not
        info = await self._attach(jetstream, stream, pull)
        again_by = anyio.current_time() + ACK_WAIT + WAIT
        while info.num_ack_pending and anyio.current_time() < again_by:
            await anyio.sleep(WAIT / 4)
            info = await pull.request(jetstream.consumer_info(stream, self._name))
        pull.attach(stream, self._name)
        if not info.num_pending and not info.num_ack_pending:
            yield None
        try:
            async with aclosing(self._pulled(pull, info.delivered.consumer_seq if info.delivered else 0)) as messages:
                async for message in messages:
                    yield message
                    if len(self._done) >= _MOST // 2 or anyio.current_time() >= self._kept_at + _KEEP_EVERY:
                        self._keep_now()
                        await self._acknowledge(connection)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING):
                self._keep_now()
                await self._acknowledge(connection)

    async def _pulled(self, pull: Pull, delivery: int) -> AsyncGenerator[bytes | None]:
        """``delivery``: number of the last one so far."""
        while True:
            message = await pull.receive()
            if message is None:
                yield None
                continue
            place = Place.of(message)
            if place.delivery > delivery + 1:
                hint = "if another process reads as this one, give each a part of the subjects and a name of its own"
                raise TransportError(f"messages of {self._name} went to somebody else", hint=hint)
            delivery = place.delivery
            if place.seq not in self._done:
                yield message.data
                if self._last is None or place.time > self._last.time or place.seq > self._last.seq:
                    self._last = place
            self._done[place.seq] = message.reply
            if not place.pending and place.tries == 1:  # what comes again comes before all else
                yield None

    def _keep_now(self) -> None:
        self._kept_at = anyio.current_time()
        self._keep()

    async def _acknowledge(self, connection: Connection) -> None:
        """Acknowledge what is kept; on a lost connection that is left for the next one."""
        if not self._done:
            return
        kept = list(self._done.values())
        with suppress(nats.errors.Error, OSError):
            for reply in kept:
                await connection.client.publish(reply, b"+ACK")
            await connection.client.flush(timeout=max(1, round(_CLOSING)))
            self._done.clear()

    async def _attach(self, jetstream: JetStreamContext, stream: str, pull: Pull) -> ConsumerInfo:
        try:
            info: ConsumerInfo = await pull.request(jetstream.consumer_info(stream, self._name))
        except nats.js.errors.NotFoundError as error:
            if error.err_code != _NO_CONSUMER:
                raise
            subject = f"$JS.API.CONSUMER.CREATE.{stream}.{self._name}.{self._source.subject}"
            wanted = json.dumps({"stream_name": stream, "config": self._wanted(), "action": "create"})
            created = jetstream._api_request(subject, wanted.encode(), timeout=self._timeouts.answer)
            info = ConsumerInfo.from_response(await pull.request(created))
        owner = (info.config.metadata or {}).get(_OWNER)
        if owner != str(self._owner):
            what = f"the durable consumer {self._name} of {stream}"
            if owner is None:
                hint = "choose another name; if this command made it, the server is older than 2.10 and too old for it"
                raise CheckpointError(f"{what} was not made by this command", hint=hint)
            hint = "use the file that it began with; or share the subjects out, each process with its own name and file"
            raise CheckpointError(f"{what} belongs to another checkpoint", hint=hint)
        return info

    def _wanted(self) -> dict[str, Any]:
        start = self._since(self._last.time) if self._last is not None else self._start()
        return {
            **{key: value for key, value in start.as_dict().items() if key.startswith(("deliver_policy", "opt_"))},
            "name": self._name,
            "durable_name": self._name,
            "description": "edge-agent tail",
            "filter_subject": self._source.subject,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * _NS),
            "max_ack_pending": _MOST,
            "metadata": {_OWNER: str(self._owner)},
        }
