"""What a connection is subscribed to: SUBSCRIBE, UNSUBSCRIBE and the broker's answers (MQTT 5.0, 3.8 to 3.11)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence, Set
from typing import Any, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.subscribeoptions import SubscribeOptions

from adapters.mqtt.account import Account, link_down
from adapters.mqtt.message import Message
from adapters.mqtt.topics import matches
from agent.errors import AcquisitionError

S = 1_000_000_000
EXCHANGE = 10 * S  # ns: how long filters of before and of today are both subscribed, and copies may come after that
_AT_ONCE = 8  # filters in one packet; AWS IoT takes no more
_LEAST_FAILURE = 0x80
_MOST_SEEN = 8192  # messages among which a second copy is looked for, at least

T = TypeVar("T")
log = logging.getLogger(__name__)


class Subscriptions:
    """Those of one connection of ``client``, which a kept session may have had before."""

    def __init__(self, account: Account, client: paho.Client) -> None:
        self._account = account
        self._client = client
        self._answers: dict[int | None, asyncio.Future[Sequence[Any]]] = {}
        self._ended: AcquisitionError | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._before: Set[str] = frozenset()  # filters that the session had
        self._left: Set[str] = frozenset()  # of these, what is not of today
        self._left_at: int | None = None  # boot time when the broker let go of them
        self._seen: set[int] = set()  # hashes of messages that they took
        self._seen_before: set[int] = set()
        client.on_subscribe = self._answered
        client.on_unsubscribe = self._answered

    async def recall(self) -> None:
        """Before CONNECT, for messages may come with CONNACK: know what the session may be subscribed to."""
        await self._account.kept.read()
        self._before = self._account.kept.known
        self._left = self._before - self._account.filters.keys()

    def connected(self, *, present: bool) -> bool:
        """``present``: the broker kept the session; returns whether with today's filters, as far as is known."""
        if not present:
            self._before = self._left = frozenset()
        return present and (not self._before or self._before == self._account.filters.keys())

    async def renew(self) -> None:
        """Subscribe what is configured. Raises AcquisitionError.

        What an earlier configuration subscribed is left a while later: with a filter some brokers (NATS) throw away
        what waits for it. Until then messages may come twice (``second_copy``).
        """
        wanted = self._account.filters
        if self._account.config.session == "keep":
            await self._account.kept.write(self._before | wanted.keys())
        await self._subscribe(sorted(wanted.items()))
        if self._left:
            self._leaving = asyncio.create_task(self._leave(sorted(self._left)))

    def end(self, error: AcquisitionError) -> None:
        """The connection is lost: who waits for an answer gets the error."""
        self._ended = error
        if self._leaving is not None:
            self._leaving.cancel()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error)

    def second_copy(self, message: Message, now: int) -> bool:
        """Whether this may be the second copy of a message that came by a filter of today and by one of before."""
        if not self._left:
            return False
        if self._left_at is not None and now - self._left_at > EXCHANGE:
            self._left = frozenset()
            return False
        if message.skipped is not None or not any(matches(each, message.topic) for each in self._left):
            return False
        key = hash((message.topic, message.payload))
        if key in self._seen or key in self._seen_before:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen, self._seen_before = set(), self._seen
        self._seen.add(key)
        return False

    async def _leave(self, filters: Sequence[str]) -> None:
        await asyncio.sleep(EXCHANGE / S)
        remaining = await self._unsubscribe(filters)
        self._left_at = self._account.clock.boot()
        await self._account.kept.write(remaining | self._account.filters.keys())

    async def _subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        for part in _parts(filters):
            options: list[Any] = list(part)
            if self._account.config.version == "5":
                # A kept subscription of QoS 1 or 2 got what was published meanwhile: its retained messages are no news.
                options = [(topic, SubscribeOptions(qos=qos, retainHandling=1 if qos else 0)) for topic, qos in part]
            codes = await self._answer(self._client.subscribe(options))
            if len(codes) != len(part):
                raise link_down("the broker answers for other subscriptions than ours", "see the broker's log")
            for (topic, qos), code in zip(part, codes, strict=True):
                if code.value >= _LEAST_FAILURE:
                    hint = "may this user read it? see the broker's access rules"
                    raise link_down(f'the broker refuses the subscription to "{topic}": {code}', hint)
                if code.value < qos:
                    self._lowered(topic, qos, code.value)

    async def _unsubscribe(self, filters: Sequence[str]) -> set[str]:
        """Those that the broker keeps all the same."""
        remaining = set()
        for part in _parts(filters):
            codes = await self._answer(self._client.unsubscribe(list(part)))
            answers = codes or [None] * len(part)  # 3.1.1 says no more than that it came
            for topic, code in zip(part, answers, strict=False):
                if code is not None and code.value >= _LEAST_FAILURE:
                    remaining.add(topic)
                    log.warning(
                        "broker keeps what an earlier configuration subscribed connection=%s topic=%s error=%s",
                        self._account.name,
                        topic,
                        code,
                    )
                else:
                    log.info("no longer subscribed connection=%s topic=%s", self._account.name, topic)
        return remaining

    async def _answer(self, sent: tuple[Any, int | None]) -> Sequence[Any]:
        """The broker's answer to a packet. Raises AcquisitionError if the connection is lost before."""
        if self._ended is not None:
            raise self._ended
        _, mid = sent
        future: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
        self._answers[mid] = future
        try:
            return await future
        finally:
            del self._answers[mid]

    def _answered(self, client: paho.Client, data: Any, mid: int, codes: Sequence[Any], properties: Any) -> None:
        future = self._answers.get(mid)
        if future is not None and not future.done():
            future.set_result(codes)

    def _lowered(self, topic: str, asked: int, granted: int) -> None:
        if topic not in self._account.lowered:
            self._account.lowered.add(topic)
            log.warning(
                "broker grants a lower QoS connection=%s topic=%s asked=%d granted=%d",
                self._account.name,
                topic,
                asked,
                granted,
            )


def _parts(whole: Sequence[T]) -> Iterator[Sequence[T]]:
    return (whole[at : at + _AT_ONCE] for at in range(0, len(whole), _AT_ONCE))
