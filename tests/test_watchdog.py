"""The watchdog is fed while all vital parts make progress, and not while one hangs: the real daemon, with the service
manager's part taken by the test.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from agent import daemon, health
from agent.config import load
from agent.delivery import publisher
from agent.heartbeat import WITHIN, Heartbeat, Vitals
from agent.running import Running
from agent.sealing import batcher
from testbed.child import ROOT, wait_for
from testbed.processes import Agent
from tests.hanging import GATE, HangingFiles
from tests.runs import SECRET

MS = 1_000_000
ALLOWED = 0.4  # s that pass without a word before the service manager ends the agent
CONFIG = """\
version = 1
site = {{ id = "house" }}
identity = {{ key = "file:key" }}
clock = {{ wait = "0s" }}
agent = {{ state = "state", socket = ""{agent} }}
[connection.wire]
kind = "tests.hanging:Wire"
{more}
[[device]]
id = "meter"
connection = "wire"
groups = {{ fast = {{ every = "100ms" }} }}
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
subject = "dx.dso"
send = ["*"]
seal_within = "50ms"
outbox = {{ size = "5MiB" }}
"""


def write(folder: Path, more: str = "", agent: str = "") -> Path:
    (folder / "key").write_text(SECRET.hex())
    (folder / "key").chmod(0o600)
    (folder / "agent.toml").write_text(CONFIG.format(more=more, agent=agent))
    return folder / "agent.toml"


# ---- promises -------------------------------------------------------------------------------------------------------


def test_who_is_overdue_at_two_looks_with_the_same_promise_is_named() -> None:
    vitals, writer, poller = Vitals(), Heartbeat("writer"), Heartbeat("poller")
    with vitals.watching(writer, poller):
        assert vitals.overdue(0) == []
        writer.due = poller.due = 100
        assert vitals.overdue(100) == [], "it may come back just now"
        assert vitals.overdue(101) == [], "the box may have slept, and nothing could run"
        poller.due = 102
        assert vitals.overdue(103) == ["writer"], "the poller has moved on"
        assert vitals.overdue(104) == ["poller", "writer"]
        writer.due = None
        assert vitals.overdue(105) == ["poller"]
    assert vitals.overdue(106) == [], "it ended"


def test_a_promise_ends_with_its_block_whatever_happens() -> None:
    beat, seen = Heartbeat("writer"), list[int | None]()

    def fail() -> None:
        with beat.back_by(5):
            seen.append(beat.due)
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert (seen, beat.due) == ([5], None)


def test_no_bound_is_shorter_than_what_the_configuration_allows_a_part_to_take() -> None:
    minute = 60_000 * MS
    assert 2 * minute <= WITHIN, "a time-out of a connection may be a minute, to connect and to be answered"
    assert publisher.LEFT_WITHIN > WITHIN
    assert batcher.WRITE_WITHIN >= 30_000 * MS, "bad cards stall for ten seconds and more"


# ---- the daemon -----------------------------------------------------------------------------------------------------


class Manager:
    """A service manager that watches: what it was told, and when."""

    def __init__(self, path: Path) -> None:
        self.told: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while message := self._socket.recv(4096).decode():
            self.told.append((time.monotonic(), message))

    def fed(self) -> bool:
        """Whether the time that is allowed has not passed."""
        times = [at for at, message in self.told if message == "WATCHDOG=1"]
        return bool(times) and time.monotonic() - times[-1] < ALLOWED

    @property
    def status(self) -> str:
        return next((message for _, message in reversed(self.told) if message.startswith("STATUS=")), "")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(ALLOWED * 1e6)))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _gates() -> Iterator[None]:
    yield
    GATE.open()


@contextmanager
def living(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The daemon, on a disk that may hang, with bounds of a test's length; it ends in order."""
    monkeypatch.setattr(batcher, "WRITE_WITHIN", 200 * MS)
    monkeypatch.setattr("agent.source.WITHIN", 200 * MS)
    monkeypatch.setattr("agent.running.DRAIN_WITHIN", 0.1)
    monkeypatch.setattr(daemon, "Running", lambda config, **kept: Running(config, files=HangingFiles(), **kept))
    with start_blocking_portal() as portal:

        async def streams() -> Any:
            return anyio.create_memory_object_stream[signal.Signals](1)

        send, receive = portal.call(streams)
        ended = portal.start_task_soon(daemon.run, load(path), receive)
        try:
            yield
        finally:
            GATE.open()
            portal.call(send.send, signal.SIGTERM)
            ended.result(20)
            portal.call(send.aclose)
            portal.call(receive.aclose)


@pytest.mark.parametrize(
    ("gate", "part"), [("loop", ""), ("disk", "writer of dso"), ("poller", "poller of meter/fast")]
)
def test_what_hangs_is_not_fed_for(
    gate: str, part: str, tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with living(write(tmp_path), monkeypatch):
        wait_for(manager.fed, timeout=10, what="the watchdog to be fed")
        getattr(GATE, gate).clear()
        wait_for(lambda: not manager.fed(), timeout=10, what="the feeding to stop")
        if part:
            wait_for(lambda: f"STUCK: {part}" in manager.status, timeout=5, what="the status to name it")
        GATE.open()
        wait_for(manager.fed, timeout=10, what="the watchdog to be fed again")
        wait_for(lambda: "STUCK" not in manager.status, timeout=5, what="the status to be calm")
    lines = [record.getMessage() for record in caplog.records if "progress" in record.getMessage()]
    assert lines == (
        [f"no progress, the watchdog is not fed part={part}", f"progress again part={part}"] if part else []
    )
    assert "STOPPING=1" in [message for _, message in manager.told]


def test_a_broker_that_is_away_is_no_reason(tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    with living(write(tmp_path), monkeypatch):
        wait_for(lambda: "broker away" in manager.status, timeout=10, what="the broker to be missed")
        began = time.monotonic()
        wait_for(
            lambda: sum(at > began for at, message in manager.told if message == "WATCHDOG=1") > 5,
            timeout=10,
            what="it to be fed on",
        )
        assert manager.fed()


def test_who_asks_over_http_learns_it_too(tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "token").write_text("sesame\n")
    (tmp_path / "token").chmod(0o600)
    path = write(tmp_path, agent=f', http = "127.0.0.1:{port}", token = {{ file = "token" }}')

    def ask(page: str, token: str = "sesame") -> tuple[int, str]:
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        asking.request("GET", page, headers={"Authorization": f"Bearer {token}"})
        answer = asking.getresponse()
        return answer.status, answer.read().decode()

    def listens() -> bool:
        with suppress(ConnectionRefusedError):
            return ask("/")[0] == 404
        return False

    with living(path, monkeypatch):
        wait_for(listens, timeout=10, what="the page")
        assert ask("/healthz") == (200, '{"status": "ok", "stuck": []}\n')
        assert ask("/metrics", "wrong")[0] == 401
        GATE.disk.clear()
        wait_for(lambda: ask("/healthz")[0] == 503, timeout=10, what="it to be told")
        assert ask("/healthz") == (503, '{"status": "stuck", "stuck": ["writer of dso"]}\n')
        status, text = ask("/metrics")
        assert status == 200
        assert "\nagent_stuck_parts 1\n" in text
        assert '\nagent_http_requests_total{outcome="unauthorised"} 1\n' in text
        assert "sesame" not in text
        GATE.open()
        wait_for(lambda: ask("/healthz")[0] == 200, timeout=10, what="it to go on")


def test_who_does_not_want_metrics_does_not_pay_for_them() -> None:
    code = "import sys, agent.daemon, agent.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(loaded.split())
    assert "agent.running" in names
    assert names & {"h11", "prometheus_client", "http.server", "agent.scrape", "agent.control.metrics"} == set()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("60000000", None, 60.0),
        ("60000000", "1", 0.0),
        ("", None, 0.0),
        ("x", None, 0.0),
        ("-5", None, 0.0),
        ("0", None, 0.0),
    ],
)
def test_when_the_service_manager_watches(
    usec: str, pid: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert health._allowed() == seconds


def test_an_agent_whose_loop_hangs_is_ended_tells_where_and_starts_again(tmp_path: Path) -> None:
    block = tmp_path / "block"
    config = write(tmp_path, f'block = "{block}"')
    program = Agent(tmp_path, config)
    program.environment["WATCHDOG_USEC"] = "600000"
    with program as agent:
        agent.wait_ready()

        def fed() -> int:
            return agent.states.count("WATCHDOG=1")

        wait_for(lambda: fed() > 2, timeout=10, what="the watchdog to be fed")
        block.touch()
        heard = [(fed(), time.monotonic())]

        def silent() -> bool:
            if fed() != heard[-1][0]:
                heard.append((fed(), time.monotonic()))
            return time.monotonic() - heard[-1][1] > 0.6

        wait_for(silent, timeout=10, what="the feeding to stop")
        os.kill(agent.pid, signal.SIGABRT)  # what systemd does now
        wait_for(lambda: not agent.alive, timeout=10, what="its end")
        assert "Fatal Python error: Aborted" in agent.log()
        assert "hanging.py" in agent.log()
        block.unlink()
        agent.start().wait_ready()
        wait_for(lambda: fed() > 2, timeout=10, what="the watchdog to be fed again")
        agent.kill()
