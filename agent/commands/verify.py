"""``edge-agent verify``: check evidence in files, offline."""

from __future__ import annotations

import argparse
import json
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.commands import FINDING, GOOD, USAGE, say
from agent.errors import EvidenceError
from agent.evidence.envelope import envelopes, unpack
from agent.rendering import account
from agent.verifier import Judged, Verifier


def main(options: argparse.Namespace) -> int:
    """Verify files in the order given; findings and the report are printed. Raises OSError."""
    try:
        return _verify(options, options.did or _only_signer(options.files))
    except ValueError as error:
        say(f"edge-agent verify: {error}")
        return USAGE


def _verify(options: argparse.Namespace, dids: list[str]) -> int:
    verifier, damaged = Verifier(dids), 0
    if not options.did:
        say(f"accepting the only signer {dids[0]}: compare it with the agent's DID, or give --did")
    for path in options.files:
        with _bytes_of(path) as data:
            for offset, found in envelopes(data):
                if isinstance(found, EvidenceError):
                    damaged += 1
                    say(f"{path}: at byte {offset}: {found}")
                else:
                    _say(path, offset, verifier.feed(found))
    _say(None, None, verifier.finish(complete=not options.part))
    report = verifier.report
    if options.json:
        print(json.dumps({**account.as_json(report), "damaged": damaged}))
    else:
        print("\n".join(account.lines(report)))
    return GOOD if report.good and not damaged else FINDING


def _say(path: Path | None, offset: int | None, judged: Iterable[Judged]) -> None:
    for each in judged:
        for finding in each.findings:
            say(finding if path is None else f"{path}: at byte {offset}: {finding}")


def _only_signer(paths: Iterable[Path]) -> list[str]:
    """The DID that all envelopes name, if it is one. Raises ValueError."""
    found = set()
    for path in paths:
        with _bytes_of(path) as data:
            found |= {unpack(each).did for _, each in envelopes(data) if isinstance(each, bytes)}
    if len(found) != 1:
        raise ValueError(f"the files name {len(found)} signers; give --did for each that you accept")
    return sorted(found)


@contextmanager
def _bytes_of(path: Path) -> Iterator[bytes | mmap.mmap]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
