"""The MQTT adapter against a real Mosquitto: TLS, passwords, access rules, and what is damaged on the way.

Every refusal is judged as the field engineer reads it: what was refused, what to look at, and no secret.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import shutil
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

import provision
from adapters.conformance.watch import nothing_left
from adapters.mqtt import MqttAdapter, MqttConnection, MqttDevice
from agent.clock import SystemClock
from agent.errors import AcquisitionError
from agent.model import Cause
from agent.ports import Arrival, DeviceSelection, Subscription
from testbed.battery_device import broker_url
from testbed.certificates import Authority, Certificate
from testbed.mosquitto import Mosquitto
from tests.test_mqtt_client import packet

pytestmark = pytest.mark.anyio

VERSIONS = pytest.mark.parametrize("version", ["3.1.1", "5"])
CANARY = "canary-7fb1"  # is in every secret
TOPIC = "site/battery/state"


class Publisher:
    """A client of MQTT 3.1.1 that publishes, and goes on when the broker has taken the message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._identifiers = itertools.cycle(range(1, 0x10000))

    @classmethod
    async def connect(cls, port: int, *, tls: ssl.SSLContext | None = None, user: str = "") -> Publisher:
        """A clean session, its identifier the broker's choice; ``user`` has the password CANARY."""
        self = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))
        names = _text(user) + _text(CANARY) if user else b""
        await self._ask(packet(0x10, b"\0\4MQTT\4" + bytes([0xC2 if user else 2]) + b"\0\0\0\0" + names), b"\x20\2\0\0")
        return self

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        mid = next(self._identifiers).to_bytes(2, "big")
        message = packet(0x30 | qos << 1 | retain, _text(topic) + mid + payload)
        await self._ask(message, (b"\x40\2" if qos == 1 else b"\x50\2") + mid)
        if qos == 2:
            await self._ask(b"\x62\2" + mid, b"\x70\2" + mid)

    async def _ask(self, question: bytes, answer: bytes) -> None:
        self._writer.write(question)
        with anyio.fail_after(10):
            assert await self._reader.readexactly(len(answer)) == answer

    async def close(self) -> None:
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


@asynccontextmanager
async def publishing(port: int, *, tls: ssl.SSLContext | None = None, user: str = "") -> AsyncIterator[Publisher]:
    publisher = await Publisher.connect(port, tls=tls, user=user)
    try:
        yield publisher
    finally:
        await publisher.close()


def mosquitto(folder: Path, **options: Any) -> Mosquitto:
    if provision.program("mosquitto") is None:
        pytest.skip("no mosquitto: python3 provision.py debian makes it ready")
    return Mosquitto(folder, **options)


def device(name: str = "battery", topic: str = "site/+/state", qos: int = 1) -> MqttDevice:
    group = {"points": [{"name": "W", "at": "/w"}]}
    return MqttDevice.model_validate(
        {"id": name, "connection": "bms", "topic": topic, "qos": qos, "groups": {"state": group}}
    )


def adapter(url: str, *devices: MqttDevice, **connection: Any) -> MqttAdapter:
    chosen = [DeviceSelection(each, {"state": ("W",)}) for each in devices or [device()]]
    return MqttAdapter("bms", MqttConnection.model_validate({"url": url, **connection}), chosen, SystemClock())


async def take(subscription: Subscription, count: int) -> list[Arrival]:
    found: list[Arrival] = []
    with anyio.fail_after(10):
        while len(found) < count:
            found += await subscription.receive()
    return found


@contextmanager
def refusal() -> Iterator[list[AcquisitionError]]:
    """The one error that is raised in here, judged."""
    errors: list[AcquisitionError] = []
    with pytest.raises(AcquisitionError) as caught:
        yield errors
    errors.append(caught.value)
    assert caught.value.cause is Cause.LINK_DOWN
    assert caught.value.detail.isprintable()
    assert CANARY not in "".join([*traceback.format_exception(caught.value), repr(caught.value), caught.value.hint])


async def refused(one: MqttAdapter) -> AcquisitionError:
    """Why no connection is made, or none that lasts."""
    with anyio.fail_after(10), refusal() as errors:
        async with one.subscribe() as subscription:
            await subscription.receive()
    return errors[0]


# ---- TLS and passwords ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """A broker with TLS that knows one user, and what is needed, or wrong, to connect to it."""

    broker: Mosquitto
    folder: Path
    other: Authority

    @property
    def ca(self) -> str:
        assert self.broker.authority is not None
        return str(self.broker.authority.path)

    def good(self, **changes: Any) -> dict[str, Any]:
        """A connection's table that works, with these changes; None leaves a key out."""
        password = {"file": str(self.folder / "password")}
        table = {"tls": {"ca": self.ca}, "username": "agent", "password": password, "session": "clean", **changes}
        return {key: value for key, value in table.items() if value is not None}

    def file(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return str(self.folder / name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    with mosquitto(folder, tls=True, users={"agent": CANARY}) as broker:
        found = Site(broker, folder, Authority(folder / "other", name="other"))
        found.file("password", f"{CANARY}\n")
        found.file("wrong", f"not-{CANARY}\n")
        yield found


@VERSIONS
@pytest.mark.parametrize("name", [None, "localhost"])
async def test_tls_with_a_trusted_certificate(site: Site, version: str, name: str | None) -> None:
    tls = {"ca": site.ca} | ({"server_name": name} if name else {})
    one = adapter(broker_url(site.broker, version), **site.good(tls=tls))
    trusting = ssl.create_default_context(cafile=site.ca)
    async with publishing(site.broker.port, tls=trusting, user="agent") as publisher, one.subscribe() as subscription:
        payload = json.dumps({"w": 1, "pad": "x" * 300_000}).encode()  # many records of TLS
        for number in range(3):
            await publisher.publish(TOPIC, payload if number == 1 else b'{"w":1}')
        arrivals = await take(subscription, 3)
        assert [one.devices[0].decode("state", each).values for each in arrivals] == [(1,)] * 3
        for each in arrivals:
            subscription.acknowledge(each)


_AUTHORITY = "set ca of tls to the certificate of the authority that signed the broker's"
_USER = "username and password right"
REFUSED: dict[str, tuple[Callable[[Site], dict[str, Any]], str, str]] = {
    "another authority": (lambda site: {"tls": {"ca": str(site.other.path)}}, "certificate is refused", _AUTHORITY),
    "the system's authorities": (lambda site: {"tls": None}, "certificate is refused", _AUTHORITY),
    "another host": (
        lambda site: {"tls": {"ca": site.ca, "server_name": "other.lan"}},
        "not valid for 'other.lan'",
        "set server_name of tls to a name that is in its certificate",
    ),
    "wrong password": (
        lambda site: {"password": {"file": str(site.folder / "wrong")}},
        "the broker refuses us: Not authorized",
        _USER,
    ),
    "no user": (lambda site: {"username": None, "password": None}, "refuses us: Not authorized", _USER),
    "no file": (
        lambda site: {"tls": {"ca": str(site.folder / "nowhere.pem")}},
        "No such file or directory: ",
        "are the files of tls there",
    ),
    "a file that is no certificate": (
        lambda site: {"tls": {"ca": str(site.folder / "password")}},
        "TLS failed",
        "are ca, cert and key of tls PEM files",
    ),
}


@VERSIONS
@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_refused_over_tls(site: Site, version: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    change, text, hint = REFUSED[what]
    error = await refused(adapter(broker_url(site.broker, version), **site.good(**change(site))))
    assert text in error.detail
    assert hint in error.hint
    assert CANARY not in caplog.text


async def test_tls_where_there_is_none_and_the_other_way_round(site: Site, tmp_path: Path) -> None:
    error = await refused(adapter(site.broker.url.replace("mqtts", "mqtt"), **site.good(tls=None)))
    assert error.hint == f"is 127.0.0.1 port {site.broker.port} an MQTT broker, without TLS?"
    with mosquitto(tmp_path) as plain:
        error = await refused(adapter(plain.url.replace("mqtt", "mqtts"), **site.good()))
    assert error.hint == f"is 127.0.0.1 port {plain.port} an MQTT broker, with TLS?"


async def test_a_certificate_that_is_no_longer_valid(tmp_path: Path) -> None:
    with mosquitto(tmp_path, tls=True) as broker:
        assert broker.authority is not None
        one = adapter(broker.url, tls={"ca": str(broker.authority.path)}, session="clean")
        async with one.subscribe():
            pass
        broker.authority.issue("server", days=0)
        broker.kill()
        broker.start()
        error = await refused(one)
    assert error.detail == "cannot connect: the broker's certificate is refused: certificate has expired"
    assert error.hint == "is this machine's clock right? then the broker needs a new certificate"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A broker that wants certificates of its clients."""
    folder = tmp_path_factory.mktemp("strict")
    settings = f"cafile {folder / 'mosquitto.tls' / 'ca.pem'}\nrequire_certificate true"
    with mosquitto(folder, tls=True, settings=settings) as broker:
        yield Site(broker, folder, Authority(folder / "other", name="other"))


def shown(own: Certificate, **changes: str) -> dict[str, Any]:
    found = {"cert": str(own.path), "key": str(own.key), **changes}
    return {"cert": found["cert"], "key": {"file": found["key"]}}


def encrypted(site: Site) -> dict[str, Any]:
    assert site.broker.authority is not None
    own = site.broker.authority.issue("encrypted")
    found = provision.program("openssl")
    assert found is not None
    locked = str(own.key.with_suffix(".locked"))
    command = [str(found[0]), "pkey", "-in", str(own.key), "-aes256", "-passout", f"pass:{CANARY}", "-out", locked]
    subprocess.run(command, check=True, timeout=30)
    return shown(own, key=locked)


_OURS = "is cert of tls still valid, and signed by an authority that the broker trusts?"
_TOGETHER = "are ca, cert and key of tls PEM files that belong together?"
OUR_CERTIFICATES: dict[str, tuple[Callable[[Site, Authority], dict[str, Any]], str, str]] = {
    "none": (
        lambda site, authority: {},
        "the broker refuses the TLS connection: certificate required",
        "the broker wants a certificate of ours: set cert and key of tls",
    ),
    "another authority's": (
        lambda site, authority: shown(site.other.issue("agent")),
        "the broker refuses the TLS connection: unknown ca",
        _OURS,
    ),
    "expired": (
        lambda site, authority: shown(authority.issue("old", days=0)),
        "the broker refuses the TLS connection: certificate expired",
        _OURS,
    ),
    "the key of another": (
        lambda site, authority: shown(authority.issue("one"), key=str(authority.issue("two").key)),
        "TLS failed: KEY_VALUES_MISMATCH",
        _TOGETHER,
    ),
    "an encrypted key": (
        lambda site, authority: encrypted(site),
        "the key of tls is encrypted",
        "without a passphrase",
    ),
    "a key that is none": (
        lambda site, authority: shown(authority.issue("three"), key=site.file("none.key", f"-----{CANARY}-----\n")),
        "TLS failed",
        _TOGETHER,
    ),
    "no key": (
        lambda site, authority: shown(authority.issue("four"), key=str(site.folder / "nowhere.key")),
        "nowhere.key",
        "may the agent's user read them?",
    ),
}


@VERSIONS
@pytest.mark.parametrize("what", OUR_CERTIFICATES)
async def test_our_certificate_is_refused(strict: Site, version: str, what: str) -> None:
    change, text, hint = OUR_CERTIFICATES[what]
    assert strict.broker.authority is not None
    tls = {"ca": strict.ca, **change(strict, strict.broker.authority)}
    error = await refused(adapter(broker_url(strict.broker, version), tls=tls, session="clean"))
    assert text in error.detail
    assert hint in error.hint


async def test_what_was_renewed_is_taken_up_at_the_next_connect(strict: Site, tmp_path: Path) -> None:
    assert strict.broker.authority is not None
    new, old = strict.broker.authority.issue("new"), strict.broker.authority.issue("past", days=0)
    ca, cert, key = (str(tmp_path / name) for name in ("ca", "cert", "key"))
    one = adapter(strict.broker.url, tls={"ca": ca, "cert": cert, "key": {"file": key}}, session="clean")
    for authority, own, works in [
        (strict.broker.authority, old, False),
        (strict.broker.authority, new, True),
        (strict.other, new, False),
        (strict.broker.authority, new, True),
    ]:
        for source, target in [(authority.path, ca), (own.path, cert), (own.key, key)]:
            shutil.copy(source, target)
        if works:
            async with one.subscribe():
                pass
        else:
            await refused(one)


async def test_a_renewed_password_is_taken_up_at_the_next_connect(site: Site) -> None:
    one = adapter(site.broker.url, **site.good(password={"file": str(site.folder / "renewed")}))
    for password, works in [(f"old-{CANARY}", False), (CANARY, True), (f"newer-{CANARY}", False), (CANARY, True)]:
        site.file("renewed", f"{password}\n")
        if works:
            async with one.subscribe():
                pass
        else:
            assert "Not authorized" in (await refused(one)).detail


# ---- access rules and sessions ----------------------------------------------------------------------------------


@VERSIONS
async def test_a_topic_that_we_may_not_read_is_silent(tmp_path: Path, version: str) -> None:
    """Mosquitto grants a subscription that its acl_file forbids, and sends nothing: only ``silent_after`` tells."""
    rules = tmp_path / "rules"
    rules.write_text("topic write #\ntopic read site/allowed/state\n")
    with mosquitto(tmp_path, settings=f"acl_file {rules}") as broker:
        one = adapter(broker_url(broker, version))
        async with publishing(broker.port) as publisher, one.subscribe() as subscription:
            for topic in ("site/secret/state", "site/allowed/state"):
                await publisher.publish(topic, b'{"w":1}')
            [arrival] = await take(subscription, 1)
            assert arrival.message.topic == "site/allowed/state"


@VERSIONS
async def test_a_subscription_that_the_broker_refuses(tmp_path: Path, version: str) -> None:
    found = provision.program("mosquitto")
    [plugin] = [] if found is None else found[0].parents[1].glob("lib/*/mosquitto_dynamic_security.so")
    role = {"rolename": "r", "acls": [{"acltype": "subscribePattern", "topic": "site/+/state", "allow": True}]}
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    group = {"groupname": "g", "roles": [{"rolename": "r"}]}
    rules = {"defaultACLAccess": access, "clients": [], "roles": [role], "groups": [group], "anonymousGroup": "g"}
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    settings = f"plugin {plugin}\nplugin_opt_config_file {tmp_path / 'rules.json'}"
    with mosquitto(tmp_path, settings=settings) as broker:
        url = broker_url(broker, version)
        async with adapter(url).subscribe():
            pass
        error = await refused(adapter(url, device(), device("alarm", "alarm/#")))
    assert 'the broker refuses the subscription to "alarm/#"' in error.detail
    assert error.hint == "may this user read it? see the broker's access rules"


@VERSIONS
async def test_a_session_that_another_client_takes_over(tmp_path: Path, version: str) -> None:
    with mosquitto(tmp_path) as broker:
        one, other = (adapter(broker_url(broker, version), client_id="twin") for _ in range(2))
        async with publishing(broker.port) as publisher, one.subscribe() as subscription:
            await publisher.publish(TOPIC, b'{"w":1}')
            await take(subscription, 1)
            async with other.subscribe() as second:
                with anyio.fail_after(10), refusal() as errors:
                    await subscription.receive()
                assert second.resumed
                [again] = await take(second, 1)
                assert (again.message.payload, again.message.dup) == (b'{"w":1}', True)
    assert errors[0].detail in (
        "the broker closed the connection",  # Mosquitto 2.0.11 says no more, over MQTT 5 either
        "the broker ended the connection: Session taken over",
    )
    assert 'does another client use the client_id "twin"?' in errors[0].hint


# ---- damage on the way ------------------------------------------------------------------------------------------


Change = Callable[[int], bytes]


@dataclass(slots=True)
class Damage:
    """What happens to a connection's bytes from the broker: ``changes`` by place; at ``end`` it is cut off."""

    changes: Mapping[int, Change] = field(default_factory=dict)
    end: int | None = None

    @classmethod
    def at_random(cls, seed: int, length: int) -> Damage:
        """One to three bytes of ``length`` are flipped, lost or joined by others, or the connection ends early; CONNACK
        in front and SUBACK at the end as often as the messages between.
        """
        rng = random.Random(seed)
        if rng.random() < 0.1:
            return cls(end=rng.randrange(length))
        part = rng.choice([range(14), range(length), range(length - 6, length)])
        kinds: list[Callable[[], Change]] = [
            lambda: _flipped(rng.randrange(1, 256)),
            lambda: _flipped(1 << rng.randrange(8)),
            lambda: lambda byte: b"",
            lambda: _joined(rng.randbytes(rng.randrange(1, 5))),
        ]
        return cls({rng.choice(part): rng.choice(kinds)() for _ in range(rng.randrange(1, 4))}, length)

    def done(self, data: bytes, at: int) -> bytes:
        """``data``, which begins at place ``at``, as it arrives."""
        kept = data if self.end is None else data[: max(0, self.end - at)]
        return b"".join(self.changes.get(place, _same)(byte) for place, byte in enumerate(kept, at))


def _same(byte: int) -> bytes:
    return bytes([byte])


def _flipped(mask: int) -> Change:
    return lambda byte: bytes([byte ^ mask])


def _joined(more: bytes) -> Change:
    return lambda byte: bytes([byte]) + more


class Proxy:
    """Between clients and a broker. ``damage`` is what happens to the next connections; ``passed``: bytes that the
    broker sent over the last one.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.damage = Damage()
        self.passed = 0
        self._broker_port = port
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        damage, self.passed = self.damage, 0
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)

        async def up() -> None:
            with suppress(OSError):
                while data := await reader.read(65_536):
                    to_broker.write(data)
            with suppress(OSError):
                to_broker.write_eof()  # the broker is to take in what was said last, and to close

        going_up = asyncio.create_task(up())
        with suppress(OSError):
            while (damage.end is None or self.passed < damage.end) and (data := await from_broker.read(65_536)):
                writer.write(damage.done(data, self.passed))
                self.passed += len(data)
            await writer.drain()
        going_up.cancel()
        for each in (writer, to_broker):
            each.close()
            with suppress(OSError):
                await each.wait_closed()


async def endure(one: MqttAdapter) -> None:
    """Listen until the connection ends, as the engine does; nothing but an AcquisitionError says that it has."""
    with anyio.fail_after(10), refusal():
        async with one.subscribe() as subscription:
            while True:
                for arrival in await subscription.receive():
                    for index, group in arrival.concerns:
                        with suppress(AcquisitionError):
                            one.devices[index].decode(group, arrival)


async def survives(one: MqttAdapter, proxy: Proxy, publisher: Publisher, *, runs: int, slack: int = 0) -> None:
    """After each damaged connection the next one brings all that was not acknowledged, in order and once.

    One message is acknowledged and one more sent in each; ``slack``: so many bytes may a connection have less than the
    first, which is the measure.
    """

    async def publish(number: int) -> None:
        await publisher.publish(f"q{1 + number % 2}/x", b'{"w":%d}' % number, qos=2)

    async with one.subscribe():
        pass
    for number in range(1000, 1004):
        await publish(number)
    async with one.subscribe() as subscription:
        await take(subscription, 4)
        length = proxy.passed - slack
    more = 0
    for run in range(runs):
        proxy.damage = Damage.at_random(run, length + more)
        async with nothing_left(10):
            await endure(one)
        proxy.damage = Damage()
        async with one.subscribe() as subscription:
            assert subscription.resumed
            arrivals = await take(subscription, 4)
            expected = [b'{"w":%d}' % number for number in range(1000 + run, 1004 + run)]
            assert [each.message.payload for each in arrivals] == expected, f"after damage {run}"
            subscription.acknowledge(arrivals[0])
            more = 4 if arrivals[0].message.qos == 2 else 0  # its PUBREL comes with the next connection
        await publish(1004 + run)


@VERSIONS
async def test_damaged_packets_cost_a_connection_and_nothing_else(tmp_path: Path, version: str) -> None:
    devices = [device(f"d{qos}", f"q{qos}/x", qos) for qos in (1, 2)]
    with mosquitto(tmp_path) as broker:
        async with Proxy(broker.port).running() as proxy, publishing(broker.port) as publisher:
            url = f"mqtt://127.0.0.1:{proxy.port}?version={version}"
            await survives(adapter(url, *devices, timeout="200ms"), proxy, publisher, runs=20)


async def test_damaged_tls_costs_a_connection_and_nothing_else(site: Site) -> None:
    devices = [device(f"d{qos}", f"q{qos}/x", qos) for qos in (1, 2)]
    trusting = ssl.create_default_context(cafile=site.ca)
    async with (
        Proxy(site.broker.port).running() as proxy,
        publishing(site.broker.port, tls=trusting, user="agent") as publisher,
    ):
        table = site.good(session="keep", timeout="500ms", client_id="damaged")
        one = adapter(f"mqtts://127.0.0.1:{proxy.port}", *devices, **table)
        await survives(one, proxy, publisher, runs=15, slack=16)  # a signature is a few bytes longer or shorter
