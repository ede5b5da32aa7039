"""What the last run left behind, worked out from the records of the outbox's newest segment. Pure; start-up needs it
for a new run's plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import EvidenceError
from agent.evidence.coverage import Coverage
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Data, Event, EventCode, Plan, Resume, Withdrawn


@dataclass(frozen=True, slots=True)
class History:
    """Where the last run ended: first uncovered cycles, ranges it had withdrawn, whether it stopped in order, and the
    boot time at which its last record was sealed.
    """

    resumes: tuple[Resume, ...] = ()
    withdrawn: tuple[Withdrawn, ...] = ()
    clean: bool = False
    sealed: int | None = None


def replay(envelopes: Iterable[bytes]) -> History:
    """Read the records of a segment, oldest first; the first is a plan. Records that cannot be read are passed over."""
    coverage: Coverage | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    clean, sealed = False, None
    for envelope in envelopes:
        try:
            head = decode_head(unpack(envelope).payload)
            record = decode_record(head, coverage.plan if coverage else None)
        except EvidenceError:
            continue
        body, sealed = record.body, record.sealed.boot
        clean = isinstance(body, Event) and body.code == EventCode.STOP
        if isinstance(body, Plan):
            withdrawn, coverage = body.withdrawn, Coverage(body)  # its ``next`` holds behind unreadable records too
        elif isinstance(body, Data) and coverage is not None and body.term == coverage.plan.term:
            coverage.add(body)
    if coverage is None:
        return History(clean=clean, sealed=sealed)
    resumes = tuple(
        Resume(*key, coverage.plan.term, cycle)
        for key, group, cycle in zip(coverage.keys, coverage.plan.groups, coverage.next, strict=True)
        if group.schedule is not None
    )
    return History(resumes, withdrawn, clean, sealed)
