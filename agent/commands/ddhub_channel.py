"""What the commands about the Data Hub have in common: which channel is meant, and where our RSA keys are."""

from __future__ import annotations

from pathlib import Path

from agent.commands import USAGE
from agent.commands.target import channels_of
from agent.config import Channel, Config
from agent.control.client import ControlError
from agent.kinds import TRANSPORTS


def ddhub_channel(config: Config, name: str | None) -> Channel:
    """The channel of this name, or the only one that goes to a Data Hub. Raises ControlError."""
    kind = TRANSPORTS.get("ddhub")
    found = [channel for channel in channels_of(config, name) if kind and channel.transport == kind.transport]
    if not found:
        what = "no channel goes to a Data Hub" if name is None else f"the channel {name} does not go to a Data Hub"
        raise ControlError(what, code=USAGE, hint='a channel with transport = "ddhub" does')
    if len(found) > 1:
        known = ", ".join(channel.id for channel in found)
        hint = f"name one with --channel: {known}"
        raise ControlError("several channels go to a Data Hub", code=USAGE, hint=hint)
    return found[0]


def rsa_folder(config: Config) -> Path:
    """Where our RSA keys are: one identity has one in its DID document, whatever channels it has."""
    return config.agent.state / "ddhub"
