"""How the running agent is: the one source of the numbers that status, top, STATUS= and metrics show.

Made when somebody asks, from what the parts count while they work; nothing is stored for it.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent import __version__, process
from agent.delivery.publisher import AWAY
from agent.heartbeat import Vitals

if TYPE_CHECKING:
    from agent.running import Running

S = 1e9
_LONGEST = 1000  # characters of a summary
_WAITS_LONG = 60.0  # s: a record that waits for longer is worth a word


class Condition:
    """What concerns the agent as a whole. ``vitals``: who must make progress; ``requests``: to the HTTP server, by what
    came of them.
    """

    def __init__(self) -> None:
        self.vitals = Vitals()
        self.stuck: list[str] = []
        self.requests: Counter[str] = Counter()

    def look(self, now: int) -> list[str]:
        """Which vital parts make no progress; to be asked about once a second."""
        self.stuck = self.vitals.overdue(now)
        return self.stuck


def summary(running: Running) -> str:
    """For people, on one line, with what matters first."""
    first = [f"STUCK: {name}" for name in running.condition.stuck]
    if running.clock_wait.waiting:
        first.append("no reading yet: waiting for a synchronised clock")
    now = running.clock.wall() / S
    parts = [_channel(channel.status(), now) for channel in running.channels.values()] + [running.states.summary()]
    text = "; ".join([*first, *(words for _, words in sorted(parts, key=lambda part: not part[0]))])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _channel(told: dict[str, Any], now: float) -> tuple[bool, str]:
    """A channel in a few words; True: somebody should look. ``now``: wall clock, s."""
    reason, state, waiting, since = told["reason"], told["outbox"]["state"], told["pending_records"], ""
    broker = "connected" if told["connected"] else "away" if reason in AWAY else "refusing"
    why = f" ({reason})" if broker != "connected" and reason else ""
    if waiting and (age := told["oldest_s"] or 0) >= _WAITS_LONG:
        began = datetime.fromtimestamp(now - age, UTC)
        since = f", oldest since {began:%H:%M}Z" if age < 12 * 3600 else f", oldest since {began:%Y-%m-%dT%H:%M}Z"
    counted = {"refused": "records refused", "dropped": "records dropped", "not_stored": "readings not stored"}
    words = (
        f"{told['id']}: {waiting} waiting, broker {broker}{why}{since}, {told['acknowledged']} delivered"
        + "".join(f", {told[name]} {words}" for name, words in counted.items() if told[name])
        + (f", {state.upper()}" if state != "ok" else "")
    )
    return broker != "connected" or state != "ok" or bool(since), words


def status(running: Running) -> dict[str, Any]:
    """For programs; agent/control/answers.py has the keys."""
    wall, boot = running.started
    config, states = running.config, running.states
    return {
        "version": __version__,
        "did": running.did,
        "site": config.site.id,
        "pid": os.getpid(),
        "started_wall": wall,
        "uptime_s": (running.clock.boot() - boot) / S,
        "boot": running.boot_id.hex(),
        "clock": {**running.clock_wait.status(), "steps": running.supervisor.clock_steps},
        "config": str(config.path.absolute()),
        "process": process.usage(),
        "stuck": list(running.condition.stuck),
        "requests": dict(running.condition.requests),
        "channels": [channel.status() for channel in running.channels.values()],
        "devices": [
            {
                "id": device.config.id,
                "adapter": plan.class_path,
                "connection": plan.name,
                "groups": [states.status(device.config.id, group) for group in device.groups],
            }
            for plan in config.adapters()
            for device in plan.devices
        ],
        "connections": [source.status() for source in running.sources.values()],
    }
