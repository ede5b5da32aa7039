"""Publishes keys on the chain: asks a node what it takes, signs, sends one transaction, waits for its block, then the
next, so that no two are in one block.

A crash, or a node that does not answer, leaves a transaction sent or not; the next call sees by the registry what is
published already, and refuses to begin while one of ours is under way. Spends at most ``MOST`` in all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import anyio

from agent.errors import Reason, TransportError, Verdict
from agent.evidence.keccak import checksum_address
from agent.ports import Signer
from agent.transports.ddhub.keys.did_history import IDENTITY_OWNER
from agent.transports.ddhub.keys.network import Network
from agent.transports.ddhub.keys.registry import quantity
from agent.transports.ddhub.keys.rpc import Nodes, Rpc
from agent.transports.ddhub.keys.transactions import Call, Signed

MOST = 10**18  # wei: one EWT. Both keys cost a small part of it, unless a node names an absurd price
_EVERY = 2.0  # s between two looks for the block
_WITHIN = 300.0  # s until a block must hold the transaction


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a node takes our calls. ``nonce``: of the first; ``gas_price`` and ``balance`` in wei."""

    calls: tuple[Call, ...]
    nonce: int
    gas_price: int
    balance: int
    network: Network

    @property
    def cost(self) -> int:
        """Wei that the sender must have."""
        return sum(call.gas for call in self.calls) * self.gas_price

    def judge(self) -> None:
        """Raises TransportError (FATAL) if they cannot be met."""
        sender = checksum_address(self.calls[0].sender)
        if self.cost > MOST:
            what = f"it would cost {amount(self.cost, self.network)}, at {self.gas_price} wei for each unit of gas"
            raise TransportError(what, hint="ask another node, or send the unsigned ones", verdict=Verdict.FATAL)
        if self.balance < self.cost:
            missing = amount(self.cost - self.balance, self.network)
            what = (
                f"{sender} has {amount(self.balance, self.network)}, and {amount(self.cost, self.network)} are needed"
            )
            raise TransportError(what, hint=f"send it {missing} on {self.network.name}", verdict=Verdict.FATAL)

    def signed(self, signer: Signer) -> list[Signed]:
        """The transactions in their order. Raises SignerError."""
        return [
            call.signed(signer, nonce=self.nonce + place, gas_price=self.gas_price)
            for place, call in enumerate(self.calls)
        ]


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction that a block holds."""

    signed: Signed
    block: int


async def terms(nodes: Nodes, calls: Sequence[Call], *, network: Network) -> Terms:
    """What a node says now. Raises TransportError, FATAL if the registry would refuse."""
    return await nodes.ask(lambda rpc: _terms(rpc, calls, network))


async def _terms(rpc: Rpc, calls: Sequence[Call], network: Network) -> Terms:
    sender, contract = f"0x{calls[0].sender.hex()}", f"0x{calls[0].registry.hex()}"
    head = await rpc.number("eth_blockNumber")
    asked = IDENTITY_OWNER + calls[0].sender.rjust(32, b"\0")
    owner = (await rpc.read(contract, asked, block=head))[12:]
    if owner != calls[0].sender:
        what = f"the DID belongs to {checksum_address(owner)} now, and only that address can publish keys"
        hint = "use a DID of its own for this device, or have its owner publish them"
        raise TransportError(what, hint=hint, verdict=Verdict.FATAL)
    nonce = await rpc.number("eth_getTransactionCount", sender, "latest")
    if await rpc.number("eth_getTransactionCount", sender, "pending") > nonce:
        what = f"a transaction of {checksum_address(calls[0].sender)} is under way"
        raise TransportError(what, hint="call again once a block holds it, mostly within a minute")
    price = await rpc.number("eth_gasPrice")
    balance = await rpc.number("eth_getBalance", sender, "latest")
    priced = []
    for call in calls:
        asked_gas = {"from": sender, "to": contract, "data": f"0x{call.data.hex()}", "value": "0x0"}
        gas = await rpc.number("eth_estimateGas", asked_gas) if balance else call.gas  # many refuse the poor
        priced.append(replace(call, gas=gas * 6 // 5 if balance else gas))
    return Terms(tuple(priced), nonce, max(1, price * 5 // 4), balance, network)  # the price may rise until then


async def send(nodes: Nodes, transactions: Sequence[Signed]) -> AsyncIterator[Mined]:
    """Send each, and go on once a block holds it. Raises TransportError; FATAL if the chain refused one."""
    for signed in transactions:
        await nodes.ask(partial(_send, signed))
        yield await _mined(nodes, signed)


async def _send(signed: Signed, rpc: Rpc) -> None:
    if await rpc.call("eth_getTransactionReceipt", signed.hash) is None:
        await rpc.call("eth_sendRawTransaction", f"0x{signed.raw.hex()}")


async def _mined(nodes: Nodes, signed: Signed) -> Mined:
    with anyio.move_on_after(_WITHIN):
        while True:
            receipt = await nodes.ask(lambda rpc: rpc.call("eth_getTransactionReceipt", signed.hash))
            if isinstance(receipt, dict):
                return _judged(receipt, signed)
            await anyio.sleep(_EVERY)
    what = f"no block holds the transaction {signed.hash} after {_WITHIN:.0f} s"
    raise TransportError(what, reason=Reason.TIMEOUT, hint="call again later: what is published is not sent again")


def _judged(receipt: dict[str, object], signed: Signed) -> Mined:
    try:
        block, good = quantity(receipt.get("blockNumber")), quantity(receipt.get("status"))
    except ValueError:
        raise TransportError("the node's receipt is none", reason=Reason.PROTOCOL) from None
    if not good:
        what = f"the registry refused the transaction {signed.hash} in block {block}"
        raise TransportError(what, hint="is `registry` the right contract, and the DID ours?", verdict=Verdict.FATAL)
    return Mined(signed, block)


def amount(wei: int, network: Network) -> str:
    """With the currency, rounded up to six places."""
    micro = -(-wei // 10**12)
    return f"{micro // 10**6}.{micro % 10**6:06d} {network.currency}"
