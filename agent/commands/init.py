"""``edge-agent init``: a commented agent.toml and the device's key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agent.commands import DEFAULT_CONFIG, DEFAULT_STATE, GOOD, say
from agent.config import template
from agent.config.file import read
from agent.config.tables import Identity
from agent.errors import ConfigError, SignerError
from agent.signer import DEFAULT_NETWORK, create_key_file, open_key_file


def main(options: argparse.Namespace) -> int:
    """Write agent.toml and key into a folder; what is there already stays as it is. Raises SignerError,
    OSError.
    """
    folder: Path = options.folder
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    config = folder / "agent.toml"
    identity = _identity_in(config) if config.exists() else None
    key, did = (folder / "key", None) if identity is None else (identity.key, identity.did)
    # What a configuration says stays, and so does the network of its DID.
    network = options.network if not config.exists() else DEFAULT_NETWORK
    if key.exists():
        signer = open_key_file(key, did=did, network=network)
        say(f"{key} is there already and stays")
    elif did is not None:
        raise SignerError(
            f"{config} names {did}, and its key {key} is not there",
            hint="put the key back, or remove identity.did to begin anew with another key",
        )
    else:
        signer = create_key_file(key, network=network)
        say(f"{key} made: keep it, there is no copy")
    if config.exists():
        say(f"{config} is there already and stays")
        print(signer.did)
        return GOOD
    descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    # Beside the installed unit /etc is read-only to the agent; anywhere else all is kept in one folder.
    state = DEFAULT_STATE if folder == DEFAULT_CONFIG.parent else "state"
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(template.agent_toml(did=signer.did, state=str(state)))
    except OSError as error:
        config.unlink()  # half a file would stay at the next try
        raise OSError(error.errno, error.strerror, str(config)) from error
    say(f"{config} written: fill in your devices, then `edge-agent check {config}`")
    print(signer.did)
    return GOOD


def _identity_in(config: Path) -> Identity | None:
    """The key and the DID that an existing configuration names, whatever else is wrong with it; None if it does not."""
    try:
        source = read(config)
    except ConfigError:
        return None
    return source.findings.judge(Identity, source.raw.get("identity"), at=("identity",), context=source.context)
