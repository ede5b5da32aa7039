"""What the verifier remembers: of each run, of the runs of each signer and channel, and the account. Plain state.

Bounded: of a run the last ``REMEMBERED`` digests and what waits for its turn; of runs the last ``MOST_STREAMS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.evidence.coverage import Coverage, GroupKey, Lost
from agent.evidence.did import DidKey
from agent.evidence.record import Head
from agent.model import Plan
from agent.verifier import holes
from agent.verifier.report import ChannelReport, Hole, HoleState, Part, Report, Run
from agent.verifier.span import Span

StreamKey = tuple[DidKey, bytes]  # signer and name: nobody can speak of another's runs
WINDOW = 64  # records that may wait for an earlier one, as many as a publisher has in flight
REMEMBERED = 256  # digests kept per stream, to tell a repeat from an equivocation
MOST_STREAMS = 1024
MOST_PLANS = 64  # of earlier terms of a run


@dataclass(slots=True)
class Stream:
    """What is remembered of one run. ``account`` is that of its channel, or of its signer until a plan says which."""

    name: bytes
    signer: DidKey
    did: str
    account: ChannelReport
    expected: int | None = None  # seq whose turn it is; None: not begun
    start: int = 1  # seq of the first record judged
    digest: bytes | None = None  # of the record before it; None behind a hole
    planned: bool = False  # a plan of it was at hand
    unplanned: bool = False  # data of it came in turn before any plan
    joined: bool = False  # what lies before its first record at hand was judged
    denied: bool = False  # the allow-list does not have its channel
    skipped: Lost | None = None  # cycles of its first term before its first record at hand
    waiting: dict[int, Head] = field(default_factory=dict)
    recent: dict[int, bytes] = field(default_factory=dict)  # digests by seq, in order of arrival
    coverage: Coverage | None = None
    plans: dict[int, Plan] = field(default_factory=dict)  # of earlier terms, by term, while records may still come
    holes: list[Hole] = field(default_factory=list)  # oldest first
    children: list[bytes] = field(default_factory=list)  # of the same signer: those that wait for this one's records
    followers: list[tuple[bytes, int]] = field(default_factory=list)  # runs that follow it, and behind which seq
    rivals: list[bytes] = field(default_factory=list)  # runs that must not have been at the same time
    ends: int | None = None  # with this seq, as a later run says that was seen from its middle on
    unjoined: Plan | None = None  # its first plan, if the run that it follows is not at hand,
    unjoined_prev: bytes | None = None  # and ``prev`` of its first record
    run: Run | None = None
    span: Span = field(default_factory=Span)

    @property
    def key(self) -> StreamKey:
        """What it is remembered by."""
        return self.signer, self.name

    @property
    def last(self) -> int:
        """Seq of the last record that was judged; 0: none was."""
        return (self.expected or 1) - 1

    def plan_of(self, term: int) -> Plan | None:
        """The plan of a term, if it is remembered."""
        if self.coverage is not None and self.coverage.plan.term == term:
            return self.coverage.plan
        return self.plans.get(term)

    def keep(self, plan: Plan) -> None:
        """Remember a plan for records that come late; no longer than some may."""
        if not any(hole.state is HoleState.OPEN for hole in self.holes):
            self.plans.clear()
            return
        self.plans[plan.term] = plan
        if len(self.plans) > MOST_PLANS:
            del self.plans[min(self.plans)]

    def lose(self, cycles: Lost) -> None:
        """These cycles went with records that are not at hand."""
        if self.holes:
            holes.lose(self.holes[-1], cycles)
        else:
            for key, count in cycles.items():
                self.account.tally(key).missing += count


@dataclass(slots=True)
class Lineage:
    """The runs of one signer on one channel. ``latest``: the last that began. ``leaves``: those that none follows.
    ``volatile``: cycles that runs kept in memory covered since then.
    """

    latest: bytes = b""
    leaves: list[bytes] = field(default_factory=list)
    volatile: dict[GroupKey, int] = field(default_factory=dict)


class Book:
    """All that is remembered."""

    def __init__(self) -> None:
        self.report = Report()
        self.streams: dict[StreamKey, Stream] = {}
        self.lineages: dict[tuple[DidKey, str], Lineage] = {}
        self.permissions = holes.Permissions()
        self.accounts: dict[tuple[DidKey, str | None], ChannelReport] = {}

    def account(self, signer: DidKey, did: str, channel: str | None) -> ChannelReport:
        """The account of a channel of a signer."""
        found = self.accounts.get((signer, channel))
        if found is None:
            found = self.accounts[signer, channel] = ChannelReport(did, channel)
            self.report.channels.append(found)
        return found

    def find(self, signer: DidKey, name: bytes) -> Stream | None:
        """What is remembered of a run; None: nothing."""
        return self.streams.get((signer, name))

    def stream(self, signer: DidKey, did: str, name: bytes) -> Stream:
        """What is remembered of a run, from now on if nothing was."""
        found = self.streams.get((signer, name))
        if found is None:
            found = self.streams[signer, name] = Stream(name, signer, did, self.account(signer, did, None))
        return found

    def idle(self) -> StreamKey | None:
        """A run that should be remembered no more because there are too many: the one that was met first of those that
        another has followed.
        """
        if len(self.streams) <= MOST_STREAMS:
            return None
        latest = {(signer, lineage.latest) for (signer, _), lineage in self.lineages.items()}
        return next((key for key in self.streams if key not in latest), next(iter(self.streams)))

    def forget(self, key: StreamKey) -> None:
        """Remember a run no more; its holes are decided."""
        stream = self.streams.pop(key)
        for (signer, _), lineage in self.lineages.items():
            if signer == stream.signer and stream.name in lineage.leaves:
                lineage.leaves.remove(stream.name)
        for hole in stream.holes:
            holes.decide(self.report, stream.account, self.permissions.of(stream.signer), hole, complete=False)

    # ---- holes ----------------------------------------------------------------------------------------------

    def open_hole(self, stream: Stream, first: int, last: int, *, after: bytes | None = None) -> Hole:
        """Records ``first`` to ``last`` of a stream that is at hand did not come in their turn."""
        before = stream.digest if first == stream.expected else None
        hole = self.note_hole(stream, stream.name, Part(first, last, before, after))
        stream.holes.append(hole)
        holes.bound(stream.account, stream.holes)
        if stream.coverage is not None:
            stream.coverage.doubt()
        return hole

    def note_hole(self, stream: Stream, name: bytes, part: Part) -> Hole:
        """List records of a run that are not at hand, in the account of ``stream``, which tells of them."""
        hole = holes.open_hole(stream.account, name, part)
        gone = holes.unlist(self.report, stream.account, self.permissions.of(stream.signer))
        owner = self.find(stream.signer, gone.stream) if gone is not None else None
        if gone is not None and owner is not None and gone in owner.holes:
            owner.holes.remove(gone)
        return hole

    def found(self, account: ChannelReport, name: bytes) -> None:
        """A run that was taken for missing as a whole has come after all; what it holds is judged by itself."""
        account.holes = [hole for hole in account.holes if not (hole.stream == name and hole.whole_run)]

    def settle(self, *, complete: bool) -> None:
        """Decide all holes."""
        for (signer, _), account in self.accounts.items():
            holes.settle(self.report, account, self.permissions.of(signer), complete=complete)
