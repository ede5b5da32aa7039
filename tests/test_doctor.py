"""What the doctor makes of what was seen: tables of facts and findings, without a machine; and how looks are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.config import load
from agent.doctor import brokers, certificates, clock, names, outboxes, rights, serial, service, storage, system, wear
from agent.doctor.certificate import Validity, validities, validity
from agent.doctor.examination import Look, examine
from agent.doctor.finding import Finding, Level, lines, ok, warning, worst
from agent.errors import AgentError
from agent.foresight.forecast import Forecast
from agent.model import ClockQuality, ClockState
from agent.outbox.filesystem import Mount
from agent.outbox.look import Standing
from agent.transports.facts import BrokerFacts, StreamFacts
from tests.runs import DID
from tests.test_config_refusals import GOOD

OTHER_DID = "did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
MIB = 1 << 20
Told = list[tuple[str, str]]


def told(findings: Iterable[Finding]) -> Told:
    """Level and words, of what is not good; what must be mended has a reason and a remedy."""
    found = list(findings)
    for each in found:
        assert each.about
        assert each.level is Level.OK or each.why, each
        assert each.level < Level.WARNING or each.remedy, each
    return [(each.level.name, each.found) for each in found if each.level > Level.OK]


def holds(findings: Iterable[Finding], *expected: tuple[str, str]) -> None:
    """These levels, and these words in what was found; without any all is good, and something was looked at."""
    all_of_them = list(findings)
    found = told(all_of_them)
    assert [level for level, _ in found] == [level for level, _ in expected], found
    for (_, words), (_, wanted) in zip(found, expected, strict=True):
        assert wanted in words
    assert all_of_them


# ---- clock ------------------------------------------------------------------------------------------------------

GOOD_CLOCK = clock.ClockFacts(ClockQuality(ClockState.SYNCHRONISED, 1200), NOW, ("chronyd",), NOW + 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"services": None}, []),
        ({"reads_rtc": False, "rtc": None}, []),
        ({"wall": 0.0, "rtc": 0.0}, [("FAULT", "it says 1970-01-01T00:00:00Z")]),
        ({"wall": 4.2e9, "rtc": 4.2e9}, [("FAULT", "it says 2103-")]),
        ({"quality": ClockQuality(ClockState.NOT_SYNCHRONISED)}, [("WARNING", "not synchronised; it says 2026-06-01")]),
        ({"quality": ClockQuality(ClockState.UNKNOWN)}, [("WARNING", "cannot be read")]),
        ({"quality": ClockQuality(ClockState.SYNCHRONISED, 2_500_000)}, [("WARNING", "off by 2.5 s")]),
        ({"services": ("chronyd", "ntpd")}, [("WARNING", "chronyd and ntpd both run")]),
        ({"rtc": None}, [("NOTE", "none behind a battery")]),
        ({"rtc": NOW - 7200}, [("NOTE", "is 2 h off")]),
    ],
)
def test_the_clock(change: dict[str, Any], expected: Told) -> None:
    holds(clock.judge(replace(GOOD_CLOCK, **change)), *expected)


@pytest.mark.parametrize(
    ("services", "remedy"),
    [((), "apt install"), (("chronyd",), "chronyd runs: does it reach"), (None, "does a time service run")],
)
def test_the_remedy_for_a_clock_depends_on_who_keeps_it(services: tuple[str, ...] | None, remedy: str) -> None:
    facts = replace(GOOD_CLOCK, quality=ClockQuality(ClockState.NOT_SYNCHRONISED), services=services)
    [found] = clock.judge(facts)
    assert remedy in found.remedy


# ---- disk -------------------------------------------------------------------------------------------------------

STATE = Path("/var/lib/edge-agent")
GOOD_DISK = storage.StorageFacts(STATE, True, Mount("ext4", frozenset({"rw"})), 1 << 30, 10_000, {"dso": 0})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"mount": Mount("tmpfs")}, [("FAULT", "lies on tmpfs")]),
        ({"mount": Mount("overlay")}, [("FAULT", "lies on overlay")]),
        ({"mount": Mount("nfs4")}, [("FAULT", "lies on nfs4")]),
        ({"mount": Mount("vfat")}, [("FAULT", "lies on vfat")]),
        ({"mount": Mount("btrfs")}, [("WARNING", "lies on btrfs")]),
        ({"mount": Mount("ext4", frozenset({"ro"}))}, [("FAULT", "read-only")]),
        ({"mount": Mount("ext4", frozenset({"rw", "nobarrier"}))}, [("WARNING", "with nobarrier")]),
        ({"mount": Mount("ext4", frozenset({"rw", "data=writeback"}))}, [("WARNING", "with data=writeback")]),
        ({"errors": 3}, [("FAULT", "counted 3 errors")]),
        ({"there": False}, [("NOTE", "is not there")]),
        ({"there": False, "instead": "no folder"}, [("FAULT", "/var/lib/edge-agent is no folder")]),
        ({"wanted": {"dso": 2 << 30}}, [("FAULT", "1 GiB free, and the outboxes still need 2 GiB")]),
        ({"wanted": {"dso": 5 << 20}, "thin": ("dso",)}, [("WARNING", "outbox dso has not reserved 5 MiB")]),
        ({"free": 60 << 20}, [("WARNING", "60 MiB free")]),
        ({"files": 3}, [("WARNING", "hardly a file")]),
    ],
)
def test_the_folder_of_the_outboxes(change: dict[str, Any], expected: Told) -> None:
    holds(storage.judge(replace(GOOD_DISK, **change)), *expected)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (wear.WearFacts("mmcblk0", "MMC", 2, 1, 5e8), []),
        (wear.WearFacts("sda", writes=5e8), []),
        (wear.WearFacts("mmcblk0", "SD", writes=5e8), [("NOTE", "an SD card; the agent writes about 476.8 MiB a day")]),
        (wear.WearFacts("mmcblk0", "MMC", 9, 1), [("WARNING", "80 to 90 %")]),
        (wear.WearFacts("mmcblk0", "MMC", 11, 1), [("FAULT", "past its life")]),
        (wear.WearFacts("mmcblk0", "MMC", 1, 2), [("WARNING", "80 % of its spare blocks")]),
        (wear.WearFacts("mmcblk0", "MMC", 1, 3), [("FAULT", "hardly a spare block")]),
    ],
)
def test_how_worn_a_disk_is(facts: wear.WearFacts, expected: Told) -> None:
    holds(wear.judge(facts), *expected)


def test_nothing_is_said_of_a_disk_that_is_not_known() -> None:
    assert list(wear.judge(wear.WearFacts("", writes=1e9))) == []


def test_each_record_is_a_write_of_whole_pages() -> None:
    assert wear.written([Forecast(0, 0, None, {}, 0)]) == 0
    assert wear.written([Forecast(1000, 4056 * 1000, None, {}, 0)]) == 1000 * 2 * 4096  # fills one, touches two


# ---- files ------------------------------------------------------------------------------------------------------

WHO = rights.Who(990, "edge-agent", frozenset({990}))
KEY = rights.FileFacts("key", "key", STATE / "key", 0o600, 990, "edge-agent", usable=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (KEY, []),
        (replace(KEY, uid=0, owner="root"), []),
        (replace(KEY, mode=0o640), [("FAULT", "is open to others")]),
        (replace(KEY, uid=1000, owner="pi"), [("FAULT", "belongs to pi")]),
        (replace(KEY, usable=False), [("FAULT", "is not for the user edge-agent to read")]),
        (replace(KEY, usable=None), [("NOTE", "is not known")]),
        (replace(KEY, in_open_folder=True), [("FAULT", "all may write the folder")]),
        (replace(KEY, role="secret", mode=0o644), [("WARNING", "open to all")]),
        (replace(KEY, role="configuration", mode=0o666), [("FAULT", "all may write")]),
        (replace(KEY, role="socket", mode=0o666, usable=None), [("WARNING", "open to all")]),
        (replace(KEY, role="outbox", mode=0o640, usable=False), [("FAULT", "to write")]),
        (replace(KEY, role="certificate", missing=True), [("FAULT", "is not there")]),
    ],
)
def test_who_may_use_a_file(facts: rights.FileFacts, expected: Told) -> None:
    holds(rights.judge([facts], WHO), *expected)


def test_nobody_is_told_to_open_a_key_to_a_group() -> None:
    """The agent would refuse it then."""
    root_s = replace(KEY, uid=0, owner="root", usable=False)
    [found] = rights.judge([root_s], WHO)
    assert found.remedy.startswith(f"chown edge-agent {KEY.path}, and")
    [found] = rights.judge([replace(root_s, role="secret")], WHO)
    assert found.remedy.startswith(f"chgrp edge-agent {KEY.path}; chmod g+r {KEY.path}, and")


def test_files_that_are_told_elsewhere_or_not_made_yet_are_not_missed() -> None:
    for role in ("state", "outbox", "socket", "key"):
        assert list(rights.judge([replace(KEY, role=role, missing=True)], WHO)) == []


# ---- certificates -----------------------------------------------------------------------------------------------


def at(*valid: tuple[float, float], any_will_do: bool = False) -> certificates.CertificateFacts:
    spans = tuple(Validity(NOW + begins, NOW + ends) for begins, ends in valid)
    return certificates.CertificateFacts("channel dso: tls: ca", "ca.pem", spans, any_will_do=any_will_do)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (at((-DAY, 31 * DAY)), []),
        (at((-DAY, 29.5 * DAY)), [("WARNING", "expires on 2026-07-01, in 29 d 12 h")]),
        (at((-DAY, 0)), [("FAULT", "expired on 2026-06-01")]),
        (at((DAY, 90 * DAY)), [("FAULT", "valid from 2026-06-02 only")]),
        (at((-DAY, -1), (-DAY, 90 * DAY)), [("FAULT", "expired on 2026-06-01")]),
        (at((-DAY, -1), (-DAY, 90 * DAY), any_will_do=True), []),
        (replace(at(), trouble="no certificate in PEM form"), [("FAULT", "ca.pem: no certificate in PEM form")]),
    ],
)
def test_how_long_a_certificate_is_valid(facts: certificates.CertificateFacts, expected: Told) -> None:
    holds(certificates.judge(facts, NOW), *expected)


def der(begins: bytes, ends: bytes, *, version: bytes = b"\xa0\x03\x02\x01\x02") -> bytes:
    """As much of a certificate as is read."""
    times = _sequence(begins + ends)
    inner = version + b"\x02\x01\x07" + _sequence(b"\x05\x00") + _sequence(b"") + times + _sequence(b"")
    return _sequence(_sequence(inner) + bytes(3))


def _sequence(content: bytes) -> bytes:
    if len(content) < 0x80:
        return b"\x30" + bytes([len(content)]) + content
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


UTC_2026, GENERAL_2050 = b"\x17\x0d260601120000Z", b"\x18\x0f20500101000000Z"


def test_the_times_of_a_certificate_are_read() -> None:
    assert validity(der(UTC_2026, GENERAL_2050)) == Validity(NOW, datetime(2050, 1, 1, tzinfo=UTC).timestamp())
    assert validity(der(UTC_2026, GENERAL_2050, version=b"")).begins == NOW
    assert validity(der(b"\x17\x0d500101000000Z", UTC_2026)).begins == datetime(1950, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x30",
        b"\x31\x00",
        der(UTC_2026, GENERAL_2050)[:20],
        der(b"\x17\x0d2606011200000", UTC_2026),
        der(b"\x17\x0d269901120000Z", UTC_2026),
        der(b"\x04\x0d260601120000Z", UTC_2026),
        b"\x30\x84\xff\xff\xff\xff",
    ],
)
def test_what_is_no_certificate_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError):
        validity(broken)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----"])
def test_what_is_no_pem_is_refused(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"PEM|base64"):
        list(validities(pem))


# ---- names and ports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (names.NameFacts("nats.example", ("192.0.2.1",), took=0.1), []),
        (names.NameFacts("192.0.2.1", ("192.0.2.1",)), []),
        (names.NameFacts("nats.example", trouble="Name or service not known"), [("FAULT", "not known")]),
        (names.NameFacts("nats.example", ("192.0.2.1",), took=5.0), [("WARNING", "took 5.0 s")]),
        (names.NameFacts("n", ("2001:db8::1", "192.0.2.1"), ("2001:db8::1",)), [("NOTE", "no way to 2001:db8::1")]),
        (names.NameFacts("n", ("2001:db8::1",), ("2001:db8::1",)), [("FAULT", "no way to 2001:db8::1")]),
    ],
)
def test_the_name_of_a_host(facts: names.NameFacts, expected: Told) -> None:
    holds(names.judge(facts), *expected)


def test_hosts_are_those_of_brokers_and_devices(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(GOOD.replace('["nats://127.0.0.1:4222"]', '["nats://a.example", "nats://[::1]:4223"]'))
    assert names.hosts(load(file)) == {
        "192.0.2.1": "connection wire",
        "192.0.2.2": "connection bms",
        "a.example": "channel dso",
        "::1": "channel dso",
    }


PORT = serial.PortFacts("connection wire", Path("/dev/ttyUSB0"), True, True, "dialout", True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PORT, []),
        (replace(PORT, there=False), [("FAULT", "is not there")]),
        (replace(PORT, is_port=False), [("FAULT", "is no serial port")]),
        (replace(PORT, usable=False), [("FAULT", "may not use /dev/ttyUSB0")]),
        (replace(PORT, stable="/dev/serial/by-id/usb-1"), [("NOTE", "is numbered")]),
    ],
)
def test_a_serial_port(facts: serial.PortFacts, expected: Told) -> None:
    holds(serial.judge(facts), *expected)


# ---- brokers ----------------------------------------------------------------------------------------------------

FORECAST = Forecast(86_400, 3e7, 40 * DAY * 1e9, {}, 100_000)
STREAM = StreamFacts("telemetry", duplicate_window=120.0)
BROKER = BrokerFacts("n1", "2.11", ahead=0.1, overhead=512, stream=STREAM)


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ({}, []),
        ({"ahead": -7200.0}, [("WARNING", "its clock is 2 h behind ours")]),
        ({"ahead": 6.0, "ahead_within": 3.0}, []),
        ({"stream": None, "untold": "not permitted"}, [("NOTE", "not permitted")]),
    ],
)
def test_a_broker(tmp_path: Path, broker: dict[str, Any], expected: Told) -> None:
    _judged(tmp_path, replace(BROKER, **broker), expected)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ({"max_msg_size": 100_512}, []),
        ({"max_msg_size": 100_511}, [("FAULT", "takes messages of 98.2 KiB")]),
        ({"keeps": "workqueue"}, [("WARNING", "keeps by workqueue")]),
        ({"per_subject": 1}, [("FAULT", "keeps the last 1 records")]),
        ({"storage": "memory"}, [("WARNING", "is kept in memory")]),
        ({"duplicate_window": 5.0}, [("WARNING", "for 5 s only")]),
        ({"max_age": 3600.0}, [("WARNING", "forgets after 1 h")]),
        ({"max_age": 30 * DAY}, [("NOTE", "forgets after 30 d")]),
        ({"max_age": 50 * DAY}, []),
        ({"discard": "new", "max_bytes": 100, "held_bytes": 10}, [("NOTE", "10 % full")]),
        ({"discard": "new", "max_bytes": 100, "held_bytes": 10, "max_age": 50 * DAY}, []),
        ({"discard": "new", "max_bytes": 100, "held_bytes": 81}, [("WARNING", "81 % full")]),
        ({"discard": "new", "max_bytes": 100, "held_bytes": 100}, [("FAULT", "100 % full")]),
        ({"discard": "old", "max_bytes": 100, "held_bytes": 100}, []),
    ],
)
def test_the_limits_of_a_stream(tmp_path: Path, stream: dict[str, Any], expected: Told) -> None:
    _judged(tmp_path, replace(BROKER, stream=replace(STREAM, **stream)), expected)


def test_one_replica_in_a_cluster_is_worth_a_note(tmp_path: Path) -> None:
    _judged(tmp_path, replace(BROKER, clustered=True), [("NOTE", "on one server of a cluster")])


def _judged(folder: Path, broker: BrokerFacts, expected: Told) -> None:
    file = folder / "agent.toml"
    file.write_text(GOOD)
    [channel] = load(file).channels
    holds(
        (*brokers.judge(brokers.ChannelFacts(channel, broker, FORECAST)), ok("channel", "nothing is foretold")),
        *expected,
    )
    assert not told(brokers.judge(brokers.ChannelFacts(channel, replace(BROKER, ahead=None), None)))


# ---- outboxes ---------------------------------------------------------------------------------------------------

STANDING = Standing(
    "dso.ring", "00", 8 * MIB, MIB, 8, 1, 1, 101, 100, 0, 0, True, None, int(NOW * 1e9)
)  # all is acknowledged
NEWEST = outboxes.Sealed("aa", 100, "d100", NOW, DID)
OUTBOX = outboxes.OutboxFacts(
    "dso", STATE / "dso.ring", STANDING, newest=(replace(NEWEST, seq=99, digest="d99"), NEWEST)
)
WAITING = replace(STANDING, pending_records=7, oldest_wall=int((NOW - 2 * DAY) * 1e9))


@pytest.mark.parametrize(
    ("change", "last", "expected"),
    [
        ({}, None, []),
        ({}, NEWEST, []),
        ({}, replace(NEWEST, seq=40, digest="d40", wall=NOW - 60), []),  # long settled, and no longer among the newest
        ({}, replace(NEWEST, seq=101, digest="d101"), [("FAULT", "a later record of our key")]),
        ({}, replace(NEWEST, stream="bb", digest="x", wall=NOW + 1), [("FAULT", "a later record of our key")]),
        ({}, replace(NEWEST, stream="bb", digest="x", wall=NOW - 1), []),
        ({}, replace(NEWEST, did=OTHER_DID), [("WARNING", f"signed by {OTHER_DID}, not by {DID}")]),
        ({"newest": (replace(NEWEST, did=OTHER_DID),)}, None, [("WARNING", f"is signed by {OTHER_DID}")]),
        ({"standing": None, "newest": ()}, None, [("NOTE", "no file yet")]),
        ({"standing": None, "newest": ()}, NEWEST, [("NOTE", "no file"), ("FAULT", "a later record of our key")]),
        ({"standing": None, "trouble": "it is damaged", "hint": "h", "newest": ()}, None, [("FAULT", "damaged")]),
        ({"standing": WAITING}, None, [("WARNING", "7 records wait, the oldest for 2 d")]),
        ({"standing": replace(STANDING, newest_wall=int((NOW + 60) * 1e9))}, None, [("WARNING", "1 min from now")]),
    ],
)
def test_an_outbox(change: dict[str, Any], last: outboxes.Sealed | None, expected: Told) -> None:
    holds(outboxes.judge(replace(OUTBOX, **change), did=DID, now=NOW, last=last), *expected)


def test_one_did_is_written_in_several_ways() -> None:
    same = DID.replace("volta", "0x12047").lower()
    assert not told(outboxes.judge(OUTBOX, did=same, now=NOW, last=NEWEST))


def test_copies_and_strays_of_outboxes() -> None:
    a, b = STATE / "dso.ring", STATE / "old.ring"
    strays = ((b, "ring"), (STATE / "dso.ring.new", "new"), (STATE / "dso.ring.damaged-2026", "damaged"))
    found = outboxes.judge_around(outboxes.FolderFacts(strays, ((a, b),)))
    holds(found, ("WARNING", f"{a} and {b} are copies"), *[("NOTE", f"{path} belongs to no") for path, _ in strays])


# ---- the running agent ------------------------------------------------------------------------------------------

UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "NRestarts": "0",
    "ExecMainStatus": "0",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "MemoryMax": str(256 * MIB),
    "ActiveEnterTimestampMonotonic": "1000000000",
}
STATUS = {"version": "0.1.0", "uptime_s": 60, "did": DID, "channels": [{"id": "dso", "connected": True}]}
RUNNING = service.ServiceFacts("0.1.0", STATUS, unit=UNIT, errors=[], memory=50 * MIB, files=1024, up=5000.0)
DOWN = replace(RUNNING, status=None, silence="no agent answers at S", hint="start it")


def unit(**change: str) -> dict[str, str]:
    return UNIT | change


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (RUNNING, []),
        (replace(RUNNING, unit=unit(ActiveState="reloading", SubState="reload")), []),
        (replace(RUNNING, unit={}, errors=None), []),
        (replace(RUNNING, installed="0.2.0"), [("WARNING", "version 0.1.0 runs, and 0.2.0 is installed")]),
        (replace(DOWN, unit={}, errors=None), [("NOTE", "no agent answers")]),
        (replace(DOWN, unit={}, errors=None, silence="no answer", hangs=True), [("FAULT", "no answer")]),
        (DOWN, [("FAULT", "systemd runs it, and no agent answers at S")]),
        (replace(DOWN, denied=True, silence="no permission"), [("NOTE", "no permission")]),
        (
            replace(DOWN, unit=unit(ActiveState="failed", SubState="failed", ExecMainStatus="78")),
            [("FAULT", "it is failed (failed); the last exit code was 78")],
        ),
        (replace(DOWN, unit=unit(LoadState="not-found", ActiveState="inactive")), [("NOTE", "knows no edge-agent")]),
        (replace(RUNNING, unit=unit(NRestarts="5"), up=1100.0), [("FAULT", "ended by itself 5 times")]),
        (replace(RUNNING, unit=unit(NRestarts="5")), [("NOTE", "ended by itself 5 times")]),
        (replace(RUNNING, unit=unit(UnitFileState="disabled")), [("WARNING", "does not start at boot")]),
        (replace(RUNNING, unit=unit(NeedDaemonReload="yes")), [("WARNING", "unit file was changed")]),
        (replace(RUNNING, memory=220 * MIB), [("WARNING", "has 220 MiB of the 256 MiB")]),
        (replace(RUNNING, files=64), [("WARNING", "may open 64 files")]),
        (
            replace(RUNNING, errors=["outbox failed channel=dso error=x", "outbox failed channel=b error=y"]),
            [("WARNING", "errors within a day: outbox failed (2 times)")],
        ),
    ],
)
def test_the_service(facts: service.ServiceFacts, expected: Told) -> None:
    holds(service.judge(facts), *expected)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            {"channels": [{"id": "a", "connected": False, "state": "no answer"}]},
            [("FAULT", "not delivered: no answer")],
        ),
        ({"channels": [{"id": "a", "dropped": 3}]}, [("WARNING", "3 records dropped")]),
        ({"channels": [{"id": "a", "not_stored": 4}]}, [("WARNING", "4 readings not stored")]),
        (
            {"channels": [{"id": "a", "outbox": {"state": "failed", "trouble": "I/O error"}}]},
            [("FAULT", "in the state failed: I/O error")],
        ),
        (
            {"devices": [{"id": "pv", "groups": [{"name": "ac", "state": "link_down", "since_s": 5, "detail": "d"}]}]},
            [("FAULT", "link_down for 5 s: d")],
        ),
        ({"connections": [{"name": "bms", "state": "away", "detail": "refused"}]}, [("FAULT", "away: refused")]),
        ({"channels": "x", "devices": [1], "connections": None}, []),
    ],
)
def test_what_the_agent_says_itself(status: dict[str, Any], expected: Told) -> None:
    holds(service.judge(replace(RUNNING, status=STATUS | {"channels": []} | status)), *expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"kernel": "4.19.0-21"}, [("WARNING", "Linux 4.19.0-21 is old")]),
        ({"python": (3, 10)}, [("FAULT", "Python 3.10 is too old")]),
        ({"available": 20 * MIB}, [("WARNING", "20 MiB of memory")]),
        ({"swaps": ("/dev/zram0",)}, []),
        ({"swaps": ("/var/swap",)}, [("NOTE", "swaps to /var/swap")]),
        ({"keeps_log": False}, [("NOTE", "in memory only")]),
    ],
)
def test_the_machine(change: dict[str, Any], expected: Told) -> None:
    facts = system.SystemFacts("6.1.0-18-arm64", (3, 11), 200 * MIB, (), True)
    holds(system.judge(replace(facts, **change)), *expected)


# ---- how it is done ---------------------------------------------------------------------------------------------


def test_a_look_that_hangs_fails_or_may_not_is_a_finding_and_the_others_go_on() -> None:
    release = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("a", "seen before")
        release.wait(30)

    def fails(error: Exception) -> Callable[[], Iterator[Finding]]:
        def run() -> Iterator[Finding]:
            raise error
            yield

        return run

    found = examine(
        [
            Look("a", hangs, within=0.05),
            Look("b", fails(PermissionError(13, "Permission denied", "/etc/x"))),
            Look("c", fails(AgentError("the words", hint="the hint"))),
            Look("d", fails(OSError(5, "Input/output error", "/x"))),
            Look("e", fails(RuntimeError("hunter2"))),
            Look("f", fails(TimeoutError("own"))),
            Look("g", lambda: [ok("g", "good")]),
        ]
    )
    release.set()
    assert [(each.about, each.level.name) for each in found] == [
        ("a", "OK"),
        ("a", "WARNING"),
        ("b", "NOTE"),
        ("c", "WARNING"),
        ("d", "WARNING"),
        ("e", "WARNING"),
        ("f", "WARNING"),
        ("g", "OK"),
    ]
    assert "no answer within 0.05 s" in found[1].found
    assert found[2].found == "may not be looked at by this user: /etc/x"
    assert found[3].found.endswith(": the words; the hint")
    assert found[4].found.endswith(": Input/output error: /x")
    assert found[5].found.endswith(": RuntimeError")  # its words could hold anything
    assert found[6].found.endswith(": TimeoutError")


def test_what_is_worst_comes_first_on_the_page_and_nothing_moves_the_cursor() -> None:
    findings = [ok("a", "fine"), warning("b\x1b[2J", "bad", why="w", remedy="r", looked_at="l")]
    assert list(lines(findings)) == [
        "WARNING  b\\u001b[2J: bad",
        "         why: w",
        "         do: r",
        "         looked at: l",
        "ok       a: fine",
        "0 faults, 1 warning, 0 notes, 1 good",
    ]
    assert worst(findings) is Level.WARNING
    assert worst([]) is Level.OK
