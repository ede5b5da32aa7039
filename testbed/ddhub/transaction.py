"""Signed transactions, decoded with rlp, their senders found by eth_account: legacy (EIP-155) and EIP-1559. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import rlp
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Amounts in wei; ``gas_price`` is the most that it pays; ``to`` None makes a contract."""

    hash: str
    sender: str
    chain_id: int | None
    nonce: int
    gas: int
    gas_price: int
    to: str | None
    value: int
    data: bytes


def decode_transaction(raw: bytes) -> Transaction:
    """A transaction as eth_sendRawTransaction gets it. Raises ValueError."""
    try:
        sender = Account.recover_transaction(raw)
        if raw[:1] == b"\x02":
            chain, nonce, _, price, gas, to, value, data, *_ = rlp.decode(raw[1:], strict=True)
            chain_id: int | None = _number(chain)
        elif raw[:1] >= b"\xc0":
            nonce, price, gas, to, value, data, v, _, _ = rlp.decode(raw, strict=True)
            chain_id = (_number(v) - 35) // 2 if _number(v) >= 35 else None
        else:
            raise ValueError("unsupported transaction type")
    except Exception as error:  # noqa: BLE001  # rlp and eth_account have many ways to say that it is none
        raise ValueError(f"transaction cannot be decoded: {error}") from None
    return Transaction(
        hash="0x" + keccak(raw).hex(), sender=sender, chain_id=chain_id, nonce=_number(nonce), gas=_number(gas),
        gas_price=_number(price), to=to_checksum_address(to) if to else None, value=_number(value), data=data,
    )  # fmt: skip


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")
