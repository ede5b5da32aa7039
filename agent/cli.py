"""The command line: ``edge-agent NOUN ...``. Parses arguments, calls one command, turns errors into exit codes.

Exit codes: 0 good; 1 a finding; 2 usage or unreadable input; 69 agent or broker unreachable; 77 permission; 78
configuration.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import __version__
from agent.commands import CONFIGURATION, DEFAULT_CONFIG, FINDING, NO_PERMISSION, UNAVAILABLE, say
from agent.errors import AgentError, ConfigError, SignerError, TransportError

_CODES = {SignerError: CONFIGURATION, TransportError: UNAVAILABLE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = importlib.import_module(f"agent.commands.{options.module}").main(options)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        for problem in error.problems:
            say(problem)
        return CONFIGURATION
    except AgentError as error:
        say(f"edge-agent: {error}" + (f"; {error.hint}" if error.hint else ""))
        return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FINDING)
    except PermissionError as error:
        say(f"edge-agent: {error.filename or ''}: {error.strerror}; run it as the agent's user or as root")
        return NO_PERMISSION
    except BrokenPipeError:  # `edge-agent tail | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Reads telemetry, signs it at capture, delivers it so that anybody can verify it.",
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, module: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(module=module or name)
        return added

    init = command("init", "Write a commented agent.toml and make the device's key", "init")
    init.add_argument("folder", nargs="?", type=Path, default=DEFAULT_CONFIG.parent, metavar="DIR")
    init.add_argument(
        "--network", choices=("ewc", "volta"), default="ewc", help="of the DID (default: ewc; volta is for tests)"
    )

    check = command("check", "Prove a configuration offline; print every problem", "check")
    check.add_argument("file", nargs="?", type=Path, default=DEFAULT_CONFIG, metavar="FILE")

    run = command("run", "Run the agent (what systemd starts)", "run")
    _config(run)

    read = command("read", "Poll once; print raw registers, values, quality; send nothing", "read")
    read.add_argument("device", nargs="?", metavar="DEVICE", help="only this device")
    read.add_argument("--json", action="store_true", help="one JSON object per group")
    _config(read)

    tail = command("tail", "Consume a channel from the broker, verify, print", "tail")
    tail.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="nats://host:4222/STREAM?subject=...; left out: the channel of --config",
    )
    tail.add_argument("--did", action="append", default=[], help="accepted signer (may be given more than once)")
    tail.add_argument("--jsonl", action="store_true", help="one JSON object per record, the report last")
    tail.add_argument("--new", action="store_true", help="only what comes from now on, not what the stream holds")
    tail.add_argument("--until-idle", action="store_true", help="end with a report once nothing more is in the stream")
    _config(tail)

    verify = command("verify", "Check evidence offline; print the report", "verify")
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    verify.add_argument("--did", action="append", default=[], help="accepted signer (may be given more than once)")
    verify.add_argument("--json", action="store_true", help="the report as one JSON object")
    verify.add_argument(
        "--part", action="store_true", help="the files are a part: missing records are unknown, not failed"
    )

    outbox = commands.add_parser("outbox", help="Look at the local store").add_subparsers(
        required=True, metavar="COMMAND"
    )
    export = outbox.add_parser("export", help="Copy the evidence that the outbox holds to a file (a CBOR sequence)")
    export.set_defaults(module="outbox_export")
    export.add_argument("file", type=Path, metavar="FILE", help="- for stdout")
    _config(export)
    return parser


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}")


if __name__ == "__main__":
    sys.exit(main())
