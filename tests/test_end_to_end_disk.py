"""A disk that fails under the running agent: it goes on, says what it could not store, and stores again once the disk
is back (docs/outbox.md, rule 2). Real processes; the oracle decides.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock, boot_id
from agent.evidence.history import History
from agent.evidence.record import link_of
from agent.model import Event, EventCode
from agent.outbox import Outbox
from agent.sealing.sealer import Sealer
from agent.signer import KeySigner
from testbed.bad_disk import Disk
from testbed.mosquitto import Mosquitto
from testbed.processes import ProcessError, wait_for
from testbed.rig import Rig, command, told
from tests.runs import FACTS

Json = dict[str, Any]
Make = Callable[..., Rig]
OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}
BOTH = {"dso": ["pv-1/*", "grid-meter/*"], "market": ["grid-meter/*"]}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "orders")


@pytest.fixture
def make(tmp_path: Path, disk: Disk) -> Iterator[Make]:
    rigs: list[Rig] = []

    def made(**more: Any) -> Rig:
        rigs.append(Rig(tmp_path, disk=disk, **more))
        rigs[-1].agent.start().wait_ready()
        rigs[-1].wait_for_state()
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.close()


def let_it_work(seconds: float) -> None:
    time.sleep(seconds)  # what the agent does in that time is what is judged


def status(rig: Rig, channel: str = "dso") -> Json:
    told: Json = json.loads(command("status", "--json", "--config", rig.config))
    return next(each for each in told["channels"] if each["id"] == channel)


def wait_until(rig: Rig, state: str, *, channel: str = "dso") -> Json:
    """Return the channel's status once its outbox is so."""

    def reached() -> Json | None:
        if not rig.agent.alive:
            raise ProcessError(f"the agent ended: {rig.agent.log()[-4000:]}")
        found = status(rig, channel)
        return found if found["outbox"]["state"] == state else None

    try:
        return wait_for(reached, timeout=20, what=f"the outbox to be {state}")
    except ProcessError as error:
        raise ProcessError(f"{error}; {status(rig, channel)} {rig.agent.log()[-4000:]}") from error


def wait_for_log(rig: Rig, line: str) -> None:
    wait_for(lambda: line in rig.agent.log(), timeout=20, what=f"the log to say: {line}")


def concluded(rig: Rig, channel: str = "dso") -> list[Json]:
    rig.wait_for_state(timeout=40)
    rig.stop()
    return judged(rig, channel)


def judged(rig: Rig, channel: str = "dso") -> list[Json]:
    lines = rig.consumed(channel=channel)
    account = rig.judge(lines)
    assert account.problems == []
    assert account.good
    assert lines[-1]["report"]["levels"] == OK
    return lines


def causes(lines: list[Json]) -> list[str | None]:
    """Of all runs in order: why nothing was stored before them."""
    return [run["cause"] for run in told(lines, "runs")]


# ---- dropped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "how"),
    [("pwrite", "failed"), ("pwrite", "applied"), ("fdatasync", "failed"), ("fdatasync", "applied")],
)
def test_a_single_error_begins_a_new_run_and_all_is_stated(make: Make, disk: Disk, call: str, how: str) -> None:
    rig = make()
    disk.fail(call, how=how, times=1)
    wait_for_log(rig, "ERROR outbox failed")
    wait_for_log(rig, "outbox open again")
    assert status(rig)["not_stored"] > 0
    lines = concluded(rig)
    assert causes(lines) == [None, "not_stored"]
    assert rig.agent.log().count("ERROR outbox failed") == 1
    assert rig.agent.log().count("outbox open again") == 1


def test_a_disk_that_fails_for_a_while_holds_up_no_other_channel(make: Make, disk: Disk) -> None:
    rig = make(channels=BOTH)
    disk.fail("pwrite", "fdatasync", ring="market")
    wait_for_log(rig, "ERROR outbox failed channel=market")
    assert status(rig)["outbox"]["state"] == "ok"
    let_it_work(4)
    failed = status(rig, "market")
    assert failed["not_stored"] > 30
    assert failed["outbox"]["trouble"]
    assert "FAILED" in rig.agent.status
    disk.heal()
    wait_until(rig, "ok", channel="market")
    market, dso = concluded(rig, "market"), judged(rig)
    assert causes(market) == [None, "not_stored"]
    assert causes(dso) == [None]
    assert sum(group["gaps"].get("not_stored", 0) for group in told(market, "groups")) > 30
    assert rig.agent.log().count("ERROR outbox failed channel=market") <= 2, "one line for each error, not for each try"


def test_an_agent_that_is_stopped_while_the_disk_fails_ends_in_order(make: Make, disk: Disk) -> None:
    rig = make()
    disk.fail("pwrite", "fdatasync", "pread")
    wait_for_log(rig, "ERROR outbox failed")
    rig.stop()
    disk.heal()
    rig.agent.start().wait_ready()
    lines = concluded(rig)
    assert causes(lines) == [None, "agent_down"]


def test_a_disk_that_is_bad_at_the_start_ends_the_agent(make: Make, disk: Disk) -> None:
    rig = make()
    rig.stop()
    disk.fail("pread")
    rig.agent.start()
    assert rig.agent.wait(20) == 1
    assert "cannot be opened: Input/output error" in rig.agent.log()


def test_a_reload_while_the_disk_fails_is_carried_out(make: Make, disk: Disk) -> None:
    rig = make(channels=BOTH)
    disk.fail("pwrite", "fdatasync", ring="market")
    wait_for_log(rig, "ERROR outbox failed channel=market")
    text = rig.config.read_text()
    rig.config.write_text(
        text.replace('send = ["grid-meter/*"]\nseal_within = "200ms"', 'send = ["*"]\nseal_within = "300ms"')
    )
    assert command("reload", "--config", rig.config).splitlines() == ["channel market: changed, restarted"]
    assert status(rig, "market")["outbox"]["state"] == "failed"
    disk.heal()
    wait_until(rig, "ok", channel="market")
    market, dso = concluded(rig, "market"), judged(rig)
    assert causes(market) == [None, "not_stored"]
    assert causes(dso) == [None]


def test_an_outbox_that_cannot_be_read_is_opened_again_too(make: Make, disk: Disk) -> None:
    rig = make()
    rig.broker.kill()
    let_it_work(1)
    disk.fail("pread")
    rig.broker.start()
    wait_for_log(rig, "ERROR outbox failed")
    disk.heal()
    wait_for_log(rig, "outbox open again")
    lines = concluded(rig)
    assert causes(lines) == [None, "not_stored"]


def test_messages_that_are_not_stored_come_again(make: Make, disk: Disk, tmp_path: Path) -> None:
    rig = make(mqtt=Mosquitto(tmp_path), mqtt_version="5")
    wait_for(lambda: "INFO listening connection" in rig.agent.log(), timeout=20, what="the agent to listen")
    rig.listening()
    disk.fail("pwrite", "fdatasync")
    wait_for_log(rig, "ERROR outbox failed")
    let_it_work(2)
    disk.heal()
    wait_until(rig, "ok")
    let_it_work(1)
    rig.settle_battery()
    lines = concluded(rig)
    assert causes(lines) == [None, "not_stored"]
    gaps = [gap for line in lines for gap in line.get("gaps", []) if gap["device"] == "battery"]
    assert "not_stored" in {gap["cause"] for gap in gaps}


# ---- full ---------------------------------------------------------------------------------------------------------


def nearly_fill(rig: Rig) -> None:
    """Put events of an earlier run into the outbox until little room is left before it must overwrite them."""
    clock, secret = SystemClock(), bytes.fromhex((rig.folder / "key").read_text())
    facts = replace(FACTS, boot_id=boot_id(), site=rig.SITE, channel=rig.CHANNEL, topic=f"dx.{rig.SITE}.{rig.CHANNEL}")
    sealer = Sealer(facts, signer=KeySigner(secret, did=rig.did), clock=clock, last=None, history=History())
    sealer.begin_term(opened=(clock.wall(), clock.boot()), devices=[], groups=[])
    path = rig.folder / "state" / "dso.ring"
    path.parent.mkdir()
    box = Outbox.open(path, channel=rig.CHANNEL, size=5 << 20, inspect=link_of)
    for _ in range(4):
        box.append([sealer.seal(sealer.plan_body(), at=sealer.now())], new_segment=True)
        for size in (100_000, 20_000, 2_000):
            words = random.Random(size).randbytes(size).hex()
            event = sealer.event_body(Event(EventCode.CONFIGURATION_REFUSED, clock.boot(), (words,)))
            while box.fits(size + 4_000, 1):
                box.append([sealer.seal(event, at=sealer.now())], new_segment=False)
    box.close()


def test_an_outbox_that_is_full_and_blocks_loses_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path, outbox="5MiB", outbox_more='when_full = "block"') as rig:
        nearly_fill(rig)
        rig.broker.kill()
        rig.agent.start().wait_ready()
        full = wait_until(rig, "blocked")
        assert full["pending_records"] > 40
        let_it_work(0.5)
        assert status(rig)["seq"] == full["seq"], "nothing is sealed"
        rig.broker.start()
        wait_until(rig, "ok")
        lines = concluded(rig)
    assert told(lines, "holes") == []
    assert causes(lines) == [None, "agent_down"]


# ---- in memory ----------------------------------------------------------------------------------------------------


def test_while_the_disk_fails_a_run_in_memory_carries_on(make: Make, disk: Disk, tmp_path: Path) -> None:
    rig = make(outbox_more='on_disk_failure = "memory"', mqtt=Mosquitto(tmp_path))
    wait_for(lambda: "INFO listening connection" in rig.agent.log(), timeout=20, what="the agent to listen")
    rig.listening()
    disk.fail("pwrite", "fdatasync")
    wait_for_log(rig, "ERROR outbox failed")
    wait_until(rig, "memory")
    let_it_work(2)
    disk.heal()
    wait_until(rig, "ok")
    let_it_work(1)
    rig.settle_battery()
    lines = concluded(rig)
    joins = {run["joins"]: run["cause"] for run in told(lines, "runs")}
    assert joins == {"first": None, "volatile": None, "continuous": "not_stored"}
    frames = [line for line in lines if line.get("frames")]
    volatile = next(run["stream"] for run in told(lines, "runs") if run["joins"] == "volatile")
    assert sum(len(line["frames"]) for line in frames if line["stream"] == volatile) > 40


def test_an_agent_that_is_stopped_while_it_has_no_disk_delivers_what_it_has_in_memory(make: Make, disk: Disk) -> None:
    rig = make(outbox_more='on_disk_failure = "memory"')
    disk.fail("pwrite", "fdatasync")
    wait_for_log(rig, "ERROR outbox failed")
    wait_until(rig, "memory")
    let_it_work(1)
    rig.stop()
    lines = rig.consumed()
    assert [run["stopped"] for run in told(lines, "runs") if run["joins"] == "volatile"] == ["SIGTERM"]
    disk.heal()
    rig.agent.start().wait_ready()
    again = concluded(rig)
    assert [run["joins"] for run in told(again, "runs")] == ["first", "volatile", "continuous"]
