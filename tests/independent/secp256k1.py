"""ES256K: OpenSSL (``cryptography``) checks signatures; the public key comes out of one by arithmetic of our own.

The curve is SEC 2's secp256k1, y^2 = x^3 + 7. Points are Jacobian (x / z^2, y / z^3); z = 0 is the point at infinity.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
G = (
    0x79BE667E_F9DCBBAC_55A06295_CE870B07_029BFCDB_2DCE28D9_59F2815B_16F81798,
    0x483ADA77_26A3C465_5DA4FBFC_0E1108A8_FD17B448_A6855419_9C47D08F_FB10D4B8,
    1,
)
Point = tuple[int, int, int]
NOWHERE: Point = (1, 1, 0)


def doubled(point: Point) -> Point:
    """The point added to itself."""
    x, y, z = point
    square = y * y % P
    middle = 4 * x * square % P
    slope = 3 * x * x % P
    new_x = (slope * slope - 2 * middle) % P
    return new_x, (slope * (middle - new_x) - 8 * square * square) % P, 2 * y * z % P


def added(one: Point, two: Point) -> Point:
    """The sum of two points, equal or opposite ones included."""
    if not one[2]:
        return two
    if not two[2]:
        return one
    (x1, y1, z1), (x2, y2, z2) = one, two
    z1z1, z2z2 = z1 * z1 % P, z2 * z2 % P
    u1, u2 = x1 * z2z2 % P, x2 * z1z1 % P
    s1, s2 = y1 * z2 * z2z2 % P, y2 * z1 * z1z1 % P
    if u1 == u2:
        return doubled(one) if s1 == s2 else NOWHERE
    across, up = u2 - u1, s2 - s1
    across2 = across * across % P
    across3, base = across * across2 % P, u1 * across2 % P
    x = (up * up - across3 - 2 * base) % P
    return x, (up * (base - x) - s1 * across3) % P, across * z1 * z2 % P


def combined(a: int, one: Point, b: int, two: Point) -> Point:
    """The point a x one + b x two, bit by bit for both at once."""
    table = (NOWHERE, one, two, added(one, two))
    total = NOWHERE
    for bit in range(255, -1, -1):
        total = added(doubled(total), table[(a >> bit & 1) | (b >> bit & 1) << 1])
    return total


def recovered(digest: bytes, r: int, s: int) -> list[bytes]:
    """The public keys (x and y, 64 bytes) under which (r, s) signs ``digest``: recovery ids 0 and 1.

    Ids 2 and 3, where the curve point's x was not below the group's order, are left out: nobody can make one happen.
    """
    y_squared = (pow(r, 3, P) + 7) % P
    y = pow(y_squared, (P + 1) // 4, P)
    if not 0 < r < N or not 0 < s < N or y * y % P != y_squared:
        return []
    inverse = pow(r, -1, N)
    keys = []
    for root in sorted((y, P - y), key=lambda root: root & 1):
        point = combined(s * inverse % N, (r, root, 1), -int.from_bytes(digest, "big") * inverse % N, G)
        if point[2]:
            z = pow(point[2], -1, P)
            x, y_affine = point[0] * z * z % P, point[1] * z * z * z % P
            keys.append(x.to_bytes(32, "big") + y_affine.to_bytes(32, "big"))
    return keys


def verifies(key: bytes, digest: bytes, r: int, s: int) -> bool:
    """Whether (r, s) signs the 32 byte SHA-256 ``digest`` under ``key`` (x and y, 64 bytes), as OpenSSL says."""
    public = EllipticCurvePublicKey.from_encoded_point(SECP256K1(), b"\x04" + key)
    try:
        public.verify(encode_dss_signature(r, s), digest, ECDSA(Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True
