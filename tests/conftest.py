"""What holds for every test: asyncio is the event loop's library, and nothing is skipped where CI runs.

A test that cannot run on a developer's machine skips itself and says why; CI has everything installed, so there a
skip is a failure (the environment variable CI is set).
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Generator, Iterator
from typing import TypeVar

import pytest

from testbed.processes import NatsServer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_RECURSION = sys.getrecursionlimit()
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run the async tests on asyncio, as the agent does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Put back what a test or a library changed: the log's handlers and levels, and the recursion limit.

    hypothesis raises that so far that a parser in C runs over the end of the stack.
    """
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in (None, "agent", "adapters")}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    sys.setrecursionlimit(_RECURSION)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A real NATS server for the tests of one module, which leave it as it is."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server that the test may freeze and kill."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server
        server.signal(signal.SIGCONT)


@pytest.fixture
def chance() -> random.Random:
    """Random moments, of a seed that is printed; EDGE_AGENT_SEED=N runs them again."""
    seed = int(os.environ.get("EDGE_AGENT_SEED") or time.time_ns() % 1_000_000)
    print(f"EDGE_AGENT_SEED={seed}")
    return random.Random(seed)


def _not_skipped(report: Report) -> Report:
    expected_to_fail = hasattr(report, "wasxfail")  # which pytest reports as skipped, too
    if report.skipped and not expected_to_fail and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing may be skipped in CI: {report.longreprtext or report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one in CI."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failed one in CI."""
    return _not_skipped((yield))
