"""The broker's calls around a participant's channel: initExtChannel, client ids, streams, roles, configuration."""

from __future__ import annotations

from typing import Any

from testbed.ddhub.broker import Call, Endpoint, Parts
from testbed.ddhub.fields import CLIENT_IDS, IS_DID, NO_SPECIAL, Field, fits, validate
from testbed.ddhub.naming import client_id_of, keys_fqcn
from testbed.ddhub.replies import Json, Refused, illegal, invalid, outcome

_ANONYMOUS_KEY = Field("anonymousKey", required=True, least=1, most=255)


class Channels:
    """Who has a channel can be sent to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def endpoints(self) -> list[Endpoint]:
        """The calls."""
        return [
            Endpoint("POST", "/channel/initExtChannel", "user", self.init),
            Endpoint("GET", "/channel/clientIds", "user", self.client_ids),
            Endpoint("DELETE", "/channel/clientIds", "user", self.delete_client_ids),
            Endpoint("DELETE", "/channel/stream/{name}", "user", self.delete_stream),
            Endpoint("GET", "/roles/check", "user", self.check_role),
            Endpoint("GET", "/roles/list", "user", self.list_roles),
            Endpoint("GET", "/config", "user", self.config),
        ]

    async def open(self, did: str, roles: list[str], keys: list[str]) -> list[Json] | None:
        """A participant's channel, once; later anonymous channels. What happened to each of ``keys``, or None.

        Keys of the first call are ignored. Roles are added to those that are known, none is ever removed.
        """
        state = self._parts.state
        status: list[Json] | None = None
        if did not in state.channels:
            await self._parts.streams.create(did)
            await self._parts.streams.create(keys_fqcn(did))
            state.channels[did] = did
        elif keys:
            status = [await self._open_anonymous(key, did) for key in dict.fromkeys(keys)]
        known = state.role_index.setdefault(did, [])
        known += [role for role in roles if role not in known]
        state.save()
        return status

    async def _open_anonymous(self, key: str, owner: str) -> Json:
        if key in self._parts.state.channels:
            return {"key": key, "status": "Fail", "message": "Record exists"}
        await self._parts.streams.create(key, owner=owner)
        await self._parts.streams.create(keys_fqcn(key), owner=owner)
        self._parts.state.channels[key] = owner
        return {"key": key, "status": "Success", "message": "Success"}

    async def init(self, call: Call) -> Json:
        """POST /channel/initExtChannel."""
        entries = call.json().get("anonymousKeys") or [] if call.body.strip() else []
        for entry in entries:
            validate((_ANONYMOUS_KEY,), entry)
        status = await self.open(call.did, call.roles, [entry["anonymousKey"] for entry in entries])
        return outcome("00", "Success", self._parts.clock.now_ms(), status=status)

    async def client_ids(self, call: Call) -> list[str]:
        """GET /channel/clientIds."""
        return sorted({client_id_of(name) for name in await self._parts.streams.consumers(call.did)})

    async def delete_client_ids(self, call: Call) -> list[str]:
        """DELETE /channel/clientIds: a consumer is deleted if its name contains the id."""
        body = call.json()
        validate(CLIENT_IDS, body)
        done = []
        for client_id in body["clientIds"]:
            names = [name for name in await self._parts.streams.consumers(call.did) if client_id in name]
            for name in names:
                await self._parts.streams.delete_consumer(call.did, name)
            done += [client_id] if names else []
        return done

    async def delete_stream(self, call: Call) -> Json:
        """DELETE /channel/stream/{name}: anybody's, unless it looks like a DID's."""
        name = call.path["name"]
        if fits(IS_DID, name):
            raise Refused(400, "18", "Not allowed to delete DID stream")
        if not fits(NO_SPECIAL, name):
            raise invalid("name : Special characters are not allowed")
        await self._parts.streams.delete(name)
        await self._parts.streams.delete(keys_fqcn(name))
        self._parts.state.channels.pop(name, None)
        self._parts.state.save()
        return outcome("00", "Success", self._parts.clock.now_ms())

    async def check_role(self, call: Call) -> Json:
        """GET /roles/check: whether a DID ever had one of these roles."""
        known = self._parts.state.role_index.get(call.query.get("did", ""), [])
        return {"hasRole": any(role in known for role in call.query.getlist("roles"))}

    async def list_roles(self, call: Call) -> Json:
        """GET /roles/list: who ever had any, or all, of these roles."""
        asked, kind = call.query.getlist("roles"), call.query.get("searchType", "ANY")
        if kind not in ("ANY", "ALL"):
            raise illegal(f"No enum constant SearchType.{kind}")
        judge = any if kind == "ANY" else all
        index = self._parts.state.role_index
        return {"dids": [did for did, roles in index.items() if asked and judge(role in roles for role in asked)]}

    async def config(self, _: Call) -> dict[str, Any]:
        """GET /config."""
        settings = self._parts.settings
        return {
            "msgExpired": settings.expiry_ms,
            "msgMaxSize": settings.message_max,
            "fileMaxSize": settings.file_max,
            "natsMaxClientidSize": settings.client_id_max,
        }
