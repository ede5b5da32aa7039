"""The whole daemon: open, run, reload, stop. The nesting of the task groups is the order of the end, innermost first:
acquisition stops, then what was acquired is sealed and on disk, then sources are told and let go of, then what can
still be delivered is delivered.

A crash at any point leaves the outboxes as their last commits left them; start-up's recovery is the same code as a
normal start.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio

from agent import __version__
from agent.clock import SystemClock
from agent.config import Config
from agent.control.answers import answers
from agent.control.server import serve
from agent.errors import ConfigError
from agent.health import Health
from agent.running import Running
from agent.signer import open_signer

log = logging.getLogger(__name__)


async def run(config: Config, signals: AsyncIterator[signal.Signals]) -> None:
    """Run the agent until a signal other than SIGHUP, which has it read its configuration again.

    Raises SignerError, OutboxError, ConfigError.
    """
    health, identity = Health(), config.identity
    signer = open_signer(identity.key, passphrase=identity.passphrase, did=identity.did)
    running = Running(config, signer=signer, clock=SystemClock())
    async with anyio.create_task_group() as telling:
        async with anyio.create_task_group() as channels, anyio.create_task_group() as sources:
            await running.open(channels=channels, sources=sources)
            log.info("agent starting version=%s did=%s waiting=%d", __version__, signer.did, running.waiting())
            telling.start_soon(health.run, running.summary, running.overdue)
            async with anyio.create_task_group() as acquisition:
                acquisition.start_soon(running.supervisor.run)
                acquisition.start_soon(running.changes)
                if config.agent.socket is not None:
                    acquisition.start_soon(serve, config.agent.socket, answers(running))
                if config.agent.http is not None:
                    from agent.scrape import scrape  # with an HTTP library

                    acquisition.start_soon(scrape, running)
                health.ready()
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    acquisition.start_soon(_reload, running, health)
                log.info("agent stopping reason=%s", number.name)
                health.stopping()
                acquisition.cancel_scope.cancel()
            await running.conclude(number.name)
            sources.cancel_scope.cancel()
        telling.cancel_scope.cancel()
    health.close()
    log.info("agent stopped waiting=%d", running.waiting())


async def _reload(running: Running, health: Health) -> None:
    health.reloading()
    with suppress(ConfigError):  # is logged, and the old one stays in force
        await running.reload()
    health.ready()
