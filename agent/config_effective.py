"""The configuration in force: what ``agent.config.load`` hands to the rest of the agent.

Everything in it was judged: references hold, defaults are filled in, durations are ns, sizes bytes, and paths absolute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent.config_tables import Agent, Identity, Outbox, Site
from agent.ports import DeviceSelection


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A connection and what is read through it; ``class_path`` is for agent.kinds.load."""

    name: str
    class_path: str
    connection: Any  # the adapter's connection_model
    devices: tuple[DeviceSelection, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """Where records go. ``settings`` is the transport's own model, ``topic`` what it makes of the ids."""

    id: str
    transport: str  # class path, for agent.kinds.load
    settings: Any
    topic: str
    send: tuple[str, ...]
    seal_within: int  # ns
    outbox: Outbox


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that is good throughout. ``path`` is the file as it was named."""

    path: Path
    site: Site
    identity: Identity
    agent: Agent
    channel: Channel
    plans: tuple[AdapterPlan, ...]

    def adapters(self) -> list[AdapterPlan]:
        """The connections through which something is read that a channel sends."""
        return [plan for plan in self.plans if plan.devices]

    def digest_text(self) -> bytes:
        """The effective configuration as canonical JSON, for an HMAC.

        Defaults are filled in and keys sorted; comments and the order of devices do not count, nor do devices of
        which nothing is sent.
        """
        return json.dumps(
            {
                "site": _plain(self.site),
                "identity": _plain(self.identity),
                "agent": _plain(self.agent),
                "channel": {
                    "id": self.channel.id,
                    "transport": self.channel.transport,
                    "settings": _plain(self.channel.settings),
                    "send": sorted(self.channel.send),
                    "seal_within": self.channel.seal_within,
                    "outbox": _plain(self.channel.outbox),
                },
                "connection": {
                    plan.name: {
                        "kind": plan.class_path,
                        "settings": _plain(plan.connection),
                        "devices": {
                            device.config.id: {"settings": _plain(device.config), "groups": device.groups}
                            for device in plan.devices
                        },
                    }
                    for plan in self.plans
                },
            },
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()


def _plain(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def selection(device: Any, patterns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each group of a device the points that a pattern names, groups without any left out."""
    chosen = {}
    for group in device.groups:
        points = tuple(
            point
            for point in device.point_names(group)
            if any(fnmatchcase(f"{device.id}/{group}/{point}", pattern) for pattern in patterns)
        )
        if points:
            chosen[group] = points
    return chosen
