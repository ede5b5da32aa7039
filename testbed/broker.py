"""The JetStream stream that a site's records go to."""

from __future__ import annotations

from collections.abc import Sequence

import nats
from nats.js.api import RetentionPolicy, StorageType, StreamConfig


async def create_stream(
    url: str, name: str, subjects: Sequence[str], *, duplicate_window_s: float = 120, replicas: int = 1
) -> None:
    """Create the stream on disk; one that exists with the same settings is left as it is.

    Message ids are remembered for ``duplicate_window_s`` seconds. Raises what nats-py raises.
    """
    client = await nats.connect(url, allow_reconnect=False, connect_timeout=5)
    try:
        await client.jetstream().add_stream(
            StreamConfig(
                name=name,
                subjects=list(subjects),
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                duplicate_window=duplicate_window_s,
                num_replicas=replicas,
            )
        )
    finally:
        await client.close()
