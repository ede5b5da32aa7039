"""The container image: built from what is committed, and run with the commands of docs/operating.md.

Really built and run, with buildah and podman (testbed/engine.py): that takes root, and for ARM64 emulation.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import provision
from agent.config import load
from agent.config.template import agent_toml
from testbed.box import debian
from testbed.broker import create_stream
from testbed.engine import Engine
from testbed.namespaces import foreign
from testbed.processes import NatsServer, Site, edge_agent, wait_for
from tests.runs import DID

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operating.md"
COMPOSE = ROOT / "compose.yaml"
RECIPE = "Dockerfile.arm64"
STREAM, SUBJECT = "TELEMETRY", "dx.site-1.telemetry"
SOCKET = "/run/edge-agent/agent.sock"
BASE = "localhost/debian:bookworm-slim"


# ---- what is written of it ------------------------------------------------------------------------------------------


def steps() -> list[list[str]]:
    """The commands of each block of the page's chapter."""
    found = re.search(r"^## In a container\n(.*?)(?=^## )", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", found[1], re.MULTILINE | re.DOTALL)
    return [[line.strip() for line in block.splitlines()] for block in blocks]


def service(name: str) -> dict[str, Any]:
    """The keys of a service of compose.yaml, which are written as JSON is, but for texts of one word."""
    found = re.search(rf"^  {name}:\n((?:    .*\n)+)", COMPOSE.read_text(), re.MULTILINE)
    assert found is not None
    keys = re.findall(r"^    (\w+): (\S.*?)(?: #.*)?$", found[1], re.MULTILINE)
    return {key: json.loads(re.sub(r"([\w-]+): ", r'"\1": ', text)) if text[0] in '{["' else text for key, text in keys}


def options(command: str) -> dict[str, list[str]]:
    """The options of ``docker run``, by name, as they are written."""
    words, found = iter(shlex.split(command)[2:-1]), dict[str, list[str]]()
    for word in words:
        found.setdefault(word, []).extend([] if word in ("--rm", "--detach", "--read-only") else [next(words)])
    return found


def test_compose_runs_it_as_the_page_does() -> None:
    [by_hand] = [line for block in steps() for line in block if "--detach" in line]
    told, agent = options(by_hand), service("agent")
    assert "--read-only" in told
    assert agent["read_only"] == "true"
    assert told["--cap-drop"] == agent["cap_drop"] == ["ALL"]
    assert [f"{each}:true" for each in told["--security-opt"]] == agent["security_opt"]
    assert told["--tmpfs"] == agent["tmpfs"] == ["/run/edge-agent"]
    assert told["-v"] == agent["volumes"]
    assert told["--restart"] == [agent["restart"]]
    assert [f"{seconds}s" for seconds in told["--stop-timeout"]] == [agent["stop_grace_period"]] == ["10s"]
    assert told["--ulimit"] == ["core=0"]
    assert agent["ulimits"] == {"core": 0}
    assert agent["build"] == {"context": ".", "dockerfile": RECIPE}
    assert '\n  edge-agent: { name: "edge-agent", external: true }' in COMPOSE.read_text()
    broker = service("nats")
    assert broker["command"][0] == "--jetstream"
    for key in ("read_only", "cap_drop", "security_opt", "stop_grace_period", "restart"):
        assert broker[key] == agent[key]


def test_the_broker_beside_it_is_configured_as_the_page_says(tmp_path: Path) -> None:
    found = re.search(r"with a broker beside it \((.*)\):", PAGE.read_text())
    assert found is not None
    lines = re.findall(r"`([^`]+)`", found[1])
    text = agent_toml(did=DID).replace('servers   = ["nats://192.0.2.50:4222"]', "\n".join(lines))
    (tmp_path / "agent.toml").write_text(text)
    [channel] = load(tmp_path / "agent.toml").channels
    assert [*channel.settings.servers] == ["nats://nats:4222"]
    assert channel.settings.stream == "telemetry"
    assert channel.settings.create is not None
    assert "  nats:\n" in COMPOSE.read_text()


# ---- what is built --------------------------------------------------------------------------------------------------


def needs_an_engine(machine: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("namespaces in which an engine runs take root")
    if any(provision.program(name) is None for name in ("buildah", "podman", "conmon", "crun", "mmdebstrap")):
        pytest.skip("python3 provision.py debian makes what it needs ready")
    if foreign(machine) and provision.program("qemu-user-static") is None:
        pytest.skip("python3 provision.py emulators makes what it needs ready")


def context(folder: Path) -> Path:
    """A checkout as people have one: with what git does not know beside the rest."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    for name in filter(None, listed.stdout.split("\0")):
        if (path := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    for name in (".git/config", ".venv/bin/python", "agent/__pycache__/cli.pyc", "key", "agent.toml", "build/x.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("nothing of an image")
    return folder


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    needs_an_engine(request.param)
    folder = tmp_path / "engine"
    try:
        with Engine(folder, machine=request.param) as engine:
            yield engine
    finally:
        shutil.rmtree(folder)  # a gigabyte


class Box:
    """A box with an engine on it, and a device and a broker that it reaches. ``etc`` is its /etc/edge-agent."""

    def __init__(self, engine: Engine, site: Site, server: NatsServer, etc: Path) -> None:
        self.engine, self.site, self.server, self.etc = engine, site, server, etc
        self.docker = engine.docker

    def do(self, command: str) -> str:
        """Run a line of the page; returns what it prints."""
        command = re.sub(r"/etc/edge-agent(?=:| |$)(?!:ro| -v| edge)", str(self.etc), command, count=1)
        return self.engine.run("sh", "-ec", f"exec 2>&1; {command}").strip()

    def asked(self, *command: str, user: str = "10001") -> str:
        """What a command in the container prints, also if it fails."""
        return self.docker(
            "exec", "--user", user, "edge-agent", "sh", "-c", 'exec 2>&1; "$@"', "sh", *command, check=False
        )

    def health(self) -> tuple[int, str]:
        """Exit status and words of the health check, as the image has it."""
        self.docker("healthcheck", "run", "edge-agent", check=False)
        last = json.loads(self.docker("inspect", "--format={{json .State.Health.Log}}", "edge-agent"))[-1]
        return last["ExitCode"], last["Output"].strip()

    def state(self, field: str) -> str:
        return self.docker("inspect", "--format", f"{{{{.State.{field}}}}}", "edge-agent")

    def delivers(self, more: int = 2) -> None:
        """Wait until it has delivered so many records since it started."""

        def acknowledged() -> bool:
            said = self.docker("exec", "edge-agent", "edge-agent", "status", "--json", check=False)
            return bool(said) and json.loads(said)["channels"][0]["acknowledged"] >= more

        wait_for(acknowledged, timeout=120, what="records at the broker")

    def report(self, did: str) -> dict[str, Any]:
        """What a consumer, who knows nothing but broker and DID, says of all that came."""
        source = f"{self.server.url}/{STREAM}?subject={SUBJECT}"
        command = [*edge_agent(), "tail", source, "--did", did, "--until-idle", "--jsonl"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stdout + said.stderr
        report: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])["report"]
        assert (report["failed"], {*report["levels"].values()}) == (0, {"ok"})
        return report


LOOK = """
import importlib.metadata, json, os, shutil, stat, sys
site = next(path for path in sys.path if path.startswith("/opt/edge-agent/lib/"))
tag, ours = sys.implementation.cache_tag, (site, "/usr/lib/python3")
found = {"uncompiled": [], "setuid": [], "open": []}
for top in ("/bin", "/etc", "/opt", "/usr", "/var"):
    for folder, _, files in os.walk(top):
        for path in (os.path.join(folder, name) for name in files):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                if status.st_mode & 0o6000:
                    found["setuid"].append(path)
                if status.st_uid or status.st_mode & 0o002:
                    found["open"].append(path)
            compiled = os.path.join(folder, "__pycache__", f"{os.path.basename(path)[:-3]}.{tag}.pyc")
            if path.startswith(ours) and path.endswith(".py") and not os.path.exists(compiled):
                found["uncompiled"].append(path)
found["tools"] = [tool for tool in ("gcc", "cc", "pip", "pip3", "git") if shutil.which(tool)]
there = {each.name.lower().replace("_", "-"): each.version for each in importlib.metadata.distributions(path=[site])}
print(json.dumps(found | {"there": there}))
"""


@pytest.mark.parametrize(
    "engine",
    [pytest.param("amd64", marks=pytest.mark.slow), pytest.param("arm64", marks=pytest.mark.arm64)],
    indirect=True,
)
def test_the_image_is_built_and_runs_as_the_page_says(engine: Engine, tmp_path: Path) -> None:
    times, began = dict[str, float](), time.monotonic()

    def took(what: str) -> None:
        times[what] = round(time.monotonic() - began - sum(times.values()), 1)

    if engine.foreign:
        root = debian("bookworm", packages=(), machine=engine.machine, by=engine.run)
    else:
        root = debian("bookworm", packages=())
    took("a Debian")
    engine.take_in(root, BASE)
    took("base image")

    # built from what is meant to be in it, and from nothing else of the checkout
    checkout = context(tmp_path / "checkout")
    (checkout / "Listing").write_text("FROM scratch\nCOPY . /\n")
    engine.build(checkout, "Listing", "listing")
    listing = Path(engine.run("buildah", "from", "listing").strip())
    seen = engine.run("sh", "-c", f"cd $(buildah mount {listing}) && find . -type f")
    assert {line.split("/")[1] for line in seen.split()} == {
        *("LICENSE", "README.md", "adapters", "agent", "provision.py", "pyproject.toml", "requirements.lock")
    }
    assert "nothing of an image" not in seen
    assert "__pycache__" not in seen
    engine.build(checkout, RECIPE, "edge-agent", BASE=BASE)
    took("build")

    [image] = json.loads(engine.docker("inspect", "--type=image", "edge-agent"))
    config = image["Config"]
    assert image["Architecture"] == engine.machine
    assert config["User"] == "10001:10001"
    assert [*config["Volumes"]] == ["/var/lib/edge-agent"]
    assert (config["Entrypoint"], config["Cmd"], config["StopSignal"]) == (["edge-agent"], ["run"], "SIGTERM")
    print(f"image: {image['Size'] / 1e6:.0f} MB, of which the base {_size(engine, BASE) / 1e6:.0f} MB")
    within = ["--rm", "--user=root", "--entrypoint=/opt/edge-agent/bin/python3"]
    looked = json.loads(engine.docker("run", *within, "edge-agent", "-c", LOOK))
    there = looked.pop("there")
    assert looked == {"uncompiled": [], "setuid": [], "open": [], "tools": []}
    locked = {
        name: entry.split()[0].partition("==")[2] for name, entry in provision.runtime(provision.locked()).items()
    }
    assert there.pop("dataexchange-edge-agent") == "0.1.0"
    assert there == {name: locked[name] for name in there}
    assert {"anyio", "cbor2", "coincurve", "nats-py", "pydantic", "uvloop", "sdnotify"} <= {*there}
    took("looked at")

    with Site(tmp_path / "site", journal=False) as site, NatsServer(tmp_path / "nats") as server:
        asyncio.run(create_stream(server.url, STREAM, [SUBJECT]))
        live(Box(engine, site, server, tmp_path / "etc"))
    took("run")
    print(f"seconds: {times}")


def _size(engine: Engine, image: str) -> int:
    return int(engine.docker("inspect", "--type=image", "--format={{.Size}}", image))


def live(box: Box) -> None:
    """From the key to an upgrade, in the page's words."""
    build, init, look, start, looks, stop = steps()
    assert build == ["docker build -f Dockerfile.arm64 -t edge-agent ."]  # done, with the base that is here

    said = [box.do(line) for line in init][-1]
    did = next(line for line in said.splitlines() if line.startswith("did:ethr:ewc:0x"))
    config = box.etc / "agent.toml"
    assert (config.stat().st_uid, config.stat().st_gid, oct(config.stat().st_mode & 0o777)) == (0, 10001, "0o640")
    key = box.docker("volume", "inspect", "--format={{.Mountpoint}}", "edge-agent") + "/key"
    assert box.engine.run("stat", "--format=%u:%g %a", key).strip() == "10001:10001 600"
    secret = box.engine.run("cat", key).strip()
    assert "is there already and stays" in [box.do(line) for line in init][-1]

    text = config.read_text()
    edits = {"192.0.2.20:502": f"127.0.0.1:{box.site.port}", "nats://192.0.2.50:4222": box.server.url}
    for old, new in {**edits, 'wait = "60s"': 'wait = "0s"', 'every = "5s"': 'every = "1s"'}.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    check, read = [box.do(line) for line in look]
    assert "/etc/edge-agent/agent.toml: good" in check
    assert "pv-1/ac" in read

    [run] = start
    box.do(run)
    box.delivers()
    assert looks[1].endswith(" doctor")  # which may have to say something of the machine
    status, doctor, verified, reloaded, log = [box.do(f"{line}{' || true' * (line == looks[1])}") for line in looks]
    assert "broker" in status
    assert ("FAULT" in doctor, "ok       agent: version" in doctor) == (False, True)
    assert "0 failed" in verified
    assert "nothing changed" in reloaded
    assert "control socket open" in log
    assert secret not in log
    confined(box)
    assert box.health() == (0, "healthy")

    # one that hangs is not healthy; let go, it is again
    box.docker("kill", "--signal=STOP", "edge-agent")
    assert box.health() == (1, f"no answer within 5 s at {SOCKET}")
    box.docker("kill", "--signal=CONT", "edge-agent")
    assert box.health() == (0, "healthy")

    # ended while it loads: at once
    hangs = ["--entrypoint=python3", "edge-agent", "-c", "import agent.cli, time; print(1, flush=True); time.sleep(60)"]
    box.docker("run", "--detach", "--name=loads", *hangs)
    wait_for(lambda: box.docker("logs", "loads") == "1", timeout=60, what="a program that has loaded")
    box.docker("stop", "loads")
    assert box.docker("inspect", "--format={{.State.ExitCode}}", "loads") == "143"

    # ended, the volume is all that stays, and what goes on from it lacks nothing
    began = time.monotonic()
    for line in stop:
        if line == "docker rm edge-agent":
            assert (box.state("ExitCode"), time.monotonic() - began < 10) == ("0", True)
        box.do(line)
    box.do(run)
    box.delivers()
    box.docker("kill", "--signal=KILL", "edge-agent")
    box.docker("rm", "--force", "edge-agent")
    box.do(run)
    box.delivers()
    box.do(stop[0])
    assert box.state("ExitCode") == "0"
    report = box.report(did)
    [channel] = report["channels"]
    assert [each["joins"] for each in channel["runs"]] == ["first", "continuous", "continuous"]
    assert channel["cycles_missing"] == 0


def confined(box: Box) -> None:
    """What the running agent may do."""
    told = dict(re.findall(r"^(\w+):\t(.*)$", box.asked("cat", "/proc/1/status"), re.MULTILINE))
    assert told["Uid"].split() == told["Gid"].split() == ["10001"] * 4
    assert {told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    places = box.asked("sh", "-c", "find / -xdev -type d -writable 2>/dev/null")
    assert {*places.split()} == {"/var/lib/edge-agent", "/run/edge-agent"}
    held = box.asked("find", "/var/lib/edge-agent", "/run/edge-agent", "!", "-type", "d")
    assert {*held.split()} == {*(f"/var/lib/edge-agent/{name}" for name in ("key", "telemetry.ring")), SOCKET}
    refused = box.asked("touch", "/etc/edge-agent/x", "/opt/x", "/srv/x", user="root")
    assert refused.count("Read-only file system") == 3
