"""The configuration: one TOML file and those that it includes, judged whole before anything is done with it.

``load`` either returns a ``Config`` in which every reference holds, or raises ConfigError with all that is wrong with
the files. It reads them, imports the configured adapters' classes, and does nothing else: no device, broker, key or
secret is touched. What several tables say together is judged here and in agent/config/channels.py, a single table by
its model (agent/config/tables.py, the adapter's, the transport's).
docs/configuration.md lists the keys, config/agent.toml is the manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent import kinds
from agent.config.channels import ChannelJudge
from agent.config.effective import AdapterPlan, Channel, Config
from agent.config.file import Source, included, read
from agent.config.problems import Findings, Place, near, render
from agent.config.selection import Names
from agent.config.shared import judge_shared
from agent.config.tables import VERSION, Agent, ClockTable, Identity, Site
from agent.config.toml_lines import Key
from agent.errors import ConfigError
from agent.fields import NOT_YET, judge_id
from agent.ports import DeviceSelection
from agent.units import MS, duration_text

__all__ = ["AdapterPlan", "Channel", "Config", "load", "render"]

_TABLES = {
    "site": "[site]",
    "identity": "[identity]",
    "clock": "[clock]",
    "connection": "[connection.NAME]",
    "device": "[[device]]",
    "channel": "[[channel]]",
    "agent": "[agent]",
}
_INCLUDABLE = ("connection", "device", "channel")
_MAIN_ONLY = ("version", "include", "site", "identity", "clock", "agent")
_OPTIONAL = ("clock", "agent")  # what they say has defaults


def load(path: Path) -> Config:
    """Read and judge a configuration. Raises ConfigError with all of its problems, by file and line, the main file
    first; PermissionError if that may not be read.
    """
    judge = _Judge(read(path))
    config = judge.config()
    problems = [problem for source in judge.sources for problem in source.findings.sorted()]
    if config is None or problems:
        raise ConfigError(problems)
    return config


class _Judge:
    """Judges parsed files; each method notes what it finds and returns what is good."""

    def __init__(self, main: Source) -> None:
        self.main = main
        self.sources = [main]
        self.adapters: dict[
            str, tuple[str, type[BaseModel]]
        ] = {}  # connections of a known kind: class path, device_model
        self.named: dict[str, Place] = {}  # all connections
        self.unread: set[str] = set()  # ids of devices that were refused; "" if an id is not known
        self.places: dict[tuple[str, ...], Place] = {}
        self.where: dict[tuple[str, str], tuple[Findings, Key]] = {}  # connections and devices that are good

    def config(self) -> Config | None:
        """The configuration; None, or something unfit for use, if anything was found."""
        if not self._version():
            return None
        self.sources += included(self.main)
        if not self._whole():
            self.unread.add("")
        self._shape()
        judge, context, raw = self.main.findings.judge, self.main.context, self.main.raw
        site = judge(Site, raw["site"], at=("site",), context=context) if "site" in raw else None
        identity = judge(Identity, raw["identity"], at=("identity",), context=context) if "identity" in raw else None
        clock = judge(ClockTable, raw.get("clock", {}), at=("clock",), context=context)
        agent = judge(Agent, raw.get("agent", {}), at=("agent",), context=context)
        connections = self._connections()
        devices = self._devices()
        judge_shared(connections, devices, self.where)
        names = Names(devices)
        judging = ChannelJudge(names, site=site, unread=self.unread)
        channels = judging.channels(self.sources)
        if not (site and identity and clock and agent and channels):
            return None
        for key in (
            *(("identity", name) for name in ("key", "passphrase", "did")),
            *(("agent", name) for name in ("state", "socket", "http", "token")),
        ):
            self.places[key] = self.main.findings.place(key)
        return Config(
            self.main.path,
            site,
            identity,
            clock,
            agent,
            channels,
            _plans(self.adapters, connections, devices, names, channels),
            tuple(source.path for source in self.sources),
            tuple(devices),
            self.places | judging.places,
        )

    def _whole(self) -> bool:
        return all(source.whole for source in self.sources)

    def _version(self) -> bool:
        findings, version = self.main.findings, self.main.raw.get("version")
        if type(version) is int and version != VERSION:
            # The other keys may mean something else then; nothing is said of them.
            findings.add(
                ("version",),
                f"this agent reads version {VERSION}, not {version}",
                "install the agent that the file is for",
            )
            return False
        if version is None:
            findings.add(("version",), "missing", f"add version = {VERSION}")
        elif type(version) is not int:
            findings.add(("version",), "expected a whole number", f"write version = {VERSION}")
        return True

    def _shape(self) -> None:
        """The tables of the top level are there, where they belong, and are tables; what is not is taken out."""
        there = {name for source in self.sources for name in source.raw}
        for name, written in _TABLES.items():
            if name not in there and name not in _OPTIONAL and (name not in _INCLUDABLE or self._whole()):
                self.main.findings.add((name,), "missing", f"add {written}")
        for source in self.sources:
            known = [*_MAIN_ONLY, *_INCLUDABLE] if source is self.main else _INCLUDABLE
            for name in list(source.raw):
                if name in known and (name not in _TABLES or _shaped(source.raw[name], _TABLES[name])):
                    continue
                if name in known:
                    written = _TABLES[name]
                    expected = "expected tables" if "]]" in written else "expected a table"
                    source.findings.add((name,), expected, f"write it as {written}")
                elif name in _MAIN_ONLY:
                    what = "stands in the main file only, not in an included one"
                    source.findings.add((name,), what, f"move it to {self.main.path.name}, or remove it")
                else:
                    source.findings.add_unknown((name,), known)
                del source.raw[name]

    def _connections(self) -> dict[str, Any]:
        """The connections that are good, by name."""
        good = {}
        for source in self.sources:
            for name, table in source.raw.get("connection", {}).items():
                at: Key = ("connection", name)
                self._id(source.findings, name, at)
                here = source.findings.place(at)
                other = self.named.setdefault(name, here)
                if other != here:
                    what = f'"{name[:80]}" is the name of {other.seen_from(here.file)} too'
                    source.findings.add(at, what, "choose another one")
                self.places["connection", name] = other
                found = self._connection(source, name, table, at)
                if found is not None:
                    good[name] = found
                    self.where["connection", name] = source.findings, at
        return good

    def _connection(self, source: Source, name: str, table: dict[str, Any], at: Key) -> Any:
        settings = {key: value for key, value in table.items() if key != "kind"}
        try:
            class_path = _class_path(table)
            adapter = kinds.load(class_path)
            model: type[BaseModel] = adapter.connection_model
            self.adapters[name] = (class_path, adapter.device_model)
        except ValueError as error:
            source.findings.add_error((*at, "kind" if "kind" in table else "url"), error)
            if "kind" not in table:
                self._unknown_kind(source.findings, table, at)
            return None
        except AttributeError:
            remedy = "name a class with connection_model and device_model"
            source.findings.add((*at, "kind"), "the class is no adapter", remedy)
            return None
        with source.findings.guarded(at):
            return source.findings.judge(model, settings, at=at, context=source.context, also_known=["kind"])
        return None

    def _unknown_kind(self, findings: Findings, table: dict[str, Any], at: Key) -> None:
        """Name the unknown keys of a connection whose URL does not say its kind: one may be the URL, misspelt."""
        misspelt = {key: value for key, value in table.items() if near((key,), ["kind"])}
        models = [kinds.load(path).connection_model for path in kinds.ADAPTERS.values()]
        findings.add_strays(misspelt or table, models, at=at, known=["kind"])  # a third party's keys are not known

    def _devices(self) -> list[Any]:
        """The devices that are good."""
        good = []
        first: dict[str, Place] = {}
        for source in self.sources:
            for index, table in enumerate(source.raw.get("device", [])):
                at: Key = ("device", index)
                name = table.get("id")
                here = source.findings.place(at)
                if self._id(source.findings, name, (*at, "id")) and name in first:
                    what = f'"{name}" is the id of {first[name].seen_from(here.file)} too'
                    source.findings.add((*at, "id"), what, "choose another one")
                elif isinstance(name, str):
                    first[name] = here
                device = None
                with source.findings.guarded(at):
                    device = self._device(source, table, at)
                if device is None:
                    self.unread.add(name if isinstance(name, str) else "")
                else:
                    good.append(device)
                    self.where["device", device.id] = source.findings, at
        return good

    def _device(self, source: Source, table: dict[str, Any], at: Key) -> Any:
        findings, connection = source.findings, table.get("connection")
        if not isinstance(connection, str):
            what = "expected text" if "connection" in table else "missing"
            findings.add((*at, "connection"), what, "name the connection that it is read through")
            self._judge_unconnected(source, table, at)
            return None
        if connection not in self.adapters:
            if self.named and connection not in self.named and self._whole():
                what = f'there is no connection "{connection[:80]}"'
                findings.add((*at, "connection"), what, f"choose one of: {', '.join(self.named)}")
                self._judge_unconnected(source, table, at)
            return None
        device = self._judged_device(source, self.adapters[connection][1], table, at)
        if device is None:
            return None
        groups: Mapping[str, Any] = device.groups
        if not groups:
            findings.add((*at, "groups"), "the device has no group", "add at least one, or remove the device")
        for name, group in groups.items():
            self._id(findings, name, (*at, "groups", name))
            device.point_names(name)  # once here, where what it raises has a place
            self.places["group", device.id, name] = findings.place((*at, "groups", name))
            every = getattr(group, "every", None)  # event-driven groups have none
            phase = getattr(group, "phase", None)
            if every is not None and every < MS:
                findings.add(
                    (*at, "groups", name, "every"), f"{duration_text(every)} is too short", "choose 1ms or more"
                )
            elif every is not None and isinstance(phase, int) and phase >= every:
                what = f"{duration_text(phase)} is not less than every"
                findings.add(
                    (*at, "groups", name, "phase"), what, f'choose less than {duration_text(every)}, or "auto"'
                )
        return device

    def _judge_unconnected(self, source: Source, table: dict[str, Any], at: Key) -> None:
        """What else is wrong with a device whose connection is not known, by the model that it looks most like."""
        models = [model for _, model in self.adapters.values()]
        if models:
            likely = max(models, key=lambda model: len(model.model_fields.keys() & table.keys()))
            self._judged_device(source, likely, table, at)

    def _judged_device(self, source: Source, model: type[BaseModel], table: dict[str, Any], at: Key) -> Any:
        """The device; None, and all that is wrong with it, also if its id or connection is not good."""
        device = source.findings.judge(model, table, at=at, context=source.context)
        if stand_ins := {key: "x" for key in ("id", "connection") if source.findings.refuses((*at, key))}:
            source.findings.judge(model, table | stand_ins, at=at, context=source.context)
        return device

    def _id(self, findings: Findings, name: Any, at: Key) -> bool:
        if not isinstance(name, str):
            return False
        try:
            judge_id(name)
        except ValueError as error:
            findings.add_error(at, error)
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
    scheme = kinds.scheme(table["url"]) if isinstance(table.get("url"), str) else None
    if scheme is None:
        raise ValueError('a URL is needed; write it like "modbus+tcp://192.0.2.20:502"')
    if scheme in kinds.LATER:
        raise ValueError(f"{scheme}:// is {NOT_YET}; remove the connection and its devices")
    if scheme not in kinds.ADAPTERS:
        raise ValueError(f"{scheme}:// is no kind of connection; known are: {', '.join(kinds.ADAPTERS)}")
    return kinds.ADAPTERS[scheme]


def _plans(
    adapters: Mapping[str, tuple[str, type[BaseModel]]],
    connections: Mapping[str, Any],
    devices: Sequence[Any],
    names: Names,
    channels: Sequence[Channel],
) -> tuple[AdapterPlan, ...]:
    """What is read through each connection: of each device what any channel sends."""
    chosen = names.selection([pattern for channel in channels for pattern in channel.send])
    return tuple(
        AdapterPlan(
            name,
            adapters[name][0],
            connection,
            tuple(
                DeviceSelection(device, chosen[device.id])
                for device in devices
                if device.connection == name and device.id in chosen
            ),
        )
        for name, connection in connections.items()
    )
