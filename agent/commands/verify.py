"""``edge-agent verify`` and ``edge-agent decode``: check evidence in files, offline; print the report, or what the
records say.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.commands import FINDING, GOOD, USAGE, say
from agent.commands.accepting import Checkpoint, accepted, begun
from agent.commands.printing import printer
from agent.errors import EvidenceError
from agent.evidence.envelope import envelopes, unpack
from agent.rendering import account
from agent.verifier import Judged, Signer, Verifier

_SOURCE = "files"
_MOST_SIGNERS = 8  # named when it must be said which there are
MOST_NAMED = 1024  # signers that files may name if none is chosen


def main(options: argparse.Namespace) -> int:
    """Verify files in the order given; findings and the report are printed. Raises CheckpointError, OSError."""
    try:
        accept = accepted(options) or _only_signer(options.files)
        verifier, _ = begun(options, accept, _SOURCE)
    except ValueError as error:
        say(f"edge-agent verify: {error}")
        return USAGE
    damaged = _feed(verifier, options.files, _say)
    if options.checkpoint is not None:
        Checkpoint(_SOURCE, None, verifier.save()).write(options.checkpoint)
    now = time.time_ns() if options.live else None
    for each in verifier.finish(complete=not (options.part or options.live), now=now):
        _say(each, None)
    report = verifier.report
    if options.html is not None:
        from agent.rendering.page import page

        options.html.write_text(page(report, made=time.time_ns(), sources=[path.name for path in options.files]))
    if options.json:
        print(json.dumps({**account.as_json(report), "damaged": damaged}))
    else:
        print("\n".join(account.lines(report)))
    return GOOD if report.good and not damaged else FINDING


def decode(options: argparse.Namespace) -> int:
    """Print the records of files with their verdicts. Raises OSError."""
    try:
        accept = accepted(options) or list(_signers(options.files))
        verifier = Verifier(accept)
    except ValueError as error:
        say(f"edge-agent decode: {error}")
        return USAGE
    shown = printer(options, lasting=False)
    damaged = _feed(verifier, options.files, lambda judged, place: shown.records([judged]))
    shown.records(verifier.finish())
    shown.end(verifier.report)
    return GOOD if verifier.report.good and not damaged else FINDING


def _feed(verifier: Verifier, paths: Iterable[Path], show: Callable[[Judged, str | None], None]) -> int:
    """Have the envelopes of files judged; returns in how many places a file is damaged."""
    damaged = 0
    for path in paths:
        with _bytes_of(path) as data:
            for offset, found in envelopes(data):
                place = f"{path}: at byte {offset}"
                if isinstance(found, EvidenceError):
                    damaged += 1
                    say(f"{place}: {found}")
                else:
                    for judged in verifier.feed(found):
                        show(judged, place)
    return damaged


def _say(judged: Judged, place: str | None) -> None:
    for finding in judged.findings:
        say(finding if place is None else f"{place}: {finding}")


def _only_signer(paths: Iterable[Path]) -> list[Signer | str]:
    """The DID that all envelopes name, if it is one. Raises ValueError."""
    found = _signers(paths)
    if len(found) != 1:
        named = ", ".join(sorted(found)[:_MOST_SIGNERS])
        raise ValueError(f"the files name {len(found)} signers; give --did for each that you accept: {named or 'none'}")
    (did,) = found
    say(f"accepting the only signer {did}: compare it with the agent's DID, or give --did")
    return [did]


def _signers(paths: Iterable[Path]) -> set[str]:
    """Whom the envelopes name; nothing of that is proven. Raises ValueError if they are too many to be true."""
    found: set[str] = set()
    for path in paths:
        with _bytes_of(path) as data:
            for _, each in envelopes(data):
                if isinstance(each, bytes):
                    found.add(unpack(each).did)
                if len(found) > MOST_NAMED:
                    raise ValueError(
                        f"the files name more than {MOST_NAMED} signers; give --did for each that you accept"
                    )
    return found


@contextmanager
def _bytes_of(path: Path) -> Iterator[bytes | mmap.mmap]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
