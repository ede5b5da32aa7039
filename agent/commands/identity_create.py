"""``edge-agent identity create``: a new key."""

from __future__ import annotations

import argparse

from agent.commands import GOOD, USAGE, say
from agent.commands.which_key import say_whose, which_key
from agent.errors import SignerError
from agent.signer import create_key


def main(options: argparse.Namespace) -> int:
    """Prints the DID. Raises SignerError, ConfigError, OSError; nothing was changed by then."""
    try:
        key = which_key(options)
    except ValueError as error:
        say(f"edge-agent identity create: {error}")
        return USAGE
    if key.did is not None:
        raise SignerError(
            f"{options.config} names {key.did}, and a new key has another DID",
            hint="put the key back, or remove identity.did to begin anew with another key",
        )
    signer = create_key(key.custody, passphrase=key.passphrase, network=key.network)
    say(f"{key.custody} made: keep it, there is no copy")
    say_whose(key.custody.path)
    print(signer.did)
    return GOOD
