"""What ``edge-agent tail`` takes on its command line, besides what other commands take, too."""

from __future__ import annotations

import argparse

from agent.commands.ddhub_arguments import add_receiving


def add_tail(tail: argparse.ArgumentParser) -> None:
    """Add it."""
    tail.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="nats:// or tls://host:4222/STREAM?subject=..., ddhub+https://host/OWNER/TOPIC; left out: a channel of "
        "--config",
    )
    tail.add_argument("--new", action="store_true", help="only what comes from now on, not what the stream holds")
    tail.add_argument(
        "--durable",
        metavar="NAME",
        help="have the broker remember what came and keep it until it is acknowledged; needs --checkpoint",
    )
    tail.add_argument("--until-idle", action="store_true", help="end with a report once nothing more is in the stream")
    _login(tail.add_argument_group("how to reach SOURCE (a channel of --config says it itself)"))
    add_receiving(tail.add_argument_group("of a Data Hub (the first four a channel of --config says itself)"))


def _login(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--creds", metavar="FILE", help="a user's JWT and seed, as nsc writes them")
    parser.add_argument("--nkey", metavar="FILE", help="the seed of a user's NKey")
    parser.add_argument("--user", metavar="NAME", help="with --password")
    parser.add_argument("--password", metavar="REF", help="file:PATH, credential:NAME or env:NAME")
    parser.add_argument("--token", metavar="REF", help="file:PATH, credential:NAME or env:NAME")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust (default: the system's)")
    parser.add_argument("--cert", metavar="FILE", help="our own certificate, with --key")
    parser.add_argument("--key", metavar="FILE", help="its key")
    parser.add_argument("--tls-first", action="store_true", help="TLS at once, without the server's greeting")
