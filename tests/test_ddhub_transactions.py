"""Transactions that publish our keys: byte for byte the vectors', and as eth_abi and eth_account have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
import rlp as theirs
from eth_abi.abi import encode
from eth_account import Account

from agent.errors import SignerError, TransportError, Verdict
from agent.signer import KeySigner
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.network import NETWORKS
from agent.transports.ddhub.keys.participant import TAGS
from agent.transports.ddhub.keys.publishing import Mined, Terms, amount, send, terms
from agent.transports.ddhub.keys.rpc import Nodes
from agent.transports.ddhub.keys.transactions import (
    Call,
    Signed,
    attribute_value,
    gas_of,
    publishing,
    rlp,
    set_attribute,
)
from testbed.ddhub.contract import gas_for
from testbed.ddhub.transaction import decode_transaction
from tests.ddhub_registry import ALICE, BOB, DDHUB, DID, KEY, PEM, REGISTRY, SELECTORS, Ledger, Node, Refused
from tests.fakes import VirtualLoop

S = 1_000_000_000
VOLTA = NETWORKS["volta"]
SIGNER = KeySigner(bytes.fromhex(BOB["privateKey"][2:]), network="volta")
CALLS = [publishing(DID, tag, key, registry=REGISTRY) for tag, key in zip(TAGS, (KEY, PEM), strict=True)]
MOST_GAS, GWEI = 250_000, 10**9


# ---- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", DDHUB["e_didAttributes"], ids=lambda vector: str(vector["valueJson"][:40]))
def test_the_attributes_of_the_vectors(vector: dict[str, Any]) -> None:
    entry = vector["resultingPublicKeyEntry"]
    value = attribute_value(entry["id"].partition("#")[2], entry["publicKeyHex"])
    assert value.decode() == vector["valueJson"]
    assert f"0x{value.hex()}" == vector["valueHex"]
    name, values = bytes.fromhex(vector["nameBytes32"][2:]), [vector["identity"], value, int(vector["validity"])]
    arguments = encode(["address", "bytes32", "bytes", "uint256"], [values[0], name, *values[1:]])
    call = set_attribute(bytes.fromhex(vector["identity"][2:]), value)
    assert f"0x{call.hex()}" == SELECTORS["setAttribute"] + arguments.hex()


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33])
def test_values_of_any_length(length: int) -> None:
    address, value = bytes(range(20)), bytes(range(length))
    types = ["address", "bytes32", "bytes", "uint256"]
    arguments = encode(types, [address, b"did/pub/Rsa/veriKey/hex".ljust(32, b"\0"), value, 9007199254740990])
    assert set_attribute(address, value)[4:] == arguments


def test_the_gas_that_is_written_without_a_node_is_enough_and_not_much_more() -> None:
    for call in CALLS:
        assert gas_for(call.data) < call.gas == gas_of(call.data) < MOST_GAS


def test_for_a_wallet() -> None:
    assert CALLS[0].for_wallet() == {
        "from": BOB["address"],
        "to": "0xC15D5A57A8Eb0e1dCBE5D88B8f9a82017e5Cc4AF",
        "value": "0x0",
        "data": f"0x{CALLS[0].data.hex()}",
        "gas": hex(CALLS[0].gas),
        "chainId": "0x12047",
    }


@pytest.mark.parametrize("call", CALLS, ids=TAGS)
@pytest.mark.parametrize(("nonce", "price"), [(0, 1), (127, 128), (128, 10**9), (65536, 2**64)])
def test_signed_as_eth_account_signs(call: Call, nonce: int, price: int) -> None:
    signed = call.signed(SIGNER, nonce=nonce, gas_price=price)
    fields = {"nonce": nonce, "gasPrice": price, "gas": call.gas, "to": call.for_wallet()["to"], "value": 0}
    whole: dict[str, Any] = {**fields, "data": call.data, "chainId": 73799}
    expected = Account.sign_transaction(whole, BOB["privateKey"])
    assert signed.raw == bytes(expected.raw_transaction)
    assert signed.hash == f"0x{bytes(expected.hash).hex()}"
    decoded = decode_transaction(signed.raw)
    assert (decoded.sender, decoded.chain_id, decoded.data, decoded.nonce) == (BOB["address"], 73799, call.data, nonce)


NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 2**64 - 1, 2**256 - 1]
TEXTS = [b"", b"\0", b"\x7f", b"\x80", *(b"\xab" * length for length in (2, 55, 56, 255, 256, 65_536))]


@pytest.mark.parametrize("items", [[], *([each] for each in (*NUMBERS, *TEXTS)), [*NUMBERS, *TEXTS]], ids=lambda _: "")
def test_lists_are_written_as_another_library_reads_them(items: list[int | bytes]) -> None:
    assert rlp(items) == theirs.encode(items)
    texts = [item.to_bytes((item.bit_length() + 7) // 8) if isinstance(item, int) else item for item in items]
    assert theirs.decode(rlp(items), strict=True) == texts


def test_nobody_else_can_sign_it() -> None:
    other = KeySigner(bytes.fromhex(ALICE["privateKey"][2:]), network="volta")
    with pytest.raises(SignerError, match="is not the address of our key"):
        CALLS[0].signed(other, nonce=0, gas_price=1)


# ---- a node ---------------------------------------------------------------------------------------------------------


class Miner(Node):
    """A node that puts what is sent into blocks, one block each ``every`` s of virtual time."""

    def __init__(self, loop: VirtualLoop, *, every: int = 5) -> None:
        super().__init__(Ledger())
        self.loop = loop
        self.every = every
        self.began = loop.clock.boot()
        self.sent: list[tuple[str, int]] = []  # raw, and the block
        self.balance = 10**18
        self.waiting = 0
        self.status = "0x1"

    @property
    def block(self) -> int:
        return 1000 + (self.loop.clock.boot() - self.began) // (self.every * S)

    def eth_blockNumber(self) -> str:  # noqa: N802
        return hex(self.block)

    def eth_getTransactionCount(self, address: str, block: str) -> str:  # noqa: N802
        assert address == BOB["address"].lower()
        return hex(7 + (self.waiting if block == "pending" else 0))

    def eth_gasPrice(self) -> str:  # noqa: N802
        return hex(GWEI)

    def eth_getBalance(self, address: str, block: str) -> str:  # noqa: N802
        return hex(self.balance)

    def eth_estimateGas(self, call: dict[str, str]) -> str:  # noqa: N802
        assert (call["from"], call["to"]) == (BOB["address"].lower(), REGISTRY)
        return hex(100_000)

    def eth_sendRawTransaction(self, raw: str) -> str:  # noqa: N802
        decode_transaction(bytes.fromhex(raw[2:]))
        self.sent.append((raw, self.block + 1))
        return "0x"

    def eth_getTransactionReceipt(self, number: str) -> dict[str, str] | None:  # noqa: N802
        for raw, block in self.sent:
            if decode_transaction(bytes.fromhex(raw[2:])).hash == number and block <= self.block:
                return {"blockNumber": hex(block), "status": self.status}
        return None


def in_time(work: Callable[[Miner, Nodes], Any], **settings: int) -> Any:
    """Runs on virtual time."""

    async def whole() -> Any:
        miner = Miner(asyncio_loop(), **settings)
        exchange = Exchange(transport=httpx.MockTransport(miner))
        return await work(miner, Nodes(["https://node.example"], network=VOLTA, exchange=exchange))

    return anyio.run(whole, backend_options={"loop_factory": VirtualLoop})


def asyncio_loop() -> VirtualLoop:
    import asyncio

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


async def sent(nodes: Nodes, signed: list[Signed]) -> list[Mined]:
    return [mined async for mined in send(nodes, signed)]


def test_both_are_sent_and_never_into_one_block() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        found = await terms(nodes, CALLS, network=VOLTA)
        assert (found.nonce, found.gas_price, [call.gas for call in found.calls]) == (7, 1_250_000_000, [120_000] * 2)
        assert found.cost == 240_000 * 1_250_000_000
        found.judge()
        mined = await sent(nodes, found.signed(SIGNER))
        assert [each.signed.nonce for each in mined] == [7, 8]
        assert [each.block for each in mined] == [block for _, block in miner.sent]
        assert mined[0].block < mined[1].block
        assert [decode_transaction(bytes.fromhex(raw[2:])).data for raw, _ in miner.sent] == [c.data for c in CALLS]

    in_time(work)


def test_what_a_block_holds_already_is_not_sent_again() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        signed = (await terms(nodes, CALLS[:1], network=VOLTA)).signed(SIGNER)
        await sent(nodes, signed)
        await sent(nodes, signed)
        assert len(miner.sent) == 1

    in_time(work)


def test_a_block_that_does_not_come_is_waited_for_five_minutes() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        signed = (await terms(nodes, CALLS, network=VOLTA)).signed(SIGNER)
        began = miner.loop.clock.boot()
        with pytest.raises(
            TransportError, match=f"no block holds the transaction {signed[0].hash} after 300 s"
        ) as raised:
            await sent(nodes, signed)
        assert raised.value.verdict is Verdict.RETRY
        assert (miner.loop.clock.boot() - began) // S in (300, 301)
        assert len(miner.sent) == 1

    in_time(work, every=1000)


def test_a_transaction_that_the_contract_refused() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        miner.status = "0x0"
        signed = (await terms(nodes, CALLS, network=VOLTA)).signed(SIGNER)
        with pytest.raises(TransportError, match="the registry refused the transaction") as raised:
            await sent(nodes, signed)
        assert raised.value.verdict is Verdict.FATAL
        assert len(miner.sent) == 1
        miner.status = "x"
        with pytest.raises(TransportError, match="receipt is none"):
            await sent(nodes, signed)

    in_time(work)


def test_a_node_that_does_not_take_it() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        def no(_: str) -> None:
            raise Refused("transaction underpriced")

        miner.script["eth_sendRawTransaction"] = no
        signed = (await terms(nodes, CALLS, network=VOLTA)).signed(SIGNER)
        with pytest.raises(TransportError, match="refuses eth_sendRawTransaction: transaction underpriced"):
            await sent(nodes, signed)

    in_time(work)


def test_one_of_ours_is_under_way() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        miner.waiting = 1
        with pytest.raises(TransportError, match=f"a transaction of {BOB['address']} is under way"):
            await terms(nodes, CALLS, network=VOLTA)

    in_time(work)


def test_a_did_that_is_not_ours_any_more() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        miner.ledger.new_owner(300, ALICE["address"])
        with pytest.raises(TransportError, match=f"the DID belongs to {ALICE['address']} now") as raised:
            await terms(nodes, CALLS, network=VOLTA)
        assert raised.value.verdict is Verdict.FATAL

    in_time(work)


def test_without_money_it_is_said_what_is_missing() -> None:
    async def work(miner: Miner, nodes: Nodes) -> None:
        miner.balance = 0
        found = await terms(nodes, CALLS, network=VOLTA)
        assert "eth_estimateGas" not in miner.asked  # many nodes refuse it to the poor
        with pytest.raises(TransportError) as raised:
            found.judge()
        needed = amount(found.cost, VOLTA)
        assert str(raised.value) == f"{BOB['address']} has 0.000000 VT, and {needed} are needed"
        assert raised.value.hint == f"send it {needed} on volta"

    in_time(work)


def test_an_absurd_price_is_not_paid() -> None:
    found = Terms(tuple(CALLS), 0, 10**16, 10**30, VOLTA)
    with pytest.raises(TransportError, match="it would cost"):
        found.judge()
    replace(found, gas_price=10**9).judge()


@pytest.mark.parametrize(
    ("wei", "text"),
    [(0, "0.000000 VT"), (1, "0.000001 VT"), (10**18, "1.000000 VT"), (1_234_567 * 10**12, "1.234567 VT")],
)
def test_amounts(wei: int, text: str) -> None:
    assert amount(wei, VOLTA) == text
