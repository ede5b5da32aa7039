"""Continuity of what is at hand: digests, repeats, equivocations and holes (docs/evidence.md sections 6 and 10)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.independent.envelope import Judgement, Signer

Place = tuple[bytes, int]  # stream, seq


@dataclass
class Continuity:
    """What was found; a hole is (stream, from, to) and what became of it."""

    repeats: list[Place] = field(default_factory=list)
    equivocations: list[Place] = field(default_factory=list)
    broken: list[Place] = field(default_factory=list)  # prev is not the digest before, or no plan stands first
    holes: dict[tuple[bytes, int, int], str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """Continuity as a whole."""
        states = set(self.holes.values())
        if self.equivocations or self.broken or "failed" in states:
            return "failed"
        return "unknown" if "unknown" in states else "ok"


def continuity(judged: Iterable[Judgement], *, complete: bool) -> Continuity:
    """Judge the records that have a place, in whatever order they came. ``complete``: there are no others."""
    found = Continuity()
    signers: dict[Signer | None, dict[Place, Judgement]] = {}
    for one in judged:
        if not one.record:
            continue
        place = one.record[2], one.record[3]
        first = signers.setdefault(one.signer, {}).setdefault(place, one)
        if first is not one:
            (found.repeats if first.digest == one.digest else found.equivocations).append(place)
    for kept in signers.values():
        _judge(kept, found, complete=complete)
    return found


def _judge(kept: dict[Place, Judgement], found: Continuity, *, complete: bool) -> None:
    """The streams of one signer."""
    ranges = [entry for one in kept.values() if _is_plan(one) for entry in one.body[12]]
    latest: dict[bytes, int] = {}  # by stream: the seq before
    for (stream, seq), one in sorted(kept.items()):
        before = latest.get(stream)
        latest[stream] = seq
        if seq == 1:
            if not _begins(one, kept):
                found.broken.append((stream, seq))
        elif before == seq - 1:
            if one.record[4] != kept[stream, before].digest:
                found.broken.append((stream, seq))
        elif before is not None:
            gone = _withdrawn(stream, before + 1, seq - 1, ranges)
            state = "accounted" if gone else "failed" if complete else "unknown"
            found.holes[stream, before + 1, seq - 1] = state


def _is_plan(one: Judgement) -> bool:
    return one.body is not None and one.record[6] == 1


def _begins(one: Judgement, kept: dict[Place, Judgement]) -> bool:
    """Whether a record with seq 1 is one that a stream may begin with."""
    if one.record[1] != 1:
        return True  # of another version: nothing more is known of it
    if not _is_plan(one):
        return False
    if 10 not in one.body:
        return bool(one.record[4] == bytes(32))
    parent = kept.get((one.body[10][0], one.body[10][1]))
    return parent is None or bool(one.record[4] == parent.digest)


def _withdrawn(stream: bytes, first: int, last: int, ranges: list[list[Any]]) -> bool:
    """Whether ``ranges`` cover all from ``first`` to ``last``, several together."""
    for _, begin, end, _ in sorted(entry for entry in ranges if entry[0] == stream):
        if begin <= first <= end:
            first = end + 1
    return first > last
