"""What a changed configuration asks of the running agent: compared as a whole before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from agent.config import levels
from agent.config.effective import AdapterPlan, Channel, Config
from agent.errors import Problem
from agent.ports import DeviceSelection
from agent.units import duration_text, size_text


@dataclass(frozen=True, slots=True)
class Change:
    """From one configuration to the next. What is changed is both ``gone`` as it was and ``new`` as it is.

    A channel whose ``send`` alone changed stays: its run goes on with a new term.
    """

    channels_gone: tuple[str, ...]
    channels_new: tuple[Channel, ...]
    sources_gone: tuple[str, ...]
    sources_new: tuple[AdapterPlan, ...]
    lines: tuple[str, ...]  # for people; none: nothing that counts changed


def changes(old: Config, new: Config) -> Change:
    """What to stop, and what to start."""
    channels, channels_now = {c.id: c for c in old.channels}, {c.id: c for c in new.channels}
    sources, sources_now = {s.name: s for s in old.adapters()}, {s.name: s for s in new.adapters()}
    restarted = {id_ for id_ in channels.keys() & channels_now.keys() if _run(channels[id_]) != _run(channels_now[id_])}
    moved = old.site.id != new.site.id  # phases may depend on it
    both = sources.keys() & sources_now.keys()
    rewired = {name for name in both if moved or _wired(sources[name]) != _wired(sources_now[name])}
    lines = [
        *_told("channel", channels.keys(), channels_now.keys(), restarted),
        *(
            f"channel {id_}: sends other points"
            for id_ in channels.keys() & channels_now.keys() - restarted
            if channels[id_].selection != channels_now[id_].selection
        ),
        *_told("connection", sources.keys(), sources_now.keys(), rewired),
    ]
    if old.site != new.site:
        lines.append("site: changed")
    if old.clock != new.clock:
        lines.append(f"clock: waited for {duration_text(new.clock.wait)} at start")
    if old.agent.log_level != new.agent.log_level:
        lines.append(f"log level: {levels.text(new.agent.log_level)}")
    return Change(
        tuple(id_ for id_ in channels if id_ not in channels_now or id_ in restarted),
        tuple(c for c in new.channels if c.id not in channels or c.id in restarted),
        tuple(name for name in sources if name not in sources_now or name in rewired),
        tuple(s for s in new.adapters() if s.name not in sources or s.name in rewired),
        tuple(lines),
    )


def refused(old: Config, new: Config) -> list[Problem]:
    """What cannot change while the agent runs."""
    restart = "put it back, or restart the agent"
    found = []
    if old.identity.key != new.identity.key:
        found.append(problem(new, ("identity", "key"), "the key of a running agent does not change", restart))
    if old.identity.passphrase != new.identity.passphrase:
        found.append(problem(new, ("identity", "passphrase"), "the key of a running agent does not change", restart))
    if old.identity.did != new.identity.did:
        found.append(problem(new, ("identity", "did"), "the identity of a running agent does not change", restart))
    if old.agent.state != new.agent.state:
        found.append(problem(new, ("agent", "state"), "the outboxes of a running agent stay where they are", restart))
    if old.agent.socket != new.agent.socket:
        found.append(problem(new, ("agent", "socket"), "the socket of a running agent stays where it is", restart))
    for key in ("http", "token"):
        if getattr(old.agent, key) != getattr(new.agent, key):
            what = "where a running agent shows its metrics, and to whom, does not change"
            found.append(problem(new, ("agent", key), what, restart))
    sizes = {channel.id: channel.outbox.size for channel in old.channels}
    for channel in new.channels:
        if sizes.get(channel.id, channel.outbox.size) != channel.outbox.size:
            what = "an outbox keeps the size that it was made with"
            remedy = f'put outbox.size back to "{size_text(sizes[channel.id])}"'
            found.append(problem(new, ("channel", channel.id, "outbox"), what, remedy))
    return found


def problem(config: Config, key: tuple[str, ...], what: str, remedy: str) -> Problem:
    """A problem at a place of a configuration that is good as such."""
    place = config.places.get(key)
    return Problem(str(config.path), 0, ".".join(key), what, remedy) if place is None else place.problem(what, remedy)


def moves(here: Channel, there: Channel) -> bool:
    """Whether a channel delivers elsewhere from now on."""
    return (here.transport, here.topic, here.settings) != (there.transport, there.topic, there.settings)


def _run(channel: Channel) -> Channel:
    """What a channel's run depends on."""
    return replace(channel, send=(), selection={})


def _wired(plan: AdapterPlan) -> tuple[AdapterPlan, dict[str, DeviceSelection]]:
    """What a connection's adapter depends on: not the order of its devices."""
    return replace(plan, devices=()), {device.config.id: device for device in plan.devices}


def _told(kind: str, before: Set[str], now: Set[str], changed: Set[str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in before:
            yield f"{kind} {name}: new"
        elif name not in now:
            yield f"{kind} {name}: removed"
        elif name in changed:
            yield f"{kind} {name}: changed, restarted"
