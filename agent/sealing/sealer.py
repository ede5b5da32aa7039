"""The sealer: turns frames, gaps and events into the next records of this run's stream, signed and chained.

A run's stream begins when its outbox is opened; nothing is ever sealed twice. The sealer keeps the chain (seq,
digest), the coverage that plans state, and the withdrawn ranges. It writes nothing: what it sealed must reach the
disk in the order in which it came out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.evidence.coverage import Coverage
from agent.evidence.envelope import protected_header, seal
from agent.evidence.history import History
from agent.evidence.record import ZEROS, Body, encode_data, encode_event, encode_plan, encode_record, pack
from agent.evidence.withdrawn import merged
from agent.instant import instant
from agent.model import Cause, ClockQuality, Data, DeviceInfo, Event, GroupPlan, Kind, Link, Plan, Sealed, Withdrawn
from agent.ports import Clock, Signer

_RECORD_FIELDS = 160  # bytes of a record's other fields and of the envelope's framing, at most


@dataclass(frozen=True, slots=True)
class Facts:
    """What all plans of a run say alike."""

    boot_id: bytes
    version: str
    site: str
    labels: tuple[tuple[str, str], ...]
    channel: str
    topic: str
    configuration: bytes
    window_ms: int


SealedRecord = tuple[bytes, Link]  # an envelope and its place in the chain


class Sealer:
    """Seals the records of one run on one channel."""

    def __init__(
        self,
        facts: Facts,
        *,
        signer: Signer,
        clock: Clock,
        last: Link | None,
        history: History,
        cause: Cause = Cause.AGENT_DOWN,
        volatile: bool = False,
    ) -> None:
        """``last``: the link of the last record that the outbox holds, which this run follows; ``cause``: why nothing
        was stored since then. ``facts`` may change between terms. ``volatile``: the run is kept in memory only.
        """
        self.stream = os.urandom(16)
        self.coverage: Coverage | None = None
        self.facts = facts
        self.volatile = volatile
        self._signer = signer
        self._clock = clock
        self._protected = protected_header(signer.did)
        self._seq = 0
        self._digest = last.digest if last else ZEROS
        self._follows = (last.stream, last.seq) if last else None
        self._resumes = (int(cause), history.resumes) if last else None
        self._withdrawn: tuple[Withdrawn, ...] = history.withdrawn

    @property
    def seq(self) -> int:
        """Of the last record sealed; 0 before the first."""
        return self._seq

    @property
    def term(self) -> int:
        """The term in force; 0 before the first."""
        return self.coverage.plan.term if self.coverage else 0

    def begin_term(
        self, *, opened: tuple[int, int], devices: Sequence[DeviceInfo], groups: Sequence[GroupPlan]
    ) -> None:
        """Set the plan of the next term; ``plan_body`` and ``seal`` make its record."""
        facts = self.facts
        plan = Plan(
            term=self.term + 1,
            opened=opened,
            boot_id=facts.boot_id,
            version=facts.version,
            site=facts.site,
            labels=facts.labels,
            channel=facts.channel,
            topic=facts.topic,
            configuration=facts.configuration,
            devices=tuple(devices),
            groups=tuple(groups),
            follows=self._follows,
            resumes=self._resumes,
            withdrawn=(),
            volatile=self.volatile,
            window_ms=facts.window_ms,
        )
        self.coverage = Coverage(plan)

    def withdraw(self, entries: Sequence[Withdrawn]) -> None:
        """State these ranges in every plan from now on."""
        self._withdrawn = merged((*self._withdrawn, *entries))

    def forget_withdrawn(self) -> None:
        """A record sealed after the plan that stated the ranges has been acknowledged: plans need not repeat them."""
        self._withdrawn = ()

    @property
    def withdrawn(self) -> tuple[Withdrawn, ...]:
        """What plans state now."""
        return self._withdrawn

    def plan_body(self) -> Body:
        """The plan in force with ``next`` and ``withdrawn`` as they are now."""
        assert self.coverage is not None, "a stream begins with a term"
        return pack(Kind.PLAN, encode_plan(replace(self.coverage.restated(), withdrawn=self._withdrawn)))

    def now(self, since: ClockQuality | None = None) -> Sealed:
        """The clocks as a record that is sealed now states them. ``since``: how good the wall clock was at worst while
        what goes into it was collected.
        """
        quality = self._clock.quality()
        if since is not None:
            quality = quality.worst(since)
        return Sealed(*instant(self._clock), quality.state, quality.error_us)

    def data_body(self, data: Data, *, at: Sealed) -> Body:
        """Frames and gaps of the term in force, encoded; ``cover`` accounts for them once they are to be sealed."""
        assert self.coverage is not None
        return pack(Kind.DATA, encode_data(data, self.coverage.plan, sealed=at.boot))

    def event_body(self, event: Event) -> Body:
        """An event, encoded."""
        return pack(Kind.EVENT, encode_event(event))

    def cover(self, data: Data) -> list[str]:
        """Account for data about to be sealed; returns what does not follow on (a fault of the agent, to be logged)."""
        assert self.coverage is not None
        problems, _ = self.coverage.add(data)
        return problems

    def bound(self, bodies: Sequence[Body]) -> int:
        """Bytes that the envelopes of these bodies take at most, together."""
        return sum(len(body.content) for body in bodies) + len(bodies) * (len(self._protected) + _RECORD_FIELDS + 64)

    def seal(self, body: Body, *, at: Sealed) -> SealedRecord:
        """Sign the next record of the stream. Raises SignerError."""
        payload = encode_record(body, stream=self.stream, seq=self._seq + 1, prev=self._digest, sealed=at)
        envelope = seal(payload, protected=self._protected, signer=self._signer)
        link = Link(self.stream, self._seq + 1, self._digest, hashlib.sha256(payload).digest())
        self._seq, self._digest = link.seq, link.digest
        return envelope, link
