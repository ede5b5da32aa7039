"""Streams of a few records in the order in which they came, and what continuity is said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.vectors.invalid import parts
from tests.vectors.vector import BOOT, PARENT, SECOND, STREAM, WALL, plan_body, record
from tests.vectors.writing import ORDER, SECRETS, Raw, header, item, sealed

Hole = tuple[bytes, int, int, str]
RESUMES = [9, [["pv-1", "ac", 1, WALL // SECOND]]]  # agent_down; nothing was covered in the run before


@dataclass(frozen=True)
class Chain:
    """Envelopes by name in the order of their coming, and what is found in them."""

    name: str
    what: str
    order: Sequence[str]
    continuity: str = "ok"
    complete: bool = True  # the reader says that there are no others
    repeats: int = 0
    equivocations: int = 0
    broken: Sequence[tuple[bytes, int]] = ()
    holes: Sequence[Hole] = ()

    def as_json(self) -> dict[str, Any]:
        """The chain as it stands in its file."""
        return {
            "name": self.name,
            "what": self.what,
            "complete": self.complete,
            "records": list(self.order),
            "continuity": self.continuity,
            "repeats": self.repeats,
            "equivocations": self.equivocations,
            "broken": [[stream.hex(), seq] for stream, seq in self.broken],
            "holes": [[stream.hex(), first, last, state] for stream, first, last, state in self.holes],
        }


@dataclass
class _Writer:
    """Seals one record after the other."""

    stream: bytes
    prev: bytes = bytes(32)
    seq: int = 0
    sent: dict[str, bytes] = field(default_factory=dict)

    def seal(self, name: str, kind: int, body: Any, **changes: Any) -> None:
        self.seq += 1
        fields = record(kind, body, **({"k2": self.stream, "k3": self.seq, "k4": self.prev} | changes))
        self.prev = hashlib.sha256(item(fields)).digest()
        self.sent[name] = sealed(fields)


def _event(text: str) -> list[Any]:
    return [3, BOOT, [text]]


def envelopes() -> dict[str, bytes]:
    """All records of all chains: a1 to a6 and b1, b2, which follow a4, and records that stand in their places."""
    a = _Writer(PARENT)
    a.seal("a1", 1, plan_body())
    for n in (2, 3, 4):
        a.seal(f"a{n}", 3, _event(f"record {n}"))
    last = a.prev
    a.seal("a5", 3, _event("record 5"))
    a.seal("a6", 1, plan_body(k12=[[PARENT, 2, 2, 11], [PARENT, 3, 4, 13]]))
    a.seal("a7 of another version", 3, "what a newer format has", k1=2)
    a.seal("a8", 3, _event("record 8"))
    a.seal("a9 with a body that is none", 3, _event("record 9")[:2])
    a.seal("a10", 3, _event("record 10"))
    b = _Writer(STREAM, prev=last)
    b.seal("b1", 1, plan_body(k10=[PARENT, 4], k11=RESUMES))
    b.seal("b2", 3, _event("record 2"))
    found = a.sent | b.sent
    third = parts(found["a3"])
    fields = {1: 1, 2: PARENT, 3: 3, 4: hashlib.sha256(parts(found["a2"])[1]).digest()}
    fields |= {5: record(3, None)[5], 6: 3}
    kid = header(header()[4].replace(b"controller", b"owner"))
    found["a3 sealed twice"] = sealed(Raw(third[1]), kid)
    found["a3 with other content"] = sealed(fields | {7: _event("another")})
    found["a3 after another a2"] = sealed(fields | {4: bytes(32), 7: _event("record 3")})
    high = (ORDER - int.from_bytes(third[2][32:], "big")).to_bytes(32, "big")
    found["a3 with high s"] = found["a3"].replace(third[2][32:], high)
    found["a3 of a stranger"] = sealed(Raw(third[1]), secret=SECRETS["stranger"])
    other = record(1, plan_body(), k2=PARENT, k4=bytes(31) + b"\1")
    found["a1 with a prev"] = sealed(other)
    found["c1 is no plan"] = sealed(record(3, _event("record 1"), k2=bytes(16)))
    wrong = record(1, plan_body(k10=[PARENT, 4], k11=RESUMES), k2=STREAM, k4=hashlib.sha256(b"another a4").digest())
    found["b1 after another a4"] = sealed(wrong)
    return found


def chains() -> Iterator[Chain]:
    """All of them."""
    four = ["a1", "a2", "a3", "a4"]
    yield Chain("in order", "four records", four)
    yield Chain("out of order", "as a broker may deliver them", ["a2", "a4", "a3", "a1"])
    yield Chain("a late joiner", "the first record at hand may be any", ["a3", "a4"])
    yield Chain("two runs", "the second follows the fourth record of the first", [*four, "b1", "b2"])
    yield Chain("two runs, the second first", "order is within a stream", ["b1", "b2", *four])
    yield Chain("a run whose parent is not at hand", "its prev cannot be checked", ["b1", "b2"])
    yield Chain("repeat", "the same digest again is passed over", [*four, "a2", "a4", "a4"], repeats=3)
    yield Chain(
        "repeat under another header", "a record is its bytes, not its envelope", [*four, "a3 sealed twice"], repeats=1
    )
    yield Chain(
        "equivocation",
        "another digest for a number; the first that came stands",
        [*four, "a3 with other content"],
        "failed",
        equivocations=1,
    )
    hole = (PARENT, 2, 3)
    yield Chain("a hole", "nothing accounts for two records", ["a1", "a4"], "failed", holes=[(*hole, "failed")])
    yield Chain(
        "a hole, more may come",
        "the reader does not say that the input is complete",
        ["a1", "a4"],
        "unknown",
        complete=False,
        holes=[(*hole, "unknown")],
    )
    yield Chain("a hole that is filled", "the missing ones came late", ["a1", "a4", "a3", "a2"])
    yield Chain(
        "a hole that is accounted for",
        "a later plan withdraws records 2 to 4, in two ranges",
        ["a1", "a5", "a6"],
        holes=[(PARENT, 2, 4, "accounted")],
    )
    yield Chain(
        "a hole that is withdrawn in part",
        "all of it must be withdrawn",
        ["a1", "a6"],
        "failed",
        holes=[(PARENT, 2, 5, "failed")],
    )
    yield Chain("withdrawn and there", "withdrawing is a permission only", [*four, "a5", "a6"])
    yield Chain(
        "broken",
        "prev is the digest of another record",
        ["a1", "a2", "a3 after another a2", "a4"],
        "failed",
        broken=[(PARENT, 3), (PARENT, 4)],
    )
    yield Chain(
        "prev at the beginning", "without follows it is zeros", ["a1 with a prev"], "failed", broken=[(PARENT, 1)]
    )
    yield Chain(
        "no plan at the beginning", "a stream begins with a plan", ["c1 is no plan"], "failed", broken=[(bytes(16), 1)]
    )
    yield Chain(
        "a run that follows another record",
        "prev at seq 1 is the digest of the record that follows names",
        [*four, "b1 after another a4"],
        "failed",
        broken=[(STREAM, 1)],
    )
    bad = [(PARENT, 3, 3, "failed")]
    yield Chain("what is not signed has no place", "high s", ["a1", "a2", "a3 with high s", "a4"], "failed", holes=bad)
    yield Chain(
        "nor what another key signed", "it leaves a hole", ["a1", "a2", "a3 of a stranger", "a4"], "failed", holes=bad
    )
    yield Chain("nor does it equivocate", "the right one is there", [*four, "a3 with high s", "a3 of a stranger"])
    more = [*four, "a5", "a6", "a7 of another version", "a8"]
    yield Chain("through another version", "the chain goes on by digest", more)
    yield Chain(
        "through a record that cannot be read",
        "it fails at structure; its place and its digest stand",
        [*more, "a9 with a body that is none", "a10"],
    )
