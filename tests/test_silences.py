"""When no messages came is stated: once, whole, and while it lasts (docs/evidence.md section 4)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Cause
from agent.silences import STATE_EVERY, Silences, Span

S = 1_000_000_000
LINK, SILENT = Cause.LINK_DOWN, Cause.SOURCE_SILENT
KEPT = "the broker kept the session"


def listening(**after: int | None) -> Silences:
    silences = Silences(after or {"battery": 10 * S}, now=0)
    silences.connected(0, kept=False)
    assert silences.take(0) == []
    return silences


def test_from_the_beginning_to_the_first_connection_nobody_listens() -> None:
    silences = Silences({"battery": None}, now=5)
    silences.lost(9, "refused")
    silences.connected(12, kept=False)
    assert silences.due == 0
    assert silences.take(12) == [Span("battery", LINK, 5, 12)]
    assert silences.due is None


def test_a_lost_connection_counts_from_the_last_sign_of_life() -> None:
    silences = listening()
    silences.lost(3 * S, "connection lost")
    silences.lost(4 * S, "refused")  # another try
    assert silences.take(5 * S) == []
    silences.connected(6 * S, kept=True)
    assert silences.take(6 * S) == [Span("battery", LINK, 3 * S, 6 * S, KEPT)]


def test_what_lasts_is_stated_piece_by_piece() -> None:
    silences = Silences({"battery": None}, now=0)
    silences.lost(0, "refused")
    assert silences.due == STATE_EVERY
    assert silences.take(STATE_EVERY) == [Span("battery", LINK, 0, STATE_EVERY, "refused", True)]
    assert silences.take(STATE_EVERY + 1) == []
    silences.connected(STATE_EVERY + 7, kept=False)
    assert silences.take(STATE_EVERY + 7) == [Span("battery", LINK, STATE_EVERY, STATE_EVERY + 7)]


def test_nothing_is_said_of_a_connection_that_is_being_made() -> None:
    """What came between CONNACK and SUBACK would else lie in a span without messages."""
    silences = Silences({"battery": None}, now=0)
    silences.trying(290 * S)
    assert silences.due is None
    assert silences.take(310 * S) == []
    silences.lost(310 * S, "refused")
    silences.trying(311 * S)
    assert silences.take(312 * S) == [Span("battery", LINK, 0, 311 * S, "refused", True)]
    silences.connected(311 * S + 5, kept=True)
    assert silences.take(313 * S) == [Span("battery", LINK, 311 * S, 311 * S + 5, KEPT)]


def test_a_source_that_falls_silent_is_stated_when_it_is_and_when_it_comes_back() -> None:
    silences = listening()
    silences.heard("battery", 2 * S)
    assert silences.due == 12 * S
    assert silences.take(12 * S - 1) == []
    assert silences.take(12 * S) == [Span("battery", SILENT, 2 * S, 12 * S, None, True)]
    assert silences.due == 12 * S + STATE_EVERY
    silences.heard("battery", 20 * S)
    assert silences.take(20 * S) == [Span("battery", SILENT, 12 * S, 20 * S)]
    assert silences.due == 30 * S


def test_of_what_may_not_be_fetched_yet_nothing_is_said() -> None:
    silences = listening()
    assert silences.take(10 * S, fetched=10 * S - 1) == []
    assert silences.take(10 * S + 1, fetched=10 * S) == [Span("battery", SILENT, 0, 10 * S, None, True)]
    silences.lost(11 * S, "connection lost")
    assert silences.take(12 * S, fetched=0) == [Span("battery", SILENT, 10 * S, 11 * S)]


def test_while_nobody_listens_no_source_is_called_silent() -> None:
    silences = listening()
    assert silences.take(10 * S) == [Span("battery", SILENT, 0, 10 * S, None, True)]
    silences.lost(11 * S, "connection lost")
    assert silences.take(100 * S) == [Span("battery", SILENT, 10 * S, 11 * S)]
    silences.connected(110 * S, kept=False)
    assert silences.take(110 * S) == [Span("battery", LINK, 11 * S, 110 * S)]
    assert silences.due == 120 * S


def test_a_connection_lost_now_and_then_hides_no_source_that_stopped() -> None:
    silences = listening()
    silences.heard("battery", S)
    for at in (5 * S, 9 * S):
        silences.lost(at, "connection lost")
        silences.connected(at + S, kept=False)
        assert [span.cause for span in silences.take(at + S)] == [LINK]
    assert silences.due == 13 * S  # 4 s and 3 s of listening are over
    assert silences.take(13 * S - 1) == []
    quiet = [Span("battery", SILENT, S, 5 * S), Span("battery", SILENT, 6 * S, 9 * S)]
    assert silences.take(13 * S) == [*quiet, Span("battery", SILENT, 10 * S, 13 * S, None, True)]
    silences.lost(14 * S, "connection lost")
    silences.connected(15 * S, kept=False)
    spans = [Span("battery", SILENT, 13 * S, 14 * S), Span("battery", LINK, 14 * S, 15 * S)]
    assert silences.take(15 * S) == spans
    assert silences.due == 25 * S, "all is told; it counts anew"


def test_a_message_ends_what_earlier_connections_did_not_hear() -> None:
    silences = listening()
    silences.lost(9 * S, "connection lost")
    silences.connected(10 * S, kept=True)
    silences.heard("battery", 10 * S)
    assert silences.take(10 * S) == [Span("battery", LINK, 9 * S, 10 * S, KEPT)]
    assert silences.due == 20 * S


def test_connections_lost_without_end_fill_no_memory_and_hide_nothing_either() -> None:
    silences = listening(battery=9002 * S)
    for at in range(10, 10_010, 10):  # 1000 connections of 9 s
        assert not any(span.cause is SILENT for span in silences.take(at * S))
        silences.lost(at * S, "connection lost")
        silences.connected(at * S + S, kept=False)
    found = [span for span in silences.take(10_002 * S) if span.cause is SILENT]
    assert found[-1].lasts
    assert 1 < len(found) < 100


def test_what_was_stated_of_one_device_shortens_no_others_span() -> None:
    silences = listening(a=20 * S, b=5 * S, c=None)
    silences.heard("a", 49 * S)
    silences.heard("b", 49 * S)
    silences.take(54 * S)
    silences.take(69 * S)
    silences.lost(50 * S, "no answer")
    silences.connected(90 * S, kept=False)
    found = {(span.device, span.begin // S, span.end // S) for span in silences.take(90 * S)}
    assert found == {("a", 69, 90), ("b", 54, 90), ("c", 50, 90)}


def test_at_the_end_all_that_lasts_is_stated() -> None:
    silences = listening()
    assert silences.take(5 * S, last=True) == []
    silences.take(10 * S)
    assert silences.take(11 * S, last=True) == [Span("battery", SILENT, 10 * S, 11 * S, None, True)]
    silences.lost(11 * S, "connection lost")
    assert silences.take(12 * S, last=True) == [Span("battery", LINK, 11 * S, 12 * S, "connection lost", True)]


steps = st.lists(
    st.tuples(st.sampled_from(["up", "down", "a", "b", "try", "take"]), st.integers(0, 400 * S)), max_size=30
)


@given(steps)
def test_every_instant_without_a_connection_is_stated_once_and_none_at_which_a_message_came(
    actions: list[tuple[str, int]],
) -> None:
    now, connected, down, since = 0, False, 0, 0
    stated: list[Span] = []
    heard: list[tuple[str, int]] = []
    silences = Silences({"a": 10 * S, "b": None}, now=0)
    for action, after in actions:
        now += after
        if action == "up" and not connected:
            silences.connected(now, kept=False)
            connected, down = True, down + now - since
        elif action == "down":
            silences.lost(now, "lost")
            connected, since = False, now if connected else since
        elif action == "try" and not connected:
            silences.trying(now)
        elif action in "ab" and connected:
            silences.heard(action, now)
            heard.append((action, now))
        elif action == "take":
            stated += silences.take(now)
    if not connected:
        silences.lost(now, "lost")
    stated += silences.take(now, last=True)
    for device in "ab":
        spans = sorted((span.begin, span.end) for span in stated if span.device == device)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert not any(a < at < b for d, at in heard if d == device for a, b in spans)
        links = [span for span in stated if span.cause is LINK and span.device == device]
        assert sum(span.end - span.begin for span in links) == down + (0 if connected else now - since)
