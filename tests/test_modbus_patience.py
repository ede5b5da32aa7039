"""When a connection and a unit are tried again."""

from __future__ import annotations

from adapters.modbus.patience import MS, Patience, S
from agent.model import Cause

NOT_TRIED = (Cause.DEVICE_TIMEOUT, "not tried after repeated time-outs")


def free_again(patience: Patience, unit: int, now: int) -> int:
    """For how many tenths of a second nothing is tried."""
    tenths = 0
    while patience.refusal(unit, now + tenths * 100 * MS):
        tenths += 1
    return tenths


def test_a_connection_that_fails_is_tried_after_0_2_s_doubling_to_30_s() -> None:
    patience, pauses = Patience(), []
    for now in range(0, 10_000 * S, 1000 * S):
        patience.lost("no way", now)
        assert patience.refusal(1, now) == (Cause.LINK_DOWN, "no way")
        pauses.append(free_again(patience, 1, now))
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    patience.connected()  # that it was made is no answer yet
    patience.lost("lost", 0)
    assert free_again(patience, 1, 0) == 300
    patience.answered(7)
    assert patience.refusal(1, 0) is None
    patience.lost("lost", 0)
    assert free_again(patience, 1, 0) == 2


def test_a_unit_that_is_silent_three_times_is_left_alone_for_1_s_doubling_to_60_s() -> None:
    patience, pauses = Patience(), []
    for now in range(0, 10_000 * S, 1000 * S):
        patience.timed_out(1, now)
        assert patience.refusal(2, now) is None
        pauses.append(free_again(patience, 1, now))
    assert pauses == [0, 0, 10, 20, 40, 80, 160, 320, 600, 600]
    patience.timed_out(1, 0)
    assert patience.refusal(1, 0) == NOT_TRIED
    patience.answered(2)
    assert patience.refusal(1, 0) == NOT_TRIED
    patience.answered(1)
    for _ in range(2):
        patience.timed_out(1, 0)
    assert patience.refusal(1, 0) is None


def test_the_connection_is_made_anew_when_three_requests_in_a_row_had_no_answer() -> None:
    patience = Patience()
    assert [patience.timed_out(unit, 0) for unit in (1, 2, 3, 4)] == [False, False, True, True]
    patience.connected()
    assert [patience.timed_out(unit, 0) for unit in (1, 2)] == [False, False]
    patience.answered(9)
    assert [patience.timed_out(unit, 0) for unit in (3, 4, 5)] == [False, False, True]


def test_what_is_forgiven_is_the_unit_and_the_connection_and_not_the_row() -> None:
    patience = Patience()
    for _ in range(2):
        patience.timed_out(1, 0)
    patience.lost("lost", 0)
    patience.forgive(1)
    assert patience.refusal(1, 0) is None
    assert patience.timed_out(1, 0)
    assert patience.refusal(1, 0) is None  # its first
