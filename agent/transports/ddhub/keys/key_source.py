"""Who gives the keys of participants, behind one interface: an operator's file, an SSI Hub, or the chain.

What a hub or a node said is used for an hour, as client gateways do; what was not found, for a minute. Of many that ask
for one DID one goes and asks. While the source is down what it said last is used for a week, and the log tells; a
participant that nobody has asked for yet is an error then. Everything is in memory: after a start all is asked again.

A file is read again when it changed. A changed file that is wrong leaves the keys of the last good one in force.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
from anyio import to_thread

from agent.errors import Reason, TransportError, Verdict
from agent.evidence.did import DidKey
from agent.ports import Clock, Signer
from agent.transports.ddhub.keys.did_history import Registry
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.network import Network, Participant, participant
from agent.transports.ddhub.keys.participant import ParticipantError, ParticipantKeys, judge_network
from agent.transports.ddhub.keys.participants_file import LARGEST, ParticipantsFileError, parse
from agent.transports.ddhub.keys.rpc import Nodes
from agent.transports.ddhub.keys.ssi_hub import SsiHub

S = 1_000_000_000
TTL = 3600 * S
NEGATIVE_TTL = 60 * S
PAUSE = 30 * S  # after a failure, until the source is asked again for the same participant; or, if it was away, for any
_AWAY = (Reason.UNREACHABLE, Reason.TIMEOUT)  # each look-up would wait for its own time-out
LONGEST_STALE = 7 * 86_400 * S
_MOST = 10_000  # participants that are remembered

log = logging.getLogger(__name__)


class KeySource(Protocol):
    """Knows the keys of participants."""

    async def keys(self, did: str) -> ParticipantKeys:
        """At least one of the two is there.

        Raises ParticipantError if the DID has none, or is none of a participant; TransportError if nobody can be asked.
        """


class RenewedKeySource(KeySource, Protocol):
    """Can be told that what it knows does not fit."""

    async def renewed(self, did: str) -> ParticipantKeys:
        """As ``keys``, but asked anew, if that was not done within the last minute."""


class Resolver(Protocol):
    """Asks once."""

    async def keys(self, who: Participant) -> ParticipantKeys:
        """None of them may be there. Raises TransportError; ParticipantError if the participant is on another chain."""


def open_key_source(
    config: KeySourceConfig, *, signer: Signer, clock: Clock, exchange: Exchange | None = None
) -> RenewedKeySource:
    """The source that a channel names; touches nothing until it is asked. ``signer``: logs in to a hub, and its DID
    says which network it is about.
    """
    if config.file is not None:
        return FileKeys(config.file)
    return CachedKeys(resolver(config, signer=signer, clock=clock, exchange=exchange), clock=clock)


def resolver(config: KeySourceConfig, *, signer: Signer, clock: Clock, exchange: Exchange | None = None) -> Resolver:
    """What asks the hub or the chain each time. Raises ValueError if our DID is none of a participant."""
    network = participant(signer.did).network
    exchange = exchange or Exchange(config.tls)
    if config.rpc is None:
        return SsiHub(config.hub or network.hub, signer=signer, clock=clock, exchange=exchange)
    nodes = Nodes(config.rpc, network=network, exchange=exchange)
    return ChainKeys(
        nodes, Registry(config.registry or network.registry, confirmations=config.confirmations), network, clock
    )


class ChainKeys:
    """The keys as the registry of DIDs has them."""

    def __init__(self, nodes: Nodes, registry: Registry, network: Network, clock: Clock) -> None:
        self._nodes = nodes
        self._registry = registry
        self._network = network
        self._clock = clock

    async def keys(self, who: Participant) -> ParticipantKeys:
        """As ``Resolver`` says."""
        judge_network(who, self._network)
        now = self._clock.wall() / S
        identity = await self._nodes.ask(lambda rpc: self._registry.identity(rpc, who, now=now))
        return identity.keys


# ---- what was said is remembered --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Known:
    """``keys`` None: nothing was ever said. Times are of boot, in ns."""

    keys: ParticipantKeys | None = None
    said_at: int = 0
    asked_at: int = 0
    failure: TransportError | None = None


class CachedKeys:
    """A ``RenewedKeySource`` over something that asks each time."""

    def __init__(self, source: Resolver, *, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._known: dict[DidKey, _Known] = {}
        self._asking: dict[DidKey, anyio.Lock] = {}
        self._is_down = False
        self._away: TransportError | None = None  # why it was not reached, and when (of boot, ns)
        self._away_at = 0

    async def keys(self, did: str) -> ParticipantKeys:
        """Raises ParticipantError, TransportError."""
        return await self._keys(did, self._is_fresh)

    async def renewed(self, did: str) -> ParticipantKeys:
        """Raises ParticipantError, TransportError."""
        return await self._keys(did, lambda known: self._clock.boot() < known.asked_at + NEGATIVE_TTL)

    async def _keys(self, did: str, is_fresh: Callable[[_Known], bool]) -> ParticipantKeys:
        who = named(did)
        key = (who.network.name, who.address)
        lock = self._asking.setdefault(key, anyio.Lock())
        try:
            async with lock:
                known = self._known.get(key)
                if known is None or not is_fresh(known):
                    known = await self._ask(key, who, known or _Known())
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._asking.pop(key, None)
        if known.keys is None:
            assert known.failure is not None
            raise _again(known.failure)
        return known.keys.of(who.did)

    def _is_fresh(self, known: _Known) -> bool:
        now = self._clock.boot()
        if known.failure is not None:
            return now < known.asked_at + PAUSE
        is_there = known.keys is not None and (known.keys.signature or known.keys.encryption)
        return now < known.said_at + (TTL if is_there else NEGATIVE_TTL)

    async def _ask(self, key: DidKey, who: Participant, known: _Known) -> _Known:
        if self._away is not None and self._clock.boot() < self._away_at + PAUSE:
            return self._failed(key, known, self._away)
        try:
            keys = await self._source.keys(who)
        except TransportError as error:
            if error.reason in _AWAY:
                self._away, self._away_at = error, self._clock.boot()
            return self._failed(key, known, error)
        self._away = None
        if self._is_down:
            self._is_down = False
            log.info("keys of participants are renewed again")
        if known.keys is not None and known.keys != keys:
            log.info("a participant changed its keys did=%s", who.did)
        if known.keys is None or known.keys.remarks != keys.remarks:
            for remark in keys.remarks:
                log.warning("keys of a participant need attention did=%s what=%s", who.did, remark)
        now = self._clock.boot()
        return self._remember(key, _Known(keys, said_at=now, asked_at=now))

    def _failed(self, key: DidKey, known: _Known, error: TransportError) -> _Known:
        now = self._clock.boot()
        keys = known.keys if now < known.said_at + LONGEST_STALE else None
        if keys is not None and not self._is_down:
            self._is_down = True
            log.warning(
                "keys of participants cannot be renewed, and the last are used error=%s hint=%s", error, error.hint
            )
        return self._remember(key, _Known(keys, said_at=known.said_at, asked_at=now, failure=error))

    def _remember(self, key: DidKey, known: _Known) -> _Known:
        self._known.pop(key, None)
        self._known[key] = known
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]  # the one that was asked for longest ago
        return known


def named(did: str) -> Participant:
    """The participant that a DID names. Raises ParticipantError."""
    try:
        return participant(did)
    except ValueError as error:
        raise ParticipantError(str(error), hint="correct the DID", verdict=Verdict.REJECT) from None


def _again(error: TransportError) -> TransportError:
    """The same for another who asked: an exception that several tasks raise collects all their ways."""
    return TransportError(str(error), reason=error.reason, hint=error.hint, verdict=error.verdict)


# ---- a file -----------------------------------------------------------------------------------------------------


class FileKeys:
    """A ``RenewedKeySource`` over a file of the operator's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None  # of the file when it was read last
        self._table: Mapping[DidKey, ParticipantKeys] | None = None
        self._wrong: TransportError | None = None
        self._reading = anyio.Lock()

    async def keys(self, did: str) -> ParticipantKeys:
        """Raises ParticipantError, TransportError."""
        who = named(did)
        async with self._reading:
            await self._read()
        if self._table is None:
            assert self._wrong is not None
            raise _again(self._wrong)
        keys = self._table.get((hex(who.network.chain_id), who.address))
        if keys is None:
            raise ParticipantError(f"{who.did} is not in {self._path}", hint="add it there; the file is read again")
        return keys.of(who.did)

    async def renewed(self, did: str) -> ParticipantKeys:
        """The same: a file that changed is read again each time."""
        return await self.keys(did)

    async def _read(self) -> None:
        """Takes up the file if it changed: thousands of keys take seconds, so in a worker thread."""
        try:
            found = self._path.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version == self._version:
                return
            self._version = version
            self._table = await to_thread.run_sync(read_participants, self._path)
            self._wrong = None
        except OSError as error:
            self._version = None
            self._note(TransportError(f"{self._path} cannot be read: {error.strerror}", reason=Reason.SECRET))
        except ParticipantsFileError as error:
            self._note(TransportError(str(error), reason=Reason.SECRET, hint=error.hint))

    def _note(self, error: TransportError) -> None:
        if self._table is not None and str(error) != str(self._wrong):
            log.warning("the file of participants is not taken, and the last good one is used error=%s", error)
        self._wrong = error


def read_participants(path: Path) -> Mapping[DidKey, ParticipantKeys]:
    """The keys in a file; also for who proves a configuration. Raises OSError, ParticipantsFileError."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(27, os.strerror(27), str(path))  # EFBIG
    return parse(content, file=str(path))
