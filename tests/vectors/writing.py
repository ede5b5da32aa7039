"""Bytes for golden vectors: CBOR in any form, right or wrong, signed with published test keys.

Signatures are deterministic (RFC 6979), packing is our own, so that the same vectors come out everywhere.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import coincurve

ALG, CONTENT_TYPE = -47, "application/vnd.edge-agent.evidence+cbor"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRETS = {  # published for tests, worthless: of the web3 documentation, and the numbers one and two
    "signer": bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"),
    "stranger": (1).to_bytes(32, "big"),
    "other": (2).to_bytes(32, "big"),
}
DIDS = {
    "signer": "did:ethr:volta:0x2c7536E3605D9C16a7a3D7b1898e529396a65c23",
    "stranger": "did:ethr:volta:0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf",
    "other": "did:ethr:volta:0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF",
}
DID = DIDS["signer"]


@dataclass(frozen=True)
class Raw:
    """Bytes that stand as they are."""

    content: bytes


@dataclass(frozen=True)
class Pairs:
    """A map whose keys stand as they are given, in this order."""

    pairs: tuple[tuple[Any, Any], ...]


def raw(hexed: str) -> Raw:
    """Bytes that stand as they are, from hex."""
    return Raw(bytes.fromhex(hexed))


def head(major: int, argument: int) -> bytes:
    """The shortest head (RFC 8949 section 3)."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
    raise ValueError("beyond 64 bits")


def item(value: Any) -> bytes:
    """Deterministic CBOR, but for what Raw and Pairs put into it."""
    if isinstance(value, Raw):
        return value.content
    if isinstance(value, Pairs):
        return head(5, len(value.pairs)) + b"".join(item(key) + item(each) for key, each in value.pairs)
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return head(5, len(value)) + b"".join(sorted(item(key) + item(each) for key, each in value.items()))
    return head(4, len(value)) + b"".join(map(item, value))


def _float(value: float) -> bytes:
    for first, form in ((b"\xf9", ">e"), (b"\xfa", ">f")):
        try:
            if struct.unpack(form, struct.pack(form, value))[0] == value:
                return first + struct.pack(form, value)
        except OverflowError:
            continue
    return b"\xfb" + struct.pack(">d", value)


def header(kid: str | bytes = f"{DID}#controller", **changes: Any) -> dict[int, Any]:
    """The protected header's fields; ``k4=...`` sets key 4, None takes it away."""
    fields: dict[int, Any] = {1: ALG, 3: CONTENT_TYPE, 4: kid.encode() if isinstance(kid, str) else kid}
    return changed(fields, **changes)


def changed(fields: dict[int, Any], **changes: Any) -> dict[int, Any]:
    """A copy of ``fields``: ``k4=...`` sets key 4; the class None takes it away, the value None is null."""
    new = dict(fields)
    for name, value in changes.items():
        key = int(name[1:])
        if value is type(None):
            del new[key]
        else:
            new[key] = value
    return new


def signature(protected: bytes, payload: bytes, secret: bytes = SECRETS["signer"]) -> bytes:
    """r || s over the Sig_structure, low-S, by RFC 6979."""
    digest = hashlib.sha256(item(["Signature1", protected, b"", payload])).digest()
    return coincurve.PrivateKey(secret).sign_recoverable(digest, hasher=None)[:64]


def sealed(
    payload: Any, fields: Any = None, *, unprotected: Any = Raw(b"\xa0"), secret: bytes = SECRETS["signer"]
) -> bytes:
    """The envelope of a record."""
    protected, content = item(header() if fields is None else fields), item(payload)
    return b"\xd2" + item([protected, unprotected, content, signature(protected, content, secret)])


class _Bits:
    """Deflate's bit stream (RFC 1951 3.1.1): bytes are filled from the lowest bit."""

    def __init__(self) -> None:
        self.content, self.used = bytearray(), 0

    def put(self, bits: str) -> None:
        for bit in bits:
            if self.used % 8 == 0:
                self.content.append(0)
            self.content[-1] |= int(bit) << self.used % 8
            self.used += 1


def packed(start: bytes, zeros: int, *, finished: bool = True) -> bytes:
    """zlib of ``start`` and that many zero bytes: one block of fixed Huffman codes (RFC 1951 3.2.6), matches of 258."""
    bits = _Bits()
    bits.put("110")  # the last block; fixed codes, lowest bit first
    for byte in start + bytes(min(zeros, 1)):
        bits.put(f"{0x30 + byte:08b}" if byte < 144 else f"{0x190 + byte - 144:09b}")
    matches, rest = divmod(max(zeros - 1, 0), 258)
    for _ in range(matches):
        bits.put("1100010100000")  # length 258, distance 1
    for _ in range(rest):
        bits.put("00110000")
    if not finished:
        return b"\x78\x01" + bytes(bits.content)
    bits.put("0000000")
    return b"\x78\x01" + bytes(bits.content) + _adler(start, zeros)


def _adler(start: bytes, zeros: int) -> bytes:
    """RFC 1950's Adler-32."""
    low, high = 1, 0
    for byte in start:
        low = (low + byte) % 65521
        high = (high + low) % 65521
    return struct.pack(">HH", (high + zeros * low) % 65521, low)
