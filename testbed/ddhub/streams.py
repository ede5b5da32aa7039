"""The broker's side of NATS JetStream: streams, publishing, and the consumers that searches and acknowledgements use.

Messages older than the expiry by the hub's clock are taken out of a stream before anybody looks, and when the clock is
moved: JetStream's own max_age counts real time. Likewise its window for duplicates: an id that JetStream still knows
though by the hub's clock the window is over is published again under another one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, MaxPayloadError, NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from testbed.ddhub.clock import HubClock
from testbed.ddhub.naming import stream_name, stream_subject
from testbed.ddhub.replies import Refused
from testbed.ddhub.settings import Settings

MOST_PER_FETCH = 256
_MAX_ACK_PENDING = 50_000


@dataclass(frozen=True, slots=True)
class Found:
    """A message of a consumer, and its body."""

    raw: Msg
    body: dict[str, Any]

    @property
    def subject(self) -> str:
        """Where it was published."""
        return self.raw.subject

    @property
    def id(self) -> str:
        """The broker's messageId."""
        return str(self.body["messageId"])

    @property
    def at_ms(self) -> int:
        """When the broker took it, ms since 1970."""
        return int(self.body["timestampNanos"]) // 1_000_000


class NotPublished(Exception):
    """What NATS says against a message, as the Java client words it."""


class Streams:
    """One connection to NATS, opened when first needed. Its errors are the broker's (codes 20 and 60)."""

    def __init__(self, url: str, *, settings: Settings, clock: HubClock) -> None:
        self._url = url
        self._settings = settings
        self._clock = clock
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._published: dict[tuple[str, str], tuple[float, int]] = {}  # stream, id: when, under which of its names

    async def close(self) -> None:
        """Leave NATS."""
        if self._client is not None:
            await self._client.close()

    async def connection(self) -> Client:
        """The connection. Raises Refused (60)."""
        async with self._opening:
            if self._client is None or not self._client.is_connected:
                if self._client is not None:
                    await self._client.close()
                try:
                    self._client = await nats.connect(
                        self._url, allow_reconnect=False, connect_timeout=5, error_cb=_unheard
                    )
                except (OSError, Error, TimeoutError) as error:
                    raise Refused(400, "60", f"Unable to connect to NATS servers: {error}") from None
            return self._client

    async def _jetstream(self) -> JetStreamContext:
        return (await self.connection()).jetstream(timeout=self._settings.request_wait_s)

    # ---- streams ----

    async def create(self, fqcn: str, *, owner: str | None = None) -> None:
        """The stream of a channel; ``owner`` is the DID that an anonymous one belongs to. Raises Refused (20)."""
        config = StreamConfig(
            name=stream_name(fqcn),
            description=owner,
            subjects=[stream_subject(fqcn)],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=self._settings.expiry_ms / 1000,
            max_msg_size=self._settings.message_max,
            duplicate_window=self._settings.duplicate_window_s,
            num_replicas=self._settings.replicas,
        )
        await self._ask(self._jetstream(), lambda jetstream: jetstream.add_stream(config))

    async def delete(self, fqcn: str) -> None:
        """Delete a stream with its messages. Raises Refused (20)."""
        await self._ask(self._jetstream(), lambda jetstream: jetstream.delete_stream(stream_name(fqcn)))

    async def names(self) -> list[str]:
        """All streams."""
        listed = await self._ask(self._jetstream(), lambda jetstream: jetstream.streams_info())
        return [each.config.name for each in listed]

    async def consumers(self, fqcn: str) -> list[str]:
        """The durables of a stream. Raises Refused (20)."""
        listed = await self._ask(self._jetstream(), lambda jetstream: jetstream.consumers_info(stream_name(fqcn)))
        return [each.name for each in listed]

    async def delete_consumer(self, fqcn: str, name: str) -> None:
        """Delete a durable. Raises Refused (20)."""
        await self._ask(self._jetstream(), lambda jetstream: jetstream.delete_consumer(stream_name(fqcn), name))

    async def stored(self, fqcn: str) -> list[dict[str, Any]]:
        """The bodies of all messages of a stream in order, with ``subject`` and ``headers``: for tests."""
        jetstream, stream, found = await self._jetstream(), stream_name(fqcn), []
        state = (await jetstream.stream_info(stream)).state
        for sequence in range(state.first_seq, state.last_seq + 1) if state.messages else ():
            try:
                message = await jetstream.get_msg(stream, sequence)
            except NotFoundError:
                continue
            body = json.loads(message.data or b"{}")
            found.append({**body, "subject": message.subject, "headers": message.headers or {}})
        return found

    async def expire(self, fqcn: str) -> None:
        """Take out what is too old by the hub's clock. Raises Refused (20)."""
        jetstream, stream = await self._jetstream(), stream_name(fqcn)
        horizon = self._clock.now_ms() - self._settings.expiry_ms
        state = (await self._ask(self._jetstream(), lambda jetstream: jetstream.stream_info(stream))).state
        if not state.messages:
            return
        sequence = state.first_seq
        while sequence <= state.last_seq:
            try:
                message = await jetstream.get_msg(stream, sequence)
            except NotFoundError:
                sequence += 1
                continue
            if int(json.loads(message.data or b"")["timestampNanos"]) // 1_000_000 > horizon:
                break
            sequence += 1
        if sequence > state.first_seq:
            await jetstream.purge_stream(stream, seq=sequence)

    # ---- publishing ----

    async def publish(self, fqcn: str, subject: str, body: bytes, *, dedupe_id: str | None = None) -> bool:
        """Store a message; False if it is a duplicate. Raises NotPublished, Refused (60)."""
        client = await self.connection()
        jetstream = client.jetstream(timeout=self._settings.request_wait_s)
        stream, now = stream_name(fqcn), self._clock.now()
        headers, turn = None, 0
        if dedupe_id is not None:
            known = self._published.get((stream, dedupe_id))
            turn = known[1] if known else 0
            if known is not None and now - known[0] >= self._settings.duplicate_window_s:
                turn += 1
            headers = {"Nats-Msg-Id": f"{dedupe_id};{turn}" if turn else dedupe_id}
        try:
            answer = await jetstream.publish(subject, body, headers=headers)
        except MaxPayloadError:
            raise NotPublished(
                f"Message payload size exceed server configuration {len(body)} vs {client.max_payload}"
            ) from None
        except APIError as error:
            raise NotPublished(_api_text(error)) from None
        except (NoRespondersError, Error, TimeoutError, OSError):
            raise NotPublished("Timeout or no response waiting for NATS JetStream server") from None
        if answer.duplicate:
            return False
        if dedupe_id is not None:
            self._published[stream, dedupe_id] = (now, turn)
        return True

    # ---- consumers ----

    async def consumer(self, fqcn: str, name: str) -> tuple[int, int]:
        """Make sure that a durable is there: how many messages await acknowledgement, and how many are new.

        Raises Refused (20).
        """
        config = ConsumerConfig(
            durable_name=name,
            filter_subject=f"{stream_name(fqcn)}.*",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._settings.ack_wait_s,
            max_ack_pending=_MAX_ACK_PENDING,
        )
        info = await self._ask(
            self._jetstream(), lambda jetstream: jetstream.add_consumer(stream_name(fqcn), config=config)
        )
        return info.num_ack_pending or 0, info.num_pending or 0

    async def fetch(self, fqcn: str, name: str, count: int) -> list[Found]:
        """``count`` messages, or as many as come within the fetch time of each 256."""
        found: list[Found] = []
        while len(found) < count:
            batch = min(MOST_PER_FETCH, count - len(found))
            got = await self._fetch(stream_name(fqcn), name, batch)
            found += got
            if len(got) < batch:
                break
        return found

    async def fetch_at_once(self, fqcn: str, name: str, most: int) -> list[Found]:
        """What is there to be delivered now, up to ``most`` messages."""
        return await self._fetch(stream_name(fqcn), name, min(most, MOST_PER_FETCH), wait=False)

    async def _fetch(self, stream: str, name: str, batch: int, *, wait: bool = True) -> list[Found]:
        client = await self.connection()
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox, pending_bytes_limit=0)
        limit, found = self._settings.fetch_wait_s, list[Found]()
        try:
            request = json.dumps({"batch": batch, **({"expires": int(limit * 1e9)} if wait else {"no_wait": True})})
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", request.encode(), reply=inbox)
            while len(found) < batch:
                message = await answers.next_msg(limit + 1)
                if message.headers and "Status" in message.headers:  # 404, 408: nothing more, or not within the time
                    break
                found.append(Found(message, json.loads(message.data)))
        except TimeoutError:
            pass
        finally:
            await answers.unsubscribe()
        return found

    @staticmethod
    async def acknowledge(messages: Sequence[Found]) -> None:
        """Let a durable be done with them; returns when it is."""
        async with asyncio.TaskGroup() as tasks:
            for message in messages:
                tasks.create_task(message.raw.ack_sync(timeout=5))

    @staticmethod
    async def put_back(messages: Sequence[Found]) -> None:
        """Let them come again with the next fetch."""
        for message in messages:
            await message.raw.nak()

    async def _ask(self, jetstream: Any, call: Any) -> Any:
        try:
            return await call(await jetstream)
        except APIError as error:
            raise Refused(400, "20", _api_text(error)) from None
        except (Error, TimeoutError, OSError) as error:
            raise Refused(400, "60", f"Timeout or no response waiting for NATS JetStream server: {error}") from None


def _api_text(error: APIError) -> str:
    return f"{error.description} [{error.err_code}]"


async def _unheard(error: Exception) -> None:
    """The connection's errors come with the next call."""
