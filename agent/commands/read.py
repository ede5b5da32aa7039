"""``edge-agent read``: poll every group once and print what came; nothing is signed or sent."""

from __future__ import annotations

import argparse
import json
from typing import Any

import anyio

from agent import kinds
from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, USAGE, say
from agent.config import Config, load
from agent.errors import AcquisitionError
from agent.model import Point, Sample, Value
from agent.render import quality_name, scaled, value_text


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if a group could not be read. Raises ConfigError."""
    config = load(options.config)
    ids = [device.config.id for plan in config.adapters() for device in plan.devices]
    if options.device and options.device not in ids:
        say(f"edge-agent read: no device {options.device!r} that a channel sends; there are: {', '.join(ids)}")
        return USAGE
    return anyio.run(_read, config, options)


async def _read(config: Config, options: argparse.Namespace) -> int:
    code = GOOD
    for plan in config.adapters():
        adapter = kinds.load(plan.class_path)(plan.name, plan.connection, plan.devices, SystemClock())
        try:
            for device, chosen in zip(adapter.devices, plan.devices, strict=True):
                if options.device in (None, device.info.id):
                    for group in chosen.groups:
                        code |= await _group(device, group, as_json=options.json)
        finally:
            await adapter.close()
    return code


async def _group(device: Any, group: str, *, as_json: bool) -> int:
    device.keep_raw = True
    try:
        await device.prepare()
        sample: Sample = await device.acquire(group)
    except AcquisitionError as error:
        if as_json:
            print(
                json.dumps(
                    {"device": device.info.id, "group": group, "error": error.detail, "cause": error.cause.name.lower()}
                )
            )
        else:
            say(f"{device.info.id}/{group}: {error.cause.name.lower()}: {error.detail}")
        return FINDING
    codes = dict(sample.quality)
    points: list[tuple[Point, Value, str]] = [
        (point, value, quality_name(codes[i]) if i in codes else "good")
        for i, (point, value) in enumerate(zip(device.points(group), sample.values, strict=True))
    ]
    raw = [{"kind": kind, "address": address, "registers": registers} for kind, address, registers in device.raw]
    if as_json:
        values = [
            {"point": p.name, "value": scaled(p, value), "unit": p.unit, "quality": q, "source": p.source}
            for p, value, q in points
        ]
        print(json.dumps({"device": device.info.id, "group": group, "values": values, "raw": raw}))
        return GOOD
    print(f"{device.info.id}/{group}: {(sample.ended - sample.started) / 1e6:.1f} ms")
    for read in raw:
        print(f"  {read['kind']} {read['address']}: {' '.join(f'{register:04x}' for register in read['registers'])}")
    for point, value, quality in points:
        print(f"  {point.name:12} {value_text(point, value)} {point.unit or ''}  {quality}  [{point.source}]")
    return GOOD
