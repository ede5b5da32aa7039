"""The broker's topics and their schemas."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from starlette.datastructures import QueryParams

from testbed.ddhub.broker import Call, Endpoint, Parts
from testbed.ddhub.fields import HEX, SEMVER, TOPIC, TOPIC_TAGS, TOPIC_VERSION, fits, validate
from testbed.ddhub.payloads import judge_schema
from testbed.ddhub.replies import Json, Refused, Unhandled, illegal, invalid, missing, outcome


def object_id(now: float) -> str:
    """A MongoDB ObjectId: 24 hex digits, of which the first 8 are the time."""
    return f"{int(now):08x}{secrets.token_hex(8)}"


class Topics:
    """Topics live in the state: a list of documents, each with its versions; what is deleted stays there, marked."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def endpoints(self) -> list[Endpoint]:
        """The calls."""
        return [
            Endpoint("GET", "/topics", "user", self.list),
            Endpoint("POST", "/topics", "topiccreator", self.create),
            Endpoint("GET", "/topics/search", "user", self.search),
            Endpoint("GET", "/topics/count", "user", self.count),
            Endpoint("GET", "/topics/topicUpdatesMonitor", "user", self.updates),
            Endpoint("PUT", "/topics/{id}", "topiccreator", self.put_tags),
            Endpoint("DELETE", "/topics/{id}", "topiccreator", self.delete),
            Endpoint("GET", "/topics/{id}/versions", "user", self.versions),
            Endpoint("GET", "/topics/{id}/versions/{version}", "user", self.version),
            Endpoint("PUT", "/topics/{id}/versions/{version}", "topiccreator", self.put_version),
            Endpoint("DELETE", "/topics/{id}/versions/{version}", "topiccreator", self.delete_version),
        ]

    # ---- for the rest of the broker ----

    def find(self, topic_id: str, *, deleted: bool = False) -> Json | None:
        """A topic; one that is deleted only with ``deleted``. Raises Refused (16) if the id is none."""
        if len(topic_id) != 24 or not fits(HEX, topic_id):
            raise illegal(f"invalid hexadecimal representation of an ObjectId: [{topic_id}]")
        for topic in self._parts.state.topics:
            if topic["id"] == topic_id.lower() and (deleted or topic["deleted"] is None):
                return topic
        return None

    def usable_version(self, topic_id: str, version: str) -> tuple[Json, str]:
        """A topic, deleted or not, and its schema's text in a version that is not. Raises Refused (50, 16)."""
        topic = self.find(topic_id, deleted=True)
        kept = topic["versions"].get(version) if topic else None
        if topic is None or kept is None or kept["deleted"] is not None:
            raise missing(f"id:{topic_id} version not exists")
        return topic, kept["schema"]

    def add(self, *, owner: str, name: str, schema: str, version: str, schema_type: str, tags: list[str]) -> Json:
        """A new topic without any check. Raises Refused (51) if it is there already."""
        if any(
            (each["owner"], each["name"], each["deleted"]) == (owner, name, None) for each in self._parts.state.topics
        ):
            raise Refused(400, "51", "Record exists")
        now = self._parts.clock.now_ms()
        topic: Json = {
            "id": object_id(now / 1000), "owner": owner, "name": name, "schemaType": schema_type, "tags": tags,
            "deleted": None, "updated": now, "versions": {},
        }  # fmt: skip
        topic["versions"][version] = {"schema": schema, "deleted": None, "updated": now}
        self._parts.state.topics.append(topic)
        self._parts.state.save()
        return topic

    def _existing(self, topic_id: str) -> Json:
        topic = self.find(topic_id)
        if topic is None:
            raise missing(f"id:{topic_id} not exists")
        return topic

    # ---- calls ----

    async def list(self, call: Call) -> Json:
        """GET /topics."""
        owner = _required(call.query, "owner")
        name, tags, deleted = call.query.get("name"), call.query.getlist("tags"), _flag(call.query, "includeDeleted")
        since = _since(call.query)
        found = [
            topic
            for topic in self._parts.state.topics
            if topic["owner"] == owner
            and (name is None or topic["name"] == name)
            and (deleted or topic["deleted"] is None)
            and set(tags) <= set(topic["tags"])
            and topic["updated"] >= since
        ]
        return _page(call.query, [_outline(topic) for topic in found])

    async def search(self, call: Call) -> Json:
        """GET /topics/search."""
        keyword, owners = _required(call.query, "keyword").lower(), call.query.getlist("owner")
        found = [
            topic
            for topic in self._parts.state.topics
            if topic["deleted"] is None
            and (not owners or topic["owner"] in owners)
            and any(keyword in text.lower() for text in (topic["name"], *topic["tags"]))
        ]
        return _page(call.query, [_outline(topic) for topic in found])

    async def count(self, call: Call) -> Any:
        """GET /topics/count."""
        alive = [topic["owner"] for topic in self._parts.state.topics if topic["deleted"] is None]
        return [{"owner": owner, "count": alive.count(owner)} for owner in call.query.getlist("owner")]

    async def updates(self, call: Call) -> Any:
        """GET /topics/topicUpdatesMonitor."""
        asked = call.query.getlist("namespaceList")
        newest: dict[str, Json] = {}
        for topic in self._parts.state.topics:
            if topic["owner"] in asked:
                entry = newest.setdefault(topic["owner"], {"id": topic["id"], "owner": topic["owner"]})
                changed = max(version["updated"] for version in topic["versions"].values())
                entry["lastTopicUpdate"] = max(topic["updated"], entry.get("lastTopicUpdate", 0))
                entry["lastTopicVersionUpdate"] = max(changed, entry.get("lastTopicVersionUpdate", 0))
        return [*newest.values()]

    async def create(self, call: Call) -> Json:
        """POST /topics."""
        body = call.json()
        validate(TOPIC, body)
        _judge_owner(call.roles, body["owner"])
        judge_schema(body["schemaType"], body["schema"])
        topic = self.add(
            owner=body["owner"], name=body["name"], schema=body["schema"], version=body["version"],
            schema_type=body["schemaType"], tags=[*dict.fromkeys(body.get("tags") or [])],
        )  # fmt: skip
        return _whole(topic, body["version"])

    async def put_tags(self, call: Call) -> Json:
        """PUT /topics/{id}."""
        body, topic = call.json(), self._existing(call.path["id"])
        validate(TOPIC_TAGS, body)
        _judge_owner(call.roles, topic["owner"])
        topic["tags"], topic["updated"] = [*dict.fromkeys(body.get("tags") or [])], self._parts.clock.now_ms()
        self._parts.state.save()
        return _outline(topic)

    async def delete(self, call: Call) -> Json:
        """DELETE /topics/{id}, by anybody who may create topics."""
        topic = self._existing(call.path["id"])
        topic["deleted"] = topic["updated"] = self._parts.clock.now_ms()
        self._parts.state.save()
        return outcome("00", "Success", self._parts.clock.now_ms())

    async def versions(self, call: Call) -> Json:
        """GET /topics/{id}/versions."""
        topic, deleted = self._existing(call.path["id"]), _flag(call.query, "includeDeleted")
        since = _since(call.query)
        kept = [
            version
            for version, each in topic["versions"].items()
            if (deleted or each["deleted"] is None) and each["updated"] >= since
        ]
        return _page(call.query, [_whole(topic, version) for version in kept])

    async def version(self, call: Call) -> Json:
        """GET /topics/{id}/versions/{version}."""
        topic = self.find(call.path["id"])
        kept = topic["versions"].get(call.path["version"]) if topic else None
        if topic is None or kept is None or kept["deleted"] is not None:
            raise missing(f"id:{call.path['id']} version not exists")
        return _whole(topic, call.path["version"])

    async def put_version(self, call: Call) -> Json:
        """PUT /topics/{id}/versions/{version}: creates it or overwrites its schema."""
        body, topic, version = call.json(), self._existing(call.path["id"]), call.path["version"]
        validate(TOPIC_VERSION, body)
        if not fits(SEMVER, version):
            raise invalid("versionNumber : Required Semantic Version format")
        _judge_owner(call.roles, topic["owner"])
        judge_schema(topic["schemaType"], body["schema"])
        now = self._parts.clock.now_ms()
        topic["versions"][version] = {"schema": body["schema"], "deleted": None, "updated": now}
        self._parts.state.save()
        return _whole(topic, version)

    async def delete_version(self, call: Call) -> Json:
        """DELETE /topics/{id}/versions/{version}: the last one takes the topic with it."""
        topic, now = self._existing(call.path["id"]), self._parts.clock.now_ms()
        kept = topic["versions"].get(call.path["version"])
        if kept is None or kept["deleted"] is not None:
            raise missing(f"id:{call.path['id']} version not exists")
        kept["deleted"] = kept["updated"] = now
        if all(each["deleted"] is not None for each in topic["versions"].values()):
            topic["deleted"] = topic["updated"] = now
        self._parts.state.save()
        return outcome("00", "Success", now)


def _judge_owner(roles: Iterable[str], owner: str) -> None:
    """Whether the application of one of the roles is part of the owner's name. Raises Refused (12)."""
    for role in roles:
        parts = role.split(".roles.")
        if len(parts) < 2:
            raise Unhandled("Index 1 out of bounds for length 1")
        if parts[1] in owner:
            return
    raise Refused(400, "12", "Owner validation failed")


def _outline(topic: Json) -> Json:
    return {name: topic[name] for name in ("id", "name", "owner", "schemaType", "tags")}


def _whole(topic: Json, version: str) -> Json:
    text = topic["versions"][version]["schema"]
    try:
        schema = json.loads(text)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        schema = {topic["schemaType"]: text}
    return {**_outline(topic), "version": version, "schema": schema}


def _page(query: QueryParams, records: list[Json]) -> Json:
    page, limit = _natural(query, "page", 1), _natural(query, "limit", 0)
    if page < 1:
        raise invalid("page : must be greater than or equal to 1")
    if page > 1 and not limit:
        raise Refused(400, "14", "Required to set limit with page > 1")
    shown = records[(page - 1) * limit :][:limit] if limit else records
    return {"count": len(records), "limit": limit, "page": page, "records": shown}


def _required(query: QueryParams, name: str) -> str:
    value = query.get(name)
    if not value:
        raise invalid(f"{name} : must not be empty")
    return value


def _natural(query: QueryParams, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal():
        raise missing(f"{name}: {text} not exists")  # RESTEasy finds no resource with such a parameter
    return int(text)


def _flag(query: QueryParams, name: str) -> bool:
    return query.get(name, "").lower() == "true"


def _since(query: QueryParams) -> int:
    text = query.get("updatedDateFrom")
    if text is None:
        return 0
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise invalid("updatedDateFrom : Required format yyyy-MM-dd'T'HH:mm:ss.SSSX") from None
