"""The demo: a Modbus device, an MQTT battery, the agent, a broker and a consumer, as separate processes; an outage; and
a verdict.

The broker is a NATS server, or with ``--ddhub`` Energy Web's Data Hub as testbed/ddhub has it. Half-way it is killed
with SIGKILL and started again. At the end the oracle holds what the consumer verified against what the devices served
and published. The exit code is 0 only if nothing failed, every cycle and message is present or in a stated gap, and
every value is right. Ctrl-C ends it with the verdict, a second one at once and without.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from testbed.account import Account
from testbed.child import ROOT
from testbed.demo_ddhub import DataHubEnd
from testbed.demo_nats import NatsEnd
from testbed.demo_run import Demo, Interrupted
from testbed.served import Json

_SHORTEST = 5.0
_FOLDERS = ROOT / ".demo"


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="./demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--for", dest="seconds", type=float, metavar="S", help="end after S seconds (without: at Ctrl-C)"
    )
    parser.add_argument("--ddhub", action="store_true", help="over a Data Hub, encrypted, in place of NATS")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on the last line")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, journal, outbox and evidence")
    options = parser.parse_args()
    if options.seconds is not None and options.seconds < _SHORTEST:
        parser.error(f"--for needs at least {_SHORTEST:g} seconds: there is an outage to show")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    _FOLDERS.mkdir(exist_ok=True)
    sweep(_FOLDERS)
    folder = Path(tempfile.mkdtemp(dir=_FOLDERS, prefix=f"{os.getpid()}."))
    demo = Demo(folder, DataHubEnd if options.ddhub else NatsEnd, seconds=options.seconds)
    code, keep = 130, options.keep
    try:
        account, report = demo.run()
        code = 0 if account.good else 1
        keep = keep or bool(code)
        _print_summary(account, report)
        if options.json:
            print(json.dumps({**asdict(account), "good": account.good, "levels": report["levels"]}), flush=True)
    except Interrupted:
        print("demo: ended before there was a verdict", file=sys.stderr)
    except BrokenPipeError:  # `./demo | head`
        code = 128 + signal.SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001  # whatever it is: say it, and where to look
        code, keep = 1, True
        print(f"demo: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # what is left takes no time
        for process in demo.processes:
            process.kill()
        if keep:
            folder = folder.rename(folder.with_name(f"kept-{folder.name}"))
            print(f"demo: logs, journal and evidence are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def sweep(folders: Path) -> None:
    """Remove what demos left that were killed: folders named by a process that is no more. What is kept has another
    name.
    """
    for folder in folders.iterdir():
        owner = re.fullmatch(r"([0-9]+)(\.\w+)?", folder.name)
        if owner and not Path("/proc", owner[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _interrupt(*_: object) -> None:
    raise Interrupted


def _print_summary(account: Account, report: Json) -> None:
    print()
    for problem in account.problems:
        print(f"PROBLEM {problem}")
    for group in (group for channel in report["channels"] for group in channel["groups"]):
        causes = ", ".join(f"{n} {cause}" for cause, n in group["gaps"].items()) or "no gaps"
        print(f"{group['device']}/{group['group']}: {group['present']} of {group['expected']} cycles, {causes}")
    print(
        f"devices' journals: {account.values_checked} values held against them, "
        f"{account.values_wrong} wrong, {account.reads_lost} reads lost"
    )
    delivered, doubled = account.messages_delivered, account.messages_doubled
    print(f"battery's journal: {delivered} messages delivered, {doubled} of them twice, {account.messages_lost} lost")
    levels = ", ".join(f"{name} {report['levels'][name]}" for name in ("signature", "continuity", "completeness"))
    print(
        f"verified {account.records} records, {account.frames} frames, {account.failed} failed: {levels} "
        f"({account.cycles_present} of {account.cycles_expected} cycles, {account.cycles_in_gaps} in gaps)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
