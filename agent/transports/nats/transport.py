"""NATS JetStream: records as messages on one subject, each acknowledged by the server (docs/evidence.md section 7).

One ``session`` is one connection to one server, tried once, and every error leaves as TransportError with a verdict.
nats-py's ``publish_async`` is not used, it loses server errors and leaves futures pending (nats.py issue 985):
messages go out with our own reply subject and the answers come back as ``Ack``s.

Nothing is kept on disk.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import anyio
import nats.errors
import nats.js.errors
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.errors import Reason, TransportError, Verdict
from agent.evidence.envelope import CONTENT_TYPE
from agent.ports import Ack, Clock, Last, Message, Recipient, Signer
from agent.transports.facts import BrokerFacts
from agent.transports.nats.config import NatsConfig
from agent.transports.nats.connection import Connection, Timeouts, connected
from agent.transports.nats.facts import server_facts, stream_facts
from agent.transports.nats.failures import (
    IN_PROCESS,
    NO_STREAM,
    answered,
    api_error,
    no_answer,
    no_stream,
    nobody,
    too_large,
)
from agent.transports.nats.stream import prepare

_RESENT = "Edge-Agent-Resent"  # header of a message that does not come in its turn
_STORING = Ack(-1)  # read_answer: it has it, but not safe yet
_ANSWERS = 1024  # kept for ``acks``, many times what a publisher has in flight
T = TypeVar("T")

log = logging.getLogger(__name__)


class NatsTransport:
    """Implements the ``Transport`` port for a channel."""

    config_model = NatsConfig
    window = 64
    ack_within: int | None = 5_000_000_000
    reads_back = True
    recipients: Sequence[Recipient] = ()

    def __init__(
        self,
        config: NatsConfig,
        *,
        topic: str,
        signer: Signer | None = None,
        clock: Clock | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """``topic``: the subject. Records are signed already, and nothing here depends on the time."""
        self.topic = topic
        self.max_envelope: int | None = None
        self._config = config
        self._servers = deque(config.servers)
        self._timeouts = timeouts or Timeouts()
        self._remark = ""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[NatsSession]:
        """Connect to the next server in turn. Raises TransportError if that fails, or the stream of ``create`` is not
        there then and does not take our subject.
        """
        server = self._servers[0]
        self._servers.rotate(-1)
        answers, incoming = anyio.create_memory_object_stream[Ack](_ANSWERS)
        with answers, incoming:
            async with connected(server, self._config, timeouts=self._timeouts) as connection:
                self.max_envelope = connection.max_envelope
                session = NatsSession(connection, self._config, self.topic, answers=answers, incoming=incoming)
                await session.open()
                if session.remark != self._remark:
                    self._remark = session.remark
                    if self._remark:
                        log.warning("remark on the stream subject=%s remark=%s", self.topic, self._remark)
                yield session


class NatsSession:
    """One connection; implements the ``TransportSession`` port."""

    delivers = False

    def __init__(
        self,
        connection: Connection,
        config: NatsConfig,
        subject: str,
        *,
        answers: MemoryObjectSendStream[Ack],
        incoming: MemoryObjectReceiveStream[Ack],
    ) -> None:
        self.junk = 0  # messages on our reply subject that are no answers
        self.remark = ""  # what is to be said of the stream, though we go on
        self._connection = connection
        self._config = config
        self._subject = subject
        self._stream = config.stream
        self._answers = answers
        self._incoming = incoming
        self._inbox = connection.client.new_inbox()
        self._headers = {"Content-Type": CONTENT_TYPE}
        if self._stream is not None:
            self._headers["Nats-Expected-Stream"] = self._stream  # the server then refuses to store it in another one
        self._asking = anyio.CancelScope()
        self._unasked: TransportError | None = None  # a request that we may not make
        self._refusal: TransportError | None = None
        connection.on_closed, connection.on_refused = self._closed, self._refused

    async def open(self) -> None:
        """Listen for answers, and see to the stream. Raises TransportError."""
        try:
            await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._answered)
        except (nats.errors.Error, OSError) as error:
            raise self._lost(error) from error
        try:
            self.remark = await self._ask(prepare(self._jetstream(), self._config, self._subject))
        except TransportError as error:
            if error is not self._unasked:
                raise
            if self._config.create is not None:
                self.remark = f"{error}; {error.hint}"  # it may be there all the same

    async def last(self) -> Last | None:
        """The last message stored on our subject; None if there is none. Raises TransportError (REJECT: not permitted
        to read).
        """
        return await self._ask(self._last())

    async def facts(self) -> BrokerFacts:
        """What the server says of itself and of the stream, for who looks whether all is well. Never raises."""
        found = server_facts(self._connection)
        try:
            stream, ahead, within = await self._ask(
                stream_facts(self._connection, self._jetstream(), self._stream, self._subject)
            )
        except TransportError as error:
            return replace(found, untold=str(error))
        return replace(found, stream=stream, ahead=ahead, ahead_within=within)

    async def _last(self) -> Last | None:
        jetstream, stream = self._jetstream(), self._stream
        try:
            stream = stream or await jetstream.find_stream_name_by_subject(self._subject)
            message = await jetstream.get_last_msg(stream, self._subject)
        except nats.js.errors.NotFoundError as error:
            if error.err_code is None:  # what nats-py raises itself
                raise no_stream(self._subject) from error
            if error.err_code == NO_STREAM:
                if self._config.is_visitor and self._config.create is not None:
                    return None
                hint = "create it, or correct the name"
                raise TransportError(f"there is no stream {stream}", hint=hint, reason=Reason.NO_STREAM) from error
            return None
        return Last(message.data or b"", resent=_RESENT in (message.headers or {}))

    async def _ask(self, request: Awaitable[T]) -> T:
        """What a request yields. Raises TransportError, also if it is refused or cut off, which no answer tells."""
        self._unasked = None
        with anyio.CancelScope() as self._asking:
            try:
                return await request
            except nats.js.errors.APIError as error:
                raise api_error(error) from error
            except nats.errors.TimeoutError as error:
                raise TransportError("the server does not answer", reason=Reason.TIMEOUT) from error
            except (nats.errors.Error, OSError) as error:
                raise self._lost(error) from error
            except TransportError:
                raise
            except Exception as error:
                raise no_answer(error) from error
        raise self._unasked or self._lost()

    def _jetstream(self) -> JetStreamContext:
        return self._connection.client.jetstream(timeout=self._connection.timeouts.answer)

    async def send(self, message: Message) -> None:
        """Hand a message to the connection; never waits. Raises TransportError (REJECT: larger than the server
        takes).
        """
        if len(message.envelope) > self._connection.max_envelope:
            raise too_large(len(message.envelope), self._connection.max_envelope)
        headers = {"Nats-Msg-Id": message.id, **self._headers}
        if message.resent:
            headers[_RESENT] = "1"
        try:
            await self._connection.client.publish(
                self._subject, message.envelope, reply=f"{self._inbox}.{message.token}", headers=headers
            )
        except (nats.errors.Error, OSError) as error:
            raise self._lost(error) from error

    async def room(self) -> None:
        """Return once what was sent has left, but for little. Never raises."""
        await self._connection.room()

    def hasten(self) -> None:
        """Nothing waits here."""

    async def acks(self) -> AsyncIterator[Ack]:
        """The server's answers as they come. Raises TransportError when the connection is lost."""
        async for ack in self._incoming:
            yield ack
        raise self._lost()

    async def _answered(self, message: Msg) -> None:
        ack = read_answer(message, self._subject, clustered=self._connection.clustered)
        if ack is None:  # whoever reads our subject sees the reply subject, too, and may send what he likes
            self.junk += 1
            if self.junk == 1:
                log.warning("junk on the reply subject, ignored subject=%s", self._subject)
            return
        if ack is _STORING:
            return  # the answer to its first sending comes when it is stored; if not, the publisher sends it again
        self._connection.alive()
        # An answer too many may be lost: the publisher's deadline sends the record again, its id tells.
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._answers.send_nowait(ack)

    def _refused(self, what: str) -> None:
        if '"$js.api.' in what:
            api = "$JS.API.STREAM."
            rights = f"{api}NAMES and {api}MSG.GET.>"
            if ".msg.get." not in what and self._stream is not None:
                rights = f"{api}INFO.> and {api}CREATE.>"
            doing = "read back" if ".msg.get." in what or self._stream is None else "ask"
            right = f"publish to {rights}"
            self._unasked = _not_permitted(f"not permitted to {doing}: {what}", right, verdict=Verdict.REJECT)
            self._asking.cancel()
            return
        right = "subscribe to _INBOX.>" if "for subscription" in what else f"publish to {self._subject}"
        self._refusal = _not_permitted(f"not permitted: {what}", right)
        self._closed()

    def _closed(self) -> None:
        self._answers.close()
        self._asking.cancel()

    def _lost(self, error: Exception | None = None) -> TransportError:
        return self._refusal or self._connection.lost(error)


def read_answer(message: Msg, subject: str, *, clustered: bool) -> Ack | None:
    """The answer to one message: a PubAck, an API error, or no responders (JetStream off, no stream, or in a cluster no
    leader); None: none of these. ``_STORING``: a cluster has got the same id before and is about to store it, which
    may still fail; servers before 2.11 say that with a PubAck for number 0.
    """
    token = message.subject.rpartition(".")[2]
    if not (token.isascii() and token.isdigit()):
        return None
    if message.headers and message.headers.get("Status") == "503":
        return Ack(int(token), nobody(subject, clustered=clustered))
    try:
        answer = json.loads(message.data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        if error.get("err_code") == IN_PROCESS:
            return _STORING
        found = answered(error.get("err_code"), error.get("description"))
        what = f"the server refused a record: {found}"
        return Ack(int(token), TransportError(what, hint=found.hint, verdict=found.verdict, reason=found.reason))
    seq = answer.get("seq")
    if error is not None or type(seq) is not int or seq < 0 or not isinstance(answer.get("stream"), str):
        return None
    return Ack(int(token), duplicate=answer.get("duplicate") is True) if seq else _STORING


def _not_permitted(what: str, right: str, *, verdict: Verdict = Verdict.RETRY) -> TransportError:
    hint = f"let the agent's user {right}"
    return TransportError(what, hint=hint, verdict=verdict, reason=Reason.PERMISSION)
