"""Keccak-256 as Ethereum uses it (FIPS 202's permutation, padding 0x01): lanes in a flat list, constants computed."""

from __future__ import annotations

MASK = (1 << 64) - 1
RATE = 136


def _constants() -> list[int]:
    """The 24 round constants, from the linear feedback shift register of FIPS 202, algorithm 5."""
    register, found = 1, []
    for _ in range(24):
        constant = 0
        for power in range(7):
            if register & 1:
                constant |= 1 << (1 << power) - 1
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
        found.append(constant)
    return found


def _walk() -> list[tuple[int, int]]:
    """Rho and pi as one walk over the lanes 1 to 24: where the carried lane goes, and by how much it is turned."""
    x, y, path = 1, 0, []
    for step in range(1, 25):
        x, y = y, (2 * x + 3 * y) % 5
        path.append((x + 5 * y, step * (step + 1) // 2 % 64))
    return path


CONSTANTS = _constants()
WALK = _walk()


def _turn(lane: int, by: int) -> int:
    return (lane << by | lane >> 64 - by) & MASK


def _permute(lanes: list[int]) -> None:
    for constant in CONSTANTS:
        parity = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        for at in range(25):
            lanes[at] ^= parity[(at + 4) % 5] ^ _turn(parity[(at + 1) % 5], 1)
        carried = lanes[1]
        for to, by in WALK:
            lanes[to], carried = _turn(carried, by), lanes[to]
        for row in range(0, 25, 5):
            a, b, c, d, e = lanes[row : row + 5]
            lanes[row : row + 5] = [a ^ (~b & c), b ^ (~c & d), c ^ (~d & e), d ^ (~e & a), e ^ (~a & b)]
        lanes[0] ^= constant


def keccak256(data: bytes) -> bytes:
    """The 32 byte digest of ``data``."""
    padded = bytearray(data + bytes(RATE - len(data) % RATE))
    padded[len(data)] ^= 0x01
    padded[-1] ^= 0x80
    lanes = [0] * 25
    for start in range(0, len(padded), RATE):
        for lane in range(RATE // 8):
            lanes[lane] ^= int.from_bytes(padded[start + 8 * lane : start + 8 * lane + 8], "little")
        _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])
