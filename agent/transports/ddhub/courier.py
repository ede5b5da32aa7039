"""Brings a composed message to its recipients: their keys first, then the message, then what became of it for each.

Tried once. What was achieved stays noted in the message, so the next try goes to those alone who do not have it. A
status of 200 says nothing: a recipient has it if the answer names it among those it was sent to, or says that it had it
before. When one does not get it, policy decides (``on_recipient_failure``): ``wait`` leaves the message unfinished;
``skip`` goes on without that one, but never without all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import anyio
from anyio import to_thread

from agent.errors import AgentError, Reason, TransportError, only
from agent.ports import Clock, Recipient
from agent.transports.ddhub.answers import Failure, Posted
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.config import DdhubRecipient
from agent.transports.ddhub.content import cipher
from agent.transports.ddhub.keys.key_source import KeySource
from agent.transports.ddhub.message import Outgoing, Refusal, unkeyed
from agent.transports.ddhub.topics import KnownTopic

S = 1_000_000_000
AT_ONCE = 4  # keys on their way
PATIENCE = 60 * S  # until ``skip`` goes on without a recipient whose failure may pass
KEY_LASTS = 3600 * S  # a key that was sent so long ago is sent again: mailboxes forget after a day
_DUPLICATE = "duplicate transaction id"
_TOO_LARGE = re.compile(r"payload size exceed|maximum payload|message size exceeds|\b10054\b", re.IGNORECASE)
_OF_ONE = (Reason.OTHER, Reason.STORE, Reason.TOO_LARGE)  # refusals of a key: of its recipient, not of the message
_LOG_IN = "has it ever logged in to this Data Hub, and does it still? only that makes its mailbox"
_NAMED = 3  # recipients in a message

log = logging.getLogger(__name__)


class Courier:
    """Of one channel. ``accounts``: by DID, of all recipients so far; since it was made."""

    def __init__(self, *, keys: KeySource, clock: Clock, policy: Literal["wait", "skip"], topic: str) -> None:
        self.accounts: dict[str, Recipient] = {}
        self._keys = keys
        self._clock = clock
        self._policy = policy
        self._topic = topic
        self._given_up = set[str]()  # who was skipped when last sent to: from then on tried once

    async def bring(self, out: Outgoing, api: Broker, topic: KnownTopic) -> None:
        """Return when all have it, or are skipped. Raises TransportError: the broker failed, or a recipient waits;
        TOO_LARGE: it is too large for the broker, and nobody has it.
        """
        had = [*out.waiting]
        out.refusals.clear()
        await self._send_keys(out, api)
        keyed = [did for did in out.waiting if did in out.keyed and did not in out.refusals]
        if keyed:
            posted = await api.send_message(
                keyed,
                payload=out.payload,
                signature=out.signature,
                topic_id=topic.id,
                topic_version=topic.version,
                gateway_id=out.gateway_id,
                transaction_id=out.transaction_id,
            )
            self._judge(out, keyed, posted)
        self._note(out, had)
        if out.waiting and self._policy == "skip":
            self._skip(out)
        if out.waiting:
            raise _undelivered(out)

    # ---- keys ---------------------------------------------------------------------------------------------------

    async def _send_keys(self, out: Outgoing, api: Broker) -> None:
        """To those who wait and have none yet. Raises TransportError."""
        now, limit = self._clock.boot(), anyio.CapacityLimiter(AT_ONCE)
        due = [each for did, each in out.waiting.items() if now - out.keyed.get(did, now - KEY_LASTS) >= KEY_LASTS]

        async def send(recipient: DdhubRecipient) -> None:
            async with limit:
                await self._send_key(recipient, out, api)

        try:
            async with anyio.create_task_group() as tasks:
                for each in due:
                    tasks.start_soon(send, each)
        except BaseExceptionGroup as raised:
            raise only(TransportError, raised) from None

    async def _send_key(self, recipient: DdhubRecipient, out: Outgoing, api: Broker) -> None:
        did = recipient.did
        out.keyed.pop(did, None)
        try:
            public = (await self._keys.keys(did)).to_encrypt(did)
            wrapped = await to_thread.run_sync(lambda: cipher.wrap(out.key, public, padding=recipient.padding))
        except AgentError as error:  # nobody knows its key, or can be asked, or it is none
            self._lacks(out, did, unkeyed(error))
            return
        try:
            message_id = await api.send_key(did, out.gateway_id, wrapped)
        except TransportError as error:
            if error.reason not in _OF_ONE:
                raise
            self._lacks(out, did, Refusal(f"the broker does not take its key: {error}", error.hint))
            return
        if message_id is None:
            self._lacks(out, did, Refusal("it has no mailbox for keys at the broker", _LOG_IN, for_good=True))
            return
        out.keyed[did] = self._clock.boot()

    # ---- what became of it --------------------------------------------------------------------------------------

    def _judge(self, out: Outgoing, asked: Iterable[str], posted: Posted) -> None:
        """Note for each recipient whether it has it. Raises TransportError: it is too large."""
        failures = [*posted.failed.values(), *posted.unnamed]
        large = next((each for each in failures if _TOO_LARGE.search(each.reason)), None)
        for did in asked:
            failure = posted.failed.get(did)
            if failure is None and did in posted.sent:
                out.has(did)
            elif failure is not None and _DUPLICATE in failure.reason.lower():
                out.has(did, duplicate=True)
            else:
                self._lacks(out, did, _refusal(failure, posted.unnamed))
        if large is not None and not out.delivered:
            what = f"the broker's NATS takes no message of {len(out.payload)} bytes: {large.reason}"
            hint = "lower max_message, or have max_payload of the broker's NATS raised"
            raise TransportError(what, hint=hint, reason=Reason.TOO_LARGE)

    def _lacks(self, out: Outgoing, did: str, refusal: Refusal) -> None:
        out.lacks(did, refusal, now=self._clock.boot())

    def _note(self, out: Outgoing, had: Iterable[str]) -> None:
        """Count what was delivered, and tell of each recipient whose state changed."""
        for did in had:
            before, refusal = self.accounts.get(did, Recipient(did)), out.refusals.get(did)
            if refusal is None:
                self._given_up.discard(did)
                delivered = before.delivered + len(out.tokens)
                self.accounts[did] = Recipient(did, delivered, before.skipped, last=self._clock.boot())
                if before.trouble:
                    log.info("recipient gets records again topic=%s did=%s", self._topic, did)
                continue
            self.accounts[did] = replace(before, trouble=refusal.reason, remedy=refusal.hint)
            if before.trouble != refusal.reason:
                log.warning(
                    "recipient does not get records topic=%s did=%s error=%s hint=%s",
                    self._topic,
                    did,
                    refusal.reason,
                    refusal.hint,
                )

    def _skip(self, out: Outgoing) -> None:
        """Go on without those whose failure does not pass; if nobody has it, that is no failure of theirs."""
        if not out.delivered:
            return
        now = self._clock.boot()
        for did in [*out.waiting]:
            waits = now - out.failing[did] < PATIENCE and did not in self._given_up
            if waits and not out.refusals[did].for_good:
                continue
            self._given_up.add(did)
            del out.waiting[did]
            before = self.accounts[did]
            if not before.skipped:
                log.warning(
                    "recipient is skipped, for it records are as withdrawn topic=%s did=%s error=%s hint=%s",
                    self._topic,
                    did,
                    out.refusals[did].reason,
                    "`edge-agent outbox resend` sends them again once it can get them",
                )
            self.accounts[did] = replace(before, skipped=before.skipped + len(out.tokens))


def _refusal(failure: Failure | None, unnamed: Iterable[Failure]) -> Refusal:
    """Why a recipient did not get it; the broker may not say of whom it speaks."""
    failure = failure or next(iter(unnamed), None)
    if failure is None:
        hint = "the broker's log may say why; it is sent again"
        return Refusal("the broker's answer does not name it", hint)
    words = failure.reason or failure.code or "no reason given"
    if "not exists" in words:
        return Refusal(f"the broker does not know it: {words}", _LOG_IN, for_good=True)
    if "format invalid" in words:
        return Refusal(f"the broker cannot write to it: {words}", "correct its DID", for_good=True)
    return Refusal(f"the broker did not store it: {words}", "look at the broker's NATS; it is sent again")


def _undelivered(out: Outgoing) -> TransportError:
    """For the log and the status: who, why, and what to do."""
    named = [f"{did}: {out.refusals[did].reason}" for did in [*out.waiting][:_NAMED]]
    more = len(out.waiting) - len(named)
    words = " / ".join(named) + (f" / and {more} more" if more else "")
    hints = dict.fromkeys(out.refusals[did].hint for did in out.waiting)
    share = f"{len(out.waiting)} of {len(out.waiting) + out.delivered} recipients do not get"
    return TransportError(
        f"{share} what is sent, which waits: {words}", hint=" / ".join([*hints][:_NAMED]), reason=Reason.RECIPIENT
    )
