"""The envelope of a record: COSE_Sign1 with ES256K (RFC 9052, RFC 8812; docs/evidence.md section 3).

Bytes in, values out. Sealing signs SHA-256 of the Sig_structure with the device's key; opening checks structure,
signature and who signed. Records are chained and named by the SHA-256 of their own bytes, never by a signature.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

import cbor2
import coincurve

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.recovery import of_address
from agent.evidence.shape import known_keys
from agent.model import Link as Link
from agent.ports import Signer

ES256K = -47
CONTENT_TYPE = "application/vnd.edge-agent.evidence+cbor"
MAX_ENVELOPE = 256 * 1024
_HEADER_KEYS = frozenset({1, 3, 4})
_MAX_HEADER = 1024  # bytes of the protected header
_MAX_ITEMS = 64  # in the unprotected map, which is ignored
_START = b"\xd2\x84"  # tag 18, array of 4
_EMPTY_MAP = b"\xa0"
_CUT_SHORT = "envelope cut short, or larger than allowed"
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6  # CBOR major types
_HALF_ORDER = bytes.fromhex("7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0")  # of secp256k1
_KID = re.compile(r"(did:ethr:(?:[a-z0-9]+:)?0x([0-9A-Fa-f]{40}))#(controller|owner)")


class Envelope(NamedTuple):
    """An envelope taken apart: nothing in it is checked but its shape."""

    protected: bytes
    kid: str
    did: str  # kid without its fragment
    address: bytes  # the 20 bytes of kid's address
    payload: bytes  # the record
    signature: bytes  # r || s
    unknown: tuple[str, ...] = ()  # what a newer version put into the header: keys from 16


def message_id(link: Link) -> str:
    """The id of a record everywhere outside: ``<stream hex>-<seq>-<first 8 hex digits of the digest>``."""
    return f"{link.stream.hex()}-{link.seq}-{link.digest[:4].hex()}"


def protected_header(did: str) -> bytes:
    """The protected header of every envelope that the key of ``did`` signs."""
    return cbor.encode({1: ES256K, 3: CONTENT_TYPE, 4: f"{did}#controller".encode()})


def _sig_structure_digest(protected: bytes, payload: bytes) -> bytes:
    """SHA-256 of ``["Signature1", protected, external_aad (empty), payload]`` (RFC 9052 section 4.4)."""
    digest = _sig_structure_start(protected).copy()
    digest.update(cbor2.dumps(payload))
    return digest.digest()


@functools.lru_cache(maxsize=64)
def _sig_structure_start(protected: bytes) -> hashlib._Hash:
    """SHA-256 up to the payload: the same for all records of a signer."""
    return hashlib.sha256(b"\x84\x6aSignature1" + cbor2.dumps(protected) + b"\x40")


def seal(payload: bytes, *, protected: bytes, signer: Signer) -> bytes:
    """Sign a record's bytes. Raises SignerError."""
    signature = signer.sign(_sig_structure_digest(protected, payload))
    return b"%b%b\xa0%b%b" % (_START, cbor2.dumps(protected), cbor2.dumps(payload), cbor2.dumps(signature))


def unpack(envelope: bytes) -> Envelope:
    """Take one envelope apart; nothing may follow it. Raises EvidenceError (level: structure)."""
    opened, end = _unpack_at(envelope, 0)
    if end != len(envelope):
        raise EvidenceError("bytes after the envelope")
    return opened


def _unpack_at(data: bytes | mmap, start: int) -> tuple[Envelope, int]:
    """The envelope at ``start`` and where it ends. The unprotected map is stepped over, whatever it holds.

    Costs no more than what the first bytes promise and hold: in a hostile file every byte may look like a start.
    """
    if data[start : start + len(_START)] != _START:
        raise EvidenceError("not a COSE_Sign1 message: it must begin with tag 18 and an array of 4")
    end = min(len(data), start + MAX_ENVELOPE)
    protected, at = _byte_string(data, start + len(_START), end)
    if len(protected) > _MAX_HEADER:
        raise EvidenceError(f"protected header larger than {_MAX_HEADER} bytes")
    at = at + 1 if data[at : at + 1] == _EMPTY_MAP else _behind_map(data, at, end)
    payload, at = _byte_string(data, at, end)
    signature, at = _byte_string(data, at, end)
    if len(signature) != 64:
        raise EvidenceError(f"signature of {len(signature)} bytes, expected 64")
    kid, did, address, unknown = _signer(protected)
    return Envelope(protected, kid, did, address, payload, signature, unknown), at


def _byte_string(data: bytes | mmap, at: int, end: int) -> tuple[bytes, int]:
    """The byte string that begins at ``at`` and ends at ``end`` at the latest, and where it does."""
    if at + 2 <= end and data[at] == 0x58 and data[at + 1] >= 24:  # as nearly always
        length, at = data[at + 1], at + 2
    else:
        start = at
        major, length, at = _head(data, at, end)
        if major != _BYTES:
            raise EvidenceError("envelope: expected [bytes, map, bytes, bytes]")
        _refuse_longer(length, at - start)
    if at + length > end:
        raise EvidenceError(_CUT_SHORT)
    return data[at : at + length], at + length


def _head(data: bytes | mmap, at: int, end: int) -> tuple[int, int, int]:
    """Major type and argument of the item at ``at``, and where its head ends."""
    if at >= end:
        raise EvidenceError(_CUT_SHORT)
    major, info, at = data[at] >> 5, data[at] & 31, at + 1
    if info < 24:
        return major, info, at
    if info > 27:
        raise EvidenceError("envelope: malformed, or of indefinite length")
    behind = at + (1 << (info - 24))
    if behind > end:
        raise EvidenceError(_CUT_SHORT)
    return major, int.from_bytes(data[at:behind], "big"), behind


def _refuse_longer(argument: int, size: int) -> None:
    """Refuse a head of ``size`` bytes if a shorter one would hold its argument."""
    if size > 1 and argument < (24 if size == 2 else 1 << 4 * (size - 1)):
        raise EvidenceError("envelope: not deterministic CBOR: a shorter head would do")


def _behind_map(data: bytes | mmap, at: int, end: int) -> int:
    """Where a map ends that holds anything within reason: items of definite length, which are not looked into."""
    if at < end and data[at] >> 5 != _MAP:
        raise EvidenceError("envelope: expected [bytes, map, bytes, bytes]")
    open_items = [1]  # by depth: how many are still to come
    items = 0
    while open_items:
        if not open_items[-1]:
            open_items.pop()
            continue
        open_items[-1] -= 1
        items += 1
        start = at
        major, argument, at = _head(data, at, end)
        if items == 1:  # the map's own; what is in it may have any form
            _refuse_longer(argument, at - start)
        if items > _MAX_ITEMS or (major in (_ARRAY, _MAP) and len(open_items) >= cbor.MAX_DEPTH):
            raise EvidenceError("envelope: unprotected map too large or nested too deeply")
        if major in (_BYTES, _TEXT):
            at += argument
        elif major == _TAG:
            open_items[-1] += 1
        elif major in (_ARRAY, _MAP):
            open_items.append(argument * (2 if major == _MAP else 1))
    return at


@functools.lru_cache(maxsize=64)
def _signer(protected: bytes) -> tuple[str, str, bytes, tuple[str, ...]]:
    """What a protected header says: kid, its DID, that one's address, and which keys are not known here."""
    kid, unknown = _kid(protected)
    match = _KID.fullmatch(kid)
    if match is None:
        raise EvidenceError("kid is not <did:ethr DID>#controller")
    return kid, match[1], bytes.fromhex(match[2]), unknown


def _kid(protected: bytes) -> tuple[str, tuple[str, ...]]:
    """A header's kid, and which keys of it are not known here."""
    header = cbor.decode(protected)
    if type(header) is not dict or not header.keys() >= _HEADER_KEYS:
        raise EvidenceError("protected header: expected alg, content type and kid")
    unknown: list[str] = []
    known_keys(header, _HEADER_KEYS, "header", unknown)
    if type(header[1]) is not int or header[1] != ES256K:
        raise EvidenceError("alg is not ES256K (-47)")
    if header[3] != CONTENT_TYPE:
        raise EvidenceError(f"content type is not {CONTENT_TYPE}")
    if type(header[4]) is not bytes:
        raise EvidenceError("kid is not bytes")
    try:
        return header[4].decode(), tuple(unknown)
    except UnicodeDecodeError:
        raise EvidenceError("kid is not UTF-8") from None


class Keys:
    """Checks signatures and remembers each signer's public key after its first good signature.

    The first time, the address is recovered with both ids (32 us); after that plain verification does (27 us).
    """

    def __init__(self) -> None:
        self._known: dict[bytes, coincurve.PublicKey] = {}

    def check(self, envelope: Envelope) -> None:
        """Raises EvidenceError if the signature is not kid's, or is high-S (RFC 8812 says nothing; we refuse:
        malleable).
        """
        if envelope.signature[32:] > _HALF_ORDER:
            raise EvidenceError("signature with high s")
        digest = _sig_structure_digest(envelope.protected, envelope.payload)
        key = self._known.get(envelope.address)
        if key is None:
            self._known[envelope.address] = _recover(envelope, digest)
        elif not verify(key, envelope.signature, digest):
            raise EvidenceError("signature does not verify")


def _recover(envelope: Envelope, digest: bytes) -> coincurve.PublicKey:
    found = of_address(envelope.address, envelope.signature, digest)
    if found is not None:
        return found[1]
    raise EvidenceError("signature does not verify: not made by the key of kid's address")


def verify(key: coincurve.PublicKey, signature: bytes, digest: bytes) -> bool:
    """Whether ``signature`` (r || s) over a 32-byte digest is ``key``'s."""
    return key.verify(_der(signature), digest, hasher=None)


def _der(signature: bytes) -> bytes:
    """r || s as DER, the form that coincurve verifies (X.690: minimal integers, a zero before a high bit)."""
    r, s = signature[:32].lstrip(b"\0"), signature[32:].lstrip(b"\0")
    if not r or r[0] & 0x80:
        r = b"\0" + r
    if not s or s[0] & 0x80:
        s = b"\0" + s
    return b"\x30%c\x02%c%b\x02%c%b" % (4 + len(r) + len(s), len(r), r, len(s), s)


def envelopes(data: bytes | mmap) -> Iterator[tuple[int, bytes | EvidenceError]]:
    """The envelopes of a file (a CBOR sequence, RFC 8742), each with its offset.

    Where bytes are no envelope, one EvidenceError is yielded for them and reading resumes at the next that has the
    right shape.
    """
    position = 0
    while position < len(data):
        try:
            _, end = _unpack_at(data, position)
        except EvidenceError as error:
            yield position, error
            position = _resume(data, position + 1)
            continue
        yield position, data[position:end]
        position = end


def _resume(data: bytes | mmap, position: int) -> int:
    """Where the next thing with an envelope's shape begins, or the end of the data."""
    while (position := data.find(_START, position)) >= 0:
        try:
            _unpack_at(data, position)
        except EvidenceError:
            position += 1
        else:
            return position
    return len(data)
