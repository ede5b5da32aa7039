"""Registers a topic, or a version of it, at the broker.

A version that others rely on is not overwritten unawares: the broker itself would, without a word. It has no call that
does both at once, look and write, so who registers the same version at the same moment may overwrite all the same; what
stands there afterwards is read back and compared. Called again it changes nothing.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from agent.errors import Reason, TransportError, Verdict
from agent.transports.ddhub import roles as rules
from agent.transports.ddhub.answers import TopicVersion
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.config import DdhubTopic
from agent.transports.ddhub.topics import SCHEMA_TYPE

_MAY = (
    "who registers topics needs three roles at once, two of a topic creator and one of a user, and one of them must "
    "belong to the topic's owner"
)


class Outcome(enum.StrEnum):
    """What became of it."""

    CREATED = "created"  # the topic with its first version
    ADDED = "added"  # a version of a topic that was there
    UNCHANGED = "unchanged"  # it stood there with this schema
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a topic at the broker. ``id``: the topic's."""

    id: str
    outcome: Outcome


async def register(api: Broker, topic: DdhubTopic, schema: str, *, overwrite: bool = False) -> Registered:
    """Let the broker have this version with this schema, a JSON text.

    Raises TransportError: the broker cannot be asked; FATAL: it refuses, or the version is there with another schema
    and is not to be overwritten.
    """
    wanted = json.loads(schema)
    found = await api.topics(owner=topic.owner, name=topic.name)
    if not found:
        try:
            created = await api.create_topic(owner=topic.owner, name=topic.name, version=topic.version, schema=schema)
        except TransportError as error:
            raise await _refused(error, api, topic) from error
        return Registered(await _read_back(api, created.id, topic, wanted), Outcome.CREATED)
    [known, *_] = found
    if known.schema_type != SCHEMA_TYPE:
        what = f"topic {topic.name} of {topic.owner} is of type {known.schema_type}, and its versions with it"
        hint = f"choose another name: our messages need type {SCHEMA_TYPE}"
        raise TransportError(what, hint=hint, reason=Reason.SCHEMA, verdict=Verdict.FATAL)
    there = await _version(api, known.id, topic.version)
    if there is not None and there.schema == wanted:
        return Registered(known.id, Outcome.UNCHANGED)
    if there is not None and not overwrite:
        what = f"{topic} is there with another schema, by which others may judge what they send and receive"
        hint = "register another version (--version), or replace it for all of them with --overwrite"
        raise TransportError(what, hint=hint, reason=Reason.SCHEMA, verdict=Verdict.FATAL)
    try:
        await api.put_version(known.id, topic.version, schema=schema)
    except TransportError as error:
        raise await _refused(error, api, topic) from error
    outcome = Outcome.ADDED if there is None else Outcome.OVERWRITTEN
    return Registered(await _read_back(api, known.id, topic, wanted), outcome)


async def _version(api: Broker, topic_id: str, version: str) -> TopicVersion | None:
    """None: it is not in the broker's list. A failure is none of both: it must not pass for "not there"."""
    if version not in await api.versions(topic_id):
        return None
    return await api.topic_version(topic_id, version)


async def _read_back(api: Broker, topic_id: str, topic: DdhubTopic, wanted: object) -> str:
    there = await _version(api, topic_id, topic.version)
    if there is None or there.schema != wanted:
        what = f"the broker took {topic}, and does not show it as it was sent"
        hint = "call again; does somebody else register it at the same time?"
        raise TransportError(what, hint=hint, reason=Reason.PROTOCOL, verdict=Verdict.FATAL)
    return topic_id


async def _refused(error: TransportError, api: Broker, topic: DdhubTopic) -> TransportError:
    """With what is needed to be allowed to."""
    if error.reason is not Reason.PERMISSION:
        return error
    found = (await api.enter()).get("roles")
    roles = [role for role in found if isinstance(role, str)] if isinstance(found, list) else []
    needed = rules.TOPIC_CREATOR.missing(roles)
    words = f"the broker lets us register no topics: {error}"
    if needed:
        hint = f"{_MAY}; missing: {', '.join(needed)}"
    elif not rules.belongs_to(topic.owner, roles):
        hint = f"one of our roles must belong to the owner of the topic, {topic.owner}"
    else:
        hint = "this hub has rules of its own; its operator knows them"
    return TransportError(words, hint=hint, reason=Reason.PERMISSION, verdict=Verdict.FATAL)
