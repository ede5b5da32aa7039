"""``edge-agent tail``: consume a channel from its broker, verify every record, print it, and account for all at the end
(docs/consuming.md). Which broker decides which module does it, so that nobody loads another one's library.
"""

from __future__ import annotations

import argparse
import importlib

from agent.commands import USAGE, say
from agent.commands.target import only
from agent.config import load
from agent.kinds import TRANSPORTS

_MODULES = {TRANSPORTS[kind].transport: f"agent.commands.tail_{kind}" for kind in ("nats", "ddhub")}
_OF_NATS = ("creds", "nkey", "user", "password", "token", "tls_first", "durable", "new")
_OF_DDHUB = ("identity", "passphrase", "network", "sender", "keys", "state", "every", "remove_old_ids")
_OF_SOURCE = ("identity", "passphrase", "network", "keys", "ca", "cert", "key")


def main(options: argparse.Namespace) -> int:
    """Ends on SIGTERM or SIGINT, with the report on stderr (text) or as last line (JSON Lines).

    Raises ConfigError, ControlError (no such channel), PermissionError, what the modules raise, and with
    ``--until-idle`` TransportError.
    """
    try:
        found = None
        if options.source is not None:
            if options.channel is not None:
                raise ValueError("--channel is for a configuration; give SOURCE or --channel, not both")
            module = _MODULES[TRANSPORTS["ddhub" if options.source.startswith("ddhub+") else "nats"].transport]
        else:
            config = load(options.config)
            found = config, only(config, options.channel)
            module = _MODULES.get(found[1].transport, "")
            if not module:
                raise ValueError(f"the channel {found[1].id} goes where nothing can be read back from")
        is_nats = module.endswith("_nats")
        _without(options, _OF_DDHUB if is_nats else _OF_NATS, f"{'NATS' if is_nats else 'the Data Hub'} has no use for")
        if found is not None and not is_nats:
            _without(options, _OF_SOURCE, "with --config the channel says who we are and how it is reached; leave out")
    except ValueError as error:
        say(f"edge-agent tail: {error}")
        return USAGE
    code: int = importlib.import_module(module).main(options, found)
    return code


def _without(options: argparse.Namespace, names: tuple[str, ...], words: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False, [])]
    if given:
        raise ValueError(f"{words} {', '.join(given)}")
