"""Energy Web's Data Hub: records in encrypted messages to each recipient (docs/evidence.md section 7, docs/ddhub.md).

What is handed over fills a draft. It leaves when it is full, ``send_every`` after its first record, or when told to
hurry; nothing that is sealed is split. One message is on its way at a time, so recipients get records in order. Records
are acknowledged once each recipient has their message, or is skipped by policy.

Who opens a session next goes on with a message that not all have. Nothing is kept on disk: after a crash its records go
once more, under the same transaction id if they make the same message, and recipients tell repeats by record.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from agent.errors import Reason, TransportError, Verdict
from agent.ports import Ack, Clock, Last, Message, Recipient, Signer
from agent.transports.ddhub.answers import Limits
from agent.transports.ddhub.broker import Broker, broker
from agent.transports.ddhub.config import DdhubConfig, DdhubRecipient
from agent.transports.ddhub.content.copies import Copies
from agent.transports.ddhub.content.payload import largest_envelope
from agent.transports.ddhub.content.schema import SchemaError
from agent.transports.ddhub.courier import Courier
from agent.transports.ddhub.keys.key_source import KeySource, open_key_source
from agent.transports.ddhub.keys.network import participant
from agent.transports.ddhub.keys.participant import ParticipantError
from agent.transports.ddhub.login import Login
from agent.transports.ddhub.message import MOST_RECORDS, Draft, Outgoing, compose, fits_with_copy
from agent.transports.ddhub.recipients import Recipients
from agent.transports.ddhub.requests import Timeouts
from agent.transports.ddhub.topics import Topics
from agent.transports.facts import BrokerFacts

S = 1_000_000_000
AROUND = 4096  # bytes that the broker writes around a payload, in what its limit counts
LEAST_MESSAGE = 4096  # bytes; a broker that says it takes less is not believed
OPENED_WITHIN = 240.0  # s, all together: before the watchdog takes a publisher for hung
_LOOK_EVERY = 30.0  # s: a suspended machine's timers stand still, its clock does not

log = logging.getLogger(__name__)


class DdhubTransport:
    """Implements the ``Transport`` port for a channel."""

    config_model = DdhubConfig
    window = 2 * MOST_RECORDS
    ack_within: int | None = None
    reads_back = False

    def __init__(
        self,
        config: DdhubConfig,
        *,
        topic: str,
        signer: Signer,
        clock: Clock,
        keys: KeySource | None = None,
        timeouts: Timeouts | None = None,
        over: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``keys``: of recipients, in place of what the configuration names; ``over``: in place of the network."""
        self.topic = topic
        self.config = config
        self.signer = signer
        self.clock = clock
        self.max_envelope: int | None = config.max_envelope
        self.most = config.max_message  # characters of an encrypted payload of several records
        self.unfinished: Outgoing | None = None
        self.delivered: set[str] = set()  # by message id: acknowledged once they are handed over again
        self.due: int | None = None  # boot time at which the draft of records in their turn leaves
        self.trouble: TransportError | None = None  # why the unfinished message is
        self.copies = {resent: Copies() for resent in (False, True)}
        self.copy_missing = ""  # why the last record with values went without a readable copy
        self._keys = keys or open_key_source(config.keys, signer=signer, clock=clock)
        self.courier = Courier(keys=self._keys, clock=clock, policy=config.on_recipient_failure, topic=topic)
        self.topics = Topics(config.topic, clock=clock)
        self.listed = Recipients(config, own=signer.did, clock=clock)
        self._login = Login(clock=clock)
        self._timeouts = timeouts
        self._over = over

    @property
    def recipients(self) -> Sequence[Recipient]:
        """All that a message was for."""
        return tuple(self.courier.accounts.values())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[DdhubSession]:
        """Log in, and learn what there is to know. Raises TransportError."""
        try:
            participant(self.signer.did)
        except ValueError as error:
            hint = "set identity.did, or make a key with --network volta or ewc"
            raise TransportError(str(error), hint=hint, reason=Reason.AUTHORIZATION) from error
        async with broker(
            self.config,
            signer=self.signer,
            clock=self.clock,
            login=self._login,
            opens=not self.config.is_visitor,
            timeouts=self._timeouts,
            over=self._over,
        ) as api:
            try:
                with anyio.fail_after(OPENED_WITHIN):
                    self.learn(await api.limits())
                    await self.topics.get(api)
                    recipients = await self.listed.get(api)
                    if self.config.is_visitor:
                        await self._all_have_keys(recipients)
            except TimeoutError as error:
                what = f"the Data Hub takes longer than {OPENED_WITHIN:.0f} s to let us in"
                raise TransportError(what, hint="look at its load", reason=Reason.TIMEOUT) from error
            answers, incoming = anyio.create_memory_object_stream[Ack](math.inf)
            with answers, incoming:
                async with anyio.create_task_group() as tasks:
                    session = DdhubSession(self, api, answers=answers, incoming=incoming)
                    session.remark = f"recipients: {len(recipients)}"
                    if not self.config.is_visitor:
                        tasks.start_soon(session.carry)
                    yield session
                    tasks.cancel_scope.cancel()

    async def _all_have_keys(self, recipients: Iterable[DdhubRecipient]) -> None:
        """Raises TransportError: somebody has none, or nobody can be asked."""
        for each in recipients:
            try:
                (await self._keys.keys(each.did)).to_encrypt(each.did)
            except ParticipantError as error:
                raise TransportError(str(error), hint=error.hint, reason=Reason.RECIPIENT) from error

    def learn(self, limits: Limits) -> None:
        """What the broker takes, if that is less than the channel wants."""
        if limits.message is not None:
            most = max(LEAST_MESSAGE, limits.message - AROUND)
            self.max_envelope = largest_envelope(min(most, self.config.max_message))
            self.shrink(most)

    def shrink(self, most: int) -> None:
        """Messages of several records have at most so many characters from now on."""
        if most < self.most:
            self.most = most
            log.warning("messages are kept smaller than max_message topic=%s bytes=%d", self.topic, most)


class DdhubSession:
    """What is handed over, from logged in to failed; implements the ``TransportSession`` port."""

    def __init__(
        self,
        transport: DdhubTransport,
        api: Broker,
        *,
        answers: MemoryObjectSendStream[Ack],
        incoming: MemoryObjectReceiveStream[Ack],
    ) -> None:
        self.remark = ""  # for who only looks
        self._transport = transport
        self._clock = transport.clock
        self._api = api
        self._drafts: dict[bool, Draft] = {}  # being filled; of records in their turn, and resent
        self._closed = deque[Draft]()  # wait to leave
        self._changed = anyio.Event()  # set, and replaced, with all that ``carry`` or ``room`` wait for
        self._answers, self._incoming = answers, incoming
        self._failure: TransportError | None = None
        if transport.unfinished is not None:
            transport.unfinished.tokens = dict.fromkeys(transport.unfinished.tokens)

    @property
    def delivers(self) -> bool:
        """Logging in showed that the broker is there, unless the last message says that somebody does not get it."""
        return self._transport.trouble is None

    async def facts(self) -> BrokerFacts:
        """What the server showed of itself, for who looks whether all is well. Never raises."""
        return self._api.heard

    async def last(self) -> Last | None:
        """A broker of the Data Hub shows nobody what others were sent."""
        return None

    async def send(self, message: Message) -> None:
        """Put it into a draft. Raises TransportError (REJECT: it does not fit into a message of its own)."""
        if self._failure is not None:
            raise self._failure
        transport = self._transport
        if not message.resent and message.id in transport.delivered:
            transport.delivered.remove(message.id)
            self._answers.send_nowait(Ack(message.token))
            return
        for draft in (*self._drafts.values(), *self._closed):
            if draft.resent == message.resent and message.id in draft.tokens:
                draft.tokens[message.id] = message.token
                return
        unfinished = transport.unfinished
        if unfinished is not None and unfinished.resent == message.resent and message.id in unfinished.tokens:
            unfinished.tokens[message.id] = message.token
            return
        assert transport.max_envelope is not None
        if len(message.envelope) > transport.max_envelope:
            raise _too_large(len(message.envelope), transport.max_envelope)
        copied = transport.topics.wants_copies
        copy = await self._copy(message) if copied else ""
        if self._failure is not None:
            raise self._failure
        self._draft_for(message, copy, copied=copied).add(message, copy)
        self._wake()

    async def _copy(self, message: Message) -> str | None:
        """The values of a record, readable; None: it goes without. Raises OutboxError."""
        transport = self._transport
        copies = transport.copies[message.resent]
        copy = await to_thread.run_sync(copies.of, message.envelope, message.find_plan)
        missing = "its plan is not in the outbox any more" if copy is None else ""
        if copy and not fits_with_copy(message, copy, most=transport.most):
            copy, missing = None, "a message does not take both"
        if missing and missing != transport.copy_missing:
            log.warning(
                "record goes without its readable copy topic=%s record=%s error=%s hint=%s",
                transport.topic,
                message.id,
                missing,
                "the record itself tells all; raise max_message or shorten seal_within if it is too large",
            )
        if copy != "":
            transport.copy_missing = missing
        return copy

    def _draft_for(self, message: Message, copy: str | None, *, copied: bool) -> Draft:
        draft = self._drafts.get(message.resent)
        if draft is not None and not draft.takes(message, copy):
            self._close(draft)
            draft = None
        if draft is None:
            now = self._clock.boot()
            draft = Draft(most=self._transport.most, since=now, resent=message.resent, copied=copied)
            self._drafts[message.resent] = draft
            if not message.resent and self._transport.due is None:
                self._transport.due = now + self._transport.config.send_every
        return draft

    def _close(self, draft: Draft) -> None:
        del self._drafts[draft.resent]
        self._closed.append(draft)
        if not draft.resent:
            self._transport.due = None
        self._wake()

    async def room(self) -> None:
        """Return once no full message waits for the one on its way. Never raises."""
        while self._closed and self._failure is None:
            await self._changed.wait()

    def hasten(self) -> None:
        """What was handed over leaves now."""
        for draft in [*self._drafts.values()]:
            self._close(draft)

    async def acks(self) -> AsyncIterator[Ack]:
        """Of the records of each message, once all have it. Raises TransportError when one could not be delivered."""
        async for ack in self._incoming:
            yield ack
        assert self._failure is not None
        raise self._failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # ---- on the way ---------------------------------------------------------------------------------------------

    async def carry(self) -> None:
        """Bring one message after another until one fails."""
        try:
            while True:
                out = self._transport.unfinished
                if out is None:
                    out = await self._composed(await self._next())
                    self._transport.unfinished = out
                await self._bring(out)
        except TransportError as error:
            self._failure = self._transport.trouble = error
            self._answers.close()
            self._wake()

    async def _next(self) -> Draft:
        """The next that is closed, or due."""
        transport = self._transport
        while not self._closed:
            changed, wait = self._changed, _LOOK_EVERY
            if transport.due is not None and False in self._drafts:
                left = transport.due - self._clock.boot()
                if left <= 0:
                    self._close(self._drafts[False])
                    break
                wait = min(left / S, _LOOK_EVERY)
            with anyio.move_on_after(wait):
                await changed.wait()
        draft = self._closed.popleft()
        self._wake()
        return draft

    async def _composed(self, draft: Draft) -> Outgoing:
        transport = self._transport
        topic = await transport.topics.get(self._api)
        recipients = await transport.listed.get(self._api)

        def composed() -> Outgoing:
            text = draft.text()
            topic.schema.check(text, encrypted=True)
            return compose(draft, text, recipients, signer=transport.signer)

        try:
            return await to_thread.run_sync(composed)
        except SchemaError as error:
            transport.topics.forget()
            raise TransportError(str(error), hint=error.hint, reason=Reason.SCHEMA) from error

    async def _bring(self, out: Outgoing) -> None:
        transport = self._transport
        try:
            topic = await transport.topics.get(self._api)
            await transport.courier.bring(out, self._api, topic)
        except TransportError as error:
            if error.reason is Reason.NO_TOPIC:
                transport.topics.forget()
            if error.reason != Reason.TOO_LARGE or out.delivered:
                raise
            transport.unfinished = None  # nobody has it: its records make smaller ones, or one is refused
            if len(out.tokens) > 1 or out.copies:  # alone, it may fit without its copy
                transport.shrink(len(out.payload) // 2)
                raise
            refusal = TransportError(str(error), hint=error.hint, reason=error.reason, verdict=Verdict.REJECT)
            self._answer(out, error=refusal)
        else:
            transport.trouble = transport.unfinished = None
            self._answer(out)

    def _answer(self, out: Outgoing, *, error: TransportError | None = None) -> None:
        """Acknowledge what was handed over in this session; the rest when it is."""
        for message_id, token in out.tokens.items():
            if token is not None:
                self._answers.send_nowait(Ack(token, error, duplicate=0 < out.delivered == out.duplicates))
            elif error is None and not out.resent:
                self._transport.delivered.add(message_id)


def _too_large(size: int, most: int) -> TransportError:
    return TransportError(
        f"record of {size} bytes is larger than a message takes ({most})",
        hint="raise max_message if the Data Hub takes that, or shorten seal_within",
        verdict=Verdict.REJECT,
        reason=Reason.TOO_LARGE,
    )
