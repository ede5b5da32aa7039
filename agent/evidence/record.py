"""Records: plan, data and event, to bytes and back (docs/evidence.md section 4, docs/evidence.cddl).

Encoding takes the words of ``agent.model`` and yields the one deterministic encoding, the body packed with zlib where
that pays. Decoding takes any bytes and either yields a Record that obeys the CDDL or raises EvidenceError; what
a newer version may add (kinds, causes, codes, map keys from 16) is named in ``Record.unknown`` and never an error.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.errors import EvidenceError
from agent.evidence import cbor
from agent.evidence.block import decode_block, encode_blocks
from agent.evidence.envelope import unpack
from agent.evidence.frames import Frames
from agent.evidence.shape import array, digest, integer, known_keys, maybe, positive, text, uint
from agent.model import (
    Cause,
    ClockState,
    Data,
    DeviceInfo,
    Event,
    EventCode,
    Gap,
    GroupPlan,
    Kind,
    Link,
    Plan,
    Point,
    Record,
    Resume,
    Schedule,
    Sealed,
    ValueType,
    Withdrawn,
)

VERSION = 1
MAX_BODY = 4 * 1024 * 1024
MAX_WITHDRAWN = 16
MIN_PERIOD = 1_000_000  # ns
_MAX_CLOCK = max(ClockState)
_MAX_CAUSE = max(Cause)
_MAX_EVENT = max(EventCode)
_RECORD_KEYS = frozenset(range(1, 9))
ZEROS = bytes(32)  # ``prev`` of the first record of all


# ---- encode -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """An encoded body, packed (RFC 1950) if that pays; ``content`` stands under ``key`` 7 or 8 of the record."""

    kind: Kind
    key: int
    content: bytes


def pack(kind: Kind, encoded: bytes) -> Body:
    """Pack the encoding of a plan, data or event if that saves a sixteenth: less is not worth a reader's unpacking."""
    packed = zlib.compress(encoded) if len(encoded) > 64 else encoded
    return Body(kind, 8, packed) if len(packed) < len(encoded) * 15 // 16 else Body(kind, 7, encoded)


def encode_record(body: Body, *, stream: bytes, seq: int, prev: bytes, sealed: Sealed) -> bytes:
    """The bytes of a record."""
    head = {1: VERSION, 2: stream, 3: seq, 4: prev, 5: [sealed.wall, sealed.boot, int(sealed.clock), sealed.error_us]}
    if body.key == 8:
        return cbor.encode({**head, 6: int(body.kind), 8: body.content})
    return cbor.encode({**head, 6: int(body.kind), 7: None})[:-1] + body.content  # in place of the null, its last byte


def encode_plan(plan: Plan) -> bytes:
    """The body of a plan record."""
    body: dict[int, Any] = {
        1: plan.term,
        2: list(plan.opened),
        3: plan.boot_id,
        4: plan.version,
        5: [plan.site, [list(label) for label in sorted(plan.labels, key=lambda label: label[0].encode())]],
        6: [plan.channel, plan.topic],
        7: plan.configuration,
        8: [[d.id, d.adapter, d.asset, d.manufacturer, d.model, d.serial, d.firmware] for d in plan.devices],
        9: [_group_map(group) for group in plan.groups],
    }
    if plan.follows is not None:
        body[10] = list(plan.follows)
    if plan.resumes is not None:
        cause, resumes = plan.resumes
        body[11] = [int(cause), [[r.device, r.group, r.term, r.cycle] for r in resumes]]
    body[12] = [[w.stream, w.first, w.last, int(w.cause)] for w in plan.withdrawn]
    body[13] = plan.volatile
    body[14] = plan.window_ms
    return cbor.encode_any_keys(body)  # names of enumerated values: of negative ones, too


def _group_map(group: GroupPlan) -> dict[int, Any]:
    encoded: dict[int, Any] = {1: group.name, 2: group.device}
    if group.schedule is not None:
        encoded[3] = [group.schedule.period, group.schedule.phase, group.schedule.first, group.schedule.anchor]
    encoded[4] = group.next
    encoded[5] = [[p.name, p.unit, int(p.type), p.exponent, p.source, dict(p.labels)] for p in group.points]
    return encoded


def encode_data(data: Data, plan: Plan, *, sealed: int = 0) -> bytes:
    """The body of a data record; the plan gives each point's type. ``sealed``: boot time at which it will be sealed."""
    types = [[point.type for point in group.points] for group in plan.groups]
    gaps = [[g.group, g.first, g.last, int(g.cause), g.detail, g.from_boot, g.to_boot] for g in data.gaps]
    return cbor.join([cbor.encode(data.term), encode_blocks(data.frames, types, sealed=sealed), cbor.encode(gaps)])


def encode_event(event: Event) -> bytes:
    """The body of an event record."""
    return cbor.encode([int(event.code), event.boot, list(event.details)])


# ---- decode -----------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """A record whose body is still to be decoded: where it stands in its chain, and its fields."""

    link: Link
    version: int
    fields: dict[int, Any]


def decode_head(payload: bytes) -> Head:
    """The place of a record in its chain; all that is read of a record of an unknown version. Raises EvidenceError."""
    fields = cbor.decode(payload)
    if type(fields) is not dict:
        raise EvidenceError("a record is a map")
    version, seq = uint(fields.get(1), "version"), positive(fields.get(3), "seq")
    stream, prev = digest(fields.get(2), 16, "stream"), digest(fields.get(4), 32, "prev")
    return Head(Link(stream, seq, prev, hashlib.sha256(payload).digest()), version, fields)


def link_of(envelope: bytes) -> Link:
    """Where the record in an envelope stands in its chain; neither its signature nor its body is checked. Raises
    EvidenceError.
    """
    return decode_head(unpack(envelope).payload).link


def plan_of(envelope: bytes) -> Plan | None:
    """The plan in an envelope, unverified; None if it holds another record, or none that can be read."""
    try:
        head = decode_head(unpack(envelope).payload)
        body = decode_record(head, None).body if head.fields.get(6) == Kind.PLAN else None
    except EvidenceError:
        return None
    return body if isinstance(body, Plan) else None


def decode_record(head: Head, plan: Plan | None) -> Record:
    """The whole record.

    ``plan`` is the stream's plan in force, if it is known: data of its term is then also held against its groups,
    types and points. Raises EvidenceError for whatever breaks docs/evidence.cddl.
    """
    fields = head.fields
    unknown: list[str] = []
    if head.version != VERSION:
        raise EvidenceError(f"version {head.version} of the format is not known here")
    known_keys(fields, _RECORD_KEYS, "record", unknown)
    sealed, kind = _sealed(fields.get(5)), positive(fields.get(6), "kind")
    if (7 in fields) == (8 in fields):
        raise EvidenceError("a record has exactly one of body and packed")
    body = fields[7] if 7 in fields else cbor.decode(_unpack(fields[8]))
    decoded: Plan | Data | Event | None = None
    if kind == Kind.PLAN:
        decoded = _plan(body, unknown)
    elif kind == Kind.DATA:
        decoded = _data(body, plan, unknown)
    elif kind == Kind.EVENT:
        decoded = _event(body, unknown)
    else:
        unknown.append(f"kind {kind}")
    return Record(head.link.stream, head.link.seq, head.link.prev, sealed, decoded, kind, tuple(unknown))


def _unpack(packed: Any) -> bytes:
    if type(packed) is not bytes:
        raise EvidenceError("packed is not bytes")
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, MAX_BODY + 1)
    except zlib.error as error:
        raise EvidenceError(f"packed body: {error}") from None
    if len(body) > MAX_BODY:
        raise EvidenceError(f"body larger than {MAX_BODY} bytes unpacked")
    if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise EvidenceError("packed body: not finished, or followed by other bytes")
    return body


def _sealed(item: Any) -> Sealed:
    wall, boot, clock, error = array(item, "sealed", 4)
    if uint(clock, "sealed: clock") > _MAX_CLOCK:
        raise EvidenceError("sealed: clock is not 0, 1 or 2")
    return Sealed(uint(wall, "sealed: wall"), uint(boot, "sealed: boot"), clock, maybe(uint, error, "sealed: error"))


def _plan(body: Any, unknown: list[str]) -> Plan:
    if type(body) is not dict:
        raise EvidenceError("a plan is a map")
    known_keys(body, set(range(1, 15)), "plan", unknown)
    opened = array(body.get(2), "opened", 2)
    site, labels = array(body.get(5), "site", 2)
    channel, topic = array(body.get(6), "channel", 2)
    pairs = [array(label, "label", 2) for label in array(labels, "labels")]
    names = [text(name, "label").encode() for name, _ in pairs]
    if names != sorted(set(names)):
        raise EvidenceError("labels are not sorted, or one stands there twice")
    devices = tuple(_device(device) for device in array(body.get(8), "devices"))
    groups = tuple(_group(group, len(devices), unknown) for group in array(body.get(9), "groups"))
    named = [(devices[g.device].id, g.name) for g in groups]
    if len(set(named)) != len(named) or len({d.id for d in devices}) != len(devices):
        raise EvidenceError("two devices, or two groups of a device, have the same name")
    if (10 in body) != (11 in body):
        raise EvidenceError("follows and resumes go together")
    if type(body.get(13)) is not bool:
        raise EvidenceError("volatile is not a boolean")
    return Plan(
        term=positive(body.get(1), "term"),
        opened=(uint(opened[0], "opened"), uint(opened[1], "opened")),
        boot_id=digest(body.get(3), 16, "boot id"),
        version=text(body.get(4), "version"),
        site=text(site, "site"),
        labels=tuple((name, text(value, "label")) for name, value in pairs),
        channel=text(channel, "channel"),
        topic=text(topic, "topic"),
        configuration=digest(body.get(7), 32, "configuration"),
        devices=devices,
        groups=groups,
        follows=_follows(body[10]) if 10 in body else None,
        resumes=_resumes(body[11], unknown) if 11 in body else None,
        withdrawn=_withdrawn(body.get(12), unknown),
        volatile=body[13],
        window_ms=uint(body.get(14), "window"),
    )


def read_plan(body: bytes) -> Plan:
    """The plan that ``encode_plan`` encoded. Raises EvidenceError."""
    return _plan(cbor.decode(body), [])


def _device(item: Any) -> DeviceInfo:
    device = array(item, "device", 7)
    rest = (maybe(text, each, "device") for each in device[2:])
    return DeviceInfo(text(device[0], "device"), text(device[1], "device"), *rest)


def _group(item: Any, devices: int, unknown: list[str]) -> GroupPlan:
    if type(item) is not dict:
        raise EvidenceError("a group is a map")
    known_keys(item, {1, 2, 3, 4, 5}, "group", unknown)
    schedule = None
    if 3 in item:
        schedule = Schedule(*(uint(each, "schedule") for each in array(item[3], "schedule", 4)))
        if schedule.period < MIN_PERIOD or schedule.phase >= schedule.period:
            raise EvidenceError("schedule: a period is at least 1 ms, a phase less than the period")
    device = uint(item.get(2), "group: device")
    if device >= devices:
        raise EvidenceError("group: no such device")
    points = tuple(_point(point) for point in array(item.get(5), "points"))
    if not points:
        raise EvidenceError("a group without points")
    if len({point.name for point in points}) != len(points):
        raise EvidenceError("two points of a group have the same name")
    return GroupPlan(text(item.get(1), "group"), device, schedule, uint(item.get(4), "next"), points)


def _point(item: Any) -> Point:
    name, unit, kind, exponent, source, labels = array(item, "point", 6)
    if uint(kind, "point: type") > max(ValueType):
        raise EvidenceError("point: type is not 0 to 4")
    if integer(exponent, "point: exponent") and kind != ValueType.INTEGER:
        raise EvidenceError("point: only integers have an exponent")
    if type(labels) is not dict:
        raise EvidenceError("point: labels is not a map")
    for label in labels.values():
        text(label, "point: label")
    return Point(
        text(name, "point"),
        maybe(text, unit, "point: unit"),
        ValueType(kind),
        exponent,
        maybe(text, source, "point: source"),
        labels,
    )


def _follows(item: Any) -> tuple[bytes, int]:
    stream, seq = array(item, "follows", 2)
    return digest(stream, 16, "follows"), positive(seq, "follows")


def _resumes(item: Any, unknown: list[str]) -> tuple[int, tuple[Resume, ...]]:
    cause, resumes = array(item, "resumes", 2)
    entries = (array(each, "resume", 4) for each in array(resumes, "resumes"))
    return _cause(cause, unknown), tuple(
        Resume(text(device, "resume"), text(group, "resume"), positive(term, "resume"), uint(cycle, "resume"))
        for device, group, term, cycle in entries
    )


def _withdrawn(item: Any, unknown: list[str]) -> tuple[Withdrawn, ...]:
    entries = array(item, "withdrawn")
    if len(entries) > MAX_WITHDRAWN:
        raise EvidenceError(f"more than {MAX_WITHDRAWN} withdrawn ranges")
    found = []
    for entry in entries:
        stream, first, last, cause = array(entry, "withdrawn", 4)
        found.append(
            Withdrawn(
                digest(stream, 16, "withdrawn"),
                uint(first, "withdrawn"),
                uint(last, "withdrawn"),
                _cause(cause, unknown),
            )
        )
        if not 1 <= found[-1].first <= found[-1].last:
            raise EvidenceError("withdrawn: not a range")
    return tuple(found)


def _cause(item: Any, unknown: list[str]) -> int:
    cause = positive(item, "cause")
    if cause > _MAX_CAUSE:
        unknown.append(f"cause {cause}")
    return cause


def _data(body: Any, plan: Plan | None, unknown: list[str]) -> Data:
    term, blocks, gaps = array(body, "data", 3)
    if plan is not None and plan.term != positive(term, "term"):
        plan = None  # continuity and completeness say what this means
    frames = Frames([decode_block(block, plan, unknown) for block in array(blocks, "blocks")])
    if len(blocks) > 1 and len({block[1] for block in blocks}) != len(blocks):
        raise EvidenceError("a group has two blocks in one record")
    return Data(positive(term, "term"), frames, tuple([_gap(gap, plan, unknown) for gap in array(gaps, "gaps")]))


def _gap(item: Any, plan: Plan | None, unknown: list[str]) -> Gap:
    group, first, last, cause, detail, from_boot, to_boot = array(item, "gap", 7)
    if plan is not None and uint(group, "gap: group") >= len(plan.groups):
        raise EvidenceError("gap: no such group")
    gap = Gap(
        uint(group, "gap: group"),
        maybe(uint, first, "gap: from"),
        maybe(uint, last, "gap: to"),
        _cause(cause, unknown),
        maybe(text, detail, "gap: detail"),
        maybe(uint, from_boot, "gap: from"),
        maybe(uint, to_boot, "gap: to"),
    )
    cycles, times = (gap.first, gap.last), (gap.from_boot, gap.to_boot)
    for low, high, other in ((*cycles, times), (*times, cycles)):
        if low is not None and high is not None and low <= high and other == (None, None):
            return gap
    raise EvidenceError("gap: expected either cycles or boot times, from not after to")


def _event(body: Any, unknown: list[str]) -> Event:
    number, boot, details = array(body, "event", 3)
    if positive(number, "event") > _MAX_EVENT:
        unknown.append(f"event {number}")
    return Event(number, uint(boot, "event: boot"), tuple(array(details, "event: details")))
