"""What the kernel says of the wall clock, and the wait for it (docs/evidence.md section 4, ``sealed``)."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.clock_wait import ClockWait
from agent.evidence.timetable import anchor
from agent.instant import instant
from agent.model import ClockQuality, ClockState
from tests.fakes import BACKEND, MS, S, virtual_clock
from tests.runs import FakeClock

UNKNOWN, UNSYNCHRONISED, GOOD = ClockQuality(), ClockQuality(ClockState(1)), ClockQuality(ClockState(2), 1500)
TIME_OK, TIME_INS, TIME_DEL, TIME_OOP, TIME_WAIT, TIME_ERROR = range(6)  # adjtimex(2)
STA_PLL, STA_INS, STA_UNSYNC, STA_CLOCKERR, STA_NANO = 0x1, 0x10, 0x40, 0x1000, 0x2000


# ---- the kernel's word --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "status", "maxerror", "quality"),
    [
        (TIME_OK, STA_PLL | STA_NANO, 1500, GOOD),
        (TIME_OK, STA_PLL, 0, ClockQuality(ClockState.SYNCHRONISED, 0)),
        (TIME_INS, STA_PLL | STA_INS, 1500, GOOD),  # a leap second is announced, inserted, over: no error
        (TIME_DEL, STA_PLL, 1500, GOOD),
        (TIME_OOP, STA_PLL, 1500, GOOD),
        (TIME_WAIT, STA_PLL, 1500, GOOD),
        (TIME_ERROR, STA_UNSYNC, 16_000_000, UNSYNCHRONISED),  # as after boot: the bound is none
        (TIME_ERROR, STA_CLOCKERR, 1500, UNSYNCHRONISED),
        (TIME_OK, STA_UNSYNC, 1500, UNSYNCHRONISED),
        (TIME_OK, STA_PLL, -1, ClockQuality(ClockState.SYNCHRONISED, 0)),  # fits the record whatever the kernel says
    ],
)
def test_what_the_kernel_says(result: int, status: int, maxerror: int, quality: ClockQuality) -> None:
    assert SystemClock(lambda: (result, status, maxerror)).quality() == quality


def test_the_log_has_a_line_when_the_state_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answers: Iterator[Any] = iter(
        [None, None, (TIME_ERROR, STA_UNSYNC, 0), (TIME_ERROR, STA_UNSYNC, 0), *[(0, 0, 7)] * 2, None]
    )

    def read() -> tuple[int, int, int]:
        answer: tuple[int, int, int] | None = next(answers)
        if answer is None:
            raise OSError(errno.EPERM, "Operation not permitted")
        return answer

    clock = SystemClock(read)
    assert [clock.quality().state for _ in range(7)] == [0, 0, 1, 1, 2, 2, 0]
    unreadable = "state of the clock cannot be read, and every record says so error=[Errno 1] Operation not permitted"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", unreadable),
        ("WARNING", "clock not synchronised, and every record says so"),
        ("INFO", "clock synchronised"),
        ("WARNING", unreadable),
    ]


def test_this_kernel_answers() -> None:
    quality = SystemClock().quality()
    assert quality.state in (ClockState.NOT_SYNCHRONISED, ClockState.SYNCHRONISED)
    assert (quality.error_us is None) == (quality.state is ClockState.NOT_SYNCHRONISED)


def test_no_time_is_before_1970(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: -5)
    assert SystemClock().wall() == 0


SANDBOX = """
import ctypes, logging, platform, struct
numbers = {"x86_64": (159, 305), "aarch64": (171, 266)}[platform.machine()]  # adjtimex, clock_adjtime
load, jump_if_equal, answer = 0x20, 0x15, 0x06
program = [(load, 0, 0, 0)]  # the number of the call
program += [(jump_if_equal, 2, 0, numbers[0]), (jump_if_equal, 1, 0, numbers[1])]
program += [(answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00050001)]  # allow; EPERM
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Filter(len(program), ctypes.addressof(code)))) == 0, ctypes.get_errno()
from agent.clock import SystemClock
logging.basicConfig(level="INFO")
clock = SystemClock()
print([(clock.quality().state.name, clock.quality().error_us) for _ in range(2)])
"""


def test_a_sandbox_that_forbids_to_ask_leaves_it_unknown() -> None:
    done = subprocess.run([sys.executable, "-c", SANDBOX], capture_output=True, text=True, check=True)
    assert done.stdout == "[('UNKNOWN', None), ('UNKNOWN', None)]\n"
    assert done.stderr.count("cannot be read") == done.stderr.count("Operation not permitted") == 1


def test_a_machine_without_the_call_leaves_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert SystemClock().quality() == UNKNOWN


@pytest.mark.parametrize(
    ("one", "other", "worst"),
    [
        (GOOD, GOOD, GOOD),
        (GOOD, ClockQuality(ClockState.SYNCHRONISED, 9000), ClockQuality(ClockState.SYNCHRONISED, 9000)),
        (GOOD, ClockQuality(ClockState.SYNCHRONISED, 0), GOOD),
        (GOOD, UNSYNCHRONISED, UNSYNCHRONISED),
        (GOOD, UNKNOWN, UNKNOWN),
        (UNSYNCHRONISED, UNKNOWN, UNKNOWN),
    ],
)
def test_the_worst_of_two(one: ClockQuality, other: ClockQuality, worst: ClockQuality) -> None:
    assert one.worst(other) == other.worst(one) == worst


@given(
    st.one_of(st.integers(0, 400 * S), st.just(0), st.integers(0, 2**62)),
    st.integers(0, 2**62),
    st.integers(MS, 10**15),
    st.floats(0, 1, exclude_max=True),
)
def test_an_anchor_is_a_number_that_a_plan_can_say_from_1970_on(wall: int, boot: int, period: int, part: float) -> None:
    phase = min(int(period * part), period - 1)
    found = anchor(period=period, phase=phase, wall=wall, boot=boot)
    assert found.first >= 0
    assert boot <= found.anchor < boot + period
    assert wall <= found.nominal(found.first) < wall + period
    assert found.nominal(found.first) - wall == found.anchor - boot


# ---- the wait -----------------------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


async def waited(wait: ClockWait, clock: FakeClock) -> int:
    """For how long it waits, in ms."""
    began = clock.boot()
    await wait.over()
    assert not wait.waiting
    return (clock.boot() - began) // MS


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("quality", "at_most", "expected"),
    [
        (GOOD, 60 * S, 0),
        (UNKNOWN, 60 * S, 0),
        (UNSYNCHRONISED, 0, 0),
        (UNSYNCHRONISED, 100 * MS, 100),
        (UNSYNCHRONISED, 60 * S, 60_000),
    ],
)
async def test_it_waits_for_a_clock_that_is_not_synchronised(
    quality: ClockQuality, at_most: int, expected: int
) -> None:
    clock = virtual_clock()
    clock.good = quality
    assert await waited(ClockWait(clock, at_most=at_most), clock) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("then", [GOOD, UNKNOWN])
async def test_it_ends_when_the_clock_is_good_or_does_not_tell(
    then: ClockQuality, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = virtual_clock()
    clock.good = UNSYNCHRONISED
    wait = ClockWait(clock, at_most=60 * S)
    async with anyio.create_task_group() as tasks:

        async def change() -> None:
            await clock.sleep_until(clock.boot() + 12_300 * MS)
            assert wait.status() == {"state": "not_synchronised", "error_us": None, "waiting_s": pytest.approx(47.7)}
            clock.offset += 10**9 * S  # NTP sets it; the wait counts on the clock that cannot be set
            clock.good = then

        tasks.start_soon(change)
        assert await waited(wait, clock) == 12_500
    assert wait.status() == {"state": then.state.name.lower(), "error_us": then.error_us, "waiting_s": None}
    assert [record.message for record in caplog.records] == [
        "waiting for a synchronised clock before the first reading at_most=1m",
        f"readings begin clock={then.state.name.lower()} waited_s=12.5",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("at_most", "expected"), [(0, 5_500), (3 * S, 5_500), (20 * S, 20_000), (90 * S, 90_000)])
async def test_another_wait_holds_at_once(at_most: int, expected: int) -> None:
    clock = virtual_clock()
    clock.good = UNSYNCHRONISED
    wait = ClockWait(clock, at_most=60 * S)
    async with anyio.create_task_group() as tasks:

        async def change() -> None:
            await clock.sleep_until(clock.boot() + 5_200 * MS)
            wait.at_most = at_most

        tasks.start_soon(change)
        assert await waited(wait, clock) == expected


@pytest.mark.anyio
async def test_a_wait_that_is_cancelled_is_none() -> None:
    clock = virtual_clock()
    clock.good = UNSYNCHRONISED
    wait = ClockWait(clock, at_most=60 * S)
    with anyio.move_on_after(5):
        await wait.over()
    assert not wait.waiting


class HeldUp:
    """Clocks of a machine that holds us up so often between two looks, each time for 20 ms."""

    def __init__(self, times: int) -> None:
        self.now = 1000 * S
        self._times = times

    def wall(self) -> int:
        wall = self.now + 10**18
        if self._times:
            self._times -= 1
            self.now += 20_000_000
        return wall

    def boot(self) -> int:
        return self.now

    def quality(self) -> ClockQuality:
        return ClockQuality()

    async def sleep_until(self, boot: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("times", [0, 1, 4])
def test_being_held_up_between_two_looks_is_no_step(times: int) -> None:
    wall, boot = instant(HeldUp(times))
    assert wall - boot == 10**18


def test_who_is_held_up_each_time_has_the_last_look() -> None:
    wall, boot = instant(HeldUp(1000))
    assert wall - boot == 10**18 - 20_000_000
