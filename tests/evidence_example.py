"""The worked example of docs/evidence.md: three records with everything fixed, and each of their bytes explained.

``python -m tests.evidence_example`` writes the golden files anew and prints the blocks that the page shows. The
golden files are for whoever writes a decoder: a change of them is a change of the format.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.evidence.record import Body, encode_data, encode_event, encode_plan
from agent.model import (
    Cause,
    ClockState,
    Data,
    DeviceInfo,
    Event,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Kind,
    Point,
    Quality,
    Schedule,
    ValueType,
)
from agent.rendering import objects
from agent.verifier import Verifier
from tests.runs import DID, Run, S

GOLDEN = Path(__file__).parent / "golden" / "evidence"
STREAM = bytes(range(0xA0, 0xB0))
PERIOD = S // 5
FIRST = 1_764_001_000 * S // PERIOD
DEVICE = DeviceInfo("pv-1", "modbus", serial="SN1")
POINTS = (Point("W", "W", ValueType.INTEGER), Point("PhVphA", "V", ValueType.INTEGER, -1))
NAMES = ("plan", "event", "data")


def records() -> dict[str, bytes]:
    """The envelopes of the example by name, in the order of their stream.

    Bodies are not packed: a reader sees them, and zlib's output may differ between its versions.
    """
    sealer = (run := Run()).sealer
    sealer.stream = STREAM
    group = GroupPlan("ac", 0, Schedule(PERIOD, 0, FIRST, 1000 * S), FIRST, POINTS)
    sealer.begin_term(opened=(run.clock.wall(), run.clock.boot()), devices=[DEVICE], groups=[group])
    assert sealer.coverage is not None
    plan = encode_plan(sealer.coverage.plan)
    start = encode_event(Event(EventCode.START, run.clock.boot(), ("0.1.0", False)))
    sealed = {
        "plan": sealer.seal(Body(Kind.PLAN, 7, plan), at=sealer.now())[0],
        "event": sealer.seal(Body(Kind.EVENT, 7, start), at=sealer.now())[0],
    }
    run.clock.now += S - S // 10
    frames = [
        Frame(0, FIRST, 1200, 3100, (4200, 2304)),
        Frame(0, FIRST + 1, 800, 2900, (4210, None), ((1, Quality.DEVICE_EXCEPTION),)),
        Frame(0, FIRST + 4, 950, 3000, (4195, 2301)),
    ]
    gap = Gap(0, FIRST + 2, FIRST + 3, Cause.DEVICE_TIMEOUT, "no answer within 0.1 s")
    data = encode_data(Data(1, frames, [gap]), sealer.coverage.plan)
    sealed["data"] = sealer.seal(Body(Kind.DATA, 7, data), at=sealer.now())[0]
    return sealed


def rendering(envelopes: Mapping[str, bytes]) -> dict[str, Any]:
    """What a verifier that accepts the example's signer says of each record."""
    verifier = Verifier([DID])
    judged = [each for envelope in envelopes.values() for each in verifier.feed(envelope)]
    judged += verifier.finish(complete=True)
    return dict(zip(envelopes, map(objects.as_json, judged), strict=True))


# ---- names ------------------------------------------------------------------------------------------------------


class Algorithm(enum.IntEnum):
    """COSE algorithms in use."""

    ES256K = -47


@dataclass(frozen=True)
class Field:
    """What stands at a place: its name, the names inside it, and the words for its numbers.

    ``inside``: by key or index. ``each``: every element alike. ``embedded``: the bytes are CBOR themselves.
    """

    name: str
    inside: Mapping[int, Field] | None = None
    each: Field | None = None
    words: type[enum.IntEnum] | None = None
    embedded: Field | None = None


def _fields(first: int, *names: str | Field) -> Mapping[int, Field]:
    return {i: each if isinstance(each, Field) else Field(each) for i, each in enumerate(names, first)}


_CAUSE = Field("cause", words=Cause)
_POINT = Field(
    "point", _fields(0, "name", "unit", Field("type", words=ValueType), "exponent", "source", "labels of values")
)
_GROUP = Field(
    "group",
    _fields(
        1,
        "name",
        "device, by index",
        Field("schedule, ns", _fields(0, "period", "phase", "first cycle", "boot time at which it is due")),
        "next: first cycle not yet covered",
        Field("points", each=_POINT),
    ),
)
_DEVICE = Field("device", _fields(0, "id", "adapter", "asset", "manufacturer", "model", "serial number", "firmware"))
_PLAN = Field(
    "body: plan",
    _fields(
        1,
        "term",
        Field("opened", _fields(0, "wall, ns", "boot, ns")),
        "boot id",
        "version of the agent",
        Field("site", _fields(0, "id", Field("labels", each=Field("label", _fields(0, "name", "value"))))),
        Field("channel", _fields(0, "id", "topic")),
        "HMAC of the configuration",
        Field("devices", each=_DEVICE),
        Field("groups", each=_GROUP),
        "follows",
        "resumes",
        "withdrawn: none",
        "volatile",
        "window, ms",
    ),
)
_BLOCK = Field(
    "block",
    _fields(
        1,
        "group, by index",
        Field("cycles: the first, then distances from it", each=Field("cycle")),
        Field("late, us", each=Field("frame")),
        Field("took, us", each=Field("frame")),
        Field("values, by point", each=Field("point: first value, then differences", each=Field("frame"))),
        Field(
            "not good",
            each=Field("entry", _fields(0, "frame, by index", "point, by index", Field("quality", words=Quality))),
        ),
    ),
)
_GAP = Field(
    "gap", _fields(0, "group, by index", "from cycle", "to cycle", _CAUSE, "detail", "from boot time", "to boot time")
)
_DATA = Field("body: data", _fields(0, "term", Field("blocks", each=_BLOCK), Field("gaps", each=_GAP)))
_EVENT = Field(
    "body: event",
    _fields(
        0,
        Field("event", words=EventCode),
        "boot time, ns",
        Field("details", _fields(0, "version", "last stop was clean")),
    ),
)
_BODIES = {"plan": _PLAN, "event": _EVENT, "data": _DATA}


def _envelope(name: str) -> Field:
    sealed = Field(
        "sealed", _fields(0, "wall, ns", "boot, ns", Field("clock", words=ClockState), "error of the clock, us")
    )
    record = Field(
        "record", _fields(1, "version", "stream", "seq", "prev", sealed, Field("kind", words=Kind), _BODIES[name])
    )
    header = Field("header", {1: Field("alg", words=Algorithm), 3: Field("content type"), 4: Field("kid")})
    return Field(
        "COSE_Sign1",
        _fields(
            0,
            Field("protected", embedded=header),
            "unprotected: empty",
            Field("payload", embedded=record),
            "signature, r and s",
        ),
    )


# ---- bytes ------------------------------------------------------------------------------------------------------


def explained(name: str, envelope: bytes) -> str:
    """The envelope's bytes in hex, in order, 16 in a line at most, and beside them what they mean."""
    _, lines = _item(envelope, 0, _envelope(name), 0)
    return "\n".join(f"{part.hex():32}  {text}".rstrip() for part, text in lines)


def _head(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Major type, additional information, argument, and where the head ends (RFC 8949 section 3)."""
    major, info = data[at] >> 5, data[at] & 31
    if info < 24:
        return major, info, info, at + 1
    end = at + 1 + (1 << (info - 24))
    return major, info, int.from_bytes(data[at + 1 : end]), end


def _item(data: bytes, at: int, what: Field, depth: int, label: str = "") -> tuple[int, list[tuple[bytes, str]]]:
    """The end of the item at ``at``, and its lines."""
    major, info, argument, end = _head(data, at)
    head = data[at:end]

    def line(text: str) -> tuple[bytes, str]:
        return head, f"{'  ' * depth}{label}{text}  # {what.name}"

    if major in (0, 1):
        number = argument if major == 0 else -1 - argument
        word = f" {what.words(number).name.lower()}" if what.words else ""
        return end, [(head, f"{'  ' * depth}{label}{number}  # {what.name}{':' if word else ''}{word}")]
    if major in (2, 3):
        content, stop = data[end : end + argument], end + argument
        if what.embedded is not None:
            inner, lines = _item(content, 0, what.embedded, depth + 1)
            assert inner == len(content)
            return stop, [line(f"bytes({argument})"), *lines]
        text = json.dumps(content.decode()) if major == 3 else f"bytes({argument})"
        if what.name == "kid":
            text = f"'{content.decode()}'"
        if len(head + content) <= 16:
            return stop, [(head + content, line(text)[1])]
        rest = [(content[i : i + 16], "") for i in range(0, argument, 16)]
        return stop, [line(text), *rest]
    if major == 4:
        lines = [line(f"array({argument})")]
        for i in range(argument):
            inside = what.each or (what.inside or {}).get(i, Field("?"))
            end, more = _item(data, end, inside, depth + 1)
            lines += more
        return end, lines
    if major == 5:
        return _map(data, end, argument, what, depth, line(f"map({argument})"))
    if major == 6:
        inner, lines = _item(data, end, what, depth + 1)
        return inner, [(head, f"{'  ' * depth}tag({argument})"), *lines]
    if info == 27:
        return end, [line(str(struct.unpack(">d", head[1:])[0]))]
    return end, [line({20: "false", 21: "true", 22: "null"}[info])]


def _map(
    data: bytes, at: int, count: int, what: Field, depth: int, head: tuple[bytes, str]
) -> tuple[int, list[tuple[bytes, str]]]:
    lines = [head]
    for _ in range(count):
        _, _, key, end = _head(data, at)
        key_bytes = data[at:end]
        at, more = _item(data, end, (what.inside or {}).get(key, Field("?")), depth + 1, f"{key}: ")
        lines += [(key_bytes + more[0][0], more[0][1]), *more[1:]]
    return at, lines


# ---- files ------------------------------------------------------------------------------------------------------


def files() -> Iterator[tuple[Path, str]]:
    """The golden files and what they should hold."""
    envelopes = records()
    for name, found in rendering(envelopes).items():
        yield GOLDEN / f"{name}.hex", envelopes[name].hex() + "\n"
        yield GOLDEN / f"{name}.json", json.dumps(found, indent=1) + "\n"


def main() -> None:
    """Write the golden files and print the page's blocks."""
    for path, text in files():
        path.write_text(text)
    for name, envelope in records().items():
        print(f"### {name}\n```\n{explained(name, envelope)}\n```")


if __name__ == "__main__":
    main()
