"""The configuration: one TOML file, judged whole before anything is done with it.

``load`` either returns a ``Config`` in which every reference holds, or raises ConfigError with all that is wrong with
the file. It reads the file, imports the configured adapters' classes, and does nothing else: no device, broker or key
is touched. What several tables say together is judged here, a single table by its model (agent/config_tables.py, the
adapter's, the transport's).
docs/configuration.md lists the keys, config/agent.toml is the manual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent import kinds
from agent.config_effective import AdapterPlan, Channel, Config, selection
from agent.config_file import read
from agent.config_problems import NOT_YET, Findings, render
from agent.config_tables import VERSION, Agent, ChannelTable, Identity, Site, judge_id
from agent.errors import ConfigError
from agent.ports import DeviceSelection
from agent.toml_lines import Key
from agent.units import MS, duration_text

__all__ = ["AdapterPlan", "Channel", "Config", "load", "render"]

_TABLES = {
    "site": "[site]",
    "identity": "[identity]",
    "connection": "[connection.NAME]",
    "device": "[[device]]",
    "channel": "[[channel]]",
    "agent": "[agent]",
}
_SCHEME = re.compile(r"([a-z][a-z0-9.-]*)(\+[a-z0-9+.-]+)?://")


def load(path: Path) -> Config:
    """Read and judge a configuration file. Raises ConfigError with all of its problems."""
    raw, findings = read(path)
    config = _Judge(path, raw, findings).config()
    if config is None:
        raise ConfigError(findings.sorted())
    return config


class _Judge:
    """Judges a parsed file; each method notes what it finds and returns what is good."""

    def __init__(self, path: Path, raw: dict[str, Any], findings: Findings) -> None:
        self.path = path
        self.raw = raw
        self.findings = findings
        self.context = {"folder": path.absolute().parent}
        self.adapters: dict[
            str, tuple[str, type[BaseModel]]
        ] = {}  # connections of a known kind: class path, device_model
        self.unread: set[str] = set()  # ids of devices that were refused; "" if an id itself was

    def config(self) -> Config | None:
        """The configuration, or None if anything was found."""
        if not self._version():
            return None
        self._shape()
        judge, context, raw = self.findings.judge, self.context, self.raw
        site = judge(Site, raw["site"], at=("site",), context=context) if "site" in raw else None
        identity = judge(Identity, raw["identity"], at=("identity",), context=context) if "identity" in raw else None
        agent = judge(Agent, raw.get("agent", {}), at=("agent",), context=context)
        connections = self._connections()
        devices = self._devices()
        channel = self._channel(site, devices)
        if self.findings.sorted() or not (site and identity and agent and channel):
            return None
        return Config(
            self.path, site, identity, agent, channel, _plans(self.adapters, connections, devices, channel.send)
        )

    def _version(self) -> bool:
        version = self.raw.get("version")
        if type(version) is int and version != VERSION:
            # The other keys may mean something else then; nothing is said of them.
            self.findings.add(
                ("version",),
                f"this agent reads version {VERSION}, not {version}",
                "install the agent that the file is for",
            )
            return False
        if version is None:
            self.findings.add(("version",), "missing", f"add version = {VERSION}")
        elif type(version) is not int:
            self.findings.add(("version",), "expected a whole number", f"write version = {VERSION}")
        return True

    def _shape(self) -> None:
        """The tables of the top level are there and are tables; what is not is taken out."""
        for name in self.raw.keys() - _TABLES.keys() - {"version"}:
            self.findings.add_unknown((name,), _TABLES)
        for name, written in _TABLES.items():
            if name not in self.raw:
                if name != "agent":
                    self.findings.add((name,), "missing", f"add {written}")
            elif not _shaped(self.raw[name], written):
                self.findings.add(
                    (name,), "expected a table" if "]]" not in written else "expected tables", f"write it as {written}"
                )
                del self.raw[name]

    def _connections(self) -> dict[str, Any]:
        """The connections that are good, by name."""
        good = {}
        for name, table in self.raw.get("connection", {}).items():
            at: Key = ("connection", name)
            self._id(name, at)
            settings = {key: value for key, value in table.items() if key != "kind"}
            try:
                class_path = _class_path(table)
                adapter = kinds.load(class_path)
                model: type[BaseModel] = adapter.connection_model
                self.adapters[name] = (class_path, adapter.device_model)
            except ValueError as error:
                self.findings.add_error((*at, "kind" if "kind" in table else "url"), error)
                continue
            except AttributeError:
                self.findings.add(
                    (*at, "kind"), "the class is no adapter", "name a class with connection_model and device_model"
                )
                continue
            found = self.findings.judge(model, settings, at=at, context=self.context, also_known=["kind"])
            if found is not None:
                good[name] = found
        return good

    def _devices(self) -> list[Any]:
        """The devices that are good."""
        good = []
        first: dict[str, int] = {}
        for index, table in enumerate(self.raw.get("device", [])):
            at: Key = ("device", index)
            name = table.get("id")
            if self._id(name, (*at, "id")) and name in first:
                self.findings.add((*at, "id"), f'"{name}" is the id of device[{first[name]}] too', "choose another one")
            elif isinstance(name, str):
                first[name] = index
            device = self._device(table, at)
            if device is None:
                self.unread.add(name if isinstance(name, str) else "")
            else:
                good.append(device)
        return good

    def _device(self, table: dict[str, Any], at: Key) -> Any:
        connection = table.get("connection")
        if not isinstance(connection, str):
            what = "expected text" if "connection" in table else "missing"
            self.findings.add((*at, "connection"), what, "name the connection that it is read through")
            return None
        if connection not in self.adapters:
            names = self.raw.get("connection", {})
            if names and connection not in names:
                what = f'there is no connection "{connection[:80]}"'
                self.findings.add((*at, "connection"), what, f"choose one of: {', '.join(names)}")
            return None
        device: Any = self.findings.judge(self.adapters[connection][1], table, at=at, context=self.context)
        if device is None:
            return None
        groups: Mapping[str, Any] = device.groups
        if not groups:
            self.findings.add((*at, "groups"), "the device has no group", "add at least one, or remove the device")
        for name, group in groups.items():
            self._id(name, (*at, "groups", name))
            if group.every < MS:
                self.findings.add(
                    (*at, "groups", name, "every"), f"{duration_text(group.every)} is too short", "choose 1ms or more"
                )
        return device

    def _channel(self, site: Site | None, devices: list[Any]) -> Channel | None:
        tables = self.raw.get("channel", [])
        for index in range(1, len(tables)):
            self.findings.add(("channel", index), f"a second channel is {NOT_YET}", "remove it")
        if not tables:
            return None
        table, at = tables[0], ("channel", 0)
        kind = table.get("transport")
        if isinstance(kind, str) and kind not in kinds.TRANSPORTS:
            what = f'"{kind}" is {NOT_YET}' if kind in kinds.LATER else f'"{kind[:40]}" is no transport'
            self.findings.add((*at, "transport"), what, f"choose one of: {', '.join(kinds.TRANSPORTS)}")
        own = ChannelTable.model_fields.keys()
        channel = self.findings.judge(
            ChannelTable, {key: table[key] for key in own & table.keys()}, at=at, context=self.context
        )
        self._send(table.get("send"), (*at, "send"), devices)
        transport = kinds.TRANSPORTS.get(kind) if isinstance(kind, str) else None
        if transport is None:
            return None
        model = kinds.load(transport.config_model)
        rest = {key: value for key, value in table.items() if key not in own}
        settings = self.findings.judge(model, rest, at=at, context=self.context, also_known=own)
        if channel is None or settings is None or site is None:
            return None
        try:
            topic: str = settings.topic(site=site.id, channel=channel.id)
        except ValueError as error:
            self.findings.add_error((*at, "subject"), error)
            return None
        return Channel(
            channel.id, transport.transport, settings, topic, channel.send, channel.seal_within, channel.outbox
        )

    def _send(self, patterns: Any, at: Key, devices: list[Any]) -> None:
        """Every pattern must name something; a device that was refused may be what it names."""
        if not isinstance(patterns, list) or not devices:
            return
        for index, pattern in enumerate(patterns):
            if not isinstance(pattern, str) or any(selection(device, [pattern]) for device in devices):
                continue
            head = pattern.partition("/")[0]
            if any(not name or "*" in head or fnmatchcase(name, head) for name in self.unread):
                continue
            names = dict.fromkeys(device.id for device in devices)
            known = f'write "{head}/*" or name what the device has'
            remedy = known if head in names else f"the devices are: {', '.join(names)}"
            self.findings.add((*at, index), f'"{pattern[:80]}" names nothing that is read', remedy)

    def _id(self, name: Any, at: Key) -> bool:
        if not isinstance(name, str):
            return False
        try:
            judge_id(name)
        except ValueError as error:
            self.findings.add_error(at, error)
            return False
        return True


def _shaped(value: Any, written: str) -> bool:
    if written.startswith("[["):
        return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    if written.endswith(".NAME]"):
        return isinstance(value, dict) and bool(value) and all(isinstance(one, dict) for one in value.values())
    return isinstance(value, dict)


def _class_path(table: Mapping[str, Any]) -> str:
    """The class of a connection's adapter: its own ``kind``, else by the scheme of its URL. Raises ValueError."""
    if "kind" in table:
        if isinstance(table["kind"], str):
            return table["kind"]
        raise ValueError('expected the name of a class; write "package.module:Class"')
    match = _SCHEME.match(table["url"]) if isinstance(table.get("url"), str) else None
    if match is None:
        raise ValueError('a URL is needed; write it like "modbus+tcp://192.0.2.20:502"')
    if match[1] in kinds.LATER:
        raise ValueError(f"{match[1]}:// is {NOT_YET}; remove the connection and its devices")
    if match[1] not in kinds.ADAPTERS:
        raise ValueError(f"{match[1]}:// is no kind of connection; known are: {', '.join(kinds.ADAPTERS)}")
    return kinds.ADAPTERS[match[1]]


def _plans(
    adapters: Mapping[str, tuple[str, type[BaseModel]]],
    connections: Mapping[str, Any],
    devices: list[Any],
    send: tuple[str, ...],
) -> tuple[AdapterPlan, ...]:
    plans = []
    for name, connection in connections.items():
        chosen = [
            DeviceSelection(device, groups)
            for device in devices
            if device.connection == name and (groups := selection(device, send))
        ]
        plans.append(AdapterPlan(name, adapters[name][0], connection, tuple(chosen)))
    return tuple(plans)
