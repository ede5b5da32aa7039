"""When no messages came is stated: once, whole, and while it lasts (docs/evidence.md section 4)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Cause
from agent.silences import STATE_EVERY, Silences, Span

S = 1_000_000_000
LINK, SILENT = Cause.LINK_DOWN, Cause.SOURCE_SILENT


def listening(*, after: int = 10 * S, now: int = 0) -> Silences:
    silences = Silences({"battery": after}, now=now)
    silences.connected(now, kept=False)
    assert silences.take(now) == []
    return silences


def test_from_the_beginning_to_the_first_connection_nobody_listens() -> None:
    silences = Silences({}, now=5)
    silences.lost(9, "refused")
    silences.connected(12, kept=False)
    assert silences.due == 0
    assert silences.take(12) == [Span(None, LINK, 5, 12, "refused")]
    assert silences.due is None


def test_a_lost_connection_counts_from_the_last_sign_of_life() -> None:
    silences = listening()
    silences.lost(3 * S, "connection lost")
    silences.lost(4 * S, "refused")  # another try
    assert silences.take(5 * S) == []
    silences.connected(6 * S, kept=True)
    assert silences.take(6 * S) == [Span(None, LINK, 3 * S, 6 * S, "messages were kept")]


def test_what_lasts_is_stated_piece_by_piece() -> None:
    silences = Silences({}, now=0)
    silences.lost(0, "refused")
    assert silences.due == STATE_EVERY
    assert silences.take(STATE_EVERY) == [Span(None, LINK, 0, STATE_EVERY, "refused", True)]
    assert silences.take(STATE_EVERY + 1) == []
    silences.connected(STATE_EVERY + 7, kept=False)
    assert silences.take(STATE_EVERY + 7) == [Span(None, LINK, STATE_EVERY, STATE_EVERY + 7, "refused")]


def test_a_source_that_falls_silent_is_stated_when_it_is_and_when_it_comes_back() -> None:
    silences = listening()
    silences.heard("battery", 2 * S)
    silences.heard("unknown", 3 * S)
    assert silences.due == 12 * S
    assert silences.take(12 * S - 1) == []
    assert silences.take(12 * S) == [Span("battery", SILENT, 2 * S, 12 * S, None, True)]
    assert silences.due == 12 * S + STATE_EVERY
    silences.heard("battery", 20 * S)
    assert silences.take(20 * S) == [Span("battery", SILENT, 12 * S, 20 * S)]
    assert silences.due == 30 * S


def test_while_nobody_listens_no_source_is_called_silent() -> None:
    silences = listening()
    assert silences.take(10 * S) == [Span("battery", SILENT, 0, 10 * S, None, True)]
    silences.lost(11 * S, "connection lost")
    assert silences.take(100 * S) == [Span("battery", SILENT, 10 * S, 11 * S)]
    silences.connected(110 * S, kept=False)
    assert silences.take(110 * S) == [Span(None, LINK, 11 * S, 110 * S, "connection lost")]
    assert silences.due == 120 * S


def test_at_the_end_all_that_lasts_is_stated() -> None:
    silences = listening()
    assert silences.take(5 * S, last=True) == []
    silences.take(10 * S)
    assert silences.take(11 * S, last=True) == [Span("battery", SILENT, 10 * S, 11 * S, None, True)]
    silences.lost(11 * S, "connection lost")
    assert silences.take(12 * S, last=True) == [Span(None, LINK, 11 * S, 12 * S, "connection lost", True)]


steps = st.lists(st.tuples(st.sampled_from(["up", "down", "heard", "take"]), st.integers(0, 400 * S)), max_size=30)


@given(steps)
def test_every_instant_without_a_connection_is_stated_once_and_no_other(actions: list[tuple[str, int]]) -> None:
    now, connected, stated = 0, False, list[Span]()
    silences, down = Silences({"battery": 10 * S}, now=0), 0
    since = 0
    for action, after in actions:
        now += after
        if action == "up" and not connected:
            silences.connected(now, kept=False)
            connected, down = True, down + now - since
        elif action == "down":
            silences.lost(now, "lost")
            connected, since = False, now if connected else since
        elif action == "heard" and connected:
            silences.heard("battery", now)
        elif action == "take":
            stated += silences.take(now)
    stated += silences.take(now, last=True)
    links = [span for span in stated if span.cause is LINK]
    assert sum(span.end - span.begin for span in links) == down + (0 if connected else now - since)
    spans = sorted((span.begin, span.end) for span in stated)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
