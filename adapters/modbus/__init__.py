"""Modbus TCP: reads registers of devices described by hand or by SunSpec's models.

Importing this package, as a check of a configuration does, loads neither the client nor SunSpec's definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from adapters.modbus.config import ModbusConnection, ModbusDevice
from agent.ports import Clock, DeviceSelection, PolledDevice

__all__ = ["ModbusAdapter", "ModbusConnection", "ModbusDevice"]


class ModbusAdapter:
    """One Modbus TCP connection and the devices behind it (agent.ports.PolledAdapter)."""

    connection_model: ClassVar[type[ModbusConnection]] = ModbusConnection
    device_model: ClassVar[type[ModbusDevice]] = ModbusDevice

    devices: Sequence[PolledDevice]

    def __init__(
        self, name: str, connection: ModbusConnection, devices: Sequence[DeviceSelection], clock: Clock
    ) -> None:
        from adapters.modbus.client import Connection  # asyncio and anyio, only for who reads
        from adapters.modbus.device import RegisterDevice
        from adapters.modbus.sunspec_device import SunSpecDevice

        self.name = name
        self._connection = Connection(
            host=connection.host,
            port=connection.port,
            timeout=connection.timeout,
            pause=connection.request_pause,
            clock=clock,
        )
        self._each = connection.timeout + connection.request_pause
        self._read = tuple(
            (RegisterDevice if each.config.sunspec is None else SunSpecDevice)(
                each.config, each.groups, self._connection
            )
            for each in devices
        )
        self.devices = self._read

    @property
    def slowest(self) -> int:
        """Ns that one acquisition takes at most, connecting and learning what the device is included."""
        return self._each * max((device.most_requests for device in self._read), default=0)

    async def close(self) -> None:
        """Let go of the connection. Never raises; acquisitions under way fail with LINK_DOWN."""
        await self._connection.close()
