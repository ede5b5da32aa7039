"""The files of a configuration: from bytes to TOML's own types, with the line of every key.

Windows line ends and a byte order mark are accepted. Whatever keeps a file from being read as TOML is one problem and
the only one of that file. ``include`` names further files, which are read like the first; one that cannot be read does
not hide what is wrong with the others.
"""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config.problems import Findings
from agent.config.toml_lines import Key, scan
from agent.errors import ConfigError, Problem

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column [0-9]+|end of document)\)$")
_MAGIC = re.compile(r"[*?[]")
_MISSING = "is the path right? `edge-agent init` makes a first one"
_READABLE = "name a file that the agent's user may read"
_DEEPEST = 64  # tables and arrays within each other
_MOST = (1 << 63) - 1
_ENDLESS = re.compile(r"(?<![0-9A-Za-z_.])[0-9][0-9_]{4000,}")
_TOO_LARGE = ("a whole number has 64 bits at most", "write fewer digits, or a fraction such as 1e30")
_INCLUDE = 'write it like ["conf.d/*.toml"]'


@dataclass(frozen=True, slots=True)
class Source:
    """A file, what it holds, and where to note what is wrong with it.

    ``whole`` False: it could not be read; ``raw`` is empty, and what it would have held is not known.
    """

    path: Path
    raw: dict[str, Any]
    findings: Findings
    whole: bool = True

    @property
    def context(self) -> dict[str, Path]:
        """For the validation of its tables: relative paths start at its folder."""
        return {"folder": self.path.absolute().parent}


def read(path: Path) -> Source:
    """The parsed file. Raises ConfigError, PermissionError."""
    text = _text(path)
    findings = Findings(file=str(path), lines={})
    try:
        raw = tomllib.loads(text)
        findings.lines = scan(text)
        raw = _within_bounds(raw, (), findings)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(path, text, str(error))]) from error
    except RecursionError:
        raise ConfigError(
            [Problem(str(path), 0, "", "arrays or tables are nested too deeply", "write it flatter")]
        ) from None
    except ValueError as error:  # Python converts no integer of thousands of digits
        digits = _ENDLESS.search(text)
        line = 0 if digits is None else text.count("\n", 0, digits.start()) + 1
        raise ConfigError([Problem(str(path), line, "", *_TOO_LARGE)]) from error
    return Source(path, raw, findings)


def _within_bounds(value: Any, at: Key, findings: Findings) -> Any:
    """What was read, with integers of 64 bits: a larger one is noted, and the nearest of these stands in its place, so
    that the rest is judged. Raises RecursionError far from where Python does. Nothing behind this has to think of
    integers that no float and no text can hold, and of values that are deeper than its stack.
    """
    if len(at) > _DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        return {name: _within_bounds(each, (*at, name), findings) for name, each in value.items()}
    if isinstance(value, list):
        return [_within_bounds(each, (*at, index), findings) for index, each in enumerate(value)]
    if type(value) is int and not -_MOST - 1 <= value <= _MOST:
        findings.add(at, *_TOO_LARGE)
        return max(-_MOST - 1, min(value, _MOST))
    return value


def included(main: Source) -> list[Source]:
    """The files that ``include`` names, in its order, those of a pattern sorted; what is wrong with it is noted."""
    seen = {os.path.realpath(main.path): "this file itself"}
    sources = []
    for key, name in _names(main):
        for path in _paths(main, key, name):
            real = os.path.realpath(path)  # which a loop of links does not disturb; reading it tells
            if real in seen:
                remedy = "leave it out" if _MAGIC.search(name) is None else "choose a pattern that leaves it out"
                main.findings.add(key, f'"{name}" names {path.name}, which is {seen[real]}', remedy)
                continue
            seen[real] = "included already"
            sources.append(_fragment(path))
    return sources


def _names(main: Source) -> Iterator[tuple[Key, str]]:
    named = main.raw.get("include", [])
    if not isinstance(named, list):
        main.findings.add(("include",), "expected a list", _INCLUDE)
        return
    for index, name in enumerate(named):
        if isinstance(name, str) and name and "\0" not in name:
            yield ("include", index), name
        else:
            main.findings.add(("include", index), "expected a path or a pattern in quotes", _INCLUDE)


def _paths(main: Source, key: Key, name: str) -> list[Path]:
    """The files of one entry of ``include``: a pattern may name none, a path must be there."""
    folder, magic = main.path.parent, _MAGIC.search(name)
    if magic is None:
        path = folder / name
        if not os.path.lexists(path):
            main.findings.add(key, f'there is no file "{name}"', "make it, correct the path, or leave it out")
            return []
        return [path]
    # A folder that may not be listed would look like one that holds nothing.
    listed = folder / Path(name[: magic.start()] + "x").parent
    try:
        os.scandir(listed).close()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        main.findings.add(key, f"the folder {listed} cannot be read: {error.strerror}", "let the agent's user list it")
        return []
    return [folder / found for found in sorted(glob.glob(name, root_dir=folder, recursive=True))]


def _fragment(path: Path) -> Source:
    """An included file, even if it cannot be read. A pipe would be waited for: a reload that hangs."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError([Problem(str(path), 0, "", "this is no file", _READABLE)])
        return read(path)
    except ConfigError as error:
        (problem,) = error.problems
    except PermissionError as error:
        problem = Problem(str(path), 0, "", f"cannot be read: {error.strerror}", _READABLE)
    findings = Findings(file=str(path), lines={})
    findings.add_unreadable(problem)
    return Source(path, {}, findings, whole=False)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except PermissionError:
        raise  # not the configuration's fault: another exit code
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        remedy = _MISSING if isinstance(error, FileNotFoundError) else _READABLE
        raise ConfigError([Problem(str(path), 0, "", what, remedy)]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, "", "the file is not UTF-8", "save it as UTF-8")]) from error


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    """tomllib puts the place at the end of its message."""
    place = _PLACE.search(message)
    what = message[: place.start()] if place else message
    line = int(place[1]) if place and place[1] else max(1, text.count("\n") + (not text.endswith("\n")))
    return Problem(
        str(path), line, "", f"not TOML: {what[:1].lower()}{what[1:]}", "correct this line or the one before it"
    )
