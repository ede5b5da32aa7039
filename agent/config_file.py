"""The file of a configuration: from bytes to TOML's own types, with the line of every key.

Windows line ends and a byte order mark are accepted. Whatever keeps the file from being read as TOML is one problem and
the only one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from agent.config_problems import Findings
from agent.errors import ConfigError, Problem
from agent.toml_lines import scan

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column [0-9]+|end of document)\)$")


def read(path: Path) -> tuple[dict[str, Any], Findings]:
    """The parsed file, and where to note what is wrong with it. Raises ConfigError, PermissionError."""
    text = _text(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(path, text, str(error))]) from error
    except RecursionError:
        raise ConfigError(
            [Problem(str(path), 0, "", "arrays or tables are nested too deeply", "write it flatter")]
        ) from None
    return raw, Findings(file=str(path), lines=scan(text))


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except PermissionError:
        raise  # not the configuration's fault: another exit code
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(str(path), 0, "", what, "name a file that the agent's user may read")]) from error
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
