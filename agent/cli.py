"""The command line: ``edge-agent NOUN ...``. Parses arguments, calls one command, turns errors into exit codes.

Exit codes: 0 good; 1 a finding; 2 usage, or a file or output that cannot be used; 69 agent or broker unreachable; 77
permission; 78 configuration; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys

if os.getpid() == 1:  # of a container: no signal ends it that has no handler, and it would be killed 10 s later
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
try:
    import argparse
    import errno
    import importlib
    import io
    import re
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import NoReturn

    from agent import __version__
    from agent.commands import CONFIGURATION, DEFAULT_CONFIG, FINDING, NO_PERMISSION, UNAVAILABLE, USAGE, say
    from agent.commands.ddhub_arguments import add_ddhub
    from agent.commands.tail_arguments import add_tail
    from agent.control.client import ControlError
    from agent.errors import (
        AgentError,
        ConfigError,
        OutboxError,
        RecordTooLargeError,
        SignerError,
        TransportError,
        Verdict,
    )
except KeyboardInterrupt:  # loading takes long enough for a Ctrl-C
    sys.exit(130)

_CODES = {SignerError: CONFIGURATION, RecordTooLargeError: CONFIGURATION, TransportError: UNAVAILABLE}
Commands = Callable[[str, str, str], argparse.ArgumentParser]
_AS_WHOM = "run it as the agent's user or as root"
_REMEDIES = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "make room: the user's quota is used up",
    errno.ENOENT: "is the path right? the folder must be there",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EEXIST: "name a folder",
    errno.EBUSY: "wait for its end, or name another file",
    errno.EROFS: "name a place that can be written",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        # Closed by the caller (`>&-`): as if it were /dev/null.
        sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115  # open to the end
        sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # open to the end
        sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not all terminals can show what a point is named
                stream.reconfigure(errors="backslashreplace")
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
        if isinstance(error, ControlError):
            return error.code
        if isinstance(error, SignerError) and error.verdict is Verdict.RETRY:
            return FINDING  # to be started again
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


class _Parser(argparse.ArgumentParser):
    """Repeats a wrong argument, but not one that may be a key."""

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"[0-9A-Fa-f]{64,}", "(hex digits)", message))


def _adding(commands: argparse._SubParsersAction[_Parser]) -> Commands:
    """Adds a command: its name, its help, and its module in agent/commands."""

    def command(name: str, text: str, module: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(module=module)
        return added

    return command


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edge-agent",
        description="Reads telemetry, signs it at capture, delivers it so that anybody can verify it.",
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = _adding(commands)

    def noun(name: str, text: str) -> Commands:
        added = commands.add_parser(name, help=text, description=text)
        return _adding(added.add_subparsers(required=True, metavar="COMMAND"))

    init = command("init", "Write a commented agent.toml and make the device's key", "init")
    init.add_argument("folder", nargs="?", type=Path, default=DEFAULT_CONFIG.parent, metavar="DIR")
    init.add_argument(
        "--network", choices=("ewc", "volta"), default="ewc", help="of the DID (default: ewc; volta is for tests)"
    )

    check = command(
        "check",
        "Prove a config offline; print every problem, daily bytes and outbox days; --online tries brokers and devices",
        "check",
    )
    check.add_argument("file", nargs="?", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    check.add_argument("--online", action="store_true", help="then try brokers and devices")
    check.add_argument("--json", action="store_true", help="one JSON object, problems included")

    doctor = command("doctor", "Find what is wrong on this box and say the remedy", "doctor")
    doctor.add_argument("--offline", action="store_true", help="ask no broker, device or name server")
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    _config(doctor)

    support = command("support", "Pack everything a supporter needs, secrets masked", "support")
    support.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="- for stdout; default: edge-agent-HOST-TIME.tar.gz here"
    )
    support.add_argument("--offline", action="store_true", help="ask no broker, device or name server")
    _config(support)

    run = command("run", "Run the agent (what systemd starts)", "run")
    _config(run)

    reload = command(
        "reload", "Have the running agent read its configuration again; print what is wrong, or what changed", "reload"
    )
    _running(reload)

    read = command("read", "Poll once; print raw registers, values, quality; send nothing; --every 1s repeats", "read")
    read.add_argument("device", nargs="?", metavar="DEVICE", help="only this device")
    read.add_argument("--every", metavar="DURATION", help="again and again, such as 1s, until Ctrl-C")
    read.add_argument(
        "--wait", metavar="DURATION", default="10s", help="for the message of an event-driven group (default: 10s)"
    )
    read.add_argument("--json", action="store_true", help="one JSON object per group")
    _config(read)

    status = command("status", "What runs, what waits, what fails", "status")
    status.add_argument("--json", action="store_true", help="one JSON object")
    _running(status)

    top = command("top", "What runs, what waits, what fails, live; q ends", "top")
    top.add_argument("--every", metavar="DURATION", default="1s", help="how often it is drawn (default: 1s)")
    top.add_argument("--count", type=int, metavar="N", help="end after N times")
    top.add_argument("--json", action="store_true", help="one JSON object each time, as of status")
    _running(top)

    tap = command("tap", "Show records of the running agent as they are sealed", "tap")
    tap.add_argument("filter", nargs="?", metavar="FILTER", help='only values of "device/group/point", * for any')
    tap.add_argument("--count", type=int, metavar="N", help="end after N records")
    tap.add_argument("--json", action="store_true", help="one JSON object per record")
    _channel(tap)
    _running(tap)

    tail = command("tail", "Consume a channel from the broker, verify, print", "tail")
    add_tail(tail)
    _accepting(tail)
    _formats(tail)
    _channel(tail)
    _config(tail)

    verify = command("verify", "Check evidence offline; print the report", "verify")
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    _accepting(verify)
    verify.add_argument("--json", action="store_true", help="the report as one JSON object")
    verify.add_argument("--html", type=Path, metavar="PAGE", help="write the report as a page that prints well, too")
    verify.add_argument(
        "--part", action="store_true", help="the files are a part: missing records are unknown, not failed"
    )
    verify.add_argument("--live", action="store_true", help="the files go up to now: say which channels are overdue")

    decode = command("decode", "Print the records of files with their verdicts", "decode")
    decode.add_argument("files", nargs="+", type=Path, metavar="FILE")
    decode.add_argument("--did", action="append", default=[], help="accepted signer; default: all that there are")
    decode.add_argument("--allow", type=Path, metavar="FILE", help="allow-list: accepted signers, names and channels")
    _formats(decode)

    _add_identity(noun("identity", "The agent's key: who it is, make one, take one over"))
    _add_config(noun("config", "Effective config, masked; JSON Schema"))
    add_ddhub(noun("ddhub", "Energy Web's Data Hub: login, roles, keys, topic, recipients"))
    _add_outbox(noun("outbox", "Look at, copy, prove, send again, mend, resize the local store"))
    return parser


def _add_identity(identity: Commands) -> None:
    show = identity("show", "DID, public key, address, and where the key is kept", "identity_show")
    show.add_argument("--json", action="store_true", help="one JSON object")

    create = identity("create", "Make a new key, never over another; print its DID", "identity_create")

    take = identity("import", "Take over a key made elsewhere, never over another; print its DID", "identity_import")
    take.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="file:PATH (64 hex digits), keystore:FILE, or - for stdin; left out with --credential: as in --config",
    )
    take.add_argument(
        "--credential",
        action="store_true",
        help="encrypt it for this machine's systemd, with a drop-in for the service, and have --config say so",
    )
    take.add_argument(
        "--source-passphrase", metavar="REF", help="of a keystore: file:PATH, credential:NAME or env:NAME"
    )

    for each in (show, create, take):
        each.add_argument(
            "--key",
            metavar="PLACE",
            help="file:PATH, keystore:FILE or, to show, credential:NAME; default: as in --config",
        )
        each.add_argument(
            "--passphrase", metavar="REF", help="of that keystore: file:PATH, credential:NAME or env:NAME"
        )
        each.add_argument("--network", choices=("ewc", "volta"), help="of the DID of --key (default: ewc)")
        _config(each)


def _add_config(config: Commands) -> None:
    show = config("show", "The configuration with all defaults, secrets masked", "config_show")
    show.add_argument("--json", action="store_true", help="as one JSON object")
    _config(show)
    _config(
        config("schema", "JSON Schema of any configuration, for editors; --config changes nothing", "config_schema")
    )


def _add_outbox(outbox: Commands) -> None:
    status = outbox("status", "How the local store of each channel stands", "outbox_status")
    status.add_argument("--json", action="store_true", help="one JSON object per channel")

    records = outbox("list", "Show the records that the local store holds", "outbox_list")
    records.add_argument("--limit", type=int, metavar="N", help="only the last N")
    records.add_argument("--json", action="store_true", help="one JSON object per record")

    export = outbox(
        "export", "Copy the evidence that the local store holds to a file (a CBOR sequence)", "outbox_export"
    )
    export.add_argument("file", type=Path, metavar="FILE", help="- for stdout")

    resend = outbox(
        "resend",
        "Have the running agent send retained records again, under the same ids",
        "outbox_resend",
    )
    which = resend.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="ID", help="records of this run: its id, or the first 8 digits of it or more")
    which.add_argument("--since", metavar="TIME", help="records sealed since 2026-01-31T09:00:00Z, or 2h ago: 2h")
    which.add_argument("--refused", action="store_true", help="records that the broker refused for good")
    resend.add_argument("--from", type=int, metavar="SEQ", dest="first", help="with --run: the first (default: 1)")
    resend.add_argument("--to", type=int, metavar="SEQ", dest="last", help="with --run: the last (default: all)")
    resend.add_argument("--until", metavar="TIME", help="with --since: the last (default: now)")
    resend.add_argument("--json", action="store_true", help="the outcome as one JSON object")

    for each in (status, records, export, resend):
        _channel(each)
        _running(each)

    verify = outbox(
        "verify", "Prove what the local store holds: file, chain, signatures; beside a running agent", "outbox_verify"
    )
    _accepted(verify)
    verify.add_argument("--json", action="store_true", help="one JSON object")

    repair = outbox("repair", "Save what can be read of a damaged store; the agent must be stopped", "outbox_repair")
    repair.add_argument("--dry-run", action="store_true", help="only say what would be saved")

    for each in (verify, repair):
        each.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a ring file; default: the channel's")

    resize = outbox("resize", "Make the local store larger or smaller; the agent must be stopped", "outbox_resize")
    resize.add_argument("--to", type=_size, metavar="SIZE", help="such as 128MiB; default: as in --config")

    for each in (verify, repair, resize):
        _channel(each)
        _config(each)


def _size(text: str) -> int:
    from agent.units import size_bytes

    try:
        return size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _accepted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--did", action="append", default=[], help="accepted signer (may be given more than once)")
    parser.add_argument("--allow", type=Path, metavar="FILE", help="allow-list: accepted signers, names and channels")


def _accepting(parser: argparse.ArgumentParser) -> None:
    _accepted(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on where an earlier call ended")


def _formats(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_mutually_exclusive_group()
    for name, words in (
        ("json", "one JSON object: the records, and the report"),
        ("jsonl", "one JSON object per record, the report last"),
        ("csv", "a row per value and per gap"),
        ("senml", "the values as SenML JSON (RFC 8428)"),
    ):
        formats.add_argument(f"--{name}", action="store_const", const=name, dest="format", help=words)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}")


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", type=Path, metavar="PATH", help="of the running agent; default: as in --config")
    _config(parser)


def _channel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channel", metavar="ID", help="which channel, if there are several")


if __name__ == "__main__":
    sys.exit(main())
