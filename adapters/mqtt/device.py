"""Devices behind an MQTT connection: from a message to a sample.

What is learned of the numbers' decimals lives in memory only and is learned again after a restart
(adapters/mqtt/values.py). A message that is decoded again yields the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from adapters.mqtt.config import MqttDevice
from adapters.mqtt.message import Message
from adapters.mqtt.payload import find, pointer
from adapters.mqtt.point import MqttPoint
from adapters.mqtt.timestamps import FORMATS
from adapters.mqtt.values import VALUE_TYPES, GroupReader, Source
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo, Point, Quality, Sample, ValueType
from agent.ports import Arrival

log = logging.getLogger(__name__)


class TopicDevice:
    """A device whose groups are messages (agent.ports.EventDevice)."""

    def __init__(self, config: MqttDevice, groups: Mapping[str, Sequence[str]]) -> None:
        self.revision = 0
        self.silent_after = config.silent_after
        self._info = DeviceInfo(config.id, "mqtt", config.asset)
        self._time_at = None if config.timestamp is None else pointer(config.timestamp.at)
        self._time = None if config.timestamp is None else FORMATS[config.timestamp.format]
        self._readers = {group: _reader(config, group, names) for group, names in groups.items()}

    @property
    def info(self) -> DeviceInfo:
        """Id and asset; a message says nothing of who sent it."""
        return self._info

    def points(self, group: str) -> tuple[Point, ...]:
        """The points of a group, in the order of a sample's values."""
        return self._readers[group].points

    def decode(self, group: str, arrival: Arrival) -> Sample:
        """What a message means for a group. Raises AcquisitionError (DECODE_ERROR)."""
        message: Message = arrival.message
        try:
            document = message.document()
        except ValueError as error:
            raise AcquisitionError(Cause.DECODE_ERROR, f"{message.describe()}: {error}") from None
        source_time: int | None = None
        mark: Quality | None = None
        if message.retain:
            mark = Quality.OLD_DATA
        elif message.dup:
            mark = Quality.POSSIBLE_DUPLICATE
        if self._time is not None and self._time_at is not None:
            try:
                source_time = self._time(find(document, self._time_at))
            except ValueError:
                mark = Quality.SUSPECT
        reader = self._readers[group]
        before = reader.points
        values, quality = reader.read(document, message.topic, mark)
        if reader.points is not before:
            self.revision += 1
            for old, new in zip(before, reader.points, strict=True):
                if new.type is not old.type:
                    # Any publisher can bring this about, and it lasts until the next start.
                    log.warning(
                        "number with more digits than a decimal carries, a float from now on group=%s/%s point=%s",
                        self._info.id,
                        group,
                        new.name,
                    )
        if len(arrival.concerns) == 1:
            message.forget()
        return Sample(arrival.received, arrival.received, values, quality, source_time)


def _reader(config: MqttDevice, group: str, names: Sequence[str]) -> GroupReader:
    by_name = {point.name: point for point in config.groups[group].points}
    chosen = [_describe(by_name[name], config.filter(group)) for name in names]
    return GroupReader([point for point, _ in chosen], [source for _, source in chosen])


def _describe(config: MqttPoint, topic: str) -> tuple[Point, Source]:
    value_type = VALUE_TYPES[config.kind]
    place = f"level {config.topic_level}" if config.at is None else config.at
    point = Point(
        config.name,
        config.unit,
        value_type,
        -config.decimals if value_type is ValueType.INTEGER else 0,
        f"mqtt:{topic} {place}".rstrip(),
        dict(config.values),
    )
    source = Source(
        None if config.at is None else pointer(config.at), config.topic_level or 0, config.kind, config.bounds
    )
    return point, source
