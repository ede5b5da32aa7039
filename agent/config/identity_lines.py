"""The text of a configuration whose key moved into a credential: the lines of [identity] change, and nothing else.

Pure. A text that is not written line by line is not touched, but refused: it is the operator's.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from agent.config.toml_lines import line_of, scan
from agent.config.toml_text import quoted
from agent.errors import ConfigError, Problem

_VALUE = r"""("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\})"""


def with_credential(text: str, *, file: Path, name: str, did: str) -> str:
    """``text`` with ``key = "credential:NAME"``, without passphrase, with ``did``. Raises ConfigError."""
    wanted = tomllib.loads(text)
    wanted["identity"] = {"key": f"credential:{name}", "did": did}
    places = scan(text)
    lines: list[str | None] = [*text.split("\n")]
    at = line_of(places, ("identity", "key"))
    indent = ""
    for key, value in (("key", quoted(f"credential:{name}")), ("passphrase", None), ("did", quoted(did))):
        number = places.get(("identity", key))
        if number is None:
            continue
        found = re.match(rf"([ \t]*)({key}[ \t]*=[ \t]*){_VALUE}(.*)$", lines[number - 1] or "", re.DOTALL)
        if found is None:
            continue
        if number == at:
            indent = found[1]
        lines[number - 1] = None if value is None else f"{found[1]}{found[2]}{value}{found[4]}"
    if at and ("identity", "did") not in places:
        lines.insert(at, f"{indent}did = {quoted(did)}")
    changed = "\n".join(line for line in lines if line is not None)
    try:
        if tomllib.loads(changed) == wanted:
            return changed
    except tomllib.TOMLDecodeError:
        pass
    what = "the key's place is not written on a line of its own, so no command changes it"
    remedy = "write below [identity] each key on a line of its own, then give the command again"
    raise ConfigError([Problem(str(file), at, "identity.key", what, remedy)])
