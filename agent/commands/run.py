"""``edge-agent run``: the daemon."""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import signal
from typing import TYPE_CHECKING

from agent.commands import GOOD
from agent.errors import AgentError, only

if TYPE_CHECKING:
    from agent.config import Config


def main(options: argparse.Namespace) -> int:
    """Run until SIGTERM. Raises AgentError."""
    faulthandler.enable(2)  # the watchdog's SIGABRT: where we hung; by number, whatever sys.stderr is
    # A reload that is asked for while we start must not end us; it waits until somebody listens.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    import anyio  # takes most of the start, as do the others

    from agent import journal
    from agent.config import load

    config = load(options.config)
    journal.set_up(config.agent.log_level)
    try:
        anyio.run(_run, config, backend_options=_backend())
    except BaseExceptionGroup as raised:
        error = only(AgentError, raised)
        raise error from error.__cause__
    return GOOD


async def _run(config: Config) -> None:
    import anyio

    from agent import daemon

    # Open to the end: a second signal must not cut off the last records.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await daemon.run(config, signals)


def _backend() -> dict[str, object]:
    """Options of the event loop: uvloop where it is installed, it saves a quarter of the CPU."""
    return {"use_uvloop": True} if importlib.util.find_spec("uvloop") else {}
