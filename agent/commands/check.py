"""``edge-agent check``: prove a configuration, say what it will send and store, and with ``--online`` try it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import anyio

from agent.commands import CONFIGURATION, FINDING, GOOD, UNAVAILABLE, say
from agent.config import Channel, Config, load
from agent.config.selection import Names
from agent.errors import ConfigError
from agent.foresight import forecast
from agent.foresight.forecast import Forecast, PlannedGroup
from agent.foresight.probe import Tried, try_all
from agent.foresight.prospect import Prospect, prospect, with_sizes
from agent.outbox.filesystem import against
from agent.units import duration_text, size_text

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_NAMES = 20  # on one line
_TIMES = (("days", forecast.DAY), ("hours", forecast.DAY // 24), ("minutes", forecast.DAY // 1440))


def main(options: argparse.Namespace) -> int:
    """With ``--online`` 69 if a broker was not reached, 1 if something else was not as it should be. Raises ConfigError
    with all problems, PermissionError.
    """
    try:
        return anyio.run(_check, options, load(options.file))
    except ConfigError as error:
        if not options.json:
            raise
        _print_json(options, problems=[asdict(problem) for problem in error.problems])
        return CONFIGURATION


async def _check(options: argparse.Namespace, config: Config) -> int:
    found = await prospect(config)
    planned, forecasts = found.planned, found.forecasts
    if not options.json:
        print("\n".join(lines(config, found)))
    tried = with_sizes(await try_all(config), forecasts) if options.online else []
    if options.json:
        channels = [_as_json(channel, planned[channel.id], forecasts[channel.id]) for channel in config.channels]
        warnings = [warning] if (warning := _warning(config)) else []
        online = {"online": [each.as_json() for each in tried]} if options.online else {}
        _print_json(options, problems=[], channels=channels, not_sent=_not_sent(config), warnings=warnings, **online)
    else:
        for each in tried:
            print(each) if each.good else say(each)
    return max([GOOD, *map(_code, tried)])


# ---- what is printed --------------------------------------------------------------------------------------------


def lines(config: Config, found: Prospect) -> Iterable[str]:
    """What is said of a good configuration, for people."""
    included = f", with {len(config.files) - 1} included" if len(config.files) > 1 else ""
    yield f"{config.path}: good{included}"
    for channel in config.channels:
        yield from _lines(channel, found.planned[channel.id], found.forecasts[channel.id])
    if left := _not_sent(config):
        yield f"not sent by any channel: {_some(left)}"
    yield f"assumed: {forecast.ASSUMED}"
    if warning := _warning(config):
        yield f"warning: {warning}"


def _not_sent(config: Config) -> list[str]:
    return Names(config.devices).without(channel.selection for channel in config.channels)


def _warning(config: Config) -> str | None:
    return against(config.agent.state) if config.agent.state.is_dir() else None


def _lines(channel: Channel, groups: Iterable[PlannedGroup], found: Forecast) -> Iterable[str]:
    yield f"channel {channel.id}: to {channel.topic}"
    for group in groups:
        often = "by message" if group.period is None else f"every {duration_text(group.period)}"
        yield f"  {group.device.id}/{group.name}, {often}: {_some([point.name for point in group.points])}"
    size = f"outbox of {size_text(channel.outbox.size)}"
    if found.lasts is not None:
        yield f"  {_bytes(found.sent)} a day in {found.records:,.0f} records; {size} lasts for {_time(found.lasts)}"
    for name, count in found.messages.items():
        more = " more" if found.lasts is not None else ""
        yield f"  {name}: about {_bytes(count)}{more} for each message, less where it shares a record with others"
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


def _print_json(options: argparse.Namespace, *, problems: Sequence[Mapping[str, Any]], **more: Any) -> None:
    print(json.dumps({"file": str(options.file), "good": not problems, "problems": problems, **more}))


def _as_json(channel: Channel, groups: Iterable[PlannedGroup], found: Forecast) -> dict[str, Any]:
    """A channel and its forecast (docs/configuration.md, check)."""
    return {
        "id": channel.id,
        "topic": channel.topic,
        "groups": [
            {
                "device": group.device.id,
                "group": group.name,
                "every_s": None if group.period is None else group.period / 1e9,
                "points": [point.name for point in group.points],
            }
            for group in groups
        ],
        "records_per_day": round(found.records),
        "bytes_per_day": round(found.sent),
        "bytes_per_message": dict(found.messages),
        "outbox_bytes": channel.outbox.size,
        "outbox_days": None if found.lasts is None else round(found.lasts / forecast.DAY, 3),
    }


# ---- online -----------------------------------------------------------------------------------------------------


def _code(tried: Tried) -> int:
    """The exit code that it alone would have."""
    if tried.good:
        return GOOD
    if tried.takes is not None:
        return CONFIGURATION
    return UNAVAILABLE if tried.unreachable else FINDING
