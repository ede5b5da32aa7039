"""The ring file's layout, byte by byte, and what a scan takes for a record."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from agent.errors import EvidenceError, OutboxError
from agent.evidence.envelope import Link
from agent.model import Cause, Withdrawn
from agent.outbox import ring
from agent.outbox.ring import Entry, FileHeader, SegmentHeader

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
ONE = bytes.fromhex("01") * 32


def with_crc(magic: str, body: str, fill: int = 0) -> bytes:
    """Literal bytes behind a crc field, which is worked out here once more."""
    data = bytes.fromhex(body).ljust(fill, b"\0")
    return magic.encode() + zlib.crc32(data).to_bytes(4, "little") + data


def inspect(envelope: bytes) -> Link:
    """A test's envelope: one letter of the stream, one byte of seq, 32 of prev, anything behind."""
    if len(envelope) < 34:
        raise EvidenceError("no envelope")
    return Link(envelope[:1] * 16, envelope[1], envelope[2:34], hashlib.sha256(envelope).digest())


FILE = FileHeader(1 << 20, 2047, bytes(range(16)), bytes(range(16, 32)), "dso-ä")
FILE_BYTES = with_crc(
    "EVRING01",
    "00001000 ff070000 000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f 0600 64736f2dc3a4",
    fill=4096 - 12,
)
SEGMENT = SegmentHeader(bytes(range(8)), 3, 0x0102030405060708, 9, ONE, A, 7)
SEGMENT_BYTES = with_crc(
    "SEG1",
    "0001020304050607 0300000000000000 0807060504030201 0900000000000000" + "01" * 32 + "61" * 16 + "0700000000000000",
)
RECORD_BYTES = with_crc(
    "REC1", "23000000 01000000 0500000000000000 0200000000000000 0400000000000000" + "6101" + "01" * 32 + "7a"
)


def test_file_header() -> None:
    assert FILE.pack() == FILE_BYTES
    assert len(FILE_BYTES) == 4096
    assert ring.unpack_file_header(FILE_BYTES * 2) == FILE
    assert ring.unpack_file_header(bytes(4096) + FILE_BYTES) == FILE
    assert FILE.size == 8192 + 2047 * 1048576


@pytest.mark.parametrize("at", [0, 8, 12, 20, 60, 4095])
def test_a_changed_bit_in_the_file_header_is_noticed(at: int) -> None:
    changed = bytearray(FILE_BYTES)
    changed[at] ^= 1
    assert ring.unpack_file_header(bytes(changed) + FILE_BYTES) == FILE
    with pytest.raises(OutboxError, match="no ring file"):
        ring.unpack_file_header(bytes(changed) * 2)


@pytest.mark.parametrize(
    "blocks", [b"EVRING02" + FILE_BYTES[8:] + FILE_BYTES, FILE_BYTES + b"EVRING02" + FILE_BYTES[8:]]
)
def test_a_version_that_is_not_known_is_refused_even_beside_one_that_is(blocks: bytes) -> None:
    with pytest.raises(OutboxError, match="not known") as error:
        ring.unpack_file_header(blocks)
    assert error.value.hint


def test_segment_header() -> None:
    assert SEGMENT.pack() == SEGMENT_BYTES
    assert len(SEGMENT_BYTES) == 96
    assert ring.unpack_segment_header(SEGMENT_BYTES + b"more", bytes(range(16))) == SEGMENT
    assert ring.unpack_segment_header(SEGMENT_BYTES, bytes(16)) is None, "of another ring"
    assert ring.unpack_segment_header(SEGMENT_BYTES[:95], bytes(range(16))) is None
    for at in range(96):
        changed = SEGMENT_BYTES[:at] + bytes([SEGMENT_BYTES[at] ^ 1]) + SEGMENT_BYTES[at + 1 :]
        assert ring.unpack_segment_header(changed, bytes(range(16))) is None


def test_record() -> None:
    envelope = b"a\x01" + ONE + b"z"
    packed = ring.pack_record(ring.EVIDENCE, envelope, pos=5, acked=2, synced=4)
    assert packed == RECORD_BYTES + bytes(5)
    assert len(packed) == ring.size_of(len(envelope)) == 80
    expected = Entry(5, ring.EVIDENCE, 2, 4, envelope, 0, 80, inspect(envelope))
    assert ring.entry_at(packed, 0, low=5, high=6, inspect=inspect) == expected
    assert ring.entry_at(packed, 0, low=6, high=None, inspect=inspect) is None
    assert ring.entry_at(packed, 0, low=0, high=5, inspect=inspect) is None
    assert ring.entry_at(packed[:74], 0, low=5, high=6, inspect=inspect) is None, "longer than what is there"
    for at in range(len(RECORD_BYTES)):
        changed = packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
        assert ring.entry_at(changed, 0, low=5, high=6, inspect=inspect) is None
    assert ring.pack_record(ring.MARK, pos=1, acked=1, synced=1) == with_crc(
        "REC1", "00000000 02000000 0100000000000000 0100000000000000 0100000000000000"
    )


def test_evidence_that_is_no_envelope_does_not_count() -> None:
    packed = ring.pack_record(ring.EVIDENCE, b"?", pos=5, acked=2, synced=4)
    assert ring.entry_at(packed, 0, low=5, high=6, inspect=inspect) is None


def test_an_end_of_segment_names_up_to_sixteen_ranges() -> None:
    spans = [Withdrawn(bytes([n]) * 16, n, n + 1, Cause.OVERFLOW) for n in range(20)]
    assert ring.pack_end(spans[:1]) == bytes(16) + bytes(8) + b"\x01" + bytes(7)
    assert ring.unpack_end(ring.pack_end(spans)) == tuple(spans[4:])
    assert ring.unpack_end(b"") == ()
    assert len(ring.pack_record(ring.END, ring.pack_end(spans), pos=1, acked=0, synced=1)) == ring.END_ROOM


# ---- scanning -------------------------------------------------------------------------------------------------------


def chain(*synced: int, first: int = 1, prev: bytes = ring.NO_DIGEST, filler: bytes = b"") -> list[bytes]:
    """Records of stream a, one for each ``synced``."""
    records = []
    for pos, knew in enumerate(synced, first):
        envelope = b"a" + bytes([pos]) + prev + filler
        records.append(ring.pack_record(ring.EVIDENCE, envelope, pos=pos, acked=0, synced=knew))
        prev = hashlib.sha256(envelope).digest()
    return records


def scan(data: bytes, stop: int | None = None) -> list[int]:
    walk = ring.walk(data, 0, pos=1, prev=ring.NO_DIGEST, inspect=inspect, stop=stop)
    return [entry.pos for entry in walk]


def spoilt(record: bytes) -> bytes:
    return record[:50] + bytes([record[50] ^ 1]) + record[51:]


def test_a_scan_ends_at_the_first_record_that_is_not_whole() -> None:
    one, two, three = chain(1, 2, 2)
    assert scan(one + two + three + bytes(80)) == [1, 2, 3]
    assert scan(one + spoilt(two) + three) == [1], "three was written with two: nothing proves that two was on disk"
    assert scan(one + two + three[:-8]) == [1, 2]


def test_a_record_that_does_not_follow_is_stale_though_all_else_fits() -> None:
    one, two, three = chain(1, 2, 2)
    (new_two,) = chain(2, first=2, prev=inspect(one[40:74]).digest, filler=b"new")
    assert len(new_two) == len(two)
    assert scan(one + new_two + three) == [1, 2]


def test_a_later_record_that_knew_it_durable_proves_rot() -> None:
    one, two, three, four = chain(1, 2, 2, 4)
    assert scan(one + spoilt(two) + three + four) == [1, 4]
    assert scan(one + spoilt(two) + spoilt(three) + four) == [1, 4]
    assert scan(spoilt(one) + two + three + four) == [2, 3, 4]
    assert scan(one + two + three + spoilt(four)) == [1, 2, 3]


def test_in_a_segment_whose_end_is_known_every_break_is_rot() -> None:
    one, two, three = chain(1, 1, 1)
    assert scan(one + spoilt(two) + three, stop=4) == [1, 3]
    assert scan(one + two + three, stop=3) == [1, 2], "what is behind it is of another time"


def test_a_position_that_cannot_be_reached_is_no_proof() -> None:
    (one,) = chain(1)
    (far,) = chain(90, first=90)
    assert scan(one + bytes(80) + far) == [1], "80 bytes hold no 88 records"


def test_bytes_that_look_like_a_record_inside_another_are_passed_over() -> None:
    (inner,) = chain(9, first=3)
    for shift in range(8):
        (one, two, three) = chain(1, 2, 3, filler=bytes(shift) + inner)
        assert scan(one + two + three) == [1, 2, 3]


# ---- what is missing ------------------------------------------------------------------------------------------------


def link(stream: bytes, seq: int, prev: bytes = b"") -> Link:
    return Link(stream, seq, prev, stream + bytes([seq]))


@pytest.mark.parametrize(
    ("before", "after", "absent", "expected"),
    [
        (link(A, 3), link(A, 7), 3, [(A, 4, 6)]),
        (link(A, 3), link(A, 7), 9, [(A, 4, 6)]),  # marks among them
        (link(A, 3), link(A, 4, A + b"\x03"), 1, []),  # a mark only
        (link(A, 3), link(B, 1, A + b"\x03"), 1, []),
        (link(A, 3), link(B, 1), 2, [(A, 4, 5)]),
        (link(A, 3), link(B, 3), 2, [(B, 1, 2)]),
        (link(A, 3), link(B, 3), 4, [(A, 4, 5), (B, 1, 2)]),
        (None, link(B, 3), 4, [(B, 1, 2)]),
        (None, link(B, 9), 4, [(B, 5, 8)]),
        (None, link(B, 1), 4, []),
    ],
)
def test_a_hole_is_named_as_far_as_it_can_be(
    before: Link | None, after: Link, absent: int, expected: list[tuple[bytes, int, int]]
) -> None:
    spans = ring.between(before, after, absent, Cause.DISK_ERROR)
    assert spans == [Withdrawn(*span, Cause.DISK_ERROR) for span in expected]


def entry(pos: int, name: Link | None) -> Entry:
    return Entry(pos, ring.EVIDENCE if name else ring.MARK, 0, 0, b"", 0, 0, name)


def test_what_is_given_up_is_one_range_for_each_stream() -> None:
    entries = [
        entry(11, link(A, 4)),
        entry(12, None),
        entry(13, link(A, 5)),
        entry(15, link(B, 2)),
        entry(16, link(C, 1, B + b"\2")),
    ]
    expected = [
        Withdrawn(A, 3, 5, Cause.OVERFLOW),
        Withdrawn(B, 1, 2, Cause.OVERFLOW),
        Withdrawn(C, 1, 3, Cause.OVERFLOW),
    ]
    found = ring.dropped((9, None), entries, entry(19, link(C, 4)))
    assert sorted(found, key=lambda span: span.stream) == expected


def test_holes_that_are_acknowledged_are_of_no_interest() -> None:
    entries = [entry(4, link(A, 4)), entry(8, link(A, 8))]
    assert ring.holes((0, None), entries, above=3, cause=Cause.DISK_ERROR) == [Withdrawn(A, 5, 7, Cause.DISK_ERROR)]
    assert ring.holes((0, None), entries, above=7, cause=Cause.DISK_ERROR) == []
