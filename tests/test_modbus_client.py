"""The connection against devices that answer as they like, byte for byte, on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from adapters.modbus.adu import encode
from adapters.modbus.client import Connection, _Link
from adapters.modbus.identification import Question
from adapters.modbus.requests import Registers
from agent.errors import AcquisitionError
from agent.model import Cause
from tests.runs import FakeClock

S = 1_000_000_000
MS = 1_000_000
ONE = [Registers("holding", 0, 1)]
TWO = [Registers("holding", 0, 1), Registers("holding", 100, 1)]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[pytest.param(False, id="asyncio"), pytest.param(True, id="uvloop")])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Answers = Callable[[bytes], bytes | Sequence[bytes]]


class Device:
    """A server made by hand: ``answers`` says what a request is answered with, in one piece or in several."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self.writer: asyncio.StreamWriter | None = None  # of the last connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        try:
            while True:
                head = await reader.readexactly(6)
                request = head + await reader.readexactly(int.from_bytes(head[4:], "big"))
                self.asked.append(request)
                answer = self.answers(request)
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    writer.write(piece)
                    for _ in range(3):  # the other end may have read it by then
                        await anyio.lowlevel.checkpoint()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            writer.close()

    @property
    def ids(self) -> list[int]:
        return [int.from_bytes(request[:2], "big") for request in self.asked]


@asynccontextmanager
async def connected(
    answers: Answers, clock: FakeClock, *, deadline: int = 10 * S
) -> AsyncIterator[tuple[Device, Connection]]:
    device = Device(answers)
    server = await asyncio.start_server(device.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = Connection(host="127.0.0.1", port=port, timeout=deadline, pause=0, clock=clock)
    try:
        yield device, wire
    finally:
        await wire.close()
        server.close()
        if device.writer is not None:
            device.writer.close()
        await server.wait_closed()


def good(request: bytes, value: int = 7, *, transaction: int | None = None, unit: int | None = None) -> bytes:
    """The answer to a read of one register."""
    return encode(
        int.from_bytes(request[:2], "big") if transaction is None else transaction,
        request[6] if unit is None else unit,
        request[7:8] + b"\x02" + value.to_bytes(2, "big"),
    )


def link(wire: Connection) -> _Link:
    assert wire._link is not None
    return wire._link


async def refused(wire: Connection, unit: int = 1) -> AcquisitionError:
    with pytest.raises(AcquisitionError) as caught:
        await wire.read(unit, ONE)
    return caught.value


async def until(true: Callable[[], Any]) -> None:
    with anyio.fail_after(5):
        while not true():
            await anyio.lowlevel.checkpoint()


SEVEN = [b"\0\7"]


# ---- pieces ------------------------------------------------------------------------------------------------------


async def test_an_answer_in_single_bytes(clock: FakeClock) -> None:
    async with connected(lambda request: [good(request)[i : i + 1] for i in range(11)], clock) as (device, wire):
        for _ in range(3):
            assert (await wire.read(1, TWO)).blocks == SEVEN * 2
        assert (device.connections, device.ids) == (1, [1, 2, 3, 4, 5, 6])


async def test_the_longest_answer(clock: FakeClock) -> None:
    contents = bytes(range(250))
    answer = encode(1, 1, b"\x04\xfa" + contents)
    async with connected(lambda _: [answer[:200], answer[200:]], clock) as (_, wire):
        assert (await wire.read(1, [Registers("input", 0, 125)])).blocks == [contents]


async def test_what_comes_twice_or_unasked_is_skipped(clock: FakeClock) -> None:
    async with connected(lambda request: good(request) * 3, clock) as (device, wire):
        assert (await wire.read(1, TWO)).blocks == SEVEN * 2  # the copies come while nobody waits, or late
        assert device.writer is not None
        skipped = link(wire)._skipped
        device.writer.write(encode(999, 5, b"\x06\0\0\0\0") + encode(0, 5, b"\x83\2"))
        await until(lambda: link(wire)._skipped >= skipped + 2)
        assert (await wire.read(1, TWO)).blocks == SEVEN * 2
        assert device.connections == 1


async def test_half_an_answer_that_nobody_waits_for_is_made_whole(clock: FakeClock) -> None:
    held: list[bytes] = []

    def answers(request: bytes) -> bytes:
        if not held:
            held.append(good(request, 1))
            return held[0][:9]
        return held[0][9:] + good(request)

    async with connected(answers, clock, deadline=150 * MS) as (device, wire):
        assert (await refused(wire)).cause is Cause.DEVICE_TIMEOUT
        assert (await wire.read(1, ONE)).blocks == SEVEN
        assert device.connections == 1


# ---- whose answer it is ------------------------------------------------------------------------------------------


async def test_another_unit_is_not_taken_for_the_one_asked(clock: FakeClock) -> None:
    async with connected(lambda request: good(request, unit=2), clock, deadline=50 * MS) as (_, wire):
        error = await refused(wire)
        assert (error.cause, error.detail) == (Cause.DEVICE_TIMEOUT, "no answer within 0.05 s")
        assert error.hint == "unit 2 answered instead"


async def test_the_right_unit_behind_another(clock: FakeClock) -> None:
    def answers(request: bytes) -> bytes:
        return good(request) if len(device.asked) > 2 else good(request, 1, unit=2) + good(request)

    async with connected(answers, clock) as (device, wire):
        assert (await wire.read(1, TWO)).blocks == SEVEN * 2
        assert link(wire)._said == "unit 2 answered instead"
        assert (await wire.read(1, ONE)).blocks == SEVEN
        assert link(wire)._said == ""


async def test_unit_0_is_whoever_is_there(clock: FakeClock) -> None:
    async with connected(lambda request: good(request, unit=255), clock) as (_, wire):
        assert (await wire.read(0, ONE)).blocks == SEVEN


@pytest.mark.parametrize("other", [2, 99, 0xFFFF])
async def test_an_id_that_was_never_sent(clock: FakeClock, other: int) -> None:
    def answers(request: bytes) -> bytes:
        return good(request, transaction=other) if len(device.asked) == 1 else late + good(request)

    late = encode(1, 1, b"\x03\x02\0\1")
    async with connected(answers, clock) as (device, wire):
        error = await refused(wire)
        assert (error.cause, error.detail) == (
            Cause.DECODE_ERROR,
            f"transaction id {other} instead of 1 in the answer",
        )
        assert (await wire.read(1, ONE)).blocks == SEVEN  # its own answer comes late and is skipped
        assert device.connections == 1


async def test_no_id_at_all(clock: FakeClock) -> None:
    async with connected(lambda request: good(request, transaction=0), clock) as (device, wire):
        for _ in range(4):
            assert (await refused(wire)).detail == "the answer has no transaction id"
        assert device.connections == 1


async def test_ids_begin_again_and_late_ones_are_still_known(clock: FakeClock) -> None:
    def answers(request: bytes) -> bytes:
        if len(device.asked) == 5:
            return good(request, transaction=0)
        late = b"" if len(device.asked) < 3 else good(request, 1, transaction=0xFFFF)
        return late + good(request)

    async with connected(answers, clock) as (device, wire):
        await wire.read(1, ONE)
        link(wire).transaction, link(wire)._requests = 0xFFFE, 0xFFFE
        for _ in range(3):
            assert (await wire.read(1, ONE)).blocks == SEVEN
        assert (await refused(wire)).detail == "the answer has no transaction id"
        assert device.ids == [1, 0xFFFF, 1, 2, 3]


# ---- what is not Modbus, and what was not asked ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pdu", "detail", "connections"),
    [
        (b"\x03\x04\0\1", "the answer is not Modbus", 2),
        (b"\x03", "the answer is not Modbus", 2),
        (b"\x03\x04\0\1\0\2", "2 registers instead of 1 in the answer", 1),
        (b"\x06\0\0\0\0", "function 6 in the answer", 1),
        (b"\x84\x02", "function 132 in the answer", 1),
    ],
)
async def test_only_what_cannot_be_read_closes_the_connection(
    clock: FakeClock, pdu: bytes, detail: str, connections: int
) -> None:
    def answers(request: bytes) -> bytes:
        return encode(1, 1, pdu) if len(device.asked) == 1 else good(request)

    async with connected(answers, clock) as (device, wire):
        error = await refused(wire)
        assert (error.cause, error.detail) == (Cause.DECODE_ERROR, detail)
        assert (await wire.read(1, ONE)).blocks == SEVEN  # at once: no back-off
        assert device.connections == connections


async def test_junk_behind_an_answer_costs_the_connection_and_not_the_answer(clock: FakeClock) -> None:
    async with connected(lambda request: good(request) + b"\r\nlogin: ", clock) as (device, wire):
        assert (await wire.read(1, ONE)).blocks == SEVEN
        assert wire.number == 2
        assert (await wire.read(1, ONE)).blocks == SEVEN
        assert device.connections == 2


async def test_junk_that_comes_unasked_closes_the_connection(clock: FakeClock) -> None:
    async with connected(good, clock) as (device, wire):
        await wire.read(1, ONE)
        assert device.writer is not None
        device.writer.write(b"\r\nlogin: ")
        await until(lambda: wire.number == 2)
        assert (await wire.read(1, ONE)).blocks == SEVEN


async def test_a_question_answered_with_another_type_is_not_asked_again_over_the_same_connection(
    clock: FakeClock,
) -> None:
    def answers(request: bytes) -> bytes:
        return encode(1, 1, b"\x2b\x0d\0\0\0\0\0\0") if request[7] == 0x2B else good(request)

    async with connected(answers, clock) as (device, wire):
        assert await wire.identify(1, Question(1, 0), over=1) is None
        assert (await wire.read(1, ONE)).blocks == SEVEN
        assert device.connections == 1


# ---- the connection ----------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_up_on_everybody(clock: FakeClock) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        wire = Connection(host="127.0.0.1", port=port, timeout=60 * S, pause=0, clock=clock)
        with anyio.fail_after(5):
            for _ in range(2):
                error = await refused(wire)
                assert (error.cause, error.detail) == (Cause.LINK_DOWN, "the connection was lost")
                clock.now += S
        await wire.close()


async def test_a_request_over_a_connection_that_is_lost_fails_at_once(clock: FakeClock) -> None:
    async with connected(good, clock, deadline=60 * S) as (device, wire):
        await wire.read(1, ONE)
        lost = link(wire)
        assert device.writer is not None
        device.writer.close()
        await until(lambda: wire.number == 2)
        for _ in range(2):  # while the transport is closing, and when it is gone
            with anyio.fail_after(5), pytest.raises(ConnectionResetError):
                await lost.ask(1, b"\x03\0\0\0\1")


async def test_small_requests_leave_at_once_and_a_dead_end_is_noticed(clock: FakeClock) -> None:
    async with connected(good, clock) as (_, wire):
        await wire.read(1, ONE)
        transport = link(wire)._transport
        assert transport is not None
        opened = transport.get_extra_info("socket")
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [opened.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [30, 10, 3]


@asynccontextmanager
async def slow_to_connect(wire: Connection) -> AsyncIterator[asyncio.Event]:
    """A read is under way whose connection was just made, which it is told when the event is set."""
    loop, made, told = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    connect = loop.create_connection

    async def create_connection(*arguments: Any, **more: Any) -> Any:
        pair = await cast(Any, connect)(*arguments, **more)
        made.set()
        await told.wait()
        return pair

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop_that(create_connection, loop))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refused, wire)
                await made.wait()
                yield told
                tasks.cancel_scope.cancel()


class loop_that:  # noqa: N801  # reads as a sentence
    """A loop that connects otherwise."""

    def __init__(self, create_connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.create_connection = create_connection
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_a_cancelled_connect_leaves_no_connection(clock: FakeClock) -> None:
    async with connected(good, clock) as (device, wire):
        async with slow_to_connect(wire):
            await until(lambda: device.connections)
        await until(lambda: device.ended)
        assert wire.number == 1
        assert (await wire.read(1, ONE)).blocks == SEVEN


async def test_close_while_connecting_leaves_no_connection(clock: FakeClock) -> None:
    async with connected(good, clock) as (device, wire):
        async with slow_to_connect(wire) as told:
            await wire.close()
            told.set()
            await until(lambda: device.ended)
        assert (await refused(wire)).detail == "the connection was closed by the agent"


async def test_a_connection_made_anew_gets_as_many_tries_as_the_first(clock: FakeClock) -> None:
    async with connected(lambda _: b"", clock, deadline=60 * S) as (device, wire):
        for unit in range(1, 7):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refused, wire, unit)
                await until(lambda: wire._link is not None and wire._link._waiting)
                end_time(link(wire))
        assert (device.connections, wire.number) == (2, 3)


def end_time(link: _Link) -> None:
    """End the time of the request under way."""
    assert link._timer is not None
    link._timer.cancel()
    link._deadline = asyncio.get_running_loop().time()
    link._expire()


# ---- time-outs ---------------------------------------------------------------------------------------------------


async def test_one_timer_serves_all_requests_and_each_has_its_whole_time(clock: FakeClock) -> None:
    silent = False
    async with connected(lambda request: b"" if silent else good(request), clock, deadline=60 * S) as (device, wire):
        await wire.read(1, ONE)
        timer = link(wire)._timer
        await wire.read(1, ONE)
        assert link(wire)._timer is timer is not None
        silent = True
        async with anyio.create_task_group() as tasks:
            caught: list[AcquisitionError] = []

            async def read() -> None:
                caught.append(await refused(wire))

            tasks.start_soon(read)
            await until(lambda: len(device.asked) == 3)
            timer.cancel()
            link(wire)._expire()  # the timer that was set for the first request
            await anyio.lowlevel.checkpoint()
            assert not caught
            renewed = link(wire)._timer
            assert renewed is not None
            assert abs(renewed.when() - link(wire)._deadline) < 0.1
            end_time(link(wire))
        assert caught[0].detail == "no answer within 60 s"
        assert link(wire)._timer is None


async def test_a_timer_that_ends_with_nobody_waiting_is_not_set_again(clock: FakeClock) -> None:
    async with connected(good, clock, deadline=60 * S) as (_, wire):
        await wire.read(1, ONE)
        timer = link(wire)._timer
        assert timer is not None
        timer.cancel()
        link(wire)._expire()
        assert link(wire)._timer is None
        assert (await wire.read(1, ONE)).blocks == SEVEN


async def test_close_leaves_no_timer(clock: FakeClock) -> None:
    async with connected(good, clock, deadline=60 * S) as (_, wire):
        await wire.read(1, ONE)
        before, timer = link(wire), link(wire)._timer
        assert timer is not None
        await wire.close()
        assert timer.cancelled()
        assert before._timer is None
        assert not before.open
