"""Register images: what a Modbus unit of the simulated site answers, and the map that tells how to read it.

A SunSpec unit lays out ``SunS`` at 40000, the common model (1), one model of measurements and the end marker. Written
by hand after the SunSpec model definitions 1, 103 and 203, so that nothing of the agent is needed to decode what was
served. Addresses are protocol addresses: counted from 0, as they travel.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

BASE = 40000

# Per type: registers, struct code, and what stands for "not implemented" (SunSpec information model, 4.3).
_TYPES: dict[str, tuple[int, str, int]] = {
    "int16": (1, "h", -0x8000),
    "uint16": (1, "H", 0xFFFF),
    "enum16": (1, "H", 0xFFFF),
    "sunssf": (1, "h", -0x8000),
    "acc32": (2, "I", 0),
    "bitfield32": (2, "I", 0xFFFF_FFFF),
}

# A line: type, scale factor if any, and the points in their order.
INVERTER_103 = (
    "uint16 A_SF: A AphA AphB AphC",
    "sunssf: A_SF",
    "uint16 V_SF: PPVphAB PPVphBC PPVphCA PhVphA PhVphB PhVphC",
    "sunssf: V_SF",
    "int16 W_SF: W",
    "sunssf: W_SF",
    "uint16 Hz_SF: Hz",
    "sunssf: Hz_SF",
    "int16 VA_SF: VA",
    "sunssf: VA_SF",
    "int16 VAr_SF: VAr",
    "sunssf: VAr_SF",
    "int16 PF_SF: PF",
    "sunssf: PF_SF",
    "acc32 WH_SF: WH",
    "sunssf: WH_SF",
    "uint16 DCA_SF: DCA",
    "sunssf: DCA_SF",
    "uint16 DCV_SF: DCV",
    "sunssf: DCV_SF",
    "int16 DCW_SF: DCW",
    "sunssf: DCW_SF",
    "int16 Tmp_SF: TmpCab TmpSnk TmpTrns TmpOt",
    "sunssf: Tmp_SF",
    "enum16: St StVnd",
    "bitfield32: Evt1 Evt2 EvtVnd1 EvtVnd2 EvtVnd3 EvtVnd4",
)
METER_203 = (
    "int16 A_SF: A AphA AphB AphC",
    "sunssf: A_SF",
    "int16 V_SF: PhV PhVphA PhVphB PhVphC PPV PhVphAB PhVphBC PhVphCA",
    "sunssf: V_SF",
    "int16 Hz_SF: Hz",
    "sunssf: Hz_SF",
    "int16 W_SF: W WphA WphB WphC",
    "sunssf: W_SF",
    "int16 VA_SF: VA VAphA VAphB VAphC",
    "sunssf: VA_SF",
    "int16 VAR_SF: VAR VARphA VARphB VARphC",
    "sunssf: VAR_SF",
    "int16 PF_SF: PF PFphA PFphB PFphC",
    "sunssf: PF_SF",
    "acc32 TotWh_SF: TotWhExp TotWhExpPhA TotWhExpPhB TotWhExpPhC TotWhImp TotWhImpPhA TotWhImpPhB TotWhImpPhC",
    "sunssf: TotWh_SF",
    "acc32 TotVAh_SF: TotVAhExp TotVAhExpPhA TotVAhExpPhB TotVAhExpPhC",
    "acc32 TotVAh_SF: TotVAhImp TotVAhImpPhA TotVAhImpPhB TotVAhImpPhC",
    "sunssf: TotVAh_SF",
    "acc32 TotVArh_SF: TotVArhImpQ1 TotVArhImpQ1PhA TotVArhImpQ1PhB TotVArhImpQ1PhC",
    "acc32 TotVArh_SF: TotVArhImpQ2 TotVArhImpQ2PhA TotVArhImpQ2PhB TotVArhImpQ2PhC",
    "acc32 TotVArh_SF: TotVArhExpQ3 TotVArhExpQ3PhA TotVArhExpQ3PhB TotVArhExpQ3PhC",
    "acc32 TotVArh_SF: TotVArhExpQ4 TotVArhExpQ4PhA TotVArhExpQ4PhB TotVArhExpQ4PhC",
    "sunssf: TotVArh_SF",
    "bitfield32: Evt",
)
# A scale factor that is not named here is not implemented, and so are its points.
SCALES = {
    "A_SF": -2, "V_SF": -1, "W_SF": 0, "Hz_SF": -2, "VA_SF": 0, "VAr_SF": 0, "VAR_SF": 0, "PF_SF": -2, "WH_SF": 0,
    "DCA_SF": -2, "DCV_SF": -1, "DCW_SF": 0, "Tmp_SF": -1, "TotWh_SF": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MapPoint:
    """Where a point and its scale factor stand; ``size`` in registers, ``model`` None: plain registers."""

    model: int | None
    name: str
    address: int
    type: str
    size: int
    sf_address: int | None = None


class Unit(Protocol):
    """What answers under one Modbus unit id."""

    points: Sequence[MapPoint]

    def read(self, t: float, address: int, count: int) -> list[int] | None:
        """Registers of one image made for this request at ``t`` seconds; None if one of them does not exist."""


class SunSpecUnit:
    """A unit that speaks SunSpec; ``measure`` gives the points of its model at a time, in their units."""

    def __init__(
        self,
        model: int,
        lines: Sequence[str],
        measure: Callable[[float], Mapping[str, float]],
        *,
        name: str,
        serial: str,
        address: int,
    ) -> None:
        common = struct.pack(
            ">HH32s32s16s16s32sHH", 1, 66, b"Simulated", name.encode(), b"", b"1.0.0", serial.encode(), address, 0x8000
        )
        self._measure = measure
        self._pack, self._row, self._measured, points = _layout(model, lines, first=BASE + 2 + len(common) // 2 + 2)
        self._head = b"SunS" + common + struct.pack(">HH", model, self._pack.size // 2)
        self._end = struct.pack(">HH", 0xFFFF, 0)
        self._registers = struct.Struct(f">{(len(self._head) + self._pack.size + len(self._end)) // 2}H")
        texts = (("Mn", 4, 16), ("Md", 20, 16), ("Opt", 36, 8), ("Vr", 44, 8), ("SN", 52, 16))
        self.points: Sequence[MapPoint] = (
            *(MapPoint(1, label, BASE + offset, "string", size) for label, offset, size in texts),
            MapPoint(1, "DA", BASE + 68, "uint16", 1),
            *points,
        )

    def read(self, t: float, address: int, count: int) -> list[int] | None:
        """As Unit says; all registers of the image are of the same moment."""
        start = address - BASE
        if start < 0 or start + count > self._registers.size // 2:
            return None
        values, row = self._measure(t), self._row.copy()
        for index, name, factor in self._measured:
            if name in values:
                row[index] = round(values[name] * factor)
        image = self._head + self._pack.pack(*row) + self._end
        return list(self._registers.unpack(image)[start : start + count])


def _layout(
    model: int, lines: Sequence[str], *, first: int
) -> tuple[struct.Struct, list[int], list[tuple[int, str, float]], list[MapPoint]]:
    """A model's struct, its row before anything is measured, (place, point, factor) of what is, and its map."""
    places: list[tuple[str, str, str | None, int]] = []
    address = first
    for line in lines:
        what, names = line.split(":")
        kind, _, by = what.partition(" ")
        for name in names.split():
            places.append((name, kind, by or None, address))
            address += _TYPES[kind][0]
    where = {name: at for name, _, _, at in places}
    code, row, measured, points = ">", list[int](), list[tuple[int, str, float]](), list[MapPoint]()
    for index, (name, kind, scale, at) in enumerate(places):
        size, letter, missing = _TYPES[kind]
        code += letter
        row.append(SCALES.get(name, missing) if kind == "sunssf" else missing)
        if kind != "sunssf" and (scale is None or scale in SCALES):
            measured.append((index, name, 10.0 ** -SCALES[scale] if scale else 1.0))
        points.append(MapPoint(model, name, at, kind, size, where[scale] if scale else None))
    return struct.Struct(code), row, measured, points


class PlainUnit:
    """Registers from address 0 for load tests: register 0 counts the reads, each other takes a random step per read.

    Only the registers that are read move; nobody can tell.
    """

    _STEPS = bytes((0, 1, 2, 4, 5, 6)[i % 6] for i in range(256))  # minus 3: never 0, so that two images always differ

    def __init__(self, registers: int, *, seed: int) -> None:
        self._random = random.Random(seed)
        self._values = [self._random.randrange(10_000, 50_000) for _ in range(registers)]
        self._reads = 0
        self.points: Sequence[MapPoint] = tuple(MapPoint(None, f"R{i}", i, "uint16", 1) for i in range(registers))

    def read(self, t: float, address: int, count: int) -> list[int] | None:
        """As Unit says, whatever ``t`` is."""
        if address + count > len(self._values):
            return None
        end = address + count
        steps = self._random.randbytes(count).translate(self._STEPS)
        new = [(v + s - 3) & 0xFFFF for v, s in zip(self._values[address:end], steps, strict=True)]
        self._reads += 1
        if address == 0:
            new[0] = self._reads & 0xFFFF
        self._values[address:end] = new
        return new
