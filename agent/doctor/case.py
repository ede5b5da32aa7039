"""What is examined: a configuration as far as it can be read, and the agent that runs with it, if one does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.commands import NO_PERMISSION
from agent.config import Config, load
from agent.config.file import read
from agent.config.tables import Agent
from agent.control.client import ControlError, NotRunningError, asking
from agent.doctor.examination import SUDO, in_time
from agent.doctor.finding import Finding, fault, note, ok
from agent.errors import ConfigError, Problem

_LOAD_WITHIN, _STATUS_WITHIN = 10.0, 5.0  # s


@dataclass(frozen=True, slots=True)
class Case:
    """``config`` None: it is not good (``problems``), or cannot be read (``unread``: why). ``agent`` is its table of
    that name, the default where it cannot be told. ``status``: what the running agent says; None: ``silence`` says
    why it does not, ``hint`` what to do.
    """

    path: Path
    config: Config | None
    problems: tuple[Problem, ...]
    unread: str
    agent: Agent
    status: Mapping[str, Any] | None
    silence: str = ""
    hint: str = ""
    denied: bool = False  # it is that we may not ask
    hangs: bool = False  # it is that nobody answers where an agent listens


def take(path: Path) -> Case:
    """Read the configuration and ask the agent; returns within 20 s whatever hangs. Never raises for what it found."""
    config, problems, unread = None, tuple[Problem, ...](), ""
    try:
        config = in_time(_LOAD_WITHIN, lambda: load(path))
    except ConfigError as error:
        problems = error.problems
    except TimeoutError:
        unread = f"{path} cannot be read within {_LOAD_WITHIN:g} s"
    except OSError as error:
        unread = f"{error.filename or path}: {error.strerror}"
    except Exception as error:  # noqa: BLE001  # a defect, or a third party's: all else is looked at
        unread = f"{path} cannot be judged: {type(error).__name__}"
    agent = config.agent if config is not None else _table(path)
    if agent.socket is None:
        return Case(path, config, problems, unread, agent, None, "it has no socket to be asked at", "set agent.socket")
    found = Case(path, config, problems, unread, agent, None)
    status, silence, hint = None, "the agent's answer cannot be understood", ""
    try:
        status = in_time(2 * _STATUS_WITHIN, partial(_asked, agent.socket))
    except NotRunningError as error:
        return replace(found, silence=str(error), hint="systemctl start edge-agent")
    except ControlError as error:
        if error.code == NO_PERMISSION:
            return replace(found, silence=str(error), hint=error.hint, denied=True)
        silence, hint = str(error), error.hint
    except OSError as error:
        silence, hint = f"the agent does not answer: {error.strerror or 'no answer in time'}", "its log may say why"
    if status is None:
        return replace(found, silence=silence, hint=hint, hangs=True)
    return replace(found, status=status)


def _table(path: Path) -> Agent:
    """The table of the agent in a file that is not good; what of it cannot be told is as by default."""

    def judged() -> Agent | None:
        source = read(path)
        table = source.raw.get("agent", {})
        if not isinstance(table, dict):
            return None
        wanted = {key: table[key] for key in ("state", "socket") if key in table}
        return source.findings.judge(Agent, wanted, at=("agent",), context=source.context)

    try:
        found = in_time(_LOAD_WITHIN, judged)
    except Exception:  # noqa: BLE001  # told by then
        found = None
    return Agent() if found is None else found


def _asked(socket: Path) -> Mapping[str, Any] | None:
    """Its status, if that is what it says. Raises ControlError, OSError."""
    with asking(socket, "status", within=_STATUS_WITHIN) as lines:
        found = next(lines, None)
        return found if isinstance(found, Mapping) else None


def judge(case: Case) -> Iterator[Finding]:
    """What is to be said of the configuration."""
    about, at = "configuration", str(case.path)
    if case.unread:
        why = "what it names was not looked at, and the usual places were"
        yield note(about, case.unread, why=why, remedy=SUDO, looked_at=at)
    for problem in case.problems:
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        key = f"{problem.key}: " if problem.key else ""
        why = "a start refuses it, and so does a reload; an agent that runs goes on with the old one"
        yield fault(about, f"{place}: {key}{problem.what}", why=why, remedy=problem.remedy, looked_at=at)
    if case.config is not None:
        yield ok(about, f"{case.path} is good", looked_at=at)
    running = str((case.status or {}).get("config", case.path))
    if Path(running).absolute() != case.path.absolute():
        why = "what is found here may not be what it does"
        remedy = f"edge-agent doctor --config {running}"
        yield note(about, f"the agent that runs reads {running}", why=why, remedy=remedy, looked_at=at)
