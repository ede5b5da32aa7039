"""Runs of an agent for tests of evidence: sealed records made by the real sealer on a fake clock, without disk or
broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import anyio

from agent.evidence.envelope import Link
from agent.evidence.history import History, replay
from agent.model import (
    ClockQuality,
    Data,
    DeviceInfo,
    Event,
    Frame,
    Gap,
    GroupPlan,
    Point,
    Schedule,
    ValueType,
    Withdrawn,
)
from agent.sealing.sealer import Facts, Sealer
from agent.signer import KeySigner

# Published test keys: of the web3 documentation, and of the number one.
SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
DID = "did:ethr:volta:0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
OTHER_SECRET = bytes(31) + b"\x01"

S = 1_000_000_000
START = 1_764_000_000 * S
FACTS = Facts(
    boot_id=bytes(range(16)),
    version="0.1.0",
    site="site-1",
    labels=(("dso", "westnet"),),
    channel="dso",
    topic="dx.site-1.dso",
    configuration=bytes(32),
    window_ms=1000,
)
DEVICE = DeviceInfo("pv-1", "modbus", serial="SN1")
POINTS = (
    Point("W", "W", ValueType.INTEGER),
    Point("PhVphA", "V", ValueType.INTEGER, -1),
    Point("Temp", "Cel", ValueType.FLOAT),
)


class FakeClock:
    """Clocks that move only when told; ``offset`` is wall minus boot, ``good`` how good the wall clock is.
    ``now`` counts on through a reboot.
    """

    def __init__(self, boot: int = 1000 * S, offset: int = START) -> None:
        self.now = boot
        self.offset = offset
        self.good = ClockQuality()
        self.booted = 0

    def wall(self) -> int:
        """Ns since 1970."""
        return self.boot() + self.offset

    def boot(self) -> int:
        """Ns since boot."""
        return self.now - self.booted

    def reboot(self) -> None:
        """The machine has just booted; the wall clock stays as it is."""
        self.offset, self.booted = self.wall(), self.now

    def quality(self) -> ClockQuality:
        """As it was told; at first nothing is known."""
        return self.good

    async def sleep_until(self, boot: int) -> None:
        """Sleep on the event loop, which moves ``now`` if it is a ``tests.fakes.VirtualLoop``."""
        while (left := boot - self.boot()) > 0:  # noqa: ASYNC110 - nobody sets an event for a clock
            await anyio.sleep(left / 1e9)


def group(first: int, *, name: str = "ac", period: int = S, anchor: int = 1000 * S, device: int = 0) -> GroupPlan:
    """A periodic group that begins with cycle ``first`` at boot time ``anchor``."""
    return GroupPlan(name, device, Schedule(period, 0, first, anchor), first, POINTS)


def frame(cycle: int, *, group: int = 0, w: int | None = None) -> Frame:
    """A frame with plausible values; ``w`` None: the cycle's number."""
    return Frame(group, cycle, 120, 900, (cycle if w is None else w, 2304, 21.5))


class Run:
    """One run of an agent; ``sent`` holds its envelopes."""

    def __init__(
        self,
        *,
        after: Run | None = None,
        clock: FakeClock | None = None,
        secret: bytes = SECRET,
        last: Link | None = None,
        history: History | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        signer = KeySigner(secret, did=DID if secret == SECRET else None)
        if after is not None:
            last, history = after.links[-1], replay(after.sent)
        self.sealer = Sealer(FACTS, signer=signer, clock=self.clock, last=last, history=history or History())
        self.sent: list[bytes] = []
        self.links: list[Link] = []

    def begin(self, groups: Sequence[GroupPlan], devices: Sequence[DeviceInfo] = (DEVICE,)) -> bytes:
        """Begin a term and seal its plan."""
        opened = (self.clock.wall(), self.clock.boot())
        self.sealer.begin_term(opened=opened, devices=devices, groups=groups)
        return self.plan()

    def plan(self) -> bytes:
        """Seal the plan in force."""
        return self._sent(self.sealer.plan_body())

    def data(self, frames: Iterable[Frame] = (), gaps: Iterable[Gap] = (), *, term: int | None = None) -> bytes:
        """Seal frames and gaps."""
        data = Data(term or self.sealer.term, tuple(frames), tuple(gaps))
        body = self.sealer.data_body(data, at=self.sealer.now())
        self.sealer.cover(data)
        return self._sent(body)

    def event(self, code: int, *details: str | bool) -> bytes:
        """Seal an event."""
        return self._sent(self.sealer.event_body(Event(code, self.clock.boot(), details)))

    def withdraw(self, first: int, last: int, cause: int, *, stream: bytes | None = None) -> None:
        """State a range in the next plans."""
        self.sealer.withdraw([Withdrawn(stream or self.sealer.stream, first, last, cause)])

    def _sent(self, body: object) -> bytes:
        envelope, link = self.sealer.seal(body, at=self.sealer.now())  # type: ignore[arg-type]
        self.sent.append(envelope)
        self.links.append(link)
        return envelope


def simple_run(cycles: int = 10, *, per_record: int = 2, first: int = 100) -> Run:
    """A run with one group, one term and no gaps."""
    run = Run()
    run.begin([group(first)])
    for cycle in range(first, first + cycles, per_record):
        run.data([frame(c) for c in range(cycle, min(cycle + per_record, first + cycles))])
    return run


def renamed(plan_group: GroupPlan, name: str) -> GroupPlan:
    """The same group under another name."""
    return replace(plan_group, name=name)
