"""``python -m testbed.campaign [--faults N] [--seed S] [--report FILE] [--defect NAME]``: lives of some faults each,
two at a time, until N are done or something is found. Exit status 1: something was found; it is printed with its
life's seed.

Life number i has seed S + i; ``--seed S+i --faults 40`` (``--life``) plays it alone. What is done in which order
follows from the seed; moments on a busy machine differ. Each life is a process with namespaces of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from testbed.campaign import report
from testbed.campaign.defects import DEFECTS
from testbed.campaign.faults import KINDS
from testbed.campaign.life import Outcome, live
from testbed.child import ROOT

_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LEASH = ROOT / "testbed" / "leash.py"
_OUTCOME = "outcome "


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="testbed.campaign", description="Random faults, judged by the oracle")
    parser.add_argument("--faults", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, metavar="S")
    parser.add_argument("--life", type=int, default=40, metavar="N", help="faults of a life")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="lives at a time")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page whose table is replaced")
    parser.add_argument("--defect", choices=list(DEFECTS), default="none", help="given to the agent on purpose")
    parser.add_argument("--kinds", default="", metavar="A,B", help="of faults; default: all")
    parser.add_argument("--go-on", action="store_true", help="also when something was found")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files of lives that found something")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # one life, in its namespaces
    options = parser.parse_args()
    if unknown := _kinds(options.kinds) - {fault.kind for fault in KINDS}:
        parser.error(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(f.kind for f in KINDS)}")
    return options


def _kinds(text: str) -> set[str]:
    return {kind for kind in text.split(",") if kind}


def _inside(options: argparse.Namespace) -> int:
    """Play one life; the last line tells its outcome."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    outcome = live(
        folder / "life",
        seed=options.seed,
        faults=options.faults,
        defect=options.defect,
        kinds=_kinds(options.kinds),
        say=lambda text: print(text, flush=True),
    )
    if outcome.findings and options.keep is not None:
        ignored = shutil.ignore_patterns("*.sock")
        shutil.copytree(folder, options.keep / str(options.seed), ignore=ignored, dirs_exist_ok=True)
    shutil.rmtree(folder)
    print(_OUTCOME + json.dumps(asdict(outcome)), flush=True)
    return 0


class _Campaign:
    """Lives, and what came of all of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.whole = Outcome()
        self.began = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def life(self, seed: int, faults: int) -> None:
        """One life, unless something was found before."""
        if self.whole.findings and not self.options.go_on:
            return
        self.say(f"{seed}: a life of {faults} faults")
        options = self.options
        command = [*_NAMESPACES, sys.executable, "-m", "testbed.campaign", "--inside"]
        command += ["--seed", str(seed), "--faults", str(faults), "--defect", options.defect, "--kinds", options.kinds]
        command += ["--keep", str(options.keep.resolve())] if options.keep is not None else []
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        outcome = Outcome(findings=[f"life {seed} did not come to its end"])
        with subprocess.Popen([*leash, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(_OUTCOME):
                    outcome = Outcome(**json.loads(line.removeprefix(_OUTCOME)))
                else:
                    self.say(f"{seed}: {line.rstrip()}")
        for finding in outcome.findings:
            self.say(f"FOUND with seed {seed}: {finding}")
        with self._lock:
            self.whole.add(outcome)


def main() -> int:
    """Run the campaign."""
    options = _options()
    if options.inside:
        return _inside(options)
    campaign = _Campaign(options)
    lives = range(0, options.faults, options.life)
    with ThreadPoolExecutor(options.jobs) as pool:
        done = [
            pool.submit(campaign.life, options.seed + number, min(options.life, options.faults - begun))
            for number, begun in enumerate(lives)
        ]
    for each in done:
        each.result()
    again = f"python -m testbed.campaign --faults {options.faults} --seed {options.seed}"
    text = report.table(campaign.whole, command=again, took=time.monotonic() - campaign.began)
    print(text)
    if options.report is not None:
        report.write(options.report, text)
    return 1 if campaign.whole.findings else 0


if __name__ == "__main__":
    sys.exit(main())
