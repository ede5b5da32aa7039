"""``python -m testbed.campaign [--faults N] [--seed S] [--report FILE] [--defect NAME]``: lives of 40 faults each,
until N are done or something is found. Exit status 1: something was found; it is printed with its life's seed.

Life number i has seed S + i; ``--seed S+i --faults 40`` plays it alone. What is done in which order follows from the
seed; moments on a busy machine differ.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from testbed.campaign import report
from testbed.campaign.defects import DEFECTS
from testbed.campaign.faults import KINDS
from testbed.campaign.life import Outcome, live

_INSIDE = "TESTBED_CAMPAIGN_INSIDE"
_A_LIFE = 40  # faults


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="testbed.campaign", description="Random faults, judged by the oracle")
    parser.add_argument("--faults", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, metavar="S")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page whose table is replaced")
    parser.add_argument("--defect", choices=list(DEFECTS), default="none", help="given to the agent on purpose")
    parser.add_argument("--kinds", default="", metavar="A,B", help="of faults; default: all")
    parser.add_argument("--go-on", action="store_true", help="also when something was found")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files of lives")
    options = parser.parse_args()
    options.kinds = {kind for kind in options.kinds.split(",") if kind}
    if unknown := options.kinds - {fault.kind for fault in KINDS}:
        parser.error(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(f.kind for f in KINDS)}")
    return options


def main() -> int:
    """Run the campaign."""
    options = _options()
    if _INSIDE not in os.environ:
        namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*namespaces, sys.executable, "-m", "testbed.campaign", *sys.argv[1:], "--seed", str(options.seed)]
        os.execvpe(command[0], command, {**os.environ, _INSIDE: "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    began = time.monotonic()
    whole = Outcome()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    seed, left = options.seed, options.faults
    while left > 0 and (options.go_on or not whole.findings):
        say(f"life of seed {seed}, {min(left, _A_LIFE)} faults")
        folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        outcome = live(
            folder / "life",
            seed=seed,
            faults=min(left, _A_LIFE),
            defect=options.defect,
            kinds=options.kinds,
            say=say,
        )
        if options.keep is not None:
            shutil.copytree(
                folder, options.keep / str(seed), ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True
            )
        shutil.rmtree(folder)
        for finding in outcome.findings:
            say(f"FOUND with seed {seed}: {finding}")
        whole.add(outcome)
        seed, left = seed + 1, left - _A_LIFE
    took = time.monotonic() - began
    again = f"python -m testbed.campaign --faults {options.faults} --seed {options.seed}"
    text = report.table(whole, command=again, took=took)
    print(text)
    if options.report is not None:
        report.write(options.report, text)
    return 1 if whole.findings else 0


if __name__ == "__main__":
    sys.exit(main())
