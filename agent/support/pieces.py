"""What a supporter needs, a file each. Each is text that anybody may read who may read the log.

Not in it, whatever happens: keys, secrets, the configuration as it is written (comments hold passwords, too), the
evidence in the outboxes, a value of a device.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import anyio

from agent import __version__
from agent.commands import check
from agent.commands.doctor import as_json
from agent.config import Config
from agent.config.shown import as_file
from agent.config.toml_text import toml_text
from agent.doctor.case import Case
from agent.doctor.finding import Finding, lines
from agent.doctor.service import journal, unit_facts
from agent.errors import EvidenceError, OutboxError
from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.foresight.prospect import prospect
from agent.model import Data
from agent.outbox.look import look, records
from agent.rendering.words import kind_name, moment

LOG_LINES = 2000
_NEWEST = 1000  # records that are counted
_LIBRARIES = "dataexchange-edge-agent"

Piece = Callable[[], str]


def pieces(case: Case, findings: list[Finding]) -> dict[str, tuple[str, Piece]]:
    """By the name of the file: what it is, and what makes it, which may block and raise."""
    found: dict[str, tuple[str, Piece]] = {
        "doctor.txt": ("what `edge-agent doctor` found", lambda: "\n".join(lines(findings))),
        "doctor.json": ("the same for programs", lambda: _json(as_json(findings))),
        "versions.json": ("agent, Python, libraries, kernel, distribution", _versions),
        "status.json": (
            "what the running agent says (`edge-agent status --json`): states and counters",
            lambda: _status(case),
        ),
        "unit.txt": ("what systemd says of the service", _unit),
        "journal.txt": (f"the last {LOG_LINES} lines of its log", _journal),
        "machine.txt": ("memory, load, uptime", _machine),
        "files.txt": ("the files of the state folder: names, sizes, owners", lambda: _files(case.agent.state)),
    }
    if case.config is None:
        found["configuration.txt"] = ("what is wrong with the configuration", lambda: _problems(case))
        return found
    config = case.config
    found["configuration.toml"] = (
        "the configuration in force with all defaults (`edge-agent config show`): secrets as references only",
        lambda: toml_text(as_file(config)),
    )
    found["check.txt"] = ("what `edge-agent check` says: bytes a day, outbox days", lambda: _check(config))
    found["outbox.json"] = (
        "how each outbox stands, and its newest records counted by kind; no values",
        lambda: _json([_outbox(config, channel.id) for channel in config.channels]),
    )
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _versions() -> str:
    libraries = {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return _json(
        {
            "agent": __version__,
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "system": release.get("PRETTY_NAME", ""),
            "libraries": dict(sorted(libraries.items())),
        }
    )


def _status(case: Case) -> str:
    return _json(case.status if case.status is not None else {"silence": case.silence, "hint": case.hint})


def _unit() -> str:
    found = unit_facts()
    return "\n".join(f"{key}={value}" for key, value in found.items()) or "systemd does not run here"


def _journal() -> str:
    found = journal(f"--lines={LOG_LINES}", "--output=short-iso-precise", "--no-hostname")
    return "\n".join(found) if found is not None else "there is no journal, or this user may not read it (sudo)"


def _machine() -> str:
    told = [f"{name}\n{(Path('/proc') / name).read_text()}" for name in ("uptime", "loadavg", "meminfo")]
    return "\n".join(told)


def _files(folder: Path) -> str:
    def rows() -> Iterator[str]:
        for path in sorted(folder.iterdir()):
            status = path.lstat()
            owner = f"{status.st_uid:6} {status.st_gid:6}"
            changed = moment(status.st_mtime_ns)
            yield f"{stat.filemode(status.st_mode)} {owner} {status.st_size:12} {changed} {path.name}"

    return "\n".join([str(folder), *rows()])


def _problems(case: Case) -> str:
    return "\n".join([case.unread, *map(str, case.problems)]).strip()


def _check(config: Config) -> str:
    return "\n".join(check.lines(config, anyio.run(prospect, config)))


def _outbox(config: Config, channel: str) -> Mapping[str, Any]:
    path = config.agent.state / f"{channel}.ring"
    try:
        standing = look(path, channel=channel)
        with closing(records(path, channel=channel, newest=_NEWEST)) as found:
            newest = [_record(stored.envelope) for stored in found]
    except OutboxError as error:
        return {"channel": channel, "error": str(error), "hint": error.hint}
    kinds = Counter(each["kind"] for each in newest)
    runs = dict.fromkeys(each["run"] for each in newest if "run" in each)
    return {
        "channel": channel,
        "size_configured": _configured(config, channel),
        **asdict(standing),
        "counted": {
            "records": len(newest),
            "kinds": dict(kinds),
            "frames": sum(each.get("frames", 0) for each in newest),
            "gaps": sum(each.get("gaps", 0) for each in newest),
            "bytes": sum(each["bytes"] for each in newest),
            "runs": list(runs),
        },
        "first": newest[0] if newest else None,
        "last": newest[-1] if newest else None,
    }


def _configured(config: Config, channel: str) -> int:
    return next(each.outbox.size for each in config.channels if each.id == channel)


def _record(envelope: bytes) -> dict[str, Any]:
    """What a record is, and nothing of what was measured."""
    row: dict[str, Any] = {"bytes": len(envelope), "kind": "not readable"}
    try:
        opened = unpack(envelope)
        head = decode_head(opened.payload)
        row |= {"run": head.link.stream.hex(), "seq": head.link.seq, "did": opened.did}
        record = decode_record(head, None)
    except EvidenceError:
        return row
    row |= {"kind": str(kind_name(record.kind)), "sealed": moment(record.sealed.wall)}
    if isinstance(record.body, Data):
        row |= {"frames": len(record.body.frames), "gaps": len(record.body.gaps)}
    return row


def readme(contents: Mapping[str, str], *, host: str, made: float) -> str:
    """The first file: what the others are."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
    rows = [f"  {name:20} {what}" for name, what in contents.items()]
    return "\n".join(
        [
            f"Made by edge-agent {__version__} on {host} at {when}, for whoever helps with this box.",
            "",
            *rows,
            "",
            "Left out on purpose: keys, passwords, tokens and credentials; the configuration as it is written, for",
            "its comments may hold some, too; the evidence in the outboxes, and every value of a device. What looks",
            "like a secret is replaced by (masked). It does hold names of sites, devices, points, hosts and users,",
            "and addresses: look through it before you send it.",
            "",
        ]
    )
