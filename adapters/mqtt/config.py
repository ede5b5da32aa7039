"""The MQTT part of a configuration, as models: all problems are found at once, each at the key where it is.

Does not import paho: checking a configuration stays cheap. What later versions will understand is refused by name;
nothing is accepted and ignored. Errors read "what is wrong; what to do", and repeat no secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from adapters.mqtt.point import MqttPoint, Pointer
from adapters.mqtt.topics import covers, judge_filter, overlap, wild
from agent.fields import NOT_YET, SOME, Id, IdKey, NotYet, Problems, Table, Text, distinct, judge_host
from agent.secret import Secret
from agent.tls import Tls
from agent.units import Duration, S, duration_range

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LATER_SCHEMES = ("mqtt+ws", "mqtt+wss")
_VERSIONS = ("3.1.1", "5")
_DEFAULT_WINDOW = {"3.1.1": 20, "5": 256}

Version = Literal["3.1.1", "5"]


def _url(text: str) -> str:
    _parts(text)
    return text


def _parts(text: str) -> tuple[str, str, int, Version]:
    """Scheme, host, port and version of MQTT. Raises ValueError."""
    remedy = 'write "mqtt://HOST" or "mqtts://HOST:PORT", with ?version=5 behind it if the broker speaks that'
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"the address cannot be understood; {remedy}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user stands in the address; use username and password, where it is not shown")
    if parts.scheme in _LATER_SCHEMES:
        raise ValueError(f'"{parts.scheme}" is {NOT_YET}; use "mqtt" or "mqtts"')
    if parts.scheme not in _PORTS or not host:
        raise ValueError(f"this is no address of an MQTT broker; {remedy}")
    if parts.path not in ("", "/") or parts.fragment or port == 0:
        raise ValueError(f"there is more in the address than host, port and version; {remedy}")
    query = parse_qsl(parts.query, keep_blank_values=True)
    version: Version = "3.1.1"
    for key, value in query:
        if key != "version" or len(query) > 1:
            raise ValueError(f"only the version may stand behind the ?; {remedy}")
        if value not in _VERSIONS:
            raise ValueError(f'"{value[:20]}" is no version of MQTT; write ?version=3.1.1 or ?version=5')
        version = "5" if value == "5" else "3.1.1"
    if parts.query and not query:
        raise ValueError(f"only the version may stand behind the ?; {remedy}")
    judge_host(host)
    return parts.scheme, host, port or _PORTS[parts.scheme], version


def _pace(_: Any) -> None:
    raise ValueError("messages set the pace of an MQTT group; remove it")


def default_client_id(connection: str) -> str:
    """Of a connection that has none."""
    return f"edge-agent-{connection}"


Filter = Annotated[str, AfterValidator(judge_filter)]


def _point(point: MqttPoint) -> MqttPoint:
    problems = Problems()
    for key, problem in point.problems():
        problems.add(problem, *([key] if key else []))
    problems.raise_any("MqttPoint")
    return point


def _name(point: MqttPoint) -> str:
    return point.name


class MqttConnection(Table):
    """A connection: one client of one broker, which its devices share. Durations in ns.

    ``client_id`` names the session that the broker keeps; without it ``edge-agent-`` and the connection's name. Two
    clients with one id push each other off the broker: where several agents share a broker each needs its own. MQTT
    3.1.1 promises 23 letters and digits; most brokers take more. ``timeout`` holds for connecting, CONNACK and SUBACK
    together. ``session_expiry`` (version 5) is how long the broker shall keep what comes while we are away.
    ``receive_maximum``: so many messages at most does the broker send without an acknowledgement; version 5 tells it,
    with 3.1.1 it is what the broker is set to (Mosquitto: max_inflight_messages, 20).
    """

    url: Annotated[str, AfterValidator(_url)]
    username: Text | None = None
    password: Secret | None = None
    tls: Tls | None = None
    client_id: Text | None = None
    keepalive: Annotated[Duration, duration_range("5s", "10m")] = 30 * S
    timeout: Annotated[Duration, duration_range("100ms", "60s")] = 5 * S
    session: Literal["keep", "clean"] = "keep"
    session_expiry: Annotated[Duration, duration_range("1s", "365d")] = 7 * 86_400 * S
    receive_maximum: Annotated[int, Field(ge=1, le=1000)] | None = None

    most_qos: ClassVar[int] = 2
    """What is subscribed has this QoS at most, whatever its devices say."""

    def visitor(self) -> MqttConnection:
        """The same for a reader beside the running agent: another client, of which the broker keeps nothing, and to
        which it sends without waiting for an acknowledgement. Its id is of those that every broker takes.
        """
        own: dict[str, Any] = {"client_id": f"visitor{secrets.token_hex(8)}", "session": "clean"}
        return MqttVisitor.model_construct(**{**dict(self), **own})

    def exclusive(self, name: str) -> str:
        """What no other connection may have, in words; ``name``: the connection's."""
        return f'client_id "{self.client_id or default_client_id(name)}" at {self.host.lower()} port {self.port}'

    @property
    def host(self) -> str:
        """Name or address of the broker."""
        return _parts(self.url)[1]

    @property
    def port(self) -> int:
        """TCP port."""
        return _parts(self.url)[2]

    @property
    def version(self) -> Version:
        """Of MQTT."""
        return _parts(self.url)[3]

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return _parts(self.url)[0] == "mqtts"

    @property
    def window(self) -> int:
        """``receive_maximum``, or what is usual with the version."""
        return self.receive_maximum or _DEFAULT_WINDOW[self.version]

    @model_validator(mode="after")
    def _judge(self) -> MqttConnection:
        problems = Problems()
        if self.tls is not None and not self.secure:
            problems.add("mqtt:// is not encrypted; write mqtts:// or remove it", "tls")
        if self.password is not None and self.username is None:
            problems.add("a password needs a username; add it", "username")
        if "session_expiry" in self.model_fields_set and (self.version != "5" or self.session == "clean"):
            problems.add('it only works with ?version=5 and session = "keep"; remove it', "session_expiry")
        problems.raise_any("MqttConnection")
        return self


class MqttVisitor(MqttConnection):
    """``MqttConnection.visitor``."""

    most_qos: ClassVar[int] = 0


class MqttTimestamp(Table):
    """Where a message says when its values were measured."""

    at: Pointer
    format: Literal["iso8601", "unix", "unix-ms", "unix-us", "unix-ns"]


class MqttGroup(Table):
    """Points that come together in one message. ``topic``: its own, else the device's."""

    topic: Filter | None = None
    points: Annotated[
        tuple[Annotated[MqttPoint, AfterValidator(_point)], ...], Field(strict=False), SOME, distinct(_name)
    ]
    # Not named "every": whoever looks for a group's period must not find one.
    no_period: Annotated[None, BeforeValidator(_pace)] = Field(default=None, alias="every")
    report: NotYet = None
    sample: NotYet = None
    aggregate: NotYet = None
    phase: NotYet = None


class MqttDevice(Table):
    """A device: the messages of a topic filter, with wildcards of all topics that match. ``silent_after`` in ns."""

    id: Id
    connection: Id
    asset: Text | None = None
    topic: Filter | None = None
    qos: Annotated[int, Field(ge=0, le=2)] = 1
    timestamp: MqttTimestamp | None = None
    silent_after: Annotated[Duration, duration_range("1s", "30d")] | None = None
    groups: Annotated[dict[IdKey, MqttGroup], Field(min_length=1)]
    profile: NotYet = None

    judged_together: ClassVar = frozenset({"topic", "groups"})

    def point_names(self, group: str) -> tuple[str, ...]:
        """The names of a group's points."""
        return tuple(point.name for point in self.groups[group].points)

    def filter(self, group: str) -> str:
        """The topic filter of a group."""
        found = self.groups[group].topic or self.topic
        assert found is not None, "judged below"
        return found

    @classmethod
    def judge_together(cls, devices: Sequence[MqttDevice]) -> Iterator[tuple[int, tuple[str, ...], str]]:
        """Of devices on one connection: whose filters take some messages of another's, but not all; index, key, text.

        A broker may send such a message once for each (MQTT 5.0, 3.3.4), and nothing would tell that from two messages.
        If one filter takes all that the other does, only that one is subscribed.
        """
        seen: dict[str, str] = {}  # filters, and the device that has it
        for index, device in enumerate(devices):
            for name, group in device.groups.items():
                topic = device.filter(name)
                if topic in seen or not wild(topic):
                    continue
                for other, its in seen.items():
                    if overlap(topic, other) and not covers(topic, other) and not covers(other, topic):
                        key = ("topic",) if group.topic is None else ("groups", name, "topic")
                        what = f'some messages would come twice: they are also of "{other}" of device "{its}"'
                        yield index, key, f"{what}; read one of the two through a connection of its own"
                seen[topic] = device.id

    @model_validator(mode="after")
    def _judge(self) -> MqttDevice:
        problems = Problems()
        for name, group in self.groups.items():
            topic = group.topic or self.topic
            if topic is None:
                problems.add("the group has no topic; add one here or to the device", "groups", name, "topic")
            for index, point in enumerate(group.points):
                levels = topic.split("/") if topic else ["#"]
                if point.topic_level is not None and levels[-1] != "#" and point.topic_level > len(levels):
                    place = ("groups", name, "points", index, "topic_level")
                    problems.add(f"the topic has {len(levels)} levels; choose one of them", *place)
        problems.raise_any("MqttDevice")
        return self
