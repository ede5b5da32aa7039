"""A configuration as a file again: all defaults filled in, all included files in one, every path absolute.

``load`` accepts it and finds the same in it. Secrets appear as what refers to them; what a third party's model holds in
plain text under a secret's name is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from agent import kinds
from agent.config.effective import Channel, Config
from agent.config.problems import may_be_secret, place_in
from agent.config.tables import VERSION
from agent.config.toml_lines import Key
from agent.units import duration_text

NOT_SHOWN = "(not shown)"
_REFERENCES = {"file", "credential", "env"}  # agent/secret.py


def as_file(config: Config) -> dict[str, Any]:
    """The tables of one file that says all of it."""
    return {
        "version": VERSION,
        "site": _written(config.site),
        "identity": _written(config.identity),
        "clock": _written(config.clock),
        "connection": {
            plan.name: _kind(plan.class_path, plan.connection) | _masked(_written(plan.connection))
            for plan in config.plans
        },
        "device": [_device(device) for device in config.devices],
        "channel": [_channel(channel) for channel in config.channels],
        "agent": _written(config.agent),
    }


def _channel(channel: Channel) -> dict[str, Any]:
    transport = next(name for name, kind in kinds.TRANSPORTS.items() if kind.transport == channel.transport)
    return {
        "id": channel.id,
        "transport": transport,
        **_masked(_written(channel.settings)),
        "send": list(channel.send),
        "seal_within": duration_text(channel.seal_within),
        "seal_within_away": duration_text(channel.seal_within_away),
        "outbox": _written(channel.outbox),
        "drain": _written(channel.drain),
    }


def _kind(class_path: str, connection: BaseModel) -> dict[str, Any]:
    """``kind``, where the URL does not say it."""
    url = getattr(connection, "url", None)
    scheme = kinds.scheme(url) if isinstance(url, str) else None
    return {} if scheme is not None and kinds.ADAPTERS.get(scheme) == class_path else {"kind": class_path}


def _written(model: BaseModel) -> dict[str, Any]:
    """A table with its defaults, but for those that the model refuses when they are written out, as it does with a key
    that has no effect beside others.
    """
    table = _without_none(model.model_dump(mode="json", by_alias=True))
    while True:
        try:
            if type(model).model_validate(table) == model:
                return table
            break
        except ValidationError as error:
            refused = [place_in(table, detail["loc"]) for detail in error.errors(include_url=False)]
        removed = [_removed(table, place) for place in sorted(refused, key=len, reverse=True)]  # inner ones first
        if not any(removed):
            break
    return _without_none(model.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _removed(table: Any, place: Key) -> bool:
    """Whether a key of a table was there and is no longer."""
    for part in place[:-1]:
        table = table[part]
    return bool(place) and isinstance(table, dict) and table.pop(place[-1], None) is not None


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; what is None is left out."""
    return {key: _filled(value) for key, value in table.items() if value is not None}


def _filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_filled(each) for each in value]
    return _without_none(value) if isinstance(value, dict) else value


def _device(device: BaseModel) -> dict[str, Any]:
    """``groups`` holds names that somebody chose, which say nothing of secrets."""
    table = _written(device)
    groups = {name: _masked(group) for name, group in table.get("groups", {}).items()}
    return _masked({key: each for key, each in table.items() if key != "groups"}) | {"groups": groups}


def _masked(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without what stands under a secret's name, however deep, unless it is a reference."""
    return {key: _shown(value, hide=may_be_secret(key)) for key, value in table.items()}


def _shown(value: Any, *, hide: bool) -> Any:
    if isinstance(value, dict):
        is_reference = len(value) == 1 and value.keys() <= _REFERENCES
        if is_reference or not hide:
            return value if is_reference else _masked(value)
        return {key: _shown(each, hide=True) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each, hide=hide) for each in value]
    return NOT_SHOWN if hide and value and not isinstance(value, bool) else value
