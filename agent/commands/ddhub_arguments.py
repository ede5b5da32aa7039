"""What ``edge-agent ddhub`` takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from agent.commands import DEFAULT_CONFIG

Commands = Callable[[str, str, str], argparse.ArgumentParser]


def add_ddhub(ddhub: Commands) -> None:
    """The commands below ``ddhub``, by what adds one: its name, its help, and its module in agent/commands."""
    keys = ddhub(
        "keys",
        "Our keys, what stands in our DID document, and how to publish them; alone it changes nothing",
        "ddhub_keys",
    )
    how = keys.add_mutually_exclusive_group()
    how.add_argument(
        "--unsigned", type=Path, metavar="FILE", help="write what is missing there for a wallet; - for stdout"
    )
    how.add_argument(
        "--signed", type=Path, metavar="FILE", help="sign it with our key and write it there; - for stdout"
    )
    how.add_argument("--send", action="store_true", help="sign it, send it, wait for the blocks")
    keys.add_argument("--rotate", action="store_true", help="make a new RSA key first; the old one is kept for 25 h")
    keys.add_argument(
        "--rpc", metavar="NODE", help="JSON-RPC of a node: https://..., or file:PATH, credential:NAME or env:NAME"
    )
    keys.add_argument("--json", action="store_true", help="one JSON object")
    keys.add_argument("--channel", metavar="ID", help="which channel, if there are several")
    keys.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}")
    _add_participant(keys.add_argument_group("of a participant without a configuration"))


def add_receiving(tail: argparse._ArgumentGroup) -> None:
    """What ``tail`` of a Data Hub takes."""
    _add_participant(tail)
    tail.add_argument(
        "--sender", action="append", default=[], metavar="DID", help="whose messages (default: of those accepted)"
    )
    tail.add_argument(
        "--remove-old-ids", action="store_true", help="have the broker forget what we asked for with other senders"
    )


def _add_participant(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--identity", metavar="PLACE", help="our key: file:PATH, keystore:FILE or credential:NAME")
    parser.add_argument("--passphrase", metavar="REF", help="of a keystore: file:PATH, credential:NAME or env:NAME")
    parser.add_argument("--network", choices=("ewc", "volta"), help="of our DID (default: ewc)")
    parser.add_argument(
        "--keys", metavar="WHERE", help="the keys of others: file:PATH, hub:URL or rpc:URL (default: the network's hub)"
    )
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="with our RSA keys, and what is to be remembered")
