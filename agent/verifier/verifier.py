"""The verifier: takes envelopes as they come, and judges each once its turn in its stream has come (docs/evidence.md
section 6).

Records may come twice, late and out of order by up to ``WINDOW``. Constant memory: what is remembered grows neither
with records nor, beyond fixed bounds, with runs and holes. It does not judge whether a device told the truth, nor what
was cut off at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.errors import EvidenceError
from agent.evidence.did import DidKey, did_key
from agent.evidence.envelope import Envelope, Keys, unpack
from agent.evidence.record import Head, decode_head, decode_record
from agent.model import Plan
from agent.verifier import checkpoint
from agent.verifier.accepted import Accepted, Signer
from agent.verifier.book import REMEMBERED, WINDOW, Book, Stream, StreamKey
from agent.verifier.holes import part_with
from agent.verifier.judge import Judge
from agent.verifier.report import Report
from agent.verifier.runs import Runs
from agent.verifier.verdict import Finding, Judged, Level, Outcome

_MOST_SIGNERS = 1024  # whose DIDs are remembered as read
_EQUIVOCATION = "equivocation: another record with this number was seen"
_TOO_LATE = "came again too late to be compared with what was judged"
_BEFORE_ALL = "lies before the first record at hand, and came too late to be put in order"


class Verifier:
    """Judges envelopes of the accepted signers: ``feed`` each, ``finish`` at the end; ``report`` is the account."""

    def __init__(self, accept: Iterable[Signer | str], *, saved: bytes | None = None) -> None:
        """``accept``: DIDs, or the signers of an allow-list. ``saved``: what ``save`` gave.

        Raises ValueError: something is no did:ethr DID; CheckpointError: what was saved cannot be read.
        """
        self._accepted = Accepted(accept)
        self._book = Book() if saved is None else checkpoint.restore(saved)
        self._runs = Runs(self._book)
        self._judge = Judge(self._book, self._runs, self._accepted)
        self._keys = Keys()
        self._dids: dict[str, tuple[DidKey, bool]] = {}  # as read, and whether it is accepted

    @property
    def report(self) -> Report:
        """The account so far."""
        return self._book.report

    def save(self) -> bytes:
        """All that must be known to go on with later envelopes, those that wait for their turn included. To be called
        before ``finish``, which judges what waits.
        """
        return checkpoint.save(self._book)

    def feed(self, envelope: bytes) -> list[Judged]:
        """Take one envelope; returns the records whose turn has come, in order of their streams."""
        try:
            opened = unpack(envelope)
        except EvidenceError as error:
            return [self._failed(Level.STRUCTURE, str(error))]
        known = self._dids.get(opened.did)
        signer, accepted = known if known is not None else self._look_up(opened.did)
        if not accepted:
            self.report.foreign += 1
            return [_foreign(opened)]
        try:
            self._keys.check(opened)
        except EvidenceError as error:
            return [self._failed(Level.SIGNATURE, str(error))]
        if opened.unknown:
            self.report.tell_news(opened.unknown)
        try:
            head = decode_head(opened.payload)
        except EvidenceError as error:
            return [self._failed(Level.STRUCTURE, str(error))]
        return self._place(head, signer, opened.did)

    def settle(self, *, behind_holes: bool = False) -> list[Judged]:
        """Judge what waits at the beginning of a stream: the caller knows that nothing earlier is on its way.

        ``behind_holes``: nor is what is missing in between, so judge what waits behind it, too. It may come all the
        same, and then fills its hole.
        """
        return [
            judged for key in list(self._book.streams) for judged in self._release(key, begin=True, flush=behind_holes)
        ]

    def finish(self, *, complete: bool = False, now: int | None = None) -> list[Judged]:
        """Judge all that still waits. ``complete``: the input is all there is, so open holes have failed; else they
        are unknown. ``now``: the reader's wall time in ns, to tell which channels are overdue.
        """
        streams = list(self._book.streams)  # in order of arrival, each behind the one that it follows
        judged = [each for key in streams for each in self._release(key, begin=True, flush=True)]
        self._runs.finish()
        if now is not None:
            self._runs.overdue(now)
        self._book.settle(complete=complete)
        return judged

    def _look_up(self, did: str) -> tuple[DidKey, bool]:
        key = did_key(did)
        if len(self._dids) >= _MOST_SIGNERS:
            self._dids.clear()
        self._dids[did] = found = key, self._accepted.find(key) is not None
        return found

    # ---- order ----------------------------------------------------------------------------------------------

    def _place(self, head: Head, signer: DidKey, did: str) -> list[Judged]:
        link = head.link
        stream = self._book.find(signer, link.stream)
        judged = []
        if stream is None:
            stream = self._book.stream(signer, did, link.stream)
            judged = list(self._make_room())
        known = stream.recent.get(link.seq)
        if known == link.digest:
            self.report.repeats += 1
            return [*judged, Judged({}, head=head, signer=did, repeat=True)]
        if known is not None:
            return [*judged, self._failed(Level.CONTINUITY, _EQUIVOCATION, head)]
        if stream.expected is not None and link.seq < stream.expected:
            return [*judged, self._too_late(stream, head)]
        self._remember(stream, head)
        if link.seq == stream.expected and not stream.waiting:
            judged.append(self._take(stream, head))
            if not stream.children:
                return judged  # as nearly always
        else:
            stream.waiting[link.seq] = head
        judged += self._release(stream.key)
        return judged

    def _remember(self, stream: Stream, head: Head) -> None:
        recent = stream.recent
        recent[head.link.seq] = head.link.digest
        if len(recent) > REMEMBERED:
            del recent[next(iter(recent))]

    def _too_late(self, stream: Stream, head: Head) -> Judged:
        """A record whose turn is over: of a hole, or it cannot be told what it is."""
        link = head.link
        place = part_with(stream.holes, link.seq)
        if place is not None and not place[1].merged:
            self._remember(stream, head)
            return self._judge.late(stream, head, *place)
        self.report.late += 1
        text = _TOO_LATE if link.seq >= stream.start else _BEFORE_ALL
        finding = Finding(Level.CONTINUITY, Outcome.UNKNOWN, text, link.stream, link.seq)
        return Judged({Level.CONTINUITY: Outcome.UNKNOWN}, (finding,), head, signer=stream.did)

    def _make_room(self) -> Iterator[Judged]:
        """Remember no more runs than is allowed."""
        while (key := self._book.idle()) is not None:
            yield from self._release(key, begin=True, flush=True)
            self._book.forget(key)

    def _release(self, key: StreamKey, *, begin: bool = False, flush: bool = False) -> Iterator[Judged]:
        """Judge what waits in a stream, and in the runs that wait for it, as far as its turn has come.

        ``begin``: nothing earlier than what waits is on its way to the beginning of a stream. ``flush``: nothing at
        all.
        """
        todo = [(key, flush)]
        while todo:
            current, forced = todo.pop()
            if current in self._book.streams:
                yield from self._advance(current, todo, begin=begin or forced, flush=forced)

    def _advance(
        self, key: StreamKey, todo: list[tuple[StreamKey, bool]], *, begin: bool, flush: bool
    ) -> Iterator[Judged]:
        """Judge what waits in one stream; ``todo`` takes the streams that come next, the last one first."""
        stream = self._book.streams[key]
        while stream.waiting:
            full = flush or len(stream.waiting) > WINDOW
            if stream.expected is None:
                first = min(stream.waiting)
                if first != 1 and first <= WINDOW and not full and not begin:
                    return
                parent = self._parent_behind(stream, stream.waiting[1]) if first == 1 else None
                if parent is not None:
                    unseen = parent.expected is None and not parent.waiting
                    if not full and not (begin and unseen):
                        if stream.name not in parent.children:
                            parent.children.append(stream.name)
                        return
                    if stream.name in parent.children:
                        parent.children.remove(stream.name)
                stream.expected = stream.start = first
                if parent is not None:  # what it waits with comes first
                    todo += [(key, flush), (parent.key, True)]
                    return
            if stream.expected not in stream.waiting:
                if not full:
                    return
                behind = stream.waiting[min(stream.waiting)].link
                self._book.open_hole(stream, stream.expected, behind.seq - 1, after=behind.prev)
                stream.expected, stream.digest = behind.seq, None
            yield self._take(stream, stream.waiting.pop(stream.expected))
        todo += [((stream.signer, child), flush) for child in reversed(stream.children)]
        stream.children = []

    def _take(self, stream: Stream, head: Head) -> Judged:
        """Judge the record whose turn it is."""
        judged = self._judge.in_turn(stream, head)
        stream.expected = head.link.seq + 1
        stream.digest = head.link.digest
        return judged

    def _parent_behind(self, stream: Stream, head: Head) -> Stream | None:
        """The run that this one follows if records of it are still to come."""
        try:
            plan = decode_record(head, None).body
        except EvidenceError:
            return None
        if not isinstance(plan, Plan) or plan.follows is None or plan.follows[0] == stream.name or plan.volatile:
            return None
        parent = self._book.stream(stream.signer, stream.did, plan.follows[0])
        return parent if parent.last < plan.follows[1] else None

    # ---- account --------------------------------------------------------------------------------------------

    def _failed(self, level: Level, text: str, head: Head | None = None) -> Judged:
        """A record that fails before its turn: it stands in no stream."""
        self.report.records += 1
        self.report.fail(level)
        place = (head.link.stream, head.link.seq) if head else (None, None)
        return Judged({level: Outcome.FAILED}, (Finding(level, Outcome.FAILED, text, *place),), head)


def _foreign(opened: Envelope) -> Judged:
    finding = Finding(Level.IDENTITY, Outcome.UNKNOWN, f"foreign: signed in the name of {opened.did}")
    return Judged({Level.IDENTITY: Outcome.UNKNOWN}, (finding,), signer=opened.did, foreign=True)
