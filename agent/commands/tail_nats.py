"""``edge-agent tail`` of a NATS server (docs/consuming.md)."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any

import anyio

from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.accepting import Checkpoint, accepted, begun
from agent.commands.printing import Printer, printer
from agent.commands.which_key import secret
from agent.config import Channel, Config
from agent.errors import CheckpointError, SignerError, TransportError
from agent.signer import open_signer
from agent.transports.nats.consumer import Consumer, Source
from agent.transports.nats.durable import DurableConsumer, judge_name
from agent.verifier import Signer, Verifier

_SETTLE_EVERY = 6.0  # s; longer than a publisher takes to send again what is missing at the beginning of a stream
_PAUSE = 1.0  # s between tries to connect
_SAVE_EVERY = 5.0  # s between checkpoints


def main(options: argparse.Namespace, found: tuple[Config, Channel] | None) -> int:
    """As ``agent.commands.tail.main``. ``found``: the channel of a configuration."""
    with ExitStack() as stack:
        try:
            source, accept = _source(options, found)
            if options.durable is not None:
                stack.enter_context(_alone(options))
            verifier, place = begun(options, accept, source.subject)
        except ValueError as error:
            say(f"edge-agent tail: {error}")
            return USAGE
        return anyio.run(_Tail(source, place, verifier, options).run)
    raise AssertionError


@contextmanager
def _alone(options: argparse.Namespace) -> Iterator[None]:
    """The only process here that goes on with this checkpoint. Raises ValueError, OSError."""
    if options.checkpoint is None:
        raise ValueError(
            "--durable needs --checkpoint FILE: the server remembers which records came, the file what they proved; "
            "one without the other would report what was read before as missing"
        )
    judge_name(options.durable)
    with options.checkpoint.with_name(f"{options.checkpoint.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{options.checkpoint} is in use by another process: two would get a part of the records each and find "
                "the rest missing; share the subjects out (docs/consuming.md), each with its own --durable and "
                "--checkpoint"
            ) from None
        yield


def _source(options: argparse.Namespace, found: tuple[Config, Channel] | None) -> tuple[Source, list[Signer | str]]:
    accept = accepted(options)
    if found is None:
        source = Source.parse(options.source, **_login(options))
        if not accept:
            raise ValueError("say whose records are to be accepted: --did did:ethr:..., or --allow FILE")
        return source, accept
    if _login(options):
        raise ValueError("with --config the channel says how to log in and whom to trust; leave these options out")
    config, channel = found
    accept = accept or [config.identity.did or _did_of_key(config)]
    return Source(channel.settings, channel.settings.stream, channel.topic), accept


def _login(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the login and TLS, as keys of a channel. Raises ValueError."""
    files = {"nkey": options.nkey, "creds": options.creds}
    login: dict[str, Any] = {key: {"file": path} for key, path in files.items() if path is not None}
    if options.user is not None:
        login["username"] = options.user
    if options.password is not None:
        login["password"] = secret(options.password, "--password")
    if options.token is not None:
        login["token"] = secret(options.token, "--token")
    tls: dict[str, Any] = {key: path for key in ("ca", "cert") if (path := getattr(options, key)) is not None}
    if options.key is not None:
        tls["key"] = {"file": options.key}
    if options.tls_first:
        tls["first"] = True
    return login | ({"tls": tls} if tls else {})


def _did_of_key(config: Config) -> str:
    """Raises ValueError: a reader needs no key, so the remedy is not to change the key's owner or mode."""
    try:
        return open_signer(config.identity.key, passphrase=config.identity.passphrase, any_owner=True).did
    except SignerError as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        raise ValueError(f"whose records are to be accepted? give --did did:ethr:...; {error}") from error


class _Tail:
    """Reads, judges and prints, and keeps how far it came."""

    def __init__(
        self, source: Source, place: Sequence[int] | None, verifier: Verifier, options: argparse.Namespace
    ) -> None:
        self._consumer: Consumer
        if options.durable is None:
            self._consumer = Consumer(source, only_new=options.new, place=place)
        else:
            self._consumer = DurableConsumer(
                source,
                name=options.durable,
                owner=place[2] if place and len(place) > 2 else secrets.randbits(63),
                keep=self._save,
                only_new=options.new,
                place=place,
            )
        self._source = source.subject
        self._verifier = verifier
        self._options = options
        self._printer: Printer = printer(options, lasting=True)
        self._saved_at = -_SAVE_EVERY

    async def run(self) -> int:
        """Until a signal, or nothing more is stored; returns the exit code."""
        complete = False
        with anyio.CancelScope() as reading:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
            await self._consume()
            complete = True
        self._save()
        waited = self._verifier.finish(complete=complete, now=time.time_ns())
        if self._options.checkpoint is None:  # else the next call prints them, in their turn
            self._printer.records(waited)
        self._printer.end(self._verifier.report)
        return GOOD if self._verifier.report.good else FINDING

    async def _consume(self) -> None:
        """Read until cancelled; with ``--until-idle`` until nothing more is stored, if a broker lets us begin."""
        failed, settle_at = "", anyio.current_time() + _SETTLE_EVERY
        while True:
            attached = False
            try:
                async with aclosing(self._consumer.messages()) as messages:
                    async for message in messages:
                        attached, failed = True, ""
                        if message is not None:
                            self._printer.records(self._verifier.feed(message))
                        elif self._options.until_idle:
                            return
                        elif anyio.current_time() >= settle_at:
                            self._printer.records(self._verifier.settle())
                            settle_at = anyio.current_time() + _SETTLE_EVERY
                        due = anyio.current_time() >= self._saved_at + _SAVE_EVERY
                        if due and self._options.durable is None:  # which says itself when
                            self._save()
            except TransportError as error:
                if self._options.until_idle and not attached:
                    raise
                if str(error) != failed:
                    failed = str(error)
                    say(f"{error}; trying again" + (f"; {error.hint}" if error.hint else ""))
            await anyio.sleep(_PAUSE)

    def _save(self) -> None:
        """What was printed is behind the checkpoint; a crash prints again what came since. Raises CheckpointError."""
        self._saved_at = anyio.current_time()
        if self._options.checkpoint is None:
            return
        try:
            Checkpoint(self._source, self._consumer.place, self._verifier.save()).write(self._options.checkpoint)
        except OSError as error:
            if self._options.durable is None:
                raise
            what = f"cannot write {error.filename or self._options.checkpoint}: {error.strerror}"
            hint = "what came since the last time was not acknowledged and comes again"
            raise CheckpointError(what, hint=hint) from error
