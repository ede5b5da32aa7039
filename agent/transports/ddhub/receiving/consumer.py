"""Receiving from a Data Hub: the messages of one topic from a set of senders, each handed over and then acknowledged.

Keys are fetched and stored before messages, for the broker hands out a key once. A message is acknowledged once the
caller says that it has it (``acknowledge``), so a crash repeats and never skips; what was handed over and acknowledged
is not handed over again when it comes again. What becomes of a message that is not handed over:

| message | |
|---|---|
| its key has not come, or none of our RSA keys opens it | parked: tried again when a key comes or ours change |
| the sender has no usable key, or nobody can be asked | parked: tried again each minute |
| signature not by the sender's key, also after another look at the DID document | parked: tried again each minute |
| parked for 25 h, or the oldest when 256 MiB are parked | given up; ``outbox resend`` brings its records again |
| of another sender or topic, a file, encrypted and not signed, not our format | refused at once |

Each is told in the log once, counted, and stops nothing else. What is parked is in the mailbox and acknowledged at the
broker: there it would come first in each search, until only such messages came.

Searches for one client id must not overlap: the mailbox sees to that. A search that finds nothing proves little, for
the broker also says so when it could not look: ``settled`` tells when nothing more is to be expected.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import anyio
from anyio import to_thread

from agent.errors import TransportError
from agent.ports import Clock
from agent.transports.ddhub.answers import ReceivedMessage
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.keys.key_source import RenewedKeySource
from agent.transports.ddhub.receiving.delivery import Delivery
from agent.transports.ddhub.receiving.mailbox import Mailbox
from agent.transports.ddhub.receiving.our_keys import OurKeys
from agent.transports.ddhub.receiving.sorter import Sorter

S = 1_000_000_000
AMOUNT = 16  # messages of a search: some 7 MB of them as senders usually fill them
_KEYS = 100  # of a search; a kilobyte each
_MOST_KEY_SEARCHES = 2000  # in a row
_ACKS = 500  # of a request
_MOST_MORE = 256  # messages asked for beyond the amount, because so many come again
_EMPTY = 3  # searches in a row that find nothing, until nothing is to be expected
_TOPIC = 3600 * S  # until it is looked up again
_HELD = 1.0  # s between searches while the broker may hold something back
_REREAD = 30 * S  # at the least between two times that all keys are fetched again
_ACK_WAIT = 35 * S  # so long may the broker hold back what it had found for a search that did not end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TopicName:
    """A topic, whichever versions of it there are."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def in_file_names(self) -> str:
        """The same where only few characters are safe, and not too many: of two topics it may be the same."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.owner}.{self.name}")[:200]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A topic as the broker has it, and how it is read. ``until``: the boot time when it is to be looked up again."""

    topic_id: str
    client_id: str
    sorter: Sorter
    until: int


class Consumer:
    """Made by ``receiving`` of source.py. One task takes batches, any may acknowledge them."""

    def __init__(
        self,
        api: Broker,
        *,
        topic: TopicName,
        senders: Iterable[str],
        mailbox: Mailbox,
        keys: RenewedKeySource,
        ours: OurKeys,
        clock: Clock,
        every: float = 10.0,
    ) -> None:
        """``senders``: DIDs exactly as the broker writes them; ``keys``: theirs. ``every``: s between searches that
        find nothing.
        """
        self._api = api
        self._topic = topic
        self._senders = tuple(sorted(set(senders)))
        self._mailbox = mailbox
        self._keys = keys
        self._ours = ours
        self._clock = clock
        self._every = every
        self._reading: _Reading | None = None
        self._asking = anyio.Lock()  # searches and acknowledgements disturb each other at the broker
        self._held_until = clock.boot() + (0 if mailbox.was_closed else _ACK_WAIT)
        self._handed_over: dict[str, Delivery] = {}  # handed over and not acknowledged by the caller
        self._reread_at = clock.boot()  # not before it are all keys fetched again
        self._lacks_keys = False  # and then they shall be
        self._amount = AMOUNT
        self._unreadable = 0  # messages of the last search that lack what we need; they are not acknowledged
        self._empty = 0
        self._goes_on = False
        self._ack_trouble = ""
        self.counts: Counter[str] = Counter()
        """Messages since it was made: ``delivered``, ``flawed`` of them, ``parked``, ``refused``, ``given_up``,
        ``repeated``.
        """

    def close(self) -> None:
        """Nothing more is searched for. Call it before the mailbox is closed."""
        if self._clock.boot() < self._held_until:
            self._mailbox.count_as_crash()

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be expected at the moment: several searches found nothing, and the broker holds
        nothing back of a search that did not end.
        """
        is_held = self._lacks_keys or self._clock.boot() < self._held_until
        return self._empty >= _EMPTY and not is_held and not self._handed_over

    @property
    def waiting(self) -> int:
        """How many messages of the topic cannot be opened yet. Blocks. Raises MailboxError."""
        reading = self._reading
        return 0 if reading is None else len(self._mailbox.parked(reading.topic_id, self._senders))

    async def batches(self) -> AsyncGenerator[list[Delivery]]:
        """What came, by the broker's time within a batch; an empty list when a search found nothing to hand over.

        Raises TransportError, and may be called again then; MailboxError. Close it (``aclosing``).
        """
        while True:
            async with self._asking:
                batch = await self._round()
            yield batch
            if not self._goes_on:
                is_held = self._clock.boot() < self._held_until
                await anyio.sleep(min(self._every, _HELD) if is_held else self._every)

    async def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """The caller has these for good. They are never handed over again, also if the broker cannot be told now.

        Raises MailboxError.
        """
        ours = [each for each in deliveries if each.id in self._handed_over]
        if self._reading is None or not ours:
            return
        with anyio.CancelScope(shield=True):  # who is told to stop has them all the same
            await to_thread.run_sync(self._reading.sorter.finish, ours)
        for each in ours:
            del self._handed_over[each.id]
        async with self._asking:
            await self._settle(self._reading)

    async def old_client_ids(self) -> list[str]:
        """Client ids of this mailbox at the broker that are not in use: of senders and topics as they were. Raises
        TransportError.
        """
        ours = [each for each in await self._api.client_ids() if each.startswith(self._mailbox.prefix)]
        return sorted({*ours} - ({self._reading.client_id} if self._reading else set()))

    async def remove_client_ids(self, client_ids: Sequence[str]) -> list[str]:
        """Have the broker forget some of ``old_client_ids``; returns which it did. Raises TransportError,
        MailboxError.
        """
        removed = await self._api.remove_client_ids(client_ids) if client_ids else []
        for each in removed:
            await to_thread.run_sync(self._mailbox.forget_client_id, each)
        return removed

    # ---- a round ------------------------------------------------------------------------------------------------

    async def _round(self) -> list[Delivery]:
        reading = await self._current_topic()
        await self._ours.look()
        await self._drain()
        owed = await self._settle(reading)
        amount, searched = await self._search(reading, besides=owed)
        is_repeated = any(each.id not in self._handed_over for each in searched)
        new = await self._unknown(reading, searched)
        await self._fetch_missing_keys(reading, new)
        found = await reading.sorter.fresh(new)
        found += await reading.sorter.parked(without={*self._handed_over, *(each.id for each in new)})
        await reading.sorter.expire(max((each.nanos for each in searched), default=0))
        still_owed = await self._settle(reading)
        found.sort(key=lambda each: (each.nanos, each.id))
        self._handed_over |= {each.id: each for each in found}
        is_full = len(searched) + self._unreadable >= amount  # there may be more behind
        self._goes_on = bool(new or found) or (is_repeated and not still_owed)
        self._empty = 0 if new or found or is_full else self._empty + 1
        return found

    async def _current_topic(self) -> _Reading:
        """The topic, looked up each hour: it may have been deleted, and made again with another id."""
        now = self._clock.boot()
        if self._reading is not None and now < self._reading.until:
            return self._reading
        found = await self._api.topics(owner=self._topic.owner, name=self._topic.name)
        if self._reading is not None and found and found[0].id == self._reading.topic_id:
            self._reading = replace(self._reading, until=now + _TOPIC)
        elif found:
            if self._reading is not None:
                log.warning("topic has another id now and is read under that topic=%s", self._topic)
            self._reading = self._read(found[0].id, until=now + _TOPIC)
        if self._reading is None:
            hint = "have its owner register it, or correct the name: it counts to the letter"
            raise TransportError(f"the Data Hub has no topic {self._topic}", hint=hint)
        return self._reading

    def _read(self, topic_id: str, *, until: int) -> _Reading:
        client_id = self._mailbox.client_id(topic_id, self._senders)
        sorter = Sorter(
            mailbox=self._mailbox,
            client_id=client_id,
            topic_id=topic_id,
            senders=self._senders,
            keys=self._keys,
            ours=self._ours,
            clock=self._clock,
            counts=self.counts,
        )
        return _Reading(topic_id, client_id, sorter, until)

    async def _drain(self, until: Callable[[], bool] | None = None) -> None:
        """Fetch and store the keys that wait at the broker. When very many are here whose messages have not come, the
        others stay there, but for those that are fetched ``until`` something is so (it blocks).
        """
        client_id = await to_thread.run_sync(self._mailbox.key_client_id)
        for _ in range(_MOST_KEY_SEARCHES):
            has_room = await to_thread.run_sync(self._mailbox.has_room_for_keys)
            if not has_room and (until is None or await to_thread.run_sync(until)):
                return
            if not await self._fetch_keys(client_id):
                return

    async def _fetch_keys(self, client_id: str) -> bool:
        """Fetch and store some keys; whether there were any. The broker hands out a key once, so whatever happens on
        the way to the disk leaves the mailbox in doubt: a request that failed may have been done.
        """
        try:
            keys, bad = await self._api.search_keys(client_id=client_id, amount=_KEYS)
            if keys:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(partial(self._mailbox.put_keys, keys, listened=self._senders))
        except BaseException:
            self._mailbox.doubt_keys()
            raise
        for words in bad:
            log.warning("key of a message cannot be read what=%s", words)
        return bool(keys or bad)

    async def _fetch_missing_keys(self, reading: _Reading, messages: Sequence[ReceivedMessage]) -> None:
        """Look once more for keys of messages that have none; and, if an answer with keys may have been lost, fetch all
        again, also for what is parked.
        """

        def are_there() -> bool:
            return not reading.sorter.lack_keys(messages)

        if not await to_thread.run_sync(are_there):
            await self._drain(are_there)
        if not await to_thread.run_sync(self._mailbox.doubts_keys):
            return
        now = self._clock.boot()
        lack = await to_thread.run_sync(lambda: not are_there() or reading.sorter.parked_lack_keys())
        self._lacks_keys = lack and now < self._reread_at
        if lack and not self._lacks_keys:
            self._reread_at = now + _REREAD
            log.warning("keys of messages may have been lost on their way, and all are fetched again")
            await to_thread.run_sync(self._mailbox.reread_keys)
            with suppress(TransportError):  # the next round goes on with it; what has its key waits for nothing
                await self._drain(are_there)

    async def _search(self, reading: _Reading, *, besides: int) -> tuple[int, list[ReceivedMessage]]:
        """How many were asked for, and what came. Beyond the usual amount as many are asked for as come again because
        the broker does not know yet that they are done with: ``besides``, those that the caller has, and unreadable
        ones.
        """
        amount = self._amount + min(_MOST_MORE, len(self._handed_over) + self._unreadable + besides)
        try:
            found, bad = await self._api.search(
                client_id=reading.client_id, topic_ids=[reading.topic_id], senders=self._senders, amount=amount
            )
        except BaseException:
            self._held_until = self._clock.boot() + _ACK_WAIT
            self._amount = max(1, self._amount // 2)  # the answer may have been too large for somebody
            raise
        self._amount = min(AMOUNT, self._amount * 2)
        for words in bad if len(bad) != self._unreadable else ():
            log.warning("message cannot be read what=%s", words)
        self.counts["refused"] += max(0, len(bad) - self._unreadable)
        self._unreadable = len(bad)
        return amount, found

    async def _unknown(self, reading: _Reading, searched: Sequence[ReceivedMessage]) -> list[ReceivedMessage]:
        """Those that were never seen; the broker has forgotten, or not heard, that we have the others."""
        unique = {each.id: each for each in searched if each.id not in self._handed_over}
        known = await to_thread.run_sync(self._mailbox.known, [*unique])
        if known:
            repeated = [(each, unique.pop(each).nanos) for each in known]
            self.counts["repeated"] += len(repeated)
            await to_thread.run_sync(partial(self._mailbox.owe, repeated, client_id=reading.client_id))
        return [*unique.values()]

    async def _settle(self, reading: _Reading) -> int:
        """Tell the broker what is done with; what it does not take now is told again later. How many that is."""
        owed = await to_thread.run_sync(self._mailbox.owed, reading.client_id)
        for first in range(0, len(owed), _ACKS):
            try:
                acked, gone = await self._api.acknowledge(owed[first : first + _ACKS], client_id=reading.client_id)
            except TransportError as error:
                if str(error) != self._ack_trouble:
                    self._ack_trouble = str(error)
                    log.warning("messages are not acknowledged yet what=%s hint=%s", error, error.hint)
                return len(owed) - first
            self._ack_trouble = ""
            await to_thread.run_sync(partial(self._mailbox.settle, [*acked, *gone], client_id=reading.client_id))
        return 0
