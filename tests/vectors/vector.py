"""What a golden vector is, and records to make vectors of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.vectors.notation import notation
from tests.vectors.writing import changed, header, item

STREAM = bytes(range(0xA0, 0xB0))
PARENT = bytes(range(0xB0, 0xC0))
BOOT_ID = bytes(range(16))
WALL, BOOT = 1_764_001_000_000_000_000, 1_000_000_000_000
SECOND = 1_000_000_000
GONE = type(None)  # in changed(): the key goes
STRUCTURE = "structure failed"

Part = tuple[bytes, int]  # bytes, and how often they come one after another


@dataclass(frozen=True)
class Vector:
    """One envelope and what a verifier says of it."""

    name: str
    what: str
    envelope: bytes
    verdict: str = "ok"
    plan: str | None = None  # the vector whose plan is in force
    reported: Sequence[str] = ()
    frames: Sequence[dict[str, Any]] | None = None  # of data: what it means; values in diagnostic notation
    in_cddl: bool | None = None  # whether it has the CDDL's shape; None: as the verdict says, nothing else is claimed
    parts: Sequence[Part] = ()  # how it is stored if it is long
    body: bytes = b""  # of a packed one, for its notation

    def as_json(self) -> dict[str, Any]:
        """The vector as it stands in its file."""
        found: dict[str, Any] = {"name": self.name, "what": self.what, "verdict": self.verdict}
        if self.plan:
            found["plan"] = self.plan
        if self.reported:
            found["reported"] = list(self.reported)
        if self.in_cddl is not None:
            found["cddl"] = self.in_cddl
        found["notation"] = explained(self.envelope)
        if self.body:
            found["body"] = notation(self.body)
        if self.frames is not None:
            found["frames"] = list(self.frames)
        if self.parts:
            assert b"".join(content * times for content, times in self.parts) == self.envelope
            return found | {"parts": [[content.hex(), times] for content, times in self.parts]}
        return found | {"envelope": self.envelope.hex()}


def explained(envelope: bytes) -> dict[str, str] | str:
    """Diagnostic notation of the record, and of the header and the signature where they are unusual; of the whole
    envelope if it does not come apart.
    """
    at, parts = 2, []
    try:
        for major in (2, 5, 2, 2):
            start, (found, argument, at) = at, _head(envelope, at)
            if found != major or (major == 5 and argument):
                return notation(envelope)
            at += argument
            parts.append(envelope[start + (0 if major == 5 else at - argument - start) : at])
    except IndexError:
        return notation(envelope)
    if envelope[:2] != b"\xd2\x84" or at != len(envelope):
        return notation(envelope)
    shown = {"record": notation(parts[2])}
    if parts[0] != item(header()):
        shown = {"header": notation(parts[0])} | shown
    return shown if len(parts[3]) == 64 else shown | {"signature": notation(item(parts[3]))}


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    info = data[at] & 31
    size = 0 if info < 24 else 1 << info - 24
    if info > 27:
        raise IndexError
    argument = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else info
    return data[at] >> 5, argument, at + 1 + size


# ---- records ----------------------------------------------------------------------------------------------------


def record(kind: int, body: Any, **changes: Any) -> dict[int, Any]:
    """A record's fields; ``k3=2`` sets key 3."""
    fields = {1: 1, 2: STREAM, 3: 1, 4: bytes(32), 5: [WALL, BOOT, 0, None], 6: kind, 7: body}
    return changed(fields, **changes)


def second(kind: int, body: Any, **changes: Any) -> dict[int, Any]:
    """A record behind the first one, whose digest is made up: nothing here is judged in its chain."""
    return record(kind, body, **({"k3": 2, "k4": hashlib.sha256(b"the record before").digest()} | changes))


def stop(*details: Any, **changes: Any) -> dict[int, Any]:
    """The event of a stop, the smallest record there is."""
    return second(3, [2, BOOT, list(details) or ["SIGTERM"]], **changes)


def plan_body(**changes: Any) -> dict[int, Any]:
    """The body of a plan with two points of one periodic group; ``k1=2`` sets the term."""
    return changed(
        {
            1: 1,
            2: [WALL, BOOT],
            3: BOOT_ID,
            4: "0.1.0",
            5: ["site-1", [["dso", "westnet"]]],
            6: ["dso", "dx.site-1.dso"],
            7: bytes(range(32)),
            8: [["pv-1", "modbus", None, None, None, "SN1", None]],
            9: [group_map()],
            12: [],
            13: False,
            14: 1000,
        },
        **changes,
    )


def group_map(**changes: Any) -> dict[int, Any]:
    """A periodic group of two points, every second."""
    points = [["W", "W", 0, 0, None, {}], ["PhVphA", "V", 0, -1, None, {}]]
    return changed({1: "ac", 2: 0, 3: [SECOND, 0, WALL // SECOND, BOOT], 4: WALL // SECOND, 5: points}, **changes)


def data_body(blocks: Sequence[Any] = (), gaps: Sequence[Any] = (), term: int = 1) -> list[Any]:
    """The body of a data record."""
    return [term, list(blocks), list(gaps)]


def block(**changes: Any) -> dict[int, Any]:
    """Two frames of the plain plan's group."""
    first = WALL // SECOND
    return changed({1: 0, 2: [first, 1], 3: [1200, 800], 4: [3100, 2900], 5: [[4200, 10], [2304, -3]]}, **changes)


def changed_to_packed(fields: dict[int, Any], content: bytes) -> dict[int, Any]:
    """The record with its body packed."""
    new = dict(fields)
    del new[7]
    return new | {8: content}


def long(envelope: bytes, filler: int) -> tuple[Part, ...]:
    """How an envelope is stored that holds ``filler`` zero bytes in a row: before, zeros, behind."""
    at = envelope.index(bytes(filler))
    return (envelope[:at], 1), (b"\0", filler), (envelope[at + filler :], 1)
