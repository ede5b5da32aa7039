"""Who we are to a Data Hub, as a configuration says it, or a command line for who has none: a consumer without devices.

Our RSA keys, and what is remembered of what came, are in one folder: ``ddhub`` in the agent's state folder, or
``--state``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.commands.ddhub_channel import rsa_folder
from agent.commands.which_key import place, secret, together
from agent.config import Channel, Config
from agent.errors import SignerError
from agent.ports import Signer
from agent.signer import DEFAULT_NETWORK, open_signer
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.network import participant

OPTIONS = ("identity", "passphrase", "network", "keys", "state")


@dataclass(frozen=True, slots=True)
class Ourselves:
    """``keys``: where those of other participants come from."""

    signer: Signer
    keys: KeySourceConfig
    folder: Path


def of_channel(config: Config, channel: Channel, *, state: Path | None = None, any_owner: bool = False) -> Ourselves:
    """The agent on a channel to a Data Hub; ``any_owner``: for root, who leaves nothing behind that the agent's user
    could not read. Raises SignerError.
    """
    identity = config.identity
    signer = open_signer(identity.key, passphrase=identity.passphrase, did=identity.did, any_owner=any_owner)
    return Ourselves(_judged(signer, "write identity.did so"), channel.settings.keys, state or rsa_folder(config))


def of_options(options: argparse.Namespace, *, any_owner: bool = False) -> Ourselves:
    """Raises ValueError, SignerError."""
    if options.identity is None:
        raise ValueError("say who we are: --identity file:PATH, keystore:FILE or credential:NAME")
    if options.state is None:
        raise ValueError("say where our RSA keys are and what came is remembered: --state FOLDER")
    keys = _keys(options.keys)
    custody, passphrase = place(options.identity, "--identity"), secret(options.passphrase, "--passphrase")
    together(custody, passphrase, "--passphrase")
    network = options.network or DEFAULT_NETWORK
    signer = open_signer(custody, passphrase=passphrase, network=network, any_owner=any_owner)
    return Ourselves(_judged(signer, "say --network"), keys, options.state)


def _judged(signer: Signer, remedy: str) -> Signer:
    try:
        participant(signer.did)
    except ValueError as error:
        raise SignerError(str(error), hint=f"a Data Hub is on ewc, or on volta for tests: {remedy}") from None
    return signer


def _keys(text: str | None) -> KeySourceConfig:
    """Where ``--keys`` says that others' keys come from. Raises ValueError, which repeats no address: it may hold a
    key.
    """
    if text is None:
        return KeySourceConfig()
    kind, _, where = text.partition(":")
    if kind not in ("file", "hub", "rpc") or not where:
        raise ValueError("--keys: write file:PATH, hub:URL, rpc:URL, or rpc:file:PATH with the URL in a file")
    value: Any = where
    if kind == "rpc" and not where.startswith(("http://", "https://")):
        value = secret(where, "--keys rpc")
    try:
        return KeySourceConfig.model_validate({kind: value})
    except ValidationError as error:
        words = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"--keys: {words}") from None
