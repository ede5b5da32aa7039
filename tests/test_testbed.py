"""The testbed: what the site shows is plausible, what it served stands in its journal, nothing outlives us."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nats
import pytest
from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusIOException

from testbed import plant
from testbed.broker import create_stream
from testbed.demo import sweep
from testbed.plant import Plant
from testbed.processes import NatsServer, Process, ProcessError, Service, Site, Tail, edge_agent, wait_for
from testbed.registers import INVERTER_103, METER_203, PlainUnit, SunSpecUnit

DAY = 600.0

# ---- the plant ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_a_day_at_the_inverter_is_plausible(seed: int) -> None:
    site = Plant(seed=seed, day_length=DAY, hour=0.0)
    day = [(t, site.inverter(t)) for t in (i * 0.25 for i in range(int(DAY * 4)))]

    for t, shown in day:
        hour = t / DAY * 24.0
        if hour < 6.0 or hour > 18.0:
            assert (shown["W"], shown["A"], shown["DCV"], shown["St"]) == (0, 0, 0, plant.SLEEPING)
        if 8.0 < hour < 16.0:
            assert shown["W"] > 500
            assert shown["St"] in (plant.MPPT, plant.THROTTLED)
        assert 0 <= shown["W"] <= plant.RATED_W * 1.01
        assert 49.8 < shown["Hz"] < 50.2
        assert all(220.0 < shown[f"PhVph{phase}"] < 240.0 for phase in "ABC")
        assert 5.0 < shown["TmpCab"] < 60.0
        assert 5.0 < shown["TmpSnk"] < 80.0
        assert shown["VA"] ** 2 == pytest.approx(shown["W"] ** 2 + shown["VAr"] ** 2)
        volt_amps = sum(shown[f"Aph{phase}"] * shown[f"PhVph{phase}"] for phase in "ABC")
        assert volt_amps == pytest.approx(shown["VA"], abs=3 * 0.005 * 240.0)
        assert shown["DCW"] >= shown["W"]
    assert {shown["St"] for _, shown in day} >= {plant.SLEEPING, plant.STARTING, plant.MPPT, plant.SHUTTING_DOWN}
    assert max(shown["W"] for _, shown in day) > 15_000  # and clouds: in the middle of the day it is not always so
    assert min(shown["W"] for t, shown in day if 0.4 < t / DAY < 0.6) < 15_000
    _assert_counts(day, "WH", lambda shown: shown["W"])


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_a_day_at_the_meter_is_plausible(seed: int) -> None:
    site = Plant(seed=seed, day_length=DAY, hour=0.0)
    day = [(t, site.meter(t)) for t in (i * 0.25 for i in range(int(DAY * 4)))]

    for _, shown in day:
        for name in ("A", "W", "VAR"):
            assert shown[name] == pytest.approx(sum(shown[f"{name}ph{phase}"] for phase in "ABC"))
        for suffix in ("", "phA", "phB", "phC"):
            assert shown["VA" + suffix] ** 2 == pytest.approx(shown["W" + suffix] ** 2 + shown["VAR" + suffix] ** 2)
        assert shown["PPV"] == pytest.approx(shown["PhV"] * 3**0.5, rel=0.01)
    assert min(shown["W"] for _, shown in day) < -5_000 < 2_000 < max(shown["W"] for _, shown in day)
    for suffix, power in (("", "W"), ("PhA", "WphA"), ("PhB", "WphB"), ("PhC", "WphC")):
        _assert_counts(day, "TotWhImp" + suffix, lambda shown, power=power: max(shown[power], 0))
        _assert_counts(day, "TotWhExp" + suffix, lambda shown, power=power: max(-shown[power], 0))
    last = day[-1][1]
    by_phase = sum(last[f"TotWhImpPh{phase}"] - last[f"TotWhExpPh{phase}"] for phase in "ABC")
    assert last["TotWhImp"] - last["TotWhExp"] == pytest.approx(by_phase, abs=8)  # eight counters are rounded down


def _assert_counts(day: list[tuple[float, dict[str, float]]], counter: str, power: Any) -> None:
    """The counter never falls, and is the integral of the power shown."""
    counts = [shown[counter] for _, shown in day]
    assert all(a <= b for a, b in pairwise(counts))
    integral = sum((power(a) + power(b)) / 2.0 * (t2 - t1) / 3600.0 for (t1, a), (t2, b) in pairwise(day))
    assert counts[-1] - counts[0] == pytest.approx(integral, rel=0.003, abs=3.0)


def test_counters_depend_on_seed_and_time_alone() -> None:
    watched, restarted = Plant(seed=5), Plant(seed=5)
    for i in range(1000):
        watched.inverter(i * 0.0333)
    assert watched.inverter(40.0)["WH"] == restarted.inverter(40.0)["WH"]
    assert watched.meter(40.05)["TotWhExp"] == restarted.meter(40.05)["TotWhExp"]
    assert Plant(seed=6).inverter(40.0)["WH"] != restarted.inverter(40.0)["WH"]


# ---- register images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "lines"), [(103, INVERTER_103), (203, METER_203)])
def test_the_map_is_that_of_the_sunspec_definitions(model: int, lines: tuple[str, ...]) -> None:
    mdef = pytest.importorskip("sunspec2.mdef")
    folder = Path(mdef.__file__).parent / "models" / "json"
    for number in (1, model):
        unit = SunSpecUnit(model, lines, Plant().inverter, name="x", serial="y", address=1)
        expected, start = [], {1: 40002, model: 40070}[number]
        at = start
        for point in json.loads((folder / f"model_{number}.json").read_text())["group"]["points"]:
            if point["name"] not in ("ID", "L", "Pad"):
                expected.append((point["name"], at, point["type"], point["size"], point.get("sf")))
            at += point["size"]
        names = {p.address: p.name for p in unit.points if p.model == number}
        assert [
            (p.name, p.address, p.type, p.size, names[p.sf_address] if p.sf_address else None)
            for p in unit.points
            if p.model == number
        ] == expected


def test_plain_registers_change_at_every_read() -> None:
    unit = PlainUnit(50, seed=3)
    images = [unit.read(0.0, 0, 50) for _ in range(200)]
    for number, (before, after) in enumerate(pairwise(images), start=2):
        assert before is not None
        assert after is not None
        assert after[0] == number
        assert all(1 <= abs(a - b) <= 3 for a, b in zip(before[1:], after[1:], strict=True))
    assert unit.read(0.0, 50, 1) is None


# ---- the device, read by a real client ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), seed=4, plain=2, plain_registers=30) as running:
        yield running


@pytest.fixture
def client(site: Site) -> Iterator[ModbusTcpClient]:
    with ModbusTcpClient("127.0.0.1", port=site.port, timeout=5, retries=0) as connected:
        yield connected


def _read(client: ModbusTcpClient, unit: int, address: int, count: int) -> list[int]:
    answer = client.read_holding_registers(address, count=count, device_id=unit)
    assert not answer.isError(), answer
    return list(answer.registers)


def _journal(site: Site) -> tuple[dict[int, list[dict[str, Any]]], list[dict[str, Any]]]:
    """The maps by unit, and what was served."""
    lines = [json.loads(line) for line in site.journal.read_text().splitlines()]
    maps = {line["map"]["unit"]: line["map"]["points"] for line in lines if "map" in line}
    return maps, [line for line in lines if "registers" in line]


@pytest.mark.parametrize(("unit", "model", "length", "name"), [(1, 103, 50, b"PV-25K"), (2, 203, 105, b"METER-3P")])
def test_sunspec_is_found_by_walking(client: ModbusTcpClient, unit: int, model: int, length: int, name: bytes) -> None:
    assert struct.pack(">2H", *_read(client, unit, 40000, 2)) == b"SunS"
    found, address = [], 40002
    while (head := _read(client, unit, address, 2))[0] != 0xFFFF:
        found.append((head[0], head[1], address))
        address += 2 + head[1]
    assert found == [(1, 66, 40002), (model, length, 40070)]
    assert struct.pack(">16H", *_read(client, unit, 40020, 16)).rstrip(b"\0") == name


def test_the_inverter_and_the_meter_by_hand(client: ModbusTcpClient) -> None:
    inverter = _read(client, 1, 40072, 50)
    amps, by_phase, amps_exponent = inverter[0], inverter[1:4], _signed(inverter[4])
    watts, hertz, hertz_exponent = _signed(inverter[12]), inverter[14], _signed(inverter[15])
    assert (amps_exponent, amps) == (-2, sum(by_phase))
    assert 0 < watts <= 25_300
    assert 49.8 < hertz * 10.0**hertz_exponent < 50.2
    assert inverter[36] in (4, 5)  # St: MPPT or throttled, in the forenoon
    assert (inverter[33:35], inverter[37]) == ([0x8000, 0x8000], 0xFFFF)  # TmpTrns, TmpOt, StVnd it has not

    meter = _read(client, 2, 40072, 105)
    assert _signed(meter[16]) == sum(_signed(each) for each in meter[17:20])  # W and its phases, in one image
    volt_amps, var = _signed(meter[21]), _signed(meter[26])
    assert volt_amps == pytest.approx((_signed(meter[16]) ** 2 + var**2) ** 0.5, abs=1)
    assert meter[36] << 16 | meter[37] > 0  # TotWhExp
    assert meter[53:70] == [0] * 16 + [0x8000]  # VAh counters it has not, nor their scale factor


def _signed(register: int) -> int:
    return register - 0x10000 if register & 0x8000 else register


def test_the_journal_is_what_was_read(site: Site, client: ModbusTcpClient) -> None:
    _, before = _journal(site)
    asked = [(1, 40072, 50), (2, 40072, 105), (1, 40084, 2), (10, 0, 30), (2, 40000, 1), (1, 40072, 50)]
    boot, wall = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
    read = [_read(client, *each) for each in asked]
    input_registers = client.read_input_registers(40000, count=2, device_id=2).registers
    end = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    maps, after = _journal(site)
    served = after[len(before) :]

    assert [(line["fc"], line["unit"], line["address"], line["count"]) for line in served] == [
        *((3, *each) for each in asked),
        (4, 2, 40000, 2),
    ]
    assert [bytes.fromhex(line["registers"]) for line in served] == [
        struct.pack(f">{len(registers)}H", *registers) for registers in (*read, input_registers)
    ]
    assert [boot, *sorted(line["t_boot"] for line in served), end] == sorted(
        [boot, *(line["t_boot"] for line in served), end]
    )
    assert all(abs((line["t_wall"] - wall) - (line["t_boot"] - boot)) < 50_000_000 for line in served)
    assert read[0] != read[-1]  # two images of one device
    points = {(p["model"], p["name"]): p for p in maps[1]}
    assert points[(103, "W")] == {
        "model": 103, "name": "W", "address": 40084, "type": "int16", "size": 1, "sf_address": 40085,
    }  # fmt: skip
    assert [p["name"] for p in maps[11]] == [f"R{i}" for i in range(30)]


def test_what_it_does_not_have_it_refuses(site: Site, client: ModbusTcpClient) -> None:
    _, before = _journal(site)
    codes = [
        client.read_holding_registers(40000 + 124, count=1, device_id=1).exception_code,  # behind the end marker
        client.read_holding_registers(39999, count=2, device_id=1).exception_code,
        client.read_holding_registers(0, count=31, device_id=10).exception_code,
        client.read_holding_registers(0, count=1, device_id=99).exception_code,
        client.read_coils(0, count=1, device_id=1).exception_code,
        client.write_register(40084, 1, device_id=1).exception_code,
    ]
    assert codes == [2, 2, 2, 11, 1, 1]
    assert _journal(site)[1] == before


def test_a_silent_unit_does_not_answer_and_the_other_does(site: Site) -> None:
    with ModbusTcpClient("127.0.0.1", port=site.port, timeout=0.2, retries=0) as client:
        site.command("silence 1")
        with pytest.raises(ModbusIOException):
            client.read_holding_registers(40000, count=2, device_id=1)
        with pytest.raises(ModbusIOException):
            client.write_register(40000, 2, device_id=1)
        assert _read(client, 2, 40000, 1) == [0x5375]
        site.command("resume 1")
        assert _read(client, 1, 40000, 1) == [0x5375]


def test_a_unit_answers_with_an_exception_until_it_resumes(site: Site, client: ModbusTcpClient) -> None:
    site.command("exception 2 4")
    assert client.read_holding_registers(40000, count=1, device_id=2).exception_code == 4
    assert client.write_register(40000, 1, device_id=2).exception_code == 4
    site.command("resume 2")
    assert _read(client, 2, 40000, 1) == [0x5375]


def test_dropped_connections_are_closed_and_new_ones_taken(site: Site) -> None:
    with ModbusTcpClient("127.0.0.1", port=site.port, timeout=5, retries=0) as dropped:
        _read(dropped, 1, 40000, 1)
        site.command("drop")
        with pytest.raises(ConnectionException):
            dropped.read_holding_registers(40000, count=1, device_id=1)
    with ModbusTcpClient("127.0.0.1", port=site.port, timeout=5, retries=0) as client:
        _read(client, 1, 40000, 1)


@pytest.mark.parametrize("text", ["dance 1", "exception 1 99", "silence", "silence one"])
def test_a_command_that_it_does_not_know_is_refused(site: Site, text: str) -> None:
    with pytest.raises(ProcessError, match=f"refused {text}"):
        site.command(text)


def test_a_site_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    def counter(site: Site) -> int:
        with ModbusTcpClient("127.0.0.1", port=site.port, timeout=5, retries=0) as client:
            high, low = _read(client, 1, 40094, 2)
            return high << 16 | low

    with Site(tmp_path, seed=9) as site:
        port, before = site.port, counter(site)
        site.kill()
        site.start()
        assert site.port == port
        assert 0 <= counter(site) - before < 100
    assert [len(line["registers"]) for line in _journal(site)[1]] == [8, 8]


# ---- processes ------------------------------------------------------------------------------------------------


def _gone(pid: int) -> bool:
    """Not there, or dead and only waiting to be collected by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


_DEMO = """
import pathlib, sys, time
from testbed.processes import NatsServer, Site
folder = pathlib.Path(sys.argv[1])
with NatsServer(folder) as server, Site(folder) as site:
    (folder / "pids").write_text(f"{server.pid} {site.pid}\\n")
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_program_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    pids_file = tmp_path / "pids"
    command = [sys.executable, "-c", _DEMO, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL) as demo:
        try:
            wait_for(lambda: pids_file.exists() and pids_file.read_text().endswith("\n"), timeout=20, what="the demo")
            pids = [int(pid) for pid in pids_file.read_text().split()]
            assert not any(_gone(pid) for pid in pids)
            demo.send_signal(number)
            demo.wait(10)
            wait_for(lambda: all(_gone(pid) for pid in pids), timeout=5, what="both to be gone")
        finally:
            demo.kill()


def _python(folder: Path, code: str, *, kind: type[Process] = Process) -> Process:
    return kind([sys.executable, "-c", code], name="program", folder=folder)


def test_a_program_lives_on_when_the_thread_that_started_it_ends(tmp_path: Path) -> None:
    site = Site(tmp_path)
    thread = threading.Thread(target=site.start)
    thread.start()
    thread.join()
    try:
        wait_for(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists(), timeout=5, what="the thread to end")
        site.command("resume 1")
        assert site.alive
    finally:
        site.close()


def test_a_program_that_ignores_sigterm_is_killed_and_reported(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    with _python(tmp_path, code) as program:
        wait_for(lambda: "deaf" in program.log(), timeout=10, what="the program")
        with pytest.raises(ProcessError, match=r"did not stop within 0.2 s(.|\n)*deaf"):
            program.stop(0.2)
        assert not program.alive
        assert _gone(program.pid)


def test_what_a_program_started_goes_with_it(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid); time.sleep(600)"
    with _python(tmp_path, code) as program:
        wait_for(lambda: program.log().endswith("\n"), timeout=10, what="the program")
        grandchild = int(program.log())
        assert not _gone(grandchild)
    wait_for(lambda: _gone(grandchild), timeout=5, what="the grandchild to end")


def test_exit_codes_and_restarts(tmp_path: Path) -> None:
    program = _python(tmp_path, "import os, sys; print('run', os.environ.get('N')); sys.exit(3)")
    for number in ("1", "2"):
        program.environment["N"] = number
        program.start()
        assert program.wait(10) == 3
        assert program.log() == f"run {number}\n"  # since this start
    assert program.log_path.read_text() == "run 1\nrun 2\n"
    assert program.stop() == 3
    with _python(tmp_path, "import time; time.sleep(600)") as running:
        with pytest.raises(ProcessError, match="runs already"):
            running.start()
        running.kill()
        assert running.wait(1) == -signal.SIGKILL


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    service = Service([tmp_path / "nowhere"], name="service", folder=tmp_path)
    with service, pytest.raises(ProcessError, match=r"(?s)service ended with 127 before READY=1.*No such file"):
        service.wait_ready(10)


def test_a_server_is_not_mistaken_for_the_one_that_holds_its_port(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        second = NatsServer(tmp_path / "second", port=server.port)
        with pytest.raises(ProcessError, match=r"(?s)nats-server ended with 1 .*address already in use"):
            second.start()


def test_a_service_tells_its_state(tmp_path: Path) -> None:
    code = """
import os, signal, socket, time
path = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect("\\0" + path[1:])
    sock.sendall(b"STATUS=starting\\n")
    for number in range(3000):  # far more than the kernel queues: nobody may have to ask for them
        sock.sendall(b"WATCHDOG=1")
    sock.sendall(b"READY=1\\nSTATUS=2 devices, 1 channel")
    time.sleep(600)
"""
    with Service([sys.executable, "-c", code], name="service", folder=tmp_path) as service:
        service.wait_ready(10)
        wait_for(lambda: service.status != "starting", timeout=5, what="the status")
        assert service.status == "2 devices, 1 channel"
        assert service.states.count("WATCHDOG=1") == 3000
        service.stop()
        assert service.status == "2 devices, 1 channel"  # the last words stay


def test_the_lines_of_a_tail(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "nats://127.0.0.1:4222/X", "--did", "did:ethr:volta:0x0")
    assert tail.command_line == [
        *edge_agent(), "tail", "nats://127.0.0.1:4222/X", "--did", "did:ethr:volta:0x0", "--jsonl",
    ]  # fmt: skip
    tail.output_path.write_text('{"seq": 1}\n{"seq": 2}\n{"se')
    assert tail.lines() == [{"seq": 1}, {"seq": 2}]
    with tail.output_path.open("a") as output:
        output.write('q": 3}\n')
    assert tail.lines() == [{"seq": 1}, {"seq": 2}, {"seq": 3}]


# ---- the broker -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_stream_outlives_the_sigkill_of_its_server(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        await create_stream(server.url, "SITE", ["dx.>"])
        await create_stream(server.url, "SITE", ["dx.>"])  # again: as it is
        client = await nats.connect(server.url, allow_reconnect=False)
        ack = await client.jetstream().publish("dx.a", b"before", headers={"Nats-Msg-Id": "1"})
        assert ack.seq == 1
        port = server.port
        server.kill()
        assert not server.alive
        await client.close()
        server.start()
        assert server.port == port
        client = await nats.connect(server.url, allow_reconnect=False)
        message = await client.jetstream().get_last_msg("SITE", "dx.a")
        assert message.data == b"before"
        info = await client.jetstream().stream_info("SITE")
        assert (info.state.messages, info.config.duplicate_window) == (1, 120)
        await client.close()
        assert server.stop() == 0


def test_a_demo_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"{ended.pid}", f"{ended.pid}.abc_1", f"{os.getpid()}.abc", f"kept-{ended.pid}.abc", "050607-abc"):
        (tmp_path / name / "state").mkdir(parents=True)
    sweep(tmp_path)
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {f"{os.getpid()}.abc", f"kept-{ended.pid}.abc", "050607-abc"}
