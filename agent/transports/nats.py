"""NATS JetStream: records as messages on one subject, each acknowledged by the server (docs/evidence.md section 7).

Wraps nats-py. Its own reconnecting is switched off: one ``session`` is one connection to one server, tried once, and
every error leaves as TransportError with a verdict. Its ``publish_async`` is not used, it loses server errors and
leaves futures pending (nats.py issue 985): messages go out with our own reply subject and the answers come back as
``Ack``s.

Nothing is kept on disk. A connection that ends in any way, cancellation included, leaves no task and no socket.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import nats.errors
import nats.js.errors
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from agent.errors import TransportError, Verdict
from agent.evidence.envelope import CONTENT_TYPE
from agent.ports import Ack, Last, Message
from agent.transports.nats_config import NatsConfig

_HEADERS = 512  # bytes that our headers take at most; the server's max_payload counts them
_RESENT = "Edge-Agent-Resent"  # header of a message that does not come in its turn
_ANSWERS = 1024  # kept for ``acks``, many times what a publisher has in flight

# JetStream's own error codes (nats-server's errors.json)
_NO_STREAM, _WRONG_STREAM, _TOO_LARGE, _NOT_STORED = 10059, 10060, 10054, 10077
_HINTS = {
    _WRONG_STREAM: "the channel's stream does not take the channel's subject; correct one of them",
    _TOO_LARGE: "raise the stream's max_msg_size, or shorten seal_within",
    _NOT_STORED: "raise the stream's limits, or let it discard old messages",
}

log = logging.getLogger(__name__)
logging.getLogger("nats").setLevel(logging.CRITICAL)  # its errors reach us as exceptions; its log would say them again


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a server may be silent, in seconds. Unanswered pings end a connection after three times ``ping``."""

    connect: float = 5  # per step: TCP, greeting, reply to our CONNECT; all together twice as long
    answer: float = 5  # to a request
    ping: float = 3  # a server that is gone is noticed within 10 s


class NatsTransport:
    """Implements the ``Transport`` port for a channel."""

    config_model = NatsConfig

    def __init__(self, config: NatsConfig, *, subject: str, timeouts: Timeouts | None = None) -> None:
        self.topic = subject
        self.max_envelope: int | None = None
        self._servers = deque(config.servers)
        self._stream = config.stream
        self._timeouts = timeouts or Timeouts()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[NatsSession]:
        """Connect to the next server in turn. Raises TransportError (RETRY) if that fails."""
        server = self._servers[0]
        self._servers.rotate(-1)
        answers, incoming = anyio.create_memory_object_stream[Ack](_ANSWERS)
        with answers, incoming:
            async with connected(server, timeouts=self._timeouts) as connection:
                self.max_envelope = connection.max_envelope
                session = NatsSession(connection, self.topic, stream=self._stream, answers=answers, incoming=incoming)
                await session.open()
                yield session


class NatsSession:
    """One connection; implements the ``TransportSession`` port."""

    def __init__(
        self,
        connection: Connection,
        subject: str,
        *,
        stream: str | None,
        answers: MemoryObjectSendStream[Ack],
        incoming: MemoryObjectReceiveStream[Ack],
    ) -> None:
        self.junk = 0  # messages on our reply subject that are no answers
        self._connection = connection
        self._subject = subject
        self._stream = stream
        self._answers = answers
        self._incoming = incoming
        self._inbox = connection.client.new_inbox()
        self._headers = {"Content-Type": CONTENT_TYPE}
        if stream is not None:
            self._headers["Nats-Expected-Stream"] = stream  # the server then refuses to store it in another one
        self._reading = anyio.CancelScope()
        self._unreadable: TransportError | None = None
        self._refusal: TransportError | None = None
        connection.on_closed, connection.on_refused = self._closed, self._refused

    async def open(self) -> None:
        """Listen for answers. Raises TransportError."""
        try:
            await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._answered)
        except (nats.errors.Error, OSError) as error:
            raise self._lost(error) from error

    async def last(self) -> Last | None:
        """The last message stored on our subject; None if there is none. Raises TransportError (REJECT: not permitted
        to read).
        """
        with anyio.CancelScope() as self._reading:  # a request that is refused or cut off is never answered
            return await self._last()
        raise self._unreadable or self._lost()

    async def _last(self) -> Last | None:
        jetstream, stream = self._connection.client.jetstream(timeout=self._connection.timeouts.answer), self._stream
        try:
            stream = stream or await jetstream.find_stream_name_by_subject(self._subject)
            message = await jetstream.get_last_msg(stream, self._subject)
        except nats.js.errors.NotFoundError as error:
            if error.err_code is None:  # what nats-py raises itself
                raise _no_stream(self._subject) from error
            if error.err_code == _NO_STREAM:
                raise TransportError(f"there is no stream {stream}", hint="create it, or correct the name") from error
            return None
        except nats.js.errors.ServiceUnavailableError as error:
            raise TransportError(
                f"no JetStream here: {describe(error)}", hint="switch JetStream on for the server and the account"
            ) from error
        except nats.errors.TimeoutError as error:
            raise TransportError("the server does not answer") from error
        except (nats.errors.Error, OSError) as error:
            raise self._lost(error) from error
        return Last(message.data or b"", resent=_RESENT in (message.headers or {}))

    async def send(self, message: Message) -> None:
        """Hand a message to the connection; never waits. Raises TransportError (REJECT: larger than the server
        takes).
        """
        if len(message.envelope) > self._connection.max_envelope:
            raise TransportError(
                f"record of {len(message.envelope)} bytes is larger than the server takes "
                f"({self._connection.max_envelope})",
                hint="raise max_payload on the server, or shorten seal_within",
                verdict=Verdict.REJECT,
            )
        headers = {"Nats-Msg-Id": message.id, **self._headers}
        if message.resent:
            headers[_RESENT] = "1"
        try:
            await self._connection.client.publish(
                self._subject, message.envelope, reply=f"{self._inbox}.{message.token}", headers=headers
            )
        except (nats.errors.Error, OSError) as error:
            raise self._lost(error) from error

    async def acks(self) -> AsyncIterator[Ack]:
        """The server's answers as they come. Raises TransportError when the connection is lost."""
        async for ack in self._incoming:
            yield ack
        raise self._lost()

    async def _answered(self, message: Msg) -> None:
        ack = read_answer(message)
        if ack is None:  # whoever reads our subject sees the reply subject, too, and may send what he likes
            self.junk += 1
            if self.junk == 1:
                log.warning("junk on the reply subject, ignored subject=%s", self._subject)
            return
        # An answer too many may be lost: the publisher's deadline sends the record again, its id tells.
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._answers.send_nowait(ack)

    def _refused(self, what: str) -> None:
        if '"$js.api.' in what:
            hint = "let the agent's user publish to $JS.API.STREAM.NAMES and $JS.API.STREAM.MSG.GET.>"
            self._unreadable = TransportError(f"not permitted to read back: {what}", hint=hint, verdict=Verdict.REJECT)
            self._reading.cancel()
            return
        right = "subscribe to _INBOX.>" if "for subscription" in what else f"publish to {self._subject}"
        self._refusal = TransportError(f"not permitted: {what}", hint=f"let the agent's user {right}")
        self._closed()

    def _closed(self) -> None:
        self._answers.close()
        self._reading.cancel()

    def _lost(self, error: Exception | None = None) -> TransportError:
        client = self._connection.client
        if error is not None and not client.is_closed:
            return TransportError(describe(error))
        return self._refusal or TransportError(f"connection lost: {describe(client.last_error or error or 'by us')}")


def read_answer(message: Msg) -> Ack | None:
    """The answer to one message: a PubAck, an API error, or no responders (JetStream off or no stream); None: none of
    these.
    """
    token = message.subject.rpartition(".")[2]
    if not (token.isascii() and token.isdigit()):
        return None
    if message.headers and message.headers.get("Status") == "503":
        return Ack(int(token), _no_stream())
    try:
        answer = json.loads(message.data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        code, words = error.get("err_code"), error.get("description")
        hint = _HINTS.get(code, "") if isinstance(code, int) else ""
        verdict = Verdict.REJECT if code == _TOO_LARGE else Verdict.RETRY
        return Ack(
            int(token), TransportError(f"the server refused a record: {words or code}", hint=hint, verdict=verdict)
        )
    is_ack = error is None and isinstance(answer.get("seq"), int) and isinstance(answer.get("stream"), str)
    return Ack(int(token), duplicate=answer.get("duplicate") is True) if is_ack else None


def _no_stream(subject: str = "the subject") -> TransportError:
    return TransportError(
        f"no JetStream stream takes {subject}", hint="create the stream on the server, or correct the channel's subject"
    )


# ---- connection -------------------------------------------------------------------------------------------------


class Connection:
    """A client that is connected to one server until it is closed; it is never re-made by itself."""

    def __init__(self, server: str, timeouts: Timeouts) -> None:
        self.client = Client()
        self.timeouts = timeouts
        self.on_closed: Callable[[], None] = lambda: None
        self.on_refused: Callable[[str], None] = lambda what: None  # a right that the server denies, in its words
        self._server = server
        self._closed = anyio.Event()

    @property
    def max_envelope(self) -> int:
        """Bytes of the largest message that the server takes besides our headers."""
        return self.client.max_payload - _HEADERS

    async def open(self) -> None:
        """Try once. Raises TransportError; close in any case."""
        self.client._transport = _Wire()  # type: ignore[no-untyped-call]
        seconds = self.timeouts
        try:
            with anyio.fail_after(2 * seconds.connect):
                await self.client.connect(
                    self._server,
                    name="edge-agent",
                    error_cb=self._failed,
                    closed_cb=self._was_closed,
                    allow_reconnect=False,
                    connect_timeout=seconds.connect,  # type: ignore[arg-type]  # it takes parts of a second, too
                    ping_interval=seconds.ping,  # type: ignore[arg-type]
                    max_outstanding_pings=2,
                    pending_size=0,  # a publish neither waits for the connection nor outlives it
                )
        except Exception as error:  # what is no NATS server makes nats-py raise all sorts of things
            raise TransportError(f"cannot connect to {self._server}: {describe(error)}") from error

    async def close(self) -> None:
        """Let go of socket and tasks. Never raises."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            # A client that never came up says so in many ways.
            with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
                await self.client.close()
            await self._closed.wait()  # nats-py may be closing already, on its own

    async def _failed(self, error: Exception) -> None:
        if not self.client.is_connected and not self.client.is_closed:
            raise error  # leaves nats-py's retry loop, which allow_reconnect does not
        if "permissions violation" in str(error):
            self.on_refused(describe(error))

    async def _was_closed(self) -> None:
        self._closed.set()
        self.on_closed()


@asynccontextmanager
async def connected(server: str, *, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """One connection to one server, tried once. Raises TransportError (RETRY)."""
    connection = Connection(server, timeouts)
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


class _Wire(TcpTransport):
    """TCP that closes at once, whatever still waits to be sent: what was not sent was not acknowledged.

    nats-py's ``Client._close`` drains and flushes first: on a lost connection that raises, on a frozen one it never
    ends, and in both cases socket and tasks stay and nobody is told.
    """

    async def drain(self) -> None:
        """Do not wait: what may be unsent is bounded by the publisher's window."""

    def close(self) -> None:
        """Drop the connection."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def __bool__(self) -> bool:
        """Always true, for nats-py replaces what is false."""
        return True


def describe(error: object) -> str:
    """An error in words: nats-py's often have none."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    words = getattr(error, "description", None) or str(error).removeprefix("nats: ").strip("'")
    return words or type(error).__name__
