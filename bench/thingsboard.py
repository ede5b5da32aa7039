"""ThingsBoard Gateway, as PyPI has it, for comparison: an environment of its own, its configuration, its process; and
what stands in for the ThingsBoard server at the MQTT broker.

Its dependencies clash with ours, so that it lives in .venv/thingsboard-gateway-VERSION, made when it is first wanted
(package index, a minute, 95 MB). It is set up as its own example (modbus.json) shows, where each tag is a request; or
in blocks: a range of addresses in place of tags, which it reads with one request. Everything is off that is not needed
to read and to deliver: remote configuration, statistics, logs below ERROR. It keeps what it has not delivered in
memory, its default. A proxy that is not there keeps it from asking its maker for updates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

import provision
from bench.modbus_device import FIRST_UNIT
from testbed.child import Process, wait_for

VERSION = "3.8.5"
# What its Modbus connector would else install when it starts.
_PACKAGES = [f"thingsboard-gateway=={VERSION}", "pymodbus==3.9.2", "pyserial==3.5", "pyserial-asyncio==0.6"]
_HOME = provision.ROOT / ".venv" / f"thingsboard-gateway-{VERSION}"
_TELEMETRY = "v1/gateway/telemetry"
_ASKED, _TOLD = "v1/devices/me/rpc/request/", "v1/devices/me/rpc/response/"
_UNLIMITED = {"messages": "", "telemetryMessages": "", "telemetryDataPoints": ""}
_LIMITS = {
    "maxPayloadSize": 65536,
    "maxInflightMessages": 100,
    "rateLimits": _UNLIMITED,
    "gatewayRateLimits": _UNLIMITED,
}
_LOGGERS = ("database", "service", "connector", "converter", "tb_connection", "storage", "extension")


def environment() -> Path:
    """The folder of an environment that has the gateway; made if it is missing. Raises provision.SetUpFailed."""
    stamp, wanted = _HOME / "stamp", "\n".join(_PACKAGES)

    def ready() -> bool:
        return stamp.exists() and stamp.read_text() == wanted

    _HOME.parent.mkdir(exist_ok=True)
    with provision.alone(_HOME.parent / "lock"):
        if not ready():
            provision.say(f"installing ThingsBoard Gateway {VERSION} into {_HOME}, once; this takes about a minute")
            shutil.rmtree(_HOME, ignore_errors=True)
            provision.run([provision.BASE_PYTHON, "-m", "venv", _HOME])
            provision.run([_HOME / "bin" / "python", "-m", "pip", "install", "--progress-bar=off", *_PACKAGES])
            stamp.write_text(wanted)
    return _HOME


class ThingsBoard(Process):
    """The gateway; its configuration is in ``folder``/config. Starts empty each time: what it held was in memory."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        config = folder / "config"
        config.mkdir(parents=True, exist_ok=True)
        for name, content in configuration.items():
            (config / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
        super().__init__(
            [environment() / "bin" / "thingsboard-gateway"],
            name="thingsboard",
            folder=folder,
            environment={"TB_GW_CONFIG_DIR": str(config), **nowhere},
        )


def files(
    device: int, broker: int, *, units: int, registers: int, period_ms: int, blocks: bool = False
) -> Mapping[str, Any]:
    """Its configuration: file names and what is in them. ``device`` and ``broker``: ports of this machine."""
    tags = [_block(registers)] if blocks else [_tag(at) for at in range(registers)]
    slaves = [_slave(device, unit, tags, period_ms) for unit in range(units)]
    return {"tb_gateway.json": _gateway(broker), "modbus.json": {"master": {"slaves": slaves}}, "logs.json": _logs()}


def _gateway(broker: int) -> Mapping[str, Any]:
    return {
        "thingsboard": {
            "host": "127.0.0.1",
            "port": broker,
            "remoteShell": False,
            "remoteConfiguration": False,
            "statistics": {"enable": False},
            "deviceFiltering": {"enable": False},
            "maxPayloadSizeBytes": 65536,
            "minPackSendDelayMS": 50,
            "minPackSizeToSend": 500,
            "checkConnectorsConfigurationInSeconds": 60,
            "handleDeviceRenaming": True,
            "security": {"type": "accessToken", "accessToken": "bench"},
            "qos": 1,
            "reportStrategy": {"type": "ON_RECEIVED"},
            "checkingDeviceActivity": {"checkDeviceInactivity": False},
        },
        "storage": {"type": "memory", "read_records_count": 100, "max_records_count": 100_000},
        "grpc": {"enabled": False},
        "connectors": [{"type": "modbus", "name": "modbus", "configuration": "modbus.json", "logLevel": "ERROR"}],
    }


def _slave(port: int, unit: int, tags: Sequence[Mapping[str, Any]], period_ms: int) -> Mapping[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "type": "tcp",
        "method": "socket",
        "unitId": FIRST_UNIT + unit,
        "deviceName": f"d{unit}",
        "deviceType": "default",
        "timeout": 5,
        "byteOrder": "BIG",
        "wordOrder": "BIG",
        "retries": 0,
        "retryOnEmpty": False,
        "retryOnInvalid": False,
        "pollPeriod": period_ms,
        "connectAttemptTimeMs": 1000,
        "connectAttemptCount": 5,
        "waitAfterFailedAttemptsMs": 1000,
        "attributes": [],
        "timeseries": tags,
        "attributeUpdates": [],
        "rpc": [],
    }


def _tag(at: int) -> Mapping[str, Any]:
    return {"tag": f"t{at}", "type": "16int", "functionCode": 3, "objectsCount": 1, "address": at, "divider": 10}


def _block(registers: int) -> Mapping[str, Any]:
    """All of them, 125 in a request: what the protocol allows."""
    return {
        "tag": "t${address}",
        "type": "16int",
        "functionCode": 3,
        "objectsCount": 1,
        "address": f"0-{registers - 1}",
        "maxRegistersPerRequest": 125,
        "divider": 10,
    }


def _logs() -> Mapping[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"}},
        "loggers": {name: {"handlers": ["console"], "level": "ERROR", "propagate": False} for name in _LOGGERS},
        "root": {"handlers": ["console"], "level": "ERROR"},
    }


class Server:
    """What the gateway takes for the ThingsBoard server, behind a broker's port: tells it that it has no limits, and
    counts the values that arrive. Runs in a thread of its own within its ``with`` block.
    """

    def __init__(self, port: int) -> None:
        self.values = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "thingsboard-server")
        self._client.on_message = self._take
        self._listens = False
        self._client.on_subscribe = self._subscribed
        self._client.connect("127.0.0.1", port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self._client.subscribe([(_TELEMETRY, 1), (f"{_ASKED}+", 1)])
        wait_for(lambda: self._listens, timeout=10, what="the stand-in of the ThingsBoard server to listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_values(self, more: int, *, timeout: float = 30.0) -> None:
        """Return when so many more have arrived."""
        awaited = self.values + more
        wait_for(lambda: self.values >= awaited, timeout=timeout, what=f"{more} values from the gateway")

    def _subscribed(self, *_: Any) -> None:
        self._listens = True

    def _take(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        if message.topic == _TELEMETRY:
            self.values += values_of(bytes(message.payload))
        elif json.loads(message.payload).get("method") == "getSessionLimits":
            client.publish(_TOLD + message.topic.removeprefix(_ASKED), json.dumps(_LIMITS), qos=1)


def values_of(telemetry: bytes) -> int:
    """How many values a message of the gateway holds (ThingsBoard's MQTT gateway API, telemetry upload)."""
    return sum(len(entry["values"]) for entries in json.loads(telemetry).values() for entry in entries)
