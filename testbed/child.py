"""A program started by a demo or test, as a real process. Blocking; waits poll against a deadline.

Nothing that is started here outlives the program that started it: leaving the ``with`` block ends it, so does the exit
of the interpreter, and if that is killed the kernel kills the child (testbed/leash.py). Every process has a session of
its own, so that Ctrl-C reaches only us, and whatever is left of its group goes when it goes. (Only a grandchild can
survive our own SIGKILL.)
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

ROOT = Path(__file__).resolve().parents[1]
_LEASH = Path(__file__).with_name("leash.py")
_POLL_S = 0.01
T = TypeVar("T")


class ProcessError(Exception):
    """A process did not do what was awaited; the message holds the end of its log."""


def wait_for(condition: Callable[[], T | None], *, timeout: float, what: str) -> T:
    """What ``condition`` returns once it is neither None nor False. Raises ProcessError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result is not None and result is not False:
            return result
        if time.monotonic() >= deadline:
            raise ProcessError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(_POLL_S)


class _Starter:
    """Starts all children from one thread that never ends.

    The kernel's parent-death signal comes when the *thread* that started the child ends, and a worker thread of an
    event loop may end at any time.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, order: Callable[[], None]) -> None:
        """Run ``order`` in that thread and return when it is done. Raises what it raises."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="starter", daemon=True)
                self._thread.start()
        done, problems = threading.Event(), list[BaseException]()

        def run() -> None:
            try:
                order()
            except BaseException as problem:  # noqa: BLE001  # start() raises it
                problems.append(problem)
            finally:
                done.set()

        self._orders.put(run)
        done.wait()
        if problems:
            raise problems[0]

    def _work(self) -> None:
        while True:
            self._orders.get()()


_starter = _Starter()
_started: set[Process] = set()


@atexit.register
def _close_all() -> None:
    for process in list(_started):
        process.close()


class Process:
    """One program; may be started again after it ended. Its output is appended to ``log_path``.

    ``output``: standard output goes there instead. ``piped``: we hold its standard input.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        name: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
        piped: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.folder = folder
        self.command_line = [str(part) for part in command]
        self.log_path = folder / f"{name}.log"
        self.environment = dict(environment or {})
        self.stdin: IO[bytes] | None = None
        self.kills: list[int] = []  # boot times
        self._output = output
        self._piped = piped
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id of the last start."""
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs. Leaves an ended child unreaped, so that its id stays its own until the group is ended."""
        child = self._child
        if child is None or child.returncode is not None:
            return False
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def start(self) -> Self:
        """Start it; does not wait until it is of use. Raises ProcessError if it runs already."""
        if self.alive:
            raise ProcessError(f"{self.name} runs already")
        self._reap()
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        _started.add(self)
        _starter.start(self._spawn)
        return self

    def _spawn(self) -> None:
        search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        with open(self.log_path, "ab") as log, open(self._output or self.log_path, "ab") as output:
            self._child = subprocess.Popen(
                [*leash, *self.command_line],
                stdin=subprocess.PIPE if self._piped else subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,
            )
        self.stdin = self._child.stdin

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code (negative: the signal) once it has ended. Raises ProcessError after ``timeout`` seconds."""
        wait_for(lambda: not self.alive, timeout=timeout, what=f"{self.name} to end")
        return self._reap()

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then its exit code. Raises ProcessError if it has to be killed after ``timeout`` seconds."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except ProcessError:
            self.kill()
            raise ProcessError(f"{self.name} did not stop within {timeout:g} s of SIGTERM{self._tail()}") from None

    def kill(self) -> None:
        """SIGKILL for it and its group; returns when it is gone. ``kills`` tells when that was."""
        if self._child is not None and self._child.returncode is None:
            self.kills.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            os.killpg(self._child.pid, signal.SIGKILL)
            self._reap()

    def close(self) -> None:
        """End it and let go of what belongs to it, politely for 5 s. Never raises."""
        with suppress(ProcessError):  # it had to be killed
            self.stop(5.0)

    def log(self) -> str:
        """What it wrote into the log since its last start."""
        if not self.log_path.exists():
            return ""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")

    def _await(self, condition: Callable[[], T | None], *, timeout: float, what: str) -> T:
        """As wait_for, and stops waiting when the process has ended."""

        def look() -> T | None:
            running = self.alive  # before the condition: its last words count
            result = condition()
            if (result is None or result is False) and not running:
                raise ProcessError(f"{self.name} ended with {self._reap()} before {what}{self._tail()}")
            return result

        try:
            return wait_for(look, timeout=timeout, what=f"{self.name}: {what}")
        except ProcessError as error:
            if self.alive:
                raise ProcessError(f"{error}{self._tail()}") from None
            raise

    def _reap(self) -> int:
        """End the rest of its group, then collect its exit code."""
        child = self._child
        if child is None:
            return 0
        _started.discard(self)
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if self.stdin is not None:
            with suppress(BrokenPipeError):
                self.stdin.close()
            self.stdin = None
        return int(child.returncode)

    def _tail(self) -> str:
        lines = self.log().splitlines()[-15:]
        return "\n  " + "\n  ".join(lines) if lines else ""

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
