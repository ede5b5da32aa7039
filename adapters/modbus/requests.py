"""Read planning: which registers to ask for, in how many requests.

Pure: addresses in, addresses out. Addresses are those of the protocol, from 0; a request reads one kind of register
(function 3 or 4) and at most 125 of them (Modbus Application Protocol V1.1b3, 6.3 and 6.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RegisterKind = Literal["holding", "input"]


@dataclass(frozen=True, slots=True)
class Registers:
    """``count`` registers in a row from ``address``; also a request for them."""

    kind: RegisterKind
    address: int
    count: int

    @property
    def end(self) -> int:
        """The address behind the last one."""
        return self.address + self.count

    def __str__(self) -> str:
        return f"{self.kind}:{self.address}"

    def overlaps(self, other: Registers) -> bool:
        """Whether the two have a register in common."""
        return self.kind == other.kind and self.address < other.end and other.address < self.end

    def hull(self, other: Registers) -> Registers:
        """The shortest row that holds both; they must be of one kind."""
        first = min(self.address, other.address)
        return Registers(self.kind, first, max(self.end, other.end) - first)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device takes: the longest request, the longest hole to read across, and what is never touched."""

    max_registers: int = 125
    max_gap: int = 8
    forbidden: tuple[Registers, ...] = ()


def plan(spans: Sequence[Registers], limits: Limits) -> tuple[tuple[Registers, ...], tuple[int, ...]]:
    """The requests that read all spans, each span whole within one request, and for each span the index of its request.

    Spans are joined from the lowest address up: greedy, which leaves no two neighbours that could be one. Raises
    ValueError for a span that no request can hold; that a span touches what is forbidden is the caller's to refuse.
    """
    requests: list[Registers] = []
    where = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: (spans[i].kind, spans[i].address, spans[i].count)):
        span = spans[index]
        if span.count > limits.max_registers:
            raise ValueError(f"{span.count} registers in one request; the longest has {limits.max_registers}")
        if requests and _may_join(requests[-1], span, limits):
            requests[-1] = requests[-1].hull(span)
        else:
            requests.append(span)
        where[index] = len(requests) - 1
    return tuple(requests), tuple(where)


def _may_join(request: Registers, span: Registers, limits: Limits) -> bool:
    if request.kind != span.kind or span.address - request.end > limits.max_gap:
        return False
    joined = request.hull(span)
    return joined.count <= limits.max_registers and not any(map(joined.overlaps, limits.forbidden))
