"""The wire: one Modbus TCP connection that its devices share. The only module that knows sockets.

It tries once. What goes wrong becomes an AcquisitionError with a cause; retry is the next cycle's. Two back-offs
(patience.py), both on the agent's clock, keep trouble from spreading: of a connection that failed or was lost, and of a
unit that does not answer, so that it does not hold the wire for the others. Meanwhile acquisitions fail at once, with
the same words. No state outlives the process.

Function 43/14 is unknown to many devices. Most say so; some gateways close the connection or lock up. So a unit that
gave no good answer to it once is not asked again, and nobody is once two units gave none and no unit ever gave one.

One request is under way at a time, and its answer must have its transaction id (adu.py). An answer with an earlier id
comes late, after a time-out or a cancelled acquisition, and is skipped; so is what comes unasked. Bytes that are not
Modbus close the connection. docs/adr/0014-our-own-modbus-tcp-client.md says why this is not a library's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, cast

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from adapters.modbus import adu
from adapters.modbus.adu import Adu, NotAsked, NotModbus
from adapters.modbus.identification import Objects, Question
from adapters.modbus.patience import Patience
from adapters.modbus.requests import Registers
from agent.errors import AcquisitionError
from agent.model import Cause
from agent.ports import Clock

S = 1_000_000_000
_CLOSED = "the connection was closed by the agent"
_LOST = "the connection was lost"
_MOST_MUTE = 2
GATEWAY_LOST_UNIT = (0x0A, 0x0B)
"""Exceptions of a gateway that cannot reach the unit: asking on would only hold the wire."""

_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""s, s and probes: keeps a router from forgetting an idle connection, and notices a dead end between two polls."""
_TICK = 0.001  # s; uvloop's clock and timers count milliseconds

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Link(asyncio.Protocol):
    """One TCP connection with at most one request under way. ``timeout`` in seconds."""

    def __init__(self, timeout: float) -> None:
        self.transaction = 0  # of the last request
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._transport: asyncio.Transport | None = None
        self._splitter = adu.Splitter()
        self._waiting: asyncio.Future[Adu] | None = None
        self._unit = 0
        self._requests = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._skipped = 0
        self._said = ""  # about the request under way, should nothing come of it

    @property
    def open(self) -> bool:
        """Whether requests can be made: not before it is connected, nor once either end has closed."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, unit: int, pdu: bytes) -> Adu:
        """What comes back for a request. Raises TimeoutError, after which the next may be made, NotModbus and
        ConnectionError, after which the connection is closed. If it is cancelled the next may be made, too.
        """
        if self._transport is None:
            raise ConnectionResetError(_LOST)
        self._unit = unit
        self.transaction = adu.after(self.transaction)
        self._requests += 1
        self._said = ""
        self._deadline = self._loop.time() + self._timeout
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        self._waiting = self._loop.create_future()
        self._transport.write(adu.encode(self.transaction, unit, pdu))
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def close(self, error: Exception) -> None:
        """Let go of the connection; a request under way fails with the error."""
        self._fail(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # ---- what the event loop calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        wire = self._transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            wire.setsockopt(socket.IPPROTO_TCP, option, value)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.close(ConnectionResetError(_LOST))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._splitter.feed(data):
                self._received(message)
        except NotModbus as error:
            if self._waiting is None:
                log.debug("not Modbus, connection closed why=%r", str(error))
            self.close(error)

    def _received(self, message: Adu) -> None:
        """Hand the answer to who waits for it, unless it cannot be the one."""
        waiting = self._waiting
        if waiting is None or waiting.done():
            self._skip(message, "nobody waits for it")
        elif message.transaction != self.transaction and self._is_late(message.transaction):
            self._skip(message, "late")
        elif self._unit and message.unit != self._unit:  # 0 is whoever is there (Messaging on TCP/IP, 4.4.2)
            self._said = f"unit {message.unit} answered instead"
            self._skip(message, "another unit")
        else:
            waiting.set_result(message)

    def _is_late(self, transaction: int) -> bool:
        """Whether an earlier request of this connection had the id; 0 never."""
        return bool(transaction) and adu.age(transaction, self.transaction) < self._requests

    def _skip(self, message: Adu, why: str) -> None:
        self._skipped += 1
        log.debug("answer skipped why=%r unit=%d total=%d", why, message.unit, self._skipped)

    def _expire(self) -> None:
        """End the request whose time is over. One timer serves all requests: it is set again only if it must be."""
        self._timer = None
        if self._waiting is None:
            return
        if self._deadline - self._loop.time() > _TICK:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        else:
            self._fail(TimeoutError(self._said))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


Answer = bytes | int | None


class Answers(NamedTuple):
    """What came back: per request its registers as they travelled, the code of an exception response, or None for no
    answer. Times are boot times.
    """

    started: int
    ended: int
    blocks: list[Answer]


def _reason(error: OSError | ValueError) -> str:
    """Why a connection could not be made, in the system's words."""
    if isinstance(error, ValueError):
        return str(error)
    if error.errno is None:
        return "no answer" if isinstance(error, TimeoutError) else str(error)
    return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)


class Connection:
    """A connection to a device or gateway, opened when it is needed. ``timeout`` and ``pause`` in ns."""

    def __init__(self, *, host: str, port: int, timeout: int, pause: int, clock: Clock) -> None:
        self._host = host
        self._port = port
        self._timeout = timeout / S
        self._pause = pause
        self._clock = clock
        self._turn = asyncio.Lock()  # anyio's costs 3 us more, and the link is asyncio's anyway
        self._link: _Link | None = None
        self._made = 0  # how many connections were made
        self._closed = False
        self._quiet_until = 0
        self._patience = Patience()
        self._mute: set[int] = set()  # units that are not asked again what they are
        self._identified = False  # one was asked, and answered

    @property
    def number(self) -> int:
        """Which connection, counted from 1, a request would use now: the open one, or the next."""
        return self._made + (self._link is None or not self._link.open)

    async def read(self, unit: int, requests: Sequence[Registers], *, over: int | None = None) -> Answers:
        """Send the requests one after another, nobody else's between them. Raises AcquisitionError.

        An exception response is an answer. After one that says the unit is out of the gateway's reach, and after a
        time-out, the rest is not asked; a time-out is an error only if nothing was answered before it. ``over``: the
        ``number`` of the only connection that will do.
        """
        if self._turn.locked():
            self._refuse(unit)  # do not queue for nothing
        async with self._turn:
            self._refuse(unit)
            link = await self._connected(over)
            started = None
            blocks: list[Answer] = []
            for request in requests:
                if self._pause:
                    await self._clock.sleep_until(self._quiet_until)
                if started is None:
                    started = self._clock.boot()
                try:
                    answer = await self._ask(link, unit, adu.ask_registers(request), partial(adu.registers, request))
                except AcquisitionError as error:
                    if error.cause is not Cause.DEVICE_TIMEOUT or not blocks:
                        raise
                    blocks += [None] * (len(requests) - len(blocks))
                    break
                blocks.append(answer)
                if answer in GATEWAY_LOST_UNIT:
                    blocks += [answer] * (len(requests) - len(blocks))
                    break
            ended = self._clock.boot()
            return Answers(ended if started is None else started, ended, blocks)

    async def identify(self, unit: int, question: Question, *, over: int) -> Objects | int | None:
        """Ask a unit that just answered a read what it is: objects, the code of an exception response, or None, also
        for all later questions, if there is no good answer. Raises AcquisitionError if it could not be asked.

        That there was none is held against the question: reading goes on as before, over a new connection at once.
        """
        if unit in self._mute or (len(self._mute) >= _MOST_MUTE and not self._identified):
            return None
        async with self._turn:
            self._refuse(unit)
            link = await self._connected(over)
            if self._pause:
                await self._clock.sleep_until(self._quiet_until)
            answer: Objects | int | None = None
            try:
                answer = await self._ask(link, unit, adu.ask_objects(question), adu.objects)
            except AcquisitionError:
                if self._closed:
                    raise
                self._patience.forgive(unit)
            if answer is None or answer in GATEWAY_LOST_UNIT:
                self._mute.add(unit)
                return None
            self._identified = True
            return answer

    async def close(self) -> None:
        """Let go of the connection; a request on the wire fails with LINK_DOWN."""
        self._closed = True
        self._disconnect(_CLOSED)
        await cancel_shielded_checkpoint()  # the transport closes its socket in the next turn of the loop

    def _refuse(self, unit: int) -> None:
        """Raise if nothing may be tried now."""
        if self._closed:
            raise AcquisitionError(Cause.LINK_DOWN, _CLOSED)
        if refusal := self._patience.refusal(unit, self._clock.boot()):
            raise AcquisitionError(*refusal)

    async def _connected(self, over: int | None) -> _Link:
        """The open connection, opened now if need be. Raises AcquisitionError, also if it is not the one asked for."""
        link = self._link
        if link is None or not link.open:
            link = await self._connect()
        if over is not None and over != self._made:
            raise AcquisitionError(Cause.LINK_DOWN, "the connection was lost and made anew")
        return link

    async def _connect(self) -> _Link:
        """Open the connection. Raises AcquisitionError."""
        link = _Link(self._timeout)
        try:
            with anyio.fail_after(self._timeout):
                await asyncio.get_running_loop().create_connection(lambda: link, self._host, self._port)
        except BaseException as error:
            link.close(ConnectionAbortedError(_CLOSED))  # it may just have been made, and must not linger
            if isinstance(error, OSError | ValueError):  # ValueError: a name that cannot be asked for (idna), say
                raise self._lost(f"cannot connect: {_reason(error)}") from error
            raise
        if self._closed:
            link.close(ConnectionAbortedError(_CLOSED))
            raise AcquisitionError(Cause.LINK_DOWN, _CLOSED)
        self._link = link
        self._made += 1
        self._patience.connected()
        return link

    async def _ask(self, link: _Link, unit: int, question: bytes, decode: Callable[[bytes], T]) -> T:
        """What comes back for a request, an exception response too. Raises AcquisitionError."""
        try:
            answer = await link.ask(unit, question)
            self._patience.answered(unit)
            if answer.transaction == 0:
                raise AcquisitionError(
                    Cause.DECODE_ERROR, "the answer has no transaction id", hint="not supported yet by this version"
                )
            if answer.transaction != link.transaction:
                raise NotAsked(f"transaction id {answer.transaction} instead of {link.transaction} in the answer")
            return decode(answer.pdu)
        except ConnectionError as error:
            raise self._lost(_CLOSED if self._closed else _LOST) from error
        except TimeoutError as error:
            if self._patience.timed_out(unit, self._clock.boot()):
                self._disconnect("no unit answers")
            text = f"no answer within {self._timeout:g} s"
            raise AcquisitionError(Cause.DEVICE_TIMEOUT, text, hint=str(error)) from error
        except NotAsked as error:
            raise AcquisitionError(Cause.DECODE_ERROR, str(error)) from error
        except NotModbus as error:
            log.debug("not Modbus, connection closed why=%r unit=%d", str(error), unit)
            self._disconnect("not Modbus")
            raise AcquisitionError(Cause.DECODE_ERROR, "the answer is not Modbus") from error
        finally:
            if self._pause:
                self._quiet_until = self._clock.boot() + self._pause

    def _lost(self, reason: str) -> AcquisitionError:
        self._disconnect(reason)
        self._patience.lost(reason, self._clock.boot())
        return AcquisitionError(Cause.LINK_DOWN, reason, hint=f"is {self._host} port {self._port} reachable from here?")

    def _disconnect(self, reason: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(ConnectionAbortedError(reason))
