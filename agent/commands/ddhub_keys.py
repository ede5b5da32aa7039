"""``edge-agent ddhub keys``: our two keys, what stands in our DID document, and how to make both agree.

Without an option it changes nothing, but that an RSA key goes which was replaced 25 h ago. ``--send`` and its like make
the RSA key if there is none; ``--rotate`` makes another. A new key is on disk before it is published: a crash in
between leaves a key that is not published yet, which the next call tells.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pwd
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from agent.clock import SystemClock, boot_id
from agent.commands import FINDING, GOOD, UNAVAILABLE, USAGE, say
from agent.commands.ddhub_channel import ddhub_channel, published_keys
from agent.commands.ddhub_participant import OPTIONS, Ourselves, of_channel, of_options
from agent.commands.which_key import secret
from agent.commands.whole_file import replacing
from agent.config import load
from agent.errors import SignerError, TransportError
from agent.ports import Signer
from agent.printable import printable
from agent.transports.ddhub.content.signature import public_key_of
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_folder import KeyFolder, Moment
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig, judge_url, shown
from agent.transports.ddhub.keys.network import Participant, participant
from agent.transports.ddhub.keys.participant import (
    ENCRYPTION_TAG,
    SIGNATURE_TAG,
    TAGS,
    ParticipantKeys,
    Remark,
    short,
)
from agent.transports.ddhub.keys.publication import Publication
from agent.transports.ddhub.keys.publishing import amount, send, terms
from agent.transports.ddhub.keys.rpc import Nodes
from agent.transports.ddhub.keys.rsa_key import OurKey, generate
from agent.transports.ddhub.keys.transactions import Call, Signed, publishing

_NAMES = {SIGNATURE_TAG: "signature key", ENCRYPTION_TAG: "RSA key"}
_TWO_BLOCKS = (
    "send the first, wait until a block holds it, then send the second: of two in one block client gateways never see "
    "the second"
)


@dataclass(frozen=True, slots=True)
class Ours:
    """Our keys as they are to be published, by tag; the RSA key itself, those that it replaced, and where they lie."""

    folder: Path
    texts: Mapping[str, str]
    rsa: OurKey | None
    replaced: Sequence[str]


def main(options: argparse.Namespace) -> int:
    """Raises ConfigError, ControlError, SignerError, TransportError, OSError."""
    logging.getLogger("agent").addHandler(logging.NullHandler())  # what the log of a running agent would say
    try:
        if options.json and "-" in (str(options.unsigned), str(options.signed)):
            raise ValueError("--json and - both want stdout; name a file")
        node = _node(options.rpc)
        ourselves = _ourselves(options)
        settings = ourselves.keys
        if node is not None:
            tls = None if settings.rpc is None else settings.tls  # a hub's authority vouches for no node
            settings = KeySourceConfig(rpc=(node,), registry=settings.registry, tls=tls)
        elif settings.rpc is None and (options.send or options.signed is not None):
            raise ValueError("a node of the chain is needed: --rpc https://NODE, or rpc in keys of the channel")
    except ValueError as error:
        say(f"edge-agent ddhub keys: {error}")
        return USAGE
    writes = options.send or options.signed is not None or options.unsigned is not None
    ours = _ours(ourselves, make=writes, rotate=options.rotate)
    signer = ourselves.signer
    return anyio.run(_Keys(options, settings, signer, participant(signer.did), ours).run)


def _ourselves(options: argparse.Namespace) -> Ourselves:
    """By options, if there are any, else by the configuration. Raises ValueError, ConfigError, ControlError,
    SignerError.
    """
    if any(getattr(options, name) is not None for name in OPTIONS):
        if options.channel is not None:
            raise ValueError("--channel is for a configuration; it says who we are, leave --identity and its like out")
        return of_options(options, any_owner=True)
    config = load(options.config)
    return of_channel(config, ddhub_channel(config, options.channel), any_owner=True)


def _node(text: str | None) -> Any:
    """What ``--rpc`` names. Raises ValueError."""
    if text is None or not text.startswith(("http://", "https://")):
        return secret(text, "--rpc")
    try:
        return judge_url(text)
    except ValueError as error:
        raise ValueError(f"--rpc: {error}") from None


def _ours(ourselves: Ourselves, *, make: bool, rotate: bool) -> Ours:
    """Reads our keys, and makes an RSA key if that was asked for. Raises SignerError, OSError."""
    folder = KeyFolder(ourselves.folder, ourselves.signer, any_owner=True)
    keys = folder.read()
    for error in keys.refused:
        say(f"{error}; {error.hint}")
    newest, old = keys.newest, [each.public for each in keys.keys[1:]]
    if rotate or (make and newest is None):
        _judge_user(ourselves.folder if ourselves.folder.exists() else ourselves.folder.parent)
        say("making an RSA key of 4096 bits, which may take a minute")
        if newest is not None:
            old.insert(0, newest.public)
        newest = folder.add(generate(), made=time.time_ns())
    texts = {SIGNATURE_TAG: public_key_of(ourselves.signer)}
    if newest is not None:
        texts[ENCRYPTION_TAG] = newest.public
    return Ours(ourselves.folder, texts, newest, old)


def _judge_user(state: Path) -> None:
    """Raises SignerError: the agent could not read what we make."""
    if state.exists() and (owner := state.stat().st_uid) != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        hint = f"run it as that user: sudo -u {name} edge-agent ddhub keys ..."
        raise SignerError(f"{state} belongs to {name}, who could not read an RSA key that we make", hint=hint)


class _Keys:
    """One call of the command."""

    def __init__(
        self, options: argparse.Namespace, settings: KeySourceConfig, signer: Signer, who: Participant, ours: Ours
    ) -> None:
        self._options = options
        self._settings = settings
        self._signer = signer
        self._who = who
        self._ours = ours
        self._exchange = Exchange(settings.tls)
        self._error: TransportError | None = None  # why nobody could tell what is published

    async def run(self) -> int:
        """Returns the exit code. Raises TransportError, SignerError, OSError."""
        options = self._options
        found = await self._publication()
        self._settle(found)  # before anything is sent: another key may have stood there until now
        calls = self._calls(found.missing)
        transactions: list[Mapping[str, Any]] = []
        if calls and options.unsigned is not None:
            transactions = [{"publishes": call.tag, "transaction": call.for_wallet()} for call in calls]
            self._write(options.unsigned, transactions)
        elif calls and options.signed is not None:
            transactions = [_signed(each) for each in await self._sign(calls)]
            self._write(options.signed, transactions)
        elif calls and options.send:
            transactions = await self._send(calls)
            found = await self._publication()
            self._settle(found)
        findings = found.findings()
        if self._error is not None:
            findings = [Remark("", str(self._error), self._error.hint or "try again")]
        if options.json:
            print(json.dumps(self._object(found, findings, transactions)))
        else:
            self._print(found, findings)
        if self._error is not None and not transactions:
            return UNAVAILABLE
        return FINDING if findings else GOOD

    # ---- what stands in the document --------------------------------------------------------------------------------

    async def _publication(self) -> Publication:
        """As of now: what is on its way to be final counts, or it would be published a second time."""
        self._error = None
        published: ParticipantKeys | None = None
        try:
            published = await published_keys(self._settings, signer=self._signer, exchange=self._exchange)
        except TransportError as error:
            self._error = error
        return Publication(self._ours.texts, self._ours.replaced, published)

    def _settle(self, found: Publication) -> None:
        """Have the folder know whether the document holds the newest key: from then on its time with the old one
        counts. Raises SignerError.
        """
        agrees, folder = found.agrees(ENCRYPTION_TAG), self._ours.folder
        if agrees is None or not found.replaced:
            return
        now = Moment.now(SystemClock(), boot_id())
        if removed := KeyFolder(folder, self._signer).settle(newest_published=agrees, now=now):
            say(f"{removed} RSA key(s) removed that were replaced more than 25 h ago")

    @property
    def _source(self) -> str:
        settings = self._settings
        if settings.file is not None:
            return str(settings.file)
        if settings.rpc is None:
            return f"SSI Hub {shown(settings.hub or self._who.network.hub)}"
        return f"node {', '.join(shown(each) if isinstance(each, str) else str(each) for each in settings.rpc)}"

    # ---- transactions -----------------------------------------------------------------------------------------------

    def _calls(self, tags: Sequence[str]) -> list[Call]:
        registry = self._settings.registry or self._who.network.registry
        return [publishing(self._who.did, tag, self._ours.texts[tag], registry=registry) for tag in tags]

    def _nodes(self) -> Nodes:
        assert self._settings.rpc is not None
        return Nodes(self._settings.rpc, network=self._who.network, exchange=self._exchange)

    async def _sign(self, calls: Sequence[Call]) -> list[Signed]:
        found = await terms(self._nodes(), calls, network=self._who.network)
        found.judge()
        cost, balance = amount(found.cost, found.network), amount(found.balance, found.network)
        say(f"it costs at most {cost}, and {balance} are there")
        return found.signed(self._signer)

    async def _send(self, calls: Sequence[Call]) -> list[Mapping[str, Any]]:
        sent: list[Mapping[str, Any]] = []
        async for mined in send(self._nodes(), await self._sign(calls)):
            say(f"{mined.signed.call.tag} is published: block {mined.block}, transaction {mined.signed.hash}")
            sent.append(_signed(mined.signed) | {"block": mined.block})
        return sent

    def _write(self, path: Path, transactions: Sequence[Mapping[str, Any]]) -> None:
        said = {"did": self._who.did, "note": _TWO_BLOCKS, "transactions": transactions}
        content = json.dumps(said, indent=2).encode() + b"\n"
        if str(path) == "-":
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return
        with replacing(path) as out:
            out.write(content)
        say(f"{len(transactions)} written to {path}" + (f"; {_TWO_BLOCKS}" if len(transactions) > 1 else ""))

    # ---- shown ------------------------------------------------------------------------------------------------------

    def _print(self, found: Publication, findings: Sequence[Remark]) -> None:
        out = sys.stderr if "-" in (str(self._options.unsigned), str(self._options.signed)) else sys.stdout
        rsa = self._ours.rsa
        made = "" if rsa is None else f", made {datetime.fromtimestamp(rsa.made // 10**9, UTC):%Y-%m-%d %H:%M} UTC"
        print(f"DID            {self._who.did}", file=out)
        print(f"its document   {printable(self._source)}", file=out)
        words = {True: "published", False: "NOT published", None: "unknown"}
        for tag in TAGS:
            mine = self._ours.texts.get(tag)
            ours = "none" if mine is None else short(mine)
            print(f"{_NAMES[tag]:<15}{ours}  {words[found.agrees(tag)]}{made * (tag == ENCRYPTION_TAG)}", file=out)
        for finding in findings:
            print(f"- {printable(str(finding))}", file=out)

    def _object(
        self, found: Publication, findings: Sequence[Remark], transactions: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        keys = {
            tag: {"ours": found.ours.get(tag), "published": found.text(tag), "agrees": found.agrees(tag)}
            for tag in TAGS
        }
        said = [{"key": each.tag, "what": each.what, "remedy": each.remedy} for each in findings]
        shown = {"did": self._who.did, "source": self._source, "keys": keys, "findings": said}
        return shown | ({"transactions": list(transactions)} if transactions else {})


def _signed(signed: Signed) -> dict[str, Any]:
    return {"publishes": signed.call.tag, "nonce": signed.nonce, "hash": signed.hash, "raw": f"0x{signed.raw.hex()}"}
