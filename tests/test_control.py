"""The control socket: who may ask, what is answered, and that nobody who asks badly disturbs the agent."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.control import server as control
from agent.control.answers import TAP_BYTES
from agent.control.client import ControlError, NotRunningError, asking
from agent.errors import AgentError
from testbed.child import wait_for
from tests.served_agent import FakeChannel, FakeRunning, nothing, serving

Lines = AsyncGenerator[Mapping[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


def ask(path: Path, command: str, **arguments: Any) -> list[Any]:
    with asking(path, command, **arguments) as lines:
        return list(lines)


@contextmanager
def connected(path: Path, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(os.fspath(path))
        client.sendall(sent)
        yield client


def received(client: socket.socket) -> bytes:
    """All until the server hangs up."""
    found = b""
    try:
        while piece := client.recv(1 << 16):
            found += piece
    except ConnectionResetError:  # it hung up with something of ours unread
        pass
    return found


def answered(path: Path, sent: bytes) -> Any:
    """The last line of the answer to these bytes, our side then closed."""
    with connected(path) as client:
        try:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass
        return json.loads(received(client).splitlines()[-1])


# ---- the socket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_it_is_open_to_its_group_and_never_to_others(path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[int] = []
    real = Path.chmod

    def chmod(file: Path, mode: int) -> None:
        before.append(stat.S_IMODE(file.stat().st_mode))
        real(file, mode)

    monkeypatch.setattr(Path, "chmod", chmod)
    old = os.umask(umask)
    try:
        with serving({"status": nothing}, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert [mode & ~0o660 for mode in before] == [0], "as bind made it"
            assert path.stat().st_gid == os.getegid()
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750 & ~umask
    finally:
        os.umask(old)


def test_it_goes_when_the_agent_goes(path: Path) -> None:
    with serving({"status": nothing}, path):
        assert ask(path, "status") == []
    assert not path.exists()
    with pytest.raises(NotRunningError) as raised:
        ask(path, "status")
    assert raised.value.code == 69


def test_what_a_dead_agent_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    with serving({"status": nothing}, path):
        assert ask(path, "status") == []


def test_a_second_agent_leaves_the_first_its_socket(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving({"status": nothing}, path):
        with serving({"other": nothing}, path):
            assert ask(path, "status") == []
        assert "control socket not open" in caplog.text
        assert "another agent answers there" in caplog.text
        assert ask(path, "status") == []


def test_another_file_there_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_text("mine")
    with serving({}, path):
        assert "no socket" in caplog.text
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_does_not_stop_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with serving({}, tmp_path / "file" / "agent.sock"):
        assert "control socket not open" in caplog.text


def test_a_socket_that_another_agent_put_there_meanwhile_stays(path: Path) -> None:
    with serving({}, path):
        path.unlink()
        path.write_text("of another")
    assert path.read_text() == "of another"


# ---- answers --------------------------------------------------------------------------------------------------------


async def some(request: Mapping[str, Any]) -> Lines:
    yield {"given": request["what"], "where": Path("/x")}
    yield {"more": "\n"}


async def refusing(request: Mapping[str, Any]) -> Lines:
    yield {"first": 1}
    yield {"end": 78, "error": "no", "hint": "do"}
    raise AssertionError("nobody asked for more")


async def failing(request: Mapping[str, Any]) -> Lines:
    yield {"first": 1}
    raise AgentError("it failed", hint="mend it")


async def broken(request: Mapping[str, Any]) -> Lines:
    yield {"first": 1}
    raise TimeoutError


def test_an_answer_line_by_line(path: Path) -> None:
    with serving({"some": some}, path):
        assert ask(path, "some", what="ä") == [{"given": "ä", "where": "/x"}, {"more": "\n"}]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [("refusing", 78, "no"), ("failing", 1, "it failed"), ("broken", 1, "the agent failed"), ("none", 2, "not know")],
)
def test_an_answer_that_fails_is_told_and_nothing_else(
    path: Path, command: str, code: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving({"refusing": refusing, "failing": failing, "broken": broken, "some": some}, path):
        with pytest.raises(ControlError, match=words) as raised:
            ask(path, command)
        assert raised.value.code == code
        assert raised.value.hint
        assert ("control answer failed" in caplog.text) == (command == "broken")
        assert len(ask(path, "some", what=1)) == 2


def test_an_answer_ends_at_once_when_its_client_goes(path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def waiting(request: Mapping[str, Any]) -> Lines:
        begun.set()
        try:
            await anyio.sleep_forever()
            yield {}
        finally:
            ended.set()

    with serving({"wait": waiting}, path):
        for goodbye in (b"", b"one thing more"):
            begun.clear()
            ended.clear()
            with connected(path, b'{"command": "wait"}\n') as client:
                assert begun.wait(10)
                assert not ended.is_set()
                if goodbye:
                    client.sendall(goodbye)
                    assert received(client) == b""
            assert ended.wait(10)


def test_a_reload_goes_on_without_its_client(path: Path) -> None:
    begun, over, done = threading.Event(), threading.Event(), threading.Event()

    async def reload(request: Mapping[str, Any]) -> Lines:
        begun.set()
        while not over.is_set():  # noqa: ASYNC110 - set by another thread
            await anyio.sleep(0.001)
        done.set()
        yield {}

    with serving({"reload": reload, "status": nothing}, path):
        with connected(path, b'{"command": "reload"}\n'):
            assert begun.wait(10)
        assert ask(path, "status") == []
        over.set()
        assert done.wait(10)


def test_clients_of_an_agent_that_stops_are_told(path: Path) -> None:
    running = FakeRunning({"dso": FakeChannel("dso", path)})
    with ExitStack() as stack:
        with serving(running, path) as served:
            lines = stack.enter_context(asking(path, "tap", within=10))
            served.seal(running.channels["dso"], b"record")
            assert next(lines)["channel"] == "dso"
        with pytest.raises(ControlError, match="went away") as raised:
            next(lines)
        assert raised.value.code == 69


# ---- clients that are not as they should be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "no end"),
        (b"\n", "no JSON"),
        (b"status\n", "no JSON"),
        (b"\xff\xfe\n", "no JSON"),
        (b"\0" * 100 + b"\n", "no JSON"),
        (b'{"command": "status"', "no end"),
        (b'{"command": "status"}', "no end"),
        (b'"status"\n', "expected"),
        (b"{}\n", "expected"),
        (b'{"command": 1}\n', "expected"),
        (b'{"command": ["status"]}\n', "expected"),
        (b"[" * 60_000 + b"\n", "nested"),
        (b"1" * 6000 + b"\n", "no JSON"),
        (b'{"command": "status"}\n{"command": "status"}\n', "one line"),
        (b" " * (control.MAX_REQUEST + 1) + b"\n", "more than"),
        (b" " * (2 << 20), "more than"),
        (b'{"command": "\\ud800"}\n', "does not know"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_a_malformed_request_gets_an_error_line(path: Path, sent: bytes, words: str) -> None:
    with serving({"status": nothing}, path):
        last = answered(path, sent)
        assert last["end"] == 2
        assert words in last["error"]
        assert ask(path, "status") == []


def test_a_request_of_the_greatest_size(path: Path) -> None:
    request = b'{"command": "some", "what": 1}'
    with serving({"some": some}, path), connected(path, request.ljust(control.MAX_REQUEST) + b"\n") as client:
        assert len(received(client).splitlines()) == 3


def test_a_client_that_says_nothing_is_let_go(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving({"status": nothing}, path, patience=0.05), connected(path, b'{"comm') as client:
        assert received(client) == b""
        wait_for(lambda: "control client dropped reason=silent" in caplog.text, timeout=10, what="a line in the log")


def test_a_client_that_does_not_read_is_let_go(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ended = threading.Event()

    async def endless(request: Mapping[str, Any]) -> Lines:
        try:
            while True:
                yield {"filler": "x" * 100_000}
        finally:
            ended.set()

    with serving({"endless": endless, "status": nothing}, path, patience=0.05):
        with connected(path, b'{"command": "endless"}\n'):
            assert ended.wait(10)
            assert ask(path, "status") == []
        assert "control client dropped reason=slow" in caplog.text


def test_so_many_clients_at_once_and_no_more(path: Path) -> None:
    with serving({"status": nothing}, path), ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        for number in range(control.MAX_CLIENTS):
            (first if number == 0 else stack).enter_context(connected(path))

        def busy() -> bool:
            try:
                return ask(path, "status") != []
            except ControlError as error:
                return error.code == 69 and "too many" in str(error)

        wait_for(busy, timeout=10, what="all places taken")
        first.close()
        wait_for(lambda: not busy(), timeout=10, what="a place for the next")


def test_taps_leave_room_for_others(path: Path) -> None:
    channel = FakeChannel("dso", path)
    with serving(FakeRunning({"dso": channel}), path), ExitStack() as stack:
        for _ in range(control.MAX_ENDLESS):
            stack.enter_context(asking(path, "tap"))
        wait_for(lambda: len(channel.watchers) == control.MAX_ENDLESS, timeout=10, what="all taps")
        with pytest.raises(ControlError, match="follow the agent already") as raised:
            ask(path, "tap")
        assert raised.value.code == 69
        assert ask(path, "status")[0]["site"] == "site-1"
        stack.close()
        wait_for(lambda: not channel.watchers, timeout=10, what="the end of all taps")
        with asking(path, "tap"):
            wait_for(lambda: bool(channel.watchers), timeout=10, what="the next tap")


def test_what_waits_for_a_tap_that_does_not_read_is_bounded_in_bytes(path: Path) -> None:
    channel = FakeChannel("dso", path)
    large = bytes(TAP_BYTES // 4)
    with serving(FakeRunning({"dso": channel}), path) as served, asking(path, "tap", within=10) as lines:
        served.seal(channel, *[large] * 20)
        taken = 0
        while "dropped" not in (line := next(lines)):
            taken += 1
        assert taken == 4
        assert line == {"dropped": 16}


# ---- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"", "went away"), (b'{"a": 1}\n', "went away"), (b"nonsense\n", "understood"), (b"1\n", "understood"),
     (b'{"end": "x"}\n', "understood"), (None, "does not answer")],
)  # fmt: skip
def test_an_agent_that_answers_badly_is_unreachable(tmp_path: Path, said: bytes | None, words: str) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        with asking(path, "status", within=0.05 if said is None else 10) as lines:
            peer, _ = listening.accept()
            with peer:
                if said is not None:
                    peer.recv(1000)
                    peer.sendall(said)
                    peer.close()
                with pytest.raises(ControlError, match=words) as raised:
                    list(lines)
    assert raised.value.code == 69


@contextmanager
def crowded(path: Path) -> Iterator[tuple[socket.socket, int]]:
    """A socket that listens, and how many wait there: as many as may."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(os.fspath(path))
        listening.listen(1)
        waiting = 0
        while True:
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            try:
                other.connect(os.fspath(path))
            except BlockingIOError:
                break
            waiting += 1
        yield listening, waiting


def test_who_asks_in_a_crowd_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(tmp_path / "sock") as (listening, waiting):
        monkeypatch.setattr("agent.control.client.time.sleep", lambda seconds: listening.accept()[0].close())
        with asking(tmp_path / "sock", "status", within=10) as lines:
            for _ in range(waiting - 1):
                listening.accept()[0].close()
            with listening.accept()[0] as peer:
                peer.sendall(b'{"a": 1}\n{"end": 0}\n')
                assert list(lines) == [{"a": 1}]


def test_a_crowd_that_never_ends_is_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    with crowded(tmp_path / "sock"), pytest.raises(ControlError, match="does not answer") as raised:
        ask(tmp_path / "sock", "status", within=0.01)
    assert raised.value.code == 69
