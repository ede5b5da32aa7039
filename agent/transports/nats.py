"""NATS JetStream: records as messages on one subject, each acknowledged by the server (docs/evidence.md section 7).

Wraps nats-py. Its own reconnecting is switched off: one ``session`` is one connection to one server, tried once, and
every error leaves as TransportError with a verdict. Its ``publish_async`` is not used, it loses server errors and
leaves futures pending (nats.py issue 985): messages go out with our own reply subject and the answers come back as
``Ack``s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.envelope import CONTENT_TYPE
from agent.errors import TransportError, Verdict
from agent.ports import Ack, Message
from agent.transports.nats_config import NatsConfig

CONNECT_TIMEOUT = 5  # s
PING_INTERVAL = 3  # s; a server that two pings do not reach is gone: noticed within 10 s
REQUEST_TIMEOUT = 5  # s

logging.getLogger("nats").setLevel(logging.CRITICAL)  # its errors reach us as exceptions; its log would say them again


class NatsTransport:
    """Implements the ``Transport`` port for a channel."""

    config_model = NatsConfig

    def __init__(self, config: NatsConfig, *, subject: str) -> None:
        self.topic = subject
        self.max_envelope: int | None = None
        self._servers = list(config.servers)
        self._stream = config.stream

    @asynccontextmanager
    async def session(self) -> AsyncIterator[NatsSession]:
        """Connect to the next server in turn. Raises TransportError (RETRY) if that fails."""
        server = self._servers.pop(0)
        self._servers.append(server)
        answers, incoming = anyio.create_memory_object_stream[Ack](max_buffer_size=1024)
        client = await connect(server, on_closed=answers.close)
        try:
            self.max_envelope = client.max_payload - 512  # headers count too
            session = NatsSession(client, subject=self.topic, stream=self._stream, incoming=incoming)
            inbox = client.new_inbox()
            session.reply_prefix = inbox + "."

            async def answered(message: Msg) -> None:
                # An answer too many may be lost: the publisher's deadline sends the record again, its id tells.
                with suppress(anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
                    answers.send_nowait(_ack(message))

            await client.subscribe(inbox + ".*", cb=answered)
            yield session
        except (nats.errors.Error, OSError) as error:
            raise TransportError(f"{server}: {describe(error)}") from error
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await _close(client)
            incoming.close()


class NatsSession:
    """One connection; implements the ``TransportSession`` port."""

    reply_prefix = ""

    def __init__(self, client: Client, *, subject: str, stream: str | None, incoming: Any) -> None:
        self._client = client
        self._subject = subject
        self._stream = stream
        self._incoming = incoming

    async def last(self) -> bytes | None:
        """The last message stored on our subject; None if there is none. Raises TransportError (REJECT: not permitted
        to read).
        """
        jetstream = self._client.jetstream(timeout=REQUEST_TIMEOUT)
        try:
            if self._stream is None:
                self._stream = await jetstream.find_stream_name_by_subject(self._subject)
            message = await jetstream.get_last_msg(self._stream, self._subject)
        except nats.js.errors.NotFoundError as error:
            if self._stream is None:
                raise TransportError(
                    f"no JetStream stream takes the subject {self._subject}",
                    hint="create the stream on the server, or correct the channel's subject",
                ) from error
            return None
        except (nats.errors.TimeoutError, nats.js.errors.APIError) as error:
            raise TransportError(f"cannot read back: {describe(error)}", verdict=Verdict.REJECT) from error
        except (nats.errors.Error, OSError) as error:
            raise TransportError(describe(error)) from error
        return message.data

    async def send(self, message: Message) -> None:
        """Hand a message to the connection. Raises TransportError (REJECT: larger than the server takes)."""
        try:
            await self._client.publish(
                self._subject,
                message.envelope,
                reply=f"{self.reply_prefix}{message.token}",
                headers={"Nats-Msg-Id": message.id, "Content-Type": CONTENT_TYPE},
            )
        except nats.errors.MaxPayloadError as error:
            raise TransportError(
                f"record of {len(message.envelope)} bytes is larger than the server takes ({self._client.max_payload})",
                hint="raise max_payload on the server, or shorten seal_within",
                verdict=Verdict.REJECT,
            ) from error
        except (nats.errors.Error, OSError) as error:
            raise TransportError(describe(error)) from error

    async def acks(self) -> AsyncIterator[Ack]:
        """The server's answers as they come. Raises TransportError when the connection is lost."""
        async for ack in self._incoming:
            yield ack
        raise TransportError(f"connection lost: {describe(self._client.last_error or 'closed by the server')}")


async def connect(server: str, *, on_closed: Any) -> Client:
    """One connection to one server, tried once, that is never re-made by itself. Raises TransportError."""

    async def give_up(error: Exception) -> None:
        if not client.is_connected and not client.is_closed:
            raise error  # leaves nats-py's retry loop, which allow_reconnect does not

    async def closed() -> None:
        on_closed()

    client = Client()
    try:
        with anyio.fail_after(2 * CONNECT_TIMEOUT):
            await client.connect(
                server,
                name="edge-agent",
                error_cb=give_up,
                closed_cb=closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                connect_timeout=CONNECT_TIMEOUT,
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=2,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await _close(client)
        raise TransportError(f"cannot connect to {server}: {describe(error)}") from error
    return client


async def _close(client: Client) -> None:
    # A client that never came up cannot flush, and says so in many ways.
    with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
        await client.close()


def _ack(message: Msg) -> Ack:
    """The answer to one message: a PubAck, an API error, or no responders (JetStream off or no stream)."""
    token = int(message.subject.rpartition(".")[2])
    if message.headers and message.headers.get("Status") == "503":
        return Ack(
            token, TransportError("no JetStream stream takes the subject", hint="create the stream on the server")
        )
    try:
        answer = json.loads(message.data)
        error = answer.get("error")
    except (ValueError, AttributeError):
        return Ack(token, TransportError("the server's answer is not a PubAck"))
    if error is None and isinstance(answer.get("seq"), int):
        return Ack(token)
    text = error.get("description") if isinstance(error, dict) else None
    return Ack(token, TransportError(f"the server refused a record: {text or 'no reason given'}"))


def describe(error: object) -> str:
    """An error in words: nats-py's often have none."""
    return str(error).removeprefix("nats: ") or type(error).__name__
