"""The readable copy of a record on its way out: its values as SenML, made with the plan of its term.

Only for topics whose schema demands ``records`` (docs/evidence.md, section 7). A plan that comes by is remembered;
where sending begins within a term it is looked up once, where the records are kept. Pure but for that.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import EvidenceError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record, plan_of
from agent.model import Data, Plan
from agent.transports.ddhub.content.records import rendered
from agent.verifier import Judged
from agent.verifier.verdict import ALL_OK

FindPlan = Callable[[], bytes | None]


class Copies:
    """Of records one after another; holds one plan. Not for several threads at once."""

    def __init__(self) -> None:
        self._stream = b""
        self._term = 0
        self._plan: Plan | None = None  # of this term of this run; None: it was looked for, and is not held

    def of(self, envelope: bytes, find_plan: FindPlan) -> str | None:
        """The objects of a record of ours, with commas between; "": it has no values; None: its plan is not at hand, or
        it cannot be read.

        ``find_plan``: the envelope of the plan in force, None if it is not held. Raises what that raises.
        """
        try:
            return self._made(envelope, find_plan)
        except EvidenceError:
            return None

    def _made(self, envelope: bytes, find_plan: FindPlan) -> str | None:
        opened = unpack(envelope)
        head = decode_head(opened.payload)
        stream = head.link.stream
        record = decode_record(head, None)
        if isinstance(record.body, Plan):
            self._stream, self._term, self._plan = stream, record.body.term, record.body
        if not isinstance(record.body, Data):
            return ""
        if (self._stream, self._term) != (stream, record.body.term):
            found = find_plan()
            plan = None if found is None else plan_of(found)
            self._stream, self._term = stream, record.body.term
            self._plan = plan if plan is not None and plan.term == self._term else None
        if self._plan is None:
            return None
        record = decode_record(head, self._plan)  # held against it
        return ",".join(rendered([Judged(ALL_OK, record=record, plan=self._plan, signer=opened.did)]))
