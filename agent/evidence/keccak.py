"""Keccak-256 as Ethereum uses it, and the EIP-55 address of a public key.

Neither the standard library nor coincurve has this hash (hashlib's SHA3-256 pads differently). It is needed once per
key, so plain Python does (under a millisecond); nothing on a hot path may use it.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_RATE = 136  # bytes absorbed per permutation at 256 bits of output


def _constants() -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """Round constants from the LFSR, and (from lane, to lane, rotation) of rho and pi (Keccak reference, sections
    1.2, 2.3).
    """
    rounds, register = [], 1
    for _ in range(24):
        constant = 0
        for j in range(7):
            if register & 1:
                constant |= 1 << ((1 << j) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        rounds.append(constant)
    moves, x, y = [], 1, 0
    for t in range(24):
        moves.append((x + 5 * y, y + 5 * ((2 * x + 3 * y) % 5), (t + 1) * (t + 2) // 2 % 64))
        x, y = y, (2 * x + 3 * y) % 5
    return tuple(rounds), tuple(moves)


_ROUNDS, _MOVES = _constants()


def _permute(lanes: list[int]) -> list[int]:
    for constant in _ROUNDS:
        columns = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        for x in range(5):
            right = columns[(x + 1) % 5]
            theta = columns[x - 1] ^ ((right << 1 | right >> 63) & _MASK)
            for y in range(0, 25, 5):
                lanes[x + y] ^= theta
        moved = lanes[:]
        for source, target, turn in _MOVES:
            moved[target] = (lanes[source] << turn | lanes[source] >> (64 - turn)) & _MASK
        lanes = [
            moved[x + y] ^ (~moved[(x + 1) % 5 + y] & moved[(x + 2) % 5 + y]) for y in range(0, 25, 5) for x in range(5)
        ]
        lanes[0] ^= constant
    return lanes


def keccak256(data: bytes) -> bytes:
    """Keccak-256 digest (32 bytes) of ``data``, with the original padding 0x01, as in Ethereum."""
    padded = bytearray(data)
    padded += b"\x01" + bytes(_RATE - 1 - len(data) % _RATE)
    padded[-1] |= 0x80
    lanes = [0] * 25
    for start in range(0, len(padded), _RATE):
        for i in range(_RATE // 8):
            lanes[i] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def address_of(public_key: bytes) -> bytes:
    """The 20-byte Ethereum address of an uncompressed secp256k1 public key (65 bytes, 0x04 first)."""
    if len(public_key) != 65 or public_key[0] != 4:
        raise ValueError("expected an uncompressed public key of 65 bytes")
    return keccak256(public_key[1:])[12:]


def checksum_address(address: bytes) -> str:
    """``0x`` and 40 hex digits with the capitals of EIP-55."""
    digits = address.hex()
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(d.upper() if int(m, 16) > 7 else d for d, m in zip(digits, marks, strict=False))
