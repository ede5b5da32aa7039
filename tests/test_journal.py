"""The log: what is folded, and what never is."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from agent import journal
from agent.journal import _Folded, _Line

FAILS, ANSWERS = "device fails group=%s cause=link_down", "device answers again group=%s"


class Log:
    """What passes, with a clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._filter = _Folded(lambda: self.now)

    def passes(self, message: str, *arguments: object, name: str = "agent.supervisor") -> str | None:
        """The line as it is written; None if it is held back."""
        record = logging.LogRecord(name, logging.WARNING, "", 0, message, arguments, None)
        return record.getMessage() if self._filter.filter(record) else None


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_state_that_flaps_is_always_the_last_line(log: Log) -> None:
    for _ in range(5):
        log.now += 1
        assert log.passes(FAILS, "a/x") == "device fails group=a/x cause=link_down"
        log.now += 1
        assert log.passes(ANSWERS, "a/x") == "device answers again group=a/x"


def test_the_same_line_of_the_same_subject_is_folded_and_counted(log: Log) -> None:
    assert log.passes(FAILS, "a/x")
    log.now += 59.9
    assert log.passes(FAILS, "a/x") is None
    assert log.passes(FAILS, "b/x"), "another group"
    assert log.passes(FAILS, "a/x") is None, "another group between changes nothing"
    log.now += 0.2
    assert log.passes(FAILS, "a/x") == "device fails group=a/x cause=link_down repeated=2"
    assert log.passes(FAILS, "a/x") is None
    assert log.passes(ANSWERS, "a/x") == "device answers again group=a/x before_repeated=1"
    assert log.passes(FAILS, "a/x") == "device fails group=a/x cause=link_down"


def test_the_broker_that_flaps_is_told_too(log: Log) -> None:
    for _ in range(3):
        assert log.passes("broker away error=%s", "gone", name="agent.delivery.publisher")
        assert log.passes("broker away error=%s", "gone", name="agent.delivery.publisher") is None
        assert log.passes("broker connected waiting=%d", 0, name="agent.delivery.publisher")


def test_many_subjects_do_not_fill_the_memory(log: Log) -> None:
    for number in range(10_000):
        assert log.passes(FAILS, f"a/{number}")
    assert len(log._filter._last) <= 4096


def test_a_large_fleet_is_folded_and_counted_too(log: Log) -> None:
    """A gateway that is away fails all of its groups, again and again."""
    fleet = [f"d{number}/g" for number in range(1000)]
    assert all(log.passes(FAILS, group) for group in fleet)
    assert not any(log.passes(FAILS, group) for group in fleet * 2)
    log.now += 60
    assert all(str(log.passes(FAILS, group)).endswith("repeated=2") for group in fleet)


def test_a_line_stays_one_line_and_journald_gets_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("agent", logging.ERROR, "", 0, "a\nb", (), None)
    assert _Line(journald=True).format(record) == "<3>ERROR a | b"
    record.created, record.msecs = 1764547200.25, 250
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        assert _Line(journald=False).format(record) == "2025-12-01T00:00:00.250Z ERROR a | b"
    time.tzset()


def test_a_client_that_hangs_up_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    journal.set_up({"default": "info"})
    loop = asyncio.new_event_loop()
    try:
        for error, told in ((asyncio.InvalidStateError("invalid state"), False), (RuntimeError("invalid state"), True)):
            loop.call_exception_handler(
                {"message": "Exception in callback Future.set_result(None)", "exception": error}
            )
            assert ("invalid state" in capsys.readouterr().err) == told
    finally:
        loop.close()
        logging.getLogger("asyncio").filters.clear()


def test_each_part_has_its_level_until_it_is_set_up_anew() -> None:
    def levels() -> list[int]:
        names = ("agent.delivery.publisher", "agent.delivery", "agent.supervisor", "adapters.modbus.client", "paho")
        return [logging.getLogger(name).getEffectiveLevel() for name in names]

    journal.set_up({"default": "warning", "agent.delivery": "debug", "adapters.modbus": "error"})
    assert levels() == [logging.DEBUG, logging.DEBUG, logging.WARNING, logging.ERROR, logging.WARNING]
    journal.set_up({"default": "info"})
    assert levels() == [logging.INFO, logging.INFO, logging.INFO, logging.INFO, logging.WARNING]
