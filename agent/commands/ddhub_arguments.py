"""What ``edge-agent ddhub`` takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from agent.commands import DEFAULT_CONFIG

Commands = Callable[[str, str, str], argparse.ArgumentParser]


def add_ddhub(ddhub: Commands) -> None:
    """The commands below ``ddhub``, by what adds one: its name, its help, and its module in agent/commands."""
    status = ddhub(
        "status",
        "Login, roles, our keys, topic and recipients of a channel, each with the remedy; sends and changes nothing",
        "ddhub_status",
    )
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.add_argument("--socket", type=Path, metavar="PATH", help="of the running agent; default: as in --config")
    _add_channel(status)

    topic = ddhub("topic", "Print the schema of what we send, or register it for a channel's topic", "ddhub_topic")
    topic.add_argument("--register", action="store_true", help="at the broker; needs the roles of a topic creator")
    topic.add_argument("--schema", type=Path, metavar="FILE", help="this one in place of ours")
    topic.add_argument("--version", metavar="X.Y.Z", help="with --register: as this one; default: as in --config")
    topic.add_argument(
        "--overwrite", action="store_true", help="with --register: also over another schema of that version"
    )
    topic.add_argument("--json", action="store_true", help="with --register: the outcome as one JSON object")
    _add_channel(topic)

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
    _add_channel(keys)
    _add_participant(keys.add_argument_group("of a participant without a configuration"))


def add_receiving(tail: argparse._ArgumentGroup) -> None:
    """What ``tail`` of a Data Hub takes."""
    _add_participant(tail)
    tail.add_argument(
        "--sender", action="append", default=[], metavar="DID", help="whose messages (default: of those accepted)"
    )
    tail.add_argument(
        "--every", metavar="DURATION", help="between searches that find nothing, 500ms or more (default: 10s)"
    )
    tail.add_argument(
        "--remove-old-ids", action="store_true", help="have the broker forget what we asked for with other senders"
    )


def _add_channel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channel", metavar="ID", help="which channel, if there are several")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}")


def _add_participant(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--identity", metavar="PLACE", help="our key: file:PATH, keystore:FILE or credential:NAME")
    parser.add_argument("--passphrase", metavar="REF", help="of a keystore: file:PATH, credential:NAME or env:NAME")
    parser.add_argument("--network", choices=("ewc", "volta"), help="of our DID (default: ewc)")
    parser.add_argument(
        "--keys", metavar="WHERE", help="the keys of others: file:PATH, hub:URL or rpc:URL (default: the network's hub)"
    )
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="with our RSA keys, and what is to be remembered")
