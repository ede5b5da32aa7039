"""One envelope, judged by the steps of docs/evidence.md section 10: framing, header, whose, signature, record, body."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

from tests.independent import cbor, secp256k1
from tests.independent.cbor import Refused
from tests.independent.keccak import keccak256
from tests.independent.shape import BODIES, HEAD, HEADER, RECORD
from tests.independent.values import check_against_plan, check_body

BIGGEST = 256 * 1024
BIGGEST_HEADER = 1024
UNPACKED = 4 * 1024 * 1024
STEPPED_OVER = 64
KID = re.compile(r"(did:ethr:(?:([a-z0-9]+):)?0x([0-9A-Fa-f]{40}))#(?:controller|owner)")
NETWORKS = {None: "0x1", "mainnet": "0x1", "volta": "0x12047", "ewc": "0xf6"}
Signer = tuple[str, str]  # chain id, address in lower case


@dataclass
class Judgement:
    """What can be said of one envelope. ``record`` and ``digest`` are there once it has a place in a chain."""

    verdict: str = "ok"  # or the first level that is not, and how: "structure failed"; "foreign"
    why: str = ""
    signer: Signer | None = None
    digest: bytes = b""
    record: dict[int, Any] = field(default_factory=dict)
    body: Any = None
    reported: list[str] = field(default_factory=list)


class Judge:
    """Judges envelopes of the agents whose DIDs it was asked to accept. Remembers keys: one recovery, then
    verification.
    """

    def __init__(self, *dids: str) -> None:
        self.accepted = {signer_of(f"{did}#controller") for did in dids}
        self.keys: dict[str, bytes] = {}

    def judge(self, envelope: bytes, plan: dict[int, Any] | None = None) -> Judgement:
        """The verdict on this envelope; ``plan``: the body of the plan in force where it stands, if that is known."""
        found = Judgement()
        try:
            protected, payload, signature = opened(envelope)
            header = cbor.read(protected)
            HEADER(header, "header", found.reported)
            found.signer = signer = signer_of(text_of(header[4]))
            if signer not in self.accepted:
                found.verdict = "foreign"
                return found
            if not self._signed(protected, payload, signature, signer[1]):
                found.verdict, found.why = "signature failed", "not signed by the key of kid's address"
                return found
            self._record(payload, plan, found)
        except Refused as refusal:
            found.verdict, found.why, found.reported = "structure failed", str(refusal), []
        return found

    def _record(self, payload: bytes, plan: dict[int, Any] | None, found: Judgement) -> None:
        """Fill in digest, record, body and what is reported. Raises Refused."""
        record = cbor.read(payload)
        HEAD({key: record[key] for key in range(1, 5) if key in record} if type(record) is dict else 0, "record", [])
        found.record, found.digest = record, hashlib.sha256(payload).digest()
        if record[1] != 1:
            found.verdict, found.why = "structure unknown", f"version {record[1]}"
            return
        RECORD(record, "record", found.reported)
        if (7 in record) == (8 in record):
            raise Refused("record: both of body and packed, or neither")
        body = record[7] if 7 in record else cbor.read(unpacked(record[8]))
        if shape := BODIES.get(record[6]):
            shape(body, "body", found.reported)
            check_body(record[6], body)
        if record[6] == 2 and plan is not None and plan[1] == body[0]:
            check_against_plan(body, plan)
        found.body = body

    def _signed(self, protected: bytes, payload: bytes, signature: bytes, address: str) -> bool:
        """Whether the key that ``address`` was made of signed this, with the lower of both possible s."""
        digest = hashlib.sha256(to_be_signed(protected, payload)).digest()
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not 0 < r < secp256k1.N or not 0 < s <= secp256k1.N // 2:
            return False
        if address not in self.keys:
            for key in secp256k1.recovered(digest, r, s):
                if keccak256(key)[12:].hex() == address:
                    self.keys[address] = key
        return address in self.keys and secp256k1.verifies(self.keys[address], digest, r, s)


def signer_of(kid: str) -> Signer:
    """Whom a kid means. Raises Refused if it is none."""
    match = KID.fullmatch(kid)
    if match is None:
        raise Refused("kid: not a did:ethr DID and #controller")
    return NETWORKS.get(match[2], match[2] or ""), match[3].lower()


def text_of(content: bytes) -> str:
    """The UTF-8 text. Raises Refused."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused("kid: not UTF-8") from None


def opened(envelope: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a tagged COSE_Sign1. Raises Refused."""
    if len(envelope) > BIGGEST:
        raise Refused(f"longer than {BIGGEST} bytes")
    if envelope[:2] != b"\xd2\x84":
        raise Refused("no COSE_Sign1: tag 18 and an array of four")
    protected, at = _octets(envelope, 2)
    if len(protected) > BIGGEST_HEADER:
        raise Refused(f"a header longer than {BIGGEST_HEADER} bytes")
    major, pairs, at = cbor.head(envelope, at)
    if major != 5:
        raise Refused("unprotected: not a map")
    at, _ = _passed(envelope, at, 2 * pairs, 3, STEPPED_OVER - 1)
    payload, at = _octets(envelope, at)
    signature, at = _octets(envelope, at)
    if len(signature) != 64:
        raise Refused("signature: not 64 bytes")
    if at != len(envelope):
        raise Refused("bytes after the envelope")
    return protected, payload, signature


def _octets(data: bytes, at: int) -> tuple[bytes, int]:
    major, size, at = cbor.head(data, at)
    if major != 2:
        raise Refused(f"byte {at}: not a byte string")
    return cbor.take(data, at, size), at + size


def _passed(data: bytes, at: int, items: int, level: int, left: int) -> tuple[int, int]:
    """Where ``items`` items of any kind end, and how many more may come; an array or map among them is at ``level``."""
    if items > left:
        raise Refused(f"unprotected: more than {STEPPED_OVER} items")
    left -= items
    for _ in range(items):
        major, argument, at = cbor.head(data, at, shortest=False)
        if major in {4, 5} and level > cbor.DEEPEST:
            raise Refused(f"unprotected: nested deeper than {cbor.DEEPEST}")
        if major in {2, 3}:
            cbor.take(data, at, argument)
            at += argument
        elif major in {4, 5, 6}:
            inside = {4: argument, 5: 2 * argument, 6: 1}[major]
            at, left = _passed(data, at, inside, level + (major != 6), left)
    return at, left


def to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """RFC 9052's Sig_structure: ["Signature1", protected, external_aad, payload], the bytes as they were received."""
    return b"\x84\x6aSignature1" + _wrapped(protected) + b"\x40" + _wrapped(payload)


def _wrapped(content: bytes) -> bytes:
    """``content`` as a CBOR byte string."""
    size = len(content)
    if size < 24:
        return bytes([0x40 | size]) + content
    info, width = (24, 1) if size < 256 else (25, 2) if size < 65536 else (26, 4)
    return bytes([0x40 | info]) + size.to_bytes(width, "big") + content


def unpacked(packed: bytes) -> bytes:
    """What zlib (RFC 1950) makes of ``packed``: one finished stream of at most 4 MiB. Raises Refused."""
    if len(packed) > 1 and packed[1] & 0x20:
        raise Refused("packed: with a dictionary")
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(packed, UNPACKED + 1)
    except zlib.error as error:
        raise Refused(f"packed: {error}") from None
    if len(plain) > UNPACKED:
        raise Refused(f"packed: more than {UNPACKED} bytes")
    if not stream.eof or stream.unused_data:
        raise Refused("packed: unfinished" if not stream.eof else "packed: bytes behind its end")
    return plain
