"""``edge-agent ddhub topic``: print the schema of our payloads, or register it as a version of a channel's topic.

Without an option it needs no configuration and changes nothing. ``--register`` logs in with the agent's key, which
needs the roles of a topic creator; whoever has them may also register the printed schema by other means.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import anyio

from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.ddhub_channel import ddhub_channel
from agent.commands.ddhub_participant import of_channel
from agent.config import load
from agent.errors import Reason, TransportError, Verdict
from agent.ports import Signer
from agent.transports.ddhub.broker import broker
from agent.transports.ddhub.content.schema import SchemaError, TopicSchema, telemetry_schema
from agent.transports.ddhub.registration import Outcome, Registered, register
from agent.transports.ddhub.topics import not_ours

_LARGEST = 1 << 20  # bytes of a schema
_WORDS = {
    Outcome.CREATED: "registered, as a new topic",
    Outcome.ADDED: "registered, as a new version",
    Outcome.UNCHANGED: "is there already, with this schema",
    Outcome.OVERWRITTEN: "registered, over the schema that it had",
}


def main(options: argparse.Namespace) -> int:
    """Raises ConfigError, ControlError, SignerError, TransportError, OSError."""
    try:
        if not options.register and (options.version or options.overwrite or options.json):
            raise ValueError("--version, --overwrite and --json go with --register")
        schema = _schema(options.schema)
        if not options.register:
            sys.stdout.write(schema)
            return GOOD
        config = load(options.config)
        channel = ddhub_channel(config, options.channel)
        settings, signer = channel.settings, of_channel(config, channel, any_owner=True).signer
        topic = _topic(settings.topic, options.version)
    except ValueError as error:
        say(f"edge-agent ddhub topic: {error}")
        return USAGE
    try:
        found = anyio.run(_register, settings, topic, schema, signer, options.overwrite)
    except TransportError as error:
        if error.verdict is not Verdict.FATAL and error.reason is not Reason.PERMISSION:
            raise
        say(f"edge-agent: {error}; {error.hint}")
        return FINDING
    if options.json:
        shown = {"owner": topic.owner, "name": topic.name, "version": topic.version}
        print(json.dumps(shown | {"id": found.id, "outcome": found.outcome}))
    else:
        print(f"{topic} {_WORDS[found.outcome]}; id {found.id}")
    if topic != settings.topic:
        say(f'the channel sends by version {settings.topic.version}; set version = "{topic.version}" in its topic')
    return GOOD


def _schema(path: Path | None) -> str:
    """Ours, or that of a file. Raises ValueError if it could not be used, OSError."""
    if path is None:
        return telemetry_schema()
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{path} has more than {_LARGEST} bytes")
    try:
        text = content.decode()
        schema = TopicSchema(json.loads(text))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is no JSON") from None
    except SchemaError as error:
        raise ValueError(f"{path}: {error}; no client gateway would take it") from None
    if problems := not_ours(schema):
        what = f"{path} does not take what we send: {'; '.join(problems)}"
        raise ValueError(f"{what}; begin with the one that this command prints alone")
    return text


def _topic(configured: Any, version: str | None) -> Any:
    """The topic of a channel, in this version. Raises ValueError."""
    if version is None:
        return configured
    try:
        return type(configured).model_validate(dict(configured) | {"version": version})
    except ValueError:
        raise ValueError(f'"{version:.40}" is no version of a topic; write three numbers, such as "1.0.0"') from None


async def _register(settings: Any, topic: Any, schema: str, signer: Signer, overwrite: bool) -> Registered:
    async with broker(settings, signer=signer, clock=SystemClock(), opens=False) as api:
        return await register(api, topic, schema, overwrite=overwrite)
