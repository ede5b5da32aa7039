"""The broker's sending side: POST /messages and POST /messages/internal."""

from __future__ import annotations

import uuid
from typing import Any

from testbed.ddhub.broker import Call, Endpoint, Parts
from testbed.ddhub.faults import Fault
from testbed.ddhub.fields import IS_DID, KEY, MESSAGE, fits, flag, validate
from testbed.ddhub.naming import INTERNAL, dedupe_id, keys_fqcn, message_subject
from testbed.ddhub.payloads import escaped, judge_payload
from testbed.ddhub.replies import Json, illegal, missing, rendered
from testbed.ddhub.streams import NotPublished
from testbed.ddhub.topics import Topics, object_id


class Messages:
    """Once a message is past the checks the answer is 200, whatever happens to its recipients."""

    def __init__(self, parts: Parts, topics: Topics) -> None:
        self._parts = parts
        self._topics = topics

    def endpoints(self) -> list[Endpoint]:
        """The calls."""
        return [
            Endpoint("POST", "/messages", "user", self.send),
            Endpoint("POST", "/messages/internal", "user", self.send_key),
        ]

    async def send(self, call: Call) -> Json:
        """POST /messages."""
        return await self.deliver(call.did, call.json())

    async def deliver(self, sender: str, body: Json) -> Json:
        """Check a message and give it to each recipient's stream."""
        body = {name: value for name, value in body.items() if value is not None}
        validate(MESSAGE, body)
        encrypted, is_file = flag(body, "payloadEncryption"), flag(body, "isFile")
        topic, schema = self._topics.usable_version(body["topicId"], body["topicVersion"])
        payload = body["payload"]
        if not encrypted and topic["schemaType"] == "JSD7":
            judge_payload(payload, schema, entities=self._parts.settings.entities_allowed)
            if self._parts.faults.take("escaped", "/messages"):
                payload = escaped(payload, schema)
        dids, anonymous = body.get("fqcns", []), body.get("anonymousRecipient", [])
        if not dids and not anonymous:
            raise illegal("fqcns or anonymousRecipient is required")
        if topic["deleted"] is not None:
            raise missing(f"id:{body['topicId']} not exists")

        failed = [_failure(did, "MB::INVALID_FQCN", f"fqcn:{did} DIDs format invalid") for did in dids if not _did(did)]
        failed += [
            _failure(key, "MB::INVALID_ANONYMOUSKEY", f"anonymousRecipient:{key} format invalid")
            for key in anonymous
            if _did(key)
        ]
        recipients = [did for did in dids if _did(did)] + [key for key in anonymous if not _did(key)]
        total, sent = len(recipients), list[Json]()
        now = self._parts.clock.now_ms()
        stored = {
            "payloadEncryption": encrypted,
            "payload": payload,
            "topicVersion": body["topicVersion"],
            "transactionId": body.get("transactionId", ""),
            "sender": sender,
            "signature": body["signature"],
            "clientGatewayMessageId": body["clientGatewayMessageId"],
            "timestampNanos": str(now * 1_000_000),
            "initiatingMessageId": body.get("initiatingMessageId"),
            "initiatingTransactionId": body.get("initiatingTransactionId"),
            "topicRestrictions": body.get("topicRestrictions"),
            "isFile": is_file,
        }
        nobody = self._parts.faults.take("all-failed", "/messages")
        for fqcn in recipients:
            done, detail = await self._give(fqcn, body["topicId"], stored, body.get("transactionId"), nobody)
            (sent if done else failed).append(detail)
        miscounted = self._parts.faults.take("miscounted", "/messages")
        status = [{"name": "SENT", "details": sent}] if sent else []
        status += [{"name": "FAILED", "details": failed}] if failed else []
        return {
            "clientGatewayMessageId": body["clientGatewayMessageId"],
            "recipients": {
                "total": total + (miscounted.details.get("by", 1) if miscounted else 0),
                "sent": len(sent),
                "failed": len(failed),
            },
            "status": status,
        }

    async def _give(
        self, fqcn: str, topic_id: str, stored: Json, transaction_id: str | None, nobody: Fault | None
    ) -> tuple[bool, Json]:
        """Store it for one recipient: whether it was, and how the answer tells it."""
        if fqcn not in self._parts.state.channels:
            code = "MB::INVALID_FQCN" if _did(fqcn) else "MB::INVALID_ANONYMOUSKEY"
            return False, _failure(fqcn, code, f"fqcn:{fqcn} not exists")
        fault = nobody or self._parts.faults.take("recipient-failed", "/messages", did=fqcn)
        if fault is not None:
            code = fault.details.get("code", "MB::NATS_SERVER")
            reason = fault.details.get("reason", "Timeout or no response waiting for NATS JetStream server")
            return False, _failure(fqcn if fault.details.get("with_did", True) else None, code, reason)
        message_id = object_id(self._parts.clock.now())
        once = dedupe_id(transaction_id, stored["sender"], fqcn, topic_id) if transaction_id is not None else None
        subject, text = message_subject(fqcn, topic_id), rendered({**stored, "messageId": message_id})
        try:
            new = await self._parts.streams.publish(fqcn, subject, text, dedupe_id=once)
        except NotPublished as error:
            return False, _failure(None, "MB::NATS_SERVER", str(error))
        if not new:
            return False, _failure(fqcn, "MB::NATS_SERVER", "Duplicate transaction id.")
        return True, {"did": fqcn, "messageId": message_id, "statusCode": 200}

    async def send_key(self, call: Call) -> dict[str, Any]:
        """POST /messages/internal: ``{}`` if the recipient has no mailbox."""
        body = call.json()
        validate(KEY, body)
        fqcn = keys_fqcn(body["fqcn"])
        if self._parts.faults.take("key-lost", "/messages/internal", did=body["fqcn"]):
            return {}
        message_id = str(uuid.uuid4())
        stored = {
            "messageId": message_id,
            "payload": body["payload"],
            "transactionId": "",
            "sender": call.did,
            "clientGatewayMessageId": body["clientGatewayMessageId"],
            "timestampNanos": str(self._parts.clock.now_ms() * 1_000_000),
        }
        if body["fqcn"] not in self._parts.state.channels:
            return {}
        try:
            await self._parts.streams.publish(fqcn, message_subject(fqcn, INTERNAL), rendered(stored))
        except NotPublished:
            return {}
        return {"messageId": message_id}


def _did(text: str) -> bool:
    return fits(IS_DID, text)


def _failure(did: str | None, code: str, reason: str) -> Json:
    return {"did": did, "statusCode": 400, "err": {"code": code, "reason": reason}}
