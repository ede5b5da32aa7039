"""The fault campaign (testbed/campaign): that it finds nothing in the agent, and finds each defect that it is given."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import provision
from testbed.campaign import report
from testbed.campaign.faults import KINDS
from testbed.campaign.life import Outcome, waves
from testbed.child import ROOT

TORN = "power cut in a write"


def campaign(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    if os.geteuid() or not os.path.exists("/dev/net/tun") or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, /dev/net/tun and mkfs.ext4")
    if any(provision.program(name) is None for name in ("mosquitto", "libfaketime", "openssl", "btrfs-progs")):
        pytest.skip("python3 provision.py debian makes what it needs ready")
    command = [sys.executable, "-m", "testbed.campaign", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_two_hundred_faults_lose_and_double_nothing_and_raise_no_false_alarm() -> None:
    seed = os.environ.get("EDGE_AGENT_SEED") or "1"
    done = campaign("--faults", "200", "--seed", seed, timeout=1800)
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defect", "kinds"),
    [
        ("no-fsync", "power cut"),
        ("publish-before-persist", "agent killed"),
        ("ack-before-durable", "agent killed"),
        ("no-prev-check", TORN),
    ],
)
def test_it_finds_a_defect(defect: str, kinds: str) -> None:
    """The first life nearly always does it. Whether what is left of a torn start stands right behind the next one's
    plan is a matter of eight bytes, so more lives may be needed there.
    """
    faults = ("--faults", "24", "--life", "3", "--seed", "7")
    done = campaign(*faults, "--defect", defect, "--kinds", kinds, timeout=300)
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 1
    assert "FOUND" in done.stdout


def test_faults_follow_from_the_seed_and_all_kinds_have_their_turn() -> None:
    first = [[fault.kind for fault in wave] for wave in waves(random.Random(1), 200, ())]
    assert first == [[fault.kind for fault in wave] for wave in waves(random.Random(1), 200, ())]
    assert sum(map(len, first)) == 200
    for kind in KINDS:
        assert sum(wave.count(kind.kind) for wave in first) in (8, 9)
    assert max(map(len, first)) > 3


def test_no_two_faults_that_touch_the_same_overlap() -> None:
    for wave in waves(random.Random(2), 500, ()):
        touched = [what for kind in wave for what in kind.touches]
        assert len(touched) == len(set(touched))


def test_the_table_is_put_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    outcome = Outcome(faults={"power cut": 3}, slowest={"power cut": 1.25}, lost=7)
    report.write(page, report.table(outcome, command="it", took=61))
    assert page.read_text().startswith(f"before\n{report.BEGIN}\n`it`, 1 min:")
    assert page.read_text().endswith(f"{report.END}\nafter\n")
    assert "| power cut | 3 | 1.2 s |" in page.read_text()
    assert "| lost and not stated | 7 |" in page.read_text()
    assert "old" not in page.read_text()
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="no place marked"):
        report.write(page, "table")
