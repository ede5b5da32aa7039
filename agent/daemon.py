"""The whole daemon: open, wire, run, stop. The nesting of the task groups is the order of shutdown, innermost first:
acquisition stops, then what was acquired is sealed and on disk, then what can still be delivered is delivered.

A crash at any point leaves the outbox as its last commit left it; start-up's recovery is the same code as a normal
start.
"""

from __future__ import annotations

import hmac
import logging
import resource
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio import to_thread

from agent import __version__, kinds
from agent.batcher import Batcher
from agent.clock import SystemClock, boot_id
from agent.config import Config
from agent.errors import OutboxError
from agent.health import Health
from agent.history import replay
from agent.model import EventCode
from agent.outbox import Outbox
from agent.ports import Clock, PolledAdapter
from agent.publisher import Publisher
from agent.record import link_of
from agent.sealer import Facts, Sealer
from agent.signer import open_key_file
from agent.supervisor import PolledGroup, Supervisor

DRAIN_WITHIN = 3.0  # s: how long a stopping agent goes on delivering
MARK_EVERY = 10.0  # s: how soon the disk knows what was acknowledged, when no record is written

log = logging.getLogger(__name__)


async def run(config: Config, stop: AsyncIterator[signal.Signals]) -> None:
    """Run the agent until ``stop`` yields a signal. Raises SignerError, OutboxError."""
    with suppress(OSError, ValueError):  # a sandbox may forbid it, and has then done it itself
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the key must not land in a core file
    clock, health, channel = SystemClock(), Health(), config.channel
    signer = open_key_file(config.identity.key, did=config.identity.did)
    async with _open_outbox(config) as outbox, _open_adapters(config, clock) as groups:
        history = replay(outbox.recovered())
        sealer = Sealer(_facts(config, outbox.salt), signer=signer, clock=clock, last=outbox.last, history=history)
        transport = kinds.load(channel.transport)(channel.settings, subject=channel.topic)
        publisher = Publisher(store=outbox, transport=transport, did=signer.did, clock=clock)
        batcher = Batcher(
            outbox=outbox, sealer=sealer, clock=clock, window=channel.seal_within, on_durable=publisher.notify
        )
        publisher.on_connected = batcher.restate
        supervisor = Supervisor(groups, sink=batcher, clock=clock, started=(__version__, history.clean))

        def status() -> str:
            broker = "connected" if publisher.connected else "away"
            return (
                f"outbox {channel.id}: {outbox.pending.records} waiting, broker {broker}, "
                f"{publisher.acknowledged} delivered, {supervisor.failing_devices()} devices failing"
                + (f", {batcher.dropped} records dropped" if batcher.dropped else "")
            )

        log.info("agent starting version=%s did=%s waiting=%d", __version__, signer.did, outbox.pending.records)
        async with anyio.create_task_group() as delivery:
            delivery.start_soon(publisher.run)
            delivery.start_soon(_mark, batcher)
            delivery.start_soon(health.run, status)
            async with anyio.create_task_group() as sealing:
                sealing.start_soon(batcher.run)
                async with anyio.create_task_group() as acquisition:
                    acquisition.start_soon(supervisor.run)
                    health.ready()
                    reason = (await anext(stop)).name
                    log.info("agent stopping reason=%s", reason)
                    health.stopping()
                    acquisition.cancel_scope.cancel()
                if sealer.term:
                    await batcher.event(EventCode.STOP, reason)
                sealing.cancel_scope.cancel()
            with anyio.move_on_after(DRAIN_WITHIN):
                await publisher.drained()
            delivery.cancel_scope.cancel()
        log.info("agent stopped waiting=%d", outbox.pending.records)


async def _mark(batcher: Batcher) -> None:
    """Have the disk know within ten seconds what the broker acknowledged."""
    while True:
        await anyio.sleep(MARK_EVERY)
        await batcher.mark()


@asynccontextmanager
async def _open_outbox(config: Config) -> AsyncIterator[Outbox]:
    folder = config.agent.state
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise OutboxError(f"cannot make the state folder {folder}: {error.strerror}", hint="see agent.state") from error
    path = folder / f"{config.channel.id}.ring"
    outbox = await to_thread.run_sync(
        lambda: Outbox.open(path, channel=config.channel.id, size=config.channel.outbox.size, inspect=link_of)
    )
    try:
        yield outbox
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(outbox.mark)
    finally:
        outbox.close()


@asynccontextmanager
async def _open_adapters(config: Config, clock: Clock) -> AsyncIterator[Sequence[PolledGroup]]:
    adapters: list[PolledAdapter] = []
    groups = []
    try:
        for plan in config.adapters():
            adapter = kinds.load(plan.class_path)(plan.name, plan.connection, plan.devices, clock)
            adapters.append(adapter)
            for device, chosen in zip(adapter.devices, plan.devices, strict=True):
                groups += [PolledGroup(device, name, chosen.config.groups[name].every) for name in chosen.groups]
        yield groups
    finally:
        with anyio.CancelScope(shield=True):
            for adapter in adapters:
                await adapter.close()


def _facts(config: Config, salt: bytes) -> Facts:
    return Facts(
        boot_id=boot_id(),
        version=__version__,
        site=config.site.id,
        labels=tuple(config.site.labels.items()),
        channel=config.channel.id,
        topic=config.channel.topic,
        configuration=hmac.digest(salt, config.digest_text(), "sha256"),
        window_ms=config.channel.seal_within // 1_000_000,
    )
