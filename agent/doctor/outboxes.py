"""The ring files: can they be read, are they of this channel and key, and do they agree with what the broker has.

Reads what agent/outbox/look.py does, a few segments at most; `edge-agent outbox verify` reads all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.control.status_text import age, size
from agent.doctor.finding import Finding, fault, note, ok, warning
from agent.errors import EvidenceError, OutboxError
from agent.evidence.did import did_key
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.outbox import ring
from agent.outbox.files import OS_FILES, reading
from agent.outbox.look import Standing, look, records

_BACK = 5.0  # s
_OLD = 86_400.0  # s
_NEWEST = 256  # records among which the broker's last is looked for


@dataclass(frozen=True, slots=True)
class Sealed:
    """One record: its run (stream, hex) and number in it, digest of its payload (hex), when it was sealed (s since
    1970) and by whom.
    """

    stream: str
    seq: int
    digest: str
    wall: float
    did: str

    @classmethod
    def of(cls, envelope: bytes) -> Sealed:
        """Nothing of it is verified. Raises EvidenceError."""
        opened = unpack(envelope)
        head = decode_head(opened.payload)
        wall = decode_record(head, None).sealed.wall / 1e9
        return cls(head.link.stream.hex(), head.link.seq, head.link.digest.hex(), wall, opened.did)


@dataclass(frozen=True, slots=True)
class OutboxFacts:
    """``standing`` None: there is no file (``trouble`` ""), or it cannot be read: ``trouble``, and ``hint``.
    ``newest``: the newest records of ours, oldest first.
    """

    channel: str
    path: Path
    standing: Standing | None = None
    trouble: str = ""
    hint: str = ""
    newest: tuple[Sealed, ...] = ()


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """Files of the state folder that belong to no channel of the configuration, and the ring ids that several files
    have.
    """

    strays: tuple[tuple[Path, str], ...]  # and what each is: "ring", "new", "damaged"
    copies: tuple[tuple[Path, ...], ...]


def look_at(path: Path, channel: str) -> OutboxFacts:
    """Blocks. Raises PermissionError."""
    try:
        standing = look(path, channel=channel)
        with closing(records(path, channel=channel, newest=_NEWEST)) as found:
            newest = tuple(each for each in map(_sealed, (stored.envelope for stored in found)) if each is not None)
    except OutboxError as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from error
        if path.is_symlink() and not path.exists():
            hint = "is its disk mounted? remove the link to begin a new outbox"
            return OutboxFacts(channel, path, trouble=f"{path} is a link to {path.readlink()}: not there", hint=hint)
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return OutboxFacts(channel, path)
        return OutboxFacts(channel, path, trouble=str(error), hint=error.hint)
    return OutboxFacts(channel, path, standing, newest=newest)


def _sealed(envelope: bytes) -> Sealed | None:
    try:
        return Sealed.of(envelope)
    except EvidenceError:
        return None


def look_around(folder: Path, channels: Iterable[str]) -> FolderFacts:
    """Blocks. Raises PermissionError, FileNotFoundError."""
    known, strays, by_id = (
        {f"{each}.ring" for each in channels},
        list[tuple[Path, str]](),
        defaultdict[bytes, list[Path]](list),
    )
    for path in sorted(folder.iterdir()):
        kind = "new" if path.name.endswith(".ring.new") else "damaged" if ".ring.damaged-" in path.name else "ring"
        if kind != "ring":
            strays.append((path, kind))
        elif ".ring" in path.name:
            with suppress(OutboxError), reading(path) as fd:
                by_id[ring.unpack_file_header(OS_FILES.pread(fd, ring.START, 0)).ring_id].append(path)
            if path.name not in known:
                strays.append((path, kind))
    return FolderFacts(tuple(strays), tuple(tuple(each) for each in by_id.values() if len(each) > 1))


def judge_around(facts: FolderFacts) -> Iterator[Finding]:
    """What is to be said of the folder."""
    for copies in facts.copies:
        found = f"{' and '.join(map(str, copies))} are copies of one outbox"
        why = "if both go on, one number means two records, which every verifier calls a forgery"
        remedy = "keep the one that the agent used last, and move the other off this box"
        yield warning("outboxes", found, why=why, remedy=remedy, looked_at="their ring ids")
    for path, kind in facts.strays:
        if kind == "damaged":
            why, remedy = "a repair kept it", "remove it once what was saved has arrived"
        elif kind == "new":
            why, remedy = (
                "something that makes an outbox was broken off, or is at work",
                "the next start clears it away",
            )
        else:
            why = "what waits in it is not delivered"
            remedy = f"edge-agent outbox verify {path}; put the channel back, or remove the file"
        yield note("outboxes", f"{path} belongs to no channel", why=why, remedy=remedy, looked_at=str(path.parent))


def judge(facts: OutboxFacts, *, did: str | None, now: float, last: Sealed | None = None) -> Iterator[Finding]:
    """What is to be said of one. ``did``: whose key this box has, None if it is not known; ``now``: s since 1970;
    ``last``: the broker's last record on our subject, asked for before this file was looked at.
    """
    about, at = f"outbox {facts.channel}", str(facts.path)
    if facts.standing is None:
        if facts.trouble:
            why = "the agent does not start with it, and leaves it as it is"
            remedy = facts.hint or f"edge-agent outbox verify --channel {facts.channel}"
            yield fault(about, facts.trouble, why=why, remedy=remedy, looked_at=at)
        else:
            why = "the agent makes it at the start; if it was there before, a disk is missing or it was removed"
            yield note(about, "there is no file yet", why=why, looked_at=at)
        yield from _strange(facts, did, last, about)
        return
    found = list(_times(facts, facts.standing, now, about))
    yield from found
    newest = facts.newest[-1] if facts.newest else None
    if newest is not None and did is not None and not _same(newest.did, did):
        what = f"its last record is signed by {newest.did}, and the key of this box is that of {did}"
        why = "consumers who accept one of the two do not accept the other"
        remedy = "is this the right key, and the right card? after a change of the key it ends with the next record"
        yield warning(about, what, why=why, remedy=remedy, looked_at=at)
    yield from _strange(facts, did, last, about)
    if not found:
        standing = facts.standing
        used = size(standing.segments_used * standing.segment_size)
        yield ok(about, f"{standing.pending_records} records wait; {used} of {size(standing.size)} used", looked_at=at)


def _times(facts: OutboxFacts, standing: Standing, now: float, about: str) -> Iterator[Finding]:
    at = str(facts.path)
    if standing.newest_wall is not None and (ahead := standing.newest_wall / 1e9 - now) > _BACK:
        why = "the clock was set back: this time is signed into what is sealed now"
        found = f"its newest record was sealed {age(ahead)} from now"
        yield warning(about, found, why=why, remedy="timedatectl: is the time right now?", looked_at=at)
    if standing.oldest_wall is not None and (waits := now - standing.oldest_wall / 1e9) > _OLD:
        found = f"{standing.pending_records} records wait, the oldest for {age(waits)}"
        why = "when the outbox is full the oldest are overwritten"
        remedy = "edge-agent status says why the broker does not take them; edge-agent outbox export rescues them"
        yield warning(about, found, why=why, remedy=remedy, looked_at=at)


def _strange(facts: OutboxFacts, did: str | None, last: Sealed | None, about: str) -> Iterator[Finding]:
    """Whether the broker has what this box did not write."""
    if last is None:
        return
    if did is not None and not _same(last.did, did):
        found = f"the last record on our subject is signed by {last.did}, not by {did}"
        why = "two agents that write to one subject spoil what the broker says of the other's"
        remedy = "one subject for each agent; after a change of the key it ends with the next record"
        yield warning(about, found, why=why, remedy=remedy, looked_at="the broker")
        return
    known = {each.digest for each in facts.newest}
    newest = facts.newest[-1] if facts.newest else None
    if newest is None or last.stream != newest.stream:
        is_later = newest is None or last.wall > newest.wall
    else:
        is_later = last.seq > newest.seq
    if is_later and last.digest not in known:
        found = "the broker has a later record of our key than this outbox"
        why = "two boxes sign with one key (a cloned card), or an older copy of the outbox, or none, was put back"
        remedy = (
            "rule out the cloned card first: where else does this key run? then docs/operating.md, backup and restore"
        )
        yield fault(about, found, why=why, remedy=remedy, looked_at="the broker's last record, and the newest here")


def _same(one: str, other: str) -> bool:
    try:
        return did_key(one) == did_key(other)
    except ValueError:
        return one == other
