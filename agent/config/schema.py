"""The configuration's format as a JSON Schema (draft 2020-12), for editors that complete and mark keys.

Made from the models that judge a file, so it knows their keys, types and ranges; what only their validators and
``check`` know (addresses, references, patterns) it does not. A connection of a third party's adapter, which names its
``kind``, is accepted as it is; its devices are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent import kinds
from agent.config.tables import VERSION, Agent, ChannelTable, ClockTable, Identity, Site
from agent.units import DURATION_SCHEMA, SIZE_SCHEMA, duration_text, size_text

Json = dict[str, Any]
_OF_ANOTHER_KIND: Json = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"}},
}


def schema() -> Json:
    """The schema of a whole file. Raises ValueError if an adapter cannot be loaded."""
    adapters = [kinds.load(path) for path in dict.fromkeys(kinds.ADAPTERS.values())]
    connections: list[type[BaseModel]] = [adapter.connection_model for adapter in adapters]
    devices: list[type[BaseModel]] = [adapter.device_model for adapter in adapters]
    transports: dict[str, type[BaseModel]] = {
        name: kinds.load(kind.config_model) for name, kind in kinds.TRANSPORTS.items()
    }
    models: list[type[BaseModel]] = [
        Site,
        Identity,
        ClockTable,
        Agent,
        ChannelTable,
        *connections,
        *devices,
        *transports.values(),
    ]
    references, definitions = models_json_schema([(model, "validation") for model in models])
    defs: Json = _tidy(definitions.get("$defs", {}))

    def of(model: type[BaseModel]) -> Json:
        tidied: Json = _tidy(references[model, "validation"])
        return tidied

    channels = {
        f"Channel_{name}": _channel(defs, of(model), name, of(ChannelTable)) for name, model in transports.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edge-agent configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["version", "site", "identity"],
        "properties": {
            "version": {"const": VERSION},
            "include": {"type": "array", "items": {"type": "string", "minLength": 1}},
            "site": of(Site),
            "identity": of(Identity),
            "clock": of(ClockTable),
            "agent": of(Agent),
            "connection": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"anyOf": [*map(of, connections), _OF_ANOTHER_KIND]},
            },
            "device": {"type": "array", "minItems": 1, "items": {"anyOf": [*map(of, devices)]}},
            "channel": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in channels]},
            },
        },
        "$defs": defs | channels,
    }


def _channel(defs: Json, settings: Json, transport: str, common: Json) -> Json:
    """A channel is its own table and its transport's in one."""
    own, rest = (defs[each["$ref"].rpartition("/")[2]] for each in (common, settings))
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [*own.get("required", ()), *rest.get("required", ())],
        "properties": own["properties"] | rest["properties"] | {"transport": {"const": transport}},
    }


def _tidy(node: Any) -> Any:
    """Without what TOML cannot say (null) and what helps nobody (titles of keys, docstrings for programmers)."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    if "properties" in node:
        node = {
            **node,
            "properties": {key: each for key, each in node["properties"].items() if each.get("type") != "null"},
        }
    if any(each.get("type") == "null" for each in node.get("anyOf", ())):
        rest = [each for each in node["anyOf"] if each.get("type") != "null"]
        node = {
            **{key: each for key, each in node.items() if key != "anyOf"},
            **(rest[0] if len(rest) == 1 else {"anyOf": rest}),
        }
    tidied = {}
    for key, each in node.items():
        if key in ("properties", "$defs"):  # names of keys, whatever they are
            tidied[key] = {name: _tidy(inner) for name, inner in each.items()}
        elif key not in ("title", "description") and not (key == "default" and each is None):
            tidied[key] = _default(each, node) if key == "default" else _tidy(each)
    return tidied


def _default(value: Any, node: Mapping[str, Any]) -> Any:
    """A default as it is written in a file."""
    if type(value) is int and node.get("pattern") == DURATION_SCHEMA["pattern"]:
        return duration_text(value)
    if type(value) is int and node.get("pattern") == SIZE_SCHEMA["pattern"]:
        return size_text(value)
    return value
