"""The broker's receiving side: searching messages and keys, and acknowledging.

A search loses for its client id what its filters leave out, and has no order. Calls with one client id at the same time
disturb each other, for they share a consumer.
"""

from __future__ import annotations

import random
from typing import Any

from testbed.ddhub.broker import Call, Endpoint, Parts
from testbed.ddhub.fields import ACK, KEY_SEARCH, SEARCH, flag, number, since, validate
from testbed.ddhub.naming import client_id_of, consumer_name, key_consumer_name, keys_fqcn, since_part, stream_name
from testbed.ddhub.replies import Json, Refused, missing
from testbed.ddhub.streams import Found
from testbed.ddhub.topics import Topics

_OPTIONAL = ("initiatingMessageId", "initiatingTransactionId", "topicRestrictions")


class Searches:
    """``chance`` decides in which order results come."""

    def __init__(self, parts: Parts, topics: Topics, *, chance: random.Random) -> None:
        self._parts = parts
        self._topics = topics
        self._chance = chance

    def endpoints(self) -> list[Endpoint]:
        """The calls."""
        return [
            Endpoint("POST", "/messages/search", "user", self.search),
            Endpoint("POST", "/messages/ack", "user", self.acknowledge),
            Endpoint("POST", "/messages/internal/search", "user", self.search_keys),
        ]

    async def search(self, call: Call) -> list[Json]:
        """POST /messages/search."""
        body = call.json()
        validate(SEARCH, body)
        amount, at_once, begin = number(body, "amount", 1), flag(body, "ack"), since(body)
        for topic_id in body["fqcnTopicList"]:
            if self._topics.find(topic_id, deleted=True) is None:
                raise missing(f"id:{topic_id} not exists")
        fqcn = body.get("anonymousRecipient") or call.did
        if self._parts.faults.take("search-empty", "/messages/search"):
            return []
        streams = self._parts.streams
        await streams.expire(fqcn)
        name = consumer_name(body.get("clientId") or "mb-default", begin)
        await self._forget_other_times(fqcn, name)
        pending, new = await streams.consumer(fqcn, name)
        kept, back = list[Found](), list[Found]()

        async def sort(found: list[Found]) -> None:
            lost = [each for each in found if _is_left_out(each, body, begin)]
            await streams.acknowledge(lost)
            for each in found:
                if each in lost:
                    continue
                fits = not body.get("topicId") or _topic_of(each) in body["topicId"]
                (kept if fits else back).append(each)

        again = await streams.fetch(fqcn, name, pending)
        if len(again) < pending:  # somebody else holds them, or they wait for ack_wait to be over
            await streams.put_back(again)
            return []
        await sort(again)
        while len(kept) < amount and new > 0:
            got = await streams.fetch(fqcn, name, min(amount - len(kept), new))
            if not got:
                break
            new -= len(got)
            await sort(got)
        shown, more = kept[: max(amount, 0)], kept[max(amount, 0) :]
        if shown and self._parts.faults.take("unordered-drop", "/messages/search"):
            more = [*more, shown.pop(0)]
        if at_once:
            await streams.acknowledge(shown)
        else:
            more = [*shown, *more]
        await streams.put_back([*back, *more])
        self._chance.shuffle(shown)
        if self._parts.faults.take("reversed", "/messages/search"):
            shown.sort(key=lambda each: each.at_ms, reverse=True)
        return [_shown(each, fqcn) for each in shown]

    async def _forget_other_times(self, fqcn: str, name: str) -> None:
        """A new ``from`` deletes the consumers of other times with the same client id."""
        if not since_part(name):
            return
        for other in await self._parts.streams.consumers(fqcn):
            if since_part(other) and other != name and client_id_of(other) == client_id_of(name):
                await self._parts.streams.delete_consumer(fqcn, other)

    async def acknowledge(self, call: Call) -> Json:
        """POST /messages/ack."""
        body = call.json()
        validate(ACK, body)
        ids, begin = dict.fromkeys(body["messageIds"]), since(body)
        fqcn, streams = body.get("anonymousRecipient") or call.did, self._parts.streams
        await streams.expire(fqcn)
        name = consumer_name(body.get("clientId") or "mb-default", begin)
        if begin is not None and name not in await streams.consumers(fqcn):
            return {"acked": [], "notFound": [*ids]}
        pending, _ = await streams.consumer(fqcn, name)
        found = await streams.fetch(fqcn, name, pending)
        listed = [each for each in found if each.id in ids]
        fault = self._parts.faults.take("ack-incomplete", "/messages/ack")
        if fault is not None:
            listed = listed[: fault.details.get("done", 1)]
        await streams.acknowledge(listed)
        await streams.put_back([each for each in found if each not in listed])
        if len(found) < pending or fault is not None:
            raise Refused(400, "20", "Not able to retrieve complete TotalAckPendingRetrieve.")
        acked = [each.id for each in listed]
        return {"acked": acked, "notFound": [each for each in ids if each not in acked]}

    async def search_keys(self, call: Call) -> list[Json]:
        """POST /messages/internal/search: what is returned never comes again for this client id."""
        body = call.json()
        validate(KEY_SEARCH, body)
        begin, amount = since(body), number(body, "amount", 1)
        fqcn, streams = keys_fqcn(call.did), self._parts.streams
        if self._parts.faults.take("search-empty", "/messages/internal/search"):
            return []
        await streams.expire(fqcn)
        name = key_consumer_name(body.get("clientId") or "mb-default-internal", stream_name(fqcn), begin)
        await streams.consumer(fqcn, name)
        found = await streams.fetch_at_once(fqcn, name, amount)
        # neither acknowledged nor put back is what the filters leave out: it comes again after ack_wait
        senders = body.get("senderId") or []
        shown = [
            each
            for each in found
            if (begin is None or each.at_ms // 1000 >= begin) and (not senders or _is_from(each, senders))
        ]
        await streams.acknowledge(shown)
        self._chance.shuffle(shown)
        return [
            {
                "messageId": each.id,
                "payload": each.body["payload"],
                "fqcn": call.did,
                "senderDid": each.body["sender"],
                "timestampNanos": int(each.body["timestampNanos"]),
                "clientGatewayMessageId": each.body["clientGatewayMessageId"],
                "isFile": False,
                "payloadEncryption": False,
            }
            for each in shown
        ]


def _topic_of(message: Found) -> str:
    return message.subject.rpartition(".")[2]


def _is_from(message: Found, senders: list[str]) -> bool:
    return any(part in message.body["sender"] for part in senders)


def _is_left_out(message: Found, body: Json, begin: int | None) -> bool:
    if begin is not None and message.at_ms // 1000 < begin:
        return True
    return not any(part in message.subject for part in body["fqcnTopicList"]) or not _is_from(message, body["senderId"])


def _shown(message: Found, fqcn: str) -> dict[str, Any]:
    body = message.body
    return {
        "messageId": message.id,
        "topicId": _topic_of(message),
        "topicVersion": body["topicVersion"],
        "payload": body["payload"],
        "payloadEncryption": body["payloadEncryption"],
        "senderDid": body["sender"],
        "signature": body["signature"],
        "timestampNanos": int(body["timestampNanos"]),
        "clientGatewayMessageId": body["clientGatewayMessageId"],
        "transactionId": body["transactionId"],
        "isFile": body["isFile"],
        "fqcn": fqcn,
        **{name: body.get(name) for name in _OPTIONAL},
    }
