"""The running agent: does it answer, is it the installed version, does it stay up, and what does it say is wrong."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.control.status_text import age, size
from agent.doctor.finding import Finding, fault, note, ok, warning

UNIT = "edge-agent.service"
_ASKED = (
    *("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "ExecMainStatus", "UnitFileState"),
    *("NeedDaemonReload", "User", "MemoryMax", "ActiveEnterTimestampMonotonic"),
)
_WITHIN = 5.0  # s, for systemctl and journalctl
_OFTEN = 3  # restarts
_YOUNG = 600.0  # s
_FEW_FILES = 256
_FULL = 0.8
_CONFIGURATION = "78"
_UP = ("active", "reloading")
_LOG_LINE = re.compile(r" ?[\w.]+=.*", re.DOTALL)

Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """``status``: what the agent says (agent/control/answers.py), None if it does not: ``silence`` says why, ``hint``
    what to do, ``denied`` whether it is that we may not ask, ``hangs`` that it does not answer. ``unit``: what systemd
    says of ours, {} without it. ``errors``: lines of its log of the last day that are errors, None if we may not see
    them. ``memory``: bytes that the process has, ``files``: how many it may open; None: not seen.
    """

    installed: str
    status: Table | None
    silence: str = ""
    hint: str = ""
    unit: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[str] | None = None
    memory: int | None = None
    files: int | None = None
    up: float = 0.0  # s since the machine started
    denied: bool = False
    hangs: bool = False


def look(
    installed: str,
    status: Table | None,
    silence: str,
    hint: str,
    *,
    denied: bool = False,
    hangs: bool = False,
    proc: Path = Path("/proc"),
) -> ServiceFacts:
    """Blocks."""
    unit, memory, files, up = unit_facts(), None, None, 0.0
    process = proc / str((status or {}).get("pid", "none"))
    with suppress(OSError, ValueError, StopIteration):
        lines = (process / "status").read_text().splitlines()
        memory = 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])
    with suppress(OSError, ValueError, StopIteration):
        lines = (process / "limits").read_text().splitlines()
        soft = next(line for line in lines if line.startswith("Max open files")).split()[3]
        files = None if soft == "unlimited" else int(soft)
    with suppress(OSError, ValueError):
        up = float((proc / "uptime").read_text().split()[0])
    errors = journal("--priority=err", "--since=-1d", "--lines=200", "--output=cat") if unit else None
    return ServiceFacts(installed, status, silence, hint, unit, errors, memory, files, up, denied, hangs)


def unit_facts() -> dict[str, str]:
    """What systemd says of our unit; {}: it does not run here. Blocks."""
    told = _said("systemctl", "show", UNIT, f"--property={','.join(_ASKED)}")
    found = dict(line.partition("=")[::2] for line in told or ())
    return found if found.get("LoadState") else {}


def journal(*options: str) -> list[str] | None:
    """Lines of our unit's log, oldest first; None: there is no journal, or we may not read it. Blocks."""
    return _said("journalctl", f"--unit={UNIT}", "--no-pager", "--quiet", *options)


def _said(*command: str) -> list[str] | None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SYSTEMD_PAGER": ""}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").splitlines() if done.returncode == 0 else None


def judge(facts: ServiceFacts) -> Iterator[Finding]:
    """What is to be said of it."""
    yield from _answers(facts)
    yield from _unit(facts)
    yield from _process(facts)
    if facts.status is not None:
        yield from _told(facts.status)
    if facts.errors:
        counts = Counter(_LOG_LINE.sub("", line).strip() for line in facts.errors)
        often = "; ".join(f"{line} ({count} times)" for line, count in counts.most_common(5))
        why = "errors cost data, or soon will"
        remedy = f"docs/operating.md, the log, says what each means: journalctl -u {UNIT} -p err --since -1d"
        yield warning("log", f"errors within a day: {often}", why=why, remedy=remedy, looked_at="journalctl")
    elif facts.errors is not None:
        yield ok("log", "no error within a day", looked_at="journalctl")


def _answers(facts: ServiceFacts) -> Iterator[Finding]:
    active = facts.unit.get("ActiveState") in _UP
    at = "the agent's socket"
    if facts.status is None:
        if facts.denied:
            yield note("agent", facts.silence, why="how it is was not seen", remedy=facts.hint, looked_at=at)
        elif active:
            why = "it may hang, or the configuration names another socket"
            remedy = facts.hint or f"journalctl -u {UNIT} -n 50"
            yield fault("agent", f"systemd runs it, and {facts.silence}", why=why, remedy=remedy, looked_at=at)
        elif facts.hangs:
            why = "its loop hangs, or its machine is overloaded"
            remedy = "restart it; if it comes again, keep its log and report it"
            yield fault("agent", facts.silence, why=why, remedy=remedy, looked_at=at)
        elif not facts.unit:
            why = "nothing is read or sent while it does not run"
            yield note("agent", facts.silence, why=why, remedy=facts.hint, looked_at=at)
        return
    version = str(facts.status.get("version", ""))
    if version != facts.installed:
        why = "an update takes effect at the next start"
        found = f"version {version} runs, and {facts.installed} is installed"
        yield warning("agent", found, why=why, remedy="systemctl restart edge-agent", looked_at=at)
        return
    up = age(facts.status.get("uptime_s"))
    yield ok("agent", f"version {version} runs, up {up}, as {facts.status.get('did', '-')}", looked_at=at)


def _unit(facts: ServiceFacts) -> Iterator[Finding]:
    unit, at = facts.unit, "systemctl show"
    if not unit:
        return
    if unit["LoadState"] != "loaded":
        why = "nothing starts the agent at boot, or again after a failure"
        remedy = "docs/operating.md, install; nothing, where something else starts it"
        yield note("service", f"systemd knows no {UNIT}", why=why, remedy=remedy, looked_at=at)
        return
    state, code = unit.get("ActiveState", ""), unit.get("ExecMainStatus", "")
    log = f"journalctl -u {UNIT} -n 50"
    if state not in _UP:
        found = f"it is {state} ({unit.get('SubState', '')}); the last exit code was {code}"
        remedy = f"edge-agent check, mend it, then systemctl start {UNIT}" if code == _CONFIGURATION else log
        if state == "inactive" and code == "0":
            remedy = f"systemctl start {UNIT}"
        yield fault("service", found, why="nothing is read or sent", remedy=remedy, looked_at=at)
    restarts = int(unit["NRestarts"]) if unit.get("NRestarts", "").isdigit() else 0
    entered = unit.get("ActiveEnterTimestampMonotonic", "")
    young = entered.isdigit() and facts.up and facts.up - int(entered) / 1e6 < _YOUNG
    if restarts >= _OFTEN and (young or state not in _UP):
        found = f"it ended by itself {restarts} times and was started again, the last time within ten minutes"
        why = "each end loses what was not sealed yet, and it does not get better by itself"
        yield fault("service", found, why=why, remedy=log, looked_at=at)
    elif restarts:
        why = "it was started again each time; each end loses what was not sealed yet"
        found = f"it ended by itself {restarts} times since it was started by hand or at boot"
        yield note("service", found, why=why, remedy=f"journalctl -u {UNIT} -p err", looked_at=at)
    elif state in _UP:
        yield ok("service", "active, and never restarted by itself", looked_at=at)
    if unit.get("UnitFileState") in ("disabled", "masked"):
        why = "after the next boot nothing is read"
        yield warning("service", "it does not start at boot", why=why, remedy=f"systemctl enable {UNIT}", looked_at=at)
    if unit.get("NeedDaemonReload") == "yes":
        why = "systemd uses the old one"
        remedy = "systemctl daemon-reload; systemctl restart edge-agent"
        yield warning("service", "its unit file was changed", why=why, remedy=remedy, looked_at=at)


def _process(facts: ServiceFacts) -> Iterator[Finding]:
    most = facts.unit.get("MemoryMax", "")
    if facts.memory is not None and most.isdigit() and facts.memory > _FULL * int(most):
        found = f"the agent has {size(facts.memory)} of the {size(int(most))} that it may have"
        why = "systemd ends it when it has more"
        remedy = "systemctl edit edge-agent: a higher MemoryMax; if it grows on, report it"
        yield warning("agent", found, why=why, remedy=remedy, looked_at="/proc")
    if facts.files is not None and facts.files < _FEW_FILES:
        found = f"it may open {facts.files} files"
        why = "each connection takes one"
        remedy = "systemctl edit edge-agent: LimitNOFILE=1024"
        yield warning("agent", found, why=why, remedy=remedy, looked_at="/proc")


def _told(status: Table) -> Iterator[Finding]:
    """What the agent itself says that does not work."""
    at = "edge-agent status"
    for channel in _tables(status, "channels"):
        about, reason = f"channel {channel.get('id', '-')}", channel.get("state") or "no reason given"
        if channel.get("connected") is False:
            why = "records wait in the outbox"
            remedy = "docs/operating.md, the broker is away, or refuses records"
            yield fault(about, f"not delivered: {reason}", why=why, remedy=remedy, looked_at=at)
        outbox = channel.get("outbox")
        if isinstance(outbox, Mapping) and outbox.get("state", "ok") != "ok":
            found = f"its outbox is in the state {outbox.get('state')}: {outbox.get('trouble') or 'no reason given'}"
            remedy = "docs/operating.md, the disk fails, or the outbox is full"
            yield fault(about, found, why="readings are not stored, or wait", remedy=remedy, looked_at=at)
        for key, words in (("dropped", "records dropped"), ("not_stored", "readings not stored")):
            if channel.get(key):
                why = "they are stated in the data, and gone"
                remedy = "docs/operating.md, the outbox is full, or the disk fails"
                yield warning(about, f"{channel[key]} {words} since its start", why=why, remedy=remedy, looked_at=at)
    failing = [
        (f"{device.get('id', '-')}/{group.get('name', '-')}", group)
        for device in _tables(status, "devices")
        for group in _tables(device, "groups")
        if group.get("state") not in ("ok", None)
    ]
    for name, group in failing:
        found = f"{group.get('state')} for {age(group.get('since_s'))}: {group.get('detail') or 'no reason given'}"
        remedy = "docs/operating.md, a device does not answer"
        yield fault(f"group {name}", found, why="each reading is a gap", remedy=remedy, looked_at=at)
    for each in _tables(status, "connections"):
        if each.get("state") not in ("connected", "ok", None):
            found = f"{each.get('state')}: {each.get('detail') or 'no reason given'}"
            remedy = "docs/operating.md, a device does not answer"
            why = "no message comes, and that is a gap"
            yield fault(f"connection {each.get('name', '-')}", found, why=why, remedy=remedy, looked_at=at)


def _tables(table: Table, key: str) -> list[Table]:
    value = table.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
