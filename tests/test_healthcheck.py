"""The health check of a container: it says what feeds the watchdog, and whatever answers it comes to an end in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config.tables import Agent
from agent.control import healthcheck
from tests.served_agent import FakeRunning, serving

SCRIPT = Path(healthcheck.__file__)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@contextmanager
def answering(path: str, *pieces: bytes, stays: bool = False) -> Iterator[None]:
    """Somebody who sends this to whoever asks, and then hangs up unless it ``stays``."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        bound.listen()

        def serve() -> None:
            client, _ = bound.accept()
            with client:
                asked = client.recv(1 << 16)
                assert asked == b'{"command": "status"}\n'
                for piece in pieces:
                    client.sendall(piece)
                if stays:
                    client.recv(1)  # until it gives up

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_it_asks_where_the_agent_is_by_default() -> None:
    assert str(Agent.model_fields["socket"].default) == healthcheck.SOCKET


@pytest.mark.parametrize(("stuck", "said"), [([], ""), (["writer of dso", "x"], "no progress: writer of dso, x")])
def test_a_running_agent_is_healthy_unless_a_part_is_stuck(path: str, stuck: list[str], said: str) -> None:
    with serving(FakeRunning(told={"stuck": stuck, "channels": []}), Path(path)):
        assert healthcheck.trouble(path) == said


def test_it_is_a_script_that_needs_nothing_of_the_package(path: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", RUN, str(SCRIPT), path]
    with serving(FakeRunning(told={"stuck": []}), Path(path)):
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"no agent answers at {path}\n", "")


RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not [name for name in sys.modules if name.startswith(("agent", "anyio", "pydantic", "argparse", "asyncio"))]
"""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"stuck":[]}\n{"end":0}\n', ""),
        (b'{"stuck":[]}\n', "the agent's answer cannot be understood"),  # it went away on the way
        (b'{"stuck":[]}\n{"end"', "the agent's answer cannot be understood"),
        (b"", "the agent's answer cannot be understood"),
        (b"\xff\n", "the agent's answer cannot be understood"),
        (b'{"end":0}\n', "the agent's answer cannot be understood"),
        (b'{"stuck":null}\n{"end":0}\n', "the agent's answer cannot be understood"),
        (b'[]\n{"end":0}\n', "the agent's answer cannot be understood"),
        (b'{"stuck":[]}\n[]\n', "the agent's answer cannot be understood"),
        (b"[" * 100_000 + b"\n", "the agent's answer cannot be understood"),
        (b'{"end":69,"error":"too many ask"}\n', "the agent refuses to answer: too many ask"),
    ],
)
def test_only_a_whole_answer_counts(path: str, answer: bytes, said: str) -> None:
    with answering(path, answer):
        assert healthcheck.trouble(path) == said


def test_an_agent_that_hangs_is_given_up(path: str) -> None:
    """Its kernel takes us on; it does not answer, or begins to and does not come to an end."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        bound.listen()
        assert healthcheck.trouble(path, within=0.05) == f"no answer within 0.05 s at {path}"
    os.unlink(path)
    with answering(path, b'{"stuck":[]}\n', stays=True):
        assert healthcheck.trouble(path, within=0.1) == f"no answer within 0.1 s at {path}"


def test_an_answer_without_end_is_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "_LONGEST", 1000)
    with answering(path, b"x" * 1000, stays=True):
        assert healthcheck.trouble(path) == "the agent's answer cannot be understood"


def test_a_queue_that_is_full_is_no_answer(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as other:
        bound.bind(path)
        bound.listen(0)
        other.connect(path)
        assert healthcheck.trouble(path) == f"not taken on at {path}"


def test_nobody_there_and_no_socket_at_all(path: str, tmp_path: Path) -> None:
    assert healthcheck.trouble(path) == f"no agent answers at {path}"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert healthcheck.trouble(path) == f"no agent answers at {path}"
    long = str(tmp_path / ("x" * 200))
    assert healthcheck.trouble(long) == f"cannot be asked at {long}: AF_UNIX path too long"
    assert healthcheck.trouble(f"{path}/below").startswith("cannot be asked at ")
