"""All that the registry of DIDs logged about one identity, as a node of the chain tells it.

Asked for at once; where the node limits how far one question may reach, or left something out, block by block along the
list of changes. Either way the list proves that nothing is missing, and the owner is held against the contract's own.
The youngest blocks do not count yet: a fork may replace them. Nothing is kept.

Whoever owns an identity decides how long its log is. What would take too long, or more memory than an answer may, is an
error of that identity.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from agent.errors import Reason, TransportError
from agent.transports.ddhub.keys.network import Participant
from agent.transports.ddhub.keys.registry import AttributeChanged, Event, Identity, decode, gap, identity_at
from agent.transports.ddhub.keys.rpc import Rpc, RpcError

CHANGED = bytes.fromhex("f96d0f9f")  # changed(address)
IDENTITY_OWNER = bytes.fromhex("8733d4e8")  # identityOwner(address)
_MOST_BLOCKS = 1000  # with changes of one identity
_LARGEST = 8 << 20  # bytes of one identity's values, each of which counts for at least so many:
_LEAST = 200
_WITHIN = 120.0  # s for all that is asked about one identity
_AGAIN = 3600  # s until a node that could not is asked at once again: it may be another now, or have been out of breath


class Registry:
    """A contract (``address``); ``confirmations``: how many blocks must stand on an entry until it counts."""

    def __init__(self, address: str, *, confirmations: int) -> None:
        self.address = address
        self.confirmations = confirmations
        self._at_once_from = 0.0  # s since 1970

    async def identity(self, rpc: Rpc, who: Participant, *, now: float) -> Identity:
        """What the registry says of a participant; ``now``: s since 1970. Raises TransportError, RpcError."""
        try:
            with anyio.fail_after(_WITHIN):
                return await self._identity(rpc, who, now)
        except TimeoutError:
            what = f"{rpc.peer}: all changes of {who.did} cannot be had in {_WITHIN:.0f} s"
            hint = "name a node that tells them at once (eth_getLogs from the first block on)"
            raise TransportError(what, reason=Reason.TIMEOUT, hint=hint) from None

    async def _identity(self, rpc: Rpc, who: Participant, now: float) -> Identity:
        head = await rpc.number("eth_blockNumber")
        if await _catches_up(rpc):  # what it knows is old, or nothing at all
            what = f"{rpc.peer} is still catching up with the chain, at block {head}"
            raise TransportError(what, reason=Reason.OTHER, hint="wait, or name another node")
        block = max(0, head - self.confirmations)
        argument = who.address.rjust(32, b"\0")
        newest = int.from_bytes(await rpc.read(self.address, CHANGED + argument, block=block))
        owner = (await rpc.read(self.address, IDENTITY_OWNER + argument, block=block))[12:]
        events = await self._events(rpc, who, newest, now) if newest else []
        identity = identity_at(events, address=who.address, now=now)
        if identity.owner_by_contract != owner:
            raise rpc.nonsense(f"its log and the registry's contract name two owners of {who.did}")
        return identity

    async def _events(self, rpc: Rpc, who: Participant, newest: int, now: float) -> Iterable[Event]:
        history = _History(who.did)
        if now >= self._at_once_from:
            try:
                there = await self._logs(rpc, who, 0, newest)
            except TransportError:  # that the range is too large each node says in its own words, or not at all
                self._at_once_from = now + _AGAIN
            else:
                history.add(there)
        for _ in range(_MOST_BLOCKS):
            try:
                block = gap(history.firsts.values(), newest=newest)
            except ValueError as error:
                raise rpc.nonsense(str(error)) from None
            if block is None:
                return history.events.values()
            there = await self._logs(rpc, who, block, block)
            if not there:
                raise rpc.nonsense(f"it has no log of block {block}, in which the registry changed; it keeps too few")
            history.add(there)
        raise TransportError(f"{who.did} changed in more than {_MOST_BLOCKS} blocks", hint="name a node that tells all")

    async def _logs(self, rpc: Rpc, who: Participant, first: int, last: int) -> list[Event]:
        asked = {
            "address": self.address,
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "topics": [None, f"0x{who.address.hex():0>64}"],
        }
        logs = await rpc.call("eth_getLogs", asked)
        if not isinstance(logs, list):
            raise rpc.nonsense("its log is no list")
        try:
            events = [decode(log, registry=self.address, address=who.address) for log in logs]
        except ValueError as error:
            raise rpc.nonsense(str(error)) from None
        found = [event for event in events if event is not None]
        if any(not first <= event.block <= last for event in found):
            raise rpc.nonsense("it tells of blocks that were not asked for")
        return found


async def _catches_up(rpc: Rpc) -> bool:
    """Whether a node says that it is behind (``eth_syncing``); some public ones say nothing. Raises TransportError."""
    try:
        return isinstance(await rpc.call("eth_syncing"), dict)
    except RpcError:
        return False


class _History:
    """What was found of an identity so far: each entry once, and the first of each block."""

    def __init__(self, did: str) -> None:
        self.events: dict[tuple[int, int], Event] = {}
        self.firsts: dict[int, Event] = {}
        self._did = did
        self._size = 0

    def add(self, events: Iterable[Event]) -> None:
        """Raises TransportError: it is too large."""
        for event in events:
            if event.place in self.events:
                continue
            self.events[event.place] = event
            first = self.firsts.setdefault(event.block, event)
            if event.index < first.index:
                self.firsts[event.block] = event
            self._size += _LEAST + (len(event.value) if isinstance(event, AttributeChanged) else 0)
        if self._size > _LARGEST:
            what = f"{self._did} has published more than {_LARGEST >> 20} MiB in the registry"
            raise TransportError(what, reason=Reason.TOO_LARGE, hint="no participant needs so much: is the DID right?")
