"""What the author of an adapter provides: its tables, and a hand on the other end.

Each test makes a subject of its own. The other end runs in the test's event loop or in a process of its own; it must be
of the adapter's author or a real one, never the adapter's code turned round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agent.model import Value

CONNECTION = "wire"
"""The name of the connection; device tables refer to it."""

Table = dict[str, Any]
Values = Mapping[str, Value]


class Subject(ABC):
    """An adapter, how it is configured, and the other end."""

    adapter: ClassVar[Any]
    """The adapter's class."""

    within: ClassVar[float] = 5.0
    """S: longer than anything may take. Time-outs in the tables must be well below it; 300 ms makes a quick suite.
    100 ms makes a flaky one: so often does anyio look whether all tasks wait.
    """

    @abstractmethod
    def connection(self) -> Table:
        """A good connection table as in the file, without ``kind``; asked for behind ``start``."""

    @abstractmethod
    def devices(self) -> Sequence[Table]:
        """Good tables of two or more devices; one of them has two groups, and one group has two points."""

    def refused(self) -> Sequence[Table]:
        """Device tables that must be refused; that unknown keys are is tested anyway."""
        return ()

    @abstractmethod
    async def start(self) -> None:
        """The other end listens and answers, behind ``stop`` at the same address as before."""

    @abstractmethod
    async def stop(self) -> None:
        """Nobody listens, connections are closed; also if it never was started."""

    @abstractmethod
    async def silence(self) -> None:
        """The other end, running, takes connections and requests and from now on answers nothing, up to ``start``."""


class PolledSubject(Subject):
    """For a PolledAdapter."""

    @abstractmethod
    def expected(self, device: str, group: str) -> Values:
        """What the points of a group are now, by name: the plan's values, for those that are good and known here."""

    async def change(self) -> None:
        """A device becomes another one: what it says of itself or its points differ once it was reached anew. The
        connections are closed. Left out if no device of this kind says anything.
        """
        raise NotImplementedError

    async def junk(self) -> None:
        """From now on the other end answers with what is none of its protocol, up to ``start``. May be left out."""
        raise NotImplementedError


class EventSubject(Subject):
    """For an EventAdapter."""

    keeps: ClassVar[bool] = False
    """The source sends again, over the next connection, what was not acknowledged."""

    @abstractmethod
    async def send(self, number: int) -> None:
        """Have the source send message ``number`` (1, 2, 3, ...), now or as soon as somebody subscribes."""

    @abstractmethod
    def expected(self, number: int) -> Mapping[tuple[str, str], Values]:
        """Which groups message ``number`` concerns, by ids of device and group, and the values of their points."""

    @abstractmethod
    async def drop(self) -> None:
        """The source closes all connections and goes on listening."""

    def acknowledged(self) -> Sequence[int] | None:
        """Numbers of the messages whose acknowledgement the source has seen, in order. None: it cannot tell."""
        return None

    @abstractmethod
    async def send_junk(self) -> int:
        """Have the source send messages that no sane one would: empty, huge, not text, of the wrong shape, with wrong
        types. How many of them the adapter must hand over; 0: it may drop them all.
        """

    async def change(self) -> None:
        """The messages sent from now on give a group other points. May be left out."""
        raise NotImplementedError
