"""Keccak-256 and EIP-55 addresses, against published values and against eth-account's own stack."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.keccak import address_of, checksum_address, keccak256

# Keccak reference values (Ethereum yellow paper's empty hash and code tests).
KNOWN = {
    b"": "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
    b"abc": "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45",
}


@pytest.mark.parametrize(("text", "digest"), KNOWN.items())
def test_known_digests(text: bytes, digest: str) -> None:
    assert keccak256(text).hex() == digest


@given(st.binary(max_size=300))
def test_agrees_with_eth_utils(data: bytes) -> None:
    assert keccak256(data) == keccak(data)


@given(st.integers(min_value=1, max_value=2**200))
def test_addresses_agree_with_eth_account(number: int) -> None:
    import coincurve

    secret = number.to_bytes(32, "big")
    public = coincurve.PrivateKey(secret).public_key.format(compressed=False)
    assert checksum_address(address_of(public)) == Account.from_key(secret).address


@pytest.mark.parametrize("public", [b"", b"\x02" + bytes(32), b"\x05" + bytes(64), b"\x04" + bytes(63)])
def test_only_uncompressed_keys_have_an_address(public: bytes) -> None:
    with pytest.raises(ValueError, match="uncompressed"):
        address_of(public)
