"""What the parts promise each other: the interfaces between policy and the edges.

An adapter is one connection (a wire, a broker) and the devices behind it; a transport is one broker that takes
records. Both try once and raise an error with a verdict: retry, back-off and restart are the engine's
(docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.model import ClockQuality, DeviceInfo, Link, Point, Sample, Withdrawn


class Clock(Protocol):
    """The clocks of the machine; a fake one makes tests exact."""

    def wall(self) -> int:
        """Ns since 1970-01-01 UTC."""

    def boot(self) -> int:
        """Ns of CLOCK_BOOTTIME, which also counts while the machine is suspended."""

    def quality(self) -> ClockQuality:
        """How good the wall clock is now. To be asked for each batch, not for each reading: it may cost a system call.
        Never raises.
        """

    async def sleep_until(self, boot: int) -> None:
        """Return once the boot time is not before ``boot``."""


class Signer(Protocol):
    """A secp256k1 key in custody: signs digests, never text from outside."""

    @property
    def did(self) -> str:
        """``did:ethr:<network>:<EIP-55 address>``."""

    def sign(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest (RFC 6979, low-S): r || s, 64 bytes, verified before it is returned.

        Raises SignerError.
        """


# ---- outbox -----------------------------------------------------------------------------------------------------


class Stored(Protocol):
    """An evidence record in the outbox."""

    @property
    def pos(self) -> int:
        """Its position, counted from 1 across runs."""

    @property
    def envelope(self) -> bytes:
        """Its envelope."""

    @property
    def link(self) -> Link:
        """Its place in the chain."""


class Pending(Protocol):
    """Evidence that is held and not acknowledged."""

    @property
    def records(self) -> int:
        """How many."""

    @property
    def bytes(self) -> int:
        """Of their envelopes."""


class Store(Protocol):
    """The outbox (docs/outbox.md): ``append`` and ``read`` block and belong into worker threads; all may raise
    OutboxError.
    """

    max_envelope: int

    @property
    def acked(self) -> int:
        """The highest contiguous acknowledged position."""

    @property
    def next_pos(self) -> int:
        """The position of the next record."""

    @property
    def pending(self) -> Pending:
        """What waits."""

    def fits(self, size: int, records: int) -> bool:
        """Whether envelopes of ``size`` bytes in all fit into the segment in use."""

    @property
    def lost(self) -> Sequence[Withdrawn]:
        """Records that should be held and are not, found at start or while reading; it only grows."""

    def overwritten(self) -> Sequence[Withdrawn]:
        """What opening the next segment now would drop that is not acknowledged."""

    def append(self, records: Sequence[tuple[bytes, Link]], *, new_segment: bool) -> range:
        """Write the records and return, with their positions, once they are on disk."""

    def fresh(self, after: int) -> Sequence[Stored]:
        """All records behind a position, if they were written last and memory still has them; never blocks."""

    def read(self, after: int, *, max_bytes: int) -> Sequence[Stored]:
        """The records behind a position, in order; at least one if there is one."""

    def find(self, stream: bytes, seq: int) -> int | None:
        """The position of a record that is still held."""

    def mark(self) -> bool:
        """Write down what was acknowledged if no record has; one writer at a time, ``append`` and ``mark`` together."""

    def settle(self, pos: int) -> None:
        """Acknowledged up to here; may go down."""


# ---- adapters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceSelection:
    """A configured device, and of each group the points that a channel sends; nothing else is read."""

    config: Any  # the adapter's own device model
    groups: Mapping[str, Sequence[str]]


class PolledDevice(Protocol):
    """A device that is asked for its values.

    ``revision`` rises whenever ``info`` or ``points`` changed, so that a new plan can be made before the next value.
    """

    revision: int

    @property
    def info(self) -> DeviceInfo:
        """Id, asset, and what the device says of itself as far as it was read."""

    def points(self, group: str) -> tuple[Point, ...]:
        """The points of a group, in the order of a sample's values."""

    async def prepare(self) -> None:
        """Learn from the device what must be known to read it (SunSpec models, scale factors). Raises
        AcquisitionError.
        """

    async def acquire(self, group: str) -> Sample:
        """Read a group once. Raises AcquisitionError if no point yielded even a quality code."""


class PolledAdapter(Protocol):
    """One connection and the devices behind it.

    It may have ``slowest``: so many ns does one acquisition take at most that has the connection for itself, as it is
    configured. One that takes longer than five minutes, or than this for each of the connection's groups, is taken for
    hung, and the watchdog ends the agent.
    """

    devices: Sequence[PolledDevice]

    async def close(self) -> None:
        """Let go of the connection. Never raises; acquisitions under way fail with LINK_DOWN."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message from a source.

    ``message`` is the adapter's own: what its devices decode. ``received`` is a boot time. ``concerns``: index of the
    device in the adapter's ``devices``, and group; none: nobody asked for it, and it is only acknowledged. ``owed``:
    the source waits for that.
    """

    message: Any
    received: int
    concerns: tuple[tuple[int, str], ...]
    owed: bool = True


class EventDevice(Protocol):
    """A device that sends its values when it likes: each message is a cycle of its event-driven groups.

    ``revision`` rises in ``decode`` whenever ``points`` changed: what ``decode`` then returned belongs to the points as
    they are now, and a new plan is made before it is sealed.
    """

    revision: int
    silent_after: int | None
    """Ns without a message after which its groups count as silent; None: never."""

    @property
    def info(self) -> DeviceInfo:
        """Id, asset, and what the device says of itself as far as it is known."""

    def points(self, group: str) -> tuple[Point, ...]:
        """The points of a group, in the order of a sample's values."""

    def decode(self, group: str, arrival: Arrival) -> Sample:
        """What a message means for a group. Raises AcquisitionError (DECODE_ERROR) if it yields not even a quality
        code; anybody may have sent anything, so it raises nothing else.
        """


class Subscription(Protocol):
    """One connection to a source of messages, from subscribed to lost."""

    resumed: bool
    """The source kept what came while nobody listened (MQTT: session present)."""

    @property
    def window(self) -> int | None:
        """So many messages at most does the source send without an acknowledgement, as it is now; None: it waits for
        none.
        """

    @property
    def since(self) -> int:
        """Boot time from which on messages could come over this connection."""

    @property
    def heard(self) -> int:
        """Boot time of the last sign of life."""

    async def receive(self) -> Sequence[Arrival]:
        """What came, in order, at least one. Raises AcquisitionError (LINK_DOWN) when the connection is lost.

        What was not fetched yet holds up the source in the end (back-pressure), never the event loop. Cancelling it
        loses nothing.
        """

    def acknowledge(self, arrival: Arrival) -> None:
        """It is on disk; called in the order of arrival, of those that are owed. Never raises; does nothing once the
        connection is lost.
        """


class EventAdapter(Protocol):
    """One connection to a source of messages and the devices behind it."""

    devices: Sequence[EventDevice]

    def subscribe(self) -> AbstractAsyncContextManager[Subscription]:
        """Connect and subscribe once, within a bounded time. Raises AcquisitionError (LINK_DOWN).

        Leaving it closes the connection; the source keeps what comes meanwhile if it can.
        """

    async def close(self) -> None:
        """Let go of everything. Never raises."""


# ---- transports -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A sealed record on its way: ``token`` comes back in its acknowledgement.

    ``resent``: it was asked for (``outbox resend``) and does not come in its turn. ``find_plan``: the envelope of the
    plan in force for it, None if that is not held any more; blocks, may raise OutboxError, and belongs into a worker
    thread.
    """

    token: int
    id: str  # <stream hex>-<seq>-<first 8 hex digits of the record's SHA-256>
    envelope: bytes
    resent: bool = False
    find_plan: Callable[[], bytes | None] = field(default=lambda: None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Last:
    """The last message that the broker stored for us, and whether it was sent as ``resent``."""

    envelope: bytes
    resent: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """The broker's answer for one message; ``error`` None: it has it. ``duplicate``: it had it before."""

    token: int
    error: Exception | None = None
    duplicate: bool = False


class TransportSession(Protocol):
    """One connection to the broker, from connect to loss."""

    @property
    def delivers(self) -> bool:
        """Whether opening it has shown that records come through; else the first acknowledgement does."""

    async def last(self) -> Last | None:
        """The last message that the broker stored for us, None if there is none. Only where the transport reads back.

        Raises TransportError; REJECT: we may not read it.
        """

    async def send(self, message: Message) -> None:
        """Hand a message over without waiting for its answer. Raises TransportError."""

    async def room(self) -> None:
        """Return once what was handed over has left, but for little: on a slow line nothing waits long behind it. Never
        raises; returns also when the connection is lost.
        """

    def hasten(self) -> None:
        """What was handed over leaves now, and waits for no company: no more may come. Never raises."""

    def acks(self) -> AsyncIterator[Ack]:
        """The answers as they come, in any order. Raises TransportError when the connection is lost."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """How it stands with one recipient, in records. ``trouble``: why it gets no more, and ``remedy``; "": it does.
    ``last``: boot time of the last delivery, in ns.
    """

    did: str
    delivered: int = 0
    skipped: int = 0
    trouble: str = ""
    remedy: str = ""
    last: int | None = None


class Transport(Protocol):
    """A broker that takes records. Made with its settings and ``topic``, ``signer``, ``clock``; touches nothing until a
    session is opened. One session at a time; what it keeps between them is in memory.
    """

    max_envelope: int | None  # bytes, None: not known yet
    window: int  # records that may be handed over, from the oldest unacknowledged one on
    ack_within: int | None  # ns; an answer that takes longer is overdue. None: the session itself sees to that
    reads_back: bool  # whether ``last`` can tell what the broker holds

    @property
    def recipients(self) -> Sequence[Recipient]:
        """Who gets what is sent, of a transport that brings it to several; else empty."""

    def session(self) -> AbstractAsyncContextManager[TransportSession]:
        """Connect once. Raises TransportError."""
