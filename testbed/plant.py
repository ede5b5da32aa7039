"""A small solar site as a function of time: sun, clouds, a 25 kW inverter, a load on three phases, the grid.

Everything that counts energy is a pure function of (seed, time), so a simulator that is killed and started again goes
on where it was. Only what an instrument would show besides (noise of voltage, frequency and power) is drawn anew for
every reading.

Signs: the meter's W is positive for import (load minus PV), its counters split that by sign. Energy is the integral of
power over real seconds, however short the simulated day is, so that a reader can check one against the other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

RATED_W = 25_000.0
_STEP_S = 0.1  # of the integration; every curve below is smooth over it
_EFFICIENCY = 0.975
_WAKE_W = 150.0  # below this the inverter does not feed in
_CLOUDS = ((11.0, 0.15), (23.0, 0.25), (47.0, 0.35), (97.0, 0.35), (211.0, 0.3))  # (period in s, weight)
_TURN = 2.0 * math.pi

# SunSpec model 103, operating state
SLEEPING, STARTING, MPPT, THROTTLED, SHUTTING_DOWN = 2, 3, 4, 5, 6

_PV, _IMPORT, _EXPORT, _IMPORT_PHASE, _EXPORT_PHASE = 0, 1, 2, 3, 6  # places in the list of flows and of counters


class Plant:
    """The state of the site; times are seconds since its start and must not fall by more than the integration step.

    ``day_length`` is the length of a simulated day in real seconds, ``hour`` the hour of that day at time 0.
    """

    def __init__(self, *, seed: int = 1, day_length: float = 600.0, hour: float = 9.5) -> None:
        draw = random.Random(seed)
        self._noise = random.Random(draw.random())
        self._day_length = day_length
        self._start = hour / 24.0
        self._clouds = tuple((_TURN / period, weight, draw.random() * _TURN) for period, weight in _CLOUDS)
        self._load = tuple((_TURN / draw.uniform(13.0, 61.0), draw.random() * _TURN) for _ in range(3))
        self._grid = tuple(draw.random() * _TURN for _ in range(3))
        each_import, each_export = draw.randrange(900_000, 3_000_000), draw.randrange(900_000, 3_000_000)
        produced = draw.randrange(8_000_000, 20_000_000)
        # Wh at the last node, in the order of _flows
        self._energy = [
            float(wh) for wh in (produced, 3 * each_import, 3 * each_export, *[each_import] * 3, *[each_export] * 3)
        ]
        self._node = 0
        self._last_flows = self._flows(*self._powers(0.0))
        self._sink = self._cabinet = self._ambient(0.0)

    # ---- the world --------------------------------------------------------------------------------------

    def _day(self, t: float) -> float:
        """Fraction of the day, 0 at midnight."""
        return (self._start + t / self._day_length) % 1.0

    def _ambient(self, t: float) -> float:
        """Air temperature in degrees C, warmest at three in the afternoon."""
        return 15.0 + 8.0 * math.sin(_TURN * (self._day(t) - 0.375))

    def irradiance(self, t: float) -> float:
        """W per square metre on the modules: up to 1000, 0 from six to six."""
        height = -math.cos(_TURN * self._day(t))
        if height <= 0.0:
            return 0.0
        sky = sum(weight * math.sin(rate * t + phase) for rate, weight, phase in self._clouds)
        through = 0.15 + 0.85 / (1.0 + math.exp(-5.0 * (sky + 0.25)))
        return 1000.0 * math.pow(height, 1.15) * through

    def _powers(self, t: float) -> tuple[float, tuple[float, float, float]]:
        """W out of the inverter, W into the load of each phase."""
        dc = 29.0 * self.irradiance(t)
        pv = min(RATED_W, dc * _EFFICIENCY) if dc >= _WAKE_W else 0.0
        shape = 0.5 - 0.5 * math.cos(_TURN * (self._day(t) - 0.08))  # least at two in the night
        load = [
            900.0 + 2200.0 * shape + 1500.0 * (0.5 + 0.5 * math.tanh(3.0 * math.sin(rate * t + phase)))
            for rate, phase in self._load
        ]
        return pv, (load[0], load[1], load[2])

    @staticmethod
    def _flows(pv: float, load: Sequence[float]) -> list[float]:
        """W that each counter counts: produced; imported, exported in all; imported, exported per phase."""
        phases = [each - pv / 3.0 for each in load]
        net = sum(phases)
        return [pv, max(net, 0.0), max(-net, 0.0), *(max(p, 0.0) for p in phases), *(max(-p, 0.0) for p in phases)]

    # ---- what has a memory ------------------------------------------------------------------------------

    def advance(self, t: float) -> None:
        """Integrate up to the last node before ``t``; called now and then, it keeps readings after a pause quick."""
        while (self._node + 1) * _STEP_S <= t:
            self._node += 1
            now = self._node * _STEP_S
            flows = self._flows(*self._powers(now))
            weight = _STEP_S / 7200.0  # trapezium, W to Wh
            self._energy = [e + (a + b) * weight for e, a, b in zip(self._energy, self._last_flows, flows, strict=True)]
            self._last_flows = flows
            ambient, share = self._ambient(now), flows[_PV] / RATED_W
            self._sink += (ambient + 45.0 * share - self._sink) * _STEP_S / 20.0
            self._cabinet += (ambient + 25.0 * share - self._cabinet) * _STEP_S / 60.0

    def _counters(self, t: float, flows: Sequence[float]) -> list[float]:
        weight = max(t - self._node * _STEP_S, 0.0) / 7200.0
        return [e + (a + b) * weight for e, a, b in zip(self._energy, self._last_flows, flows, strict=True)]

    # ---- what the instruments show ----------------------------------------------------------------------

    def _voltages(self, t: float, pv: float) -> dict[str, float]:
        """Volts of each phase and between them; feeding in lifts them a little."""
        slow, lift = math.sin(t / 17.0), 3.0 * pv / RATED_W
        a, b, c = (
            230.0 + 2.0 * math.sin(t / 37.0 + phase) + slow + lift + self._noise.gauss(0.0, 0.2) for phase in self._grid
        )
        between = {"AB": (a, b), "BC": (b, c), "CA": (c, a)}
        return {
            "PhVphA": a,
            "PhVphB": b,
            "PhVphC": c,
            **{name: math.sqrt(x * x + y * y + x * y) for name, (x, y) in between.items()},  # 120 degrees apart
        }

    def _frequency(self, t: float) -> float:
        return 50.0 + 0.03 * math.sin(t / 29.0 + self._grid[0]) + self._noise.gauss(0.0, 0.01)

    def inverter(self, t: float) -> dict[str, float]:
        """Points of SunSpec model 103 in A, V, W, Hz, VA, var, %, Wh, degrees C; what is left out it has not."""
        self.advance(t)
        pv, load = self._powers(t)
        watts = max(round(pv + self._noise.gauss(0.0, 2.0 + 0.0005 * pv)), 1) if pv else 0
        var = round(0.05 * watts)
        apparent = math.hypot(watts, var)
        volts = self._voltages(t, pv)
        amps = {name: round(apparent / 3.0 / volts["PhV" + name[1:]], 2) for name in ("AphA", "AphB", "AphC")}
        sun = self.irradiance(t)
        dc_volts = 560.0 + 0.12 * sun + self._noise.gauss(0.0, 0.5) if sun else 0.0
        dc_watts = watts / _EFFICIENCY
        return {
            **amps,
            "A": sum(amps.values()),
            **{name: volts[name] for name in ("PhVphA", "PhVphB", "PhVphC")},
            **{"PPVph" + name: volts[name] for name in ("AB", "BC", "CA")},
            "W": watts,
            "Hz": self._frequency(t),
            "VA": apparent,
            "VAr": var,
            "PF": 100.0 * watts / apparent if apparent else 0.0,
            "WH": math.floor(self._counters(t, self._flows(pv, load))[_PV]),
            "DCA": dc_watts / dc_volts if dc_volts else 0.0,
            "DCV": dc_volts,
            "DCW": dc_watts,
            "TmpCab": self._cabinet,
            "TmpSnk": self._sink,
            "St": self._state(t, pv, sun),
            "Evt1": 0,
        }

    def _state(self, t: float, pv: float, sun: float) -> int:
        if pv >= RATED_W:
            return THROTTLED
        if pv:
            return MPPT
        if sun:
            return STARTING if self._day(t) < 0.5 else SHUTTING_DOWN
        return SLEEPING

    def meter(self, t: float) -> dict[str, float]:
        """Points of SunSpec model 203 in their units; VAh and varh counters it has not."""
        self.advance(t)
        pv, load = self._powers(t)
        volts = self._voltages(t, pv)
        counters = self._counters(t, self._flows(pv, load))
        point: dict[str, float] = {"Hz": self._frequency(t), "Evt": 0}
        for index, phase in enumerate(("phA", "phB", "phC")):
            watts = round(load[index] - pv / 3.0 + self._noise.gauss(0.0, 3.0))
            var = round(50.0 + 0.3 * load[index] - 0.05 * pv / 3.0)
            apparent = math.hypot(watts, var)
            point["W" + phase], point["VAR" + phase], point["VA" + phase] = watts, var, apparent
            point["PF" + phase] = 100.0 * watts / apparent if apparent else 0.0
            point["PhV" + phase] = volts["PhV" + phase]
            point["A" + phase] = round(apparent / volts["PhV" + phase], 2)
            upper = "P" + phase[1:]  # the model writes PhA here
            point["TotWhImp" + upper] = math.floor(counters[_IMPORT_PHASE + index])
            point["TotWhExp" + upper] = math.floor(counters[_EXPORT_PHASE + index])
        for name in ("A", "W", "VAR"):
            point[name] = sum(point[f"{name}ph{phase}"] for phase in "ABC")
        point["VA"] = math.hypot(point["W"], point["VAR"])
        point["PF"] = 100.0 * point["W"] / point["VA"] if point["VA"] else 0.0
        for name in ("AB", "BC", "CA"):
            point["PhVph" + name] = volts[name]
        point["PhV"] = sum(volts[name] for name in ("PhVphA", "PhVphB", "PhVphC")) / 3.0
        point["PPV"] = sum(volts[name] for name in ("AB", "BC", "CA")) / 3.0
        point["TotWhImp"] = math.floor(counters[_IMPORT])
        point["TotWhExp"] = math.floor(counters[_EXPORT])
        return point
