"""``edge-agent identity show``: who the agent is, and where its key is kept."""

from __future__ import annotations

import argparse
import json

from agent.commands import GOOD, USAGE, say
from agent.commands.which_key import which_key
from agent.printable import printable
from agent.signer import open_signer


def main(options: argparse.Namespace) -> int:
    """Opens the key, as a start would. Raises SignerError, ConfigError, PermissionError."""
    try:
        key = which_key(options)
    except ValueError as error:
        say(f"edge-agent identity show: {error}")
        return USAGE
    signer = open_signer(key.custody, passphrase=key.passphrase, did=key.did, network=key.network, any_owner=True)
    custody = {"kind": key.custody.kind, "where": key.custody.where}
    if key.passphrase is not None:
        custody["passphrase"] = str(key.passphrase)
    if options.json:
        shown = {"did": signer.did, "address": signer.address, "public_key": signer.public_key.hex()}
        print(json.dumps(shown | {"custody": custody}))
        return GOOD
    print(f"DID         {signer.did}")
    print(f"address     {signer.address}")
    print(f"public key  {signer.public_key.hex()}")
    opened = f", passphrase from {custody['passphrase']}" if "passphrase" in custody else ""
    print(f"custody     {printable(f'{key.custody}{opened}')}")
    return GOOD
