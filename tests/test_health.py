"""What the service manager is told (agent/health.py), over a real datagram socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import anyio
import pytest

from agent import health
from agent.health import Health

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's socket."""
    monkeypatch.setattr(health, "_EVERY", 0.001)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


@pytest.fixture
def told(manager: socket.socket) -> Iterator[Health]:
    """Tells the manager."""
    with closing(Health()) as made:
        yield made


async def test_it_is_told_in_order_and_of_a_status_when_it_changes(manager: socket.socket, told: Health) -> None:
    texts = iter(["1 wartet", "1 wartet", "zürich: 2 ✓"])
    told.ready()
    with anyio.move_on_after(0.05):
        await told.run(lambda: next(texts, "zürich: 2 ✓"))
    told.reloading()
    told.stopping()
    assert manager.recv(4096) == b"READY=1"
    assert manager.recv(4096) == b"STATUS=1 wartet"
    assert manager.recv(4096).decode() == "STATUS=zürich: 2 ✓"
    assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert manager.recv(4096) == b"STOPPING=1"


async def test_one_that_does_not_listen_holds_up_nothing_and_is_told_the_newest_when_it_does(
    manager: socket.socket, told: Health
) -> None:
    numbers, many = count(1), anyio.Event()

    def status() -> str:
        number = next(numbers)
        if number == 600:  # more than the kernel queues (net.unix.max_dgram_qlen)
            many.set()
        return f"{number} waiting"

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told.run, status)
            await many.wait()
            told.ready()
            tasks.cancel_scope.cancel()
    heard: list[str] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told.run, lambda: "the end")
            while not heard or heard[-1] != "STATUS=the end":
                heard.append((await anyio.to_thread.run_sync(manager.recv, 4096)).decode())
            tasks.cancel_scope.cancel()
    assert "READY=1" in heard
    assert len(heard) < 560


@pytest.mark.parametrize("given", [None, ""])
def test_without_one_nothing_is_said(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if given is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", given)
    Health().ready()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify leaves its socket open
def test_one_that_is_not_there_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    told = Health()
    told.ready()
    told.stopping()
    assert [record.getMessage() for record in caplog.records] == [
        "the service manager cannot be told how the agent is error=[Errno 2] No such file or directory"
    ]
