"""What trying everything showed (agent/foresight/probe.py), and whether a broker's limits fit our records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.config.effective import Channel
from agent.control.status_text import age, size
from agent.doctor.examination import SUDO
from agent.doctor.finding import Finding, fault, note, ok, warning
from agent.foresight.forecast import Forecast
from agent.foresight.probe import Tried
from agent.transports.facts import BrokerFacts, StreamFacts
from agent.units import S

_AHEAD = 5.0  # s
_REPEATS = 30.0  # s: a record that was sent twice comes again within a time-out and a reconnection
_NEARLY = 0.8
_DAY = 86_400.0  # s


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """A channel, what its broker says, and what is foretold of its records; None: not known."""

    channel: Channel
    broker: BrokerFacts
    forecast: Forecast | None


def tried(found: Tried) -> Finding:
    """One thing that was tried."""
    looked_at = "tried once, as the agent does"
    if found.good:
        return ok(found.what, found.words, looked_at=looked_at)
    what, _, remedy = found.words.partition("; ")
    if found.denied:  # whether the agent's user may read it is told with the files
        return note(found.what, what, why="so much of this box was not seen", remedy=SUDO, looked_at=looked_at)
    why = "records wait in the outbox meanwhile" if found.unreachable else "the agent fails with it, too"
    return fault(found.what, what, why=why, remedy=remedy or "see docs/operating.md", looked_at=looked_at)


def judge(facts: ChannelFacts) -> Iterator[Finding]:
    """What is to be said of a broker that takes our records."""
    about, broker = f"channel {facts.channel.id}", facts.broker
    at = f"the server {broker.server}, version {broker.version}" if broker.version else "the server"
    if broker.untold:
        why = "so its limits are not known here; delivery does not need that"
        yield note(about, f"the stream does not say how it is: {broker.untold}", why=why, looked_at=at)
    if broker.ahead is not None and abs(broker.ahead) > _AHEAD + broker.ahead_within:
        which = "ahead of" if broker.ahead > 0 else "behind"
        why = "one of the two is wrong, and ours is signed into every record"
        remedy = "timedatectl here, and look at the server's clock"
        found = f"its clock is {age(abs(broker.ahead))} {which} ours"
        yield warning(about, found, why=why, remedy=remedy, looked_at=at)
    if broker.stream is not None:
        told = list(_limits(facts, broker.stream, about, at))
        yield from told
        if not told:
            yield ok(about, f"the limits of the stream {broker.stream.name} fit our records", looked_at=at)


def _limits(facts: ChannelFacts, stream: StreamFacts, about: str, at: str) -> Iterator[Finding]:
    name, forecast = f"the stream {stream.name}", facts.forecast
    largest = None if forecast is None else forecast.largest + facts.broker.overhead
    if largest is not None and stream.max_msg_size is not None and stream.max_msg_size < largest:
        found = f"{name} takes messages of {size(stream.max_msg_size)}, and a record may have {size(largest)}"
        why = "it refuses such a record for good"
        remedy = "raise max_msg_size of the stream, shorten seal_within, or spread the points over several groups"
        yield fault(about, found, why=why, remedy=remedy, looked_at=at)
    if stream.keeps != "limits":
        why = "records go once they were read, or if nobody reads them yet, and cannot be compared with ours"
        remedy = "make a stream with retention limits"
        yield warning(about, f"{name} keeps by {stream.keeps}", why=why, remedy=remedy, looked_at=at)
    if stream.per_subject is not None:
        why = "the ones before are gone for every consumer"
        remedy = "take max_msgs_per_subject away"
        found = f"{name} keeps the last {stream.per_subject} records of ours only"
        yield fault(about, found, why=why, remedy=remedy, looked_at=at)
    if stream.storage == "memory":
        why = "a restart of the server loses records that it has acknowledged"
        yield warning(about, f"{name} is kept in memory", why=why, remedy="make one with storage file", looked_at=at)
    if stream.duplicate_window is not None and stream.duplicate_window < _REPEATS:
        found = f"{name} recognises repeats for {age(stream.duplicate_window)} only"
        why = "what is sent twice over a bad line is then stored twice; verifiers tell, others may count it twice"
        yield warning(about, found, why=why, remedy="set its duplicate window to 2m", looked_at=at)
    if stream.replicas == 1 and facts.broker.clustered:
        why = "its one server is a place where all of it can be lost"
        remedy = "set its replicas to 3"
        yield note(about, f"{name} is on one server of a cluster", why=why, remedy=remedy, looked_at=at)
    yield from _ages(facts, stream, about, at)
    yield from _room(stream, about, at)


def _ages(facts: ChannelFacts, stream: StreamFacts, about: str, at: str) -> Iterator[Finding]:
    lasts = None if facts.forecast is None or facts.forecast.lasts is None else facts.forecast.lasts / S
    if stream.max_age is None:
        return
    found = f"the stream {stream.name} forgets after {age(stream.max_age)}"
    if stream.max_age < _DAY:
        why = "a consumer that is away for longer has holes"
        yield warning(about, found, why=why, remedy="raise max_age of the stream", looked_at=at)
    elif lasts is not None and lasts > stream.max_age:
        why = (
            f"the outbox lasts for {age(lasts)}: after an outage between the two nothing tells what had arrived before"
        )
        yield note(about, found, why=why, remedy="a longer max_age, if that matters", looked_at=at)


def _room(stream: StreamFacts, about: str, at: str) -> Iterator[Finding]:
    if stream.discard != "new" or stream.max_bytes is None:
        return
    used = stream.held_bytes / stream.max_bytes
    found = f"the stream {stream.name} is {100 * used:.0f} % full and then takes nothing more (discard new)"
    why = "records wait then, until the outbox overwrites its oldest"
    if used >= _NEARLY:
        remedy = "raise max_bytes of the stream, give it a max_age, or set discard to old"
        told = fault if used >= 1 else warning
        yield told(about, found, why=why, remedy=remedy, looked_at=at)
    elif stream.max_age is None:
        yield note(about, found, why=why, remedy="give it a max_age, or watch it", looked_at=at)
