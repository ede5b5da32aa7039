"""``edge-agent tail``: consume a channel from the broker, verify every record, print it, and account for all at the
end (docs/consuming.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

import anyio

from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.target import only
from agent.config import load
from agent.errors import SignerError, TransportError
from agent.kinds import TRANSPORTS
from agent.rendering import account, objects, text
from agent.signer import open_key_file
from agent.transports.nats_consumer import Consumer, Source
from agent.verifier import Judged, Verifier

_SETTLE_EVERY = 6.0  # s; longer than a publisher takes to send again what is missing at the beginning of a stream
_PAUSE = 1.0  # s between tries to connect


def main(options: argparse.Namespace) -> int:
    """Ends on SIGTERM or SIGINT, with the report on stderr (text) or as last line (JSON Lines).

    Raises ConfigError, ControlError (no such channel), PermissionError, and with ``--until-idle`` TransportError.
    """
    try:
        source, dids = _source(options)
        verifier = Verifier(dids)
    except ValueError as error:
        say(f"edge-agent tail: {error}")
        return USAGE
    return anyio.run(_tail, source, verifier, options)


def _source(options: argparse.Namespace) -> tuple[Source, list[str]]:
    if options.source is not None:
        if options.channel is not None:
            raise ValueError("--channel is for a configuration; give SOURCE or --channel, not both")
        source = Source.parse(options.source)
        if not options.did:
            raise ValueError("say whose records are to be accepted: --did did:ethr:...")
        return source, options.did
    config = load(options.config)
    channel = only(config, options.channel)
    if channel.transport != TRANSPORTS["nats"].transport:
        raise ValueError(f"the channel {channel.id} does not go to NATS, and nothing else can be read back yet")
    settings = channel.settings
    dids = options.did or [config.identity.did or _did_of_key(config.identity.key)]
    return Source(settings.servers, settings.stream, channel.topic), dids


def _did_of_key(path: Path) -> str:
    """Raises ValueError: a reader needs no key, so the remedy is not to change the key's owner or mode."""
    try:
        return open_key_file(path).did
    except SignerError as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        raise ValueError(f"whose records are to be accepted? give --did did:ethr:...; {error}") from error


async def _tail(source: Source, verifier: Verifier, options: argparse.Namespace) -> int:
    complete = False
    with anyio.CancelScope() as reading:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
        await _consume(source, verifier, options)
        complete = True
    _print(verifier.finish(complete=complete), as_json=options.jsonl)
    report = verifier.report
    if options.jsonl:
        print(json.dumps({"report": account.as_json(report)}), flush=True)
    else:
        say("\n".join(account.lines(report)))
    return GOOD if report.good else FINDING


async def _consume(source: Source, verifier: Verifier, options: argparse.Namespace) -> None:
    """Read until cancelled; with ``until_idle`` until nothing more is stored, and only if a broker lets us begin."""
    consumer, failed = Consumer(source, only_new=options.new), ""
    settle_at = anyio.current_time() + _SETTLE_EVERY
    while True:
        attached = False
        try:
            async with aclosing(consumer.messages()) as messages:
                async for message in messages:
                    attached, failed = True, ""
                    if message is not None:
                        _print(verifier.feed(message), as_json=options.jsonl)
                    elif options.until_idle:
                        return
                    elif anyio.current_time() >= settle_at:
                        _print(verifier.settle(), as_json=options.jsonl)
                        settle_at = anyio.current_time() + _SETTLE_EVERY
        except TransportError as error:
            if options.until_idle and not attached:
                raise
            if str(error) != failed:
                failed = str(error)
                say(f"{error}; trying again" + (f"; {error.hint}" if error.hint else ""))
        await anyio.sleep(_PAUSE)


def _print(judged: Iterable[Judged], *, as_json: bool) -> None:
    for each in judged:
        if as_json:
            print(json.dumps(objects.as_json(each)), flush=True)
        else:
            print("\n".join(text.text_lines(each)), flush=True)
