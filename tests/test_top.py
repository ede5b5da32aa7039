"""The live page of ``edge-agent top``, and what it leaves of a terminal."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.control.findings import findings
from agent.control.top_text import page
from testbed.child import wait_for
from tests.served_agent import FakeRunning, serving

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "site": "site-1",
    "pid": 4711,
    "started_wall": 5,
    "uptime_s": 7500.0,
    "process": {"memory_bytes": 34 << 20, "cpu_s": 10.0},
    "clock": {"state": "synchronised", "error_us": 1200, "waiting_s": None},
    "channels": [
        {"id": "dso", "connected": True, "pending_records": 0, "oldest_s": None, "acknowledged": 1200, "rate": 1.02,
         "dropped": 0, "latency": {"bounds": [0.01, 0.05], "counts": [5, 90, 5], "sum": 3}, "outbox": {"state": "ok"}},
        {"id": "market", "connected": False, "state": "no route to host", "pending_records": 7, "pending_bytes": 2048,
         "oldest_s": 725.0, "acknowledged": 12, "rate": 0.0, "dropped": 3, "latency": None, "outbox": {"state": "ok"}},
    ],
    "connections": [
        {"name": "hall", "busy": 0.121, "late": {"bounds": [0.1, 60], "counts": [99, 1, 0], "sum": 9}},
        {"name": "bms", "state": "away", "detail": "connection refused"},
    ],
    "devices": [
        {"id": "battery", "groups": [{"name": "state", "state": "ok", "last_s": 2.0, "frames": 90, "failures": {}}]},
        {"id": "chp", "groups": [
            {"name": "fast", "state": "device_timeout", "detail": "no answer", "last_s": 95.0, "frames": 100,
             "failures": {"device_timeout": 3, "link_down": 2}},
            {"name": "slow", "state": "ok", "last_s": 65.0, "frames": 10, "failures": {"device_exception": 1}}]},
    ],
}  # fmt: skip
EARLIER = copy.deepcopy(STATUS)
EARLIER["uptime_s"], EARLIER["process"]["cpu_s"] = 7498.0, 9.94
EARLIER["devices"][0]["groups"][0]["frames"] = 70


def texts(status: dict[str, Any], before: dict[str, Any] | None = None, **size: Any) -> list[str]:
    return [line.text for line in page(status, before, **{"width": 100, **size})]


# ---- the page -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_comes_first_and_rates_are_of_the_time_between() -> None:
    assert texts(STATUS, EARLIER) == [
        "edge-agent 0.1.0 at site-1, up 2 h 5 min",
        "cpu 3%, memory 34 MiB, clock synchronised, off by 1.2 ms at most",
        "",
        "! market: no route to host",
        "! market: 3 records overwritten before the broker had them",
        "! bms: connection refused",
        "! chp/fast: device_timeout: no answer",
        "",
        "  channel  broker     waiting    oldest  delivered  a second  95% within  dropped",
        "  dso      connected  0          -       1200       1.02      50 ms       0",
        "! market   away       7 (2 KiB)  12 min  12         0         -           3",
        "",
        "  connection  state  busy  95% late by",
        "  hall        -      12%   100 ms",
        "! bms         away   -     -",
        "",
        "  device   state           last   a second  ok   timeouts  exceptions  other",
        "! chp      device_timeout  1 min  0         110  3         1           2",
        "  battery  ok              2 s    10        90   0         0           0",
    ]
    alarms = [line.text for line in page(STATUS, EARLIER, width=100) if line.alarm]
    assert all(text.startswith("!") for text in alarms)
    assert len(alarms) == 7


@pytest.mark.parametrize("before", [None, {}, {**EARLIER, "pid": 1}, {**EARLIER, "uptime_s": "x"}, {**STATUS}])
def test_without_a_status_of_a_moment_ago_there_are_no_rates(before: dict[str, Any] | None) -> None:
    shown = texts(STATUS, before)
    assert shown[1].startswith("cpu -,")
    assert shown[-1].split()[:6] == ["battery", "ok", "2", "s", "-", "90"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 3), (1, 1)])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    status = copy.deepcopy(STATUS)
    status["devices"] = [
        {**copy.deepcopy(device), "id": f"{device['id']}-{n}"} for n in range(50) for device in status["devices"]
    ]
    shown = texts(status, width=width, height=height)
    assert len(shown) == height
    assert max(map(len, shown)) <= width
    if width == 80:
        assert shown[3:5] == [
            "! market: no route to host",
            "! market: 3 records overwritten before the broker had them",
        ]
        assert shown[9] == "! 47 more: edge-agent status"
        assert shown[-1] == "  97 lines more: edge-agent status"
        assert shown[-2].startswith("! chp-"), "those that fail come first"


@pytest.mark.parametrize(
    "status",
    [{}, {"channels": 3, "devices": [1, {}], "connections": [{}]}, {"process": 1, "clock": 2, "stuck": "x"},
     {"devices": [{"groups": [{"last_s": "x", "frames": "y", "failures": 3}]}]},
     {"uptime_s": 5, "process": {"cpu_s": "x"}}],
)  # fmt: skip
def test_a_status_with_anything_missing_is_shown(status: dict[str, Any]) -> None:
    shown = texts(status, {"uptime_s": 1, "process": {"cpu_s": None}})
    assert shown[0].startswith("edge-agent - at -")
    assert all(line.isprintable() for line in shown)


def test_findings_in_the_order_of_their_importance() -> None:
    status = copy.deepcopy(STATUS)
    status["stuck"] = ["writer of dso"]
    status["clock"] = {"state": "not_synchronised", "error_us": None, "waiting_s": 3.0}
    status["channels"][0]["outbox"] = {"state": "failed", "trouble": "EIO"}
    status["channels"][0]["not_stored"] = 4
    status["channels"][1]["hint"] = "open the way"
    found = findings(status)
    assert [f"{each.subject}: {each.what}" for each in found] == [
        "writer of dso: makes no progress",
        "dso: its outbox failed, nothing is stored: EIO",
        "clock: no reading yet, it is waited for",
        "market: no route to host",
        "dso: 4 readings not stored",
        "market: 3 records overwritten before the broker had them",
        "bms: connection refused",
        "chp/fast: device_timeout: no answer",
        "clock: not synchronised",
    ]
    assert found[3].remedy == "open the way"
    assert all(each.remedy for each in found)


@pytest.mark.parametrize(
    ("detail", "remedy"),
    [
        ("exception 2 illegal data address", "compare addresses"),
        ("exception 10 gateway path unavailable", "wired to its gateway"),
        ("exception 11 gateway target did not respond", "wired to its gateway"),
    ],
)
def test_the_remedy_for_an_exception_depends_on_who_answered(detail: str, remedy: str) -> None:
    group = {"name": "g", "state": "device_exception", "detail": detail}
    [found] = findings({"devices": [{"id": "d", "groups": [group]}]})
    assert remedy in found.remedy


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[str, FakeRunning]]:
    """The socket of an agent, and that agent."""
    agent = FakeRunning(told=copy.deepcopy(STATUS))
    with serving(agent, tmp_path / "agent.sock") as served:
        yield str(served.path), agent


def test_elsewhere_than_on_a_terminal_page_follows_page(
    asked: tuple[str, FakeRunning], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--socket", asked[0], "--count", "2", "--every", "100ms"]) == 0
    out = capsys.readouterr().out
    assert out.count("edge-agent 0.1.0 at site-1, up 2 h 5 min\n") == 2
    assert out.count("\n\nedge-agent") == 1
    assert "\x1b" not in out


def test_json_is_a_status_each_time(asked: tuple[str, FakeRunning], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--socket", asked[0], "--count", "2", "--every", "100ms", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith('{"version": "0.1.0"') for line in lines)


@pytest.mark.parametrize("arguments", [["--every", "1"], ["--every", "1ms"], ["--count", "0"]])
def test_wrong_arguments_are_2(
    arguments: list[str], asked: tuple[str, FakeRunning], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--socket", asked[0], *arguments]) == 2
    assert capsys.readouterr().err.startswith("edge-agent top: ")


class Terminal:
    """``edge-agent top`` on a terminal of 80 by 24, and what it wrote there."""

    def __init__(self, path: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        command = [sys.executable, "-m", "agent.cli", "top", "--socket", path, "--every", "100ms"]
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", **environment},
        )  # fmt: skip
        os.set_blocking(self._master, False)
        self.shown = b""

    def look(self) -> bytes:
        with suppress(OSError):  # nothing new, or nobody holds the other end any more
            self.shown += os.read(self._master, 65536)
        return self.shown

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def ended(self) -> bool:
        self.look()
        return self.child.poll() is not None

    def restored(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self._master)
        os.close(self._slave)


@contextmanager
def terminal(path: str, **environment: str) -> Iterator[Terminal]:
    made = Terminal(path, **environment)
    try:
        wait_for(lambda: made.look().count(b"\x1b[H") > 1, timeout=20, what="two pages")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("how", ["q", "\x03", "SIGTERM"])
def test_on_a_terminal_it_draws_in_place_and_leaves_it_as_it_was(how: str, asked: tuple[str, FakeRunning]) -> None:
    colour = {"NO_COLOR": "1"} if how == "q" else {}
    with terminal(asked[0], **colour) as screen:
        assert screen.shown.startswith(b"\x1b[?1049h\x1b[?25l\x1b[H")
        assert b"edge-agent 0.1.0 at site-1, up 2 h 5 min\x1b[K\r\n" in screen.shown
        assert (b"\x1b[1;31m! market: no route to host\x1b[0m" in screen.shown) == (how != "q")
        assert screen.shown.split(b"\x1b[H")[1].count(b"\n") < 24
        if how == "SIGTERM":
            screen.child.send_signal(signal.SIGTERM)
        else:
            screen.press(how.encode())
        wait_for(screen.ended, timeout=10, what="its end")
        assert screen.child.returncode == 0
        assert screen.look().endswith(b"\x1b[?25h\x1b[?1049l")
        assert screen.restored()


def test_an_agent_that_restarts_is_waited_for(tmp_path: Path) -> None:
    agent, path = FakeRunning(told=copy.deepcopy(STATUS)), tmp_path / "agent.sock"
    with serving(agent, path):
        made = Terminal(str(path))
        try:
            wait_for(lambda: b"up 2 h 5 min" in made.look(), timeout=20, what="a page")
        except BaseException:
            made.close()
            raise
    try:
        wait_for(lambda: b"! no agent answers" in made.look(), timeout=20, what="words")
        with serving(agent, path):
            size = len(made.shown)
            wait_for(lambda: b"up 2 h 5 min" in made.look()[size:], timeout=20, what="a page")
            made.press(b"q")
            wait_for(made.ended, timeout=10, what="its end")
    finally:
        made.close()
