"""The plan in force for a record, looked up where the records are kept: for who hands it on with its values readable,
and did not see the plan come by.

A segment of the outbox begins with a plan (docs/outbox.md), so one is mostly near; it is gone where it could not be
read, or was overwritten meanwhile.
"""

from __future__ import annotations

from agent.evidence.record import plan_of
from agent.ports import Store, Stored

_READ = 256 * 1024  # bytes at a time
_SPANS = (16, 256, 4096, 16384)  # positions that are looked through, backwards; a segment has 3,300 at most


def plan_before(store: Store, record: Stored) -> bytes | None:
    """The envelope of the last plan of its run up to a record; None: none near it is held. Reads a segment or two, so
    it belongs into a worker thread. Raises OutboxError.
    """
    until = record.pos
    for span in _SPANS:
        after = max(0, record.pos - span)
        found = _last_plan(store, record.link.stream, after, until)
        if found is not None or not after:
            return found
        until = after
    return None


def _last_plan(store: Store, stream: bytes, after: int, until: int) -> bytes | None:
    """Among the positions behind ``after``, up to ``until``."""
    found = None
    while stored := [each for each in store.read(after, max_bytes=_READ) if each.pos <= until]:
        for each in stored:
            if each.link.stream == stream and plan_of(each.envelope) is not None:
                found = each.envelope
        after = stored[-1].pos
    return found
