"""``edge-agent check``: prove a configuration, say what it will send and store, and with ``--online`` try it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import anyio

from agent import kinds
from agent.clock import SystemClock
from agent.commands import CONFIGURATION, FINDING, GOOD, UNAVAILABLE, say
from agent.config import Channel, Config, load
from agent.config.effective import AdapterPlan
from agent.config.selection import Names
from agent.errors import ConfigError
from agent.foresight import forecast
from agent.foresight.forecast import Forecast, Forecaster, PlannedGroup
from agent.foresight.probe import Tried, try_all
from agent.units import duration_text, size_text

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_NAMES = 20  # on one line
_TIMES = (("days", forecast.DAY), ("hours", forecast.DAY // 24), ("minutes", forecast.DAY // 1440))


def main(options: argparse.Namespace) -> int:
    """With ``--online`` 69 if a broker was not reached, 1 if something else was not as it should be. Raises ConfigError
    with all problems, PermissionError.
    """
    return anyio.run(_check, options, load(options.file))


async def _check(options: argparse.Namespace, config: Config) -> int:
    groups = [group for plan in config.adapters() for group in await _groups(plan, config)]
    planned = {channel.id: [*_sent(channel, groups)] for channel in config.channels}
    forecasters = {
        channel.id: Forecaster(config.site, channel, planned[channel.id], did=config.identity.did)
        for channel in config.channels
    }
    if problems := [problem for each in forecasters.values() for problem in each.problems(config.places)]:
        raise ConfigError(list(dict.fromkeys(problems)))
    print(f"{options.file}: good" + (f", with {len(config.files) - 1} included" if len(config.files) > 1 else ""))
    forecasts = {name: forecaster.forecast() for name, forecaster in forecasters.items()}
    for channel in config.channels:
        print("\n".join(_lines(channel, planned[channel.id], forecasts[channel.id])))
    if left := Names(config.devices).without(channel.selection for channel in config.channels):
        print(f"not sent by any channel: {_some(left)}")
    print(f"assumed: {forecast.ASSUMED}")
    return _online(await try_all(config), forecasts) if options.online else GOOD


async def _groups(plan: AdapterPlan, config: Config) -> list[PlannedGroup]:
    """The groups of a connection, with their points as the adapter knows them without having asked a device."""
    adapter = kinds.load(plan.class_path)(plan.name, plan.connection, plan.devices, SystemClock())
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


def _sent(channel: Channel, groups: Iterable[PlannedGroup]) -> Iterable[PlannedGroup]:
    """What a channel takes of them."""
    for group in groups:
        names = set(channel.selection.get(group.device.id, {}).get(group.name, ()))
        if names:
            yield replace(group, points=tuple(point for point in group.points if point.name in names))


# ---- what is printed --------------------------------------------------------------------------------------------


def _lines(channel: Channel, groups: Iterable[PlannedGroup], found: Forecast) -> Iterable[str]:
    yield f"channel {channel.id}: to {channel.topic}"
    for group in groups:
        often = "by message" if group.period is None else f"every {duration_text(group.period)}"
        yield f"  {group.device.id}/{group.name}, {often}: {_some([point.name for point in group.points])}"
    size = f"outbox of {size_text(channel.outbox.size)}"
    if found.lasts is not None:
        yield f"  {_bytes(found.sent)} a day in {found.records:,.0f} records; {size} lasts for {_time(found.lasts)}"
    for name, count in found.messages.items():
        yield f"  {name}: about {_bytes(count)}{' more' if found.lasts is not None else ''} for each message"
    if found.lasts is None:
        yield f"  {size}"


def _some(names: Sequence[str]) -> str:
    """Names, or the first of many and how many there are."""
    return ", ".join(names) if len(names) <= _NAMES else f"{', '.join(names[: _NAMES // 2])} ... ({len(names)} in all)"


def _bytes(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"


def _time(ns: float) -> str:
    if ns > 3650 * forecast.DAY:
        return "more than 10 years"
    name, length = next(((name, length) for name, length in _TIMES if ns >= 2 * length), _TIMES[-1])
    return f"{ns / length:.0f} {name}" if ns >= 10 * length else f"{ns / length:.1f} {name}"


def _online(found: Sequence[Tried], forecasts: Mapping[str, Forecast]) -> int:
    codes = {GOOD}
    for each in found:
        print(each) if each.good else say(each)
        codes.add(GOOD if each.good else UNAVAILABLE if each.unreachable else FINDING)
        name = each.what.removeprefix("channel ")
        if each.takes is not None and each.takes < forecasts[name].largest:
            what = f"the server takes {each.takes} bytes at once, and a record may have {forecasts[name].largest}"
            say(f"{each.what}: {what}; raise max_payload on the server, or spread the points over several groups")
            codes.add(CONFIGURATION)
    return max(codes)
