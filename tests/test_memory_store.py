"""An outbox in memory: bounded, and as honest about what it drops as the ring."""

from __future__ import annotations

from agent.model import Cause, Link, Withdrawn
from agent.outbox import MemoryStore

STREAM = bytes(16)


def sealed(first: int, count: int, size: int = 300) -> list[tuple[bytes, Link]]:
    return [
        (seq.to_bytes(4, "big") * (size // 4), Link(STREAM, seq, bytes(32), bytes(32)))
        for seq in range(first, first + count)
    ]


def positions(store: MemoryStore, after: int) -> list[int]:
    found: list[int] = []
    while stored := store.read(found[-1] if found else after, max_bytes=700):
        found += [each.pos for each in stored]
    return found


def test_it_holds_what_it_was_given_until_there_is_no_room_and_tells_what_that_costs() -> None:
    store = MemoryStore(segments=3, segment_size=1024)
    assert not store.fits(10, 1)
    dropped: list[Withdrawn] = []
    for seq in range(1, 31):
        new = not store.fits(300, 1)
        dropped += store.overwritten() if new else ()
        assert store.append(sealed(seq, 1), new_segment=new) == range(seq, seq + 1)
        if seq == 5:
            store.settle(4)
    first = positions(store, 0)[0]
    assert positions(store, 0) == list(range(first, 31))
    assert positions(store, 28) == [29, 30]
    assert [(each.first, each.last) for each in dropped[:2]] == [(5, 6), (7, 9)], "what was acknowledged is no loss"
    assert dropped[-1] == Withdrawn(STREAM, first - 3, first - 1, Cause.OVERFLOW)
    assert store.pending.records == 31 - first
    assert store.pending.bytes == 300 * (31 - first)
    assert store.find(STREAM, first - 1) is None
    assert store.find(STREAM, 30) == 30
    store.settle(30)
    assert store.pending.records == 0
    assert not store.mark()


def test_the_last_batch_is_at_hand_for_who_keeps_up() -> None:
    store = MemoryStore()
    store.append(sealed(1, 2), new_segment=True)
    store.append(sealed(3, 2), new_segment=False)
    assert [each.pos for each in store.fresh(2)] == [3, 4]
    assert [each.pos for each in store.fresh(3)] == [4]
    assert not store.fresh(1), "it must be read"
    assert not store.fresh(4)
    store.close()
    assert not store.read(0, max_bytes=1000)
