"""The configuration in force: what ``agent.config.load`` hands to the rest of the agent.

Everything in it was judged: references hold, defaults are filled in, durations are ns, sizes bytes, and paths absolute.
As text (``plain``, ``digest_text``) durations and sizes are written as in the file, and a secret is what refers to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent import kinds
from agent.config.problems import Place
from agent.config.selection import Selection
from agent.config.tables import Agent, ClockTable, Drain, Identity, Outbox, Site
from agent.errors import ConfigError
from agent.evidence.timetable import spread
from agent.ports import Clock, DeviceSelection


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A connection and what is read through it; ``class_path`` is for agent.kinds.load."""

    name: str
    class_path: str
    connection: Any  # the adapter's connection_model
    devices: tuple[DeviceSelection, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """Where records go. ``settings`` is the transport's own model, ``topic`` what it makes of the ids.

    ``selection``: of each device and group the points that ``send`` names, in the device's order. ``seal_within``, and
    ``seal_within_away`` while the broker is: in ns.
    """

    id: str
    transport: str  # class path, for agent.kinds.load
    settings: Any
    topic: str
    send: tuple[str, ...]
    seal_within: int
    seal_within_away: int
    outbox: Outbox
    selection: Selection
    drain: Drain = field(default_factory=Drain)

    @property
    def longest_window(self) -> int:
        """How long a value waits at most until it is signed and on disk, in ns."""
        return max(self.seal_within, self.seal_within_away)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that is good throughout.

    ``path`` is the file as it was named, ``files`` the same and those that it includes, ``devices`` all devices, also
    those of which nothing is sent. ``places``: where ("channel", ID), its "outbox", ("group", DEVICE, GROUP) and
    single keys of the agent stand.
    """

    path: Path
    site: Site
    identity: Identity
    clock: ClockTable
    agent: Agent
    channels: tuple[Channel, ...]
    plans: tuple[AdapterPlan, ...]
    files: tuple[Path, ...] = ()
    devices: tuple[Any, ...] = ()
    places: Mapping[tuple[str, ...], Place] = field(default_factory=dict, compare=False)

    def adapters(self) -> list[AdapterPlan]:
        """The connections through which something is read that a channel sends."""
        return [plan for plan in self.plans if plan.devices]

    def adapter(self, plan: AdapterPlan, clock: Clock, *, visitor: bool = False, keeps: bool = False) -> Any:
        """The adapter of a connection, which has touched nothing. ``visitor``: for a reader beside the running agent;
        ``keeps``: for that agent itself, it may keep files in the folder of the state.

        Raises ConfigError: a third party's may raise anything, for want of its library, say.
        """
        try:
            as_visitor = visitor and hasattr(plan.connection, "visitor")
            connection = plan.connection.visitor() if as_visitor else plan.connection
            made = kinds.load(plan.class_path)(plan.name, connection, plan.devices, clock)
            if keeps and hasattr(made, "keep_in"):
                made.keep_in(self.agent.state)
            return made
        except Exception as error:
            what = f"the adapter cannot be made: {type(error).__name__}: {error}"
            place = self.places["connection", plan.name]
            raise ConfigError([place.problem(what, "see the adapter's own documentation")]) from error

    def phase(self, device: Any, group: str) -> int:
        """How long behind the marks of UTC a polled group is due, in ns; ``device`` is an adapter's model."""
        table = device.groups[group]
        phase: int | str = getattr(table, "phase", 0)
        return spread(table.every, self.site.id, device.id, group) if isinstance(phase, str) else phase

    def digest_text(self) -> bytes:
        """The effective configuration as canonical JSON, for an HMAC.

        Defaults are filled in and keys sorted; comments, the order of devices and the file in which something stands
        do not count, nor do devices of which nothing is sent.
        """
        return json.dumps(
            {
                "site": plain(self.site),
                "identity": plain(self.identity),
                "clock": plain(self.clock),
                "agent": plain(self.agent),
                "channel": {
                    channel.id: {
                        "transport": channel.transport,
                        "settings": plain(channel.settings),
                        "send": sorted({*channel.send}),
                        "seal_within": channel.seal_within,
                        "seal_within_away": channel.seal_within_away,
                        "outbox": plain(channel.outbox),
                        "drain": plain(channel.drain),
                    }
                    for channel in self.channels
                },
                "connection": {
                    plan.name: {
                        "kind": plan.class_path,
                        "settings": plain(plan.connection),
                        "devices": {
                            device.config.id: {"settings": plain(device.config), "groups": device.groups}
                            for device in plan.devices
                        },
                    }
                    for plan in self.adapters()
                },
            },
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()


def plain(model: BaseModel) -> Any:
    """A table as JSON's own types."""
    return model.model_dump(mode="json")
