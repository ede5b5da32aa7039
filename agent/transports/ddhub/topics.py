"""The topic of a channel as the broker has it: looked up, and remembered until it is said to be another one.

Nobody says when a topic is deleted or a version of it is overwritten, so it is looked up again each hour.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyio import to_thread

from agent.errors import Reason, TransportError
from agent.ports import Clock
from agent.transports.ddhub.broker import Broker
from agent.transports.ddhub.config import DdhubTopic
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.content.schema import SchemaError, TopicSchema

S = 1_000_000_000
TTL = 3600 * S
SCHEMA_TYPE = "JSD7"
_ENVELOPE = b"sample"
_RECORD = '{"bn":"did:ethr:volta:0x00/","bt":1764000000.5,"n":"meter/power/W","u":"W","v":18.456,"t":-1}'


@dataclass(frozen=True, slots=True)
class KnownTopic:
    """Id and version under which a message is posted, and the schema that it must fit."""

    id: str
    version: str
    schema: TopicSchema


class Topics:
    """The one topic that a channel writes to."""

    def __init__(self, wanted: DdhubTopic, *, clock: Clock) -> None:
        self._wanted = wanted
        self._clock = clock
        self._known: KnownTopic | None = None
        self._until = 0  # boot time

    async def get(self, api: Broker) -> KnownTopic:
        """Raises TransportError: the broker cannot be asked, has no such topic, or one that JSON does not fit."""
        if self._known is not None and self._clock.boot() < self._until:
            return self._known
        self._known = await self._looked_up(api)
        self._until = self._clock.boot() + TTL
        return self._known

    @property
    def wants_copies(self) -> bool:
        """Whether the values of records must stand beside them."""
        return self._known is not None and self._known.schema.needs_records

    def forget(self) -> None:
        """It may not be what it was: the broker does not know it."""
        self._known = None

    async def _looked_up(self, api: Broker) -> KnownTopic:
        wanted = self._wanted
        found = await api.topics(owner=wanted.owner, name=wanted.name)
        if not found:
            what = f"the Data Hub has no topic {wanted.name} of {wanted.owner}"
            hint = "have its owner register it, or correct topic: owner and name count to the letter"
            raise TransportError(what, hint=hint, reason=Reason.NO_TOPIC)
        try:
            version = await api.topic_version(found[0].id, wanted.version)
        except TransportError as error:
            if error.reason is not Reason.NO_TOPIC:
                raise
            what = f"topic {wanted.name} of {wanted.owner} has no version {wanted.version}: {error}"
            hint = "have its owner register it, or name one that is there"
            raise TransportError(what, hint=hint, reason=Reason.NO_TOPIC) from error
        kind = version.schema_type or found[0].schema_type
        if kind != SCHEMA_TYPE:
            what = f"topic {wanted} is of type {kind or '(none)'}, and we send JSON"
            raise TransportError(what, hint=f"name a topic of type {SCHEMA_TYPE}", reason=Reason.SCHEMA)
        try:
            schema, problems = await to_thread.run_sync(_judged, version.schema)
        except SchemaError as error:
            what = f"the schema of topic {wanted} is none that a client gateway takes: {error}"
            raise TransportError(what, hint=error.hint, reason=Reason.SCHEMA) from error
        if problems:
            what = f"the schema of topic {wanted} does not take what we send: {'; '.join(problems)}"
            hint = "have its owner register the one that `edge-agent ddhub topic` prints, or name another topic"
            raise TransportError(what, hint=hint, reason=Reason.SCHEMA)
        return KnownTopic(found[0].id, wanted.version, schema)


def _judged(schema: object) -> tuple[TopicSchema, tuple[str, ...]]:
    """Of a schema of 1 MiB it takes seconds."""
    found = TopicSchema(schema)
    return found, not_ours(found)


def not_ours(schema: TopicSchema) -> tuple[str, ...]:
    """What is wrong with any message of ours by a topic's schema; empty: it takes them. Where it demands ``records``,
    a message must do with none: plans and events have no values.
    """
    lists: list[list[str] | None] = [[], [_RECORD]] if schema.needs_records else [None]
    told = [problem for each in lists for problem in schema.problems(payload.encode([_ENVELOPE], each), encrypted=True)]
    return tuple(dict.fromkeys(told))
