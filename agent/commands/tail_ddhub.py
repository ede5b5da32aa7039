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
from dataclasses import dataclass, replace
from typing import Any

import anyio

from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.accepting import Checkpoint, accepted, begun
from agent.commands.ddhub_participant import Ourselves, of_channel, of_options
from agent.commands.printing import Printer, printer
from agent.config import Channel, Config
from agent.errors import EvidenceError, TransportError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head
from agent.model import Link
from agent.printable import printable
from agent.transports.ddhub.content.records import Agreement, agreement
from agent.transports.ddhub.keys.network import canonical
from agent.transports.ddhub.receiving.consumer import Consumer
from agent.transports.ddhub.receiving.delivery import Delivery
from agent.transports.ddhub.receiving.source import Source, receiving
from agent.units import duration_ns
from agent.verifier import Judged, Signer, Verifier

_DIFFER = "its readable values are not those of its signed records, which count; tell the sender"
_PAUSES = (1.0, 30.0)  # s between tries to go on: the first, the longest
_EVERY = 10.0  # s between searches that find nothing
_EVERY_UNTIL_IDLE = 0.5  # the least that may be asked for


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is read, as whom, and from whom."""

    source: Source
    ours: Ourselves
    senders: Sequence[str]

    @property
    def name(self) -> str:
        """For the checkpoint, which belongs to it whoever the senders are."""
        return f"ddhub {self.source.topic} for {self.ours.signer.did}"


def main(options: argparse.Namespace, found: tuple[Config, Channel] | None) -> int:
    """As ``agent.commands.tail.main``. ``found``: the channel of a configuration. Raises SignerError, MailboxError,
    CheckpointError.
    """
    try:
        accept, every = accepted(options), _duration(options.every)
        senders = _senders(options.sender or [each if isinstance(each, str) else each.did for each in accept])
        if not accept:
            raise ValueError("say whose records are to be accepted: --did did:ethr:..., or --allow FILE")
        if found is None:
            source = Source.parse(options.source, tls=_tls(options))
            ours = of_options(options)
            source = replace(source, keys=ours.keys)
        else:
            source, ours = Source.of(found[1].settings), of_channel(*found, state=options.state)
        if options.checkpoint is None:
            options.checkpoint = ours.folder / f"tail.{source.topic.in_file_names}.checkpoint"
        tail = _Tail(_Wanted(source, ours, senders), accept, options, every=every)
    except ValueError as error:
        say(f"edge-agent tail: {error}")
        return USAGE
    return anyio.run(tail.run)


def _duration(text: str | None) -> float:
    """Seconds. Raises ValueError."""
    found = _EVERY if text is None else duration_ns(text) / 1e9
    if found < _EVERY_UNTIL_IDLE:
        raise ValueError("--every is too short; give 500ms or more")
    return found


def _senders(dids: Iterable[str]) -> list[str]:
    """As the broker writes them. Raises ValueError."""
    try:
        return [canonical(each) for each in dids]
    except ValueError as error:
        raise ValueError(f"{error}; name the participants that send with --sender") from None


def _tls(options: argparse.Namespace) -> dict[str, Any]:
    tls: dict[str, Any] = {key: path for key in ("ca", "cert") if (path := getattr(options, key)) is not None}
    return tls if options.key is None else {**tls, "key": {"file": options.key}}


class _Tail:
    """Reads, judges, prints, keeps, acknowledges."""

    def __init__(
        self, wanted: _Wanted, accept: list[Signer | str], options: argparse.Namespace, *, every: float
    ) -> None:
        self._wanted = wanted
        self._accept = accept
        self._options = options
        self._every = every
        self._verifier = Verifier(accept)
        self._printer: Printer = printer(options, lasting=True)
        self._began = False
        self._failed = ""
        self._unopened = 0  # messages that came and are not among what was judged

    async def run(self) -> int:
        """Until a signal, or nothing more is to be expected; returns the exit code."""
        complete = False
        wanted, every = self._wanted, _EVERY_UNTIL_IDLE if self._options.until_idle else self._every
        with anyio.CancelScope() as reading:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
            async with receiving(
                wanted.source,
                signer=wanted.ours.signer,
                senders=wanted.senders,
                folder=wanted.ours.folder,
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
        return GOOD if self._verifier.report.good and not self._unopened else FINDING

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
        """Nothing is on its way: what waits for an earlier record, which may have expired, waits no longer."""
        if judged := self._verifier.settle(behind_holes=True):
            self._printer.records(judged)
            self._save()

    def _compare(self, delivery: Delivery, judged: Sequence[Judged]) -> None:
        """Tell if the readable copy of the records says something else; what is not judged yet is not compared."""
        ours = [each for each in judged if each.head is not None and each.head.link in _links(delivery)]
        records = delivery.payload.records
        if records is None or len(ours) < len(delivery.envelopes):
            return
        if agreement(records, ours) is Agreement.DIFFER:
            say(f"message {printable(delivery.id)} of {delivery.sender}: {_DIFFER}")

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
        waiting, counts = consumer.waiting, +consumer.counts
        self._unopened = waiting + counts["refused"] + counts["given_up"]
        del counts["repeated"]
        if counts.keys() - {"delivered"}:
            words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(counts.items()))
            say(f"messages: {words}")
        if waiting:
            say(f"{waiting} messages wait to be opened; the next call tries them again")


def _links(delivery: Delivery) -> set[Link]:
    found = set()
    for envelope in delivery.envelopes:
        try:
            found.add(decode_head(unpack(envelope).payload).link)
        except EvidenceError:
            continue
    return found
