"""All that the registry of DIDs logged about one identity, as a node of the chain tells it.

Asked for at once; where the node limits how far one question may reach, or left something out, block by block along the
list of changes. Either way the list proves that nothing is missing, and the owner is held against the contract's own.
The youngest blocks do not count yet: a fork may replace them. Nothing is kept.
"""

from __future__ import annotations

from agent.errors import TransportError
from agent.transports.ddhub.keys.network import Participant
from agent.transports.ddhub.keys.registry import Event, Identity, decode, gap, identity_at
from agent.transports.ddhub.keys.rpc import Rpc

CHANGED = bytes.fromhex("f96d0f9f")  # changed(address)
IDENTITY_OWNER = bytes.fromhex("8733d4e8")  # identityOwner(address)
_MOST_BLOCKS = 1000  # with changes of one identity


class Registry:
    """A contract (``address``); ``confirmations``: how many blocks must stand on an entry until it counts."""

    def __init__(self, address: str, *, confirmations: int) -> None:
        self.address = address
        self.confirmations = confirmations
        self._at_once = True  # until a node could not

    async def identity(self, rpc: Rpc, who: Participant, *, now: float) -> Identity:
        """What the registry says of a participant; ``now``: s since 1970. Raises TransportError, RpcError."""
        block = max(0, await rpc.number("eth_blockNumber") - self.confirmations)
        argument = who.address.rjust(32, b"\0")
        newest = int.from_bytes(await rpc.read(self.address, CHANGED + argument, block=block))
        owner = (await rpc.read(self.address, IDENTITY_OWNER + argument, block=block))[12:]
        events = await self._events(rpc, who, newest) if newest else []
        identity = identity_at(events, address=who.address, now=now)
        if identity.owner_by_contract != owner:
            raise rpc.nonsense(f"its log and the registry's contract name two owners of {who.did}")
        return identity

    async def _events(self, rpc: Rpc, who: Participant, newest: int) -> list[Event]:
        found: set[Event] = set()
        if self._at_once:
            try:
                found.update(await self._logs(rpc, who, 0, newest))
            except TransportError:  # that the range is too large each node says in its own words, or not at all
                self._at_once = False
        for _ in range(_MOST_BLOCKS):
            try:
                block = gap(found, newest=newest)
            except ValueError as error:
                raise rpc.nonsense(str(error)) from None
            if block is None:
                return list(found)
            there = await self._logs(rpc, who, block, block)
            if not there:
                raise rpc.nonsense(f"it has no log of block {block}, in which the registry changed; it keeps too few")
            found.update(there)
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
