"""The command line: ``edge-agent NOUN ...``. Parses arguments, calls one command, turns errors into exit codes.

Exit codes: 0 good; 1 a finding; 2 usage, or a file or output that cannot be used; 69 agent or broker unreachable; 77
permission; 78 configuration; 130 Ctrl-C.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import errno
    import importlib
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from agent import __version__
    from agent.commands import CONFIGURATION, DEFAULT_CONFIG, FINDING, NO_PERMISSION, UNAVAILABLE, USAGE, say
    from agent.errors import AgentError, ConfigError, OutboxError, RecordTooLargeError, SignerError, TransportError
except KeyboardInterrupt:  # loading takes long enough for a Ctrl-C
    sys.exit(130)

_CODES = {SignerError: CONFIGURATION, RecordTooLargeError: CONFIGURATION, TransportError: UNAVAILABLE}
_AS_WHOM = "run it as the agent's user or as root"
_REMEDIES = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "make room: the user's quota is used up",
    errno.ENOENT: "is the path right? the folder must be there",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EEXIST: "name a folder",
    errno.EROFS: "name a place that can be written",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        # Closed by the caller (`>&-`): as if it went to /dev/null.
        sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # open to the end
        sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
        try:
            return _run(arguments)
        finally:
            _let_go_of_output()
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        code: int = importlib.import_module(f"agent.commands.{options.module}").main(options)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        for problem in error.problems:
            say(problem)
        return CONFIGURATION
    except AgentError as error:
        denied = isinstance(error, (OutboxError, SignerError)) and isinstance(error.__cause__, PermissionError)
        hint = _AS_WHOM if denied else error.hint
        say(f"edge-agent: {error}" + (f"; {hint}" if hint else ""))
        return NO_PERMISSION if denied else next((_CODES[kind] for kind in _CODES if isinstance(error, kind)), FINDING)
    except PermissionError as error:
        say(f"edge-agent: {error.filename or 'output'}: {error.strerror}; {_AS_WHOM}")
        return NO_PERMISSION
    except BrokenPipeError:  # `edge-agent tail | head`
        return 0
    except OSError as error:
        if error.errno is None:  # not of the system: a defect, which must show where it is
            raise
        remedy = _REMEDIES.get(error.errno, "look at the path and at the disk")
        say(f"edge-agent: {error.filename or 'output'}: {error.strerror}; {remedy}")
        return USAGE


def _let_go_of_output() -> None:
    """What could not be written would be tried again when Python ends, and end it with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
