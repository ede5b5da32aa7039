"""The commands of docs/operating.md for when it fails, for backup and restore, a dead card and upgrades are run as they
stand there, against real agents and a real broker; and what a restore does to the evidence is as the page says.

Paths are moved below a folder of the test. ``systemctl`` starts and stops a real agent, ``edge-agent`` runs in this
process, everything else in a shell in which nobody can be root and nothing changes its owner.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent import cli
from testbed.broker import create_stream
from testbed.processes import Agent, NatsServer, wait_for
from tests.runs import DID as ON_VOLTA
from tests.runs import SECRET

DID = ON_VOLTA.replace("volta", "ewc")
PAGE = Path(__file__).parents[1] / "docs" / "operating.md"
CHAPTERS = ("When it fails", "Backup and restore", "A dead SD card", "Upgrades")
MOVED = ("/etc/edge-agent", "/var/lib/edge-agent", "/var/backups/", "/mnt/")
CONFIG = """\
version = 1
site = {{ id = "site-1" }}
identity = {{ key = "file:{root}/var/lib/edge-agent/key" }}
clock = {{ wait = "0s" }}
connection = {{ wire = {{ url = "modbus+tcp://127.0.0.1:1" }} }}
agent = {{ state = "{root}/var/lib/edge-agent", socket = "{root}/agent.sock" }}
[[device]]
id = "pv-1"
connection = "wire"
groups = {{ ac = {{ every = "100ms", points = [{{ name = "W", at = "holding:1", type = "int16" }}] }} }}
[[channel]]
id = "dso"
transport = "nats"
servers = ["{url}"]
subject = "{subject}"
send = ["*"]
seal_within = "100ms"
outbox = {{ size = "5MiB" }}
drain = {{ spread = "0s" }}
"""


def chapter(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def blocks(name: str) -> list[list[str]]:
    """The commands of each block of a chapter."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```", chapter(name), re.MULTILINE | re.DOTALL)
    return [[line.strip() for line in block.splitlines()] for block in found]


class Box:
    """A box with an agent, whose files lie below ``root``; what a command prints is kept in ``out``."""

    def __init__(self, root: Path, server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.url, self.subject = root, server.url, f"dx.{root.name.replace('_', '-')}"
        self.out = ""
        self._capsys = capsys
        self._agent: Agent | None = None
        self._agents = 0
        self._stack = ExitStack()
        self.etc, self.state = root / "etc" / "edge-agent", root / "var" / "lib" / "edge-agent"
        for folder in (self.etc, self.state, root / "var" / "backups", root / "mnt", root / "bin"):
            folder.mkdir(parents=True)
        for name in ("chown", "sudo"):
            tool = root / "bin" / name
            tool.write_text("#!/bin/sh\n" + ('exec "$@"\n' if name == "sudo" else ""))
            tool.chmod(0o755)
        (self.state / "key").write_text(SECRET.hex() + "\n")
        (self.state / "key").chmod(0o600)
        self.configure()

    def configure(self) -> None:
        """Write the configuration."""
        self.etc.mkdir(exist_ok=True)
        (self.etc / "agent.toml").write_text(CONFIG.format(root=self.root, url=self.url, subject=self.subject))

    def run(self, command: str) -> int:
        """Run a line of the page; returns its exit code."""
        for path in MOVED:
            command = re.sub(rf"(?<![\w.])(?={re.escape(path)})", str(self.root), command)
        words = shlex.split(command)
        if words[0] == "sudo":
            words = words[1:]
        if words[:3] == ["runuser", "-u", "edge-agent"]:
            words = words[4:]
        if words[0] == "systemctl":
            return self._systemctl(words[1:])
        if words[0] == "edge-agent":
            self._capsys.readouterr()
            code = cli.main(words[1:])
            said = self._capsys.readouterr()
            self.out = said.out + said.err
            return code
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["sh", "-ec", command], env={"PATH": path, "LC_ALL": "C"}, capture_output=True, text=True)
        self.out = done.stdout + done.stderr
        return done.returncode

    def all(self, commands: list[str]) -> None:
        """Run them; ``doctor`` and ``check --online`` may have found something: the device of this box is not there."""
        for command in commands:
            code = self.run(command)
            assert code == 0 or (code == 1 and re.search(r"doctor|check --online", command)), (command, self.out)

    def _systemctl(self, words: list[str]) -> int:
        verb, unit = words
        assert unit == "edge-agent"
        if verb in ("stop", "restart") and self._agent is not None:
            self._agent.stop()
        if verb in ("start", "restart"):
            self._agents += 1
            self._agent = self._stack.enter_context(Agent(self.root, self.etc / "agent.toml", name=f"a{self._agents}"))
            if not self._agent.alive:
                self._agent.start()
            self._agent.wait_ready()
        return 0

    @property
    def log(self) -> str:
        """Of the last agent that was started."""
        assert self._agent is not None
        return self._agent.log()

    def wait_delivered(self, count: int = 2) -> None:
        """Until the running agent has delivered so many records: its plan, and the first gap."""
        agent = self._agent
        assert agent is not None
        words = re.compile(r"(\d+) waiting, broker connected, (\d+) delivered")

        def is_delivered() -> bool:
            found = words.search(agent.status)
            return found is not None and int(found[2]) >= count

        wait_for(is_delivered, timeout=20, what="records at the broker")

    def report(self, *dids: str, code: int = 0) -> dict[str, Any]:
        """What a consumer says of all that was ever delivered."""
        accepted = " ".join(f"--did {did}" for did in dids or (DID,))
        source = f"{self.url}/OPERATING?subject={self.subject}"
        assert self.run(f"edge-agent tail {source} {accepted} --until-idle --jsonl") == code, self.out[-400:]
        lines = [line for line in self.out.splitlines() if line.startswith('{"report"')]
        found: dict[str, Any] = json.loads(lines[-1])["report"]
        return found

    def close(self) -> None:
        """End the agent."""
        self._stack.close()


@pytest.fixture
def box(
    tmp_path: Path, server: NatsServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Box]:
    with_stream(server)
    made = Box(tmp_path, server, capsys)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", made.etc / "agent.toml")
    yield made
    made.close()


def with_stream(server: NatsServer) -> None:
    asyncio.run(create_stream(server.url, "OPERATING", ["dx.>"]))


def test_every_command_of_these_chapters_stands_in_a_block_that_is_run() -> None:
    """What is named in a sentence is a command that there is."""
    for name in CHAPTERS:
        for inline in re.findall(
            r"`(?:sudo )?edge-agent ([^`]+)`", re.sub(r"```.*?```", "", chapter(name), flags=re.DOTALL)
        ):
            verbs = [word for word in inline.split() if word.islower() and word.isalpha()]
            with pytest.raises(SystemExit) as ended:
                cli.main([*verbs, "--help"])
            assert ended.value.code == 0, inline
    assert [len(blocks(name)) for name in CHAPTERS] == [2, 2, 3, 1]


def test_a_box_is_looked_at_upgraded_rolled_back_and_restored(box: Box) -> None:
    """One life of a box, for each start of an agent takes its time; each step says what the page says of it."""
    box.run("systemctl start edge-agent")
    box.wait_delivered()
    look, pack = blocks("When it fails")
    box.all(look)
    assert "ok       agent: version" in box.out
    assert "FAULT    group pv-1/ac: link_down" in box.out  # by the agent's own word: the device is not asked beside it
    assert "device pv-1" not in box.out
    box.all(pack)
    assert "/README.txt" in box.out
    backup, restore = blocks("Backup and restore")
    box.all(backup)
    assert (box.root / "var" / "backups" / "box-backup.tar.gz").stat().st_mode & 0o777 == 0o600
    older = box.root / "older.ring"
    shutil.copy(box.state / "dso.ring", older)

    [upgrade] = blocks("Upgrades")
    box.all(upgrade)
    assert "0 failed" in box.out
    box.wait_delivered()
    assert "broker holds a record that this outbox does not" not in box.log
    box.run("systemctl stop edge-agent")

    shutil.copy(older, box.state / "dso.ring")
    assert box.run("edge-agent doctor") == 1
    assert "FAULT    outbox dso: the broker has a later record of our key than this outbox" in box.out
    box.run("systemctl start edge-agent")
    box.wait_delivered()
    assert box.log.count("broker holds a record that this outbox does not") == 1
    box.run("systemctl stop edge-agent")
    report = box.report()
    [channel] = report["channels"]
    first, second, third = [run["joins"] for run in channel["runs"]]
    assert (first, second) == ("first", "continuous")
    assert re.fullmatch(r"rolled back \d+", third)
    assert report["levels"]["continuity"] == report["levels"]["completeness"] == "ok"
    assert channel["groups"][0]["gaps"].keys() >= {"link_down", "agent_down"}
    assert channel["cycles_missing"] == 0

    shutil.rmtree(box.etc)
    shutil.rmtree(box.state)
    box.all(restore)
    box.wait_delivered()
    assert box.log.count("broker holds a record that this outbox does not") == 1
    box.run("systemctl stop edge-agent")
    report = box.report()
    assert report["channels"][0]["runs"][-1]["joins"] == "unknown: a new outbox, it follows none"
    assert (report["levels"]["continuity"], report["levels"]["signature"], report["failed"]) == ("unknown", "ok", 0)
    box.run("edge-agent doctor --offline")
    assert "later record" not in box.out


def test_a_dead_card(box: Box) -> None:
    box.run("systemctl start edge-agent")
    box.wait_delivered()
    box.run("systemctl stop edge-agent")
    shutil.copytree(box.root / "var", box.root / "mnt" / "var")  # in the reader
    shutil.rmtree(box.state)
    box.state.mkdir()
    take_over, new_key, start = blocks("A dead SD card")
    box.all(take_over)
    box.all(new_key)
    shown = re.search(r"did:ethr:\w+:0x\w{40}", box.out)
    assert shown is not None
    new = shown[0]
    assert new != DID
    box.all(start)
    box.wait_delivered()
    box.run("systemctl stop edge-agent")
    assert box.report(code=1)["foreign"] > 0
    report = box.report(DID, new)
    assert (report["foreign"], report["failed"]) == (0, 0)
    assert [channel["signer"] for channel in report["channels"]] == [DID, new]
