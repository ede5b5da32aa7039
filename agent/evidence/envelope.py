"""The envelope of a record: COSE_Sign1 with ES256K (RFC 9052, RFC 8812; docs/evidence.md section 3).

Bytes in, values out. Sealing signs SHA-256 of the Sig_structure with the device's key; opening checks structure,
signature and who signed. Records are chained and named by the SHA-256 of their own bytes, never by a signature.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import cbor2
import coincurve

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.keccak import address_of
from agent.model import Link as Link
from agent.ports import Signer

ES256K = -47
CONTENT_TYPE = "application/vnd.edge-agent.evidence+cbor"
MAX_ENVELOPE = 256 * 1024
_MAX_HEADER = 1024  # bytes of the protected header
_MAX_ITEMS = 64  # in the unprotected map, which is ignored
_START = b"\xd2\x84"  # tag 18, array of 4
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6  # CBOR major types
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_KID = re.compile(r"(did:ethr:(?:[a-z0-9]+:)?0x([0-9A-Fa-f]{40}))#(controller|owner)")


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope taken apart: nothing in it is checked but its shape."""

    protected: bytes
    kid: str
    did: str  # kid without its fragment
    address: bytes  # the 20 bytes of kid's address
    payload: bytes  # the record
    signature: bytes  # r || s


def message_id(link: Link) -> str:
    """The id of a record everywhere outside: ``<stream hex>-<seq>-<first 8 hex digits of the digest>``."""
    return f"{link.stream.hex()}-{link.seq}-{link.digest[:4].hex()}"


def protected_header(did: str) -> bytes:
    """The protected header of every envelope that the key of ``did`` signs."""
    return cbor.encode({1: ES256K, 3: CONTENT_TYPE, 4: f"{did}#controller".encode()})


def _sig_structure_digest(protected: bytes, payload: bytes) -> bytes:
    """SHA-256 of ``["Signature1", protected, external_aad (empty), payload]`` (RFC 9052 section 4.4)."""
    return hashlib.sha256(cbor2.dumps(["Signature1", protected, b"", payload])).digest()


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
    reader = _Reader(data, start + len(_START), min(len(data), start + MAX_ENVELOPE))
    header = reader.bytes_ahead()
    if len(header) > _MAX_HEADER:
        raise EvidenceError(f"protected header larger than {_MAX_HEADER} bytes")
    protected = data[header.start : header.stop]
    reader.step_over_map()
    payload, signature = reader.bytes_ahead(), reader.bytes_ahead()
    if len(signature) != 64:
        raise EvidenceError(f"signature of {len(signature)} bytes, expected 64")
    kid = _kid(protected)
    match = _KID.fullmatch(kid)
    if match is None:
        raise EvidenceError("kid is not <did:ethr DID>#controller")
    record, rs = data[payload.start : payload.stop], data[signature.start : signature.stop]
    return Envelope(protected, kid, match[1], bytes.fromhex(match[2]), record, rs), reader.at


class _Reader:
    """Steps over CBOR items of definite length (RFC 8949 section 3) up to ``end``, without looking into them."""

    def __init__(self, data: bytes | mmap, at: int, end: int) -> None:
        self.at = at
        self._data = data
        self._end = end
        self._items = _MAX_ITEMS

    def bytes_ahead(self) -> range:
        """Step over a byte string; returns where its bytes are."""
        major, length = self._head()
        if major != _BYTES:
            raise EvidenceError("envelope: expected [bytes, map, bytes, bytes]")
        return self._over(length)

    def step_over_map(self) -> None:
        """Step over a map of whatever it holds, within reason."""
        if self.at < self._end and self._data[self.at] >> 5 != _MAP:
            raise EvidenceError("envelope: expected [bytes, map, bytes, bytes]")
        self._step_over(depth=2)

    def _head(self) -> tuple[int, int]:
        """Major type and argument of the next item."""
        if self.at >= self._end:
            raise EvidenceError("envelope cut short, or larger than allowed")
        major, info = self._data[self.at] >> 5, self._data[self.at] & 31
        self.at += 1
        if info < 24:
            return major, info
        if info > 27:
            raise EvidenceError("envelope: malformed, or of indefinite length")
        where = self._over(1 << (info - 24))
        return major, int.from_bytes(self._data[where.start : where.stop], "big")

    def _over(self, length: int) -> range:
        begin, self.at = self.at, self.at + length
        if self.at > self._end:
            raise EvidenceError("envelope cut short, or larger than allowed")
        return range(begin, self.at)

    def _step_over(self, *, depth: int) -> None:
        self._items -= 1
        major, argument = self._head()
        if self._items < 0 or (major in (_ARRAY, _MAP) and depth > cbor.MAX_DEPTH):
            raise EvidenceError("envelope: unprotected map too large or nested too deeply")
        if major in (_BYTES, _TEXT):
            self._over(argument)
        elif major == _TAG:
            self._step_over(depth=depth)
        elif major in (_ARRAY, _MAP):
            for _ in range(argument * (2 if major == _MAP else 1)):
                self._step_over(depth=depth + 1)


def _kid(protected: bytes) -> str:
    header = cbor.decode(protected)
    if type(header) is not dict or set(header) != {1, 3, 4}:
        raise EvidenceError("protected header: expected exactly alg, content type and kid")
    if type(header[1]) is not int or header[1] != ES256K:
        raise EvidenceError("alg is not ES256K (-47)")
    if header[3] != CONTENT_TYPE:
        raise EvidenceError(f"content type is not {CONTENT_TYPE}")
    if type(header[4]) is not bytes:
        raise EvidenceError("kid is not bytes")
    try:
        return header[4].decode()
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
        if int.from_bytes(envelope.signature[32:], "big") > _HALF_ORDER:
            raise EvidenceError("signature with high s")
        digest = _sig_structure_digest(envelope.protected, envelope.payload)
        key = self._known.get(envelope.address)
        if key is None:
            self._known[envelope.address] = _recover(envelope, digest)
        elif not verify(key, envelope.signature, digest):
            raise EvidenceError("signature does not verify")


def _recover(envelope: Envelope, digest: bytes) -> coincurve.PublicKey:
    for recovery in (0, 1):
        try:
            key = coincurve.PublicKey.from_signature_and_message(
                envelope.signature + bytes([recovery]), digest, hasher=None
            )
        except Exception:  # noqa: S112, BLE001 - what coincurve raises for an impossible id; the other one may fit
            continue
        if address_of(key.format(compressed=False)) == envelope.address:
            return key
    raise EvidenceError("signature does not verify: not made by the key of kid's address")


def verify(key: coincurve.PublicKey, signature: bytes, digest: bytes) -> bool:
    """Whether ``signature`` (r || s) over a 32-byte digest is ``key``'s."""
    return key.verify(_der(signature), digest, hasher=None)


def _der(signature: bytes) -> bytes:
    """r || s as DER, the form that coincurve verifies (X.690: minimal integers, a zero before a high bit)."""
    parts = b""
    for half in (signature[:32], signature[32:]):
        number = half.lstrip(b"\0") or b"\0"
        if number[0] & 0x80:
            number = b"\0" + number
        parts += bytes((2, len(number))) + number
    return bytes((0x30, len(parts))) + parts


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
