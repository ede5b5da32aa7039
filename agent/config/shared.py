"""What connections, and the devices of one connection, cannot share with each other: an adapter's models may tell.

Both are optional methods (docs/adapters.md): ``exclusive`` of a connection's model, ``judge_together`` of a device's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.config.problems import Findings
from agent.config.toml_lines import Key

Where = Mapping[tuple[str, str], tuple[Findings, Key]]
"""Of ("connection", name) and ("device", id): the file's findings, and where it stands there."""


def judge_shared(connections: Mapping[str, Any], devices: Sequence[Any], where: Where) -> None:
    """Note what cannot stand together of connections and devices that are good by themselves."""
    holders: dict[str, str] = {}
    for name, connection in connections.items():
        findings, at = where["connection", name]
        held = None
        with findings.guarded(at):
            held = connection.exclusive(name) if hasattr(connection, "exclusive") else None
        if held is not None and (other := holders.setdefault(held, name)) != name:
            findings.add(at, f'{held} is that of connection "{other}", too', "give each its own")
    for name in connections:
        here = [device for device in devices if device.connection == name]
        if not here or not hasattr(here[0], "judge_together"):
            continue
        findings, at = where["connection", name]
        with findings.guarded(at):
            for index, key, problem in type(here[0]).judge_together(here):
                findings, at = where["device", here[index].id]
                findings.add_error((*at, *key), ValueError(problem))
