"""``edge-agent tail`` of a Data Hub (docs/consuming.md).

What a message brought is printed, then kept in the checkpoint of the verifier, then acknowledged: a crash prints again
and loses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from pydantic import ValidationError

from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.accepting import Checkpoint, accepted, begun
from agent.commands.ddhub_channel import rsa_folder
from agent.commands.printing import Printer, printer
from agent.commands.which_key import place, secret, together
from agent.config import Channel, Config
from agent.errors import EvidenceError, TransportError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head
from agent.model import Link
from agent.ports import Signer as Key
from agent.signer import DEFAULT_NETWORK, open_signer
from agent.transports.ddhub.consumer import Consumer
from agent.transports.ddhub.delivery import Delivery
from agent.transports.ddhub.key_source_config import KeySourceConfig
from agent.transports.ddhub.network import canonical, participant
from agent.transports.ddhub.records import Agreement, agreement
from agent.transports.ddhub.source import Source, receiving
from agent.verifier import Judged, Signer, Verifier

_DIFFER = "its readable values are not those of its signed records, which count; tell the sender"
_PAUSES = (1.0, 30.0)  # s between tries to go on: the first, the longest
_EVERY = 10.0  # s between searches that find nothing
_EVERY_UNTIL_IDLE = 0.5


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is read, as whom, and where it is remembered."""

    source: Source
    key: Key
    senders: Sequence[str]
    folder: Path

    @property
    def name(self) -> str:
        """For the checkpoint, which belongs to it whoever the senders are."""
        return f"ddhub {self.source.topic} for {self.key.did}"


def main(options: argparse.Namespace, found: tuple[Config, Channel] | None) -> int:
    """As ``agent.commands.tail.main``. ``found``: the channel of a configuration. Raises SignerError, MailboxError,
    CheckpointError.
    """
    try:
        accept = accepted(options)
        senders = _senders(options.sender or [each if isinstance(each, str) else each.did for each in accept])
        if not accept:
            raise ValueError("say whose records are to be accepted: --did did:ethr:..., or --allow FILE")
        wanted = _of_source(options, senders) if found is None else _of_channel(options, senders, *found)
        if options.checkpoint is None:
            topic = wanted.source.topic
            options.checkpoint = wanted.folder / f"tail.{topic.owner}.{topic.name}.checkpoint"
    except ValueError as error:
        say(f"edge-agent tail: {error}")
        return USAGE
    return anyio.run(_Tail(wanted, accept, options).run)


def _senders(dids: Iterable[str]) -> list[str]:
    """As the broker writes them. Raises ValueError."""
    try:
        return [canonical(each) for each in dids]
    except ValueError as error:
        raise ValueError(f"{error}; name the participants that send with --sender") from None


def _of_channel(options: argparse.Namespace, senders: Sequence[str], config: Config, channel: Channel) -> _Wanted:
    identity = config.identity
    key = open_signer(identity.key, passphrase=identity.passphrase, did=identity.did)
    return _Wanted(Source.of(channel.settings), _judged(key), senders, options.state or rsa_folder(config))


def _of_source(options: argparse.Namespace, senders: Sequence[str]) -> _Wanted:
    if options.identity is None:
        raise ValueError("say who we are: --identity file:PATH, keystore:FILE or credential:NAME")
    if options.state is None:
        raise ValueError("say where our RSA keys are and what came is remembered: --state FOLDER")
    source = Source.parse(options.source, keys=_keys(options.keys), tls=_tls(options))
    custody, passphrase = place(options.identity, "--identity"), secret(options.passphrase, "--passphrase")
    together(custody, passphrase, "--passphrase")
    key = open_signer(custody, passphrase=passphrase, network=options.network or DEFAULT_NETWORK)
    return _Wanted(source, _judged(key), senders, options.state)


def _judged(key: Key) -> Key:
    """Raises ValueError: a Data Hub does not know our network."""
    participant(key.did)
    return key


def _tls(options: argparse.Namespace) -> dict[str, Any]:
    tls: dict[str, Any] = {key: path for key in ("ca", "cert") if (path := getattr(options, key)) is not None}
    return tls if options.key is None else {**tls, "key": {"file": options.key}}


def _keys(text: str | None) -> KeySourceConfig:
    """Where ``--keys`` says that the senders' keys come from. Raises ValueError, which repeats no address: it may hold
    a key.
    """
    if text is None:
        return KeySourceConfig()
    kind, _, where = text.partition(":")
    if kind not in ("file", "hub", "rpc") or not where:
        raise ValueError("--keys: write file:PATH, hub:URL, rpc:URL, or rpc:file:PATH with the URL in a file")
    value: Any = where
    if kind == "rpc" and not where.startswith(("http://", "https://")):
        value = secret(where, "--keys rpc")
    try:
        return KeySourceConfig.model_validate({kind: value})
    except ValidationError as error:
        words = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"--keys: {words}") from None


class _Tail:
    """Reads, judges, prints, keeps, acknowledges."""

    def __init__(self, wanted: _Wanted, accept: list[Signer | str], options: argparse.Namespace) -> None:
        self._wanted = wanted
        self._accept = accept
        self._options = options
        self._verifier = Verifier(accept)
        self._printer: Printer = printer(options, lasting=True)
        self._began = False
        self._failed = ""

    async def run(self) -> int:
        """Until a signal, or nothing more is to be expected; returns the exit code."""
        complete = False
        wanted, every = self._wanted, _EVERY_UNTIL_IDLE if self._options.until_idle else _EVERY
        with anyio.CancelScope() as reading:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
            async with receiving(
                wanted.source,
                signer=wanted.key,
                senders=wanted.senders,
                folder=wanted.folder,
                clock=SystemClock(),
                every=every,
            ) as consumer:
                # With the mailbox the checkpoint is ours: only now nobody else writes it.
                self._verifier, _ = begun(self._options, self._accept, wanted.name)
                try:
                    await self._consume(consumer)
                    complete = True
                finally:
                    self._tell(consumer)
        self._verifier.finish(complete=complete, now=time.time_ns())  # what waited is printed by the next call
        self._printer.end(self._verifier.report)
        return GOOD if self._verifier.report.good else FINDING

    async def _consume(self, consumer: Consumer) -> None:
        """Read until cancelled; with ``--until-idle`` until nothing more is to be expected, if the hub lets us in."""
        pause = _PAUSES[0]
        while True:
            try:
                async with aclosing(consumer.batches()) as batches:
                    async for batch in batches:
                        if not self._began:
                            self._began = True
                            await self._old_ids(consumer)
                        self._failed, pause = "", _PAUSES[0]
                        await self._take(consumer, batch)
                        if consumer.settled:
                            if self._options.until_idle:
                                return
                            self._settle()
            except TransportError as error:
                if self._options.until_idle and not self._began:
                    raise
                if str(error) != self._failed:
                    self._failed = str(error)
                    say(f"{error}; trying again" + (f"; {error.hint}" if error.hint else ""))
            await anyio.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])

    async def _take(self, consumer: Consumer, batch: Sequence[Delivery]) -> None:
        if not batch:
            return
        for delivery in batch:
            judged = [each for envelope in delivery.envelopes for each in self._verifier.feed(envelope)]
            self._printer.records(judged)
            self._compare(delivery, judged)
        self._save()
        await consumer.acknowledge(batch)

    def _settle(self) -> None:
        """Nothing earlier is on its way."""
        if judged := self._verifier.settle():
            self._printer.records(judged)
            self._save()

    def _compare(self, delivery: Delivery, judged: Sequence[Judged]) -> None:
        """Tell if the readable copy of the records says something else; what is not judged yet is not compared."""
        ours = [each for each in judged if each.head is not None and each.head.link in _links(delivery)]
        records = delivery.payload.records
        if records is None or len(ours) < len(delivery.envelopes):
            return
        if agreement(records, ours) is Agreement.DIFFER:
            say(f"message {delivery.id} of {delivery.sender}: {_DIFFER}")

    def _save(self) -> None:
        """What was printed is behind the checkpoint. Raises OSError."""
        Checkpoint(self._wanted.name, None, self._verifier.save()).write(self._options.checkpoint)

    async def _old_ids(self, consumer: Consumer) -> None:
        try:
            old = await consumer.old_client_ids()
            if old and self._options.remove_old_ids:
                say(f"the broker has forgotten {len(await consumer.remove_client_ids(old))} client ids")
            elif old:
                say(f"{len(old)} client ids of other senders or topics are left at the broker: --remove-old-ids")
        except TransportError as error:
            say(f"client ids of other senders or topics are not known: {error}")

    def _tell(self, consumer: Consumer) -> None:
        counts = {name: count for name, count in consumer.counts.items() if count and name != "repeated"}
        if counts.keys() - {"delivered"}:
            words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(counts.items()))
            say(f"messages: {words}")


def _links(delivery: Delivery) -> set[Link]:
    found = set()
    for envelope in delivery.envelopes:
        try:
            found.add(decode_head(unpack(envelope).payload).link)
        except EvidenceError:
            continue
    return found
