"""Signed transactions, decoded with rlp, their senders found by eth_keys: legacy (EIP-155) and EIP-1559. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import rlp
from eth_keys.constants import SECPK1_N
from eth_keys.datatypes import Signature
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
    chain_id: int | None
    try:
        if raw[:1] == b"\x02":
            chain, nonce, _, price, gas, to, value, data, access, v, r, s = fields = rlp.decode(raw[1:], strict=True)
            chain_id, odd = _number(chain), _number(v)
            signed = b"\x02" + rlp.encode(fields[:9])
            if access:
                raise ValueError("access lists are not supported")
        elif raw[:1] >= b"\xc0":
            nonce, price, gas, to, value, data, v, r, s = fields = rlp.decode(raw, strict=True)
            chain_id, odd = divmod(_number(v) - 35, 2) if _number(v) >= 35 else (None, _number(v) - 27)
            signed = rlp.encode([*fields[:6], *([] if chain_id is None else [_bytes(chain_id), b"", b""])])
        else:
            raise ValueError("unsupported transaction type")
        if not 0 < _number(s) <= SECPK1_N // 2:  # EIP-2
            raise ValueError("invalid transaction v, r, s values")
        signature = Signature(vrs=(odd, _number(r), _number(s)))
        sender = signature.recover_public_key_from_msg_hash(keccak(signed)).to_checksum_address()
    except Exception as error:  # noqa: BLE001  # rlp and eth_keys have many ways to say that it is none
        raise ValueError(f"transaction cannot be decoded: {error}") from None
    return Transaction(
        hash="0x" + keccak(raw).hex(), sender=sender, chain_id=chain_id, nonce=_number(nonce), gas=_number(gas),
        gas_price=_number(price), to=to_checksum_address(to) if to else None, value=_number(value), data=data,
    )  # fmt: skip


def _bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")
