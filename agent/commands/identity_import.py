"""``edge-agent identity import``: take over a key that was made elsewhere."""

from __future__ import annotations

import argparse
import getpass
import stat
import sys

from agent.commands import GOOD, USAGE, say
from agent.commands.credential import NAME, to_credential
from agent.commands.which_key import WhichKey, place, say_whose, secret, together, which_key
from agent.custody import Custody
from agent.secret import Secret
from agent.signer import import_key

_LINE = 1024  # bytes of stdin; a key and its line end have 65


def main(options: argparse.Namespace) -> int:
    """Prints the DID. Raises SignerError, ConfigError, OSError; nothing was changed by then, or, with --credential,
    nothing that the service would use.
    """
    try:
        key = which_key(options)
        if options.credential and (options.key or options.passphrase or options.network):
            raise ValueError("--credential is a place by itself; leave --key, --passphrase and --network out")
        if options.source is None and not options.credential:
            raise ValueError("SOURCE is missing; write file:PATH, keystore:FILE or -")
        source = None if options.source in (None, "-") else place(options.source, "SOURCE")
        source_passphrase = secret(options.source_passphrase, "--source-passphrase")
        if source is not None:
            together(source, source_passphrase, "--source-passphrase")
        elif source_passphrase is not None:
            raise ValueError("--source-passphrase is for a keystore only; leave it out")
    except ValueError as error:
        say(f"edge-agent identity import: {error}")
        return USAGE
    if options.credential:
        return _as_credential(options, key, source, source_passphrase)
    signer = import_key(
        _typed() if source is None else source,
        key.custody,
        source_passphrase=source_passphrase,
        passphrase=key.passphrase,
        did=key.did,
        network=key.network,
    )
    say(f"{key.custody} made")
    say_whose(key.custody.path)
    if source is not None and source.kind != "credential":
        _say_of_source(source)
    print(signer.did)
    return GOOD


def _as_credential(
    options: argparse.Namespace, key: WhichKey, source: Custody | None, source_passphrase: Secret | None
) -> int:
    """Without a SOURCE it is the key that the configuration names."""
    if options.source is None:
        source, source_passphrase = key.custody, key.passphrase
    code = to_credential(
        options.config,
        _typed() if source is None else source,
        name=key.custody.where if key.custody.kind == "credential" else NAME,
        passphrase=source_passphrase,
        did=key.did,
        network=key.network,
    )
    if code == GOOD and source is not None:
        _say_of_source(source)
    return code


def _typed() -> bytes:
    """What stdin holds; at a terminal what is typed, which it does not show."""
    if sys.stdin.isatty():
        return getpass.getpass("the key, 64 hex digits (not shown): ").encode(errors="replace")
    return sys.stdin.buffer.read(_LINE)


def _say_of_source(source: Custody) -> None:
    say(f"{source} still holds the key: two boxes must never run one key; remove it, or put it away safely")
    if source.kind == "file" and stat.S_IMODE(source.path.stat().st_mode) & 0o077:
        say(f"{source.path} is open to others: whoever could read it may have the key")
