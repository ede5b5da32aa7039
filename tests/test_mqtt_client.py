"""The MQTT connection against a broker made of bytes: what goes over the wire, and when."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from paho.mqtt import client as paho

from adapters.mqtt import MqttAdapter, MqttConnection, MqttDevice, client
from adapters.mqtt.dial import Dial
from agent.clock import SystemClock
from agent.errors import AcquisitionError
from agent.model import Cause, Quality
from agent.ports import Arrival, DeviceSelection, Subscription

pytestmark = pytest.mark.anyio

S = 1_000_000_000
CONNECT, PUBLISH, PUBACK, PUBREC, PUBCOMP = 0x10, 0x30, 0x40, 0x50, 0x70
SUBSCRIBE, PINGREQ, PINGRESP, DISCONNECT = 0x82, 0xC0, 0xD0, 0xE0
VERSIONS = pytest.mark.parametrize("version", ["3.1.1", "5"])


def packet(header: int, body: bytes = b"") -> bytes:
    length, size = bytearray(), len(body)
    while True:
        size, digit = size >> 7, size & 0x7F
        length.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([header]) + bytes(length) + body


class Peer:
    """The broker's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._packets: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._left = asyncio.Event()
        self.writer = writer
        self.five = False
        self.connect = b""
        self.filters: list[tuple[bytes, int]] = []

    async def pump(self) -> None:
        """Take in packets until the client leaves; then close, as brokers do."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._packets.put_nowait(found := await self._read())
                if found[0] == DISCONNECT:
                    break
        self._left.set()
        self.writer.close()

    async def _read(self) -> tuple[int, bytes]:
        header, length, shift = (await self._reader.readexactly(1))[0], 0, 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                return header, await self._reader.readexactly(length)

    async def packet(self) -> tuple[int, bytes]:
        """The next packet from the client."""
        with anyio.fail_after(10):
            return await self._packets.get()

    async def quiet(self) -> bool:
        """Whether the client has sent nothing: what it sends next answers what is asked now."""
        self.send(packet(PINGREQ))
        return await self.packet() == (PINGRESP, b"")

    async def gone(self) -> bool:
        """Whether the client leaves, politely or not."""
        with anyio.fail_after(10):
            await self._left.wait()
        return True

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def publish(
        self,
        payload: bytes = b'{"w":1}',
        *,
        topic: bytes = b"site/battery/state",
        qos: int = 0,
        mid: int = 0,
        dup: bool = False,
        retain: bool = False,
    ) -> None:
        body = len(topic).to_bytes(2, "big") + topic
        body += mid.to_bytes(2, "big") if qos else b""
        body += b"\0" if self.five else b""
        self.send(packet(PUBLISH | qos << 1 | dup << 3 | retain, body + payload))

    async def read_connect(self) -> None:
        header, self.connect = await self.packet()
        assert header == CONNECT
        assert self.connect[:6] == b"\0\4MQTT"
        self.five = self.connect[6] == 5

    def connack(self, code: int = 0, *, present: bool = False) -> None:
        self.send(packet(0x20, bytes([present, code]) + (b"\0" if self.five else b"")))

    async def read_subscribe(self) -> int:
        """Its identifier; the filters are added to ``filters``."""
        header, body = await self.packet()
        assert header == SUBSCRIBE
        at = 3 if self.five else 2
        while at < len(body):
            stop = at + 2 + int.from_bytes(body[at : at + 2], "big")
            self.filters.append((body[at + 2 : stop], body[stop]))
            at = stop + 1
        return int.from_bytes(body[:2], "big")

    def suback(self, mid: int, *codes: int) -> None:
        self.send(packet(0x90, mid.to_bytes(2, "big") + (b"\0" if self.five else b"") + bytes(codes)))

    async def welcome(self, *, present: bool = False, granted: Sequence[int] | None = None) -> None:
        """Take it in, as a broker that likes it."""
        await self.read_connect()
        self.connack(present=present)
        mid = await self.read_subscribe()
        self.suback(mid, *(granted or [qos & 3 for _, qos in self.filters]))


Greeting = Callable[[Peer], Awaitable[None]]


class FakeServer:
    """Listens on loopback and greets each connection; then its peer is handed out by ``peer``."""

    def __init__(self, greeting: Greeting) -> None:
        self.port = 0
        self._greeting = greeting
        self._greeted: asyncio.Queue[Peer] = asyncio.Queue()
        self._end = asyncio.Event()
        self.connections = 0
        self.connected = asyncio.Event()

    async def peer(self) -> Peer:
        with anyio.fail_after(10):
            return await self._greeted.get()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.connected.set()
        peer = Peer(reader, writer)
        pump = asyncio.create_task(peer.pump())
        greeting = asyncio.ensure_future(self._greeting(peer))
        await asyncio.wait([pump, greeting], return_when=asyncio.FIRST_COMPLETED)
        if greeting.done():
            greeting.result()
            self._greeted.put_nowait(peer)
        else:
            greeting.cancel()  # the client has left before, which its own test judges
        await asyncio.wait([pump, asyncio.ensure_future(self._end.wait())], return_when=asyncio.FIRST_COMPLETED)
        pump.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeServer]:
        tasks: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            await self.handle(reader, writer)

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._end.set()
            server.close()
            await asyncio.gather(*tasks)
            await server.wait_closed()


def serve(greeting: Greeting = Peer.welcome) -> Any:
    return FakeServer(greeting).running()


def device(**more: Any) -> MqttDevice:
    group = {"points": [{"name": "W", "at": "/w"}]}
    raw = {"id": "battery", "connection": "bms", "topic": "site/+/state", "groups": {"state": group}, **more}
    return MqttDevice.model_validate(raw)


def adapter(port: int, version: str = "3.1.1", *devices: MqttDevice, **more: Any) -> MqttAdapter:
    connection = MqttConnection.model_validate({"url": f"mqtt://127.0.0.1:{port}?version={version}", **more})
    chosen = [
        DeviceSelection(each, {group: each.point_names(group) for group in each.groups})
        for each in devices or [device()]
    ]
    return MqttAdapter("bms", connection, chosen, SystemClock())


@asynccontextmanager
async def session(
    version: str = "3.1.1", *devices: MqttDevice, greeting: Greeting = Peer.welcome, **more: Any
) -> AsyncIterator[tuple[Subscription, Peer]]:
    async with serve(greeting) as server:
        async with adapter(server.port, version, *devices, **more).subscribe() as subscription:
            yield subscription, await server.peer()
        assert server.connections == 1, "paho made a connection of its own"


async def take(subscription: Subscription, count: int) -> list[Arrival]:
    found: list[Arrival] = []
    with anyio.fail_after(10):
        while len(found) < count:
            found += await subscription.receive()
    return found


async def refused(port: int, version: str = "3.1.1", *devices: MqttDevice, **more: Any) -> AcquisitionError:
    with anyio.fail_after(10), pytest.raises(AcquisitionError) as caught:
        async with adapter(port, version, *devices, **more).subscribe():
            pass
    assert caught.value.cause is Cause.LINK_DOWN
    return caught.value


async def lost(subscription: Subscription) -> AcquisitionError:
    with anyio.fail_after(10), pytest.raises(AcquisitionError) as caught:
        await subscription.receive()
    assert caught.value.cause is Cause.LINK_DOWN
    return caught.value


# ---- CONNECT and SUBSCRIBE --------------------------------------------------------------------------------------


async def test_what_is_said_in_3_1_1() -> None:
    async with session(username="agent", keepalive="1m", client_id="a7") as (subscription, peer):
        # user, no password, session kept; keep-alive; identifier; user
        assert peer.connect == b"\0\4MQTT\4\x80" + b"\0\x3c" + b"\0\2a7" + b"\0\5agent"
        assert peer.filters == [(b"site/+/state", 1)]
        assert (subscription.window, subscription.resumed) == (20, False)


async def test_what_is_said_in_5() -> None:
    async with session("5", session_expiry="1h", receive_maximum=7) as (subscription, peer):
        properties = b"\x11\0\0\x0e\x10" + b"\x21\0\7"
        assert (
            peer.connect
            == b"\0\4MQTT\5\0" + b"\0\x1e" + bytes([len(properties)]) + properties + b"\0\x0eedge-agent-bms"
        )
        assert peer.filters == [(b"site/+/state", 0x11)]  # retained messages only with a new subscription
        assert subscription.window == 7


@pytest.mark.parametrize(("version", "flags"), [("3.1.1", b"\4\2"), ("5", b"\5\2")])
async def test_a_clean_session(version: str, flags: bytes) -> None:
    async with session(version, session="clean") as (_, peer):
        assert peer.connect[6:8] == flags
        assert version == "3.1.1" or b"\x11\0\0\0\0" in peer.connect


@VERSIONS
async def test_a_visitor_leaves_the_session_alone_and_owes_nothing(version: str) -> None:
    async with serve() as server:
        url = f"mqtt://127.0.0.1:{server.port}?version={version}"
        connection = MqttConnection.model_validate({"url": url, "client_id": "agent"}).visitor()
        one = MqttAdapter("bms", connection, [DeviceSelection(device(qos=2), {"state": ("W",)})], SystemClock())
        async with one.subscribe() as subscription:
            peer = await server.peer()
            assert peer.connect[7] == 2, "a clean session"
            assert peer.connect.endswith(b"\0\x17" + str(connection.client_id).encode())
            assert (peer.filters, subscription.window) == ([(b"site/+/state", 0)], None)


@VERSIONS
async def test_a_kept_session_is_resumed(version: str) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.connack(present=True)
        peer.publish(qos=1, mid=9, dup=True)  # what the session kept comes before the answer to SUBSCRIBE
        peer.suback(await peer.read_subscribe(), 1)

    async with session(version, greeting=greeting) as (subscription, _):
        assert subscription.resumed
        [arrival] = await take(subscription, 1)
        assert (arrival.message.mid, arrival.message.dup) == (9, True)


async def test_without_qos_there_is_no_window() -> None:
    async with session("5", device(qos=0)) as (subscription, peer):
        assert subscription.window is None
        assert peer.filters == [(b"site/+/state", 0)]


async def test_filters_are_subscribed_once_with_the_highest_qos() -> None:
    other = device(id="other", qos=2, groups={"g": {"points": [{"name": "X", "at": "/x"}]}})
    alarm = device(id="alarm", topic="alarm/#", qos=0)
    async with session("3.1.1", device(qos=1), other, alarm) as (subscription, peer):
        assert peer.filters == [(b"alarm/#", 0), (b"site/+/state", 2)]
        peer.publish()
        peer.publish(topic=b"alarm/fire")
        first, second = await take(subscription, 2)
        assert first.concerns == ((0, "state"), (1, "g"))
        assert second.concerns == ((2, "state"),)


async def test_many_filters_go_out_in_several_packets() -> None:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.connack()
        for count in (8, 1):
            before = len(peer.filters)
            mid = await peer.read_subscribe()
            assert len(peer.filters) - before == count
            peer.suback(mid, *[1] * count)

    devices = [device(id=f"d{number}", topic=f"t/{number}") for number in range(9)]
    async with session("3.1.1", *devices, greeting=greeting):
        pass


async def test_secrets_are_read_at_each_connect(tmp_path: Any) -> None:
    file = tmp_path / "password"
    async with serve() as server:
        one = adapter(server.port, username="agent", password={"file": str(file)})
        with pytest.raises(AcquisitionError, match="cannot be read") as caught:
            async with one.subscribe():
                pass
        assert caught.value.cause is Cause.LINK_DOWN
        assert str(file) not in caught.value.detail, "it stands in signed gaps"
        assert caught.value.hint.startswith(f"file {file} cannot be read")
        for password in ("old", "renewed"):
            file.write_text(password + "\n")
            async with one.subscribe():
                peer = await server.peer()
                assert peer.connect.endswith(b"\0\5agent" + bytes([0, len(password)]) + password.encode())


@pytest.mark.parametrize("password", ["hunter2" * 9362 + "!!", "hunter2\udcff"])
async def test_a_password_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("BMS_PASSWORD", password)
    async with serve() as server:
        error = await refused(server.port, username="agent", password={"env": "BMS_PASSWORD"})
        assert "cannot be sent" in str(error)
        assert "hunter2" not in repr((error, error.__cause__, error.hint))
        with anyio.fail_after(10):
            await server.connected.wait()  # it must not end before it knows of the connection


@pytest.mark.parametrize(
    ("version", "code", "text", "hint"),
    [
        ("3.1.1", 2, "Client identifier not valid", "client_id"),
        ("3.1.1", 3, "Server unavailable", "broker's log"),
        ("3.1.1", 4, "Bad user name or password", "username and password"),
        ("3.1.1", 5, "Not authorized", "access rules"),
        ("3.1.1", 77, "Unspecified error", "broker's log"),
        ("3.1.1", 1, "does not speak MQTT 3.1.1", "?version="),
        ("5", 1, "Unsupported protocol version", "?version="),
        ("5", 0x84, "Unsupported protocol version", "?version="),
        ("5", 0x85, "Client identifier not valid", "client_id"),
        ("5", 0x86, "Bad user name or password", "username and password"),
        ("5", 0x87, "Not authorized", "access rules"),
        ("5", 0x8A, "Banned", "banned"),
        ("5", 0x9D, "Server moved", "broker's log"),
    ],
)
async def test_a_refused_connection(version: str, code: int, text: str, hint: str) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.connack(code)

    async with serve(greeting) as server:
        error = await refused(server.port, version)
        assert text in str(error)
        assert hint in error.hint
        assert server.connections == 1


@VERSIONS
async def test_a_refused_subscription(version: str) -> None:
    async with serve(lambda peer: peer.welcome(granted=[0x80 if version == "3.1.1" else 0x87])) as server:
        error = await refused(server.port, version)
        assert 'refuses the subscription to "site/+/state"' in str(error)
        assert "access rules" in error.hint


@VERSIONS
async def test_a_lower_qos_is_said_once(version: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(lambda peer: peer.welcome(granted=[0])) as server:
        one = adapter(server.port, version)
        for _ in range(2):
            async with one.subscribe():
                pass
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert said == ["broker grants a lower QoS connection=bms topic=site/+/state asked=1 granted=0"]


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = await refused(port)
    assert str(error) == "cannot connect: Connection refused"
    assert f"127.0.0.1 port {port}" in error.hint


@VERSIONS
@pytest.mark.parametrize("steps", ["nothing", "half", "connack"])
async def test_silence_ends_in_time(version: str, steps: str) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        if steps == "half":
            peer.send(b"\x20")
        elif steps == "connack":
            peer.connack()

    async with serve(greeting) as server:
        error = await refused(server.port, version, timeout="200ms")
        assert str(error) == "no answer to CONNECT and SUBSCRIBE within 0.2 s"
        assert await (await server.peer()).gone()


@VERSIONS
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",  # what a TLS server says
        b"\x20\x00",
        b"\x20\x03\x00\x00\xff",
        b"\x20\x02\x00\x00\x90\x01\x00",
        b"\x20\x02\x00\xfe",
        b"\x20\x03\x00\x00\x00" + b"\x90\x04\x00\x01\x00\x7e",
        b"\x20\x03\x00\x00\x00" + b"\x90\x05\x00\x01\x00\x01\x01",
        b"",
    ],
)
async def test_no_broker_answers(version: str, answer: bytes) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.send(answer)
        await peer.writer.drain()
        peer.writer.close()

    async with serve(greeting) as server:
        error = await refused(server.port, version)
        assert error.hint


async def test_cancelled_while_it_waits_for_the_broker() -> None:
    async with serve(Peer.read_connect) as server, anyio.create_task_group() as tasks:

        async def subscribe() -> None:
            async with adapter(server.port).subscribe():
                pass

        tasks.start_soon(subscribe)
        peer = await server.peer()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await peer.gone()


async def test_cancelled_in_the_handshake() -> None:
    async def nothing(peer: Peer) -> None:
        pass

    async with serve(nothing) as server, anyio.create_task_group() as tasks:
        secure = MqttAdapter(
            "bms",
            MqttConnection.model_validate({"url": f"mqtts://127.0.0.1:{server.port}", "timeout": "60s"}),
            [DeviceSelection(device(), {"state": ("W",)})],
            SystemClock(),
        )

        async def subscribe() -> None:
            async with secure.subscribe():
                pass

        tasks.start_soon(subscribe)
        peer = await server.peer()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await peer.gone()


def test_an_abandoned_try_leaves_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        early = Dial(host="127.0.0.1", port=port, tls=None, timeout=5)
        early.abandon()
        with pytest.raises(OSError, match="given up"):
            early.run()
        late = Dial(host="127.0.0.1", port=port, tls=None, timeout=5)
        connected = late.run()
        late.abandon()
        assert connected.fileno() == -1


# ---- messages ---------------------------------------------------------------------------------------------------


@VERSIONS
async def test_a_message_becomes_a_sample(version: str) -> None:
    async with serve() as server:
        one = adapter(server.port, version)
        async with one.subscribe() as subscription:
            peer = await server.peer()
            peer.publish(b'{"w":-1.5}', qos=1, mid=1)
            [arrival] = await take(subscription, 1)
            assert arrival.concerns == ((0, "state"),)
            assert arrival.received == subscription.heard
            sample = one.devices[0].decode("state", arrival)
            assert (sample.values, sample.quality, one.devices[0].revision) == ((-15,), (), 1)


@VERSIONS
@pytest.mark.parametrize(("qos", "answer"), [(1, PUBACK), (2, PUBREC)])
async def test_nothing_is_acknowledged_before_it_is_on_disk(version: str, qos: int, answer: int) -> None:
    async with session(version, device(qos=qos)) as (subscription, peer):
        for mid in (7, 0xABCD, 8):
            peer.publish(b"%d" % mid, qos=qos, mid=mid)
        arrivals = await take(subscription, 3)
        assert [each.message.payload for each in arrivals] == [b"7", b"43981", b"8"]
        assert await peer.quiet()
        subscription.acknowledge(arrivals[0])
        assert await peer.packet() == (answer, b"\0\7")
        subscription.acknowledge(arrivals[1])
        subscription.acknowledge(arrivals[2])
        assert await peer.packet() == (answer, b"\xab\xcd")
        assert await peer.packet() == (answer, b"\0\x08")
        subscription.acknowledge(arrivals[2])
        assert await peer.quiet(), "once is enough"


@VERSIONS
async def test_the_second_half_of_qos_2(version: str) -> None:
    async with session(version, device(qos=2)) as (subscription, peer):
        peer.publish(qos=2, mid=5)
        [arrival] = await take(subscription, 1)
        subscription.acknowledge(arrival)
        assert await peer.packet() == (PUBREC, b"\0\5")
        peer.send(packet(0x62, b"\0\5") + packet(0x62, b"\0\6"))  # one of them of a former connection
        assert await peer.packet() == (PUBCOMP, b"\0\5")
        assert await peer.packet() == (PUBCOMP, b"\0\6")


async def test_qos_0_is_not_acknowledged() -> None:
    async with session() as (subscription, peer):
        peer.publish()
        subscription.acknowledge((await take(subscription, 1))[0])
        assert await peer.quiet()


@VERSIONS
async def test_flags_and_what_they_mean(version: str) -> None:
    async with serve() as server:
        one = adapter(server.port, version)
        async with one.subscribe() as subscription:
            peer = await server.peer()
            peer.publish(qos=1, mid=1)
            peer.publish(qos=1, mid=2, dup=True)
            peer.publish(qos=1, mid=3, retain=True)
            codes = [one.devices[0].decode("state", each).quality for each in await take(subscription, 3)]
    assert codes == [(), ((0, Quality.POSSIBLE_DUPLICATE),), ((0, Quality.OLD_DATA),)]


async def test_only_the_last_copy_within_a_connection_is_acknowledged() -> None:
    async with session() as (subscription, peer):
        peer.publish(qos=1, mid=1)
        peer.publish(qos=1, mid=1, dup=True)
        first, second = await take(subscription, 2)
        subscription.acknowledge(first)
        assert await peer.quiet()
        subscription.acknowledge(second)
        assert await peer.packet() == (PUBACK, b"\0\1")


async def test_what_nobody_asked_for_is_only_acknowledged(caplog: pytest.LogCaptureFixture) -> None:
    async with session() as (subscription, peer):
        for mid in (1, 2):
            peer.publish(topic=b"old/topic", qos=1, mid=mid)
        arrivals = await take(subscription, 2)
        assert [each.concerns for each in arrivals] == [(), ()]
        subscription.acknowledge(arrivals[0])
        assert await peer.packet() == (PUBACK, b"\0\1")
    assert [each.getMessage().partition(",")[0] for each in caplog.records] == [
        "broker sends what nothing is configured for"
    ]


@VERSIONS
async def test_a_message_comes_in_pieces(version: str) -> None:
    async with session(version) as (subscription, peer):
        body = b"\0\x12site/battery/state" + (b"\0" if version == "5" else b"") + b'{"w":1}'
        for byte in packet(PUBLISH, body):
            peer.send(bytes([byte]))
            await peer.writer.drain()
            await anyio.lowlevel.checkpoint()
        [arrival] = await take(subscription, 1)
        assert arrival.message.payload == b'{"w":1}'


async def test_what_is_too_large_blocks_nothing() -> None:
    async with serve() as server:
        one = adapter(server.port)
        async with one.subscribe() as subscription:
            peer = await server.peer()
            peer.publish(b"x" * (3 << 20), qos=1, mid=1)
            peer.publish(qos=1, mid=2)
            large, small = await take(subscription, 2)
            with pytest.raises(AcquisitionError, match=r"3145728 bytes sha256 .*: larger than 1048576 bytes"):
                one.devices[0].decode("state", large)
            subscription.acknowledge(large)
            assert await peer.packet() == (PUBACK, b"\0\1")
            assert one.devices[0].decode("state", small).values == (1,)


@VERSIONS
@pytest.mark.parametrize(("payload", "topic"), [(900_000, 10), (10, 60_000)])
async def test_when_bytes_fill_the_room_and_not_messages_none_waits_for_others(
    version: str, payload: int, topic: int
) -> None:
    """Else a few large ones that mean nothing would hold up what is behind them for as long as a batch waits."""
    async with session(version, device(topic="#"), receive_maximum=200) as (subscription, peer):
        assert subscription.window == 200
        sent, arrivals = 0, list[Arrival]()
        while subscription.window != 1 and sent < 100:
            peer.publish(b"x" * payload, topic=b"t" * topic, qos=1, mid=(sent := sent + 1))
            arrivals += await take(subscription, 1)
        assert 2_000_000 < sent * (payload + topic) < 4_000_000
        for arrival in arrivals:
            subscription.acknowledge(arrival)
        assert subscription.window == 200


async def test_cancelling_loses_nothing() -> None:
    async with session() as (subscription, peer):
        with anyio.move_on_after(0.01):
            await subscription.receive()
        peer.publish()
        assert await peer.quiet()  # it is there, and nobody waits for it
        assert len(await take(subscription, 1)) == 1


async def test_messages_that_nobody_fetches_hold_up_the_broker() -> None:
    payload = b"x" * 2000
    async with session() as (subscription, peer):
        sent, held_up = 0, False
        while sent < 60_000 and not held_up:
            peer.publish(payload)
            sent += 1
            with anyio.move_on_after(0.3) as patience:
                await peer.writer.drain()
            held_up = patience.cancelled_caught
        assert held_up, "120 MB went in"
        first = await subscription.receive()
        assert len(first) < 1000
        assert len(await take(subscription, sent - len(first))) == sent - len(first)


# ---- the end ----------------------------------------------------------------------------------------------------


async def test_what_came_before_the_end_is_handed_over() -> None:
    async with session() as (subscription, peer):
        peer.publish(qos=1, mid=1)
        await peer.writer.drain()
        peer.writer.close()
        [arrival] = await take(subscription, 1)
        error = await lost(subscription)
        assert str(error) == "the broker closed the connection"
        assert 'client_id "edge-agent-bms"' in error.hint
        subscription.acknowledge(arrival)  # does nothing
        await lost(subscription)


@VERSIONS
@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x00",
        b"\xf0\x00",
        b"\x10\x02\x00\x00",
        b"\x30\x02\x00\x05",
        b"\x36\x06\x00\x01a\x00\x01x",
        b"\x30\xff\xff\xff\xff\xff",
        b"\x90\xff\xff\xff\x7f",
        b"\xd0\x01\x00",
        b"\x40\x01\x00",
        b"\x20\x05\x00\x87\xff\xff\xff",
        b"\xb0\x01\x00",
    ],
)
async def test_junk_ends_the_connection(version: str, junk: bytes) -> None:
    async with session(version) as (subscription, peer):
        peer.publish()
        peer.send(junk)
        assert len(await take(subscription, 1)) == 1
        error = await lost(subscription)
        assert str(error)
        assert await peer.gone()


async def test_a_broker_of_5_says_why() -> None:
    async with session("5") as (subscription, peer):
        peer.send(packet(DISCONNECT, b"\x8e"))
        error = await lost(subscription)
        assert str(error) == "the broker ended the connection: Session taken over"
        assert "client_id" in error.hint


@VERSIONS
async def test_leaving_says_goodbye_behind_the_last_acknowledgement(version: str) -> None:
    async with serve() as server:
        async with adapter(server.port, version).subscribe() as subscription:
            peer = await server.peer()
            peer.publish(qos=1, mid=1)
            subscription.acknowledge((await take(subscription, 1))[0])
            peer.publish(b"x" * 500_000, qos=1, mid=2)  # unread when the connection closes
        assert await peer.gone()
        assert [await peer.packet(), await peer.packet()] == [(PUBACK, b"\0\1"), (DISCONNECT, b"")]


async def test_closing_the_adapter_wakes_who_waits() -> None:
    async with serve() as server:
        one = adapter(server.port)
        async with one.subscribe() as subscription, anyio.create_task_group() as tasks:
            peer = await server.peer()

            async def wait() -> None:
                assert str(await lost(subscription)) == "the connection was closed by the agent"

            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await one.close()
            assert await peer.gone()
        with pytest.raises(AcquisitionError, match="closed by the agent"):
            async with one.subscribe():
                pass


async def test_connecting_again() -> None:
    async with serve() as server:
        one = adapter(server.port)
        for number in (1, 2):
            async with one.subscribe() as subscription:
                peer = await server.peer()
                peer.publish(b"%d" % number, qos=1, mid=1, dup=number == 2)
                [arrival] = await take(subscription, 1)
                assert arrival.message.payload == b"%d" % number
                peer.writer.close()
                await lost(subscription)
        assert server.connections == 2


def impatient(port: int) -> MqttAdapter:
    """A client with the shortest keep-alive that MQTT knows, which looks often."""
    one = adapter(port)
    object.__setattr__(one._broker._account, "config", one._broker._account.config.model_copy(update={"keepalive": S}))
    return one


async def test_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TICK", 0.02)

    async def silent_broker() -> None:
        """Does not answer PINGREQ: it is dead."""
        async with serve() as server, impatient(server.port).subscribe() as subscription:
            peer = await server.peer()
            error = await lost(subscription)
            assert "Keep alive" in str(error)
            assert (await peer.packet())[0] == PINGREQ

    async def talking_broker() -> None:
        """Sends messages: no answer is missed for 3 s, in which there must be two PINGREQ."""
        async with serve() as server, impatient(server.port).subscribe() as subscription:
            peer = await server.peer()
            pings = 0
            with anyio.move_on_after(3):
                while pings < 2:
                    peer.publish()
                    await subscription.receive()
                    with anyio.move_on_after(0.05):
                        assert await peer.packet() == (PINGREQ, b"")
                        pings += 1
            assert pings == 2

    async def held_up_broker() -> None:
        """Is not read any more: it still gets PINGREQ, and is not taken for dead."""
        async with serve() as server, impatient(server.port).subscribe() as subscription:
            peer = await server.peer()
            for _ in range(600):
                peer.publish()
            for _ in range(3):
                assert await peer.packet() == (PINGREQ, b"")
            assert len(await take(subscription, 600)) == 600

    async with anyio.create_task_group() as tasks:
        for each in (silent_broker, talking_broker, held_up_broker):
            tasks.start_soon(each)


def test_what_is_private_in_paho_is_still_there() -> None:
    # The client hands paho a socket that is connected already; the sessions above fail if it makes its own.
    assert "_create_socket" in vars(paho.Client)
    ours = {name for name in vars(client._Client) if not name.startswith("__")}
    assert ours & set(dir(paho.Client)) == {"_create_socket"}


async def test_nothing_is_left_behind() -> None:
    async with session() as (subscription, peer):
        peer.writer.close()
        await lost(subscription)
    del subscription, peer
    gc.collect()  # a socket left open would be a ResourceWarning, which is an error here
