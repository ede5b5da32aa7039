"""What a device described by hand says of itself, function 43/14: what is asked, and that asking disturbs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pymodbus.pdu.device import ModbusControlBlock, ModbusDeviceIdentification
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from adapters.modbus import ModbusAdapter, ModbusConnection, ModbusDevice
from adapters.modbus.identification import Objects, Question, describe, inquire, text
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Quality
from agent.ports import DeviceSelection, PolledDevice
from tests.runs import FakeClock

S = 1_000_000_000
FIRST = Question(1, 0)
MORE_OF_IT = Question(2, 5)

Answer = Objects | int | None

# ---- the questions -----------------------------------------------------------------------------------------------


def asked(answer: Callable[[Question], Answer]) -> tuple[list[Question], Mapping[int, bytes] | None]:
    """The questions that come, and what is made of the answers."""
    steps, questions = inquire(), []
    question = next(steps)
    while True:
        questions.append(question)
        try:
            question = steps.send(answer(question))
        except StopIteration as end:
            return questions, end.value


BASIC = {0: b"Maker", 1: b"PC", 2: b"1.0"}


@pytest.mark.parametrize(
    ("answers", "questions", "texts"),
    [
        ([Objects(BASIC, 0x01)], [FIRST], BASIC),
        ([Objects(BASIC, 0x82), Objects({5: b"M"}, 0x82)], [FIRST, MORE_OF_IT], BASIC | {5: b"M"}),
        ([Objects(BASIC, 0x82), 2], [FIRST, MORE_OF_IT], BASIC),
        ([Objects(BASIC, 0x82), 6], [FIRST, MORE_OF_IT], None),  # busy: what it is cannot be said from a part
        ([Objects(BASIC, 0x82), None], [FIRST, MORE_OF_IT], BASIC),
        ([Objects(BASIC | {5: b"M"}, 0x83)], [FIRST, MORE_OF_IT][:1], BASIC | {5: b"M"}),
        (
            [Objects({0: b"M"}, 1, 1), Objects({1: b"P", 2: b"1"}, 1)],
            [FIRST, Question(1, 1)],
            {0: b"M", 1: b"P", 2: b"1"},
        ),
        ([Objects({0: b"M"}, 1, 0)], [FIRST], {0: b"M"}),  # it goes on where it began
        ([Objects({}, 1)], [FIRST], {}),
        ([1], [FIRST], {}),
        ([2], [FIRST], {}),
        ([3], [FIRST], {}),
        ([4], [FIRST], None),
        ([6], [FIRST], None),
        ([None], [FIRST], None),
    ],
)
def test_questions(answers: list[Answer], questions: list[Question], texts: Mapping[int, bytes] | None) -> None:
    waiting = iter(answers)
    assert asked(lambda _: next(waiting)) == (questions, texts)


def test_a_device_that_always_goes_on_is_left_alone() -> None:
    questions, texts = asked(lambda question: Objects({question.first: b"x" * 200}, 0x83, question.first + 1))
    assert len(questions) <= 8
    assert texts is not None
    assert len(texts) <= 8


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"SB-5\0\0\0", "SB-5"),
        (b"  SB 5 \0 ", "SB 5"),
        (b"\0A\0B", "AB"),
        ("Zähler".encode(), "Zähler"),
        ("Zähler".encode("latin-1"), "Zähler"),
        (b"\x1b[2JA\r\nB\x7f", "[2JAB"),
        ("A\u202eB\u2028".encode(), "AB"),
        (b"x" * 253, "x" * 128),
        (b"x" * 127 + b" y", "x" * 127),
        (b"\xff\xfe", "ÿþ"),
        (b"", None),
        (b" \0\0 ", None),
        (b"\x01\x02", None),
    ],
)
def test_texts(raw: bytes, expected: str | None) -> None:
    assert text(raw) == expected


@pytest.mark.parametrize(
    ("texts", "model"),
    [({1: b"PC"}, "PC"), ({1: b"PC", 5: b"M"}, "M"), ({1: b"PC", 5: b" "}, "PC"), ({3: b"url"}, None)],
)
def test_the_model_is_the_name_else_the_code(texts: Mapping[int, bytes], model: str | None) -> None:
    assert describe(DeviceInfo("d", "modbus", "a"), texts) == DeviceInfo("d", "modbus", "a", model=model)


# ---- over the wire -----------------------------------------------------------------------------------------------


def objects(*texts: tuple[int, bytes], conformity: int = 1, more: int = 0, following: int = 0) -> bytes:
    """An answer's bytes behind the function code."""
    body = b"".join(bytes([key, len(each)]) + each for key, each in texts)
    return bytes([14, 1, conformity, more, following, len(texts)]) + body


MAKER = ((0, b"Maker"), (1, b"PC"), (2, b"1.0"))


class Units:
    """A Modbus server made by hand. Every register of every unit is 7; ``says`` is what function 43 is answered with:
    bytes behind the function code, an exception's code, None for no answer, "close", or bytes of a whole frame.
    """

    def __init__(self) -> None:
        self.says: dict[int, Any] = {}
        self.register = 7
        self.reads: list[int] = []  # units
        self.asked: list[tuple[int, int, int]] = []  # unit, category, object
        self.connections = 0
        self.left: int | None = None  # so many answers, then none; None: all
        self.refuses: int | None = None  # the exception that reads are answered with
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def drop(self) -> None:
        """Close all connections."""
        for writer in list(self._open):
            writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        while self._open:
            await anyio.lowlevel.checkpoint()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                head = await reader.readexactly(7)
                body = await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
                answer = self._answer(head[6], body)
                if self.left is not None:
                    self.left -= 1
                    answer = answer if self.left >= 0 else None
                if answer == "close":
                    return
                if answer is not None:
                    frame = head[:4] + (len(answer) + 1).to_bytes(2, "big") + head[6:7] + answer
                    writer.write(answer[1:] if answer[:1] == b"!" else frame)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _answer(self, unit: int, body: bytes) -> Any:
        if body[0] == 3:
            self.reads.append(unit)
            if self.refuses is not None:
                return bytes([0x83, self.refuses])
            count = int.from_bytes(body[3:5], "big")
            return bytes([3, 2 * count]) + self.register.to_bytes(2, "big") * count
        assert body[:2] == b"\x2b\x0e"
        self.asked.append((unit, body[2], body[3]))
        says = self.says.get(unit, 1)
        if isinstance(says, list):
            says = says.pop(0)
        if isinstance(says, int):
            return bytes([0xAB, says])
        return b"\x2b" + says if isinstance(says, bytes) and says[:1] != b"!" else says


@asynccontextmanager
async def serving() -> AsyncIterator[Units]:
    units = Units()
    await units.start()
    try:
        yield units
    finally:
        await units.stop()


def device(unit: int = 1, **more: Any) -> ModbusDevice:
    points = [{"name": "A", "at": "holding:0", "type": "uint16", "counter": True}]
    groups = {"g": {"every": "1s", "points": points}, "h": {"every": "1s", "points": points}}
    return ModbusDevice.model_validate({"id": f"d{unit}", "connection": "c", "unit": unit, "groups": groups} | more)


@asynccontextmanager
async def adapter(port: int, *devices: ModbusDevice, clock: FakeClock, deadline: str = "2s") -> AsyncIterator[Any]:
    connection = ModbusConnection.model_validate({"url": f"modbus+tcp://127.0.0.1:{port}", "timeout": deadline})
    chosen = [DeviceSelection(each, {group: each.point_names(group) for group in each.groups}) for each in devices]
    running = ModbusAdapter("c", connection, chosen, clock)
    try:
        yield running
    finally:
        await running.close()


def identity(device: PolledDevice) -> tuple[str | None, ...]:
    info = device.info
    return info.manufacturer, info.model, info.firmware, info.serial


async def drop(units: Units, running: Any) -> None:
    """Close all connections and have the adapter notice."""
    number = running._connection.number
    units.drop()
    with anyio.fail_after(5):
        while running._connection.number == number:
            await anyio.lowlevel.checkpoint()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


NOBODY = (None, None, None, None)
pytestmark = pytest.mark.anyio


async def test_the_first_plan_says_what_the_device_says(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(asset="a"), clock=clock) as running:
        units.says[1] = [objects(*MAKER, conformity=0x82), objects((5, b"Model 9"), (6, b"user"), conformity=0x82)]
        (meter,) = running.devices
        assert identity(meter) == NOBODY
        await meter.prepare()
        assert identity(meter) == ("Maker", "Model 9", "1.0", None)
        assert (meter.info.id, meter.info.asset, meter.revision) == ("d1", "a", 1)
        assert units.asked == [(1, 1, 0), (1, 2, 5)]
        await meter.prepare()
        for group in "ghgh":
            assert (await meter.acquire(group)).values == (7,)
        assert len(units.asked) == 2  # once over a connection
        assert meter.revision == 1


async def test_in_parts(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        units.says[1] = [objects(MAKER[0], more=0xFF, following=1), objects(*MAKER[1:])]
        await running.devices[0].prepare()
        assert identity(running.devices[0]) == ("Maker", "PC", "1.0", None)
        assert units.asked == [(1, 1, 0), (1, 1, 1)]


async def test_pymodbus_as_the_device(clock: FakeClock) -> None:
    block: Any = ModbusControlBlock()  # type: ignore[no-untyped-call]  # pymodbus's servers share one
    before = dict(block.Identity)
    said = ModbusDeviceIdentification(info={0: "Maker", 1: "PC", 2: "1.0", 5: "Model 9"})  # type: ignore[no-untyped-call]
    server = ModbusTcpServer(
        [SimDevice(id=1, simdata=[SimData(0, count=10, datatype=DataType.REGISTERS)])],
        address=("127.0.0.1", 0),
        identity=said,
    )
    try:
        await server.serve_forever(background=True)
        assert isinstance(server.transport, asyncio.Server)
        port = server.transport.sockets[0].getsockname()[1]
        async with adapter(port, device(), clock=clock) as running:
            await running.devices[0].prepare()
            assert identity(running.devices[0]) == ("Maker", "Model 9", "1.0", None)
    finally:
        block.Identity.update(before)
        await server.shutdown()  # type: ignore[no-untyped-call]
        await anyio.lowlevel.checkpoint()


async def test_a_device_that_was_down_at_the_start_is_asked_behind_its_first_sample(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock, deadline="250ms") as running:
        units.says[1], units.left = objects(*MAKER), 0
        (meter,) = running.devices
        with pytest.raises(AcquisitionError) as caught:
            await meter.prepare()
        assert caught.value.cause is Cause.DEVICE_TIMEOUT
        units.left = None
        assert units.asked == []  # one that does not answer is not asked
        assert (await meter.acquire("g")).values == (7,)
        assert (identity(meter), meter.revision) == (("Maker", "PC", "1.0", None), 1)
        assert units.asked == [(1, 1, 0)]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6])
async def test_a_device_that_refuses_has_no_identity(clock: FakeClock, code: int) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        units.says[1] = code
        (meter,) = running.devices
        await meter.prepare()
        for _ in range(3):
            assert (await meter.acquire("g")).values == (7,)
        assert (identity(meter), meter.revision, len(units.asked), units.connections) == (NOBODY, 0, 1, 1)
        await drop(units, running)
        assert (await meter.acquire("g")).values == (7,)
        assert len(units.asked) == 2  # again over the next connection


WHOLE = b"!\x00\x02\x00\x00\x00"  # a frame's beginning: the second request of a connection

TROUBLE = [
    pytest.param("close", id="closes the connection"),
    pytest.param(None, id="no answer"),
    pytest.param(10, id="gateway path unavailable"),
    pytest.param(11, id="gateway target did not respond"),
    pytest.param(b"!HTTP/1.1 400 Bad Request\r\n\r\n", id="not Modbus"),
    pytest.param(b"", id="empty"),
    pytest.param(b"\x0e\x01", id="too short"),
    pytest.param(b"\x0d" + objects(*MAKER)[1:], id="another MEI type"),
    pytest.param(objects(*MAKER) + b"\x03", id="half an object behind"),
    pytest.param(WHOLE + b"\x05\x01\x03\x02\x00\x07", id="another function"),
]


def enough(says: Any) -> str:
    """A time-out that is waited for only where nothing comes."""
    return "250ms" if says is None else "10s"


@pytest.mark.parametrize("says", TROUBLE)
async def test_a_device_that_cannot_stand_the_question_is_asked_once_in_its_life(clock: FakeClock, says: Any) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock, deadline=enough(says)) as running:
        (meter,) = running.devices
        units.says[1] = says
        assert (await meter.acquire("g")).values == (7,)  # the sample was read before
        assert len(units.asked) == 1
        for _ in range(5):
            assert (await meter.acquire("g")).values == (7,)  # at once: no back-off
        await drop(units, running)
        clock.now += 60 * S
        assert (await meter.acquire("h")).values == (7,)
        await meter.prepare()
        assert (len(units.asked), identity(meter), meter.revision) == (1, NOBODY, 0)


@pytest.mark.parametrize("says", TROUBLE)
async def test_the_first_part_of_an_identity_is_kept_in_trouble(clock: FakeClock, says: Any) -> None:
    if isinstance(says, bytes) and says.startswith(WHOLE):
        says = says.replace(b"!\x00\x02", b"!\x00\x03")
    async with serving() as units, adapter(units.port, device(), clock=clock, deadline=enough(says)) as running:
        (meter,) = running.devices
        units.says[1] = [objects(*MAKER, conformity=2), says]
        await meter.prepare()
        assert identity(meter) == ("Maker", "PC", "1.0", None)
        assert (await meter.acquire("g")).values == (7,)
        assert len(units.asked) == 2


async def test_two_devices_of_one_unit_ask_no_more_than_one(clock: FakeClock) -> None:
    twin = device(unit=1, id="twin")
    async with serving() as units, adapter(units.port, device(), twin, clock=clock) as running:
        units.says[1] = "close"
        for each in (*running.devices, *running.devices):
            assert (await each.acquire("g")).values == (7,)
        assert units.asked == [(1, 1, 0)]


async def test_behind_a_gateway_that_cannot_stand_it_two_are_asked(clock: FakeClock) -> None:
    devices = [device(unit) for unit in range(1, 9)]
    async with serving() as units, adapter(units.port, *devices, clock=clock) as running:
        units.says |= dict.fromkeys(range(1, 9), "close")
        for each in (*running.devices, *running.devices):
            assert (await each.acquire("g")).values == (7,)
        assert units.asked == [(1, 1, 0), (2, 1, 0)]
        assert units.connections == 3


async def test_who_can_stand_it_is_asked_beside_those_who_cannot(clock: FakeClock) -> None:
    devices = [device(unit) for unit in range(1, 6)]
    async with serving() as units, adapter(units.port, *devices, clock=clock) as running:
        units.says |= {1: objects(*MAKER), 2: "close", 3: "close", 4: "close", 5: objects(*MAKER)}
        for each in running.devices:
            assert (await each.acquire("g")).values == (7,)
        assert [identity(each)[0] for each in running.devices] == ["Maker", None, None, None, "Maker"]


async def test_off(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(identification="off"), clock=clock) as running:
        await running.devices[0].prepare()
        assert units.connections == 0
        assert (await running.devices[0].acquire("g")).values == (7,)
        assert units.asked == []


# ---- another device ----------------------------------------------------------------------------------------------


async def known(units: Units, running: Any) -> PolledDevice:
    """A device that was identified and read, and whose connection was lost."""
    meter: PolledDevice = running.devices[0]
    units.says[1] = objects(*MAKER)
    await meter.prepare()
    assert (await meter.acquire("g")).values == (7,)
    assert (await meter.acquire("h")).values == (7,)
    await drop(units, running)
    return meter


async def test_the_same_device_over_a_new_connection_changes_nothing(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        meter = await known(units, running)
        assert (await meter.acquire("g")).values == (7,)
        assert (meter.revision, len(units.asked)) == (1, 2)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (objects((0, b"Maker"), (1, b"PC"), (2, b"1.1")), ("Maker", "PC", "1.1", None)),
        (objects((0, b"Other"), (1, b"PC"), (2, b"1.0")), ("Other", "PC", "1.0", None)),
        (1, NOBODY),
    ],
)
async def test_another_device_is_a_new_plan_and_no_value_is_taken_for_the_old_ones(
    clock: FakeClock, says: Any, expected: tuple[str | None, ...]
) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        meter = await known(units, running)
        units.says[1], units.register = says, 3
        with pytest.raises(AcquisitionError) as caught:
            await meter.acquire("g")
        assert caught.value.cause is Cause.LINK_DOWN
        assert caught.value.detail == "another device answers, or another firmware; values follow with the next cycle"
        assert (identity(meter), meter.revision) == (expected, 2)
        for group in "gh":
            sample = await meter.acquire(group)
            assert (sample.values, sample.quality) == ((3,), ())  # its counters are others
        units.register = 2
        assert (await meter.acquire("g")).quality == ((0, Quality.SUSPECT),)


async def test_a_group_that_was_read_while_another_learned_of_the_new_device_ends_too(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        meter = await known(units, running)
        units.says[1] = objects((0, b"Other"))
        causes: list[Cause] = []

        async def acquire(group: str) -> None:
            with pytest.raises(AcquisitionError) as caught:
                await meter.acquire(group)
            causes.append(caught.value.cause)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(acquire, "g")
            tasks.start_soon(acquire, "h")
        assert causes == [Cause.LINK_DOWN] * 2
        assert (meter.revision, len(units.asked)) == (2, 2)


@pytest.mark.parametrize("says", [*TROUBLE, pytest.param(6, id="busy"), pytest.param(4, id="device failure")])
async def test_what_was_known_and_cannot_be_read_again_stays(clock: FakeClock, says: Any) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock, deadline=enough(says)) as running:
        meter = await known(units, running)
        units.says[1] = says
        assert (await meter.acquire("g")).values == (7,)
        assert (identity(meter), meter.revision, len(units.asked)) == (("Maker", "PC", "1.0", None), 1, 2)


async def test_a_unit_that_falls_silent_within_a_sample_is_not_asked(clock: FakeClock) -> None:
    points: Sequence[Any] = [
        {"name": name, "at": f"holding:{at}", "type": "int16"} for name, at in (("A", 0), ("B", 99))
    ]
    config = device(groups={"g": {"every": "1s", "points": points}})
    async with serving() as units, adapter(units.port, config, clock=clock, deadline="250ms") as running:
        units.says[1] = objects(*MAKER)
        units.left = 1
        sample = await running.devices[0].acquire("g")
        assert (sample.values, sample.quality, units.asked) == ((7, None), ((1, Quality.NO_VALUE),), [])


@pytest.mark.parametrize("code", [10, 11])
async def test_a_unit_that_a_gateway_cannot_reach_is_not_asked(clock: FakeClock, code: int) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock) as running:
        units.says[1], units.refuses = objects(*MAKER), code
        await running.devices[0].prepare()
        with pytest.raises(AcquisitionError):
            await running.devices[0].acquire("g")
        assert units.asked == []
        units.refuses = None
        await running.devices[0].acquire("g")
        assert identity(running.devices[0])[0] == "Maker"


async def test_close_ends_a_question_under_way(clock: FakeClock) -> None:
    async with serving() as units, adapter(units.port, device(), clock=clock, deadline="60s") as running:
        units.says[1] = None
        causes = []

        async def acquire() -> None:
            with pytest.raises(AcquisitionError) as caught:
                await running.devices[0].acquire("g")
            causes.append(caught.value.cause)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(acquire)
                while not units.asked:
                    await anyio.lowlevel.checkpoint()
                await running.close()
        assert causes == [Cause.LINK_DOWN]
