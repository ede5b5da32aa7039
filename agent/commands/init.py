"""``edge-agent init``: a commented agent.toml and the device's key."""

from __future__ import annotations

import argparse
import os
import pwd
from pathlib import Path

from agent.commands import DEFAULT_CONFIG, DEFAULT_STATE, GOOD, SERVICE_USER, say
from agent.config import template
from agent.config.file import read
from agent.config.tables import Identity
from agent.custody import Custody
from agent.errors import ConfigError, Problem, SignerError
from agent.signer import DEFAULT_NETWORK, create_key, open_signer
from agent.signer.files import Owner, write_private


def main(options: argparse.Namespace) -> int:
    """Write agent.toml and key into a folder; what is there already stays as it is. Raises SignerError, ConfigError:
    where the key is to be cannot be read; OSError.

    A crash leaves whole files; the same command, given again, makes the rest.

    In /etc/edge-agent the key goes into the state folder, for /etc is read-only to the service. What root makes
    there is for the service user, if there is one, and what root makes elsewhere is the folder's owner's.
    """
    folder: Path = options.folder
    service = folder == DEFAULT_CONFIG.parent
    user = _service_user() if service and os.geteuid() == 0 else None
    _make(folder, owner=user and (0, user[1]))
    owner = user if service else _owner(folder)
    config = folder / "agent.toml"
    state = DEFAULT_STATE if service else Path("state")
    place = DEFAULT_STATE / "key" if service else Path("key")
    known = _identity_in(config) if os.path.lexists(config) else None
    custody = known.key if known else Custody("file", str(folder / place))
    did = known.did if known else None
    passphrase = known.passphrase if known else None
    # What a configuration says stays, and so does the network of its DID.
    network = options.network if not config.exists() else DEFAULT_NETWORK
    if known is not None and custody.kind == "credential":
        did = did or open_signer(custody).did
        say(f"the key is {custody}, and systemd gives it: nothing to make")
    elif os.path.lexists(custody.path):
        any_owner = os.geteuid() == 0
        did = open_signer(custody, passphrase=passphrase, did=did, network=network, any_owner=any_owner).did
        say(f"{custody.path} is there already and stays")
        if owner is not None and (theirs := custody.path.stat().st_uid) != owner[0]:
            say(f"it belongs to user {theirs}, and user {owner[0]} needs it: chown {owner[0]} {custody.path}")
    elif did is not None:
        raise SignerError(
            f"{config} names {did}, and its key {custody.path} is not there",
            hint="put the key back, or remove identity.did to begin anew with another key",
        )
    else:
        if service and custody.path.parent == DEFAULT_STATE:
            _make(DEFAULT_STATE, owner=owner)
        did = create_key(custody, passphrase=passphrase, network=network, owner=owner).did
        say(f"{custody.path} made: keep it, there is no copy")
    if config.exists():
        say(f"{config} is there already and stays")
        if known is None:
            say(f'it names no key: write key = "file:{place}" below [identity]')
        print(did)
        return GOOD
    reader = owner and ((0, owner[1]) if service else owner)  # it stays root's, and the service reads it
    text = template.agent_toml(did=did, key=str(place), state=str(state))
    write_private(config, text.encode(), what="configuration", owner=reader, mode=0o640)
    say(f"{config} written: fill in your devices, then `edge-agent check {config}`")
    print(did)
    return GOOD


def _service_user() -> Owner | None:
    """The user that the unit names; None: the package is not installed."""
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def _owner(folder: Path) -> Owner | None:
    """Whose the files of a folder are to be that root makes; None: whoever makes them."""
    status = folder.stat()
    return (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid else None


def _make(folder: Path, *, owner: Owner | None) -> None:
    """One that is there stays as it is."""
    if not folder.exists() and owner is not None:
        folder.mkdir(mode=0o750, parents=True)
        folder.chmod(0o750)  # whatever the umask
        os.chown(folder, *owner)
    else:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)


def _identity_in(config: Path) -> Identity | None:
    """The key and the DID that an existing configuration names, whatever else is wrong with it; None if it does not.
    Raises ConfigError: what it names cannot be told, and another key beside it would be the wrong one.
    """
    if not config.is_file():
        raise ConfigError([Problem(str(config), 0, "", "it is there, and is no file", "move it away")])
    source = read(config)
    if "identity" not in source.raw:
        return None
    found = source.findings.judge(Identity, source.raw["identity"], at=("identity",), context=source.context)
    if found is None:
        raise ConfigError(source.findings.sorted())
    return found
