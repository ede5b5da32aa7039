"""What a broker says of itself and of where our records go, as plain values: asked for by `doctor`, judged there.

A transport's session that has ``async facts() -> BrokerFacts`` (it never raises) is asked by agent/foresight/probe.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """A store of messages. Sizes in bytes, times in s; None: no limit. ``per_subject``: it keeps so many of ours.

    ``keeps``: "limits", or until they were read: "workqueue", "interest". ``discard``: "old" or "new".
    """

    name: str
    max_msg_size: int | None = None
    max_age: float | None = None
    max_bytes: int | None = None
    held_bytes: int = 0
    per_subject: int | None = None
    duplicate_window: float | None = None
    discard: str = "old"
    keeps: str = "limits"
    storage: str = "file"
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """One server, when it was asked. ``certificate``: what it showed, DER; None without TLS. ``ahead``: by how
    many seconds its clock is ahead of ours, and ``ahead_within``: give or take so many. ``last``: the last message on
    our subject. ``overhead``: bytes that a message takes besides the envelope. ``untold``: what we may not ask, in
    words.
    """

    server: str
    version: str = ""
    clustered: bool = False
    certificate: bytes | None = None
    ahead: float | None = None
    ahead_within: float = 0.0
    last: bytes | None = None
    overhead: int = 0
    stream: StreamFacts | None = None
    untold: str = ""
