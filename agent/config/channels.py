"""The channels of a configuration: each against its models, its transport and the devices that it sends."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from agent import kinds
from agent.config.effective import Channel
from agent.config.file import Source
from agent.config.problems import Findings, Place, near
from agent.config.selection import Names
from agent.config.tables import ChannelTable, Site
from agent.config.toml_lines import Key
from agent.fields import NOT_YET


class ChannelJudge:
    """Judges the channels of all files; notes what it finds, and keeps in ``places`` where each stands."""

    def __init__(self, names: Names, *, site: Site | None, unread: Collection[str]) -> None:
        """``unread``: ids of devices that are there and not in ``names``, "" for one whose id is not known."""
        self.places: dict[tuple[str, ...], Place] = {}
        self._names = names
        self._site = site
        self._unread = unread
        self._writers: dict[tuple[str, str], Place] = {}  # by transport and topic

    def channels(self, sources: Iterable[Source]) -> tuple[Channel, ...]:
        """The channels that are good."""
        return tuple(
            channel
            for source in sources
            for index, table in enumerate(source.raw.get("channel", []))
            if (channel := self._channel(source, table, ("channel", index))) is not None
        )

    def _is_first(self, source: Source, name: Any, at: Key) -> bool:
        if not isinstance(name, str):
            return True
        here = source.findings.place(at)
        place = self.places.setdefault(("channel", name), here)
        self.places.setdefault(("channel", name, "outbox"), source.findings.place((*at, "outbox", "size")))
        if place != here:
            what = f'"{name[:80]}" is the id of {place.seen_from(here.file)} too'
            source.findings.add((*at, "id"), what, "choose another one")
        return place == here

    def _one_writer(self, source: Source, transport: str, topic: str, at: Key, key: str) -> None:
        here = source.findings.place(at)
        place = self._writers.setdefault((transport, topic), here)
        if place != here:
            what = f'"{topic}" is where {place.seen_from(here.file)} writes; a {key} has one writer'
            source.findings.add((*at, key), what, f"let the {key} hold {{channel}}")

    def _channel(self, source: Source, table: dict[str, Any], at: Key) -> Channel | None:
        findings, kind = source.findings, table.get("transport")
        if isinstance(kind, str) and kind not in kinds.TRANSPORTS:
            what = f'"{kind}" is {NOT_YET}' if kind in kinds.LATER else f'"{kind[:40]}" is no transport'
            findings.add((*at, "transport"), what, f"choose one of: {', '.join(kinds.TRANSPORTS)}")
        own = ChannelTable.model_fields.keys()
        channel = findings.judge(
            ChannelTable, {key: table[key] for key in own & table.keys()}, at=at, context=source.context
        )
        first = self._is_first(source, table.get("id"), at)
        self._send(source, table.get("send"), (*at, "send"))
        transport = kinds.TRANSPORTS.get(kind) if isinstance(kind, str) else None
        if transport is None:
            if not isinstance(kind, str) or kind not in kinds.LATER:
                models = [kinds.load(each.config_model) for each in kinds.TRANSPORTS.values()]
                findings.add_strays(table, models, at=at, known=own)
            return None
        model = kinds.load(transport.config_model)
        rest = {key: value for key, value in table.items() if key not in own}
        settings = findings.judge(model, rest, at=at, context=source.context, also_known=own)
        topic = self._topic(findings, settings, model, table, at)
        if topic is not None and first and not getattr(model, "shares_destination", False):
            self._one_writer(source, transport.transport, topic, at, _destination_key(model))
        if channel is None or settings is None or topic is None:
            return None
        return Channel(
            channel.id,
            transport.transport,
            settings,
            topic,
            channel.send,
            channel.seal_within,
            channel.seal_within if channel.seal_within_away is None else channel.seal_within_away,
            channel.outbox,
            self._names.selection(channel.send),
            channel.drain,
        )

    def _topic(
        self, findings: Findings, settings: Any, model: type[BaseModel], table: dict[str, Any], at: Key
    ) -> str | None:
        """Where the channel writes, whatever else is wrong with it; None if what decides about it is not known."""
        name = _destination_key(model)
        if self._site is None or any(findings.refuses((*at, key)) for key in ("id", name)):
            return None
        if settings is None:
            known = [*ChannelTable.model_fields, *model.model_fields]
            if any(key not in known and near((key,), known) == name for key in table):
                return None
            if name in model.model_fields and model.model_fields[name].is_required():
                return None
            settings = model.model_construct(**{key: table[key] for key in (name,) if key in table})
        try:
            topic: str = settings.destination(site=self._site.id, channel=table["id"])
        except ValueError as error:
            findings.add_error((*at, name), error)
            return None
        return topic

    def _send(self, source: Source, patterns: Any, at: Key) -> None:
        """Every pattern must name something; a device that was refused may be what it names."""
        if not isinstance(patterns, list) or not self._names.devices:
            return
        for index, pattern in enumerate(patterns):
            if not isinstance(pattern, str) or self._names.matching(pattern):
                continue
            head = pattern.partition("/")[0]
            if any(not name or "*" in head or fnmatchcase(name, head) for name in self._unread):
                continue
            known = f'write "{head}/*" or name what the device has'
            remedy = known if head in self._names.devices else f"the devices are: {', '.join(self._names.devices)}"
            source.findings.add((*at, index), f'"{pattern[:80]}" names nothing that is read', remedy)


def _destination_key(model: type[BaseModel]) -> str:
    """The key of a transport's model that decides where a channel writes."""
    return str(getattr(model, "destination_key", "subject"))
