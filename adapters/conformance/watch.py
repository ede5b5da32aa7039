"""What the suite sees and does beside an adapter: its clock, what is left behind, the network, and cancellation."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio

from agent.model import ClockQuality

S = 1_000_000_000
_POOLS = ("AnyIO worker thread", "asyncio_")  # threads that the libraries keep by design


class SuiteClock:
    """The machine's clocks, which a test can set forward so that a back-off on the agent's clock is over."""

    def __init__(self) -> None:
        self._ahead = 0

    def advance(self, ns: int) -> None:
        """Time passes at once."""
        self._ahead += ns

    def wall(self) -> int:
        """Ns since 1970-01-01 UTC."""
        return time.time_ns() + self._ahead

    def boot(self) -> int:
        """Ns of CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._ahead

    def quality(self) -> ClockQuality:
        """Nothing is known of the wall clock."""
        return ClockQuality()

    async def sleep_until(self, boot: int) -> None:
        """Return once the boot time is not before ``boot``."""
        while (left := boot - self.boot()) > 0:  # noqa: ASYNC110 - nobody sets an event for a clock
            await anyio.sleep(min(left / S, 0.01))


# ---- what is left behind ----------------------------------------------------------------------------------------


def _sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the folder's own descriptor, which is closed again
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _held() -> set[Any]:
    threads = {each for each in threading.enumerate() if not each.name.startswith(_POOLS)}
    return {*asyncio.all_tasks(), *threads, *_sockets()}


@asynccontextmanager
async def nothing_left(within: float) -> AsyncIterator[None]:
    """No task, thread, socket and no complaint of the event loop stays behind, ``within`` s later at the latest."""
    loop, complaints = asyncio.get_running_loop(), list[dict[str, Any]]()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        before = _held()
        yield
        with anyio.move_on_after(within):
            while _held() - before:  # noqa: ASYNC110 - no event tells
                await anyio.sleep(0.001)
        left = _held() - before
        assert not left, f"left behind: {left}"
        gc.collect()
        assert not complaints, f"an error that nobody caught: {complaints}"
    finally:
        loop.set_exception_handler(handler)


# ---- the network ------------------------------------------------------------------------------------------------

_seen: list[str] | None = None
_hooked = False


def _hook(event: str, _: tuple[Any, ...]) -> None:
    if _seen is not None and event.startswith("socket."):
        _seen.append(event)


@contextmanager
def no_network() -> Iterator[None]:
    """Nothing in here makes a socket or asks for a name."""
    global _seen, _hooked
    if not _hooked:  # a hook cannot be taken back (sys.addaudithook)
        sys.addaudithook(_hook)
        _hooked = True
    _seen = []
    try:
        yield
        assert not _seen, f"the network was touched: {sorted(set(_seen))}"
    finally:
        _seen = None


# ---- cancellation -----------------------------------------------------------------------------------------------


@types.coroutine
def _cancelled_at(
    number: int, scope: anyio.CancelScope, work: Coroutine[Any, Any, object]
) -> Generator[Any, Any, bool]:
    """Run ``work`` and cancel ``scope`` where it waits for the ``number``th time; whether it came to that."""
    sent, error = None, None
    for count in itertools.count():
        try:
            waits_for = work.send(sent) if error is None else work.throw(error)
        except StopIteration:
            return count > number
        if count == number:
            scope.cancel()
        sent = error = None
        try:
            sent = yield waits_for
        except BaseException as raised:  # noqa: BLE001 - passed on
            error = raised
    raise AssertionError


async def cancelled_at(number: int, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Run ``work`` and cancel it where it waits for the ``number``th time, from 0; False if it ended before that."""
    with anyio.CancelScope() as scope:
        return await _cancelled_at(number, scope, work())
    return True
