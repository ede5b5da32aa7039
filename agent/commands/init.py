"""``edge-agent init``: a commented agent.toml and the device's key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agent.commands import DEFAULT_CONFIG, DEFAULT_STATE, GOOD, say
from agent.config import template
from agent.config.file import read
from agent.config.tables import Identity
from agent.custody import Custody
from agent.errors import ConfigError, SignerError
from agent.signer import DEFAULT_NETWORK, create_key, open_signer


def main(options: argparse.Namespace) -> int:
    """Write agent.toml and key into a folder; what is there already stays as it is. Raises SignerError,
    OSError.
    """
    folder: Path = options.folder
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    config = folder / "agent.toml"
    known = _identity_in(config) if config.exists() else None
    custody = known.key if known else Custody("file", str(folder / "key"))
    did = known.did if known else None
    passphrase = known.passphrase if known else None
    # What a configuration says stays, and so does the network of its DID.
    network = options.network if not config.exists() else DEFAULT_NETWORK
    if known is not None and custody.kind == "credential":
        did = did or open_signer(custody).did
        say(f"the key is {custody}, and systemd gives it: nothing to make")
    elif os.path.lexists(custody.path):
        did = open_signer(custody, passphrase=passphrase, did=did, network=network).did
        say(f"{custody.path} is there already and stays")
    elif did is not None:
        raise SignerError(
            f"{config} names {did}, and its key {custody.path} is not there",
            hint="put the key back, or remove identity.did to begin anew with another key",
        )
    else:
        did = create_key(custody, passphrase=passphrase, network=network).did
        say(f"{custody.path} made: keep it, there is no copy")
    if config.exists():
        say(f"{config} is there already and stays")
        print(did)
        return GOOD
    descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    # Beside the installed unit /etc is read-only to the agent; anywhere else all is kept in one folder.
    state = DEFAULT_STATE if folder == DEFAULT_CONFIG.parent else "state"
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(template.agent_toml(did=did, state=str(state)))
    except OSError as error:
        config.unlink()  # half a file would stay at the next try
        raise OSError(error.errno, error.strerror, str(config)) from error
    say(f"{config} written: fill in your devices, then `edge-agent check {config}`")
    print(did)
    return GOOD


def _identity_in(config: Path) -> Identity | None:
    """The key and the DID that an existing configuration names, whatever else is wrong with it; None if it does not."""
    try:
        source = read(config)
    except ConfigError:
        return None
    return source.findings.judge(Identity, source.raw.get("identity"), at=("identity",), context=source.context)
