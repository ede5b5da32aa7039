"""Logging in to real NATS servers, with and without TLS: each way in, and each way not to get in with its own words."""

from __future__ import annotations

import itertools
import logging
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.errors import Reason, TransportError, Verdict
from agent.transports.nats.config import NatsConfig
from agent.transports.nats.connection import Timeouts
from agent.transports.nats.transport import NatsTransport
from testbed.certificates import Authority, Certificate
from testbed.nats_accounts import NatsAccounts, NatsKey
from testbed.processes import NatsServer
from tests.nats_sessions import answers, everywhere, fake_server, loss, message, nothing_left, slow_line

pytestmark = pytest.mark.anyio

CANARY = "canary-4711"
PATIENT = Timeouts(connect=5, answer=5, ping=1)
numbers = itertools.count()


def transport(url: str, *, timeouts: Timeouts = PATIENT, **settings: Any) -> NatsTransport:
    """Of a stream of its own, which it creates."""
    name = f"L{next(numbers)}"
    config = NatsConfig(servers=(url,), stream=name, create={}, **settings)  # type: ignore[arg-type]
    return NatsTransport(config, topic=f"{name}.a", timeouts=timeouts)


async def deliver(sender: NatsTransport) -> None:
    async with nothing_left(), sender.session() as session:
        await session.send(message(1))
        assert [(ack.token, ack.error) for ack in await answers(session, 1)] == [(1, None)]


async def refusal(sender: NatsTransport) -> TransportError:
    async with nothing_left():
        with anyio.fail_after(8), pytest.raises(TransportError) as raised:
            async with sender.session():
                pytest.fail("let in")
    assert raised.value.verdict is Verdict.RETRY
    assert CANARY not in "".join(traceback.format_exception(raised.value)) + raised.value.hint
    return raised.value


# ---- who we are -------------------------------------------------------------------------------------------------


class Desk:
    """Servers that want a login, and the secrets that let in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accounts = NatsAccounts()
        own = NatsKey("user", "nkey")
        users = f'{{ user: agent, password: "{CANARY}" }}, {{ nkey: {own.public} }}'
        self.users = NatsServer(folder, name="users", settings=f"authorization {{ users: [ {users} ] }}")
        self.token = NatsServer(folder, name="token", settings=f'authorization {{ token: "{CANARY}" }}')
        self.jwt = NatsServer(folder, name="jwt", settings=self.accounts.settings)
        self.secret("password", CANARY)
        self.secret("nkey", own.seed)
        self.secret("creds", self.accounts.creds())

    def secret(self, name: str, content: str) -> dict[str, str]:
        (self.folder / name).write_text(content + "\n")
        return {"file": str(self.folder / name)}

    def login(self, kind: str) -> tuple[NatsServer, dict[str, Any]]:
        """A server, and what lets in there."""
        if kind == "username":
            return self.users, {"username": "agent", "password": {"file": str(self.folder / "password")}}
        if kind == "token":
            return self.token, {"token": {"file": str(self.folder / "password")}}
        return {"nkey": self.users, "creds": self.jwt}[kind], {kind: {"file": str(self.folder / kind)}}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    with desk.users, desk.token, desk.jwt:
        yield desk


KINDS = ["username", "token", "nkey", "creds"]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_way_to_log_in(desk: Desk, kind: str) -> None:
    server, login = desk.login(kind)
    await deliver(transport(server.url, **login))


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_credentials(desk: Desk, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server, login = desk.login(kind)
    wrongs: dict[str, dict[str, Any]] = {
        "username": {"username": "agent", "password": desk.secret("wrong", f"{CANARY}-wrong")},
        "token": {"token": desk.secret("wrong", f"{CANARY}-wrong")},
        "nkey": {"nkey": desk.secret("wrong", NatsKey("user", "somebody else").seed)},
        "creds": {"creds": desk.secret("wrong", NatsAccounts().creds().replace("eyJ0eXAiOi", "eyJ0eXBiOi"))},
    }
    error = await refusal(transport(server.url, **wrongs[kind]))
    assert error.reason is Reason.AUTHORIZATION
    assert str(error) == f"cannot connect to {server.url}: not let in with {kind}: Authorization Violation"
    assert "does the server know it" in error.hint
    assert CANARY not in caplog.text
    sender = transport(server.url, **login)
    assert CANARY not in repr((sender, vars(sender)))


async def test_no_login_where_one_is_wanted(desk: Desk) -> None:
    error = await refusal(transport(desk.users.url))
    assert error.reason is Reason.AUTHORIZATION
    assert "set username and password, token, nkey or creds" in error.hint


async def test_a_server_that_takes_no_nkeys(desk: Desk) -> None:
    error = await refusal(transport(desk.token.url, nkey={"file": str(desk.folder / "nkey")}))
    assert (error.reason, "takes no NKey" in str(error)) == (Reason.AUTHORIZATION, True)


async def test_a_login_that_the_server_does_not_ask_for_does_no_harm(desk: Desk, server: NatsServer) -> None:
    for kind in KINDS:
        await deliver(transport(server.url, **desk.login(kind)[1]))


async def test_a_renewed_secret_is_taken_up_at_the_next_connection(desk: Desk) -> None:
    sender = transport(desk.jwt.url, creds=desk.secret("renewed", desk.accounts.creds(expires=time.time() - 60)))
    error = await refusal(sender)
    assert error.reason is Reason.EXPIRED
    assert "by this machine's clock the JWT of creds expired at 20" in str(error)
    desk.secret("renewed", desk.accounts.creds())
    await deliver(sender)


async def test_credentials_that_expire_during_a_connection(desk: Desk) -> None:
    sender = transport(desk.jwt.url, creds=desk.secret("short", desk.accounts.creds(expires=time.time() + 3)))
    async with nothing_left(), sender.session() as session:
        error = await loss(session, within=10)
    assert error.reason is Reason.EXPIRED
    assert str(error) == "connection lost: user authentication expired"
    assert "renew" in error.hint


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("creds", None, "cannot be read: No such file or directory"),
        ("creds", "nothing of the kind", "holds no JWT"),
        ("creds", "-----BEGIN-----\neyJ0eXAiOiJ.eyJ0eXAiOiJ.eyJ0eXAiOiJ\n-----END-----", "holds no seed of an NKey"),
        ("nkey", CANARY, "holds no seed of an NKey"),
        ("nkey", NatsKey("user").public, "holds no seed of an NKey"),
        ("nkey", NatsKey("account").seed, "holds the seed of an account, not of a user"),
        ("nkey", NatsKey("user").seed[:-1] + "A", "holds a seed that is damaged"),
        ("nkey", f"{NatsKey('user').seed}\n{NatsKey('user', 'b').seed}", "holds several seeds"),
        ("token", "", "is empty"),
    ],
)
async def test_a_secret_that_cannot_be_used(
    desk: Desk, tmp_path: Path, kind: str, content: str | None, words: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    settings: dict[str, Any] = {kind: {"file": str(file)}}
    error = await refusal(transport(desk.users.url, **settings))
    assert error.reason is Reason.SECRET
    assert f"file {file} {words}" in str(error)
    assert not content or content not in str(error)


# ---- TLS --------------------------------------------------------------------------------------------------------


class Site:
    """An authority, another one, and servers that have certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.other = Authority(folder / "other")
        self.certificate = self.authority.issue("server")
        plain = self._settings(self.certificate)
        strict = self._settings(self.certificate, f'ca_file: "{self.authority.path}", verify: true')
        first = self._settings(self.certificate, "handshake_first: true")
        self.tls = NatsServer(folder, name="tls", settings=plain)
        self.strict = NatsServer(folder, name="strict", settings=strict)
        self.first = NatsServer(folder, name="first", settings=first, tls=True)

    @staticmethod
    def _settings(own: Certificate, more: str = "") -> str:
        return f'tls {{ cert_file: "{own.path}", key_file: "{own.key}", {more} }}'

    def server(self, name: str, own: Certificate, more: str = "") -> NatsServer:
        return NatsServer(self.folder, name=name, settings=f"{self._settings(own)}\n{more}")

    def trust(self, own: Certificate | None = None, **changes: Any) -> dict[str, Any]:
        """The ``tls`` of a channel, with a certificate of ours."""
        ours = {} if own is None else {"cert": str(own.path), "key": {"file": str(own.key)}}
        return {"ca": str(self.authority.path), **ours, **changes}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("tls"))
    with site.tls, site.strict, site.first:
        yield site


async def test_tls(site: Site) -> None:
    await deliver(transport(site.tls.tls_url, tls=site.trust()))
    await deliver(transport(site.tls.tls_url.replace("127.0.0.1", "localhost"), tls=site.trust()))
    await deliver(transport(site.tls.tls_url, tls=site.trust(server_name="localhost")))


async def test_tls_first(site: Site) -> None:
    await deliver(transport(site.first.tls_url, tls=site.trust(first=True)))


async def test_a_certificate_of_ours(site: Site) -> None:
    await deliver(transport(site.strict.tls_url, tls=site.trust(site.authority.issue("agent"))))


async def test_tls_beside_plain_connections(site: Site) -> None:
    with site.server("both", site.certificate, "allow_non_tls: true") as both:
        await deliver(transport(both.tls_url, tls=site.trust()))
        await deliver(transport(both.url))


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        (lambda site: {"tls": site.trust(ca=str(site.other.path))}, "unable to get local issuer", "set ca of tls"),
        (lambda _: {"tls": None}, "unable to get local issuer", "set ca of tls"),
        (lambda site: {"tls": site.trust(server_name="b.lan")}, "not valid for 'b.lan'", "set server_name of tls"),
    ],
    ids=["another authority", "the system's authorities", "another name"],
)
async def test_a_server_that_is_not_trusted(site: Site, change: Any, words: str, hint: str) -> None:
    error = await refusal(transport(site.tls.tls_url, **change(site)))
    assert error.reason is Reason.TLS
    assert f"cannot connect to {site.tls.tls_url}: the server's certificate is refused: " in str(error)
    assert words in str(error)
    assert hint in error.hint


async def test_a_server_whose_certificate_is_not_good(site: Site) -> None:
    old = site.authority.issue("old", days=0)
    with site.server("old", old) as server:
        error = await refusal(transport(server.tls_url, tls=site.trust()))
    assert (error.reason, "certificate has expired" in str(error)) == (Reason.TLS, True)
    assert "is this machine's clock right?" in error.hint
    with site.server("elsewhere", site.authority.issue("elsewhere", hosts="DNS:b.lan")) as server:
        error = await refusal(transport(server.tls_url, tls=site.trust()))
        assert (error.reason, "mismatch" in str(error)) == (Reason.TLS, True)
        await deliver(transport(server.tls_url, tls=site.trust(server_name="b.lan")))


async def test_our_certificate_is_refused(site: Site) -> None:
    error = await refusal(transport(site.strict.tls_url, tls=site.trust()))
    assert (error.reason, "wants a certificate of ours" in str(error)) == (Reason.TLS, True)
    assert error.hint == "set cert and key of tls"
    for own, words in [
        (site.other.issue("stranger"), "unknown ca"),
        (site.authority.issue("late", days=0), "certificate expired"),
    ]:
        error = await refusal(transport(site.strict.tls_url, tls=site.trust(own)))
        assert error.reason is Reason.TLS
        if words not in str(error):  # the server was gone before it was asked why
            assert "the server closed the connection" in str(error)
        assert "cert" in error.hint


async def test_renewed_certificates_are_taken_up_at_the_next_connection(site: Site, tmp_path: Path) -> None:
    ca, cert, key = (tmp_path / name for name in ("ca", "cert", "key"))
    tls = {"ca": str(ca), "cert": str(cert), "key": {"file": str(key)}}
    sender = transport(site.strict.tls_url, tls=tls)
    error = await refusal(sender)
    assert (error.reason, str(error).endswith(f"No such file or directory: {ca}")) == (Reason.SECRET, True)
    late, good = site.authority.issue("late2", days=0), site.authority.issue("good")
    for authority, own, reason in [(site.other, late, Reason.TLS), (site.authority, late, Reason.TLS)]:
        for source, target in [(authority.path, ca), (own.path, cert), (own.key, key)]:
            target.write_bytes(source.read_bytes())
        assert (await refusal(sender)).reason is reason
    for source, target in [(good.path, cert), (good.key, key)]:
        target.write_bytes(source.read_bytes())
    await deliver(sender)


async def test_files_that_do_not_belong_together(site: Site, tmp_path: Path) -> None:
    own = site.authority.issue("apart")
    for tls in (
        site.trust(own, key={"file": str(site.certificate.key)}),
        site.trust(ca=str(own.key)),
    ):
        error = await refusal(transport(site.tls.tls_url, tls=tls))
        assert (error.reason, "belong together" in error.hint) == (Reason.SECRET, True)


async def test_a_password_never_goes_to_a_server_without_tls(server: NatsServer, tmp_path: Path) -> None:
    """Who is in between may take "tls_required" out of the greeting."""
    (tmp_path / "password").write_text(CANARY)
    login: dict[str, Any] = {"username": "u", "password": {"file": str(tmp_path / "password")}}
    error = await refusal(transport(server.tls_url, **login))
    assert (error.reason, "offers no TLS" in str(error)) == (Reason.TLS, True)
    heard: list[bytes] = []
    async with fake_server(b'INFO {"auth_required": true}\r\n', heard=heard) as url:
        await refusal(transport(url.replace("nats", "tls"), **login))
    assert b"".join(heard) == b""


SHORT = Timeouts(connect=0.3, answer=1, ping=0.1)


async def test_one_end_alone_speaks_tls(site: Site) -> None:
    error = await refusal(transport(site.tls.url))
    assert (error.reason, error.hint) == (Reason.TLS, "write tls:// in servers")
    for url, tls in [(site.first.url, None), (site.first.tls_url, site.trust())]:
        error = await refusal(transport(url, tls=tls, timeouts=SHORT))
        assert (error.reason, "tls.first" in error.hint) == (Reason.TIMEOUT, True)
    slower = Timeouts(connect=1, answer=1, ping=0.1)
    error = await refusal(transport(site.tls.tls_url, tls=site.trust(first=True), timeouts=slower))
    assert error.reason in (Reason.TIMEOUT, Reason.TLS)  # whether its greeting comes before our hello
    assert "tls.first" in error.hint


@pytest.mark.parametrize("first", [False, True])
async def test_a_handshake_that_never_ends(site: Site, first: bool) -> None:
    greeting = [] if first else [b'INFO {"tls_required": true}\r\n']
    async with fake_server(*greeting) as url:
        tls = site.trust(first=first)
        error = await refusal(transport(url.replace("nats", "tls"), tls=tls, timeouts=SHORT))
    assert (error.reason, error.hint) == (Reason.TIMEOUT, "does it speak TLS?")


async def test_a_server_that_freezes_behind_tls_is_noticed(site: Site) -> None:
    sender = transport(site.tls.tls_url, tls=site.trust(), timeouts=Timeouts(connect=5, answer=5, ping=0.1))
    try:
        async with nothing_left(), sender.session() as session:
            site.tls.signal(signal.SIGSTOP)
            with suppress(TransportError):
                for number in range(1, 65):  # far more than the sockets' buffers hold
                    await session.send(message(number, bytes(250_000)))
                    await session.room()
            error = await loss(session)
    finally:
        site.tls.signal(signal.SIGCONT)
    assert (str(error), error.reason) == ("connection lost: stale connection", Reason.TIMEOUT)


@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_cancelled_at_every_wait(desk: Desk, site: Site, first: bool) -> None:
    server, login = site.first, dict[str, Any]()
    if not first:
        server, login = site.strict, {"nkey": {"file": str(desk.folder / "nkey")}}
    tls = site.trust(site.authority.issue(f"cancelled-{first}"), first=first)

    async def work() -> None:
        async with transport(server.tls_url, tls=tls, **login).session() as session:
            await session.send(message(1))
            await answers(session, 1)

    assert await everywhere(work) > 10


@pytest.mark.parametrize("uvloop", [False, True])
def test_on_a_slow_line_a_record_leaves_through_tls_as_without(site: Site, uvloop: bool) -> None:
    """What TLS has made of a record waits below it, where asyncio tells nobody of it."""

    async def work() -> None:
        async with slow_line(site.tls.port, rate=1_000_000) as (url, came):
            times = Timeouts(connect=5, answer=5, ping=0.1)
            sender = transport(url.replace("nats://", "tls://"), tls=site.trust(), timeouts=times)
            async with sender.session() as session:
                for number in range(1, 4):
                    await session.send(message(number, bytes(250_000)))
                    await session.room()
                    assert number * 250_000 - sum(came) < 150_000
                assert [ack.token for ack in await answers(session, 3)] == [1, 2, 3]

    anyio.run(work, backend_options={"use_uvloop": uvloop})


# ---- where it is ------------------------------------------------------------------------------------------------


async def test_names_are_looked_up_anew_and_each_address_is_tried(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "nats.test":
            return real(host, port, *arguments, **options)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in addresses for found in real(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    sender = transport(server.url.replace("127.0.0.1", "nats.test"))
    error = await refusal(sender)
    assert (error.reason, "the name is not known" in str(error)) == (Reason.UNREACHABLE, True)
    addresses[:] = ["127.0.0.9"]
    assert (await refusal(sender)).reason is Reason.UNREACHABLE
    addresses[:] = ["127.0.0.1"]
    await deliver(sender)
    addresses[:] = ["127.0.0.9", "127.0.0.1"]
    await deliver(sender)


@pytest.mark.parametrize("uvloop", [False, True])
def test_a_resolver_that_hangs_holds_up_neither_other_servers_nor_the_end(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, uvloop: bool
) -> None:
    """As many names as no pool of threads has."""
    real, over, asked = socket.getaddrinfo, threading.Event(), threading.Semaphore(0)

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host == "hangs.test":
            asked.release()
            over.wait(60)
        return real(host, port, *arguments, **options)

    async def connect(host: str) -> None:
        async with transport(server.url.replace("127.0.0.1", host), timeouts=SHORT).session():
            pass

    async def in_vain() -> None:
        with pytest.raises(TransportError, match="no answer in time"):
            await connect("hangs.test")

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(in_vain)
        for host in ("127.0.0.1", "localhost"):
            await connect(host)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        started = time.monotonic()
        anyio.run(work, backend_options={"use_uvloop": uvloop})
        assert time.monotonic() - started < 30
    finally:
        over.set()
    assert asked.acquire(timeout=0)


async def test_an_address_that_swallows_everything_does_not_hide_the_next(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as hole, socket.socket() as first, socket.socket() as second:
        hole.bind(("127.0.0.9", server.port))
        hole.listen(0)
        for filling in (first, second):  # what comes now finds the queue full, and is dropped
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.9", server.port))
        real = socket.getaddrinfo

        def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            names = ["127.0.0.9", "127.0.0.1"] if host == "nats.test" else [host]
            return [found for name in names for found in real(name, port, *arguments, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        quick = Timeouts(connect=1, answer=5, ping=1)
        await deliver(transport(server.url.replace("127.0.0.1", "nats.test"), timeouts=quick))
        error = await refusal(transport(f"nats://127.0.0.9:{server.port}", timeouts=SHORT))
    assert (error.reason, "firewall" in error.hint) == (Reason.TIMEOUT, True)
