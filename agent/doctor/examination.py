"""Looks are done beside each other, each with a deadline, and what goes wrong with a look is a finding itself.

A look runs in a thread that nobody waits for at the end: a disk, a resolver or a server that hangs holds up neither
the others nor the end of the process. What it had found before its deadline counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from agent.doctor.finding import Finding, note, warning
from agent.errors import AgentError

WITHIN = 10.0  # s
T = TypeVar("T")

SUDO = "look again as root: sudo edge-agent doctor"


@dataclass(frozen=True, slots=True)
class Look:
    """One subject. ``run`` yields findings as it sees them, blocks as long as it likes, and may raise anything;
    ``within``: s.
    """

    about: str
    run: Callable[[], Iterable[Finding]]
    within: float = WITHIN


def examine(looks: Sequence[Look]) -> list[Finding]:
    """The findings of all looks, in their order. Returns after the longest ``within`` at the latest."""
    begun = [(look, _Running(partial(_collect, look), look.about)) for look in looks]
    return [finding for look, running in begun for finding in running.findings(look)]


def in_time(within: float, function: Callable[[], T]) -> T:
    """What a function returns. Raises what it raises, TimeoutError: it does not come to an end."""
    found: list[T] = []
    running = _Running(lambda _: found.append(function()), "in time")
    running.wait(within)
    return found[0]


class _Running:
    """Something in a thread of its own. What it starts in turn ends with the process, too: daemons' threads are
    daemons.
    """

    def __init__(self, work: Callable[[list[Finding]], object], name: str) -> None:
        self._found: list[Finding] = []
        self._error: Exception | None = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[list[Finding]], object]) -> None:
        try:
            work(self._found)
        except Exception as error:  # noqa: BLE001  # whatever it is: it is told, and the others go on
            self._error = error

    def wait(self, within: float) -> None:
        """Return when it is done. Raises what it raised, TimeoutError."""
        self._thread.join(max(0.0, self._began + within - time.monotonic()))
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error

    def findings(self, look: Look) -> list[Finding]:
        """What was found, and why that is not all."""
        try:
            self.wait(look.within)
        except TimeoutError as error:
            if self._error is None:
                what = f"no answer within {look.within:g} s; what else is to be seen there was not looked at"
                why = "a disk, a name server or a device that hangs holds up the agent as well"
                return [*self._found, warning(look.about, what, why=why, remedy="dmesg; then look again")]
            return [*self._found, _failed(look.about, error)]
        except Exception as error:  # noqa: BLE001
            return [*self._found, _failed(look.about, error)]
        return list(self._found)


def _collect(look: Look, found: list[Finding]) -> None:
    for finding in look.run():
        found.append(finding)  # noqa: PERF402  # one by one: what is there at the deadline counts


def _failed(about: str, error: Exception) -> Finding:
    """An error that nobody expected is named, and not repeated: it could hold anything."""
    if isinstance(error, PermissionError):
        what = f"may not be looked at by this user: {error.filename or error.strerror}"
        return note(about, what, why="so much of this box was not seen", remedy=SUDO)
    words = type(error).__name__
    if isinstance(error, AgentError):
        words = f"{error}; {error.hint}" if error.hint else str(error)
    elif isinstance(error, OSError) and error.strerror:
        words = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    why = "what else is to be seen there is not known"
    return warning(about, f"could not be looked at: {words}", why=why, remedy="if it stays so, report it")
