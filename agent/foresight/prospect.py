"""What a good configuration comes to, before anything is touched: its groups, what each channel sends and stores, and
what a start would refuse all the same.

Adapters are made and closed; no device, broker or key is asked. Ring files are looked at, not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.clock import SystemClock
from agent.commands.target import ring_of
from agent.config import Config
from agent.config.effective import AdapterPlan
from agent.errors import ConfigError, OutboxError, Problem
from agent.foresight import forecast
from agent.foresight.forecast import Forecast, Forecaster, PlannedGroup
from agent.foresight.probe import Tried
from agent.outbox.look import agrees


@dataclass(frozen=True, slots=True)
class Prospect:
    """By channel: what it takes of the groups, and its figures."""

    planned: Mapping[str, list[PlannedGroup]]
    forecasts: Mapping[str, Forecast]


async def prospect(config: Config) -> Prospect:
    """Raises ConfigError: an adapter cannot be made, something cannot become a record, or an outbox that is there was
    made otherwise.
    """
    groups, problems = list[PlannedGroup](), list[Problem]()
    for plan in config.adapters():
        try:
            groups += await _groups(plan, config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if problems := forecast.too_large(config, groups) or list(_refused(config)):
        raise ConfigError(problems)
    planned = {channel.id: forecast.sent(channel, groups) for channel in config.channels}
    did = config.identity.did
    return Prospect(
        planned,
        {each.id: Forecaster(config.site, each, planned[each.id], did=did).forecast() for each in config.channels},
    )


def with_sizes(found: Iterable[Tried], forecasts: Mapping[str, Forecast]) -> list[Tried]:
    """What was found, and of each broker that takes less at once than the largest record, that."""
    told = []
    for each in found:
        told.append(each)
        largest = forecasts[each.what.removeprefix("channel ")].largest if each.takes is not None else 0
        if each.takes is not None and each.takes < largest:
            what = f"the server takes {each.takes} bytes at once, and a record may have {largest}"
            remedy = "raise max_payload on the server, or spread the points over several groups"
            told.append(replace(each, words=f"{what}; {remedy}", good=False))
    return told


def _refused(config: Config) -> Iterable[Problem]:
    """Outboxes that are there and that a start would refuse for what the configuration says."""
    for channel in config.channels:
        try:
            agrees(ring_of(config, channel), channel=channel.id, size=channel.outbox.size)
        except OutboxError as error:
            if not isinstance(error.__cause__, OSError):  # there is none yet, or it may not be read
                yield config.places["channel", channel.id, "outbox"].problem(str(error), error.hint)


async def _groups(plan: AdapterPlan, config: Config) -> list[PlannedGroup]:
    """The groups of a connection, with their points as the adapter knows them without having asked a device."""
    adapter = config.adapter(plan, SystemClock())
    groups = []
    try:
        for device, chosen in zip(adapter.devices, plan.devices, strict=True):
            for name in chosen.groups:
                period = getattr(chosen.config.groups[name], "every", None)
                phase = 0 if period is None else config.phase(chosen.config, name)
                groups.append(PlannedGroup(device.info, name, device.points(name), period, phase))
    finally:
        await adapter.close()
    return groups
