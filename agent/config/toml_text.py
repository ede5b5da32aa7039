"""TOML from plain values, as ``config show`` prints it: what tomllib reads from it is what was given.

Pure. Tables of the top level and below become ``[tables]``, lists of tables of the top level ``[[tables]]``, everything
deeper in a list stays on one line. There is no null in TOML: what is None is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(table: Mapping[str, Any]) -> str:
    """The text of a whole file."""
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def quoted(text: str) -> str:
    """A basic string of TOML; JSON escapes the same characters, and DEL, which TOML wants escaped, does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Values first: what follows a header belongs to it."""
    inner = {key: value for key, value in table.items() if _is_table(value) or (not path and _is_tables(value))}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        name = ".".join(map(_key, (*path, key)))
        for each in [value] if _is_table(value) else value:
            header = f"[{name}]" if _is_table(value) else f"[[{name}]]"
            # The header of a table that holds tables only says nothing; an empty table's says that it is there.
            if header.startswith("[[") or not each or not all(map(_is_table, each.values())):
                yield ""
                yield header
            yield from _lines(each, (*path, key))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items() if each is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if _is_tables(value):
        return "[\n" + "".join(f"  {_value(each)},\n" for each in value) + "]"
    return f"[{', '.join(map(_value, value))}]"
