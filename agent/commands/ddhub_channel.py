"""What the commands about the Data Hub have in common: which channel is meant, where our RSA keys are, and what stands
in our DID document.
"""

from __future__ import annotations

from pathlib import Path

from agent.clock import SystemClock
from agent.commands import USAGE
from agent.commands.target import channels_of
from agent.config import Channel, Config
from agent.control.client import ControlError
from agent.kinds import TRANSPORTS
from agent.ports import Signer
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_source import FileKeys, resolver
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.network import participant
from agent.transports.ddhub.keys.participant import ParticipantError, ParticipantKeys


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


async def published_keys(settings: KeySourceConfig, *, signer: Signer, exchange: Exchange) -> ParticipantKeys:
    """Our keys as our DID document has them now: what is on its way to be final counts. None of them may be there.

    Raises TransportError: nobody can be asked.
    """
    who = participant(signer.did)
    if settings.rpc is not None:
        settings = settings.model_copy(update={"confirmations": 0})
    try:
        if settings.file is not None:
            return await FileKeys(settings.file).keys(who.did)
        return await resolver(settings, signer=signer, clock=SystemClock(), exchange=exchange).keys(who)
    except ParticipantError:
        return ParticipantKeys(None, None)
