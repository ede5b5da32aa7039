"""What a NATS server says of itself and of a stream, for `doctor`. Changes nothing; whatever is not as expected in
an answer is left out.
"""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import Any

from nats.js import JetStreamContext

from agent.transports.facts import BrokerFacts, StreamFacts
from agent.transports.nats.connection import Connection

_NS = 1_000_000_000
_FRACTION = re.compile(r"(\.\d{1,6})\d*")  # of a second, with more digits than datetime knows
_HEADERS = 512  # bytes that a message of ours has at most besides the envelope


def server_facts(connection: Connection) -> BrokerFacts:
    """What it said when it let us in."""
    info = connection.client._server_info
    return BrokerFacts(
        server=str(info.get("server_name", ""))[:80],
        version=str(info.get("version", ""))[:40],
        clustered=connection.clustered,
        certificate=connection.certificate,
        overhead=_HEADERS,
    )


async def stream_facts(
    connection: Connection, jetstream: JetStreamContext, stream: str | None, subject: str
) -> tuple[StreamFacts, float | None, float]:
    """The stream that takes our subject, and by how many seconds the server's clock is ahead of ours, give or take so
    many (None: it does not say its time). Raises what nats-py raises.
    """
    name = stream or await jetstream.find_stream_name_by_subject(subject)
    before = time.time()
    answer = json.loads(
        (await connection.client.request(f"$JS.API.STREAM.INFO.{name}", timeout=connection.timeouts.answer)).data
    )
    after = time.time()
    told = _time(answer.get("ts"))
    ahead = None if told is None else told - (before + after) / 2
    return _stream(name, _table(answer.get("config")), _table(answer.get("state"))), ahead, (after - before) / 2


def _stream(name: str, config: dict[str, Any], state: dict[str, Any]) -> StreamFacts:
    age, window = _limit(config.get("max_age")), _limit(config.get("duplicate_window"))
    return StreamFacts(
        name=name,
        max_msg_size=_limit(config.get("max_msg_size")),
        max_age=None if age is None else age / _NS,
        max_bytes=_limit(config.get("max_bytes")),
        held_bytes=_limit(state.get("bytes")) or 0,
        per_subject=_limit(config.get("max_msgs_per_subject")),
        duplicate_window=None if window is None else window / _NS,
        discard=str(config.get("discard", "old")),
        keeps=str(config.get("retention", "limits")),
        storage=str(config.get("storage", "file")),
        replicas=_limit(config.get("num_replicas")) or 1,
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _limit(value: Any) -> int | None:
    """0 and -1 stand for none."""
    return value if type(value) is int and value > 0 else None


def _time(text: Any) -> float | None:
    """S since 1970 of a time such as 2026-01-31T09:00:00.123456789Z."""
    try:
        return datetime.fromisoformat(_FRACTION.sub(r"\1", text)).timestamp()
    except (ValueError, TypeError):
        return None
