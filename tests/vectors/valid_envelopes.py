"""Vectors that verify: events, unknown kinds and versions, and what an envelope may be besides what the agent makes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.vectors.vector import (
    BOOT,
    GONE,
    SECOND,
    WALL,
    Part,
    Vector,
    changed_to_packed,
    long,
    second,
    stop,
)
from tests.vectors.writing import DID, Raw, header, item, packed, raw, sealed

TOP = 2**64 - 1

# ---- events and the rest ----------------------------------------------------------------------------------------

EVENTS = {
    "start": [1, BOOT, ["0.1.0", False]],
    "start after an orderly stop": [1, BOOT, ["0.1.0", True]],
    "stop": [2, BOOT, ["SIGTERM"]],
    "configuration refused": [3, BOOT, ["line 7: interval: too short"]],
    "device identity changed": [4, BOOT, ["pv-1", "SN1", "SN2"]],
    "outbox damaged": [5, BOOT, ["segment 3: cut short"]],
    "clock step": [6, BOOT, [WALL, WALL - 3600 * SECOND]],
    "without details": [2, 0, []],
    "details of any kind": [2, TOP, [None, 1.5, b"\x01", -1, [[[]]], {-1: {16: "x"}}]],
}


def events() -> Iterator[Vector]:
    """Events, unknown kinds and versions."""
    for name, body in EVENTS.items():
        yield Vector(f"event/{name}", "an event", sealed(second(3, body)))
    unknown = sealed(second(3, [7, BOOT, []], k2000=0))
    yield Vector("event/unknown", "an event that nobody knows", unknown, reported=["event 7", "record: key 2000"])
    content = item([7, BOOT, ["x"]])
    yield Vector(
        "event/packed",
        "packed though that makes it longer: whether to pack is the agent's choice",
        sealed(changed_to_packed(second(3, None), packed(content, 0))),
        reported=["event 7"],
        body=content,
    )
    for clock, error in ((0, None), (1, None), (1, TOP), (2, 0), (2, 1500)):
        name = f"sealed/clock {clock}, error {error}"
        yield Vector(name, "state and error of the clock", sealed(stop(k5=[0, TOP, clock, error])))
    kind = sealed(second(4, {1: "x", -3: 1.5}))
    yield Vector("kind/unknown", "a kind that nobody knows", kind, reported=["kind 4"])
    kind = sealed(changed_to_packed(second(TOP, None), packed(b"\xf6", 0)))
    yield Vector("kind/unknown, packed", "its body obeys section 3 all the same", kind, reported=[f"kind {TOP}"])
    for version in (0, 2, TOP):
        yield Vector(
            f"version/{version}",
            "of another version only keys 1 to 4 are read",
            sealed(stop(k1=version, k5="new", k6=GONE, k7=GONE, k9=1)),
            "structure unknown",
        )


# ---- envelopes --------------------------------------------------------------------------------------------------

UNPROTECTED = {
    "one entry": "a10401",
    "what a record must not hold": "a3616bc249010000000000000000f5f97e00f7f820",
    "keys twice, out of order, longer than needed": "a3180101010120f8ff",
    "a bigfloat bomb that nobody opens": "a101c5821b00000000000fffff01",
    "text that is not UTF-8": "a10162c328",
    "64 items, the map among them": "a101983b" + "00" * 58 + "818180",
    "arrays to level 8": "a101" + "81" * 5 + "80",
    "tags do not nest": "a101" + "c1" * 20 + "80",
}
KIDS = {
    "owner": f"{DID}#owner",
    "address in lower case": f"{DID.lower()}#controller",
    "address in upper case": f"{DID[:17]}{DID[17:].upper()}#controller",
    "network by its chain id": f"{DID.replace('volta', '0x12047')}#controller",
}


def envelopes() -> Iterator[Vector]:
    """What an envelope may be besides what the agent makes."""
    for name, hexed in UNPROTECTED.items():
        yield Vector(f"unprotected/{name}", "is stepped over", sealed(stop(), unprotected=raw(hexed)))
    for name, kid in KIDS.items():
        yield Vector(f"kid/{name}", "the same signer", sealed(stop(), header(kid)))
    room = 1024 - len(item(header(k16=b"")))
    yield Vector(
        "header/1,024 bytes",
        "the longest header",
        sealed(stop(), header(k16=bytes(room - 2))),
        reported=["header: key 16"],
    )
    room = 256 * 1024 - len(sealed(stop(k16=bytes(100_000)))) + 100_000
    largest = sealed(stop(k16=bytes(room)))
    yield Vector(
        "size/256 KiB",
        "the largest envelope",
        largest,
        reported=["record: key 16"],
        parts=long(largest, room),
    )
    start = item([2, BOOT, [bytes(2**22 - 17)]])[:17]  # all but the zeros
    content = packed(start, 2**22 - 17)
    whole = sealed(changed_to_packed(second(3, None), content))
    yield Vector("size/4 MiB unpacked", "the largest body", whole, parts=matches(whole))
    yield Vector("depth/record", "a record nests eight deep", sealed(stop(k16=nested(7))), reported=["record: key 16"])
    deep = packed(item([2, BOOT, nested(6)]), 0)
    yield Vector("depth/packed body", "and so does a packed body", sealed(changed_to_packed(second(3, None), deep)))
    yield Vector("depth/body", "a plain one is inside the record", sealed(second(3, [2, BOOT, nested(6)])))


def nested(arrays: int) -> Raw:
    """That many arrays, each in the one before it."""
    return Raw(b"\x81" * (arrays - 1) + b"\x80")


def matches(envelope: bytes) -> tuple[Part, ...]:
    """How an envelope is stored that holds a long run of zeros as ``packed`` packs it: eight matches are 13 bytes."""
    for at in range(200, 400):
        unit = envelope[at : at + 13]
        if envelope[at : at + 13 * 1000] == unit * 1000:
            times = next(n for n in range(1000, len(envelope)) if envelope[at + 13 * n : at + 13 * n + 13] != unit)
            return (envelope[:at], 1), (unit, times), (envelope[at + 13 * times :], 1)
    raise AssertionError("no such run")
