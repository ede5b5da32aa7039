"""The wire: one Modbus TCP connection that its devices share. The only module that knows pymodbus.

It tries once. What goes wrong becomes an AcquisitionError with a cause; retry is the next cycle's. Two back-offs,
both on the agent's clock, keep trouble from spreading: after a failed or lost connection nothing is tried for 0.2 s,
doubling to 30 s; a unit that did not answer three times in a row is left alone for 1 s, doubling to 60 s, so that it
does not hold the wire for the others. Meanwhile acquisitions fail at once, with the same words. Any answer ends both.
No state outlives the process.

Function 43/14 is unknown to many devices. Most say so; some gateways close the connection or lock up. So a unit that
gave no good answer to it once is not asked again, and nobody is once two units gave none and no unit ever gave one.

pymodbus (3.16) as it is: a request whose connection breaks waits for its time-out, and an answer that it cannot parse
is raised into the event loop, which prints a traceback; both are turned into an error of the request here. A late
answer is recognised by its transaction id and skipped; one without id (0) would be taken for the answer to a later
request, so it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu.mei_message import ReadDeviceInformationResponse

from adapters.modbus.identification import Objects, Question
from adapters.modbus.requests import Registers
from agent.errors import AcquisitionError
from agent.model import Cause
from agent.ports import Clock

MS = 1_000_000
S = 1_000 * MS
_TIMEOUTS_IN_A_ROW = 3
_CLOSED = "the connection was closed by the agent"
_NOT_TRIED = "not tried after repeated time-outs"
_MOST_MUTE = 2
_MORE_FOLLOWS = 0xFF
GATEWAY_LOST_UNIT = (0x0A, 0x0B)
"""Exceptions of a gateway that cannot reach the unit: asking on would only hold the wire."""

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target did not respond",
}
"""Modbus Application Protocol V1.1b3, section 7."""

log = logging.getLogger(__name__)


class _Junk(Exception):
    """Bytes that are no Modbus answer."""


@dataclass(slots=True)
class _Backoff:
    """When the next try is due: after ``first`` ns, then twice as long each time, ``most`` at most."""

    first: int
    most: int
    until: int = 0
    delay: int = 0

    def fail(self, now: int) -> None:
        self.delay = min(self.delay * 2 or self.first, self.most)
        self.until = now + self.delay

    def succeed(self) -> None:
        self.until = self.delay = 0


@dataclass(slots=True)
class _Unit:
    """What is known of a unit: how often in a row it did not answer."""

    timeouts: int = 0
    backoff: _Backoff = field(default_factory=lambda: _Backoff(1 * S, 60 * S))


Answer = list[int] | int | None


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back: per request its registers, the code of an exception response, or None for no answer. Times are
    boot times.
    """

    started: int
    ended: int
    blocks: list[Answer]


def exception_text(code: int) -> str:
    """``exception 2 illegal data address``."""
    return f"exception {code} {_EXCEPTIONS.get(code, '')}".rstrip()


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
        self._wire = asyncio.Lock()  # serves in turn; pymodbus is asyncio's anyway, and anyio's costs 3 us more
        self._client: AsyncModbusTcpClient | None = None
        self._made = 0  # how many connections were made
        self._waiting = False  # a request is on the wire
        self._closed = False
        self._quiet_until = 0
        self._timeouts = 0  # in a row, of all units
        self._trouble = ""
        self._backoff = _Backoff(200 * MS, 30 * S)
        self._units: dict[int, _Unit] = {}
        self._mute: set[int] = set()  # units that are not asked again what they are
        self._identified = False  # one was asked, and answered
        if not log.isEnabledFor(logging.DEBUG):
            # It reports as errors, with dumps of what was sent, what is an expected state here.
            logging.getLogger("pymodbus").setLevel(logging.CRITICAL + 1)

    @property
    def number(self) -> int:
        """Which connection, counted from 1, a request would use now: the open one, or the next."""
        return self._made + (self._client is None or not self._client.connected)

    async def read(self, unit: int, requests: Sequence[Registers], *, over: int | None = None) -> Answers:
        """Send the requests one after another, nobody else's between them. Raises AcquisitionError.

        An exception response is an answer. After one that says the unit is out of the gateway's reach, and after a
        time-out, the rest is not asked; a time-out is an error only if nothing was answered before it. ``over``: the
        ``number`` of the only connection that will do.
        """
        if self._wire.locked():
            self._refuse(unit)  # do not queue for nothing
        async with self._wire:
            self._refuse(unit)
            client = await self._connected(over)
            started = None
            blocks: list[Answer] = []
            for request in requests:
                if self._pause:
                    await self._clock.sleep_until(self._quiet_until)
                if started is None:
                    started = self._clock.boot()
                try:
                    answer = await self._request(client, unit, request)
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
        async with self._wire:
            self._refuse(unit)
            client = await self._connected(over)
            if self._pause:
                await self._clock.sleep_until(self._quiet_until)
            answer: Objects | int | None = None
            try:
                answer = await self._question(client, unit, question)
            except AcquisitionError:
                if self._closed:
                    raise
                self._backoff.succeed()
                self._units.pop(unit, None)
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
        now = self._clock.boot()
        if now < self._backoff.until:
            raise AcquisitionError(Cause.LINK_DOWN, self._trouble)
        if unit in self._units and now < self._units[unit].backoff.until:
            raise AcquisitionError(Cause.DEVICE_TIMEOUT, _NOT_TRIED)

    async def _connected(self, over: int | None) -> AsyncModbusTcpClient:
        """The open connection, opened now if need be. Raises AcquisitionError, also if it is not the one asked for."""
        if self._client is None or not self._client.connected:
            await self._connect()
        assert self._client is not None
        if over is not None and over != self._made:
            raise AcquisitionError(Cause.LINK_DOWN, "the connection was lost and made anew")
        return self._client

    async def _connect(self) -> None:
        """Open the connection. Raises AcquisitionError."""
        client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=self._timeout,
            retries=0,
            reconnect_delay=0,
            trace_connect=self._changed,
        )
        # A late answer and the one that is waited for may come together; pymodbus drops what exceeds one answer.
        client.ctx.max_buffer_size = 4096
        client.ctx.callback_data = self._guarded(client)  # type: ignore[method-assign]
        try:
            # Not client.connect(): it says only that it failed, not why.
            with anyio.fail_after(self._timeout):
                await client.ctx.call_create()
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be asked for (idna), among others
            client.close()
            raise self._lost(f"cannot connect: {_reason(error)}") from error
        except BaseException:
            client.close()  # cancelled: the half-open connection must not linger
            raise
        if self._closed:
            client.close()
            raise AcquisitionError(Cause.LINK_DOWN, _CLOSED)
        self._client = client
        self._made += 1
        self._timeouts = 0

    async def _request(self, client: AsyncModbusTcpClient, unit: int, request: Registers) -> list[int] | int:
        """Registers, or the code of an exception response. Raises AcquisitionError."""
        read: Callable[..., Any] = (
            client.read_holding_registers if request.kind == "holding" else client.read_input_registers
        )
        response = await self._answer(unit, read(request.address, count=request.count, device_id=unit))
        if response.isError():
            return int(response.exception_code)
        if response.function_code != (3 if request.kind == "holding" else 4):
            raise AcquisitionError(Cause.DECODE_ERROR, f"function {response.function_code} in the answer")
        registers: list[int] = response.registers
        if len(registers) != request.count:
            raise AcquisitionError(
                Cause.DECODE_ERROR, f"{len(registers)} registers instead of {request.count} in the answer"
            )
        return registers

    async def _question(self, client: AsyncModbusTcpClient, unit: int, question: Question) -> Objects | int:
        """Objects, or the code of an exception response. Raises AcquisitionError."""
        response = await self._answer(
            unit,
            client.read_device_information(read_code=question.category, object_id=question.first, device_id=unit),
        )
        if response.isError():
            return int(response.exception_code)
        if not isinstance(response, ReadDeviceInformationResponse):
            raise AcquisitionError(Cause.DECODE_ERROR, f"function {response.function_code} in the answer")
        texts = {key: each[0] if isinstance(each, list) else each for key, each in response.information.items()}
        more = response.more_follows == _MORE_FOLLOWS
        return Objects(texts, response.conformity, response.next_object_id if more else None)

    async def _answer(self, unit: int, request: Awaitable[Any]) -> Any:
        """What comes back for a request, an exception response too. Raises AcquisitionError."""
        self._waiting = True
        try:
            response = await request
        except ConnectionException as error:
            raise self._lost(_CLOSED if self._closed else "the connection was lost") from error
        except _Junk as error:
            self._disconnect(str(error))  # where the next answer would begin is unknown
            raise AcquisitionError(Cause.DECODE_ERROR, str(error)) from error
        except ModbusException as error:
            raise self._timed_out(unit) from error
        finally:
            self._waiting = False
            if self._pause:
                self._quiet_until = self._clock.boot() + self._pause
        self._timeouts = 0
        if self._backoff.delay:
            self._backoff.succeed()
        self._units.pop(unit, None)
        if response.transaction_id == 0:
            raise AcquisitionError(
                Cause.DECODE_ERROR, "the answer has no transaction id", hint="not supported yet by this version"
            )
        return response

    def _timed_out(self, unit: int) -> AcquisitionError:
        now = self._clock.boot()
        state = self._units.setdefault(unit, _Unit())
        state.timeouts += 1
        if state.timeouts >= _TIMEOUTS_IN_A_ROW:
            state.backoff.fail(now)
        self._timeouts += 1
        if self._timeouts >= _TIMEOUTS_IN_A_ROW:
            # Perhaps the other end is gone and the network did not say so: the next acquisition opens a new connection.
            self._disconnect("no unit answers")
        return AcquisitionError(Cause.DEVICE_TIMEOUT, f"no answer within {self._timeout:g} s")

    def _lost(self, reason: str) -> AcquisitionError:
        self._trouble = reason
        self._disconnect(reason)
        if not self._closed:
            self._backoff.fail(self._clock.boot())
        return AcquisitionError(Cause.LINK_DOWN, reason, hint=f"is {self._host} port {self._port} reachable from here?")

    def _disconnect(self, reason: str) -> None:
        client, self._client = self._client, None
        if client is not None:
            self._fail_request(client, ConnectionException(reason))
            client.close()

    def _changed(self, connected: bool) -> None:
        """pymodbus tells that the connection was made, or lost by the other end."""
        if not connected and self._client is not None:
            self._fail_request(self._client, ConnectionException("the connection was lost"))

    def _fail_request(self, client: AsyncModbusTcpClient, error: Exception) -> None:
        future = client.ctx.response_future
        if self._waiting and not future.done():
            future.set_exception(error)

    def _guarded(self, client: AsyncModbusTcpClient) -> Callable[..., int]:
        """pymodbus's reception, which never raises into the event loop."""
        receive = client.ctx.callback_data

        def guarded(data: bytes, addr: tuple[Any, ...] | None = None) -> int:
            # Protocol id 0, and a length that fits into one byte (Modbus Messaging on TCP/IP V1.0b, 3.1.3).
            if not any(data[2:5]):
                try:
                    return receive(data, addr)
                except ModbusException:
                    pass
            if self._client is client:
                self._fail_request(client, _Junk("the answer is not Modbus"))
                if not self._waiting:
                    self._disconnect("not Modbus")
            return len(data)

        return guarded
