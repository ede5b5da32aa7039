"""MQTT 3.1.1 and 5: takes in the messages of a broker's topics and reads points from their JSON payloads.

Importing this package, as a check of a configuration does, does not load paho.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

from adapters.mqtt.config import MqttConnection, MqttDevice
from agent.ports import Clock, DeviceSelection, EventDevice, Subscription

__all__ = ["MqttAdapter", "MqttConnection", "MqttDevice"]


class MqttAdapter:
    """One client of an MQTT broker and the devices behind it (agent.ports.EventAdapter)."""

    connection_model: ClassVar[type[MqttConnection]] = MqttConnection
    device_model: ClassVar[type[MqttDevice]] = MqttDevice

    devices: Sequence[EventDevice]

    def __init__(self, name: str, connection: MqttConnection, devices: Sequence[DeviceSelection], clock: Clock) -> None:
        from adapters.mqtt.account import Account
        from adapters.mqtt.broker import Broker  # paho: 12 MiB, only for who listens
        from adapters.mqtt.device import TopicDevice
        from adapters.mqtt.topics import Routes, widest

        self.name = name
        self.devices = tuple(TopicDevice(each.config, each.groups) for each in devices)
        filters: dict[str, int] = {}
        routes: dict[tuple[int, str], str] = {}
        for index, each in enumerate(devices):
            for group in each.groups:
                topic = each.config.filter(group)
                filters[topic] = min(max(filters.get(topic, 0), each.config.qos), connection.most_qos)
                routes[index, group] = topic
        self._account = Account(name, connection, widest(filters), Routes(routes), clock)
        self._broker = Broker(self._account)

    def keep_in(self, folder: Path) -> None:
        """Remember in a file there what is subscribed, as long as the broker does; before ``subscribe``."""
        self._account.kept.path = folder / f"{self.name}.filters"

    def subscribe(self) -> AbstractAsyncContextManager[Subscription]:
        """Connect and subscribe once, within the connection's ``timeout``. Raises AcquisitionError (LINK_DOWN)."""
        return self._broker.subscribe()

    async def close(self) -> None:
        """Let go of the connection. Never raises; who waits for messages gets LINK_DOWN."""
        self._broker.close()
