"""Vectors that fail, or cannot be judged, at structure, signature or identity: each breaks one rule."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from tests.vectors import invalid_bodies
from tests.vectors.items import REFUSED
from tests.vectors.valid_envelopes import matches, nested
from tests.vectors.vector import BOOT, GONE, STRUCTURE, Vector, changed_to_packed, long, second, stop
from tests.vectors.writing import (
    DID,
    DIDS,
    ORDER,
    SECRETS,
    Pairs,
    Raw,
    changed,
    header,
    item,
    packed,
    raw,
    sealed,
    signature,
)

SIGNATURE = "signature failed"
ADDRESS = DID[-42:]
NEXT_DOOR = DID[:-1] + "2"  # an address that differs in one bit


def parts(envelope: bytes) -> list[bytes]:
    """Protected, payload and signature of an envelope whose unprotected map is empty."""
    at, found = 2, []
    for _ in range(3):
        if envelope[at] == 0xA0:
            at += 1
        info = envelope[at] & 31
        size = 0 if info < 24 else 1 << info - 24
        length = int.from_bytes(envelope[at + 1 : at + 1 + size], "big") if size else info
        at += 1 + size
        found.append(envelope[at : at + length])
        at += length
    return found


GOOD = sealed(stop())
PROTECTED, PAYLOAD, SIGNED = parts(GOOD)
R, S = SIGNED[:32], SIGNED[32:]


def framed(*items: Any, tag: bytes = b"\xd2") -> bytes:
    """An envelope of these items."""
    return tag + item(list(items))


# ---- envelope ---------------------------------------------------------------------------------------------------


def framing() -> Iterator[Vector]:
    """What is no envelope."""
    empty: dict[int, Any] = {}
    long_head = b"\x59" + len(PAYLOAD).to_bytes(2, "big") + PAYLOAD
    bad = {
        "nothing": b"",
        "no tag": GOOD[1:],
        "tag 17": b"\xd1" + GOOD[1:],
        "tag 18 in two bytes": b"\xd8\x12" + GOOD[1:],
        "tag 18 twice": b"\xd2" + GOOD,
        "array of three": framed(PROTECTED, empty, PAYLOAD),
        "array of five": framed(PROTECTED, empty, PAYLOAD, SIGNED, 0),
        "array in a longer head": b"\xd2\x98\x04" + GOOD[2:],
        "array of indefinite length": b"\xd2\x9f" + GOOD[2:] + b"\xff",
        "a map for the array": b"\xd2\xa2" + GOOD[2:],
        "a byte behind it": GOOD + b"\0",
        "an envelope behind it": GOOD + GOOD,
        "cut": GOOD[:-1],
        "payload null": framed(PROTECTED, empty, None, SIGNED),
        "payload text": framed(PROTECTED, empty, Raw(b"\x78" + item(PAYLOAD)[1:]), SIGNED),
        "payload in a longer head": framed(PROTECTED, empty, Raw(long_head), SIGNED),
        "payload in chunks": framed(PROTECTED, empty, Raw(b"\x5f" + item(PAYLOAD) + b"\xff"), SIGNED),
        "payload empty": sealed(Raw(b"")),
        "protected not in bytes": framed(header(), empty, PAYLOAD, SIGNED),
        "protected in a longer head": framed(
            Raw(b"\x59" + len(PROTECTED).to_bytes(2, "big") + PROTECTED), empty, PAYLOAD, SIGNED
        ),
        "unprotected null": framed(PROTECTED, None, PAYLOAD, SIGNED),
        "unprotected an array": framed(PROTECTED, [], PAYLOAD, SIGNED),
        "unprotected in bytes": framed(PROTECTED, b"\xa0", PAYLOAD, SIGNED),
        "unprotected in a longer head": framed(PROTECTED, raw("b800"), PAYLOAD, SIGNED),
        "unprotected of indefinite length": framed(PROTECTED, raw("bfff"), PAYLOAD, SIGNED),
        "unprotected with an indefinite length in it": framed(PROTECTED, raw("a1019fff"), PAYLOAD, SIGNED),
        "unprotected with a reserved head in it": framed(PROTECTED, raw("a1011c"), PAYLOAD, SIGNED),
        "unprotected with 65 items": framed(PROTECTED, raw("a101983e" + "00" * 62), PAYLOAD, SIGNED),
        "unprotected with 2^64-1 entries": framed(PROTECTED, raw("bbffffffffffffffff"), PAYLOAD, SIGNED),
        "unprotected with arrays to level 9": framed(PROTECTED, raw("a101" + "81" * 6 + "80"), PAYLOAD, SIGNED),
        "unprotected with a chain of 64 tags": framed(PROTECTED, raw("a101" + "c1" * 62 + "00"), PAYLOAD, SIGNED),
        "signature of 63 bytes": framed(PROTECTED, empty, PAYLOAD, SIGNED[:63]),
        "signature of 65 bytes": framed(PROTECTED, empty, PAYLOAD, SIGNED + b"\x01"),
        "signature empty": framed(PROTECTED, empty, PAYLOAD, b""),
        "signature in DER": framed(PROTECTED, empty, PAYLOAD, b"\x30\x44\x02\x20" + R + b"\x02\x20" + S),
        "signature text": framed(PROTECTED, empty, PAYLOAD, Raw(b"\x78\x40" + b"a" * 64)),
        "COSE_Sign, which has several signatures": b"\xd8\x62" + GOOD[1:],
    }
    for name, envelope in bad.items():
        yield Vector(f"envelope/{name}", "section 3", envelope, STRUCTURE)
    room = 256 * 1024 - len(sealed(stop(k16=bytes(100_000)))) + 100_001
    over = sealed(stop(k16=bytes(room)))
    yield Vector("envelope/256 KiB and a byte", "too large", over, STRUCTURE, parts=long(over, room))


# ---- header and kid ---------------------------------------------------------------------------------------------

HEADERS: dict[str, Any] = {
    "no map": [1],
    "two items": Raw(item(header()) + b"\0"),
    "empty": Raw(b""),
    "empty map": {},
    "alg missing": header(k1=GONE),
    "content type missing": header(k3=GONE),
    "kid missing": header(k4=GONE),
    "alg -7, ES256": header(k1=-7),
    "alg -8, EdDSA": header(k1=-8),
    "alg text": header(k1="ES256K"),
    "alg -47.0": header(k1=-47.0),
    "alg null": header(k1=None),
    "content type of another format": header(k3="application/cbor"),
    "content type with a parameter": header(k3="application/vnd.edge-agent.evidence+cbor; v=1"),
    "content type in other letters": header(k3="Application/vnd.edge-agent.evidence+cbor"),
    "content type by its number": header(k3=60),
    "content type in bytes": header(k3=b"application/vnd.edge-agent.evidence+cbor"),
    "crit": header(k2=[1]),
    "an unlisted key below 16": header(k15=1),
    "a negative key": changed(header(), **{"k-1": 1}),
    "a text key": Pairs(((1, -47), (3, header()[3]), (4, header()[4]), ("x", 1))),
    "key true": Pairs(((3, header()[3]), (4, header()[4]), (True, -47))),
    "keys out of order": Pairs(((3, header()[3]), (1, -47), (4, header()[4]))),
    "a key twice": Pairs(((1, -47), (1, -47), (3, header()[3]), (4, header()[4]))),
    "alg in a longer head": Pairs(((1, raw("39002e")), (3, header()[3]), (4, header()[4]))),
    "kid text": header(k4=f"{DID}#controller"),
    "1,025 bytes": header(k16=bytes(1024 - len(item(header(k16=b""))) - 1)),
}
KIDS: dict[str, bytes | str] = {
    "not UTF-8": b"\xff" + f"{DID}#controller".encode(),
    "without a fragment": DID,
    "with an empty fragment": f"{DID}#",
    "with a fragment that needs a DID document": f"{DID}#delegate-1",
    "with two fragments": f"{DID}#controller#controller",
    "with more behind it": f"{DID}#controller ",
    "with a line feed behind it": f"{DID}#controller\n",
    "with a query": f"{DID}?a=b#controller",
    "with a path": f"{DID}/a#controller",
    "of another method": f"did:web:{ADDRESS}#controller",
    "in other letters": f"DID{DID[3:]}#controller",
    "with a network in capitals": f"did:ethr:Volta:{ADDRESS}#controller",
    "with an empty network": f"did:ethr::{ADDRESS}#controller",
    "with two networks": f"did:ethr:ewc:volta:{ADDRESS}#controller",
    "with 0X": f"did:ethr:volta:0X{ADDRESS[2:]}#controller",
    "with 39 digits": f"{DID[:-1]}#controller",
    "with 41 digits": f"{DID}0#controller",
    "with digits of another script": f"did:ethr:volta:0x{ADDRESS[2:-1]}\u0663#controller",
    "by a public key": f"did:ethr:volta:0x02{'11' * 32}#controller",
    "empty": "",
}


def headers() -> Iterator[Vector]:
    """Protected headers that are refused; the signature over each is right."""
    for name, fields in HEADERS.items():
        yield Vector(f"header/{name}", "section 3", sealed(stop(), fields), STRUCTURE)
    for name, kid in KIDS.items():
        yield Vector(f"kid/{name}", "the grammar of kid", sealed(stop(), header(kid)), STRUCTURE)


# ---- who and whether ----------------------------------------------------------------------------------------------


def signers() -> Iterator[Vector]:
    """Signatures that do not hold, and those of others."""
    high = (ORDER - int.from_bytes(S, "big")).to_bytes(32, "big")
    order, zero = ORDER.to_bytes(32, "big"), bytes(32)
    halves = {
        "high s: the other signature of the same": R + high,
        "s is the lowest of the high ones": R + ((ORDER + 1) // 2).to_bytes(32, "big"),
        "s is zero": R + zero,
        "r is zero": zero + S,
        "both are zero": zero + zero,
        "s is the order": R + order,
        "r is the order": order + S,
        "r and s are 2^256-1": b"\xff" * 64,
        "r is no x of the curve": (5).to_bytes(32, "big") + S,
        "s before r": S + R,
        "of another record": signature(PROTECTED, item(stop("SIGINT"))),
        "over the payload alone": signature(b"", PAYLOAD),
        "with other bytes of the header": signature(item(header(f"{DID}#owner")), PAYLOAD),
        "by another key in the signer's name": signature(PROTECTED, PAYLOAD, SECRETS["stranger"]),
    }
    for name, both in halves.items():
        yield Vector(
            f"signature/{name}", "not the signature of kid's key", framed(PROTECTED, {}, PAYLOAD, both), SIGNATURE
        )
    yield Vector(
        "signature/before structure",
        "what is not signed is not read: the payload is no CBOR",
        framed(PROTECTED, {}, b"\xff", SIGNED),
        SIGNATURE,
    )
    strangers = {
        "another signer": (DIDS["stranger"], "stranger"),
        "another network": (DID.replace("volta", "ewc"), "signer"),
        "no network, which is mainnet": (DID.replace("volta:", ""), "signer"),
        "a chain id with a zero before it": (DID.replace("volta", "0x012047"), "signer"),
        "another address than the key's": (NEXT_DOOR, "signer"),
    }
    for name, (did, secret) in strangers.items():
        envelope = sealed(stop(), header(f"{did}#controller"), secret=SECRETS[secret])
        yield Vector(f"foreign/{name}", "not the DID that is accepted", envelope, "foreign")
    foreign = header(f"{DIDS['stranger']}#controller")
    yield Vector(
        "foreign/with a wrong signature",
        "of a foreign envelope nothing more is judged",
        sealed(raw("ff"), foreign, secret=SECRETS["other"]),
        "foreign",
    )


# ---- records ------------------------------------------------------------------------------------------------------

RECORDS: dict[str, Any] = {
    "no map": [1],
    "two items": Raw(PAYLOAD + b"\0"),
    "cut": Raw(PAYLOAD[:-1]),
    "no version": stop(k1=GONE),
    "version 1.0": stop(k1=1.0),
    "version true": stop(k1=True),
    "version -1": stop(k1=-1),
    "no stream": stop(k2=GONE),
    "stream of 15 bytes": stop(k2=bytes(15)),
    "stream of 17 bytes": stop(k2=bytes(17)),
    "stream text": stop(k2="a" * 16),
    "no seq": stop(k3=GONE),
    "seq 0": stop(k3=0),
    "seq -1": stop(k3=-1),
    "seq 2.0": stop(k3=2.0),
    "seq a bignum": stop(k3=raw("c249010000000000000000")),
    "no prev": stop(k4=GONE),
    "prev of 31 bytes": stop(k4=bytes(31)),
    "prev of 33 bytes": stop(k4=bytes(33)),
    "prev null": stop(k4=None),
    "no sealed": stop(k5=GONE),
    "sealed of three": stop(k5=[1, 2, 0]),
    "sealed of five": stop(k5=[1, 2, 0, None, None]),
    "sealed at a negative time": stop(k5=[-1, 2, 0, None]),
    "sealed at a float": stop(k5=[1.5, 2, 0, None]),
    "clock 3": stop(k5=[1, 2, 3, None]),
    "clock null": stop(k5=[1, 2, None, None]),
    "a negative error of the clock": stop(k5=[1, 2, 0, -1]),
    "no kind": stop(k6=GONE),
    "kind 0": stop(k6=0),
    "kind null": stop(k6=None),
    "neither body nor packed": stop(k7=GONE),
    "both body and packed": stop(k8=packed(item([2, BOOT, []]), 0)),
    "an unlisted key below 16": stop(k15=1),
    "a negative key": changed(stop(), **{"k-1": 1}),
    "body null": second(3, None),
    "body of another kind": second(1, [2, BOOT, []]),
    "keys twice": Pairs((*stop().items(), (16, 0), (16, 0))),
    "version of the next format with seq 0": stop(k1=2, k3=0),
    "version of the next format without prev": stop(k1=2, k4=GONE),
    "version of the next format with NaN": stop(k1=2, k9=raw("f97e00")),
}
NOT_OF_THE_CDDL = {
    "two items",
    "cut",
    "keys twice",
    "seq a bignum",
    "version of the next format with NaN",
}  # the CDDL is asked of single well-formed items only
BODY = item([2, BOOT, ["SIGTERM"]])


def zlib_with_dictionary() -> bytes:
    """The body, packed with a dictionary that both sides would have to know."""
    packer = zlib.compressobj(0, zdict=b"SIGTERM")
    return packer.compress(BODY) + packer.flush()


PACKED: dict[str, bytes] = {
    "empty": b"",
    "a byte behind it": packed(BODY, 0) + b"\0",
    "a second stream behind it": packed(BODY, 0) * 2,
    "unfinished": packed(BODY, 0, finished=False),
    "without its checksum": packed(BODY, 0)[:-4],
    "with a part of its checksum": packed(BODY, 0)[:-1],
    "with a wrong checksum": packed(BODY, 0)[:-1] + b"\0",
    "with a dictionary": zlib_with_dictionary(),
    "gzip": b"\x1f\x8b\x08" + bytes(6) + b"\xff" + packed(BODY, 0)[2:-4] + bytes(8),
    "deflate without zlib": packed(BODY, 0)[2:-4],
    "another method than deflate": b"\x77\x07" + packed(BODY, 0)[2:],
    "a wrong check of its head": b"\x78\x02" + packed(BODY, 0)[2:],
    "a block of a type that is not": b"\x78\x01\x07",
    "nothing in it": packed(b"", 0),
    "two items in it": packed(BODY, 1),
    "not deterministic in it": packed(b"\x83\x18\x02" + BODY[2:], 0),
    "nested nine deep in it": packed(item([2, BOOT, nested(8)]), 0),
    "not a body in it": packed(b"\xf6", 0),
    "packed twice": packed(item(packed(BODY, 0)), 0),
}


def records() -> Iterator[Vector]:
    """Records that are signed well and are none."""
    for name, fields in RECORDS.items():
        cddl = None if name in NOT_OF_THE_CDDL or isinstance(fields, Raw) else False
        yield Vector(f"record/{name}", "section 4", sealed(fields), STRUCTURE, in_cddl=cddl)
    for name, hexed in REFUSED.items():
        if name not in {"nothing", "two items"}:
            hexed = hexed if len(hexed) < 400 else "81" * 100 + "80"
            what = "section 3 holds everywhere, also under a key that nobody knows"
            yield Vector(f"cbor/{name}", what, sealed(stop(k16=raw(hexed))), STRUCTURE)
    yield Vector("depth/record, nine", "one level too many", sealed(stop(k16=nested(8))), STRUCTURE)
    yield Vector(
        "depth/body, nine",
        "one level too many, the record's map counted",
        sealed(second(3, [2, BOOT, nested(7)])),
        STRUCTURE,
    )
    for name, content in PACKED.items():
        yield Vector(f"packed/{name}", "section 4", sealed(changed_to_packed(second(3, None), content)), STRUCTURE)
    yield Vector("packed/text", "packed is bytes", sealed(stop(k7=GONE, k8="x")), STRUCTURE, in_cddl=False)
    yield Vector(
        "packed/of an unknown kind, not deterministic",
        "section 3 holds for it too",
        sealed(changed_to_packed(second(4, None), packed(raw("1801").content, 0))),
        STRUCTURE,
    )
    for name, zeros in (("4 MiB and a byte", 2**22 - 16), ("a bomb of 30 MB", 30_000_000)):
        start = item([2, BOOT, [b""]])[:-1] + b"\x5a" + zeros.to_bytes(4, "big")
        envelope = sealed(changed_to_packed(second(3, None), packed(start, zeros)))
        yield Vector(f"packed/{name}", "unpacking ends at 4 MiB", envelope, STRUCTURE, parts=matches(envelope))


def vectors() -> list[Vector]:
    """All of them."""
    return [*framing(), *headers(), *signers(), *records(), *invalid_bodies.bodies()]
