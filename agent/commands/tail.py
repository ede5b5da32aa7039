"""``edge-agent tail``: consume a channel from the broker, verify every record, print it, and account for all at the
end.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterable

import anyio

from agent import render
from agent.commands import FINDING, GOOD, USAGE, say
from agent.config import load
from agent.errors import TransportError
from agent.signer import open_key_file
from agent.transports.nats_consumer import Consumer, Source
from agent.verify import Judged, Verifier

_SETTLED = 3  # times in a row that nothing more was stored: nothing earlier is on its way
_PAUSE = 1.0  # s between tries to connect


def main(options: argparse.Namespace) -> int:
    """Ends on SIGTERM or SIGINT, with the report on stderr (text) or as last line (JSON Lines). Raises ConfigError."""
    try:
        source, dids = _source(options)
        verifier = Verifier(dids)
    except ValueError as error:
        say(f"edge-agent tail: {error}")
        return USAGE
    return anyio.run(_tail, source, verifier, options)


def _source(options: argparse.Namespace) -> tuple[Source, list[str]]:
    if options.source is not None:
        if not options.did:
            raise ValueError("say whose records are to be accepted: --did did:ethr:...")
        return Source.parse(options.source), options.did
    config = load(options.config)
    settings = config.channel.settings
    dids = options.did or [config.identity.did or open_key_file(config.identity.key).did]
    return Source(settings.servers[0], settings.stream, config.channel.topic), dids


async def _tail(source: Source, verifier: Verifier, options: argparse.Namespace) -> int:
    ended = False
    async with anyio.create_task_group() as tasks:

        async def stop() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    return

        tasks.start_soon(stop)
        await _consume(source, verifier, options)
        ended = True
        tasks.cancel_scope.cancel()
    _print(verifier.finish(complete=ended), as_json=options.jsonl)
    report = verifier.report
    if options.jsonl:
        print(json.dumps({"report": report.as_json()}), flush=True)
    else:
        say("\n".join(report.lines()))
    return GOOD if report.good else FINDING


async def _consume(source: Source, verifier: Verifier, options: argparse.Namespace) -> None:
    """Read until cancelled; with ``until_idle`` until nothing more is stored."""
    consumer, failed = Consumer(source, only_new=options.new), ""
    while True:
        idle = 0
        try:
            async for message in consumer.messages():
                failed = ""
                if message is not None:
                    idle = 0
                    _print(verifier.feed(message), as_json=options.jsonl)
                    continue
                idle += 1
                if idle == _SETTLED:
                    _print(verifier.settle(), as_json=options.jsonl)
                    if options.until_idle:
                        return
        except TransportError as error:
            if str(error) != failed:
                failed = str(error)
                say(f"{error}; trying again")
        await anyio.sleep(_PAUSE)


def _print(judged: Iterable[Judged], *, as_json: bool) -> None:
    for each in judged:
        if as_json:
            print(json.dumps(render.as_json(each)), flush=True)
        else:
            print("\n".join(render.text_lines(each)), flush=True)
