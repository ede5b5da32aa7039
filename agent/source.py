"""A source at work: a connection of the configuration, its adapter, and what is acquired through it."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.abc import TaskStatus

from agent.bus import Bus
from agent.config.effective import AdapterPlan, Config
from agent.foresight.forecast import PlannedGroup
from agent.heartbeat import WITHIN, Vitals
from agent.listener import Listener
from agent.ports import Clock
from agent.router import Router
from agent.states import States
from agent.term import PolledGroup


class Source:
    """One connection: ``groups`` that are polled through it, or the ``listener`` on its messages."""

    def __init__(
        self, plan: AdapterPlan, config: Config, *, sink: Router, clock: Clock, states: States, vitals: Vitals
    ) -> None:
        """Touches nothing. Raises ConfigError: the adapter cannot be made."""
        self.plan = plan
        self.groups: list[PolledGroup] = []
        self.listener: Listener | None = None
        self.bus: Bus | None = None  # of a connection that is polled
        self._clock = clock
        self.closed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._adapter = config.adapter(plan, clock, keeps=True)
        devices = list(zip(self._adapter.devices, plan.devices, strict=True))
        if hasattr(self._adapter, "subscribe"):
            groups = [(device, name) for device, chosen in devices for name in chosen.groups]
            self.listener = Listener(
                plan.name, self._adapter, groups, sink=sink, clock=clock, states=states, vitals=vitals
            )
        else:
            waiting = sum(len(chosen.groups) for _, chosen in devices)  # each may wait for all the others
            self.bus = Bus(max(WITHIN, waiting * getattr(self._adapter, "slowest", 0)))
            for device, chosen in devices:
                for name in chosen.groups:
                    every, phase = chosen.config.groups[name].every, config.phase(chosen.config, name)
                    self.groups.append(PolledGroup(device, name, every, phase, self.bus))

    def planned(self) -> list[PlannedGroup]:
        """All its groups, with their points as they are known now."""
        polled = [PlannedGroup(g.device.info, g.name, g.device.points(g.name), g.period, g.phase) for g in self.groups]
        heard = self.listener.groups if self.listener is not None else ()
        return polled + [PlannedGroup(device.info, name, device.points(name), None) for device, name in heard]

    def status(self) -> dict[str, Any]:
        """For programs; agent/control/answers.py has the keys."""
        if self.bus is not None:
            return {"name": self.plan.name, **self.bus.status(self._clock.boot())}
        assert self.listener is not None
        return {
            "name": self.plan.name,
            "state": "connected" if self.listener.connected else "away",
            "detail": self.listener.trouble,
            "connects": self.listener.connects,
        }

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep the connection until ``stop``; the adapter is closed when this returns."""
        task_status.started()
        try:
            with self._scope:
                if self.listener is not None:
                    await self.listener.run()
                await anyio.sleep_forever()  # a polled adapter connects when it is asked
        finally:
            with anyio.CancelScope(shield=True):
                await self._adapter.close()
            self.closed.set()

    async def stop(self) -> None:
        """Let go of the connection; nothing may be acquired through it any more."""
        self._scope.cancel()
        await self.closed.wait()
