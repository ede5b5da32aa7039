"""What commands that look at the agent have in common: where its socket is, which channel is meant, and the way around
the socket when the agent is down.
"""

from __future__ import annotations

import argparse
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.commands import UNAVAILABLE, USAGE
from agent.config import Channel, Config, load
from agent.config.file import read
from agent.config.tables import Agent
from agent.control.client import WITHIN, ControlError, NotRunningError, asking
from agent.errors import ConfigError
from agent.outbox.look import look, records


def socket_of(options: argparse.Namespace) -> Path | None:
    """The agent's socket: ``--socket``, else as the configuration says, of which only that key has to be good; if it
    cannot be read, one that is in a usual place. None: it has none.

    Raises ConfigError, PermissionError.
    """
    if options.socket is not None:
        return Path(options.socket)
    try:
        source = read(options.config)
        table = source.raw.get("agent", {})
        written = {"socket": table["socket"]} if isinstance(table, dict) and "socket" in table else {}
        agent = source.findings.judge(Agent, written, at=("agent",), context=source.context)
        if agent is None:
            raise ConfigError(source.findings.sorted())
    except ConfigError:
        # A broken file is when an engineer wants to see how the agent is that runs on with the old one.
        usual = (Path(Agent.model_fields["socket"].default), options.config.absolute().parent / "agent.sock")
        if (found := next((path for path in usual if path.is_socket()), None)) is None:
            raise
        return found
    return agent.socket


@contextmanager
def running(
    options: argparse.Namespace, command: str, *, within: float | None = WITHIN, **arguments: Any
) -> Iterator[Iterator[Any]]:
    """Ask the agent that must be running (``agent.control.client.asking``). Raises ControlError, ConfigError."""
    path = socket_of(options)
    if path is None:
        hint = "give agent.socket a path and restart the agent"
        raise ControlError("the configuration gives the agent no socket", code=UNAVAILABLE, hint=hint)
    with asking(path, command, within=within, **arguments) as lines:
        yield lines


@contextmanager
def asked(options: argparse.Namespace, command: str, **arguments: Any) -> Iterator[Iterator[Any] | None]:
    """Ask the agent; None if it is not running, or has no socket. Raises ControlError, ConfigError, PermissionError."""
    path = socket_of(options)
    with ExitStack() as stack:
        answer = None
        if path is not None:
            with suppress(NotRunningError):
                answer = stack.enter_context(asking(path, command, **arguments))
        yield answer


@dataclass(frozen=True, slots=True)
class Held:
    """What an outbox holds: its file, the position up to which all is acknowledged, and position and envelope of each
    record, oldest first.
    """

    ring: Path
    acked: int
    records: Iterator[tuple[int, bytes]]


@contextmanager
def held(options: argparse.Namespace, *, newest: int | None = None) -> Iterator[Held]:
    """The records of the one channel that is meant; with ``newest`` only the last so many. From the agent if it runs,
    else from its files.

    Raises ControlError, ConfigError, OutboxError, PermissionError; nothing was touched by then.
    """
    with asked(options, "outbox records", channel=options.channel, newest=newest) as answer:
        if answer is not None:
            first: dict[str, Any] = next(answer, {})
            yield Held(Path(first.get("ring", "")), first.get("acked", 0), _received(answer))
            return
    config = load(options.config)
    channel = only(config, options.channel)
    ring = ring_of(config, channel)
    acked = look(ring, channel=channel.id).acked
    with closing(records(ring, channel=channel.id, newest=newest)) as found:
        yield Held(ring, acked, ((stored.pos, stored.envelope) for stored in found))


def _received(answer: Iterator[Any]) -> Iterator[tuple[int, bytes]]:
    for line in answer:
        for pos, envelope in line["records"]:
            yield pos, b64decode(envelope)


def channels_of(config: Config, name: str | None) -> list[Channel]:
    """The channel of this name, all if there is none. Raises ControlError: there is no such channel."""
    found = [channel for channel in config.channels if name in (None, channel.id)]
    if not found:
        known = ", ".join(channel.id for channel in config.channels)
        raise ControlError("no such channel", code=USAGE, hint=f"there are: {known}")
    return found


def only(config: Config, name: str | None) -> Channel:
    """The channel of this name, or the only one. Raises ControlError."""
    found = channels_of(config, name)
    if len(found) > 1:
        known = ", ".join(channel.id for channel in found)
        raise ControlError("there are several channels", code=USAGE, hint=f"name one with --channel: {known}")
    return found[0]


def ring_of(config: Config, channel: Channel) -> Path:
    """The ring file of a channel."""
    return config.agent.state / f"{channel.id}.ring"
