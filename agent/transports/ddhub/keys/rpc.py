"""JSON-RPC of a node of the chain: one question, one answer, checked.

A node of another chain is refused before anything is believed. Of several nodes the next is asked when one fails; a
node that answered is asked first the next time. Nothing a node says is proven: it is as trusted as the address is.
An address may hold an API key, so messages name the host only.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from anyio import to_thread

from agent.errors import Reason, SecretError, TransportError
from agent.secret import Secret
from agent.transports.ddhub.keys.exchange import Connection, Exchange
from agent.transports.ddhub.keys.key_source_config import judge_url, shown
from agent.transports.ddhub.keys.network import Network
from agent.transports.ddhub.keys.registry import quantity

T = TypeVar("T")


class RpcError(TransportError):
    """The node refused a call, and says why. ``code``: of JSON-RPC."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, reason=Reason.OTHER, hint=hint)
        self.code = code


class Rpc:
    """One node, as long as it is connected."""

    def __init__(self, connection: Connection, url: str) -> None:
        self.peer = shown(url)
        self._connection = connection
        self._url = url
        self._ids = itertools.count(1)

    async def call(self, method: str, *parameters: Any) -> Any:
        """The result. Raises RpcError if the node refuses, TransportError."""
        number = next(self._ids)
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(parameters)}
        answer = await self._connection.request("POST", self._url, peer=self.peer, body=body)
        try:
            said = answer.json()
        except TransportError:
            if answer.status != 200:
                raise answer.unexpected() from None
            raise
        if isinstance(said, dict) and isinstance(error := said.get("error"), dict):  # some send it with a status of 4xx
            code, words = error.get("code"), error.get("message")
            text = answer.quoted(words) if isinstance(words, str) else "no reason given"
            raise RpcError(f"{self.peer} refuses {method}: {text}", code=code if isinstance(code, int) else 0)
        if answer.status != 200:
            raise answer.unexpected()
        if not isinstance(said, dict) or "result" not in said or said.get("id") != number:
            raise answer.nonsense("this is no answer of JSON-RPC")
        return said["result"]

    async def number(self, method: str, *parameters: Any) -> int:
        """A result that is a number. Raises RpcError, TransportError."""
        try:
            return quantity(await self.call(method, *parameters))
        except ValueError as error:
            raise self.nonsense(str(error)) from None

    async def read(self, contract: str, data: bytes, *, block: int) -> bytes:
        """What a function of a contract returns, one word, as of a block. Raises RpcError, TransportError."""
        result = await self.call("eth_call", {"to": contract, "data": f"0x{data.hex()}"}, hex(block))
        try:
            word = bytes.fromhex(result.removeprefix("0x"))
        except (AttributeError, ValueError):
            word = b""
        if len(word) != 32:
            hint = "is `registry` the contract's address, and the node one of its chain?"
            raise TransportError(f"{self.peer}: there is no such contract", reason=Reason.PROTOCOL, hint=hint)
        return word

    def nonsense(self, what: str) -> TransportError:
        """The error for a result that cannot be."""
        hint = "is the address that of a node, and is the node whole?"
        return TransportError(f"{self.peer}: {what}", reason=Reason.PROTOCOL, hint=hint)


class Nodes:
    """The nodes of a chain that may be asked."""

    def __init__(self, addresses: Sequence[str | Secret], *, network: Network, exchange: Exchange) -> None:
        self._addresses = list(addresses)
        self._network = network
        self._exchange = exchange
        self._last = 0  # the one that answered

    async def ask(self, question: Callable[[Rpc], Awaitable[T]]) -> T:
        """What a node says; a question may be several calls, and is asked from its beginning at the next node if one
        of them fails. Raises TransportError: that of the first node.
        """
        first: TransportError | None = None
        for index in [(self._last + step) % len(self._addresses) for step in range(len(self._addresses))]:
            try:
                url = await self._url(self._addresses[index])
                async with self._exchange.connection(url) as connection:
                    rpc = Rpc(connection, url)
                    await self._judge(rpc)
                    answer = await question(rpc)
            except TransportError as error:
                first = first or error
            else:
                self._last = index
                return answer
        assert first is not None, "there is at least one address"
        raise first

    async def _judge(self, rpc: Rpc) -> None:
        chain = await rpc.number("eth_chainId")
        if chain != self._network.chain_id:
            what = f"{rpc.peer} is a node of chain {chain}, and the DIDs are of {self._network.name}"
            hint = f"name a node of chain {self._network.chain_id}"
            raise TransportError(what, reason=Reason.PROTOCOL, hint=hint)

    async def _url(self, address: str | Secret) -> str:
        if isinstance(address, str):
            return address
        try:
            return judge_url((await to_thread.run_sync(address.read)).strip(), is_secret=True)
        except SecretError as error:
            raise TransportError(str(error), reason=Reason.SECRET, hint=error.hint) from error
        except ValueError as error:
            raise TransportError(f"{address}: {error}", reason=Reason.SECRET) from None
