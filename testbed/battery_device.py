"""The battery of testbed/battery.py as the agent's configuration describes it, and as the oracle judges it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from testbed.mosquitto import Mosquitto
from testbed.processes import Battery, NatsServer
from testbed.published import Topic, read_messages

MqttBroker = Mosquitto | NatsServer

DEVICE, GROUP, SILENT_AFTER_S = "battery", "state", 5
POINTS: Mapping[str, tuple[str, str]] = {  # where they stand, and what else is said of them
    "N": ("/n", 'type = "integer"'),
    "SoC": ("/soc", 'unit = "%"'),
    "W": ("/power/w", 'unit = "W"'),
    "V": ("/v", 'unit = "V", decimals = 2'),
    "TmpCell2": ("/temp/1", 'unit = "Cel"'),
    "State": ("/state", 'type = "text"'),
    "On": ("/on", 'type = "boolean"'),
}


def broker_url(broker: MqttBroker, version: str = "3.1.1") -> str:
    """Where the battery and the agent connect; ``version`` of MQTT, "3.1.1" or "5"."""
    url = broker.mqtt_url if isinstance(broker, NatsServer) else broker.url
    return url if version == "3.1.1" else f"{url}?version={version}"


def tables(url: str, topic: str, *, connection: str = "bms", timeout: str = "2s", more: str = "") -> str:
    """The TOML of the connection, to which ``more`` lines may be added, and of the device."""
    points = ", ".join(f'{{ name = "{name}", at = "{at}", {rest} }}' for name, (at, rest) in POINTS.items())
    return f"""\
[connection.{connection}]
url = "{url}"
timeout = "{timeout}"
{more}
[[device]]
id = "{DEVICE}"
connection = "{connection}"
topic = "{topic}"
timestamp = {{ at = "/ts", format = "unix-ms" }}
silent_after = "{SILENT_AFTER_S}s"
[device.groups.{GROUP}]
points = [{points}]
"""


def judged(
    battery: Battery,
    brokers: Iterable[MqttBroker] = (),
    *,
    owed_from: int | None = None,
    owed_until: int | None = None,
    at_most_once: bool = False,
) -> Topic:
    """What the oracle needs to know; ``brokers``: whose kills are taken into account."""
    return Topic(
        {name: at for name, (at, _) in POINTS.items()},
        read_messages(battery.journal),
        time=("/ts", 1_000_000),
        silent_after=SILENT_AFTER_S * 1_000_000_000,
        broker_loses=[(at - int(broker.LOSES * 1e9), at) for broker in brokers for at in broker.kills],
        owed_from=owed_from,
        owed_until=owed_until,
        at_most_once=at_most_once,
    )
