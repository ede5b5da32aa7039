"""How much is logged: one level for all, or a table with levels of single parts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

LEVELS = ("debug", "info", "warning", "error")
DEFAULT = "default"
_PART = re.compile(r"(agent|adapters)(\.[a-z][a-z0-9_]*)*")
_ROOT = Path(__file__).resolve().parent.parent.parent  # of both packages
_REMEDY = 'write "info", or { default = "info", "adapters.modbus" = "debug" }'


def parse(value: Any) -> Mapping[str, str]:
    """Levels by part, ``default`` among them. Raises ValueError."""
    if isinstance(value, str):
        value = {DEFAULT: value}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a level, or levels by part; {_REMEDY}")
    for part, level in value.items():
        if level not in LEVELS:
            raise ValueError(f'"{str(level)[:40]}" is not possible; choose "debug", "info", "warning" or "error"')
        if part != DEFAULT and not _is_part(part):
            raise ValueError(f'the agent has no part "{part[:60]}"; name a folder or module, like "adapters.modbus"')
    return {DEFAULT: "info", **value}


def _is_part(name: str) -> bool:
    path = _ROOT.joinpath(*name.split("."))
    return bool(_PART.fullmatch(name)) and (path.is_dir() or path.with_suffix(".py").is_file())


def text(levels: Mapping[str, str]) -> str:
    """For people: ``info``, or ``info, adapters.modbus debug``."""
    rest = [f"{part} {level}" for part, level in sorted(levels.items()) if part != DEFAULT]
    return ", ".join([levels[DEFAULT], *rest])


def _plain(levels: Mapping[str, str]) -> str | dict[str, str]:
    return levels[DEFAULT] if len(levels) == 1 else dict(levels)


Levels = Annotated[
    Mapping[str, str],
    PlainValidator(parse),
    PlainSerializer(_plain, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(LEVELS), "type": "string"},
                {"type": "object", "additionalProperties": {"enum": list(LEVELS), "type": "string"}},
            ]
        }
    ),
]
"""Levels by part of the agent, ``default`` for the rest."""
