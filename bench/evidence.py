"""What evidence costs: bytes and CPU per reading to make it, and CPU per record to verify it, beside the bare check of
its signature.

Readings are integers from 0 to 5,000, scattered at first, that move by up to 3 from one cycle to the next: the data for
which the targets were set. Signing is real, packing as the agent does it; all in this process, one thread.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from mmap import ACCESS_READ, mmap
from pathlib import Path

import cbor2
import coincurve

from agent.clock import SystemClock
from agent.evidence.envelope import envelopes, unpack
from agent.evidence.history import History
from agent.model import Data, DeviceInfo, Frame, GroupPlan, Point, Schedule, ValueType
from agent.sealing.sealer import Facts, Sealer
from agent.signer import KeySigner
from agent.verifier import Verifier
from bench.figure import Figure, interleaved

S = 1_000_000_000
RECORDS = 2000  # of a measured round
FILE_RECORDS = 20_000
_SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")  # published, of web3's docs
_FACTS = Facts(bytes(16), "0.1.0", "site-1", (("dso", "westnet"),), "dso", "dx.site-1.dso", bytes(32), 1000)


def verify_per_record() -> Figure:
    """Verify records of 50 readings: 5 points, 10 cycles."""
    return _verify("verify_per_record", 5, 10)


def verify_per_record_50_points() -> Figure:
    """The same readings as 50 points, one cycle, which is the costliest way: each is a column of its own."""
    return _verify("verify_per_record_50_points", 50, 1)


def _verify(name: str, points: int, cycles: int) -> Figure:
    sent = _records(points, cycles)
    did = _signer().did
    checks = [_check(envelope) for envelope in sent]

    def verify() -> None:
        verifier = Verifier([did])
        for envelope in sent:
            verifier.feed(envelope)
        verifier.finish(complete=True)
        if not verifier.report.good or verifier.report.cycles() != (RECORDS * cycles, RECORDS * cycles, 0):
            raise RuntimeError("what was measured did not verify")

    def bare() -> None:
        if not all(check() for check in checks):
            raise RuntimeError("a signature does not verify")

    value, reference = (each * 1e6 / len(sent) for each in interleaved([partial(_cpu, verify), partial(_cpu, bare)]))
    return Figure(name, value, "us", reference, "signature check alone", 3)


def verify_file() -> Figure:
    """Verify a large file of records of 1,000 readings (50 points, 20 cycles), as ``edge-agent verify`` does, beside
    its SHA-256.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "evidence.cbor")
        size = _write(file)
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:

            def verify() -> None:
                verifier = Verifier([_signer().did])
                for _, envelope in envelopes(data):
                    if isinstance(envelope, bytes):
                        verifier.feed(envelope)
                verifier.finish(complete=True)
                if not verifier.report.good or verifier.report.records != FILE_RECORDS + 1:
                    raise RuntimeError("what was measured did not verify")

            seconds, hashing = interleaved([partial(_cpu, verify), partial(_cpu, lambda: hashlib.sha256(data))])
    note = f"{FILE_RECORDS / seconds:,.0f} records/s, {size / seconds / 1e6:.1f} MB/s"
    return Figure("verify_file", seconds, "s", hashing, "SHA-256 of the file", 1000, note)


def bytes_per_reading_50() -> Figure:
    """Size of a record of 50 readings, signature included: 5 points, 10 cycles."""
    return _bytes("bytes_per_reading_50", 5, 10, 9)


def bytes_per_reading_50_points() -> Figure:
    """The same readings as 50 points, one cycle, which is the costliest way: each is a column of its own."""
    return _bytes("bytes_per_reading_50_points", 50, 1, 9)


def bytes_per_reading_1000() -> Figure:
    """Size of a record of 1,000 readings, signature included: 50 points, 20 cycles."""
    return _bytes("bytes_per_reading_1000", 50, 20, 1.2)


def encode_per_reading() -> Figure:
    """CPU to encode and pack a record of 1,000 readings, without signing it."""
    sealer, data = _sealer(50), [_data(50, 20, number) for number in range(RECORDS // 20)]
    at = sealer.now()

    def encode() -> None:
        for each in data:
            sealer.data_body(each, at=at)

    def dump() -> None:
        for each in data:
            cbor2.dumps([frame.values for frame in each.frames])

    readings = len(data) * 1000
    value, reference = (each * 1e6 / readings for each in interleaved([partial(_cpu, encode), partial(_cpu, dump)]))
    beside = "cbor2 writing the same numbers, nothing else"
    return Figure("encode_per_reading", value, "us", reference, beside, 0.3, absolute=True)


def _bytes(name: str, points: int, cycles: int, target: float) -> Figure:
    _plan, *sent = _records(points, cycles)
    value = sum(map(len, sent)) / (len(sent) * points * cycles)
    return Figure(name, value, "bytes", None, "", target)


# ---- what is measured -------------------------------------------------------------------------------------------


def _cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that this process took for it."""
    began = time.process_time()
    work()
    return time.process_time() - began


@cache
def _signer() -> KeySigner:
    return KeySigner(_SECRET)


def _sealer(points: int) -> Sealer:
    sealer = Sealer(_FACTS, signer=_signer(), clock=SystemClock(), last=None, history=History())
    columns = tuple(Point(f"P{i}", "W", ValueType.INTEGER) for i in range(points))
    group = GroupPlan("ac", 0, Schedule(S, 0, 0, 0), 0, columns)
    sealer.begin_term(opened=(0, 0), devices=[DeviceInfo("pv-1", "modbus")], groups=[group])
    return sealer


def _data(points: int, cycles: int, number: int) -> Data:
    chance = random.Random(number)
    values = [chance.randrange(5000) for _ in range(points)]
    frames = []
    for cycle in range(number * cycles, (number + 1) * cycles):
        values = [value + chance.randint(-3, 3) for value in values]
        frames.append(Frame(0, cycle, chance.randrange(300, 3000), chance.randrange(500, 9000), tuple(values)))
    return Data(1, tuple(frames), ())


def _sealed(points: int, cycles: int, count: int) -> Iterator[bytes]:
    """A plan, and records of data behind it."""
    sealer = _sealer(points)
    yield sealer.seal(sealer.plan_body(), at=sealer.now())[0]
    for number in range(count):
        at, data = sealer.now(), _data(points, cycles, number)
        body = sealer.data_body(data, at=at)
        sealer.cover(data)
        yield sealer.seal(body, at=at)[0]


def _records(points: int, cycles: int) -> list[bytes]:
    return list(_sealed(points, cycles, RECORDS))


def _write(file: Path) -> int:
    with file.open("wb") as opened:
        for envelope in _sealed(50, 20, FILE_RECORDS):
            opened.write(envelope)
    return file.stat().st_size


def _check(envelope: bytes) -> Callable[[], bool]:
    """The bare check of a signature: digest, key and signature are at hand as libsecp256k1 takes them."""
    opened = unpack(envelope)
    digest = hashlib.sha256(cbor2.dumps(["Signature1", opened.protected, b"", opened.payload])).digest()
    secret = coincurve.PrivateKey(_SECRET)
    signature, key = secret.sign(digest, hasher=None), secret.public_key
    return lambda: bool(key.verify(signature, digest, hasher=None))
