"""How long a start takes with a million records waiting in the outbox, and how much memory.

The records are as the agent makes them, but not signed, which nothing at start looks at. A process of its own opens
the outbox; the file may be in the page cache. ``python -m bench.outbox_start FILE SIZE`` is that process: it prints the
seconds, and by how many MiB it grew.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.evidence.envelope import protected_header, seal
from agent.evidence.record import encode_event, encode_record, link_of, pack
from agent.model import Event, EventCode, Kind, Link, Sealed
from agent.outbox import Outbox, ring
from bench.figure import Figure, resident_mib

RECORDS = 1_000_000
SEGMENT = 1 << 20
_DID = "did:ethr:volta:0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


class _Unsigned:
    """A signer that takes no time."""

    did = _DID

    def sign(self, digest: bytes) -> bytes:
        """64 zeros."""
        return bytes(64)


def figure() -> Figure:
    """Open an outbox with a million records that wait."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.ring")
        size = write(path)
        command = [sys.executable, "-m", "bench.outbox_start", str(path), str(size)]
        seconds, grown = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    note = f"{RECORDS:,} records in {size >> 20} MiB, the process grew by {grown:.1f} MiB"
    return Figure("outbox_start", seconds, "s", None, "", 1, note)


def write(path: Path) -> int:
    """Fill the ring file of a channel "bench" with records that wait; returns its size in bytes."""
    protected, signer = protected_header(_DID), _Unsigned()
    body = pack(Kind.EVENT, encode_event(Event(EventCode.STOP, 1, ("bench",))))
    header = ring.FileHeader(SEGMENT, RECORDS * 400 // SEGMENT, os.urandom(16), os.urandom(16), "bench")
    link = Link(os.urandom(16), 0, ring.NO_DIGEST, ring.NO_DIGEST)
    number, pos, segment = -1, 0, bytearray(SEGMENT)
    with path.open("wb") as file:
        file.write(header.pack() * 2)
        file.truncate(header.size)
        for seq in range(1, RECORDS + 1):
            payload = encode_record(body, stream=link.stream, seq=seq, prev=link.digest, sealed=Sealed(1, 1, 0, None))
            envelope = seal(payload, protected=protected, signer=signer)
            if len(segment) + ring.size_of(len(envelope)) + ring.END_ROOM > SEGMENT:
                if number >= 0:
                    pos += 1
                    segment += ring.pack_record(ring.END, pos=pos, acked=0, synced=pos)
                    file.seek(ring.START + number * SEGMENT)
                    file.write(segment)
                number += 1
                segment = bytearray(ring.SegmentHeader(header.ring_id[:8], 0, pos + 1, 0, link.digest).pack())
            pos += 1
            segment += ring.pack_record(ring.EVIDENCE, envelope, pos=pos, acked=0, synced=pos)
            link = Link(link.stream, seq, link.digest, hashlib.sha256(payload).digest())
        file.seek(ring.START + number * SEGMENT)
        file.write(segment)
    return header.size


def main(path: str, size: str) -> None:
    """Open the outbox and say what that took."""
    before, began = resident_mib(os.getpid()), time.perf_counter()
    outbox = Outbox.open(Path(path), channel="bench", size=int(size), inspect=link_of)
    seconds = time.perf_counter() - began
    if outbox.pending.records < RECORDS:
        raise SystemExit("the outbox does not hold what was written")
    print(seconds, resident_mib(os.getpid()) - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
