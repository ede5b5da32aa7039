"""``edge-agent read``: read every group once, or again and again, and print what came; nothing is signed or sent.

A polled group is asked. Of an event-driven one the next message is waited for. Nothing is acknowledged, so that what
the agent is owed stays; a connection that can have a visitor (docs/adapters.md) leaves an agent that runs its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Sequence
from typing import Any

import anyio

from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, USAGE, say
from agent.config import AdapterPlan, Config, load
from agent.errors import AcquisitionError, only
from agent.model import Point, Sample
from agent.ports import Arrival, EventAdapter, PolledAdapter
from agent.rendering.words import quality_name, scaled, value_text
from agent.units import duration_ns

_LEAST = 0.1  # s between two reads


def main(options: argparse.Namespace) -> int:
    """Exit code 1 if a group could not be read. With ``--every`` ends on Ctrl-C. Raises ConfigError."""
    try:
        every = None if options.every is None else duration_ns(options.every) / 1e9
        wait = duration_ns(options.wait) / 1e9
        if every is not None and every < _LEAST:
            raise ValueError("--every is too short; give 100ms or more")
    except ValueError as error:
        say(f"edge-agent read: {error}")
        return USAGE
    config = load(options.config)
    ids = [device.config.id for plan in config.adapters() for device in plan.devices]
    if options.device and options.device not in ids:
        say(f"edge-agent read: no device {options.device!r} that a channel sends; there are: {', '.join(ids)}")
        return USAGE
    reading = _Reading(config, device=options.device, every=every, wait=wait, as_json=options.json)
    try:
        return anyio.run(reading.run)
    except BaseExceptionGroup as raised:  # the output is closed, say
        cause = only(Exception, raised)
        raise cause from cause.__cause__


class _Reading:
    """What is read and how it is shown. ``code``: what to end with."""

    def __init__(self, config: Config, *, device: str | None, every: float | None, wait: float, as_json: bool) -> None:
        self._config = config
        self._device = device
        self._every = every
        self._wait = wait
        self._as_json = as_json
        self._code = GOOD

    async def run(self) -> int:
        with anyio.CancelScope() as reading:
            if self._every is not None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
            async with anyio.create_task_group() as connections:
                for plan in self._config.adapters():
                    if any(self._is_wanted(device.config.id) for device in plan.devices):
                        connections.start_soon(self._connection, plan)
        return self._code

    def _is_wanted(self, device: str) -> bool:
        return self._device in (None, device)

    async def _connection(self, plan: AdapterPlan) -> None:
        adapter = self._config.adapter(plan, SystemClock(), visitor=True)
        groups = [
            (index, group)
            for index, chosen in enumerate(plan.devices)
            if self._is_wanted(chosen.config.id)
            for group in chosen.groups
        ]
        try:
            if hasattr(adapter, "subscribe"):
                await self._listen(adapter, groups)
            else:
                await self._poll(adapter, groups)
        finally:
            with anyio.CancelScope(shield=True):
                await adapter.close()

    # ---- polled ---------------------------------------------------------------------------------------------

    async def _poll(self, adapter: PolledAdapter, groups: Sequence[tuple[int, str]]) -> None:
        due = anyio.current_time()
        while True:
            for index, group in groups:
                await self._acquire(adapter.devices[index], group)
            if self._every is None:
                return
            due = max(due + self._every, anyio.current_time())
            await anyio.sleep_until(due)

    async def _acquire(self, device: Any, group: str) -> None:
        device.keep_raw = True
        try:
            await device.prepare()
            sample = await device.acquire(group)
        except AcquisitionError as error:
            self._failed(device.info.id, group, error.cause.name.lower(), error.detail, error.hint)
        else:
            self._show(device, group, sample, getattr(device, "raw", ()))

    # ---- event-driven ---------------------------------------------------------------------------------------

    async def _listen(self, adapter: EventAdapter, groups: Sequence[tuple[int, str]]) -> None:
        """Show the first message of each group; with ``every`` all of them."""
        unheard = dict.fromkeys(groups)
        deadline = anyio.current_time() + self._wait
        try:
            async with adapter.subscribe() as subscription:
                while self._every is not None or unheard:
                    with anyio.CancelScope(deadline=deadline if unheard else float("inf")) as waiting:
                        arrivals = await subscription.receive()
                    if waiting.cancelled_caught:
                        self._unheard(adapter, unheard)
                        unheard.clear()
                        continue
                    for arrival in arrivals:
                        self._arrived(adapter, arrival, [key for key in groups if self._every or key in unheard])
                        for key in arrival.concerns:
                            unheard.pop(key, None)
        except* AcquisitionError as raised:
            error = only(AcquisitionError, raised)
            for index, group in unheard or groups:
                self._failed(adapter.devices[index].info.id, group, error.cause.name.lower(), error.detail, error.hint)

    def _unheard(self, adapter: EventAdapter, groups: Any) -> None:
        for index, group in groups:
            detail = f"nothing heard within {self._wait:g} s"
            self._failed(adapter.devices[index].info.id, group, "source_silent", detail)

    def _arrived(self, adapter: EventAdapter, arrival: Arrival, wanted: Sequence[tuple[int, str]]) -> None:
        for index, group in arrival.concerns:
            if (index, group) in wanted:
                device = adapter.devices[index]
                try:
                    sample = device.decode(group, arrival)
                except AcquisitionError as error:
                    self._failed(device.info.id, group, error.cause.name.lower(), error.detail, error.hint)
                else:
                    self._show(device, group, sample, ())

    # ---- shown ----------------------------------------------------------------------------------------------

    def _failed(self, device: str, group: str, cause: str, detail: str, hint: str = "") -> None:
        self._code = FINDING
        if self._as_json:
            print(json.dumps({"device": device, "group": group, "error": detail, "cause": cause}), flush=True)
        else:
            say(f"{device}/{group}: {cause}: {detail}" + (f"; {hint}" if hint else ""))

    def _show(self, device: Any, group: str, sample: Sample, raw: Sequence[tuple[str, int, Sequence[int]]]) -> None:
        codes, points = dict(sample.quality), device.points(group)
        qualities = [quality_name(codes[i]) if i in codes else "good" for i in range(len(points))]
        rows = list(zip(points, sample.values, qualities, strict=True))
        if self._as_json:
            values = [
                {"point": p.name, "value": scaled(p, value), "unit": p.unit, "quality": quality, "source": p.source}
                for p, value, quality in rows
            ]
            reads = [{"kind": kind, "address": address, "registers": registers} for kind, address, registers in raw]
            print(json.dumps({"device": device.info.id, "group": group, "values": values, "raw": reads}), flush=True)
            return
        took = f": {(sample.ended - sample.started) / 1e6:.1f} ms" if sample.ended > sample.started else ""
        print(f"{device.info.id}/{group}{took}")
        for kind, address, registers in raw:
            print(f"  {kind} {address}: {' '.join(f'{register:04x}' for register in registers)}")
        for point, value, quality in rows:
            print(_line(point, value_text(point, value), quality), flush=True)


def _line(point: Point, value: str, quality: str) -> str:
    source = f"  [{point.source}]" if point.source else ""
    return f"  {point.name:12} {value} {point.unit or ''}  {quality}{source}"
