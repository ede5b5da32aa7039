"""Which part of a whole agent makes no progress, on virtual time: what hangs is named in its time, and what merely is
away, slow or full never is (agent/heartbeat.py).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.config import load
from agent.heartbeat import WITHIN, Vitals
from agent.model import Cause
from agent.router import Router
from agent.source import Source
from agent.states import States
from tests.fakes import BACKEND, Acquisition, S
from tests.house import House, fake_transport

pytestmark = pytest.mark.anyio

ALL = {"dso": 'send = ["meter/*", "battery/*"]\noutbox = { size = "5MiB", when_full = "block" }'}


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    fake_transport(monkeypatch)
    return House(tmp_path, ALL)


@asynccontextmanager
async def never(*_: Any) -> AsyncIterator[None]:
    await anyio.sleep_forever()
    yield


async def overdue(house: House, seconds: int) -> list[tuple[int, str]]:
    """Look each second, and note when a part was named first, in s from now."""
    found: list[tuple[int, str]] = []
    for second in range(seconds):
        for part in house.running.overdue():
            if part not in [name for _, name in found]:
                found.append((second, part))
        await anyio.sleep(1)
    return found


async def test_what_is_away_slow_or_full_makes_progress(house: House) -> None:
    house.broker().down()
    house.source.down = True
    device_waits = Acquisition(took=40 * S, cause=Cause.DEVICE_TIMEOUT)
    found: list[tuple[int, str]] = []

    async def work() -> None:
        house.world.devices["meter"].script = lambda group: device_waits
        found.extend(await overdue(house, 700))
        house.broker().up()
        house.source.down = False
        found.extend(await overdue(house, 60))

    await house.live(work)
    assert found == []


async def test_a_connection_that_never_comes_about_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.broker(), "session", never)
    monkeypatch.setattr(house.source, "subscribe", never)
    found: list[tuple[int, str]] = []

    async def work() -> None:
        found.extend(await overdue(house, WITHIN // S + 10))

    await house.live(work)
    assert sorted(name for _, name in found) == ["listener of bus", "publisher of dso"]
    assert all(WITHIN // S - 2 <= second <= WITHIN // S + 3 for second, _ in found)


async def test_a_poller_that_waits_for_its_adapter_is_named(house: House) -> None:
    found: list[tuple[int, str]] = []

    async def work() -> None:
        await anyio.sleep(3)
        house.world.devices["meter"].script = lambda group: Acquisition(took=10_000 * S if group == "slow" else 0)
        found.extend(await overdue(house, WITHIN // S + 10))

    await house.live(work)
    assert [name for _, name in found] == ["poller of meter/slow"]


async def test_a_box_that_slept_is_not_taken_for_one_that_hangs(house: House) -> None:
    found: list[str] = []

    async def work() -> None:
        await anyio.sleep(2)
        found.extend(house.running.overdue())
        house.clock.now += 4000 * S  # nothing ran meanwhile
        found.extend(house.running.overdue())
        await anyio.sleep(2)
        found.extend(house.running.overdue())

    await house.live(work)
    assert found == []


MODBUS = """\
version = 1
site = {{ id = "house" }}
identity = {{ key = "file:key" }}
[connection.wire]
url = "modbus+tcp://127.0.0.1:1"
timeout = "{timeout}"
request_pause = "{pause}"
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
send = ["*"]
"""
UNIT = """\
[[device]]
id = "pv-{n}"
connection = "wire"
unit = {n}
groups = {{ ac = {{ every = "1s", points = [{{ name = "W", at = "holding:1", type = "int16" }}] }} }}
"""


@pytest.mark.parametrize(
    ("patience", "pause", "units", "seconds"),
    [("1s", "0s", 1, 300), ("1s", "0s", 10, 650), ("60s", "10s", 1, 65 * 70)],
)
async def test_how_long_a_reading_may_take_follows_from_the_configuration(
    patience: str, pause: str, units: int, seconds: int, tmp_path: Path, house: House
) -> None:
    path = tmp_path / "modbus.toml"
    devices = "".join(UNIT.format(n=n) for n in range(1, units + 1))
    path.write_text(MODBUS.format(timeout=patience, pause=pause) + devices)
    config = load(path)
    states = States(house.clock)
    source = Source(config.adapters()[0], config, sink=Router({}), clock=house.clock, states=states, vitals=Vitals())
    assert source.bus is not None
    assert source.bus.within == seconds * S


# ---- STATUS= --------------------------------------------------------------------------------------------------------


async def test_the_status_line_begins_with_what_needs_somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_transport(monkeypatch)
    send = 'send = ["meter/*", "battery/*"]'
    house = House(tmp_path, {"dso": send, "market": send})
    house.broker("market").down()
    calm: list[str] = []

    async def work() -> None:
        await anyio.sleep(50)
        calm.append(house.running.summary())
        house.world.devices["meter"].script = lambda group: Acquisition(cause=Cause.LINK_DOWN)
        await anyio.sleep(50)
        calm.append(house.running.summary())
        house.running.condition.stuck = ["writer of dso"]
        calm.append(house.running.summary())
        house.clock.now += 86_400 * S
        calm.append(house.running.summary())

    house.clock.offset = 1_764_036_000 * S - house.clock.boot()  # 02:00 UTC
    await house.live(work)
    market, dso = r"market: \d\d waiting, broker away", r"dso: [01] waiting, broker connected, \d+ delivered"
    assert re.fullmatch(rf"{market}, 0 delivered; {dso}; 0 of 2 devices failing", calm[0])
    fails = r"1 of 2 devices failing \(meter\)"
    assert re.fullmatch(rf"{market}, oldest since 02:00Z, 0 delivered; {fails}; {dso}", calm[1])
    assert calm[2].startswith("STUCK: writer of dso; market: ")
    assert "market: " in calm[3]
    assert ", oldest since 2025-11-25T02:00Z, " in calm[3]
