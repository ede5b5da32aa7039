"""What is subscribed when the topics of a configuration overlap, or changed while a broker keeps the session: each
message comes once or is marked, against a broker made of bytes and against real ones.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from adapters.mqtt import MqttAdapter, MqttConnection, subscriptions
from adapters.mqtt.topics import covers, matches, overlap, widest, wild
from agent.clock import SystemClock
from agent.model import Quality
from agent.ports import Arrival, DeviceSelection, Subscription
from testbed.battery_device import MqttBroker, broker_url
from testbed.processes import NatsServer
from tests.test_config_refusals import GOOD, refusals
from tests.test_mqtt_brokers import mosquitto, publishing
from tests.test_mqtt_client import PUBACK, Greeting, Peer, device, serve, take

pytestmark = pytest.mark.anyio

MS = 1_000_000
UNSUBSCRIBE = 0xA2
VERSIONS = pytest.mark.parametrize("version", ["3.1.1", "5"])


@contextmanager
def broker_of(kind: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Its URL, and its port for publishers."""
    name, version = kind.split()
    made: MqttBroker = NatsServer(folder, mqtt=True) if name == "nats" else mosquitto(folder)
    with made as broker:
        yield broker_url(broker, version), broker.mqtt_port if isinstance(broker, NatsServer) else broker.port


BROKERS = pytest.mark.parametrize("kind", ["mosquitto 3.1.1", "mosquitto 5", "nats 3.1.1"])


def adapter(url: str, folder: Path | None, *topics: str, **connection: Any) -> MqttAdapter:
    """With a device for each topic filter."""
    chosen = [
        DeviceSelection(device(id=f"d{index}", topic=topic), {"state": ("W",)}) for index, topic in enumerate(topics)
    ]
    made = MqttAdapter("bms", MqttConnection.model_validate({"url": url, **connection}), chosen, SystemClock())
    if folder is not None:
        made.keep_in(folder)
    return made


def remembered(folder: Path) -> list[str]:
    return (folder / "bms.filters").read_text().splitlines()


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - of files and logs nothing tells
            await anyio.sleep(0.01)


# ---- topic filters ----------------------------------------------------------------------------------------------


def test_what_covers_and_what_overlaps_is_what_topics_say() -> None:
    levels = ["a", "$s", ""]
    topics = ["/".join(each) for n in (1, 2, 3, 4) for each in itertools.product(levels, repeat=n)]
    filters = ["/".join(each) for n in (1, 2, 3) for each in itertools.product(["a", "$s", "+"], repeat=n)]
    filters += ["#", *(f"{each}/#" for each in filters)]
    taken = {each: {topic for topic in topics if matches(each, topic)} for each in filters}
    for one, other in itertools.product(filters, repeat=2):
        if (one, other) != ("+/#", "#"):  # the same with other words, and the second covers the first
            assert covers(one, other) == (taken[one] >= taken[other]), (one, other)
        assert overlap(one, other) == bool(taken[one] & taken[other]), (one, other)
        if overlap(one, other) and not (wild(one) and wild(other)):
            assert covers(one, other) or covers(other, one)


def test_of_filters_the_widest_are_subscribed_with_the_highest_qos() -> None:
    found = widest({"x/y": 2, "x/+": 0, "x/#": 1, "y": 0, "$SYS/load": 1, "+/z": 0})
    assert found == {"x/#": 2, "y": 0, "$SYS/load": 1, "+/z": 0}


# ---- what a configuration may say -------------------------------------------------------------------------------


DEVICE = """
[[device]]
id = "{id}"
connection = "{connection}"
topic = "{topic}"
groups = {{ g = {{ points = [{{ name = "X", at = "/x" }}] }} }}
"""
CONNECTION = '\n[connection.{name}]\nurl = "mqtt://{host}"\n{more}\n'


def test_filters_of_which_none_covers_the_other_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace('topic = "t"', 'topic = "site/+/state"')
    more = DEVICE.format(id="other", connection="bms", topic="site/battery/#")
    [(line, said)] = refusals(tmp_path, text + more)
    assert (text + more).splitlines()[line - 1] == 'topic = "site/battery/#"'
    assert said == (
        'some messages would come twice: they are also of "site/+/state" of device "battery"; '
        "read one of the two through a connection of its own"
    )


def test_filters_of_one_device_are_judged_too(tmp_path: Path) -> None:
    group = '[device.groups.other]\ntopic = "+/a"\npoints = [{ name = "X", at = "/x" }]\n[device.groups.state]'
    text = GOOD.replace('topic = "t"', 'topic = "a/+"').replace("[device.groups.state]", group)
    [(line, _)] = refusals(tmp_path, text)
    assert "a/+" in text.splitlines()[line - 1]


@pytest.mark.parametrize("topic", ["t", "t/#", "#", "other/+"])
def test_filters_that_cover_each_other_or_have_nothing_in_common_are_good(tmp_path: Path, topic: str) -> None:
    more = DEVICE.format(id="other", connection="bms", topic=topic) + 'version = "two"'
    text = GOOD.replace('topic = "t"', 'topic = "t/+"') + more
    assert [said for _, said in refusals(tmp_path, text) if "twice" in said] == []


@pytest.mark.parametrize(
    ("host", "more", "problem"),
    [
        ("192.0.2.2", "", False),  # each has the id of its own name
        ("192.0.2.2:1883", 'client_id = "edge-agent-bms"', True),
        ("192.0.2.2:1884", 'client_id = "edge-agent-bms"', False),
        ("192.0.2.3", 'client_id = "edge-agent-bms"', False),
    ],
)
def test_two_connections_cannot_be_one_client(tmp_path: Path, host: str, more: str, problem: bool) -> None:
    text = GOOD + CONNECTION.format(name="twin", host=host, more=more) + "\n[[wrong]]"
    found = [said for _, said in refusals(tmp_path, text) if "client_id" in said]
    assert found == (
        ['client_id "edge-agent-bms" at 192.0.2.2 port 1883 is that of connection "bms", too; give each its own']
        if problem
        else []
    )


# ---- over the wire ----------------------------------------------------------------------------------------------


def resumed(filters: int) -> Greeting:
    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.connack(present=True)
        peer.suback(await peer.read_subscribe(), *[1] * filters)

    return greeting


async def unsubscribed(peer: Peer, *codes: int) -> bytes:
    """What is unsubscribed; it is answered."""
    header, body = await peer.packet()
    assert header == UNSUBSCRIBE
    peer.send(bytes([0xB0, 2 + (1 + len(codes) if peer.five else 0)]) + body[:2])
    if peer.five:
        peer.send(b"\0" + bytes(codes))
    return body[5:] if peer.five else body[4:]


@VERSIONS
async def test_what_an_earlier_configuration_subscribed_is_left(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscriptions, "EXCHANGE", 0)
    caplog.set_level(logging.INFO)
    (tmp_path / "bms.filters").write_text("a/b\nsite/+/state\n")
    async with serve(resumed(1)) as server:
        url = f"mqtt://127.0.0.1:{server.port}?version={version}"
        async with adapter(url, tmp_path, "site/+/state").subscribe() as subscription:
            peer = await server.peer()
            assert not subscription.resumed, "it was not quite this session"
            assert await unsubscribed(peer, 0) == b"a/b"
            await until(lambda: remembered(tmp_path) == ["site/+/state"])
            assert caplog.messages == ["no longer subscribed connection=bms topic=a/b"]
        async with adapter(url, tmp_path, "site/+/state").subscribe() as subscription:
            assert subscription.resumed
            assert await (await server.peer()).quiet(), "it was left once"


async def test_what_a_broker_does_not_let_go_of_is_tried_again_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscriptions, "EXCHANGE", 0)
    (tmp_path / "bms.filters").write_text("a/b\na/c\n")
    async with serve(resumed(1)) as server:
        url = f"mqtt://127.0.0.1:{server.port}?version=5"
        async with adapter(url, tmp_path, "x").subscribe():
            assert await unsubscribed(await server.peer(), 0, 0x87) == b"a/b\0\3a/c"
            await until(lambda: remembered(tmp_path) == ["a/c", "x"])
            assert ["topic=a/c error=Not authorized" in said for said in caplog.messages] == [True]
        async with adapter(url, tmp_path, "x").subscribe():
            assert await unsubscribed(await server.peer(), 0) == b"a/c"


async def test_a_new_session_has_nothing_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "EXCHANGE", 0)
    (tmp_path / "bms.filters").write_text("a/b\n")
    async with serve() as server, adapter(f"mqtt://127.0.0.1:{server.port}", tmp_path, "x").subscribe():
        assert await (await server.peer()).quiet()
        assert remembered(tmp_path) == ["x"]


async def test_a_clean_session_remembers_nothing(tmp_path: Path) -> None:
    async with (
        serve() as server,
        adapter(f"mqtt://127.0.0.1:{server.port}", tmp_path, "x", session="clean").subscribe(),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a/#/b\n\n$share/x/y\n", b"x\n" * 3_000_000])
async def test_a_spoilt_file_is_no_obstacle(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "EXCHANGE", 0)
    (tmp_path / "bms.filters").write_bytes(content)
    async with (
        serve(resumed(1)) as server,
        adapter(f"mqtt://127.0.0.1:{server.port}", tmp_path, "x").subscribe() as subscription,
    ):
        assert subscription.resumed
        assert await (await server.peer()).quiet()
    assert remembered(tmp_path) == ["x"]


async def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as server, adapter(f"mqtt://127.0.0.1:{server.port}", tmp_path / "none", "x").subscribe():
        pass
    assert ["cannot remember what is subscribed" in said for said in caplog.messages] == [True]


@VERSIONS
async def test_while_filters_are_exchanged_what_comes_twice_is_marked(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "EXCHANGE", 50 * MS)
    (tmp_path / "bms.filters").write_text("site/battery/state\n")

    async def greeting(peer: Peer) -> None:
        await peer.read_connect()
        peer.connack(present=True)
        peer.publish(b'{"w":1}')  # with the answer, before anything is subscribed
        peer.suback(await peer.read_subscribe(), 1)

    async with serve(greeting) as server:
        url = f"mqtt://127.0.0.1:{server.port}?version={version}"
        one = adapter(url, tmp_path, "site/#")
        async with one.subscribe() as subscription:
            peer = await server.peer()
            for word, topic in ((b"1", b"battery"), (b"2", b"battery"), (b"1", b"other"), (b"1", b"other")):
                peer.publish(b'{"w":%b}' % word, topic=b"site/%b/state" % topic)
            arrivals = await take(subscription, 5)
            qualities = [one.devices[0].decode("state", each).quality for each in arrivals]
            assert qualities == [(), ((0, Quality.POSSIBLE_DUPLICATE),), (), (), ()], "only of what both take"
            assert await unsubscribed(peer, 0) == b"site/battery/state"
            await until(lambda: remembered(tmp_path) == ["site/#"])
            await anyio.sleep(0.1)
            peer.publish(b'{"w":2}', qos=1, mid=1)
            [last] = await take(subscription, 1)
            assert one.devices[0].decode("state", last).quality == ()
            subscription.acknowledge(last)
            assert await peer.packet() == (PUBACK, b"\0\1")


# ---- real brokers -----------------------------------------------------------------------------------------------


async def numbers(subscription: Subscription, last: int) -> list[int]:
    """Of all messages up to ``last``, which are acknowledged."""
    found: list[Arrival] = []
    while not found or found[-1].message.payload != b'{"w":%d}' % last:
        found += await take(subscription, 1)
    for each in found:
        subscription.acknowledge(each)
    return [each.message.document()["w"] for each in found]


@BROKERS
async def test_filters_that_cover_each_other_bring_each_message_once(kind: str, tmp_path: Path) -> None:
    with broker_of(kind, tmp_path) as (url, port):
        one = adapter(url, tmp_path, "site/battery/state", "site/+/state", "#", "site/battery/state")
        async with publishing(port) as publisher, one.subscribe() as subscription:
            for number in range(3):
                await publisher.publish("site/battery/state", b'{"w":%d}' % number)
            arrivals = await take(subscription, 3)
            assert {each.concerns for each in arrivals} == {tuple((index, "state") for index in range(4))}
            await publisher.publish("last", b'{"w":3}')
            assert await numbers(subscription, 3) == [3], "there was no copy between"


@BROKERS
async def test_another_filter_in_a_kept_session(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What came while nobody listened is there; then the earlier filter is left, and each message comes once."""
    monkeypatch.setattr(subscriptions, "EXCHANGE", 300 * MS)
    caplog.set_level(logging.INFO)
    with broker_of(kind, tmp_path) as (url, port):
        async with publishing(port) as publisher:
            async with adapter(url, tmp_path, "site/battery/state").subscribe() as subscription:
                await publisher.publish("site/battery/state", b'{"w":0}')
                assert await numbers(subscription, 0) == [0]
            for number in (1, 2):
                await publisher.publish("site/battery/state", b'{"w":%d}' % number)
            async with adapter(url, tmp_path, "site/+/state").subscribe() as subscription:
                assert await numbers(subscription, 2) == [1, 2]
                await until(lambda: "no longer subscribed connection=bms topic=site/battery/state" in caplog.messages)
                for number in (3, 4):
                    await publisher.publish("site/battery/state", b'{"w":%d}' % number)
                await publisher.publish("site/other/state", b'{"w":5}')
                assert await numbers(subscription, 5) == [3, 4, 5]
