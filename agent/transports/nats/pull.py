"""Messages pulled from a consumer that the server has: requests for more, and what comes back (NATS ADR-13)."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
import nats.errors
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from nats.aio.msg import Msg

from agent.errors import Reason, TransportError
from agent.transports.nats.connection import Connection
from agent.transports.nats.failures import no_answer

BATCH = 128  # messages asked for at a time, and held in memory
_BYTES = 4 * 1024 * 1024  # asked for at a time: far less than what makes a server drop a slow reader (64 MiB)
_ENOUGH = ("Message Size Exceeds MaxBytes", "Batch Completed")  # that many bytes, that is
WAIT = 1.0  # s that a request for more stays open
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands in its stream."""

    seq: int
    time: int  # ns, by the server's clock
    pending: int  # messages of the subject behind it
    delivery: int = 0  # number of this delivery among all of its consumer; 0: not known
    tries: int = 1  # how often it was delivered

    @classmethod
    def of(cls, message: Msg) -> Place:
        """From the reply subject: ``$JS.ACK.[domain.account.]stream.consumer.tries.seq.seq.time.pending[.token]``.

        Raises TransportError: somebody else sent it.
        """
        words = message.reply.split(".")
        try:
            tries, seq, delivery, time, pending = map(int, words[4:9] if len(words) == 9 else words[6:11])
        except ValueError as error:
            raise no_answer(error) from error
        return cls(seq, time, pending, delivery, tries)


class Pull:
    """One connection's requests, to one consumer after another."""

    def __init__(
        self, connection: Connection, arrived: MemoryObjectSendStream[Msg], incoming: MemoryObjectReceiveStream[Msg]
    ) -> None:
        self._connection = connection
        self._arrived = arrived
        self._incoming = incoming
        self._inbox = connection.client.new_inbox()
        self._subject = ""
        self._asked = 0  # number of the last request
        self._size = 0  # messages asked for by it
        self._due = 0  # and of these not come yet
        self._refusal = ""
        self._requesting = anyio.CancelScope()
        connection.on_closed, connection.on_refused = self._ended, self._refused

    async def open(self) -> None:
        """Listen for what comes."""
        await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._arrive, pending_bytes_limit=0)

    def attach(self, stream: str, consumer: str) -> None:
        """Ask this consumer from now on."""
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._due = 0

    async def request(self, answer: Awaitable[T]) -> T:
        """What the server answers. Raises TransportError if it refuses or goes, which no answer tells, or if the answer
        is none; else what nats-py raises.
        """
        with anyio.CancelScope() as self._requesting:
            try:
                return await answer
            except (nats.errors.Error, OSError):
                raise
            except Exception as error:
                raise no_answer(error) from error
        raise self._lost()

    async def one(self) -> Place | None:
        """Where the next message stands, which is passed over; None if none came."""
        message = await self.receive(1)
        return None if message is None else Place.of(message)

    async def receive(self, batch: int = BATCH) -> Msg | None:
        """The next message: of those stored, then of those that come; ``batch`` are asked for when none is due any
        more. None once nothing came for ``WAIT``. Raises TransportError.
        """
        while True:
            if not self._due:
                await self._ask(batch)
            try:
                with anyio.fail_after(WAIT + self._connection.timeouts.answer):
                    message = await self._incoming.receive()
            except TimeoutError:
                raise TransportError("the server does not answer", reason=Reason.TIMEOUT) from None
            except anyio.EndOfStream:
                raise self._lost() from None
            headers = message.headers or {}
            status = headers.get("Status")
            if status is None or message.reply:
                self._due -= 1
                return message
            if message.subject != f"{self._inbox}.{self._asked}":  # of an earlier request, whose messages all came
                continue
            words = headers.get("Description") or ("the consumer is gone" if status == "503" else f"status {status}")
            pending = headers.get("Nats-Pending-Messages", "")
            unsent = int(pending) if pending.isdecimal() else self._due
            enough = words in _ENOUGH and unsent < self._size
            if status not in ("404", "408") and not enough:
                raise TransportError(f"the server ended the consumer: {words}")
            # A cluster makes sure of messages before they leave, and lets this overtake them.
            self._due = max(0, self._due - unsent)
            if not self._due and not enough:  # nothing more, time over
                return None

    async def _ask(self, batch: int) -> None:
        room = max(_BYTES, 2 * self._connection.client.max_payload)  # for one message at least
        request = {"batch": batch, "max_bytes": room, "expires": int(WAIT * 1e9)}
        self._asked += 1
        reply = f"{self._inbox}.{self._asked}"
        await self._connection.client.publish(self._subject, json.dumps(request).encode(), reply=reply)
        self._due = self._size = batch

    async def _arrive(self, message: Msg) -> None:
        self._connection.alive()
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._arrived.send_nowait(message)

    def _refused(self, what: str) -> None:
        self._refusal = what
        self._ended()

    def _ended(self) -> None:
        self._arrived.close()
        self._requesting.cancel()

    def _lost(self) -> TransportError:
        if self._refusal:
            hint = "docs/consuming.md lists the rights needed"
            return TransportError(f"not permitted: {self._refusal}", hint=hint, reason=Reason.PERMISSION)
        return self._connection.lost()
