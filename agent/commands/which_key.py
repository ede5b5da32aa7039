"""What the commands about the key have in common: which key is meant, and what opens it."""

from __future__ import annotations

import argparse
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from agent.commands import say
from agent.config import load
from agent.custody import Custody, parse
from agent.secret import Secret
from agent.signer import DEFAULT_NETWORK

_REMEDY = "write file:PATH, credential:NAME or env:NAME"


@dataclass(frozen=True, slots=True)
class WhichKey:
    """``did``: the one that the configuration names, if it does."""

    custody: Custody
    passphrase: Secret | None
    did: str | None
    network: str


def which_key(options: argparse.Namespace) -> WhichKey:
    """The key of ``--key``, else of the configuration. Raises ValueError, ConfigError, PermissionError."""
    passphrase = secret(options.passphrase, "--passphrase")
    if options.key is None:
        if passphrase is not None or options.network is not None:
            raise ValueError("--passphrase and --network go with --key; without it the configuration says them")
        identity = load(options.config).identity
        did = identity.did
        network = did.split(":")[2] if did else DEFAULT_NETWORK
        return WhichKey(identity.key, identity.passphrase, did, network)
    custody = place(options.key, "--key")
    together(custody, passphrase, "--passphrase")
    return WhichKey(custody, passphrase, None, options.network or DEFAULT_NETWORK)


def place(text: str, name: str) -> Custody:
    """The place that an argument names. Raises ValueError, which does not repeat it: it may be the key."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).replace(chr(34), '')}") from None


def together(custody: Custody, passphrase: Secret | None, name: str) -> None:
    """Raises ValueError if a keystore has no passphrase, or something else has one."""
    if custody.kind == "keystore" and passphrase is None:
        raise ValueError(f"a keystore needs a passphrase; give {name} file:PATH, credential:NAME or env:NAME")
    if custody.kind != "keystore" and passphrase is not None:
        raise ValueError(f"{name} is for a keystore only; leave it out")


def secret(text: str | None, name: str) -> Secret | None:
    """The reference that an argument writes. Raises ValueError, which does not repeat it: it may be the secret."""
    if text is None:
        return None
    kind, _, where = text.partition(":")
    if kind not in ("file", "credential", "env"):
        raise ValueError(f"{name}: a secret does not stand on a command line, where others can read it; {_REMEDY}")
    try:
        return Secret.model_validate({kind: where})
    except ValueError:
        raise ValueError(f"{name}: expected where the passphrase is; {_REMEDY}") from None


def say_whose(path: Path) -> None:
    """Tell root that a key just made is root's."""
    if os.geteuid() == 0 and (owner := path.parent.stat().st_uid) != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        say(f"it belongs to root, and its folder to {name}: if the agent runs as {name}, `chown {name} {path}`")
