"""The control socket: a local Unix socket at which the running agent answers commands, JSON lines both ways.

A connection is one request, ``{"command": "status", ...}`` on a line of at most 64 KiB, and its answer: any number of
lines, the last one ``{"end": 0}`` or ``{"end": code, "error": "...", "hint": "..."}`` with the code that the command
ends with. Who asked keeps its side open until then and says nothing more: whatever comes after the request, the end
of the stream included, ends the answer at once; only what changes the agent is done to its end.

Who may ask: the socket has mode 0660 and the group of the process, since connecting needs write permission. It is
never more open than that. Nothing that comes in disturbs the agent: requests, clients and their patience are bounded,
what is malformed gets an error line, and an answer that fails is told to its client and the log only.

A crash leaves the socket file behind; the next start finds that nobody answers there and replaces it. A socket that
cannot be opened is an error in the log, and the agent goes on without.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketListener, SocketStream, TaskStatus

from agent.control.clients import attend_all
from agent.errors import AgentError

Answer = Callable[[Mapping[str, Any]], AsyncGenerator[Mapping[str, Any]]]
"""Takes a request and yields the lines of its answer; one with ``end`` is the last, without one it is ``{"end": 0}``.

May raise AgentError; is closed when its client goes away.
"""

MAX_REQUEST = 64 * 1024  # bytes
MAX_CLIENTS = 16
MAX_ENDLESS = 8  # of them, so that taps left open shut nobody out
PATIENCE = 10.0  # s: to send a request, and to take the next piece of an answer
ENDLESS = frozenset(
    {"tap", "outbox resend"}
)  # or long; their clients may stop reading: the answer itself bounds what waits
WHOLE = frozenset({"reload"})  # done to the end, whatever becomes of the client
_PIECE = 64 * 1024  # bytes
_FAILED, _MALFORMED, _BUSY = 1, 2, 69  # exit codes of agent/commands

log = logging.getLogger(__name__)


async def serve(
    path: Path,
    answers: Mapping[str, Answer],
    *,
    patience: float = PATIENCE,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at ``path`` until cancelled; started once it can be asked. Returns if the socket cannot be opened."""
    try:
        with _bound(path) as bound:
            async with await SocketListener.from_socket(bound) as listener:
                log.info("control socket open path=%s", path)
                task_status.started()
                await attend_all(listener, _Server(answers, patience).attend, socket="control")
    except (AgentError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.error("control socket not open path=%s reason=%s", path, reason)
        task_status.started()


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at ``path``; the file goes with it. Raises OSError, AgentError."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    _clear(path)
    with socket.socket(socket.AF_UNIX) as bound:
        os.fchmod(bound.fileno(), 0o660)  # Linux makes the file with this mode, less the umask: no moment of 0777
        bound.bind(os.fspath(path))
        made = path.lstat()
        try:
            path.chmod(0o660)
            bound.listen(MAX_CLIENTS)
            bound.setblocking(False)
            yield bound
        finally:
            with suppress(OSError):
                if os.path.samestat(made, path.lstat()):
                    path.unlink()


def _clear(path: Path) -> None:
    """Remove the socket file of an agent that is gone. Raises AgentError if one answers, or if it is another file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AgentError("there is a file that is no socket", hint="move it away, or choose another agent.socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # its queue is full
            pass
    raise AgentError("another agent answers there", hint="stop it, or give this one its own agent.socket")


class _Server:
    def __init__(self, answers: Mapping[str, Answer], patience: float) -> None:
        self._answers = answers
        self._patience = patience
        self._endless = 0

    async def attend(self, stream: SocketStream, present: int) -> None:
        client = _Client(stream, self._patience)
        try:
            if present > MAX_CLIENTS:
                await client.end(_BUSY, "too many ask the agent at once", "end a `tap`, or try again")
            else:
                await self._converse(client)
        except _Gone as gone:
            gone.log()

    async def _converse(self, client: _Client) -> None:
        try:
            request = await client.request()
        except ValueError as error:
            await client.end(_MALFORMED, f"malformed request: {error}", "")
            return
        command = request["command"]
        if command not in self._answers:
            known = ", ".join(sorted(self._answers))
            await client.end(_MALFORMED, "this agent does not know the command", f"it knows: {known}")
        elif command not in ENDLESS:
            await self._answer(client, request)
        elif self._endless >= MAX_ENDLESS:
            await client.end(_BUSY, f"{self._endless} clients follow the agent already", f"end a `{command}`")
        else:
            self._endless += 1
            client.patience = None
            try:
                await self._answer(client, request)
            finally:
                self._endless -= 1

    async def _answer(self, client: _Client, request: Mapping[str, Any]) -> None:
        """Send the answer while the client is there."""
        async with anyio.create_task_group() as both:
            if request["command"] not in WHOLE:
                both.start_soon(client.gone, both.cancel_scope)
            try:
                await self._send(client, request)
            except _Gone as gone:  # in here, where no group is made of it
                gone.log()
            both.cancel_scope.cancel()

    async def _send(self, client: _Client, request: Mapping[str, Any]) -> None:
        try:
            async with aclosing(self._answers[request["command"]](request)) as lines:
                async for line in lines:
                    await client.send(line)
                    if "end" in line:
                        return
        except _Gone:
            raise
        except AgentError as error:
            await client.end(_FAILED, str(error), error.hint)
        except Exception:
            log.exception("control answer failed command=%s", request["command"])
            await client.end(_FAILED, "the agent failed to answer; its log says more", "this is a defect: report it")
        else:
            await client.send({"end": 0})


class _Gone(Exception):
    """The client hung up or, with a text, was given up."""

    def log(self) -> None:
        if self.args:
            log.info("control client dropped reason=%s", self)


class _Client:
    """Who asks; every method may raise _Gone. ``patience``: s for its next move; None: as slow as it likes."""

    def __init__(self, stream: SocketStream, patience: float) -> None:
        self.stream = stream
        self.patience: float | None = patience

    async def request(self) -> dict[str, Any]:
        """What it asks, with a ``command`` that is text. Raises ValueError."""
        received = bytearray()
        try:
            with anyio.fail_after(self.patience):
                while len(received) <= MAX_REQUEST:
                    piece = await self.stream.receive(_PIECE)
                    received += piece
                    if b"\n" in piece:
                        break
        except anyio.EndOfStream:
            raise ValueError("the line has no end") from None
        except TimeoutError:
            raise _Gone("silent") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _Gone from None
        line, _, rest = received.partition(b"\n")
        if len(line) > MAX_REQUEST or rest:
            raise ValueError("one line for each connection, please" if rest else f"more than {MAX_REQUEST} bytes")
        try:
            request = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError:
            raise ValueError("no JSON") from None
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            raise ValueError('expected {"command": "..."}')
        return request

    async def gone(self, scope: anyio.CancelScope) -> None:
        """Cancel the scope when it hangs up, or says more than its request."""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.stream.receive(1)
        scope.cancel()

    async def end(self, code: int, error: str, hint: str) -> None:
        """The last line of an answer that failed."""
        await self.send({"end": code, "error": error, "hint": hint})

    async def send(self, line: Mapping[str, Any]) -> None:
        """Waits while it does not read, ``patience`` at most."""
        data = json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n"
        try:
            for start in range(0, len(data), _PIECE):
                with anyio.fail_after(self.patience):
                    await self.stream.send(data[start : start + _PIECE])
        except TimeoutError:
            raise _Gone("slow") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _Gone from None
