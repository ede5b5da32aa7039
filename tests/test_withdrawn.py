"""Withdrawn ranges: neighbours become one, sixteen at most, and nothing that was withdrawn is ever left out of it while
anything can be joined (docs/evidence.md section 4).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.withdrawn import MOST, merged
from agent.model import Cause, Withdrawn

A, B = bytes([9]) * 16, bytes(16)
OVERFLOW, REFUSED, DISK_ERROR = Cause.OVERFLOW, Cause.REFUSED, Cause.DISK_ERROR
Short = tuple[bytes, int, int, Cause]


def entry(stream: bytes, first: int, last: int, cause: Cause = OVERFLOW) -> Withdrawn:
    return Withdrawn(stream, first, last, cause)


@pytest.mark.parametrize(
    ("given_entries", "expected"),
    [
        ([], []),
        ([entry(A, 1, 3)], [entry(A, 1, 3)]),
        ([entry(A, 1, 3), entry(A, 4, 5)], [entry(A, 1, 5)]),
        ([entry(A, 4, 5), entry(A, 1, 3)], [entry(A, 1, 5)]),
        ([entry(A, 1, 9), entry(A, 2, 3)], [entry(A, 1, 9)]),
        ([entry(A, 1, 3), entry(A, 5, 5)], [entry(A, 1, 3), entry(A, 5, 5)]),
        ([entry(A, 1, 3), entry(A, 4, 5, DISK_ERROR)], [entry(A, 1, 3), entry(A, 4, 5, DISK_ERROR)]),
        ([entry(A, 1, 3), entry(B, 4, 5)], [entry(A, 1, 3), entry(B, 4, 5)]),
        ([entry(A, 8, 9), entry(B, 1, 2), entry(A, 1, 7)], [entry(A, 1, 9), entry(B, 1, 2)]),
    ],
)
def test_merging(given_entries: list[Withdrawn], expected: list[Withdrawn]) -> None:
    assert list(merged(given_entries)) == expected


def test_past_sixteen_the_two_nearest_are_joined() -> None:
    entries = [entry(A, 100 * i, 100 * i + 10) for i in range(1, MOST + 1)] + [entry(A, 450, 451)]
    found = merged(entries)
    assert len(found) == MOST
    assert entry(A, 400, 451) in found
    assert entry(A, 500, 510) in found


def test_when_nothing_can_be_joined_the_oldest_streams_go() -> None:
    entries = [
        entry(bytes([200 - i]) * 16, 1, 5) for i in range(MOST + 3)
    ]  # their ids fall, they themselves grow older
    assert merged(entries) == tuple(entries[3:])


@given(
    st.lists(
        st.builds(
            lambda stream, first, length, cause: Withdrawn(bytes([stream]) * 16, first, first + length, cause),
            *(st.integers(0, 2), st.integers(1, 300), st.integers(0, 20), st.sampled_from([OVERFLOW, REFUSED])),
        ),
        max_size=60,
    )
)
def test_what_was_withdrawn_stays_withdrawn(entries: list[Withdrawn]) -> None:
    found = merged(entries)
    assert len(found) <= MOST
    for each in entries:
        assert all(
            any(f.stream == each.stream and f.first <= seq <= f.last for f in found)
            for seq in range(each.first, each.last + 1)
        )
    assert merged(found) == found
