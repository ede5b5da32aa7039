"""The words of the field: what the parts of the agent hand to each other.

Frozen values without behaviour; what every record or reading has one of is a tuple, which takes a third of the time to
make. Names and codes are those of the evidence format (docs/evidence.md,
docs/evidence.cddl). Times: ``wall`` is ns since 1970-01-01 UTC (POSIX), ``boot`` is ns of CLOCK_BOOTTIME.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Value = int | float | bool | str | bytes | None


class Kind(enum.IntEnum):
    """Kind of a record."""

    PLAN = 1
    DATA = 2
    EVENT = 3


class ValueType(enum.IntEnum):
    """CBOR type of a point's values, fixed by the plan."""

    INTEGER = 0
    FLOAT = 1
    BOOLEAN = 2
    TEXT = 3
    BYTES = 4


class Cause(enum.IntEnum):
    """Why cycles or records are not there."""

    DEVICE_TIMEOUT = 1
    DEVICE_EXCEPTION = 2
    LINK_DOWN = 3
    OVERRUN = 4
    SOURCE_SILENT = 5
    DECODE_ERROR = 6
    CLOCK_STEP = 7
    DISABLED = 8
    AGENT_DOWN = 9
    NOT_STORED = 10
    OVERFLOW = 11  # of records, in ``withdrawn``
    REFUSED = 12
    DISK_ERROR = 13


class Quality(enum.IntEnum):
    """Why a value is not good; the lowest code that applies is sent. Up to NO_VALUE the value is null."""

    NOT_IMPLEMENTED = 1
    DEVICE_EXCEPTION = 2
    BAD_ENCODING = 3
    NO_VALUE = 4
    OUT_OF_RANGE = 5
    SUSPECT = 6
    SUBSTITUTED = 7
    OLD_DATA = 8
    POSSIBLE_DUPLICATE = 9


class EventCode(enum.IntEnum):
    """What an event record tells."""

    START = 1  # [version, last stop was clean: bool]
    STOP = 2  # [reason]
    CONFIGURATION_REFUSED = 3  # [text]
    DEVICE_IDENTITY_CHANGED = 4  # [device id, before, after]
    OUTBOX_DAMAGED = 5  # [text]
    CLOCK_STEP = 6  # [wall before, wall after]


class ClockState(enum.IntEnum):
    """What the kernel says of the wall clock (adjtimex)."""

    UNKNOWN = 0
    NOT_SYNCHRONISED = 1
    SYNCHRONISED = 2


@dataclass(frozen=True, slots=True)
class ClockQuality:
    """How good the wall clock is. ``error_us``: by how much it is off at most; None: nobody vouches for that."""

    state: ClockState = ClockState.UNKNOWN
    error_us: int | None = None

    def worst(self, other: ClockQuality) -> ClockQuality:
        """What can be said of both: the worse state and the larger error."""
        errors = (self.error_us, other.error_us)
        return ClockQuality(
            min(self.state, other.state),
            None if None in errors else max(error for error in errors if error is not None),
        )


# ---- what is measured -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """One measured quantity of a group.

    A value v of type INTEGER means v x 10^exponent of ``unit`` (SenML registry, else UCUM).
    ``source`` says where it is read, e.g. ``holding:40072 int16``; ``labels`` names the values of an enumeration.
    """

    name: str
    unit: str | None
    type: ValueType
    exponent: int = 0
    source: str | None = None
    labels: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device: its configured id and asset, and what it says of itself (SunSpec common model, function 43/14)."""

    id: str
    adapter: str
    asset: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    firmware: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What one acquisition of a group, or one message, yielded: a value per point, in the order of the device's points.

    ``started`` and ``ended`` are boot times of the acquisition itself, waiting for the wire not included; both are the
    reception's for a message. ``quality`` holds (index of the point, code) for the values that are not good.
    ``source_time``: when the source says that it measured; wall ns.
    """

    started: int
    ended: int
    values: tuple[Value, ...]
    quality: tuple[tuple[int, Quality], ...] = ()
    source_time: int | None = None


class Frame(NamedTuple):
    """What one cycle of one group yielded; ``group`` is the group's index in the plan of the term.

    ``took_us`` None: the group is event-driven. Until such a frame is sealed ``late_us`` is 0 and ``received`` says
    when its message came (boot time): sealing makes the one from the other. ``source_time``: the source's own, wall ns.
    """

    group: int
    cycle: int
    late_us: int
    took_us: int | None
    values: tuple[Value, ...]
    quality: tuple[tuple[int, Quality], ...] = ()
    source_time: int | None = None
    received: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Cycles ``first`` to ``last`` (both included) of a group that have no frame, and why.

    For an event-driven group ``first`` and ``last`` may be None and ``from_boot``, ``to_boot`` say when no messages
    came. With all four None it is one message that yielded nothing, which gets its cycle where cycles are counted.
    """

    group: int
    first: int | None
    last: int | None
    cause: int
    detail: str | None = None
    from_boot: int | None = None
    to_boot: int | None = None


# ---- records ----------------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """A record's place in its stream's chain: ``digest`` is SHA-256 of its bytes, ``prev`` that of the one before."""

    stream: bytes
    seq: int
    prev: bytes
    digest: bytes


class Sealed(NamedTuple):
    """When a record was sealed, and how good the wall clock was at worst since its batch opened."""

    wall: int
    boot: int
    clock: int = ClockState.UNKNOWN
    error_us: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a periodic group is due: cycle n at ``anchor`` + (n - ``first``) x ``period`` on CLOCK_BOOTTIME, all in ns.

    Nominal time of cycle n: ``phase`` + n x ``period``, UTC.
    """

    period: int
    phase: int
    first: int
    anchor: int

    def due(self, cycle: int) -> int:
        """Boot time at which ``cycle`` falls due."""
        return self.anchor + (cycle - self.first) * self.period

    def nominal(self, cycle: int) -> int:
        """Wall time that ``cycle`` stands for."""
        return self.phase + cycle * self.period


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A group in a plan. ``schedule`` None: event-driven. ``next``: first cycle not covered by earlier records."""

    name: str
    device: int
    schedule: Schedule | None
    next: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Records ``first`` to ``last`` of a stream that may be missing, and why."""

    stream: bytes
    first: int
    last: int
    cause: int


@dataclass(frozen=True, slots=True)
class Resume:
    """The followed stream's first uncovered cycle of a periodic group."""

    device: str
    group: str
    term: int
    cycle: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be measured and when; opens every stream and every term, and is repeated."""

    term: int
    opened: tuple[int, int]  # wall, boot
    boot_id: bytes
    version: str
    site: str
    labels: tuple[tuple[str, str], ...]
    channel: str
    topic: str
    configuration: bytes  # HMAC-SHA256 under the outbox's salt
    devices: tuple[DeviceInfo, ...]
    groups: tuple[GroupPlan, ...]
    follows: tuple[bytes, int] | None
    resumes: tuple[int, tuple[Resume, ...]] | None
    withdrawn: tuple[Withdrawn, ...]
    volatile: bool
    window_ms: int


class Data(NamedTuple):
    """Frames and gaps of one term, sealed together."""

    term: int
    frames: Sequence[Frame]  # by group, then cycle
    gaps: Sequence[Gap]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the agent."""

    code: int
    boot: int
    details: tuple[Value, ...]


class Record(NamedTuple):
    """One link of a stream's chain. ``unknown`` lists what a newer version added, to be reported and never failed."""

    stream: bytes
    seq: int
    prev: bytes
    sealed: Sealed
    body: Plan | Data | Event | None  # None: a kind that this version does not know
    kind: int
    unknown: tuple[str, ...] = ()
