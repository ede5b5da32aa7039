"""The broker's files: POST /messages/upload and GET /messages/download.

Uploads in chunks are not here: no gateway makes them. Bytes lie in the state, not in a blob store. Whoever knows a
file's id may download it.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json

from starlette.responses import Response

from testbed.ddhub.broker import Call, Endpoint, Parts
from testbed.ddhub.fields import UPLOAD, validate
from testbed.ddhub.messages import Messages
from testbed.ddhub.replies import Json, Refused, illegal, invalid, missing
from testbed.ddhub.topics import object_id


class Files:
    """An uploaded file goes to its recipients as a message that names it."""

    def __init__(self, parts: Parts, messages: Messages) -> None:
        self._parts = parts
        self._messages = messages

    def endpoints(self) -> list[Endpoint]:
        """The calls."""
        return [
            Endpoint("POST", "/messages/upload", "user", self.upload),
            Endpoint("GET", "/messages/download", "user", self.download),
        ]

    async def upload(self, call: Call) -> Json:
        """POST /messages/upload, multipart/form-data."""
        parts = _form(call.request.headers.get("content-type", ""), call.body)
        content = parts.pop("file", None)
        body: Json = {name: part.decode(errors="replace") for name, part in parts.items()}
        body["fqcns"] = [did for did in str(body.get("fqcns", "")).split(",") if did]
        validate(UPLOAD, body)
        if content is None:
            raise invalid("file : must not be null")
        if call.did not in self._parts.state.channels:
            raise missing(f"fqcn:{call.did} not exists")
        now = self._parts.clock.now()
        file_id = object_id(now)
        encrypted = str(body.get("payloadEncryption", "")).lower() == "true"
        self._parts.state.files[file_id] = {
            "owner": call.did, "name": body["fileName"], "signature": body["signature"], "at": now,
            "clientGatewayMessageId": body["clientGatewayMessageId"], "payloadEncryption": encrypted,
            "content": base64.b64encode(content).decode(),
        }  # fmt: skip
        self._parts.state.save()
        told = {"payload": json.dumps({"fileId": file_id}, separators=(",", ":")), "isFile": True}
        return await self._messages.deliver(call.did, {**body, **told, "payloadEncryption": encrypted})

    async def download(self, call: Call) -> Response:
        """GET /messages/download."""
        file_id = call.query.get("fileId", "")
        kept = self._parts.state.files.get(file_id)
        if kept is None:
            raise missing(f"id:{file_id} not exists")
        if (self._parts.clock.now() - kept["at"]) * 1000 >= self._parts.settings.expiry_ms:
            raise Refused(400, "50", "File are expired")
        return Response(
            base64.b64decode(kept["content"]),
            media_type="application/octet-stream",
            headers={
                "Content-Disposition": f'attachment; filename="{kept["name"]}"',
                "clientGatewayMessageId": kept["clientGatewayMessageId"],
                "payloadEncryption": str(kept["payloadEncryption"]).lower(),
                "ownerDid": kept["owner"],
                "signature": kept["signature"],
            },
        )


def _form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a form by name. Raises Refused (16) if it is none."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise illegal("multipart/form-data is needed")
    message = email.message_from_bytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    found: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            found[name] = content
    return found
