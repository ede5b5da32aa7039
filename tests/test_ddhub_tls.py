"""TLS with a Data Hub that wants certificates of its participants: who is let in, and the words for who is not."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.clock import SystemClock
from agent.errors import Reason, TransportError
from agent.signer import KeySigner
from agent.transports.ddhub.broker import broker
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.requests import Timeouts
from agent.transports.facts import BrokerFacts
from testbed.certificates import Authority
from testbed.ddhub.hub import DataHub
from testbed.ddhub.serving import Tls
from testbed.processes import NatsServer
from tests.runs import DID, SECRET

pytestmark = pytest.mark.anyio
NAME = {"server_name": "hub.example"}
QUICK = Timeouts(connect=1, answer=1, slow=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
async def hub(server: NatsServer, authority: Authority) -> AsyncIterator[DataHub]:
    own = authority.issue("hub", hosts="DNS:hub.example")
    tls = Tls(own.path, own.key, clients=authority.path)
    async with DataHub(server.url, tls=tls) as hub:
        hub.enrol(DID)
        yield hub


async def asked(url: str, **tls: Any) -> tuple[int | None, BrokerFacts]:
    """What the hub says that a message may have, and what its server showed of itself."""
    server = DdhubServer.model_validate({"url": url, **({"tls": tls} if tls else {})})
    async with broker(server, signer=KeySigner(SECRET, did=DID), clock=SystemClock(), timeouts=QUICK) as api:
        return (await api.limits()).message, api.heard


async def refused(url: str, **tls: Any) -> TransportError:
    with pytest.raises(TransportError) as raised:
        await asked(url, **tls)
    return raised.value


async def test_who_shows_a_certificate_is_let_in(hub: DataHub, authority: Authority, folder: Path) -> None:
    mine = authority.issue("agent")
    shown = {"ca": str(authority.path), "cert": str(mine.path), "key": {"file": str(mine.key)}, **NAME}
    most, showed = await asked(hub.url, **shown)
    assert most == 8388608
    assert showed.certificate == ssl.PEM_cert_to_DER_cert((folder / "hub.pem").read_text())


async def test_who_shows_none_is_told_to(hub: DataHub, authority: Authority) -> None:
    error = await refused(hub.url, ca=str(authority.path), **NAME)
    assert error.reason in (Reason.TLS, Reason.LOST), "an alert, or a reset that overtakes it"
    assert "set cert and key of tls" in error.hint


async def test_a_hub_of_an_unknown_authority_is_refused(hub: DataHub) -> None:
    error = await refused(hub.url, **NAME)
    assert error.reason == Reason.TLS
    assert "set ca of tls" in error.hint


async def test_a_hub_under_another_name_is_refused_unless_that_is_named(hub: DataHub, authority: Authority) -> None:
    mine = authority.issue("agent")
    shown = {"ca": str(authority.path), "cert": str(mine.path), "key": {"file": str(mine.key)}}
    error = await refused(hub.url, **shown)
    assert error.reason == Reason.TLS
    assert "server_name" in error.hint


async def test_a_file_that_is_not_there_is_told_before_anything_is_sent(hub: DataHub) -> None:
    error = await refused(hub.url, ca="/nowhere/ca.pem")
    assert error.reason == Reason.SECRET
    assert "/nowhere/ca.pem" in str(error)


async def test_who_is_no_hub(hub: DataHub) -> None:
    error = await refused(hub.url.replace("https", "http"))
    assert error.reason in (Reason.LOST, Reason.PROTOCOL)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        assert (await refused(f"http://127.0.0.1:{port}")).reason == Reason.TIMEOUT
    assert (await refused(f"http://127.0.0.1:{port}")).reason == Reason.UNREACHABLE
    assert (await refused("https://no-such-name.invalid")).reason == Reason.UNREACHABLE


async def test_an_answer_without_end_is_cut_off() -> None:
    async def serve(connection: Any) -> None:
        async with connection:
            await connection.receive()
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await connection.send(b"1\r\n{\r\n")
                await anyio.sleep(0.01)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(5):
            assert (await refused(f"http://127.0.0.1:{port}")).reason == Reason.TIMEOUT
        tasks.cancel_scope.cancel()
