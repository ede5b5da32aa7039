"""Asking the running agent: the other end of the control socket (agent/control/server.py), blocking, for commands.

Tells apart, by exception, an agent that is not there from one that may not be asked and one that refuses; the exit
code comes with it.
"""

from __future__ import annotations

import grp
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.errors import AgentError

WITHIN = 30.0  # s from line to line
_UNAVAILABLE, _NO_PERMISSION = 69, 77  # exit codes of agent/commands
_AGAIN = 0.05  # s, until another try to be taken on
_LONGEST = 4 << 20  # bytes of a line


class ControlError(AgentError):
    """The agent gave no answer or ended it with an error; ``code`` is what the command ends with."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NotRunningError(ControlError):
    """Nobody answers at the socket."""

    def __init__(self, path: Path) -> None:
        hint = "start it (systemctl start edge-agent), or name its socket with --socket"
        super().__init__(f"no agent answers at {path}", code=_UNAVAILABLE, hint=hint)


@contextmanager
def asking(path: Path, command: str, *, within: float | None = WITHIN, **arguments: Any) -> Iterator[Iterator[Any]]:
    """The lines that the agent answers with, without the last. ``within``: s to wait for each; None: no end.

    Raises NotRunningError at once, ControlError there or while the lines come. Arguments that are None are left out.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(within)
        _connect(connection, path, within=WITHIN if within is None else within)
        request = {"command": command, **{key: value for key, value in arguments.items() if value is not None}}
        with suppress(ConnectionError):  # it may have refused already; its words are still to be read
            connection.sendall(json.dumps(request).encode() + b"\n")
        yield _lines(connection)


def _connect(connection: socket.socket, path: Path, *, within: float) -> None:
    until = time.monotonic() + within
    try:
        while not _taken_on(connection, path):
            if time.monotonic() >= until:
                raise ControlError("the agent does not answer", code=_UNAVAILABLE, hint="its log may say why")
            time.sleep(_AGAIN)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NotRunningError(path) from None
    except PermissionError:
        hint, group = "run it as root", _group(path)
        if group is not None:
            hint = f"become a member of the group {group!r} (usermod -aG, then log in again), or {hint}"
        raise ControlError(f"no permission for the socket {path}", code=_NO_PERMISSION, hint=hint) from None
    except OSError as error:  # its name is too long, say
        reason = error.strerror or error
        hint = "is the path right?"
        raise ControlError(f"the socket {path} cannot be used: {reason}", code=_UNAVAILABLE, hint=hint) from None


def _taken_on(connection: socket.socket, path: Path) -> bool:
    """Connect; False if so many others ask at this moment that nobody else may even wait."""
    try:
        connection.connect(os.fspath(path))
    except BlockingIOError:
        return False
    return True


def _group(path: Path) -> str | None:
    """The group that may use the socket; None: it is root's, or not known."""
    for each in (path, path.parent):
        with suppress(OSError, KeyError):
            found = each.stat().st_gid
            return grp.getgrgid(found).gr_name if found else None
    return None


def _lines(connection: socket.socket) -> Iterator[Any]:
    try:
        with connection.makefile("rb") as received:
            while data := received.readline(_LONGEST):
                line = json.loads(data)
                if "end" not in line:
                    yield line
                    continue
                if line["end"]:
                    message = line.get("error") or "the agent refused"
                    raise ControlError(message, code=int(line["end"]), hint=line.get("hint") or "")
                return
    except TimeoutError:
        raise ControlError("the agent does not answer", code=_UNAVAILABLE, hint="its log may say why") from None
    except ConnectionError:
        pass
    except (ValueError, TypeError):
        hint = "are agent and command of one version?"
        raise ControlError("the agent's answer cannot be understood", code=_UNAVAILABLE, hint=hint) from None
    raise ControlError("the agent went away before it had answered", code=_UNAVAILABLE, hint="is it restarting?")
